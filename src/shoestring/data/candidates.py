"""Which rows may ask the same: by sums over words, so that nothing else has to be compared.

N rows, T words of all rows, V distinct words. Every row has a sum of random numbers, one a content word, so the sum
does not depend on the order of words, and a word less is one subtraction. Rows are candidates if their sums are
equal, or are after one word is left out or typing errors are put right, or if they are equal without spaces; long rows
also if their word sets overlap. The idea is that of deletion neighbourhoods (Bocek et al. 2007), over words instead
of letters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ..records import Progress
from .difference import (
    COMMON_RATIO,
    EMPTY,
    FRAME,
    MIN_SHARED,
    RARE_COUNT,
    WORD,
    fold,
    is_light,
    is_protected,
    is_typo,
    unify,
)
from .overlap import ROWS_PER_READ, Numbering, blocks, joined, near_pairs, sums_by_row

NEIGHBOURS = 8  # rows with one sum that a row is compared with
TYPO_LETTERS = range(3, 25)  # lengths of words in which typing errors are looked for
TYPO_NEIGHBOURS = 64  # words with one hash that a word is compared with
FIXES_PER_ROW = 12
WORDS_PER_BLOCK = 100_000  # whose letters are held at a time
LONG_WORDS = 20  # rows with so many content words may differ in more than one place
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, of a polynomial hash modulo 2^64 (2^64 / golden ratio)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows as word numbers: those of row n are ids_T[starts_N[n]:starts_N[n + 1]]."""

    vocabulary: list[str]
    ids_T: np.ndarray
    starts_N: np.ndarray  # N + 1 values
    is_name_V: np.ndarray

    def words(self, row: int) -> list[str]:
        """The folded words of a row."""
        return [self.vocabulary[i] for i in self.ids_T[self.starts_N[row] : self.starts_N[row + 1]].tolist()]

    def part(self, rows: slice, words: slice, starts_N: np.ndarray) -> Encoded:
        """A block of the rows, as overlap.blocks gives it."""
        return Encoded(self.vocabulary, self.ids_T[words], starts_N, self.is_name_V)

    @property
    def row_T(self) -> np.ndarray:
        """The row number of every word."""
        return np.repeat(np.arange(len(self.starts_N) - 1, dtype=np.int32), np.diff(self.starts_N))


def encode_rows(texts: Sequence[str], progress: Progress) -> Encoded:
    """Word numbers of the texts. Words are folded once a distinct spelling, not once an occurrence."""
    number = Numbering()
    parts, sizes = [np.zeros(0, np.int32)], []
    for start in range(0, len(texts), ROWS_PER_READ):
        progress("reading words", start, len(texts))
        found = [WORD.findall(unify(text)) for text in texts[start : start + ROWS_PER_READ]]
        sizes.append(np.fromiter(map(len, found), np.int64, len(found)))
        parts.append(np.fromiter(map(number.__getitem__, chain.from_iterable(found)), np.int32))
    num_spellings = len(number)
    spellings = list(reversed(number))
    number.clear()
    first, second = np.zeros(num_spellings, np.int32), np.full(num_spellings, -1, np.int32)
    is_upper = np.zeros(num_spellings, bool)
    for i in range(num_spellings):
        spelling = spellings.pop()
        is_upper[i] = spelling[0].isupper()
        folded = fold(spelling)
        first[i] = number[folded[0]]
        if len(folded) > 1:
            second[i] = number[folded[1]]
    vocabulary = list(number)
    del number, spellings
    num_inner_V, num_upper_V = np.zeros((2, len(vocabulary)), np.int64)
    for at, size in enumerate(sizes, 1):
        raw = parts[at]
        is_inner = np.ones(len(raw), bool)  # not the first word of its row
        is_inner[(np.cumsum(size) - size)[size > 0]] = False
        np.add.at(num_inner_V, first[raw[is_inner]], 1)
        np.add.at(num_upper_V, first[raw[is_inner & is_upper[raw]]], 1)
        is_double = second[raw] >= 0
        place = np.arange(len(raw)) + np.cumsum(is_double) - is_double
        ids = np.empty(len(raw) + int(is_double.sum()), np.int32)
        ids[place] = first[raw]
        ids[place[is_double] + 1] = second[raw[is_double]]
        ends = np.concatenate([place, [len(ids)]])[np.cumsum(size)]
        parts[at], sizes[at - 1] = ids, np.diff(ends, prepend=0)
    starts_N = np.cumsum(np.concatenate([np.zeros(1, np.int64), *sizes]))
    is_name_V = (2 * num_upper_V > num_inner_V) & (num_upper_V > 0)
    return Encoded(vocabulary, joined(parts), starts_N, is_name_V)


def powers(count: int) -> np.ndarray:
    """BASE to the 0th, 1st, ... power, modulo 2^64."""
    values = np.full(count, BASE, np.uint64)
    values[:1] = 1
    return np.multiply.accumulate(values)


# ---- typing errors --------------------------------------------------------------------------


def typing_errors(vocabulary: list[str], counts_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(misspelled, meant) word numbers; both ways round when both are rare. Pairs share a one-letter deletion."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, word in enumerate(vocabulary):
        if len(word) in TYPO_LETTERS and word.isalpha():
            by_length[len(word)].append(i)
    keys, owners = [], []
    for length, members in sorted(by_length.items()):
        codes = np.array([vocabulary[i] for i in members], f"U{length}").view(np.uint32).reshape(-1, length)
        letters = codes.astype(np.uint64) * (codes.astype(np.uint64) + np.uint64(0x1000193))
        power = powers(length)
        whole = (letters * power).sum(axis=1)
        owner = np.array(members, np.int32)
        keys.append(whole)
        owners.append(owner)
        before = np.zeros(len(members), np.uint64)
        after = whole
        inverse = np.uint64(pow(int(BASE), -1, 2**64))
        for at in range(length):  # letters after the deleted one move down by one place
            after = after - letters[:, at] * power[at]
            keys.append(before + after * inverse)
            owners.append(owner)
            before = before + letters[:, at] * power[at]
    if not keys:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    key, owner = np.concatenate(keys), np.concatenate(owners)
    high, low = np.divmod(_pairs_in_buckets(key, owner, len(vocabulary), TYPO_NEIGHBOURS), len(vocabulary))
    rare = np.minimum(counts_V[low], counts_V[high])
    keep = (rare <= RARE_COUNT) | (rare * COMMON_RATIO <= np.maximum(counts_V[low], counts_V[high]))
    wrong, meant = [], []
    for a, b in zip(low[keep].tolist(), high[keep].tolist(), strict=True):
        num_a, num_b = int(counts_V[a]), int(counts_V[b])
        if is_typo(vocabulary[a], vocabulary[b], num_a, num_b):
            for x, y in ((a, b), (b, a)):
                if counts_V[x] <= max(RARE_COUNT, counts_V[y] // COMMON_RATIO):
                    wrong.append(x)
                    meant.append(y)
    return np.array(wrong, np.int64), np.array(meant, np.int64)


# ---- candidates -----------------------------------------------------------------------------


def _pairs_in_buckets(key: np.ndarray, owner: np.ndarray, num: int, neighbours: int) -> np.ndarray:
    """Codes high * num + low of pairs of owners with an equal key; in large buckets each with so many next ones."""
    order = np.argsort(key, kind="stable")
    key, owner = key[order], owner[order].astype(np.int64)
    found = [np.zeros(0, np.int64)]
    at = np.arange(len(key))
    for step in range(1, neighbours + 1):
        at = at[at + step < len(key)]
        at = at[key[at] == key[at + step]]
        if not len(at):
            break
        a, b = owner[at], owner[at + step]
        low, high = np.minimum(a, b), np.maximum(a, b)
        found.append((high * num + low)[low != high])
    return np.unique(np.concatenate(found))


def _lookups(query: np.ndarray, owner: np.ndarray, sorted_N: np.ndarray, order_N: np.ndarray) -> np.ndarray:
    """Codes high * N + low of pairs of an owner and a row whose sum is the owner's query."""
    num_rows = len(sorted_N)
    found = [np.zeros(0, np.int64)]
    order = np.argsort(query)  # sorted queries walk through memory in one direction
    query, owner = query[order], owner[order]
    at = np.searchsorted(sorted_N, query)
    for _ in range(NEIGHBOURS):
        inside = at < num_rows
        at, query, owner = at[inside], query[inside], owner[inside]
        equal = sorted_N[at] == query
        at, query, owner = at[equal], query[equal], owner[equal]
        row = order_N[at]
        low, high = np.minimum(row, owner), np.maximum(row, owner)
        found.append((high * num_rows + low)[low != high])
        at = at + 1
    return np.unique(np.concatenate(found))


def candidates(rows: Encoded, counts_V: np.ndarray, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """(first, second) row numbers that may mean the same, ordered by second, then first."""
    num_rows = len(rows.starts_N) - 1
    weights = _weights(rows.vocabulary)
    sums_N, joined_N = np.zeros((2, num_rows), np.uint64)
    num_content_N = np.zeros(num_rows, np.int32)
    hashes_V, length_V = _letters(rows.vocabulary)
    for block in blocks(rows.starts_N):
        progress("summing words", block[0].start, num_rows)
        part = rows.part(*block)
        sums_N[block[0]], num_content_N[block[0]] = _sums(part, weights)
        joined_N[block[0]] = _joined(part, hashes_V, length_V)
    found = [_pairs_in_buckets(key_N, np.arange(num_rows), num_rows, NEIGHBOURS) for key_N in (sums_N, joined_N)]

    order_N = np.argsort(sums_N, kind="stable")
    sorted_N = sums_N[order_N]
    fixes = _fixes(rows.vocabulary, counts_V, weights)
    for block in blocks(rows.starts_N):
        progress("leaving words out and putting typing errors right", block[0].start, num_rows)
        part = rows.part(*block)
        for query, owner in (
            _left_out(part, weights, sums_N[block[0]], num_content_N[block[0]]),
            _corrected(part, fixes, sums_N[block[0]]),
        ):
            found.append(_lookups(query, owner.astype(np.int64) + block[0].start, sorted_N, order_N))

    long = np.flatnonzero(num_content_N >= LONG_WORDS)
    for pairs in near_pairs([" ".join(rows.words(row)) for row in long.tolist()], progress):
        low, high = long[pairs].T
        found.append(high * num_rows + low)
    codes = np.unique(np.concatenate(found))
    return codes % num_rows, codes // num_rows


@dataclass(frozen=True, slots=True)
class _Weights:
    """A random number a word: any_V for all, weight_V zero for light words; and what kinds of words there are."""

    any_V: np.ndarray
    weight_V: np.ndarray
    light_V: np.ndarray
    fixed_V: np.ndarray  # never left out
    frame_V: np.ndarray
    empty_V: np.ndarray


def _weights(vocabulary: list[str]) -> _Weights:
    any_V = np.random.default_rng(0).integers(1, 2**63, len(vocabulary), dtype=np.uint64)
    # Singular and plural count as one.
    plurals = {word[:-1]: i for i, word in enumerate(vocabulary) if word.endswith("s") and len(word) > 3}
    singulars = [(plurals[word], i) for i, word in enumerate(vocabulary) if word in plurals]
    for plural, singular in sorted(singulars):
        any_V[plural] = any_V[singular]
    light_V, fixed_V, frame_V, empty_V = (
        np.fromiter(map(test, vocabulary), bool, len(vocabulary))
        for test in (is_light, is_protected, FRAME.__contains__, EMPTY.__contains__)
    )
    return _Weights(any_V, np.where(light_V, np.uint64(0), any_V), light_V, fixed_V, frame_V, empty_V)


def _sums(rows: Encoded, weights: _Weights) -> tuple[np.ndarray, np.ndarray]:
    """Each row's sum and its number of content words.

    With too few of those, of all words that are not empty, between the runs of frame words at both ends.
    """
    ids_T, row_T = rows.ids_T, rows.row_T
    num_content_N = sums_by_row((~weights.light_V[ids_T]).astype(np.int32), rows.starts_N)
    is_thin_N = num_content_N < MIN_SHARED
    solid = np.flatnonzero(~weights.frame_V[ids_T])
    begin_N, end_N = np.full(len(is_thin_N), len(row_T)), np.full(len(is_thin_N), -1)
    np.minimum.at(begin_N, row_T[solid], solid)
    np.maximum.at(end_N, row_T[solid], solid)
    at_T = np.arange(len(row_T))
    is_inside_T = (at_T >= begin_N[row_T]) & (at_T <= end_N[row_T]) & ~weights.empty_V[ids_T]
    thin_T = np.where(is_inside_T, weights.any_V[ids_T], np.uint64(0))
    values_T = np.where(is_thin_N[row_T], thin_T, weights.weight_V[ids_T])
    sums_N = sums_by_row(values_T, rows.starts_N)
    sums_N[is_thin_N] += BASE
    return sums_N, num_content_N


def _left_out(
    rows: Encoded, weights: _Weights, sums_N: np.ndarray, num_content_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of each row without each of its content words that may go, and the row."""
    may_go_V = ~(weights.light_V | weights.fixed_V)
    owner = rows.row_T
    at = np.flatnonzero(may_go_V[rows.ids_T] & (num_content_N >= MIN_SHARED)[owner])
    return sums_N[owner[at]] - weights.weight_V[rows.ids_T[at]], owner[at]


def _fixes(vocabulary: list[str], counts_V: np.ndarray, weights: _Weights) -> tuple[np.ndarray, np.ndarray]:
    """What each correction adds to a sum, those of one word together, and where each word's begin."""
    wrong, meant = typing_errors(vocabulary, counts_V)
    order = np.argsort(wrong, kind="stable")
    change = weights.weight_V[meant[order]] - weights.weight_V[wrong[order]]
    return change, np.searchsorted(wrong[order], np.arange(len(vocabulary) + 1))


def _corrected(
    rows: Encoded, fixes: tuple[np.ndarray, np.ndarray], sums_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of each row with one typing error put right, or two, and the row."""
    change_of, begin_V = fixes
    num_fixes_V = np.diff(begin_V)
    at = np.flatnonzero(num_fixes_V[rows.ids_T])
    repeats = num_fixes_V[rows.ids_T[at]]
    place = np.repeat(at, repeats)
    nth = np.arange(len(place)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    change = change_of[begin_V[rows.ids_T[place]] + nth]
    owner = rows.row_T[place]
    queries, owners = [sums_N[owner] + change], [owner]
    for step in range(1, FIXES_PER_ROW + 1):
        same = np.flatnonzero((owner[step:] == owner[:-step]) & (place[step:] != place[:-step]))
        queries.append(sums_N[owner[same]] + change[same] + change[same + step])
        owners.append(owner[same])
    return np.concatenate(queries), np.concatenate(owners)


def _letters(vocabulary: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """A polynomial hash of each word's letters and their number."""
    length_V = np.fromiter(map(len, vocabulary), np.int64, len(vocabulary))
    power = powers(int(length_V.max(initial=0)) + 1)
    hashes_V = np.zeros(len(vocabulary), np.uint64)
    for start in range(0, len(vocabulary), WORDS_PER_BLOCK):
        part = slice(start, start + WORDS_PER_BLOCK)
        letters = np.frombuffer("".join(vocabulary[part]).encode("utf-32-le", "surrogatepass"), np.uint32)
        ends = np.cumsum(length_V[part])
        at = np.arange(len(letters)) - np.repeat(ends - length_V[part], length_V[part])
        hashes_V[part] = sums_by_row(letters.astype(np.uint64) * power[at], np.concatenate([[0], ends]))
    return hashes_V, length_V


def _joined(rows: Encoded, hashes_V: np.ndarray, length_V: np.ndarray) -> np.ndarray:
    """A hash of each row's letters, its words written together; light words included."""
    ends_T = np.cumsum(length_V[rows.ids_T])
    starts_T = np.concatenate([[0], ends_T])
    offset_T = starts_T[:-1] - np.repeat(starts_T[rows.starts_N[:-1]], np.diff(rows.starts_N))
    return sums_by_row(hashes_V[rows.ids_T] * powers(int(offset_T.max(initial=0)) + 1)[offset_T], rows.starts_N)
