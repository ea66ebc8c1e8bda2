"""Weights averaged over steps: in a learning-rate search that does what a decay of the rate does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class MeanWeights:
    """Mean of the weights over the second half of the steps of a round."""

    def __init__(self) -> None:
        self.num = 0
        self.sums: list[Any] = []

    def add(self, step: int, first: int, end: int, own: Sequence[Any]) -> None:
        """Count the weights after a step, if it lies in the second half of (first, end]."""
        if step == first + 1:
            self.num, self.sums = 0, []
        if step <= first + (end - first) // 2 and step != end:
            return
        if not self.num:
            self.sums = [p.detach().clone() for p in own]
        else:
            for total, p in zip(self.sums, own, strict=True):
                total.add_(p.detach())
        self.num += 1

    def values(self) -> list[Any]:
        return [total / self.num for total in self.sums]
