"""A step's micro-batches over processes: nearly the same number of computed tokens each, and the same sum of gradients.

Pure: every process computes all shares and takes its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .schedule import PASS_TOKENS, MicroBatch, Schedule, Step

Size = Callable[[MicroBatch], int]  # tokens that a micro-batch computes


@dataclass(frozen=True, slots=True)
class Division:
    """schedule: the steps as all processes together run them; shares: of each step the part of each process."""

    schedule: Schedule
    shares: tuple[tuple[Step, ...], ...] | None = None  # None: one process takes all


def divide(schedule: Schedule, size: Size, num: int) -> Division:
    """Cut every step into num shares."""
    shares = tuple(share_out(step, size, num) for step in schedule.steps)
    steps = tuple(tuple(batch for share in parts for batch in share) for parts in shares)
    computed = tuple(sum(map(size, step)) for step in steps)
    return Division(Schedule(steps, schedule.lengths, computed), shares)


def share_out(step: Step, size: Size, num: int) -> tuple[Step, ...]:
    """The rows, in the order of their micro-batches, in num runs of which the largest is as small as can be.

    The order stays, so that what neighbours share (a beginning, a width) is still shared, and a micro-batch is only
    ever cut, never grown. A step of fewer rows than processes leaves some with nothing.
    """
    costs = [cost for batch in step for cost in _added(batch, size)]
    starts = {0}
    for batch in step:
        starts.add(max(starts) + len(batch))
    low, high = max(costs) - 1, sum(costs) + PASS_TOKENS * len(costs)
    while high - low > 1:  # high always suffices
        middle = (low + high) // 2
        if len(_runs(costs, starts, middle)) <= num:
            high = middle
        else:
            low = middle
    rows = [row for batch in step for row in batch]
    shares = [_cut(rows, starts, first, last) for first, last in _runs(costs, starts, high)]
    return (*shares, *[()] * (num - len(shares)))


def _added(batch: MicroBatch, size: Size) -> list[int]:
    """What each row adds to its micro-batch, in tokens."""
    so_far = [size(batch[:end]) for end in range(1, len(batch) + 1)]
    return [whole - before for whole, before in zip(so_far, [0, *so_far], strict=False)]


def _runs(costs: Sequence[int], starts: set[int], budget: int) -> list[tuple[int, int]]:
    """Runs of rows, greedily, that stay inside the budget; every micro-batch that a run touches costs a pass."""
    runs, first, total = [], 0, 0
    for at, cost in enumerate(costs):
        more = cost + (PASS_TOKENS if at in starts or at == first else 0)
        if at > first and total + more > budget:
            runs.append((first, at))
            first, total, more = at, 0, cost + PASS_TOKENS
        total += more
    return [*runs, (first, len(costs))]


def _cut(rows: Sequence[int], starts: set[int], first: int, last: int) -> Step:
    """Rows first to last, in their micro-batches."""
    edges = sorted({first, last, *(at for at in starts if first < at < last)})
    return tuple(tuple(rows[a:b]) for a, b in itertools.pairwise(edges))
