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
    lengths: Sequence[int],
    num_epochs: float,
    batch_tokens: int,
    micro_batch_tokens: int,
    seed: int,
    round_to: int = 1,
    widths: Sequence[int] | None = None,
) -> Schedule:
    """Every row num_epochs times, padded (a fractional last epoch takes its share of a fresh shuffle).

    A step holds at most batch_tokens and a micro-batch at most micro_batch_tokens, padding included;
    a row longer than either is alone in its own. widths: what a row takes where that is not its length (a pair is as
    wide as twice its longer side), a multiple of round_to.
    Raises: BadInput for budgets or a number of epochs that are not positive, or no rows.
    """
    _check(lengths, num_epochs, batch_tokens, micro_batch_tokens)
    rng = random.Random(seed)
    padded = [round_up(width, round_to) for width in widths or lengths]
    steps = [
        step
        for order in _orders(len(lengths), num_epochs, rng)
        for step in _epoch(order, padded, batch_tokens, min(micro_batch_tokens, batch_tokens), rng)
    ]
    computed = tuple(sum(padded_tokens([padded[row] for row in batch]) for batch in step) for step in steps)
    return Schedule(tuple(steps), tuple(lengths), computed)


def build_forest_schedule(
    rows: Sequence[Sequence[np.ndarray]],
    num_epochs: float,
    batch_tokens: int,
    micro_batch_tokens: int,
    seed: int,
    units: Sequence[Sequence[int]] | None = None,
) -> Schedule:
    """Every row num_epochs times, as prefix forests: rows of one or more paths of token ids.

    Steps are runs of an ordinary shuffle, cut by the rows' own tokens, so which rows share a step is as random as
    without sharing, and a step's gradient is the same sum. What is common is looked for inside a step alone: its rows
    are sorted, neighbours share most, and cut into micro-batches of at most micro_batch_tokens computed tokens.
    units: rows that are drawn together (the answers of one conversation), each row in exactly one; default each alone.
    Raises: BadInput as build_schedule.
    """
    _check(rows, num_epochs, batch_tokens, micro_batch_tokens)
    rng = random.Random(seed)
    drawn = [tuple(unit) for unit in units] if units is not None else [(row,) for row in range(len(rows))]
    lengths = [sum(map(len, row)) for row in rows]
    in_order = [sorted(row, key=sort_key) for row in rows]
    keys = [b"".join(map(sort_key, row[:1])) for row in in_order]
    steps: list[Step] = []
    computed: list[int] = []
    sizes = [sum(lengths[row] for row in unit) for unit in drawn]
    for order in _orders(len(drawn), num_epochs, rng):
        for chosen in _evenly(order, batch_tokens, lambda size, count, unit: size + sizes[unit]):
            members = sorted((row for unit in chosen for row in drawn[unit]), key=lambda row: (keys[row], row))
            step = _forests(members, in_order, min(micro_batch_tokens, batch_tokens))
            steps.append(step)
            computed.append(sum(packed_tokens([path for row in batch for path in rows[row]]) for batch in step))
    return Schedule(tuple(steps), tuple(lengths), tuple(computed))


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
    """Units for build_forest_schedule: rows of the same source and line are answers of one conversation."""
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


def halves(batches: Sequence[MicroBatch], fits: Callable[[MicroBatch], bool]) -> list[MicroBatch]:
    """Each batch cut in two until every piece fits or is a single row; order kept."""
    todo, done = list(batches)[::-1], []
    while todo:
        batch = todo.pop()
        if len(batch) == 1 or fits(batch):
            done.append(batch)
        else:
            middle = len(batch) // 2
            todo += [batch[middle:], batch[:middle]]
    return done
