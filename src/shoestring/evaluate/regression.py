"""What training made the model forget: a small pack of general texts and questions, before and after.

Texts: mean negative log-likelihood a token before and after training, paired text by text. Checks: short
questions whose answers can be told right or wrong; only those that the base passes count, since a base that never
answered them has lost nothing. The pack is regression.json, in our own words.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_json
from ..records import Estimate
from .statistics import wilson

PACK = Path(__file__).with_name("regression.json")
MAX_NEW_TOKENS = 32  # of a check's answer
NUM_RESAMPLES = 4000
# A task's own adapter moves general text a little. Told is a perplexity that surely rose by more than half, or more
# than every fifth check lost that the base passed, where it passed MIN_PASSED: fewer may be right by chance.
WARN_PERPLEXITY_RATIO = 1.5
WARN_LOST_FRAC, MIN_PASSED = 0.2, 8


@dataclass(frozen=True, slots=True)
class Check:
    """A question, and how its answer is told right: by the kind, against what is wanted."""

    prompt: str
    kind: str  # contains, starts, only, cased, json
    want: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pack:
    """Texts to be read and checks to be answered."""

    version: int
    texts: tuple[str, ...]
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Regression:
    """The base against the trained model on the pack; warning is empty where nothing is to be told."""

    version: int
    perplexity_before: float
    perplexity_after: float
    perplexity_ratio: Estimate  # after over before, 95 % interval over the texts
    num_texts: int
    num_checks: int
    num_passed_before: int
    lost: tuple[str, ...]  # checks that only the base passes
    lost_frac: Estimate | None  # of those the base passes; None where it passes none
    warning: str


@functools.cache
def pack() -> Pack:
    """The pack of this version."""
    raw = read_json(PACK)
    checks = tuple(Check(c["prompt"], c["kind"], tuple(c["want"])) for c in raw["checks"])
    return Pack(raw["version"], tuple(raw["texts"]), checks)


def passes(check: Check, answer: str) -> bool:
    """Whether an answer is right."""
    return CHECKS[check.kind](answer.strip(), check.want)


def _has(answer: str, want: str) -> bool:
    """want in the answer as whole words, letter case apart."""
    return re.search(rf"(?<!\w){re.escape(want)}", answer.lower()) is not None


def _is_object(answer: str, keys: Sequence[str]) -> bool:
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", answer)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and set(keys) <= set(value)


CHECKS: dict[str, Callable[[str, Sequence[str]], bool]] = {
    "contains": lambda answer, want: any(_has(answer, w) for w in want),
    "starts": lambda answer, want: any(re.match(rf"{re.escape(w)}\b", answer.lower()) for w in want),
    "only": lambda answer, want: answer.lower().strip(" .!\"'") in want,
    "cased": lambda answer, want: answer.strip(" .!\"'") in want,
    "json": _is_object,
}


def compare(
    pack: Pack,
    before: Sequence[float],
    after: Sequence[float],
    passed_before: Sequence[bool],
    passed_after: Sequence[bool],
) -> Regression:
    """before, after: mean negative log-likelihood a token of each text; passed: of each check."""
    rise_N = np.asarray(after, float) - np.asarray(before, float)
    rng = np.random.default_rng(0)
    means_S = rise_N[rng.integers(0, len(rise_N), (NUM_RESAMPLES, len(rise_N)))].mean(axis=1)
    ends = np.quantile(means_S, (0.025, 0.975))
    ratio = Estimate(*(_exp(x) for x in (rise_N.mean(), *ends)))
    lost = tuple(
        check.prompt
        for check, was, still in zip(pack.checks, passed_before, passed_after, strict=True)
        if was and not still
    )
    num_passed = sum(passed_before)
    before_after = _exp(float(np.mean(before))), _exp(float(np.mean(after)))
    return Regression(
        version=pack.version,
        perplexity_before=before_after[0],
        perplexity_after=before_after[1],
        perplexity_ratio=ratio,
        num_texts=len(before),
        num_checks=len(pack.checks),
        num_passed_before=num_passed,
        lost=lost,
        lost_frac=wilson(len(lost), num_passed) if num_passed else None,
        warning=_warning(ratio, before_after, len(lost), num_passed),
    )


def _exp(x: float) -> float:
    """e^x, held to what JSON can carry."""
    return math.exp(min(float(x), 700.0))


def _warning(ratio: Estimate, perplexity: tuple[float, float], num_lost: int, num_passed: int) -> str:
    told = []
    if ratio.low > WARN_PERPLEXITY_RATIO:
        told.append(
            f"its perplexity on general text is {ratio.value:,.1f} times the base's "
            f"[{ratio.low:,.1f}, {ratio.high:,.1f}] ({perplexity[0]:,.0f} before, {perplexity[1]:,.0f} after)"
        )
    if num_passed >= MIN_PASSED and num_lost > WARN_LOST_FRAC * num_passed:
        told.append(f"{num_lost} of {num_passed} general questions that the base answers are now answered wrong")
    if not told:
        return ""
    return (
        f"general ability was forgotten: {'; '.join(told)}. Use this model for its task alone, or train with a lower "
        "train.learning_rate or fewer train.num_epochs"
    )


def from_json(row: dict[str, Any]) -> Regression:
    """The result of a record, which also names the model."""
    kept = {field.name: row[field.name] for field in dataclasses.fields(Regression)}
    lost_frac = row["lost_frac"] and Estimate(**row["lost_frac"])
    ratio = Estimate(**row["perplexity_ratio"])
    return Regression(**{**kept, "perplexity_ratio": ratio, "lost_frac": lost_frac, "lost": tuple(row["lost"])})
