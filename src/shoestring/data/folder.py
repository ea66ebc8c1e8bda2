"""Data files into a folder of curated rows, without a run file: `shoestring curate FILES` and `ss.curate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import CurateConfig, RunConfig, TaskKind
from ..errors import BadInput
from ..records import Progress, no_progress
from .curate import curate_into
from .detect import detect
from .engine import EngineName
from .store import is_ours

DETECT_ROWS = 20_000  # of the first file are looked at for the kind of task


def curate(
    files: str | Path | Sequence[str | Path],
    out: str | Path = "curated",
    *,
    held_out: Sequence[str | Path] = (),
    kind: TaskKind | None = None,
    rules: CurateConfig | None = None,
    seed: int = 0,
    engine: EngineName = "local",
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Read, check, clean and split data files; the result is in folder `out`, the summary is returned.

    kind: of the task; None: by the rows of the first file. held_out: files of rows to score on (none: split off).
    The folder holds train, dev, eval, dropped and faults as JSON lines, and receipt.json, written last.
    Raises: BadInput, DataError, RunFolderError.
    """
    sources = [str(files)] if isinstance(files, (str, Path)) else [str(file) for file in files]
    folder = Path(out)
    check_out(folder, [*sources, *map(str, held_out)])
    detected = kind or detect(Path(sources[0]), progress, DETECT_ROWS).kind
    config = RunConfig.model_validate(
        {
            "name": "curate",
            "task": {"kind": detected, "bar": 0.0},
            "data": {"train": sources, "eval": [str(file) for file in held_out]},
            "curate": rules or CurateConfig(),
            "seed": seed,
        }
    )
    summary = curate_into(folder, config, Path(), engine=engine, may_be_few=True, progress=progress)
    return {**summary, "kind": detected, "folder": str(folder)}


def check_out(folder: Path, sources: Sequence[str]) -> None:
    """Only an empty folder, or one curation wrote before, is written into, and no source in it. Raises: BadInput."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--out {folder} is a file; give a folder")
    if folder.is_dir() and not is_ours(folder):
        raise BadInput(f"--out {folder} holds other files; give an empty or new folder")
    for source in sources:
        if Path(source).resolve().is_relative_to(folder.resolve()):
            raise BadInput(f"{source} is in --out {folder}, which would be written over; give another --out")
