"""Checkpoints that count only when whole: a marker with the sum of every file is written last.

A checkpoint without its marker, or whose files differ from it, does not exist for resuming.
"""

from __future__ import annotations

import shutil
from collections.abc import Set
from pathlib import Path
from typing import Any

from ..files import read_json, sha256_file, sync_file, sync_folder, write_json
from ..records import Log, no_log

MARKER = "COMPLETE.json"
STATE = "state.json"
PREFIX = "checkpoint-"
KEEP = 2


def seal(folder: Path, state: dict[str, Any]) -> None:
    """Write our state into a checkpoint, make its files durable, then the marker with their sums."""
    write_json(folder / STATE, state)
    for path in files_in(folder):
        sync_file(path)
    sync_folder(folder)
    write_json(folder / MARKER, marker_of(folder))
    sync_folder(folder.parent)


def files_in(folder: Path) -> list[Path]:
    """Its files at any depth, the marker apart, sorted."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MARKER)


def marker_of(folder: Path) -> dict[str, Any]:
    """What the marker says: bytes and SHA-256 of every file."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in files_in(folder)
    }
    return {"step": step_of(folder), "files": files}


def step_of(folder: Path) -> int:
    """The optimizer step in a checkpoint's or best adapter's name, -1 where there is none."""
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def is_intact(folder: Path) -> bool:
    """Whether the marker is there and every file it names has its size and sum."""
    try:
        files = read_json(folder / MARKER)["files"]
        return bool(files) and all(
            (folder / name).stat().st_size == fact["bytes"] and sha256_file(folder / name) == fact["sha256"]
            for name, fact in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def newest_intact(folder: Path, log: Log = no_log) -> Path | None:
    """The newest checkpoint that is whole; those newer than it, and what is left of half-removed ones, are removed.

    A checkpoint that was whole once is named in the log; one that a kill cut short is nothing to speak of.
    """
    for candidate in _checkpoints(folder):
        if not (candidate / MARKER).is_file():
            shutil.rmtree(candidate)
    damaged, newest = [], None
    for candidate in _checkpoints(folder):
        if is_intact(candidate):
            newest = candidate
            break
        damaged.append(candidate.name)
        shutil.rmtree(candidate)
    if damaged:
        anew = "" if newest else "; training begins anew"
        log(f"{', '.join(damaged)} in {folder}: damaged, so removed{anew}")
    return newest


def prune(folder: Path, but: Set[str] = frozenset()) -> None:
    """Keep the last KEEP sealed checkpoints, and those named in but."""
    for old in [c for c in _checkpoints(folder) if (c / MARKER).is_file()][KEEP:]:
        if old.name not in but:
            # The marker goes first: a removal cut short leaves no checkpoint that looks whole.
            (old / MARKER).unlink()
            shutil.rmtree(old)


def read_state(folder: Path) -> dict[str, Any]:
    """Our part of a checkpoint."""
    state: dict[str, Any] = read_json(folder / STATE)
    return state


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.is_dir() and p.name.startswith(PREFIX) and step_of(p) >= 0]
    return sorted(found, key=step_of, reverse=True)
