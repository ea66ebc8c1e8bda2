"""What was predicted and what it cost: one JSON line an expense, appended and never rewritten.

A line that a kill tore in half is ignored when read, reported by `torn_lines`, and closed by the next append.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .files import cannot_write, parse_json, read_json
from .records import Estimate
from .units import SECONDS_PER_HOUR

LAUNCH_LEDGER = "launches.jsonl"  # beside ledger.jsonl, which says what stages took: the bills for all of them
QUANTITIES = ("usd", "s", "bytes")
LAST_STEPS_BYTES = 1 << 16


class Ledger:
    """The ledger file of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(
        self,
        item: str,
        *,
        stage: str,
        predicted: Mapping[str, Estimate | Mapping[str, float] | None] | None,
        actual: Mapping[str, float | None],
        price_usd_per_hour: float | None,
        fingerprint: str = "",
        basis: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Append one entry, durably; returns it.

        predicted and actual: by quantity, of usd, s and bytes; predicted as Estimates. fingerprint: of the inputs
        of what was paid for, so that an entry can be recognised. basis: what later predictions learn from it by.
        Raises: RunFolderError when the file cannot be written.
        """
        spreads = {k: _spread(v) for k, v in predicted.items() if v is not None} if predicted else None
        spent = {k: float(v) for k, v in actual.items() if v is not None}
        unknown = {*spent, *(spreads or {})} - set(QUANTITIES)
        assert not unknown, f"a ledger entry holds {', '.join(QUANTITIES)}, not {sorted(unknown)}"
        entry = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "stage": stage,
            "item": item,
            "predicted": spreads,
            "actual": spent,
            "price_usd_per_hour": price_usd_per_hour,
            "fingerprint": fingerprint,
            **({"basis": dict(basis)} if basis else {}),
        }
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                if file.tell() and not self._ends_whole():
                    line = b"\n" + line
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error
        return entry

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def _read(self) -> tuple[list[dict[str, Any]], list[int]]:
        if not self.path.exists():
            return [], []
        entries, torn = [], []
        for number, line in enumerate(self.path.read_bytes().split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                entry = parse_json(line)
            except ValueError:
                torn.append(number)
                continue
            if isinstance(entry, dict) and isinstance(entry.get("actual"), dict) and "item" in entry:
                entries.append(entry)
            else:
                torn.append(number)
        return entries, torn

    def entries(self) -> list[dict[str, Any]]:
        """Every whole entry, in order."""
        return self._read()[0]

    def torn_lines(self) -> list[int]:
        """Line numbers (from 1) that hold no whole entry: what a kill cut, or a person edited."""
        return self._read()[1]

    def live_s(self, entries: Sequence[dict[str, Any]] | None = None) -> dict[str, float]:
        """Seconds of trainings, and of the searches and learning curves before them, that were begun and are not
        entered yet, by rung folder: from their step records, and from the search's state."""
        entries = self.entries() if entries is None else entries
        live = {}
        for marker in self.path.parent.glob("rungs/*/inputs.json"):
            name, begun = marker.parent.name, read_json(marker)
            since = entries[begun["num_entries"] :]
            steps, search = marker.with_name("steps.jsonl"), marker.parent / "search" / "state.json"
            if search.is_file() and all(e["item"] != f"rungs/{name}/search" for e in since):
                live[name] = float(read_json(search)["wall_s"])
            if all(e["item"] != f"rungs/{name}/curve" for e in since):
                parts = [_seconds(path) for path in marker.parent.glob("curve/*/steps.jsonl")]
                live.update({name: live.get(name, 0.0) + sum(parts)} if parts else {})
            if steps.is_file() and begun["fingerprint"] not in [e.get("fingerprint") for e in since]:
                live[name] = live.get(name, 0.0) + _seconds(steps)
        return live

    def spent_usd(self, *, live_usd_per_hour: float = 0.0, but: str = "") -> float:
        """Sum of the actual dollars, and of trainings under way at a price an hour, but for one rung folder's."""
        entries = self.entries()
        entered_usd = sum(e["actual"].get("usd", 0.0) for e in entries)
        live_s = sum(wall_s for name, wall_s in self.live_s(entries).items() if name != but)
        return entered_usd + live_s * live_usd_per_hour / SECONDS_PER_HOUR


def _seconds(steps: Path) -> float:
    """Seconds of a training so far, by its last step records: they rise from line to line."""
    with steps.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LAST_STEPS_BYTES))
        lines = file.read().split(b"\n")
    seconds = [0.0]
    for line in lines:
        with contextlib.suppress(ValueError):  # the first and the last may be parts of a line
            row = parse_json(line)
            seconds.append(float(row.get("wall_s", 0.0)) if isinstance(row, dict) else 0.0)
    return max(seconds)


def _spread(value: Estimate | Mapping[str, float]) -> dict[str, float]:
    if isinstance(value, Estimate):
        return {"low": value.low, "expected": value.value, "high": value.high}
    expected = value["expected"] if "expected" in value else value["value"]
    return {"low": value["low"], "expected": expected, "high": value["high"]}
