"""Rows that are probably wrong, ranked for a person to look at. A score never deletes a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...records import Example, Progress, no_progress
from .agree import agreement
from .align import ABSENT, RARE
from .arithmetic import wrong_arithmetic
from .coverage import Doubt, coverage
from .labels import label_scores
from .parts import parts_of

__all__ = ["Suspect", "agreement", "wrong_arithmetic", "wrong_rows"]

MIN_LABEL_SCORE = 0.5
MIN_COVERAGE_SCORE = 0.5
ARITHMETIC_SCORE = 0.95  # share of GSM8K's model solutions flagged by it that are wrong
MAX_DOUBTS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Suspect:
    """A row to look at; score: 0-1, how likely it is wrong."""

    index: int
    code: str
    score: float
    evidence: str


def wrong_rows(
    examples: Sequence[Example], *, kind: str, seed: int = 0, progress: Progress = no_progress
) -> list[Suspect]:
    """Suspect rows, the worst first; equal for equal examples and seed.

    Many rows are judged in parts (parts.py): the time is linear and the memory that of one part.
    Classification: label_error. Prompts or answers that are flat records (JSON, `name[...]`, `key: value` lines):
    unsupported_value, omitted_value. Other tasks: arithmetic in the answer.
    Raises: MissingDependency without scikit-learn, where labels or records are to be checked.
    """
    found: list[Suspect] = []
    if kind in ("classify", "extract", "generate"):
        parts = parts_of(examples, kind, progress)
        num_done = 0
        for part in parts:
            rows = [examples[i] for i in part.tolist()]
            progress("looking for wrong rows", num_done, len(examples))
            inside = progress if len(parts) == 1 else no_progress
            judged = _label_errors(rows) if kind == "classify" else _uncovered(rows, seed, inside)
            found += [replace(suspect, index=int(part[suspect.index])) for suspect in judged]
            num_done += len(rows)
    if kind not in ("classify", "extract"):
        for index, example in enumerate(examples):
            fault = wrong_arithmetic(example.completion)
            if fault is not None:
                found.append(Suspect(index, "arithmetic", ARITHMETIC_SCORE, fault))
    return sorted(found, key=lambda suspect: (-suspect.score, suspect.index, suspect.code))


def _label_errors(examples: Sequence[Example]) -> list[Suspect]:
    scores = label_scores([e.user_text for e in examples], [e.completion.strip() for e in examples])
    if scores is None:
        return []
    found = []
    for index in np.flatnonzero(scores.wrong >= MIN_LABEL_SCORE).tolist():
        reads = scores.labels[scores.other[index]]
        times = min(math.exp(min(float(scores.ratio[index]), 20.0)), 1e6)
        said = f"labelled {examples[index].completion.strip()!r}, reads like {reads!r} ({times:,.0f} times as likely)"
        found.append(Suspect(index, "label_error", float(scores.wrong[index]), said))
    return found


def _uncovered(examples: Sequence[Example], seed: int, progress: Progress) -> list[Suspect]:
    judged = coverage(examples, seed=seed, progress=progress)
    if judged is None:
        return []
    found = []
    for index, loss in enumerate(judged.losses.tolist()):
        score = -math.expm1(-loss)
        doubts = sorted(judged.doubts[index], key=lambda doubt: (-doubt.loss, doubt.slot))
        if score >= MIN_COVERAGE_SCORE and doubts:
            said = "; ".join(_said(doubt) for doubt in doubts[:MAX_DOUBTS_SHOWN])
            found.append(Suspect(index, _code(doubts[0], judged.is_answer), score, said))
    return found


def _code(doubt: Doubt, is_answer: bool) -> str:
    """The record is the answer: it states too much or too little. The text is the answer: the other way round."""
    if doubt.reads not in (ABSENT, RARE) and doubt.stated != ABSENT:
        return "unsupported_value"
    states_too_much = (doubt.stated != ABSENT) == is_answer
    return "unsupported_value" if states_too_much else "omitted_value"


def _said(doubt: Doubt) -> str:
    if doubt.stated == ABSENT:
        return f"{doubt.slot}: the text seems to say {_value(doubt.reads)}, the record leaves it out"
    seems = "seems silent on it" if doubt.reads == ABSENT else f"seems to say {_value(doubt.reads)}"
    return f"{doubt.slot}: the record says {doubt.stated!r}, the text {seems}"


def _value(reads: str) -> str:
    return "another value" if reads == RARE else repr(reads)
