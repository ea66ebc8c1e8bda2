"""The commands judge and label as typer sees them.

No annotation import from __future__ here: typer reads the annotations.
"""

from typing import Annotated

import typer

from .app import RUNS, Json, RunsDir, Target, app

Arms = Annotated[
    list[str] | None, typer.Option("--arm", metavar="NAME", help="Only this arm, as the run's table names it.")
]


@app.command()
def judge(target: Target, arms: Arms = None, runs_dir: RunsDir = RUNS, is_json: Json = False) -> int:
    """Test the judges of a run, and judge its answers.

    Probes each judge of the section judge on held-out rows whose right verdict is known: does it tell
    right from wrong, prefer a position, length, its own words, keep to the form? Then scores the answers the
    run has recorded; where task.metric is judge they are scored already. Replies are kept, none is paid twice.

    \b
    Example: shoestring judge run.yaml
    """
    from .judge import command

    return command(target, arms or [], runs_dir, is_json)


@app.command()
def label(
    target: Target,
    arms: Arms = None,
    num_rows: Annotated[int, typer.Option("--num", metavar="N", min=1, help="Stop at so many rows labelled.")] = 100,
    is_page: Annotated[
        bool, typer.Option("--page", help="Label on the page of shoestring ui, in the browser.")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of the page (0: one that is free).")] = 0,
    runs_dir: RunsDir = RUNS,
    is_json: Json = False,
) -> int:
    """Say of a run's answers whether they are good.

    Shows held-out rows in an order drawn by chance, blind to arm and judge: y, n or s (cannot say) a
    criterion, of a pair a, b or t in both orders; u takes back, q stops, and the same command goes on. From
    30 labels on they calibrate the judge: the score becomes what a human would give, with its interval.

    \b
    Example: shoestring label runs/tickets
             shoestring label runs/tickets --page
    """
    from .label import command

    return command(target, arms or [], num_rows, is_page, port, runs_dir, is_json)
