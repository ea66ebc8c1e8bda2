"""`shoestring curate`: a run's first stage, or data files into a folder without a run file."""

from __future__ import annotations

from pathlib import Path

from ..errors import BadInput, DataError
from . import running
from .output import emit, written_to_out
from .progress import Screen


def command(targets: list[str], out: Path | None, runs_dir: Path, is_json: bool) -> int:
    """Dispatch on --out."""
    if out is not None:
        return _files(targets, out, is_json)
    if len(targets) > 1:
        raise BadInput(f"{len(targets)} arguments: give one run file, or data files together with --out DIR")
    if Path(targets[0]).suffix.lower() in running.DATA_SUFFIXES and Path(targets[0]).is_file():
        raise BadInput(f"{targets[0]} is a data file; say where the curated rows go: --out DIR")
    return running.command(targets[0], runs_dir, is_json, "curate")


def _files(files: list[str], out: Path, is_json: bool) -> int:
    from ..config import RunConfig
    from ..data.curate import curate
    from ..data.detect import detect
    from ..data.store import summary, write_curated

    _check_out(out)
    missing = next((name for name in files if not Path(name).exists()), None)
    if missing is not None:
        raise DataError(f"{missing}: no such file; give data files (JSONL, JSON, CSV, Parquet, .gz of each)")
    detected = detect(Path(files[0]))
    config = RunConfig.model_validate(
        {
            "name": "curate",
            "task": {"kind": detected.kind, "bar": 0.0},
            "data": {"train": [str(Path(name).resolve()) for name in files]},
        }
    )
    with Screen() as screen:
        curated = curate(config, Path.cwd(), progress=screen.progress)
    with written_to_out():
        write_curated(curated, out)
    result = summary(curated)
    if is_json:
        emit({**result, "folder": str(out)})
    else:
        running.show_curate_result(result, out)
    return 0


def _check_out(out: Path) -> None:
    """Only an empty folder, or one this command filled before, is written into."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "receipt.json").is_file():
        raise BadInput(f"--out {out} holds other files; give an empty or new folder")
