"""When to be on a spot machine, when on one on demand, when to wait: uniform progress towards a deadline.

After Wu et al., Can't Be Late, NSDI 2024: on spot whenever there is one; without one, waiting while ahead of the
straight line from start to deadline and on demand while behind it; on demand for good when only just enough time is
left for it. Two departures, both because of what spot machines are expected to bring: behind the line it still waits
while spot machines alone would be done in time, and from on demand it goes back as soon as a stay on spot is worth
its starts, not when two restarts ahead of the line (bench/spot.py has both beside each other).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from ..market.terms import value
from ..plan.hazard import Seen, expected_after
from ..plan.spot import Where as Where
from ..records import Estimate

# How far above its expected share spot is hoped to be there: on demand can also be taken later, when more is known.
# Chosen on bench/spot.py's families with other seeds; it also reports settings that it was not chosen by.
HOPE = 4 / 3


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
    hazard_per_h: float = field(default_factory=lambda: value("hazard_per_h").value)
    spot_frac: float = field(default_factory=lambda: _spot_frac())  # of the time that there is a spot machine
    spot_price_frac: float = 0.5  # of the on-demand price

    def decide(self, state: SpotState) -> Where:
        """The place to be at until the next decision; leaving a machine for another saves first."""
        if state.work_h <= state.done_h + (state.unsaved_h if state.on == "on_demand" else 0.0):
            return "wait"
        if state.on != "on_demand" and not self.spot_is_cheaper(state.restart_h):
            return "on_demand"
        slack_h = self.slack_h(state)
        may_start_spot = state.spot_available and slack_h > state.restart_h  # taken at once, it leaves time for another
        if state.on == "on_demand":
            return "spot" if may_start_spot and self.spot_pays(state.restart_h) else "on_demand"
        if slack_h <= 0:
            return "on_demand"
        if may_start_spot or (state.on == "spot" and state.spot_available):
            return "spot"
        return "on_demand" if self.lead_h(state) < 0 and not self.spot_suffices(state) else "wait"

    def slack_h(self, state: SpotState) -> float:
        """Hours that can still be lost before on-demand has to start, were the present spot machine taken now."""
        done_h = state.done_h + (state.unsaved_h if state.on == "on_demand" else 0.0)
        return state.deadline_h - state.elapsed_h - (state.work_h - done_h) - state.restart_h - self.margin_h

    def lead_h(self, state: SpotState) -> float:
        """Work done beyond the straight line to the deadline."""
        return state.done_h + state.unsaved_h - state.elapsed_h / state.deadline_h * state.work_h

    def spot_suffices(self, state: SpotState) -> bool:
        """Whether spot machines are hoped to do the rest in the time that is left."""
        share = min(1.0, HOPE * self.spot_frac)
        left_h = state.deadline_h - state.elapsed_h - state.restart_h
        return state.work_h - state.done_h - state.unsaved_h <= share * left_h

    def spot_is_cheaper(self, restart_h: float) -> bool:
        """Whether an hour of work costs less on spot machines, starts included."""
        return self.spot_price_frac * math.exp(self.hazard_per_h * restart_h) < 1

    def spot_pays(self, restart_h: float) -> bool:
        """Whether leaving on-demand is expected to save: memoryless stays, a start there and another one back."""
        survived = math.exp(-self.hazard_per_h * restart_h)  # useful hours of a stay: survived / hazard
        return survived - self.spot_price_frac > self.hazard_per_h * restart_h


def _spot_frac() -> float:
    return 1 / (1 + value("hazard_per_h").value * value("wait_h").value)


@dataclass(slots=True)
class Learning:
    """The policy with the hazard as the run under way shows it; how often spot is there stays as it was taken to be,
    since a wait that one is in says little about the next (learned too, drawn traces cost a hundredth more).
    """

    policy: SpotPolicy
    hazard: Estimate = field(default_factory=lambda: value("hazard_per_h"))
    seen: Seen = field(default_factory=Seen)
    last: tuple[SpotState, Where] | None = None

    def decide(self, state: SpotState) -> Where:
        """Look at what became of the last decision, then decide by what is known now."""
        if self.last is not None and self.last[1] == "spot":
            self.seen += Seen(state.elapsed_h - self.last[0].elapsed_h, int(state.on != "spot"))
        known = replace(self.policy, hazard_per_h=expected_after(self.hazard, self.seen))
        place = known.decide(state)
        self.last = state, place
        return place
