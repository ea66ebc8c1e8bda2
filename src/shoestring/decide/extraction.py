"""Records without a language model: a linear classifier for each field of few values, copying rules for the others."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import DataError
from ..records import Example

# A field has few values where there are no more than MAX_VALUES, each seen VALUE_ROWS times on average.
MAX_VALUES, VALUE_ROWS = 60, 5
# Fields in fewer rows are left out: a rule from so little is a guess.
MIN_FIELD_ROWS = 10
# A shape is that of a field where so many of its values have it and stand in the text as they are.
SHAPE_FRAC = 0.8
# A rule is kept where it finds the value in so many training rows.
RULE_FRAC = 0.5
ALWAYS_FRAC = 0.98  # a field in so many rows is always there
MIN_FLAT_FRAC = 0.9
MAX_TRIGGERS = 8
MAX_FIT_ROWS = 5_000  # a linear model learns fields from so many rows; copying rules from all

# What can be copied, the narrowest first.
SHAPES = {
    "date": re.compile(r"\b(?:\d{4}-\d{2}-\d{2}|\d{1,2}[./]\d{1,2}[./]\d{2,4})\b"),
    "time": re.compile(r"\b\d{1,2}:\d{2}(?::\d{2})?\b"),
    "e-mail address": re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"),
    "web address": re.compile(r"https?://[^\s\"'<>]*[^\s\"'<>.,;)]"),
    "number": re.compile(r"(?<![\w.])[-+]?\d+(?:[.,]\d+)*(?![\w-])"),
    "code": re.compile(r"\b(?=[\w-]*\d)(?=[\w-]*[^\W\d_])\w[\w-]*\w\b"),
}
WORD = re.compile(r"\w+")
ABSENT = "\x00absent"

# classify(labels of the training rows) -> a label of each row to answer.
Classify = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class Copy:
    """Copies one candidate of a shape: the first after one of the triggers, else the one at index."""

    shape: str
    index: int
    triggers: tuple[str, ...]
    accuracy: float  # on the training rows that have the field
    is_number: bool

    def find(self, text: str) -> Any:
        """The value, None where the text holds no candidate."""
        candidates = list(SHAPES[self.shape].finditer(text))
        after = [m for m in candidates if _word_before(text, m.start()) in self.triggers]
        try:
            chosen = after[0] if after else candidates[self.index]
        except IndexError:
            return None
        return _number(chosen.group()) if self.is_number else chosen.group()

    def __str__(self) -> str:
        place = f"number {self.index + 1} of the text" if self.index >= 0 else f"number {-self.index} from its end"
        first = f"that after {' or '.join(map(repr, self.triggers))}, else " if self.triggers else ""
        return f"copied: the {self.shape}, {first}{place} ({self.accuracy:.0%} of the training rows)"


@dataclass(frozen=True)
class Known:
    """Copies the longest text that some training row has as this field's value."""

    phrases: frozenset[tuple[str, ...]]
    accuracy: float  # on the training rows that have the field, each by the values of the others
    longest: int

    def find(self, text: str) -> str | None:
        """The value as the text writes it, None where none is in it."""
        words = list(WORD.finditer(text))
        for size in range(min(self.longest, len(words)), 0, -1):
            for start in range(len(words) - size + 1):
                span = words[start : start + size]
                if tuple(m.group().casefold() for m in span) in self.phrases:
                    return text[span[0].start() : span[-1].end()]
        return None

    def __str__(self) -> str:
        return f"copied: the longest known value in the text ({self.accuracy:.0%} of the training rows)"


@dataclass
class Extractor:
    """What was learned of each field. told: in words, also of the fields left out."""

    chosen: dict[str, list[str]] = field(default_factory=dict)  # of fields of few values: label of each training row
    copied: dict[str, Copy | Known] = field(default_factory=dict)
    present: dict[str, list[str]] = field(default_factory=dict)  # of copied fields that are not always there
    told: dict[str, str] = field(default_factory=dict)


def learn(train: Sequence[Example]) -> Extractor:
    """A rule for each field of the training answers that has one.

    Raises: DataError where answers are no flat records, or no field can be learned so.
    """
    records = [flat(example.completion) for example in train]
    num_flat = sum(record is not None for record in records)
    if num_flat < MIN_FLAT_FRAC * len(train):
        raise DataError(
            f"{len(train) - num_flat:,} of {len(train):,} training answers are no flat records (an object of texts, "
            "numbers and such objects, without lists); linear models are for flat ones"
        )
    learned = Extractor()
    counts = Counter(key for record in records for key in record or ())
    for key, num_rows in counts.most_common():
        values = [None if record is None else record.get(key, ABSENT) for record in records]
        distinct = len({json.dumps(value) for value in values if value not in (None, ABSENT)})
        if num_rows < MIN_FIELD_ROWS:
            learned.told[key] = f"left out: in {num_rows} training rows alone"
        elif distinct <= min(MAX_VALUES, num_rows / VALUE_ROWS):
            learned.chosen[key] = [json.dumps(value) for value in values]
            learned.told[key] = f"chosen: one of {distinct} values"
        else:
            texts = [e.user_text for e in train]
            copy = _copy_rule(texts, values) or _known_rule(texts, values)
            if copy is None:
                learned.told[key] = f"left out: {distinct:,} different values, and no rule copies them from the text"
                continue
            learned.copied[key], learned.told[key] = copy, str(copy)
            if num_rows < ALWAYS_FRAC * len(train):
                learned.present[key] = [str(value != ABSENT) for value in values]
    if not learned.chosen and not learned.copied:
        raise DataError("no field of the training answers has few values or a form that can be copied from the text")
    return learned


def extract(learned: Extractor, rows: Sequence[Example], classify: Classify) -> list[str]:
    """The record of each row, as JSON."""
    records: list[dict[str, Any]] = [{} for _ in rows]
    for key, labels in learned.chosen.items():
        for record, label in zip(records, classify(labels), strict=True):
            value = json.loads(label)
            if value != ABSENT:
                _put(record, key, value)
    for key, copy in learned.copied.items():
        is_there = classify(learned.present[key]) if key in learned.present else [str(True)] * len(rows)
        for record, row, present in zip(records, rows, is_there, strict=True):
            value = copy.find(row.user_text) if present == str(True) else None
            if value is not None:
                _put(record, key, value)
    return [json.dumps(record, ensure_ascii=False) for record in records]


def flat(answer: str) -> dict[str, Any] | None:
    """The leaves of an object by dotted key; None where it is no object or holds a list."""
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    leaves: dict[str, Any] = {}
    return leaves if isinstance(value, dict) and _flatten(value, "", leaves) else None


def _flatten(value: dict[str, Any], prefix: str, leaves: dict[str, Any]) -> bool:
    for key, inner in value.items():
        if "." in key or isinstance(inner, list):
            return False
        if isinstance(inner, dict):
            if not _flatten(inner, f"{prefix}{key}.", leaves):
                return False
        else:
            leaves[f"{prefix}{key}"] = inner
    return True


def _put(record: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        record = record.setdefault(parent, {})
    record[last] = value


def _copy_rule(texts: Sequence[str], values: Sequence[Any]) -> Copy | None:
    """The rule that finds most values of a field; None where none finds RULE_FRAC of them."""
    known = [(text, value) for text, value in zip(texts, values, strict=True) if value not in (None, ABSENT)]
    known = [(text, value) for text, value in known if not isinstance(value, bool)]
    shape = next((name for name in SHAPES if known and _share_of(name, known) >= SHAPE_FRAC), None)
    if shape is None:
        return None
    is_number = all(isinstance(value, (int, float)) for _, value in known)
    before: Counter[str] = Counter()
    for text, value in known:
        before.update({_word_before(text, m.start()) for m in SHAPES[shape].finditer(text) if _says(m.group(), value)})
    seen: Counter[str] = Counter()
    for text, _ in known:
        seen.update({_word_before(text, m.start()) for m in SHAPES[shape].finditer(text)})
    # Words after which the candidate mostly is the value.
    triggers = tuple(w for w, n in before.most_common(MAX_TRIGGERS) if w and n >= max(2, 0.8 * seen[w]))
    best: Copy | None = None
    for index in (0, 1, 2, -1, -2):
        for words in ((), triggers) if triggers else ((),):
            rule = Copy(shape, index, words, 0.0, is_number)
            hits = sum(rule.find(text) == value for text, value in known)
            if best is None or hits / len(known) > best.accuracy:
                best = Copy(shape, index, words, hits / len(known), is_number)
    return best if best is not None and best.accuracy >= RULE_FRAC else None


def _known_rule(texts: Sequence[str], values: Sequence[Any]) -> Known | None:
    """The values of the other rows as a list to look in; None where it finds fewer than RULE_FRAC of the values."""
    known = [(text, value) for text, value in zip(texts, values, strict=True) if isinstance(value, str)]
    known = [(text, value) for text, value in known if value != ABSENT]
    phrases = Counter(_phrase(value) for _, value in known)
    phrases.pop((), None)
    if len(known) < MIN_FIELD_ROWS or not phrases:
        return None
    rule = Known(frozenset(phrases), 0.0, max(map(len, phrases)))
    hits = sum(phrases[_phrase(value)] > 1 and rule.find(text) == value for text, value in known)
    accuracy = hits / len(known)
    return Known(rule.phrases, accuracy, rule.longest) if accuracy >= RULE_FRAC else None


def _phrase(value: str) -> tuple[str, ...]:
    return tuple(word.casefold() for word in WORD.findall(value))


def _share_of(shape: str, known: Sequence[tuple[str, Any]]) -> float:
    """Share of the values that stand in the text as a candidate of the shape."""
    hits = sum(any(_says(m.group(), value) for m in SHAPES[shape].finditer(text)) for text, value in known)
    return hits / len(known)


def _says(found: str, value: Any) -> bool:
    return found == value if isinstance(value, str) else _number(found) == value


def _number(text: str) -> int | float | None:
    """The number a text writes in the English way; None where it writes none."""
    plain = text.replace(",", "")
    try:
        return float(plain) if "." in plain else int(plain)
    except ValueError:
        return None


def _word_before(text: str, place: int) -> str:
    words = WORD.findall(text[max(0, place - 40) : place])
    return words[-1].casefold() if words else ""
