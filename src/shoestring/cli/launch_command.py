"""The command launch as typer sees it.

No annotation import from __future__ here: typer reads the annotations.
"""

from typing import Annotated

import typer

from .app import RUNS, Json, RunsDir, app


@app.command()
def launch(
    target: Annotated[
        str, typer.Argument(metavar="RUN", help="Run file to launch; of a launch also run or launch id.")
    ],
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="PLACE", help="local, ssh:HOST, skypilot, ... (default: launch.place)."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return once it is started.")] = False,
    attach: Annotated[bool, typer.Option("--attach", help="Follow a launch, and bring its results.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Say how a launch stands and what it cost.")] = False,
    logs: Annotated[bool, typer.Option("--logs", help="Print the output of a launch.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End a launch; launched again, it goes on.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done and cost.")] = False,
    preempt: Annotated[
        str | None,
        typer.Option("--preempt", metavar="WHEN", help="Simulate spot: 60,180+30 (seconds), or a trace file."),
    ] = None,
    runs_dir: RunsDir = RUNS,
    is_json: Json = False,
) -> int:
    """Carry the run out elsewhere, or here in the background.

    Shows what it is predicted to cost, refuses what passes the budget, starts 'shoestring run' there and
    follows it. Ctrl-C or a closed laptop only detaches: it goes on, is ended at its budget, and 'shoestring
    runs' finds it. A machine that is taken away is replaced, and the run goes on from its last checkpoint.

    \b
    Example: shoestring launch run.yaml --on ssh:me@gpu-host --detach
             shoestring launch run.yaml --attach
    """
    from .launch import MODES, command

    asked = (attach, status, logs, stop, dry_run, detach)
    modes = [mode for mode, is_asked in zip(MODES, asked, strict=True) if is_asked]
    return command(target, on, modes, preempt, runs_dir, is_json)
