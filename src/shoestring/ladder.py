"""Which rung next, and when to stop: cheapest first, the first whose lower bound meets the bar ends the climb.

Rungs are tested in a fixed order. The chance that any of those below the bar passes is FAMILY_ERROR at most, however
many there are: their tests share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from .config import RunConfig, TaskConfig
from .decide.curve import Forecast
from .decide.verdict import verdict
from .embedded import family
from .evaluate.judge.labels import low_at
from .evaluate.judge.scoring import METRIC
from .evaluate.statistics import score_interval
from .records import ArmScore, RungPlan, Verdict

FAMILY_ERROR = 0.05  # chance that any rung below the bar passes
ALONE = 0.025  # of one rung at most: the lower end of a 95 % interval


def rung_level(num_rungs: int) -> float:
    """One-sided level of each rung's test, so that all of them together err with FAMILY_ERROR at most.

    Bonferroni's split. Holm's step-down gains nothing here: the climb ends at the first rung that passes.
    """
    return min(ALONE, FAMILY_ERROR / max(1, num_rungs))


def models_of(config: RunConfig) -> list[str]:
    """The ladder's models, each once, the family name written out."""
    names = [model for name in config.models for model in (family() if name == "embedded" else [name])]
    return list(dict.fromkeys(names))


# Ends the name of a rung that learns and answers with passages of data.documents in its prompts.
WITH_DOCUMENTS = "+documents"


def rungs_of(config: RunConfig) -> list[str]:
    """Names of the rungs: the models, and with data.documents those that see passages, as train.passages says."""
    if not config.data.documents:
        return models_of(config)
    ends = {"without": ("",), "with": (WITH_DOCUMENTS,), "both": ("", WITH_DOCUMENTS)}[config.train.passages]
    return [f"{model}{end}" for model in models_of(config) for end in ends]


def model_of(rung: str) -> str:
    """The model that a rung trains."""
    return rung.removesuffix(WITH_DOCUMENTS)


@dataclass(frozen=True, slots=True)
class Step:
    """What the climb did with one rung."""

    model: str
    did: str  # skipped, rejected, missed, passed
    why: str


def no_gate(rung: RungPlan) -> str:
    """The gate that lets every rung through."""
    return ""


def climb(
    rungs: Iterable[RungPlan],
    baselines: Sequence[ArmScore],
    task: TaskConfig,
    measure: Callable[[RungPlan], ArmScore],
    *,
    foresee: Callable[[RungPlan, int], Forecast | None] = lambda rung, num_rungs: None,
    gate: Callable[[RungPlan], str] = no_gate,
) -> tuple[list[ArmScore], Verdict, list[Step]]:
    """Measure rungs in order until one meets the bar; returns the measured arms, the verdict, and what was done.

    measure(rung) trains and evaluates one rung. Rungs predicted not to fit are passed over, and those whose learning
    curve (foresee) gives them hardly a chance. gate(rung) trains, looks at dev rows, and says why the held-out rows
    are not to be touched for it, or nothing; where all are turned away so, the last of them is measured.
    The verdict is taken over baselines and rungs: where the user trained although a baseline meets the bar,
    the baseline is still the cheapest answer.
    """
    fitting = [rung for rung in rungs if rung.verdict != "does_not_fit"]
    measured: list[ArmScore] = []
    steps: list[Step] = []
    turned_away: list[RungPlan] = []
    foreseen: Forecast | None = None
    for rung in fitting:
        found = foresee(rung, len(fitting))
        if found and found.is_hopeless:
            foreseen = found
            steps.append(Step(rung.model, "skipped", f"{found.line()}; {found.advice}"))
        elif why := gate(rung):
            turned_away.append(rung)
            steps.append(Step(rung.model, "rejected", why))
        elif _measured(rung, len(fitting), task, measure, measured, steps):
            break
    if not measured and turned_away:
        _measured(turned_away[-1], len(fitting), task, measure, measured, steps)
    answer = verdict([*baselines, *measured], task)
    if not measured and foreseen and not answer.met:
        answer = _untrained(answer, steps, foreseen)
    return measured, answer, steps


def _measured(
    rung: RungPlan,
    num_rungs: int,
    task: TaskConfig,
    measure: Callable[[RungPlan], ArmScore],
    measured: list[ArmScore],
    steps: list[Step],
) -> bool:
    arm = held_to_ladder(measure(rung), num_rungs)
    measured.append(arm)
    passes = arm.meets(task.bar)
    low = arm.score.low if arm.ladder_low is None else arm.ladder_low
    held = "" if arm.ladder_low is None else f", at one-sided {rung_level(num_rungs):.2%} for {num_rungs} rungs"
    verb = "reaches" if passes else "does not reach"
    why = f"{arm.score.value:.3f}, whose lower end {low:.3f}{held} {verb} {task.bar:g}"
    steps.append(Step(rung.model, "passed" if passes else "missed", why))
    return passes


def _untrained(answer: Verdict, steps: Sequence[Step], foreseen: Forecast) -> Verdict:
    """The verdict where no rung was worth training."""
    names = ", ".join(step.model for step in steps)
    return replace(
        answer,
        reason=f"{answer.reason}; no rung was trained in full: on parts of the rows {names} promised less than the bar "
        f"(the last: {foreseen.line()})",
        next_step=f"{foreseen.advice}; or train all the same with ladder: {{curve: off}} in the run file",
    )


def held_to_ladder(arm: ArmScore, num_rungs: int) -> ArmScore:
    """A rung's arm with the lower end that the ladder holds it to, where that is stricter than 95 %."""
    level = rung_level(num_rungs)
    if level >= ALONE or not arm.rows:
        return arm
    if arm.metric == METRIC:
        return replace(arm, ladder_low=low_at(arm, 2 * level))
    return replace(arm, ladder_low=score_interval(arm.metric, arm.rows, level=2 * level)[0].low)


def choose(measured: Sequence[ArmScore], bar: float) -> ArmScore:
    """Of fine-tunes in the ladder's order the first that meets the bar; without one, the best."""
    met = [arm for arm in measured if arm.meets(bar)]
    return met[0] if met else max(measured, key=lambda arm: arm.score.value)
