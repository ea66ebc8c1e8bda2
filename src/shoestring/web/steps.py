"""The training that goes on now: its steps, read as they are appended."""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import parse_json
from ..records import plan_from_json
from ..report.svg import thin
from ..runfolder import RunFolder, rung_name

MOST_POINTS = 600  # that a page is given at once
END_BYTES = 1 << 16
SPEED_STEPS = 20  # over which tokens a second are a mean
KEYS = ("loss", "dev_loss", "dev_metric")


@dataclass
class Tail:
    """New whole lines of an appended file; one that was cut back is read again from its start."""

    path: Path
    _at: int = 0
    _rest: bytes = b""

    @classmethod
    def of_end(cls, path: Path) -> Tail:
        """A tail that begins with the last rows."""
        start = max(0, path.stat().st_size - END_BYTES)
        if not start:
            return cls(path)
        with path.open("rb") as file:
            file.seek(start)
            file.readline()  # the rest of a line
            return cls(path, file.tell())

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """The rows since the last call, and whether those before no longer hold."""
        try:
            size = self.path.stat().st_size
            is_new = size < self._at
            if is_new:
                self._at, self._rest = 0, b""
            with self.path.open("rb") as file:
                file.seek(self._at)
                content = file.read(size - self._at)
        except FileNotFoundError:
            return [], False
        self._at += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        rows = []
        for line in lines:
            with contextlib.suppress(ValueError):
                row = parse_json(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    rows.append(row)
        return rows, is_new


@dataclass
class Training:
    """One rung while it trains."""

    folder: Path
    model: str
    num_steps: int | None  # planned
    tail: Tail
    rows: list[dict[str, Any]] = field(default_factory=list)

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Rows that came since, and whether it began again from an earlier step."""
        new, is_cut = self.tail.read()
        again = is_cut or bool(new and self.rows and new[0]["step"] <= self.rows[-1]["step"])
        if again:
            first = new[0]["step"] if new else 0
            self.rows = [] if is_cut else [row for row in self.rows if row["step"] < first]
        self.rows += new
        return new, again

    @property
    def tokens_per_s(self) -> float | None:
        """Of the last steps, evaluations between them left out."""
        last = [row for row in self.rows[-SPEED_STEPS:] if row.get("tokens_per_s")]
        tokens = sum(row["num_tokens"] for row in last)
        seconds = sum(row["num_tokens"] / row["tokens_per_s"] for row in last)
        return tokens / seconds if seconds else None

    def points(self) -> list[list[float | None]]:
        """step, loss, dev loss, dev score: at most MOST_POINTS, of losses means, every evaluation among them."""
        measured = [row for row in self.rows if "dev_metric" in row]
        loss = thin([(float(row["step"]), float(row["loss"])) for row in self.rows], MOST_POINTS)
        points = {step: [step, value, None, None] for step, value in loss}
        for row in measured:
            points[float(row["step"])] = point(row)
        return [points[step] for step in sorted(points)]


def point(row: dict[str, Any]) -> list[float | None]:
    """A step as the chart takes it."""
    values = [row.get(key) for key in KEYS]
    return [float(row["step"]), *(v if isinstance(v, (int, float)) and math.isfinite(v) else None for v in values)]


def training_of(folder: Path, is_whole: bool = True) -> Training | None:
    """The rung whose steps were appended last, where it has no record of its end yet; if not whole, its last steps."""
    found = [path for path in folder.glob("rungs/*/steps.jsonl") if not path.with_name("train.json").exists()]
    newest = max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is None:
        return None
    planned = RunFolder(folder).record("plan.json")
    rungs = plan_from_json(planned["result"]).rungs if planned else ()
    own = next((rung for rung in rungs if rung_name(rung.model) == newest.parent.name), None)
    model = own.model if own else newest.parent.name
    return Training(
        newest.parent, model, own.num_steps if own else None, Tail(newest) if is_whole else Tail.of_end(newest)
    )


def left_s(folder: Path, training: Training | None) -> tuple[float, int] | None:
    """Seconds that the plan expects of the rungs that are not scored yet, and how many these are.

    training: the one under way, whose seconds so far are not ahead any more.
    """
    planned = RunFolder(folder).record("plan.json")
    if planned is None or (folder / "ladder.json").exists():
        return None
    rungs = [rung for rung in plan_from_json(planned["result"]).rungs if rung.verdict != "does_not_fit"]
    waiting = [rung for rung in rungs if not (folder / "rungs" / rung_name(rung.model) / "eval.json").exists()]
    gone_s = float(training.rows[-1].get("wall_s", 0.0)) if training and training.rows else 0.0
    ahead_s = 0.0
    for rung in waiting:
        is_now = training is not None and rung.model == training.model
        ahead_s += max(0.0, rung.train_s.value - (gone_s if is_now else 0.0)) + rung.eval_s.value
    return ahead_s, len(waiting)


def memory_of(pid: int) -> int | None:
    """Resident bytes of a process of this machine; None where the system does not say."""
    try:
        found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
