"""The prompting arms: each a function from held-out rows to a score, over a model here or behind an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..decide.baselines import few_shot_prompts, instruction_for, nearest_prompts, run_arm, zero_shot_prompts
from ..decide.instructions import SAMPLE_ROWS, candidates_of, choose, requests_for, written
from ..decide.passages import fitted
from ..decide.retrieval import Retriever
from ..records import ArmScore, Curated, Example, Generate, Message, Prompt, no_progress, to_json
from .common import named, sample_rows
from .retrieving import documents_print, encoder, encoder_print, found_facts, library

if TYPE_CHECKING:
    from ..recipe import Run

# Kinds of prompting arms in the order they are measured, and how their names begin.
NAMES = {
    "zero_shot": "zero-shot",
    "instruction": "best instruction",
    "few_shot": "few-shot",
    "nearest": "nearest few-shot",
    "rag": "RAG",
}


def do_nothing() -> None:
    """The close of what holds nothing."""


@dataclass(frozen=True)
class Answerer:
    """What answers prompts, and what it may be asked.

    usd_per_hour: of the machine; None for an endpoint, whose completions carry their cost.
    """

    name: str
    generate: Generate
    count_tokens: Callable[[Sequence[Message]], int]
    context_tokens: int
    max_new_tokens: int
    usd_per_hour: float | None = None
    close: Callable[[], None] = do_nothing

    @property
    def room(self) -> int:
        """Tokens that a prompt may take."""
        return self.context_tokens - self.max_new_tokens


class Arms:
    """The prompting arms on the decide rows of one run; what they share is made once."""

    def __init__(self, run: Run, curated: Curated) -> None:
        self.run, self.curated, self.task = run, curated, run.config.task
        self.rows: list[Example] = sample_rows(curated.eval, run.config.decide.max_rows, run.config.seed)
        self.instruction = instruction_for(self.task, curated.train, curated.labels)
        self.candidates = candidates_of(self.task, curated.train, curated.labels, run.config.decide.instructions)

    def applies(self, kind: str) -> bool:
        """Whether there is anything to measure: documents to look up, or instructions to choose from."""
        if kind == "instruction":
            return len(self.candidates) + self.run.config.decide.written_instructions > 1
        return kind != "rag" or bool(self.run.config.data.documents)

    def print_of(self, kind: str, instruction: str) -> Any:
        """What an arm depends on besides its model and the rows."""
        decide = self.run.config.decide
        own: dict[str, Any] = {
            "instruction": [to_json(self.candidates), decide.written_instructions],
            "few_shot": decide.num_shots,
            "nearest": [decide.num_shots, encoder_print(self.run)],
            "rag": documents_print(self.run) if kind == "rag" else None,
        }
        return [kind, instruction, decide.max_rows, self.run.config.seed, own.get(kind)]

    def measure(
        self, kind: str, answerer: Callable[[], Answerer], instruction: str, zero_shot: ArmScore | None = None
    ) -> tuple[ArmScore | None, str]:
        """The arm of one kind, or why it was not measured: its prompts do not fit.

        zero_shot: the model's zero-shot arm, whose answers stand where the instruction chosen is its own.
        """
        asked = answerer()
        name = f"{NAMES[kind]} {asked.name}"
        make = getattr(self, f"_{kind}")
        prompts, details = make(asked, instruction)
        if details.get("num_shots") == 0:
            return None, f"{name}: not one example fits the context of {asked.context_tokens} tokens"
        if details.get("retrieval", {}).get("mean_chunks") == 0:
            return None, f"{name}: not one passage fits the context of {asked.context_tokens} tokens, or none is found"
        longest = max(asked.count_tokens(prompt) for prompt in prompts)
        if longest > asked.room:
            return None, (
                f"{name}: the longest prompt takes {longest} tokens and the answer up to {asked.max_new_tokens}; "
                f"the context is {asked.context_tokens}"
            )
        details = {"instruction": instruction, **details, "style": kind}
        if kind == "instruction" and zero_shot is not None and details["instruction"] == self.instruction:
            same = zero_shot.kind if zero_shot.kind == "endpoint" else kind
            return replace(zero_shot, arm=name, kind=same, details={**zero_shot.details, **details}), ""
        arm = run_arm(
            arm=name,
            kind=kind if asked.usd_per_hour is not None else "endpoint",
            model=asked.name,
            examples=self.rows,
            prompts=prompts,
            generate=asked.generate,
            task=self.task,
            labels=self.curated.labels,
            price_usd_per_hour=asked.usd_per_hour or 0.0,
            progress=named(self.run.progress, name),
            seed=self.run.config.seed,
            details=details,
        )
        return arm, ""

    def _zero_shot(self, asked: Answerer, instruction: str) -> tuple[list[Prompt], dict[str, Any]]:
        return zero_shot_prompts(self.rows, instruction), {}

    def _few_shot(self, asked: Answerer, instruction: str) -> tuple[list[Prompt], dict[str, Any]]:
        decide, seed = self.run.config.decide, self.run.config.seed
        room = (asked.count_tokens, asked.context_tokens, asked.max_new_tokens)
        prompts, num_shots = few_shot_prompts(self.rows, self.curated.train, instruction, decide.num_shots, *room, seed)
        return prompts, {"num_shots": num_shots}

    @cached_property
    def _examples(self) -> Retriever:
        """The training rows, to be searched by what they ask."""
        return Retriever([example.user_text for example in self.curated.train], encoder(self.run))

    def _nearest(self, asked: Answerer, instruction: str) -> tuple[list[Prompt], dict[str, Any]]:
        room = (asked.count_tokens, asked.context_tokens, asked.max_new_tokens)
        num_shots = self.run.config.decide.num_shots
        return nearest_prompts(self.rows, self.curated.train, self._examples, instruction, num_shots, *room)

    def _rag(self, asked: Answerer, instruction: str) -> tuple[list[Prompt], dict[str, Any]]:
        held = library(self.run)
        found = held.find([example.user_text for example in self.rows], self.run.config.retrieval.num_chunks)
        bare = zero_shot_prompts(self.rows, instruction)
        prompts, nums = fitted(
            bare, [held.texts(places) for places in found], asked.count_tokens, [asked.room] * len(bare)
        )
        return prompts, {"retrieval": found_facts(self.run, self.rows, found, nums)}

    def _instruction(self, asked: Answerer, instruction: str) -> tuple[list[Prompt], dict[str, Any]]:
        seed, num = self.run.config.seed, self.run.config.decide.written_instructions
        candidates, num_unusable = list(self.candidates), 0
        if num:
            requests = requests_for(self.instruction, self.curated.train, num, seed)
            fitting = [request for request in requests if asked.count_tokens(request) <= asked.room]
            more, num_unusable = written(asked.generate(fitting, no_progress), asked.name)
            candidates += more
            num_unusable += num - len(fitting)
        sample = sample_rows((*self.curated.train, *self.curated.dev), SAMPLE_ROWS, seed)
        chosen = choose(
            candidates,
            sample,
            asked.generate,
            self.task,
            self.curated.labels,
            asked.count_tokens,
            asked.room,
            named(self.run.progress, f"instructions {asked.name}"),
        )
        details = {
            "instruction": chosen.best.text,
            "instructions": to_json(chosen.candidates),
            "num_rows_chosen_on": chosen.num_rows,
            "choice_tokens": chosen.num_tokens,
            "choice_usd": chosen.cost_usd,
            "num_unusable_written": num_unusable,
        }
        return zero_shot_prompts(self.rows, chosen.best.text), details
