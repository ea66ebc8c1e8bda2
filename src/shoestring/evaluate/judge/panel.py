"""Asking the judges: a reply that cannot be read is asked for once more, then it is no verdict; none is dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ...records import Completion, Progress
from .prompts import asked_again
from .verdicts import Judge, Question, Said, Unreadable

MAX_SHOWN_CHARACTERS = 400  # of a reply that is shown to its judge again


def ask(
    judge: Judge, questions: Sequence[Question], refusal: Callable[[str], str | None], progress: Progress
) -> list[Said]:
    """One judge's answer to each question, in order.

    refusal: the words by which a text refuses, or None. Raises: EndpointError, BudgetStopped; what was answered until
    then is kept by judge.generate.
    """
    completions = judge.generate([question.prompt for question in questions], progress)
    read = [_read(question, completion) for question, completion in zip(questions, completions, strict=True)]
    unread = [i for i, (_, fault) in enumerate(read) if fault]
    further = [asked_again(questions[i], completions[i].text[:MAX_SHOWN_CHARACTERS], read[i][1]) for i in unread]
    second = dict(zip(unread, judge.generate([q.prompt for q in further], progress) if further else [], strict=True))
    said = []
    for i, (question, completion) in enumerate(zip(questions, completions, strict=True)):
        value, fault = read[i]
        again = second.get(i)
        if again is None:
            said.append(Said(value, cost_usd=completion.cost_usd, latency_s=completion.latency_s))
            continue
        value, last_fault = _read(question, again)
        said.append(
            Said(
                value,
                last_fault,
                fault,
                any(refusal(text) for text in (completion.text, again.text)),
                completion.cost_usd + again.cost_usd,
                max(completion.latency_s, again.latency_s),
            )
        )
    return said


def _read(question: Question, completion: Completion) -> tuple[Any | None, str]:
    """(value, "") or (None, what is wrong)."""
    try:
        return question.read(completion.text), ""
    except Unreadable as fault:
        cut = "" if completion.stopped else ", and it was cut at the token limit"
        return None, f"{fault}{cut}"


def majority(votes: Sequence[Any]) -> Any | None:
    """What more than half of the votes say, or None; votes that are None were not given."""
    given = [vote for vote in votes if vote is not None]
    if not given:
        return None
    value, count = Counter(given).most_common(1)[0]
    return value if 2 * count > len(given) else None
