"""Evidence coverage: does the text support each stated value, and does it state what no value covers?

For each slot a classifier reads the slot's value from the phrases that go with the slot (align.py), in folds that
keep a record's repeats together; rows whose text reads otherwise are relabelled and it is fitted once more, so
that it learns what silence looks like. Values that read alike (cheap, less than £20) count for each other as far
as the set takes them for each other, and a value that stands in the text word for word counts for itself.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...records import Example, Progress
from .align import ABSENT, MIN_VALUE_ROWS, RARE, Phrases, phrases_of, slot_shares, words
from .flat import record_in
from .threads import one_thread

MOSTLY = 0.8  # share of rows whose prompt or answer is a flat record
MIN_ROWS = 50
MAX_CLASSES = 60
MAX_FIT_ROWS = 6000
NUM_FOLDS = 4
NUM_FITS = 2
MIN_FOLD_RECORDS = 40
MIN_SHARE = 0.2  # of a phrase that a slot must explain to be read by
RELABEL_BELOW = 0.5  # probability of the stated value
UNSTATED_BELOW = 0.1  # probability that the text is silent on a slot the record leaves out
LITERAL_FRAC = 0.8  # of a value's words, weighted by rarity
LITERAL_WEIGHT = 0.5  # the classifier has seen part of the same evidence
LITERAL_PRIOR_ROWS = 5
QUOTED_WEIGHT = 1.0
UNREADABLE_FRAC = 0.5  # share of stated values that texts do not seem to support
LABEL_BELOW = 0.5  # share of rows that quote the value of a slot which every record states


@dataclass(frozen=True, slots=True)
class Doubt:
    """A slot in which record and text disagree. reads: what the text seems to say, ABSENT for nothing."""

    slot: str
    stated: str
    reads: str
    loss: float  # -log probability of what the record states


@dataclass(frozen=True, slots=True)
class Coverage:
    """is_answer: whether the records are the answers. losses: (rows,) summed over slots; doubts: one tuple a row."""

    is_answer: bool
    losses: Any
    doubts: list[tuple[Doubt, ...]]


def coverage(examples: Sequence[Example], *, seed: int, progress: Progress) -> Coverage | None:
    """Judge every row of a set in which prompts or answers are flat records; None when they are not.

    Rows whose record cannot be read have loss 0. Raises: MissingDependency without scikit-learn.
    """
    for is_answer in (True, False):
        sides = [(e.completion, e.user_text) if is_answer else (e.user_text, e.completion) for e in examples]
        records = [record_in(record) for record, _ in sides]
        if len(records) >= MIN_ROWS and sum(r is not None for r in records) >= MOSTLY * len(records):
            break
    else:
        return None
    usable = [i for i, record in enumerate(records) if record]
    if len(usable) < MIN_ROWS:  # records without any value
        return None
    with one_thread("checking records against their texts"):
        losses, doubts = _judge([records[i] or {} for i in usable], [sides[i][1] for i in usable], seed, progress)
    all_losses = np.zeros(len(examples))
    all_losses[usable] = losses
    all_doubts: list[tuple[Doubt, ...]] = [() for _ in examples]
    for i, found in zip(usable, doubts, strict=True):
        all_doubts[i] = tuple(found)
    return Coverage(is_answer, all_losses, all_doubts)


def _judge(
    records: list[dict[str, str]], texts: list[str], seed: int, progress: Progress
) -> tuple[Any, list[list[Doubt]]]:
    slots = sorted({slot for record in records for slot in record})
    stated = {slot: [record.get(slot, ABSENT) for record in records] for slot in slots}
    values = {slot: _common(column) for slot, column in stated.items()}
    found = phrases_of(texts)
    shares = slot_shares(values, found, seed)
    folds = _folds(records, seed)
    literal = _Literal(texts)
    losses = np.zeros(len(records))
    doubts: list[list[Doubt]] = [[] for _ in records]
    for number, slot in enumerate(slots):
        progress("coverage", number, len(slots))
        classes, y = np.unique(np.array([*values[slot], ABSENT], dtype=object).astype(str), return_inverse=True)
        y = y[:-1]
        is_absent = y == 0  # ABSENT sorts first
        is_quoted, log_ratio = literal.evidence(stated[slot], y, seed)
        share = shares[slot]
        if not is_absent.any() and is_quoted.mean() < LABEL_BELOW:  # a label: the whole text speaks for it
            share = np.ones(len(share))
        features = _features(found, share)
        if not features.nnz:
            continue
        # A text without any of the slot's phrases is silent on it: what the class ABSENT is to be learned from.
        is_silent = (np.diff(features.indptr) == 0) & ~is_quoted
        p_read = _read(features, y, np.where(is_silent, 0, y), len(classes), folds, is_quoted, seed)
        p = np.clip((p_read * _alike(p_read, y)[y]).sum(1), 1e-6, 1 - 1e-6)
        log_odds = np.log(p / (1 - p)) + LITERAL_WEIGHT * log_ratio
        # What is quoted is supported, even if the classifier has not learned so.
        log_odds = np.where(is_quoted, np.maximum(log_odds, QUOTED_WEIGHT * log_ratio), log_odds)
        loss = np.logaddexp(0, -log_odds)
        loss[is_absent] = np.maximum(0, math.log(UNSTATED_BELOW) - np.log(np.maximum(p_read[is_absent, 0], 1e-6)))
        if (loss[~is_absent] > math.log(2)).mean() > UNREADABLE_FRAC:
            continue  # an identifier, a constant, a date of entry: the text is not where it comes from
        losses += loss
        for row in np.flatnonzero(loss > -math.log(1 - RELABEL_BELOW)):
            others = p_read[row].copy()
            others[y[row]] = -1
            reads = int(others.argmax())
            if others[reads] > math.exp(-loss[row]):  # else it reads like nothing in particular
                doubts[row].append(Doubt(slot, stated[slot][row], str(classes[reads]), float(loss[row])))
    progress("coverage", len(slots), len(slots))
    return losses, doubts


def _common(column: Sequence[str]) -> list[str]:
    counts = Counter(column)
    common = {value for value, n in counts.most_common(MAX_CLASSES) if n >= MIN_VALUE_ROWS}
    return [value if value == ABSENT or value in common else RARE for value in column]


def _folds(records: list[dict[str, str]], seed: int) -> Any:
    """Equal records share a fold, as their texts may be copied from one another; few different ones cannot."""
    groups: dict[tuple[tuple[str, str], ...], int] = {}
    group = np.array([groups.setdefault(tuple(sorted(record.items())), len(groups)) for record in records])
    if len(groups) < MIN_FOLD_RECORDS:
        group = np.arange(len(records))
    return (np.random.default_rng(seed).permutation(int(group.max()) + 1) % NUM_FOLDS)[group]


def _features(found: Phrases, share: Any) -> Any:
    """(rows, phrases) sparse, 1 where a phrase that goes with the slot stands in the text."""
    from scipy.sparse import csr_matrix

    number = np.cumsum(share > MIN_SHARE) - 1
    rows = [number[row[share[row] > MIN_SHARE]] for row in found.rows]
    ends = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    columns = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    width = max(int((share > MIN_SHARE).sum()), 1)
    return csr_matrix((np.ones(len(columns)), columns, ends), shape=(len(rows), width))


def _read(features: Any, y: Any, target: Any, num_classes: int, folds: Any, is_quoted: Any, seed: int) -> Any:
    """(rows, classes) probability of each value given the text, by models that have not seen the row."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    p = np.full((len(y), num_classes), 1 / num_classes)
    for _ in range(NUM_FITS):
        p = np.full((len(y), num_classes), 1e-9)
        for fold in range(NUM_FOLDS):
            fit, judged = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            if len(fit) > MAX_FIT_ROWS:
                fit = np.sort(rng.permutation(fit)[:MAX_FIT_ROWS])
            seen = np.unique(target[fit])
            if len(seen) == 1 or not len(judged):
                p[np.ix_(judged, seen)] = 1
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits change no rank
                model = LogisticRegression(max_iter=50).fit(features[fit], target[fit])
            p[np.ix_(judged, model.classes_)] = np.maximum(model.predict_proba(features[judged]), 1e-9)
        stated = p[np.arange(len(y)), y]
        # A record that leaves the slot out must be contradicted more clearly than one that states it.
        doubted = (stated < np.where(y == 0, 0.2, RELABEL_BELOW)) & ~is_quoted
        target = np.where(doubted, p.argmax(1), y)
    return p


def _alike(p_read: Any, y: Any) -> Any:
    """(stated, read) 0-1: how often texts of one value read like another, relative to that other's own texts."""
    stated = np.zeros((p_read.shape[1], p_read.shape[1]))
    np.add.at(stated, y, p_read)
    stated /= np.maximum(np.bincount(y, minlength=len(stated)), 1)[:, None]
    alike = np.minimum(stated / np.maximum(np.diag(stated), 1e-9), 1)
    alike[:, 0] = alike[0] = 0  # silence is like nothing else
    np.fill_diagonal(alike, 1)
    return alike


class _Literal:
    """Whether values stand in texts word for word, and what that tells."""

    def __init__(self, texts: Sequence[str]):
        self.words = [set(words(text)) for text in texts]
        counts = Counter(word for row in self.words for word in row)
        self.rarity = {word: math.log((len(texts) + 1) / (n + 1)) + 0.1 for word, n in counts.items()}
        self.unseen = math.log(len(texts) + 1) + 0.1

    def stands(self, value: Sequence[str], row: int) -> bool:
        """Whether LITERAL_FRAC of a value's words, weighted by rarity, stand in the row's text."""
        weights = [self.rarity.get(word, self.unseen) for word in value]
        there = sum(w for word, w in zip(value, weights, strict=True) if word in self.words[row])
        return bool(value) and there >= LITERAL_FRAC * sum(weights)

    def evidence(self, column: Sequence[str], y: Any, seed: int) -> tuple[Any, Any]:
        """(rows,) whether the value is quoted, and log of how much likelier that is with the value stated than not."""
        tokens = {value: words(value) for value in set(column)}
        own = np.array([self.stands(tokens[value], row) for row, value in enumerate(column)])
        # The same values beside texts of other rows: how often they stand there by chance.
        order = np.random.default_rng(seed).permutation(len(column))
        shifted = np.roll(order, 1)
        values, rows = [column[i] for i in order], shifted
        differs = np.array([values[i] != column[row] for i, row in enumerate(rows)])
        chance = np.array([self.stands(tokens[v], row) for v, row in zip(values, rows, strict=True)])
        num_classes = int(y.max()) + 1
        is_stated = y > 0
        if not is_stated.any():
            return own, np.zeros(len(column))
        n_own = np.bincount(y, minlength=num_classes)
        k_own = np.bincount(y, weights=own, minlength=num_classes)
        other = differs & (y[order] > 0)
        n_chance = np.bincount(y[order][other], minlength=num_classes)
        k_chance = np.bincount(y[order][other], weights=chance[other], minlength=num_classes)
        mean_own = own[is_stated].mean()
        mean_chance = (k_chance.sum() + 1) / (n_chance.sum() + 2)
        p_own = np.clip((k_own + LITERAL_PRIOR_ROWS * mean_own) / (n_own + LITERAL_PRIOR_ROWS), 1e-3, 1 - 1e-3)
        p_chance = (k_chance + LITERAL_PRIOR_ROWS * mean_chance) / (n_chance + LITERAL_PRIOR_ROWS)
        p_chance = np.clip(p_chance, 1e-3, 1 - 1e-3)
        ratio = np.where(own, np.log(p_own / p_chance)[y], np.log((1 - p_own) / (1 - p_chance))[y])
        return own, np.where(is_stated, ratio, 0.0)
