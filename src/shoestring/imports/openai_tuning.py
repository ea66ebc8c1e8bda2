"""A fine-tune of OpenAI's as a run file: data checked, hyperparameters carried over with reasons, an open model."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ..config import METRICS_BY_KIND, FieldsConfig, parse_run_file
from ..data.detect import task_kind
from ..data.load import Loaded, load
from ..data.sizes import MIN_ROWS
from ..errors import DataError
from ..market.managed import PER_MILLION, TERMS, Rate, rates
from ..records import Progress, no_progress
from .counterparts import Counterpart, counterpart
from .openai_job import Job

BASE_MODELS_STOP = date(2027, 1, 14)  # the families GPT-4o and GPT-4.1: market.managed
MIN_BATCH_TOKENS = 512  # below it our own steps are noise: plan.settings
FEWEST_EVAL_ROWS = 20
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Checked:
    """What the curation reader says of the rows."""

    loaded: Loaded
    held_out: Loaded | None
    kind: str
    evidence: str
    objective: str
    images: tuple[str, ...]  # FILE:LINE of rows left out because they hold more than text

    @property
    def num_rows(self) -> int:
        return self.loaded.num_rows


@dataclass(frozen=True, slots=True)
class Paid:
    """What the job cost there; usd None where no dated price is known, and source says why."""

    usd: float | None
    num_tokens: int | None
    usd_per_million: float | None
    source: str


def check(job: Job, train: Path, validation: Path | None, progress: Progress = no_progress) -> Checked:
    """Read the files as curation does. Raises: DataError where they cannot be learned from, with lines."""
    loaded = load([str(train)], FieldsConfig(), "", Path(), progress)
    held_out = None
    if validation is not None:
        held_out = load([str(validation)], FieldsConfig(), "", Path(), progress)
    parts = [loaded, *([held_out] if held_out else [])]
    images = tuple(
        f"{Path(row.source).name}:{row.line}" for part in parts for row in part.dropped if row.code == "not_text"
    )
    num_used = len(loaded.examples)
    if images and len(images) * 2 > loaded.num_rows:
        raise DataError(
            f"{len(images)} of {loaded.num_rows} rows hold images or audio ({_some(images)}): Shoestring trains on "
            "text alone, and a vision model's fine-tune cannot be carried over"
        )
    is_pairs = any(example.rejected for example in loaded.examples)
    if job.method == "dpo" and not is_pairs:
        raise DataError(
            f"{train}: the job was dpo, and no row has preferred_output and non_preferred_output; is it the job's file?"
        )
    if num_used < 2 * MIN_ROWS:
        raise DataError(
            f"{train}: {num_used} rows can be learned from, at least {2 * MIN_ROWS} are needed to train and to score; "
            "'shoestring synth' writes more from these"
        )
    kind, evidence, _ = task_kind(loaded.examples, loaded.num_rows)
    return Checked(loaded, held_out, kind, evidence, "dpo" if job.method == "dpo" else "sft", images)


def _some(places: Sequence[str]) -> str:
    more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    return ", ".join(places[:SHOWN]) + more


def faults(checked: Checked) -> list[dict[str, Any]]:
    """Rows left out, by code, with the first lines and what is wrong with the first."""
    rows: dict[str, list[Any]] = {}
    for part in (checked.loaded, checked.held_out):
        for row in part.dropped if part else ():
            rows.setdefault(row.code, []).append(row)
    return [
        {
            "code": code,
            "num_rows": len(found),
            "lines": [f"{Path(row.source).name}:{row.line}" for row in found[:SHOWN]],
            "evidence": found[0].evidence,
        }
        for code, found in sorted(rows.items())
    ]


def paid(job: Job) -> Paid:
    """Trained tokens, which OpenAI bills over all epochs, at the dated price of the base model."""
    rate: Rate | None = next((r for r in rates() if r.provider == "openai" and r.model == job.model), None)
    price = rate.usd_per_million_train_tokens if rate else None
    if job.trained_tokens is None:
        return Paid(None, None, price, f"the record says no trained_tokens (the job {job.status})")
    if price is None:
        why = f"no dated source for the training price of {job.model}; your invoice has it"
        return Paid(None, job.trained_tokens, None, why)
    assert rate is not None
    source = f"{rate.source}, {rate.as_of.isoformat()}, {rate.basis}"
    return Paid(job.trained_tokens / PER_MILLION * price, job.trained_tokens, price, source)


# ---- hyperparameters ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Carried:
    """One hyperparameter there, the key here (empty: not carried over), its value, and why."""

    theirs: str
    value: Any
    key: str
    ours: Any
    reason: str


def carried(job: Job, checked: Checked) -> list[Carried]:
    """Every hyperparameter of the record and what becomes of it."""
    out = []
    if job.num_epochs is not None:
        reason = "passes over the rows; fewer where the dev score stops rising"
        out.append(Carried("n_epochs", job.num_epochs, "train.num_epochs", job.num_epochs, reason))
    if job.batch_rows is not None:
        out.append(_batch(job, checked))
    if job.rate_multiplier is not None:
        reason = (
            "scales a rate that OpenAI does not publish, for weights it does not say, so it means nothing here; ours "
            "is derived from the model (train.learning_rate: search tries several)"
        )
        out.append(Carried("learning_rate_multiplier", job.rate_multiplier, "", None, reason))
    if job.method == "dpo" and job.dpo_beta is not None:
        out.append(Carried("beta", job.dpo_beta, "train.dpo_beta", job.dpo_beta, "the same quantity, DPO's beta"))
    if job.seed is not None and job.seed >= 0:
        out.append(Carried("seed", job.seed, "seed", job.seed, "names the split and the order; not the same order"))
    if job.suffix:
        out.append(Carried("suffix", job.suffix, "name", run_name(job), "names the run"))
    return out


def _batch(job: Job, checked: Checked) -> Carried:
    """Rows a step there, tokens a step here."""
    rows, epochs = checked.num_rows, job.num_epochs
    assert job.batch_rows is not None
    if not (job.trained_tokens and epochs and rows):
        reason = "rows a step; ours is in tokens, and the record does not say how many the rows have: derived"
        return Carried("batch_size", job.batch_rows, "", None, reason)
    per_row = job.trained_tokens / (epochs * rows)
    tokens = round(job.batch_rows * per_row)
    are = "row of" if job.batch_rows == 1 else "rows of"
    told = f"{job.batch_rows} {are} {per_row:.0f} tokens (trained_tokens / (epochs x rows))"
    if tokens < MIN_BATCH_TOKENS:
        reason = f"{told} make {tokens} tokens a step, below the {MIN_BATCH_TOKENS} that our rate is made for: derived"
        return Carried("batch_size", job.batch_rows, "", None, reason)
    return Carried("batch_size", job.batch_rows, "train.batch_tokens", tokens, told)


def run_name(job: Job) -> str:
    """From the suffix, else the job's id."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", job.suffix or job.id).strip("-._")[:64] or "imported"


# ---- the run file ---------------------------------------------------------------------------


def run_file_text(
    job: Job, checked: Checked, chosen: Counterpart, models: Sequence[str], bar: float, closing: str,
    files: dict[str, Path], folder: Path,
) -> str:  # fmt: skip
    """The commented run file, read back before it is returned. Raises: ConfigError for models that cannot be."""
    metric = METRICS_BY_KIND[checked.kind][0]
    others = ", ".join(METRICS_BY_KIND[checked.kind][1:])
    known = carried(job, checked)
    by_key = {one.key: one for one in known if one.key}
    lines = [
        f"# Written by 'shoestring import openai' from {job.id}: {job.snapshot}, {job.method}, {job.status}.",
        *(f"# {line}" for line in _wrapped(closing)),
        f"name: {run_name(job)}",
        "",
        "task:",
        f"  # {_one_line(checked.evidence)}",
        f"  kind: {checked.kind}",
        f"  metric: {metric}" + (f"  # or {others}" if others else ""),
        f"  bar: {bar}  # yours to decide: what the fine-tune there reaches on held-out rows is a good one",
        "",
        "data:",
        f"  train: {_quoted(os.path.relpath(files['train'], folder))}",
    ]
    held_out = checked.held_out
    if held_out is not None and len(held_out.examples) >= FEWEST_EVAL_ROWS:
        lines.append(f"  eval: {_quoted(os.path.relpath(files['validation'], folder))}  # the job's validation file")
    elif held_out is not None:
        lines.append(
            f"  # the validation file has {len(held_out.examples)} usable rows, too few to score on: rows are split"
        )
    lines += ["", *_model_lines(chosen, models), ""]
    lines += _train_lines(job, checked, known, by_key)
    seed = by_key.get("seed")
    if seed is not None:
        lines.append(f"seed: {seed.ours}")
    lines.append("budget_usd: 10  # hard stop: no step is begun that would pass it")
    lines += _endpoint_lines(job)
    text = "\n".join(lines) + "\n"
    parse_run_file(text, "the run file")
    return text


def _endpoint_lines(job: Job) -> list[str]:
    """The tuned model as a baseline, commented out: what it costs to ask is not in our tables."""
    if not job.fine_tuned_model:
        return []
    return [
        "",
        "# While it still answers, the model tuned there can be scored on the same held-out rows. Put in what a",
        "# million tokens of it cost you (your invoice says), export OPENAI_API_KEY, and take the marks off:",
        "# decide:",
        "#   endpoints:",
        "#     - name: tuned-at-openai",
        "#       base_url: https://api.openai.com/v1",
        f"#       model: {json.dumps(job.fine_tuned_model)}",
        "#       usd_per_million_input_tokens: 0.00",
        "#       usd_per_million_output_tokens: 0.00",
    ]


def _model_lines(chosen: Counterpart, models: Sequence[str]) -> list[str]:
    lines = [f"# {line}" for line in _wrapped(chosen.reason)]
    for benchmark, (theirs, own) in chosen.compared.items():
        lines.append(f"#   {benchmark}: {own:g} against {theirs:g}")
    lines += [f"#   source: {source}" for source in chosen.sources]
    if list(models) != [chosen.model]:
        return [*lines, f"models: {json.dumps(list(models))}  # as you asked; else {chosen.model}"]
    lines.append(f"models: [{chosen.model}]")
    if chosen.larger:
        lines[-1] += f"  # [{chosen.model}, {chosen.larger}] climbs where the bar is missed"
    return lines


def _train_lines(job: Job, checked: Checked, known: Sequence[Carried], by_key: dict[str, Carried]) -> list[str]:
    lines = ["train:"]
    if checked.objective == "dpo":
        lines.append("  objective: dpo")
        lines += [f"  # {line}" for line in _wrapped(_start_note(job))]
    for key in ("train.num_epochs", "train.batch_tokens", "train.dpo_beta"):
        if key in by_key:
            one = by_key[key]
            lines.append(f"  {key.removeprefix('train.')}: {one.ours:g}  # {one.theirs} = {one.value:g}: {one.reason}")
    for one in known:
        if not one.key:
            lines += [
                f"  # {line}" for line in _wrapped(f"{one.theirs} = {one.value:g} is not carried over: {one.reason}")
            ]
    is_bare = not any(not line.lstrip().startswith("#") for line in lines[1:])
    return [*(["# train: all values are derived"] if is_bare else lines[:1]), *lines[1:]]


def _start_note(job: Job) -> str:
    if job.continued_from:
        return (
            f"the job went on from {job.continued_from}: import and run that job first, then start from it here with "
            "start: runs/NAME, for preferences alone teach a base little"
        )
    return (
        "on a base that never learned the task preferences alone teach little: train sft first, then start: runs/NAME"
    )


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(_one_line(text), 108)


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _quoted(path: str) -> str:
    return path if re.fullmatch(r"[A-Za-z0-9_./-]+", path) else json.dumps(path)


def closing(today: date) -> str:
    """When fine-tuning there ends, and what becomes of the models tuned there. Source: market.managed."""
    ends = TERMS["openai"].closed
    assert ends is not None
    words = "ends" if today < ends else "ended"
    return (
        f"OpenAI {words} fine-tuning on {ends.isoformat()}, and fine-tunes of GPT-4o and GPT-4.1 stop with their base "
        f"models on {BASE_MODELS_STOP.isoformat()}"
    )


def chosen_for(job: Job) -> Counterpart:
    """The open model in the place of the job's."""
    return counterpart(job.model)


def counts(checked: Checked) -> dict[str, int]:
    """Rows in, usable, left out by code."""
    dropped = Counter(row.code for row in checked.loaded.dropped)
    return {"rows": checked.num_rows, "examples": len(checked.loaded.examples), **dict(dropped)}
