"""`shoestring init`: a commented run file from a look at the data."""

from __future__ import annotations

import json
import os
import re
import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, DataError
from ..files import write_whole
from .output import emit, say, written_to_out
from .progress import Screen

if TYPE_CHECKING:
    from ..data.detect import Detected

SCHEMA = Path(__file__).resolve().parent.parent / "run.schema.json"

# A bar is the user's decision; these are where each kind's metric starts to be useful.
STARTING_BARS = {"classify": 0.85, "extract": 0.85, "generate": 0.5, "sql": 0.7, "math": 0.5, "chat": 0.4}

# File names that say nothing about the task.
NAMELESS = ("train", "training", "data", "dataset", "examples", "all")

TEMPLATE = """\
# yaml-language-server: $schema={schema}
# Written by 'shoestring init {file}' after a look at {num_rows} rows ({format}).
# 'shoestring explain KEY' says what a key means; 'shoestring explain' lists them all.
name: {name}

task:
{evidence}
  kind: {kind}
  metric: {metric}{others}
  bar: {bar}  # yours to decide; met when the lower end of the 95 % interval reaches it

data:
  train: {train}
{held_out}
{fields}
# Rungs, cheapest first. The embedded models are small demonstrations; for real use name models of a
# hub or local folders, for example: [Qwen/Qwen3-0.6B, Qwen/Qwen3-1.7B, Qwen/Qwen3-4B]
models: [embedded]

{preference}budget_usd: 10  # hard stop: no step is begun that would pass it
# deadline_h: 8  # 'shoestring plan' then picks what is done by then, and says how surely
# traffic: {{requests_per_month: 100000, prompt_tokens: 300, completion_tokens: 80, months: 12}}  # for the whole bill
"""


def command(data_file: str, out: Path, force: bool, is_json: bool) -> int:
    """Detect, write, and say why and what next."""
    from ..config import METRICS_BY_KIND, parse_run_file
    from ..data.detect import detect

    path = Path(data_file)
    if not path.exists():
        raise DataError(f"{data_file}: no such file; give a data file (JSONL, JSON, CSV, Parquet, .gz of each)")
    if out.is_dir():
        raise BadInput(f"--out {out} is a folder; name the file to write, such as {out / 'run.yaml'}")
    if not out.parent.is_dir():
        raise BadInput(f"--out {out}: there is no folder {out.parent}; first: mkdir -p {shlex.quote(str(out.parent))}")
    if out.exists() and not force:
        raise BadInput(f"{out} exists; choose another name with --out FILE, or replace it with --force")
    with Screen() as screen:
        detected = detect(path, screen.progress)
    metric = detected.metric
    others = [m for m in METRICS_BY_KIND[detected.kind] if m != metric]
    bar = STARTING_BARS[detected.kind]
    text = TEMPLATE.format(
        preference=preference_text(detected.objective),
        schema=SCHEMA.as_uri(),
        file=_one_line(path.name),
        num_rows=f"{detected.num_rows_seen:,}",
        format=_one_line(detected.format),
        name=run_name(path),
        kind=detected.kind,
        evidence="\n".join(textwrap.wrap(evidence_text(detected), 92, initial_indent="  # ", subsequent_indent="  # ")),
        metric=metric,
        others=_comment(f"or {', '.join(others)}" if others else ""),
        bar=bar,
        train=yaml_scalar(os.path.relpath(path, out.parent)),
        held_out=held_out_text(path, out.parent),
        fields=fields_text(detected.fields),
    )
    parse_run_file(text, str(out))  # what we write, we can read
    with written_to_out():
        write_whole(out, text)
    runs = {"run_file": str(out), "kind": detected.kind, "metric": metric, "bar": bar, "format": detected.format}
    if is_json:
        emit(
            {**runs, "fields": detected.fields, "evidence": detected.evidence, "num_rows_seen": detected.num_rows_seen}
        )
        return 0
    say(f"Wrote {out}: {detected.kind}, scored by {metric}, bar {bar:g} (yours to decide)")
    say(f"  {evidence_text(detected)}")
    if detected.num_faults:
        are = "row has" if detected.num_faults == 1 else "rows have"
        say(f"  {detected.num_faults:,} {are} something wrong; shoestring curate {shlex.quote(str(out))} says what")
    say(f"Next: read it, then  shoestring run {shlex.quote(str(out))}")
    return 0


def evidence_text(detected: Detected) -> str:
    """Why this kind, on one line."""
    evidence: Any = detected.evidence
    return _one_line(evidence if isinstance(evidence, str) else "; ".join(str(line) for line in evidence))


def held_out_text(path: Path, base_dir: Path) -> str:
    """The line on held-out rows: those of a folder that curation has split already, else the default as a comment."""
    from ..data.sources import is_curated

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
