"""The command check: gates before training, rung by rung."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..records import to_json
from .output import emit, say
from .progress import Screen
from .running import open_run
from .tables import table

REFUSED_CODE = 1


def command(target: str, model: str | None, runs_dir: Path, is_json: bool) -> int:
    """Curate and plan where that is not done, then look at each rung that fits. Exit code 1 where one is refused."""
    from ..stages.checking import check, write_checked
    from ..stages.preparing import plan_again

    run = open_run(target, runs_dir)
    results: list[dict[str, Any]] = []
    with Screen() as screen:
        run.execute(progress=screen.progress, log=screen.log, until="plan")
        planned = plan_again(run)
        rungs = [rung for rung in planned.rungs if model in (None, rung.model)]
        if not rungs:
            names = ", ".join(rung.model for rung in planned.rungs) or "none"
            raise BadInput(f"--model {model} is not a rung of this run; its rungs: {names}")
        for number, rung in enumerate(rungs):
            screen.progress("check", number, len(rungs))
            results.append(to_json(check(run, rung)))
    is_refused = any(finding["level"] == "refuse" for result in results for finding in result["findings"])
    told = {"run": str(run.folder), "passed": not is_refused, "rungs": results}
    write_checked(run, told)
    if is_json:
        emit(told)
    else:
        show(results)
    return REFUSED_CODE if is_refused else 0


def show(results: list[dict[str, Any]]) -> None:
    """A table a rung; what is wrong once more below it, with the next step."""
    for result in results:
        if result["skipped"]:
            say(f"{result['model']} is not checked: {result['skipped']}")
            continue
        findings = result["findings"]
        rows = [(finding["level"], finding["gate"], finding["found"]) for finding in findings]
        say(f"{result['model']}, {result['wall_s']:.1f} s")
        say(table(("", "gate", "found"), rows, flexible=2))
        for finding in findings:
            if finding["level"] != "ok":
                say(f"{finding['level']}: {finding['gate']}: {finding['found']}")
                say(f"  next: {finding['remedy']}")
        refused = sum(finding["level"] == "refuse" for finding in findings)
        say(f"{refused} of {len(findings)} gates refuse: training would not start" if refused else "Ready to train")
