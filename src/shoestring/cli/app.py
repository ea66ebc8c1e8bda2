"""The command line's root, and the arguments that many commands take.

No annotation import from __future__ here: typer reads the annotations.
"""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="shoestring",
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Target = Annotated[
    str, typer.Argument(metavar="RUN", help="Run file, run folder, or name of a run.", show_default=False)
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", metavar="DIR", help="Where run folders are kept.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
RUNS = Path("runs")


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"shoestring {__version__}")
        raise typer.Exit


@app.callback()
def shoestring(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """The cheapest model that meets your bar, and what it costs.

    One run file says the task, the data and the bar. Shoestring prompts first, fine-tunes the
    smallest model next, and stops at the first answer that meets the bar with confidence.

    \b
    Start:  shoestring demo            the whole recipe on generated tickets, in minutes
            shoestring init DATA_FILE  a run file for your own data
            shoestring run run.yaml    the recipe; again, to continue after an interruption

    \b
    Exit codes: 0 done, 1 failed, 2 bad input, 3 bar not met, 4 stopped by the budget,
    5 interrupted and resumable.
    """
