"""review.csv: suspect rows out for a person to judge in any spreadsheet, decisions back in.

Cells that a spreadsheet would run as a formula or turn into a number are written with an apostrophe before
them, and read without it (OWASP, "CSV Injection").
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from ..files import write_whole

DECISIONS = ("keep", "drop", "fix")
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
MAX_SHOWN_CHARS = 30_000  # a spreadsheet cell holds 32,767
# A formula or a number, with the apostrophes it may already begin with.
RISKY = re.compile(r"'*(?:\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]|\d+([.,]\d+)?([eE]\d+)?\Z)")


@dataclass(frozen=True, slots=True)
class ReviewRow:
    """One line of review.csv; id: of the Example; score: 0-1, how sure that the row is wrong."""

    id: str
    source: str
    line: int
    code: str
    score: float
    evidence: str
    prompt: str
    answer: str
    decision: str = ""
    corrected_answer: str = ""


COLUMNS = tuple(field.name for field in fields(ReviewRow))


class Mark(NamedTuple):
    """Which row a decision is on: byte-equal rows share an id. Without source and line: all rows of the id."""

    id: str
    source: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """A person's judgement; answer: the corrected answer of a fix, else None; line: of review.csv, from 1."""

    action: str  # keep, drop, fix
    answer: str | None
    line: int


def write_review(path: Path, rows: Iterable[ReviewRow]) -> None:
    """Write the rows, most suspect first. Prompts and answers are cut at MAX_SHOWN_CHARS; they are not read back.

    Columns that a person added to the file that stands there are carried over. Raises: DataError, RunFolderError.
    """
    own = list(_rows(path)) if path.exists() else []
    added = list(dict.fromkeys(name for _, row in own for name in row if name and name not in COLUMNS))
    cells = {_mark(_unescaped(row["id"].strip()), row, f"{path}:{line}"): row for line, row in own} if added else {}
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *added])
    for row in sorted(rows, key=lambda r: (-r.score, r.source, r.line, r.code)):
        mine = cells.get(Mark(row.id, row.source, row.line)) or cells.get(Mark(row.id)) or {}
        writer.writerow([*_cells(row).values(), *(_escaped(_unescaped(mine.get(name, ""))) for name in added)])
    # With the byte order mark a spreadsheet takes the file for UTF-8.
    write_whole(path, text.getvalue().encode("utf-8-sig", "replace"))


def add_rows(path: Path, rows: Iterable[ReviewRow]) -> None:
    """Append rows to a review file, in its own columns, separator and encoding; where there is none it is written.

    Raises: DataError, RunFolderError.
    """
    if not path.exists():
        write_review(path, rows)
        return
    text = _text(path)
    is_sep_named = text[:4].lower() == "sep="
    header, delimiter = _header(path, text.partition("\n")[2] if is_sep_named else text, 1 + is_sep_named)
    added = io.StringIO(newline="")
    writer = csv.DictWriter(added, header, restval="", extrasaction="ignore", delimiter=delimiter, lineterminator="\n")
    writer.writerows(_cells(row) for row in rows)
    between = "" if text.endswith("\n") else "\n"
    encoding = "utf-16" if path.read_bytes()[:2] in UTF16_MARKS else "utf-8-sig"
    write_whole(path, f"{text}{between}{added.getvalue()}".encode(encoding, "replace"))


def check_decision(action: str, answer: str) -> None:
    """Raises: DataError for a decision that a review file cannot hold; empty takes one back."""
    if action not in (*DECISIONS, ""):
        raise DataError(f"decision {action!r} is none of {', '.join(DECISIONS)}; leave it empty to take one back")
    if (action == "fix") != bool(answer.strip()):
        raise DataError("fix takes the right answer, keep and drop take none; give an answer with fix alone")


def decide(path: Path, mark: Mark, action: str, answer: str = "") -> bool:
    """Write a decision into the file's own line of a row, or empty its cells; every other cell stays as it is.

    action: keep, drop, fix (which takes the answer), or empty. False where no line of the file is on the row.
    Raises: DataError, RunFolderError.
    """
    check_decision(action, answer)
    text = _text(path)
    lead = text[: text.index("\n") + 1] if text[:4].lower() == "sep=" and "\n" in text else ""
    header, delimiter = _header(path, text[len(lead) :], 1 + bool(lead))
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=delimiter, lineterminator="\n")
    names = next(csv.reader([text[len(lead) :].partition("\n")[0].rstrip("\r")], delimiter=delimiter))
    if "corrected_answer" not in header:
        names, header = [*names, "corrected_answer"], [*header, "corrected_answer"]
    writer.writerow(names)
    is_there = False
    for line, row in _rows(path):
        found = _mark(_unescaped(row["id"].strip()), row, f"{path}:{line}")
        if found in (mark, Mark(mark.id)):
            row = {**row, "decision": action, "corrected_answer": _escaped(answer) if action == "fix" else ""}
            is_there = True
        writer.writerow([row.get(name, "") for name in header])
    if is_there:
        encoding = "utf-16" if path.read_bytes()[:2] in UTF16_MARKS else "utf-8-sig"
        write_whole(path, f"{lead}{written.getvalue()}".encode(encoding, "replace"))
    return is_there


def _cells(row: ReviewRow) -> dict[str, str]:
    """The row as it is written, by column."""
    cells = {name: _escaped(str(getattr(row, name))) for name in COLUMNS}
    shown = {"prompt": _escaped(_cut(row.prompt)), "answer": _escaped(_cut(row.answer))}
    return cells | shown | {"line": str(row.line), "score": f"{row.score:.4f}"}


def read_review(path: Path, known: Container[str] | None = None) -> dict[Mark, Decision]:
    """Row -> decision, of the rows that have one.

    Reads what spreadsheets write: comma, semicolon or tab, UTF-8 with or without byte order mark, UTF-16, and
    extra columns. known: the ids there are; None skips that check.
    Raises: DataError with file and line for an unknown id or decision, a fix without corrected answer, a
    corrected answer without fix, or two decisions on one row that differ.
    """
    found: dict[Mark, Decision] = {}
    for line, row in _rows(path):
        action = row.get("decision", "").strip().lower()
        answer = _unescaped(row.get("corrected_answer", ""))
        if not action and not answer.strip():
            continue
        place = f"{path}:{line}"
        id = _unescaped(row["id"].strip())
        if action not in DECISIONS:
            said = f"decision {action!r} is none of" if action else "there is a corrected_answer, but no decision:"
            raise DataError(f"{place}: {said} {', '.join(DECISIONS)}; write one of them, or leave both cells empty")
        if known is not None and id not in known:
            raise DataError(
                f"{place}: no row with id {id!r} in the data; the row may have changed since the review was written: "
                f"delete the line, or curate again and decide in the new review.csv"
            )
        if (action == "fix") != bool(answer.strip()):
            said = "fix needs a corrected_answer" if action == "fix" else f"{action} takes no corrected_answer"
            raise DataError(f"{place}: {said}; write fix with the right answer, or keep or drop without one")
        decision = Decision(action, answer if action == "fix" else None, line)
        earlier = found.setdefault(_mark(id, row, place), decision)
        if (earlier.action, earlier.answer) != (decision.action, decision.answer):
            raise DataError(
                f"{place}: {action} for id {id}, but line {earlier.line} says {earlier.action}"
                f"{' with another answer' if earlier.action == action else ''}; make them agree"
            )
    return found


def _mark(id: str, row: dict[str, str], place: str) -> Mark:
    source, line = _unescaped(row.get("source", "")), row.get("line", "").strip()
    if not source or not line:
        return Mark(id)
    if not line.isdecimal():
        raise DataError(f"{place}: line {line!r} is no line number; put back the number that curation wrote")
    return Mark(id, source, int(line))


def rows_in(path: Path) -> Iterator[dict[str, str]]:
    """The records of a review file by column, cells as they were before escaping. Raises: DataError."""
    for _, row in _rows(path):
        yield {name: _unescaped(cell) for name, cell in row.items()}


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line it begins on, cells by column) of each record."""
    text = _text(path)
    skipped = 0
    if text[:4].lower() == "sep=":  # written by some spreadsheets to name the separator
        _, _, text = text.partition("\n")
        skipped = 1
    header, delimiter = _header(path, text, skipped + 1)
    csv.field_size_limit(1 << 27)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    last = 0
    try:
        for cells in reader:
            begins, last = last + 1 + skipped, reader.line_num
            if begins == 1 + skipped or not any(cells):
                continue
            if len(cells) > len(header) and any(cells[len(header) :]):
                raise DataError(f"{path}:{begins}: {len(cells)} cells, the header has {len(header)}; mend the line")
            if len(cells) <= header.index("id"):
                raise DataError(f"{path}:{begins}: no cell for the column id; mend or delete the line")
            yield begins, dict(zip(header, cells, strict=False))
    except csv.Error as error:
        raise DataError(
            f"{path}:{last + 1 + skipped}: not readable as CSV ({error}); a quotation mark may not be closed"
        ) from error


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the review.csv of a curation") from error
    encoding = "utf-16" if data[:2] in UTF16_MARKS else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not {encoding.removesuffix('-sig')}; save it as 'CSV UTF-8'") from error


def _header(path: Path, text: str, line: int) -> tuple[list[str], str]:
    first = text.partition("\n")[0].rstrip("\r")
    for delimiter in ",;\t":
        with contextlib.suppress(csv.Error):
            header = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
            if {"id", "decision"} <= set(header):
                return header, delimiter
    raise DataError(f"{path}:{line}: no header with the columns id and decision; keep the first line as written")


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]} … ({len(text):,} characters)"


def _escaped(cell: str) -> str:
    return f"'{cell}" if RISKY.match(cell) else cell


def _unescaped(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and RISKY.match(cell) else cell
