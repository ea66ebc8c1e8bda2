"""Two arms on the same held-out rows: difference, p-value, and whether one is no worse than the other by much.

Shapes: N rows, S resamples, K labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError
from ..records import ArmScore, Difference, Estimate, RowScore
from .metrics import label_codes
from .resample import LEVEL, NUM_RESAMPLES, chunks, ends
from .statistics import PILED_FRAC, clusters_of, macro, one_hot, refuse_empty

MARGIN = 0.03  # a loss of score that is taken for a smaller model, where the bar does not decide
ONE_SIDED = 0.05


@dataclass(frozen=True, slots=True)
class PairedResult:
    """Difference a minus b on the same rows."""

    difference: Estimate
    p_value: float
    method: str


def paired_means(
    a_N: np.ndarray,
    b_N: np.ndarray,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
    cluster_N: np.ndarray | None = None,
) -> PairedResult:
    """Difference of two means on the same rows: paired bootstrap interval and a p-value.

    0/1 scores: mid-p McNemar. Other scores, and rows in clusters (whose signs flip together): permutation test.
    Source: Fagerland, Lydersen, Laake 2013, BMC Med. Res. Methodol. 13:91 (mid-p).
    """
    refuse_empty(len(a_N))
    delta_N = np.asarray(a_N, float) - np.asarray(b_N, float)
    mean = float(delta_N.mean())
    worst = float(np.abs(delta_N).max()) or 1.0  # an unseen row may differ as much as any seen, either way
    bounds = (-worst, worst) if np.mean(delta_N == 0) >= PILED_FRAC else None
    low, high = ends(
        lambda w: w @ delta_N / len(delta_N),
        len(delta_N),
        bounds,
        seed,
        num_resamples=num_resamples,
        level=level,
        cluster_N=cluster_N,
    )
    difference = Estimate(mean, max(-1.0, min(low, mean)), min(1.0, max(high, mean)))
    if cluster_N is None and np.isin(a_N, (0, 1)).all() and np.isin(b_N, (0, 1)).all():
        p_value = mcnemar_mid_p(int((delta_N > 0).sum()), int((delta_N < 0).sum()))
        return PairedResult(difference, p_value, "paired bootstrap; mid-p McNemar")
    sums_G = delta_N if cluster_N is None else np.bincount(cluster_N, delta_N)
    prefix = "paired" if cluster_N is None else "paired cluster"
    p_value = _sign_flip_p(sums_G, seed, num_resamples)
    return PairedResult(difference, p_value, f"{prefix} bootstrap; sign-flip permutation")


def _sign_flip_p(delta_G: np.ndarray, seed: int, num_resamples: int) -> float:
    """Two-sided p-value of the mean of differences whose signs are exchangeable."""
    from scipy.stats import permutation_test

    if not delta_G.any():
        return 1.0
    found = permutation_test(
        (delta_G,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples,
        batch=next(chunks(num_resamples, len(delta_G))),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def paired_macro_f1(
    expected_N: np.ndarray,
    a_N: np.ndarray,
    b_N: np.ndarray,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
    cluster_N: np.ndarray | None = None,
) -> PairedResult:
    """Difference of two macro F1 on the same rows: paired bootstrap; permutation swapping the outputs of a row."""
    refuse_empty(len(expected_N))
    support_NK, predicted_a_NK, hits_a_NK = one_hot(expected_N, a_N)
    _, predicted_b_NK, hits_b_NK = one_hot(expected_N, b_N)

    def gap(w_SN: np.ndarray) -> np.ndarray:
        support_SK = w_SN @ support_NK
        return macro(support_SK, w_SN @ predicted_a_NK, w_SN @ hits_a_NK) - macro(
            support_SK, w_SN @ predicted_b_NK, w_SN @ hits_b_NK
        )

    value = float(gap(np.ones((1, len(expected_N))))[0])
    low, high = ends(
        gap,
        len(expected_N),
        (-1.0, 1.0),
        seed,
        num_resamples=num_resamples,
        level=level,
        biased_value=value,
        cluster_N=cluster_N,
    )
    difference = Estimate(value, min(low, value), max(high, value))
    rng = np.random.default_rng(seed)
    support_1K = support_NK.sum(axis=0, keepdims=True)
    swapped_N = np.arange(len(expected_N)) if cluster_N is None else cluster_N
    extreme = 0
    for size in chunks(num_resamples, len(expected_N)):
        swap_SN = rng.integers(0, 2, (size, int(swapped_N.max()) + 1)).astype(float)[:, swapped_N]
        keep_SN = 1 - swap_SN
        one = macro(
            support_1K, keep_SN @ predicted_a_NK + swap_SN @ predicted_b_NK, keep_SN @ hits_a_NK + swap_SN @ hits_b_NK
        )
        two = macro(
            support_1K, keep_SN @ predicted_b_NK + swap_SN @ predicted_a_NK, keep_SN @ hits_b_NK + swap_SN @ hits_a_NK
        )
        extreme += int((np.abs(one - two) >= abs(value) - 1e-12).sum())
    prefix = "paired" if cluster_N is None else "paired cluster"
    return PairedResult(difference, (extreme + 1) / (num_resamples + 1), f"{prefix} bootstrap; swap permutation")


def paired_difference(
    a: ArmScore, b: ArmScore, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES, level: float = LEVEL
) -> Difference:
    """a minus b on the held-out rows both were scored on. Raises: DataError where there are none."""
    if a.metric != b.metric:
        raise DataError(f"{a.arm!r} is scored by {a.metric}, {b.arm!r} by {b.metric}; score both by one metric")
    rows_a, rows_b = _by_id(a.rows), _by_id(b.rows)
    common = [key for key in rows_a if key in rows_b]
    if not common:
        raise DataError(f"{a.arm!r} and {b.arm!r} share no held-out row; score both on the same rows")
    pairs = [(rows_a[key], rows_b[key]) for key in common]
    cluster_N = clusters_of([left for left, _ in pairs])
    if a.metric == "macro_f1":
        expected = [left.expected for left, _ in pairs]
        expected_N, output_a_N = label_codes(expected, [left.output for left, _ in pairs])
        _, output_b_N = label_codes(expected, [right.output for _, right in pairs])
        result = paired_macro_f1(
            expected_N,
            output_a_N,
            output_b_N,
            seed=seed,
            num_resamples=num_resamples,
            level=level,
            cluster_N=cluster_N,
        )
    else:
        a_N, b_N = np.array([(left.score, right.score) for left, right in pairs]).T
        result = paired_means(a_N, b_N, seed=seed, num_resamples=num_resamples, level=level, cluster_N=cluster_N)
    return Difference(a.arm, b.arm, result.difference, result.p_value, f"{result.method}; {len(pairs)} common rows")


def not_much_worse(a: ArmScore, b: ArmScore, margin: float = MARGIN, *, seed: int = 0) -> bool:
    """Whether a is shown, at one-sided 5 %, to score less than margin below b: non-inferiority.

    Raises: DataError, as paired_difference. Source: Piaggio et al. 2012, JAMA 308:2594-2604 (CONSORT extension).
    """
    return paired_difference(a, b, seed=seed, level=2 * ONE_SIDED).difference.low > -margin


def mcnemar_mid_p(num_only_a: int, num_only_b: int) -> float:
    """Two-sided mid-p of McNemar's exact test on the discordant rows; 1 where they are even or none."""
    from scipy.stats import binom

    if num_only_a == num_only_b:
        return 1.0
    num, smaller = num_only_a + num_only_b, min(num_only_a, num_only_b)
    return min(1.0, float(2 * binom.cdf(smaller, num, 0.5) - binom.pmf(smaller, num, 0.5)))


def _by_id(rows: Sequence[RowScore]) -> dict[tuple[str, int], RowScore]:
    """Rows by id and, where an id repeats, its occurrence."""
    seen: Counter[str] = Counter()
    keyed = {}
    for row in rows:
        keyed[row.id, seen[row.id]] = row
        seen[row.id] += 1
    return keyed
