"""What checkpoints cost as training goes on, and how often they are taken."""

from __future__ import annotations

from dataclasses import dataclass

from ..plan.interval import daly_interval_s


@dataclass
class Costs:
    """What checkpoints have cost so far; part of the state, so that a later session knows the interval at once."""

    num: int = 0
    cost_s: float = 0.0  # of one: seconds that training stood still, and on a CPU those that the writer computed
    latency_s: float = 0.0  # from the copy until the checkpoint counted
    blocked_s: float = 0.0  # in all: seconds that training stood still

    def add(self, blocked_s: float, cost_s: float, latency_s: float) -> None:
        """Enter one; the last ones weigh most, since the first also reserves memory."""
        self.cost_s = (self.cost_s + cost_s) / 2 if self.num > 1 else cost_s
        self.latency_s = (self.latency_s + latency_s) / 2 if self.num > 1 else latency_s
        self.blocked_s += blocked_s
        self.num += 1

    def interval_s(self, interruptions_per_hour: float) -> float:
        """Daly's interval; 0 before the first checkpoint, so that it comes at once and is measured.

        Only what training loses counts as cost, not the latency (Vaidya, IEEE Transactions on Computers 46(8), 1997);
        but one checkpoint has to be written before the next.
        """
        return max(daly_interval_s(self.cost_s, interruptions_per_hour), self.latency_s) if self.num else 0.0
