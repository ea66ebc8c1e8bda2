"""Pairs of texts whose word sets overlap: an exact Jaccard join by prefix filtering, in arrays.

N rows, T words of all rows, P pairs. Source: Chaudhuri et al. 2006 (prefixes of the rarest words), Wang et al. 2012
(prefixes that share two words), Sandes et al. 2017 (bitmaps before the exact count).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from ..records import Progress

NEAR_JACCARD = 0.8
NEIGHBOURS_IN_BUCKET = 20  # in buckets larger than this each row is compared with so many next ones
# Rows up to the second size meet by two rare words, rows from the first size on by one: every pair of sizes that can
# be near is on one side (48 / 0.8 = 60).
ONE_WORD_FROM, TWO_WORDS_TO = 48, 60
# Bounds on what is held at a time.
ROWS_PER_READ, ROWS_PER_BLOCK, PAIRS_PER_BLOCK, ROWS_PER_PASS = 10_000, 50_000, 200_000, 250_000
MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, so multiplication loses nothing (2^64 / golden ratio)
WORD = re.compile(r"\w+")


class Numbering(dict[str, int]):
    """Words numbered as they come."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


def near_pairs(texts: Sequence[str], progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (first, second) of normalised texts with equal word sets, and of those with nearly equal ones.

    Near: Jaccard similarity of NEAR_JACCARD or more, verified exactly. Each text is equal to the first of its word
    set, by ascending second; only that first one is near to others. Texts without words are alone.
    """
    ids_T, starts_N = _word_sets(texts, progress)
    size_N = np.diff(starts_N)
    any_V = np.random.default_rng(0).integers(1, 2**63, int(ids_T.max(initial=0)) + 1, dtype=np.uint64)
    sums = [sums_by_row(any_V[ids_T[words]], starts) for _, words, starts in blocks(starts_N)]
    _, first_of, group_N = np.unique(np.concatenate(sums), return_index=True, return_inverse=True)
    first_N = first_of[group_N]
    del sums, first_of, group_N
    is_first_N = first_N == np.arange(len(texts))
    repeated = np.flatnonzero(~is_first_N & (size_N > 0))
    equal = np.stack([first_N[repeated], repeated], axis=1)
    distinct = np.flatnonzero(is_first_N & (size_N > 3))  # of three words or fewer only equal sets are near
    bits_N = _bits(ids_T, starts_N)
    num_passes = 1 + len(distinct) // ROWS_PER_PASS
    found = [np.zeros(0, np.int64)]
    for part in range(num_passes):
        progress("comparing near-duplicates", part, num_passes)
        key, owner = _prefix_keys(ids_T, starts_N, distinct, part, num_passes)
        found.append(_close(key, owner, size_N, bits_N))
    codes = np.unique(np.concatenate(found))
    near = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(codes), PAIRS_PER_BLOCK):
        pair_P2 = np.stack(np.divmod(codes[start : start + PAIRS_PER_BLOCK], len(texts)), axis=1)
        a, b = pair_P2.T
        num_shared = _num_shared(a, b, ids_T, starts_N)
        near.append(pair_P2[num_shared >= NEAR_JACCARD * (size_N[a] + size_N[b] - num_shared) - 1e-9])
    return equal, np.concatenate(near)


def blocks(starts_N: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Rows a block at a time: which rows, which words of all rows, and where each row's words start in the block."""
    num_rows = len(starts_N) - 1
    for begin in range(0, max(num_rows, 1), ROWS_PER_BLOCK):
        end = min(begin + ROWS_PER_BLOCK, num_rows)
        first, last = int(starts_N[begin]), int(starts_N[end])
        yield slice(begin, end), slice(first, last), starts_N[begin : end + 1] - first


def joined(parts: list[np.ndarray]) -> np.ndarray:
    """The parts, of one type, one after another; the list is emptied on the way, so that no part is held twice."""
    whole = np.empty(sum(map(len, parts)), parts[0].dtype)
    at = len(whole)
    while parts:
        part = parts.pop()
        whole[at - len(part) : at] = part
        at -= len(part)
    return whole


def sums_by_row(values_T: np.ndarray, starts_N: np.ndarray) -> np.ndarray:
    """The sum of each row's values, modulo 2^64; rows may be empty."""
    total = np.concatenate([np.zeros(1, values_T.dtype), np.cumsum(values_T)])
    sums: np.ndarray = total[starts_N[1:]] - total[starts_N[:-1]]
    return sums


def _word_sets(texts: Sequence[str], progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """Words of each text, each once, numbered and ordered from the rarest of all texts to the most frequent."""
    number = Numbering()
    parts, sizes = [np.zeros(0, np.int32)], np.zeros(len(texts) + 1, np.int64)
    for start in range(0, len(texts), ROWS_PER_READ):
        progress("looking for near-duplicates", start, len(texts))
        flat: list[str] = []
        for row, text in enumerate(texts[start : start + ROWS_PER_READ], start + 1):
            found = sorted(set(WORD.findall(text)))
            sizes[row] = len(found)
            flat += found
        parts.append(np.fromiter(map(number.__getitem__, flat), np.int32, len(flat)))
    num_words = max(len(number), 1)
    del number
    ids_T, starts_N = joined(parts), np.cumsum(sizes)
    rank_V = np.empty(num_words, np.int64)
    rank_V[np.argsort(np.bincount(ids_T, minlength=num_words), kind="stable")] = np.arange(num_words)
    for _, words, starts in blocks(starts_N):
        keys = np.repeat(np.arange(len(starts) - 1), np.diff(starts)) * num_words + rank_V[ids_T[words]]
        keys.sort()
        ids_T[words] = keys % num_words
    return ids_T, starts_N


def _bits(ids_T: np.ndarray, starts_N: np.ndarray) -> np.ndarray:
    """Two bitmaps of 64 bits a row, a bit of each set by each word: rows with different bits differ in a word."""
    bits_N = np.zeros((len(starts_N) - 1, 2), np.uint64)
    for rows, words, starts in blocks(starts_N):
        row = np.repeat(np.arange(rows.start, rows.stop), np.diff(starts))
        hashed = ids_T[words].astype(np.uint64) * MIX
        for half in range(2):
            bit = np.uint64(1) << ((hashed >> np.uint64(40 + 8 * half)) & np.uint64(63))
            np.bitwise_or.at(bits_N[:, half], row, bit)
    return bits_N


def _prefix_keys(
    ids_T: np.ndarray, starts_N: np.ndarray, rows: np.ndarray, part: int, num_parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keys two near rows have in common, sorted, with their rows: of n words any two of the rarest n - ceil(0.8 n) + 2.

    Only the keys of one of num_parts parts, so that not all have to be held at once.
    """
    keys, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]

    def add(key: np.ndarray, members: np.ndarray) -> None:
        mine = (key >> np.uint64(40)) % np.uint64(num_parts) == part
        keys.append(key[mine])
        owners.append(members[mine])

    sizes = (starts_N[rows + 1] - starts_N[rows]).astype(np.int64)
    for size in np.unique(sizes).tolist():
        members = rows[sizes == size].astype(np.int32)
        spare = size - int(np.ceil(NEAR_JACCARD * size - 1e-9))
        words = ids_T[starts_N[members][:, None] + np.arange(spare + 2)].astype(np.uint64) + np.uint64(1)
        if size <= TWO_WORDS_TO:
            for i, j in combinations(range(spare + 2), 2):
                add((words[:, i] * MIX + words[:, j]) * MIX, members)
        if size >= ONE_WORD_FROM:
            for i in range(spare + 1):
                add(words[:, i] * MIX, members)
    key, owner = np.concatenate(keys), np.concatenate(owners)
    order = np.argsort(key, kind="stable")
    return key[order], owner[order]


def _close(key: np.ndarray, owner: np.ndarray, size_N: np.ndarray, bits_N: np.ndarray) -> np.ndarray:
    """Codes low * N + high of pairs of rows with a key in common that sizes and bitmaps do not tell apart."""
    num_rows = len(size_N)
    found = [np.zeros(0, np.int64)]
    at = np.arange(len(key))
    for step in range(1, NEIGHBOURS_IN_BUCKET + 1):
        at = at[at + step < len(key)]
        at = at[key[at] == key[at + step]]
        a, b = owner[at].astype(np.int64), owner[at + step].astype(np.int64)
        # Words in one set alone are at most a ninth of both sizes at 0.8, and each sets at most one bit a bitmap.
        most = (size_N[a] + size_N[b]) * ((1 - NEAR_JACCARD) / (1 + NEAR_JACCARD)) + 1e-9
        differing = np.bitwise_count(bits_N[a] ^ bits_N[b]).max(axis=1)
        keep = (differing <= most) & (np.abs(size_N[a] - size_N[b]) <= most) & (a != b)
        found.append(np.minimum(a, b)[keep] * num_rows + np.maximum(a, b)[keep])
    return np.unique(np.concatenate(found))


def _num_shared(a_P: np.ndarray, b_P: np.ndarray, ids_T: np.ndarray, starts_N: np.ndarray) -> np.ndarray:
    """How many words both rows of each pair have."""
    num_words = int(ids_T.max(initial=0)) + 1
    parts = []
    for rows in (a_P, b_P):
        sizes = starts_N[rows + 1] - starts_N[rows]
        pair = np.repeat(np.arange(len(rows)), sizes)
        within = np.arange(len(pair)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        parts.append(pair * num_words + ids_T[starts_N[rows][pair] + within])
    both = np.sort(np.concatenate(parts))
    return np.bincount(both[:-1][both[:-1] == both[1:]] // num_words, minlength=len(a_P))
