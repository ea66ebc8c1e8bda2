"""Which phrases go with which value, learned from the set itself: an alignment of records and texts."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_WORDS = 3  # of a phrase
MIN_PHRASE_ROWS = 3
MIN_VALUE_ROWS = 5  # rarer values are taken together
MAX_ALIGNED_ROWS = 5000
NUM_ROUNDS = 12
RARE = "\x00rare"
ABSENT = ""
WORD = re.compile(r"[^\W\d_]+|\d+|[£$€]")


def words(text: str) -> list[str]:
    """Words, numbers and currency signs, case folded."""
    return WORD.findall(text.casefold())


def phrases(text: str) -> set[str]:
    """Runs of one to MAX_WORDS words."""
    found = words(text)
    return {" ".join(found[i : i + n]) for n in range(1, MAX_WORDS + 1) for i in range(len(found) - n + 1)}


@dataclass(frozen=True, slots=True)
class Phrases:
    """The recurring phrases of a set of texts; rows: for each text the numbers of its phrases, ascending."""

    names: list[str]
    rows: list[Any]


def phrases_of(texts: Sequence[str]) -> Phrases:
    """Phrases that stand in at least MIN_PHRASE_ROWS texts."""
    first: defaultdict[str, int] = defaultdict()
    first.default_factory = first.__len__
    found = [np.fromiter(map(first.__getitem__, phrases(text)), np.int32) for text in texts]
    counts = np.bincount(np.concatenate([np.zeros(0, np.int32), *found]), minlength=len(first))
    names = sorted(phrase for phrase, number in first.items() if counts[number] >= MIN_PHRASE_ROWS)
    numbers = np.full(len(first), -1, np.int64)
    numbers[[first[name] for name in names]] = np.arange(len(names))
    rows = [np.sort(numbers[row[counts[row] >= MIN_PHRASE_ROWS]]) for row in found]
    return Phrases(names, rows)


def slot_shares(values: Mapping[str, Sequence[str]], found: Phrases, seed: int) -> dict[str, Any]:
    """Slot -> (phrases,) share of each phrase's occurrences that the slot's values explain.

    values: slot -> value of each row, ABSENT where it has none. The values of a row compete for its phrases, and
    with the background; so a restaurant's name does not pass for its price, however often they meet.
    Source: IBM model 1 (Brown et al. 1993), with phrases for words.
    """
    num_rows, num_phrases = len(found.rows), len(found.names)
    chosen = list(range(num_rows))
    if num_rows > MAX_ALIGNED_ROWS:
        chosen = sorted(np.random.default_rng(seed).permutation(num_rows)[:MAX_ALIGNED_ROWS].tolist())
    values_by_row: list[list[int]] = [[] for _ in chosen]
    slot_of: list[int] = []
    numbers: dict[tuple[str, str], int] = {}
    for slot_number, (slot, column) in enumerate(values.items()):
        for line, row in enumerate(chosen):
            if column[row] != ABSENT:
                number = numbers.setdefault((slot, column[row]), len(numbers))
                if number == len(slot_of):
                    slot_of.append(slot_number)
                values_by_row[line].append(number)
    # One entry for each meeting of a value and a phrase in a row; one place for each phrase in a row.
    values_met: list[Any] = []
    phrases_met: list[Any] = []
    places_met: list[Any] = []
    num_places = 0
    for row, here in zip(chosen, values_by_row, strict=True):
        there = found.rows[row]
        values_met.append(np.repeat(np.array(here, np.int64), len(there)))
        phrases_met.append(np.tile(there, len(here)))
        places_met.append(np.tile(np.arange(num_places, num_places + len(there)), len(here)))
        num_places += len(there)
    phrase_of_place = np.concatenate([found.rows[row] for row in chosen])
    value, phrase, place = (np.concatenate(part) for part in (values_met, phrases_met, places_met))
    pairs, pair = np.unique(value * num_phrases + phrase, return_inverse=True)
    del value, phrase, values_met, phrases_met, places_met
    value_rows = np.bincount(np.array([v for here in values_by_row for v in here], np.int64), minlength=len(slot_of))
    value_of_pair, phrase_of_pair = pairs // num_phrases, pairs % num_phrases
    occurrences = np.bincount(phrase_of_place, minlength=num_phrases)
    strength = np.bincount(pair) / value_rows[value_of_pair]
    background = occurrences / len(chosen) / 2
    explained = strength
    for _ in range(NUM_ROUNDS):
        weight = strength[pair]
        total = np.bincount(place, weights=weight, minlength=num_places) + background[phrase_of_place]
        explained = np.bincount(pair, weights=weight / total[place])
        strength = explained / (value_rows[value_of_pair] + 1)
        left = background[phrase_of_place] / total
        background = np.bincount(phrase_of_place, weights=left, minlength=num_phrases) / len(chosen)
    shares = np.zeros((len(values), num_phrases))
    np.add.at(shares, (np.array(slot_of)[value_of_pair], phrase_of_pair), explained)
    return dict(zip(values, shares / np.maximum(occurrences, 1), strict=True))
