"""The dated price table: every row checked, the run file's price first, age shown."""

from datetime import date

import pytest

from shoestring.config import MarketConfig
from shoestring.errors import BadInput
from shoestring.market.offers import LIST_BASES, MACHINES_AT_HAND, audit
from shoestring.market.prices import price_for
from shoestring.market.table import snapshot
from shoestring.plan.devices import gpu_table
from shoestring.records import Device

CPU = Device("cpu", "cpu", 16 * 2**30, 2, "float32", "")
TODAY = date(2026, 11, 24)


def gpu(name):
    return Device("cuda", name, 80 * 10**9, 8, "bfloat16", "")


def test_a_row_by_hand():
    price = price_for(gpu("NVIDIA H100 80GB HBM3"), MarketConfig(), today=TODAY)
    assert price.usd_per_hour == 2.69
    assert price.source == "RunPod community, list price copied by data-receipts, 2026-11-09 (15 days old)"
    for name in ("H100 80GB HBM3", "h100-sxm"):  # torch's name without the maker, as train.detect_device gives it
        assert price_for(gpu(name), MarketConfig(), today=TODAY) == price
    assert price_for(gpu("H100-SXM"), MarketConfig(), today=TODAY) == price


def test_electricity_is_marked_as_an_assumption():
    price = price_for(CPU, MarketConfig(), today=TODAY)
    assert price.usd_per_hour == pytest.approx(0.065 * 0.17, abs=1e-4)
    assert price.basis == "assumption" and price.source.startswith("assumption of 2026-11-24")


def test_the_run_file_wins_even_with_zero():
    assert price_for(CPU, MarketConfig(price_usd_per_hour=0.0)).usd_per_hour == 0.0
    assert price_for(gpu("unknown card"), MarketConfig(price_usd_per_hour=1.5)).source == "given in the run file"


def test_market_device_wins_over_the_present_one():
    assert price_for(CPU, MarketConfig(device="l40s"), today=TODAY).usd_per_hour == 0.79


def test_unknown_device_lists_near_rows():
    with pytest.raises(BadInput, match=r"no price for market.device = 'H100'; near rows: .*H100-SXM"):
        price_for(CPU, MarketConfig(device="H100"))
    with pytest.raises(BadInput, match=r"market\.price_usd_per_hour"):
        price_for(gpu("Imaginary 9000"), MarketConfig())


def test_old_and_recalled_prices_say_so():
    assert "check it" in price_for(gpu("RTX3090"), MarketConfig(), today=TODAY).source
    assert "recalled" in price_for(gpu("T4"), MarketConfig(), today=TODAY).source
    # a dated copy is used before a recalled figure
    assert price_for(gpu("L4"), MarketConfig(), today=TODAY).basis == "third-party copy"


def test_a_clock_before_the_prices_is_named():
    source = price_for(gpu("H100-SXM"), MarketConfig(), today=date(2026, 1, 1)).source
    assert source.endswith("2026-11-09 (dated after this machine's clock, 2026-01-01)")


def test_every_row_of_the_snapshot():
    seen = set()
    for row in snapshot():
        assert row.seller and row.source, row
        assert row.gpu in gpu_table() or row.gpu in MACHINES_AT_HAND, (
            f"{row.gpu} has a price but no row in plan/gpus.csv"
        )
        assert row.basis in LIST_BASES, row
        assert 0.005 <= row.usd_per_gpu_hour <= 20 and row.num_gpus >= 1, row
        assert date(2026, 1, 1) <= row.observed_at <= TODAY, row
        assert bool(row.interruption) == row.is_spot, row
        key = (row.seller, row.gpu, row.is_spot, row.num_gpus, row.region)
        assert key not in seen, f"{key} stands twice"
        seen.add(key)


def test_the_snapshot_passes_the_checks_of_every_table():
    kept, refused = audit(snapshot())
    assert not refused and len(kept) == len(snapshot())


def test_every_gpu_that_can_be_planned_has_a_price():
    assert {row.gpu for row in snapshot()} == {*gpu_table(), *MACHINES_AT_HAND}
