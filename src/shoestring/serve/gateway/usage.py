"""What each request took and cost: a line of usage.jsonl, never its text."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...errors import RunFolderError
from ...units import SECONDS_PER_HOUR
from .keys import private_folder

LOG = logging.getLogger(__name__)
SYNC_EVERY_S = 1.0
RETRY_EVERY_S = 5.0
MAX_WAITING = 100_000  # records; some 40 MB


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
    """Appends whole lines; a kill of the process loses none, a power cut at most those of the last second.

    Lines that cannot be written (a full disk) wait in memory, in order, and are written once they can be. A file that
    was moved away (logrotate) is begun anew.
    """

    def __init__(self, path: Path | None, usd_per_hour: float | None, *, retry_every_s: float = RETRY_EVERY_S) -> None:
        """path: None keeps no file; usd_per_hour: None where it is not known. Raises: RunFolderError."""
        self.path, self.usd_per_hour, self.retry_every_s = path, usd_per_hour, retry_every_s
        self.synced_at = 0.0
        self.fault = ""  # why lines wait
        self._file: int | None = None
        self._waiting: deque[bytes] = deque()
        self._num_cut = 0  # bytes of the first one that are written already
        self._writing, self._syncing = threading.Lock(), threading.Lock()
        self._ended = threading.Event()
        self._retrying: threading.Thread | None = None
        if path is None:
            return
        private_folder(path.parent)
        try:
            self._open(path)
        except OSError as error:
            raise RunFolderError(f"cannot write {path}: {error.strerror}; usage would be lost") from error

    def _open(self, path: Path) -> None:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            num_bytes = os.fstat(file).st_size
            if num_bytes and os.pread(file, 1, num_bytes - 1) != b"\n":  # a kill cut the last line
                os.write(file, b"\n")
        except OSError:
            os.close(file)
            raise
        self._file = file

    @property
    def num_waiting(self) -> int:
        """Lines that are not written yet."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether no more lines may wait, so that a further request could not be accounted for."""
        return len(self._waiting) >= MAX_WAITING

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
        if self.path is not None:
            self._waiting.append((json.dumps(record, ensure_ascii=False) + "\n").encode())
            if self._write():
                self._sync_now_and_then()
            elif self._retrying is None or not self._retrying.is_alive():
                self._retrying = threading.Thread(target=self._retry, daemon=True)
                self._retrying.start()
        return record

    def _write(self) -> bool:
        """Write what waits; False where some of it stays, which is logged as it begins and ends."""
        assert self.path is not None
        with self._writing:
            num = len(self._waiting)
            try:
                if self._waiting:
                    self._follow(self.path)
                while self._waiting:
                    assert self._file is not None
                    self._num_cut += os.write(self._file, self._waiting[0][self._num_cut :])
                    if self._num_cut == len(self._waiting[0]):
                        self._waiting.popleft()
                        self._num_cut = 0
            except OSError as error:
                if not self.fault:
                    LOG.error(
                        "%s cannot be written: %s; up to %d records of usage wait in memory until it can be, then "
                        "requests are refused",
                        self.path,
                        error.strerror,
                        MAX_WAITING,
                    )
                self.fault = error.strerror or str(error)
                return False
            if self.fault:
                LOG.warning("%s is written again, with the %d records that had waited", self.path, num)
                self.fault = ""
        return True

    def _follow(self, path: Path) -> None:
        """Open the file anew where another one, or none, stands in its place. Raises: OSError."""
        if self._file is not None:
            try:
                if os.path.samestat(os.stat(path), os.fstat(self._file)):
                    return
            except FileNotFoundError:
                pass
            os.close(self._file)
            self._file, self._num_cut = None, 0
        self._open(path)

    def _retry(self) -> None:
        while not self._ended.wait(self.retry_every_s) and not self._write():
            pass

    def _sync_now_and_then(self) -> None:
        if time.monotonic() - self.synced_at > SYNC_EVERY_S and not self._syncing.locked():
            self.synced_at = time.monotonic()
            threading.Thread(target=self._sync, daemon=True).start()  # a disk may take its time

    def _sync(self) -> None:
        with self._syncing, contextlib.suppress(OSError):
            with self._writing:  # not for as long as the disk takes: answers wait for it
                file = None if self._file is None else os.dup(self._file)
            if file is not None:
                try:
                    os.fsync(file)
                finally:
                    os.close(file)

    def close(self) -> None:
        """Make it durable. Records that cannot be written even now go to the log."""
        self._ended.set()
        if self._waiting and not self._write():
            left = b"".join(self._waiting).decode()
            LOG.error("%d records of usage could not be written to %s:\n%s", self.num_waiting, self.path, left)
            self._waiting.clear()
        self._sync()
        with self._writing:
            if self._file is not None:
                os.close(self._file)
                self._file = None
