"""Text to rows with the line each starts on: JSON lines, JSON arrays, plain text. Never stops at the first fault.

Parsers of a whole file are generators: they pause every ROWS_PER_BLOCK rows, so that the rows read can be taken away.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..records import Fault
from .decode import shorten

ROWS_PER_BLOCK = 5000
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character pair, perhaps without the other
WHITESPACE = re.compile(r"[\s,]*")
MESSAGE_KEYS = ("messages", "conversations", "conversation", "chosen", "rejected")


@dataclass(slots=True)
class Entry:
    """A row of a source. code: why it cannot be read; then row is its text."""

    row: Any
    line: int
    code: str = ""
    evidence: str = ""


@dataclass
class Parsed:
    """What a part of a file gave: its rows in order, and faults."""

    name: str
    entries: list[Entry] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def fault(self, code: str, line: int, evidence: str, repair: str = "ask") -> None:
        self.faults.append(Fault(code, self.name, line, shorten(evidence, 240), repair))

    def drop(self, code: str, line: int, row: Any, evidence: str) -> None:
        evidence = shorten(evidence, 240)
        self.entries.append(Entry(row, line, code, evidence))
        self.faults.append(Fault(code, self.name, line, evidence, "drop"))

    def add(self, row: Any, line: int) -> None:
        if isinstance(row, dict):
            self.entries.append(Entry(row, line))
        else:
            kind = type(row).__name__
            self.drop("not_an_object", line, row, f"a row is an object with named fields; this is {kind}: {row}")

    def is_full(self) -> bool:
        return len(self.entries) >= ROWS_PER_BLOCK


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

    def plain(self, body: str) -> dict[str, Any] | None:
        """The object a line holds if nothing at all is odd about it."""
        if body[:1] != "{" or body[-1:] != "}" or ("\\u" in body and HALF_PAIR.search(body)):
            return None
        self.repeated.clear()
        self.constants.clear()
        try:
            row, end = self.decoder.scan_once(body, 0)  # type: ignore[attr-defined]
        except (StopIteration, ValueError, RecursionError):
            return None
        return row if end == len(body) and not self.repeated and not self.constants else None

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
        if text.find("\\u", position, end) >= 0 and HALF_PAIR.search(text, position, end):
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


def layout_of(start: str) -> str:
    """What a .jsonl really holds by its first block: lines, array, or objects over several lines."""
    text = start.lstrip()
    if re.match(r"\[\s*\{", text[:200]) and not _first_line_is_value(text):
        return "array"
    return "objects" if text.startswith("{") and text.split("\n", 1)[0].strip() == "{" else "lines"


def parse_other_layout(text: str, layout: str, parsed: Parsed) -> Iterator[None]:
    """A .jsonl that holds an array, or objects over several lines: read, and reported."""
    if layout == "array":
        parsed.fault("array_as_jsonl", 1, "a JSON array named as JSON lines; read as an array", "safe")
        yield from parse_array(text, text.index("[") + 1, parsed, is_array=True)
    else:
        parsed.fault("multi_line_object", 1, "objects spread over several lines; read one after the other", "safe")
        yield from parse_array(text, 0, parsed, is_array=False)


def parse_line(line_text: str, line: int, is_last: bool, reader: Json) -> None:
    """What a line of a JSON lines file holds. is_last: no line end follows it."""
    parsed = reader.parsed
    body = line_text.strip()
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
        elif is_last and is_cut_off(rest):
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


def parse_json(text: str, parsed: Parsed) -> Iterator[None]:
    """A JSON array of rows, an object that wraps one, or JSON lines under the wrong name."""
    position = len(text) - len(text.lstrip())
    if text[position : position + 1] == "[":
        yield from parse_array(text, position + 1, parsed, is_array=True)
        return
    reader = json.JSONDecoder(strict=False)
    try:
        value, end = reader.raw_decode(text, position)
    except (ValueError, RecursionError):
        value, end = None, -1
    if end < 0 or text[end:].strip():  # one broken value, or several values
        wrapper = re.match(r'\s*\{\s*"([^"\\]+)"\s*:\s*\[\s*\{', text) if end < 0 else None
        if wrapper and wrapper[1] not in MESSAGE_KEYS:
            yield from parse_array(text, text.index("[") + 1, parsed, is_array=True)
            return
        parsed.fault("jsonl_as_json", 1, "JSON lines named .json; read line by line", "safe")
        layout = layout_of(text)
        if layout != "lines":
            yield from parse_other_layout(text, layout, parsed)
            return
        line_reader = Json(parsed)
        lines = text.split("\n")
        for line, line_text in enumerate(lines, 1):
            parse_line(line_text, line, line == len(lines), line_reader)
            if parsed.is_full():
                yield
        return
    if isinstance(value, dict) and not any(k in value for k in MESSAGE_KEYS):
        for key, rows in value.items():
            if isinstance(rows, list) and rows and isinstance(rows[0], dict):
                match = re.search(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:\s*\[", text)
                if match:
                    line = text.count("\n", 0, match.end()) + 1
                    parsed.fault("wrapped_array", line, f"rows read from the list under key {key!r}", "safe")
                    yield from parse_array(text, match.end(), parsed, is_array=True)
                    return
        if _columns(value, parsed):
            return
    parsed.add(value, text.count("\n", 0, position) + 1)


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


def parse_array(text: str, position: int, parsed: Parsed, *, is_array: bool) -> Iterator[None]:
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
        if parsed.is_full():
            yield
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


def parse_text(text: str, parsed: Parsed) -> Iterator[None]:
    """Each line that is not blank as a row with the one field `text`."""
    for line, line_text in enumerate(text.split("\n"), 1):
        if line_text.strip():
            parsed.add({"text": line_text}, line)
        if parsed.is_full():
            yield
