"""Numbers with their spread, and units as they are printed; inside, memory is bytes, time seconds, money US dollars."""

from __future__ import annotations

import math
from dataclasses import dataclass

SECONDS_PER_HOUR = 3600.0
BYTES_PER_GIB = 1024**3
BYTES_PER_GB = 1000**3


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its spread: 95 % interval for measurements, low/high for predictions."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Estimate:
        """The same estimate times a positive factor."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


def summed(*parts: Estimate | None) -> Estimate:
    """Value, low and high of the parts added up; None adds nothing."""
    there = [part for part in parts if part is not None]
    return Estimate(*(sum(getattr(part, key) for part in there) for key in ("value", "low", "high")))


def round_up(number: float, multiple: int) -> int:
    """The least multiple that is not below number."""
    return math.ceil(number / multiple) * multiple


def gib(num_bytes: float) -> str:
    """Bytes as GiB, or MiB below a tenth of one."""
    if num_bytes < BYTES_PER_GIB / 10:
        return f"{num_bytes / 1024**2:.1f} MiB"
    return f"{num_bytes / BYTES_PER_GIB:.2f} GiB"


def usd(amount_usd: float) -> str:
    """Dollars: cents from a cent on, four places below, and below those the bound."""
    if amount_usd == 0:
        return "$0"
    if abs(amount_usd) < 0.0001:
        return "<$0.0001" if amount_usd > 0 else ">-$0.0001"
    return f"${amount_usd:.4f}" if abs(amount_usd) < 0.01 else f"${amount_usd:,.2f}"


def duration(seconds: float) -> str:
    """Seconds as '48 s', '3 min 20 s' or '2 h 05 min'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def count(number: float) -> str:
    """12,345 as is; from a million on '1.23M', '7.62B'."""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if abs(number) >= size:
            return f"{number / size:.2f}{letter}"
    return f"{number:,.0f}"
