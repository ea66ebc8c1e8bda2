"""The command export as typer sees it.

No annotation import from __future__ here: typer reads the annotations.
"""

from typing import Annotated

import typer

from ..errors import BadInput
from .app import RUNS, Json, RunsDir, Target, app


@app.command()
def export(
    target: Target,
    tool: Annotated[
        str | None,
        typer.Option("--to", metavar="TOOL", help="gguf, gguf-adapter, ollama; trl, axolotl to train; skyserve."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="KIND", help="Of GGUF: q8_0 (default), f32, f16, bf16, q6_k, q4_k_m, ..."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="With trl, axolotl: this rung (default: what fits).")
    ] = None,
    runs_dir: RunsDir = RUNS,
    is_json: Json = False,
) -> int:
    """Write the best trained adapter and merged weights.

    Uses what is trained and scored, and trains nothing. The adapter gets a model card; the merged
    weights are read back and checked against it. With --to gguf or ollama they are also converted by
    llama.cpp and compared with transformers; gguf-adapter writes base and adapter apart. With --to trl or
    axolotl the rows and planned settings are written as that trainer's configuration instead. --to skyserve
    writes a service of several machines for a trained run with traffic, with the command that starts it.

    \b
    Example: shoestring export runs/tickets
             shoestring export runs/tickets --to ollama --kind q4_k_m
             shoestring export run.yaml --to axolotl
             shoestring export runs/tickets --to skyserve
    """
    is_gguf = tool in ("gguf", "gguf-adapter", "ollama")
    if kind is not None and not is_gguf:
        raise BadInput(f"--kind {kind} is of --to gguf, gguf-adapter and ollama; add one of them, or leave it out")
    if model is not None and tool not in ("trl", "axolotl"):
        raise BadInput(f"--model {model} is of --to trl and axolotl; the best trained rung is exported: leave it out")
    if tool is None or is_gguf:
        from .running import export_command

        return export_command(target, runs_dir, is_json, tool or "", kind or "q8_0")
    from .handing_over import command

    return command(target, tool, model, runs_dir, is_json)
