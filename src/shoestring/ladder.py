"""Which rung next, and when to stop: cheapest first, the first whose lower bound meets the bar ends the climb.

Rungs are tested in a fixed order, each at the same 95 % level; climbing several rungs is several
tries, which the verdict says when more than one was needed.
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
    The verdict is taken over the fine-tunes alone once one was measured: a baseline that met the
    bar would have ended the run before, unless the user asked to train anyway.
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
