"""Rows of a batch as a prefix forest: what several rows begin with is there once.

The forest is laid out depth-first, so that the tokens below a token follow it without a gap: token q may attend to
token k exactly if k <= q < subtree_end[k], and positions count from the root. Rows without a common beginning are
single paths, which is packing without contamination.

Shapes: N tokens of the forest, S segments (runs of tokens that the same rows share), P paths.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..units import round_up

# Sharing fewer tokens than this costs more in smaller blocks of attention than it saves.
MIN_SAVED_TOKENS = 48
# Kernels are made for each shape, so few shapes are wanted.
ROUND_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens start to stop of one path, shared by all rows below it; parent is an index of a segment, or -1."""

    path: int
    start: int
    stop: int
    parent: int


@dataclass(frozen=True, slots=True)
class Forest:
    """ids, positions, subtree_ends (N,); starts, stops (S,) in the layout; places: where each path's tokens are."""

    ids: np.ndarray
    positions: np.ndarray
    subtree_ends: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    places: tuple[np.ndarray, ...]


def as_array(ids: Sequence[int]) -> np.ndarray:
    """Token ids as the functions here take them."""
    return np.asarray(ids, dtype=np.uint32)


def sort_key(path: np.ndarray) -> bytes:
    """Bytes that sort as the token ids do, so that rows with the longest common beginnings are neighbours."""
    return path.astype(">u4").tobytes()


def shared_lengths(paths: Sequence[np.ndarray]) -> list[int]:
    """Length of the common beginning of each path with the one before it; 0 for the first."""
    found = [0] if paths else []
    for before, path in itertools.pairwise(paths):
        size = min(len(before), len(path))
        differs = before[:size] != path[:size]
        first = int(differs.argmax()) if size else 0
        found.append(first if size and differs[first] else size)
    return found


def segments(paths: Sequence[np.ndarray], min_saved: int = MIN_SAVED_TOKENS) -> tuple[list[Segment], list[int]]:
    """The forest's segments depth-first, and the last segment of each path.

    A beginning is shared where that saves at least min_saved tokens. No path may be empty.
    """
    keys = [sort_key(path) for path in paths]
    order = sorted(range(len(paths)), key=lambda index: keys[index])
    common = shared_lengths([paths[index] for index in order])
    made: list[Segment] = []
    last = [-1] * len(paths)
    # Ranges of the sorted paths, with the depth they are laid out to and the segment that ends there.
    todo = _split(common, 0, len(paths), 0, 0, -1)
    while todo:
        low, high, depth, parent = todo.pop()
        alone = high - low == 1
        end = len(paths[order[low]]) if alone else min(common[low + 1 : high])
        if end > depth and (alone or (end - depth) * (high - low - 1) >= min_saved):
            made.append(Segment(order[low], depth, end, parent))
            parent, depth = len(made) - 1, end
        if alone:
            last[order[low]] = parent
        else:
            todo += _split(common, low, high, end, depth, parent)
    return made, last


Range = tuple[int, int, int, int]


def _split(common: Sequence[int], low: int, high: int, end: int, depth: int, parent: int) -> list[Range]:
    """The range cut where neighbours share no more than end tokens; last part first, as a stack wants it."""
    cuts = [low, *(i for i in range(low + 1, high) if common[i] <= end), high]
    return [(a, b, depth, parent) for a, b in itertools.pairwise(cuts) if b > a][::-1]


def packed_tokens(paths: Sequence[np.ndarray], min_saved: int = MIN_SAVED_TOKENS) -> int:
    """Tokens of the forest of these paths, filling included."""
    return round_up(sum(part.stop - part.start for part in segments(paths, min_saved)[0]), ROUND_LENGTH)


def plant(
    paths: Sequence[np.ndarray], pad_id: int, min_saved: int = MIN_SAVED_TOKENS, round_to: int = ROUND_LENGTH
) -> Forest:
    """The forest of the paths, filled up with pad_id as a path of its own to a multiple of round_to tokens."""
    made, last = segments(paths, min_saved)
    parts = [(paths[part.path][part.start : part.stop], part.start, part.parent) for part in made]
    size = sum(len(tokens) for tokens, _, _ in parts)
    if filling := round_up(size, round_to) - size:
        parts.append((np.full(filling, pad_id, dtype=np.uint32), 0, -1))
    forest = laid_out(parts)
    places = []
    for segment in last:
        runs: list[np.ndarray] = []
        while segment >= 0:
            runs.append(np.arange(forest.starts[segment], forest.stops[segment]))
            segment = made[segment].parent
        places.append(np.concatenate(runs[::-1]))
    return replace(forest, places=tuple(places))


def laid_out(parts: Sequence[tuple[np.ndarray, int, int]]) -> Forest:
    """The forest of segments given depth-first, each as (tokens, position of the first, parent or -1); no places."""
    sizes = [len(tokens) for tokens, _, _ in parts]
    stops = np.cumsum(sizes)
    starts = stops - np.array(sizes)
    ends = stops.copy()  # of each segment's subtree
    for index in range(len(parts) - 1, -1, -1):
        parent = parts[index][2]
        if parent >= 0:
            ends[parent] = max(ends[parent], ends[index])
    return Forest(
        ids=np.concatenate([tokens for tokens, _, _ in parts]).astype(np.int64),
        positions=np.concatenate([np.arange(first, first + len(tokens)) for tokens, first, _ in parts]),
        subtree_ends=np.repeat(ends, sizes),
        starts=starts,
        stops=stops,
        places=(),
    )
