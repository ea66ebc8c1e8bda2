"""CSV and TSV to rows with the physical line each starts on; quoting faults cost one row, not the rest of the file."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from .formats import known_key
from .parse import Entry, Parsed

csv.field_size_limit(1 << 20)  # a stray quote must not swallow the rest of a large file


def parse_csv(text: str, parsed: Parsed, delimiter: str | None) -> Iterator[None]:
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
    while index < len(lines):
        if parsed.is_full():
            yield
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
                parsed.entries.append(Entry(dict(zip(header, single, strict=True)), line))
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
            parsed.entries.append(Entry(dict(zip(header, cells, strict=True)), line))


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
