"""A few thousand rows for a token budget: spread over what the prompts ask, beside random and longest rows.

No quality score takes part: at equal tokens few beat a random draw (arXiv 2410.09335), so that draw and the longest
rows (arXiv 2402.04833) are always made too, with the same measures.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BadInput
from ..records import Example, Progress, no_progress, to_json
from .normalise import normalise

# Shapes: N rows, D dimensions of a prompt's vector, K centres.
NUM_DIMENSIONS = 128
COORDINATES_PER_WORD = 4  # a word's random vector has so many entries that are not zero (Achlioptas 2003)
MAX_WORDS = 256  # of a prompt that count
MAX_CENTRES = 32  # of one k-means; more are found in two levels
NUM_ROUNDS = 6  # of k-means: the spread hardly changes after
ROWS_AT_A_TIME = 2048
WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows chosen one way, and how well they stand for all."""

    name: str  # coverage, random, longest
    indices: tuple[int, ...]  # ascending
    num_tokens: int
    nearest_similarity: float  # mean cosine of each row left out to the nearest chosen one; 1.0 if none is left out
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
    num_tokens: Sequence[int],
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
    words = [WORD.findall(normalise(example.user_text))[:MAX_WORDS] for example in examples]
    vectors_ND = _vectors(words)
    labels = [example.completion for example in examples] if kind == "classify" else None
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(tokens_N))
    orders = {
        "coverage": _coverage_order(vectors_ND, tokens_N, labels, budget_tokens, rng, progress),
        "random": shuffled,
        "longest": shuffled[np.argsort(-tokens_N[shuffled], kind="stable")],
    }
    measured = {
        name: _measured(name, _filled(order, tokens_N, budget_tokens), tokens_N, vectors_ND, words, labels)
        for name, order in orders.items()
    }
    return Choice(**measured, budget_tokens=budget_tokens)


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


def _vectors(words: Sequence[Sequence[str]]) -> Any:
    """Unit vectors (N, D) of TF-IDF weighted words, by a sparse random projection that depends on the words alone."""
    number: dict[str, int] = {}
    flat = np.fromiter((number.setdefault(w, len(number)) for row in words for w in row), np.int64)
    sizes_N = np.array([len(row) for row in words])
    rows = np.repeat(np.arange(len(words)), sizes_N)
    vectors = np.zeros((len(words), NUM_DIMENSIONS), np.float32)
    if not len(flat):
        return vectors
    seen = np.unique(rows * len(number) + flat, return_counts=True)
    rows, flat = np.divmod(seen[0], len(number))
    document_frequency = np.bincount(flat, minlength=len(number))
    weight = (1 + np.log(seen[1])) * np.log((1 + len(words)) / document_frequency[flat])
    hashes = np.array([zlib.crc32(w.encode("utf-8", "surrogatepass")) for w in number], np.uint64)
    for part in range(COORDINATES_PER_WORD):
        mixed = hashes * np.uint64(0x9E3779B97F4A7C15) + np.uint64(part * 0xBF58476D1CE4E5B9 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)  # splitmix64's last step
        column = (mixed >> np.uint64(40)) % np.uint64(NUM_DIMENSIONS)
        sign = np.where(mixed >> np.uint64(63), 1.0, -1.0)
        place = rows * NUM_DIMENSIONS + column[flat].astype(np.int64)
        vectors += np.bincount(place, weight * sign[flat], vectors.size).reshape(vectors.shape).astype(np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def _coverage_order(
    vectors_ND: Any, tokens_N: Any, labels: Sequence[str] | None, budget_tokens: int, rng: Any, progress: Progress
) -> Any:
    """All rows, those that cover most first: centres' rows of every label by turns, then the others at random."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index in range(len(tokens_N)):
        groups[labels[index] if labels else ""].append(index)
    members = [np.array(groups[name]) for name in sorted(groups)]
    shares = _even_shares([int(tokens_N[rows].sum()) for rows in members], budget_tokens)
    chosen: list[Any] = []
    for done, (rows, share) in enumerate(zip(members, shares, strict=True)):
        progress("choosing rows", done, len(members))
        num_rows = min(len(rows), max(1, round(share / tokens_N[rows].mean())))
        order = rows[_spread(vectors_ND[rows], num_rows, rng)]
        num_fitting = max(1, int(np.searchsorted(np.cumsum(tokens_N[order]), share, side="right")))
        chosen.append(order[:num_fitting])
    # By turns: should the last rows not fit, every label loses as much.
    turn = np.concatenate([np.arange(len(rows)) / len(rows) for rows in chosen])
    first = np.concatenate(chosen)[np.argsort(turn, kind="stable")]
    rest = np.setdiff1d(np.arange(len(tokens_N)), first)
    return np.concatenate([first, rng.permutation(rest)])


def _even_shares(sizes: Sequence[int], total: int) -> list[int]:
    """Split total evenly; a part smaller than its share gives what is left to the others."""
    shares = [0] * len(sizes)
    left = total
    for place, index in enumerate(sorted(range(len(sizes)), key=lambda i: (sizes[i], i))):
        shares[index] = min(sizes[index], left // (len(sizes) - place))
        left -= shares[index]
    return shares


def _spread(vectors_ND: Any, num_rows: int, rng: Any) -> Any:
    """Row numbers of num_rows rows that stand for all: each nearest to the centre of its cluster, in random order."""
    num_all = len(vectors_ND)
    if num_rows >= num_all:
        return rng.permutation(num_all)
    if num_rows <= MAX_CENTRES:
        return rng.permutation(_medoids(vectors_ND, num_rows, rng))
    num_clusters = min(MAX_CENTRES, math.ceil(num_rows / MAX_CENTRES))
    cluster_N = _kmeans(vectors_ND, num_clusters, rng)[0]
    parts = [np.flatnonzero(cluster_N == k) for k in range(num_clusters)]
    parts = [part for part in parts if len(part)]
    if len(parts) == 1:  # nothing tells the rows apart
        return rng.permutation(num_all)[:num_rows]
    exact = np.array([len(part) for part in parts]) * (num_rows / num_all)
    quota = np.floor(exact).astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: num_rows - quota.sum()]] += 1  # largest remainder
    chosen = [part[_spread(vectors_ND[part], int(q), rng)] for part, q in zip(parts, quota, strict=True) if q]
    return rng.permutation(np.concatenate(chosen))


def _medoids(vectors_ND: Any, num_rows: int, rng: Any) -> Any:
    """The row nearest to each of num_rows centres; rows of clusters that came out empty are drawn from the rest."""
    cluster_N, centres_KD = _kmeans(vectors_ND, num_rows, rng)
    closeness_N = np.einsum("nd,nd->n", vectors_ND, centres_KD[cluster_N])
    order = np.lexsort((-closeness_N, cluster_N))
    is_best = np.r_[True, np.diff(cluster_N[order]) > 0]
    best = order[is_best]
    others = np.setdiff1d(np.arange(len(vectors_ND)), best)
    return np.concatenate([best, rng.permutation(others)[: num_rows - len(best)]])


def _kmeans(vectors_ND: Any, num_centres: int, rng: Any) -> tuple[Any, Any]:
    """Cluster of each row (N,) and unit centres (K, D): spherical k-means from a random start (Dhillon, Modha 2001)."""
    centres_KD = vectors_ND[rng.choice(len(vectors_ND), num_centres, replace=False)]
    cluster_N = np.zeros(len(vectors_ND), np.int64)
    for _ in range(NUM_ROUNDS):
        cluster_N = (vectors_ND @ centres_KD.T).argmax(axis=1)
        order = np.argsort(cluster_N, kind="stable")
        present, starts = np.unique(cluster_N[order], return_index=True)
        centres_KD = centres_KD.copy()
        centres_KD[present] = np.add.reduceat(vectors_ND[order], starts, axis=0)
        norms = np.linalg.norm(centres_KD, axis=1, keepdims=True)
        centres_KD /= np.where(norms > 0, norms, 1)
    return cluster_N, centres_KD


def _measured(
    name: str, indices: Any, tokens_N: Any, vectors_ND: Any, words: Sequence[Sequence[str]],
    labels: Sequence[str] | None,
) -> Selection:  # fmt: skip
    left_out = np.setdiff1d(np.arange(len(tokens_N)), indices)
    chosen_D = vectors_ND[indices].T
    nearest = [
        (vectors_ND[left_out[start : start + ROWS_AT_A_TIME]] @ chosen_D).max(axis=1)
        for start in range(0, len(left_out), ROWS_AT_A_TIME)
    ]
    known = {word for index in indices for word in words[index]}
    num_words = sum(map(len, words))
    num_known = sum(word in known for row in words for word in row)
    return Selection(
        name,
        tuple(indices.tolist()),
        int(tokens_N[indices].sum()),
        float(np.concatenate(nearest).mean()) if nearest else 1.0,
        num_known / num_words if num_words else 1.0,
        _entropy_frac([labels[i] for i in indices], len(set(labels))) if labels else None,
    )


def _entropy_frac(labels: Sequence[str], num_labels: int) -> float:
    """Entropy of the labels over the largest possible one."""
    if num_labels < 2:
        return 1.0
    counts = Counter(labels).values()
    return -sum(n / len(labels) * math.log(n / len(labels)) for n in counts) / math.log(num_labels)
