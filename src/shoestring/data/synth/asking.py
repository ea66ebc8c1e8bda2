"""Asking a teacher within a budget: no request is sent whose longest answer could pass it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import BudgetStopped, EndpointError, ShoestringError
from ...messages import Prompt
from ...records import Completion, Generate, Progress
from ...units import usd

TEMPLATE_TOKENS = 8  # of a chat template, a message


@dataclass(frozen=True)
class Teacher:
    """A model that answers, as functions: no network is known here.

    sampling(seed) gives a records.Generate of that sampling seed; has says whether an answer is paid for already;
    spent_usd is what all answers kept so far cost.
    """

    model: str
    host: str
    usd_per_million_input_tokens: float
    usd_per_million_output_tokens: float
    max_new_tokens: int
    requests_per_call: int  # at most; the budget is checked before each call
    sampling: Callable[[int], Generate]
    has: Callable[[Prompt, int], bool]
    spent_usd: Callable[[], float]

    def cost_usd(self, num_prompt_tokens: float, num_completion_tokens: float) -> float:
        """Dollars of so many tokens at list price."""
        return (
            num_prompt_tokens * self.usd_per_million_input_tokens
            + num_completion_tokens * self.usd_per_million_output_tokens
        ) / 1e6

    def at_most_usd(self, prompt: Prompt) -> float:
        """What one answer can cost: a token in two bytes, and the reply at its limit."""
        num_tokens = sum(len(m.text.encode()) // 2 + TEMPLATE_TOKENS for m in prompt)
        return self.cost_usd(num_tokens, self.max_new_tokens)


class Asking:
    """Answers of one teacher until the budget or the endpoint ends them; `ended` then says why."""

    def __init__(self, teacher: Teacher, budget_usd: float, progress: Progress) -> None:
        self.teacher, self.budget_usd, self.progress = teacher, budget_usd, progress
        self.ended: ShoestringError | None = None
        self._asked: Counter[Prompt] = Counter()

    def fresh(self, prompts: Sequence[Prompt]) -> list[Completion | None]:
        """An answer of its own to each prompt, equal ones included; None from where asking ended."""
        requests = []
        for prompt in prompts:
            requests.append((prompt, self._asked[prompt]))
            self._asked[prompt] += 1
        return self.ask(requests)

    def ask(self, requests: Sequence[tuple[Prompt, int]]) -> list[Completion | None]:
        """The answer to each (prompt, sampling seed); None from where asking ended."""
        answers: dict[int, Completion] = {}
        by_seed: dict[int, list[int]] = {}
        for index, (_, seed) in enumerate(requests):
            by_seed.setdefault(seed, []).append(index)
        for seed, indices in by_seed.items():
            waiting = indices
            while waiting and self.ended is None:
                chunk = self._affordable([requests[i][0] for i in waiting], seed)
                if not chunk:
                    break
                for i, completion in zip(waiting, self._generate(chunk, seed), strict=False):
                    if completion is not None:
                        answers[i] = completion
                waiting = waiting[len(chunk) :]
                self.progress(f"asking {self.teacher.model}", len(answers), len(requests))
        return [answers.get(i) for i in range(len(requests))]

    def _affordable(self, prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
        """The first prompts, as many as go into one call and cannot pass the budget."""
        left_usd = self.budget_usd - self.teacher.spent_usd()
        chunk: list[Prompt] = []
        for prompt in prompts[: self.teacher.requests_per_call]:
            price_usd = 0.0 if self.teacher.has(prompt, seed) else self.teacher.at_most_usd(prompt)
            if price_usd > left_usd and price_usd > 0:
                if not chunk:
                    spent = self.budget_usd - left_usd
                    self.ended = BudgetStopped(
                        f"the next request to {self.teacher.model} could cost {usd(price_usd)}, and of the budget of "
                        f"{usd(self.budget_usd)} {usd(spent)} is spent; raise budget_usd or lower "
                        "synth.max_new_tokens, and run the same command again: answers paid for are kept"
                    )
                break
            chunk.append(prompt)
            left_usd -= price_usd
        return chunk

    def _generate(self, prompts: list[Prompt], seed: int) -> list[Completion | None]:
        generate = self.teacher.sampling(seed)

        def quiet(label: str, done: int, total: int | None) -> None:
            """Only whole calls are drawn: a call's own count would run back and forth."""

        try:
            return list(generate(prompts, quiet))
        except EndpointError as error:
            self.ended = error
            return [generate([p], quiet)[0] if self.teacher.has(p, seed) else None for p in prompts]
