"""What curation left in a folder, read line by line: counts, a few examples a code, lengths and labels.

Rows may be millions: of each code a handful is kept, lengths are taken from MAX_MEASURED rows at most, evenly spread.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import FieldsConfig
from ..data.codes import CODES
from ..data.formats import convert, shape_of
from ..data.review import rows_in
from ..data.turns import RowFault
from ..errors import DataError
from ..files import parse_json, read_json
from ..records import Example, example_from_json

MAX_EXAMPLES = 3  # a code
MAX_SUSPECTS = 20
MAX_MEASURED = 100_000
MAX_SOURCE_BYTES = 64 << 20  # of a source file that is read for the line before its repair
KEPT_FILES = {"train.jsonl": "rows_train", "dev.jsonl": "rows_dev", "eval.jsonl": "rows_eval"}
# Read off a line of JSON without parsing it; inside a string the quotes would be escaped.
CODE_KEY, LINE_KEY = re.compile(r'"code": "(\w+)"'), re.compile(r'"line": (\d+)')
# Kept rows that disagree: a fault names the other row in its evidence.
DISAGREEING = ("contradiction", "near_contradiction", "several_answers")
LINE_IN_EVIDENCE = re.compile(r"\bline (\d+)\b")
OTHER_SOURCE = re.compile(r" \(partner in (.*)\)$", re.DOTALL)

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Text:
    """A row as it is shown: prompt and answer, or the whole row as the prompt where those cannot be told apart."""

    prompt: str
    answer: str | None


@dataclass(slots=True)
class Case:
    """One example of a code: the row, its partner or repaired form, and why."""

    code: str
    source: str
    line: int
    evidence: str
    repair: str = "drop"
    row: Text | None = None
    partner_line: int | None = None
    partner: Text | None = None


@dataclass
class Measured:
    """Lengths in characters of the rows looked at, and their labels; one side, kept or dropped."""

    prompt: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    num_characters: int = 0  # of all rows, estimated from those looked at
    num_rows: int = 0


@dataclass
class DataFiles:
    """Everything the data section shows."""

    receipt: dict[str, Any]
    max_measured: int = MAX_MEASURED
    dropped: dict[str, list[Case]] = field(default_factory=dict)
    faults: dict[str, list[Case]] = field(default_factory=dict)  # repair safe or ask; what was dropped is in `dropped`
    num_faults: Counter[str] = field(default_factory=Counter)  # by code
    suspects: list[dict[str, str]] = field(default_factory=list)
    num_suspects: int = 0
    num_decided: int = 0
    train: Measured = field(default_factory=Measured)
    held_out: Measured = field(default_factory=Measured)
    left_out: Measured = field(default_factory=Measured)  # dropped rows that could have been trained on
    problems: list[str] = field(default_factory=list)


def read_data(
    folder: Path,
    base_dir: Path | None,
    fields: FieldsConfig,
    receipt: dict[str, Any] | None,
    system: str = "",
    max_measured: int = MAX_MEASURED,
) -> DataFiles:
    """Read the files of curation; base_dir: what source names are relative to, None where that is not known.

    fields, system: data.fields and data.system of the run; max_measured: rows of a side whose lengths are taken.
    """
    files = DataFiles(receipt or {}, max_measured)
    if receipt is None:
        try:
            files.receipt = dict(read_json(folder / "receipt.json"))
        except (OSError, ValueError, TypeError) as error:
            files.problems.append(f"receipt.json: cannot be read ({error}); left out")
    _read_dropped(files, folder, fields, system)
    _read_faults(files, folder)
    _read_kept(files, folder, fields, system)
    _read_suspects(files, folder / "review.csv")
    if base_dir is not None:
        _read_originals(files, base_dir)
    return files


def _lines(
    files: DataFiles, path: Path, is_wanted: Callable[[int, str], bool] = lambda number, line: True
) -> Iterator[dict[str, Any]]:
    """The JSON objects of the wanted lines of a file; damaged ones are counted and said."""
    if not path.exists():
        return
    num_damaged = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file):
            if not is_wanted(number, line):
                continue
            try:
                row = parse_json(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                yield row
            else:
                num_damaged += bool(line.strip())
    if num_damaged:
        files.problems.append(f"{path.name}: {num_damaged:,} damaged lines, not counted")


def case_of(entry: dict[str, Any]) -> Case:
    """A line of dropped.jsonl or faults.jsonl, without texts."""
    source, line = place_of(entry)
    return Case(
        code=str(entry.get("code", "")),
        source=source,
        line=line,
        evidence=str(entry.get("evidence", "")),
        repair=str(entry.get("repair", "drop")),
    )


def _read_dropped(files: DataFiles, folder: Path, fields: FieldsConfig, system: str) -> None:
    stride = _stride(files, "dropped")

    def is_wanted(number: int, line: str) -> bool:
        codes = CODE_KEY.findall(line)
        return number % stride == 0 or not codes or len(files.dropped.get(codes[-1], ())) < MAX_EXAMPLES

    for entry in _lines(files, folder / "dropped.jsonl", is_wanted):
        case = case_of(entry)
        shown = files.dropped.setdefault(case.code, [])
        text = row_text(entry, fields, system)
        if known_class(case.code) in ("tokenised", "set") and text.answer is not None:
            _measure(files.left_out, text.prompt, text.answer, stride)
        if len(shown) < MAX_EXAMPLES:
            case.row = text
            partner = entry.get("partner_line")
            case.partner_line = partner if isinstance(partner, int) else None
            shown.append(case)


def _stride(files: DataFiles, count: str) -> int:
    """Of the rows counted under a name every so manieth is measured."""
    return max(1, -(-(files.receipt.get("counts") or {}).get(count, 0) // files.max_measured))


def _read_faults(files: DataFiles, folder: Path) -> None:
    for entry in _lines(files, folder / "faults.jsonl"):
        case = case_of(entry)
        if case.repair == "drop":
            continue
        files.num_faults[case.code] += 1
        shown = files.faults.setdefault(case.code, [])
        if len(shown) < MAX_EXAMPLES:
            case.partner_line = partner_line_of(case)
            if case.partner_line is None or all(
                (c.source, c.line) != partner_place(case) for c in shown
            ):  # a pair is shown once
                shown.append(case)


def partner_line_of(case: Case) -> int | None:
    """The line that the evidence of a disagreement names."""
    other = LINE_IN_EVIDENCE.search(case.evidence) if case.code in DISAGREEING else None
    return int(other[1]) if other else None


def partner_place(case: Case) -> Place:
    """Where the partner of a case stands."""
    other = OTHER_SOURCE.search(case.evidence)
    return (other[1] if other else case.source), case.partner_line or 0


def _read_kept(files: DataFiles, folder: Path, fields: FieldsConfig, system: str) -> None:
    """Lengths and labels of the kept rows, and the text of rows that stand beside others."""
    cases = [case for shown in (*files.dropped.values(), *files.faults.values()) for case in shown]
    wanted: dict[Place, list[Text]] = {}  # the answers of a conversation stand in one place
    for case in cases:
        if case.partner_line is not None:
            wanted[partner_place(case)] = []
        if case.row is None:
            wanted[case.source, case.line] = []
    lines = {str(line) for _, line in wanted}

    def is_at_line(_: int, line: str) -> bool:
        return not lines.isdisjoint(LINE_KEY.findall(line))

    def is_looked_at(stride: int, number: int, line: str) -> bool:
        return number % stride == 0 or is_at_line(number, line)

    for name, count in KEPT_FILES.items():
        side = files.held_out if name == "eval.jsonl" else files.train
        stride = _stride(files, count)
        for row in _lines(files, folder / name, functools.partial(is_looked_at, stride)):
            text = example_text(row)
            if text is None:
                continue
            if place_of(row) in wanted:
                wanted[place_of(row)].append(text)
            # With a stride above 1 the few rows that are only looked up count for too much; too few to matter.
            _measure(side, text.prompt, text.answer or "", stride)
    without = {place for place, texts in wanted.items() if not texts}
    if without:  # a contradiction's partner is dropped too
        for entry in _lines(files, folder / "dropped.jsonl", is_at_line):
            if place_of(entry) in without:
                wanted[place_of(entry)].append(row_text(entry, fields, system))
    for case in cases:
        if case.row is None and wanted[case.source, case.line]:
            case.row = wanted[case.source, case.line][-1]
        if case.partner_line is not None and wanted[partner_place(case)]:
            case.partner = likest(wanted[partner_place(case)], case.row)


def likest(texts: list[Text], row: Text | None) -> Text:
    """The one that shares most words with a row, its prompt first."""
    if row is None:
        return texts[0]
    prompt, answer = set(row.prompt.split()), set((row.answer or "").split())

    def likeness(text: Text) -> tuple[float, float]:
        asked, told = set(text.prompt.split()), set((text.answer or "").split())
        return len(asked & prompt) / max(len(asked | prompt), 1), len(told & answer) / max(len(told | answer), 1)

    return max(texts, key=likeness)


def place_of(row: dict[str, Any]) -> Place:
    """Source and line of a row."""
    line = row.get("line")
    return str(row.get("source", "")), line if isinstance(line, int) else 0


def _measure(side: Measured, prompt: str, answer: str, weight: int) -> None:
    side.num_rows += weight
    side.num_characters += weight * (len(prompt) + len(answer))
    if len(side.prompt) < MAX_MEASURED:
        side.prompt.append(len(prompt))
        side.answer.append(len(answer))
    side.labels[answer[:80]] += weight
    if len(side.labels) > 2 * MAX_MEASURED:  # answers, not labels; nobody will look at them
        side.labels.clear()


def row_text(entry: dict[str, Any], fields: FieldsConfig, system: str) -> Text:
    """The row of a dropped line as prompt and answer, by the rules it was read with; whole where they do not apply."""
    row = entry.get("row")
    if isinstance(row, dict):
        try:
            shape = shape_of(row, fields)
            examples = convert(row, shape, system).examples("", 0) if shape else []
        except (RowFault, AttributeError, KeyError, TypeError, ValueError):
            examples = []
        for example in examples:
            if example.id == entry.get("id") or example is examples[-1]:
                return _text(example)
    return Text(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, indent=1), None)


def example_text(row: dict[str, Any]) -> Text | None:
    """A kept row as prompt and answer; None where it is damaged."""
    try:
        return _text(example_from_json(row))
    except (KeyError, TypeError, ValueError):
        return None


def _text(example: Example) -> Text:
    """Roles are named where there is more than the user's one turn."""
    asked = example.request
    is_plain = len(asked) == 1 and asked[0].role == "user"
    shown = asked[0].content if is_plain else "\n".join(f"[{m.role}] {m.text}" for m in asked)
    return Text(shown, example.completion)


def _read_suspects(files: DataFiles, path: Path) -> None:
    """The first rows of review.csv, which are the worst, and how many were decided on."""
    if not path.exists():
        return
    try:
        for row in rows_in(path):
            files.num_suspects += 1
            files.num_decided += bool(row.get("decision", "").strip())
            if len(files.suspects) < MAX_SUSPECTS:
                files.suspects.append(row)
    except DataError as error:
        files.problems.append(str(error))


def known_class(code: str) -> str:
    """file, shape, tokenised or set; empty for a code this version does not know."""
    return CODES[code].klass if code in CODES else ""


def _read_originals(files: DataFiles, base_dir: Path) -> None:
    """The line as it stands in the source, beside its repaired form; plain text files only."""
    by_source: dict[str, list[Case]] = {}
    for shown in files.faults.values():
        for case in shown:
            if (
                case.repair == "safe"
                and known_class(case.code) in ("file", "shape")
                and case.line > 0
                and case.row is not None
            ):
                by_source.setdefault(case.source, []).append(case)
    for source, cases in by_source.items():
        path = base_dir / source
        if path.suffix not in (".jsonl", ".csv", ".tsv", ".json") or not path.is_file():
            continue
        if path.stat().st_size > MAX_SOURCE_BYTES:
            continue
        wanted = {case.line: case for case in cases}
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number in wanted:
                    case = wanted[number]
                    case.partner, case.row = case.row, Text(line.decode("utf-8", "replace").rstrip("\r\n"), None)
                if number >= max(wanted):
                    break
