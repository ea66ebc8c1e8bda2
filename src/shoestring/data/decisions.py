"""A person's decisions in review.csv: carried out before anything else is dropped, and carried over to the next one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..messages import Example, read_answer
from .clean import Outcome
from .decode import shorten
from .language import languages_of
from .review import Decision, Mark, ReviewRow, read_review
from .rows import digests_of

BEYOND_RESTORING = ("empty_prompt", "empty_answer")


def decisions_in(path: Path) -> dict[Mark, Decision]:
    """Row -> decision; none if the file is not there. Raises: DataError."""
    return read_review(path) if path.is_file() else {}


def apply_decisions(path: Path, kind: str, out: Outcome) -> dict[int, Decision]:
    """Keep, drop or correct the records that review.csv decides on; record -> decision.

    A kept or corrected record is not dropped as a repeat or contradiction. What is dropped or corrected is so wherever
    the same bytes stand, unless another decision is on that row; what is kept is kept in its place alone.
    Raises: DataError for an unknown id.
    """
    decisions = decisions_in(path)
    if not decisions:
        return {}
    table = out.table
    ids = table.keys[:, 3]
    read_review(path, {key.tobytes().hex() for key in ids})  # names the line of an unknown id
    wanted = np.array([np.frombuffer(bytes.fromhex(mark.id), np.uint64)[0] for mark in decisions], np.uint64)
    records: dict[str, list[int]] = defaultdict(list)
    for index in np.flatnonzero(np.isin(ids, wanted)).tolist():
        records[ids[index].tobytes().hex()].append(index)
    decided = _on_records(decisions, records, out)
    for index, decision in sorted(decided.items()):
        if decision.action == "drop":
            table.drop(index, "dropped_in_review", f"{path.name}, line {decision.line}")
            continue
        if decision.answer is not None:
            original = _correct(index, decision.answer, kind, out)
            evidence = f"{shorten(original, 120)!r} corrected to {shorten(decision.answer, 120)!r}"
            out.fault(index, "corrected_in_review", evidence, "safe")
        elif table.code_of(index) in BEYOND_RESTORING:
            continue
        table.restore(index)
    for mark, decision in sorted(decisions.items()):
        for index in records[mark.id] if decision.action != "keep" else ():
            if index in decided or index in table.corrected or table.code[index]:
                continue
            if decision.answer is not None:
                _correct(index, decision.answer, kind, out)
            else:
                table.drop(index, "dropped_in_review", f"{path.name}, line {decision.line}, is on the same bytes")
    return decided


def _on_records(decisions: dict[Mark, Decision], records: dict[str, list[int]], out: Outcome) -> dict[int, Decision]:
    """Record -> the decision that names it; where its line has moved, the nearest record of its id is meant."""
    decided: dict[int, Decision] = {}
    moved: list[Mark] = []
    for mark in decisions:
        here = [i for i in records[mark.id] if mark.line and out.table.place(i) == (mark.source, mark.line)]
        decided.update(dict.fromkeys(here, decisions[mark]))
        if not here:
            moved.append(mark)
    for mark in moved:
        free = [i for i in records[mark.id] if i not in decided]
        if mark.line:
            free = sorted(free, key=lambda index: _distance(mark, *out.table.place(index)))[:1]
        decided.update(dict.fromkeys(free, decisions[mark]))
    return decided


def _distance(mark: Mark, source: str, line: int) -> tuple[bool, int]:
    return source != mark.source, abs(line - mark.line)


def _correct(index: int, answer: str, kind: str, out: Outcome) -> str:
    """Put another answer in the record's example; returns the one it had."""
    example = out.table.example(index)
    start, stop = example.answer_span
    corrected_answer = read_answer(answer, example.tools)
    messages = (*example.messages[:start], corrected_answer, *example.messages[stop:])
    corrected = replace(example, messages=messages, answer_span=(start, start + 1), id="")
    out.table.corrected[index] = corrected
    out.table.languages[index] = languages_of(corrected.user_text, corrected.completion)
    out.table.keys[index] = np.frombuffer(digests_of(corrected, kind), np.uint64)
    return example.completion


def review_rows(
    suspects: Sequence[tuple[int, str, float, str]], decided: dict[int, Decision], out: Outcome
) -> list[ReviewRow]:
    """Suspect records (record, code, score, evidence), and those decided on, which keep their decision."""
    rows = []
    for index, code, score, evidence in suspects:
        # By its own id, which a correction does not change, the decision finds it again.
        rows.append(_row(out, index, code, score, evidence, out.table.original(index), decided.get(index)))
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
