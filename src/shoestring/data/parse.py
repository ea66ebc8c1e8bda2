"""Text to rows with the line each starts on: JSON lines, JSON arrays, CSV. Never stops at the first fault."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..records import DroppedRow, Fault, Progress
from .decode import shorten

csv.field_size_limit(1 << 20)  # a stray quote must not swallow the rest of a large file
PROGRESS_EVERY = 2000
WHITESPACE = re.compile(r"[\s,]*")
MESSAGE_KEYS = ("messages", "conversations", "conversation", "chosen", "rejected")


@dataclass
class Parsed:
    """What one file gave: rows as (row, line), rows that could not be read, and faults."""

    name: str
    rows: list[tuple[Any, int]] = field(default_factory=list)
    dropped: list[DroppedRow] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def fault(self, code: str, line: int, evidence: str, repair: str = "ask") -> None:
        self.faults.append(Fault(code, self.name, line, shorten(evidence, 240), repair))

    def drop(self, code: str, line: int, row: Any, evidence: str) -> None:
        evidence = shorten(evidence, 240)
        self.dropped.append(DroppedRow(row, self.name, line, code, evidence))
        self.faults.append(Fault(code, self.name, line, evidence, "drop"))

    def add(self, row: Any, line: int) -> None:
        if isinstance(row, dict):
            self.rows.append((row, line))
        else:
            kind = type(row).__name__
            self.drop("not_an_object", line, row, f"a row is an object with named fields; this is {kind}: {row}")


class Json:
    """A JSON decoder that notices repeated keys, NaN and lone surrogates, which json.loads lets pass."""

    def __init__(self, parsed: Parsed):
        self.parsed = parsed
        self.repeated: list[str] = []
        self.constants: list[str] = []
        self.decoder = json.JSONDecoder(object_pairs_hook=self._pairs, parse_constant=self._constant)
        self.lenient = json.JSONDecoder(
            object_pairs_hook=self._pairs, parse_constant=self._constant, strict=False
        )  # allows raw control characters inside strings

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            self.repeated += [k for k, n in Counter(key for key, _ in pairs).items() if n > 1]
        return row

    def _constant(self, text: str) -> None:
        self.constants.append(text)

    def value(self, text: str, position: int, line: int) -> tuple[Any, int]:
        """The value that starts at position, and where it ends. Raises: json.JSONDecodeError."""
        try:
            value, end = self._decode(self.decoder, text, position)
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Invalid control character"):
                raise
            value, end = self._decode(self.lenient, text, position)
            evidence = f"unescaped control character in a string; kept: {text[position:end]}"
            self.parsed.fault("control_character", line, evidence, "safe")
        if self.repeated:
            evidence = f"key {self.repeated[0]!r} stands twice in one object; the last was kept"
            self.parsed.fault("repeated_key", line, evidence)
        if self.constants:
            self.parsed.fault("not_a_number", line, f"{self.constants[0]} is no JSON value; read as missing")
        if text.find("\\u", position, end) >= 0 and re.search(r"\\u[dD][89a-fA-F]", text[position:end]):
            value = self._without_surrogates(value, line)
        return value, end

    def _decode(self, decoder: json.JSONDecoder, text: str, position: int) -> tuple[Any, int]:
        self.repeated.clear()
        self.constants.clear()
        try:
            return decoder.raw_decode(text, position)
        except json.JSONDecodeError:
            raise
        except RecursionError:
            raise json.JSONDecodeError("Nested too deeply", text, position) from None
        except ValueError as error:  # a number of more digits than Python converts
            raise json.JSONDecodeError(str(error).split(";")[0], text, position) from None

    def _without_surrogates(self, value: Any, line: int) -> Any:
        def clean(item: Any) -> Any:
            if isinstance(item, str):
                fixed = item.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                if fixed != item:
                    evidence = f"half of a character pair, replaced: {fixed}"
                    self.parsed.fault("unpaired_surrogate", line, evidence, "safe")
                return fixed
            if isinstance(item, dict):
                return {clean(k): clean(v) for k, v in item.items()}
            return [clean(v) for v in item] if isinstance(item, list) else item

        return clean(value)


def is_cut_off(text: str) -> bool:
    """Whether JSON text ends inside a string, an object or an array."""
    depth, inside, escaped = 0, False, False
    for char in text:
        if inside:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                inside = False
        elif char == '"':
            inside = True
        elif char in "{[":
            depth += 1
        elif char in "}]":
            depth -= 1
    return inside or depth > 0


def parse_jsonl(text: str, parsed: Parsed, progress: Progress) -> None:
    """One JSON object a line; arrays and pretty-printed objects in a .jsonl are recognised and reported."""
    start = text.lstrip()[:200]
    if re.match(r"\[\s*\{", start) and not _first_line_is_value(text):
        parsed.fault("array_as_jsonl", 1, "a JSON array named as JSON lines; read as an array", "safe")
        parse_array(text, text.index("[") + 1, parsed, progress, is_array=True)
        return
    if start.startswith("{") and text.lstrip().split("\n", 1)[0].strip() == "{":
        parsed.fault("multi_line_object", 1, "objects spread over several lines; read one after the other", "safe")
        parse_array(text, 0, parsed, progress, is_array=False)
        return
    reader = Json(parsed)
    lines = text.split("\n")
    last = len(lines) - 1  # a complete file ends with a line end, so its last line is empty
    for index, line_text in enumerate(lines):
        line = index + 1
        if index % PROGRESS_EVERY == 0:
            progress(f"reading {parsed.name}", index, len(lines))
        body = line_text.strip()
        if not body:
            continue
        position, num_values = 0, 0
        try:
            while position < len(body):
                value, position = reader.value(body, position, line)
                num_values += 1
                match = WHITESPACE.match(body, position)
                position = match.end() if match else position
                parsed.add(value, line)
        except json.JSONDecodeError as error:
            rest = body[position:]
            if num_values == 1 and not rest.startswith(("{", "[")):
                parsed.fault("text_after_object", line, f"ignored after the object: {rest}")
            elif index == last and is_cut_off(rest):
                parsed.drop("truncated_line", line, rest, f"the file ends in the middle of this row: …{rest[-60:]}")
            else:
                code = "truncated_line" if is_cut_off(rest) and rest.startswith("{") else "invalid_json"
                evidence = f"{error.msg} at column {error.pos + 1}: {_near(body, error.pos)}"
                parsed.drop(code, line, rest, evidence)
        if num_values > 1:
            parsed.fault("several_objects_on_line", line, f"{num_values} objects on one line; each was read", "safe")


def _first_line_is_value(text: str) -> bool:
    first = text.lstrip().split("\n", 1)
    try:
        json.loads(first[0])
    except ValueError:
        return False
    return len(first) > 1 and bool(first[1].strip())


def _near(text: str, position: int) -> str:
    return shorten(text[max(0, position - 30) : position + 30], 60)


def parse_json(text: str, parsed: Parsed, progress: Progress) -> None:
    """A JSON array of rows, an object that wraps one, or JSON lines under the wrong name."""
    position = len(text) - len(text.lstrip())
    if text[position : position + 1] == "[":
        return parse_array(text, position + 1, parsed, progress, is_array=True)
    reader = json.JSONDecoder(strict=False)
    try:
        value, end = reader.raw_decode(text, position)
    except (ValueError, RecursionError):
        value, end = None, -1
    if end < 0 or text[end:].strip():  # one broken value, or several values
        wrapper = re.match(r'\s*\{\s*"([^"\\]+)"\s*:\s*\[\s*\{', text) if end < 0 else None
        if wrapper and wrapper[1] not in MESSAGE_KEYS:
            return parse_array(text, text.index("[") + 1, parsed, progress, is_array=True)
        parsed.fault("jsonl_as_json", 1, "JSON lines named .json; read line by line", "safe")
        return parse_jsonl(text, parsed, progress)
    if isinstance(value, dict) and not any(k in value for k in MESSAGE_KEYS):
        for key, rows in value.items():
            if isinstance(rows, list) and rows and isinstance(rows[0], dict):
                match = re.search(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:\s*\[", text)
                if match:
                    line = text.count("\n", 0, match.end()) + 1
                    parsed.fault("wrapped_array", line, f"rows read from the list under key {key!r}", "safe")
                    return parse_array(text, match.end(), parsed, progress, is_array=True)
        if _columns(value, parsed):
            return None
    parsed.add(value, text.count("\n", 0, position) + 1)
    return None


def _columns(value: dict[str, Any], parsed: Parsed) -> bool:
    """Read an object of equally long columns, as data frames are often saved; False if it is none."""
    columns = [list(v.values()) if isinstance(v, dict) else v for v in value.values()]
    lengths = {len(column) if isinstance(column, list) else 0 for column in columns}
    if len(columns) < 2 or len(lengths) != 1 or max(lengths) < 2:
        return False
    parsed.fault("columns_as_json", 1, "an object of columns; read as rows, numbered from 1", "safe")
    for number, cells in enumerate(zip(*columns, strict=True), 1):
        parsed.add(dict(zip(value, cells, strict=True)), number)
    return True


def parse_array(text: str, position: int, parsed: Parsed, progress: Progress, *, is_array: bool) -> None:
    """Values one after another, separated by commas or white space, until `]` or the end.

    line is where the element starts; an array that stands on a single line is numbered by record.
    """
    reader = Json(parsed)
    by_record = "\n" not in text.strip()
    line, counted = 1, 0
    for number in itertools.count(1):
        match = WHITESPACE.match(text, position)
        position = match.end() if match else position
        line += text.count("\n", counted, position)
        counted = position
        if number % PROGRESS_EVERY == 1:
            progress(f"reading {parsed.name}", position, len(text))
        if position >= len(text):
            if is_array:
                parsed.fault("truncated_array", line, "the closing ] is missing; the file may have lost its end")
            return
        if is_array and text[position] == "]":
            rest = text[position + 1 :].strip(" \n\r\t}")
            if rest and not text[position + 1 :].lstrip().startswith((",", "}")):
                parsed.fault("text_after_array", line, f"ignored after the closing ]: {rest}")
            return
        where = number if by_record else line
        try:
            value, position = reader.value(text, position, where)
            parsed.add(value, where)
        except json.JSONDecodeError as error:
            end = _next_element(text, position, error.pos)
            broken = text[position:end]
            cut = end == len(text) and is_cut_off(broken.rstrip().removesuffix("]"))
            parsed.drop(
                "truncated_line" if cut else "invalid_json",
                where,
                broken.rstrip(" ,\n]"),
                f"{error.msg} on line {error.lineno}: {_near(text, error.pos)}",
            )
            position = end


def _next_element(text: str, start: int, error_at: int) -> int:
    """Where the element after a broken one begins (or the end): same indentation, else the next `}, {`."""
    line_start = text.rfind("\n", 0, start) + 1
    indent = text[line_start:start]
    if not indent.strip() and line_start > 0:
        again = re.compile(r"\n" + re.escape(indent) + r"\{").search(text, start + 1)
    else:
        again = re.compile(r"\}\s*,?\s*\{").search(text, max(error_at - 1, start + 1))
    return again.end() - 1 if again else len(text)


def parse_csv(text: str, parsed: Parsed, progress: Progress, delimiter: str | None) -> None:
    """Rows of a CSV or TSV, keyed by its header. line is the physical line where the row starts."""
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    first = next((i for i, line in enumerate(lines) if line.strip()), None)
    if first is None:
        return
    delimiter = delimiter or _delimiter(lines[first])
    header: list[str] | None = None
    index = first
    next_report = 0
    while index < len(lines):
        if index >= next_report:
            progress(f"reading {parsed.name}", index, len(lines))
            next_report = index + PROGRESS_EVERY
        if not lines[index].strip():
            index += 1
            continue
        cells, used, problem = _csv_row(lines, index, delimiter)
        line = index + 1
        if header is None:
            names = cells or lines[index].split(delimiter)
            header, is_row = _header(names, lines, index + max(used, 1), delimiter, parsed, line)
            if not is_row:
                index += max(used, 1)
                continue
        if problem or (cells is not None and len(cells) != len(header) and used > 1):
            single, _, _ = _csv_row([lines[index]], 0, delimiter, strict=False)
            if single is not None and len(single) == len(header) and not (used > 1 and not problem):
                parsed.fault("loose_quote", line, f"a quotation mark inside a cell; read as written: {lines[index]}")
                parsed.rows.append((dict(zip(header, single, strict=True)), line))
            else:
                parsed.drop("bad_quote", line, lines[index], f"{problem or 'unclosed quotation mark'}: {lines[index]}")
            index += 1
            continue
        index += used
        if cells is None:
            continue
        if len(cells) != len(header):
            evidence = f"{len(cells)} cells where the header has {len(header)}: {lines[line - 1]}"
            parsed.drop("ragged_row", line, cells, evidence)
        elif cells == header and line > first + 1:
            parsed.drop("header_as_data", line, dict(zip(header, cells, strict=True)), "the header stands here again")
        else:
            parsed.rows.append((dict(zip(header, cells, strict=True)), line))


def _csv_row(lines: list[str], index: int, delimiter: str, strict: bool = True) -> tuple[list[str] | None, int, str]:
    """Cells of the row that starts at index, physical lines used, and what was wrong with its quoting."""
    if '"' not in lines[index]:
        return lines[index].split(delimiter), 1, ""
    feed: Iterator[str] = (lines[i] + "\n" for i in range(index, len(lines)))
    reader = csv.reader(feed, delimiter=delimiter, strict=strict)
    try:
        return next(reader), reader.line_num, ""
    except StopIteration:
        return None, 1, ""
    except csv.Error as error:
        return None, 1, str(error)


def _delimiter(header: str) -> str:
    bare = re.sub(r'"[^"]*"', "", header)
    return max(",;\t|", key=lambda d: (bare.count(d), d == ","))


def _header(
    cells: list[str], lines: list[str], index: int, delimiter: str, parsed: Parsed, line: int
) -> tuple[list[str], bool]:
    """Column names, and whether the first row is itself data (a file without header)."""
    from .formats import known_key

    names = [c.strip() for c in cells]
    if any(known_key(name) for name in names):
        doubled = sorted({n for n in names if names.count(n) > 1})
        if doubled:
            parsed.fault("repeated_column", line, f"column {doubled[0]!r} stands twice; the last was kept")
        return names, False
    below: list[list[str]] = []
    while index < len(lines) and len(below) < 200:
        row, used, _ = _csv_row(lines, index, delimiter)
        below += [row] if row else []
        index += max(used, 1)
    is_prose = any(len(n.split()) > 6 or len(n) > 60 for n in names)
    recurs = any(name and any(len(row) > i and row[i].strip() == name for row in below) for i, name in enumerate(names))
    if not (is_prose or recurs or len(set(names)) < len(names) or "" in names):
        return names, False
    renamed = [f"column_{i + 1}" for i in range(len(names))]
    parsed.fault("header_is_data", line, f"no header: the first line is a row; columns named {', '.join(renamed)}")
    return renamed, True
