"""What the ssh backend asks for on the host: python -m shoestring.launch.agent COMMAND ARGUMENTS.

Answers with JSON, or a tar stream, on standard output. What only moves files needs the standard library alone, since
it runs before anything is installed there.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

COPY_BYTES = 1 << 20


def file_print(path: Path) -> list[Any]:
    """[bytes, SHA-256]."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(COPY_BYTES):
            digest.update(block)
    return [path.stat().st_size, digest.hexdigest()]


def listing(root: Path) -> dict[str, list[Any]]:
    """Every file below root but the hidden ones (locks, half-written files), by its relative path."""
    found = {}
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            try:
                if not name.startswith(".") and path.is_file():
                    found[str(path.relative_to(root))] = file_print(path)
            except FileNotFoundError:  # a live run renames
                continue
    return found


def missing(root: Path, wanted: dict[str, list[Any]]) -> list[str]:
    """Those of wanted that are not there as they should be."""
    found = []
    for name, (size, digest) in wanted.items():
        path = root / name
        if not path.is_file() or path.stat().st_size != size or file_print(path)[1] != digest:
            found.append(name)
    return found


def receive(root: Path, stream: Any) -> None:
    """Write the files of a tar stream below root, each whole or not at all."""
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            path = root / member.name
            if not member.isfile() or root.resolve() not in path.resolve().parents:
                raise SystemExit(f"{member.name}: no plain file below {root}")
            source = archive.extractfile(member)
            assert source is not None
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.partial")
            with part.open("wb") as file:
                while block := source.read(COPY_BYTES):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)


def send(root: Path, names: list[str], stream: Any) -> None:
    """The named files below root as a tar stream; one that is gone is left out."""
    with tarfile.open(fileobj=stream, mode="w|") as archive:
        for name in names:
            path = root / name
            if path.is_file():
                archive.add(path, arcname=name, recursive=False)


def versions_of(names: list[str]) -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def _start(folder: Path) -> Any:
    from . import jobs

    asked = json.load(sys.stdin)
    return jobs.start(folder, jobs.job_from_json(asked["job"]), asked["environment"])


def _logs(folder: Path, offset: str, follow: str) -> None:
    from . import jobs

    for line in jobs.logs(folder, follow == "1", int(offset)):
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()


def _status(folder: Path) -> Any:
    from . import jobs

    return jobs.status(folder)


def _stop(folder: Path) -> Any:
    from . import jobs

    return jobs.stop(folder)


def _running() -> Any:
    from . import jobs

    return [str(folder) for folder in jobs.running()]


COMMANDS: dict[str, Callable[..., Any]] = {
    "versions": lambda: versions_of(json.load(sys.stdin)),
    "list": lambda root: listing(Path(root)),
    "missing": lambda root: missing(Path(root), json.load(sys.stdin)),
    "receive": lambda root: receive(Path(root), sys.stdin.buffer),
    "send": lambda root: send(Path(root), json.load(sys.stdin), sys.stdout.buffer),
    "start": lambda folder: _start(Path(folder)),
    "status": lambda folder: _status(Path(folder)),
    "stop": lambda folder: _stop(Path(folder)),
    "logs": lambda folder, offset, follow: _logs(Path(folder), offset, follow),
    "touch": lambda path: Path(path).touch(),
    "running": _running,
}
SILENT = ("receive", "send", "logs", "touch")


def main(name: str, *arguments: str) -> None:
    """Do one command."""
    answer = COMMANDS[name](*arguments)
    if name not in SILENT:
        sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:  # one line for the client to show, whatever went wrong over here
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
