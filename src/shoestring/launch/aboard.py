"""Aboard a rented machine: bring the run folder from its place, run, copy what is new back, end at the limit.

`python -m shoestring.launch.aboard --place PLACE --run-folder FOLDER --limit-s N -- COMMAND` is what a cloud runs.
The place (a mounted bucket, or an address that fsspec has a driver for) outlives the machine: the next one goes on from
it, and the machine at home fetches from it. A machine may end in the middle of any write, so files lie there by their
SHA-256 and are never written over; `state-0.json` and `state-1.json` are written in turn, the later whole one counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import BadInput, LaunchError, require
from ..files import sha256_file

MARKER = "COMPLETE.json"  # of a checkpoint, written last: train.checkpoint
EVERY_S = 60.0
STOP_S = 120.0  # before the limit, for a checkpoint and its way to the place; then the run is killed
TRIES = 3
STATES = ("state-0.json", "state-1.json")
OBJECTS = "objects"
OF_LAUNCHES = ("launch", "launches", "launch.json", "launches.jsonl")  # kept where launches are made
DONE_CODES = (0, 3)  # of `shoestring run`: met, not met
DRIVERS = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "az": ("adlfs", "az"), "abfs": ("adlfs", "az")}


@dataclass(frozen=True, slots=True)
class State:
    """What a place holds. files: name in the run folder to SHA-256; outcome: None while it runs or was cut short."""

    round: int = 0
    files: dict[str, str] = field(default_factory=dict)
    billed_s: float = 0.0  # over all machines
    machines: list[dict[str, Any]] = field(default_factory=list)  # began, billed_s
    limit_s: float | None = None
    outcome: dict[str, Any] | None = None  # exit_code, why
    at: str = ""


class Place:
    """A folder that outlives the machine: a mounted bucket or an fsspec address. Credentials are the driver's."""

    def __init__(self, url: str) -> None:
        """Raises: MissingDependency with the pip line, BadInput for an address that no driver takes."""
        import fsspec

        scheme = urlsplit(url).scheme if "://" in url else "file"
        if scheme in DRIVERS:
            module, extra = DRIVERS[scheme]
            require(module, extra=extra, purpose=f"launch.bucket = {url}")
        try:
            options = {} if scheme in ("file", "memory") else {"use_listings_cache": False}
            self.fs, self.root = fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            raise BadInput(f"{url}: no driver takes this address ({error}); give s3://, gs:// or az://") from error
        self.url = url

    def state(self) -> State:
        """The later whole state; an empty one where there is none. Raises: LaunchError where it does not answer."""
        found = [State()]
        for name in STATES:
            try:
                self.fs.invalidate_cache()
                found.append(State(**json.loads(self.fs.cat_file(f"{self.root}/{name}"))))
            except (FileNotFoundError, ValueError, TypeError):  # none, or cut short
                continue
            except Exception as error:  # each driver has its own
                raise LaunchError(f"{self.url} cannot be read: {type(error).__name__}: {error}") from error
        return max(found, key=lambda state: state.round)

    def write(self, state: State) -> None:
        """Put the state beside the one before it."""
        self.fs.makedirs(self.root, exist_ok=True)
        self.fs.pipe_file(f"{self.root}/{STATES[state.round % 2]}", json.dumps(asdict(state)).encode())

    def put(self, path: Path, sha: str) -> None:
        """Put a file there."""
        self.fs.makedirs(f"{self.root}/{OBJECTS}", exist_ok=True)
        self.fs.put_file(str(path), f"{self.root}/{OBJECTS}/{sha}")

    def get(self, sha: str, path: Path) -> None:
        """Bring a file here."""
        self.fs.get_file(f"{self.root}/{OBJECTS}/{sha}", str(path))

    def remove(self, sha: str) -> None:
        """Remove a file there, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.root}/{OBJECTS}/{sha}")


def whole_files(folder: Path) -> dict[str, Path]:
    """Files of a run folder to copy, by name: no locks, no launches, nothing half written, whole checkpoints."""
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if parts[0] in OF_LAUNCHES:
            continue
        if any(part.startswith(".") or part.endswith((".part", ".partial")) for part in parts) or not path.is_file():
            continue
        if "checkpoints" in parts[:-1]:
            top = folder.joinpath(*parts[: parts.index("checkpoints") + 2])
            if top.is_dir() and not (top / MARKER).is_file():
                continue
        found["/".join(parts)] = path
    return found


@dataclass
class Copies:
    """What of a run folder is at the place. known: by name size, time of change and SHA-256 as they were copied."""

    place: Place
    folder: Path
    known: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    state: State = field(default_factory=State)
    earlier: set[str] = field(default_factory=set)  # objects that the state before refers to

    def bring(self) -> int:
        """Bring every file of the state that is not here; returns how many. Raises: LaunchError."""
        for _ in range(TRIES):
            self.state = self.place.state()
            missing = [name for name, sha in self.state.files.items() if not self._is_here(name, sha)]
            failed = [name for name in missing if not self._bring_one(name, self.state.files[name])]
            if not failed:
                self._drop_others()
                self.earlier = set(self.state.files.values())
                return len(missing)
        raise LaunchError(f"{self.place.url}: {failed[0]} is not there as its state says, {TRIES} times; try again")

    def _is_here(self, name: str, sha: str) -> bool:
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise LaunchError(f"{self.place.url}: its state names {name}, which leads out of the run folder")
        if not path.is_file() or sha256_file(path) != sha:
            return False
        self._know(name, sha)
        return True

    def _know(self, name: str, sha: str) -> None:
        stat = (self.folder / name).stat()
        self.known[name] = (stat.st_size, stat.st_mtime_ns, sha)

    def _bring_one(self, name: str, sha: str) -> bool:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f".{path.name}.partial")
        try:
            self.place.get(sha, half)
        except FileNotFoundError:  # a later state no longer has it
            return False
        except Exception as error:  # each driver has its own
            raise LaunchError(f"{self.place.url}: {name}: {type(error).__name__}: {error}; run it again") from error
        if sha256_file(half) != sha:
            return False
        half.replace(path)
        self._know(name, sha)
        return True

    def _drop_others(self) -> None:
        """Checkpoints here that are no longer there; other files here stay."""
        for name in whole_files(self.folder):
            if name not in self.state.files and name.endswith(f"/{MARKER}") and "/checkpoints/" in f"/{name}":
                shutil.rmtree((self.folder / name).parent)

    def send(self, **facts: Any) -> int:
        """Copy what is new or changed, then the state with facts of it; returns how many files."""
        here, num = whole_files(self.folder), 0
        there = {sha for _, _, sha in self.known.values()}
        for name, path in here.items():
            try:
                stat = path.stat()
                before = self.known.get(name)
                if before is not None and before[:2] == (stat.st_size, stat.st_mtime_ns):
                    continue
                sha = sha256_file(path)
                if sha not in there:
                    self.place.put(path, sha)
            except FileNotFoundError:  # replaced or removed while we looked: the next round
                continue
            there.add(sha)
            self.known[name] = (stat.st_size, stat.st_mtime_ns, sha)
            num += 1
        self.known = {name: facts_of for name, facts_of in self.known.items() if name in here}
        files = {name: sha for name, (_, _, sha) in sorted(self.known.items())}
        before_this = set(self.state.files.values())
        state = replace(self.state, **facts, round=self.state.round + 1, files=files, at=now())
        self.place.write(state)
        for sha in self.earlier - before_this - set(files.values()):
            self.place.remove(sha)
        self.earlier, self.state = before_this, state
        return num


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def aboard(
    place: Place, folder: Path, command: Sequence[str], *, limit_s: float, boot_s: float = 0.0, every_s: float = EVERY_S
) -> int:
    """Run command with its run folder kept at the place; returns its exit code, 4 where the limit ended it.

    limit_s: billed seconds over all machines; boot_s: billed on each of them before this program starts.
    """
    start, began = time.monotonic(), now()
    copies = Copies(place, folder)
    num = copies.bring()
    before = copies.state
    say(f"{num} files of {folder} from {place.url}; {before.billed_s:.0f} s billed before, limit {limit_s:.0f} s")

    def spent_s() -> float:
        return before.billed_s + boot_s + time.monotonic() - start

    def send(outcome: dict[str, Any] | None = None) -> None:
        billed_s = round(spent_s(), 1)
        machine = {"began": began, "billed_s": round(billed_s - before.billed_s, 1)}
        machines = [*before.machines, machine]
        copies.send(billed_s=billed_s, machines=machines, limit_s=limit_s, outcome=outcome)

    send()
    code, why = 4, f"the limit of {limit_s:.0f} billed seconds"
    if spent_s() + STOP_S >= limit_s:
        why += " leaves no time to run"
    else:
        child = subprocess.Popen(command)
        with forwarded(child):
            ended = _until(child, lambda: limit_s - STOP_S - spent_s(), every_s, send)
        code, why = (code, why) if ended is None else (ended, "")
    insist(lambda: send({"exit_code": code, "why": why}))
    say(f"exit code {code}{f': {why}' if why else ''}")
    return code


def _until(
    child: subprocess.Popen[Any], left_s: Callable[[], float], every_s: float, send: Callable[[], None]
) -> int | None:
    """Copy now and then until the run ends; its exit code, None where it was stopped for the time was up."""
    while left_s() > 0:
        try:
            return child.wait(max(0.01, min(every_s, left_s())))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(Exception):  # the place may be away for a while; the last round insists
                send()
    stop(child)
    return None


def stop(child: subprocess.Popen[Any]) -> int:
    """SIGTERM, on which a run saves; SIGKILL where that takes too long."""
    child.send_signal(signal.SIGTERM)
    try:
        return child.wait(STOP_S / 2)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


@contextlib.contextmanager
def forwarded(child: subprocess.Popen[Any]) -> Iterator[None]:
    """A notice that the machine is taken, or a stop, reaches the run, which then saves."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in previous:
        signal.signal(number, lambda *_: child.send_signal(signal.SIGTERM))
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def insist(work: Callable[[], None]) -> None:
    """work(), tried again: what it brings away is lost with the machine."""
    for attempt in range(TRIES):
        try:
            work()
            return
        except Exception as error:  # each driver has its own
            say(f"the run folder could not be copied ({type(error).__name__}: {error}), try {attempt + 1} of {TRIES}")
            if attempt + 1 == TRIES:
                raise LaunchError(f"the run folder could not be copied: {error}") from error
            time.sleep(2.0**attempt)


def say(text: str) -> None:
    sys.stderr.write(f"aboard: {text}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str]) -> int:
    """Exit status 0 where the run came to its end, bar met or not: a cloud's launcher takes others for failures."""
    parser = argparse.ArgumentParser(prog="python -m shoestring.launch.aboard", description=__doc__)
    parser.add_argument("--place", required=True)
    parser.add_argument("--run-folder", required=True, type=Path)
    parser.add_argument("--limit-s", required=True, type=float)
    parser.add_argument("--boot-s", type=float, default=0.0)
    parser.add_argument("--every-s", type=float, default=EVERY_S)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    code = aboard(
        Place(given.place),
        given.run_folder,
        command,
        limit_s=given.limit_s,
        boot_s=given.boot_s,
        every_s=given.every_s,
    )
    return 0 if code in DONE_CODES else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
