"""What machines that may be taken away cost and when they are done, and the Pareto list."""

from __future__ import annotations

import math

import pytest

from shoestring.config import MarketConfig
from shoestring.market.options import billable_h, setup_hours
from shoestring.market.spot import hazard_known, hazard_of
from shoestring.market.terms import TERMS_CSV, term, terms, value
from shoestring.plan.hazard import Seen
from shoestring.plan.settings import interruptions
from shoestring.plan.spot import Hazard, billed, billed_h, finish_frac, interval_h, pareto, quantile_of, share_below
from shoestring.records import Device, Estimate


def exactly(number: float) -> Estimate:
    return Estimate(number, number, number)


# (interruptions an hour, predicted billed hours) of ten hours of work on four zones of AWS, as the market notes have
# them: restart 10 min, checkpoint 5 s.
ZONES = ((0.10, 10.5), (0.17, 10.7), (0.44, 11.3), (1.39, 13.6))


@pytest.mark.parametrize(("per_h", "hours"), ZONES)
def test_billed_hours_by_the_published_table(per_h: float, hours: float) -> None:
    assert round(billed_h(10, per_h, 10 / 60, 5 / 3600), 1) == hours


def test_without_interruptions_only_the_start_and_the_checkpoints_are_added() -> None:
    assert billed_h(10, 0.0, 0.5, 0.1) == pytest.approx(10.5 + 0.1)  # one checkpoint, at the end
    # M = 2 h: sqrt(2 x 0.01 x 2) (1 + sqrt(0.0025) / 3 + 0.0025 / 9) - 0.01
    assert interval_h(0.5, 0.01, 10) == pytest.approx(0.1933889)
    assert interval_h(0.0, 0.01, 10) == 10


def test_billed_hours_grow_with_everything() -> None:
    base = billed_h(10, 0.3, 0.2, 0.01)
    assert base < billed_h(11, 0.3, 0.2, 0.01) < billed_h(11, 0.6, 0.2, 0.01) < billed_h(11, 0.6, 0.4, 0.02)


def test_the_first_start_and_the_last_interval_by_hand() -> None:
    # No work to lose: a start of half an hour at two interruptions an hour takes (e - 1) / 2 hours.
    assert billed_h(1e-9, 2.0, 0.5, 0.0) == pytest.approx((math.e - 1) / 2, rel=1e-6)
    # Planned without interruptions there is one interval, with a checkpoint at its end.
    whole = math.expm1(0.2 * 0.5) / 0.2 + math.exp(0.2 * 0.5) * math.expm1(0.2 * 4.1) / 0.2
    assert billed_h(4.0, 0.2, 0.5, 0.1, planned_per_h=0.0) == pytest.approx(whole)
    # An hour and a bit: the bit is an interval of its own, not a whole one.
    tau = interval_h(0.2, 0.01, 10.0)
    step = billed_h(tau * 1.1, 0.2, 0.0, 0.01) - billed_h(tau, 0.2, 0.0, 0.01)
    assert step == pytest.approx(math.expm1(0.2 * (tau * 0.1 + 0.01)) / 0.2)


def test_the_chance_of_being_done() -> None:
    work, none = exactly(10.0), exactly(0.0)
    assert finish_frac(work, none, none, 10.0) == 1.0
    assert finish_frac(work, none, none, 9.9) == 0.0
    hazard = Hazard(exactly(0.1), exactly(2.0))
    hours = billed_h(10, 0.1, 0.0, 0.0)
    # No slack for a wait: only the runs that are never interrupted.
    assert finish_frac(work, none, none, hours + 1e-9, hazard) == pytest.approx(math.exp(-0.1 * hours), rel=1e-3)
    rising = [finish_frac(work, none, none, deadline, hazard) for deadline in (11, 13, 18, 30)]
    assert rising == sorted(rising) and rising[-1] > 0.99


def test_an_estimates_ends_hold_at_5_and_95_percent() -> None:
    hours = Estimate(2.0, 1.0, 6.0)
    assert quantile_of(hours, 0.95) == pytest.approx(6.0) and quantile_of(hours, 0.05) == pytest.approx(1.0)
    assert share_below(hours, 2.0) == pytest.approx(0.5)
    assert share_below(hours, quantile_of(hours, 0.8)) == pytest.approx(0.8)
    assert share_below(hours, 0.0) == 0.0 and share_below(exactly(2.0), 2.0) == 1.0


def test_a_range_of_hazards_is_a_range_of_hours() -> None:
    made = billed(exactly(10), Hazard(Estimate(0.3, 0.1, 1.4), exactly(2)), exactly(0.1), exactly(0.001))
    assert made.low < made.value < made.high


def test_the_pareto_list_by_hand() -> None:
    # (dollars, hours): the third is dearer and slower than the second, the fourth equals the first.
    assert pareto([(1, 9), (2, 3), (3, 4), (1, 9), (5, 1)]) == [0, 1, 4]


def test_whole_units_are_billed_and_no_less_than_the_minimum() -> None:
    assert billable_h(exactly(10.2 / 3600), "RunPod secure").value == pytest.approx(11 / 3600)
    assert billable_h(exactly(1 / 3600), "AWS").value == pytest.approx(60 / 3600)
    unknown = billable_h(exactly(61 / 3600), "a seller without a row")
    assert unknown.value == pytest.approx(61 / 3600) and unknown.high == 1.0  # an hour, where it may be so


def test_setup_is_boot_installation_and_download() -> None:
    size = 8_000_000_000 * 2
    by_hand = (value("boot_s").value + value("install_s").value + size / value("download_bytes_per_s").value) / 3600
    assert setup_hours(8_000_000_000).value == pytest.approx(by_hand)


def test_every_term_has_a_range_a_source_and_a_date() -> None:
    lines = TERMS_CSV.read_text(encoding="utf-8").strip().splitlines()
    assert len(terms()) == len(lines) - 1
    for row in terms().values():
        assert row.value.low <= row.value.value <= row.value.high, row
        assert row.unit and len(row.source) > 10 and row.as_of.year == 2026, row
        assert row.basis in ("third-party copy", "recalled", "assumption", "measured", "definition"), row
    assert term("hazard_per_h", "nobody") is term("hazard_per_h")


def test_the_run_files_range_is_narrowed_by_what_launches_saw_and_its_number_is_not() -> None:
    seen = {"GCP": Seen(100.0, 3)}
    table = hazard_known(MarketConfig(), "GCP", seen)
    assert (table.prior, table.as_of) == (value("hazard_per_h"), "2026-11-24")
    assert table.posterior.value < 0.06 and table.posterior.high < table.prior.high
    assert hazard_of(MarketConfig(), "AWS", seen).per_h == value("hazard_per_h")  # seen elsewhere
    ranged = hazard_known(MarketConfig(interruptions_per_hour=[0.5, 1.0, 2.0]), "GCP", seen)
    assert ranged.prior == Estimate(1.0, 0.5, 2.0) and ranged.posterior.value < 0.5
    number = hazard_known(MarketConfig(interruptions_per_hour=0.7), "GCP", seen)
    assert number.posterior == exactly(0.7) and "as given" in number.words
    gpu = Device("cuda", "L4", 24 * 2**30, 1, "bfloat16", "")
    assert interruptions(MarketConfig(interruptions_per_hour=[0.5, 1.0, 2.0]), gpu)[0] == 1.0


@pytest.mark.parametrize("given", [[0.1, 0.3], [0.3, 0.1, 1.0], [0.0, 0.1, 1.0], 4000, -1, [0.1, 0.2, float("nan")]])
def test_rates_that_are_none_are_refused(given: object) -> None:
    with pytest.raises(ValueError, match="interruptions_per_hour"):
        MarketConfig(interruptions_per_hour=given)  # type: ignore[arg-type]
