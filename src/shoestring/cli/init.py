"""`shoestring init`: a commented run file from a look at the data."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..errors import BadInput, DataError
from ..files import write_whole
from .output import emit, say, written_to_out
from .progress import Screen


def command(data_file: str, out: Path, force: bool, is_json: bool) -> int:
    """Detect, write, and say why and what next."""
    from ..data.detect import detect
    from ..stages.proposing import evidence_text, propose

    path = Path(data_file)
    if not path.exists():
        raise DataError(f"{data_file}: no such file; give a data file (JSONL, JSON, CSV, Parquet, .gz of each)")
    if out.is_dir():
        raise BadInput(f"--out {out} is a folder; name the file to write, such as {out / 'run.yaml'}")
    if not out.parent.is_dir():
        raise BadInput(f"--out {out}: there is no folder {out.parent}; first: mkdir -p {shlex.quote(str(out.parent))}")
    if out.exists() and not force:
        raise BadInput(f"{out} exists; choose another name with --out FILE, or replace it with --force")
    with Screen() as screen:
        detected = detect(path, screen.progress)
    proposed = propose(path, out, detected, f"'shoestring init {path.name}'")
    task = proposed.config.task
    with written_to_out():
        write_whole(out, proposed.text)
    runs = {"run_file": str(out), "kind": task.kind, "metric": task.metric, "bar": task.bar, "format": detected.format}
    if is_json:
        emit(
            {**runs, "fields": detected.fields, "evidence": detected.evidence, "num_rows_seen": detected.num_rows_seen}
        )
        return 0
    say(f"Wrote {out}: {task.kind}, scored by {task.metric}, bar {task.bar:g} (yours to decide)")
    say(f"  {evidence_text(detected)}")
    if detected.num_faults:
        are = "row has" if detected.num_faults == 1 else "rows have"
        say(f"  {detected.num_faults:,} {are} something wrong; shoestring curate {shlex.quote(str(out))} says what")
    say(f"Next: read it, then  shoestring run {shlex.quote(str(out))}")
    return 0
