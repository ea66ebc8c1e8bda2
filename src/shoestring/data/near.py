"""Near-duplicates and near-contradictions: rows that ask the same in other words; candidates, guard, answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..records import Progress
from .candidates import candidates, encode_rows
from .clean import OPEN_KINDS, exclude_each_other
from .difference import Difference, Guard, Meaning, words
from .normalise import answer_key, meaning_key

Encode = Callable[[Sequence[str]], np.ndarray]

NEIGHBOURS = 8  # closest rows by an encoder that a row is compared with
MIN_COSINE = 0.9  # of an encoder's vectors, before the guard
ROWS_PER_PRODUCT = 1024
PROGRESS_EVERY = 50_000


@dataclass(frozen=True, slots=True)
class NearPair:
    """Two row numbers, first < second, the Jaccard similarity (0 to 1) of their word sets, and what differs."""

    first: int
    second: int
    similarity: float
    evidence: str


@dataclass(frozen=True, slots=True)
class Near:
    """duplicates: `second` may go, `first` stays. contradictions: the prompts mean the same, the answers do not."""

    duplicates: list[NearPair]
    contradictions: list[NearPair]


class _Answers:
    """Compares answers of the rows asked about."""

    def __init__(self, answers: Sequence[str], kind: str, guard: Guard):
        self.answers, self.kind, self.guard = answers, kind, guard

    def agree(self, i: int, j: int) -> bool:
        """Whether one of the two answers is enough."""
        a, b = self.answers[i], self.answers[j]
        if a == b or answer_key(a, self.kind) == answer_key(b, self.kind):
            return True
        return self.kind in (*OPEN_KINDS, "math") and self.guard.compare(words(a), words(b)).meaning > Meaning.OTHER

    def exclude(self, i: int, j: int) -> bool:
        """Whether not both answers can be right."""
        a, b = self.answers[i], self.answers[j]
        x, y = meaning_key(a, self.kind), meaning_key(b, self.kind)
        if x == y:
            return False
        if self.kind in ("classify", "math"):
            return True
        if self.kind in OPEN_KINDS and not exclude_each_other((a, b), self.kind):
            return False
        return self.guard.compare(words(a), words(b)).meaning == Meaning.OTHER


def semantic_pairs(prompts: Sequence[str], encode: Encode, progress: Progress) -> set[tuple[int, int]]:
    """Row numbers low < high at MIN_COSINE or more; each row with the NEIGHBOURS closest earlier ones.

    encode gives one vector a text, of any length. The time goes with the square of the rows.
    """
    vectors = np.asarray(encode(prompts), np.float32)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    found: set[tuple[int, int]] = set()
    for start in range(0, len(vectors), ROWS_PER_PRODUCT):
        progress("comparing meanings", start, len(vectors))
        cosine = vectors[start : start + ROWS_PER_PRODUCT] @ vectors[: start + ROWS_PER_PRODUCT].T
        for row, low in enumerate(cosine, start):
            near = np.flatnonzero(low[:row] >= MIN_COSINE)
            closest = near[np.argsort(-low[near], kind="stable")[:NEIGHBOURS]]
            found.update((int(i), row) for i in closest)
    return found


def near_rows(
    prompts: Sequence[str], answers: Sequence[str], *, kind: str, progress: Progress, encode: Encode | None = None
) -> Near:
    """Near-duplicates and near-contradictions among rows of raw prompts and answers of a task kind.

    A duplicate means the same as an earlier row that stays, and its answer agrees: equal as the kind compares
    answers; in kinds with open answers, equal under the guard. A contradiction's prompts differ in nothing that
    carries meaning, yet its answers exclude each other. The same rows give the same result.
    encode: a local encoder; rows it finds close are duplicates too if no name, number or other protected word
    differs and the answers agree.
    """
    assert len(prompts) == len(answers), "one answer a prompt"
    if len(prompts) < 2:
        return Near([], [])
    rows = encode_rows(prompts, progress)
    counts_V = np.bincount(rows.ids_T, minlength=len(rows.vocabulary))
    first, second = candidates(rows, counts_V, progress)
    semantic = semantic_pairs(prompts, encode, progress) if encode is not None else set()
    if semantic:
        codes = np.array([j * len(prompts) + i for i, j in semantic], np.int64)
        second, first = np.divmod(np.union1d(second * len(prompts) + first, codes), len(prompts))
    counts = {rows.vocabulary[i]: int(counts_V[i]) for i in np.flatnonzero(counts_V > 1).tolist()}
    names = {rows.vocabulary[i] for i in np.flatnonzero(rows.is_name_V).tolist()}
    guard = Guard(counts, names)
    compared = _Answers(answers, kind, guard)
    kept_for: dict[int, int] = {}  # a dropped row -> the row that stays for it
    duplicates, contradictions = [], []
    seen = (-1, -1)
    for at, (i, j) in enumerate(zip(map(int, first), map(int, second), strict=True)):
        if at % PROGRESS_EVERY == 0:
            progress("comparing near-duplicates", at, len(first))
        is_close = (i, j) in semantic
        i = kept_for.get(i, i)
        if j in kept_for or (i, j) == seen:
            continue
        seen = (i, j)
        mine, theirs = rows.words(i), rows.words(j)
        found = guard.compare(mine, theirs)
        if found.meaning == Meaning.OTHER and is_close:
            found = guard.rephrased(mine, theirs)
        if found.meaning == Meaning.OTHER:
            continue
        if compared.agree(i, j):
            kept_for[j] = i
            duplicates.append(_pair(i, j, mine, theirs, found))
        elif found.meaning == Meaning.SAME and compared.exclude(i, j):
            contradictions.append(_pair(i, j, mine, theirs, found))
    return Near(duplicates, [pair for pair in contradictions if pair.second not in kept_for])


def _pair(i: int, j: int, mine: list[str], theirs: list[str], found: Difference) -> NearPair:
    a, b = set(mine), set(theirs)
    return NearPair(i, j, round(len(a & b) / max(len(a | b), 1), 3), found.shown or "case or punctuation")
