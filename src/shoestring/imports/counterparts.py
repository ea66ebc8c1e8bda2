"""Which open model takes the place of one that was tuned elsewhere: by published scores, or said to be not compared.

Scores are of answers without thinking aloud, as a fine-tune on answers gives them; one team measured both sides. They
say what models can do before training, not what comes of it: that the run measures.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ..plan.catalogue import PERMISSIVE
from ..plan.shapes import shape_of, table_name

SCORES_CSV = Path(__file__).with_name("scores.csv")
FEWEST_BENCHMARKS = 3
LARGEST_LOSS = 5.0  # points below on one benchmark; more, and it is no model of equal score whatever the mean
# Where no score is published on benchmarks that open models share: by the service's own order of size and price.
SIZE_CLASS = {
    "gpt-4.1": "Qwen/Qwen3-32B",
    "gpt-4.1-mini": "Qwen/Qwen3-14B",
    "gpt-3.5-turbo": "Qwen/Qwen3-4B-Instruct-2507",
    "gpt-4": "Qwen/Qwen3-32B",
    "davinci-002": "Qwen/Qwen3-14B",
    "babbage-002": "Qwen/Qwen3-4B-Instruct-2507",
}
DEFAULT = "Qwen/Qwen3-14B"


@dataclass(frozen=True, slots=True)
class Score:
    """One row of scores.csv, 0 to 100."""

    model: str
    benchmark: str
    score: float
    as_of: date
    source: str


@dataclass(frozen=True, slots=True)
class Counterpart:
    """The open model to begin with. compared: benchmark to both scores (theirs, its own), empty where not compared."""

    model: str
    licence: str
    num_params: int
    compared: Mapping[str, tuple[float, float]]
    reason: str
    larger: str = ""  # the next rung, where the bar is missed
    sources: tuple[str, ...] = ()


@functools.cache
def scores() -> dict[str, dict[str, Score]]:
    """Rows of scores.csv by model and benchmark."""
    found: dict[str, dict[str, Score]] = {}
    with SCORES_CSV.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            score = Score(
                row["model"], row["benchmark"], float(row["score"]), date.fromisoformat(row["as_of"]), row["source"]
            )
            found.setdefault(score.model, {})[score.benchmark] = score
    return found


def counterpart(model: str) -> Counterpart:
    """The smallest open model of permissive licence with equal or better expected score than a dateless name.

    Equal or better: in the mean over the benchmarks both have, and nowhere lower by more than LARGEST_LOSS.
    """
    theirs = scores().get(model, {})
    passing = []
    for name, own in scores().items():
        if not _is_open(name):
            continue
        compared = {b: (theirs[b].score, own[b].score) for b in theirs if b in own}
        gains = [mine - other for other, mine in compared.values()]
        if len(gains) >= FEWEST_BENCHMARKS and sum(gains) >= 0 and min(gains) >= -LARGEST_LOSS:
            shape = shape_of(str(table_name(name)))
            if shape.licence.lower().startswith(PERMISSIVE):
                passing.append((shape.num_params, -sum(gains), name, compared))
    if not passing:
        return _by_size(model, bool(theirs))
    passing.sort(key=lambda found: found[:2])
    num_params, _, name, compared = passing[0]
    lower = [b for b, (other, mine) in compared.items() if mine < other]
    gain = sum(mine - other for other, mine in compared.values()) / len(compared)
    reason = (
        f"the smallest open model of permissive licence with equal or better published scores than {model}: "
        f"{gain:+.1f} points in the mean over {len(compared)} benchmarks"
    )
    reason += f", lower on {', '.join(lower)}" if lower else ", lower on none"
    return Counterpart(
        model=name,
        licence=shape_of(str(table_name(name))).licence,
        num_params=num_params,
        compared=compared,
        reason=reason,
        larger=next((found[2] for found in passing if found[0] > num_params), ""),
        sources=tuple(dict.fromkeys(s.source for m in (model, name) for s in scores()[m].values())),
    )


def _is_open(name: str) -> bool:
    return "/" in name


def _by_size(model: str, has_scores: bool) -> Counterpart:
    name = SIZE_CLASS.get(model, DEFAULT)
    shape = shape_of(str(table_name(name)))
    why = "no open model of our table reaches its published scores" if has_scores else "no published scores we know of"
    known = "by size class" if model in SIZE_CLASS else "a middle size, for we do not know this model"
    return Counterpart(
        model=name,
        licence=shape.licence,
        num_params=shape.num_params,
        compared={},
        reason=f"not compared with {model}: {why}; chosen {known} and for its licence, so let the bar decide",
    )
