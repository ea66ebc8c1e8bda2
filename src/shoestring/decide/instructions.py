"""Which instruction to prompt with: candidates scored on training rows, never on held-out ones.

Source: automatic prompt engineer, Zhou et al. 2022 (arXiv 2211.01910): the model proposes, a sample of rows decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import TaskConfig
from ..evaluate.score import metric_value
from ..messages import Example, Message, Prompt
from ..records import Completion, Generate, Progress, no_progress
from .baselines import CountTokens, choose_shots, instruction_for, zero_shot_prompts

SAMPLE_ROWS = 40  # training and dev rows that candidates are scored on
SHOWN_ROWS = 4  # examples a model is shown when it is asked for an instruction
MAX_CHARACTERS = 2000  # of a written instruction: longer ones are no instructions
ASKED = (
    "You write instructions for an assistant. Below are inputs with the answers it should give, and the instruction it "
    "has now. Write a better one: clear, complete, and with every label or key the present one names. Reply with the "
    "instruction alone."
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An instruction and where it comes from. score: on the sample; None before."""

    text: str
    origin: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The best candidate, all of them with their scores, and what scoring took."""

    best: Candidate
    candidates: tuple[Candidate, ...]
    num_rows: int
    num_tokens: int
    cost_usd: float


def candidates_of(
    task: TaskConfig, train: Sequence[Example], labels: tuple[str, ...] | None, given: Sequence[str]
) -> list[Candidate]:
    """The task's own instruction, the derived one, and those given; each once, in this order."""
    derived = instruction_for(task.model_copy(update={"instruction": ""}), train, labels)
    found = [Candidate(task.instruction, "task.instruction")] if task.instruction.strip() else []
    found += [Candidate(derived, "derived"), *(Candidate(text, "decide.instructions") for text in given)]
    unique = {candidate.text.strip(): candidate for candidate in reversed(found) if candidate.text.strip()}
    return [candidate for candidate in found if unique.get(candidate.text.strip()) is candidate]


def requests_for(present: str, train: Sequence[Example], num: int, seed: int) -> list[Prompt]:
    """Prompts that ask a model for num instructions, each after other training rows."""
    prompts: list[Prompt] = []
    for number in range(num):
        shots = choose_shots(train, SHOWN_ROWS, seed + number)
        shown = "\n\n".join(f"Input: {shot.user_text}\nAnswer: {shot.completion}" for shot in shots)
        said = f"{shown}\n\nPresent instruction: {present}"
        prompts.append((Message("system", ASKED), Message("user", said)))
    return prompts


def written(answers: Sequence[Completion], model: str) -> tuple[list[Candidate], int]:
    """Candidates among a model's answers, and how many answers were none: empty, cut, or too long."""
    texts = [answer.text.strip().strip('"') for answer in answers]
    usable = [
        text
        for text, answer in zip(texts, answers, strict=True)
        if text and answer.stopped and len(text) <= MAX_CHARACTERS
    ]
    found = [Candidate(text, f"written by {model}") for text in dict.fromkeys(usable)]
    return found, len(texts) - len(usable)


def choose(
    candidates: Sequence[Candidate],
    sample: Sequence[Example],
    generate: Generate,
    task: TaskConfig,
    labels: tuple[str, ...] | None,
    count_tokens: CountTokens,
    room: int,
    progress: Progress = no_progress,
) -> Chosen:
    """The candidate with the best metric on the sample, of equals the first; sample: training and dev rows.

    room: tokens that prompts may take. A candidate with which a prompt takes more is not scored.
    """
    scored: list[Candidate] = []
    num_tokens, cost_usd = 0, 0.0
    for number, candidate in enumerate(candidates):
        progress("instructions", number, len(candidates))
        prompts = zero_shot_prompts(sample, candidate.text)
        if max(map(count_tokens, prompts)) > room:
            scored.append(candidate)
            continue
        answers = generate(prompts, no_progress)
        num_tokens += sum(a.num_prompt_tokens + a.num_completion_tokens for a in answers)
        cost_usd += sum(a.cost_usd for a in answers)
        value = metric_value(task, sample, answers, labels)
        scored.append(Candidate(candidate.text, candidate.origin, value))
    best = max(scored, key=lambda c: -1.0 if c.score is None else c.score)
    return Chosen(best, tuple(scored), len(sample), num_tokens, cost_usd)
