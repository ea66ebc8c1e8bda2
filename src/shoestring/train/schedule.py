"""The order of a whole run, computed before it starts: which rows share a micro-batch, which a step.

Pure and seeded, so that an interrupted run continues with the very batches it would have had.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..errors import BadInput
from ..units import round_up

# Rows are sorted by length inside chunks of about so many steps: long enough for little padding, short
# enough that a step is not all of one kind.
STEPS_PER_CHUNK = 16

MicroBatch = tuple[int, ...]  # row indices
Step = tuple[MicroBatch, ...]
Item = TypeVar("Item")
Grown = Callable[[int, int, Item], int]  # (size, number of items, one more item) -> size with it


@dataclass(frozen=True, slots=True)
class Schedule:
    """Optimizer steps in order, each a tuple of micro-batches, each a tuple of row indices."""

    steps: tuple[Step, ...]
    lengths: tuple[int, ...]  # tokens a row
    round_to: int = 1  # the width of a micro-batch is a multiple of this

    def tokens_in(self, step: Step) -> int:
        """Tokens of one step, padding excluded."""
        return sum(self.lengths[row] for batch in step for row in batch)

    def num_tokens(self, num_steps: int) -> int:
        """Tokens of the first num_steps steps, padding excluded."""
        return sum(map(self.tokens_in, self.steps[:num_steps]))

    def num_padded_tokens(self, num_steps: int) -> int:
        """Tokens of the first num_steps steps with padding."""
        batches = [batch for step in self.steps[:num_steps] for batch in step]
        return sum(padded_tokens([self.lengths[r] for r in batch], self.round_to) for batch in batches)


def padded_tokens(lengths: Sequence[int], round_to: int = 1) -> int:
    """Tokens a micro-batch of rows of these lengths takes: each row as long as the longest, rounded up."""
    return len(lengths) * round_up(max(lengths, default=0), round_to)


def build_schedule(
    lengths: Sequence[int],
    num_epochs: float,
    batch_tokens: int,
    micro_batch_tokens: int,
    seed: int,
    round_to: int = 1,
) -> Schedule:
    """Every row num_epochs times (a fractional last epoch takes its share of a fresh shuffle).

    A step holds at most batch_tokens and a micro-batch at most micro_batch_tokens, padding included;
    a row longer than either is alone in its own.
    Raises: BadInput for budgets or a number of epochs that are not positive, or no rows.
    """
    for name, value in (
        ("num_epochs", num_epochs),
        ("batch_tokens", batch_tokens),
        ("micro_batch_tokens", micro_batch_tokens),
    ):
        if not value > 0:
            raise BadInput(f"{name}={value} must be positive")
    if not lengths:
        raise BadInput("there are no training rows; look at data/dropped.jsonl for why rows were left out")
    rng = random.Random(seed)
    widths = [round_up(length, round_to) for length in lengths]
    steps: list[Step] = []
    left = num_epochs
    while left > 0:
        order = list(range(len(lengths)))
        rng.shuffle(order)
        if left < 1:
            order = order[: math.ceil(left * len(order) - 1e-9)]
        steps += _epoch(order, widths, batch_tokens, min(micro_batch_tokens, batch_tokens), rng)
        left = round(left - 1, 9)
    return Schedule(tuple(steps), tuple(lengths), round_to)


def _epoch(
    order: list[int], lengths: Sequence[int], batch_tokens: int, micro_batch_tokens: int, rng: random.Random
) -> list[Step]:
    """One shuffled pass: cut into chunks, sort each by length, fill micro-batches, then steps; shuffle the steps."""
    steps: list[Step] = []
    for chunk in _chunks(order, lengths, STEPS_PER_CHUNK * batch_tokens):
        batches = _micro_batches(sorted(chunk, key=lambda row: (lengths[row], row)), lengths, micro_batch_tokens)
        rng.shuffle(batches)
        steps += _steps(batches, lengths, batch_tokens)
    rng.shuffle(steps)
    return steps


def _chunks(order: list[int], lengths: Sequence[int], chunk_tokens: int) -> list[list[int]]:
    """Runs of rows of about chunk_tokens each, all nearly equal, so that no last chunk is a sliver."""
    total = sum(lengths[row] for row in order)
    num_chunks = max(1, round(total / chunk_tokens))
    chunks: list[list[int]] = [[]]
    seen = 0
    for row in order:
        if seen >= total * len(chunks) / num_chunks and len(chunks) < num_chunks:
            chunks.append([])
        chunks[-1].append(row)
        seen += lengths[row]
    return chunks


def _micro_batches(rows: list[int], lengths: Sequence[int], micro_batch_tokens: int) -> list[MicroBatch]:
    """Consecutive rows (sorted by length) while their padded size stays inside the budget."""
    return _evenly(rows, micro_batch_tokens, lambda size, count, row: (count + 1) * lengths[row])


def _steps(batches: list[MicroBatch], lengths: Sequence[int], batch_tokens: int) -> list[Step]:
    """Consecutive micro-batches while their padded sizes together stay inside the budget."""
    sizes = {batch: padded_tokens([lengths[row] for row in batch]) for batch in batches}
    return _evenly(batches, batch_tokens, lambda size, count, batch: size + sizes[batch])


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
