"""`shoestring curate`: a run's first stage, or data files into a folder without a run file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..files import write_whole
from . import running
from .output import emit, say, warn, written_to_out
from .progress import Screen


def command(
    targets: list[str], out: Path | None, engine: str, restored: list[str], runs_dir: Path, is_json: bool
) -> int:
    """Dispatch on what the targets are; rows named in restored are decided to be kept first."""
    from ..data.folder import check_out
    from ..data.sources import is_data

    if out is None and len(targets) == 1 and not is_data(targets[0]):
        if engine != "local":
            raise BadInput(f"--engine {engine} is for data files; a run is curated on this machine")
        _restore(running.open_run(targets[0], runs_dir).folder / "data", restored)
        return running.command(targets[0], runs_dir, is_json, "curate")
    run_files = [target for target in targets if Path(target).suffix.lower() in (".yaml", ".yml")]
    if run_files:
        raise BadInput(
            f"{run_files[0]} is a run file: its rows go into its run folder, so give it alone, without --out; "
            "or give the data files themselves"
        )
    folder = out or Path("curated")
    check_out(folder, targets)
    _restore(folder, restored)
    return _files(targets, folder, engine, is_json)


def _restore(folder: Path, names: list[str]) -> None:
    from ..data.restore import restore
    from ..data.store import REVIEW

    if names:
        rows = restore(folder, names, folder / REVIEW)
        are = "row is" if len(rows) == 1 else "rows are"
        warn(f"{len(rows):,} dropped {are} to be kept: decided in {folder / REVIEW}")


def _files(files: list[str], out: Path, engine: Any, is_json: bool) -> int:
    from ..data.folder import curate
    from ..report.data import data_page

    with Screen() as screen, written_to_out():
        result = curate(files, out, engine=engine, progress=screen.progress)
        write_whole(out / "report.html", data_page(out, Path()))
    if is_json:
        emit(result)
    else:
        running.show_curate_result(result, out)
        say(f"report: {out / 'report.html'}")
    return 0
