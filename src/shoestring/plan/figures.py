"""A number with its unit, its source and its age, as `shoestring plan --json` prints it; and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date
from typing import Any

from ..records import Estimate
from ..units import usd

Figure = dict[str, Any]
DIGITS = 6


def figure(value: Any, unit: str, source: str, observed_at: date | None, today: date) -> Figure:
    """value: an Estimate, a number, or None with the reason in source. observed_at None: the source has no date."""
    told: Figure = {}
    if isinstance(value, Estimate):
        told["value"] = _rounded(value.value)
        if (value.low, value.high) != (value.value, value.value):
            told |= {"low": _rounded(value.low), "high": _rounded(value.high)}
    else:
        told["value"] = None if value is None else _rounded(value)
    age = None if observed_at is None else (today - observed_at).days
    if observed_at is None:
        source = f"{source} (undated)"
    elif age is not None and age < 0:
        age, source = None, f"{source} (dated after this machine's clock, {today.isoformat()})"
    day = None if observed_at is None else observed_at.isoformat()
    return {**told, "unit": unit, "source": source, "observed_at": day, "age_days": age}


def _rounded(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")


# ---- in words -------------------------------------------------------------------------------


def _span(value: str, low: str = "", high: str = "") -> str:
    """A value with its interval, where the interval reads as more than the value."""
    return value if not low or value == low == high else f"{value} ({low} to {high})"


def about(hours: float) -> str:
    """Hours as a plan knows them: '32 min', '2.9 h', '3.1 d'."""
    if hours < 2:
        return f"{max(1, round(hours * 60))} min"
    if hours < 48:
        return f"{hours:.2g} h"
    return f"{hours / 24:.2g} d" if hours < 24 * 99 else f"{hours / 24:,.0f} d"


def hours_text(told: Figure) -> str:
    """'2.9 h (1.8 h to 6.5 h)'."""
    if told["value"] is None:
        return "not stated"
    return _span(*(about(told[key]) for key in ("value", "low", "high") if key in told))


def usd_text(told: Figure) -> str:
    """'$5.90 ($3.49 to $12.94)', from a hundred dollars on without cents."""
    if "low" not in told:
        return _dollars(told["value"])
    high = "no bound" if told["high"] is None else _dollars(told["high"])
    return _span(_dollars(told["value"]), _dollars(told["low"]), high)


def _dollars(amount_usd: float) -> str:
    return f"${amount_usd:,.0f}" if amount_usd >= 100 else usd(amount_usd)


def count_text(told: Figure) -> str:
    """'97,300 (41,700 to 98,000)', or never."""
    if told["value"] is None:
        return "never"
    return _span(*(_count(told[key]) for key in ("value", "low", "high") if key in told))


def _count(value: float | None) -> str:
    if value is None:
        return "never"
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{round(value, digits if value < 100 else 2 - math.floor(math.log10(value))):,.0f}"


def risk_text(told: Figure) -> str:
    """'33%', or a question mark where no time is stated."""
    return "?" if told["value"] is None else f"{told['value']:.0%}"


def discount_text(told: Figure | None) -> str:
    """'41%', 'none, 57% dearer', or a dash where no price on demand is known."""
    if told is None or told["value"] is None:
        return "—"
    return f"{told['value']:.0%}" if told["value"] >= 0 else f"none, {-told['value']:.0%} dearer"


def age_text(told: Figure) -> str:
    """'19 d', 'today', 'undated'."""
    if told["age_days"] is None:
        return "undated"
    return "today" if told["age_days"] == 0 else f"{told['age_days']} d"


def price_text(told: Figure) -> str:
    """'$1.99/GPU-hour'."""
    return f"${told['value']:g}/{told['unit'].removeprefix('USD per ').replace('million', 'M')}"


def where_text(option: Mapping[str, Any]) -> str:
    """Machine and seller of an option."""
    if option["kind"] == "here":
        return f"this machine, {option['gpu']}"
    if option["kind"] == "managed":
        return f"{option['seller']} (managed)"
    count = f"{option['num_gpus']['value']}x " if option["num_gpus"]["value"] > 1 else ""
    return f"{count}{option['gpu']}{' spot' if option['is_spot'] else ''}, {option['seller']}"


def bill_in_words(total: Mapping[str, Any]) -> str:
    """The cheapest way in all, and whether prompting costs less at this volume."""
    best, api = total["best"], total["apis"][0]
    said = f"Cheapest of training: {best['trained']}, served by {best['served']}, {usd_text(best['usd'])}."
    even = next(e["requests_per_month"] for e in total["break_even"] if e["against"] == api["name"])
    if api["usd"]["value"] >= best["usd"]["value"]:
        return f"{said} It costs less than any model of the list prompted."
    pays = "at no volume" if even["value"] is None else f"from {count_text(even)} requests a month"
    said += f" Prompting {api['name']} costs less at this volume, {usd_text(api['usd'])}"
    return f"{said}; against it training pays {pays}."
