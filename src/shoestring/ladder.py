"""Which rung next, and when to stop: cheapest first, the first whose lower bound meets the bar ends the climb.

Rungs are tested in a fixed order, each at the same 95 % level: of k rungs just below the bar one passes
wrongly with a chance of at most k times 2.5 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .config import RunConfig, TaskConfig
from .decide.verdict import verdict
from .embedded import family
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


def climb(
    rungs: Iterable[RungPlan],
    baselines: Sequence[ArmScore],
    task: TaskConfig,
    measure: Callable[[RungPlan], ArmScore],
) -> tuple[list[ArmScore], Verdict]:
    """Measure rungs in order until one meets the bar; returns the measured arms and the verdict.

    measure(rung) trains and evaluates one rung. Rungs predicted not to fit are passed over.
    The verdict is taken over baselines and rungs: where the user trained although a baseline meets the bar,
    the baseline is still the cheapest answer.
    """
    measured: list[ArmScore] = []
    for rung in rungs:
        if rung.verdict == "does_not_fit":
            continue
        measured.append(measure(rung))
        if measured[-1].meets(task.bar):
            break
    return measured, verdict([*baselines, *measured], task)


def choose(measured: Sequence[ArmScore], bar: float) -> ArmScore:
    """Of fine-tunes in the ladder's order the first that meets the bar; without one, the best."""
    met = [arm for arm in measured if arm.meets(bar)]
    return met[0] if met else max(measured, key=lambda arm: arm.score.value)
