"""Checkpoints written while training goes on: copied at once, then written, sealed and uploaded by a thread.

One is in flight at most. What goes wrong in the writing is raised at the next step; what goes wrong in the uploading
is told and tried again with the next one.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..files import read_json, sha256_file, sync_file
from ..records import Log
from ..units import duration, gib
from . import checkpoint
from .background import Background
from .interval import Costs
from .snapshot import ROOM, Snapshot
from .uploads import Uploads, add_steps
from .watch import Watched, copy_trained, weights_of


class Saver:
    """When a checkpoint is due, and its way from the running training to the disk and the uploads."""

    def __init__(
        self,
        out_dir: Path,
        *,
        costs: Costs,
        interruptions_per_hour: float,
        is_cpu: bool,
        waits: str,
        uploads: Uploads | None,
        log: Log,
    ) -> None:
        """waits: why training waits until a checkpoint is written; '' where it does not."""
        self.out_dir, self.costs, self.waits, self.uploads, self.log = out_dir, costs, waits, uploads, log
        self.interruptions_per_hour, self.is_cpu = interruptions_per_hour, is_cpu
        self.writer = Background()
        self.saved_s = time.perf_counter()
        self._entry: tuple[float, float, float] | None = None  # of the checkpoint written last: as Costs.add takes it

    @property
    def interval_s(self) -> float:
        return self.costs.interval_s(self.interruptions_per_hour)

    def is_due(self) -> bool:
        """Whether it is time for the next one. Raises: what went wrong with the last one."""
        self.writer.check()
        self._count()
        return not self.writer.is_busy and time.perf_counter() - self.saved_s >= self.interval_s

    def save(self, take: Callable[[], Snapshot], state: Watched, *, wait: bool) -> None:
        """Copy the training as it is and write it; wait: until it is sealed and, where they are asked for, uploaded.

        Raises: what goes wrong in the writing of this one (wait) or of the one before.
        """
        began = time.perf_counter()
        self.writer.wait()
        self._count()
        snapshot, kept = take(), replace(state, evals=list(state.evals), saving=vars(self.costs).copy())
        taken = time.perf_counter()
        self.writer.start(lambda: self._write(snapshot, kept, state, began, taken - began))
        if wait or self.waits:
            self.writer.wait()
            self._count()
            if not self.waits:
                self.costs.blocked_s += time.perf_counter() - taken  # once, at the end: no part of what one costs
        if wait and self.uploads:
            self.uploads.background.wait()
        self.saved_s = taken

    def _count(self) -> None:
        if self._entry is not None:
            self.costs.add(*self._entry)
            self._entry = None

    def _write(self, snapshot: Snapshot, kept: Watched, live: Watched, began: float, blocked_s: float) -> None:
        cpu_s = time.thread_time()
        checkpoints = self.out_dir / "checkpoints"
        folder = checkpoints / f"{checkpoint.PREFIX}{snapshot.step}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            snapshot.write(folder)
            if self.writer.cancelled.is_set():
                return
            self.seal(folder, kept, live)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # on a full disk others need the room
            raise
        latency_s = time.perf_counter() - began
        cpu_s = time.thread_time() - cpu_s if self.is_cpu else 0.0
        self._entry = (latency_s, latency_s, latency_s) if self.waits else (blocked_s, blocked_s + cpu_s, latency_s)

    def seal(self, folder: Path, kept: Watched, live: Watched) -> None:
        """Keep the weights if they are the best, seal the checkpoint, drop old ones, hand it to the uploads."""
        step = checkpoint.step_of(folder)
        best = self.out_dir / "best" / f"step-{kept.best_step}"
        if step == kept.best_step:
            copy_trained(folder, best)
            kept.best_sha256 = live.best_sha256 = sha256_file(best / weights_of(best))
        sync_file(self.out_dir / "steps.jsonl")
        if self.uploads:
            add_steps(folder, self.out_dir / "steps.jsonl")
        checkpoint.seal(folder, kept.to_json())
        held = self.uploads.offer(folder, best if kept.best_step else None) if self.uploads else frozenset()
        checkpoint.prune(folder.parent, but=held)
        referred = {read_json(path)["best_step"] for path in folder.parent.glob(f"*/{checkpoint.STATE}")}
        for beaten in (self.out_dir / "best").glob("step-*"):
            if checkpoint.step_of(beaten) not in referred and beaten.name not in held:
                shutil.rmtree(beaten)

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """At the end what is in flight is awaited; on a second Ctrl-C it is given up."""
        try:
            yield
        except KeyboardInterrupt:
            self.writer.leave()
            if self.uploads:
                self.uploads.background.leave()
            raise
        except Exception as error:
            try:
                self._finish()
            except Exception as fault:
                error.add_note(f"the last checkpoint was not written either: {fault}")
            raise
        self._finish()

    def _finish(self) -> None:
        self.writer.wait()
        self._count()
        if self.uploads:
            self.uploads.background.wait()

    def facts(self) -> dict[str, Any]:
        """What the record says."""
        costs = self.costs
        why = (
            f"Young/Daly: a checkpoint costs {costs.cost_s:.3g} s, {self.interruptions_per_hour:.3g} interruptions an "
            f"hour are expected"
        )
        if costs.num and self.interval_s == costs.latency_s:
            why = f"a checkpoint takes {duration(costs.latency_s)} until it counts, and the next one waits for it"
        return {
            "num": costs.num,
            "interval_s": self.interval_s if costs.num else None,
            "interval_reason": why,
            "interruptions_per_hour": self.interruptions_per_hour,
            "cost_s": costs.cost_s,
            "latency_s": costs.latency_s,
            "blocked_s": costs.blocked_s,
            "written": f"while training waits: {self.waits}" if self.waits else "while training goes on",
            **({"uploads": self.uploads.facts()} if self.uploads else {}),
        }


def why_it_waits(snapshot_bytes: int) -> str:
    """Why a checkpoint is not copied first: '' where the host's memory has room for the copy."""
    import psutil  # type: ignore[import-untyped]  # comes with accelerate

    free = int(psutil.virtual_memory().available)
    if ROOM * snapshot_bytes <= free:
        return ""
    return f"a copy of {gib(snapshot_bytes)} has no room in {gib(free)} of free memory"
