"""The report's section on launches: each bill beside what was predicted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..ledger import LAUNCH_LEDGER, Ledger
from ..plan.learned import off_frac
from ..units import duration, usd
from .text import Markup, esc, section, table


def launched(folder: Path) -> Markup:
    """A table of the launches that have ended, newest first; nothing where there is none."""
    entries = Ledger(folder / LAUNCH_LEDGER).entries()
    if not entries:
        return Markup("")
    by_id: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        by_id.setdefault(str(entry.get("fingerprint")), []).append(entry)
    rows = []
    for name, own in reversed(by_id.items()):
        basis = own[0].get("basis") or {}
        place = ":".join(part for part in (basis.get("backend"), basis.get("target")) if part)
        off = off_frac(own, "usd") if basis.get("state") == "done" else None
        for number, entry in enumerate(own):
            said = (name, place, str(basis.get("state"))) if number == 0 else ("", "", "")
            spread = entry.get("predicted") or {}
            off_text = f"{off:+.0%}" if off is not None and number == len(own) - 1 else ""
            cells = [*said, str(entry["item"]), _spread(spread, "usd", usd), _actual(entry, "usd", usd)]
            rows.append([*map(esc, cells), esc(_actual(entry, "s", duration)), esc(off_text)])
    head = ["launch", "place", "ended", "item", "predicted", "actual", "time", "bill off by"]
    total = sum(entry["actual"].get("usd", 0.0) for entry in entries)
    lead = f"What machines and services billed for {len(by_id)} launch{'es' if len(by_id) > 1 else ''}: {usd(total)}."
    return section("Launches", table(head, rows, numeric=(4, 5, 6, 7)), lead=lead)


def _spread(predicted: Mapping[str, Any], key: str, show: Any) -> str:
    spread = predicted.get(key)
    if not isinstance(spread, dict):
        return "not known"
    low, high = show(spread["low"]), show(spread["high"])
    value = show(spread["expected"])
    return value if low == high else f"{value} ({low} to {high})"


def _actual(entry: Mapping[str, Any], key: str, show: Any) -> str:
    value = entry["actual"].get(key)
    return "not known" if value is None else str(show(value))
