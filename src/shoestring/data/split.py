"""Held-out rows: whole clusters of alike prompts on one side, labels in proportion, the same for the same seed."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from ..records import Progress
from .clean import Item
from .normalise import normalise

NEAR_JACCARD = 0.8
# MinHash signature of 20 bands x 5 values: a pair at Jaccard 0.8 meets in a band with probability
# 1 - (1 - 0.8^5)^20 = 0.9996 (Leskovec et al., Mining of Massive Datasets, section 3.4).
NUM_BANDS, BAND_SIZE = 20, 5
ESTIMATE_MARGIN = 0.2  # five standard deviations of the estimate from 100 values at 0.8
MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, so multiplication loses nothing (2^64 / golden ratio)
NEIGHBOURS_IN_BUCKET = 20  # in buckets larger than this each row is compared with so many next ones
MAX_CLUSTER_FRAC = 0.1  # text from a template would chain into one cluster; then only equal prompts go together
SHARED_FRAC = 0.9  # an opening that so many rows have is an instruction, not what they say
WORD = re.compile(r"\w+")


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


def clusters_of(items: Sequence[Item], progress: Progress) -> tuple[list[list[int]], list[str]]:
    """Row numbers by cluster: same conversation, same prompt, or word sets alike at NEAR_JACCARD.

    Also returns notes. Clusters above MAX_CLUSTER_FRAC of the rows fall back to equal prompts.
    """
    notes: list[str] = []
    sure = Forest(len(items))
    first_by_key: dict[object, int] = {}
    for index, item in enumerate(items):
        for key in (item.prompt_key, id(item.row)):
            sure.join(first_by_key.setdefault(key, index), index)
    near = Forest(len(items))
    for index in range(len(items)):
        near.join(sure.root(index), index)
    for a, b in near_pairs(compared_texts(items), progress):
        near.join(a, b)
    members: dict[int, list[int]] = defaultdict(list)
    for index in range(len(items)):
        members[near.root(index)].append(index)
    limit = max(MAX_CLUSTER_FRAC * len(items), 10)
    clusters: list[list[int]] = []
    for group in members.values():
        if len(group) <= limit:
            clusters.append(group)
            continue
        by_sure: dict[int, list[int]] = defaultdict(list)
        for index in group:
            by_sure[sure.root(index)].append(index)
        clusters += by_sure.values()
        notes.append(
            f"{len(group)} rows are alike as if from one template; among them only equal prompts are kept on one side"
        )
    return clusters, notes


def compared_texts(items: Sequence[Item]) -> list[str]:
    """What the users say, normalised, without an instruction that nearly all rows begin with.

    What all rows share, system prompts as well, must not make them alike.
    """
    # The key of a single message has been normalised already.
    words = [
        (item.prompt_key if len(item.example.prompt) == 1 else normalise(item.example.user_text)).split()
        for item in items
    ]
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


def num_near(train: Sequence[Item], held_out: Sequence[Item], progress: Progress) -> int:
    """How many held-out rows have a training row at NEAR_JACCARD or more."""
    pairs = near_pairs(compared_texts([*train, *held_out]), progress)
    # Training rows come first, so of equal word sets the first is a training row if any is.
    near = {b for a, b in pairs if a < len(train) <= b}
    near |= {b for a, b in pairs if a in near and b >= len(train)}
    return len(near)


def near_pairs(texts: Sequence[str], progress: Progress) -> list[tuple[int, int]]:
    """Pairs of normalised texts whose word sets have Jaccard similarity of at least NEAR_JACCARD, verified exactly."""
    word_sets = [frozenset(WORD.findall(text)) for text in texts]
    first: dict[frozenset[str], int] = {}
    pairs = [(first[words], i) for i, words in enumerate(word_sets) if words and first.setdefault(words, i) != i]
    distinct = [i for words, i in first.items() if words]
    if len(distinct) < 2:
        return pairs
    signature = _signatures([word_sets[i] for i in distinct], progress)
    for a, b in _candidates(signature, progress):
        x, y = word_sets[distinct[a]], word_sets[distinct[b]]
        if min(len(x), len(y)) < NEAR_JACCARD * max(len(x), len(y)):
            continue
        num_shared = len(x & y)
        if num_shared >= NEAR_JACCARD * (len(x) + len(y) - num_shared):
            pairs.append((distinct[a], distinct[b]))
    return pairs


def _signatures(word_sets: list[frozenset[str]], progress: Progress) -> np.ndarray:
    """MinHash values, one row a set: the least of h(word) over its words, for each of 100 hashes h."""
    number: dict[str, int] = {}
    flat = np.fromiter((number.setdefault(w, len(number)) for words in word_sets for w in words), np.int64)
    starts = np.cumsum([0, *(len(words) for words in word_sets[:-1])])
    words_V = np.array([zlib.crc32(w.encode("utf-8", "surrogatepass")) for w in number], np.uint64)
    rng = np.random.default_rng(0)  # fixed: which rows are near does not depend on the run's seed
    num_hashes = NUM_BANDS * BAND_SIZE
    factors = rng.integers(1, 2**63, num_hashes, dtype=np.uint64) | np.uint64(1)
    offsets = rng.integers(0, 2**63, num_hashes, dtype=np.uint64)
    signature = np.empty((len(word_sets), num_hashes), np.uint32)
    for h in range(num_hashes):
        if h % 10 == 0:
            progress("looking for near-duplicates", h, num_hashes)
        # Multiply-shift hashing (Dietzfelbinger et al. 1997); the product wraps at 64 bits on purpose.
        hashed_V = ((words_V * factors[h] + offsets[h]) >> np.uint64(32)).astype(np.uint32)
        signature[:, h] = np.minimum.reduceat(hashed_V[flat], starts)
    return signature


def _candidates(signature: np.ndarray, progress: Progress) -> list[tuple[int, int]]:
    """Pairs that share a band and whose signatures agree nearly as much as NEAR_JACCARD asks."""
    found: set[int] = set()
    num_rows = len(signature)
    for band in range(NUM_BANDS):
        progress("comparing near-duplicates", band, NUM_BANDS)
        keys = np.zeros(num_rows, np.uint64)
        for value in signature[:, band * BAND_SIZE : (band + 1) * BAND_SIZE].T:
            keys = keys * MIX + value  # bands that collide by chance are sorted out by the signatures
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        for step in range(1, NEIGHBOURS_IN_BUCKET + 1):
            if step >= num_rows:
                break
            same = np.flatnonzero(ordered[step:] == ordered[:-step])
            if not len(same):
                break
            left, right = order[same], order[same + step]
            for start in range(0, len(left), 100_000):
                a, b = left[start : start + 100_000], right[start : start + 100_000]
                agree = (signature[a] == signature[b]).mean(axis=1)
                close = agree >= NEAR_JACCARD - ESTIMATE_MARGIN
                low, high = np.minimum(a[close], b[close]), np.maximum(a[close], b[close])
                found.update((low.astype(np.int64) * num_rows + high).tolist())
    return [divmod(code, num_rows) for code in sorted(found)]


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
    ordered = sorted(clusters, key=lambda c: _order(name, [items[i].example.id for i in c], seed))
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
        members.sort(key=lambda i: (_order(name, [items[i].example.id], seed), i))
        chosen.update(members[: quota[stratum]])
    return chosen
