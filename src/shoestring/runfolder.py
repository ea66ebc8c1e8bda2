"""The run folder: the only state of a run. A stage is finished when its record is there.

A record carries the fingerprint of everything the stage depends on; where the run file or the data
changed since, the record no longer counts and is moved to superseded/ (nothing is deleted).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import RunFolderError
from .files import cannot_write, read_json, write_json, write_whole


def fingerprint(*parts: Any) -> str:
    """First 16 hex digits of the SHA-256 of the parts' canonical JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def rung_name(model: str) -> str:
    """Folder name of a rung: the model name with path separators replaced, unique by a short hash if changed."""
    safe = "".join(c if c.isalnum() or c in "._-+" else "-" for c in model).strip(".-") or "model"
    return safe if safe == model else f"{safe[-60:]}-{fingerprint(model)[:6]}"


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that works on a run folder."""

    pid: int
    host: str

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine."""
        return self.host == platform.node()


def is_running(pid: int) -> bool:
    """Whether a process of this machine has the id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class RunFolder:
    """Paths, lock and completion records of runs/NAME."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def rung(self, model: str) -> Path:
        """rungs/MODEL."""
        return self.path / "rungs" / rung_name(model)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one process; a killed process releases it.

        Raises: RunFolderError naming the process that holds it, or why the folder cannot be written.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            write_json(self.path / ".holder.json", {"pid": os.getpid(), "host": platform.node()})
        except Timeout:
            raise RunFolderError(
                f"{self.path} is in use by {self._holder()}; wait for it, stop it, or give this run another name"
            ) from None
        except OSError as error:
            lock.release()
            if isinstance(error, RunFolderError):
                raise
            raise cannot_write(self.path, error) from error
        try:
            self._sweep()
            yield
        finally:
            lock.release()

    def holder(self) -> Holder | None:
        """The process that works on the folder now; None where none does, or none that can be named."""
        try:
            told = read_json(self.path / ".holder.json")
            found = Holder(int(told["pid"]), str(told["host"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if found.is_here and not is_running(found.pid):
            return None
        lock = FileLock(self.path / ".lock", timeout=0)  # the process id may be another program's by now
        try:
            lock.acquire()
        except Timeout:
            return found
        except OSError:
            return None
        lock.release()
        return None

    def _sweep(self) -> None:
        """Remove what a killed process left half-written; whoever holds the lock is the only writer."""
        for left in [*self.path.rglob(".*.tmp"), *self.path.rglob(".*.partial")]:
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)

    def _holder(self) -> str:
        try:
            holder = read_json(self.path / ".holder.json")
            return f"process {holder['pid']} on {holder['host']}"
        except (OSError, ValueError, KeyError):
            return "another process"

    def record(self, relative: str) -> dict[str, Any] | None:
        """The stage record at relative (such as 'decide.json'), or None; a torn one counts as none.

        Raises: RunFolderError where what is there cannot be read.
        """
        path = self.path / relative
        try:
            record = read_json(path)
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:
            raise RunFolderError(f"cannot read {path} ({error.strerror}); move it away, and it is made anew") from error
        return record if isinstance(record, dict) and "result" in record else None

    def finished(self, relative: str, stage_fingerprint: str) -> Any | None:
        """The result of a finished stage, or None if it is missing or belongs to other inputs."""
        record = self.record(relative)
        if record is None or record.get("fingerprint") != stage_fingerprint:
            return None
        return record["result"]

    def retract(self, *patterns: str) -> None:
        """Set the records aside that no longer hold, those that are there."""
        for pattern in patterns:
            for record in list(self.path.glob(pattern)):
                self.set_aside(record)

    def finish(self, relative: str, stage_fingerprint: str, result: Any, wall_s: float) -> None:
        """Write the completion record of a stage, whole; the one it replaces goes to superseded/."""
        target = self.path / relative
        if target.exists():
            self.set_aside(target)
        write_json(
            target,
            {
                "stage": Path(relative).stem,
                "fingerprint": stage_fingerprint,
                "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "wall_s": wall_s,
                "result": result,
            },
        )

    def set_aside(self, path: Path) -> Path:
        """Move a file or folder into superseded/ under a name of its own."""
        base = self.path / "superseded"
        name = "-".join(path.relative_to(self.path).parts)
        target = base / f"{time.strftime('%Y%m%dT%H%M%S')}-{name}"
        number = 1
        while target.exists():
            number += 1
            target = base / f"{time.strftime('%Y%m%dT%H%M%S')}-{number}-{name}"
        try:
            base.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        except OSError as error:
            raise cannot_write(target, error) from error
        return target

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file of the folder, whole."""
        write_whole(self.path / name, text)
        return self.path / name
