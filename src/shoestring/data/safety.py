"""Secrets, personal data, refusals and boilerplate: flagged for the user to decide, never dropped; redacted if asked.

Own patterns, because no maintained detector fits (looked up 2026-11-24): detect-secrets last released in May 2024 and
reads files line by line, Presidio needs spaCy models, scrubadub stands since 2023, gitleaks is no Python. Shapes of
keys come from their makers' documentation; where a key carries a checksum, it is computed. Names and postal
addresses are not looked for: telling a person from a product needs a model.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..records import Example, Fault, Message
from .decode import shorten
from .sensitive import (
    connection_password,
    is_api_key,
    is_card,
    is_email,
    is_iban,
    is_jwt,
    is_password,
    is_phone,
    is_private_key,
    is_public_ip,
    is_ssn,
)

# Nothing sought is without one of these, Hugging Face tokens apart; most rows hold none and end here.
ANY_SIGN = re.compile(r"[@=:\d]")
MIN_KEY_CHARACTERS = 20
KEY_RUN = re.compile(r"[\w-]{16}")
LONG_NUMBER = re.compile(r"\d[\d .()/-]{6,}+")
MIN_NUMBER_DIGITS, NUM_IP_POINTS = 7, 3

API_KEY = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"gh[pousr]_\w{36}|github_pat_\w{82}|npm_\w{36}"  # github.blog 2021-04-05 and changelog 2021-09-23
    r"|(?:AKIA|ASIA)[A-Z2-7]{16}"  # AWS IAM user guide, unique identifiers
    r"|AIza[\w-]{35}|GOCSPX-[\w-]{28}"  # Google Cloud, API keys
    r"|sk-ant-[a-z]{3,5}\d\d-[\w-]{80,}AA|sk-(?:proj-|svcacct-|admin-)?[\w-]{20,74}T3BlbkFJ[\w-]{20,74}"
    r"|sk-or-v1-[a-f0-9]{64}|sk-[A-Za-z0-9]{32,48}|gsk_\w{52}|xai-\w{80}|r8_\w{37}|hf_[A-Za-z]{34}|nvapi-[\w-]{64}"
    r"|[sr]k_(?:live|test)_\w{16,99}|whsec_\w{32}"  # Stripe
    r"|xox[abeoprs]-[\w-]{20,}|xapp-\d-[\w-]{20,}"  # Slack, token types
    r"|gl(?:pat|dt|rt|ptt|cbt|agent)-[\w.-]{20,}|glsa_\w{32}_[a-f0-9]{8}|glc_eyJ[\w+/]{30,}"  # GitLab, Grafana
    r"|SG\.[\w-]{22}\.[\w-]{43}|key-[a-f0-9]{32}|AC[a-f0-9]{32}|SK[a-f0-9]{32}"  # SendGrid, Mailgun, Twilio
    r"|pypi-AgEIcHlwaS5vcmc[\w-]{50,}|dckr_pat_[\w-]{27}|do[opr]_v1_[a-f0-9]{64}|dapi[a-f0-9]{32}"
    r"|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}|lin_api_\w{40}|ntn_\w{46}|PMAK-[a-f0-9]{24}-[a-f0-9]{34}|NRAK-[A-Z0-9]{27}"
    r"|hv[sb]\.[\w-]{90,}|\d{8,10}:AA[\w-]{33}|AGE-SECRET-KEY-1[A-Z0-9]{58}"
    r")(?![A-Za-z0-9_-])"
)
JWT = re.compile(r"(?<![\w-])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}")
PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]{0,40}-----|\Z)", re.DOTALL
)
CONNECTION = re.compile(r"(?<![\w+])[a-z][a-z0-9+]{1,20}://[^\s:/@'\"<>]{0,80}:(?P<value>[^\s/@'\"]{3,100})@[\w.-]{2,}")
PASSWORD = re.compile(
    r"(?i)(?<![a-z])(?:pass(?:word|wd|phrase)|pwd|secret|(?:api|access|account|secret|auth)[ _-]?(?:key|token)"
    r"|client[ _-]?secret|passcode)[\"'`]?(?: ?(?::=|=>|[:=]) ?| is:? )[\"'`]?(?P<value>[^\s\"'`,;]{6,200})"
)
EMAIL = re.compile(r"(?<![\w.+/-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,24}(?![\w@-])")
PHONE = re.compile(
    r"(?<![\w+=.-])\+\d{1,5}(?:[ .-]?(?:\(\d{1,5}\)|\d{1,5})){1,6}(?![\w-])"  # international, ITU-T E.164
    r"|(?<![\w.(+-])(?:\+?1[ .-])?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}(?![\w-])"  # North America
    r"|(?i:\b(?:phone|telephone|tel|mobile|cell|call|fax|whatsapp)\b[^\d\n+(]{0,20})"
    r"(?P<value>\(?\d[\d .()/-]{7,16}\d)(?![\w-])"
)
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?![a-z])")
CARD = re.compile(r"(?<![\w.+/-])\d(?:[ -]?\d){12,18}(?![\w/-]|\.\d)")
SSN = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")
IPV4 = re.compile(r"(?<![\w.:/-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)")
IPV6 = re.compile(r"(?<![\w.:/-])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{3,34}(?![\w:])")  # 2000::/3 is what is routed

# Earlier ones win where two overlap. check gets the match and the whole text, and returns the span's length or 0.
Check = Callable[[str, str, int], int]
Rule = tuple[str, re.Pattern[str], Check]
LONG: tuple[Rule, ...] = (
    ("secret_private_key", PRIVATE_KEY, is_private_key),
    ("secret_jwt", JWT, is_jwt),
    ("secret_api_key", API_KEY, is_api_key),
)
NUMBERS: tuple[Rule, ...] = (
    ("personal_iban", IBAN, is_iban),
    ("personal_card", CARD, is_card),
    ("personal_ssn", SSN, is_ssn),
    ("personal_ip", IPV4, is_public_ip),
    ("personal_phone", PHONE, is_phone),
)
NAMES = {
    "secret_private_key": "private key",
    "secret_jwt": "JSON web token",
    "secret_api_key": "API key",
    "secret_connection": "password in an address",
    "secret_password": "password",
    "personal_email": "e-mail address",
    "personal_iban": "bank account (IBAN, checksum right)",
    "personal_card": "card number (checksum right)",
    "personal_ssn": "US social security number",
    "personal_ip": "public IP address",
    "personal_phone": "phone number",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A secret or personal datum at text[start:end]; shown is its masked form, safe to print."""

    code: str
    start: int
    end: int
    shown: str


def scan(text: str) -> list[Finding]:
    """Secrets and personal data of a text, in order, none overlapping another."""
    rules = _rules_for(text)
    if not rules:
        return []
    found: list[Finding] = []
    is_taken = bytearray(len(text))
    for code, pattern, check in rules:
        for match in pattern.finditer(text):
            group = "value" if "value" in pattern.groupindex and match["value"] is not None else 0
            start = match.start(group)
            end = start + check(match[group], text, start)
            if end > start and is_taken.find(1, start, end) < 0:
                is_taken[start:end] = bytes([1]) * (end - start)
                found.append(Finding(code, start, end, _masked(code, text[start:end])))
    return sorted(found, key=lambda f: f.start)


def _rules_for(text: str) -> list[Rule]:
    """The rules that may find something in a text, by quick looks; most texts need none."""
    if not ANY_SIGN.search(text) and "hf_" not in text:
        return []
    rules: list[Rule] = []
    words = text.split()
    if "-----BEGIN" in text or (max(map(len, words), default=0) >= MIN_KEY_CHARACTERS and _may_hold_a_key(words)):
        rules += LONG
    if "://" in text:
        rules.append(("secret_connection", CONNECTION, connection_password))
    folded = text.lower()
    if "pass" in folded or "pwd" in folded or "secret" in folded or "token" in folded or "key" in folded:
        rules.append(("secret_password", PASSWORD, is_password))
    if "@" in text:
        rules.append(("personal_email", EMAIL, is_email))
    for match in LONG_NUMBER.finditer(text):
        if _may_be_personal(match[0]):
            rules += NUMBERS
            break
    if text.count(":") >= 3:
        rules.append(("personal_ip", IPV6, is_public_ip))
    return rules


def _may_hold_a_key(words: list[str]) -> bool:
    long = (word for word in words if len(word) >= MIN_KEY_CHARACTERS and KEY_RUN.search(word))
    return any(API_KEY.search(word) or JWT.search(word) for word in long)


def _may_be_personal(number: str) -> bool:
    return number.count(".") >= NUM_IP_POINTS or sum(map(str.isdigit, number)) >= MIN_NUMBER_DIGITS


def _masked(code: str, value: str) -> str:
    if code == "secret_private_key":
        return value[:27] + "…"
    if code == "personal_email":
        name, _, domain = value.partition("@")
        return f"{name[0]}…@{domain[0]}…{domain[domain.rindex('.') :]}"
    return f"{value[:4]}…" if code in ("secret_api_key", "secret_jwt", "personal_iban") else f"{value[:2]}…{value[-1:]}"


def placeholder(code: str) -> str:
    """What stands for a finding in redacted text: <EMAIL>, <API_KEY>."""
    return f"<{code.partition('_')[2].upper()}>"


def redact(text: str, known: dict[tuple[str, str], str] | None = None) -> str:
    """The text with a typed placeholder for each finding: <EMAIL>, a second address <EMAIL_2>.

    known carries the placeholders from one text of a row to the next, so that a value keeps its own.
    """
    known = {} if known is None else known
    parts: list[str] = []
    end = 0
    for finding in scan(text):
        key = (finding.code, text[finding.start : finding.end])
        if key not in known:
            number = 1 + sum(code == finding.code for code, _ in known)
            plain = placeholder(finding.code)
            known[key] = plain if number == 1 else f"{plain[:-1]}_{number}>"
        parts += [text[end : finding.start], known[key]]
        end = finding.end
    return "".join([*parts, text[end:]])


def redacted(example: Example) -> Example:
    """The example with every message redacted; itself when there is nothing to redact. A changed one has a new id."""
    known: dict[tuple[str, str], str] = {}
    messages = tuple(_redacted_message(m, known) for m in example.messages)
    rejected = tuple(_redacted_message(m, known) for m in example.rejected)
    tools = redact_json(example.tools, known)
    return dataclasses.replace(example, messages=messages, rejected=rejected, tools=tools, id="") if known else example


def _redacted_message(message: Message, known: dict[tuple[str, str], str]) -> Message:
    calls = tuple(dataclasses.replace(c, arguments=redact_json(c.arguments, known)) for c in message.tool_calls)
    return dataclasses.replace(message, content=redact(message.content, known), tool_calls=calls)


def redact_json(text: str, known: dict[tuple[str, str], str]) -> str:
    """JSON text with every string in it redacted, what is no JSON as a whole; itself when there is nothing to redact.

    A string is read after the key it stands under: the name of a field can say that it holds a password.
    """

    def clean(value: Any, key: str = "") -> Any:
        if isinstance(value, str):
            head = f"{key}: " if key else ""
            whole = redact(head + value, known)
            return whole[len(head) :] if whole.startswith(head) else redact(value, known)
        if isinstance(value, dict):
            return {k: clean(v, k) for k, v in value.items()}
        return [clean(v, key) for v in value] if isinstance(value, list) else value

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return redact(text, known)
    cleaned = clean(value)
    return text if cleaned == value else json.dumps(cleaned, ensure_ascii=False)


def _strings(text: str) -> Iterator[str]:
    """The strings of JSON text, each after the key it stands under; text that is no JSON as it is."""

    def walk(value: Any, key: str = "") -> Iterator[str]:
        if isinstance(value, str):
            yield f"{key}: {value}" if key else value
        elif isinstance(value, dict):
            for name, inner in value.items():
                yield from walk(inner, name)
        elif isinstance(value, list):
            for inner in value:
                yield from walk(inner, key)

    try:
        yield from walk(json.loads(text))
    except (ValueError, RecursionError):
        yield text


def _findings(example: Example) -> Iterator[tuple[Finding, str]]:
    """What everything a row says holds, and where: declarations, messages, and the arguments of calls."""
    if example.tools:
        yield from ((finding, "tools") for finding in _scan_json(example.tools))
    for message in example.messages:
        yield from ((finding, message.role) for finding in scan(message.content))
        for call in message.tool_calls:
            yield from ((finding, f"{message.role}'s call") for finding in _scan_json(call.arguments))


@lru_cache(maxsize=1024)
def _scan_json(text: str) -> tuple[Finding, ...]:
    """What the strings of JSON text hold; kept, because most rows of a set declare the same tools."""
    return tuple(finding for string in _strings(text) for finding in scan(string))


SORRY = re.compile(
    r"as an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|\bi(?:'m| am) (?:just |only )?an? (?:ai\b|artificial intelligence|(?:large )?language model)"
    r"|\bi(?:'m| am)?(?: sorry| apologi[sz]e| regret)?[^.!?\n]{0,40}\b(?:cannot|can't|can not|(?:am |'m )?unable to"
    r"|(?:am |'m )?not able to|won't) (?:\w+ ){0,3}?"
    r"(?:assist|help(?! but)|provide|fulfil+|comply|answer|generate|create|discuss|respond)\b"
)
SORRY_WORDS = ("sorry", "cannot", "can't", "can not", "unable to", "not able to", "won't", "as an a", "language model",
               "an ai", "artificial intelligence")  # fmt: skip
SORRY_WITHIN = 240  # characters: a refusal says so at once; later in a text the same words are its subject
MIN_SENTENCE = 20
OPENERS = re.compile(
    r"(?:sure|certainly|of course|absolutely|great question|okay|no problem)[!,.:]+ (?:here(?:'s| is| are)|i(?:'d| can|"
    r"'ll| will| would)|let me|that's|below)\b|(?:thank you|thanks) for (?:your question|asking)\b"
)
CLOSERS = re.compile(
    r"(?:i hope (?:this|that|it) (?:helps|was helpful|is helpful)|(?:please )?(?:let me know|feel free to ask)"
    r"(?: me)? ?(?:if|should)?[^.!?\n]{0,60}(?:questions?|help|assistance|clarification|else)"
    r"|is there anything else i can[^.!?\n]{0,40})[^\w\n]*(?:😊|🙂)?\s*$"
)
CLOSER_WITHIN = 140


def refusal(answer: str) -> str | None:
    """The words by which an answer refuses or speaks of itself as an AI, or None."""
    if len(answer) < MIN_SENTENCE:
        return None
    head = answer[:SORRY_WITHIN].lower().replace("’", "'")
    if not any(words in head for words in SORRY_WORDS):
        return None
    match = SORRY.search(head)
    return shorten(answer[match.start() : SORRY_WITHIN], 100) if match else None


def boilerplate(answer: str) -> str | None:
    """The chat phrase an answer opens or closes with ("Sure! Here is", "I hope this helps"), or None."""
    if len(answer) < MIN_SENTENCE:
        return None
    match = OPENERS.match(answer[:60].lower().replace("’", "'"))
    if match:
        return answer[: match.end()]
    end = answer[-CLOSER_WITHIN:].lower().replace("’", "'")
    match = CLOSERS.search(end) if "help" in end or "let me know" in end or "feel free" in end else None
    return shorten(answer[len(answer) - len(end) + match.start() :].strip(), 100) if match else None


def safety_faults(example: Example) -> list[Fault]:
    """Secrets, personal data, refusal and boilerplate of one row, one fault a code; nothing shown in full."""
    shown: dict[str, list[str]] = {}
    for finding, where in _findings(example):
        shown.setdefault(finding.code, []).append(f"{finding.shown} ({where})")
    faults = []
    for code, values in shown.items():
        distinct = list(dict.fromkeys(values))
        more = f" and {len(distinct) - 3} more" if len(distinct) > 3 else ""
        evidence = f"{NAMES[code]}: {', '.join(distinct[:3])}{more}"
        faults.append(Fault(code, example.source, example.line, evidence))
    answer = example.completion
    for code, phrase in (("refusal", refusal(answer)), ("boilerplate", boilerplate(answer))):
        if phrase:
            faults.append(Fault(code, example.source, example.line, f"the answer says {phrase!r}"))
    return faults
