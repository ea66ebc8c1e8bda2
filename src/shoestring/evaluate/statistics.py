"""Intervals of one arm's score, and the power of a test set. Two arms: paired.py; looks in between: sequential.py.

Every interval is two-sided 95 % unless `level` says otherwise. Shapes: N rows, S resamples, K labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..errors import DataError
from ..records import Estimate, RowScore
from .metrics import label_codes
from .resample import LEVEL, NUM_RESAMPLES, Statistic, ends

# Metrics that are 0 or 1 on each row; their mean is a proportion.
BINARY_METRICS = {
    "accuracy", "exact_record", "exact_match", "final_number", "execution_match", "ast_match", "math_equal",
    "call_exact",
}  # fmt: skip
Z_95 = 1.959963984540054
PILED_FRAC = 0.5
Z_POWER_80 = 0.8416212335729143


def wilson(num_hits: int, num_rows: int, level: float = LEVEL) -> Estimate:
    """Score interval of a proportion. Raises: DataError without rows.

    Source: Wilson 1927, JASA 22:209-212, as in scipy.
    """
    from scipy.stats import binomtest

    refuse_empty(num_rows)
    found = binomtest(num_hits, num_rows).proportion_ci(1 - level, method="wilson")
    # At 0 and 1 the ends are exact; rounding must not move them.
    low = 0.0 if num_hits == 0 else float(found.low)
    high = 1.0 if num_hits == num_rows else float(found.high)
    return Estimate(num_hits / num_rows, low, high)


def bootstrap_mean(
    values_N: np.ndarray, *, seed: int = 0, level: float = LEVEL, cluster_N: np.ndarray | None = None
) -> Estimate:
    """Mean of scores between 0 and 1, with a bootstrap interval that is never of zero width: see resample.ends.

    A failure (or success) not met yet is allowed for where most rows score the best (or the worst) that was seen; else
    the rows show how far they spread. On 0/1 scores this is the mid-p interval of a proportion.
    """
    refuse_empty(len(values_N))
    piled_frac = max(np.mean(values_N == np.max(values_N)), np.mean(values_N == np.min(values_N)))
    bounds = (0.0, 1.0) if piled_frac >= PILED_FRAC else None
    low, high = ends(
        lambda w: w @ values_N / len(values_N), len(values_N), bounds, seed, level=level, cluster_N=cluster_N
    )
    mean = float(np.mean(values_N))
    return Estimate(mean, max(0.0, min(low, mean)), min(1.0, max(high, mean)))


def bootstrap_macro_f1(
    expected_N: np.ndarray,
    output_N: np.ndarray,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
    cluster_N: np.ndarray | None = None,
) -> Estimate:
    """Macro F1 (see metrics.macro_f1) with a bootstrap interval, corrected for bias.

    With few rows a label, macro F1 of a sample lies below that of all texts: the interval then
    reaches higher above the value than below it.
    """
    refuse_empty(len(expected_N))
    statistic = macro_f1_statistic(expected_N, output_N)
    value = float(statistic(np.ones((1, len(expected_N))))[0])
    low, high = ends(
        statistic,
        len(expected_N),
        (0.0, 1.0),
        seed,
        num_resamples=num_resamples,
        level=level,
        biased_value=value,
        cluster_N=cluster_N,
    )
    return Estimate(value, min(low, value), max(high, value))


def macro_f1_statistic(expected_N: np.ndarray, output_N: np.ndarray) -> Statistic:
    """Macro F1 as a function of row weights."""
    support_NK, predicted_NK, hits_NK = one_hot(expected_N, output_N)
    return lambda w_SN: macro(w_SN @ support_NK, w_SN @ predicted_NK, w_SN @ hits_NK)


def one_hot(expected_N: np.ndarray, output_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row, by label: whether it is expected, predicted, and both."""
    num_labels = int(expected_N.max()) + 1
    support_NK = np.eye(num_labels)[expected_N]
    predicted_NK = np.eye(num_labels + 1)[output_N][:, :num_labels]
    return support_NK, predicted_NK, support_NK * predicted_NK


def macro(support_SK: np.ndarray, predicted_SK: np.ndarray, hits_SK: np.ndarray) -> np.ndarray:
    """Mean F1 over the labels that occur, of each resample."""
    f1_SK = 2 * hits_SK / np.maximum(support_SK + predicted_SK, 1e-300)
    occurs_SK = support_SK > 0
    return (f1_SK * occurs_SK).sum(axis=1) / occurs_SK.sum(axis=1)


def score_interval(metric: str, rows: Sequence[RowScore], seed: int = 0, level: float = LEVEL) -> tuple[Estimate, str]:
    """The metric over the rows with its interval, and how that was made; clusters of rows are drawn whole."""
    cluster_N = clusters_of(rows)
    prefix = "" if cluster_N is None else "cluster "
    if metric == "macro_f1":
        codes = label_codes([row.expected for row in rows], [row.output for row in rows])
        return bootstrap_macro_f1(*codes, seed=seed, level=level, cluster_N=cluster_N), f"{prefix}bootstrap"
    if metric in BINARY_METRICS and cluster_N is None:
        return wilson(sum(row.score == 1.0 for row in rows), len(rows), level), "wilson"
    scores_N = np.array([row.score for row in rows])
    return bootstrap_mean(scores_N, seed=seed, level=level, cluster_N=cluster_N), f"{prefix}bootstrap"


def clusters_of(rows: Sequence[RowScore]) -> np.ndarray | None:
    """The number of each row's cluster, from 0; None where every row is alone."""
    names = [row.cluster or f"row {place}" for place, row in enumerate(rows)]
    found, cluster_N = np.unique(names, return_inverse=True)
    return None if len(found) == len(names) else cluster_N


def rows_for_difference(difference: float, discordant_frac: float) -> float:
    """Rows at which a paired difference of two rates is found with 80 % power at two-sided 5 %.

    Source: Connor 1987, Biometrics 43:207-211.
    """
    spread = Z_95 * math.sqrt(discordant_frac) + Z_POWER_80 * math.sqrt(max(0.0, discordant_frac - difference**2))
    return (spread / difference) ** 2


def detectable_difference(num_rows: int, discordant_frac: float = 0.2) -> float:
    """Smallest true difference of two arms that num_rows paired rows find with 80 % power.

    discordant_frac: share of rows on which just one of the arms is right; raised to the difference
    where that is larger, since it cannot be below it. Raises: DataError without rows.
    """
    refuse_empty(num_rows)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if rows_for_difference(middle, max(discordant_frac, middle)) <= num_rows:
            high = middle
        else:
            low = middle
    return high


def rows_to_settle(score: Estimate, num_rows: int, bar: float) -> int | None:
    """About how many rows put the bar outside the interval, if the score stays; None if it equals the bar.

    The distance from the score to an end of its interval shrinks with the square root of the rows.
    """
    gap = score.value - bar
    if abs(gap) < 1e-9:
        return None
    reach = score.value - score.low if gap > 0 else score.high - score.value
    return max(num_rows + 1, math.ceil(num_rows * (reach / gap) ** 2 - 1e-6))


def refuse_empty(num_rows: int) -> None:
    """Raises: DataError without rows."""
    if num_rows <= 0:
        raise DataError("no held-out rows to score; give data.eval a file with rows, or lower curate.eval_rows")
