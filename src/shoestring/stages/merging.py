"""How the two merges of an NF4 base are told apart: by the run's own metric, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import TaskConfig
from ..evaluate.generation import make_generate
from ..evaluate.score import score_rows
from ..records import Curated, Example, no_progress, plan_from_json

if TYPE_CHECKING:
    from ..recipe import Run


@dataclass(frozen=True, slots=True)
class RowScores:
    """The task's metric of each row by itself; of macro_f1, which has none, whether the label is right."""

    task: TaskConfig
    rows: tuple[Example, ...]
    labels: tuple[str, ...] | None
    max_new_tokens: int

    @property
    def metric(self) -> str:
        return "accuracy" if self.task.computed_metric == "macro_f1" else self.task.computed_metric

    def __call__(self, model: Any, tokenizer: Any) -> list[float]:
        generate = make_generate(model, tokenizer, max_new_tokens=self.max_new_tokens)
        answers = generate([e.request for e in self.rows], no_progress)
        scored = score_rows(self.task, self.rows, answers, self.labels, only=self.task.computed_metric)
        return [row.values[self.metric] for row in scored]


def row_scores(run: Run, model: str, rows: Sequence[Example], curated: Curated) -> RowScores | None:
    """The run's metric of each row, as the rung was planned; None where no plan says how long answers may be."""
    planned = run.run_folder.record("plan.json")
    for rung in plan_from_json(planned["result"]).rungs if planned else ():
        if rung.model == model:
            return RowScores(run.config.task, tuple(rows), curated.labels, rung.settings.max_new_tokens)
    return None
