"""What each request took and cost: a line of usage.jsonl, never its text."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...errors import RunFolderError
from ...units import SECONDS_PER_HOUR
from .keys import private_folder

SYNC_EVERY_S = 1.0


class MachineTime:
    """Seconds of the machine, shared by the requests that run at once: the shares add up to its busy time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.num_running = 0
        self.shared_s = 0.0  # of one request that had always run
        self.at = clock()

    def _go_on(self) -> None:
        now = self.clock()
        if self.num_running:
            self.shared_s += (now - self.at) / self.num_running
        self.at = now

    def begin(self) -> float:
        """A request begins; what is given goes to end()."""
        self._go_on()
        self.num_running += 1
        return self.shared_s

    def end(self, begun: float) -> float:
        """Seconds of the machine it took."""
        self._go_on()
        self.num_running -= 1
        return self.shared_s - begun


@dataclass(frozen=True, slots=True)
class Used:
    """One request. machine_s: its share of the machine's time; status: the answer's, 499 where the client left."""

    id: str
    key: str
    model: str
    endpoint: str
    status: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_completion_tokens: int
    wall_s: float
    machine_s: float


class UsageLog:
    """Appends whole lines; a kill of the process loses none, a power cut at most those of the last second."""

    def __init__(self, path: Path | None, usd_per_hour: float | None) -> None:
        """path: None keeps no file; usd_per_hour: None where it is not known. Raises: RunFolderError."""
        self.path, self.usd_per_hour = path, usd_per_hour
        self.synced_at = 0.0
        self._file: int | None = None
        self._syncing = threading.Lock()
        if path is None:
            return
        private_folder(path.parent)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            num_bytes = os.fstat(self._file).st_size
            if num_bytes and os.pread(self._file, 1, num_bytes - 1) != b"\n":  # a kill cut the last line
                os.write(self._file, b"\n")
        except OSError as error:
            raise RunFolderError(f"cannot write {path}: {error.strerror}; usage would be lost") from error

    def add(self, used: Used) -> dict[str, Any]:
        """Append a record, dollars at the machine's price included."""
        price = self.usd_per_hour
        record = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **{name: getattr(used, name) for name in Used.__slots__},
            "wall_s": round(used.wall_s, 6),
            "machine_s": round(used.machine_s, 6),
            "cost_usd": None if price is None else used.machine_s * price / SECONDS_PER_HOUR,
        }
        if self._file is not None:
            os.write(self._file, (json.dumps(record, ensure_ascii=False) + "\n").encode())
            if time.monotonic() - self.synced_at > SYNC_EVERY_S and not self._syncing.locked():
                self.synced_at = time.monotonic()
                threading.Thread(target=self._sync, daemon=True).start()  # a disk may take its time
        return record

    def _sync(self) -> None:
        with self._syncing, contextlib.suppress(OSError):
            if self._file is not None:
                os.fsync(self._file)

    def close(self) -> None:
        """Make it durable."""
        self._sync()
        with self._syncing:
            if self._file is not None:
                os.close(self._file)
                self._file = None
