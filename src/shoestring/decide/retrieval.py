"""Which texts bear on a question: BM25 over words, optional vectors of a local encoder, both fused by rank.

N texts, Q questions, D numbers of a vector.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import require

# encode(texts, are_questions) -> one vector a text.
Encode = Callable[[Sequence[str], bool], np.ndarray]

RRF_CONSTANT = 60  # Cormack, Clarke and Buettcher 2009, reciprocal rank fusion
FUSED_DEPTH = 50  # places of each ranking that are fused, at least
# Scripts written without spaces: each character is a word.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(f"[{_CJK}]|[^\\W{_CJK}]+")
NEAR_OVERLAP = 0.8  # of word sets (Jaccard): texts that say nearly the same, as curation counts them


def words(text: str) -> list[str]:
    """The words of a text as they are compared."""
    return WORD.findall(text.casefold())


def word_overlap(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard similarity of two word sets; two empty ones are equal."""
    union = len(a | b)
    return len(a & b) / union if union else 1.0


class Retriever:
    """Texts, ready to be searched. encode: of a local sentence model; without one words alone decide.

    The same texts and questions give the same ranking; equal scores go by place.
    Raises: MissingDependency.
    """

    def __init__(self, texts: Sequence[str], encode: Encode | None = None) -> None:
        bm25s = require("bm25s", extra="retrieval", purpose="finding passages and examples (arms rag and nearest)")
        self.num_texts, self.encode = len(texts), encode
        tokens = [words(text) for text in texts]
        self.index = bm25s.BM25() if any(tokens) else None
        if self.index:
            self.index.index(tokens, show_progress=False)
        self.vectors_ND = _unit(encode(texts, False)) if encode and texts else None

    def search(self, questions: Sequence[str], num: int) -> list[list[int]]:
        """Places of the best texts for each question, best first; fewer where no more share a word with it."""
        depth = max(num, FUSED_DEPTH)
        by_words = [self._by_words(question, num if self.vectors_ND is None else depth) for question in questions]
        if self.vectors_ND is None or self.encode is None or not questions:
            return by_words
        vectors_QD = _unit(self.encode(questions, True))
        by_meaning = [_best(vector_D @ self.vectors_ND.T, depth) for vector_D in vectors_QD]
        return [fused(both)[:num] for both in zip(by_words, by_meaning, strict=True)]

    def _by_words(self, question: str, num: int) -> list[int]:
        if self.index is None:
            return []
        ids = self.index.get_tokens_ids(words(question))
        if not ids:
            return []
        scores_N = self.index.get_scores_from_ids(ids)
        return [place for place in _best(scores_N, num) if scores_N[place] > 0]


def fused(rankings: Sequence[Sequence[int]]) -> list[int]:
    """One ranking of several, by the sum of 1 / (RRF_CONSTANT + rank); equal sums go by place."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, place in enumerate(ranking, 1):
            scores[place] = scores.get(place, 0.0) + 1 / (RRF_CONSTANT + rank)
    return sorted(scores, key=lambda place: (-scores[place], place))


def _best(scores_N: np.ndarray, num: int) -> list[int]:
    best: list[int] = np.argsort(-scores_N, kind="stable")[:num].tolist()
    return best


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    vectors_ND = np.asarray(vectors_ND, np.float32)
    unit: np.ndarray = vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
    return unit
