"""Decide: prompting, examples, retrieval and no language model at all on held-out rows, before any training.

Each arm is a record of its own under decide/, so that an interrupted stage measures no arm twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..config import EndpointConfig, TaskConfig
from ..decide.answers import AnswerFile
from ..decide.client import Client
from ..decide.linear import ARM as LINEAR
from ..decide.linear import linear_arm
from ..decide.verdict import RUN, detectable_difference, verdict
from ..errors import BudgetStopped, DataError, MissingDependency
from ..evaluate.generation import LocalGenerator, load_generator
from ..evaluate.statistics import wilson
from ..ladder import models_of
from ..plan.settings import answer_limit
from ..records import (
    ArmScore,
    Completion,
    Curated,
    Generate,
    Message,
    Progress,
    Verdict,
    arm_from_json,
    to_json,
)
from ..runfolder import rung_name
from ..train.locate import model_print
from ..units import usd
from . import inputs, judging
from .arms import NAMES, Answerer, Arms
from .common import device, price, shape, token_counts
from .recorder import once

if TYPE_CHECKING:
    from ..recipe import Run

ENDPOINT_CONTEXT_TOKENS = 32_768  # assumed of a hosted model; larger prompts are not sent
ENDPOINT_ITEM = "endpoint "  # how the ledger's items of endpoint answers begin
ROUNDING_USD = 1e-9  # smaller differences of two sums are no expense

# An arm, or why it was not measured.
Measured = tuple[ArmScore | None, str]


def decide(run: Run, curated: Curated) -> tuple[Any, list[ArmScore]]:
    """Measure every baseline the run file asks for, the one without a language model first."""
    config = run.config
    arms = Arms(run, curated)
    run.log(what_rows_can_tell(len(arms.rows), config.task.bar))
    measured = [measure_linear(run, curated)] if "linear" in config.decide.arms else []
    for model in models_of(config):
        measured += measure(run, arms, model, partial(local, run, curated, model), [model_print(model)])
    for endpoint in config.decide.endpoints:
        asked = [endpoint.base_url, endpoint.model, *_prices(endpoint)]
        measured += measure(run, arms, endpoint.name, partial(remote, run, curated, endpoint), asked)
    skipped = [reason for arm, reason in measured if arm is None and reason]
    for line in skipped:
        run.log(f"Not measured: {line}")
    found = [arm for arm, _ in measured if arm is not None]
    result = {
        "arms": to_json(found),
        "instruction": arms.instruction,
        "detectable_difference": detectable_difference(len(arms.rows)),
        "skipped": skipped,
    }
    return result, found


def what_rows_can_tell(num_rows: int, bar: float) -> str:
    """How finely so many rows measure, said before anything is spent."""
    near_bar = wilson(round(bar * num_rows), num_rows)
    apart = detectable_difference(num_rows)
    return (
        f"{num_rows:,} held-out rows: a score at the bar {bar:g} is known from {near_bar.low:.3f} to "
        f"{near_bar.high:.3f} at worst, and two arms are told apart from a difference of about {apart:.2f} on"
    )


def measure(run: Run, arms: Arms, name: str, open_answerer: Callable[[], Answerer], identity: Any) -> list[Measured]:
    """The prompting arms of one model, those an earlier session measured read back; opened only if one is missing.

    identity: what its answers depend on. The instruction that arm instruction chose is that of the arms after it.
    """
    opened: list[Answerer] = []

    def answerer() -> Answerer:
        opened.extend([] if opened else [open_answerer()])
        return opened[0]

    measured: list[Measured] = []
    instruction = arms.instruction
    zero_shot: ArmScore | None = None
    try:
        for kind in NAMES:
            if kind not in run.config.decide.arms or not arms.applies(kind):
                continue
            work = partial(arms.measure, kind, answerer, instruction, zero_shot)
            try:
                depends_on = [identity, arms.print_of(kind, instruction)]
                arm, reason = piece(run, arms.curated, f"{NAMES[kind]} {name}", work, depends_on)
            except MissingDependency as error:
                arm, reason = None, f"{NAMES[kind]} {name}: {error}"
            measured.append((arm, reason))
            zero_shot = arm if kind == "zero_shot" else zero_shot
            if arm is not None and kind == "instruction":
                instruction = arm.details["instruction"]
    finally:
        for model in opened:
            model.close()
    return measured


def piece(run: Run, curated: Curated, name: str, work: Callable[[], Measured], depends_on: Any) -> Measured:
    """One arm: its record decide/NAME.json, with the score, seconds, tokens and dollars of each row, or its making."""

    def made() -> tuple[Any, Measured]:
        arm, reason = work()
        arm = None if arm is None else judging.scored(run, curated, arm)
        return {"arm": to_json(arm), "skipped": reason}, (arm, reason)

    def read(result: Any) -> Measured:
        return (None if result["arm"] is None else arm_from_json(result["arm"])), result["skipped"]

    depends_on = [depends_on, inputs.scored(run), price(run).usd_per_hour]
    return once(run, f"decide/{rung_name(name)}.json", made, read, after="curate.json", depends_on=depends_on)


def measure_linear(run: Run, curated: Curated) -> Measured:
    """The arm without a language model. It is fitted in seconds, so all held-out rows are scored."""
    config = run.config

    def work() -> Measured:
        try:
            arm = linear_arm(
                curated.train,
                curated.eval,
                config.task,
                curated.labels,
                config.seed,
                price_usd_per_hour=price(run).usd_per_hour,
                progress=run.progress,
            )
        except DataError as error:
            return None, f"{LINEAR}: {error}"
        return arm, ""

    if config.task.kind not in ("classify", "extract"):
        return None, ""
    try:
        return piece(run, curated, LINEAR, work, "linear")
    except MissingDependency as error:
        return None, str(error)


def local(run: Run, curated: Curated, model: str) -> Answerer:
    """A model of the ladder on this machine, loaded."""
    limit, _ = answer_limit(
        run.config.task, token_counts(run, curated, model).answer, shape(model).context_tokens, model
    )
    made: LocalGenerator = load_generator(model, device=device(run), max_new_tokens=limit)
    usd_per_hour = price(run).usd_per_hour
    return Answerer(model, made.generate, made.count_tokens, made.context_tokens, limit, usd_per_hour, made.close)


def remote(run: Run, curated: Curated, endpoint: EndpointConfig) -> Answerer:
    """A model behind an endpoint, its answers paid within the budget."""
    answers = tuple(_text_tokens(e.completion) for e in curated.train)
    limit, _ = answer_limit(run.config.task, answers, ENDPOINT_CONTEXT_TOKENS, endpoint.name)
    return Answerer(endpoint.name, paying(run, endpoint, limit), rough_tokens, ENDPOINT_CONTEXT_TOKENS, limit)


def _prices(endpoint: EndpointConfig) -> tuple[float, float]:
    return endpoint.usd_per_million_input_tokens, endpoint.usd_per_million_output_tokens


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
    return sum(_text_tokens(m.text) + 8 for m in messages)


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
