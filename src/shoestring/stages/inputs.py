"""What each stage depends on, as plain values: two runs with equal inputs may share the record."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..config import TaskConfig
from ..data.sources import files_of
from ..files import sha256_file
from ..records import RungPlan
from .common import device, models_of

if TYPE_CHECKING:
    from ..recipe import Run


def curate(run: Run) -> Any:
    """Data files by content, and the settings that shape the split."""
    config = run.config
    files = files_of([*config.data.train, *config.data.eval], run.base_dir)
    return [
        config.data.model_dump(),
        config.curate.model_dump(),
        config.task.kind,
        config.seed,
        models_of(config),
        config.train.seq_len,
        [[path.name, sha256_file(path)] for path in files],
    ]


def decide(run: Run) -> Any:
    """The baselines asked for, the task, the models and the price."""
    config = run.config
    arms = config.decide.model_dump(exclude={"train_anyway"})
    return [arms, _without_bar(config.task), models_of(config), config.market.model_dump(), config.seed]


def plan(run: Run) -> Any:
    """Models, training switches, market, deadline, device."""
    config = run.config
    return [
        config.train.model_dump(),
        config.market.model_dump(),
        models_of(config),
        config.method,
        config.deadline_h,
        config.seed,
        _without_bar(config.task),
        asdict(device(run)),
    ]


def train(rung: RungPlan) -> Any:
    """What training computes from: the settings, not their reasons; the precision, not the machine."""
    settings = asdict(rung.settings)
    settings.pop("reasons")
    return [rung.model, settings, rung.device.dtype]


def evaluate(run: Run) -> Any:
    """How outputs are scored."""
    return [_without_bar(run.config.task), run.config.seed]


def _without_bar(task: TaskConfig) -> Any:
    return task.model_dump(exclude={"bar"})
