"""Learning curves: from the scores of trainings on parts of the rows to the score that all of them will give.

The rectified scaling law of fine-tuning, error(D) = B / (D_l + D^beta) + E (Lin et al. 2024, arXiv 2402.02314, section
4), on the task's error, written by what each parameter says: error(D) = floor + (start - floor) / (1 + (D/knee)^beta).
Three or four points do not fix four parameters, and a bootstrap of such a fit is surer than it may be. So the bands
are of curves drawn from broad ranges and weighed by how well each agrees with the points (importance sampling).

Shapes: C drawn curves, P points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluate.statistics import wilson
from ..records import Estimate

NUM_CURVES = 10_000
BETA = (0.3, 3.0)  # log-uniform; tasks scored row by row rise more abruptly than the loss, for which 0.1 to 1 is usual
KNEE = (1 / 3000, 30.0)  # of the rows at hand, log-uniform
START = (0.3, 1.0)  # error before training, uniform
TRAIN_NOISE = 0.015  # of a score, from one seed of training to the next
ROWS_NOISE = 0.15  # of the logarithm of the rows: some are worth more than others
LEAST_EFFECTIVE = 60.0  # curves that agree with the points; fewer: the points are taken for noisier than they look
MOST_TIMES_ROWS = 16.0  # no advice reaches further than so many times the rows at hand
FLAT_GAIN = 0.01  # of the score, from twice the rows
FRACS = (1 / 32, 1 / 16, 1 / 8)  # of the rows, that `curve: auto` trains on: together a fifth of one training
FRACS_ON = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # that `curve: on` does: nearly another training
BEGUN = 0.1  # score below which a curve has not begun: small models learn nothing for long, and then at once
SKIP_CHANCE = 0.03  # a rung that passes with no more is skipped
GO_CHANCE = 0.4  # one that passes with more is trained without further points


@dataclass(frozen=True, slots=True)
class Point:
    """One training on a part of the rows."""

    num_rows: int
    score: float  # on the dev rows, at its end
    num_scored: int


@dataclass(frozen=True, slots=True)
class Curve:
    """The points of one rung, and what they took."""

    points: tuple[Point, ...]
    wall_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the points say of training on all rows. Bands hold 95 %."""

    num_rows: int
    points: tuple[Point, ...]
    score: Estimate  # of training on all rows, as a set of held-out rows of any size would show it
    measured: Estimate  # as the held-out rows at hand will show it
    pass_chance: float  # that its interval's lower end reaches the bar
    needed: float  # score that the held-out rows must show for that
    twice: Estimate  # score from twice the rows
    rows_needed: float | None  # for an even chance to pass; None: more than MOST_TIMES_ROWS times those at hand
    num_effective: float  # curves that the bands rest on
    widened: float  # the points' noise was taken so many times as large

    @property
    def is_hopeless(self) -> bool:
        """Whether training on all rows is not worth its price; points that hardly rise above nothing do not tell."""
        return self.pass_chance < SKIP_CHANCE and max(point.score for point in self.points) >= BEGUN

    @property
    def is_settled(self) -> bool:
        """Whether further points would change nothing."""
        return self.is_hopeless or self.pass_chance > GO_CHANCE

    @property
    def advice(self) -> str:
        """What would reach the bar instead: more rows, or a larger model."""
        if self.twice.value - self.score.value < FLAT_GAIN:
            return f"the curve is flat (twice the rows: {self.twice.value:.3f}): a larger model, not more rows"
        if self.rows_needed is None:
            return f"more rows alone will hardly do (twice as many: {self.twice.value:.3f}): a larger model"
        return f"it still rises: about {_rounded(self.rows_needed):,} training rows would do, or a larger model"

    def line(self) -> str:
        """The prediction in one line."""
        seen = ", ".join(f"{point.score:.3f} on {point.num_rows:,}" for point in self.points)
        return (
            f"{seen} training rows; predicted on {self.num_rows:,}: {self.measured.value:.3f} "
            f"({self.measured.low:.3f} to {self.measured.high:.3f}), {self.needed:.3f} is needed, "
            f"chance to pass {self.pass_chance:.0%}"
        )


def _rounded(number: float) -> int:
    """In two significant digits, rounded up."""
    step = 10 ** max(0, len(str(round(number))) - 2)
    return int(-(-number // step) * step)


def forecast(
    points: Sequence[Point],
    num_rows: int,
    num_held_out: int,
    bar: float,
    level: float,
    *,
    seed: int = 0,
) -> Forecast:
    """Bands at num_rows. level: two-sided, of the interval that must lie above the bar."""
    assert num_held_out > 0
    rng = np.random.default_rng(seed)
    start_C = rng.uniform(*START, NUM_CURVES)
    floor_C = start_C * rng.random(NUM_CURVES) ** 2
    knee_C = num_rows * np.exp(rng.uniform(math.log(KNEE[0]), math.log(KNEE[1]), NUM_CURVES))
    beta_C = np.exp(rng.uniform(math.log(BETA[0]), math.log(BETA[1]), NUM_CURVES))

    def at(rows: float) -> tuple[np.ndarray, np.ndarray]:
        return _scores_at(rows, start_C, floor_C, knee_C, beta_C)

    weight_C, widened = _weights(_log_likelihood(points, start_C, floor_C, knee_C, beta_C))
    score_C, noise_C = at(num_rows)
    needed = least_passing(num_held_out, bar, level)
    true_C = np.clip(score_C + np.sqrt(noise_C) * rng.standard_normal(NUM_CURVES), 0, 1)
    sampled_C = np.sqrt(true_C * (1 - true_C) / num_held_out) * rng.standard_normal(NUM_CURVES)
    measured_C = np.clip(true_C + sampled_C, 0, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rest_C = (start_C - floor_C) / (1 - needed - floor_C) - 1
        needed_C = np.where(1 - needed > floor_C, knee_C * np.maximum(rest_C, 0) ** (1 / beta_C), np.inf)
    rows_needed = float(_quantile(needed_C, weight_C, 0.5))
    return Forecast(
        num_rows=num_rows,
        points=tuple(points),
        score=_band(true_C, weight_C),
        measured=_band(measured_C, weight_C),
        pass_chance=float(weight_C[measured_C >= needed - 1e-12].sum()),
        needed=needed,
        twice=_band(at(2 * num_rows)[0], weight_C),
        rows_needed=rows_needed if rows_needed <= MOST_TIMES_ROWS * num_rows else None,
        num_effective=float(1 / (weight_C**2).sum()),
        widened=widened,
    )


def _scores_at(
    rows: float, start_C: np.ndarray, floor_C: np.ndarray, knee_C: np.ndarray, beta_C: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Score of each curve, and the variance of one training's score around it."""
    part_C = 1 / (1 + (rows / knee_C) ** beta_C)
    slope_C = (start_C - floor_C) * beta_C * part_C * (1 - part_C)
    return 1 - floor_C - (start_C - floor_C) * part_C, TRAIN_NOISE**2 + (ROWS_NOISE * slope_C) ** 2


def _log_likelihood(points: Sequence[Point], *curves: np.ndarray) -> np.ndarray:
    total_C = np.zeros(NUM_CURVES)
    for point in points:
        score_C, noise_C = _scores_at(point.num_rows, *curves)
        variance_C = noise_C + np.maximum(score_C * (1 - score_C), 1 / point.num_scored) / point.num_scored
        total_C -= (point.score - score_C) ** 2 / (2 * variance_C) + np.log(variance_C) / 2
    return total_C


def _weights(log_weight_C: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights that sum to 1; the points' noise widened until enough curves agree with them."""
    widened = 1.0
    while True:
        weight_C = np.exp((log_weight_C - log_weight_C.max()) / widened**2)
        weight_C /= weight_C.sum()
        if 1 / (weight_C**2).sum() >= LEAST_EFFECTIVE:
            return weight_C, widened
        widened *= 1.25


def _band(values_C: np.ndarray, weight_C: np.ndarray) -> Estimate:
    low, middle, high = _quantile(values_C, weight_C, np.array([0.025, 0.5, 0.975]))
    return Estimate(float(middle), float(low), float(high))


def _quantile(values_C: np.ndarray, weight_C: np.ndarray, at: Any) -> Any:
    order = np.argsort(values_C)
    places = np.searchsorted(np.cumsum(weight_C[order]), at)
    return values_C[order][np.minimum(places, len(order) - 1)]


def least_passing(num_rows: int, bar: float, level: float) -> float:
    """The least score on so many rows whose lower (Wilson) end reaches the bar; above 1 where none does."""
    low, high = 0, num_rows + 1
    while low < high:
        middle = (low + high) // 2
        if middle > num_rows or wilson(middle, num_rows, level).low >= bar:
            high = middle
        else:
            low = middle + 1
    return low / num_rows
