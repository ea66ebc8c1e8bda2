"""Decide: prompting, few-shot and a linear model on held-out rows, before any training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..config import EndpointConfig, TaskConfig
from ..decide.baselines import few_shot_prompts, instruction_for, run_arm, zero_shot_prompts
from ..decide.client import endpoint_generate
from ..decide.linear import linear_arm
from ..decide.verdict import detectable_difference, verdict
from ..errors import BudgetStopped, MissingDependency
from ..evaluate.generation import load_generator
from ..records import ArmScore, Curated, Example, Generate, Message, Verdict, arm_from_json, to_json
from ..units import usd
from .common import device, max_new_tokens, models_of, named, price, sample_rows

if TYPE_CHECKING:
    from ..recipe import Run

ENDPOINT_CONTEXT_TOKENS = 32_768  # assumed of a hosted model; larger prompts are not sent


class Prompting:
    """The prompting arms of one generator on the decide rows."""

    def __init__(self, run: Run, curated: Curated) -> None:
        self.run, self.curated, self.task = run, curated, run.config.task
        self.rows: list[Example] = sample_rows(curated.eval, run.config.decide.max_rows, run.config.seed)
        self.instruction = instruction_for(self.task, curated.train, curated.labels)
        self.max_new_tokens = max_new_tokens(self.task, curated.train)
        self.arms: list[ArmScore] = []
        self.skipped: list[str] = []

    def measure(
        self,
        model: str,
        generate: Generate,
        count_tokens: Callable[[Sequence[Message]], int],
        context_tokens: int,
        price_usd_per_hour: float,
    ) -> None:
        """Add the zero-shot and few-shot arms of one model; one that does not fit is named in skipped."""
        for kind in ("zero_shot", "few_shot"):
            if kind not in self.run.config.decide.arms:
                continue
            name = f"{kind.replace('_', '-')} {model}"
            prompts, details = self._prompts(kind, count_tokens, context_tokens)
            longest = max(count_tokens(prompt) for prompt in prompts)
            if details.get("num_shots") == 0:
                self.skipped.append(f"{name}: not one example fits the context of {context_tokens} tokens")
            elif longest + self.max_new_tokens > context_tokens:
                self.skipped.append(
                    f"{name}: the longest prompt takes {longest} tokens and the answer up to "
                    f"{self.max_new_tokens}; the context is {context_tokens}"
                )
            else:
                self.arms.append(
                    run_arm(
                        arm=name,
                        kind=kind,
                        model=model,
                        examples=self.rows,
                        prompts=prompts,
                        generate=generate,
                        task=self.task,
                        labels=self.curated.labels,
                        price_usd_per_hour=price_usd_per_hour,
                        progress=named(self.run.progress, name),
                        seed=self.run.config.seed,
                        details=details,
                    )
                )

    def _prompts(
        self, kind: str, count_tokens: Callable[[Sequence[Message]], int], context_tokens: int
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
            self.max_new_tokens,
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
        generator = load_generator(model, device=device(run), max_new_tokens=prompting.max_new_tokens)
        prompting.measure(model, generator.generate, generator.count_tokens, generator.context_tokens, usd_per_hour)
        generator.close()
    for endpoint in config.decide.endpoints:
        check_budget(run, endpoint, prompting)
        generate = endpoint_generate(endpoint, cache_dir=run.folder / "cache", max_new_tokens=prompting.max_new_tokens)
        prompting.measure(endpoint.name, generate, rough_tokens, ENDPOINT_CONTEXT_TOKENS, 0.0)
    for line in prompting.skipped:
        run.log(f"Not measured: {line}")
    result = {
        "arms": to_json(prompting.arms),
        "instruction": prompting.instruction,
        "detectable_difference": detectable_difference(len(prompting.rows)),
        "skipped": prompting.skipped,
    }
    return result, prompting.arms


def check_budget(run: Run, endpoint: EndpointConfig, prompting: Prompting) -> None:
    """Refuse an endpoint whose arms could pass the budget, counted with every answer at its longest.

    Raises: BudgetStopped.
    """
    kinds = [kind for kind in run.config.decide.arms if kind != "linear"]
    shots = run.config.decide.num_shots + 1  # a shot is about as long as a row
    prompt_tokens = sum(rough_tokens(e.prompt) for e in prompting.rows)
    prompt_tokens = sum(prompt_tokens * (shots if kind == "few_shot" else 1) for kind in kinds)
    prompt_tokens += len(kinds) * len(prompting.rows) * len(prompting.instruction) // 2
    answer_tokens = len(kinds) * len(prompting.rows) * prompting.max_new_tokens
    at_most_usd = (
        prompt_tokens * endpoint.usd_per_million_input_tokens + answer_tokens * endpoint.usd_per_million_output_tokens
    ) / 1e6
    left_usd = run.config.budget_usd - run.ledger.spent_usd()
    if at_most_usd > left_usd:
        raise BudgetStopped(
            f"prompting {endpoint.name} on {len(prompting.rows)} rows could cost {usd(at_most_usd)}, and of the budget "
            f"of {usd(run.config.budget_usd)} there is {usd(max(left_usd, 0))} left; lower decide.max_rows, raise "
            "budget_usd, or take the endpoint out"
        )


def rough_tokens(messages: Sequence[Message]) -> int:
    """Cautious token count where the tokenizer is the endpoint's own: one token in two characters."""
    return sum(len(m.content) // 2 + 8 for m in messages)


def from_json(result: Any) -> list[ArmScore]:
    """The arms of a decide record."""
    return [arm_from_json(arm) for arm in result["arms"]]


def baseline_verdict(arms: Sequence[ArmScore], task: TaskConfig) -> Verdict:
    """Whether a baseline already meets the bar."""
    return verdict(arms, task) if arms else unfinished(task, "curate")


def unfinished(task: TaskConfig, stage: str) -> Verdict:
    """What a run that was asked to stop after a stage returns."""
    return Verdict(False, None, "none", task.bar, None, f"stopped after {stage}, as asked", "shoestring run continues")
