"""`shoestring import promptfoo | openai-evals | inspect`: rows, graders and a run file of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BadInput
from .output import emit, say, warn


def command(
    tool: str, source: Path, train: Path | None, models: list[str], number: int, judge: str | None,
    out: Path | None, force: bool, is_json: bool,
) -> int:  # fmt: skip
    """Read, write, and say what was not carried over."""
    from ..imports import inspect_logs, openai_evals, promptfoo, suites

    if train is not None and not train.is_file():
        raise BadInput(f"--train {train}: no such file")
    if not source.exists():
        raise BadInput(f"{source}: no such file or folder")
    if tool == "promptfoo":
        suite = promptfoo.read(source, number)
    else:
        suite = {"openai-evals": openai_evals.read, "inspect": inspect_logs.read}[tool](source)
    if judge:
        suites.with_judge(suite, judge)
    folder = out or Path("imported") / suites.run_name(suite.name)
    if (folder / suites.RUN_FILE).exists() and not force:
        raise BadInput(f"{folder / suites.RUN_FILE} is there already; --force replaces it, --out takes another folder")
    answer = suites.write(suite, folder, train, models or ["embedded"])
    if is_json:
        emit(answer)
    else:
        _show(answer)
    return 0


def _show(answer: dict[str, Any]) -> None:
    say(f"{answer['run_file']}: {answer['rows']} rows, kind {answer['kind']}, metric {answer['metric']}")
    if answer["graders"]:
        say("Graders: " + ", ".join(f"{count} {kind}" for kind, count in answer["graders"].items()))
    if answer["criteria"]:
        say(f"Criteria of a judge: {len(answer['criteria'])}")
    if answer["rows_without_reference"]:
        warn(f"{answer['rows_without_reference']} rows have no reference answer: graders or a judge alone score them")
    for one in answer["not_carried_over"]:
        warn(f"Not carried over: {one['place']}: {one['what']}: {one['why']}")
    say(f"Next: set task.bar and models in it, then shoestring decide {answer['run_file']}")
