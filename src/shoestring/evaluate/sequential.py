"""Looking at an arm before all held-out rows are scored, without being fooled by looking often.

Early rejection is by betting and holds at every row; the final looks are few and fixed beforehand. Both need rows in a
random order that was fixed before the first answer, and scores between 0 and 1.

Shapes: N rows in that order, L bets, G grid points of a look, M arms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..records import Estimate

REJECT_LEVEL = 0.01  # an arm that meets the bar is turned away early with this chance at most
NUM_BETS = 32
MIN_ROWS = 10  # nothing is rejected on fewer
SPENT_ONE_SIDED = 0.025
_GRID_POINTS = 401
_REACH = 8.0  # standard deviations the grid of a look reaches to either side


def betting_wealth(scores: np.ndarray, mean: float) -> np.ndarray:
    """Wealth after each row (last axis) of bets that the true mean lies below `mean`; an e-process where it does not.

    A fixed mixture of NUM_BETS stakes, evenly spread over those that cannot lose everything. Whatever the scores'
    distribution, if their mean is at least `mean` the wealth ever reaches 1/a with a chance of at most a (Ville).
    Source: Waudby-Smith & Ramdas 2024, JRSS B 86:1-27, section 4 (capital process, hedged over a grid).
    """
    most = 1.0 / max(1.0 - mean, 1e-9)
    stakes = most * (np.arange(NUM_BETS) + 0.5) / NUM_BETS
    log_wealth = np.cumsum(np.log1p(stakes * (mean - np.asarray(scores, float)[..., None])), axis=-2)
    top = log_wealth.max(axis=-1, keepdims=True)
    wealth: np.ndarray = np.exp(np.minimum(top[..., 0], 700.0)) * np.exp(log_wealth - top).mean(axis=-1)
    return wealth


class EarlyRejection:
    """Feeds on an arm's scores in their fixed order; says when the bar is out of reach."""

    def __init__(self, bar: float, level: float = REJECT_LEVEL) -> None:
        self.bar, self.level = bar, level
        self.scores: list[float] = []

    def add(self, scores: Sequence[float]) -> bool:
        """Take further rows; True once the arm is to be given up."""
        self.scores += scores
        return self.is_hopeless

    @property
    def is_hopeless(self) -> bool:
        """Whether the bets against the bar have won 1/level by now, at any of the rows so far."""
        if len(self.scores) < MIN_ROWS or self.bar <= 0:
            return False
        return bool(betting_wealth(np.array(self.scores), self.bar).max() >= 1 / self.level)

    def reason(self) -> str:
        """What was found, for the record."""
        mean = sum(self.scores) / max(1, len(self.scores))
        return (
            f"given up after {len(self.scores)} rows at {mean:.3f}: a true score of {self.bar:g} would look like this "
            f"with a chance of at most {self.level:.0%}, however often one looks"
        )


@lru_cache(maxsize=64)
def looks(fracs: tuple[float, ...], one_sided: float = SPENT_ONE_SIDED) -> tuple[float, ...]:
    """Upper bounds of a z-statistic at looks after these shares of the rows, which together are passed with a chance of
    one_sided where there is nothing to find.

    The chance is spent as O'Brien and Fleming's bounds would (almost none early), whatever the shares turn out to be.
    Source: Lan & DeMets 1983, Biometrika 70:659-663; recursion of Armitage, McPherson & Rowe 1969, JRSS A 132:235-244.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr, ndtri

    assert all(a < b for a, b in zip((0.0, *fracs), fracs, strict=False)) and fracs[-1] <= 1.0, fracs
    spent = [2 * float(ndtr(ndtri(one_sided / 2) / math.sqrt(frac))) for frac in fracs]
    bounds: list[float] = []
    going_on, before_frac, before_spent = _GoingOn(np.zeros(1), np.ones(1)), 0.0, 0.0
    for frac, total in zip(fracs, spent, strict=True):
        spread, share = math.sqrt(frac - before_frac), total - before_spent
        edge = float(brentq(_too_much, -_REACH, _REACH, args=(going_on, spread, share)))
        going_on = going_on.after(edge, math.sqrt(frac), spread)
        bounds.append(edge / math.sqrt(frac))
        before_frac, before_spent = frac, total
    return tuple(bounds)


@dataclass(frozen=True, slots=True)
class _GoingOn:
    """The sum at a look where no bound was passed yet: points with their chances."""

    points_G: np.ndarray
    chances_G: np.ndarray

    def passes(self, edge: float, spread: float) -> float:
        """Chance that the next look's sum, this one and a step of deviation `spread`, lies above the edge."""
        from scipy.special import ndtr

        return float(self.chances_G @ ndtr((self.points_G - edge) / spread))

    def after(self, edge: float, deviation: float, spread: float) -> _GoingOn:
        """Those that went on from the next look, by the trapezoid rule."""
        grid_G, step = np.linspace(-_REACH * deviation, edge, _GRID_POINTS, retstep=True)
        z_GG = (grid_G[:, None] - self.points_G[None, :]) / spread
        density_G = np.exp(-(z_GG**2) / 2) @ self.chances_G / (spread * math.sqrt(2 * math.pi))
        density_G[[0, -1]] /= 2
        return _GoingOn(grid_G, density_G * step)


def _too_much(edge: float, going_on: _GoingOn, spread: float, share: float) -> float:
    return going_on.passes(edge, spread) - share


@dataclass(frozen=True, slots=True)
class Look:
    """One look at an arm: accept, reject, or go on."""

    num_rows: int
    score: Estimate  # with the interval of this look: wider than 95 % before the last
    decision: str  # accept, reject, go on


def look(scores: Sequence[float], planned: Sequence[int], bar: float, one_sided: float = SPENT_ONE_SIDED) -> Look:
    """Decide on the rows so far, whose number is one of the planned looks; the last decides.

    Either error has a chance of at most one_sided over all looks. The ends are score (Wilson) ends at the look's level,
    the variance of a proportion being the most that scores between 0 and 1 have.
    """
    num = len(scores)
    assert num in planned, (num, planned)
    number = list(planned).index(num)
    z = looks(tuple(n / planned[-1] for n in planned), one_sided)[number]
    mean = float(np.mean(scores))
    centre = (mean + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(mean * (1 - mean) / num + z * z / (4 * num * num))
    score = Estimate(mean, max(0.0, centre - half), min(1.0, centre + half))
    if score.low >= bar:
        return Look(num, score, "accept")
    is_last = number == len(planned) - 1
    return Look(num, score, "reject" if score.high < bar or is_last else "go on")
