"""Label errors of a classification: rows whose text reads like another label, judged by models that left them out.

Two naive Bayes models (words, characters), class centroids and nearest neighbours, each leaving the row out in
closed form: no folds, so 10,000 rows take seconds, and a second look after the worst rows are discounted costs
nothing. Leave-one-out naive Bayes found 0.91 of planted flips alone; what the others add was measured with
bench/wrong_rows.py. How often each label is given for each other is then learned from the set (_confusions): a text
that reads a little like another label is suspect where that label is often mistaken for the given one. Source of the
idea: confident learning, arXiv 1911.00068; of the estimate: Dawid and Skene 1979, one annotator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .threads import one_thread

MIN_ROWS = 50
MIN_LABEL_ROWS = 3  # rows of a rarer label are not judged: there is nothing to compare them with
DOUBTED_FRAC = 0.04  # of the rows, discounted for the second look
DOUBTED_WEIGHT = 0.05
SMOOTHING = 0.05
SHARPNESS = 0.9  # of the softmax over standardised scores
WRONG_FRAC = 0.05  # of a label's rows, before the set is looked at
CONFUSION_ROWS = 500  # rows of a label that it takes to learn what it is mistaken for, half and half with WRONG_FRAC
NUM_ROUNDS = 5
TIMIDITY = 9.0  # of planted flips and others with odds 1 to 9 half were flips, so those count as even
NUM_NEIGHBOURS = 15
BLOCK_ROWS = 250
TINY = 1e-300


@dataclass(frozen=True, slots=True)
class LabelScores:
    """One entry a row. wrong: 0-1, 1 - the given label's probability; other: the likeliest other label's number."""

    labels: tuple[str, ...]
    wrong: Any  # (rows,)
    ratio: Any  # (rows,), log of how many times as likely the likeliest other label is as the given one
    other: Any  # (rows,)


def label_scores(texts: Sequence[str], given: Sequence[str]) -> LabelScores | None:
    """How likely each row's label is wrong; None below MIN_ROWS or with fewer than two labels.

    The time goes with the square of the rows (20,000: about 10 s on one core), so parts.py divides more.
    Raises: MissingDependency without scikit-learn.
    """
    labels, y = np.unique(np.array(given, dtype=object).astype(str), return_inverse=True)
    if len(texts) < MIN_ROWS or len(labels) < 2:
        return None
    with one_thread("finding label errors"):
        views = _views(texts)
        return _scores(views, y, tuple(map(str, labels))) if views else None


def _scores(views: list[Any], y: Any, labels: tuple[str, ...]) -> LabelScores:
    rows, num_labels = np.arange(len(y)), len(labels)
    weights = np.ones(len(y), np.float32)
    neighbours = _standardised(_neighbours(views[0], y, num_labels))

    def total() -> Any:
        parts = [_standardised(_naive_bayes(view, y, weights, num_labels)) for view in views]
        parts.append(0.7 * _standardised(_centroids(_joined(views), y, weights, num_labels)))
        return (sum(parts) + 0.3 * neighbours) * 2 / 3

    doubt = _margin(total(), y)
    worst = np.argsort(-doubt, kind="stable")[: int(DOUBTED_FRAC * len(y))]
    weights[worst] = DOUBTED_WEIGHT
    p = _confusions(np.exp(_log_softmax(SHARPNESS * total())), y)
    own = p[rows, y].copy()
    p[rows, y] = 0
    other = p.argmax(1)
    odds = TIMIDITY / np.maximum(own, TINY)
    wrong = odds * (1 - own) / (1 + odds * (1 - own))
    is_judged = np.bincount(y)[y] >= MIN_LABEL_ROWS
    return LabelScores(labels, np.where(is_judged, wrong, 0.0), np.log(np.maximum(odds * p[rows, other], TINY)), other)


def _confusions(p: Any, y: Any) -> Any:
    """(rows, labels) probability of each label being the right one, given the label the row bears as well.

    p: (rows, labels) the same by the text alone. Learned in rounds: how often rows of one label bear another.
    """
    num_labels = p.shape[1]
    usual = np.full((num_labels, num_labels), WRONG_FRAC / (num_labels - 1))
    np.fill_diagonal(usual, 1 - WRONG_FRAC)
    given = usual  # (right label, label borne), rows sum to 1
    right = p
    for round_number in range(NUM_ROUNDS + 1):
        right = p * given.T[y]
        right /= right.sum(1, keepdims=True)
        if round_number < NUM_ROUNDS:
            joint = CONFUSION_ROWS * usual
            joint += _sums_by_label(right, y, num_labels).T
            given = joint / joint.sum(1, keepdims=True)
    return right


def _sums_by_label(values: Any, y: Any, num_labels: int) -> Any:
    """(labels, columns) sums of the rows that bear each label."""
    order = np.argsort(y, kind="stable")
    starts = np.searchsorted(y[order], np.arange(num_labels))
    return np.add.reduceat(values[order], starts, axis=0)


def _views(texts: Sequence[str]) -> list[Any]:
    """TF-IDF of words (1-2) and of characters within words (3-5), rows of unit length."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    common: dict[str, Any] = {"binary": True, "dtype": np.float32}
    kinds = (
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, token_pattern=r"(?u)\b\w+\b", **common),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=3, **common),
    )
    views = []
    for vectorizer in kinds:
        try:
            views.append(vectorizer.fit_transform(texts))
        except ValueError:  # no word or n-gram that recurs
            continue
    return views


def _joined(views: list[Any]) -> Any:
    from scipy.sparse import hstack

    return hstack(views).tocsr() * np.float32(len(views) ** -0.5)


def _one_hot(y: Any, weights: Any, num_labels: int) -> Any:
    table = np.zeros((len(y), num_labels), np.float32)
    table[np.arange(len(y)), y] = weights
    return table


def _naive_bayes(view: Any, y: Any, weights: Any, num_labels: int) -> Any:
    """(rows, labels) log-likelihoods, the row's own share taken out of its label's counts."""
    rows = np.arange(len(y))
    counts = view.T @ _one_hot(y, weights, num_labels)
    total, length, num_features = counts.sum(0), np.asarray(view.sum(1)).ravel(), view.shape[1]
    scores = view @ np.log(counts + SMOOTHING) - length[:, None] * np.log(total + SMOOTHING * num_features)
    of_row = np.repeat(rows, np.diff(view.indptr))
    without = np.maximum(counts[view.indices, y[of_row]] - weights[of_row] * view.data, 0) + SMOOTHING
    likelihood = np.bincount(of_row, weights=np.log(without) * view.data, minlength=len(y))
    rest = np.maximum(total[y] - weights * length, 0) + SMOOTHING * num_features
    scores[rows, y] = likelihood - length * np.log(rest)
    return scores


def _centroids(view: Any, y: Any, weights: Any, num_labels: int) -> Any:
    """(rows, labels) cosine to each label's mean, the row taken out of its own."""
    rows = np.arange(len(y))
    sums = view.T @ _one_hot(y, weights, num_labels)
    dots, squares = view @ sums, (sums**2).sum(0)
    own, length = dots[rows, y], np.asarray(view.multiply(view).sum(1)).ravel()
    cosines = dots / np.sqrt(squares + 1e-9)
    rest = np.maximum(squares[y] - 2 * weights * own + weights**2 * length, 1e-9)
    cosines[rows, y] = (own - weights * length) / np.sqrt(rest)
    return cosines


def _neighbours(view: Any, y: Any, num_labels: int) -> Any:
    """(rows, labels) log share of each label among the nearest other rows, by squared cosine."""
    votes = np.zeros((len(y), num_labels), np.float32)
    num = min(NUM_NEIGHBOURS, len(y) - 1)
    transposed = view.T.tocsr()
    for start in range(0, len(y), BLOCK_ROWS):
        near = (view[start : start + BLOCK_ROWS] @ transposed).toarray()
        block = np.arange(len(near))
        near[block, start + block] = 0
        nearest = np.argpartition(-near, num - 1, axis=1)[:, :num]
        for column in nearest.T:
            votes[start + block, y[column]] += near[block, column] ** 2
    return np.log((votes + 0.01) / (votes.sum(1, keepdims=True) + 0.01 * num_labels))


def _standardised(scores: Any) -> Any:
    centred = scores - scores.mean(1, keepdims=True)
    return centred / max(float(centred.std(1).mean()), 1e-9)


def _log_softmax(scores: Any) -> Any:
    shifted = (scores - scores.max(1, keepdims=True)).astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _margin(scores: Any, y: Any) -> Any:
    rows = np.arange(len(y))
    others = scores.copy()
    others[rows, y] = -np.inf
    return others.max(1) - scores[rows, y]
