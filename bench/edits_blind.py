"""Blind edit set for a near-duplicate benchmark on short English user prompts.

Written by a helper session (Claude), the blind author of this set: written without sight of the code
it tests, of the benchmark around it, and of any other edit set. The only inputs were the task brief and samples of
banking77, snips_slots, gsm8k, wikisql and alpaca_noisy, read to try the functions on natural text.

EDITS            kind -> edit that keeps the meaning: a deduplicator should merge the pair.
COUNTERFACTUALS  kind -> small edit that changes the meaning: a deduplicator must not merge the pair.

Every function takes (text, rng) and returns the edited text, always different from the input, or None when the edit
does not apply or when it is not safe to claim the property. All randomness comes from rng, so a seeded rng repeats.
The part of a kind's name before the first underscore is its family (case, punct, unicode, typo, add, drop, polite,
reorder, space, contraction; number, date, name, negation, unit, antonym, swap, asked).
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

Edit = Callable[[str, random.Random], str | None]

# --------------------------------------------------------------------------------------------------------------------
# Shared helpers
# --------------------------------------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    return text.split()


_WH = _words("how what which who whom whose where when why")
_AUX = _words(
    "is are am was were do does did can could will would should shall may might must has have had isn't aren't wasn't "
    "weren't don't doesn't didn't can't couldn't won't wouldn't shouldn't hasn't haven't"
)
_QUESTION_STARTS = frozenset(_WH + _AUX + ["what's", "who's", "where's", "how's", "when's", "whats", "hows"])
_IMPERATIVES = frozenset(
    _words(
        "rate play add book find show give tell name list describe explain write create generate summarize rewrite "
        "identify compose provide classify convert calculate compare design suggest construct edit determine "
        "analyze analyse discuss outline develop propose brainstorm predict arrange organize organise sort rank "
        "categorize evaluate assess estimate compute count put get search look help make choose select pick "
        "imagine reserve draft tweet translate paraphrase replace remove delete insert change modify transform "
        "simplify shorten highlight detect extract retrieve research read solve state mention define assign "
        "recommend review reorder rearrange format build implement produce formulate pretend cite track cancel "
        "check send combine complete match fill illustrate demonstrate craft devise plan prepare gather use"
    )
)
_PRONOUNS = frozenset(_words("he she it they we you there this that these those his her its their our your my"))
_FUNCTION = frozenset(
    _words(
        "a an the in on at for with from by to of if when while after before during since because as given using "
        "some all any each every both no and but or so also then please once under over between among about based "
        "last next every yesterday today tomorrow tonight currently"
    )
)
_SAFE_LOWER = frozenset(_QUESTION_STARTS | _IMPERATIVES | _PRONOUNS | _FUNCTION)
_WORD = re.compile(r"[A-Za-z]+(?:['\u2019][A-Za-z]+)*")
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|`[^`]*`|(?<![\w])['\u2018][^'\u2019]{2,}['\u2019](?!\w)")
# Prompts in which the very characters are the subject: an edit of the surface is an edit of the task there.
_LITERAL = re.compile(
    r"```|https?://|www\.|\w@\w|\b(?:upper ?-?case|lower ?-?case|capitali[sz]\w*|capital letters?|title case|case|"
    r"punctuat\w+|comma|commas|semicolons?|colon|apostrophes?|quotation|hyphen\w*|spelling|spelled|misspell\w*|typos?|"
    r"characters?|letters?|strings?|regex\w*|regular expression|palindrome\w*|anagram\w*|ascii|unicode|whitespaces?|"
    r"spaces|contractions?|abbreviat\w*|acronyms?|proofread|grammar|grammatical\w*|grammatically|correct|errors?|"
    r"code|html|json|xml|syllables?|vowels?|consonants?|encode|encrypt|cipher|format|articles? \(|insert|"
    r"word count|tokens?|tokenize|bits?|bytes?|binary|chemical|formula|equation|symbols?)\b|[{}<>\\=_|]",
    re.IGNORECASE,
)
_NEGATION = re.compile(
    r"\b(?:not|no|never|none|nobody|nothing|nowhere|neither|nor|cannot|cant|wont|dont|doesnt|didnt|isnt|wasnt|havent|"
    r"hasnt|without|hardly|barely|unable|refus\w+|fail\w*|\w+n['\u2019]t)\b",
    re.IGNORECASE,
)
_ABBREV = re.compile(r"\b(?:mr|mrs|ms|dr|st|vs|no|etc|e\.g|i\.e|jr|sr|inc|[A-Z])\.$", re.IGNORECASE)
_END = re.compile(r"[\s.?!]*$")


def _literal(text: str) -> bool:
    return bool(_LITERAL.search(text))


def _quoted_spans(text: str) -> list[tuple[int, int]]:
    return [m.span() for m in _QUOTED.finditer(text)]


def _in_spans(start: int, end: int, spans: Iterable[tuple[int, int]]) -> bool:
    return any(start < b and end > a for a, b in spans)


def _sub_one(
    text: str,
    rng: random.Random,
    pattern: str | re.Pattern[str],
    repl: Callable[[re.Match[str]], str | None],
    *,
    quotes: bool = False,
) -> str | None:
    """Replace one random match for which `repl` gives a text; skips quoted material unless `quotes`."""
    spans = [] if quotes else _quoted_spans(text)
    options: list[tuple[re.Match[str], str]] = []
    for match in re.finditer(pattern, text):
        if _in_spans(match.start(), match.end(), spans):
            continue
        new = repl(match)
        if new is not None and new != match.group():
            options.append((match, new))
    if not options:
        return None
    match, new = rng.choice(options)
    return text[: match.start()] + new + text[match.end() :]


def _first_word(text: str) -> str:
    match = _WORD.search(text)
    return match.group() if match else ""


def _lower_first(text: str) -> str:
    """Lower-case the first letter where the first word is surely no name and not "I"."""
    word = _first_word(text)
    if text.startswith(word) and word[1:].islower() and word.lower().replace("\u2019", "'") in _SAFE_LOWER:
        return text[0].lower() + text[1:]
    return text


def _can_lower(text: str) -> bool:
    word = _first_word(text)
    return text[:1].islower() or _lower_first(text) != text or word == "I" or word.startswith(("I'", "I\u2019"))


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _like_first(model: str, text: str) -> str:
    """Give `text` a capital first letter where `model` has one."""
    return _upper_first(text) if model[:1].isupper() else text


def _like_case(model: str, new: str) -> str:
    if len(model) > 1 and model.isupper():
        return new.upper()
    return _like_first(model, new)


def _split_end(text: str) -> tuple[str, str]:
    """(body, final punctuation and white space)."""
    cut = _END.search(text)
    assert cut is not None
    return text[: cut.start()], text[cut.start() :]


def _sentences(text: str) -> list[tuple[int, int]]:
    """Spans of the sentences, final punctuation included, white space between them excluded."""
    spans: list[tuple[int, int]] = []
    start = 0
    for match in re.finditer(r"[.?!]+[\"”\u2019')]*\s+", text):
        head = text[start : match.end()].rstrip()
        if _ABBREV.search(head) or not text[match.end() :].strip():
            continue
        spans.append((start, start + len(head)))
        start = match.end()
    tail = text[start:].rstrip()
    if tail:
        spans.append((start, start + len(tail)))
    return spans


def _sentence_of(text: str, pos: int) -> str:
    for a, b in _sentences(text):
        if a <= pos < b:
            return text[a:b]
    return text


def _starts_sentence(text: str, pos: int) -> bool:
    head = text[:pos].rstrip()
    return not head or head[-1] in ".?!:\"“\u2018'(*-•"


def _kind(text: str) -> str:
    """question, imperative, problem (statements, then a question) or statement."""
    first = _first_word(text).lower().replace("\u2019", "'")
    ends = text.rstrip().endswith("?")
    if first == "please" or first in _IMPERATIVES:
        return "imperative"
    if first in _QUESTION_STARTS and (ends or len(_sentences(text)) == 1):
        return "question"
    if ends:
        return "problem"
    return "statement"


def _word_problem(text: str) -> bool:
    numbers = len(re.findall(r"\d+|\b(?:two|three|four|five|six|seven|eight|nine|ten|half|twice|dozen)\b", text))
    return (
        numbers >= 2
        and len(text.split()) >= 15
        and bool(re.search(r"\bhow (?:many|much|long|old|far)\b", text, re.IGNORECASE))
    )


def _story(text: str) -> bool:
    """A word problem, or what looks like one: renaming its people or places leaves the task as it was."""
    if _word_problem(text):
        return True
    asks = re.search(
        r"\b(?:how (?:many|much|long|old|far)|calculate|what (?:is|was|will be) the)\b", text, re.IGNORECASE
    )
    counts = re.search(r"\d|\b(?:two|three|four|five|six|seven|eight|nine|ten|half|twice|dozen|fifteen|twenty)\b", text)
    return bool(asks and counts) and len(text.split()) >= 15 and len(_sentences(text)) >= 2


def _capital_mid(text: str, match: re.Match[str]) -> bool:
    """A capitalised match inside a sentence: part of a name or title."""
    return match.group()[:1].isupper() and not _starts_sentence(text, match.start()) and not text.isupper()


def _fix_article(head: str, word: str) -> str:
    """`head` with a final "a " or "an " made to agree with `word`."""
    match = re.search(r"\b([Aa])n? $", head)
    if not match:
        return head
    vowel = word[:1].lower() in "aeiou" and not re.match(r"(?i)euro|one|uni|use|usa|uk|us\b", word)
    vowel = vowel or bool(re.match(r"(?i)hour|honest", word))
    return head[: match.start()] + match.group(1) + ("n " if vowel else " ")


def _checked(function: Edit) -> Edit:
    def run(text: str, rng: random.Random) -> str | None:
        if len(text.split()) < 3:
            return None
        new = function(text, rng)
        if new is None or new == text or not new.strip():
            return None
        return new

    run.__name__ = function.__name__
    run.__doc__ = function.__doc__
    return run


# --------------------------------------------------------------------------------------------------------------------
# Meaning-preserving: letter case
# --------------------------------------------------------------------------------------------------------------------

_CASE_PAIRS = re.compile(r"\b(?:US|IT|WHO|AIDS|WHAT|Polish|Turkey|mW|MW|Mb|MB|mb)\b")


def _case_safe(text: str) -> bool:
    return not _literal(text) and not (_CASE_PAIRS.search(text) and not text.isupper())


def case_upper(text: str, rng: random.Random) -> str | None:
    return text.upper() if _case_safe(text) and text.upper().lower() == text.lower() else None


def case_lower(text: str, rng: random.Random) -> str | None:
    return text.lower() if _case_safe(text) else None


def case_title(text: str, rng: random.Random) -> str | None:
    if not _case_safe(text):
        return None
    return re.sub(r"(?<![\w'\u2019])[a-z]", lambda m: m.group().upper(), text)


def case_caps_lock(text: str, rng: random.Random) -> str | None:
    """Caps lock left on: every letter has the other case."""
    return text.swapcase() if _case_safe(text) and text.swapcase().swapcase() == text else None


def case_first_letter(text: str, rng: random.Random) -> str | None:
    if not text[:1].isalpha() or (text[0].isupper() and not _can_lower(text)):
        return None
    return text[0].swapcase() + text[1:]


def case_sentence(text: str, rng: random.Random) -> str | None:
    """Only the first letter of each sentence stays a capital."""
    if not _case_safe(text):
        return None
    low = list(text.lower())
    for a, _ in _sentences(text):
        low[a] = low[a].upper()
    return "".join(low)


def case_shout_word(text: str, rng: random.Random) -> str | None:
    """One plain word in capitals, as impatient users write."""
    if _literal(text):
        return None
    words = (
        r"\b(?:" + "|".join(sorted(_COMMON_WORDS | {"need", "want", "help", "card", "many", "much", "not"})) + r")\b"
    )
    return _sub_one(text, rng, words, lambda m: m.group().upper())


def case_mocking(text: str, rng: random.Random) -> str | None:
    """A few letters in the wrong case, as from a hasty shift key."""
    if not _case_safe(text):
        return None
    places = [i for i, c in enumerate(text) if c.isascii() and c.isalpha()]
    if len(places) < 12:
        return None
    flip = set(rng.sample(places, max(2, len(places) // 12)))
    return "".join(c.swapcase() if i in flip else c for i, c in enumerate(text))


def case_pronoun_i(text: str, rng: random.Random) -> str | None:
    """ "I" written small, or a small "i" written large."""
    if re.search(r"\bI\b(?!\.|-)", text) and not re.search(r"\b(?:World War|Part|Type|Chapter|Elizabeth) I\b", text):
        return re.sub(r"(?<![\w.])I(?=['\u2019 ](?:[a-z]|$))", "i", text)
    if re.search(r"(?<![\w.])i(?=['\u2019 ][a-z])(?! =)", text) and not _literal(text):
        return re.sub(r"(?<![\w.])i(?=['\u2019 ][a-z])", "I", text)
    return None


# --------------------------------------------------------------------------------------------------------------------
# Meaning-preserving: punctuation
# --------------------------------------------------------------------------------------------------------------------


def punct_drop_final(text: str, rng: random.Random) -> str | None:
    body, end = _split_end(text)
    if not end.strip() or _ABBREV.search(text.rstrip()) or body.endswith(("_", ":")):
        return None
    return body


def punct_add_final(text: str, rng: random.Random) -> str | None:
    """The missing full stop or question mark."""
    body, end = _split_end(text)
    if end.strip() or not (body[-1:].isalnum() or body[-1:] in "'\u2019\")") or len(_sentences(text)) != 1:
        return None
    kind = _kind(text)
    if kind == "question":
        return body + "?"
    return body + "." if kind in ("imperative", "statement") else None


def punct_repeat_final(text: str, rng: random.Random) -> str | None:
    body, end = _split_end(text)
    mark = end.strip()
    if mark == "?":
        return body + rng.choice(["??", "???", "?!", "? ?"])
    if mark == "!":
        return body + rng.choice(["!!", "!!!"])
    if mark == ".":
        return body + rng.choice(["..", "...", "!", "!!"])
    return None


def punct_change_final(text: str, rng: random.Random) -> str | None:
    """A question with a full stop, an order or statement with "!" or "..."."""
    body, end = _split_end(text)
    mark = end.strip()
    last = text[slice(*_sentences(text)[-1])] if text.strip() else ""
    first = _first_word(last).lower()
    if mark == "?" and first in _WH:
        return body + rng.choice([".", "...", "!"])
    if mark == "?" and first in _AUX and len(_sentences(text)) == 1:
        return body + "."
    if mark == "." and not body.endswith("."):
        return body + rng.choice(["!", "...", ";"])
    return None


def punct_drop_commas(text: str, rng: random.Random) -> str | None:
    """All commas between words gone; commas near digits stay."""
    if _literal(text) or text.count(",") > 3:
        return None
    return re.sub(r"(?<=[a-z]),(?= [a-zA-Z])(?! (?:[A-Z]\w+,|not\b))", "", text)


def punct_drop_all(text: str, rng: random.Random) -> str | None:
    """No commas, stops, question or exclamation marks, no quotes; nothing beside a digit is touched."""
    if _literal(text) or text.count(",") > 3 or len(_sentences(text)) > 3 or re.search(r"\b[A-Z]\.", text):
        return None
    new = re.sub(r"(?<=[A-Za-z\"”\u2019')])[,;:!?.]+(?=\s|$|[\"”])", "", text)
    new = re.sub(r"(?<=\d)[!?.]+$", "", new)
    return re.sub(r"[\"“”]", "", new)


def punct_drop_apostrophe(text: str, rng: random.Random) -> str | None:
    """dont, cant, im, whats: the ones that give no other English word."""
    if _literal(text):
        return None
    pattern = (
        r"(?i)\b(?:do|ca|wo|is|does|did|have|has|was|are|would|could|should)n['\u2019]t\b|\bI['\u2019](?:m|ve)\b|"
        r"\b(?:what|that|how|where|there)['\u2019]s\b"
    )
    return re.sub(pattern, lambda m: re.sub("['\u2019]", "", m.group()), text)


def punct_quotes_style(text: str, rng: random.Random) -> str | None:
    """Double quotes to single ones, or single to double."""
    if _literal(text):
        return None
    if re.search(r"(?<!\w)\"[^\"'\u2019]+\"(?!\w)", text):
        return re.sub(r"(?<!\w)\"([^\"'\u2019]+)\"(?!\w)", r"'\1'", text)
    if re.search(r"(?<!\w)'[^\"']{2,}'(?!\w)", text) and text.count("'") == 2:
        return re.sub(r"(?<!\w)'([^\"']{2,})'(?!\w)", r'"\1"', text)
    return None


def punct_quotes_drop(text: str, rng: random.Random) -> str | None:
    """The quotes around a title or a word of at most five words gone."""
    if _literal(text):
        return None
    return _sub_one(
        text, rng, r"(?<!\w)[\"“]([A-Z][^\"”]*)[\"”](?!\w)", lambda m: _few_words(m.group(1).strip()), quotes=True
    )


def _few_words(inner: str) -> str | None:
    return inner if 1 <= len(inner.split()) <= 5 and inner[-1:].isalnum() else None


def punct_wrap_quotes(text: str, rng: random.Random) -> str | None:
    """The whole prompt in quotation marks, as left over from a table or a chat log."""
    if '"' in text or text.rstrip().endswith(":") or _literal(text):
        return None
    return rng.choice(['"{}"', "“{}”", "«{}»"]).format(text.strip())


def punct_hyphen(text: str, rng: random.Random) -> str | None:
    """top-up -> top up, part-time -> part time; lower-case compounds only."""
    if _literal(text):
        return None
    return re.sub(r"(?<![\w-])(?!re-|co-|pre-)([a-z]{2,})-([a-z]{2,})(?![\w-])", r"\1 \2", text)


def punct_join_sentences(text: str, rng: random.Random) -> str | None:
    """Full stop between two sentences turned into ";", "," or a dash."""
    join = rng.choice(["; ", " - ", ", ", "... "])

    return _sub_one(text, rng, r"(?<=[a-z]{2})\.\s+(?:[A-Z])(?=\w*['\u2019 ])", lambda m: _join_repl(text, m, join))


def _join_repl(text: str, match: re.Match[str], join: str) -> str | None:
    if _ABBREV.search(text[: match.start() + 1]):
        return None
    rest = text[match.end() - 1 :]
    return join + _lower_first(rest)[0] if _can_lower(rest) else None


def punct_dash(text: str, rng: random.Random) -> str | None:
    """A comma before a main clause or "but"/"and I" turned into a dash."""
    if _literal(text):
        return None
    pattern = r"(?<=[a-z]), (?=(?:but|how|what|why|can|could|is|do|does|and I|so I|so) )"
    return _sub_one(text, rng, pattern, lambda _: rng.choice([" - ", " \u2013 ", " — ", "; "]))


def punct_comma_added(text: str, rng: random.Random) -> str | None:
    """A comma before "but", "because", "so I", "please", or after an opening phrase."""
    pattern = r"(?<=[a-z]) (?=(?:but|because|so I|so it|so how|please|thanks)\b)(?!please \w)"
    new = _sub_one(text, rng, pattern, lambda _: ", ")
    if new is None and re.match(r"(?:Hi|Hello|Hey|Ok|Okay|Yes|Also|Please) [a-zA-Z]", text):
        new = text.replace(" ", ", ", 1)
    return new


# --------------------------------------------------------------------------------------------------------------------
# Meaning-preserving: look-alike Unicode
# --------------------------------------------------------------------------------------------------------------------

_CYRILLIC = str.maketrans(
    "aceopxyijsABCEHIJKMOPSTXY",
    "\u0430\u0441\u0435\u043e\u0440\u0445\u0443\u0456\u0458\u0455\u0410\u0412\u0421\u0415\u041d\u0406\u0408\u041a\u041c\u041e\u0420\u0405\u0422\u0425\u0423",
)
_GREEK = str.maketrans(
    "ovABEZHIKMNOPTXY",
    "\u03bf\u03bd\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a7\u03a5",
)
_FULL_WIDTH = {c: c + 0xFEE0 for c in range(0x21, 0x7F)}


def _translate_some(text: str, rng: random.Random, table: dict[int, int], count: int) -> str | None:
    places = [i for i, c in enumerate(text) if ord(c) in table]
    if len(places) < count:
        return None
    chosen = set(rng.sample(places, count))
    return "".join(c.translate(table) if i in chosen else c for i, c in enumerate(text))


def unicode_cyrillic_some(text: str, rng: random.Random) -> str | None:
    return _translate_some(text, rng, _CYRILLIC, rng.randint(1, 3))


def unicode_cyrillic_all(text: str, rng: random.Random) -> str | None:
    return text.translate(_CYRILLIC)


def unicode_greek(text: str, rng: random.Random) -> str | None:
    return text.translate(_GREEK)


def unicode_full_width(text: str, rng: random.Random) -> str | None:
    return text.translate(_FULL_WIDTH) if text.isascii() else None


def unicode_full_width_word(text: str, rng: random.Random) -> str | None:
    """One word or number in full-width forms, as from an Asian keyboard."""
    return _sub_one(text, rng, r"[A-Za-z0-9]{2,}", lambda m: m.group().translate(_FULL_WIDTH), quotes=True)


def unicode_full_width_punct(text: str, rng: random.Random) -> str | None:
    return re.sub(r"(?<!\d)[?!,:](?!\d)", lambda m: m.group().translate(_FULL_WIDTH), text)


def unicode_curly_quotes(text: str, rng: random.Random) -> str | None:
    """Straight quotes and apostrophes to typographic ones, or the other way round."""
    if re.search("[\u2018\u2019“”]", text):
        return re.sub("[“”]", '"', re.sub("[\u2018\u2019]", "'", text))
    new = re.sub(r"(?<!\S)\"|(?<=[(\[])\"", "“", text).replace('"', "”")
    return re.sub(r"(?<!\S)'|(?<=[(\[])'", "\u2018", new).replace("'", rng.choice("\u2019\u2019\u2019\u02bc"))


def unicode_backtick(text: str, rng: random.Random) -> str | None:
    """A backtick or an acute accent for the apostrophe: don`t and the like."""
    mark = rng.choice("`\u00b4\u2032")
    return re.sub(r"(?<=[A-Za-z])['\u2019](?=[a-z])", mark, text)


def unicode_nbsp(text: str, rng: random.Random) -> str | None:
    space = rng.choice(["\u00a0", "\u202f", "\u2009", "\u2003", "\u3000"])
    return text.replace(" ", space)


def unicode_nbsp_some(text: str, rng: random.Random) -> str | None:
    return _translate_some(text, rng, {0x20: 0xA0}, rng.randint(1, 2))


def unicode_zero_width(text: str, rng: random.Random) -> str | None:
    """One to three invisible characters inside the text."""
    if re.search("[\u0600-\u06ff\u0900-\u0dff\u200d]", text):
        return None
    chars = list(text)
    for _ in range(rng.randint(1, 3)):
        chars.insert(rng.randint(1, len(chars) - 1), rng.choice("\u200b\u200c\u2060\ufeff\u00ad"))
    return "".join(chars)


def unicode_marks_outside(text: str, rng: random.Random) -> str | None:
    """A byte-order mark before, or a direction mark after the text."""
    return rng.choice(["\ufeff{}", "\u200e{}", "{}\u200e", "{}\u200b", "\u202a{}\u202c"]).format(text)


def unicode_ligature(text: str, rng: random.Random) -> str | None:
    new = text
    for pair, sign in (("ffi", "ﬃ"), ("ffl", "ﬄ"), ("ff", "ﬀ"), ("fi", "ﬁ"), ("fl", "ﬂ")):
        new = new.replace(pair, sign)
    return new


def unicode_dashes(text: str, rng: random.Random) -> str | None:
    """The hyphen in its other forms; a hyphen that may be a minus sign counts as a dash, too."""
    if re.search(r"(?<![\w)])-\d", text):
        return None
    return text.replace("-", rng.choice("\u2010\u2011\u2013\u2212"))


def unicode_ellipsis(text: str, rng: random.Random) -> str | None:
    return text.replace("…", "...") if "…" in text else re.sub(r"(?<!\.)\.\.\.(?!\.)", "…", text)


def unicode_decomposed(text: str, rng: random.Random) -> str | None:
    """Accented letters as letter plus combining accent (or back)."""
    return unicodedata.normalize("NFD" if unicodedata.is_normalized("NFC", text) else "NFC", text)


def unicode_math_letters(text: str, rng: random.Random) -> str | None:
    """One word in mathematical bold or sans-serif letters, as pasted from social media."""
    upper, lower = rng.choice([(0x1D400, 0x1D41A), (0x1D5A0, 0x1D5BA), (0x1D670, 0x1D68A)])

    def repl(match: re.Match[str]) -> str:
        return "".join(chr((upper if c.isupper() else lower) + ord(c.lower()) - 97) for c in match.group())

    return _sub_one(text, rng, r"\b[A-Za-z]{3,}\b", repl, quotes=True)


# --------------------------------------------------------------------------------------------------------------------
# Meaning-preserving: typos
# --------------------------------------------------------------------------------------------------------------------

# Typos go only into these plain words, so never into a number word, a negation or a (perhaps small) name.
_COMMON_WORDS = frozenset(
    _words(
        "about access according account across activate actually added additional address album already amount "
        "analysis animal animals answer apartment appears application applied appropriate around arrive article "
        "artificial artist asked assistant associated attend attendance attended available balance based because "
        "belong benefits birthday block blocked books bottle bottles boxes bring brought budget building business "
        "buying calculate called candidate cards caught certain change changed changing charge charges check checked "
        "children choice choose class cleaning clock coffee collected collection collects college common company "
        "complete completed concept contain contrast could countries country course create creative creativity "
        "currency current currently customer customers daily daughter decide decided delivery deposited describe "
        "description design details director discount disposable dispute distance drive driver earned eating election "
        "email energy entered entire episode episodes equation essay everything exactly example exchange experience "
        "explain family famous father features field figure films finish following forecast friend friends fruit "
        "function funds future games garden generate girls given giving going groceries guests happen happened "
        "happening having headline health height highly holding holiday homework hotel house ideas identity impact "
        "importance important improve including information insurance intelligence interest issue items language "
        "later learning length library listed listen located location looking machine makes making market match "
        "meaning member members message methods might money mother movement movie movies music nearby needed "
        "neighborhood night noticed novel office online opponent order ordered orders originally other painting paper "
        "paragraph parking party passengers password paying payment payments pending people percentage person "
        "personal phone photograph picked picture piece pieces pizza place planning plant played player players "
        "playing please point population position present price problem process produce product production program "
        "project provide provided purchase purchased question quickly reach reading really reason reasons receive "
        "received recent recently recognize record reduce refund region regular related remain remember report "
        "request requested reservation reservations restaurant result return review running salary saved schedule "
        "school search season section security seems sentence series serves service services shared shopping should "
        "showing shows situation software someone somewhere songs source space specific spend spent started starting "
        "statement steps still store story strategies students suggest support supposed system table taken taking "
        "teacher technology television temperature textbook theatre these thing think thought through tickets "
        "together topic track trailer train transaction transactions transfer transferred travel traveling tried "
        "trying understand update updated using usually vacation value venue video viewers visit waiting walking "
        "wanted wants watch weather website where while withdraw withdrawing wondering words working would writing"
    )
)
# Slips of those words that are English words themselves.
_REAL_WORDS = frozenset(
    _words(
        "abut alum animas baaed ballance being blok bock bodes boos bottlers bought boxers brig cads calked cares "
        "cars cerate chagres chanted chanting chare chargers chose claws click cock cold collets compete competed "
        "corse counties county crate crete curse decode decoded deign derails dive diver drier drove drover eared "
        "earing easting emil fiend fiends filed fils finds finnish fried frit gamers gibing giros gong guess gusts "
        "heath hight holing hooding hose ides lager latter layer leaning lusted mach makers males march masking math "
        "mither mooney move moves nobel noel oder pace paining paler panning pant panting paring parry patty payed "
        "payer payers pease peron pice pickled pierce pierces piked pint planing plated plater plating plying pocked "
        "pone preset pride profess rally regin relayed seeks sees send sent servers shard shipping shoeing shoes "
        "shool shred sill sings snared snogs snowing snows sons sopping sore sowing sows spade spae sped stared "
        "staring starred starring stated stating steeps storey stroy stull tack tain tale tasking tavel thee thong "
        "though tickers tied ting tired tran travelling trough trued truing tying vale waking waling walling waned "
        "were wether whee whole wile wold"
    )
)
_KEYS = {
    "q": "wa", "w": "qes", "e": "wrd", "r": "etf", "t": "ryg", "y": "tuh", "u": "yij", "i": "uok", "o": "ipl",
    "p": "ol", "a": "qsz", "s": "adwx", "d": "sfec", "f": "dgrv", "g": "fhtb", "h": "gjyn", "j": "hkum", "k": "jli",
    "l": "kop", "z": "xas", "x": "zcsd", "c": "xvdf", "v": "cbfg", "b": "vngh", "n": "bmhj", "m": "njk",
}  # fmt: skip


def _typo_swap(word: str, i: int, rng: random.Random) -> str | None:
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :] if i + 2 < len(word) else None


def _typo_drop(word: str, i: int, rng: random.Random) -> str | None:
    return word[:i] + word[i + 1 :]


def _typo_double(word: str, i: int, rng: random.Random) -> str | None:
    return word[:i] + word[i] + word[i:]


def _typo_key(word: str, i: int, rng: random.Random) -> str | None:
    return word[:i] + rng.choice(_KEYS[word[i]]) + word[i + 1 :]


def _typo_extra_key(word: str, i: int, rng: random.Random) -> str | None:
    return word[: i + 1] + rng.choice(_KEYS[word[i]]) + word[i + 1 :]


def _typo(text: str, rng: random.Random, slip: Callable[[str, int, random.Random], str | None]) -> str | None:
    if _literal(text):
        return None

    def repl(match: re.Match[str]) -> str | None:
        word = match.group()
        around = re.search(r"(\w+)\W+$", text[: match.start()]), re.match(r"\W+(\w+)", text[match.end() :])
        caps = [m for m in around if m and m.group(1)[0].isupper() and m.group(1) != "I"]
        if word not in _COMMON_WORDS or len(caps) == 2:
            return None
        for _ in range(8):
            new = slip(word, rng.randint(1, len(word) - 2), rng)
            if new and new != word and new not in _COMMON_WORDS and new not in _REAL_WORDS:
                return new
        return None

    return _sub_one(text, rng, r"(?<![\w'\u2019-])[a-z]{5,}(?![\w'\u2019-])", repl)


def typo_swap(text: str, rng: random.Random) -> str | None:
    return _typo(text, rng, _typo_swap)


def typo_drop(text: str, rng: random.Random) -> str | None:
    return _typo(text, rng, _typo_drop)


def typo_double(text: str, rng: random.Random) -> str | None:
    return _typo(text, rng, _typo_double)


def typo_neighbour_key(text: str, rng: random.Random) -> str | None:
    return _typo(text, rng, _typo_key)


def typo_extra_key(text: str, rng: random.Random) -> str | None:
    return _typo(text, rng, _typo_extra_key)


def typo_two(text: str, rng: random.Random) -> str | None:
    """Two slips in different words."""
    slips = [_typo_swap, _typo_drop, _typo_double, _typo_key]
    once = _typo(text, rng, rng.choice(slips))
    return _typo(once, rng, rng.choice(slips)) if once else None


# --------------------------------------------------------------------------------------------------------------------
# Meaning-preserving: one word added
# --------------------------------------------------------------------------------------------------------------------


def add_please_start(text: str, rng: random.Random) -> str | None:
    if _kind(text) != "imperative" or re.search(r"\bplease\b", text, re.IGNORECASE) or not _can_lower(text):
        return None
    return _like_first(text, "please ") + _lower_first(text)


def add_please_end(text: str, rng: random.Random) -> str | None:
    body, end = _split_end(text)
    if re.search(r"\bplease\b|\bthank", text, re.IGNORECASE) or body.endswith((":", '"', "”", "'")) or "\n" in text:
        return None
    if re.search(r"\b(?:my|the|a|an|to|of|for|in|on|at|with|by|and|or)$", body):
        return None
    if _kind(text) != "imperative" and not re.match(
        r"(?:Can|Could|Will|Would) (?:you|I|we)\b|I (?:need|want|would)", text
    ):
        return None
    return body + rng.choice([" please", ", please"]) + end if len(_sentences(text)) == 1 else None


def add_please_request(text: str, rng: random.Random) -> str | None:
    """Can you -> Can you please; I need you to -> I need you to please; can I -> can I please."""
    if re.search(r"\bplease\b", text, re.IGNORECASE):
        return None
    pattern = r"(?:(?<=[.?!] )|^)(?:[Cc]an|[Cc]ould|[Ww]ould|[Ww]ill) you(?= (?!like|be|have|rather)[a-z]+ )"
    return _sub_one(text, rng, pattern, lambda m: m.group() + rng.choice([" please", " kindly", " please", " just"]))


def add_intensifier(text: str, rng: random.Random) -> str | None:
    """I need -> I really need; I want -> I just want; I'd like -> I'd really like."""
    if re.search(r"\b(?:really|just|actually|simply|do|does|that|what|why|when|if|how)\b(?= I\b)", text):
        return None
    new = _sub_one(
        text,
        rng,
        r"(?<!\w)[Ii](?: would|['\u2019]d)? (?=(?:want|need|like)\b)(?!like\b)",
        lambda m: m.group() + rng.choice(["really ", "just ", "really "]),
    )
    return new or _sub_one(text, rng, r"(?<!\w)[Ii] (?=(?:think|believe) )", lambda m: m.group() + "really ")


def add_exactly(text: str, rng: random.Random) -> str | None:
    """What is -> What exactly is; How many -> Exactly how many."""
    if re.search(r"\bexact", text, re.IGNORECASE):
        return None
    start, end = _sentences(text)[-1]
    last = text[start:end]
    match = re.match(
        r"(?:What|How|Where|When|Why|Who|what|how|where|when|why|who)(?= (?:" + "|".join(_AUX) + r")\b)", last
    )
    if match:
        return text[:start] + match.group() + " exactly" + text[start + match.end() :]
    match = re.match(r"[Hh]ow (?:many|much)\b", last)
    if match:
        return text[:start] + _like_first(last, "exactly ") + _lower_first(text[start:])
    return None


def add_actually(text: str, rng: random.Random) -> str | None:
    """How do I -> How do I actually; can I -> can I actually; I was charged -> I was actually charged."""
    if re.search(r"\b(?:actually|really|even|just|still)\b", text):
        return None
    word = rng.choice(["actually", "actually", "really"])
    pattern = (
        r"(?:(?<=[.?!] )|^)(?:(?:How|Where|When|how|where|when) (?:do|can|does|did|should) (?:I|we|they|he|she)|"
        r"(?:Can|Do|Does|Did|can|do) (?:I|we|they|it))(?= (?!not|please|like)[a-z]+)"
    )
    new = _sub_one(text, rng, pattern, lambda m: m.group() + " " + word)
    if new is None:
        pattern = r"(?<!\w)I (?:was|am|have|had)(?= (?:been|\w+ed|\w+ing) )(?! not)"
        new = _sub_one(text, rng, pattern, lambda m: m.group() + " actually")
    return new


_OPENERS = ["So", "Well", "Ok", "Okay", "Hey", "Um", "Uh", "Alright", "Hmm", "Yo", "Oh"]


def add_opener(text: str, rng: random.Random) -> str | None:
    first = _first_word(text).lower()
    if first in {o.lower() for o in _OPENERS} | {"hi", "hello", "well"} or not _can_lower(text):
        return None
    return _like_first(text, rng.choice(_OPENERS).lower()) + rng.choice([", ", ", ", " ", "... "]) + _lower_first(text)


def add_statement_opener(text: str, rng: random.Random) -> str | None:
    """Basically / Honestly / Unfortunately / Apparently before what a user reports about themself."""
    if not re.match(r"(?:I|My)\b", text) or _word_problem(text):
        return None
    bad = bool(_NEGATION.search(text)) or bool(re.search(r"\b(?:wrong|declined|lost|stolen|charged|failed)\b", text))
    words = ["Basically", "Honestly", "Actually", "See"] + (["Unfortunately"] if bad else [])
    rest = text if re.match(r"I\b", text) else _lower_first(text)
    return f"{rng.choice(words)}, {rest}"


def add_article(text: str, rng: random.Random) -> str | None:
    """Rate current novel -> Rate the current novel; Name score for -> Name the score for."""
    pattern = (
        r"(?:^|(?<=[a-z] ))(?:[Rr]ate|[Gg]ive|[Nn]ame|[Ss]how|[Ff]ind|[Pp]lay|[Ll]ist|[Tt]ell me|[Ss]how me|for|in)"
        r"(?= (?:current|previous|nearest|closest|latest|newest|score"
        r"|record|date|location|same|highest|lowest) [A-Za-z]+\b(?! and))"
    )
    return _sub_one(text, rng, pattern, lambda m: m.group() + " the")


def add_that(text: str, rng: random.Random) -> str | None:
    """I think my -> I think that my; I believe there -> I believe that there."""
    pattern = (
        r"\bI (?:think|believe|thought|hope|guess)(?= (?:I|my|it|there|someone|they|you|we|he|she) \w)(?! my only)"
    )
    return _sub_one(text, rng, pattern, lambda m: m.group() + " that")


def add_me(text: str, rng: random.Random) -> str | None:
    """Show the -> Show me the; Find a -> Find me a; Play a song -> Play me a song."""
    match = re.match(r"(?:Show|Find|Get|Play|show|find|get|play)(?= (?:the|a|an|some|all) )", text)
    return f"{match.group()} me{text[match.end() :]}" if match and not _word_problem(text) else None


def add_of(text: str, rng: random.Random) -> str | None:
    """all the -> all of the; half the -> half of the; both my -> both of my."""
    pattern = (
        r"\b(?:[Aa]ll|[Hh]alf|[Bb]oth)(?= (?:the|my|her|his|their|these|those) (?!time\b|way\b|best|same|while|more))"
    )
    return _sub_one(text, rng, pattern, lambda m: m.group() + " of")


def add_then(text: str, rng: random.Random) -> str | None:
    """If X, how -> If X, then how."""
    pattern = r"(?<=, )(?=(?:how|what|where|will|can|do|does|is|why) )"
    sentence = _sentence_of(text, text.rfind(",")) if "," in text else ""
    if not sentence.startswith("If ") or sentence.count(",") != 1 or " then " in text:
        return None
    return _sub_one(text, rng, pattern, lambda _: "then ") if text.count(",") == 1 else None


# --------------------------------------------------------------------------------------------------------------------
# Meaning-preserving: one word dropped
# --------------------------------------------------------------------------------------------------------------------

_UNIT_NOUN = (
    r"(?:day|week|weekend|month|year|hour|minute|second|night|piece|pound|pint|gallon|kilo|kilogram|gram|liter|litre|"
    r"dozen|pair|pack|box|bag|bottle|ticket|head|share|foot|yard|mile|person|few|little|lot|bit|couple|half|third|"
    r"quarter|hundred|thousand|million|number|total|row|time|while|fifth|tenth|single)s?"
)


def drop_the(text: str, rng: random.Random) -> str | None:
    pattern = (
        r"(?<=[a-z] )the (?=[a-z])(?!(?:same|most|more|least|only|first|last|next|other|others|rest|one|ones|two|three|"
        r"less|better|best|worst|second|third|a|an|number|total|average|given|following|latter|former)\b)"
    )

    def repl(match: re.Match[str]) -> str | None:
        if re.search(r"\b(?:half|twice|times|double|third|quarter|all|more) $", text[: match.start()]):
            return None
        return ""

    return None if _literal(text) else _sub_one(text, rng, pattern, repl)


def drop_the_first(text: str, rng: random.Random) -> str | None:
    """The exchange rate is -> Exchange rate is."""
    match = re.match(
        r"The (?=[a-z]+ [a-z]+)(?!same|most|more|least|only|first|last|next|other|rest|number|total|sum)", text
    )
    return _upper_first(text[match.end() :]) if match and not _literal(text) else None


def drop_a(text: str, rng: random.Random) -> str | None:
    """a/an gone, where it neither counts ("a dozen") nor means "per" ("$5 a pound")."""
    if _literal(text) or _word_problem(text) or re.search(r"\bhow (?:many|much)\b", text, re.IGNORECASE):
        return None
    pattern = rf"(?<=[a-z] )an? (?=[a-z]+)(?!{_UNIT_NOUN}\b|good|great|non|new\b)"

    def repl(match: re.Match[str]) -> str | None:
        blocked = (
            r"\b(?:such|what|quite|many|half|once|twice|times|not|as|at|without|is|hundred|thousand) $|\d\D{0,12}$"
        )
        return None if re.search(blocked, text[: match.start()], re.IGNORECASE) else ""

    return _sub_one(text, rng, pattern, repl)


def drop_please(text: str, rng: random.Random) -> str | None:
    if re.match(r"Please,? \w", text):
        return _upper_first(re.sub(r"^Please,? ", "", text))
    return _sub_one(text, rng, r"(?<!to)(?<!anything you),? (?:please|kindly)\b(?! everyone|people)", lambda _: "")


def drop_filler(text: str, rng: random.Random) -> str | None:
    """really, just, actually, simply, currently where the sentence says the same without them."""
    pattern = (
        r"(?<=\bI )(?:really|just|actually) (?=(?:want|need|would|think|can|have|do|did|am|was)\b)|"
        r"(?<=\bI would )(?:really|just|also) (?=like)|(?<=\bI['\u2019]d )(?:really|just|also) (?=like)|"
        r"(?<=\b(?:an|ld) (?:I|u) )(?:just|actually|also) |(?<=\byou )(?:just|actually) (?=[a-z]+ )|"
        r"(?<=\b(?:am|is|re) )(?:currently|actually) (?=[a-z]+)|"
        r"(?<=['\u2019]m )(?:currently|actually|really) (?=[a-z]+)|"
        r"(?<=\bhave )(?:already) (?=[a-z]+ed )|(?<=\bhave )(?:just|actually) (?=noticed|seen|realized|checked)"
    )
    return _sub_one(text, rng, pattern, lambda _: "")


def drop_that(text: str, rng: random.Random) -> str | None:
    """I think that my -> I think my; the card that I ordered -> the card I ordered."""
    if _word_problem(text):
        return None
    pattern = (
        r"(?<=[a-z] )that (?=(?:I|you|we|he|she|they) [a-z]+)|"
        r"(?:(?<=\bthink )|(?<=\bthought )|(?<=\bbelieve )|(?<=\bnoticed )|"
        r"(?<=\bnotice )|(?<=\bknow ))that (?=(?:my|the|there|it|someone|this) [a-z]+)"
    )

    def repl(match: re.Match[str]) -> str | None:
        head = text[: match.start()]
        return None if re.search(r"\b(?:so|such|is|was|fact|like|than|and|or|in|on|of|for|now|after) $", head) else ""

    return _sub_one(text, rng, pattern, repl)


def drop_of(text: str, rng: random.Random) -> str | None:
    """all of the -> all the; half of her -> half her; both of my -> both my."""
    pattern = r"(?<=\b(?:[Aa]ll|[Hh]alf|[Bb]oth)) of(?= (?:the|my|her|his|their|these|those) )"
    pattern = pattern.replace(
        "(?<=\\b(?:[Aa]ll|[Hh]alf|[Bb]oth))", "(?:(?<=\\b[Aa]ll)|(?<=\\b[Hh]alf)|(?<=\\b[Bb]oth))"
    )
    return _sub_one(text, rng, pattern, lambda _: "")


def drop_me(text: str, rng: random.Random) -> str | None:
    """Show me the -> Show the; Find me a -> Find a."""
    match = re.match(r"((?:Please )?(?:[Ss]how|[Ff]ind|[Pp]lay)) me(?= (?:the|a|an|some|all|movie|what|where) )", text)
    return match.group(1) + text[match.end() :] if match else None


def drop_given(text: str, rng: random.Random) -> str | None:
    """the given sentence -> the sentence; the following text -> the text."""
    if _literal(text):
        return None
    pattern = (
        r"(?<=\b[Tt]he )(?:given|following|provided) (?=[a-z]+)(?!two|three"
        r"|four|five|six|day|week|month|year|season|morning|night|evening)"
    )
    return _sub_one(text, rng, pattern, lambda _: "")


def drop_own(text: str, rng: random.Random) -> str | None:
    """my own account -> my account; also, even, then, still-free words of that weight."""
    if _word_problem(text):
        return None
    then = r"(?<=, )then (?=[a-z])|" if re.match("If ", _sentence_of(text, text.find(", then "))) else ""
    pattern = rf"{then}(?<=\bmy )own |(?<=\byour )own |(?<=\bwould )also (?=like)|(?<=\bhelp me )to (?=[a-z])"
    return _sub_one(text, rng, pattern, lambda _: "")


def drop_opener(text: str, rng: random.Random) -> str | None:
    """Hi, / So, / Ok / Well, at the start gone."""
    match = re.match(
        r"(?:Hi|Hello|Hey|So|Well|Ok|Okay|Also|Um|Yes|Hi there|Hello there)(?:[,.!] ?| )(?=[A-Za-z]+ )", text
    )
    if not match or re.match(r"(?:So|Well|Also|Yes) (?:much|many|far|called|known|that|as|done)", text):
        return None
    if re.match(r"(?:Hey|Hello|So|Well|Yes|Okay|Hi) ?[A-Z]", text) and "," not in match.group():
        return None
    return _upper_first(text[match.end() :])


# --------------------------------------------------------------------------------------------------------------------
# Meaning-preserving: politeness wrappers
# --------------------------------------------------------------------------------------------------------------------

_BEFORE_ANY = [
    "Hi there! ", "Hello, ", "Hey, ", "Hi, hope you are doing well. ", "Good morning, ", "Good afternoon! ",
    "Good evening. ", "Sorry to bother you, but ", "Excuse me, ", "hi, ", "Hello! Could you help me with this? ",
    "Hiya, ", "Dear team, ", "Hey, need some help here: ", "Thanks in advance for your help. ", "Pardon me, ",
    "Hello there, sorry for the trouble. ", "Hi, I need some help please. ", "Hope you can help me out. ",
    "Help please! ", "Greetings! ", "Hi support, ", "Good day, ",
]  # fmt: skip
_BEFORE_QUESTION = [
    "Quick question: ", "Can I ask you something? ", "I have a question. ", "Just wondering, ", "I was wondering: ",
    "Sorry if this is a silly question, but ", "Could you tell me, please: ", "Quick one for you - ", "Hey quick q: ",
    "May I ask, ", "Can you help me with a question? ", "I'd like to know: ", "One more thing, please: ",
    "Not sure who to ask, but ", "Would you mind answering this? ", "Hi! My question is: ", "Please tell me, ",
]  # fmt: skip
_BEFORE_ORDER = [
    "Could you please ", "Can you ", "Could you ", "Would you please ", "I'd like you to ", "I need you to ",
    "I would like you to ", "Would you be so kind as to ", "Do me a favor and ", "Can you please ",
    "If you don't mind, please ", "Kindly ", "Will you please ", "When you get a chance, please ",
    "I want you to ", "Hey, can you ", "Hi! Could you ", "It would be great if you could ", "Go ahead and ",
]  # fmt: skip
_BEFORE_PROBLEM = [
    "Please help me solve this. ", "Can you work this out for me? ", "I'm stuck on this problem. ",
    "Could you solve this one please? ", "Here's my question: ", "Hi, please help me with this: ",
    "I need help with my homework. ", "Please answer this for me: ",
]  # fmt: skip
_AFTER = [
    " Thanks!", " Thank you.", " Thanks in advance.", " Many thanks.", " Cheers!", " Thx", " Ty!", " TIA",
    " Much appreciated!", " I'd appreciate any help.", " Any help would be great.", " Thank you so much!",
    " Thanks a lot!", " Thank you for your help.", " Kind regards", " Please let me know.", " Please help!",
    " Please and thank you.", " Appreciate it.", " Thanks a bunch :)", " Thank you very much in advance!",
    " Hope you can help.", " Thanks for your time!", " Let me know, thanks.", " 🙏", " pls", " Have a nice day!",
]  # fmt: skip
_GREETED = re.compile(
    r"\b(?:hi|hello|hey|thanks|thank you|please|greetings|good (?:morning|day|evening))\b", re.IGNORECASE
)


def polite_before(text: str, rng: random.Random) -> str | None:
    """A greeting or an apology before the prompt."""
    if _GREETED.search(text) or not _can_lower(text):
        return None
    opening = rng.choice(_BEFORE_ANY)
    return opening + (_lower_first(text) if opening.rstrip()[-1] in ",t" else text)


def polite_before_question(text: str, rng: random.Random) -> str | None:
    if _kind(text) != "question" or re.search(r"\bplease\b", text, re.IGNORECASE):
        return None
    opening = rng.choice(_BEFORE_QUESTION)
    return opening + (_lower_first(text) if opening.rstrip()[-1] in ",t-:" else text)


def polite_before_order(text: str, rng: random.Random) -> str | None:
    """Could you please + order, I'd like you to + order, ..."""
    if _kind(text) != "imperative" or not _can_lower(text) or len(_sentences(text)) != 1:
        return None
    if re.search(r"\bplease\b|^imagine|^pretend|\?", text, re.IGNORECASE):
        return None
    opening = rng.choice(_BEFORE_ORDER)
    body, end = _split_end(_lower_first(text))
    asks = re.search(r"(?:[Cc]an|[Cc]ould|[Ww]ould|[Ww]ill) you", opening) and "great if" not in opening
    if body.endswith(":") or not asks:
        return opening + body + end
    return opening + body + rng.choice(["?", "?", end])


def polite_before_problem(text: str, rng: random.Random) -> str | None:
    if _kind(text) != "problem" or not _word_problem(text):
        return None
    return rng.choice(_BEFORE_PROBLEM) + text


def polite_after(text: str, rng: random.Random) -> str | None:
    """Thanks, regards and the like after the prompt."""
    body, end = _split_end(text)
    if (
        body.endswith((":", '"', "”", "'", "…"))
        or re.search(r"\bthank|\bplease\b", text, re.IGNORECASE)
        or "\n" in text
    ):
        return None
    closing = rng.choice(_AFTER)
    if not end.strip():
        return body + rng.choice([",", "."]) + closing.lower() if closing[1].isalpha() else body + closing
    return text.rstrip() + closing


def polite_around(text: str, rng: random.Random) -> str | None:
    """Wrapped on both sides."""
    after = polite_after(text, rng)
    if after is None or _GREETED.search(text):
        return None
    kind = _kind(text)
    if kind == "question":
        return rng.choice(["Hi! ", "Hello, ", "Hi there, ", "Quick question: "]) + after
    if kind == "imperative":
        return rng.choice(["Hi! ", "Hello. ", "Hey there! ", "Good morning. "]) + after
    return rng.choice(["Hi, I need help. ", "Hello. ", "Good afternoon. "]) + after


def polite_trailing_clause(text: str, rng: random.Random) -> str | None:
    """..., if you don't mind / when you have a moment / for me, inside the sentence."""
    body, end = _split_end(text)
    if _kind(text) != "imperative" or len(_sentences(text)) != 1 or not body[-1:].isalpha() or "\n" in text:
        return None
    if re.search(r"\b(?:if|when|for (?:me|us|him|her|them))\b", text) or end.strip() == "?":
        return None
    closings = [", if you don't mind", ", if that's ok", ", if you can", ", would you", ", if possible", ", thanks"]
    if re.search(r"\bplease\b", text, re.IGNORECASE):
        closings.remove(", would you")
    closing = rng.choice(closings)
    return body + closing + ("?" if closing == ", would you" else end)


# --------------------------------------------------------------------------------------------------------------------
# Meaning-preserving: clause order
# --------------------------------------------------------------------------------------------------------------------

_MAIN = r"(?:how|what|which|who|where|why|is|are|can|could|do|does|did|will|would|should|was|were|has|have)"
_ANAPHOR = re.compile(
    r"\b(?:it|its|them|they|their|this|that|these|those|he|she|him|his|her|such|so|one|ones|there)\b", re.IGNORECASE
)
_ASKING = re.compile(
    r"\b(?:know|tell|see|check|ask|wonder|wondering|sure|determine|find|decide|verify|confirm|detect|identify|say|"
    r"test|evaluate|figure|matter|care|look|understand|classify|curious|explain|remember|only|even|as|what|predict|"
    r"describe|imagine|analyze|learn|show|guess|list|name|give|provide|state|write|show)\s*$|"
    r"\b(?:know|tell|wonder|wondering|determine|check|find out|see|sure|decide|verify|confirm|ask|identify)\b",
    re.IGNORECASE,
)
_SUBJECT = (
    r"(?:I|i|I['\u2019]m|I['\u2019]ve|my|the|a|an|it|there|they|you|we|he|she|his|her|their|this|someone|somebody|one|each|all|"
    r"[A-Z][a-z]+|no|only|\d+)\b"
)


def _one_sentence(text: str, rng: random.Random, move: Callable[[str, str], str | None]) -> str | None:
    """Apply `move` (body, end) to one sentence for which it works."""
    options: list[str] = []
    for a, b in _sentences(text):
        body, end = _split_end(text[a:b])
        if "\n" in body or any(q in body for q in '"“'):
            continue
        new = move(body, end)
        if new is not None:
            options.append(text[:a] + new + text[b:])
    return rng.choice(options) if options else None


def _front_to_back(body: str, end: str, word: str) -> str | None:
    """ "If X, Y" -> "Y if X"."""
    head = re.match(rf"{word} ", body, re.IGNORECASE)
    if not head:
        return None
    cuts = list(re.finditer(rf", (?:then )?(?={_MAIN} )", body))
    if len(cuts) != 1:
        return None
    clause, main = body[: cuts[0].start()], body[cuts[0].end() :]
    if (
        re.search(rf"\b(?:{word}|if|when|than|or|that|then)\b", main, re.IGNORECASE)
        or len(clause.split()) < 3
        or len(main.split()) < 3
    ):
        return None
    return _like_first(body, main) + " " + clause[0].lower() + clause[1:] + end


def _back_to_front(body: str, end: str, word: str) -> str | None:
    """ "Y if X" -> "If X, Y" for Y a question or an order."""
    cuts = list(re.finditer(rf",? {word} (?={_SUBJECT})", body))
    if len(cuts) != 1 or len(re.findall(rf"\b(?:{word}|if|when|while|because|since)\b", body, re.IGNORECASE)) != 1:
        return None
    main, clause = body[: cuts[0].start()], body[cuts[0].end() :]
    starts = rf"(?:{_MAIN}|name|tell me)\b"
    if (
        not re.match(starts, main, re.IGNORECASE)
        or _ASKING.search(main)
        or "," in clause
        or "," in main
        or len(main.split()) < 3
    ):
        return None
    if re.search(
        r"\b(?:date|day|time|year|month|days|years|dates|times|moment|instance|case|week|not|n['\u2019]t)$", main
    ):
        return None
    if re.search(r"\bto be$|\b(?:is|are|was|were|happens|happened)$", main) and word == "when":
        return None
    if re.search(r"\b(?:and|or|but) (?:how|what|why|can|is|do|I)\b", clause):
        return None
    lowered = _lower_first(main)
    if not _can_lower(main):
        return None
    return _like_first(body, word) + " " + clause + ", " + lowered + end


def reorder_if_to_back(text: str, rng: random.Random) -> str | None:
    return _one_sentence(text, rng, lambda body, end: _front_to_back(body, end, "if"))


def reorder_if_to_front(text: str, rng: random.Random) -> str | None:
    return _one_sentence(text, rng, lambda body, end: _back_to_front(body, end, "if"))


def reorder_when_to_back(text: str, rng: random.Random) -> str | None:
    return _one_sentence(text, rng, lambda body, end: _front_to_back(body, end, "when"))


def reorder_when_to_front(text: str, rng: random.Random) -> str | None:
    return _one_sentence(text, rng, lambda body, end: _back_to_front(body, end, "when"))


def reorder_to_clause(text: str, rng: random.Random) -> str | None:
    """ "What do I need to do to X?" <-> "To X, what do I need to do?" """

    def move(body: str, end: str) -> str | None:
        match = re.match(
            r"((?:[Ww]hat|[Hh]ow) (?:do|should|must|can|would) I "
            r"(?:need to |have to |proceed|go about)?(?:do|proceed|go)?|"
            r"[Ww]hat steps (?:do|should|must) I (?:need to )?(?:take|follow|complete)|[Ww]hat is needed|"
            r"[Hh]ow long (?:does|will|would) it take(?: me)?|[Hh]ow much (?:does|will|would) it cost(?: me)?|"
            r"[Ww]ho (?:do|should|can) I contact|[Ww]hat documents do I need|[Ww]hat do I need) "
            r"(?:in order )?to ((?!be |have )[a-z]+ .+)$",
            body,
        )
        if match and re.search(r"(?:do|proceed|take|follow|complete|needed|me|cost|contact|need)$", match.group(1)):
            if match.group(2).startswith("do ") or re.search(r"\bwhat do I need$", match.group(1), re.IGNORECASE):
                return None
            return _like_first(body, "to ") + match.group(2) + ", " + _lower_first(match.group(1)) + end
        match = re.match(rf"(?:In order )?[Tt]o ([^,]+), ({_MAIN} [^,]+)$", body)
        if match and len(match.group(1).split()) >= 2:
            return _like_first(body, match.group(2)) + " to " + match.group(1) + end
        return None

    return _one_sentence(text, rng, move)


def reorder_in_order_to(text: str, rng: random.Random) -> str | None:
    """ "X in order to Y" -> "In order to Y, X"."""

    def move(body: str, end: str) -> str | None:
        match = re.match(r"([^,:]+?) in order to ([^,:]+)$", body)
        if not match or len(match.group(1).split()) < 3 or not _can_lower(body):
            return None
        if re.search(r"\b(?:that|which|who|because|if|used|and|not)\b", match.group(1)) or _ANAPHOR.search(
            match.group(2)
        ):
            return None
        return "In order to " + match.group(2) + ", " + _lower_first(match.group(1)) + end

    return _one_sentence(text, rng, move)


_LEADING = (
    r"(?:In (?:the year )?\d{4}|In (?:one|two|three|a|an|your|\d) [a-z ]{3,30}|On [A-Z][a-z]+ \d+(?:, \d{4})?|"
    r"In (?:the )?[A-Z]\w+(?: [A-Z]\w+)?|Using [^,]{4,50}|Given (?:a|an|the|two|three) [^,]{4,50}|"
    r"For (?:the|a|each|every) [^,]{4,50}|With (?:a|an|the) [^,]{4,50}|During [^,]{4,50}|"
    r"According to [^,]{4,40}|Based on [^,]{4,50}|From the [^,]{4,40}|Without [a-z]+ing [^,]{4,40})"
)


def reorder_leading_phrase(text: str, rng: random.Random) -> str | None:
    """ "In 2008, what was Y?" -> "What was Y in 2008?"; "Using X, do Y." -> "Do Y using X." """

    def move(body: str, end: str) -> str | None:
        match = re.match(rf"({_LEADING}), ([^,]+)$", body)
        if not match:
            return None
        phrase, main = match.groups()
        first = _first_word(main).lower()
        if not (first in _IMPERATIVES or first in _QUESTION_STARTS) or _ANAPHOR.search(main) or len(main.split()) > 14:
            return None
        if re.search(r"\b(?:in|on|for|with|during|using|from|based|that|which|who|where|and|when|if)\b", main):
            return None
        return _upper_first(main) + " " + phrase[0].lower() + phrase[1:] + end

    return _one_sentence(text, rng, move)


_CLOCK = r"(?:at (?:\d{1,2}(?::\d\d){0,2}(?: ?[ap]\.?m\.?)?|noon|midnight)(?: o'clock)?)"
_TRAILING = (
    rf"(?:{_CLOCK}|today|tomorrow|tonight|right now|this (?:week|weekend|month|morning|evening|year)|"
    r"next (?:week|month|year)|in (?:the year )?(?:19|20)\d\d|in \d+ (?:hours|minutes|days|weeks|months)|"
    r"on [A-Z][a-z]+ \d{1,2},? \d{4}|in (?:one|two|three|four|five|\d+) (?:words?|sentences?|paragraphs?|lines?))"
)


def reorder_trailing_phrase(text: str, rng: random.Random) -> str | None:
    """ "Will it rain here tomorrow?" -> "Tomorrow, will it rain here?" """

    def move(body: str, end: str) -> str | None:
        match = re.match(rf"([^,]+) ({_TRAILING})$", body)
        if not match or not _can_lower(body):
            return None
        main, phrase = match.groups()
        if not re.match(
            r"(?:what|which|who|where|how|will|is|book|tell|describe|explain|summarize|did|was)\b", main, re.IGNORECASE
        ):
            return None
        if re.search(
            r"\b(?:for|of|by|until|till|after|before|from|in|on|at|the|to|and|or|rated|as|between|since|[a-z]+ed)$",
            main,
        ):
            return None
        if re.search(r"\b(?:that|which|who|when|where|if|and|movie|show|called|song|held|built|released)\b", main[4:]):
            return None
        return _like_first(body, phrase) + ", " + _lower_first(main) + end

    return _one_sentence(text, rng, move)


def reorder_because(text: str, rng: random.Random) -> str | None:
    """ "Y because X" <-> "Because X, Y" for a statement."""

    def move(body: str, end: str) -> str | None:
        match = re.match(r"((?:I|My|The|We)\b[^,]+?),? because ((?:I|my|the|it|they|we|there|someone)\b[^,]+)$", body)
        if match and not _NEGATION.search(match.group(1)) and "?" not in end:
            if re.search(r"\b(?:if|when|and|but|think|believe|only|know|just|because|that)\b", match.group(1)):
                return None
            main = match.group(1) if match.group(1).startswith("I") else _lower_first(match.group(1))
            return "Because " + match.group(2) + ", " + main + end
        match = re.match(r"Because ([^,]+), ((?:I|my|the|we)\b[^,]+)$", body)
        if match and not _NEGATION.search(match.group(2)):
            return _upper_first(match.group(2)) + " because " + match.group(1) + end
        return None

    return _one_sentence(text, rng, move)


def reorder_sentences(text: str, rng: random.Random) -> str | None:
    """ "I lost my card. What should I do?" -> "What should I do? I lost my card." """
    spans = _sentences(text)
    if len(spans) != 2 or "\n" in text:
        return None
    first, second = (text[a:b] for a, b in spans)
    if not re.match(r"(?:I|My|The|There)\b", first) or not first.endswith((".", "!")) or not second.endswith("?"):
        return None
    if _ANAPHOR.search(second) or re.match(r"(?:Why|And|But|So|Or|Also|Then|Now|Otherwise|What if|Why not)\b", second):
        return None
    if re.search(r"\b(?:the|else|instead|then|still|too|again|back|now|more|other|another)\b", second) or "," in second:
        return None
    if _word_problem(text) or len(second.split()) < 4:
        return None
    return f"{_upper_first(second)} {first}"


def reorder_pair(text: str, rng: random.Random) -> str | None:
    """ "red and green" -> "green and red" in a short list where order cannot matter."""
    pattern = (
        r"\b(?P<pre>between|both|compare|of|Compare|contrast) (?P<a>[a-z]{3,}) and (?P<b>[a-z]{3,})"
        r"(?=[.?!]|$| in | for | on )(?!.*\b(?:respectively|order|former|latter|difference|from|first)\b)"
    )
    return _sub_one(text, rng, pattern, lambda m: f"{m.group('pre')} {m.group('b')} and {m.group('a')}")


# --------------------------------------------------------------------------------------------------------------------
# Meaning-preserving: white space and contractions
# --------------------------------------------------------------------------------------------------------------------


def space_double(text: str, rng: random.Random) -> str | None:
    """Some spaces doubled or tripled."""
    places = [m.start() for m in re.finditer(r"(?<=\S) (?=\S)", text)]
    if not places or "```" in text:
        return None
    chosen = set(rng.sample(places, min(len(places), rng.randint(1, 3))))
    return "".join(c + " " * rng.randint(1, 2) if i in chosen else c for i, c in enumerate(text))


def space_outer(text: str, rng: random.Random) -> str | None:
    return rng.choice([" {}", "{} ", "  {}  ", "{}\n", "\n{}", "\t{}", "{}\r\n", "{}\n\n"]).format(text)


def space_collapse(text: str, rng: random.Random) -> str | None:
    """Runs of white space, as the data sets have them, to one space."""
    if "\n" in text.strip():
        return None
    return re.sub(r"\s+", " ", text).strip()


def space_newline(text: str, rng: random.Random) -> str | None:
    """A line break between two sentences or after a comma."""
    if "\n" in text:
        return None
    return _sub_one(text, rng, r"(?<=[a-z][.?!,]) +(?=[A-Za-z])", lambda _: rng.choice(["\n", "\n\n", "\r\n"]))


def space_wrap(text: str, rng: random.Random) -> str | None:
    """Hard line breaks as in an e-mail."""
    words, width, lines, line = text.split(" "), rng.randint(24, 48), [], ""
    if "\n" in text or _literal(text):
        return None
    for word in words:
        if line and len(line) + len(word) + 1 > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return "\n".join([*lines, line])


def space_tab(text: str, rng: random.Random) -> str | None:
    return _sub_one(text, rng, r"(?<=\S) (?=\S)", lambda _: "\t") if not _literal(text) else None


def space_before_punct(text: str, rng: random.Random) -> str | None:
    """French spacing: "card ?"."""
    return re.sub(r"(?<=[a-z])([?!])(?=\s|$)", r" \1", text) if not _literal(text) else None


def space_after_punct_gone(text: str, rng: random.Random) -> str | None:
    """card.How do I; hello,I am."""
    if _literal(text):
        return None
    return _sub_one(text, rng, r"(?<=[a-z]{3}[.?!,]) +(?=[A-Za-z])", lambda _: "")


_EXPAND = {
    "don't": "do not", "doesn't": "does not", "didn't": "did not", "isn't": "is not", "aren't": "are not",
    "wasn't": "was not", "weren't": "were not", "haven't": "have not", "hasn't": "has not", "hadn't": "had not",
    "won't": "will not", "wouldn't": "would not", "couldn't": "could not", "shouldn't": "should not",
    "can't": "cannot",
}  # fmt: skip
_CONTRACT = {long: short for short, long in _EXPAND.items()} | {"can not": "can't"}
_BASE_AFTER_WOULD = "like love prefer appreciate want rather need be have say give rate enjoy hate"
_PARTICIPLE = r"(?:been|gotten|got|lost|made|had|seen|paid|sent|tried|done|found|taken|forgotten|\w+ed)\b"


def contraction_expand(text: str, rng: random.Random) -> str | None:
    """don't -> do not, I'm -> I am, what's -> what is (one of them)."""
    if _literal(text):
        return None

    def repl(match: re.Match[str]) -> str | None:
        word = match.group().replace("\u2019", "'")
        low = word.lower()
        rest = text[match.end() :]
        before = re.search(r"([\w'\u2019]+) $", text[: match.start()])
        if low in _EXPAND:
            inverted = before is None or before.group(1).lower() in _QUESTION_STARTS | {"and", "but", "or", "if"}
            if inverted or not re.match(r" [a-z]", rest) or re.match(r" (?:I|you|we|they|he|she|it|my|the)\b", rest):
                return None
            return _like_first(word, _EXPAND[low])
        stem, _, tail = word.partition("'")
        if tail == "m" and stem.lower() == "i":
            return stem + " am"
        if tail == "re" and stem.lower() in ("you", "we", "they"):
            return stem + " are"
        if tail == "ve" and stem.lower() in ("i", "you", "we", "they"):
            return stem + " have"
        if tail == "ll" and stem.lower() in ("i", "you", "we", "they", "he", "she", "it", "that", "there"):
            return stem + " will"
        if tail == "d" and stem.lower() in ("i", "you", "we", "they", "he", "she"):
            follow = re.match(r" (?:really |also |just )?([a-z]+)", rest)
            return stem + " would" if follow and follow.group(1) in _BASE_AFTER_WOULD.split() else None
        if tail == "s" and stem.lower() in ("it", "what", "that", "there", "where", "how", "who", "he", "she"):
            if re.match(r" (?:been|got)\b", rest):
                return stem + " has"
            if re.match(rf" (?:not |already |just |never )?{_PARTICIPLE}", rest) or not re.match(r" [a-z]", rest):
                return None
            return stem + " is"
        return "let us" if low == "let's" else None

    return _sub_one(text, rng, r"\b[A-Za-z]+['\u2019][a-z]+\b", repl)


def contraction_contract(text: str, rng: random.Random) -> str | None:
    """do not -> don't, I am -> I'm, what is -> what's (one of them)."""
    if _literal(text):
        return None
    longs = "|".join(sorted(_CONTRACT, key=len, reverse=True))

    def negated(match: re.Match[str]) -> str | None:
        if not re.match(r" [a-z]", text[match.end() :]) or re.match(r" only\b", text[match.end() :]):
            return None
        return _like_first(match.group(), _CONTRACT[match.group().lower()])

    new = _sub_one(text, rng, rf"(?i)\b(?:{longs})\b", negated)
    if new is not None:
        return new
    pattern = (
        r"\b(?:(?P<s>I|i) am(?= [a-z])(?! (?:and|or)\b)|(?P<r>[Yy]ou|[Ww]e|[Tt]hey) are(?= (?!and|or|in\b)[a-z])|"
        r"(?P<v>I|[Yy]ou|[Ww]e|[Tt]hey) have(?= (?:not |just |already |never )?" + _PARTICIPLE + r")|"
        r"(?P<l>I|[Yy]ou|[Ww]e|[Tt]hey|[Ii]t) will(?= [a-z])|(?P<d>I|i) would(?= (?:like|love|rather|prefer) )|"
        r"(?P<t>[Ii]t|[Tt]here) is(?= (?:a|an|the|not|still|been|in|on|\w+ing)\b)|"
        r"(?P<w>What|Where|Who|what) is(?= (?:the|my|a|your|an|this) ))"
    )

    def plain(match: re.Match[str]) -> str | None:
        if re.search(r"\b(?:than|as|who|which|whose|Are|are|Will|will) $", text[: match.start()]) and not match.group(
            "w"
        ):
            return None
        tails = {"s": "'m", "r": "'re", "v": "'ve", "l": "'ll", "d": "'d", "t": "'s", "w": "'s"}
        for key, tail in tails.items():
            if match.group(key):
                return match.group(key) + tail
        return None

    return _sub_one(text, rng, pattern, plain)


# --------------------------------------------------------------------------------------------------------------------
# Counterfactual: numbers, dates, amounts
# --------------------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(
    r"(?<![\w.,/:])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
    r"(?=$|[^\w.,/:]|[.,:](?:\D|$)|(?:ml|kg|km|g|cm|m|k|am|pm|lbs?|oz|GB|MB)\b)"
)


def _other(rng: random.Random, low: int, high: int, old: int) -> int:
    return rng.choice([n for n in range(low, high + 1) if n != old])


def _new_int(digits: str, rng: random.Random, *, date: bool = False) -> str | None:
    """Another whole number of the same length and kind."""
    value = int(digits)
    if digits[0] == "0" and len(digits) > 1:
        return digits[:-1] + str(_other(rng, 0, 9, int(digits[-1])))
    if value == 1:
        return None
    if value < 10:
        return str(_other(rng, 2, 9, value))
    if len(digits) == 4 and 1850 <= value <= 2049:
        return str(_other(rng, max(1850, value - 9), min(2049, value + 9), value))
    if value <= 31 and len(digits) == 2:
        return str(_other(rng, max(10, value - 5), 28 if date else value + 5, value))
    place = rng.choice([i for i, d in enumerate(digits) if d != "0"])
    return digits[:place] + str(_other(rng, 1, 9, int(digits[place]))) + digits[place + 1 :]


def _out_of_ok(text: str) -> bool:
    return all(int(a) <= int(b) for a, b in re.findall(r"\b(\d+)(?: points?| stars?)? out of (\d+)\b", text))


def number_digits(text: str, rng: random.Random) -> str | None:
    """One whole number changed to another of the same size."""

    def repl(match: re.Match[str]) -> str | None:
        old, rest = match.group(), text[match.end() :]
        if "." in old or re.match(r"(?:st|nd|rd|th)\b|(?: hours| months| days) in (?:a|one) ", rest):
            return None
        head, comma, tail = old.partition(",")
        date = bool(
            re.search(
                r"\b(?:January|February|March|April|May|June|July|August|\w+ember|October) $", text[: match.start()]
            )
        )
        new = _new_int(head, rng, date=date or "o'clock" in rest[:9] or bool(re.match(r" ?[ap]m\b", rest)))
        if new is None:
            return None
        if rest.startswith(("%", " percent")) and int(head) <= 100 and int(new) > 100:
            return None
        if (re.match(r" o'clock", rest) and int(new) > 23) or (
            re.match(r" ?[ap]\.?m\b", rest, re.IGNORECASE) and int(new) > 12
        ):
            return None
        return new + comma + tail

    for _ in range(6):
        new = _sub_one(text, rng, _NUMBER, repl, quotes=True)
        if new is not None and _out_of_ok(new):
            return new
    return None


def number_decimal(text: str, rng: random.Random) -> str | None:
    """One digit of a decimal number changed."""

    def repl(match: re.Match[str]) -> str | None:
        old = match.group()
        if "." not in old:
            return None
        place = rng.choice([i for i, c in enumerate(old) if c.isdigit() and (c != "0" or i > old.index("."))])
        return old[:place] + str(_other(rng, 1, 9, int(old[place]))) + old[place + 1 :]

    return _sub_one(text, rng, _NUMBER, repl, quotes=True)


def number_magnitude(text: str, rng: random.Random) -> str | None:
    """Ten times the amount: $12 -> $120, 40 apples -> 400 apples."""

    def repl(match: re.Match[str]) -> str | None:
        old, rest, head = match.group(), text[match.end() :], text[: match.start()]
        if not old.isdigit() or int(old) < 2 or len(old) > 3 or head.endswith(("-", "#")) or old[0] == "0":
            return None
        if re.match(r"-|%| ?(?:percent|out of|o'clock|[ap]m|stars?|points?)\b|(?: \w+)? out of", rest):
            return None
        if head.endswith(("$", "£", "€")) or re.match(r" [a-z]{2,}s\b(?! is)", rest):
            return None if re.match(r" (?:hours|months|days|was|is|has) in", rest) else old + "0"
        return None

    return _sub_one(text, rng, _NUMBER, repl)


def number_ordinal(text: str, rng: random.Random) -> str | None:
    """4th -> 6th, the second -> the fourth."""

    def digits(match: re.Match[str]) -> str | None:
        value = int(match.group(1))
        new = _other(rng, 4, 9, value) if value < 10 else _other(rng, 14, 19, value) if value <= 31 else value + 10
        suffix = {1: "st", 2: "nd", 3: "rd"}.get(new % 10, "th") if new % 100 not in (11, 12, 13) else "th"
        return f"{new}{suffix}"

    new = _sub_one(text, rng, r"(?<!/)\b(\d{1,2})(?:st|nd|rd|th)\b(?! century)", digits, quotes=True)
    if new is not None:
        return new
    words = _words("second third fourth fifth sixth seventh eighth ninth")
    pattern = rf"(?<=\b[Tt]he )(?:{'|'.join(words)})(?= [a-z]+)(?! of|[- ]?hand|-| and| most| is)"
    return _sub_one(text, rng, pattern, lambda m: rng.choice([w for w in words if w != m.group() and w not in text]))


_SMALL = _words("two three four five six seven eight nine ten eleven twelve")
_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")


def number_word(text: str, rng: random.Random) -> str | None:
    """three -> five, twenty -> forty."""
    every = "|".join([*_SMALL, *_TENS])
    pattern = (
        rf"(?<![-\w])(?:{every})(?![-\w])(?! (?:hundred|thousand"
        rf"|million|{every}|one|or|of (?:them|these)|pointers?|point ))"
    )

    def repl(match: re.Match[str]) -> str | None:
        head = text[: match.start()]
        if re.search(
            rf"\b(?:the|these|those|his|her|its|their|other|or|between|first|last|one|bbc|channel|{every})[ -]$",
            head,
            re.IGNORECASE,
        ):
            return None
        group = _SMALL if match.group() in _SMALL else _TENS
        near = [w for w in group if w != match.group() and abs(group.index(w) - group.index(match.group())) <= 4]
        return rng.choice(near)

    for _ in range(6):
        new = _sub_one(text, rng, pattern, repl)
        if new is None:
            return None
        order = ["zero", "one", *_SMALL]
        rated = re.search(r"\b(\w+)(?: points?| stars?)? out of (\w+)", new)
        if not rated or not rated.group(1).isalpha():
            return new
        best = rated.group(2)
        top = int(best) if best.isdigit() else order.index(best) if best in order else 99
        if rated.group(1) in order and order.index(rated.group(1)) <= top:
            return new
    return None


def number_fraction(text: str, rng: random.Random) -> str | None:
    """1/4 -> 2/3, half of -> a third of, a third of -> a quarter of."""

    def ratio(match: re.Match[str]) -> str | None:
        a, b = int(match.group(1)), int(match.group(2))
        if not 0 < a < b <= 12:
            return None
        options = [(1, 2), (1, 3), (1, 4), (1, 5), (2, 3), (3, 4), (2, 5), (3, 5)]
        c, d = rng.choice([o for o in options if o[0] * b != o[1] * a])
        return f"{c}/{d}"

    new = _sub_one(
        text,
        rng,
        r"(?<![\w/.,-])(\d+)/(\d+)(?= (?:of|as|the|cups?|pounds?|more|less|full|miles?|inch|gallon|hour)\b)",
        ratio,
    )
    if new is not None:
        return new
    pattern = r"\b(?:half (?=(?:of|as)\b)|a (?:third|quarter|fifth) (?=(?:of|as)\b))"

    def word(match: re.Match[str]) -> str | None:
        if re.search(r"\b(?:and a|one|other|first|second|the|remaining|a) $", text[: match.start()]):
            return None
        return rng.choice([w for w in ("half ", "a third ", "a quarter ", "a fifth ") if w != match.group()])

    return _sub_one(text, rng, pattern, word)


def number_multiplier(text: str, rng: random.Random) -> str | None:
    """twice -> three times, doubled -> tripled, double the -> triple the."""
    swaps = {"twice": "three times", "double": "triple", "doubles": "triples", "doubled": "tripled", "triple": "double",
             "three times": "twice", "tripled": "doubled", "triples": "doubles"}  # fmt: skip
    pattern = (
        r"\b(?:twice|(?:doubles|triples)(?= (?:the|his|her|its|their|every|each|in))"
        r"|doubled|tripled|three times|(?:double|triple)(?= (?:the|his|her|that|as)))\b"
    )
    return _sub_one(text, rng, pattern, lambda m: swaps[m.group()])


def number_time(text: str, rng: random.Random) -> str | None:
    """13:22:09 -> 16:22:09, 7:30 -> 9:30."""

    def repl(match: re.Match[str]) -> str | None:
        hour, rest = int(match.group(1)), match.group(2)
        low, high = (1, 12) if hour <= 12 else (13, 23)
        new = _other(rng, max(low, hour - 4), min(high, hour + 4), hour)
        return (f"{new:02d}" if len(match.group(1)) == 2 else str(new)) + rest

    return _sub_one(text, rng, r"(?<![\d:.])(\d{1,2})((?::[0-5]\d){1,2})(?![\d:.]\d)", repl, quotes=True)


_MONTHS = _words("January February March April May June July August September October November December")
_DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")


def _swap_in_group(text: str, rng: random.Random, pattern: str, group: Sequence[str]) -> str | None:
    """Every occurrence of one member of `group` found by `pattern` replaced by a member that the text lacks."""
    found = sorted({m.group() for m in re.finditer(pattern, text)})
    free = [g for g in group if not re.search(rf"\b{re.escape(g)}\b", text, re.IGNORECASE)]
    if not found or not free:
        return None
    old = rng.choice(found)
    new = rng.choice(free)
    return re.sub(rf"\b{re.escape(old)}\b", new, text)


def date_month(text: str, rng: random.Random) -> str | None:
    if _story(text):
        return None
    plain = "|".join(m for m in _MONTHS if m not in ("May", "March", "April", "June", "August"))
    pattern = (
        rf"\b(?:{plain})\b|\b(?:May|March|April|June|August)(?= \d)|"
        rf"(?<=\b(?:in|on|of) )(?:May|March|April|June|August)\b(?! [A-Z])"
    )
    return _swap_in_group(text, rng, pattern, _MONTHS)


def date_weekday(text: str, rng: random.Random) -> str | None:
    if _story(text) or not re.search(
        r"(?i)\b(?:on|next|last|this|every|by|until|for|from) (?:" + "|".join(_DAYS) + r")\b", text
    ):
        return None
    pattern = r"(?<=\b(?:on|by) )(?:{0})\b|(?<=\b(?:next|last|this) )(?:{0})\b|(?<=\bfor )(?:{0})\b".format(
        "|".join(_DAYS)
    )
    return _swap_in_group(text, rng, pattern, _DAYS)


def date_relative(text: str, rng: random.Random) -> str | None:
    """today -> tomorrow, yesterday -> last week, this week -> next week."""
    if (
        _story(text)
        or len(re.findall(r"\b(?:today|tomorrow|tonight|yesterday|week|month|year)\b", text, re.IGNORECASE)) != 1
    ):
        return None
    swaps = {
        "tomorrow": ["today", "next week", "next month"],
        "tonight": ["tomorrow morning", "next week"],
        "yesterday": ["last week", "last month"],
        "this week": ["next week"], "this month": ["next month"], "next week": ["next month", "next year"],
        "last week": ["last month", "last year"], "last month": ["last week", "last year"],
        "today": ["tomorrow", "next week"],
    }  # fmt: skip

    def repl(match: re.Match[str]) -> str | None:
        word = match.group()
        if word in ("today", "this week", "this month") and not re.search(
            r"\b(?:forecast|weather|will|book|going to|gonna|reservation)\b", text, re.IGNORECASE
        ):
            return None
        if re.search(r"\b(?:after|before|in|of|the) $", text[: match.start()]) or text[match.end() :].startswith(
            ("'", "\u2019")
        ):
            return None
        return rng.choice(swaps[word])

    return _sub_one(text, rng, r"(?<!-)\b(?:" + "|".join(swaps) + r")\b(?!-)(?! (?:morning|night|evening|at))", repl)


# --------------------------------------------------------------------------------------------------------------------
# Counterfactual: names
# --------------------------------------------------------------------------------------------------------------------

_WOMEN = _words(
    "Anna Mary Maria Sarah Laura Emily Emma Julia Jenny Jenna Jessica Lisa Linda Susan Karen Nancy Betty Helen Alice "
    "Rachel Monica Tiffany Amanda Melissa Stephanie Rebecca Sharon Cynthia Kathleen Amy Angela Ruth Brenda Pamela "
    "Nicole Katherine Samantha Christine Janet Catherine Diane Heather Judith Olivia Sophia Natalia Natalie Claire "
    "Lily Lucy Hannah Megan Molly Tina Tracy Wendy Jane Jill Janna Janice Joanna Kate Katie Kelly Martha Marie Nina "
    "Penny Peggy Polly Sally Sophie Tanya Vanessa Brittany Courtney Carly Cindy Debbie Dolly Ella Fiona Gina"
)
_MEN = _words(
    "James John Robert Michael David Richard Thomas Daniel Matthew Anthony Steven Steve Paul Andrew Joshua Kevin Brian "
    "Timothy Ronald Jason Jeffrey Ryan Jacob Gary Nicholas Eric Jonathan Stephen Larry Justin Scott Brandon Benjamin "
    "Samuel Gregory Patrick Jack Jerry Tyler Aaron Henry Peter Nathan Zachary Kyle Walter Harold Jeremy Ethan Carl "
    "Keith Roger Gerald Noah Arthur Lawrence Albert Joe Johnny "
    "Jimmy Tommy Bobby Billy Tim Tom Sam Ben Bob Mike Dan Dave "
    "Greg Josh Jeff Ken Luke Marcus Oscar Ralph Raymond Simon Terry Toby Vincent William Charles George Edward"
)
_PERSON = "|".join(sorted({*_WOMEN, *_MEN}))
_FULL_NAMES = [
    "Peter Hansen", "Laura Mitchell", "Oscar Brennan", "Diego Fuentes", "Helen Marsh", "Tomas Novak", "Ruth Calloway",
    "Kevin O'Donnell", "Akira Tanaka", "Maria Lindqvist", "Walter Pruitt", "Nadia Rahman", "Gary Whitlock",
]  # fmt: skip
_NAME_GROUPS: dict[str, list[str]] = {
    "country": _words(
        "France Germany Spain Italy Portugal Austria "
        "Switzerland Sweden Norway Denmark Finland Poland Greece Ireland "
        "Belgium Hungary Romania Bulgaria Russia Ukraine China Japan Korea India Pakistan Thailand Vietnam Indonesia "
        "Malaysia Australia Canada Mexico Brazil Argentina Chile Peru Colombia Egypt Morocco Kenya Nigeria Scotland "
        "Iceland Croatia Serbia Estonia Latvia Lithuania Kosovo"
    ),
    "city": _words(
        "London Paris Berlin Madrid Rome Vienna Amsterdam "
        "Brussels Dublin Prague Budapest Warsaw Moscow Tokyo Beijing "
        "Shanghai Sydney Melbourne Toronto Montreal Chicago Boston Seattle Denver Miami Philadelphia Detroit Milwaukee "
        "Atlanta Houston Barcelona Munich Hamburg Milan Lisbon Oslo Stockholm Copenhagen Helsinki Athens Istanbul"
    ),
    "state": _words(
        "Texas California Florida Ohio Michigan Illinois "
        "Pennsylvania Oregon Nevada Arizona Utah Colorado Kansas "
        "Nebraska Iowa Minnesota Wisconsin Missouri Arkansas Louisiana Alabama Tennessee Kentucky Maine Vermont "
        "Massachusetts Connecticut Maryland Delaware Hawaii Alaska Oklahoma Montana Wyoming Idaho"
    ),
    "language": _words(
        "French German Spanish Italian Portuguese Swedish "
        "Norwegian Danish Russian Chinese Japanese Korean Arabic "
        "Greek Dutch Hungarian Finnish"
    ),
    "nationality": _words("Australian Canadian American Mexican Brazilian Indian British Irish Scottish African Asian"),
    "company": _words("Google Microsoft Apple Amazon Facebook Netflix Tesla Nike Adidas Samsung Sony IBM Intel Uber"),
    "music": _words("Spotify Deezer YouTube Youtube iTunes Pandora Vimeo"),
    "card": _words("Visa Mastercard MasterCard Maestro Amex"),
    "pay": ["Apple Pay", "Google Pay", "PayPal", "Samsung Pay"],
    "currency": _words("GBP EUR USD AUD CAD CHF JPY SEK NOK PLN"),
    "code": _words("Python Java JavaScript Ruby PHP Kotlin Haskell Perl Scala"),
    "team": _words("Essendon Footscray Collingwood Richmond Carlton Geelong Fitzroy Hawthorn"),
    "us_team": _words("Lakers Bulls Celtics Knicks Rockets Spurs Raptors Pistons Packers Broncos Patriots Steelers"),
    "planet": _words("Mars Venus Jupiter Saturn Neptune Uranus"),
    "abbrev": ["US", "UK", "EU"],
}


def _mid_name(text: str, match: re.Match[str]) -> bool:
    """Mid-sentence, and not a part of a longer capitalised name."""
    if _starts_sentence(text, match.start()) or text.isupper():
        return False
    before = re.search(r"([\w'\u2019]+) $", text[: match.start()])
    if before and before.group(1)[0].isupper() and not _starts_sentence(text, before.start()):
        return False
    if before and before.group(1)[0].isupper() and before.group(1).lower() not in _SAFE_LOWER:
        return False
    return not re.match(r"['\u2019]?s? (?:[A-Z]|&)|-|/|\.\w", text[match.end() :])


def _replace_name(text: str, rng: random.Random, group: Sequence[str]) -> str | None:
    pattern = r"(?<![\w-])(?:" + "|".join(re.escape(g) for g in sorted(group, key=len, reverse=True)) + r")(?!\w)"
    found = [m for m in re.finditer(pattern, text) if _mid_name(text, m)]
    if not found or len(re.findall(pattern, text)) != 1:
        return None
    old = found[0]
    same = {"Mastercard", "MasterCard"} if old.group().lower() == "mastercard" else {old.group()}
    same |= {"YouTube", "Youtube"} if old.group().lower() == "youtube" else set()
    new = rng.choice([g for g in group if g not in same])
    return _fix_article(text[: old.start()], new) + new + text[old.end() :]


def name_person(text: str, rng: random.Random) -> str | None:
    """A first name mid-sentence replaced by another of the same gender; not in word problems."""
    if _story(text):
        return None
    for group in rng.sample([_WOMEN, _MEN], 2):
        pattern = rf"\b(?:{'|'.join(group)})\b"
        found = [m for m in re.finditer(pattern, text) if not _starts_sentence(text, m.start())]
        found = [
            m
            for m in found
            if not re.search(r"\b(?:St|Saint|San|King|Queen|Lake|Mount|Fort|Port)\.? $", text[: m.start()])
        ]
        if len(found) == 1 and len(re.findall(rf"\b{found[0].group()}\b", text)) == 1 and not text.isupper():
            new = rng.choice([n for n in group if n not in text])
            return text[: found[0].start()] + new + text[found[0].end() :]
    return None


def name_place(text: str, rng: random.Random) -> str | None:
    """Country, city or state replaced by another one."""
    if _story(text):
        return None
    for kind in rng.sample(["country", "city", "state", "abbrev"], 4):
        new = _replace_name(text, rng, _NAME_GROUPS[kind])
        if new is not None:
            return new
    return None


def name_product(text: str, rng: random.Random) -> str | None:
    """Company, product, service, card brand, team or programming language replaced by another one."""
    kinds = ["company", "music", "card", "pay", "code", "team", "us_team", "planet"]
    if _story(text):
        return None
    for kind in rng.sample(kinds, len(kinds)):
        new = _replace_name(text, rng, _NAME_GROUPS[kind])
        if new is not None:
            return new
    return None


def name_language(text: str, rng: random.Random) -> str | None:
    """Language or nationality replaced by another one."""
    for kind in rng.sample(["language", "nationality"], 2):
        new = _replace_name(text, rng, _NAME_GROUPS[kind])
        if (
            new is not None
            and not _story(text)
            and not re.search(r"\b(?:ruble|pound|dollar|yen|kron|franc|peso)", text)
        ):
            return new
    return None


def name_currency(text: str, rng: random.Random) -> str | None:
    """GBP -> EUR and the like."""
    new = _replace_name(text, rng, _NAME_GROUPS["currency"])
    return None if new is None or _story(text) else new


def name_full(text: str, rng: random.Random) -> str | None:
    """The person in "by X Y", "player X Y", "the winner is X Y" replaced by another full name."""
    cue = (
        r"(?:by|player|coach|director|driver|author|singer|actor|president|named|winner|skip|rider|writer|opponent|"
        r"partner|candidate|artist|incumbent|poet|champion|with|does|did)"
    )
    pattern = (
        rf"(?<=\b)({cue}(?: is| was)?) ([A-Z][a-z]+ (?:[A-Z]\. )?[A-Z][a-z]{{2,}})(?=['\u2019]s?\b|[.?!,]|$| [a-z])"
    )

    def repl(match: re.Match[str]) -> str | None:
        name = match.group(2)
        person = re.match(rf"(?:{_PERSON})\b", name)
        if re.match(r"(?:with|does|did)", match.group(1)) and not person:
            return None
        if re.search(
            r"\b(?:The|United|City|Park|University|League|Cup|Team|Street|County|State|Party|Records|Bank)\b", name
        ):
            return None
        return f"{match.group(1)} {rng.choice([n for n in _FULL_NAMES if n.split()[0] not in text])}"

    return None if _story(text) else _sub_one(text, rng, pattern, repl)


def name_against(text: str, rng: random.Random) -> str | None:
    """The opponent: "against Footscray" -> "against Geelong"."""
    teams = _NAME_GROUPS["team"]
    pattern = (
        rf"(?<=\b(?:against|opponent|versus) )(?:{'|'.join(teams)})\b|"
        rf"(?<=\bagainst the )(?:{'|'.join(_NAME_GROUPS['us_team'])})\b"
    )
    pattern = pattern.replace(
        "(?<=\\b(?:against|opponent|versus) )", "(?:(?<=\\bagainst )|(?<=\\bversus )|(?<=\\bplayed at ))"
    )

    def repl(match: re.Match[str]) -> str | None:
        group = teams if match.group() in teams else _NAME_GROUPS["us_team"]
        return rng.choice([g for g in group if g not in text])

    return _sub_one(text, rng, pattern, repl)


def asked_person(text: str, rng: random.Random) -> str | None:
    """A word problem now asks about the other person: "How many does Anna have?" -> "... does Ben have?" """
    start, end = _sentences(text)[-1]
    question, story = text[start:end], text[:start]
    if not question.endswith("?") or not re.match(r"(?:How|What)\b", question):
        return None
    asked = re.findall(rf"\b(?:{_PERSON})\b", question)
    others = sorted({n for n in re.findall(rf"\b(?:{_PERSON})\b", story) if n not in asked})
    if (
        len(asked) != 1
        or not others
        or re.search(r"\b(?:he|she|his|her|him|they|their|both|each|and|together|than)\b", question)
    ):
        return None
    # Somebody with a share of their own in the story: subject of a verb there.
    owners = [
        n
        for n in others
        if re.search(
            rf"\b{n} (?:has|had|is|was|eats?|buys?|bought|sold|sells|got"
            rf"|gets|runs|earns|made|makes|read|spent|collected|scored)\b",
            story,
        )
    ]
    if not owners:
        return None
    new = rng.choice(owners)
    return story + re.sub(rf"\b{asked[0]}\b", new, question) + text[end:]


# --------------------------------------------------------------------------------------------------------------------
# Counterfactual: negation
# --------------------------------------------------------------------------------------------------------------------

_SUBJ = r"(?:I|you|we|they|he|she|it|this|that|(?:[Mm]y|[Tt]he|[Hh]is|[Hh]er|[Tt]his) (?:[a-z]+ ){0,2}?[a-z]+)"
_NT = {
    "is": "isn't", "are": "aren't", "was": "wasn't", "were": "weren't", "can": "can't", "could": "couldn't",
    "will": "won't", "would": "wouldn't", "should": "shouldn't", "has": "hasn't", "have": "haven't", "had": "hadn't",
}  # fmt: skip


def _negatable(text: str, pos: int) -> bool:
    """No negation in the sentence yet, and no word there that would make the negated form unclear."""
    sentence = _sentence_of(text, pos)
    return not _NEGATION.search(sentence) and not re.search(
        r"\b(?:any|yet|ever|only|until|either|still|too)\b", sentence
    )


def _negate_aux(text: str, rng: random.Random, form: Callable[[str], str | None]) -> str | None:
    pattern = (
        rf"\b({_SUBJ}) (am|is|are|was|were|can|could|will|would|should"
        rf"|has been|have been|had been)\b(?= [a-z]+)(?! (?:able|to\b))"
    )

    def repl(match: re.Match[str]) -> str | None:
        sentence = _sentence_of(text, match.start())
        offset = match.start() - text.find(sentence)
        ahead = sentence[:offset] if text.find(sentence) <= match.start() else ""
        if not _negatable(text, match.start()) or re.search(rf"(?i)\b(?:{'|'.join(_WH)}|that|if|as|than|so)\b", ahead):
            return None
        if match.group(1).startswith("this") and ahead.strip():
            return None
        if re.search(r"(?i)\b(?:is|are|was|were|do|does|did|can|will|has|have)\b", ahead + match.group(1)):
            return None
        if re.search(r"\b(?:who|which|where|when|what|that \w+ed|of|and|to|for|with|in)\b", match.group(1)[2:]):
            return None
        new = form(match.group(2))
        return None if new is None else f"{match.group(1)} {new}"

    return _sub_one(text, rng, pattern, repl)


def negation_not(text: str, rng: random.Random) -> str | None:
    """I am -> I am not; my card has been -> my card has not been; statements only."""

    def form(aux: str) -> str:
        return aux.replace(" been", " not been") if aux.endswith("been") else "cannot" if aux == "can" else aux + " not"

    return _negate_aux(text, rng, form)


def negation_nt(text: str, rng: random.Random) -> str | None:
    """is -> isn't, can -> can't, have been -> haven't been; statements only."""

    def form(aux: str) -> str | None:
        head, _, tail = aux.partition(" ")
        return (_NT[head] + (" " + tail if tail else "")) if head in _NT else None

    return _negate_aux(text, rng, form)


def negation_contracted(text: str, rng: random.Random) -> str | None:
    """I'm -> I'm not; it's -> it's not; I've been -> I've not been."""

    def repl(match: re.Match[str]) -> str | None:
        sentence = _sentence_of(text, match.start())
        head = sentence.split(match.group())[0]
        if not _negatable(text, match.start()) or re.search(
            rf"(?i)\b(?:{'|'.join(_WH)}|if|that|as|than|before|until|unless)\b", head
        ):
            return None
        if re.search(r"\b(?:from|to|of|in|into|on|and) $", head):
            return None
        return match.group() + " not"

    pattern = (
        r"\b(?:I['\u2019]m|(?:I|[Ww]e)['\u2019]ve(?= been)|"
        r"[Ii]t['\u2019]s(?! been)|[Tt]hey['\u2019]re|[Ww]e['\u2019]re)(?= [a-z])(?! able)"
    )
    return _sub_one(text, rng, pattern, repl)


def negation_do(text: str, rng: random.Random) -> str | None:
    """I want -> I don't want; I need -> I do not need; I have a -> I don't have a."""

    def repl(match: re.Match[str]) -> str | None:
        sentence = _sentence_of(text, match.start())
        head = sentence.split(match.group())[0]
        if not _negatable(text, match.start()) or re.search(
            rf"(?i)\b(?:{'|'.join(_WH + _AUX)}|if|that|as|than|and)\b", head
        ):
            return None
        negated = rng.choice(["do not", "don't", "don\u2019t"])
        return f"I {negated} {match.group(1)}"

    verbs = r"(?:want|need|think|believe|know|like|see|understand|have(?= (?:a|an|the|my|money|two|enough)\b)|live|use)"
    return _sub_one(text, rng, rf"(?<![\w,] )\bI ({verbs})\b(?= [a-z])|(?<=, )I ({verbs})\b(?=$)", repl)


def negation_never(text: str, rng: random.Random) -> str | None:
    """I received -> I never received; statements about oneself only."""

    def repl(match: re.Match[str]) -> str | None:
        head = _sentence_of(text, match.start()).split(match.group())[0]
        if not _negatable(text, match.start()) or re.search(
            rf"(?i)\b(?:{'|'.join(_WH + _AUX)}|that|if|as|than|just)\b", head
        ):
            return None
        return "I never " + match.group(1)

    verbs = (
        r"received|ordered|made|asked|requested|tried|paid|sent|bought|purchased|used|changed|transferred|topped|set|"
        r"activated|verified|cancelled|canceled|withdrew|attempted|entered|authorized|opened|applied|contacted|"
        r"noticed|signed|submitted|called|checked|had|lost"
    )
    return _sub_one(text, rng, rf"\bI ({verbs})\b(?= [a-z])", repl)


def negation_order(text: str, rng: random.Random) -> str | None:
    """Play X -> Do not play X / Don't play X / Never play X."""
    if _kind(text) != "imperative" or len(_sentences(text)) != 1 or text.rstrip().endswith((":", "?")):
        return None
    if _NEGATION.search(text) or "," in text or not _can_lower(text):
        return None
    if re.match(r"(?i)imagine|please|look|help|given|name|get|state|review|research|plan|count|find out", text):
        return None
    return _like_first(text, rng.choice(["do not ", "don't ", "never "])) + _lower_first(text)


def negation_why(text: str, rng: random.Random) -> str | None:
    """Why was my payment declined -> Why was my payment not declined; which X is -> which X is not."""
    subject = r"(?:I|my (?:[a-z]+ )?(?:card|payment|transfer|account|top-up|transaction|refund|money)|it)"
    verbal = r"[a-z]+ed|[a-z]+ing|important|given|sent|shown|taken|made|in|on"
    pattern = (
        rf"\b[Ww]hy (?:was|is|has|am|were|are) {subject}(?= (?:being |been )?(?:{verbal})\b)|"
        r"\b[Ww]hy (?:did|does|do) (?:I|it|you|they)(?= (?!not\b|still\b|have\b)[a-z]+)"
    )

    def repl(match: re.Match[str]) -> str | None:
        return match.group() + " not" if _negatable(text, match.start()) else None

    return _sub_one(text, rng, pattern, repl)


def negation_condition(text: str, rng: random.Random) -> str | None:
    """when the score is X -> when the score is not X; which player is from -> which player is not from."""
    pattern = (
        r"(?:\b(?:[Ii]f|[Ww]hen|[Ww]here) (?:my|the|it|there|I) ?(?:[a-z]+ ){0,3}?|\b(?:that|who|which|whose [a-z]+) |"
        r"^(?:Which|What) (?:player|team|country|school|state|city|person|driver|club|nation|teams|players)s? )"
        r"(?:is|was|were|are|can|has been|have been|had been)(?= )"
    )

    def repl(match: re.Match[str]) -> str | None:
        rest = text[match.end() :]
        if not _negatable(text, match.start()) or (
            re.match(r" (?:the|a|your|my|it|there|this|that)\b", rest) and match.group()[0] == "W"
        ):
            return None
        if re.search(r"(?i)\b(?:true or false|judge|determine|whether|check|decide|know|see|tell)\b", text):
            return None
        if re.search(r"\b(?:is|was|are|were) \S+.*\b(?:is|was|are|were)$", match.group()):
            return None
        head = match.group()
        if head.endswith(" been"):
            return head[: -len("been")] + "not been"
        return head + "not" if head.endswith("can") else head + " not"

    return _sub_one(text, rng, pattern, repl)


_WITH_NOUN = (
    r"(?:game|player|team|episode|driver|card|account|school|person|song|film|movie|book|story|sentence|restaurant|"
    r"car|house|essay|poem|paragraph|pay|travel|shop|live|word|words|city|country|table|recipe|meal|week|match|year|"
    r"cafe|bar|place|food court|dish|teams|players|people|students|children|design|app|website|room|apartment)"
)


def negation_without(text: str, rng: random.Random) -> str | None:
    """the game with a 4-1 record -> without a ...; without using X -> using X."""
    new = _sub_one(text, rng, r"\b[Ww]ithout (?=[a-z]{2,}ing )", lambda m: "" if m.group()[0] == "w" else None)
    if new is not None:
        return new
    pattern = rf"(?<=\s)({_WITH_NOUN}) with(?= (?:a|an|more|internet|wifi|parking|\d|outdoor|pool)\b)"
    return _sub_one(text, rng, pattern, lambda m: m.group(1) + " without")


# --------------------------------------------------------------------------------------------------------------------
# Counterfactual: units
# --------------------------------------------------------------------------------------------------------------------

_UNITS = {
    "minute": ["hour", "day"], "hour": ["minute", "day"], "day": ["week", "month"], "week": ["month", "day"],
    "month": ["week", "year"], "year": ["month", "week"], "mile": ["kilometer", "yard"], "kilometer": ["mile", "meter"],
    "meter": ["foot", "kilometer"], "metre": ["foot", "kilometre"], "inch": ["foot", "yard"], "foot": ["inch", "yard"],
    "centimeter": ["inch", "meter"], "kilogram": ["gram", "pound"], "gram": ["kilogram", "ounce"],
    "ounce": ["gram", "pound"], "liter": ["gallon", "milliliter"], "gallon": ["liter", "pint"],
    "milliliter": ["liter", "ounce"], "tablespoon": ["teaspoon", "cup"], "teaspoon": ["tablespoon", "cup"],
    "second": ["minute", "hour"], "cent": ["dollar"], "pint": ["gallon", "quart"], "quart": ["pint", "gallon"],
    "kilometre": ["mile", "metre"], "litre": ["gallon", "millilitre"], "kilo": ["gram", "pound"],
}  # fmt: skip
_PLURALS = {"foot": "feet", "inch": "inches"}
_SINGULAR = {_PLURALS.get(u, u + "s"): u for u in _UNITS}
_COUNT = (
    r"(?:\d+(?:[.,]\d+)*|\d+/\d+|two|three|four|five|six|seven|eight|nine|ten|twelve|fifteen|twenty|thirty|forty|fifty|"
    r"few|several|couple of|many|hundred|more)"
)


_BEFORE_A = (
    r"(?:(?<=\bfor )|(?<=\bover )|(?<=\bin )|(?<=\bwithin )|(?<=\bthan )|(?<=\bonce )|(?<=\btwice )|(?<=\btimes )|"
    r"(?<=\balmost )|(?<=\bnearly )|(?<=\babout )|(?<=[a-z]s )|(?<=\d ))"
)


def unit_measure(text: str, rng: random.Random) -> str | None:
    """50 minutes -> 50 hours, 8 inches -> 8 feet, per week -> per month (one occurrence)."""
    plural = "|".join(sorted(_SINGULAR, key=len, reverse=True))
    single = "|".join(u for u in _UNITS if u not in ("second", "cent", "foot"))
    pattern = (
        rf"(?P<many>\b{_COUNT}[ -])(?P<p>{plural})\b(?! (?:in (?:a|an|one|each)|old enough)\b)|"
        rf"(?P<num>\b(?:\d+|two|three|four|five|six|ten|thirty)[ -])(?P<n>{single})\b(?!s)|"
        rf"(?P<per>\b(?:[Pp]er|[Ee]ach|[Ee]very|{_BEFORE_A}an|{_BEFORE_A}a"
        rf"|[Ll]ast|[Nn]ext|[Tt]his) )(?P<s>{single})\b(?![-'\u2019]|s\b| old| of| or)"
    )

    def repl(match: re.Match[str]) -> str | None:
        if match.group("p"):
            new = rng.choice(_UNITS[_SINGULAR[match.group("p")]])
            return match.group("many") + _PLURALS.get(new, new + "s")
        if match.group("n"):
            new = rng.choice(_UNITS[match.group("n")])
            return None if text[match.end() :].startswith(f" {new}") else match.group("num") + new
        unit = match.group("s")
        new = rng.choice(_UNITS[unit])
        if re.match(r"(?i)last|next|this", match.group("per")) and unit not in ("week", "month", "year"):
            return None
        if new in ("minute", "hour", "day") and re.match(r"(?i)last|next|this", match.group("per")):
            return None
        return _fix_article(match.group("per"), new) + new

    return _sub_one(text, rng, pattern, repl)


def unit_symbol(text: str, rng: random.Random) -> str | None:
    """5 km -> 5 miles, 3kg -> 3g, 400 ml -> 400 liters."""
    swaps = {
        "km": ["miles", "m"], "kg": ["g", "lbs"], "g": ["kg", "oz"], "cm": ["m", "inches"], "ml": ["liters"],
        "mL": ["L"], "lbs": ["kg", "oz"], "lb": ["kg", "oz"], "oz": ["lbs", "g"], "mph": ["km/h"], "m": ["km", "ft"],
        "am": ["pm"], "pm": ["am"], "AM": ["PM"], "PM": ["AM"], "mm": ["cm"], "GB": ["MB"], "MB": ["GB"],
        "ft": ["m", "in"],
        "°C": ["°F"], "°F": ["°C"], "mi": ["km"],
    }  # fmt: skip

    def repl(match: re.Match[str]) -> str:
        new = rng.choice(swaps[match.group(2)])
        return (" " if len(new) > 3 and not match.group(1) else match.group(1)) + new

    keys = "|".join(sorted(swaps, key=len, reverse=True))
    return _sub_one(text, rng, rf"(?<=\d)([ -]?)({keys})(?![\w°^²])", repl)


def unit_currency(text: str, rng: random.Random) -> str | None:
    """$ -> euro, dollars -> euros, pounds -> euros; only where the prompt names one amount or currency."""
    signs = re.findall(r"[$£€]", text)
    words = re.findall(r"\b(?:dollars?|euros?|pounds?|pence|cents?|yen|GBP|EUR|USD)\b", text, re.IGNORECASE)
    if len(signs) + len(words) != 1 or _story(text):
        return None
    if signs:
        return re.sub(r"([$£€])(?=\d)", lambda m: rng.choice([s for s in "$£€" if s != m.group()]), text)
    if re.search(r"(?i)\bpound", words[0]) and (
        re.search(r"(?i)weigh|lbs?\b|heavy|gain|lose|lost", text) or _word_problem(text)
    ):
        return None
    if re.search(
        r"(?i)\b(?:kilo|kg|gram|ounce|stone)|\b(?:US|UK|Canadian|British|Australian|American|Egyptian) [dp]", text
    ):
        return None
    group = ["dollar", "euro", "pound"]

    def repl(match: re.Match[str]) -> str | None:
        new = rng.choice([g for g in group if g != match.group(1).lower()])
        return _like_case(match.group(1), new) + match.group(2)

    new = _sub_one(text, rng, r"(?i)\b(dollar|euro|pound)(s?)\b(?! (?:of|bill|cake|sign))", repl)
    return None if new is None or re.search(r"\b[Aa]n (?:dollar|pound)|\b(?:dollar|euro|pound)s? of ", new) else new


def unit_temperature(text: str, rng: random.Random) -> str | None:
    if re.search("celsius", text, re.IGNORECASE) and re.search("fahrenheit", text, re.IGNORECASE):
        return None
    swap = {"celsius": "fahrenheit", "fahrenheit": "celsius"}
    return _sub_one(
        text, rng, r"(?i)\b(?:celsius|fahrenheit)\b", lambda m: _like_case(m.group(), swap[m.group().lower()])
    )


def unit_scale(text: str, rng: random.Random) -> str | None:
    """5 million -> 5 thousand, two dozen -> two hundred."""
    swaps = {
        "million": "billion",
        "billion": "million",
        "thousand": "hundred",
        "hundred": "thousand",
        "dozen": "hundred",
    }
    count = r"(?:\d+(?:\.\d+)?|two|three|four|five|six|seven|eight|nine|ten|several|one|a)"
    pattern = (
        rf"(\b{count}) (million|billion|thousand|hundred|dozen)\b(?! (?:and"
        rf"|percent|\d|million|thousand|[a-z]+ty|{'|'.join(_SMALL)}|one)\b)"
    )
    return _sub_one(text, rng, pattern, lambda m: f"{m.group(1)} {swaps[m.group(2)]}")


# --------------------------------------------------------------------------------------------------------------------
# Counterfactual: antonyms
# --------------------------------------------------------------------------------------------------------------------


class _Rule(NamedTuple):
    """Replace `pattern` by `new`; never in a text that `clash` finds (mostly: the antonym is there already)."""

    pattern: re.Pattern[str]
    new: str
    clash: re.Pattern[str] | None


def _rule(pattern: str, new: str, clash: str | None = None) -> _Rule:
    return _Rule(re.compile(pattern, re.IGNORECASE), new, re.compile(clash, re.IGNORECASE) if clash else None)


def _both(*pairs: tuple[str, str]) -> list[_Rule]:
    rules: list[_Rule] = []
    for a, b in pairs:
        rules.append(_rule(rf"(?<![\w-]){a}(?![\w-])", b, rf"\b{b}\b"))
        rules.append(_rule(rf"(?<![\w-]){b}(?![\w-])", a, rf"\b{a}\b"))
    return rules


def _apply_rules(text: str, rng: random.Random, rules: Sequence[_Rule]) -> str | None:
    options: list[str] = []
    quoted = _quoted_spans(text)
    for rule in rules:
        if rule.clash is not None and rule.clash.search(text):
            continue
        matches = [
            m
            for m in rule.pattern.finditer(text)
            if not _capital_mid(text, m) and not _in_spans(m.start(), m.end(), quoted)
        ]
        if len(matches) != 1:
            continue
        match = matches[0]
        new = _like_case(match.group(), match.expand(rule.new))
        options.append(_fix_article(text[: match.start()], new) + new + text[match.end() :])
    return rng.choice(options) if options else None


_START = r"(?= (?:the|a|an|my|his|her|their|it|she|he|they|I|we|you|this|that|\d|[a-z]+ing\b|(?-i:[A-Z])))"
_ORDER_RULES = [
    _rule(
        rf"(?<!look )(?<!looks )(?<!named )(?<!name )(?<!take )"
        rf"(?<!day )(?<!taken )(?<!morning )\bafter{_START}(?! all)",
        "before",
        r"\bbefore\b",
    ),
    _rule(
        rf"(?<!ever )(?<!never )(?<!day )(?<!than )(?<!as )\bbefore{_START}(?!.*\b(?:ever|never)\b)",
        "after",
        r"\bafter\b",
    ),
    _rule(r"(?<=\bthe )first(?= [a-z])(?! (?:and|of all|place))", "last", r"\blast\b|\bsecond\b|\bthird\b"),
    _rule(r"(?<=\bthe )last(?= [a-z])(?! (?:week|month|year|and|of|\d|few|century|decade))", "first", r"\bfirst\b"),
    *_both(
        ("earliest", "latest"),
        ("oldest", "youngest"),
        ("older", "younger"),
        ("earlier", "later"),
        ("ascending", "descending"),
        ("sunrise", "sunset"),
        ("breakfast", "dinner"),
        ("lunch", "dinner"),
    ),
    *_both(("previous", "next")),
    _rule(
        r"\bcurrent(?= (?:novel|book|essay|album|chronicle|saga|series|textbook|song|track))",
        "previous",
        r"\bprevious\b",
    ),
    _rule(r"\bsummer\b", "winter", r"\bwinter\b"),
    _rule(r"\bwinter\b", "summer", r"\bsummer\b"),
    _rule(r"(?<=\bthe )morning\b", "evening", r"\bevening\b"),
    _rule(r"(?<=\bthe )evening\b", "morning", r"\bmorning\b"),
    _rule(r"\bthis morning\b", "this evening", r"\bevening\b"),
    _rule(r"\buntil(?= (?:the|I|my|he|she)\b)", "after", r"\bafter\b|\bnot\b|n't"),
]
_DEGREE_RULES = [
    *_both(
        ("highest", "lowest"),
        ("largest", "smallest"),
        ("biggest", "smallest"),
        ("longest", "shortest"),
        ("minimum", "maximum"),
        ("min", "max"),
        ("minimal", "maximal"),
        ("fastest", "slowest"),
        ("nearest", "farthest"),
        ("closest", "farthest"),
        ("best", "worst"),
        ("cheapest", "priciest"),
        ("heaviest", "lightest"),
        ("hottest", "coldest"),
        ("higher", "lower"),
        ("larger", "smaller"),
        ("faster", "slower"),
        ("heavier", "lighter"),
        ("warmer", "colder"),
        ("hotter", "colder"),
        ("bigger", "smaller"),
        ("strongest", "weakest"),
        ("longer", "shorter"),
    ),
    _rule(r"\btaller\b", "shorter", r"\bshort"),
    _rule(r"\btallest\b", "shortest", r"\bshort"),
    _rule(r"(?<=\bthe )most\b(?! of)", "least", r"\bleast\b|at most"),
    _rule(r"(?<=\bthe )least\b", "most", r"\bmost\b|at least"),
    _rule(r"\bat least\b", "at most", r"at most"),
    _rule(r"\bat most\b", "at least", r"at least"),
    _rule(r"(?<=\bthe )greatest\b", "smallest", r"\bsmallest\b"),
    _rule(r"(?<!no )(?<!not )\bmore than(?= (?:\d|\$|one|two|three|a\b|an\b))(?! one of)", "less than", r"\bless\b"),
    _rule(r"(?<!no )(?<!not )\bless than(?= (?:\d|\$|one|two|three|a\b|an\b|half|twice))", "more than", r"\bmore\b"),
    _rule(r"\bgreater than\b", "less than", r"\bless\b"),
    _rule(r"\bfewer than\b", "more than", r"\bmore\b"),
    _rule(r"(?<=\bhow much )more\b", "less", r"\bless\b"),
    _rule(r"(?<=\bhow many )more(?= [a-z]+s\b)(?=.*\bthan\b)", "fewer", r"\bfewer\b"),
    _rule(
        r"(?<!any )(?<!no )(?<!even )\bmore(?= \w+(?:ful|ive|ous|able|ible|ing|ent|ant|ic|al|ly|ate|ted)\b)",
        "less",
        r"\bless\b",
    ),
    _rule(r"(?<=\d )more(?= than\b)", "less", r"\bfewer\b|\bless\b"),
    _rule(r"(?<=\d )fewer(?= than\b)", "more", r"\bmore\b"),
    _rule(r"(?<=\d )less(?= than\b)", "more", r"\bmore\b"),
    _rule(r"\bover(?= (?:\$?\d|a (?:week|month|year|hour|dozen)|an hour))(?! \d+-)", "under", r"\bunder\b"),
    _rule(r"\bunder(?= \$?\d)", "over", r"\bover\b"),
    _rule(r"\btop(?= (?:\d|five|three|ten|two)\b)", "bottom", r"\bbottom\b"),
    _rule(r"\babove(?= (?:\d|the average|average))", "below", r"\bbelow\b"),
    _rule(r"\bbelow(?= (?:\d|the average|average))", "above", r"\babove\b"),
]
_ACTION_RULES = [
    *_both(
        ("increase", "decrease"),
        ("increases", "decreases"),
        ("increased", "decreased"),
        ("increasing", "decreasing"),
        ("enable", "disable"),
        ("accept", "reject"),
        ("accepted", "rejected"),
        ("approve", "reject"),
        ("withdrawal", "deposit"),
        ("withdrawals", "deposits"),
        ("activate", "deactivate"),
        ("encrypt", "decrypt"),
        ("upload", "download"),
        ("import", "export"),
        ("winner", "loser"),
        ("winning", "losing"),
        ("lock", "unlock"),
        ("freeze", "unfreeze"),
        ("include", "exclude"),
        ("multiply", "divide"),
        ("opened", "closed"),
        ("opening", "closing"),
        ("encode", "decode"),
        ("agree", "disagree"),
    ),
    _rule(r"(?<=\d )wins\b|(?<=\btotal )wins\b|(?<=\bof )wins\b|(?<=\bmany )wins\b", "losses", r"\bloss|\blos[te]"),
    _rule(r"(?<=\bto )win\b|(?<=\bwill )win\b|(?<=\bcan )win\b|(?<=\bteam )win\b", "lose", r"\blos"),
    _rule(r"\bblock(?= (?:my|the|this) )", "unblock", r"\bunblock"),
    _rule(r"\bunblock(?= (?:my|the|this|it))", "block", r"\bblock\b"),
    _rule(r"(?<=\bturn )on\b|(?<=\bswitch )on\b|(?<=\bturned )on\b", "off", r"\boff\b"),
    _rule(r"(?<=\bturn )off\b|(?<=\bswitch )off\b|(?<=\bturned )off\b", "on", r"(?:turn|switch)(?:ed)? on\b"),
    _rule(r"\bopen(?= (?:a|an|my|the|another|up an?|new|account))", "close", r"\bclos"),
    _rule(r"\bclose(?= (?:my|the|an|this) (?:[a-z]+ )?account)", "open", r"\bopen"),
    _rule(r"^Add (.+?) (?:to|in|into|onto) (my|the|this) ", r"remove \1 from \2 ", r"\bremove|\bfrom\b| to .* to "),
    _rule(r"\bsend ((?:(?!to\b|and\b|or\b|back\b)[a-z]+ ){0,4})to\b(?! me)", r"receive \1from", r"\breceiv|\bfrom\b"),
    _rule(
        r"\breceive(?= (?:a |my |the )?(?:money|payments?|salary|funds|transfers?|cash)\b)(?!.*\bfrom\b)",
        "send",
        r"\bsen[dt]",
    ),
    _rule(r"\bI sent ((?:[a-z]+ ){0,3}?)to\b", r"I received \1from", r"\breceiv|\bfrom\b"),
    _rule(r"\bsent (?=(?:money|payments?|funds)\b)(?!.*\bto\b)", "received ", r"\breceiv"),
    _rule(r"\bbuy(?= (?:a|an|the|some|my) )(?!.*\bfrom\b)", "sell", r"\bs(?:ell|old)"),
    _rule(r"\bsells(?= (?:\d|the|his|her|each|them))(?!.*\bto\b)", "buys", r"\bb(?:uy|ought)"),
    _rule(r"\bbuys(?= (?:\d|the|a|an|some|two|three|four|five))(?!.*\bfrom\b)", "sells", r"\bs(?:ell|old)"),
    _rule(r"\bearn(s|ed)?(?= \$)", r"lose\1", r"\blos|\bearned\b"),
    _rule(r"\bgain(s|ed)?(?= \d)", r"burn\1", r"\bburn|\blos"),
    _rule(
        r"\b(?<=who )won\b|(?<=\bteam )won\b|(?<=\bgames )won\b|(?<=\bmatches )won\b|(?<=\blegs )won\b",
        "lost",
        r"\blost\b",
    ),
    _rule(r"(?<=\bgames )lost\b|(?<=\bmatches )lost\b|(?<=\bsets )lost\b|(?<=\blegs )lost\b", "won", r"\bwon\b"),
    _rule(r"\bincoming\b", "outgoing", r"\boutgoing\b"),
    _rule(r"\bstarts(?= at\b)", "ends", r"\bends?\b"),
    _rule(
        r"\badd(?= (?:the|a|an|one|two) (?:[a-z]+ )?(?:word|sentence|number|element|item|adjective)s?\b)",
        "remove",
        r"\bremove|\bto\b",
    ),
    _rule(r"\bdeclined\b", "accepted", r"\baccept"),
    _rule(r"\bagainst(?= the (?:motion|use|idea|argument|law|ban))", "for", r"\bfor\b"),
]
_QUALITY_RULES = [
    *_both(
        ("positive", "negative"),
        ("advantage", "disadvantage"),
        ("advantages", "disadvantages"),
        ("pros", "cons"),
        ("formal", "informal"),
        ("legal", "illegal"),
        ("singular", "plural"),
        ("urban", "rural"),
        ("synonym", "antonym"),
        ("synonyms", "antonyms"),
        ("male", "female"),
        ("indoor", "outdoor"),
        ("winners", "losers"),
        ("benefits", "drawbacks"),
        ("strengths", "weaknesses"),
        ("healthy", "unhealthy"),
        ("successful", "unsuccessful"),
        ("expensive", "cheap"),
        ("domestic", "international"),
        ("northern", "southern"),
        ("eastern", "western"),
        ("optimistic", "pessimistic"),
        ("odd numbers", "even numbers"),
        ("active voice", "passive voice"),
        ("public", "private"),
        ("renewable", "non-renewable"),
        ("hero", "villain"),
        ("inside", "outside"),
        ("similarities", "differences"),
    ),
    _rule(r"\bvirtual(?= (?:cards?|ones?)\b)", "physical", r"\bphysical"),
    _rule(r"\bphysical(?= (?:cards?|ones?)\b)", "virtual", r"\bvirtual"),
    _rule(r"(?<=\bmost )common\b", "rare", r"\brare"),
    _rule(r"\bhome(?= (?:team|side|crowd|game|score|venue|ground)s?\b)", "away", r"\baway\b"),
    _rule(r"\baway(?= (?:team|side|game|score)s?\b)", "home", r"\bhome\b"),
    _rule(r"\bcredit card", "debit card", r"\bdebit\b"),
    _rule(r"\bdebit card", "credit card", r"\bcredit\b"),
    _rule(
        r"(?<=\b(?:in|at) )the same(?= (?:area|place|city|neighborhood|account|currency|country|price))",
        "a different",
        None,
    ),
    _rule(r"\balways\b", "never", r"\bnever\b|\bnot\b|n't"),
    _rule(r"\bwrote\b", "directed", r"\bdirected\b"),
    _rule(
        r"\bdirected\b(?=\s*(?:the|episode|by|\"))",
        "wrote",
        r"\bwr[oi]t|\bdirected by\b|\b(?:was|were|is|are) directed",
    ),
    _rule(r"\bdirected by\b", "written by", r"\bwr[oi]t"),
    _rule(r"\bwritten by\b", "directed by", r"\bdirected"),
    _rule(
        r"\bchilly\b|\bfreezing\b|\bcold\b(?= (?:in|on|at|here|this|today|tomorrow|outside))", "hot", r"\bhot|\bwarm"
    ),
    _rule(r"\bhot\b(?= (?:in|on|at|here|this|today|tomorrow|outside))", "cold", r"\bcold"),
    _rule(r"(?<=\bit )rain\b|(?<=\bto )rain\b", "snow", r"\bsnow"),
    _rule(r"(?<=\bit )snow\b|(?<=\bto )snow\b", "rain", r"\brain"),
    _rule(r"(?<=\bbe )sunny\b", "rainy", r"\brain"),
    _rule(r"(?<=\bbe )(?:cloudy|windy|humid|stormy|foggy|overcast)\b", "sunny", r"\bsun"),
    _rule(r"\bnoun(s?)\b", r"verb\1", r"\bverb|\badjective|\badverb"),
    _rule(r"\bsquare root\b", "cube root", r"\bcube\b"),
    _rule(r"\bsum of\b", "product of", r"\bproduct\b"),
    _rule(r"\bproduct of (?=\d)", "sum of ", r"\bsum\b"),
    _rule(r"(?<=\bthe )average(?= (?:number|attendance|age|score|rank|of))", "total", r"\btotal\b"),
    _rule(r"(?<=\bthe )total(?= (?:number|attendance|score|points|amount|cost)\b)", "average", r"\baverage\b"),
    _rule(r"\barea of (?=(?:a|the) (?:triangle|circle|square|rectangle))", "perimeter of ", r"\bperimeter\b"),
]


def antonym_order(text: str, rng: random.Random) -> str | None:
    """before/after, first/last, earliest/latest, previous/next, older/younger, ..."""
    return _apply_rules(text, rng, _ORDER_RULES)


def antonym_degree(text: str, rng: random.Random) -> str | None:
    """most/least, highest/lowest, more/less, min/max, at least/at most, over/under, ..."""
    return _apply_rules(text, rng, _DEGREE_RULES)


def antonym_action(text: str, rng: random.Random) -> str | None:
    """increase/decrease, open/close, on/off, send/receive, add/remove, buy/sell, win/lose, ..."""
    return _apply_rules(text, rng, _ACTION_RULES)


def antonym_quality(text: str, rng: random.Random) -> str | None:
    """positive/negative, home/away, credit/debit card, total/average, wrote/directed, hot/cold, ..."""
    if _story(text) and re.search(r"\b(?:total|average)\b", text):
        return None
    return _apply_rules(text, rng, _QUALITY_RULES)


def swap_from_to(text: str, rng: random.Random) -> str | None:
    """ "from GBP to EUR" -> "from EUR to GBP"; "convert X to Y" and "exchange X for Y" likewise."""
    idioms = {"time", "start", "beginning", "head", "day", "week", "scratch", "place", "coast", "year", "here", "me"}
    noun = r"(?:my |the |a |an )?[A-Za-z]{3,}"
    unit = r"(?:[A-Z]{3}|pounds|euros|dollars|meters|miles|kilometers|inches|feet|Fahrenheit|Celsius)"
    patterns = [
        rf"\b(?P<w>[Ff]rom) (?P<a>{noun}) (?P<m>to|into) (?P<b>{noun})(?=[.?!,:]|$)",
        rf"\b(?P<w>[Cc]onvert|[Ee]xchange|[Cc]hange) (?P<a>{unit}) (?P<m>to|into|for) (?P<b>{unit})\b",
    ]

    def repl(match: re.Match[str]) -> str | None:
        a, b = match.group("a"), match.group("b")
        if a.lower() == b.lower() or a.split()[-1].lower() in idioms or b.endswith("ing"):
            return None
        if re.match(r"(?:one|two|three|four|five|six|seven|eight|nine|ten|each|other)$", a):
            return None
        return f"{match.group('w')} {b} {match.group('m')} {a}"

    for pattern in patterns:
        new = _sub_one(text, rng, pattern, repl)
        if new is not None:
            return None if _word_problem(text) else new
    return None


def asked_question_word(text: str, rng: random.Random) -> str | None:
    """Why was X declined? -> When was X declined?; What year -> What month; Who -> When."""
    rules = [
        _rule(
            r"^why (?=(?:was|were|did|has|have) (?:I|my|the)\b)(?!.*(?:n't|\bnot\b))",
            "when ",
            r"\bwhen\b|\bbeen\b|\bstill\b",
        ),
        _rule(r"^(what|which) year\b", r"\1 month", r"\bmonth"),
        _rule(r"^what day\b", "what month", r"\bmonth"),
        _rule(r"^when was (?=the (?:game|match|tournament|event)\b)(?!.*\bat\b)", "where was ", r"\bwhere\b"),
        _rule(r"^where (?=(?:was|did) the (?:game|match|tournament|event)\b)", "when ", r"\bwhen\b"),
        _rule(
            r"^how (?=(?:can|do) I (?:change|get|order|activate|verify|top|withdraw|cancel|close|open)\b)",
            "when ",
            r"\bwhen\b",
        ),
        _rule(r"^how (?=does (?:the|it|my|a|your)\b)(?! it cost)", "why ", r"\bwhy\b"),
        _rule(
            r"^what is the name of the (player|driver|person|actor|candidate|coach)\b",
            r"what is the age of the \1",
            r"\bage\b",
        ),
        _rule(
            r"\bhow long(?= (?:does|will|would) (?:it|a|the|my)\b)(?=.*\b(?:take|arrive|cost)\b)",
            "how often",
            r"\bit take|it cost|long\b.*\blong",
        ),
    ]
    return _apply_rules(text, rng, rules)


def asked_object(text: str, rng: random.Random) -> str | None:
    """The thing meant is another one: this album -> this novel, my PIN -> my address, table for 7 -> ..."""
    groups = [
        ["album", "novel", "essay", "textbook"],
        ["song", "movie", "book", "video game", "painting"],
        ["restaurant", "bakery", "pub", "food truck"],
        ["address", "phone number", "PIN", "email"],
        ["poem", "haiku", "essay", "speech", "letter", "song"],
        ["cats", "dogs", "horses", "birds"],
        ["apples", "oranges", "bananas", "pears"],
    ]

    def options() -> Iterable[tuple[re.Match[str], str]]:
        for group in groups:
            words = "|".join(group)
            lead = r"(?<=\bthis )|(?<=\bmy )|(?<=\ba )|(?<=\ban )|(?<=\bthe )|(?<=\bcurrent )|(?<=\bprevious )"
            hits = list(
                re.finditer(
                    rf"(?:{lead})(?:{words})\b(?![-\w'\u2019])(?! (?:titled|called|named|by|for"
                    rf"|times?|schedules?|theat|house|number|direct|star|choice)| ?[\"“])",
                    text,
                )
            )
            if len(hits) == 1 and len(re.findall(rf"\b(?:{words})s?\b", text, re.IGNORECASE)) == 1:
                yield hits[0], rng.choice([g for g in group if g != hits[0].group()])

    if _story(text):
        return None
    spans = _quoted_spans(text)
    found = [(m, n) for m, n in options() if not _in_spans(m.start(), m.end(), spans)]
    if not found:
        return None
    match, new = rng.choice(found)
    return _fix_article(text[: match.start()], new) + new + text[match.end() :]


# --------------------------------------------------------------------------------------------------------------------
# The two sets
# --------------------------------------------------------------------------------------------------------------------


def _table(*functions: Edit) -> dict[str, Edit]:
    return {function.__name__: _checked(function) for function in functions}


EDITS: dict[str, Callable[[str, random.Random], str | None]] = _table(
    case_upper, case_lower, case_title, case_caps_lock, case_first_letter, case_sentence, case_shout_word,
    case_mocking, case_pronoun_i,
    punct_drop_final, punct_add_final, punct_repeat_final, punct_change_final, punct_drop_commas, punct_drop_all,
    punct_drop_apostrophe, punct_quotes_style, punct_quotes_drop, punct_wrap_quotes, punct_hyphen,
    punct_join_sentences, punct_dash, punct_comma_added,
    unicode_cyrillic_some, unicode_cyrillic_all, unicode_greek, unicode_full_width, unicode_full_width_word,
    unicode_full_width_punct, unicode_curly_quotes, unicode_backtick, unicode_nbsp, unicode_nbsp_some,
    unicode_zero_width, unicode_marks_outside, unicode_ligature, unicode_dashes, unicode_ellipsis,
    unicode_decomposed, unicode_math_letters,
    typo_swap, typo_drop, typo_double, typo_neighbour_key, typo_extra_key, typo_two,
    add_please_start, add_please_end, add_please_request, add_intensifier, add_exactly, add_actually, add_opener,
    add_statement_opener, add_article, add_that, add_me, add_of, add_then,
    drop_the, drop_the_first, drop_a, drop_please, drop_filler, drop_that, drop_of, drop_me, drop_given, drop_own,
    drop_opener,
    polite_before, polite_before_question, polite_before_order, polite_before_problem, polite_after, polite_around,
    polite_trailing_clause,
    reorder_if_to_back, reorder_if_to_front, reorder_when_to_back, reorder_when_to_front, reorder_to_clause,
    reorder_in_order_to, reorder_leading_phrase, reorder_trailing_phrase, reorder_because, reorder_sentences,
    reorder_pair,
    space_double, space_outer, space_collapse, space_newline, space_wrap, space_tab, space_before_punct,
    space_after_punct_gone,
    contraction_expand, contraction_contract,
)  # fmt: skip

COUNTERFACTUALS: dict[str, Callable[[str, random.Random], str | None]] = _table(
    number_digits, number_decimal, number_magnitude, number_ordinal, number_word, number_fraction, number_multiplier,
    number_time,
    date_month, date_weekday, date_relative,
    name_person, name_place, name_product, name_language, name_currency, name_full, name_against,
    negation_not, negation_nt, negation_contracted, negation_do, negation_never, negation_order, negation_why,
    negation_condition, negation_without,
    unit_measure, unit_symbol, unit_currency, unit_temperature, unit_scale,
    antonym_order, antonym_degree, antonym_action, antonym_quality,
    swap_from_to, asked_person, asked_question_word, asked_object,
)  # fmt: skip
