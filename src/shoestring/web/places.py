"""From a name in an address to a folder under the runs folder, and to nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from starlette.exceptions import HTTPException

# What a run file may be named, see RunConfig.name.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def folder_of(runs_dir: Path, name: str) -> Path:
    """The run folder of this name. Raises: HTTPException 404 where there is none, or it leads out of runs_dir."""
    if not NAME.fullmatch(name):
        raise HTTPException(404, f"{name[:80]!r} is no name of a run")
    folder = runs_dir / name
    if not folder.is_dir():
        raise HTTPException(404, f"there is no run {name} in {runs_dir}")
    if folder.resolve().parent != runs_dir.resolve():
        raise HTTPException(404, f"{folder} is a link out of {runs_dir}; give its own folder with --runs-dir")
    return folder


def run_folders(runs_dir: Path) -> list[Path]:
    """The folders of runs_dir that an address can name."""
    if not runs_dir.is_dir():
        return []
    root = runs_dir.resolve()
    found = [path for path in runs_dir.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
    return [path for path in found if not path.is_symlink() or path.resolve().parent == root]
