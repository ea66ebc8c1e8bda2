"""Sealed checkpoints on their way to a second place while training goes on; of those that wait the newest counts."""

from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path
from typing import Any

from ..files import read_whole_lines, write_whole
from ..records import Log
from . import checkpoint
from .background import Background
from .remote import STEPS, Store, told


def add_steps(folder: Path, steps_file: Path) -> None:
    """Put the step record up to this checkpoint into it: another machine has no other."""
    rows = [row for row in read_whole_lines(steps_file) if row["step"] <= checkpoint.step_of(folder)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_whole(folder / STEPS, gzip.compress(text.encode(), mtime=0))


class Uploads:
    """One upload at a time; what fails is told in a line and in the record, and training goes on."""

    def __init__(self, store: Store, log: Log) -> None:
        self.store, self.log = store, log
        self.background = Background()
        store.cancelled = self.background.cancelled
        self.num, self.num_failed, self.num_failed_now, self.last_step, self.fault = 0, 0, 0, 0, ""
        self._lock = threading.Lock()
        self._next: tuple[Path, Path | None] | None = None
        self._now: tuple[Path, Path | None] | None = None
        self._is_running = False
        self._best: dict[str, str] = {}  # by name, the sum of what was put there

    def offer(self, folder: Path, best: Path | None) -> frozenset[str]:
        """Upload a sealed checkpoint and the best adapter it refers to; returns names that must stay until then."""
        with self._lock:
            self._next = (folder, best)
            held = frozenset(path.name for pair in (self._next, self._now) if pair for path in pair if path)
            starts, self._is_running = not self._is_running, True
        if starts:
            self.background.start(self._work)
        return held

    def _work(self) -> None:
        while True:
            with self._lock:
                self._now, self._next = self._next, None
                if self._now is None or self.background.cancelled.is_set():
                    self._is_running = False
                    return
            self._upload(*self._now)

    def _upload(self, folder: Path, best: Path | None) -> None:
        try:
            if best is not None:
                content = json.dumps(checkpoint.marker_of(best))
                if self._best.get(best.name) != content:
                    self.store.put(best, f"best/{best.name}")
                    self._best[best.name] = content
            self.store.put(folder, f"checkpoints/{folder.name}")
        except Exception as error:  # each driver has its own; the checkpoint here stands
            if self.background.cancelled.is_set():
                return
            self.num_failed, self.num_failed_now, self.fault = self.num_failed + 1, self.num_failed_now + 1, told(error)
            if self.num_failed_now & (self.num_failed_now - 1) == 0:  # the first, second, fourth ... in a row
                self.log(
                    f"{folder.name} could not be copied to {self.store.url}: {self.fault}; it is kept here, training "
                    "goes on and the next one is tried"
                )
            return
        if self.num_failed_now:
            self.log(f"{folder.name} is in {self.store.url} again, after {self.num_failed_now} failed")
        self.num, self.num_failed_now, self.last_step = self.num + 1, 0, checkpoint.step_of(folder)
        try:
            self._prune()
        except Exception as error:  # what is too many there harms nothing
            self.log(f"old checkpoints in {self.store.url} could not be removed: {told(error)}")

    def _prune(self) -> None:
        names = self.store.names("checkpoints")
        for name in names[checkpoint.KEEP :]:
            self.store.remove(f"checkpoints/{name}")
        kept = [json.loads(self.store.read(f"checkpoints/{n}/{checkpoint.STATE}")) for n in names[: checkpoint.KEEP]]
        referred = {state["best_step"] for state in kept}
        for name in self.store.names("best"):
            if checkpoint.step_of(Path(name)) not in referred:
                self.store.remove(f"best/{name}")

    def facts(self) -> dict[str, Any]:
        """What the record says; behind: whether the last one here is not there."""
        return {
            "url": self.store.url,
            "num": self.num,
            "num_failed": self.num_failed,
            "last_step": self.last_step,
            "is_behind": self.num_failed_now > 0,
            **({"last_fault": self.fault} if self.fault else {}),
        }
