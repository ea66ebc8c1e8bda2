"""A supervised run on the machine this code runs on: a folder with what to do, what happened, and how it ended.

job.json says what to do; the supervisor (supervisor.py) appends to events.jsonl, renews heartbeat.json, writes log.txt
and at the end end.json. It holds the lock of the folder as long as it lives, so that a process number used again
cannot be taken for it. Whoever wants it to end writes the file stop.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import LaunchError
from ..files import read_json, read_whole_lines, write_json
from ..units import SECONDS_PER_HOUR

JOB, EVENTS, HEARTBEAT, LOG, END, STOP, LOCK = (
    *("job.json", "events.jsonl", "heartbeat.json", "log.txt", "end.json", "stop", ".lock"),
)
START_S, STOP_S, POLL_S = 60.0, 150.0, 0.2
SUPERVISOR = "shoestring.launch.supervisor"


@dataclass(frozen=True, slots=True)
class Job:
    """What a supervisor does. Seconds count from its start."""

    id: str
    command: tuple[str, ...]
    cwd: str
    run_folder: str
    price_usd_per_hour: float  # of the machine; of the spot machine where there are two kinds
    budget_usd: float
    limit_s: float | None = None  # billed
    deadline_s: float | None = None
    restart_delay_s: float = 5.0
    available_s: tuple[tuple[float, float], ...] | None = None  # when the simulated spot machine is there; None: always
    on_demand_usd_per_hour: float | None = None  # of the machine taken where spot would be late; None: there is none
    work_s: float | None = None  # high end; what the deadline is held against
    restart_s: float = 0.0
    at_end: str = ""  # command once the launch has ended and its results are fetched, or linger_s later
    linger_s: float = 600.0
    secret_names: tuple[str, ...] = ()  # variables that are masked whatever they are called


@dataclass(frozen=True, slots=True)
class Session:
    """One worker on one machine, billed from start to end."""

    place: str  # spot, on_demand
    start_s: float
    end_s: float
    how: str  # taken, done, failed, killed, moved, stopped, running


def job_from_json(row: dict[str, Any]) -> Job:
    """The inverse of asdict."""
    spans = row.get("available_s")
    spans = None if spans is None else tuple((float(a), float(b)) for a, b in spans)
    names = tuple(row.get("secret_names", ()))
    return Job(**{**row, "command": tuple(row["command"]), "available_s": spans, "secret_names": names})


def import_path() -> str:
    """PYTHONPATH under which another process imports this very package, from whatever folder."""
    first = str(Path(__file__).resolve().parents[2])
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return os.pathsep.join(dict.fromkeys([first, *(str(Path(p).resolve()) for p in others)]))


def start(folder: Path, job: Job, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Start the supervisor of a job, detached from this process and terminal; returns its first heartbeat.

    environment: variables handed on to the run; they are in no file.
    Starting a job again that a supervisor has begun starts nothing.
    Raises: LaunchError where it does not come up.
    """
    exit_code = 0
    if not (folder / JOB).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / JOB, asdict(job))
    if not (folder / HEARTBEAT).is_file():  # whoever wrote the job may have been killed before it had a supervisor
        with (folder / "supervisor.txt").open("ab") as output:
            exit_code = subprocess.run(  # returns once it has forked away from us
                [sys.executable, "-m", SUPERVISOR, str(folder.resolve())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **(environment or {}), "PYTHONPATH": import_path()},
                check=False,
            ).returncode
    until = time.monotonic() + START_S
    while time.monotonic() < until and exit_code == 0:
        if (folder / HEARTBEAT).is_file():
            beat: dict[str, Any] = read_json(folder / HEARTBEAT)
            return beat
        time.sleep(POLL_S / 4)
    said = (folder / "supervisor.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise LaunchError(f"the supervisor did not start ({said[-1] if said else 'no word from it'}); see {folder}")


def is_alive(folder: Path) -> bool:
    """Whether the supervisor of a job lives, by its lock."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


def status(folder: Path) -> dict[str, Any]:
    """state, since, note, exit_code, sessions, useful_s of a job, by its files. Raises: LaunchError where damaged."""
    try:
        return _status(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LaunchError(
            f"{folder}: its files are damaged ({type(error).__name__}: {error}), so how it stands is not known; to end "
            f"what may still run: touch {folder / STOP}"
        ) from error


def _status(folder: Path) -> dict[str, Any]:
    sessions = [asdict(session) for session in sessions_of(folder)]
    told: dict[str, Any] = {"sessions": sessions, "exit_code": None, "note": "", "since": None}
    alive = is_alive(folder)  # before end.json is looked for: it is written under the lock
    if (folder / END).is_file():
        return {**told, **read_json(folder / END)}
    if not (folder / JOB).is_file():
        return {**told, "state": "lost", "note": "nothing was started"}
    if (folder / HEARTBEAT).is_file():
        beat = read_json(folder / HEARTBEAT)
        told |= {key: beat.get(key) for key in ("since", "note", "useful_s")}
        if alive:
            return {**told, "state": beat["state"]}
        note = f"its supervisor ended without a word, last heard of {beat['at']}; launched again, it goes on"
        return {**told, "state": "lost", "since": beat["at"], "note": note}
    return {**told, "state": "pending" if alive or _age_s(folder / JOB) < START_S else "lost"}


def _age_s(path: Path) -> float:
    return max(0.0, time.time() - path.stat().st_mtime)


def sessions_of(folder: Path) -> list[Session]:
    """What was billed, by the events; a session without an end lasts until the last heartbeat."""
    events = read_whole_lines(folder / EVENTS) if (folder / EVENTS).is_file() else []
    found: list[Session] = []
    open_one: dict[str, Any] | None = None
    for event in events:
        if event["event"] == "started":
            open_one = event
        elif event["event"] == "ended" and open_one is not None:
            found.append(Session(open_one["place"], open_one["t_s"], event["t_s"], event["how"]))
            open_one = None
    if open_one is not None:
        beat = read_json(folder / HEARTBEAT) if (folder / HEARTBEAT).is_file() else open_one
        found.append(Session(open_one["place"], open_one["t_s"], max(open_one["t_s"], beat["t_s"]), "running"))
    return found


def billed_s(sessions: list[Session]) -> float:
    """Seconds that a machine was held."""
    return sum(session.end_s - session.start_s for session in sessions)


def billed_usd(sessions: list[Session], job: Job) -> float:
    """What they cost, each at the price of its place."""
    prices = {"spot": job.price_usd_per_hour, "on_demand": job.on_demand_usd_per_hour or 0.0}
    return sum((s.end_s - s.start_s) * prices[s.place] for s in sessions) / SECONDS_PER_HOUR


def log_bytes(folder: Path, offset: int) -> bytes:
    """What was written to the log from offset on."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        return b""


def logs(folder: Path, follow: bool, offset: int = 0) -> Iterator[bytes]:
    """Whole lines of the log from offset on; under follow until the job has ended."""
    rest = b""
    while True:
        over = not follow or (folder / END).is_file() or not is_alive(folder)
        data = log_bytes(folder, offset)
        offset += len(data)
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
        if over:
            break
        time.sleep(POLL_S)
    if rest:
        yield rest


def stop(folder: Path, wait_s: float = STOP_S) -> dict[str, Any]:
    """Ask the supervisor to end, and wait until it has. Raises: LaunchError where it does not in time."""
    if (folder / JOB).is_file() and not (folder / END).is_file():
        (folder / STOP).touch()
    until = time.monotonic() + wait_s
    while is_alive(folder) and not (folder / END).is_file():
        if time.monotonic() > until:
            raise LaunchError(f"the supervisor of {folder} did not end within {wait_s:g} s; see its log, try again")
        time.sleep(POLL_S)
    return status(folder)


def running() -> list[Path]:
    """Folders of all supervisors on this machine, whether or not anything knows of them."""
    listed = subprocess.run(["ps", "-Awwo", "args="], capture_output=True, text=True, check=False)
    if listed.returncode:
        raise LaunchError(f"ps cannot list processes here ({listed.stderr.strip()}); install procps")
    found = []
    for line in listed.stdout.splitlines():
        _, found_it, folder = line.partition(f"-m {SUPERVISOR} ")
        if found_it and Path(folder.strip()).is_dir():
            found.append(Path(folder.strip()))
    return found
