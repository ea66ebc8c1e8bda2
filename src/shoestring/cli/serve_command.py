"""The command serve as typer sees it.

No annotation import from __future__ here: typer reads the annotations.
"""

from pathlib import Path
from typing import Annotated

import typer

from .app import RUNS, Json, RunsDir, app


@app.command()
def serve(
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN...", help="Runs (name, folder or run file) on one base; or a bare base model."),
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="auto, embedded, vllm or llamacpp.")] = "auto",
    engine_url: Annotated[
        str, typer.Option("--engine-url", metavar="URL", help="A vLLM server that runs already.")
    ] = "",
    host: Annotated[str, typer.Option("--host", help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 takes one that is free.")] = 0,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help="The API key; made where it is not there.")
    ] = None,
    limits: Annotated[
        Path | None, typer.Option("--limits", metavar="FILE", help="Queue, timeout, limits a key and a model (YAML).")
    ] = None,
    tuning: Annotated[
        bool, typer.Option("--tuning", help="Also take OpenAI's fine-tuning jobs; without a RUN these alone.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Say what the engine would do with each run, and end.")
    ] = False,
    runs_dir: RunsDir = RUNS,
    is_json: Json = False,
) -> int:
    """Answer as OpenAI's API does, with what was trained.

    The base goes by its own name, each run's adapter by the run's. Clients need the address and the key alone.
    The key comes from --api-key-file, else SHOESTRING_API_KEY, else it is made and written to a file that its
    owner alone can read. Answers are greedy unless a request says otherwise, as in the evaluation. A first
    Ctrl-C lets answers on their way finish, a second one does not.

    \b
    Example: shoestring serve tickets invoices --port 8000
             shoestring serve runs/tickets --api-key-file key --json
             shoestring serve tickets --check --engine vllm
             shoestring serve tickets --tuning --limits server.yaml
    """
    from .serve import Asked, command

    asked = Asked(tuple(targets or ()), engine, engine_url, host, port, api_key_file, limits, tuning, runs_dir)
    return command(asked, check, is_json)
