"""Whether a judge favours its own answers, as the other judges see them: needs two judges, and no human."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...config import JudgeConfig
from ...records import Completion, Example, Progress
from .bias import ADVICE, MIN_ROWS, P_NAMED, Bias, Named, sign_test
from .panel import ask
from .scoring import in_both_orders, pair_votes, questions_of, rubric_score
from .verdicts import POINTS, Judge, Said

CODE = "prefers_own"


def against_others(
    config: JudgeConfig,
    judges: Sequence[Judge],
    rows: Sequence[Example],
    biases: Sequence[Bias],
    refusal: Callable[[str], str | None],
    progress: Progress,
) -> list[Bias]:
    """The biases, with what each judge gives its own answers beyond what the others give them.

    Each judge answers the rows; all judges score all these answers. A judge is named that lies above the others on its
    own answers, and more so than on theirs: being lenient to all is no preference.
    Raises: EndpointError, BudgetStopped.
    """
    if len(judges) < 2 or len(rows) < MIN_ROWS:
        return list(biases)
    answers = [judge.generate([row.request for row in rows], progress) for judge in judges]
    asked = [_scores(config, judge, rows, answers, refusal, progress) for judge in judges]
    scores = [of_judge for of_judge, _ in asked]  # by judge, writer, row
    return [
        replace(_told(bias, scores, j), cost_usd=bias.cost_usd + usd)
        for j, (bias, (_, usd)) in enumerate(zip(biases, asked, strict=True))
    ]


def _scores(
    config: JudgeConfig,
    judge: Judge,
    rows: Sequence[Example],
    answers: Sequence[Sequence[Completion]],
    refusal: Callable[[str], str | None],
    progress: Progress,
) -> tuple[list[list[float | None]], float]:
    """One judge's score of each writer's answer to each row, None without a verdict or an answer; and its dollars."""
    asked = [[questions_of(config, row, c.text) for row, c in zip(rows, written, strict=True)] for written in answers]
    every = ask(judge, [q for written in asked for questions in written for q in questions], refusal, progress)
    said = iter(every)
    scores: list[list[float | None]] = []
    for of_row, written in zip(asked, answers, strict=True):
        replies = [[next(said) for _ in questions] for questions in of_row]
        pairs = zip(replies, written, strict=True)
        scores.append([_score(config, reply) if completion.text.strip() else None for reply, completion in pairs])
    return scores, sum(s.cost_usd for s in every)


def _score(config: JudgeConfig, said: Sequence[Said]) -> float | None:
    if config.mode == "rubric":
        return None if said[0].value is None else rubric_score(config, said[0].value)
    combined = in_both_orders(*pair_votes(said[0].value, said[1].value))
    return None if combined is None else POINTS[combined]


def _told(bias: Bias, scores: Sequence[Sequence[Sequence[float | None]]], j: int) -> Bias:
    """One judge's bias with the sign tests of its own answers: above the others', and more so than on their answers."""
    above, more = [], []
    for row in range(len(scores[j][j])):
        own = _above(scores, j, j, row)
        others = [_above(scores, j, writer, row) for writer in range(len(scores)) if writer != j]
        known = [gap for gap in others if gap is not None]
        if own is not None and known:
            above.append(own)
            more.append(own - sum(known) / len(known))
    if any(defect.code == CODE for defect in bias.named) or not (_is_above_0(above) and _is_above_0(more)):
        return bias
    higher, lower = sum(gap > 0 for gap in above), sum(gap < 0 for gap in above)
    shown = f"it scores its own answers above what the other judges give them in {higher} of {len(above)} rows"
    return replace(bias, named=(*bias.named, Named(CODE, f"{shown}, below in {lower}", ADVICE[CODE])))


def _is_above_0(gaps: Sequence[float]) -> bool:
    higher, lower = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    return higher > lower and sign_test(higher, lower) < P_NAMED


def _above(scores: Sequence[Sequence[Sequence[float | None]]], judge: int, writer: int, row: int) -> float | None:
    """How far a judge's score of an answer lies above the mean of the other judges'."""
    mine = scores[judge][writer][row]
    given = [scores[m][writer][row] for m in range(len(scores)) if m != judge]
    known = [score for score in given if score is not None]
    return None if mine is None or not known else mine - sum(known) / len(known)
