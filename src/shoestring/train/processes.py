"""Several processes of this machine that call one function together: started here, heard, stopped, none left behind.

The calling process keeps the run folder's records, the budget and the terminal; it never touches the group's GPUs and
so can end every other process whatever state that is in. A process whose caller is gone ends itself.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ..errors import BadInput, Interrupted, ShoestringError, TrainingError
from ..files import cannot_write
from ..records import Device
from .watch import Signals
from .world import LAUNCHER_VARIABLES, MPI_VARIABLES, gpus_of

POLL_S = 0.5  # how often signals and silent deaths are looked for
LAST_WORDS_S = 10.0  # after a first failure the others may say what they saw
LEAVING_S = 60.0  # to tear down, once all is done
START = "from shoestring.train.worker import main; main()"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended. kind: done, left (told to), raised (an error of ours), memory, died, failed, cut_off."""

    kind: str
    value: Any = None  # the result, the exception, or words


# Of several ends the one that explains the others: a lost connection is what the rest see of a dead process.
BLAME = ("raised", "died", "memory", "failed", "cut_off")


class OutOfMemory(Exception):
    """A process of the group ran out of memory."""


@dataclass
class Member:
    """One process of the group, seen from the caller."""

    rank: int
    process: subprocess.Popen[bytes]
    link: Connection
    output: Path
    ended: Ended | None = None


def call_together(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    *,
    num: int,
    device: Device,
    folder: Path,
    hooks: dict[str, Callable[..., Any]],
    num_shrunk: int = 0,
) -> Any:
    """function(**arguments, **hooks) in num processes; what it returns in the first.

    function and arguments must pickle: functions by the name of their module. hooks are called here, on the first
    process's behalf; in the others they do nothing. What processes print goes to folder/processes/.
    Raises: what the function raises if it is an error of ours; TrainingError naming the process that ended without a
    word; OutOfMemory; Interrupted.
    """
    job = _pickled({"function": function, "arguments": arguments, "hooks": list(hooks), "num_shrunk": num_shrunk})
    with Signals().listening() as signals, _started(num, device, folder, job) as members:
        forwarded = False
        failed_at: float | None = None
        while any(member.ended is None for member in members):
            _hear(members, hooks)
            if signals.received and not forwarded and members[0].ended is None:
                members[0].process.send_signal(getattr(signal, signals.received))
                forwarded = True
            first = members[0].ended
            if first is not None and first.kind == "done":
                _let_leave(members)
                return first.value
            if failed_at is None and any(m.ended is not None and m.ended.kind in BLAME for m in members):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > LAST_WORDS_S:
                break
        raise _cause(members, signals)


def _pickled(job: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise BadInput(
            f"several processes cannot be given this to do ({error}); "
            "dev_metric must be a function of a module, not one inside another; or set num_processes to 1"
        ) from error


@contextlib.contextmanager
def _started(num: int, device: Device, folder: Path, job: bytes) -> Iterator[list[Member]]:
    members: list[Member] = []
    # Every process reads one end; no byte is ever written, so its end is the end of this process.
    life, keep = os.pipe()
    output = folder / "processes"
    with tempfile.TemporaryDirectory(prefix="shoestring-group-", ignore_cleanup_errors=True) as place:
        try:
            try:
                output.mkdir(parents=True, exist_ok=True)
                for rank in range(num):
                    members.append(_start(rank, num, device, output / f"rank-{rank}.txt", life))
            except OSError as error:
                raise cannot_write(output, error) from error
            for member in members:
                meeting = {"rank": member.rank, "size": num, "device": device, "init_method": f"file://{place}/store"}
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died: heard of by the caller
                    member.link.send(meeting)
                    member.link.send_bytes(job)
            yield members
        finally:
            for member in members:
                if member.process.poll() is None:
                    member.process.kill()
                member.process.wait()
                member.link.close()
            os.close(life)
            os.close(keep)


def _start(rank: int, num: int, device: Device, output: Path, life: int) -> Member:
    ours, theirs = Pipe()
    with theirs, output.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", START, str(theirs.fileno()), str(life)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs.fileno(), life),
            env=_environment(rank, num, device),
            start_new_session=True,  # Ctrl-C comes to the caller, who tells the first process
        )
    return Member(rank, process, ours, output)


def _environment(rank: int, num: int, device: Device) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in (*LAUNCHER_VARIABLES, *MPI_VARIABLES)}
    kept["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    if device.kind == "cuda":
        kept["CUDA_VISIBLE_DEVICES"] = (gpus_of(os.environ) or [str(i) for i in range(num)])[rank]
    else:
        kept["OMP_NUM_THREADS"] = str(max(1, device.num_threads // num))
        # Between processes of one machine; the host's own name need not resolve.
        kept.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    return kept


def _hear(members: list[Member], hooks: dict[str, Callable[..., Any]]) -> None:
    """Wait a moment for messages, and act on them."""
    links: dict[Any, Member] = {member.link: member for member in members if member.ended is None}
    for link in wait(list(links), POLL_S):
        member = links[link]
        try:
            kind, *values = member.link.recv()
        except (EOFError, ConnectionResetError):
            member.ended = Ended("died", member.process.wait())
            continue
        if kind == "hook":
            name, args = values
            reply = hooks[name](*args)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died: heard of next
                member.link.send(reply)
        else:
            member.ended = Ended(kind, *values)


def _let_leave(members: list[Member]) -> None:
    """Give the processes a moment to take down what they share; the rest is killed."""
    until = time.monotonic() + LEAVING_S
    for member in members:
        with contextlib.suppress(subprocess.TimeoutExpired):
            member.process.wait(max(0.0, until - time.monotonic()))


def _cause(members: list[Member], signals: Signals) -> Exception:
    """What to raise for a group that ended without a result."""
    first = members[0].ended
    if first is not None and first.kind == "raised" and isinstance(first.value, ShoestringError):
        return first.value
    for kind in BLAME:
        for member in members:
            if member.ended is not None and member.ended.kind == kind:
                return _error_of(member, len(members), signals)
    raise AssertionError("a group ends with a result or a failure")


def _error_of(member: Member, num: int, signals: Signals) -> Exception:
    assert member.ended is not None
    kind, value = member.ended.kind, member.ended.value
    who = f"process {member.rank} of {num}"
    if kind == "raised":
        assert isinstance(value, Exception)
        return value
    if kind == "memory":
        return OutOfMemory(f"{who}: {value}")
    if kind == "died" and signals.received:
        return Interrupted(f"stopped by {signals.received} while {num} processes were starting; run the same command")
    what = f"was killed by {signal.Signals(-value).name}" if kind == "died" and value < 0 else ""
    if kind == "died" and not what:
        what = f"ended with status {value}"
    hint = " (the system kills what takes too much memory)" if "SIGKILL" in what else ""
    return TrainingError(
        f"{who} {what or f'failed: {value}'}{hint}; the others were stopped, the last checkpoint is kept: run the same "
        f"command to continue. What it printed is in {member.output}"
    )
