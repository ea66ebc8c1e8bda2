"""`shoestring bench WHAT` as typer sees it.

No annotation import from __future__ here: typer reads the annotations.
"""

from pathlib import Path
from typing import Annotated

import typer

from .app import Json, app

bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure something that runs.")
app.add_typer(bench, name="bench")


@bench.command("serve")
def bench_serve(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address, such as http://127.0.0.1:8000/v1.")],
    models: Annotated[
        list[str] | None, typer.Option("--models", metavar="NAME", help="Models, mixed (default: all it lists).")
    ] = None,
    clients: Annotated[int, typer.Option("--clients", help="Clients; each has one request at a time.")] = 8,
    requests: Annotated[
        int | None, typer.Option("--requests", help="Requests in all (default: 100).", show_default=False)
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="Send for so long instead.", show_default=False)
    ] = None,
    prompts: Annotated[
        str, typer.Option("--prompts", metavar="RUN|TOKENS", help="A run's held-out rows; or tokens, shared+own.")
    ] = "200",
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest answer.")] = 64,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help="Holds the key (default: SHOESTRING_API_KEY).")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="RUN", help="Also measure rates for RUN's plan: serving.json.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="GPU", help="With --save: what the server runs on.")
    ] = None,
    is_json: Json = False,
) -> int:
    """Load an OpenAI-compatible server, and time it.

    Seconds to the first token and a token after it (half, nine in ten, 99 of 100), requests and tokens a second,
    errors by kind. Answers are streamed. Prompts of 300+40 tokens begin with 300 that all share. Ctrl-C ends it,
    and gives what was measured. --save measures reading and writing apart, base against adapters, for
    'shoestring plan' to reckon with.

    \b
    Example: shoestring bench serve http://127.0.0.1:8000/v1 --clients 8 --requests 200
             shoestring bench serve http://127.0.0.1:8000/v1 --prompts runs/tickets --save runs/tickets
    """
    from .bench_serve import Wanted, command

    wanted = Wanted(url, tuple(models or ()), clients, requests, seconds, prompts, max_tokens, api_key_file)
    return command(wanted, save, device, is_json)
