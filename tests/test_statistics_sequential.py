"""Looking early: bets against the bar, planned looks, and the coverage bench in small."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from bench.coverage import SCORES, error_rates, family, means, proportions
from shoestring.evaluate.sequential import MIN_ROWS, EarlyRejection, betting_wealth, look, looks
from shoestring.evaluate.statistics import wilson
from shoestring.ladder import rung_level


def test_wealth_by_hand() -> None:
    # At a mean of one half stakes lie between 0 and 2: a miss multiplies a stake s by 1 + s / 2, a hit by 1 - s / 2.
    stakes = 2 * (np.arange(32) + 0.5) / 32
    by_hand = [np.mean(1 + stakes / 2), np.mean((1 + stakes / 2) * (1 - stakes / 2))]
    assert betting_wealth(np.array([0.0, 1.0]), 0.5) == pytest.approx(by_hand)


def test_wealth_does_not_grow_where_there_is_nothing_to_win() -> None:
    """Mean over all outcomes of three rows, each right with the chance that is bet against: exactly one."""
    rate, total = 0.7, 0.0
    for code in range(8):
        scores = np.array([code >> i & 1 for i in range(3)], float)
        chance = math.prod(rate if s else 1 - rate for s in scores)
        total += chance * betting_wealth(scores, rate)[-1]
    assert total == pytest.approx(1.0)


def test_a_hopeless_arm_is_given_up_and_a_good_one_is_not() -> None:
    hopeless, good = EarlyRejection(0.9), EarlyRejection(0.9)
    assert not hopeless.add([0.0] * (MIN_ROWS - 1))
    assert hopeless.add([0.0, 1.0]) and "given up after 11 rows" in hopeless.reason()
    assert not good.add([1.0] * 90 + [0.0] * 10)
    assert not EarlyRejection(0.0).add([0.0] * 50)


def test_looks_are_the_published_bounds() -> None:
    # Five looks, two-sided 5 %, O'Brien-Fleming spending: ldbounds and Lan & DeMets' tables.
    assert looks((0.2, 0.4, 0.6, 0.8, 1.0)) == pytest.approx((4.8769, 3.3569, 2.6803, 2.2898, 2.0310), abs=2e-4)
    assert looks((1.0,)) == pytest.approx((1.959964,), abs=1e-5)


def test_a_look_accepts_rejects_or_goes_on() -> None:
    planned = (100, 200)
    assert look([1.0] * 100, planned, 0.8).decision == "accept"
    assert look([0.0] * 90 + [1.0] * 10, planned, 0.8).decision == "reject"
    early = look([1.0] * 85 + [0.0] * 15, planned, 0.8)
    assert early.decision == "go on" and early.score.low < wilson(85, 100).low
    assert look([1.0] * 160 + [0.0] * 40, planned, 0.8).decision == "reject"  # the last look decides


def test_levels_of_a_ladder_add_up() -> None:
    assert [rung_level(k) for k in (1, 2, 5)] == [0.025, 0.025, 0.01]
    assert all(k * rung_level(k) <= 0.05 + 1e-12 for k in range(1, 20))


def test_the_bench_in_small() -> None:
    """Where sums are exact they are held to 93 to 97 %; of few seeds no more is asked than they can tell."""
    assert all(0.93 <= round(c["coverage"], 3) <= 0.97 for c in proportions((50, 100)))
    assert all(c["coverage"] >= 0.86 for c in means(50, (50,)))
    assert max(error_rates(60).values()) <= 0.15 and max(family(200).values()) <= 0.09
    assert json.dumps([*means(2, (50,)), family(2)])  # what --json prints
    rng = np.random.default_rng(0)
    for draw, truth in SCORES.values():
        assert draw(rng, 200_000).mean() == pytest.approx(truth, abs=0.003)
