"""A trained rung answers the held-out rows: each answer is kept as it comes, and a hopeless rung is given up early."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..decide.answers import AnswerFile
from ..evaluate.generation import LocalGenerator
from ..evaluate.judge.scoring import METRIC
from ..evaluate.metrics import Scored
from ..evaluate.score import score_rows
from ..evaluate.sequential import EarlyRejection
from ..records import Completion, Curated, Example, Progress, Prompt, RungPlan, TrainResult, message_to_json
from ..train.locate import model_print
from .common import device, rung_file, sample_rows

if TYPE_CHECKING:
    from ..recipe import Run

ANSWERS = "answers.jsonl"
# Rows between two looks at whether the bar is out of reach: as many as a CPU answers side by side.
LOOK_ROWS = 128


@dataclass(frozen=True, slots=True)
class Answered:
    """The rows that were asked, in the held-out rows' order, with their answers and scores.

    earlier_s: what answers kept from earlier sessions took; unpaid_s: of that, what is not in the ledger, since the
    session was cut short. given_up: why rows are left, empty where none is.
    """

    examples: tuple[Example, ...]
    completions: tuple[Completion, ...]
    scored: tuple[Scored, ...]
    earlier_s: float
    unpaid_s: float
    given_up: str


class Keeping:
    """A rung's generator whose answers are written down as they come, and never made twice.

    An answer belongs to the weights, the precision, the token limit and the prompt.
    """

    def __init__(self, run: Run, rung: RungPlan, trained: TrainResult, generator: LocalGenerator) -> None:
        self.generator = generator
        self.answers = AnswerFile(run.run_folder.rung(rung.model) / ANSWERS, is_durable=False)
        self.identity = json.dumps([
            model_print(rung.model), trained.method, trained.settings.get("adapter_sha256", {}),
            device(run).dtype, generator.max_new_tokens,
        ], sort_keys=True)  # fmt: skip
        item = rung_file(rung.model, "eval")
        self.entered_at = max((e["at"] for e in run.ledger.entries() if e["item"] == item), default="")
        self.earlier_s = self.unpaid_s = 0.0

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Completion]:
        """As LocalGenerator.generate."""
        kept = {prompt: self.answers.get(self._key(prompt)) for prompt in prompts}
        missing = [prompt for prompt in prompts if kept[prompt] is None]
        num_kept = len(prompts) - len(missing)

        def shown(label: str, done: int, total: int | None) -> None:
            progress(label, num_kept + done, len(prompts))

        def keep(prompt: Prompt, completion: Completion) -> None:
            now = datetime.now(UTC).isoformat(timespec="seconds")  # as the ledger has it
            self.answers.add(self._key(prompt), replace(completion, made_at=now))

        made = iter(self.generator.generate(missing, shown, on_answer=keep))
        answers = []
        for prompt in prompts:
            found = kept[prompt]
            if found is not None:
                self.earlier_s += found.latency_s
                self.unpaid_s += found.latency_s if found.made_at > self.entered_at else 0.0
            answers.append(next(made) if found is None else replace(found, made_at=""))
        return answers

    def _key(self, prompt: Prompt) -> str:
        said = [message_to_json(message) for message in prompt]
        return hashlib.sha256(json.dumps([self.identity, said]).encode()).hexdigest()


def may_give_up(run: Run) -> bool:
    """Whether the metric is a mean of what rows score at once, so that bets on rows are bets on it."""
    return run.config.evaluate.give_up_early and run.config.task.metric not in ("macro_f1", METRIC)


def answered(
    run: Run, rung: RungPlan, trained: TrainResult, generator: LocalGenerator, asked: Curated, curated: Curated
) -> Answered:
    """Answer and score the held-out rows, in a random order fixed beforehand, until the bar is out of reach.

    asked: the rows as the rung's prompts have them. The rows that prompting was measured on come first, so that what
    is left out by giving up is not what arms are compared on.
    """
    task, rows = run.config.task, curated.eval
    labels = None
    if curated.labels is not None:
        labels = tuple(sorted({*curated.labels, *(row.completion.strip() for row in rows)}))
    keeping = Keeping(run, rung, trained, generator)
    rejection = EarlyRejection(task.bar) if may_give_up(run) else None
    order = _order(run, rows)
    step = LOOK_ROWS if rejection else max(1, len(rows))
    found: dict[int, tuple[Completion, Scored]] = {}
    given_up = ""
    for start in range(0, len(order), step):
        chunk = order[start : start + step]

        def shown(label: str, done: int, total: int | None, start: int = start) -> None:
            run.progress(f"evaluate {rung.model}", start + done, len(rows))

        completions = keeping.generate([asked.eval[i].request for i in chunk], shown)
        scored = score_rows(task, [rows[i] for i in chunk], completions, labels)
        found.update(zip(chunk, zip(completions, scored, strict=True), strict=True))
        if rejection and rejection.add([row.values[task.metric] for row in scored]) and len(found) < len(rows):
            given_up = rejection.reason()
            run.log(f"Rung {rung.model}: {given_up}; {len(rows) - len(found):,} rows are left unasked")
            break
    kept = sorted(found)
    return Answered(
        tuple(rows[i] for i in kept),
        tuple(found[i][0] for i in kept),
        tuple(found[i][1] for i in kept),
        keeping.earlier_s,
        keeping.unpaid_s,
        given_up,
    )


def _order(run: Run, rows: Sequence[Example]) -> list[int]:
    """Places of the rows: those of the prompting arms shuffled, then the others."""
    config = run.config
    compared = set(sample_rows(range(len(rows)), config.decide.max_rows, config.seed))
    groups = [sorted(compared), [i for i in range(len(rows)) if i not in compared]]
    shuffle = random.Random(config.seed).shuffle
    for group in groups:
        shuffle(group)
    return [i for group in groups for i in group]
