"""Starting and stopping runs: what the command line does, in processes that outlive the page."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import RunFolderError
from ..files import cannot_write
from ..launch import jobs
from ..launch.records import ENDED, Launch
from ..live import now
from ..runfolder import Holder, RunFolder
from .overview import Overview

LOG = "page.log"  # of the run folder: what the runs started from the page wrote
CHECK_LOG = "check.log"
MOST_LOG_BYTES = 1 << 16  # of the log's end, as shown
ERROR = re.compile(r"^error: (.*)", re.MULTILINE | re.DOTALL)


@dataclass
class Started:
    """A process of ours: `shoestring run`, or what stops a launch."""

    process: subprocess.Popen[bytes]
    log: Path
    log_start: int  # bytes that were in the log before
    at: str

    def said(self) -> str:
        """The error it ended with, in its words; empty while it works or where it ended well."""
        if self.process.poll() in (None, 0, 3):  # 3: the bar was not met
            return ""
        with self.log.open("rb") as file:
            file.seek(self.log_start)
            text = file.read(MOST_LOG_BYTES).decode("utf-8", "replace")
        found = ERROR.search(text)
        return (found[1] if found else text).strip()[-1000:] or f"it ended with code {self.process.returncode}"


@dataclass
class Processes:
    """What this page started and asked to stop, by run. The state of a run is its folder's, not ours."""

    runs_dir: Path
    _started: dict[str, Started] = field(default_factory=dict)
    _stopping: dict[str, Holder] = field(default_factory=dict)
    _checks: dict[str, Started] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, name: str, target: Path) -> None:
        """Carry out `shoestring run TARGET` for the run of this name: a run file, or its folder.

        Raises: RunFolderError where a process works on it already.
        """
        with self._lock:
            folder = self.runs_dir / name
            holder, before = RunFolder(folder).holder(), self._started.get(name)
            if holder is not None or (before is not None and before.process.poll() is None):
                raise RunFolderError(f"{name} is being worked on already; stop it first, or wait for it")
            self._started[name] = self._run(folder, ["run", str(target.resolve())])

    def stop(self, run: Overview) -> None:
        """Ask what works on a run to stop as Ctrl-C does: it saves, and can go on. Raises: RunFolderError."""
        with self._lock:
            folder, launch = self.runs_dir / run.name, run.launch
            holder = RunFolder(folder).holder()
            is_going = launch is not None and launch.state not in ENDED
            if launch is not None and is_going and (run.state == "away" or _supervised(folder, launch)):
                self._started[run.name] = self._run(folder, ["launch", launch.id, "--stop"])
                if holder is not None:
                    self._stopping[run.name] = holder
                return
            if holder is None:
                raise RunFolderError(f"no process works on {run.name} any more")
            if not holder.is_here:
                raise RunFolderError(f"process {holder.pid} on {holder.host} works on {run.name}; stop it there")
            os.kill(holder.pid, _polite_signal(holder.pid))
            self._stopping[run.name] = holder

    def check(self, name: str) -> None:
        """Carry out `shoestring check` for a run, which writes its check.json. Raises: RunFolderError."""
        with self._lock:
            folder, before = self.runs_dir / name, self._checks.get(name)
            if before is not None and before.process.poll() is None:
                return
            if RunFolder(folder).holder() is not None:
                raise RunFolderError(f"{name} is being worked on; its checks are made when it is not")
            self._checks[name] = self._run(folder, ["check", str(folder.resolve()), "--json"], CHECK_LOG)

    def checking(self, name: str) -> tuple[bool, str]:
        """Whether a check of ours works, and the error the last one ended with."""
        with self._lock:
            started = self._checks.get(name)
            if started is None:
                return False, ""
            is_working = started.process.poll() is None
            return is_working, "" if is_working or started.process.returncode == 0 else started.said()

    @property
    def num_working(self) -> int:
        """Processes started from here that have not ended."""
        with self._lock:
            return sum(one.process.poll() is None for one in (*self._started.values(), *self._checks.values()))

    def seen(self, run: Overview) -> tuple[str, str]:
        """State and reason of a run, with what this page started and asked of it."""
        with self._lock:
            started = self._started.get(run.name)
            if run.state == "running":
                return ("stopping", "it saves first") if self._stopping.get(run.name) == run.holder else ("running", "")
            self._stopping.pop(run.name, None)
            if run.state == "away" and started is not None and started.process.poll() is None:
                return "stopping", run.why
            if started is None:
                return run.state, run.why
            if str((run.facts.live or {}).get("started_at", "")) >= started.at:
                return run.state, run.why  # it held the folder; how that ended is written there
            if started.process.poll() is None:
                return "starting", ""
            said = started.said()
            return ("failed", said) if said else (run.state, run.why)

    def _run(self, folder: Path, arguments: list[str], log_name: str = LOG) -> Started:
        log = folder / log_name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                start = output.tell()
                process = subprocess.Popen(
                    [sys.executable, "-m", "shoestring", *arguments, "--runs-dir", str(self.runs_dir.resolve())],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C at the page's terminal is not meant for it
                    env={**os.environ, "PYTHONPATH": jobs.import_path()},
                )
        except OSError as error:
            raise cannot_write(log, error) from error
        return Started(process, log, start, now())


def _supervised(folder: Path, launch: Launch) -> bool:
    """Whether a supervisor of this machine stays with the run: it would start again what was only interrupted."""
    return jobs.is_alive(folder / "launches" / launch.id)


def _polite_signal(pid: int) -> signal.Signals:
    """SIGINT; SIGTERM for a process that was started with SIGINT ignored, as shells do in the background."""
    try:
        ignored = re.search(r"^SigIgn:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return signal.SIGINT
    is_ignored = ignored is not None and int(ignored[1], 16) >> (signal.SIGINT - 1) & 1
    return signal.SIGTERM if is_ignored else signal.SIGINT


def log_end(folder: Path) -> str:
    """The end of what the runs started from the page wrote."""
    try:
        with (folder / LOG).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MOST_LOG_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
