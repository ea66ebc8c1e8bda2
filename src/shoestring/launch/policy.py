"""When to be on a spot machine, when on one on demand, when to wait: uniform progress towards a deadline.

Source: Wu et al., Can't Be Late, NSDI 2024: be on spot whenever there is one; without one, wait while ahead of the
straight line from start to deadline and take on-demand while behind it; from on-demand go back to spot once two
restarts ahead of the line; take on-demand for good when only just enough time is left for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Where = Literal["spot", "on_demand", "wait"]


@dataclass(frozen=True, slots=True)
class SpotState:
    """What a decision rests on: hours of machine time, checkpoints included; of work the high end, to be sure.

    done_h: saved where the machine's end does not reach it; unsaved_h: done since, lost if the machine is taken.
    """

    elapsed_h: float
    deadline_h: float
    done_h: float
    work_h: float
    restart_h: float  # from order to the first new step
    on: Where  # where it is now; "wait": on no machine
    spot_available: bool  # one is there to be had, or the one it is on still is
    unsaved_h: float = 0.0


@dataclass(frozen=True, slots=True)
class SpotPolicy:
    """Decides the next place. margin_h: the time between two decisions plus that of one checkpoint."""

    margin_h: float = 0.0

    def decide(self, state: SpotState) -> Where:
        """The place to be at until the next decision; leaving a machine for another saves first."""
        left_h = state.work_h - state.done_h
        if state.on == "on_demand":
            left_h -= state.unsaved_h
        if left_h <= 0:
            return "wait"
        slack_h = self.slack_h(state)
        if state.on == "on_demand":
            is_ahead = self.lead_h(state, 2 * state.restart_h) >= 0
            # A spot machine that is taken before its first step leaves time for one more start.
            return "spot" if state.spot_available and is_ahead and slack_h > state.restart_h else "on_demand"
        if slack_h <= 0:
            return "on_demand"
        if state.spot_available and (state.on == "spot" or slack_h > state.restart_h):
            return "spot"
        return "on_demand" if self.lead_h(state) < 0 else "wait"

    def slack_h(self, state: SpotState) -> float:
        """Hours that can still be lost before on-demand has to start, were the present spot machine taken now."""
        done_h = state.done_h + (state.unsaved_h if state.on == "on_demand" else 0.0)
        return state.deadline_h - state.elapsed_h - (state.work_h - done_h) - state.restart_h - self.margin_h

    def lead_h(self, state: SpotState, ahead_h: float = 0.0) -> float:
        """Work done beyond the straight line to the deadline, as it will stand in ahead_h."""
        line = (state.elapsed_h + ahead_h) / state.deadline_h * state.work_h
        return state.done_h + state.unsaved_h - line
