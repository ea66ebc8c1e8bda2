"""The process boundary: an engine's worker is started, listened to, asked to stop, and explained when it fails."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import BadInput, MissingDependency, TrainingError
from ...plan.engines import ENGINES, environment_line
from .worker import STOPPED

WORKER = Path(__file__).with_name("worker.py")
TICK_S = 0.5
GRACE_S = 300.0  # a worker that was asked to stop ends its step and saves
LAST_LINES = 8


def interpreter(engine: str, engine_python: str) -> str:
    """The Python that runs the engine: the one named, else, for trl, this one.

    Raises: BadInput, MissingDependency with the lines that make the environment.
    """
    facts = ENGINES[engine]
    python = str(Path(engine_python).expanduser()) if engine_python else sys.executable
    if not Path(python).is_file():
        raise BadInput(f"train.engine_python {engine_python!r} is no program: {environment_line(facts)}")
    found = installed(python, facts.packages)
    missing = [name for name in facts.packages if found[name] is None]
    if missing:
        raise MissingDependency(
            f"engine: {engine} needs {', '.join(missing)}, not installed for {python}: {environment_line(facts)}"
        )
    return python


def installed(python: str, packages: tuple[str, ...]) -> dict[str, str | None]:
    """Versions of the packages in that Python's environment. Raises: BadInput."""
    command = [python, "-I", str(WORKER), "versions", *packages]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    try:
        found: dict[str, str | None] = json.loads(done.stdout)
    except ValueError:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise BadInput(f"train.engine_python {python} does not run Python 3.9 or newer; it said: {said}") from None
    return found


class Child:
    """A running worker. Its words go to a log file, its events come through a pipe."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int, log_file: Path) -> None:
        self.process, self.descriptor, self.log_file = process, descriptor, log_file
        self.asked_s: float | None = None

    def events(self) -> Iterator[dict[str, Any] | None]:
        """Each event as it comes; None where nothing came for TICK_S. Ends when the worker closes the pipe or is gone:
        processes of its own may hold the pipe open."""
        pending = b""
        while True:
            is_gone = self.process.poll() is not None  # asked before: what it wrote last is read
            ready, _, _ = select.select([self.descriptor], [], [], TICK_S)
            if not ready:
                if is_gone:
                    break
                self._press()
                yield None
                continue
            block = os.read(self.descriptor, 1 << 16)
            if not block:
                break
            *lines, pending = (pending + block).split(b"\n")
            for line in lines:
                yield json.loads(line)

    def ask_to_stop(self) -> None:
        """SIGTERM, once: the worker saves a checkpoint and ends."""
        if self.asked_s is None and self.process.poll() is None:
            self.asked_s = time.monotonic()
            self.process.send_signal(signal.SIGTERM)

    def _press(self) -> None:
        if self.asked_s is not None and time.monotonic() - self.asked_s > GRACE_S:
            self.kill()

    def kill(self) -> None:
        """End it and what it started, which its session holds together."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def finish(self) -> bool:
        """Wait for the end; whether the training is complete, False where it was stopped.

        Raises: TrainingError with the worker's last words.
        """
        status = self.process.wait()
        if status == 0:
            return True
        if status == STOPPED or self.asked_s is not None:
            return False
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        raise TrainingError(f"the engine's process {how}; its last words:\n{self.last_words()}\nall: {self.log_file}")

    def last_words(self) -> str:
        """The end of its log."""
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n".join(f"  {line[:300]}" for line in lines[-LAST_LINES:]) or "  (none)"


@contextlib.contextmanager
def child(python: str, folder: Path, environment: Mapping[str, str], worker: Path = WORKER) -> Iterator[Child]:
    """A worker on folder/job.json, in a session of its own: a terminal's Ctrl-C reaches this process alone.

    However the block is left, neither it nor what it started is left running.
    """
    log_file = folder / "log.txt"
    ours, theirs = os.pipe()
    try:
        with log_file.open("ab") as words:
            process = subprocess.Popen(
                [python, "-I", str(worker), "train", str(folder), str(theirs)],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                pass_fds=(theirs,),
                start_new_session=True,
            )
    except OSError as error:
        os.close(ours)
        raise BadInput(f"{python} cannot be started: {error.strerror}") from error
    finally:
        os.close(theirs)
    worker_process = Child(process, ours, log_file)
    try:
        yield worker_process
    finally:
        worker_process.kill()
        process.wait()
        os.close(ours)
