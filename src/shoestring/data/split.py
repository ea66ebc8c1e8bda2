"""Held-out rows: whole clusters of alike prompts on one side, labels in proportion, the same for the same seed."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

from ..records import Example, Progress
from .clean import Items, grouped
from .normalise import normalise, said_key
from .overlap import NEAR_JACCARD as NEAR_JACCARD
from .overlap import Numbering
from .overlap import near_pairs as near_pairs

MAX_CLUSTER_FRAC = 0.1  # text from a template would chain into one cluster; then only equal prompts go together
SHARED_FRAC = 0.9  # an opening that so many rows have is an instruction, not what they say


class Forest:
    """Union-find over row numbers."""

    def __init__(self, size: int):
        self.parent = array("q", range(size))

    def root(self, node: int) -> int:
        while self.parent[node] != node:
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        if a != b:
            self.parent[max(a, b)] = min(a, b)

    def roots(self) -> Any:
        """Of every row the lowest row it is joined with."""
        return np.fromiter(map(self.root, range(len(self.parent))), np.int64, len(self.parent))


@dataclass
class Apart:
    """Rows that are near each other and yet may come to stand on two sides, because their cluster was too large.

    Pairs of record numbers (P, 2): with equal word sets, by ascending second, and near ones among the first of each.
    """

    equal: Any = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    near: Any = field(default_factory=lambda: np.zeros((0, 2), np.int64))

    def near_to(self, seen: Any, held_out: Any) -> Any:
        """Those held-out records that are near to a seen one."""
        sets = np.unique(self._first(seen))
        a, b = self.near.T
        close = np.concatenate([sets, b[np.isin(a, sets)], a[np.isin(b, sets)]])
        return held_out[np.isin(self._first(held_out), close)]

    def _first(self, records: Any) -> Any:
        """The first record with the word set of each."""
        if not len(self.equal):
            return records
        at = np.minimum(np.searchsorted(self.equal[:, 1], records), len(self.equal) - 1)
        return np.where(self.equal[at, 1] == records, self.equal[at, 0], records)


def clusters_of(items: Items, progress: Progress) -> tuple[Any, Apart, list[str]]:
    """The cluster of each row: same conversation, same prompt, or word sets alike at NEAR_JACCARD.

    A cluster is known by its lowest row. Also returns the pairs that this leaves apart, and notes. Clusters above
    MAX_CLUSTER_FRAC of the rows fall back to equal prompts.
    """
    forest = Forest(len(items))
    for keys in (items.table.keys[items.indices, 0], items.table.row_number[items.indices]):
        _, first, group_N = np.unique(keys, return_index=True, return_inverse=True)
        first_N = first[group_N]
        for index in np.flatnonzero(first_N != np.arange(len(items))).tolist():
            forest.join(int(first_N[index]), index)
    sure_N = forest.roots()
    pairs = near_pairs(Compared(items), progress)
    for some in pairs:
        for a, b in zip(map(int, some[:, 0]), map(int, some[:, 1]), strict=True):
            forest.join(a, b)
    cluster_N = forest.roots()
    size_N = np.bincount(cluster_N, minlength=len(items))
    too_large = np.flatnonzero(size_N > max(MAX_CLUSTER_FRAC * len(items), 10))
    notes = [
        f"{size_N[root]} rows are alike as if from one template; among them only equal prompts are kept on one side"
        for root in too_large
    ]
    is_left_N = np.isin(cluster_N, too_large)
    equal, near = (items.indices[some[is_left_N[some[:, 0]]]] for some in pairs)
    return np.where(is_left_N, sure_N, cluster_N), Apart(equal, near), notes


class Compared(Sequence[str]):
    """What the users say, normalised, without an instruction that nearly all rows begin with.

    What all rows share, system prompts as well, must not make them alike.
    """

    def __init__(self, items: Sequence[Example]):
        self.items = items
        number = Numbering()
        ids, sizes = array("i"), array("q")
        for example in items:
            words = _said(example).split()
            ids.extend(map(number.__getitem__, words))
            sizes.append(len(words))
        ids_T, size_N = np.asarray(ids), np.asarray(sizes)
        starts_N = np.cumsum(size_N) - size_N
        self.num_shared, self.is_shared_N = 0, np.ones(len(items), bool)
        while True:
            having = np.flatnonzero(self.is_shared_N & (size_N > self.num_shared + 1))
            counts_V = np.bincount(ids_T[starts_N[having] + self.num_shared], minlength=1)
            if not len(having) or counts_V.max() < SHARED_FRAC * len(items):
                break
            self.is_shared_N &= size_N > self.num_shared
            shared = np.flatnonzero(self.is_shared_N)
            self.is_shared_N[shared] = ids_T[starts_N[shared] + self.num_shared] == counts_V.argmax()
            self.num_shared += 1

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if not isinstance(at, slice):
            return self[at : at + 1][0]
        skipped = (self.num_shared * self.is_shared_N[at]).tolist()
        return [" ".join(_said(example).split()[skip:]) for example, skip in zip(self.items[at], skipped, strict=True)]


def _said(example: Example) -> str:
    return said_key(example) if len(example.prompt) == 1 else normalise(example.user_text)


def held_out_clusters(rows: Sequence[Example], progress: Progress) -> dict[str, str]:
    """Id of each row that is near to an earlier one, or of its conversation, to the id of the first such row.

    As in clusters_of; rows alike as if from one template count as draws of their own, but for equal prompts.
    """
    forest = Forest(len(rows))
    firsts: dict[object, int] = {}
    for index, row in enumerate(rows):
        for key in ((row.source, row.line) if row.source else row.id, tuple(m.text for m in row.prompt)):
            forest.join(firsts.setdefault(key, index), index)
    sure_N = forest.roots()
    for some in near_pairs(Compared(rows), progress):
        for a, b in some.tolist():
            forest.join(a, b)
    cluster_N = forest.roots()
    size_N = np.bincount(cluster_N, minlength=len(rows))
    cluster_N = np.where(size_N[cluster_N] > max(MAX_CLUSTER_FRAC * len(rows), 10), sure_N, cluster_N)
    size_N = np.bincount(cluster_N, minlength=len(rows))
    return {row.id: rows[first].id for row, first in zip(rows, cluster_N.tolist(), strict=True) if size_N[first] > 1}


def near_items(seen: Items, held_out: Items, progress: Progress) -> Any:
    """The held-out records with a seen one at NEAR_JACCARD or more, ascending."""
    is_far = far_rows(Compared(seen + held_out), len(seen), progress)
    return held_out.indices[~is_far]


def far_rows(texts: Sequence[str], num_seen: int, progress: Progress) -> Any:
    """For each text after the first num_seen, whether none of those is near: word sets at NEAR_JACCARD or more.

    A score over these rows alone says what a model does on prompts unlike those it was trained on.
    """
    equal, near = near_pairs(texts, progress)
    is_near = np.zeros(len(texts), bool)
    # Seen rows come first, so of equal word sets the first is a seen row if any is.
    for a, b in (near.T, equal.T):
        is_near[b[(a < num_seen) & (b >= num_seen)]] = True
    is_near[equal[is_near[equal[:, 0]], 1]] = True
    return ~is_near[num_seen:]


def _order(name: str, ids: Any, seed: int) -> Any:
    """The order of a draw: it depends on seed and content, not on where rows stand in the file."""
    digests = bytearray()
    for id in ids.tolist():
        digests += hashlib.sha256(f"{seed}:{name}:{id:016x}".encode()).digest()[:16]
    high, low = np.frombuffer(bytes(digests), ">u8").reshape(-1, 2).T
    return np.lexsort((low, high))


def quotas(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Split `total` over strata in proportion to their sizes, by largest remainder; ties by name."""
    num_rows = sum(sizes.values())
    exact = {k: total * n / num_rows for k, n in sizes.items()}
    share = {k: int(v) for k, v in exact.items()}
    rest = sorted(exact, key=lambda k: (share[k] - exact[k], k))
    for k in rest[: total - sum(share.values())]:
        share[k] += 1
    return share


def draw(items: Items, cluster_N: Any, num_rows: int, *, name: str, seed: int, is_classify: bool) -> Any:
    """Row numbers held out, ascending: whole clusters, about num_rows in all, labels in proportion.

    A label keeps at least one row on the training side.
    """
    labels, code_N = _strata(items, is_classify)
    sizes = dict(zip(labels, np.bincount(code_N, minlength=len(labels)).tolist(), strict=True))
    share = quotas(sizes, num_rows)
    quota, left = [share[label] for label in labels], [sizes[label] for label in labels]
    by_cluster = np.argsort(cluster_N, kind="stable")
    starts = np.flatnonzero(np.diff(cluster_N[by_cluster], prepend=-1))
    ends = np.append(starts[1:], len(items))
    lowest_ids = np.minimum.reduceat(items.ids[by_cluster], starts) if len(items) else np.zeros(0, np.uint64)
    ordered = _order(name, lowest_ids, seed)
    taken: set[int] = set()
    for is_strict in (True, False):  # the second pass fills what clusters too large for their label's quota left open
        for at in ordered:
            if len(taken) >= num_rows:
                break
            cluster = by_cluster[starts[at] : ends[at]].tolist()
            need = Counter(code_N[cluster].tolist())
            if cluster[0] in taken or any(left[s] - n < 1 for s, n in need.items()):
                continue
            if len(taken) + len(cluster) > num_rows + max(1, num_rows // 20):
                continue
            # A cluster may overshoot a quota by less than the quota itself, so quotas are met on average.
            if is_strict and any(n > max(quota[s], 2 * quota[s] - 1) for s, n in need.items()):
                continue
            taken.update(cluster)
            for s, n in need.items():
                quota[s] -= n
                left[s] -= n
    return np.array(sorted(taken), np.int64)


def sample(items: Items, num_rows: int, *, name: str, seed: int, is_classify: bool) -> Any:
    """Row numbers of exactly min(num_rows, all) rows, ascending, labels in proportion, the same for the same seed."""
    if num_rows >= len(items):
        return np.arange(len(items))
    labels, code_N = _strata(items, is_classify)
    order = _order(name, items.ids, seed)
    members = dict(zip(labels, grouped(order, code_N[order], len(labels)), strict=True))
    share = quotas({label: len(rows) for label, rows in members.items()}, num_rows)
    return np.sort(np.concatenate([rows[: share[label]] for label, rows in members.items()]))


def _strata(items: Items, is_classify: bool) -> tuple[list[str], Any]:
    return items.labels() if is_classify else ([""], np.zeros(len(items), np.int64))
