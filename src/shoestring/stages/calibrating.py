"""A classifying rung's confidence held against its accuracy: a record and a ledger line of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluate.calibration import calibration
from ..evaluate.generation import LocalGenerator
from ..evaluate.generation.labels import label_log_probs
from ..records import Curated, RungPlan, TrainResult
from .common import named, rung_file, sample_rows
from .recorder import once
from .retrieving import rows_for

if TYPE_CHECKING:
    from ..recipe import Run

MAX_ROWS = 100  # each costs as much as a training row with all labels as answers
MAX_LABELS = 200


def measure(
    run: Run, rung: RungPlan, trained: TrainResult, curated: Curated, opened: Callable[[], LocalGenerator]
) -> None:
    """ECE and Brier score of a classification's labels on a sample of the held-out rows; other kinds have none.

    opened: gives what the rung has trained, loaded.
    """
    labels = sorted({row.completion.strip() for row in curated.eval} | set(curated.labels or ()))
    if run.config.task.kind != "classify" or not 1 < len(labels) <= MAX_LABELS or is_spread(trained):
        return
    name, after = rung_file(rung.model, "calibration.json"), rung_file(rung.model, "train.json")

    def work() -> tuple[Any, dict[str, Any]]:
        found = _measured(run, rung, curated, labels, opened())
        return {"model": rung.model, **found}, found

    found: dict[str, Any] = once(run, name, work, dict, after=after, depends_on=[run.config.seed, labels])
    run.log(
        f"Rung {rung.model}: on {found['rows']} rows its confidence is off by {found['ece']:.3f} on average (ECE), "
        f"Brier score {found['brier']:.3f}"
    )


def is_spread(trained: TrainResult) -> bool:
    """Whether the rung's layers lie on several GPUs when it answers."""
    return trained.settings.get("parallelism") == "fsdp"


def _measured(
    run: Run, rung: RungPlan, curated: Curated, labels: list[str], generator: LocalGenerator
) -> dict[str, Any]:
    asked = rows_for(run, curated, rung.model)
    chosen = sample_rows(range(len(curated.eval)), MAX_ROWS, run.config.seed)
    progress = named(run.progress, f"calibration {rung.model}")
    log_probs = label_log_probs(generator.model, generator.tokenizer, [asked.eval[i] for i in chosen], labels, progress)
    right = np.array([labels.index(curated.eval[i].completion.strip()) for i in chosen])
    return calibration(log_probs, right)
