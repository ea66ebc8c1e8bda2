"""Human labels of an arm's answers: how they are kept, which count, and the score they calibrate.

Rows are shown in an order drawn by chance, so that however many are labelled they are a random sample; a label
counts for the very answers it was given to, and for all of an arm's answers or none: after a new training, answers
that happen to be the same would not be a sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...config import JudgeConfig
from ...files import read_whole_lines
from ...records import ArmScore, FarScore, RowScore, to_json
from ..statistics import clusters_of, score_interval
from .calibrate import MIN_LABELS, Calibrated, agreement, calibrated, ends
from .scoring import METRIC, criteria_of, in_both_orders, judged_interval, rubric_score
from .verdicts import POINTS, WIN

LABELS = "labels.jsonl"
SKIPPED = "skipped"
ORDERS = ("answer first", "reference first")  # of a pair


@dataclass(frozen=True, slots=True)
class Label:
    """What a person said of one row of one arm's answers.

    answers_print: of all answers of the arm. said: by criterion true or false; of a pair win, tie or loss of the arm's
    answer; `skipped`; None where it was taken back. order: of a pair.
    """

    answers_print: str
    criteria_print: str
    arm: str
    row: str
    order: str
    said: Any
    at: str = ""


def answers_print(arm: ArmScore) -> str:
    """Hash of an arm's answers, whatever they were scored."""
    said = json.dumps([[row.id, row.output] for row in arm.rows])
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def criteria_print(config: JudgeConfig) -> str:
    """Hash of what a person is asked."""
    said = json.dumps([config.mode, criteria_of(config)])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def read_labels(path: Path) -> list[Label]:
    """The labels of a file in order; a line that a kill cut short, or that is none, is left out."""
    labels = []
    for line in read_whole_lines(path) if path.is_file() else ():
        try:
            label = Label(**line)
        except TypeError:
            continue
        if _is_whole(label):
            labels.append(label)
    return labels


def _is_whole(label: Label) -> bool:
    """Whether each field is of its kind: the file lies open to anyone's editor."""
    texts = (label.answers_print, label.criteria_print, label.arm, label.row, label.order, label.at)
    if isinstance(label.said, list):
        is_said = bool(label.said) and all(isinstance(one, bool) for one in label.said)
    else:
        is_said = label.said is None or label.said == SKIPPED or label.said in (*POINTS,)
    return is_said and all(isinstance(text, str) for text in texts)


def current(labels: Sequence[Label]) -> dict[tuple[str, str, str], Label]:
    """By answers, row and order the last label; what was taken back is left out."""
    last: dict[tuple[str, str, str], Label] = {}
    for label in labels:
        key = (label.answers_print, label.row, label.order)
        last.pop(key, None)  # so that the order is that of the last word
        if label.said is not None:
            last[key] = label
    return last


def human_scores(arm: ArmScore, labels: Sequence[Label], config: JudgeConfig) -> dict[str, float]:
    """Score by row id, as a judge with the same criteria would give it; rows half labelled or skipped are left out."""
    mine, asked = answers_print(arm), criteria_print(config)
    found: dict[str, dict[str, Any]] = {}
    for (of, row, order), label in current(labels).items():
        if of == mine and label.criteria_print == asked and label.said != SKIPPED:
            found.setdefault(row, {})[order] = label.said
    scores = {}
    for row, said in found.items():
        if config.mode == "rubric" and "" in said:
            scores[row] = rubric_score(config, said[""])
        elif config.mode == "pairwise" and set(ORDERS) <= set(said):
            combined = in_both_orders(said[ORDERS[0]], said[ORDERS[1]])
            assert combined is not None
            scores[row] = POINTS[combined]
    return scores


def with_labels(
    arm: ArmScore,
    labels: Sequence[Label],
    config: JudgeConfig,
    near_ids: frozenset[str] | None = None,
    *,
    seed: int = 0,
) -> ArmScore:
    """The judged arm with its score corrected by the labels, or as the judges alone gave it where they are too few.

    near_ids: held-out rows that training rows resemble, for the score on the others; None where that is not known.
    """
    details = dict(arm.details[METRIC])
    human, mine = human_scores(arm, labels, config), answers_print(arm)
    is_stale = [label.arm == arm.arm and label.answers_print != mine for label in current(labels).values()]
    is_open = [row["by"] == "none" for row in details["rows"]]
    plain, plain_interval = judged_interval(arm.rows, is_open, seed)
    found = _calibrated(arm.rows, human)
    details.update(
        is_calibrated=found is not None,
        uncalibrated=to_json(plain),
        num_labels=len(human),
        num_stale_labels=sum(is_stale),
        agreement=_agreement(arm.rows, human, config),
        calibration=to_json(found),
    )
    score, interval = (found.score, "label-calibrated") if found else (plain, plain_interval)
    metrics = {**arm.metrics, METRIC: score.value}
    fresh = replace(arm, score=score, interval=interval, metrics=metrics, details={**arm.details, METRIC: details})
    return fresh if near_ids is None else replace(fresh, far=_far(fresh, is_open, human, near_ids, seed))


def low_at(arm: ArmScore, level: float) -> float:
    """Lower end of a judged arm's interval at a level: of the labels and the judge, or of the judge alone."""
    found = arm.details[METRIC]["calibration"]
    if found is None:
        return score_interval(METRIC, arm.rows, level=level)[0].low
    return ends(found["score"]["value"], found["variance"], found["num_labels"], level)[0]


def _far(
    arm: ArmScore, is_open: Sequence[bool], human: dict[str, float], near_ids: frozenset[str], seed: int
) -> FarScore:
    """The score on the rows that no training row is near to; of a calibrated arm only where enough of them are
    labelled."""
    far = [(row, is_none) for row, is_none in zip(arm.rows, is_open, strict=True) if row.id not in near_ids]
    if len(far) in (0, len(arm.rows)):
        return FarScore(len(far), arm.score if far else None)
    rows = [row for row, _ in far]
    if not arm.details[METRIC]["is_calibrated"]:
        return FarScore(len(far), judged_interval(rows, [is_none for _, is_none in far], seed)[0])
    found = _calibrated(rows, human)
    return FarScore(len(far), found.score if found else None)


def _calibrated(rows: Sequence[RowScore], human: dict[str, float]) -> Calibrated | None:
    """None below MIN_LABELS."""
    labelled = [row for row in rows if row.id in human]
    if len(labelled) < MIN_LABELS:
        return None
    return calibrated(
        np.array([human[row.id] for row in labelled]),
        np.array([row.score for row in labelled]),
        np.array([row.score for row in rows if row.id not in human]),
        design_effect=_design_effect(rows),
    )


def _design_effect(rows: Sequence[RowScore]) -> float:
    """How much clusters of rows widen the variance of the judged mean; 1 where every row is alone."""
    cluster_N = clusters_of(rows)
    if cluster_N is None:
        return 1.0
    gap_N = np.array([row.score for row in rows]) - np.mean([row.score for row in rows])
    alone = float(gap_N @ gap_N)
    sums = np.bincount(cluster_N, gap_N)
    return max(1.0, float(sums @ sums) / alone) if alone > 0 else 1.0


def _agreement(rows: Sequence[RowScore], human: dict[str, float], config: JudgeConfig) -> Any:
    labelled = [row for row in rows if row.id in human]
    if not labelled:
        return None
    passing = 1.0 if config.mode == "rubric" else POINTS[WIN]
    passed = [[human[row.id] >= passing, row.score >= passing] for row in labelled]
    return to_json(agreement(*np.array(passed).T))
