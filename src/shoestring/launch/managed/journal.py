"""What has been done for a job, on disk before and after each step, so that a killed one goes on and pays once."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...errors import LaunchError
from ...files import read_json, write_json
from .dialect import TAG_START

FOLDER = "managed"


def tag_of(launch_id: str) -> str:
    """What a job carries to be found by: 27 characters of a-z, 0-9 and hyphens, which every service takes."""
    return TAG_START + hashlib.sha256(launch_id.encode()).hexdigest()[:16]


class Journal:
    """RUN/managed/LAUNCH/job.json, written whole at each change."""

    def __init__(self, run_folder: Path, launch_id: str) -> None:
        self.folder = Path(run_folder) / FOLDER / tag_of(launch_id)
        self.path = self.folder / "job.json"
        self.state: dict[str, Any] = {"launch_id": launch_id, "tag": tag_of(launch_id), "intents": []}
        with contextlib.suppress(FileNotFoundError):
            self.state = read_json(self.path)

    def __getitem__(self, key: str) -> Any:
        return self.state[key]

    def get(self, key: str) -> Any:
        """The value, or None."""
        return self.state.get(key)

    def write(self, **changes: Any) -> None:
        """Keep changes, durably."""
        self.state = {**self.state, **changes}
        write_json(self.path, self.state)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time starts the job. Raises: LaunchError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise LaunchError(f"{self.folder} is in use by another process; wait for it, or stop it") from None
        try:
            with contextlib.suppress(FileNotFoundError):
                self.state = read_json(self.path)
            yield
        finally:
            lock.release()


def now() -> str:
    """The time, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
