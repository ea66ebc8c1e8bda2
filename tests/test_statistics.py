"""Intervals and paired tests: textbook numbers, coverage by simulation, and the degenerate cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shoestring.errors import DataError
from shoestring.evaluate.paired import mcnemar_mid_p, not_much_worse, paired_difference, paired_macro_f1, paired_means
from shoestring.evaluate.score import with_clusters
from shoestring.evaluate.statistics import (
    bootstrap_macro_f1,
    bootstrap_mean,
    detectable_difference,
    rows_for_difference,
    rows_to_settle,
    score_interval,
    wilson,
)
from shoestring.records import ArmScore, Estimate, RowScore


def arm(
    name: str, scores: dict[str, float], metric: str = "accuracy", outputs: dict[str, str] | None = None
) -> ArmScore:
    rows = tuple(
        RowScore(i, "p", "a", (outputs or {}).get(i, "a"), score, 1, 1, 0.1, 0.0) for i, score in scores.items()
    )
    return ArmScore(name, "finetune", "m", metric, Estimate(0.5, 0, 1), len(rows), 1.0, 0.0, {}, "wilson", rows)


def test_wilson_by_hand() -> None:
    # 8 of 10: centre (0.8 + 0.19207) / 1.38415, half width 1.95996 sqrt(0.016 + 0.0096036) / 1.38415.
    got = wilson(8, 10)
    assert (got.value, got.low, got.high) == pytest.approx((0.8, 0.49016, 0.94332), abs=1e-5)
    none, every = wilson(0, 50), wilson(50, 50)
    assert none.low == 0 and none.high == pytest.approx(0.07135, abs=1e-5)
    assert every.high == 1 and every.low == pytest.approx(1 - 0.07135, abs=1e-5)


def test_wilson_covers_a_rate() -> None:
    for num_rows, rate in ((30, 0.9), (100, 0.95), (200, 0.5)):
        chance = [math.comb(num_rows, k) * rate**k * (1 - rate) ** (num_rows - k) for k in range(num_rows + 1)]
        covered = sum(p for k, p in enumerate(chance) if wilson(k, num_rows).low <= rate <= wilson(k, num_rows).high)
        assert 0.93 < covered < 0.985


def test_bootstrap_is_the_mid_p_interval_on_zeros_and_ones() -> None:
    from scipy.stats import binom

    got = bootstrap_mean(np.array([1.0] * 8 + [0.0] * 2))

    def mid_p(rate: float, num_hits: int) -> float:  # of num_hits or more
        return float(binom.sf(num_hits, 10, rate) + 0.5 * binom.pmf(num_hits, 10, rate))

    assert mid_p(got.low, 8) == pytest.approx(0.025, abs=0.01)
    assert 1 - mid_p(got.high, 8) == pytest.approx(0.025, abs=0.01)


def test_equal_rows_do_not_give_a_certain_score() -> None:
    for num_rows in (1, 5, 20, 300):
        ones = bootstrap_mean(np.ones(num_rows))
        assert ones.value == ones.high == 1.0
        # Half the chance of num_rows rows all alike is 2.5 %.
        assert ones.low == pytest.approx(0.05 ** (1 / num_rows), abs=0.02)
    halves = bootstrap_mean(np.full(20, 0.5))
    assert halves.low < 0.45 and halves.high > 0.55
    labels = np.array([0, 1] * 10)
    perfect = bootstrap_macro_f1(labels, labels)
    assert perfect.value == perfect.high == 1.0 and 0.7 < perfect.low < 0.9


def test_bootstrap_covers_a_mean_with_rare_failures() -> None:
    """Rows near one and 2 % at zero: the plain percentile bootstrap claims too much in 11 % of samples."""
    values, chances = np.array([1.0, 0.9, 0.8, 0.0]), np.array([0.80, 0.10, 0.08, 0.02])
    truth, rng = float(values @ chances), np.random.default_rng(0)
    intervals = [bootstrap_mean(rng.choice(values, 100, p=chances), seed=i) for i in range(300)]
    assert np.mean([i.low > truth for i in intervals]) < 0.04
    assert np.mean([i.low <= truth <= i.high for i in intervals]) > 0.93


def test_bootstrap_covers_macro_f1_and_rarely_claims_too_much() -> None:
    rng = np.random.default_rng(1)
    right = rng.uniform(0.6, 0.95, 12)

    def draw(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        expected = rng.integers(0, 12, num_rows)
        wrong = (expected + rng.integers(1, 12, num_rows)) % 12
        return expected, np.where(rng.random(num_rows) < right[expected], expected, wrong)

    truth = bootstrap_macro_f1(*draw(200_000), num_resamples=2).value
    intervals = [bootstrap_macro_f1(*draw(120), seed=i, num_resamples=500) for i in range(200)]
    assert np.mean([i.low > truth for i in intervals]) < 0.05
    assert np.mean([i.low <= truth <= i.high for i in intervals]) > 0.90


def test_rows_of_one_cluster_are_one_draw() -> None:
    """Every row four times is no more than the rows once; and the ids say which rows belong together."""
    rng = np.random.default_rng(5)
    once = rng.random(60).round(2)
    alone = bootstrap_mean(once)
    repeated = bootstrap_mean(np.repeat(once, 4), cluster_N=np.repeat(np.arange(60), 4))
    assert (repeated.low, repeated.high) == pytest.approx((alone.low, alone.high), abs=1e-9)
    assert bootstrap_mean(np.repeat(once, 4)).low > alone.low + 0.02

    rows = {f"r{i}": float(i % 3 > 0) for i in range(30)}
    one_draw = bootstrap_mean(once, cluster_N=np.zeros(60, int))
    assert (one_draw.low, one_draw.high) == (0.0, 1.0)  # a single conversation says nothing of others
    whole = score_arm_of(rows)
    assert with_clusters(whole, {"r1": "r0"}) is whole  # one repeat in thirty rows changes nothing to speak of
    clustered = with_clusters(whole, {f"r{i}": f"r{i - i % 3}" for i in range(30)})
    assert clustered.interval == "cluster bootstrap" and clustered.rows[4].cluster == "r3"
    assert clustered.score.value == whole.score.value
    assert paired_difference(clustered, clustered).method.startswith("paired cluster bootstrap")


def score_arm_of(rows: dict[str, float]) -> ArmScore:
    import dataclasses

    made = arm("a", rows)
    score, interval = score_interval("accuracy", made.rows)
    return dataclasses.replace(made, score=score, interval=interval)


def test_not_much_worse_is_shown_not_assumed() -> None:
    ids = [f"r{i}" for i in range(400)]
    large = arm("large", {i: float(k % 20 > 0) for k, i in enumerate(ids)})
    small = arm("small", {i: float(k % 20 > 0 and k != 1) for k, i in enumerate(ids)})
    assert not_much_worse(small, large) and not_much_worse(large, small)
    few = arm("few", dict.fromkeys(ids[:30], 1.0))
    assert not not_much_worse(few, few, margin=0.01)  # equal, and 30 rows cannot show it
    bad = arm("bad", {i: float(k % 10 > 0) for k, i in enumerate(ids)})
    assert not not_much_worse(bad, large)


def test_statsmodels_agrees_where_it_has_the_same() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    from statsmodels.stats.contingency_tables import mcnemar

    for num_hits, num_rows in ((47, 50), (8, 10), (0, 20), (300, 300)):
        ours = wilson(num_hits, num_rows)
        low, high = proportion.proportion_confint(num_hits, num_rows, method="wilson")
        assert (ours.low, ours.high) == pytest.approx((max(0, low), min(1, high)), abs=1e-12)
    for a, b in ((2, 8), (15, 4), (1, 0)):
        exact = mcnemar([[0, a], [b, 0]], exact=True).pvalue
        tail = math.comb(a + b, min(a, b)) / 2 ** (a + b)
        assert mcnemar_mid_p(a, b) == pytest.approx(exact - tail if exact < 1 else 1 - tail)


def test_mcnemar_by_hand() -> None:
    # 2 against 8: two-sided exact p = 2 (1 + 10 + 45) / 1024, less P(2) = 45 / 1024 for mid-p.
    assert mcnemar_mid_p(2, 8) == mcnemar_mid_p(8, 2) == pytest.approx((2 * 56 - 45) / 1024)
    assert mcnemar_mid_p(0, 0) == mcnemar_mid_p(5, 5) == 1.0
    assert 0 <= mcnemar_mid_p(20_000, 100) < 1e-300


def test_paired_means_find_a_difference_and_not_a_tie() -> None:
    b = np.array([0.0] * 40 + [1.0] * 60)
    a = np.array([1.0] * 20 + [0.0] * 20 + [1.0] * 60)
    better = paired_means(a, b)
    assert better.difference.value == pytest.approx(0.2) and better.difference.low > 0.1
    assert better.p_value == mcnemar_mid_p(20, 0) and "McNemar" in better.method
    tie = paired_means(a, a)
    assert tie.p_value == 1.0 and tie.difference.low < 0 < tie.difference.high
    leaf = paired_means(a * 0.9, b * 0.9)
    assert "permutation" in leaf.method and leaf.p_value < 0.01
    assert paired_means(a * 0.9, a * 0.9).p_value == 1.0


def test_paired_difference_covers_and_keeps_its_level() -> None:
    rng = np.random.default_rng(2)
    inside, false_alarms = 0, 0
    for i in range(300):
        b = (rng.random(120) < 0.7).astype(float)
        a = np.where(rng.random(120) < 0.2, (rng.random(120) < 0.7).astype(float), b)
        result = paired_means(a, b, seed=i, num_resamples=400)
        inside += result.difference.low <= 0 <= result.difference.high
        false_alarms += result.p_value < 0.05
    assert inside / 300 > 0.92 and false_alarms / 300 < 0.08


def test_paired_macro_f1_agrees_with_the_single_ones() -> None:
    rng = np.random.default_rng(3)
    expected = rng.integers(0, 5, 150)
    a = np.where(rng.random(150) < 0.9, expected, 5)
    b = np.where(rng.random(150) < 0.6, expected, rng.integers(0, 6, 150))
    result = paired_macro_f1(expected, a, b)
    single = bootstrap_macro_f1(expected, a).value - bootstrap_macro_f1(expected, b).value
    assert result.difference.value == pytest.approx(single)
    assert result.difference.low > 0 and result.p_value < 0.01
    assert paired_macro_f1(expected, a, a).p_value == 1.0


def test_arms_are_paired_on_their_common_rows() -> None:
    ids = [f"r{i}" for i in range(40)]
    a = arm("tuned", dict.fromkeys(ids, 1.0))
    b = arm("prompt", {i: float(k % 2) for k, i in enumerate(ids[:20])})
    found = paired_difference(a, b)
    assert (found.arm_a, found.arm_b) == ("tuned", "prompt")
    assert found.difference.value == pytest.approx(0.5)
    assert found.method == "paired bootstrap; mid-p McNemar; 20 common rows"
    with pytest.raises(DataError, match="share no held-out row"):
        paired_difference(a, arm("other", {"x": 1.0}))
    with pytest.raises(DataError, match="by one metric"):
        paired_difference(a, arm("other", {"r0": 1.0}, "leaf_f1"))


def test_rows_with_one_id_are_paired_in_order() -> None:
    row = RowScore("same", "p", "a", "a", 1.0, 1, 1, 0.1, 0.0)
    import dataclasses

    a = dataclasses.replace(arm("a", {"x": 1.0}), rows=(row, dataclasses.replace(row, score=0.0)))
    assert paired_difference(a, a).method.endswith("2 common rows")


def test_power_by_the_published_table() -> None:
    """Rows at two-sided 5 % and 80 % power for a paired difference (design/peers/eval.md, section 3)."""
    table = {
        (0.05, 0.02): 979,
        (0.10, 0.05): 312,
        (0.20, 0.02): 3923,
        (0.20, 0.05): 626,
        (0.20, 0.10): 155,
        (0.30, 0.10): 234,
    }
    for (discordant, difference), num_rows in table.items():
        assert rows_for_difference(difference, discordant) == pytest.approx(num_rows, rel=0.01)
        assert detectable_difference(num_rows, discordant) == pytest.approx(difference, rel=0.01)


def test_power_with_few_rows() -> None:
    assert [round(detectable_difference(n), 2) for n in (1, 20, 200)] == [1.0, 0.35, 0.09]
    for act in (lambda: detectable_difference(0), lambda: wilson(0, 0), lambda: bootstrap_mean(np.array([]))):
        with pytest.raises(DataError, match="no held-out rows"):
            act()


def test_rows_to_settle() -> None:
    # 0.85 with 0.05 down to its low: a bar 0.025 below needs four times the rows.
    assert rows_to_settle(Estimate(0.85, 0.80, 0.89), 100, 0.825) == 400
    assert rows_to_settle(Estimate(0.80, 0.75, 0.86), 100, 0.82) == 900
    assert rows_to_settle(Estimate(0.80, 0.75, 0.86), 100, 0.80) is None
