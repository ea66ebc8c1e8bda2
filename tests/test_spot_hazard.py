"""How often spot machines are taken: the range, what was seen, the range after that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shoestring.ledger import Ledger
from shoestring.plan.hazard import (
    HazardKnown,
    Seen,
    basis,
    expected_after,
    gamma_of,
    gamma_quantile,
    seen_in,
    updated,
)
from shoestring.records import Estimate

PRIOR = Estimate(0.3, 0.1, 1.4)


def test_the_prior_has_its_range_at_5_and_95_percent() -> None:
    for low, high in ((0.1, 1.4), (0.01, 2.0), (0.5, 0.6)):
        shape, rate = gamma_of(low, high)
        assert gamma_quantile(shape, 0.05) / rate == pytest.approx(low, rel=1e-6)
        assert gamma_quantile(shape, 0.95) / rate == pytest.approx(high, rel=1e-6)


def test_an_update_by_hand() -> None:
    # Shape 1.94 and rate 3.32 h have 5 % below 0.1 and above 1.4. Two interruptions in thirty hours:
    shape, rate = gamma_of(0.1, 1.4)
    assert (shape, rate) == pytest.approx((1.941, 3.320), abs=1e-3)
    after = updated(PRIOR, Seen(30.0, 2))
    assert after.value == pytest.approx((0.3 * rate + 2) / (rate + 30)) == expected_after(PRIOR, Seen(30.0, 2))
    draws = np.random.default_rng(0).gamma(shape + 2, 1 / (rate + 30), 200_000)
    assert (after.low, after.high) == pytest.approx(np.quantile(draws, (0.05, 0.95)), rel=0.01)


def test_much_seen_outweighs_the_prior_and_nothing_seen_leaves_it() -> None:
    assert updated(PRIOR, Seen()) == PRIOR
    after = updated(PRIOR, Seen(10_000.0, 20_000))
    assert after.value == pytest.approx(2.0, rel=1e-3) and after.high - after.low < 0.06
    none = updated(PRIOR, Seen(100.0, 0))  # never taken in a hundred hours: rare, not impossible
    assert 0 < none.low <= none.value <= none.high < 0.1
    given = Estimate(0.2, 0.2, 0.2)
    assert updated(given, Seen(10.0, 9)) == given


def test_ledger_lines_of_launches_are_added_up_by_seller(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for seller, seen in (("RunPod", Seen(2.0, 1)), ("RunPod", Seen(3.5, 0)), ("GCP", Seen(1.0, 4))):
        ledger.record(
            "launch",
            stage="launch",
            predicted=None,
            actual={"s": 1.0},
            price_usd_per_hour=1.0,
            basis=basis(seller, seen),
        )
    ledger.record("rungs/m", stage="train", predicted=None, actual={"s": 1.0}, price_usd_per_hour=None)
    assert seen_in(ledger.entries()) == {"RunPod": Seen(5.5, 1), "GCP": Seen(1.0, 4)}
    broken = [{"basis": {"spot": row}} for row in ({}, [], {"seller": "x", "running_h": -1.0, "num_interruptions": 1})]
    assert seen_in(broken) == {}


def test_it_is_said_in_a_line() -> None:
    seen = Seen(30.0, 2)
    known = HazardKnown("GCP", PRIOR, "traces", "2026-11-24", seen, updated(PRIOR, seen))
    assert known.words == "GCP: 0.3 (0.1 to 1.4) interruptions an hour; seen 2 in 30.0 h, so 0.09 (0.04 to 0.23)"
    unseen = HazardKnown("", PRIOR, "traces", "2026-11-24", Seen(), PRIOR)
    assert unseen.words.endswith("none of your launches ran there yet")
