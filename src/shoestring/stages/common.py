"""What several stages ask of a run: its device, models, price, token limits."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..data.split import held_out_clusters
from ..errors import ModelError
from ..evaluate.score import with_clusters, with_far
from ..files import sync_folder
from ..ladder import model_of, rungs_of
from ..ledger import LAUNCH_LEDGER, Ledger
from ..market.prices import Price, price_for
from ..plan.devices import planned_device
from ..plan.hazard import Seen, seen_in
from ..plan.shapes import ModelShape, in_table, near_rows, shape_of
from ..records import (
    ArmScore,
    Curated,
    Device,
    Example,
    Progress,
    StartAdapter,
    TokenCounts,
    TrainSettings,
    no_progress,
)
from ..runfolder import rung_name
from ..train.base import count_lengths, detect_device, load_tokenizer, resolve_model
from ..train.locate import hub_config
from ..train.objective import encode_item, other_side, sides
from ..train.packing import computed_frac
from ..train.start import find_start

if TYPE_CHECKING:
    from ..recipe import Run

T = TypeVar("T")
SHARING_SAMPLE_ROWS = 256  # rows that planning looks for common beginnings in


def device(run: Run) -> Device:
    """The device of this run, detected once."""
    if run.device is None:
        run.device = detect_device(run.config.train.num_threads)
    return run.device


@contextlib.contextmanager
def replacing(run: Run, folder: Path) -> Iterator[Path]:
    """An empty folder to write, which takes the other's place once all is written; the run is held meanwhile.

    Whatever fails or is interrupted leaves the other as it was. Raises: RunFolderError where another process holds it.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    with run.run_folder.locked():  # removes what was left half-written, this too
        partial.mkdir(parents=True)
        try:
            yield partial
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def rung_file(model: str, name: str) -> str:
    """Relative path of a rung's record."""
    return f"rungs/{rung_name(model)}/{name}"


def shape(model: str) -> ModelShape:
    """Architecture numbers of a rung's model: from its folder's config.json, the project's table, or the hub."""
    model = model_of(model)
    source = Path(resolve_model(model))
    if source.is_dir():
        return shape_of(model, source)
    if in_table(model):
        return shape_of(model)
    try:
        return shape_of(model, hub_config(model))
    except ModelError as error:
        raise ModelError(f"{error}{near_rows(model)}") from error


def price(run: Run) -> Price:
    """Price of an hour of the machine this run is planned for."""
    planned = planned_for(run)
    return price_for(device(run), run.config.market, num_gpus=planned.num_devices if planned.kind == "cuda" else 1)


def planned_for(run: Run) -> Device:
    """The machine this run is planned for: this one, or that of market.device with train.num_processes GPUs."""
    present = device(run)
    planned = planned_device(run.config.market.device, present)
    return planned if planned is present else replace(planned, num_devices=run.config.train.num_processes or 1)


def token_counts(run: Run, curated: Curated, model: str) -> TokenCounts:
    """Lengths of the curated rows under a model's tokenizer, counted once a session."""
    if model not in run.counts:
        tokenizer = load_tokenizer(model)
        learned = curated.all_rows("train")
        train, held_out = (count_lengths(tokenizer, rows) for rows in (learned, curated.eval))
        kind = run.config.train.objective
        pairs = [e for e in learned if len(sides(e, kind)) > 1]
        lost = iter(count_lengths(tokenizer, [other_side(e) for e in pairs]))
        rejected = [next(lost)[1] if len(sides(e, kind)) > 1 else 0 for e in learned] if pairs else []
        sample = sample_rows(learned, SHARING_SAMPLE_ROWS, run.config.seed)
        random.Random(run.config.seed).shuffle(sample)
        run.counts[model] = TokenCounts(
            prompt=tuple(p for p, _ in train),
            answer=tuple(a for _, a in train),
            eval_prompt=tuple(p for p, _ in held_out),
            eval_answer=tuple(a for _, a in held_out),
            rejected=tuple(rejected),
            computed_frac=computed_frac([encode_item(tokenizer, e, kind) for e in sample]),
        )
    return run.counts[model]


def starts(run: Run) -> dict[str, StartAdapter]:
    """The adapter that each rung goes on from, where train.start names one. Raises: BadInput."""
    start = run.config.train.start
    return {model: find_start(start, model) for model in rungs_of(run.config)} if start else {}


def seen_by_seller(runs_dir: Path) -> dict[str, Seen]:
    """How long the spot machines of earlier launches ran and how often they were taken, over all runs in a folder."""
    entries: list[dict[str, Any]] = []
    for path in sorted([*runs_dir.glob("*/ledger.jsonl"), *runs_dir.glob(f"*/{LAUNCH_LEDGER}")]):
        with contextlib.suppress(OSError, ValueError):
            entries += Ledger(path).entries()
    return seen_in(entries)


def named(progress: Progress, name: str) -> Progress:
    """The progress with a label of ours in place of the part's own."""
    return lambda label, done, total: progress(name, done, total)


def dev_rows(run: Run, curated: Curated, settings: TrainSettings) -> list[Example]:
    """The dev rows early stopping looks at: a seeded sample of fixed size."""
    return sample_rows(curated.dev, settings.num_dev_rows, run.config.seed)


def held_rows(run: Run, curated: Curated, settings: TrainSettings) -> list[Example]:
    """dev_rows, and as many undesired ones at most: what the objective is measured on."""
    undesired = curated.undesired.get("dev", ())
    dev = dev_rows(run, curated, settings)
    return [*dev, *sample_rows(undesired, settings.num_dev_rows, run.config.seed)]


def sample_rows(rows: Sequence[T], num_rows: int, seed: int) -> list[T]:
    """A seeded sample in the original order; all rows when there are no more."""
    if len(rows) <= num_rows:
        return list(rows)
    chosen = sorted(random.Random(seed).sample(range(len(rows)), num_rows))
    return [rows[i] for i in chosen]


def with_far_score(run: Run, curated: Curated, arm: ArmScore) -> ArmScore:
    """The arm with its interval by clusters of near rows, and its score on the rows far from the training rows."""
    arm = with_clusters(arm, held_out_clusters(curated.eval, no_progress), run.config.seed)
    near_ids = curated.measures.get("near_eval_ids")
    return with_far(arm, None if near_ids is None else frozenset(near_ids), run.config.seed)
