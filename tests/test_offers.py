"""Offers: one GPU-hour from any seller's terms, and the traps of real price lists refused with their reason."""

from __future__ import annotations

from datetime import date

import pytest

from shoestring.market.names import gpu_named
from shoestring.market.offers import Offer, Quote, Refusal, audit, check, market_medians, normalise

DAY = date(2026, 11, 24)
GIB = 1024**3


def quote(usd_per_hour: float = 32.0, num_gpus: float = 8, gpu: str = "H100 80GB HBM3", **more: object) -> Quote:
    return Quote("Acme", gpu, num_gpus, usd_per_hour, **more)  # type: ignore[arg-type]


def offer(seller: str, price: float, *, is_spot: bool = False, region: str = "", gpu: str = "L4") -> Offer:
    return Offer(seller, region, gpu, 1, 24 * 10**9, price, is_spot, "", "test", DAY)


def refusal(quoted: Quote) -> Refusal:
    result = normalise(quoted, "test", DAY)
    assert isinstance(result, Refusal)
    return result


def test_a_machine_by_hand() -> None:
    made = normalise(quote(gpu_memory_bytes=81559 * 1024**2, region="us-east"), "test", DAY)
    assert made == Offer("Acme", "us-east", "H100-SXM", 8, 80 * 10**9, 4.0, False, "", "test", DAY)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("H100 80GB HBM3", "H100-SXM"),
        ("H100 PCIE", "H100-PCIE"),
        ("NVIDIA H100 NVL", None),
        ("H100", None),  # SXM or PCIe: a third apart in price
        ("A100-SXM4-80GB", "A100-SXM"),
        ("a100-sxm-40", "A100-40GB"),
        ("A100-PCIE-40GB", None),
        ("RTX 4090 D", None),
        ("RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 5090", "RTX5090"),
        ("rtx-5090-laptop", None),
        ("RTX 6000 Ada Generation", "RTX6000-ADA"),
        ("Quadro RTX 6000", None),
        ("Tesla T4", "T4"),
        ("GB200", None),
        ("B200 SXM6", "B200"),
        ("Tesla V100-SXM2-32GB", None),
    ],
)
def test_names(name: str, row: str | None) -> None:
    assert gpu_named(name) == row


def test_memory_tells_namesakes_apart() -> None:
    assert gpu_named("Tesla V100", 32 * GIB) is None and gpu_named("Tesla V100", 16 * GIB) == "V100-16GB"
    assert gpu_named("A100 SXM4", 40 * GIB) == "A100-40GB" and gpu_named("A100 SXM4", 80 * GIB) == "A100-SXM"


def test_gigabytes_in_a_mebibyte_field_are_refused() -> None:
    """SkyPilot's RunPod rows say 80 where 81920 MiB is meant."""
    fault = refusal(quote(gpu_memory_bytes=80 * 1024**2))
    assert "80.0 MiB a GPU" in fault.value and "74.51 GiB" in fault.limit and fault.is_implausible
    assert "mebibyte" in fault.reason


def test_the_sum_over_gpus_is_refused() -> None:
    assert "sum over GPUs" in refusal(quote(gpu_memory_bytes=640 * GIB)).reason


@pytest.mark.parametrize(("gpu", "gib"), [("T4", 16), ("RTX 5090", 32), ("B300", 262), ("L4", 22.35), ("H200", 140)])
def test_both_kinds_of_gigabyte_are_taken(gpu: str, gib: float) -> None:
    for memory in (gib * GIB, gib * 10**9):
        made = normalise(quote(gpu=gpu, gpu_memory_bytes=int(memory)), "test", DAY)
        assert isinstance(made, Offer), made


def test_a_host_without_its_gpu_is_refused() -> None:
    fault = refusal(quote(0.74, 1, "A100 SXM 40GB", detail="a2-highgpu-1g", excludes="the GPU"))
    assert str(fault) == (
        "Acme 1x A100 SXM 40GB (a2-highgpu-1g): 0.74 USD/h, limit the whole machine: the price leaves out the GPU"
    )


@pytest.mark.parametrize("num_gpus", [0, 0.5, -1])
def test_parts_of_a_gpu_are_refused(num_gpus: float) -> None:
    assert "whole" in refusal(quote(num_gpus=num_gpus)).limit


def test_spot_traps() -> None:
    table = [
        offer("Acme", 0.80),
        offer("Acme", 0.0, is_spot=True),
        offer("Acme", 0.80, is_spot=True),
        offer("Acme", 0.08, is_spot=True),
        offer("Acme", 0.95, is_spot=True),
        offer("Acme", 0.31, is_spot=True),
    ]
    kept, refused = audit(table)
    assert [o.usd_per_gpu_hour for o in kept] == [0.80, 0.31]
    reasons = [fault.reason for fault in refused]
    assert "a spot price of zero is a missing one" in reasons[0]
    assert "equal to the list price" in reasons[1]
    assert "exactly a tenth of the list price 0.8" in reasons[2]
    assert "dearer than the seller's own list price" in reasons[3]
    assert all(fault.value and fault.limit for fault in refused)


def test_spot_is_held_against_the_list_price_of_its_own_region_first() -> None:
    table = [
        offer("Acme", 0.80, region="east"),
        offer("Acme", 1.10, region="west"),
        offer("Acme", 0.80, region="west", is_spot=True),
        offer("Acme", 0.80, region="south", is_spot=True),  # no list price there: any of the seller's counts
    ]
    kept, refused = audit(table)
    assert [o.region for o in kept if o.is_spot] == ["west"]
    assert [fault.what for fault in refused] == ["Acme 1x L4 spot in south"]


def test_another_sellers_list_price_is_no_filler() -> None:
    kept, refused = audit([offer("Acme", 0.80), offer("Other", 0.80, is_spot=True)])
    assert len(kept) == 2 and not refused


def test_ten_times_the_price_is_refused_against_the_market() -> None:
    market = [offer("A", 0.44), offer("B", 0.80), offer("C", 0.80), offer("C", 0.90)]
    assert market_medians(market) == {"L4": 0.80}
    kept, refused = audit([offer("Acme", 7.0), offer("Acme", 0.7), offer("Acme", 0.1)], market=market)
    assert [o.usd_per_gpu_hour for o in kept] == [0.7]
    assert [fault.limit for fault in refused] == ["0.16 to 4.00"] * 2
    assert all(fault.is_implausible for fault in refused)


def test_two_sellers_are_no_market_but_the_last_table_is_a_measure() -> None:
    table = [offer("Acme", 7.0)]
    assert audit(table, market=[offer("A", 0.44), offer("B", 0.8)])[0] == table
    kept, refused = audit(table, previous=[offer("Acme", 0.7)])
    assert not kept and "the same source said 0.70 the time before" in refused[0].reason


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf"), 0.0])
def test_what_is_no_price(price: float) -> None:
    kept, refused = audit([offer("Acme", price)])
    assert not kept and refused[0].reason == "not a price" and refused[0].limit == "above 0"


def test_gpus_outside_the_table_are_counted() -> None:
    checked = check([quote(), quote(gpu="MI300X"), quote(gpu="MI300X")], source="test", observed_at=DAY)
    assert len(checked.offers) == 1 and checked.outside == {"MI300X": 2} and not checked.refused
