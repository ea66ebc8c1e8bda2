"""Held-out rows: whole clusters of alike prompts on one side, labels in proportion, the same for the same seed."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..records import Example, Progress
from .clean import Item
from .normalise import normalise, prompt_key
from .overlap import NEAR_JACCARD as NEAR_JACCARD
from .overlap import WORD
from .overlap import near_pairs as near_pairs

MAX_CLUSTER_FRAC = 0.1  # text from a template would chain into one cluster; then only equal prompts go together
SHARED_FRAC = 0.9  # an opening that so many rows have is an instruction, not what they say


class Forest:
    """Union-find over row numbers."""

    def __init__(self, size: int):
        self.parent = list(range(size))

    def root(self, node: int) -> int:
        while self.parent[node] != node:
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        if a != b:
            self.parent[max(a, b)] = min(a, b)


@dataclass
class Apart:
    """Rows that are near each other and yet may come to stand on two sides, because their cluster was too large.

    pairs: of record numbers, of equal word sets only the first takes part. first: record -> the first of its word set.
    """

    pairs: list[tuple[int, int]] = field(default_factory=list)
    first: dict[int, int] = field(default_factory=dict)

    def near(self, seen: Iterable[int], held_out: Iterable[int]) -> set[int]:
        """Those held-out records that are near to a seen one."""
        sets = {self.first.get(index, index) for index in seen}
        close = sets | {b for a, b in self.pairs if a in sets} | {a for a, b in self.pairs if b in sets}
        return {index for index in held_out if self.first.get(index, index) in close}


def clusters_of(items: Sequence[Item], progress: Progress) -> tuple[list[list[int]], Apart, list[str]]:
    """Row numbers by cluster: same conversation, same prompt, or word sets alike at NEAR_JACCARD.

    Also returns the pairs that this leaves apart, and notes. Clusters above MAX_CLUSTER_FRAC of the rows fall back to
    equal prompts.
    """
    notes: list[str] = []
    sure = Forest(len(items))
    for keys in ([item.prompt_hash for item in items], [item.row for item in items]):
        first_by_key: dict[int, int] = {}
        for index, key in enumerate(keys):
            sure.join(first_by_key.setdefault(key, index), index)
    near = Forest(len(items))
    for index in range(len(items)):
        near.join(sure.root(index), index)
    texts = compared_texts(items)
    pairs = near_pairs(texts, progress)
    for a, b in pairs:
        near.join(a, b)
    members: dict[int, list[int]] = defaultdict(list)
    for index in range(len(items)):
        members[near.root(index)].append(index)
    limit = max(MAX_CLUSTER_FRAC * len(items), 10)
    clusters: list[list[int]] = []
    too_large = set()
    for root, group in members.items():
        if len(group) <= limit:
            clusters.append(group)
            continue
        too_large.add(root)
        by_sure: dict[int, list[int]] = defaultdict(list)
        for index in group:
            by_sure[sure.root(index)].append(index)
        clusters += by_sure.values()
        notes.append(
            f"{len(group)} rows are alike as if from one template; among them only equal prompts are kept on one side"
        )
    apart = _apart(items, texts, [pair for pair in pairs if near.root(pair[0]) in too_large]) if too_large else Apart()
    return clusters, apart, notes


def _apart(items: Sequence[Item], texts: Sequence[str], pairs: Sequence[tuple[int, int]]) -> Apart:
    apart = Apart()
    words = {row: _words(texts[row]) for pair in pairs for row in pair}
    for a, b in pairs:
        first, second = items[a].index, items[b].index
        if words[a] == words[b]:
            apart.first[second] = first
        else:
            apart.pairs.append((first, second))
    return apart


def compared_texts(items: Sequence[Item]) -> list[str]:
    """What the users say, normalised, without an instruction that nearly all rows begin with.

    What all rows share, system prompts as well, must not make them alike.
    """
    words = [_said(item.example).split() for item in items]
    num_shared, shared = 0, [True] * len(words)
    while words:
        having = [i for i, row in enumerate(words) if shared[i] and len(row) > num_shared + 1]
        if not having:
            break
        word, num_rows = Counter(words[i][num_shared] for i in having).most_common(1)[0]
        if num_rows < SHARED_FRAC * len(words):
            break
        shared = [shared[i] and len(row) > num_shared and row[num_shared] == word for i, row in enumerate(words)]
        num_shared += 1
    return [" ".join(row[num_shared:] if has else row) for row, has in zip(words, shared, strict=True)]


def _said(example: Example) -> str:
    return prompt_key(example) if len(example.prompt) == 1 else normalise(example.user_text)


def near_items(seen: Sequence[Item], held_out: Sequence[Item], progress: Progress) -> set[int]:
    """The held-out records with a seen one at NEAR_JACCARD or more."""
    texts = compared_texts([*seen, *held_out])
    far = far_rows(texts[: len(seen)], texts[len(seen) :], progress)
    return {item.index for item, is_far in zip(held_out, far, strict=True) if not is_far}


def far_rows(train_texts: Sequence[str], eval_texts: Sequence[str], progress: Progress) -> list[bool]:
    """For each held-out text, whether no training text is near: word sets at NEAR_JACCARD or more.

    A score over these rows alone says what a model does on prompts unlike those it was trained on.
    """
    num_train = len(train_texts)
    texts = [normalise(text) for text in (*train_texts, *eval_texts)]
    pairs = near_pairs(texts, progress)
    # Training rows come first, so of equal word sets the first is a training row if any is.
    near = {b for a, b in pairs if a < num_train <= b}
    near |= {b for a, b in pairs if a in near and b >= num_train and _words(texts[a]) == _words(texts[b])}
    return [num_train + i not in near for i in range(len(eval_texts))]


def _words(text: str) -> frozenset[str]:
    return frozenset(WORD.findall(text))


def _order(name: str, ids: list[str], seed: int) -> bytes:
    """A cluster's place in the draw: depends on seed and content, not on where it stands in the file."""
    return hashlib.sha256(f"{seed}:{name}:{min(ids)}".encode()).digest()


def quotas(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Split `total` over strata in proportion to their sizes, by largest remainder; ties by name."""
    num_rows = sum(sizes.values())
    exact = {k: total * n / num_rows for k, n in sizes.items()}
    share = {k: int(v) for k, v in exact.items()}
    rest = sorted(exact, key=lambda k: (share[k] - exact[k], k))
    for k in rest[: total - sum(share.values())]:
        share[k] += 1
    return share


def draw(
    items: Sequence[Item], clusters: list[list[int]], num_rows: int, *, name: str, seed: int, is_classify: bool
) -> set[int]:
    """Row numbers held out: whole clusters, about num_rows in all, labels in proportion.

    A label keeps at least one row on the training side.
    """
    strata = [item.example.completion if is_classify else "" for item in items]
    sizes = Counter(strata)
    left = dict(sizes)
    quota = quotas(sizes, num_rows)
    taken: set[int] = set()
    ordered = sorted(clusters, key=lambda c: _order(name, [items[i].id for i in c], seed))
    for is_strict in (True, False):  # the second pass fills what clusters too large for their label's quota left open
        for cluster in ordered:
            need = Counter(strata[i] for i in cluster)
            if len(taken) >= num_rows:
                return taken
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
    return taken


def sample(items: Sequence[Item], num_rows: int, *, name: str, seed: int, is_classify: bool) -> set[int]:
    """Row numbers of exactly min(num_rows, all) rows, labels in proportion, the same for the same seed."""
    if num_rows >= len(items):
        return set(range(len(items)))
    by_stratum: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        by_stratum[item.example.completion if is_classify else ""].append(index)
    quota = quotas({k: len(v) for k, v in by_stratum.items()}, num_rows)
    chosen: set[int] = set()
    for stratum, members in by_stratum.items():
        members.sort(key=lambda i: (_order(name, [items[i].id], seed), i))
        chosen.update(members[: quota[stratum]])
    return chosen
