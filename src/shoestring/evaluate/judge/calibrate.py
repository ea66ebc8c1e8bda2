"""What human labels say of a judge: the corrected score, and how far judge and humans agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...errors import BadInput
from ...records import Estimate
from ..resample import LEVEL
from ..statistics import wilson

MIN_LABELS = 30
PSEUDO_WEIGHT = 0.5  # of each of four further rows (0 or 1 by the human, 0 or 1 by the judge) in the spreads


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A judged mean corrected by labels. tuning: how much the judge is believed, 0 (labels alone) to 1."""

    score: Estimate
    tuning: float
    num_labels: int
    num_rows: int
    labels_worth: float  # labels that would have been needed without the judge, over those given
    variance: float  # of the score


def calibrated(
    human_L: np.ndarray, judged_L: np.ndarray, judged_U: np.ndarray, *, design_effect: float = 1.0
) -> Calibrated:
    """Mean human score of all rows, from labels on L of them and the judge on all; power-tuned.

    human_L, judged_L: scores 0 to 1 of the labelled rows, which must be drawn by chance; judged_U: of the others.
    design_effect: of clusters among the rows, on the variance.
    theta = lambda mean(judged_U) + mean(human_L - lambda judged_L), lambda = cov / ((1 + L/U) var). The interval is
    Wilson's at the number of rows that would give theta's variance, with Student's quantile; spreads are taken with
    four further rows of weight PSEUDO_WEIGHT, so that a judge that was right on every label is not taken as perfect.
    Raises: BadInput below MIN_LABELS.
    Source: Angelopoulos, Duchi, Zrnic 2023, "PPI++", arXiv 2311.01453, section 6; Korn and Graubard 1998 (effective
    size).
    """
    num_labels, num_others = len(human_L), len(judged_U)
    if num_labels < MIN_LABELS:
        raise BadInput(f"{num_labels} labels do not calibrate a judge; {MIN_LABELS} are the least, 100 are better")
    covariance, var_human, var_judged, var_all = _spreads(human_L, judged_L, judged_U)
    tuning = 0.0
    if num_others:
        tuning = min(1.0, max(0.0, covariance / ((1 + num_labels / num_others) * var_all)))
    theta = float(np.mean(human_L - tuning * judged_L)) + (tuning * float(np.mean(judged_U)) if num_others else 0.0)
    variance = (var_human + tuning**2 * var_judged - 2 * tuning * covariance) / num_labels
    variance += tuning**2 * var_all / num_others if num_others else 0.0
    variance *= design_effect
    theta = min(1.0, max(0.0, theta))
    labels_worth = var_human * design_effect / num_labels / variance
    low, high = ends(theta, variance, num_labels)
    return Calibrated(Estimate(theta, low, high), tuning, num_labels, num_labels + num_others, labels_worth, variance)


def _spreads(human_L: np.ndarray, judged_L: np.ndarray, judged_U: np.ndarray) -> tuple[float, float, float, float]:
    """Covariance and variances of the labelled rows, and the variance of the judge on all rows."""
    human = np.concatenate([human_L, [0, 1, 0, 1]])
    judged = np.concatenate([judged_L, [0, 1, 1, 0]])
    weight = np.concatenate([np.ones(len(human_L)), np.full(4, PSEUDO_WEIGHT)])
    every = np.concatenate([judged_L, judged_U, [0, 1]])
    weight_all = np.concatenate([np.ones(len(every) - 2), np.full(2, 2 * PSEUDO_WEIGHT)])

    def covariance(a: np.ndarray, b: np.ndarray, w: np.ndarray) -> float:
        total = w.sum()
        return float(w @ ((a - w @ a / total) * (b - w @ b / total)) / (total - 1))

    return (
        covariance(human, judged, weight),
        covariance(human, human, weight),
        covariance(judged, judged, weight),
        covariance(every, every, weight_all),
    )


def ends(theta: float, variance: float, num_labels: int, level: float = LEVEL) -> tuple[float, float]:
    """Ends of the interval of a calibrated score that misses with chance level."""
    from scipy.stats import t

    quantile = float(t.ppf(1 - level / 2, num_labels - 1))
    rate = (theta * num_labels + 2 * PSEUDO_WEIGHT) / (num_labels + 4 * PSEUDO_WEIGHT)  # never 0 or 1
    size, z2 = rate * (1 - rate) / variance, quantile**2
    centre = (theta + z2 / (2 * size)) / (1 + z2 / size)
    half = quantile / (1 + z2 / size) * math.sqrt(theta * (1 - theta) / size + z2 / (4 * size**2))
    return min(theta, max(0.0, centre - half)), max(theta, min(1.0, centre + half))


@dataclass(frozen=True, slots=True)
class Agreement:
    """Judge against human, row by row, both as passed or not; a rate is None where no row tells it."""

    num_rows: int
    observed: float  # share of rows on which they agree
    cohen_kappa: float
    gwet_ac1: float
    sensitivity: Estimate | None  # of the rows that a human passes, the share that the judge passes
    specificity: Estimate | None  # of the rows that a human fails, the share that the judge fails


def agreement(human: np.ndarray, judged: np.ndarray) -> Agreement:
    """human, judged: booleans of the same rows, at least one.

    Source: Cohen 1960; Gwet 2008, Br. J. Math. Stat. Psychol. 61:29-48 (AC1, which a skewed pass rate does not upset).
    """
    human, judged = np.asarray(human, bool), np.asarray(judged, bool)
    observed = float(np.mean(human == judged))
    p, q = float(human.mean()), float(judged.mean())
    by_chance = p * q + (1 - p) * (1 - q)
    middle = (p + q) / 2
    num_passed, num_failed = int(human.sum()), int((~human).sum())
    return Agreement(
        num_rows=len(human),
        observed=observed,
        cohen_kappa=_beyond(observed, by_chance),
        gwet_ac1=_beyond(observed, 2 * middle * (1 - middle)),
        sensitivity=wilson(int((human & judged).sum()), num_passed) if num_passed else None,
        specificity=wilson(int((~human & ~judged).sum()), num_failed) if num_failed else None,
    )


def between(votes_NJ: np.ndarray) -> float | None:
    """Gwet's AC1 of several judges, passed or not by row and judge; None with fewer than two judges or no row."""
    if votes_NJ.shape[0] == 0 or votes_NJ.shape[1] < 2:
        return None
    num_judges = votes_NJ.shape[1]
    yes_N = votes_NJ.sum(axis=1)
    no_N = num_judges - yes_N
    observed = float(np.mean((yes_N * (yes_N - 1) + no_N * (no_N - 1)) / (num_judges * (num_judges - 1))))
    middle = float(yes_N.mean() / num_judges)
    return _beyond(observed, 2 * middle * (1 - middle))


def _beyond(observed: float, by_chance: float) -> float:
    """Agreement beyond chance: 1 where it is complete."""
    return 1.0 if by_chance >= 1 else (observed - by_chance) / (1 - by_chance)
