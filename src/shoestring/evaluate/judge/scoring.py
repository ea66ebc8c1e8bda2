"""From an arm's answers to its judged score: rules first, then the judges, their majority, and what is told of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...config import JudgeConfig
from ...records import ArmScore, Completion, Estimate, Example, Progress, RowScore, to_json
from ..statistics import score_interval, wilson
from .calibrate import between
from .checks import Checked, Senses, check, is_reference
from .length import length_controlled
from .panel import ask, majority
from .prompts import PROMPT_SHA256, RIGHT, RIGHT_WITHOUT_REFERENCE, pair_question, rubric_question
from .verdicts import FIRST, LOSS, POINTS, SECOND, TIE, WIN, Judge, JudgedRow, Question, Said

METRIC = "judge"


def criteria_of(config: JudgeConfig, has_reference: bool = True) -> tuple[str, ...]:
    """The run file's criteria, or the one that asks for a right answer."""
    if config.criteria:
        return tuple(config.criteria)
    by_reference = config.use_reference and has_reference and config.mode == "rubric"
    return RIGHT if by_reference else RIGHT_WITHOUT_REFERENCE


def identity(config: JudgeConfig) -> dict[str, Any]:
    """What decides a verdict: judges, questions and rules; equal identities give equal scores of equal answers."""
    kept = ("mode", "criteria", "score", "use_reference", "temperature", "max_new_tokens", "min_words", "max_words")
    judges = [[e.name, e.base_url, e.model] for e in config.endpoints]
    return {"judges": judges, "prompt_sha256": PROMPT_SHA256, **{key: getattr(config, key) for key in kept}}


def questions_of(config: JudgeConfig, example: Example, answer: str) -> list[Question]:
    """What a judge is asked of one answer: a rubric once, a pair with the reference in both orders."""
    has_reference = is_reference(example.completion)
    criteria = criteria_of(config, has_reference)
    if config.mode == "rubric":
        reference = example.completion if config.use_reference and has_reference else None
        return [rubric_question(example.request, answer, reference, criteria)]
    return [
        pair_question(example.request, answer, example.completion, None, criteria),
        pair_question(example.request, example.completion, answer, None, criteria),
    ]


def judge_rows(
    config: JudgeConfig,
    judges: Sequence[Judge],
    senses: Senses,
    examples: Sequence[Example],
    completions: Sequence[Completion],
    progress: Progress,
) -> tuple[list[JudgedRow], dict[str, Any]]:
    """Each row as judged, in order, and what each judge had to be asked.

    Raises: EndpointError, BudgetStopped; answers until then are kept by the judges' generate.
    """
    limits = {"min_words": config.min_words, "max_words": config.max_words}
    found = [check(e, c, senses, **limits) for e, c in zip(examples, completions, strict=True)]
    open_rows = [i for i, checked in enumerate(found) if checked is None]
    questions = [questions_of(config, examples[i], completions[i].text) for i in open_rows]
    flat = [question for row in questions for question in row]
    by_judge: dict[str, list[list[Said]]] = {}
    asked = {}
    for judge in judges:
        said = ask(judge, flat, senses.refusal, progress)
        width = len(flat) // max(1, len(open_rows))
        by_judge[judge.name] = [said[k * width : (k + 1) * width] for k in range(len(open_rows))]
        asked[judge.name] = _asked(judge, said)
    rows = [_checked_row(config, checked) if checked else JudgedRow(0.0, "none") for checked in found]
    for place, i in enumerate(open_rows):
        votes = {name: row[place] for name, row in by_judge.items()}
        rows[i] = _rubric_row(config, votes) if config.mode == "rubric" else _pair_row(votes)
    return rows, asked


def _asked(judge: Judge, said: Sequence[Said]) -> dict[str, Any]:
    return {
        "model": judge.model,
        "num_asked": len(said),
        "num_asked_again": sum(bool(s.first_fault) for s in said),
        "num_no_verdict": sum(s.value is None for s in said),
        "num_refused": sum(s.has_refused for s in said),
        "faults": dict(Counter(s.fault for s in said if s.fault).most_common(5)),
        "cost_usd": sum(s.cost_usd for s in said),
    }


def _checked_row(config: JudgeConfig, checked: Checked) -> JudgedRow:
    passed = 1.0 if config.mode == "rubric" else POINTS[TIE]  # the reference is no better than itself
    why = "" if checked.passed else f"{checked.code}: {checked.evidence}"
    return JudgedRow(passed if checked.passed else 0.0, f"check {checked.code}", why)


def _rubric_row(config: JudgeConfig, votes: dict[str, list[Said]]) -> JudgedRow:
    by_judge = {name: said[0].value for name, said in votes.items()}
    given = [value for value in by_judge.values() if value is not None]
    shown = {name: None if value is None else list(value) for name, value in by_judge.items()}
    if not given:
        return JudgedRow(0.0, "none", _faults(votes), shown)
    criteria = criteria_of(config)
    decided = tuple(majority([value[k] for value in given]) for k in range(len(criteria)))
    score = rubric_score(config, decided)
    missed = [text for text, value in zip(criteria, decided, strict=True) if value is not True]
    return JudgedRow(score, "judges", f"not met: {'; '.join(missed)}" if missed else "", shown, decided)


def rubric_score(config: JudgeConfig, criteria: Sequence[bool | None]) -> float:
    """A row's score from its criteria: the share that is met, or whether all are."""
    met = [value is True for value in criteria]
    return float(all(met)) if config.score == "all" else sum(met) / len(met)


def _pair_row(votes: dict[str, list[Said]]) -> JudgedRow:
    shown = {name: pair_votes(said[0].value, said[1].value) for name, said in votes.items()}
    combined = majority([in_both_orders(*orders) for orders in shown.values()])
    if combined is None:
        is_given = any(in_both_orders(*orders) is not None for orders in shown.values())
        if not is_given:
            return JudgedRow(0.0, "none", _faults(votes), shown)
        combined = TIE
    why = {WIN: "", TIE: "no better than the reference", LOSS: "worse than the reference"}[combined]
    return JudgedRow(POINTS[combined], "judges", why, shown)


def pair_votes(first: str | None, second: str | None) -> list[str | None]:
    """Of the answer that stood first in the one order and second in the other: win, tie or loss in each."""
    for_first = {FIRST: WIN, SECOND: LOSS, TIE: TIE, None: None}
    for_second = {FIRST: LOSS, SECOND: WIN, TIE: TIE, None: None}
    return [for_first[first], for_second[second]]


def in_both_orders(one: str | None, other: str | None) -> str | None:
    """The verdict of a pair: what both orders say, a tie where they disagree, None where one is missing."""
    if one is None or other is None:
        return None
    return one if one == other else TIE


def _faults(votes: dict[str, list[Said]]) -> str:
    faults = dict.fromkeys(f"{name}: {s.fault}" for name, said in votes.items() for s in said if s.fault)
    return f"no verdict ({'; '.join(faults)})"


# ---- the arm ------------------------------------------------------------------------------------


def with_judged(
    arm: ArmScore, rows: Sequence[JudgedRow], asked: dict[str, Any], config: JudgeConfig, *, seed: int = 0
) -> ArmScore:
    """The arm with the judged score as its metric; what it was scored by before stays among its metrics.

    A row without a verdict counts as failed in the score and as passed in the interval's upper end.
    """
    scored = tuple(
        replace(row, score=judged.score, failure=_failure(row, judged))
        for row, judged in zip(arm.rows, rows, strict=True)
    )
    score, interval = judged_interval(scored, [r.by == "none" for r in rows], seed)
    judge_usd = sum(said["cost_usd"] for said in asked.values())
    details = {
        **identity(config),
        "asked": asked,
        "cost_usd": judge_usd,
        "is_calibrated": False,
        "rows": to_json(list(rows)),
        **summary_of(config, rows, arm.rows, seed),
    }
    num_failures = sum(row.failure is not None for row in scored)
    return replace(
        arm,
        metric=METRIC,
        score=score,
        interval=interval,
        rows=scored,
        metrics={METRIC: score.value, **arm.metrics},
        details={**arm.details, "num_failures": num_failures, METRIC: details},
    )


def _failure(row: RowScore, judged: JudgedRow) -> str | None:
    """Why the row could not be scored as intended: a rule failed it, or no judge gave a verdict."""
    if judged.by == "judges":
        return row.failure
    return judged.why or row.failure


def judged_interval(rows: Sequence[RowScore], is_open: Sequence[bool], seed: int = 0) -> tuple[Estimate, str]:
    """Mean score with its interval, and how that was made. is_open: rows without a verdict."""
    low, interval = score_interval(METRIC, rows, seed)
    if not any(is_open):
        return low, interval
    passed = [replace(row, score=1.0) if is_none else row for row, is_none in zip(rows, is_open, strict=True)]
    return Estimate(low.value, low.low, score_interval(METRIC, passed, seed)[0].high), interval


def summary_of(
    config: JudgeConfig, rows: Sequence[JudgedRow], answers: Sequence[RowScore], seed: int
) -> dict[str, Any]:
    """Counts of who decided, agreement of the judges, and of pairs flips, positions and length."""
    by = Counter(row.by for row in rows)
    summary: dict[str, Any] = {
        "num_checked": {name.removeprefix("check "): n for name, n in sorted(by.items()) if name.startswith("check ")},
        "num_judged": by["judges"],
        "num_no_verdict": by["none"],
        "judges_agree": None,
    }
    names = list(dict.fromkeys(name for row in rows for name in row.votes))
    complete = [
        row for row in rows if row.by == "judges" and all(_passed(config, row.votes[n]) is not None for n in names)
    ]
    if len(names) > 1:
        votes = np.array([[_passed(config, row.votes[n]) for n in names] for row in complete], float)
        summary["judges_agree"] = between(votes.reshape(len(complete), len(names)))
    if config.mode == "pairwise":
        judged = [(row, answer) for row, answer in zip(rows, answers, strict=True) if row.by == "judges"]
        summary["orders"] = {name: orders_of([row.votes[name] for row, _ in judged]) for name in names}
        summary["length_controlled"] = to_json(
            length_controlled(
                [row.score for row, _ in judged],
                [len(answer.output) for _, answer in judged],
                [len(answer.expected) for _, answer in judged],
                seed=seed,
            )
        )
    lengths = [(len(a.output.split()), len(a.expected.split())) for a in answers]
    summary["mean_words"] = {
        "answer": float(np.mean([x for x, _ in lengths])),
        "reference": float(np.mean([x for _, x in lengths])),
    }
    return summary


def _passed(config: JudgeConfig, votes: Any) -> bool | None:
    """One judge's verdict of a row as passed or not."""
    if votes is None:
        return None
    if config.mode == "rubric":
        return all(votes)
    combined = in_both_orders(*votes)
    return None if combined is None else combined == WIN


def orders_of(votes: Sequence[Sequence[str | None]]) -> dict[str, Any]:
    """Of pairs asked in both orders: flips, and how often the answer shown first won. votes: as pair_votes gives."""
    given = [(one, other) for one, other in votes if one is not None and other is not None]
    flips = [(one, other) for one, other in given if one != other]
    to_first = sum((one == WIN) + (other == LOSS) for one, other in given)
    to_second = sum((one == LOSS) + (other == WIN) for one, other in given)
    return {
        "num_pairs": len(given),
        "flip_frac": to_json(wilson(len(flips), len(given))) if given else None,
        "first_frac": to_json(wilson(to_first, to_first + to_second)) if to_first + to_second else None,
    }
