"""live.json of a run folder: what the run does at this moment, and how it ended; for whoever looks on.

Renewed about once a second while the run works, not durably: it decides nothing, and a disk that is full does not
stop the run by it. A folder whose process is gone without an `ended` was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .errors import Interrupted, ShoestringError
from .files import read_json, write_json
from .records import NOTE, Log, Progress
from .secrets import without_secrets

FILE = "live.json"
EVERY_S = 1.0
MOST_LINES = 40
MOST_TASKS = 3  # a stage, and what it is doing inside


@dataclass
class Task:
    """One label's course: when it began, how far it is."""

    label: str
    started_s: float
    start_done: int
    done: int
    total: int | None
    updated_s: float
    note: str = ""
    bar: Any = field(default=None)

    def left_s(self, now_s: float) -> float | None:
        """Seconds left at the mean speed so far, None while unknown."""
        moved = self.done - self.start_done
        if self.total is None or moved <= 0:
            return None
        return max(0.0, (now_s - self.started_s) / moved * (self.total - self.done))


class Live:
    """Writes the file of one session; its progress() and log() pass on what they are told."""

    def __init__(self, folder: Path, progress: Progress, log: Log, clock: Callable[[], float] = time.time) -> None:
        self.path = folder / FILE
        self._progress, self._log, self._clock = progress, log, clock
        self._tasks: dict[str, Task] = {}
        self._lines: deque[str] = deque(maxlen=MOST_LINES)
        self._started_at, self._written_s = now(), 0.0
        self._write(None)

    def progress(self, label: str, done: int, total: int | None) -> None:
        """The Progress that stages call."""
        self._progress(label, done, total)
        label, _, note = label.partition(NOTE)
        now_s = self._clock()
        task = self._tasks.get(label)
        if task is None or done < task.done:
            task = self._tasks[label] = Task(label, now_s, done, done, total, now_s)
        task.done, task.total, task.updated_s, task.note = done, total, now_s, note
        if total is not None and done >= total:
            self._tasks.pop(label)
        if now_s - self._written_s >= EVERY_S:
            self._write(None)

    def log(self, line: str) -> None:
        """The Log that stages call; it ends the tasks, since the recipe logs between stages."""
        self._log(line)
        self._tasks.clear()
        self._lines.append(without_secrets(line))
        self._write(None)

    def end(self, error: BaseException | None) -> None:
        """How it ended; error: what ended it, None where nothing did."""
        self._tasks.clear()
        self._write(ending(error))

    def _write(self, ended: dict[str, Any] | None) -> None:
        self._written_s = self._clock()
        tasks = sorted(self._tasks.values(), key=lambda task: task.updated_s, reverse=True)[:MOST_TASKS]
        told = {
            "pid": os.getpid(),
            "host": platform.node(),
            "started_at": self._started_at,
            "tasks": [
                {
                    **{key: getattr(task, key) for key in ("label", "done", "total", "note")},
                    "started_s": task.started_s,
                    "updated_s": task.updated_s,
                    "left_s": task.left_s(task.updated_s),
                }
                for task in tasks
            ],
            "lines": list(self._lines),
            "ended": ended,
        }
        with contextlib.suppress(OSError):
            if ended is not None:
                write_json(self.path, told)
                return
            beside = self.path.with_name(f".{FILE}.{os.getpid()}.tmp")
            beside.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
            os.replace(beside, self.path)


def ending(error: BaseException | None) -> dict[str, Any]:
    """What live.json says of the end."""
    if error is None:
        return {"at": now(), "type": None, "message": "", "exit_code": 0}
    if isinstance(error, KeyboardInterrupt):
        return {"at": now(), "type": "Interrupted", "message": "", "exit_code": Interrupted.exit_code}
    code = error.exit_code if isinstance(error, ShoestringError) else 1
    return {"at": now(), "type": type(error).__name__, "message": without_secrets(str(error)), "exit_code": code}


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_live(folder: Path) -> dict[str, Any] | None:
    """What the file says; None where there is none, or none that can be read."""
    try:
        told = read_json(folder / FILE)
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) and isinstance(told.get("tasks"), list) else None
