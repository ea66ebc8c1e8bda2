"""A run file from a look at the data: what a person may decide otherwise is said where it stands."""

from __future__ import annotations

import json
import os
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import METRICS_BY_KIND, RunConfig, parse_run_file
from ..task import STARTING_BARS

if TYPE_CHECKING:
    from ..data.detect import Detected

SCHEMA = Path(__file__).resolve().parent.parent / "run.schema.json"


# File names that say nothing about the task.
NAMELESS = ("train", "training", "data", "dataset", "examples", "all")

TEMPLATE = """\
# yaml-language-server: $schema={schema}
# Written by {written_by} after a look at {num_rows} rows ({format}).
# 'shoestring explain KEY' says what a key means; 'shoestring explain' lists them all.
name: {name}

task:
{evidence}
  kind: {kind}
  metric: {metric}{others}
  bar: {bar:g}  # yours to decide; met when the lower end of the 95 % interval reaches it

data:
  train: {train}
{held_out}
{fields}
# Rungs, cheapest first. The embedded models are small demonstrations; for real use name models of a
# hub or local folders, for example: [Qwen/Qwen3-0.6B, Qwen/Qwen3-1.7B, Qwen/Qwen3-4B]
models: {models}
{limits}
{preference}budget_usd: {budget_usd:g}  # hard stop: no step is begun that would pass it
# deadline_h: 8  # 'shoestring plan' then picks what is done by then, and says how surely
# traffic: {{requests_per_month: 100000, prompt_tokens: 300, completion_tokens: 80, months: 12}}  # for the whole bill
"""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a person decided; None where detection or the default stands."""

    name: str | None = None
    kind: str | None = None
    metric: str | None = None
    bar: float | None = None
    models: tuple[str, ...] = ("embedded",)
    budget_usd: float = 10.0
    held_out: Path | None = None  # a file of held-out rows
    max_train_rows: int | None = None
    max_eval_rows: int | None = None
    trains_anyway: bool = False  # even where a baseline meets the bar


@dataclass(frozen=True, slots=True)
class Proposed:
    """A run file's text, and what it says."""

    text: str
    config: RunConfig


def propose(data: Path, out: Path, detected: Detected, written_by: str, chosen: Chosen = Chosen()) -> Proposed:
    """The commented run file that would stand at out. Raises: ConfigError where a choice is not allowed."""
    kind = chosen.kind or detected.kind
    metrics = METRICS_BY_KIND.get(kind, ())  # an unknown kind is refused below, with its line
    metric = chosen.metric or (metrics[0] if metrics else detected.metric)
    others = [m for m in metrics if m != metric]
    text = TEMPLATE.format(
        preference=preference_text(detected.objective),
        schema=SCHEMA.as_uri(),
        written_by=_one_line(written_by),
        num_rows=f"{detected.num_rows_seen:,}",
        format=_one_line(detected.format),
        name=yaml_scalar(chosen.name or run_name(data)),
        kind=yaml_scalar(kind),
        evidence="\n".join(textwrap.wrap(evidence_text(detected), 92, initial_indent="  # ", subsequent_indent="  # ")),
        metric=yaml_scalar(metric),
        others=_comment(f"or {', '.join(others)}" if others else ""),
        bar=STARTING_BARS.get(kind, 0.5) if chosen.bar is None else chosen.bar,
        train=yaml_scalar(os.path.relpath(data, out.parent)),
        held_out=held_out_text(data, out.parent, chosen.held_out),
        fields=fields_text(detected.fields),
        models=f"[{', '.join(yaml_scalar(model) for model in chosen.models)}]",
        limits=limits_text(chosen),
        budget_usd=chosen.budget_usd,
    )
    return Proposed(text, parse_run_file(text, str(out)))  # what we write, we can read


def limits_text(chosen: Chosen) -> str:
    """How many rows are used, where that was limited, and whether training is wanted whatever the baselines reach."""
    limits = {"max_train_rows": chosen.max_train_rows, "max_eval_rows": chosen.max_eval_rows}
    given = ", ".join(f"{key}: {value}" for key, value in limits.items() if value is not None)
    lines = f"\ncurate: {{{given}}}  # a sample; leave the line out to use every row\n" if given else ""
    if chosen.trains_anyway:
        lines += "\ndecide: {train_anyway: true}  # also where a baseline meets the bar\n"
    return lines


def evidence_text(detected: Detected) -> str:
    """Why this kind, on one line."""
    evidence: Any = detected.evidence
    return _one_line(evidence if isinstance(evidence, str) else "; ".join(str(line) for line in evidence))


def held_out_text(path: Path, base_dir: Path, held_out: Path | None) -> str:
    """The line on held-out rows: a file, those of a folder that curation has split, else the default as a comment."""
    from ..data.sources import is_curated

    if held_out is not None:
        return f"  eval: {yaml_scalar(os.path.relpath(held_out, base_dir))}"
    if is_curated(path) and (path / "eval.jsonl").stat().st_size:
        return f"  eval: {yaml_scalar(os.path.relpath(path, base_dir))}  # the rows that curation held out"
    return "  # eval: held_out.jsonl  # default: split from the rows above, near duplicates kept together"


def fields_text(fields: Any) -> str:
    """The field mapping as comments: detection will find it again, a person may correct it."""
    given = {k: v for k, v in dict(fields).items() if v} if fields else {}
    if not given:
        return ""
    inner = ", ".join(f"{key}: {yaml_scalar(str(value))}" for key, value in given.items())
    return f"  # fields: {{{inner}}}  # as detected\n"


def preference_text(objective: str) -> str:
    """How to learn from a comparison of answers, where rows have one."""
    why = {
        "dpo": "learns to prefer chosen to rejected; without it chosen is learned alone",
        "kto": "learns from rows marked false too; without it they are left out",
    }.get(objective)
    if why is None:
        return ""
    return (
        f"# train: {{objective: {objective}}}  # {why}\n"
        f"# train: {{objective: {objective}, start: runs/NAME}}  # goes on from a supervised run: best for a new task\n"
    )


def run_name(path: Path) -> str:
    """A valid run name from the file's name, or its folder's where the file's says nothing."""
    stem = path.name.split(".")[0]
    if stem.lower() in NAMELESS:
        stem = path.resolve().parent.name or stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:64] or "run"


def yaml_scalar(text: str) -> str:
    """text as it can stand in YAML, quoted where it must be."""
    plain = re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./ -]*[A-Za-z0-9_/]|[A-Za-z]", text)
    is_word = text.lower() in ("true", "false", "null", "yes", "no", "on", "off") or text[:1].isdigit()
    return text if plain and not is_word else json.dumps(text)


def _comment(text: str) -> str:
    return f"  # {text}" if text else ""


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
