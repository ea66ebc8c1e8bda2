"""Decide: prompting, few-shot and a linear model on held-out rows, before any training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..config import EndpointConfig, TaskConfig
from ..decide.answers import AnswerFile
from ..decide.baselines import few_shot_prompts, instruction_for, run_arm, zero_shot_prompts
from ..decide.client import Client
from ..decide.linear import linear_arm
from ..decide.verdict import RUN, detectable_difference, verdict
from ..errors import BudgetStopped, MissingDependency
from ..evaluate.generation import load_generator
from ..ladder import models_of
from ..plan.settings import answer_limit
from ..records import (
    ArmScore,
    Completion,
    Curated,
    Example,
    Generate,
    Message,
    Progress,
    Verdict,
    arm_from_json,
    to_json,
)
from ..units import usd
from .common import device, named, price, sample_rows, shape, token_counts, with_far_score

if TYPE_CHECKING:
    from ..recipe import Run

ENDPOINT_CONTEXT_TOKENS = 32_768  # assumed of a hosted model; larger prompts are not sent
ENDPOINT_ITEM = "endpoint "  # how the ledger's items of endpoint answers begin
ROUNDING_USD = 1e-9  # smaller differences of two sums are no expense


class Prompting:
    """The prompting arms of one generator on the decide rows."""

    def __init__(self, run: Run, curated: Curated) -> None:
        self.run, self.curated, self.task = run, curated, run.config.task
        self.rows: list[Example] = sample_rows(curated.eval, run.config.decide.max_rows, run.config.seed)
        self.instruction = instruction_for(self.task, curated.train, curated.labels)
        self.arms: list[ArmScore] = []
        self.skipped: list[str] = []

    def measure(
        self,
        model: str,
        generate: Generate,
        count_tokens: Callable[[Sequence[Message]], int],
        context_tokens: int,
        max_new_tokens: int,
        price_usd_per_hour: float | None = None,
    ) -> None:
        """Add the zero-shot and few-shot arms of one model; one that does not fit is named in skipped.

        price_usd_per_hour: of the machine; None for an endpoint, whose completions carry their cost.
        """
        for kind in ("zero_shot", "few_shot"):
            if kind not in self.run.config.decide.arms:
                continue
            name = f"{kind.replace('_', '-')} {model}"
            prompts, details = self._prompts(kind, count_tokens, context_tokens, max_new_tokens)
            longest = max(count_tokens(prompt) for prompt in prompts)
            if details.get("num_shots") == 0:
                self.skipped.append(f"{name}: not one example fits the context of {context_tokens} tokens")
            elif longest + max_new_tokens > context_tokens:
                self.skipped.append(
                    f"{name}: the longest prompt takes {longest} tokens and the answer up to "
                    f"{max_new_tokens}; the context is {context_tokens}"
                )
            else:
                self.arms.append(
                    run_arm(
                        arm=name,
                        kind="endpoint" if price_usd_per_hour is None else kind,
                        model=model,
                        examples=self.rows,
                        prompts=prompts,
                        generate=generate,
                        task=self.task,
                        labels=self.curated.labels,
                        price_usd_per_hour=price_usd_per_hour or 0.0,
                        progress=named(self.run.progress, name),
                        seed=self.run.config.seed,
                        details=details,
                    )
                )

    def _prompts(
        self, kind: str, count_tokens: Callable[[Sequence[Message]], int], context_tokens: int, max_new_tokens: int
    ) -> tuple[list[tuple[Message, ...]], dict[str, Any]]:
        if kind == "zero_shot":
            return zero_shot_prompts(self.rows, self.instruction), {}
        prompts, num_shots = few_shot_prompts(
            self.rows,
            self.curated.train,
            self.instruction,
            self.run.config.decide.num_shots,
            count_tokens,
            context_tokens,
            max_new_tokens,
            self.run.config.seed,
        )
        return prompts, {"num_shots": num_shots}


def decide(run: Run, curated: Curated) -> tuple[Any, list[ArmScore]]:
    """Measure every baseline the run file asks for, the one without a language model first."""
    config, task = run.config, run.config.task
    usd_per_hour = price(run).usd_per_hour
    prompting = Prompting(run, curated)
    if "linear" in config.decide.arms and task.kind == "classify":
        try:
            prompting.arms.append(
                linear_arm(
                    curated.train,
                    curated.eval,
                    task,
                    curated.labels,
                    config.seed,
                    price_usd_per_hour=usd_per_hour,
                    progress=run.progress,
                )
            )
        except MissingDependency as error:
            prompting.skipped.append(str(error))
    for model in models_of(config):
        answers = token_counts(run, curated, model).answer
        limit, _ = answer_limit(task, answers, shape(model).context_tokens, model)
        generator = load_generator(model, device=device(run), max_new_tokens=limit)
        context_tokens = generator.context_tokens
        prompting.measure(model, generator.generate, generator.count_tokens, context_tokens, limit, usd_per_hour)
        generator.close()
    for endpoint in config.decide.endpoints:
        answers = tuple(_text_tokens(e.completion) for e in curated.train)
        limit, _ = answer_limit(task, answers, ENDPOINT_CONTEXT_TOKENS, endpoint.name)
        prompting.measure(endpoint.name, paying(run, endpoint, limit), rough_tokens, ENDPOINT_CONTEXT_TOKENS, limit)
    for line in prompting.skipped:
        run.log(f"Not measured: {line}")
    arms = [with_far_score(run, curated, arm) for arm in prompting.arms]
    result = {
        "arms": to_json(arms),
        "instruction": prompting.instruction,
        "detectable_difference": detectable_difference(len(prompting.rows)),
        "skipped": prompting.skipped,
    }
    return result, arms


def paying(run: Run, endpoint: EndpointConfig, max_new_tokens: int) -> Generate:
    """A function that asks the endpoint within the budget and enters in the ledger what new answers cost.

    Answers from the cache were entered when they were made; those a killed session left out are entered first.
    """
    answers = AnswerFile(run.folder / "cache" / "answers.jsonl")
    client = Client(endpoint, answers, max_new_tokens)

    def enter_since(before_usd: float) -> None:
        new_usd = answers.spent_usd() - before_usd
        if new_usd > ROUNDING_USD:
            item, actual = f"{ENDPOINT_ITEM}{endpoint.name}", {"usd": new_usd}
            run.ledger.record(item, stage="decide", predicted=None, actual=actual, price_usd_per_hour=None)

    def ask(prompts: list[tuple[Message, ...]], progress: Progress) -> list[Completion]:
        entries = [entry for entry in run.ledger.entries() if entry["item"].startswith(ENDPOINT_ITEM)]
        enter_since(sum(entry["actual"]["usd"] for entry in entries))
        asked = {prompt for prompt in prompts if not client.has(prompt)}
        check_budget(run, endpoint, sum(map(rough_tokens, asked)), len(asked) * max_new_tokens)
        before_usd = answers.spent_usd()
        try:
            return client.generate(prompts, progress)
        finally:
            enter_since(before_usd)

    return ask


def check_budget(run: Run, endpoint: EndpointConfig, num_prompt_tokens: int, num_answer_tokens: int) -> None:
    """Refuse prompts that could pass the budget, counted with every answer at its longest.

    Raises: BudgetStopped.
    """
    at_most_usd = (
        num_prompt_tokens * endpoint.usd_per_million_input_tokens
        + num_answer_tokens * endpoint.usd_per_million_output_tokens
    ) / 1e6
    left_usd = run.config.budget_usd - run.ledger.spent_usd(live_usd_per_hour=price(run).usd_per_hour)
    if at_most_usd > left_usd:
        raise BudgetStopped(
            f"prompting {endpoint.name} could cost {usd(at_most_usd)} more, and of the budget of "
            f"{usd(run.config.budget_usd)} there is {usd(max(left_usd, 0))} left; lower decide.max_rows, raise "
            "budget_usd, or take the endpoint out"
        )


def rough_tokens(messages: Sequence[Message]) -> int:
    """Cautious token count where the tokenizer is the endpoint's own."""
    return sum(_text_tokens(m.content) + 8 for m in messages)


def _text_tokens(text: str) -> int:
    """One token in two bytes: in any script more than today's tokenizers make."""
    return len(text.encode("utf-8", "surrogatepass")) // 2 + 1


def from_json(result: Any) -> list[ArmScore]:
    """The arms of a decide record."""
    return [arm_from_json(arm) for arm in result["arms"]]


def baseline_verdict(arms: Sequence[ArmScore], task: TaskConfig) -> Verdict:
    """Whether a baseline already meets the bar."""
    return verdict(arms, task) if arms else unfinished(task, "curate")


def unfinished(task: TaskConfig, stage: str) -> Verdict:
    """What a run that was asked to stop after a stage returns."""
    return Verdict(
        False, None, "none", task.bar, None, f"stopped after {stage}, as asked", f"continue: shoestring run {RUN}"
    )
