"""A few thousand rows for a token budget: spread over what the prompts ask, beside random and longest rows.

No quality score takes part: at equal tokens few beat a random draw (arXiv 2410.09335), so that draw and the longest
rows (arXiv 2402.04833) are always made too, with the same measures.
"""

from __future__ import annotations

import math
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BadInput
from ..records import Example, Progress, no_progress, to_json
from .engine import give_back
from .normalise import normalise
from .overlap import Numbering

# Shapes: N rows, T words of all prompts, V distinct words, D dimensions of a prompt's vector, K centres.
NUM_DIMENSIONS = 128
COORDINATES_PER_WORD = 4  # a word's random vector has so many entries that are not zero (Achlioptas 2003)
MAX_WORDS = 256  # of a prompt that count
MAX_CENTRES = 32  # of one k-means; more are found in two levels
NUM_ROUNDS = 6  # of k-means: the spread hardly changes after
MEASURED_ROWS = 100_000  # the time of measuring goes with these times the chosen rows
ROWS_AT_A_TIME, DIMENSIONS_AT_A_TIME, CELLS_AT_A_TIME = 2048, 16, 1 << 22  # bound what is held at a time
WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows chosen one way, and how well they stand for all."""

    name: str  # coverage, random, longest
    indices: tuple[int, ...]  # ascending
    num_tokens: int
    # Mean cosine of the rows left out (of many, MEASURED_ROWS or fewer evenly apart) to the nearest chosen one; 1.0 if
    # none is left out.
    nearest_similarity: float
    vocabulary_frac: float  # of the word occurrences in all prompts, those whose word occurs in a chosen prompt
    label_entropy_frac: float | None  # 1: all labels have equally many chosen rows; None: not a classification


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and two ordinary choices of equal tokens to judge it by."""

    coverage: Selection
    random: Selection
    longest: Selection
    budget_tokens: int

    def summary(self) -> dict[str, Any]:
        """The measures without the rows, JSON-ready: `choice` of the receipt."""
        measures: dict[str, Any] = {"budget_tokens": self.budget_tokens}
        for one in (self.coverage, self.random, self.longest):
            measured = {key: value for key, value in to_json(one).items() if key not in ("name", "indices")}
            measures[one.name] = {"num_rows": len(one.indices), **measured}
        return measures


def choose(
    examples: Sequence[Example],
    num_tokens: Any,
    budget_tokens: int,
    *,
    kind: str,
    seed: int,
    progress: Progress = no_progress,
) -> Choice:
    """Rows whose num_tokens sum to at most budget_tokens, the same for the same rows, budget and seed.

    Coverage: prompts are clustered, a cluster gets a share in proportion to its rows (of a classification each label
    gets equally many tokens first), and the row nearest to each centre is taken. Random: in order of a seeded draw.
    Longest: by tokens. Each is filled up until no further row fits.
    Raises: BadInput when the budget holds no row.
    """
    assert len(examples) == len(num_tokens), "one token count a row"
    tokens_N = np.asarray(num_tokens, dtype=np.int64)
    if not len(tokens_N) or budget_tokens < tokens_N.min():
        shortest = f"the shortest row has {tokens_N.min():,}" if len(tokens_N) else "there are no rows"
        raise BadInput(f"a budget of {budget_tokens:,} tokens holds no row: {shortest}; raise it")
    words = _words_of(examples, is_classify=kind == "classify")
    give_back()
    vectors_ND = _vectors(words)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(tokens_N))
    orders = {
        "coverage": _coverage_order(vectors_ND, tokens_N, words, budget_tokens, rng, progress),
        "random": shuffled,
        "longest": shuffled[np.argsort(-tokens_N[shuffled], kind="stable")],
    }
    measured = {
        name: _measured(name, _filled(order, tokens_N, budget_tokens), tokens_N, vectors_ND, words)
        for name, order in orders.items()
    }
    return Choice(**measured, budget_tokens=budget_tokens)


@dataclass(frozen=True, slots=True)
class _Words:
    """Words of all prompts as numbers: those of row n are ids_T[starts_N[n]:starts_N[n + 1]]; and labels alike."""

    ids_T: Any
    starts_N: Any  # N + 1 values
    hashes_V: Any
    labels: list[str]  # of a classification
    label_N: Any

    def blocks(self) -> Iterator[tuple[slice, Any, Any]]:
        """Rows a block at a time, the row in the block of each of their words, and the words."""
        for begin in range(0, len(self.starts_N) - 1, ROWS_AT_A_TIME):
            starts = self.starts_N[begin : begin + ROWS_AT_A_TIME + 1]
            rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
            yield slice(begin, begin + len(starts) - 1), rows, self.ids_T[starts[0] : starts[-1]]


def _words_of(examples: Sequence[Example], *, is_classify: bool) -> _Words:
    number = Numbering()
    labels: dict[str, int] = {}
    ids, sizes, label_N = array("i"), array("q", [0]), array("q")
    for example in examples:
        found = WORD.findall(normalise(example.user_text))[:MAX_WORDS]
        sizes.append(len(found))
        ids.extend(map(number.__getitem__, found))
        if is_classify:
            label_N.append(labels.setdefault(example.completion, len(labels)))
    hashes_V = np.fromiter((zlib.crc32(w.encode("utf-8", "surrogatepass")) for w in number), np.uint64, len(number))
    return _Words(np.asarray(ids), np.cumsum(sizes), hashes_V, list(labels), np.asarray(label_N))


def _filled(order: Any, tokens_N: Any, budget_tokens: int) -> Any:
    """Rows in this order as long as they fit, ascending."""
    taken, left = [], budget_tokens
    smallest = int(tokens_N.min())
    for index in order:
        if tokens_N[index] <= left:
            taken.append(index)
            left -= int(tokens_N[index])
            if left < smallest:
                break
    return np.sort(np.asarray(taken, dtype=np.int64))


def _vectors(words: _Words) -> Any:
    """Unit vectors (N, D) of TF-IDF weighted words, by a sparse random projection that depends on the words alone."""
    num_rows, num_words = len(words.starts_N) - 1, len(words.hashes_V)
    document_frequency = np.zeros(num_words, np.int64)
    for _, row, ids in words.blocks():
        np.add.at(document_frequency, np.unique(row * num_words + ids) % max(num_words, 1), 1)
    columns, signs = [], []
    for part in range(COORDINATES_PER_WORD):
        mixed = words.hashes_V * np.uint64(0x9E3779B97F4A7C15) + np.uint64(part * 0xBF58476D1CE4E5B9 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)  # splitmix64's last step
        columns.append(((mixed >> np.uint64(40)) % np.uint64(NUM_DIMENSIONS)).astype(np.uint8))
        signs.append(np.where(mixed >> np.uint64(63), 1, -1).astype(np.int8))
    vectors = np.zeros((num_rows, NUM_DIMENSIONS), np.float32)
    for rows, row, ids in words.blocks():
        seen, counts = np.unique(row * num_words + ids, return_counts=True)
        row, ids = np.divmod(seen, max(num_words, 1))
        weight = (1 + np.log(counts)) * np.log((1 + num_rows) / document_frequency[ids])
        block = vectors[rows]
        for column, sign in zip(columns, signs, strict=True):
            sums = np.bincount(row * NUM_DIMENSIONS + column[ids], weight * sign[ids], block.size)
            block += sums.reshape(block.shape).astype(np.float32)
        norms = np.linalg.norm(block, axis=1, keepdims=True)
        block /= np.where(norms > 0, norms, 1)
    return vectors


def _coverage_order(
    vectors_ND: Any, tokens_N: Any, words: _Words, budget_tokens: int, rng: Any, progress: Progress
) -> Any:
    """All rows, those that cover most first: centres' rows of every label by turns, then the others at random."""
    members = [np.arange(len(tokens_N))]
    if words.labels:
        by_label = np.argsort(words.label_N, kind="stable")
        parts = np.split(by_label, np.cumsum(np.bincount(words.label_N))[:-1])
        members = [parts[i] for i in sorted(range(len(parts)), key=words.labels.__getitem__)]
    shares = _even_shares([int(tokens_N[rows].sum()) for rows in members], budget_tokens)
    chosen: list[Any] = []
    for done, (rows, share) in enumerate(zip(members, shares, strict=True)):
        progress("choosing rows", done, len(members))
        num_rows = min(len(rows), max(1, round(share / tokens_N[rows].mean())))
        order = _spread(vectors_ND, rows, num_rows, rng)
        num_fitting = max(1, int(np.searchsorted(np.cumsum(tokens_N[order]), share, side="right")))
        chosen.append(order[:num_fitting])
    # By turns: should the last rows not fit, every label loses as much.
    turn = np.concatenate([np.arange(len(rows)) / len(rows) for rows in chosen])
    first = np.concatenate(chosen)[np.argsort(turn, kind="stable")]
    is_left = np.ones(len(tokens_N), bool)
    is_left[first] = False
    return np.concatenate([first, rng.permutation(np.flatnonzero(is_left))])


def _even_shares(sizes: Sequence[int], total: int) -> list[int]:
    """Split total evenly; a part smaller than its share gives what is left to the others."""
    shares = [0] * len(sizes)
    left = total
    for place, index in enumerate(sorted(range(len(sizes)), key=lambda i: (sizes[i], i))):
        shares[index] = min(sizes[index], left // (len(sizes) - place))
        left -= shares[index]
    return shares


def _spread(vectors_ND: Any, rows: Any, num_rows: int, rng: Any) -> Any:
    """num_rows of these rows that stand for all: each nearest to the centre of its cluster, in random order."""
    num_all = len(rows)
    if num_rows >= num_all:
        return rng.permutation(rows)
    if num_rows <= MAX_CENTRES:
        return rng.permutation(_medoids(vectors_ND, rows, num_rows, rng))
    num_clusters = min(MAX_CENTRES, math.ceil(num_rows / MAX_CENTRES))
    cluster_N = _kmeans(vectors_ND, rows, num_clusters, rng)[0]
    parts = [rows[cluster_N == k] for k in range(num_clusters)]
    parts = [part for part in parts if len(part)]
    if len(parts) == 1:  # nothing tells the rows apart
        return rng.permutation(rows)[:num_rows]
    exact = np.array([len(part) for part in parts]) * (num_rows / num_all)
    quota = np.floor(exact).astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: num_rows - quota.sum()]] += 1  # largest remainder
    chosen = [_spread(vectors_ND, part, int(q), rng) for part, q in zip(parts, quota, strict=True) if q]
    return rng.permutation(np.concatenate(chosen))


def _medoids(vectors_ND: Any, rows: Any, num_rows: int, rng: Any) -> Any:
    """The row nearest to each of num_rows centres; rows of clusters that came out empty are drawn from the rest."""
    cluster_N, centres_KD = _kmeans(vectors_ND, rows, num_rows, rng)
    closeness = [
        np.einsum("nd,nd->n", vectors_ND[rows[part]], centres_KD[cluster_N[part]]) for part in _parts(len(rows))
    ]
    order = np.lexsort((-np.concatenate(closeness), cluster_N))
    is_best = np.r_[True, np.diff(cluster_N[order]) > 0]
    best = order[is_best]
    others = np.setdiff1d(np.arange(len(rows)), best)
    return rows[np.concatenate([best, rng.permutation(others)[: num_rows - len(best)]])]


def _kmeans(vectors_ND: Any, rows: Any, num_centres: int, rng: Any) -> tuple[Any, Any]:
    """Cluster of each row (N,) and unit centres (K, D): spherical k-means from a random start (Dhillon, Modha 2001)."""
    centres_KD = vectors_ND[rows[rng.choice(len(rows), num_centres, replace=False)]]
    cluster_N = np.zeros(len(rows), np.int64)
    for _ in range(NUM_ROUNDS):
        for part in _parts(len(rows)):
            cluster_N[part] = (vectors_ND[rows[part]] @ centres_KD.T).argmax(axis=1)
        order = np.argsort(cluster_N, kind="stable")
        present, starts = np.unique(cluster_N[order], return_index=True)
        centres_KD = centres_KD.copy()
        for first in range(0, NUM_DIMENSIONS, DIMENSIONS_AT_A_TIME):
            some = slice(first, first + DIMENSIONS_AT_A_TIME)
            centres_KD[present, some] = np.add.reduceat(vectors_ND[rows[order], some], starts, axis=0)
        norms = np.linalg.norm(centres_KD, axis=1, keepdims=True)
        centres_KD /= np.where(norms > 0, norms, 1)
    return cluster_N, centres_KD


def _parts(num_rows: int, size: int = ROWS_AT_A_TIME) -> list[slice]:
    return [slice(start, start + size) for start in range(0, num_rows, size)]


def _measured(name: str, indices: Any, tokens_N: Any, vectors_ND: Any, words: _Words) -> Selection:
    is_left = np.ones(len(tokens_N), bool)
    is_left[indices] = False
    left_out = np.flatnonzero(is_left)
    left_out = left_out[:: math.ceil(len(left_out) / MEASURED_ROWS) or 1]
    chosen_D = vectors_ND[indices].T
    num_rows = max(1, min(ROWS_AT_A_TIME, CELLS_AT_A_TIME // max(len(indices), 1)))
    nearest = [(vectors_ND[left_out[part]] @ chosen_D).max(axis=1) for part in _parts(len(left_out), num_rows)]
    is_known_V, num_known = np.zeros(len(words.hashes_V), bool), 0
    for index in indices:
        is_known_V[words.ids_T[words.starts_N[index] : words.starts_N[index + 1]]] = True
    for _, _, ids in words.blocks():
        num_known += int(is_known_V[ids].sum())
    return Selection(
        name,
        tuple(indices.tolist()),
        int(tokens_N[indices].sum()),
        float(np.concatenate(nearest).mean()) if nearest else 1.0,
        num_known / len(words.ids_T) if len(words.ids_T) else 1.0,
        _entropy_frac(words.label_N[indices].tolist(), len(words.labels)) if words.labels else None,
    )


def _entropy_frac(labels: Sequence[int], num_labels: int) -> float:
    """Entropy of the labels over the largest possible one."""
    if num_labels < 2:
        return 1.0
    counts = Counter(labels).values()
    return -sum(n / len(labels) * math.log(n / len(labels)) for n in counts) / math.log(num_labels)
