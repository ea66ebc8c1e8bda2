"""What each stage depends on, as plain values: two runs with equal inputs may share the record."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..config import PREFERENCES, TaskConfig
from ..data.decisions import decisions_in
from ..data.sources import files_of
from ..data.store import REVIEW
from ..evaluate.judge.scoring import METRIC, identity
from ..files import sha256_file
from ..ladder import model_of, models_of, rungs_of
from ..records import RungPlan
from ..train.locate import model_print
from ..train.trainer import NOT_OF_THE_RESULT
from .answering import may_give_up
from .common import device, starts
from .retrieving import documents_print

if TYPE_CHECKING:
    from ..recipe import Run


def curate(run: Run) -> Any:
    """Data files by content, the decisions of a review, and the settings that shape the split."""
    config = run.config
    decisions = decisions_in(run.folder / "data" / REVIEW)
    decided = sorted([*mark, d.action, d.answer] for mark, d in decisions.items())
    files = [
        *files_of(config.data.train, run.base_dir),
        *files_of(config.data.eval, run.base_dir, is_held_out=True),
    ]
    return [
        config.data.model_dump(exclude={"documents"}),
        config.curate.model_dump(),
        config.task.kind,
        config.seed,
        _models(run),
        config.train.seq_len,
        [[path.name, sha256_file(path)] for path in files],
        *([decided] if decided else []),
        *(["pairs"] if config.train.objective in PREFERENCES else []),  # both answers must fit
        *(["undesired"] if config.train.objective == "kto" else []),  # rows that are marked so stay
    ]


def decide(run: Run) -> Any:
    """The baselines asked for, the task, the models and the price."""
    config = run.config
    arms = config.decide.model_dump(exclude={"train_anyway"})
    documents = [config.retrieval.model_dump(), documents_print(run)]
    rest = [config.market.model_dump(), config.seed, documents, *_judge(run)]
    return [arms, _without_bar(config.task), _models(run), *rest]


def plan(run: Run) -> Any:
    """Models, training switches, market, deadline, device; the budget, which the plan's notes speak of."""
    config = run.config
    return [
        config.train.model_dump(),
        config.market.model_dump(),
        [model_print(rung) for rung in rungs_of(config)],
        *_documents(run, *rungs_of(config)),
        config.method,
        *([] if config.engine == "shoestring" else [config.engine]),
        config.deadline_h,
        config.budget_usd,
        config.seed,
        _without_bar(config.task),
        asdict(device(run)),
        *([config.traffic.model_dump()] if config.traffic else []),
        *(start.sha256 for start in starts(run).values()),
    ]


def train(run: Run, rung: RungPlan) -> Any:
    """What training computes from: weights, settings, precision, and the metric that stops it early."""
    settings = asdict(rung.settings)
    for key in NOT_OF_THE_RESULT:
        del settings[key]
    documents = _documents(run, rung.model)
    return [model_print(rung.model), settings, rung.device.dtype, run.config.task.computed_metric, *documents]


def evaluate(run: Run, rung: RungPlan) -> Any:
    """How outputs are made and scored, and the bar where a rung that cannot reach it is given up."""
    asked = [_without_bar(run.config.task), run.config.seed, rung.settings.max_new_tokens, *_judge(run)]
    return [*asked, run.config.task.bar] if may_give_up(run) else asked


def _judge(run: Run) -> list[Any]:
    """What decides a judge's verdicts, where they are the metric."""
    return [identity(run.config.judge)] if run.config.judge and run.config.task.metric == METRIC else []


def scored(run: Run) -> Any:
    """How the answers of an arm are scored."""
    return [_without_bar(run.config.task), run.config.seed, *_judge(run)]


def _documents(run: Run, *rungs: str) -> list[Any]:
    """What the passages of rungs depend on, nothing for rungs without."""
    return [documents_print(run)] if any(model_of(rung) != rung for rung in rungs) else []


def _models(run: Run) -> list[str]:
    return [model_print(model) for model in models_of(run.config)]


def _without_bar(task: TaskConfig) -> Any:
    """What scores depend on; keys that a task does without are left out, so that records made before them count."""
    said = task.model_dump(exclude={"bar"})
    for key in ("database", "record_schema", "metric_command"):
        if not said[key]:
            del said[key]
    files = [[path.name, sha256_file(path)] for path in task.files()]
    return [said, files] if files else said
