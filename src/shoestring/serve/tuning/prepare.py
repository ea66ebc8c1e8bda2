"""Read a job's files and write its run file: python -m shoestring.serve.tuning.prepare FOLDER, a process of its own.

It reads ask.json and leaves checked.json: what is wrong with the files, with lines, or what the server has to tell.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...config import parse_run_file
from ...data.sizes import EVAL_FRAC, EVAL_MAX, EVAL_MAX_FRAC
from ...errors import ConfigError, DataError, ShoestringError
from ...files import read_json, write_json, write_whole
from ...imports.openai_job import Job
from ...imports.openai_tuning import FEWEST_EVAL_ROWS, Checked, check
from ...plan.settings import usual_learning_rate
from ...plan.shapes import in_table, shape_of
from ...records import DroppedRow, Fault
from ...task import METRICS_BY_KIND, STARTING_BARS
from ...train.locate import hub_config, resolve_model
from ...train.tokens import count_lengths, load_tokenizer
from ..gateway.tuning_settings import laid_over
from .asked import AUTO
from .jobs import CHECKED, RUN_FILE

ASK = "ask.json"
TRAIN, VALIDATION = "train.jsonl", "validation.jsonl"
SHOWN_ROWS, LISTED_ROWS = 5, 100
FEWEST_BATCH_TOKENS = 64  # of train.batch_tokens
INVALID = {
    TRAIN: ("invalid_training_file", "training_file"),
    VALIDATION: ("invalid_validation_file", "validation_file"),
}


@dataclass(frozen=True, slots=True)
class Ask:
    """What the server wants prepared; values as asked, "auto" or numbers."""

    id: str
    run_name: str
    model: str
    start: str
    method: str  # supervised, dpo
    method_of_run: str  # auto, qlora
    hyperparameters: Mapping[str, Any]
    seed: int
    budget_usd: float
    overlay: Mapping[str, Any]


class Invalid(Exception):
    """The files cannot be learned from; what the job's error says."""

    def __init__(self, code: str, message: str, param: str | None, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.told = {"error": {"code": code, "message": message, "param": param}, "rows": list(rows)}


def prepare(folder: Path, ask: Ask) -> dict[str, Any]:
    """The run file, written, and notes on it. The working folder is the job's. Raises: Invalid."""
    validation = Path(VALIDATION) if Path(VALIDATION).is_file() else None
    try:
        checked = check(_as_job(ask), Path(TRAIN), validation)
    except DataError as error:
        name = VALIDATION if str(error).startswith(VALIDATION) else TRAIN
        raise Invalid(INVALID[name][0], f"The job failed due to an invalid file. {error}", INVALID[name][1]) from error
    _require_every_row(checked)
    _require_rows_of_the_method(ask, checked)
    notes = [f"{checked.num_rows:,} rows read: {checked.kind} ({checked.evidence})", *_noticed(checked)]
    config = _run_file(ask, checked, notes)
    text = f"# Written by the tuning API for job {ask.id}.\n" + yaml.safe_dump(config, sort_keys=False)
    try:
        parse_run_file(text, RUN_FILE)
    except ConfigError as error:
        raise Invalid("invalid_settings", f"{error}; the server's owner mends the file of --limits", None) from error
    write_whole(folder / RUN_FILE, text)
    return {"error": None, "notes": notes, "kind": checked.kind, "num_rows": checked.num_rows}


def _as_job(ask: Ask) -> Job:
    """In the form that the import of finished jobs checks."""
    return Job(
        id=ask.id, model=ask.model, snapshot=ask.model, continued_from=ask.start, status="validating_files",
        method=ask.method, suffix="", seed=ask.seed, num_epochs=None, batch_rows=None, rate_multiplier=None,
        dpo_beta=None, trained_tokens=None, training_file=TRAIN, validation_file="", fine_tuned_model="",
    )  # fmt: skip


def _require_every_row(checked: Checked) -> None:
    """As the API does, a file with a row that cannot be learned from is refused whole. Raises: Invalid."""
    for name, part in ((TRAIN, checked.loaded), (VALIDATION, checked.held_out)):
        if part is None or not part.dropped:
            continue
        what = "training" if name == TRAIN else "validation"
        lines = "; ".join(f"line {row.line}: {row.code}: {row.evidence}" for row in part.dropped[:SHOWN_ROWS])
        more = f"; and {len(part.dropped) - SHOWN_ROWS} more rows" if len(part.dropped) > SHOWN_ROWS else ""
        message = f"The job failed due to an invalid {what} file. {lines}{more}"
        raise Invalid(*_coded(name, message), rows=[_told(row) for row in part.dropped[:LISTED_ROWS]])


def _coded(name: str, message: str) -> tuple[str, str, str]:
    code, param = INVALID[name]
    return code, message, param


def _told(row: DroppedRow | Fault) -> dict[str, Any]:
    return {"line": row.line, "code": row.code, "evidence": row.evidence}


def _require_rows_of_the_method(ask: Ask, checked: Checked) -> None:
    """Pairs for dpo, answers for supervised. Raises: Invalid."""
    examples = checked.loaded.examples
    is_dpo = ask.method == "dpo"
    wrong = [example.line for example in examples if bool(example.rejected) != is_dpo]
    if not wrong:
        return
    wanted = "preferred_output and non_preferred_output" if is_dpo else "answers, and no pairs (method dpo takes those)"
    rows = ", ".join(map(str, wrong[:SHOWN_ROWS]))
    message = (
        f"The job failed due to an invalid training file. Method {ask.method} learns from {wanted}; {len(wrong)} of "
        f"{len(examples)} rows are otherwise, first on lines {rows}"
    )
    raise Invalid(*_coded(TRAIN, message))


def _noticed(checked: Checked) -> list[str]:
    """A sentence for each kind of oddity that a row has and is trained on all the same."""
    found: dict[str, list[Fault]] = {}
    for part in (checked.loaded, checked.held_out):
        for fault in part.faults if part else ():
            found.setdefault(fault.code, []).append(fault)
    return [
        f"{code} in {len(faults):,} rows, first on line {faults[0].line}: {faults[0].evidence}"
        for code, faults in sorted(found.items())
        if faults[0].repair == "ask"
    ]


def _run_file(ask: Ask, checked: Checked, notes: list[str]) -> dict[str, Any]:
    """The run: one model, which is trained whatever the baseline says; the baseline is the model as it is."""
    bar = STARTING_BARS[checked.kind]
    notes.append(f"the bar is {bar:g}, where {METRICS_BY_KIND[checked.kind][0]} of {checked.kind} starts to be useful")
    config: dict[str, Any] = {
        "name": ask.run_name,
        "task": {"kind": checked.kind, "bar": bar},
        "data": {"train": [TRAIN]},
        "models": [ask.model],
        "method": ask.method_of_run,
        "budget_usd": ask.budget_usd,
        "seed": ask.seed,
        "curate": {},
        "decide": {"arms": ["zero_shot"], "train_anyway": True},
        "ladder": {"curve": "off"},
        "evaluate": {"regression": False, "give_up_early": False},
        "train": {"objective": checked.objective, **_train(ask, checked, notes)},
    }
    held_out = checked.held_out
    if held_out is not None and len(held_out.examples) >= FEWEST_EVAL_ROWS:
        config["data"]["eval"] = [VALIDATION]
    else:
        num_rows = len(checked.loaded.examples)
        if num_rows * EVAL_MAX_FRAC > FEWEST_EVAL_ROWS:  # else curation holds that share out
            config["curate"]["eval_rows"] = max(FEWEST_EVAL_ROWS, min(EVAL_MAX, round(EVAL_FRAC * num_rows)))
        num_eval = config["curate"].get("eval_rows", int(num_rows * EVAL_MAX_FRAC))
        why = "no validation file"
        if held_out is not None:
            why = f"the validation file has {len(held_out.examples)} rows, fewer than {FEWEST_EVAL_ROWS}"
        notes.append(f"{why}: {num_eval} training rows are held out to score what was tuned")
    if ask.start:
        config["train"]["start"] = ask.start
    elif ask.method == "dpo":
        notes.append("preferences alone teach a base little: tune it on answers first, then dpo on the ft: model")
    return laid_over(config, ask.overlay)


def _train(ask: Ask, checked: Checked, notes: list[str]) -> dict[str, Any]:
    """The hyperparameters in our terms; what is auto is derived by the run."""
    given = {key: value for key, value in ask.hyperparameters.items() if value != AUTO}
    out: dict[str, Any] = {}
    if "n_epochs" in given:
        out["num_epochs"] = given["n_epochs"]
    if "beta" in given:
        out["dpo_beta"] = given["beta"]
    if "batch_size" in given:
        lengths = count_lengths(load_tokenizer(ask.model), checked.loaded.examples)
        per_row = sum(map(sum, lengths)) / len(lengths)
        if ask.method == "dpo":
            per_row *= 2  # both answers of a pair, about
        out["batch_tokens"] = max(FEWEST_BATCH_TOKENS, round(given["batch_size"] * per_row))
        notes.append(
            f"batch_size {given['batch_size']} is {out['batch_tokens']} tokens a step, at {per_row:.0f} tokens a row"
        )
    if "learning_rate_multiplier" in given:
        usual = _usual_rate(ask, checked.objective)
        out["learning_rate"] = float(f"{usual * given['learning_rate_multiplier']:.3g}")
        notes.append(
            f"learning_rate_multiplier {given['learning_rate_multiplier']:g} makes the rate {out['learning_rate']:g}; "
            f"1 is what Shoestring derives for this model, {usual:.3g}"
        )
    return out


def _usual_rate(ask: Ask, objective: str) -> float:
    source = Path(resolve_model(ask.model))
    path = source if source.is_dir() else None if in_table(ask.model) else hub_config(ask.model)
    shape = shape_of(ask.model, path) if path else shape_of(ask.model)
    return usual_learning_rate(shape.model_type, shape.hidden, objective)


def main(folder: Path) -> None:
    """Prepare the job in folder; checked.json says how it went."""
    os.chdir(folder)
    ask = Ask(**read_json(folder / ASK))
    try:
        told = prepare(folder, ask)
    except Invalid as error:
        told = error.told
    except ShoestringError as error:
        told = {"error": {"code": "invalid_request", "message": str(error), "param": None}, "rows": []}
    write_json(folder / CHECKED, told)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
