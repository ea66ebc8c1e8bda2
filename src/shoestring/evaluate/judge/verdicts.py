"""What a judge is asked and what it said: vocabulary of the judging modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...records import Generate, Prompt

# A rubric's answer: yes or no by criterion. A pair's: which of the two texts, as they were shown.
Rubric = tuple[bool, ...]
FIRST, SECOND, TIE = "A", "B", "tie"
WIN, LOSS = "win", "loss"
POINTS = {WIN: 1.0, TIE: 0.5, LOSS: 0.0}


@dataclass(frozen=True, slots=True)
class Judge:
    """A model that judges, as a function; nothing of the network is known here."""

    name: str
    model: str
    generate: Generate


@dataclass(frozen=True, slots=True)
class Question:
    """One request to a judge; read gives the value of a reply, or raises Unreadable."""

    prompt: Prompt
    read: Callable[[str], Any]


class Unreadable(ValueError):
    """A judge's reply that is not what was asked for; the message is what the judge is told."""


@dataclass(frozen=True, slots=True)
class Said:
    """One judge's answer to one question, after at most one further request."""

    value: Any | None  # None: no verdict
    fault: str = ""  # of the last reply, where it gives no verdict
    first_fault: str = ""  # of the first reply, where it had to be asked again
    has_refused: bool = False
    cost_usd: float = 0.0
    latency_s: float = 0.0  # of the slowest request


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """One held-out row as it was judged.

    by: check, judges, or none (no judge gave a verdict). votes: by judge, the rubric's list, or [first order, second
    order] of a pair as win, tie or loss of the arm's answer; None where that judge gave no verdict.
    """

    score: float
    by: str
    why: str = ""  # the check's code, or the criteria that were not met
    votes: dict[str, Any] = field(default_factory=dict)
    criteria: tuple[bool | None, ...] = ()  # of a rubric: the majority of the judges, None without one
