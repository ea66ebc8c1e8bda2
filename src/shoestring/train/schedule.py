"""The order of a whole run, computed before it starts: which rows share a micro-batch, which a step.

Pure and seeded, so that an interrupted run continues with the very batches it would have had.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..errors import BadInput
from ..units import round_up
from .forest import packed_tokens, shared_lengths, sort_key

FOREST, PADDED = "prefix forest", "padded rows"
# Another pass through the model costs about so many tokens more (shoestring-3m on one core: 8 ms of 60 us a token).
PASS_TOKENS = 128

MicroBatch = tuple[int, ...]  # row indices
Step = tuple[MicroBatch, ...]
Cut = Callable[[list[int]], tuple[Step, int]]  # rows of a step -> its micro-batches, tokens computed
Item = TypeVar("Item")
Grown = Callable[[int, int, Item], int]  # (size, number of items, one more item) -> size with it


@dataclass(frozen=True, slots=True)
class Schedule:
    """Optimizer steps in order, each a tuple of micro-batches, each a tuple of row indices."""

    steps: tuple[Step, ...]
    lengths: tuple[int, ...]  # tokens a row
    computed_tokens: tuple[int, ...]  # of each step: what really runs, with padding, shared tokens once

    def tokens_in(self, step: Step) -> int:
        """Tokens of one step's rows, padding excluded, shared or not."""
        return sum(self.lengths[row] for batch in step for row in batch)

    def num_tokens(self, num_steps: int) -> int:
        """Tokens of the rows of the first num_steps steps, padding excluded."""
        return sum(map(self.tokens_in, self.steps[:num_steps]))

    def num_computed_tokens(self, num_steps: int) -> int:
        """Tokens that the first num_steps steps run forward and backward."""
        return sum(self.computed_tokens[:num_steps])


def padded_tokens(lengths: Sequence[int], round_to: int = 1) -> int:
    """Tokens a micro-batch of rows of these lengths takes: each row as long as the longest, rounded up."""
    return len(lengths) * round_up(max(lengths, default=0), round_to)


def build_schedule(
    rows: Sequence[Sequence[np.ndarray]],
    num_epochs: float,
    batch_tokens: int,
    micro_batch_tokens: int,
    seed: int,
    *,
    packing: str,
    round_to: int = 1,
    units: Sequence[Sequence[int]] | None = None,
) -> Schedule:
    """Every row num_epochs times; rows of one or more paths of token ids.

    Steps are runs of an ordinary shuffle of at most batch_tokens of the rows' own tokens (a longer row alone in its
    own), the same under either packing: which rows share a step is random, and its gradient the same sum. (Steps of
    rows of one length leave a loss up to 5 % higher after as many: banking77, shoestring-3m, 40 steps, 2026-11-28.)
    Inside a step rows are sorted and cut into micro-batches of at most micro_batch_tokens computed tokens: under
    "padded rows" by length, each padded to a multiple of round_to; under "prefix forest" so that neighbours share most.
    units: rows that are drawn together (the answers of one conversation), each row in exactly one; default each alone.
    Raises: BadInput for budgets or a number of epochs that are not positive, or no rows.
    """
    _check(rows, num_epochs, batch_tokens, micro_batch_tokens)
    rng = random.Random(seed)
    drawn = [tuple(unit) for unit in units] if units is not None else [(row,) for row in range(len(rows))]
    lengths = [sum(map(len, row)) for row in rows]
    sizes = [sum(lengths[row] for row in unit) for unit in drawn]
    cut = step_cut(rows, micro_batch_tokens, packing=packing, round_to=round_to)
    steps: list[Step] = []
    computed: list[int] = []
    for order in _orders(len(drawn), num_epochs, rng):
        for chosen in _evenly(order, batch_tokens, lambda size, count, unit: size + sizes[unit]):
            step, num_computed = cut([row for unit in chosen for row in drawn[unit]])
            steps.append(step)
            computed.append(num_computed)
    return Schedule(tuple(steps), tuple(lengths), tuple(computed))


def step_cut(rows: Sequence[Sequence[np.ndarray]], micro_batch_tokens: int, *, packing: str, round_to: int) -> Cut:
    """How a step's rows become micro-batches of at most so many computed tokens; a longer row is alone in its own."""
    if packing == FOREST:
        return _forest_cut(rows, micro_batch_tokens)
    return _padded_cut(row_widths(rows, round_to), micro_batch_tokens)


def row_widths(rows: Sequence[Sequence[np.ndarray]], round_to: int) -> list[int]:
    """Padded tokens that each row takes alone: every path as long as the longest of its row, rounded up."""
    sides = max(map(len, rows), default=1)
    return [sides * round_up(max(map(len, row)), round_to) for row in rows]


def _padded_cut(widths: Sequence[int], budget: int) -> Cut:
    """A step's rows by length, in passes that together pad least, each pass counted as PASS_TOKENS."""

    def cut(members: list[int]) -> tuple[Step, int]:
        ordered = sorted(members, key=lambda row: (widths[row], row))
        ends = [
            i + 1 for i in range(len(ordered)) if i + 1 == len(ordered) or widths[ordered[i + 1]] > widths[ordered[i]]
        ]
        # best[k]: least cost of the rows before ends[k - 1], and where its last pass begins.
        best: list[tuple[int, int]] = [(0, 0)]
        starts = [0, *ends]
        for k, end in enumerate(ends, 1):
            width = widths[ordered[end - 1]]
            best.append(min((best[j][0] + (end - starts[j]) * width + PASS_TOKENS, j) for j in range(k)))
        passes, k = [], len(ends)
        while k:
            j = best[k][1]
            passes.append(ordered[starts[j] : starts[k]])
            k = j
        step = tuple(part for rows in passes[::-1] for part in _micro_batches(rows, widths, budget))
        return step, sum(padded_tokens([widths[row] for row in batch]) for batch in step)

    return cut


def _forest_cut(rows: Sequence[Sequence[np.ndarray]], budget: int) -> Cut:
    """A step's rows sorted so that neighbours share most, in forests that stay inside the budget."""
    in_order = [sorted(row, key=sort_key) for row in rows]
    keys = [b"".join(map(sort_key, row[:1])) for row in in_order]

    def cut(members: list[int]) -> tuple[Step, int]:
        step = _forests(sorted(members, key=lambda row: (keys[row], row)), in_order, budget)
        return step, sum(packed_tokens([path for row in batch for path in rows[row]]) for batch in step)

    return cut


def _forests(members: list[int], in_order: Sequence[Sequence[np.ndarray]], budget: int) -> Step:
    """A step's sorted rows cut into micro-batches whose forests stay inside the budget."""
    paths = [path for row in members for path in in_order[row]]
    own = [len(path) - common for path, common in zip(paths, shared_lengths(paths), strict=True)]
    added, whole, at = {}, {}, 0
    for place, row in enumerate(members):
        num = len(in_order[row])
        added[place] = sum(own[at : at + num])
        whole[place] = len(paths[at]) + sum(own[at + 1 : at + num])
        at += num
    cut = _evenly(
        list(range(len(members))), budget, lambda size, count, place: size + added[place] if count else whole[place]
    )
    return tuple(tuple(members[place] for place in batch) for batch in cut)


def conversations(sources: Sequence[tuple[str, int]]) -> list[list[int]]:
    """Units for build_schedule: rows of the same source and line are answers of one conversation."""
    units: dict[tuple[str, int], list[int]] = {}
    for row, place in enumerate(sources):
        units.setdefault(place, []).append(row)
    return list(units.values())


def _check(rows: Sequence[Any], num_epochs: float, batch_tokens: int, micro_batch_tokens: int) -> None:
    for name, value in (
        ("num_epochs", num_epochs),
        ("batch_tokens", batch_tokens),
        ("micro_batch_tokens", micro_batch_tokens),
    ):
        if not value > 0:
            raise BadInput(f"{name}={value} must be positive")
    if not len(rows):
        raise BadInput("there are no training rows; look at data/dropped.jsonl for why rows were left out")


def _orders(num_rows: int, num_epochs: float, rng: random.Random) -> Iterator[list[int]]:
    """One shuffled pass after the other; the last one may be a part."""
    left = num_epochs
    while left > 0:
        order = list(range(num_rows))
        rng.shuffle(order)
        if left < 1:
            order = order[: math.ceil(left * len(order) - 1e-9)]
        yield order
        left = round(left - 1, 9)


def _micro_batches(rows: list[int], lengths: Sequence[int], micro_batch_tokens: int) -> list[MicroBatch]:
    """Consecutive rows (sorted by length) while their padded size stays inside the budget."""
    return _evenly(rows, micro_batch_tokens, lambda size, count, row: (count + 1) * lengths[row])


def _evenly(items: list[Item], budget: int, grown: Grown[Item]) -> list[tuple[Item, ...]]:
    """Cut items into as few runs as the budget allows, then into runs of nearly equal cost.

    The smallest budget that needs no more runs is found by bisection: a step of a few left-over rows would
    move the weights as far as a full one.
    """
    fewest = _greedily(items, budget, grown)
    low, high = 0, budget  # high always gives the fewest runs
    while high - low > 1:
        middle = (low + high) // 2
        if len(_greedily(items, middle, grown)) <= len(fewest):
            high = middle
        else:
            low = middle
    return _greedily(items, high, grown)


def _greedily(items: list[Item], budget: int, grown: Grown[Item]) -> list[tuple[Item, ...]]:
    runs: list[tuple[Item, ...]] = []
    current: list[Item] = []
    size = 0
    for item in items:
        size = grown(size, len(current), item)
        if current and size > budget:
            runs.append(tuple(current))
            current = []
            size = grown(0, 0, item)
        current.append(item)
    return [*runs, tuple(current)] if current else runs
