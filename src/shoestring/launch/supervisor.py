"""The process that stays with a launched run: python -m shoestring.launch.supervisor FOLDER.

It outlives the terminal and the client. It starts `shoestring run`, starts it again after each time the machine was
taken (SIGKILL), writes what is billed, and ends it at the budget, at the time limit, or when asked to. Where a spot
machine is simulated (job.available_s), it kills the run as the spans say and asks SpotPolicy where to go on.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from ..files import read_json, write_json
from ..ledger import Ledger
from ..secrets import without_secrets
from ..units import SECONDS_PER_HOUR, duration, usd
from . import jobs
from .policy import Learning, SpotPolicy, SpotState, Where
from .register import now

TICK_S, BEAT_S = 0.2, 2.0
GRACE_S = 90.0  # from SIGTERM until SIGKILL: a checkpoint is written in between
MOST_KILLS = 3  # without getting further: then it is no lost machine but, most likely, memory
LOCK_S = 5.0  # a client that looks whether we live holds the lock for a moment
SAVE_S = 5.0  # one checkpoint; what the policy leaves room for
FETCHED = "fetched"  # written by a client that has the results
BAR_NOT_MET_CODE, BUDGET_CODE, INTERRUPTED_CODE = 3, 4, 5
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """In the worker: ask to be ended when the supervisor dies, so that nothing trains unseen (Linux; see prctl(2))."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that these started."""
    listed = subprocess.run(["ps", "-Ao", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
    children: dict[int, list[int]] = {}
    for line in listed.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found, rest = [], [pid]
    while rest:
        below = children.get(rest.pop(), [])
        found += below
        rest += below
    return found


class Worker:
    """One `shoestring run`, in a process group of its own; its words go to the log without secrets."""

    def __init__(self, job: jobs.Job, folder: Path) -> None:
        self.process = subprocess.Popen(
            job.command,
            cwd=job.cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        self.reader = threading.Thread(target=self._copy, args=(folder / jobs.LOG, job.secret_names), daemon=True)
        self.reader.start()

    def _copy(self, log: Path, secret_names: tuple[str, ...]) -> None:
        assert self.process.stdout is not None
        with log.open("ab") as file:
            for line in self.process.stdout:
                file.write(without_secrets(line.decode("utf-8", "replace"), secret_names).encode())
                file.flush()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self, below: Sequence[int] = ()) -> None:
        """As a machine that is taken would end it: with every process it started, in whatever session.

        below: those that were seen earlier, when what started them may have gone since.
        """
        below = [*below, *descendants(self.process.pid)]
        self.signal(signal.SIGKILL)
        for pid in below:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.reader.join(TICK_S)

    def end(self, beat: Any) -> int:
        """SIGTERM, and SIGKILL where that is not heard; the exit code."""
        below = descendants(self.process.pid)
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + GRACE_S
        while self.process.poll() is None and time.monotonic() < until:
            beat()
            time.sleep(TICK_S)
        self.kill(below)
        return self.process.returncode


class Supervisor:
    """The state of one launch; `run` returns when it has ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job = jobs.job_from_json(read_json(folder / jobs.JOB))
        self.run_folder = Path(self.job.run_folder)
        self.began_s, self.beat_s = time.monotonic(), -BEAT_S
        self.worker: Worker | None = None
        self.on: Where = "wait"
        self.state, self.since, self.note = "pending", now(), ""
        self.closed_usd = self.closed_s = 0.0  # sessions that are over
        self.session_s = 0.0  # when the present one began
        self.not_before_s = 0.0
        self.span: int | None = None
        self.kills, self.progress = 0, self._progress()
        self.is_terminated = False
        self.policy = self._policy()
        self.before_s = self.useful_s()  # of earlier launches and runs in this folder

    # ---- time, money, progress ----

    @property
    def t_s(self) -> float:
        return time.monotonic() - self.began_s

    def _price(self) -> float:
        price = self.job.on_demand_usd_per_hour if self.on == "on_demand" else self.job.price_usd_per_hour
        return price or 0.0

    def billed_s(self) -> float:
        return self.closed_s + (self.t_s - self.session_s if self.worker else 0.0)

    def cost_usd(self) -> float:
        open_s = self.t_s - self.session_s if self.worker else 0.0
        return self.closed_usd + open_s * self._price() / SECONDS_PER_HOUR

    def useful_s(self) -> float:
        """Seconds of stages and of training that the run folder holds."""
        ledger = Ledger(self.run_folder / "ledger.jsonl")
        with contextlib.suppress(OSError, ValueError, KeyError):  # read while it is written
            return sum(e["actual"].get("s", 0.0) for e in ledger.entries()) + sum(ledger.live_s().values())
        return 0.0

    def _progress(self) -> Any:
        """What changes as the run gets further."""
        checkpoints = sorted(str(p) for p in self.run_folder.glob("rungs/*/checkpoints/*"))
        ledger = self.run_folder / "ledger.jsonl"
        return [checkpoints, ledger.stat().st_size if ledger.is_file() else 0]

    def _unsaved_s(self) -> float:
        """Seconds since something of this session was saved, at most."""
        saved = [p.stat().st_mtime for p in self.run_folder.glob("rungs/*/checkpoints/*")]
        saved += [p.stat().st_mtime for p in [self.run_folder / "ledger.jsonl"] if p.is_file()]
        session_s = self.t_s - self.session_s if self.worker else 0.0
        return max(0.0, min(session_s, time.time() - max(saved, default=0.0)))

    # ---- what is written ----

    def _event(self, event: str, **facts: Any) -> None:
        line = json.dumps({"at": now(), "t_s": self.t_s, "event": event, **facts}) + "\n"
        with (self.folder / jobs.EVENTS).open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def beat(self, state: str | None = None, note: str = "") -> None:
        """Renew the heartbeat: now when the state changes, else every BEAT_S."""
        is_new = state is not None and (state, note) != (self.state, self.note)
        if state is not None and is_new:
            self.state, self.since, self.note = state, now(), note
        if not is_new and self.t_s - self.beat_s < BEAT_S:
            return
        self.beat_s = self.t_s
        told = {"state": self.state, "since": self.since, "note": self.note, "at": now(), "pid": os.getpid()}
        numbers = {"t_s": self.t_s, "billed_s": self.billed_s(), "cost_usd": self.cost_usd()}
        numbers["useful_s"] = max(0.0, self.useful_s() - self.before_s)
        write_json(self.folder / jobs.HEARTBEAT, {**told, **numbers, "place": self.on})

    # ---- sessions ----

    def _start(self, place: Where) -> None:
        self.on = place
        self.session_s = self.t_s
        self._event("started", place=place)
        self.worker = Worker(self.job, self.folder)
        self.beat("running", f"on {place.replace('_', ' ')}" if self.policy else "")

    def _close(self, how: str) -> None:
        """The session is over: enter what it cost."""
        seconds = self.t_s - self.session_s
        self.closed_s += seconds
        self.closed_usd += seconds * self._price() / SECONDS_PER_HOUR
        self.worker = None
        self._event("ended", how=how, place=self.on)
        self.on = "wait"

    def _end(self, state: str, note: str, exit_code: int | None = None) -> None:
        """Write how the launch ended."""
        useful_s = max(0.0, self.useful_s() - self.before_s)
        end = {"state": state, "note": note, "exit_code": exit_code, "since": now(), "useful_s": useful_s}
        self.beat(state, note)
        write_json(self.folder / jobs.END, end)
        self._event("end", state=state)

    # ---- the loop ----

    def run(self) -> None:
        """Until the run is done, fails, is stopped, or has spent what it may."""
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.beat("pending")
        while not self._step():
            self.beat()
            time.sleep(TICK_S)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.is_terminated = True

    def _step(self) -> bool:
        """Look once; True when the launch has ended."""
        ending = self._ending()
        if ending:
            exit_code = None
            if self.worker:
                exit_code = self.worker.end(self.beat)
                done = exit_code in (0, BAR_NOT_MET_CODE)
                self._close("done" if done else "stopped")
                if done:
                    return self._exited(exit_code)
            self._end("stopped", ending, exit_code)
            return True
        code = self.worker.process.poll() if self.worker else None
        if self.worker and code is not None:
            self.worker.kill()  # whatever it started
            return self._exited(code)
        span = self._span()
        if self.worker and self.on == "spot" and span != self.span:
            self.worker.kill()
            self._close("taken")
            self.beat("interrupted", "the machine was taken; waiting for another")
        self.span = span
        self._place(span is not None)
        return False

    def _ending(self) -> str:
        """Why the launch has to end now; empty: it has not."""
        job = self.job
        if (self.folder / jobs.STOP).exists():
            return "stopped; launched again, it goes on"
        if self.is_terminated:
            return "the machine or its owner ended the supervisor; launched again, it goes on"
        if self._price() and self.cost_usd() >= job.budget_usd:
            return f"the budget of {usd(job.budget_usd)} is spent; with a larger one, launched again, it goes on"
        if job.limit_s is not None and self.billed_s() >= job.limit_s:
            return f"the time limit of {duration(job.limit_s)} is reached; with a larger budget it goes on"
        return ""

    def _span(self) -> int | None:
        """Which of the simulated machines is there now; always the same one where none is simulated."""
        t_s = self.t_s
        spans = self.job.available_s or ((0.0, math.inf),)
        return next((number for number, (start, end) in enumerate(spans) if start <= t_s < end), None)

    def _policy(self) -> Learning | None:
        """What decides where to be; None where there is nothing to decide: no deadline, or spot alone."""
        job = self.job
        if not job.on_demand_usd_per_hour or not job.deadline_s or not job.work_s:
            return None
        margin_h = (TICK_S + SAVE_S) / SECONDS_PER_HOUR
        return Learning(SpotPolicy(margin_h, spot_price_frac=job.price_usd_per_hour / job.on_demand_usd_per_hour))

    def _place(self, is_there: bool) -> None:
        """Go where the policy says; without one, where there is a machine."""
        wanted: Where = "spot" if is_there else "wait"
        job = self.job
        if not self.worker and self.t_s < self.not_before_s:
            return
        if self.policy and job.deadline_s and job.work_s:
            hour = SECONDS_PER_HOUR
            useful_s, unsaved_s = self.useful_s(), self._unsaved_s()
            state = SpotState(
                elapsed_h=self.t_s / hour,
                deadline_h=job.deadline_s / hour,
                done_h=max(0.0, useful_s - unsaved_s) / hour,
                work_h=max(job.work_s, useful_s + TICK_S) / hour,  # it is not done before it says so
                restart_h=job.restart_s / hour,
                on=self.on,
                spot_available=is_there,
                unsaved_h=min(useful_s, unsaved_s) / hour,
            )
            wanted = self.policy.decide(state)
        if wanted == self.on or (wanted == "wait" and self.worker):
            return
        if self.worker:  # from one kind of machine to the other
            code = self.worker.end(self.beat)
            if code in (0, BAR_NOT_MET_CODE):
                return  # it was done: the next look ends the launch
            self._close("moved")
        self._start(wanted)

    def _exited(self, code: int) -> bool:
        """The run ended by itself: done, failed, or its machine was taken."""
        if self.worker:
            self._close(_how(code))
        if code in (0, BAR_NOT_MET_CODE):
            self._end("done", "" if code == 0 else "the bar was not met", code)
        elif code == BUDGET_CODE:
            self._end("stopped", "the run stopped at its budget; with a larger one, launched again, it goes on", code)
        elif code == -signal.SIGKILL or code == INTERRUPTED_CODE:
            self.kills = self.kills + 1 if self._progress() == self.progress else 0
            if self.kills >= MOST_KILLS:
                self._end("failed", f"killed {self.kills} times without getting further; most likely memory", code)
                return True
            self.progress = self._progress()
            self.not_before_s = self.t_s + self.job.restart_delay_s
            self.beat("interrupted", f"killed; starts again in {duration(self.job.restart_delay_s)}")
            return False
        else:
            self._end("failed", self._last_words(), code)
        return True

    def _last_words(self) -> str:
        """The line with which the run said why."""
        lines = jobs.log_bytes(self.folder, 0).decode("utf-8", "replace").strip().splitlines()
        said = [line for line in lines if line.startswith("error: ")]
        return (said or lines or ["the run failed without a word"])[-1]


def _how(code: int) -> str:
    if code in (0, BAR_NOT_MET_CODE):
        return "done"
    return "killed" if code in (-signal.SIGKILL, INTERRUPTED_CODE) else "failed"


def at_end(folder: Path, job: jobs.Job) -> None:
    """Run the machine's own ending, once results are fetched or waited for long enough."""
    if not job.at_end:
        return
    until = time.monotonic() + job.linger_s
    while time.monotonic() < until and not (folder / FETCHED).exists():
        time.sleep(TICK_S)
    done = subprocess.run(job.at_end, shell=True, capture_output=True, text=True, check=False)
    said = without_secrets((done.stdout + done.stderr).strip())
    write_json(folder / "at_end.json", {"command": job.at_end, "exit_code": done.returncode, "said": said[-2000:]})


def main(folder: Path) -> int:
    """Supervise the job of a folder; 1 where another supervisor does, or did to its end."""
    lock = FileLock(folder / jobs.LOCK, timeout=LOCK_S)
    try:
        lock.acquire()
    except Timeout:
        return 1
    if (folder / jobs.END).is_file():
        return 1
    supervisor = Supervisor(folder)
    try:
        supervisor.run()
    finally:  # after an error of ours too: nothing goes on unwatched, and a machine that ends itself bills no more
        try:
            if supervisor.worker:
                supervisor.worker.kill()
        finally:
            at_end(folder, supervisor.job)
    lock.release()
    return 0


if __name__ == "__main__":
    if os.fork():
        os._exit(0)  # whoever started this is not its parent, so that it may go away or go on
    sys.exit(main(Path(sys.argv[1])))
