"""Edits that keep a prompt's meaning and counterfactuals that change it; None where one does not apply.

Written by the author of the guard; bench/edits_blind.py is the same by another hand, without sight of it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

Edit = Callable[[str, random.Random], str | None]

LOOK_ALIKE = dict(zip("aceopxyijsABEHKMOPT", "асеорхуіјѕАВЕНКМОРТ", strict=True))  # Latin to Cyrillic
FILLERS = [*("really", "just", "actually", "please", "currently"), *("also", "kindly", "simply", "exactly", "perhaps")]
SMALL = re.compile(r"(an?|the|is|are|of|to|in|on|for|do|does|did|my|me|that|please)$", re.IGNORECASE)
BEFORE = (
    *("Please ", "Hi, ", "Hey there! ", "I would like to know: "),
    *("Hello, could you tell me: ", "Could you please help me? "),
)
AFTER = (" Thanks!", " Thank you very much.", " please", " Thanks in advance", "")
NAMES = [
    *("Oslo", "Kenji", "Fatima", "Lisbon", "Marlowe", "Ingrid", "Quito"),
    *("Bjorn", "Nairobi", "Anselm", "Tallinn", "Rosalind", "Harbin", "Desmond"),
]
NUMBER = re.compile(r"\b\d+\b")
NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{2,}\b")
VERB = re.compile(r"\b(is|are|was|were|can|could|will|would|should|do|does|did|has|have)\b")


def case_and_punctuation(text: str, rng: random.Random) -> str | None:
    text = rng.choice([str.lower, str.upper, str.capitalize, str])(text)
    stripped = text.rstrip(".?! ")
    return rng.choice([stripped, stripped + "!", stripped + " ?", stripped + "...", f'"{stripped}"', stripped + " ."])


def look_alike_unicode(text: str, rng: random.Random) -> str | None:
    places = [i for i, c in enumerate(text) if c in LOOK_ALIKE]
    if not places:
        return None
    chosen = set(rng.sample(places, min(len(places), rng.randint(1, 3))))
    return "".join(LOOK_ALIKE[c] if i in chosen else c for i, c in enumerate(text))


def typo(text: str, rng: random.Random) -> str | None:
    words = text.split(" ")
    for _ in range(rng.choice([1, 1, 2])):
        places = [i for i, w in enumerate(words) if len(w) >= 4 and w.isascii() and w.isalpha()]
        if not places:
            return None
        at = rng.choice(places)
        w = words[at]
        i = rng.randrange(len(w) - 1)
        letter = rng.choice("abcdefghijklmnopqrstuvwxyz")
        words[at] = rng.choice(
            [w[:i] + w[i + 1 :], w[:i] + w[i + 1] + w[i] + w[i + 2 :], w[:i] + letter + w[i:], w[: i + 1] + w[i:]]
        )
    return " ".join(words)


def word_added(text: str, rng: random.Random) -> str | None:
    words = text.split(" ")
    words.insert(rng.randint(1, len(words)), rng.choice(FILLERS))
    return " ".join(words)


def word_dropped(text: str, rng: random.Random) -> str | None:
    words = text.split(" ")
    small = [i for i, w in enumerate(words) if SMALL.match(w)]
    plain = [i for i, w in enumerate(words) if i and w.isalpha() and w.islower()]
    any_plain = [i for i in plain if words[i] not in ("not", "no", "without")]
    places = small if small and rng.random() < 0.7 else any_plain
    if len(words) < 6 or not places:
        return None
    del words[rng.choice(places)]
    return " ".join(words)


def politeness_wrapper(text: str, rng: random.Random) -> str | None:
    first = text[:1].lower() + text[1:] if rng.random() < 0.5 else text
    return rng.choice(BEFORE) + first + rng.choice(AFTER)


def clause_reorder(text: str, rng: random.Random) -> str | None:
    parts = text.rstrip(" .?!").split(", ")
    if len(parts) == 2 and min(len(p.split()) for p in parts) >= 2:
        return f"{parts[1]}, {parts[0]}"
    found = re.match(r"(.{8,}) (in|for|from|at|on|when|if|with|by) (\w+ .{4,})$", text.rstrip(" .?!"))
    return f"{found[2]} {found[3]}, {found[1]}" if found else None


def number_changed(text: str, rng: random.Random) -> str | None:
    found = list(NUMBER.finditer(text))
    if not found:
        return None
    at = rng.choice(found)
    new = str(int(at[0]) + rng.choice([-1, 1, 2, 10]))
    return text[: at.start()] + new.lstrip("-") + text[at.end() :]


def name_changed(text: str, rng: random.Random) -> str | None:
    found = list(NAME.finditer(text))
    if not found:
        return None
    at = rng.choice(found)
    return text[: at.start()] + rng.choice([n for n in NAMES if n != at[0]]) + text[at.end() :]


def negation_inserted(text: str, rng: random.Random) -> str | None:
    found = VERB.search(text)
    if not found or re.search(r"\b(not|no|never)\b|n't", text):
        return None
    return text[: found.end()] + " not" + text[found.end() :]


EDITS: dict[str, Edit] = {
    "case and punctuation": case_and_punctuation,
    "look-alike Unicode": look_alike_unicode,
    "typo": typo,
    "word added": word_added,
    "word dropped": word_dropped,
    "politeness wrapper": politeness_wrapper,
    "clause reorder": clause_reorder,
}
COUNTERFACTUALS: dict[str, Edit] = {
    "number changed": number_changed,
    "name changed": name_changed,
    "negation inserted": negation_inserted,
}
