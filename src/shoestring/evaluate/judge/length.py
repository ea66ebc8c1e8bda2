"""How much of a win rate is length: a logistic model whose length term is then set to zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...records import Estimate

MIN_PAIRS = 30
RIDGE = 0.5  # on the length weight alone: keeps it finite where the longer answer always wins
NUM_RESAMPLES = 400


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """rate: the win rate at equal length. weight: of the length term in log-odds, above 0 where longer wins."""

    rate: Estimate
    weight: Estimate
    num_pairs: int


def length_controlled(
    points_N: Sequence[float], characters_N: Sequence[int], others_N: Sequence[int], *, seed: int = 0
) -> LengthControlled | None:
    """Win rate with the difference of lengths held at zero; None below MIN_PAIRS.

    points: 1 win, 0.5 tie, 0 loss; characters: of the answer, others: of what it was compared with. log-odds of a win
    = a + b tanh(difference / its standard deviation); the rate is that of a alone. Intervals by bootstrap of pairs.
    Source: Dubois et al. 2024, "Length-Controlled AlpacaEval", arXiv 2404.04475; their term of an instruction's
    difficulty is left out, which needs many models' answers.
    """
    if len(points_N) < MIN_PAIRS:
        return None
    points = np.asarray(points_N, float)
    gap = np.asarray(characters_N, float) - np.asarray(others_N, float)
    spread = float(gap.std())
    term = np.tanh(gap / spread) if spread > 0 else np.zeros(len(gap))
    intercept, weight = _fit(points, term)
    rng = np.random.default_rng(seed)
    fits = []
    for _ in range(NUM_RESAMPLES):
        rows = rng.integers(0, len(points), len(points))
        fits.append(_fit(points[rows], term[rows]))
    ends = np.quantile(np.array(fits), (0.025, 0.975), axis=0)
    return LengthControlled(
        Estimate(_sigmoid(intercept), _sigmoid(ends[0, 0]), _sigmoid(ends[1, 0])),
        Estimate(weight, float(ends[0, 1]), float(ends[1, 1])),
        len(points),
    )


def _sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def _fit(points_N: np.ndarray, term_N: np.ndarray) -> tuple[float, float]:
    """Intercept and weight by Newton's method; a half win and a half loss are added, so that the rate stays inside."""
    x_N2 = np.column_stack([np.ones(len(term_N) + 2), np.concatenate([term_N, [0, 0]])])
    y_N = np.concatenate([points_N, [1, 0]])
    w_N = np.concatenate([np.ones(len(term_N)), [0.5, 0.5]])
    ridge = np.diag([0.0, RIDGE])
    beta = np.zeros(2)
    for _ in range(50):
        p_N = 1 / (1 + np.exp(-np.clip(x_N2 @ beta, -30, 30)))
        gradient = x_N2.T @ (w_N * (y_N - p_N)) - ridge @ beta
        hessian = (x_N2 * (w_N * p_N * (1 - p_N))[:, None]).T @ x_N2 + ridge
        step = np.linalg.solve(hessian + 1e-9 * np.eye(2), gradient)
        beta = beta + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return float(beta[0]), float(beta[1])
