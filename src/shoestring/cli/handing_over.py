"""The command export --to: the run as another trainer's configuration."""

from __future__ import annotations

from pathlib import Path

from .output import emit, say, warn
from .progress import Screen
from .running import open_run


def command(target: str, tool: str, model: str | None, runs_dir: Path, is_json: bool) -> int:
    """Curate and plan where that is not done, then write the files; of a trained run, the service that serves it."""
    if tool == "skyserve":
        from .skyserve import command as serve_out

        return serve_out(target, runs_dir, is_json)
    from ..stages.handing_over import hand_over, require_tool

    require_tool(tool)
    run = open_run(target, runs_dir)
    with Screen() as screen:
        run.execute(progress=screen.progress, log=screen.log, until="plan")
        written = hand_over(run, tool, model)
    if is_json:
        emit(written)
        return 0
    say(f"{written['num_rows']:,} rows and {written['num_steps']:,} steps of {written['model']}: {written['config']}")
    for note in written["notes"]:
        warn(f"note: {note}")
    say(f"run it with: {written['command']}")
    return 0
