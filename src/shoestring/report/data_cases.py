"""Every row of one fault code, a page at a time, with what stands beside it; nothing is held but the page."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import FieldsConfig
from ..files import parse_json
from .data_files import (
    CODE_KEY,
    KEPT_FILES,
    LINE_KEY,
    Case,
    Place,
    Text,
    case_of,
    example_text,
    likest,
    partner_line_of,
    partner_place,
    place_of,
    row_text,
)


@dataclass(frozen=True, slots=True)
class Found:
    """A row of the page: the case as report.data shows it; id of the example, empty where there is none."""

    case: Case
    id: str


def cases(folder: Path, code: str, start: int, num: int, fields: FieldsConfig, system: str) -> list[Found]:
    """Rows start to start + num of a code, in the order of the files; dropped ones, else noticed ones."""
    found = [
        Found(_dropped(entry, fields, system), str(entry.get("id", "")))
        for entry in _page(folder / "dropped.jsonl", code, start, num)
    ]
    if not found:
        noticed = [case_of(entry) for entry in _page(folder / "faults.jsonl", code, start, num)]
        for case in noticed:
            case.partner_line = partner_line_of(case)
        found = [Found(case, "") for case in noticed]
    wanted: dict[Place, list[tuple[Text, str]]] = {}
    for one in found:
        if one.case.row is None:
            wanted[one.case.source, one.case.line] = []
        if one.case.partner_line is not None:
            wanted[partner_place(one.case)] = []
    _look_up(folder, wanted, fields, system)
    return [_with_texts(one, wanted) for one in found]


def _page(path: Path, code: str, start: int, num: int) -> list[dict[str, Any]]:
    """Lines of a code, told by the last code key of a line, which stands outside the row."""
    return list(
        itertools.islice(
            _lines(path, lambda line: code in line and CODE_KEY.findall(line)[-1:] == [code]), start, start + num
        )
    )


def _lines(path: Path, is_wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """The objects of the wanted lines; a damaged line is left out, the data page says how many there are."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not is_wanted(line):
                continue
            try:
                row = parse_json(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def _dropped(entry: dict[str, Any], fields: FieldsConfig, system: str) -> Case:
    case = case_of(entry)
    case.row = row_text(entry, fields, system)
    partner = entry.get("partner_line")
    case.partner_line = partner if isinstance(partner, int) else None
    return case


def _look_up(folder: Path, wanted: dict[Place, list[tuple[Text, str]]], fields: FieldsConfig, system: str) -> None:
    """Texts and ids of the rows at these places, kept ones before dropped ones."""
    _kept_at(folder, wanted)
    without = {place for place, texts in wanted.items() if not texts}
    for entry in _lines(folder / "dropped.jsonl", _at_lines(without)) if without else ():
        if place_of(entry) in without:
            wanted[place_of(entry)].append((row_text(entry, fields, system), str(entry.get("id", ""))))


def _kept_at(folder: Path, wanted: dict[Place, list[tuple[Text, str]]]) -> None:
    for name in KEPT_FILES if wanted else ():
        for row in _lines(folder / name, _at_lines(wanted)):
            text = example_text(row)
            if place_of(row) in wanted and text is not None:
                wanted[place_of(row)].append((text, str(row.get("id", ""))))


def _at_lines(places: Iterable[Place]) -> Callable[[str], bool]:
    """Whether a line of a file may be of one of these places, told without parsing it."""
    lines = {str(line) for _, line in places}
    return lambda text: not lines.isdisjoint(LINE_KEY.findall(text))


def _with_texts(found: Found, at: dict[Place, list[tuple[Text, str]]]) -> Found:
    case, id = found.case, found.id
    own = at.get((case.source, case.line))
    if case.row is None and own:
        case.row, id = own[-1]
    if case.partner_line is not None and (beside := at[partner_place(case)]):
        case.partner = likest([text for text, _ in beside], case.row)
    return Found(case, id)


def texts_at(folder: Path, place: Place) -> list[tuple[Text, str]]:
    """Text and id of the kept rows at a place."""
    wanted: dict[Place, list[tuple[Text, str]]] = {place: []}
    _kept_at(folder, wanted)
    return wanted[place]
