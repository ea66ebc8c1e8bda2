"""When spot machines are to be had: recorded in a file, or drawn.

A trace is up intervals: one machine from start to end, then it is taken. Intervals that touch are two machines.
Files: SkyPilot's spot traces (JSON: metadata.gap_seconds and data, the number of machines at each tick), CSV with the
columns start_h and end_h, or one JSON object a line with these keys; hours from the beginning of the trace.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BadInput
from ..units import SECONDS_PER_HOUR

Hours = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
FORMATS = (
    "a trace is JSON with metadata.gap_seconds and data, CSV with the columns start_h,end_h, "
    'or a line {"start_h": ..., "end_h": ...} an interval'
)
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Trace:
    """Up intervals in order, within 0 and length_h."""

    up: tuple[tuple[float, float], ...]
    length_h: float
    name: str = ""

    @property
    def up_h(self) -> float:
        """Hours in which there is a machine."""
        return math.fsum(end - start for start, end in self.up)

    @property
    def num_interruptions(self) -> int:
        """Machines that were taken; the one that is there at the end of the trace was not seen to be."""
        return sum(end < self.length_h for _, end in self.up)

    def rolled(self, start_h: float) -> Trace:
        """The trace begun at start_h, its beginning put behind its end."""
        later = [(max(s, start_h) - start_h, e - start_h) for s, e in self.up if e > start_h]
        shift = self.length_h - start_h
        earlier = [(s + shift, min(e, start_h) + shift) for s, e in self.up if s < start_h]
        return Trace((*later, *earlier), self.length_h, self.name)

    def available(self, step_h: float, num_steps: int) -> Flags:
        """Steps through the whole of which one machine is there; after the end the trace begins again."""
        found = np.zeros(num_steps, dtype=bool)
        slop = step_h * 1e-6
        lap = 0.0
        while lap < num_steps * step_h and self.up:
            for start, end in self.up:
                first = math.ceil((lap + start - slop) / step_h)
                last = math.floor((lap + end + slop) / step_h)
                found[max(0, first) : max(0, last)] = True
            lap += self.length_h
        return found


# ---- from a file ----------------------------------------------------------------------------


def read_trace(path: Path) -> Trace:
    """A recorded trace. Raises: BadInput naming the file, the line and the value."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadInput(f"{path}: larger than {MAX_BYTES // 2**20} MiB; give a shorter trace")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}; {FORMATS}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is no UTF-8 text (byte {error.start}); {FORMATS}") from error
    whole = _as_json(text)
    if isinstance(whole, dict) and "data" in whole:
        return _of_ticks(path, whole)
    rows = _lines(path, text) if text.lstrip()[:1] in "{[" else _table(path, text)
    return _of_intervals(path, rows)


def _as_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _of_ticks(path: Path, whole: dict[str, Any]) -> Trace:
    metadata = whole.get("metadata")
    gap_s: Any = metadata.get("gap_seconds") if isinstance(metadata, dict) else None
    if not _is_number(gap_s) or gap_s <= 0:
        raise BadInput(f"{path}: metadata.gap_seconds is {gap_s!r}, not seconds above 0")
    ticks = whole["data"]
    if not isinstance(ticks, list) or not ticks:
        raise BadInput(f"{path}: data is no list of ticks; {FORMATS}")
    for place, tick in enumerate(ticks, 1):
        if not _is_number(tick) or tick < 0:
            raise BadInput(f"{path}: tick {place} of data is {tick!r}, not a number of machines")
    gap_h = gap_s / SECONDS_PER_HOUR
    edges = np.flatnonzero(np.diff(np.concatenate(([0], np.asarray(ticks) > 0, [0]))))
    up = tuple((float(a) * gap_h, float(b) * gap_h) for a, b in edges.reshape(-1, 2))
    return Trace(up, len(ticks) * gap_h, path.name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _lines(path: Path, text: str) -> Iterator[tuple[int, Any, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadInput(f"{path}, line {number}: no JSON ({error}); {FORMATS}") from error
        if not isinstance(row, dict):
            raise BadInput(f"{path}, line {number}: {line.strip()[:60]!r} is no object; {FORMATS}")
        yield number, row.get("start_h"), row.get("end_h")


def _table(path: Path, text: str) -> Iterator[tuple[int, Any, Any]]:
    rows = csv.DictReader(io.StringIO(text))
    if not {"start_h", "end_h"} <= set(rows.fieldnames or ()):
        raise BadInput(f"{path}, line 1: columns {', '.join(rows.fieldnames or ()) or 'missing'}; {FORMATS}")
    for row in rows:
        yield rows.line_num, _number(row["start_h"]), _number(row["end_h"])


def _number(text: str | None) -> float | str | None:
    try:
        return float(text or "")
    except ValueError:
        return text


def _of_intervals(path: Path, rows: Iterator[tuple[int, Any, Any]]) -> Trace:
    up: list[tuple[float, float]] = []
    for number, start, end in rows:
        for name, value in (("start_h", start), ("end_h", end)):
            if not _is_number(value) or value < 0:
                raise BadInput(f"{path}, line {number}: {name} is {value!r}, not hours from 0 on")
        if end <= start:
            raise BadInput(f"{path}, line {number}: end_h {end:g} is not after start_h {start:g}")
        if up and start < up[-1][1]:
            raise BadInput(f"{path}, line {number}: start_h {start:g} is before the last end_h {up[-1][1]:g}")
        up.append((float(start), float(end)))
    if not up:
        raise BadInput(f"{path}: no interval in it; {FORMATS}")
    return Trace(tuple(up), up[-1][1], path.name)


# ---- drawn ----------------------------------------------------------------------------------

Draw = Callable[[np.random.Generator, int], Hours]  # so many lengths in hours


@dataclass(frozen=True, slots=True)
class Family:
    """How long machines stay and how long there is none."""

    name: str
    up: Draw
    down: Draw

    def trace(self, rng: np.random.Generator, length_h: float) -> Trace:
        """A trace that begins some way into its first interval, up or down by their share of the time."""
        ups, downs = self.up(rng, 64), self.down(rng, 64)
        is_up = rng.random() < ups.mean() / (ups.mean() + downs.mean())
        at, up = 0.0, []
        first = float(rng.random())
        while at < length_h:
            length = float((self.up if is_up else self.down)(rng, 1)[0]) * first
            if is_up and length > 0:
                up.append((at, min(at + length, length_h)))
            at, is_up, first = at + length, not is_up, 1.0
        return Trace(tuple(up), length_h, self.name)


def exponential(mean_h: float | Hours) -> Draw:
    """Memoryless; a mean for each that is drawn, or one."""
    return lambda rng, num: rng.exponential(mean_h, num)


def weibull(mean_h: float, shape: float) -> Draw:
    """Weibull lengths; shape under 1: many short ones, some very long."""
    scale = mean_h / math.gamma(1 + 1 / shape)
    return lambda rng, num: scale * rng.weibull(shape, num)


def mixed(usual: Draw, rare: Draw, rare_frac: float) -> Draw:
    """Lengths of one kind, now and then of another, such as long outages."""

    def draw(rng: np.random.Generator, num: int) -> Hours:
        return np.where(rng.random(num) < rare_frac, rare(rng, num), usual(rng, num))

    return draw
