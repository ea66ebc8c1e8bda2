"""A person's decisions in review.csv: carried out before anything else is dropped, and carried over to the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..messages import Example, read_answer
from .clean import Outcome
from .decode import shorten
from .review import Decision, ReviewRow, read_review
from .rows import digests_of

BEYOND_RESTORING = ("empty_prompt", "empty_answer")


def decisions_in(path: Path) -> dict[str, Decision]:
    """Example id -> decision; none if the file is not there. Raises: DataError."""
    return read_review(path) if path.is_file() else {}


def apply_decisions(path: Path, kind: str, out: Outcome) -> dict[int, Decision]:
    """Keep, drop or correct the records that review.csv decides on; record -> decision.

    A kept or corrected record is not dropped as a repeat or contradiction. Raises: DataError for an unknown id.
    """
    decisions = decisions_in(path)
    if not decisions:
        return {}
    table = out.table
    ids = table.keys[:, 3]
    read_review(path, {key.tobytes().hex() for key in ids})  # names the line of an unknown id
    wanted = np.array([np.frombuffer(bytes.fromhex(name), np.uint64)[0] for name in decisions], np.uint64)
    done: dict[int, Decision] = {}
    for index in np.flatnonzero(np.isin(ids, wanted)).tolist():
        decision = done[index] = decisions[ids[index].tobytes().hex()]
        if decision.action == "drop":
            table.drop(index, "dropped_in_review", f"{path.name}, line {decision.line}")
            continue
        if decision.answer is not None:
            _correct(index, decision.answer, kind, out)
        elif table.code_of(index) in BEYOND_RESTORING:
            continue
        table.restore(index)
    return done


def _correct(index: int, answer: str, kind: str, out: Outcome) -> None:
    example = out.table.example(index)
    start, stop = example.answer_span
    corrected_answer = read_answer(answer, example.tools)
    messages = (*example.messages[:start], corrected_answer, *example.messages[stop:])
    corrected = replace(example, messages=messages, answer_span=(start, start + 1), id="")
    out.table.corrected[index] = corrected
    out.table.keys[index] = np.frombuffer(digests_of(corrected, kind), np.uint64)
    evidence = f"{shorten(example.completion, 120)!r} corrected to {shorten(answer, 120)!r}"
    out.fault(index, "corrected_in_review", evidence, "safe")


def review_rows(
    suspects: Sequence[tuple[int, str, float, str]], decided: dict[int, Decision], out: Outcome
) -> list[ReviewRow]:
    """Suspect records (record, code, score, evidence), and those decided on, which keep their decision."""
    rows = []
    for index, code, score, evidence in suspects:
        rows.append(_row(out, index, code, score, evidence, out.table.example(index), decided.get(index)))
    shown = {index for index, *_ in suspects}
    for index, decision in decided.items():
        if index not in shown:
            code = {"drop": "dropped_in_review", "fix": "corrected_in_review"}.get(decision.action, "kept_in_review")
            rows.append(_row(out, index, code, 0.0, "decided before", out.table.original(index), decision))
    return rows


def _row(
    out: Outcome, index: int, code: str, score: float, evidence: str, example: Example, decision: Decision | None
) -> ReviewRow:
    source, line = out.table.place(index)
    prompt = "\n".join(m.text for m in example.prompt if m.role != "system")
    action, answer = (decision.action, decision.answer or "") if decision else ("", "")
    return ReviewRow(example.id, source, line, code, score, evidence, prompt, example.completion, action, answer)
