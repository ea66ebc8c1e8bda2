"""Rows back from quarantine: the decision `keep` for a row of dropped.jsonl, in the file that holds all decisions.

Restoring changes no row: it writes review.csv, and the next curation keeps what that file says to keep.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput, DataError
from .codes import CODES
from .review import Mark, ReviewRow, add_rows, read_review

# Rows that a decision cannot bring back, with what can.
ADVICE = {
    "too_long": "raise train.seq_len, or choose models with a longer context",
    "leak_into_eval": "it is held out, and a row that is trained on cannot be scored on; take it out of data.eval",
    "empty_prompt": "there is nothing to learn from it; mend it in the source",
    "empty_answer": "there is nothing to learn from it; mend it in the source",
    "not_sampled": "raise curate.max_train_rows or curate.max_eval_rows",
    "not_chosen": "raise curate.max_train_tokens",
}
ANSWER_CODES = ("placeholder_answer", "answer_not_json", "truncated_answer")
NO_EXAMPLE = "it could not be read as an example; mend it in the source"


def can_come_back(code: str) -> bool:
    """Whether a decision can bring back rows dropped under a code: those that were read as an example."""
    if code in ANSWER_CODES:
        return True
    return code in CODES and code not in ADVICE and CODES[code].klass in ("tokenised", "set")


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A row of dropped.jsonl; id: of the example it would have been, empty where it could not be read as one."""

    id: str
    source: str
    line: int
    code: str
    evidence: str
    row: Any


def quarantined(folder: Path) -> Iterator[Quarantined]:
    """The dropped rows of a data folder, one at a time. Raises: DataError."""
    path = folder / "dropped.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the folder of a finished curation")
    with path.open(encoding="utf-8", errors="surrogatepass") as file:
        for number, text in enumerate(file, 1):
            try:
                row = json.loads(text)
                yield Quarantined(
                    row.get("id", ""), row["source"], row["line"], row["code"], row["evidence"], row["row"]
                )
            except (ValueError, KeyError, AttributeError):
                raise DataError(f"{path}:{number}: not as curation wrote it; run curation again") from None


def to_restore(folder: Path, wanted: Sequence[str]) -> list[Quarantined]:
    """The dropped rows that the names mean: a fault code, a LINE, or SOURCE:LINE (the end of the path will do).

    Raises: BadInput for a name that means no dropped row, or rows that no decision can bring back; DataError.
    """
    for name in wanted:
        if name not in CODES and not name.rpartition(":")[2].isdecimal():
            raise BadInput(f"{name!r} is neither a fault code nor LINE or SOURCE:LINE; see dropped.jsonl in {folder}")
    found: dict[str, list[Quarantined]] = {name: [] for name in wanted}
    codes: Counter[str] = Counter()
    for row in quarantined(folder):
        codes[row.code] += 1
        for name, rows in found.items():
            if name == row.code or _is_at(name, row):
                rows.append(row)
    for name, rows in found.items():
        sources = sorted({row.source for row in rows})
        if not rows:
            there = ", ".join(f"{code} ({n})" for code, n in sorted(codes.items())) or "none"
            raise BadInput(f"{name!r}: no such row among the dropped ones of {folder}; there are: {there}")
        if name.isdecimal() and len(sources) > 1:
            which = ", ".join(f"{source}:{name}" for source in sources)
            raise BadInput(f"line {name} was dropped from more than one file; say which: {which}")
        for row in rows:
            advice = ADVICE.get(row.code) or (None if row.id else NO_EXAMPLE)
            if advice:
                raise BadInput(f"{row.source}:{row.line} ({row.code}) cannot be restored by a decision: {advice}")
    return list({(row.source, row.line, row.id): row for rows in found.values() for row in rows}.values())


def _is_at(name: str, row: Quarantined) -> bool:
    source, _, line = name.rpartition(":")
    return line == str(row.line) and (not source or f"/{row.source}".endswith(f"/{source}"))


def restore(folder: Path, wanted: Sequence[str], review: Path) -> list[Quarantined]:
    """Write the decision `keep` for dropped rows into a review file, which is made if there is none.

    folder: of the curation; wanted: fault codes, LINE or SOURCE:LINE. Other lines of the file stay as they are.
    Returns the rows, those already decided so included.
    Raises: BadInput, DataError, RunFolderError.
    """
    rows = to_restore(folder, wanted)
    decided = read_review(review) if review.exists() else {}
    for row in rows:
        decision = decided.get(Mark(row.id, row.source, row.line)) or decided.get(Mark(row.id))
        if decision and decision.action != "keep":
            raise BadInput(
                f"{review}:{decision.line}: the decision on {row.source}:{row.line} is {decision.action}; "
                "write keep there, or do not restore it"
            )
    new = [
        ReviewRow(row.id, row.source, row.line, row.code, 0.0, row.evidence, _shown(row.row), "", decision="keep")
        for row in rows
        if not {Mark(row.id, row.source, row.line), Mark(row.id)} & set(decided)
    ]
    add_rows(review, new)
    return rows


def _shown(row: Any) -> str:
    return row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
