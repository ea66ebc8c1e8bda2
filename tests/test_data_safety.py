"""Safety: planted secrets and personal data found, plain text let through, redaction consistent, phrases told apart."""

import base64
import json
import random
import time
import zlib

import numpy as np
import pytest

from shoestring.data.codes import CODES
from shoestring.data.language import LANGUAGE_NAMES, language, language_mix, languages_of
from shoestring.data.safety import NAMES, boilerplate, redact, redacted, refusal, safety_faults, scan
from shoestring.data.sensitive import BASE62, IBAN_LENGTH, crc_base62, luhn, mod97
from shoestring.records import Example, Message

RNG = random.Random(4)


def of(alphabet, size):
    return "".join(RNG.choice(alphabet) for _ in range(size))


HEX, UPPER32 = "0123456789abcdef", "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


def github(prefix="ghp_"):
    body = of(BASE62, 30)
    return prefix + body + crc_base62(body)


def grafana():
    body = "glsa_" + of(BASE62, 32)
    return f"{body}_{zlib.crc32(body.encode()):08x}"


def jwt():
    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": "1234567890", "iat": 1516239022})
    return (
        ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts)
        + "."
        + of(BASE62, 43)
    )


KEYS = [github(), github("gho_"), github("npm_"), grafana(), "AKIA" + of(UPPER32, 16), "AIza" + of(BASE62, 35),
        "sk-ant-api03-" + of(BASE62, 93) + "AA", "sk-proj-" + of(BASE62, 20) + "T3BlbkFJ" + of(BASE62, 20),
        "hf_" + of(BASE62[10:], 34), "sk_live_" + of(BASE62, 24), "xoxb-" + of("0123456789", 12) + "-" + of(BASE62, 24),
        "glpat-" + of(BASE62, 20), "SG." + of(BASE62, 22) + "." + of(BASE62, 43), "dckr_pat_" + of(BASE62, 27),
        "pypi-AgEIcHlwaS5vcmc" + of(BASE62, 80), "dapi" + of(HEX, 32), "gsk_" + of(BASE62, 52)]  # fmt: skip
PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{of(BASE62, 64)}\n{of(BASE62, 64)}\n-----END RSA PRIVATE KEY-----"
PLANTED = [
    *(("secret_api_key", key) for key in KEYS),
    ("secret_jwt", jwt()),
    ("secret_private_key", PEM),
    ("personal_email", "maria.schulz+shop@firma-nord.de"),
    ("personal_phone", "+49 30 901820"),
    ("personal_phone", "+44 (0)20 7946 0123"),
    ("personal_phone", "(212) 684-4700"),
    ("personal_phone", "912-901-8020"),
    ("personal_phone", "+1 415-926-5358"),
    ("personal_iban", "DE89 3704 0044 0532 0130 00"),
    ("personal_iban", "GB29NWBK60161331926819"),
    ("personal_card", "4532 0151 1283 0366"),
    ("personal_card", "378282246310005"),
    ("personal_ssn", "536-90-4399"),
    ("personal_ip", "59.187.84.127"),
    ("personal_ip", "2a00:1450:4001:830::200e"),
]
WITH_CONTEXT = [
    ("secret_password", "DB_PASSWORD=h0rse-Staple9", "h0rse-Staple9"),
    ("secret_password", 'api_key: "9f3kd02mfk2"', "9f3kd02mfk2"),
    ("secret_password", "My password is Tr0ub4dor, keep it.", "Tr0ub4dor"),
    ("secret_connection", "postgres://app:s3cr3tPw9@db.internal:5432/x", "s3cr3tPw9"),
    ("personal_phone", "Call me on 030 9018 2011 tonight.", "030 9018 2011"),
]
PLAIN = [
    "What is 48/2 + 24 = 48? <<48/2=24>>24 clips, 1,234,567.89 in all, #### 72",
    "The order 4111-1111 of 2023-05-12 cost $1,299.00 (ref. 20230512-44871).",
    "Winning score +8 (70-69-70-75=284) in 1998-2003, pages 1234567-1234599",
    "def login(password: str, token=None): password = input('password: '); api_key = os.environ['API_KEY']",
    "Choose a password: at least 12 characters. Password: ******** or password=<your password>",
    "Write to you@example.com or see git@github.com:owner/name.git, user@host, a@b",
    "postgres://user:password@localhost/db and https://example.org:8080/path@v2",
    "Version 4.7.0.208 and section 1.2.3.4, 192.168.0.1, 127.0.0.1, 8.8.8.8, 10:30:45, std::vector<int>",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789 is a made-up token, sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx too",
    "AKIAIOSFODNN7EXAMPLE is in the manual; begin with -----BEGIN PRIVATE KEY----- and so on",
    "SELECT a FROM t WHERE b = '1234567890123456' AND key = 12345678901",
    "call 555-0123 or 1-800-555-0199 or (212) 555-0142; the monkey ate 20 keys: 12345678",
    "A 16-digit number such as 1234567812345678, an ISBN 978-3-16-148410-0, 2 + 3 = 5",
    "",
]


@pytest.mark.parametrize(("code", "value"), PLANTED)
def test_planted_values_are_found_exactly(code, value):
    for text in (value, f"Before {value} after.", f'{{"note": "{value}"}}', f"see:\n{value}\nthanks"):
        found = scan(text)
        assert [(f.code, text[f.start : f.end]) for f in found] == [(code, value)], text
        assert value not in found[0].shown and len(found[0].shown) < 40


@pytest.mark.parametrize(("code", "text", "value"), WITH_CONTEXT)
def test_values_known_by_what_stands_before_them(code, text, value):
    assert [(f.code, text[f.start : f.end]) for f in scan(text)] == [(code, value)]


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_passes(text):
    assert scan(text) == []


def test_checksums_by_hand():
    # the token and its last six digits are published at gist.github.com/coolaj86 (revoked)
    assert crc_base62("zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ") == "0mLq17"
    assert luhn("79927398713") and not luhn("79927398710")
    assert mod97("GB82WEST12345698765432") and not mod97("GB82WEST12345698765431")
    assert IBAN_LENGTH["DE"] == 22


@pytest.mark.parametrize("key", [github(), grafana()])
def test_a_wrong_checksum_is_no_key(key):
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
    assert scan(wrong) == [] and len(scan(key)) == 1


def test_one_digit_off_is_no_card_and_no_iban():
    for value in ("4532 0151 1283 0367", "DE89 3704 0044 0532 0130 01"):
        assert scan(f"It is {value} here") == []


@pytest.mark.parametrize(
    "piece",
    ["a", "1 ", "1", "+1(1)", "a.", "a@", "a@b.", "sk-", "eyJa.", "password=", "password is ", "://:", "a://b:c@d ",
     "-----BEGIN PRIVATE KEY-----", "AB12 ", "1.1.", "2001:", "call 1", "(212) 684-4700 ", "x@firma.de ", "key "],
)  # fmt: skip
def test_no_text_takes_long(piece):
    text = piece * (200_000 // len(piece))
    started = time.process_time()
    scan(text)
    language(text)
    refusal(text)
    boilerplate(text)
    assert time.process_time() - started < 5


def row(*turns):
    messages = tuple(Message(role, text) for role, text in turns)
    return Example(messages, (len(messages) - 1, len(messages)), "a.jsonl", 7)


def test_redaction_is_typed_and_consistent_within_a_row():
    example = row(
        ("user", "Mail anna.k@post.de or bob@firma.at; anna.k@post.de is better."),
        ("assistant", "Wrote to bob@firma.at and anna.k@post.de from 59.187.84.127."),
    )
    changed = redacted(example)
    assert [m.content for m in changed.messages] == [
        "Mail <EMAIL> or <EMAIL_2>; <EMAIL> is better.",
        "Wrote to <EMAIL_2> and <EMAIL> from <IP>.",
    ]
    assert changed.id != example.id and (changed.source, changed.line) == ("a.jsonl", 7)
    assert redacted(changed) is changed, "nothing is left to redact"
    assert redact(f"token {KEYS[0]}.") == "token <API_KEY>."
    assert redact("DB_PASSWORD=h0rse-Staple9") == "DB_PASSWORD=<PASSWORD>"


def test_redacting_leaves_nothing_to_find():
    text = " and ".join(value for _, value in PLANTED)
    once = redact(text)
    assert scan(once) == [] and redact(once) == once


def test_faults_of_a_row_name_no_secret():
    key = KEYS[0]
    example = row(("user", f"Use {key} and a@firma.de"), ("assistant", "Sure! Here is the code: a@firma.de"))
    faults = safety_faults(example)
    assert [f.code for f in faults] == ["secret_api_key", "personal_email", "boilerplate"]
    assert all((f.source, f.line, f.repair) == ("a.jsonl", 7, "ask") for f in faults)
    assert "ghp_…" in faults[0].evidence and key not in faults[0].evidence
    assert "firma" not in faults[1].evidence
    assert safety_faults(row(("user", "Play some jazz"), ("assistant", '{"genre": "jazz"}'))) == []


def test_every_code_is_in_the_catalogue():
    for code in (*NAMES, "refusal", "boilerplate", "language_mix"):
        assert CODES[code].repair == "ask", code


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I don't have personal opinions.",
        "I'm sorry, but I cannot help with that.",
        "I’m sorry, but I can’t assist with this request.",
        "I am unable to provide medical advice.",
        "Unfortunately, I cannot answer this question without more context.",
        "As a Large Language Model (LLM), I don't have any favorite baseball teams.",
    ],
)
def test_refusals(answer):
    assert refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry to hear that your order is late. We have sent a new one.",
        "I just can't help but move my feet.",
        "I am unable to complete it by the due date.",
        "You cannot return opened food. We will refund the rest.",
        "cash_withdrawal_not_recognised",
        "The language model was trained on books. It answers questions about them.",
        "We're sorry, we can't come to the party on Sunday, but have fun!",
    ],
)
def test_no_refusals(answer):
    assert refusal(answer) is None


def test_boilerplate():
    assert boilerplate("Sure! Here is a list of five hobbies: ...") == "Sure! Here is"
    assert boilerplate("Certainly, I can help you with this.\n1. ...")
    assert boilerplate("The answer is 4. I hope this helps!") == "I hope this helps!"
    assert boilerplate("Turn it off and on again. Let me know if you have any other questions.")
    assert boilerplate("Of course the answer is four, as anyone can see.") is None
    assert boilerplate("Please let me know if Friday suits you.\n\nBest regards,\nAnna Berg") is None
    assert boilerplate("card_arrival") is None


SENTENCES = {
    "en": "When will the new card that I asked for be sent to my house?",
    "de": "Wann wird die neue Karte, die ich bestellt habe, zu mir nach Hause geschickt?",
    "fr": "Quand est-ce que la nouvelle carte que j'ai demandée sera envoyée chez moi dans le Nord ?",
    "es": "¿Cuándo me van a enviar la nueva tarjeta que he pedido para mi casa en el centro?",
    "it": "Quando mi verrà spedita la nuova carta che ho chiesto per la mia casa nel centro?",
    "pt": "Quando é que o novo cartão que eu pedi vai ser enviado para a minha casa no centro?",
    "nl": "Wanneer wordt de nieuwe kaart die ik heb gevraagd naar mijn huis gestuurd, en niet naar het werk?",
    "sv": "När kommer det nya kortet som jag har bett om att skickas till mitt hus och inte till jobbet?",
    "da": "Hvornår bliver det nye kort, som jeg har bedt om, sendt til mit hus og ikke til arbejdet?",
    "pl": "Kiedy nowa karta, o którą się nie prosiłem, ale która jest dla mnie, będzie wysłana do domu?",
    "tr": "Bu yeni kart için ne kadar beklemem gerekiyor ve bana bir mesaj gelecek mi, çok merak ediyorum?",
    "id": "Kapan kartu baru yang saya minta untuk rumah akan dikirim dengan pos dan tidak ke kantor ini?",
    "Cyrillic": "Когда будет отправлена новая карта?",
    "Greek": "Πότε θα σταλεί η νέα κάρτα μου;",
    "Arabic": "متى سيتم إرسال البطاقة الجديدة؟",
    "Devanagari": "नया कार्ड कब भेजा जाएगा?",
    "Hangul": "새 카드는 언제 배송되나요?",
    "Japanese": "新しいカードはいつ届きますか？",
    "Han": "新卡什么时候寄到我家？",
}


@pytest.mark.parametrize(("code", "text"), SENTENCES.items())
def test_languages(code, text):
    assert language(text) == code and language(text.upper()) == code
    assert LANGUAGE_NAMES[code]


@pytest.mark.parametrize(
    "text",
    ["", "card arrival", "SELECT a, b FROM t WHERE c = 'die'", '{"genre": "jazz", "artist": "Los Lobos"}', "#### 72",
     "play la vida es un carnaval by celia cruz", "add Die Ärzte to my playlist", "🙂🙂🙂🙂🙂", "x = y + z * w / v"],
)  # fmt: skip
def test_too_little_to_tell(text):
    assert language(text) in (None, "en")


def mix(rows):
    found = [languages_of(example.user_text, example.completion) for example in rows]
    return language_mix(rows, np.array(found).reshape(-1, 2))


def test_rows_in_another_language_than_the_bulk():
    rows = [row(("user", SENTENCES["en"]), ("assistant", "card_arrival"))] * 30
    german = row(("user", SENTENCES["de"]), ("assistant", "card_arrival"))
    japanese = row(("user", SENTENCES["en"]), ("assistant", SENTENCES["Japanese"]))
    faults, shares = mix([*rows, german])
    assert [(f.code, f.evidence) for f in faults] == [
        ("language_mix", "the prompt is German; 97 % of prompts are English")
    ]
    assert shares["prompt"] == {"en": 30, "de": 1}
    answers = [row(("user", SENTENCES["en"]), ("assistant", SENTENCES["en"]))] * 30
    assert [f.evidence for f in mix([*answers, japanese])[0]] == ["the answer is Japanese; 97 % of answers are English"]
    asked = row(("user", "Translate this into Japanese: " + SENTENCES["en"]), ("assistant", SENTENCES["Japanese"]))
    assert mix([*answers, asked])[0] == [], "a row that speaks of the language means it"
    assert mix([*rows[:15], *[german] * 15])[0] == [], "no bulk: nothing to differ from"
    assert mix([])[0] == []
