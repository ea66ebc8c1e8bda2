"""Every launch of this user: in the folder of its run, and in a register that any folder and any later session reads.

The register lies in $XDG_STATE_HOME/shoestring/launches (~/.local/state), one file a launch, each written whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from ..errors import BadInput, ShoestringError
from ..files import cannot_write, read_json, write_json
from ..records import to_json
from .records import Launch, launch_from_json

LAUNCH_FILE = "launch.json"


def state_dir() -> Path:
    """Where this user's launches are registered."""
    home = os.environ.get("XDG_STATE_HOME", "").strip() or "~/.local/state"
    return Path(home).expanduser() / "shoestring" / "launches"


def new_id(name: str) -> str:
    """A name that is free on every service: lower case letters, digits and hyphens, at most 48."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:24].strip("-") or "run"
    return f"{plain}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def now() -> str:
    """This moment, as records hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One client at a time decides whether a run is launched. Raises: RunFolderError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".launch.lock"):
            yield
    except OSError as error:
        if isinstance(error, ShoestringError):
            raise
        raise cannot_write(folder, error) from error


def save(launch: Launch) -> Launch:
    """Write a launch to both places, the register first: what bills must be found even if the run folder is full.

    Raises: RunFolderError.
    """
    row = to_json(launch)
    write_json(state_dir() / f"{launch.id}.json", row)
    write_json(Path(launch.run_folder) / LAUNCH_FILE, row)
    return launch


def registered() -> list[Launch]:
    """Every registered launch, oldest first; a damaged file is passed over, and damaged() tells of it."""
    return sorted(filter(None, map(_read, state_dir().glob("*.json"))), key=lambda launch: launch.started_at)


def damaged() -> list[Path]:
    """Files of the register that hold no launch: what these started may bill, and nothing else knows of it."""
    return sorted(path for path in state_dir().glob("*.json") if path.exists() and _read(path) is None)


def _read(path: Path) -> Launch | None:
    """The launch of a file; None where it holds none."""
    try:
        launch = launch_from_json(read_json(path))
        datetime.fromisoformat(launch.started_at)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return launch


def of_folder(folder: Path) -> Launch | None:
    """The newest launch of a run folder: by the register, or by the folder's own file where that one is damaged."""
    own = [launch for launch in registered() if Path(launch.run_folder) == folder.resolve()]
    beside = _read(folder / LAUNCH_FILE)
    if beside is None or any(launch.id == beside.id for launch in own):
        return own[-1] if own else None
    return max([*own, beside], key=lambda launch: launch.started_at)


def find(target: str) -> Launch:
    """The launch of an id, or the newest of a run's name. Raises: BadInput listing those there are."""
    everything = registered()
    for launch in reversed(everything):
        if target in (launch.id, Path(launch.run_folder).name):
            return launch
    known = ", ".join(launch.id for launch in everything[-5:]) or "none"
    raise BadInput(f"{target}: no launch has this id and no launched run this name; the latest launches: {known}")
