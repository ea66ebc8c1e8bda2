"""Price of a machine hour: the run file's, else the cheapest dated offer of the device.

Prices are US dollars per GPU-hour and move within weeks, so every price carries its source and its age.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from datetime import UTC, date, datetime

from ..config import MarketConfig
from ..errors import BadInput
from ..plan.devices import gpu_spec
from ..records import Device
from .offers import MACHINES_AT_HAND, Offer
from .table import DATED_BASES, STALE_DAYS, age_in_words, load


@dataclass(frozen=True, slots=True)
class Price:
    """A price with where it came from; source says seller, date and age in words."""

    usd_per_hour: float
    source: str
    as_of: str
    basis: str


def price_for(device: Device, market: MarketConfig, *, num_gpus: int = 1, today: date | None = None) -> Price:
    """The price of an hour of a machine with num_gpus of the device.

    The run file's price wins. Of the offers the cheapest that is not spot counts: machines of one GPU before larger
    ones, dated prices before recalled figures. Raises: BadInput listing near rows for a device without an offer.
    """
    if market.price_usd_per_hour is not None:
        return Price(market.price_usd_per_hour, "given in the run file", "", "given")
    today = today or datetime.now(UTC).date()
    wanted = market.device or (device.kind if device.kind in MACHINES_AT_HAND else device.name)
    spec = gpu_spec(wanted)
    gpu = spec.device if spec else wanted.lower()
    offers = [o for o in load(today).offers if not o.is_spot and o.gpu == gpu]
    if not offers:
        names = sorted({o.gpu for o in load(today).offers})
        near = difflib.get_close_matches(wanted.upper(), names, n=4, cutoff=0.4) or names
        what = f"market.device = {market.device!r}" if market.device else f"the device {device.name!r}"
        raise BadInput(
            f"no price for {what}; near rows: {', '.join(near)}; or give market.price_usd_per_hour in the run file"
        )
    offer = min(offers, key=_order)
    source = describe(offer, today) if num_gpus == 1 else f"{num_gpus} x {describe(offer, today)}"
    return Price(offer.usd_per_gpu_hour * num_gpus, source, offer.observed_at.isoformat(), offer.basis)


def _order(offer: Offer) -> tuple[bool, bool, float, int]:
    return (
        offer.basis not in DATED_BASES,
        offer.num_gpus > 1,
        offer.usd_per_gpu_hour,
        -offer.observed_at.toordinal(),
    )


def describe(offer: Offer, today: date) -> str:
    """Seller, basis, date and age of an offer, in words."""
    if offer.basis == "assumption":
        return f"assumption of {offer.observed_at.isoformat()}: {offer.source}"
    basis = {
        "recalled": "recalled list price",
        "third-party copy": f"list price copied by {offer.source}",
        "quoted": f"price quoted by {offer.source}",
        "undated catalog": f"undated row of {offer.source}",
    }[offer.basis]
    is_stale = (today - offer.observed_at).days > STALE_DAYS or offer.basis not in DATED_BASES
    stale = ", check it" if is_stale else ""
    return f"{offer.seller}, {basis}, {offer.observed_at.isoformat()} ({age_in_words(offer.observed_at, today)}{stale})"
