"""A run as TRL or Axolotl runs it: `shoestring export --to`. Nothing is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from ..files import write_jsonl, write_whole
from ..messages import turns_of
from ..plan.engines import ENGINES, unhonoured
from ..records import Example, RungPlan, TrainSettings
from ..train.engines.axolotl import axolotl_config, write_rows, write_yaml
from ..train.engines.job import row_of, terms_of
from ..train.engines.trl import trl_config
from ..train.preference import objective
from ..train.tokens import load_tokenizer
from ..train.tracking import Tracking
from .common import replacing, rung_file
from .preparing import plan_again, read_again
from .retrieving import rows_for
from .rungs import first_that_fits

if TYPE_CHECKING:
    from ..recipe import Run

ROWS = "train.jsonl"
TOOLS = ("trl", "axolotl")
OUTPUT = "adapter"  # folder that the trainer writes


def require_tool(tool: str) -> None:
    """Raises: BadInput."""
    if tool not in TOOLS:
        raise BadInput(f"--to {tool}: choose one of {', '.join(TOOLS)}, gguf, gguf-adapter, ollama, skyserve")


def hand_over(run: Run, tool: str, model: str | None = None) -> dict[str, Any]:
    """Write export/TOOL/: configuration, rows and README; what was written, and what the tool will do otherwise.

    model: of the run file; default the cheapest that fits. Raises: BadInput.
    """
    require_tool(tool)
    plan, curated = plan_again(run), read_again(run)
    rung = _rung(plan.rungs, model) if model else first_that_fits(plan)
    curated, settings = rows_for(run, curated, rung.model), _settled(run, rung)
    if settings.objective not in ENGINES[tool].objectives:
        known = " or ".join(ENGINES[tool].objectives)
        raise BadInput(f"--to {tool} writes {known} alone, and train.objective is {settings.objective}; give --to trl")
    if settings.method == "full":
        raise BadInput(f"--to {tool} writes adapters alone, and the run file says method: full; set method: lora")
    tokenizer = load_tokenizer(rung.model)
    items = objective(tokenizer, curated.train, settings, "training").items
    terms = terms_of(
        model=rung.model, items=items, settings=settings, device=rung.device, pad_token=tokenizer.pad_token
    )
    folder = run.folder / "export" / tool
    if (folder / OUTPUT).exists():
        raise BadInput(
            f"{folder / OUTPUT} holds what {tool} trained, and the export would be written over it; move it away first"
        )
    with replacing(run, folder) as partial:
        tracking = Tracking(tuple(run.config.train.trackers), f"{run.config.name}/{rung.model}")
        notes = [f"not carried over: {words}" for words in unhonoured(run.config, tool)]
        if tool == "axolotl":
            write_rows(partial / ROWS, [row_of(item) for item in items])
            config = axolotl_config(terms, rows=ROWS, output=OUTPUT, prepared="prepared", tracking=tracking)
            name, command = "axolotl.yaml", "axolotl train axolotl.yaml"
            if rung.device.kind != "cuda":
                command = "python -m axolotl.cli.train axolotl.yaml"
                notes.append(
                    "planned for a machine without a GPU: bf16 and Axolotl's kernels are off; set them on a GPU"
                )
        else:
            kind = settings.objective
            if kind == "dpo":
                notes += _write_pairs(partial / ROWS, curated.train, tokenizer, items)
            else:
                write_jsonl(partial / ROWS, (row_of(item) for item in items))
            config = trl_config(terms, rows=ROWS, output=OUTPUT, tracking=tracking)
            name, command = f"{kind}.yaml", f"trl {kind} --config {kind}.yaml"
            if rung.device.kind == "cpu":
                notes.append("planned for a machine without a GPU: take use_cpu out of the file on one with a GPU")
        write_yaml(partial / name, config, f"# {run.config.name}: {rung.model}, as `shoestring plan` resolved it\n")
        write_whole(partial / "README.md", _readme(run, rung, tool, command, len(items), notes))
    return {
        "tool": tool,
        "model": rung.model,
        "folder": str(folder),
        "config": str(folder / name),
        "command": f"cd {folder} && {command}",
        "num_rows": len(items),
        "num_steps": terms["max_steps"],
        "notes": notes,
    }


def _rung(rungs: Sequence[RungPlan], model: str) -> RungPlan:
    found = next((rung for rung in rungs if rung.model == model), None)
    if found is None:
        raise BadInput(f"--model {model}: the plan has {', '.join(rung.model for rung in rungs)}")
    return found


def _settled(run: Run, rung: RungPlan) -> TrainSettings:
    """The rung's settings, with the learning rate that a search found where it was searched for."""
    record = run.run_folder.record(rung_file(rung.model, "search.json"))
    if record is None:
        return rung.settings
    return dataclasses.replace(rung.settings, learning_rate=record["result"]["learning_rate"])


def _write_pairs(path: Path, examples: Sequence[Example], tokenizer: Any, items: Sequence[Any]) -> list[str]:
    """The pairs as turns, which TRL renders itself; says where its tokens differ from ours."""

    def parts(example: Example) -> dict[str, Any]:
        turns = {"prompt": example.prompt, "chosen": example.answer, "rejected": example.rejected}
        told: dict[str, Any] = {name: turns_of(said, as_text=False) for name, said in turns.items()}
        return {**told, "tools": example.tools} if example.tools else told

    rows = [parts(example) for example in examples]
    if not tokenizer.chat_template:
        raise BadInput("the tokenizer has no chat template, and TRL renders pairs by it; set one")
    write_jsonl(path, rows)
    other = sum(
        tokenizer.apply_chat_template(row["prompt"] + row["chosen"], tokenize=True, return_dict=False) != item[0].ids
        for row, item in zip(rows, items, strict=True)
        if "tools" not in row
    )
    if not other:
        return []
    return [
        f"TRL renders pairs itself: in {other} of {len(rows)} its tokens differ from those that `shoestring check` "
        "looked at, as a rule by what the template writes after the end token"
    ]


def _readme(run: Run, rung: RungPlan, tool: str, command: str, num_rows: int, notes: Sequence[str]) -> str:
    lines = [
        f"# {run.config.name} for {tool}",
        "",
        f"{num_rows:,} training rows and the settings that Shoestring resolved for {rung.model}. In this folder, in an",
        f"environment made with `{ENGINES[tool].install}`:",
        "",
        "```console",
        f"$ {command}",
        "```",
        "",
        "The adapter is written to `adapter/`. Rows hold token ids and labels (-100 where no loss is borne), so that\n"
        "what is learned is what `shoestring check` looked at."
        if run.config.train.objective == "sft"
        else "Rows are pairs of turns, which TRL renders with the model's chat template.",
        *(["", *(f"- {note}" for note in notes)] if notes else []),
    ]
    return "\n".join(lines) + "\n"
