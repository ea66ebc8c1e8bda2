"""The command ui as typer sees it.

No annotation import from __future__ here: typer reads the annotations.
"""

from typing import Annotated

import typer

from .app import RUNS, Json, RunsDir, app


@app.command()
def ui(
    runs_dir: RunsDir = RUNS,
    port: Annotated[int, typer.Option("--port", help="Port on 127.0.0.1; 0 takes one that is free.")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a browser.")] = False,
    is_json: Json = False,
) -> int:
    """Open the page: runs, live progress, data, plan, a new run, a chat.

    Served to this machine alone, under an address with a token that is printed once; works offline. Ctrl-C
    ends it; runs that were started from it go on.

    \b
    Example: shoestring ui
             shoestring ui --port 8800 --no-open --json
    """
    from .ui import command

    return command(runs_dir, port, not no_open, is_json)
