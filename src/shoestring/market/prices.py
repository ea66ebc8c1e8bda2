"""Price of a machine hour: the run file's, else the dated table's row for the device.

prices.csv is per device, US dollars per GPU-hour. Prices move within weeks (an H100 rose from 3.29 to 3.99
between August and October 2026), so every price carries its source and its age.
"""

from __future__ import annotations

import csv
import difflib
import functools
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from ..config import MarketConfig
from ..errors import BadInput
from ..records import Device

PRICES_CSV = Path(__file__).with_name("prices.csv")
BASES = ("measured", "third-party copy", "recalled", "assumption")
STALE_DAYS = 60


@dataclass(frozen=True, slots=True)
class PriceRow:
    """One row of prices.csv."""

    device: str
    also_named: str  # as the driver reports the device
    seller: str
    spot: bool
    usd_per_hour: float
    as_of: date
    basis: str
    source: str


@dataclass(frozen=True, slots=True)
class Price:
    """A price with where it came from; source says seller, date and age in words."""

    usd_per_hour: float
    source: str
    as_of: str
    basis: str


@functools.cache
def table() -> tuple[PriceRow, ...]:
    """Rows of prices.csv."""
    with PRICES_CSV.open(encoding="utf-8", newline="") as file:
        return tuple(
            PriceRow(
                r["device"],
                r["also_named"],
                r["seller"],
                r["spot"] == "yes",
                float(r["usd_per_hour"]),
                date.fromisoformat(r["as_of"]),
                r["basis"],
                r["source"],
            )
            for r in csv.DictReader(file)
        )


def price_for(device: Device, market: MarketConfig, *, today: date | None = None) -> Price:
    """The price of an hour of device.

    The run file's price wins. Of the table's rows the cheapest that is not spot counts, dated copies before
    recalled figures. Raises: BadInput listing near rows for a device without a row.
    """
    if market.price_usd_per_hour is not None:
        return Price(market.price_usd_per_hour, "given in the run file", "", "given")
    today = today or datetime.now(UTC).date()
    wanted = _plain(market.device or (device.kind if device.kind in ("cpu", "mps") else device.name))
    rows = [r for r in table() if not r.spot and wanted in (_plain(r.device), _plain(r.also_named))]
    if not rows:
        names = sorted({r.device for r in table()})
        near = difflib.get_close_matches(wanted.upper(), names, n=4, cutoff=0.4) or names
        what = f"market.device = {market.device!r}" if market.device else f"the device {device.name!r}"
        raise BadInput(
            f"no price for {what}; near rows: {', '.join(near)}; or give market.price_usd_per_hour in the run file"
        )
    dated = [r for r in rows if r.basis in ("measured", "third-party copy")]
    row = min(dated or rows, key=lambda r: (r.usd_per_hour, r.as_of))
    return Price(row.usd_per_hour, describe(row, today), row.as_of.isoformat(), row.basis)


def _plain(name: str) -> str:
    return name.lower().removeprefix("nvidia ")


def describe(row: PriceRow, today: date) -> str:
    """Seller, basis, date and age of a row, in words."""
    if row.basis == "assumption":
        return f"assumption of {row.as_of.isoformat()}: {row.source}"
    age = (today - row.as_of).days
    stale = ", check it" if age > STALE_DAYS or row.basis == "recalled" else ""
    basis = "recalled list price" if row.basis == "recalled" else f"list price copied by {row.source}"
    days = "today" if age == 0 else f"{age} day{'s' if age != 1 else ''} old"
    return f"{row.seller}, {basis}, {row.as_of.isoformat()} ({days}{stale})"
