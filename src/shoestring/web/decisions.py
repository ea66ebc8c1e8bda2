"""A person's decisions on rows of a run, written where the next curation reads them: review.csv."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..data.restore import ADVICE, can_come_back, quarantined
from ..data.review import Mark, ReviewRow, add_rows, check_decision, decide, rows_in
from ..data.store import REVIEW
from ..errors import DataError
from ..report.data_cases import texts_at
from ..runfolder import RunFolder


@dataclass(frozen=True, slots=True)
class Suspect:
    """A line of review.csv as the page shows it."""

    mark: Mark
    code: str
    score: str
    evidence: str
    prompt: str
    answer: str
    decision: str
    corrected: str


def suspects(folder: Path) -> Iterator[Suspect]:
    """The lines of a run's review.csv, in its order. Raises: DataError."""
    path = folder / "data" / REVIEW
    for row in rows_in(path) if path.is_file() else ():
        line = row.get("line", "").strip()
        yield Suspect(
            mark=Mark(row["id"].strip(), row.get("source", ""), int(line) if line.isdecimal() else 0),
            code=row.get("code", ""),
            score=row.get("score", ""),
            evidence=row.get("evidence", ""),
            prompt=row.get("prompt", ""),
            answer=row.get("answer", ""),
            decision=row.get("decision", "").strip().lower(),
            corrected=row.get("corrected_answer", ""),
        )


def save(folder: Path, mark: Mark, action: str, answer: str = "") -> None:
    """Keep a decision on a row, which is in review.csv, kept by curation, or dropped by it.

    action: keep, drop, fix (with the answer), or empty to take it back.
    Raises: DataError where it cannot be; RunFolderError while a process works on the run, which may write the file.
    """
    check_decision(action, answer)
    path = folder / "data" / REVIEW
    with RunFolder(folder).locked():
        if path.is_file() and decide(path, mark, action, answer):
            return
        if not action:
            return
        row = _kept(folder / "data", mark, action, answer) or _dropped(folder / "data", mark, action)
        if row is None:
            raise DataError(f"{mark.source}:{mark.line}: no such row; it may have changed, open the page again")
        add_rows(path, [row])


def _kept(folder: Path, mark: Mark, action: str, answer: str) -> ReviewRow | None:
    """The line for a row that curation kept."""
    for text, id in texts_at(folder, (mark.source, mark.line)):
        if id == mark.id:
            code = (
                "kept_in_review" if action == "keep" else f"{'corrected' if action == 'fix' else 'dropped'}_in_review"
            )
            evidence = "decided on the page"
            shown = (text.prompt, text.answer or "")
            return ReviewRow(mark.id, mark.source, mark.line, code, 0.0, evidence, *shown, action, answer)
    return None


def _dropped(folder: Path, mark: Mark, action: str) -> ReviewRow | None:
    """The line for a row that curation dropped."""
    for row in quarantined(folder):
        if (row.id, row.source, row.line) == mark:
            if not can_come_back(row.code):
                raise DataError(f"{row.source}:{row.line}: a decision cannot bring it back: {ADVICE[row.code]}")
            if action != "keep":
                raise DataError(f"{row.source}:{row.line} is dropped already ({row.code}); keep brings it back")
            shown = row.row if isinstance(row.row, str) else ""
            return ReviewRow(row.id, row.source, row.line, row.code, 0.0, row.evidence, shown, "", decision=action)
    return None
