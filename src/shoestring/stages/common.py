"""What several stages ask of a run: its device, models, price, token limits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import RunConfig, TaskConfig
from ..embedded import family
from ..market.prices import Price, price_for
from ..plan.shapes import ModelShape, shape_of
from ..records import Curated, Device, Example, Progress
from ..runfolder import rung_name
from ..train.base import detect_device, resolve_model

if TYPE_CHECKING:
    from ..recipe import Run

MAX_DEV_ROWS = 128  # early stopping looks at so many dev rows; more would cost more than they tell


def device(run: Run) -> Device:
    """The device of this run, detected once."""
    if run.device is None:
        run.device = detect_device(run.config.train.num_threads)
    return run.device


def models_of(config: RunConfig) -> list[str]:
    """The ladder's models, each once, the family name written out."""
    names = [model for name in config.models for model in (family() if name == "embedded" else [name])]
    return list(dict.fromkeys(names))


def rung_file(model: str, name: str) -> str:
    """Relative path of a rung's record."""
    return f"rungs/{rung_name(model)}/{name}"


def shape(model: str) -> ModelShape:
    """Architecture numbers of a model, from its folder's config.json or the project's table."""
    source = Path(resolve_model(model))
    return shape_of(model, source if source.is_dir() else None)


def price(run: Run) -> Price:
    """Price of an hour of the machine this run is planned for."""
    return price_for(device(run), run.config.market)


def max_new_tokens(task: TaskConfig, train: Sequence[Example]) -> int:
    """The run file's limit, or half the bytes of the longest training answer plus a margin, at most 512."""
    return task.max_new_tokens or min(512, max(len(e.completion.encode()) for e in train) // 2 + 16)


def named(progress: Progress, name: str) -> Progress:
    """The progress with a label of ours in place of the part's own."""
    return lambda label, done, total: progress(name, done, total)


def dev_rows(run: Run, curated: Curated) -> list[Example]:
    """The dev rows early stopping looks at."""
    return sample_rows(curated.dev, MAX_DEV_ROWS, run.config.seed)


def sample_rows(rows: Sequence[Example], num_rows: int, seed: int) -> list[Example]:
    """A seeded sample in the original order; all rows when there are no more."""
    if len(rows) <= num_rows:
        return list(rows)
    chosen = sorted(random.Random(seed).sample(range(len(rows)), num_rows))
    return [rows[i] for i in chosen]
