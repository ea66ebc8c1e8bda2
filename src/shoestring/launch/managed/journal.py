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
        self._read()

    def _read(self) -> None:
        """Take what is on disk, if anything is. Raises: LaunchError for a damaged file: a job may have been ordered."""
        tag = self.state["tag"]
        try:
            state = read_json(self.path)
            if state["tag"] != tag or not isinstance(state["intents"], list):
                raise ValueError("it is of another launch, or of none")
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LaunchError(
                f"{self.path} cannot be read ({type(error).__name__}: {error}), so whether a job was ordered is not "
                f"known; look for the tag {tag} on the service's own page, end what carries it, then remove the file"
            ) from error
        self.state = state

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
            self._read()
            yield
        finally:
            lock.release()


def now() -> str:
    """The time, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
