"""How sure samples of one prompt make us of each other: truth and the samplers' reliability, estimated together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from ..normalise import meaning_key

FINAL = re.compile(r"(?:####|\bA:|[Aa]nswer(?: is)?:?)\s*[$£€]?\s?(-?[\d,]*\.?\d+)")
ANY_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
NUM_ROUNDS = 50
MIN_COINCIDENCE = 1e-3


def final_answer(text: str, kind: str) -> str | Fraction:
    """What answers are compared by: of a math answer the number it ends on (18 = 18.0), else its meaning."""
    if kind == "math":
        numbers = FINAL.findall(text) or ANY_NUMBER.findall(text)
        if numbers:
            return Fraction(numbers[-1].replace(",", ""))
    return meaning_key(text, kind)


def agreement(samples: Sequence[Sequence[str | None]], *, kind: str) -> list[list[float | None]]:
    """Probability that each answer is wrong, from whether and with whom it agrees.

    samples: a row a prompt, a column a sampler (a model, an annotator, the data set itself), None where there is
    no answer; two to four columns do. A sampler that agrees with the others more often counts for more. Wrong
    answers coincide at a rate that is estimated too, so a pair that agrees is not taken for the truth. A row with
    one answer gets what its sampler's reliability says.
    Source: Dawid and Skene 1979 (one reliability a sampler), for open answers instead of fixed classes.
    """
    width = max((len(row) for row in samples), default=0)
    patterns = [_pattern([None if a is None else final_answer(a, kind) for a in row], width) for row in samples]
    counts = Counter(patterns)
    right, coincidence = np.full(width, 0.5), 0.1
    wrong: dict[tuple[int, ...], np.ndarray] = {}
    for _ in range(NUM_ROUNDS):
        num_right, num_seen, num_coincident, num_wrong = np.ones(width), np.full(width, 2.0), 0.0, 1.0
        for pattern, count in counts.items():
            seen = np.array(pattern) >= 0
            # One row a distinct answer, one column a sampler.
            given = np.array([[p == answer for p in pattern] for answer in range(max(pattern) + 1)], float)
            size = given.sum(1)
            by_chance = (size - 1) * np.log(coincidence)  # that wrong answers are the same one
            none_right = np.log(1 - right[seen]).sum() + by_chance.sum()
            log_odds = given @ (np.log(right) - np.log(1 - right)) - by_chance
            weights = np.exp(np.append(log_odds, 0.0) + none_right)
            is_truth = (weights / weights.sum())[:-1]
            is_right = is_truth @ given
            wrong[pattern] = 1 - is_right
            num_right += count * is_right
            num_seen += count * seen
            num_coincident += count * ((1 - is_truth) * (size - 1)).sum()
            num_wrong += count * (seen.sum() - is_right.sum())
        right = np.clip(num_right / num_seen, 0.01, 0.99)
        coincidence = min(max(num_coincident / num_wrong, MIN_COINCIDENCE), 0.99)
    return [
        [float(wrong[pattern][i]) if pattern[i] >= 0 else None for i in range(len(row))]
        for pattern, row in zip(patterns, samples, strict=True)
    ]


def _pattern(finals: Sequence[str | Fraction | None], width: int) -> tuple[int, ...]:
    """Which answers are the same: (18, 3, 18) is (0, 1, 0); -1 where there is none."""
    numbers: dict[str | Fraction, int] = {}
    found = [-1 if final is None else numbers.setdefault(final, len(numbers)) for final in finals]
    return (*found, *[-1] * (width - len(found)))
