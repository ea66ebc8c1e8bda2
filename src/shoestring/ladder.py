"""Which rung next, and when to stop: cheapest first, the first whose lower bound meets the bar ends the climb.

Rungs are tested in a fixed order, each at the same 95 % level: of k rungs just below the bar one passes
wrongly with a chance of at most k times 2.5 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .config import TaskConfig
from .decide.verdict import verdict
from .records import ArmScore, RungPlan, Verdict


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
        if meets(measured[-1], task.bar):
            break
    return measured, verdict([*baselines, *measured], task)


def meets(arm: ArmScore, bar: float) -> bool:
    """Whether the lower end of the arm's 95 % interval reaches the bar."""
    return arm.score.low >= bar
