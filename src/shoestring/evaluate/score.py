"""From completions to the score of an arm, with its interval."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..config import TaskConfig
from ..errors import DataError
from ..records import ArmScore, Completion, Example, FarScore, RowScore
from ..units import SECONDS_PER_HOUR
from .metrics import Scored, aggregate, label_codes, macro_f1, score_output
from .more_metrics import add_values, left_out
from .paired import paired_difference
from .statistics import BINARY_METRICS, score_interval

__all__ = ["BINARY_METRICS", "metric_value", "paired_difference", "score_arm", "with_clusters", "with_far"]

CLUSTERED_FRAC = 0.05


def score_arm(
    *,
    arm: str,
    kind: str,
    model: str,
    task: TaskConfig,
    examples: Sequence[Example],
    completions: Sequence[Completion],
    labels: tuple[str, ...] | None,
    wall_s: float,
    seed: int = 0,
    details: dict[str, Any] | None = None,
    price_usd_per_hour: float = 0.0,
    scored: Sequence[Scored] | None = None,
) -> ArmScore:
    """Score one arm on the held-out rows.

    scored: by score_rows already. cost_usd: what the completions cost plus wall_s of the machine at price_usd_per_hour.
    A row's score under macro_f1 is whether its label is right; under metric judge rows are scored by the kind's
    computed metric until they are judged. Raises: DataError.
    """
    scored = score_rows(task, examples, completions, labels) if scored is None else scored
    machine_usd = wall_s * price_usd_per_hour / SECONDS_PER_HOUR
    metric = task.computed_metric
    per_row = "accuracy" if metric == "macro_f1" else metric
    rows = tuple(
        RowScore(
            id=example.id,
            prompt=example.user_text,
            expected=example.completion,
            output=completion.text,
            score=row.values[per_row],
            num_prompt_tokens=completion.num_prompt_tokens,
            num_completion_tokens=completion.num_completion_tokens,
            latency_s=completion.latency_s,
            cost_usd=completion.cost_usd + machine_usd / len(scored),
            failure=_failure(row, completion),
        )
        for example, completion, row in zip(examples, completions, scored, strict=True)
    )
    score, interval = score_interval(metric, rows, seed)
    outputs = [completion.text for completion in completions]
    metrics = aggregate(task.kind, scored, [example.completion for example in examples], outputs)
    missing = left_out(task)
    num_cut = sum(not completion.stopped for completion in completions)
    return ArmScore(
        arm=arm,
        kind=kind,
        model=model,
        metric=metric,
        score=score,
        num_rows=len(rows),
        wall_s=wall_s,
        cost_usd=sum(row.cost_usd for row in rows),
        metrics=metrics,
        interval=interval,
        rows=rows,
        details={
            "num_cut": num_cut,
            "num_failures": sum(row.failure is not None for row in rows),
            **({"left_out": missing} if missing else {}),
            **(details or {}),
        },
    )


def with_clusters(arm: ArmScore, clusters: Mapping[str, str], seed: int = 0) -> ArmScore:
    """The arm with its interval by clusters of rows. clusters: id of a row to that of the first of its cluster.

    Where less than CLUSTERED_FRAC of the rows repeat a cluster the rows count as draws of their own: intervals would
    be wider by a fortieth at most.
    """
    rows = tuple(replace(row, cluster=clusters.get(row.id, "")) for row in arm.rows)
    num_repeats = sum(1 for row in rows if row.cluster) - len({row.cluster for row in rows if row.cluster})
    if num_repeats < CLUSTERED_FRAC * len(rows):
        return arm
    score, interval = score_interval(arm.metric, rows, seed)
    return replace(arm, rows=rows, score=score, interval=interval)


def with_far(arm: ArmScore, near_ids: Container[str] | None, seed: int = 0) -> ArmScore:
    """The arm with its score on the rows that are not near to training rows. near_ids: None where that is not known."""
    if near_ids is None:
        return arm
    rows = [row for row in arm.rows if row.id not in near_ids]
    if len(rows) == len(arm.rows):
        return replace(arm, far=FarScore(len(rows), arm.score))
    return replace(arm, far=FarScore(len(rows), score_interval(arm.metric, rows, seed)[0] if rows else None))


def metric_value(
    task: TaskConfig, examples: Sequence[Example], completions: Sequence[Completion], labels: tuple[str, ...] | None
) -> float:
    """The task's metric alone, without interval: cheap enough for scoring during training."""
    scored = score_rows(task, examples, completions, labels, only=task.computed_metric)
    if task.computed_metric == "macro_f1":
        outputs = [completion.text for completion in completions]
        return macro_f1(*label_codes([example.completion for example in examples], outputs))
    return sum(row.values[task.computed_metric] for row in scored) / len(scored)


def score_rows(
    task: TaskConfig,
    examples: Sequence[Example],
    completions: Sequence[Completion],
    labels: tuple[str, ...] | None,
    only: str = "",
) -> list[Scored]:
    """Each output against its expected answer, in order; only: leave out further metrics but this.

    Raises: DataError with the rows' places; ConfigError, MissingDependency of metrics that need files or packages.
    """
    if not examples:
        raise DataError("no held-out rows to score; give data.eval a file with rows, or lower curate.eval_rows")
    assert len(examples) == len(completions), (len(examples), len(completions))
    label_set = frozenset(labels or ()) | {example.completion.strip() for example in examples}
    scored = []
    for example, completion in zip(examples, completions, strict=True):
        try:
            scored.append(
                score_output(
                    task.kind, example.completion, completion.text, label_set, needs_number=task.metric != "math_equal"
                )
            )
        except DataError as error:
            raise DataError(f"{example.source}:{example.line}: {error}") from None
    return add_values(task, examples, [completion.text for completion in completions], scored, only)


def _failure(row: Scored, completion: Completion) -> str | None:
    """Why the output could not be scored as intended; being cut explains the rest."""
    if completion.stopped:
        return row.failure
    cut = f"cut at {completion.num_completion_tokens} tokens"
    return f"{cut}; {row.failure}" if row.failure else cut
