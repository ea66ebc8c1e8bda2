"""A quick look at data of any size: how many rows there are, and a sample of them spread over the files.

For planning, before anything is curated: lines of JSON are counted to the last and every n-th is read; of other formats
the beginning is read and the rest taken to be like it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import FieldsConfig
from ..errors import DataError
from ..records import Example
from .decode import MAX_LINE_BYTES, is_array, too_long, unpack
from .formats import Shape, convert, shape_of
from .sources import Source, resolve_sources
from .turns import RowFault

MAX_SAMPLE_ROWS = 400  # to twice as many
BEGINNING_ROWS = 2000  # of formats that cannot be entered in the middle
WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Sample:
    """Examples of a sample of rows. num_examples: about how many all rows give; how: what was read, in words."""

    examples: tuple[Example, ...]
    num_rows: int
    num_examples: int
    is_count_exact: bool
    how: str


def sample(
    sources: Sequence[str],
    base_dir: Path,
    fields: FieldsConfig,
    system: str = "",
    *,
    is_held_out: bool = False,
    max_rows: int = MAX_SAMPLE_ROWS,
    keeps_undesired: bool = False,
) -> Sample:
    """Look at the sources. keeps_undesired: as formats.convert takes it.

    Raises: DataError where a source is missing, is on the hub, or no row can be read.
    """
    found, _ = resolve_sources(list(sources), base_dir, is_held_out=is_held_out)
    parts = [_look(source, base_dir, fields, system, max_rows, keeps_undesired) for source in found]
    examples = [example for part in parts for example in part.examples]
    if not examples:
        raise DataError(
            f"{', '.join(s.name for s in found)}: no row of the sample gives a prompt and an answer; "
            "'shoestring curate' on the run file says why, row by row"
        )
    return Sample(
        tuple(examples),
        sum(part.num_rows for part in parts),
        sum(part.num_examples for part in parts),
        all(part.is_count_exact for part in parts),
        "; ".join(dict.fromkeys(part.how for part in parts)),
    )


def _look(
    source: Source, base_dir: Path, fields: FieldsConfig, system: str, max_rows: int, keeps_undesired: bool
) -> Sample:
    if source.kind == "hub":
        raise DataError(f"{source.name}: data on the hub are not here to be counted; download them and name the files")
    if source.kind == "file" and source.format == "jsonl":
        lines, num_lines = _spread_lines(source, max_rows)
        rows = [row for line in lines if (row := _object(line)) is not None]
        if rows:
            return _told(source, rows, len(lines), num_lines, fields, system, True, keeps_undesired)
    return _beginning(source, base_dir, fields, system)


def _spread_lines(source: Source, max_rows: int) -> tuple[list[bytes], int]:
    """max_rows to 2 x max_rows lines, every n-th of all that are not blank, and how many there are."""
    kept: list[bytes] = []
    step, num_lines, rest = 1, 0, b""
    problems: list[str] = []
    number = 1  # of the line that has not ended
    for piece in (pieces := unpack(source, problems)):
        lines = (rest + piece).split(b"\n")
        rest = lines.pop()
        number += len(lines)
        if len(rest) > MAX_LINE_BYTES:
            if number == 1 and is_array(source, rest):
                return [], 0
            raise too_long(source, number, len(rest), pieces)
        lines = [line for line in lines if line and not line.isspace()]
        kept += lines[-num_lines % step :: step]
        num_lines += len(lines)
        while len(kept) > 2 * max_rows:
            kept, step = kept[::2], 2 * step
    if rest.strip():
        kept += [rest] if num_lines % step == 0 else []
        num_lines += 1
    return kept, num_lines


def _object(line: bytes) -> dict[str, object] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _told(
    source: Source,
    rows: Sequence[dict[str, object]],
    num_read: int,
    num_rows: int,
    fields: FieldsConfig,
    system: str,
    is_exact: bool,
    keeps_undesired: bool,
) -> Sample:
    shapes: dict[tuple[str, ...], Shape | None] = {}
    examples: list[Example] = []
    for row in rows:
        keys = tuple(row)
        if keys not in shapes or shapes[keys] is None:
            shapes[keys] = shape_of(row, fields)
        shape = shapes[keys]
        if shape is None:
            continue
        try:
            examples += convert(row, shape, system, keeps_undesired).examples(source.name, 0)
        except RowFault:
            continue
    how = f"all {num_rows:,} rows read" if num_read == num_rows else f"{num_read:,} of {num_rows:,} rows read, evenly"
    return Sample(tuple(examples), num_rows, round(len(examples) * num_rows / max(1, num_read)), is_exact, how)


def _beginning(source: Source, base_dir: Path, fields: FieldsConfig, system: str) -> Sample:
    """The first rows of a format that has to be parsed from its start; the count by the bytes they take."""
    from .load import load

    loaded = load([source.name], fields, system, base_dir, max_rows=BEGINNING_ROWS)
    num_read = loaded.num_rows
    read_bytes = sum(len(json.dumps(row, ensure_ascii=False)) for row in loaded.rows)
    if num_read < BEGINNING_ROWS:
        how = f"all {num_read:,} rows read"
        return Sample(loaded.examples, num_read, len(loaded.examples), True, how)
    size = source.path.stat().st_size
    num_rows = max(num_read, round(num_read * size / max(1, read_bytes)))
    how = f"the first {num_read:,} of about {num_rows:,} rows read"
    return Sample(loaded.examples, num_rows, round(len(loaded.examples) * num_rows / num_read), False, how)
