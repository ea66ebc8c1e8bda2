"""What spot machines of a seller are like: how often they are taken, and what it costs to move checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..config import MarketConfig, RunConfig
from ..plan.hazard import HazardKnown, Seen, updated
from ..plan.spot import Hazard, interval_h
from ..records import Estimate
from ..units import BYTES_PER_GB, SECONDS_PER_HOUR
from .offers import Offer
from .terms import term, value
from .work import Work

PICKS = ("value", "low", "high")
NONE = Estimate(0.0, 0.0, 0.0)


def hazard_known(market: MarketConfig, seller: str, seen: Mapping[str, Seen]) -> HazardKnown:
    """Interruptions an hour: the run file's or the table's range, narrowed by what launches there saw."""
    row, mine, given = term("hazard_per_h", seller), seen.get(seller, Seen()), market.interruptions_per_hour
    prior, source, as_of = row.value, row.source, row.as_of.isoformat()
    if given is not None:
        low, expected, high = given if isinstance(given, list) else [given] * 3
        prior, source, as_of = Estimate(expected, low, high), "market.interruptions_per_hour of the run file", ""
    return HazardKnown(seller, prior, source, as_of, mine, updated(prior, mine))


def hazard_of(market: MarketConfig, seller: str, seen: Mapping[str, Seen]) -> Hazard:
    """Interruptions and waits of a seller's spot machines."""
    return Hazard(hazard_known(market, seller, seen).posterior, value("wait_h", seller))


def egress_usd(config: RunConfig, work: Work, offer: Offer, num_interruptions: Estimate) -> Estimate:
    """Dollars for checkpoints that leave the seller's region, and come back to it after an interruption.

    A spot machine needs a place that outlives it; whether that is in the same region, which is free, is the range.
    """
    if not (offer.is_spot or "://" in (config.train.checkpoints or "")):
        return NONE
    price, save_h = value("egress_usd_per_gb", offer.seller), value("save_s").value / SECONDS_PER_HOUR
    size_gb = work.checkpoint_bytes / BYTES_PER_GB

    def usd(pick: str) -> float:
        hours = getattr(work.train_s, pick) / SECONDS_PER_HOUR
        every_h = interval_h(work.settings.interruptions_per_hour, save_h, hours)
        num_written = math.ceil(hours / every_h - 1e-9) if every_h > 0 else 0
        return float(getattr(price, pick) * size_gb * (num_written + getattr(num_interruptions, pick)))

    return Estimate(*(usd(pick) for pick in PICKS))
