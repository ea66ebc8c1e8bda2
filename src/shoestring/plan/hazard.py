"""How often spot machines are taken: a range with its source, and what earlier launches saw of it.

The range (market/terms.csv, or market.interruptions_per_hour of the run file) is read as a gamma distribution with 5 %
below its low and 5 % above its high. Interruptions in so many running hours are Poisson, so the posterior is a gamma
with their number added to the shape and the hours to the rate (conjugate update). The expected value moves likewise,
from the range's own to number over hours: (expected x rate + number) / (rate + hours).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..records import Estimate

LOW, HIGH = 0.05, 0.95
BASIS = "spot"  # key of a ledger line's basis that holds what one launch saw


@dataclass(frozen=True, slots=True)
class Seen:
    """Hours that spot machines of a seller ran, and how often one was taken."""

    running_h: float = 0.0
    num_interruptions: int = 0

    def __add__(self, other: Seen) -> Seen:
        return Seen(self.running_h + other.running_h, self.num_interruptions + other.num_interruptions)


@dataclass(frozen=True, slots=True)
class HazardKnown:
    """Interruptions a running hour: the range, what was seen, and the range after that."""

    seller: str
    prior: Estimate
    source: str
    as_of: str  # ISO date; empty: the run file's
    seen: Seen
    posterior: Estimate

    @property
    def words(self) -> str:
        """RunPod: 0.3 (0.1 to 1.4) interruptions an hour; seen 2 in 30.0 h, so 0.09 (0.05 to 0.2)."""
        who = self.seller or "all sellers"
        if self.seen.running_h <= 0:
            return f"{who}: {_range(self.prior)} interruptions an hour; none of your launches ran there yet"
        seen = f"{self.seen.num_interruptions} in {self.seen.running_h:.1f} h"
        if self.prior.low == self.prior.high:
            return f"{who}: {_range(self.prior)} interruptions an hour, as given; seen {seen}"
        return f"{who}: {_range(self.prior)} interruptions an hour; seen {seen}, so {_range(self.posterior)}"


def _range(rate: Estimate) -> str:
    value, low, high = (f"{x:.2g}" for x in (rate.value, rate.low, rate.high))
    return value if low == high else f"{value} ({low} to {high})"


def updated(prior: Estimate, seen: Seen) -> Estimate:
    """The range after what was seen; a prior without width was given as a fact and stays."""
    if prior.low >= prior.high or seen.running_h <= 0:
        return prior
    shape, rate = gamma_of(prior.low, prior.high)
    value = expected_after(prior, seen)
    low, high = (gamma_quantile(shape + seen.num_interruptions, q) / (rate + seen.running_h) for q in (LOW, HIGH))
    return Estimate(value, min(low, value), max(high, value))


def expected_after(prior: Estimate, seen: Seen) -> float:
    """The expected value of `updated`."""
    if prior.low >= prior.high:
        return prior.value
    rate = gamma_of(prior.low, prior.high)[1]
    return (prior.value * rate + seen.num_interruptions) / (rate + seen.running_h)


@functools.lru_cache(maxsize=256)
def gamma_of(low: float, high: float) -> tuple[float, float]:
    """Shape and rate of the gamma distribution with 5 % below low and 5 % above high."""
    from scipy.optimize import brentq

    assert 0 < low < high

    def too_wide(log_shape: float) -> float:  # the ratio of the quantiles falls with the shape
        shape = math.exp(log_shape)
        return math.log(gamma_quantile(shape, HIGH) / gamma_quantile(shape, LOW)) - math.log(high / low)

    shape = math.exp(brentq(too_wide, math.log(0.02), math.log(1e8)))
    return shape, gamma_quantile(shape, HIGH) / high


def gamma_quantile(shape: float, share: float) -> float:
    """Quantile of a gamma distribution of rate 1."""
    from scipy.special import gammaincinv

    return float(gammaincinv(shape, share))


# ---- what earlier launches saw --------------------------------------------------------------


def basis(seller: str, seen: Seen) -> dict[str, Any]:
    """What the ledger line of a launch on spot machines keeps (Ledger.record's basis), so that later plans learn."""
    return {
        BASIS: {"seller": seller, "running_h": seen.running_h, "num_interruptions": seen.num_interruptions},
    }


def seen_in(entries: Iterable[Mapping[str, Any]]) -> dict[str, Seen]:
    """By seller, the sum over ledger lines; others, and damaged ones, are passed over."""
    found: dict[str, Seen] = {}
    for entry in entries:
        row = (entry.get("basis") or {}).get(BASIS)
        if not isinstance(row, dict):
            continue
        hours, number, seller = row.get("running_h"), row.get("num_interruptions"), row.get("seller")
        if not isinstance(hours, int | float) or not isinstance(number, int) or not isinstance(seller, str):
            continue
        if math.isfinite(hours) and hours > 0 and number >= 0:
            found[seller] = found.get(seller, Seen()) + Seen(float(hours), number)
    return found
