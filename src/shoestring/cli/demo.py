"""`shoestring demo`: the whole recipe on generated tickets, from a run file the reader can open and change."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadInput, RunFolderError
from ..files import write_whole
from .output import emit, say, warn
from .running import BAR_NOT_MET_CODE, execute, show_arms, show_verdict, summary_of

if TYPE_CHECKING:
    from ..recipe import Run

RUN_FILE = """\
# The demonstration: support tickets in, one JSON record out.
# Change the bar and run again with: shoestring run {path}
name: demo

task:
  kind: extract        # text to JSON
  metric: leaf_f1      # share of the record's values that are right, missing and invented ones counted
  bar: 0.75            # met when the lower end of the 95 % interval reaches it

data:
  train: train.jsonl   # duplicates, contradictions and broken rows are planted; truth.json says which

curate:
  eval_rows: 150       # held out for the score; 100 would do, more make the interval narrower

models: [embedded]     # demonstration models inside the package; real use: [Qwen/Qwen3-0.6B, ...]

decide:
  max_rows: 100        # held-out rows the prompting baselines are scored on
"""


def command(runs_dir: Path, fresh: bool, is_json: bool) -> int:
    """Prepare the demo's folder where it is missing, then execute its run file."""
    from ..recipe import Run

    source = runs_dir.parent / "demo"
    run_file = prepare(source, fresh)
    run = Run.from_file(run_file, runs_dir=runs_dir)
    if fresh:
        start_over(run)
    earlier = run.run_folder.record("ladder.json")
    if earlier is None:
        resumed = run.run_folder.record("curate.json") is not None
        warn(f"Tickets and run file: {source}. {'Continuing' if resumed else 'Working'} in {run.folder} ...")
    verdict = execute(run, None)
    now = run.run_folder.record("ladder.json")
    if is_json:
        emit(summary_of(run))
        return 0 if verdict.met else BAR_NOT_MET_CODE
    if earlier is not None and now is not None and earlier["finished_at"] == now["finished_at"]:
        say(f"This demo finished at {now['finished_at']}; nothing was run again (--fresh starts over).\n")
    show_arms(run)
    show_verdict(run)
    say("\nYour own data: shoestring init DATA_FILE")
    return 0 if verdict.met else BAR_NOT_MET_CODE


def prepare(source: Path, fresh: bool) -> Path:
    """Write tickets and run file into source, unless they are there; returns the run file."""
    from ..demo.tickets import write_tickets

    run_file = source / "demo.yaml"
    rows, truth = source / "train.jsonl", source / "truth.json"
    if rows.exists() and not truth.exists():
        raise BadInput(f"{rows} is there and not the demo's; nothing was written: use --runs-dir ELSEWHERE/runs")
    if fresh or not rows.exists():
        write_tickets(source)
    if not run_file.is_file():
        write_whole(run_file, RUN_FILE.format(path=run_file))
    return run_file


def start_over(run: Run) -> None:
    """Delete the demo's run folder; anything else that has its name is left alone."""
    if not run.folder.exists():
        return
    if not (run.folder / "run.yaml").is_file() or run.folder.is_symlink():
        raise RunFolderError(f"{run.folder} is not a run folder, so --fresh does not delete it; move it away")
    with run.run_folder.locked():
        shutil.rmtree(run.folder)
