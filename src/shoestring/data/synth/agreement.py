"""Which of several answers to one input agree: exactly where they are closed, by likeness where they are free text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...evaluate.metrics import chrf, numbers_in
from ..clean import OPEN_KINDS, SHORT_ANSWER_WORDS
from ..normalise import answer_key


@dataclass(frozen=True, slots=True)
class Agreement:
    """The answer that most answers agree with.

    votes: how many do, itself included. similarity: of free text, its mean likeness (chrF, 0 to 1) to the others
    that agree; None where there is none.
    """

    answer: str = ""
    votes: int = 0
    similarity: float | None = None


def agreement(answers: Sequence[tuple[str, str]], kind: str, least_similarity: float) -> Agreement:
    """The answer most agree with, of (text, what it is compared by).

    Closed kinds: the first answer of the largest group that is compared as equal. Free text: the answer that most
    agree with, of several the one most like the others (the medoid).
    """
    if not answers:
        return Agreement()
    if kind not in OPEN_KINDS:
        best, votes = Counter(key for _, key in answers).most_common(1)[0]
        return Agreement(next(text for text, key in answers if key == best), votes)
    texts = [text for text, _ in answers]
    like = [[similarity(a, b) for b in texts] for a in texts]
    agreeing = [
        [j for j, b in enumerate(texts) if j == i or (like[i][j] >= least_similarity and not exclude(a, b))]
        for i, a in enumerate(texts)
    ]
    best_at = max(range(len(texts)), key=lambda i: (len(agreeing[i]), sum(like[i]), -i))
    others = [like[best_at][j] for j in agreeing[best_at] if j != best_at]
    mean = round(sum(others) / len(others), 3) if others else None
    return Agreement(texts[best_at], len(agreeing[best_at]), mean)


@lru_cache(maxsize=4096)
def similarity(a: str, b: str) -> float:
    """chrF, 0 to 1, the mean of both directions; 1 for answers that are equal after normalisation."""
    if answer_key(a, "generate") == answer_key(b, "generate"):
        return 1.0
    return (chrf(a, b) + chrf(b, a)) / 2


def exclude(a: str, b: str) -> bool:
    """Whether two answers cannot both be right, however alike they are: by their numbers, or as other tool calls.

    Of short answers the numbers are the same; of longer ones one may state fewer, and none another.
    """
    if a.lstrip().startswith(CALL_STARTS) or b.lstrip().startswith(CALL_STARTS):
        return answer_key(a, "extract") != answer_key(b, "extract")
    mine, theirs = set(numbers_in(a)), set(numbers_in(b))
    if max(len(a.split()), len(b.split())) <= SHORT_ANSWER_WORDS:
        return mine != theirs
    return not (mine <= theirs or theirs <= mine)


CALL_STARTS = ('{"name"', '[{"name"')  # as Message.text writes calls
