"""Sources to Examples: every format we read, in one shape, with the line of each row and all faults at once."""

from __future__ import annotations

import datetime
import io
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import FieldsConfig
from ..errors import DataError, require
from ..records import DroppedRow, Example, Fault, Progress, content_id, no_progress
from .decode import decode, read_bytes
from .formats import ANSWER_KEYS, PROMPT_KEYS, RowFault, Shape, shape_of, to_examples
from .parse import PROGRESS_EVERY, Parsed, parse_csv, parse_json, parse_jsonl
from .sources import EXAMPLE_ROW, Source, resolve_sources


@dataclass(frozen=True, slots=True)
class Loaded:
    """Examples of all sources, in source order. rows[i] is the source row of examples[i].

    num_rows = rows in the sources; num_rows + num_expanded = len(examples) + len(dropped).
    """

    examples: tuple[Example, ...]
    faults: tuple[Fault, ...]
    dropped: tuple[DroppedRow, ...]
    num_rows: int
    rows: tuple[Any, ...] = ()
    num_expanded: int = 0
    shapes: tuple[Shape, ...] = ()
    formats: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def load(
    sources: list[str], fields: FieldsConfig, system: str, base_dir: Path, progress: Progress = no_progress
) -> Loaded:
    """Read every source; rows that cannot be read are in `dropped` with their reason.

    Raises: DataError when a source is missing or is no data, or no row of any source can be read.
    """
    found, notes = resolve_sources(sources, base_dir)
    examples: list[Example] = []
    rows: list[Any] = []
    faults: list[Fault] = []
    dropped: list[DroppedRow] = []
    shapes: Counter[Shape] = Counter()
    num_expanded = 0
    without_shape: Counter[str] = Counter()
    num_unreadable = 0
    for source in found:
        parsed = read_source(source, progress)
        num_unreadable += len(parsed.dropped)
        num_expanded += _convert(parsed, fields, system, examples, rows, shapes, without_shape, progress)
        faults += sorted(parsed.faults, key=lambda f: f.line)
        dropped += parsed.dropped
    if not shapes:
        raise DataError(_nothing_found([s.name for s in found], fields, without_shape, dropped, num_unreadable))
    num_rows = len(examples) + len(dropped) - num_expanded
    formats = tuple(sorted({s.format or s.kind for s in found}))
    ordered = tuple(shape for shape, _ in shapes.most_common())
    return Loaded(
        examples=tuple(examples),
        faults=tuple(faults),
        dropped=tuple(dropped),
        num_rows=num_rows,
        rows=tuple(rows),
        num_expanded=num_expanded,
        shapes=ordered,
        formats=formats,
        notes=tuple(notes),
    )


def read_source(source: Source, progress: Progress) -> Parsed:
    """Raw rows of one source with the line each starts on."""
    parsed = Parsed(source.name)
    if source.kind != "file":
        _read_datasets(source, parsed, progress)
        return parsed
    expects = "a Parquet file" if source.format == "parquet" else None
    data, faults = read_bytes(source.path, source.name, source.is_gzip, expects)
    parsed.faults += faults
    if source.format == "parquet":
        _read_parquet(data, parsed, progress)
        return parsed
    text, faults = decode(data, source.name)
    parsed.faults += faults
    if not text.strip():
        raise DataError(f"{source.name}: the file holds only white space; write one example a line")
    if source.format == "jsonl":
        parse_jsonl(text, parsed, progress)
    elif source.format == "json":
        parse_json(text, parsed, progress)
    else:
        parse_csv(text, parsed, progress, "\t" if source.format == "tsv" else None)
    return parsed


def _convert(
    parsed: Parsed, fields: FieldsConfig, system: str, examples: list[Example], rows: list[Any],
    shapes: Counter[Shape], without_shape: Counter[str], progress: Progress,
) -> int:  # fmt: skip
    """Append the examples of a file; returns how many more there are than rows."""
    num_expanded = 0
    by_keys: dict[tuple[Any, ...], Shape | None] = {}  # by keys and types
    first_line: dict[Shape, int] = {}
    here: Counter[Shape] = Counter()
    said: set[str] = set()  # notices given once a file
    for index, (row, line) in enumerate(parsed.rows):
        if index % PROGRESS_EVERY == 0:
            progress(f"understanding {parsed.name}", index, len(parsed.rows))
        signature = (*row, *map(type, row.values()))
        if signature not in by_keys:
            by_keys[signature] = shape_of(row, fields)
        shape = by_keys[signature]
        if shape is None:
            without_shape.update(str(k) for k in row)
            shown = ", ".join(str(k) for k in list(row)[:12]) or "none"
            parsed.drop("missing_field", line, row, f"no prompt and answer among its fields: {shown}")
            continue
        try:
            turns, notices = to_examples(row, shape, system)
        except RowFault as fault:
            parsed.drop(fault.code, line, row, fault.evidence)
            shapes[shape] += 1
            continue
        here[shape] += 1
        first_line.setdefault(shape, line)
        for notice in notices:
            if notice.once and notice.code in said:
                continue
            said.add(notice.code)
            parsed.fault(notice.code, line, notice.evidence, notice.repair)
        num_expanded += len(turns) - 1
        for messages, span in turns:
            # The identity of an example is its content, so equal rows of two files are seen as equal.
            examples.append(Example(messages, span, parsed.name, line, content_id(messages)))
            rows.append(row)
    shapes.update(here)
    if len(here) > 1:
        main = here.most_common(1)[0][0]
        for shape, line in first_line.items():
            if shape != main:
                seen = f"{here[shape]} rows are {shape.describe()} where most are {main.describe()}; first here"
                parsed.fault("mixed_shapes", line, seen)
    return num_expanded


def _nothing_found(
    names: list[str], fields: FieldsConfig, without_shape: Counter[str], dropped: list[DroppedRow], num_unreadable: int
) -> str:
    name = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if not without_shape:
        reasons = "\n".join(f"  line {d.line}: {d.code}: {d.evidence}" for d in dropped[:5])
        what = f"none of its {num_unreadable} rows could be read" if num_unreadable else "it holds no row"
        return f"{name}: {what}\n{reasons}\nWrite one object a line, such as {EXAMPLE_ROW}"
    keys = [k for k, _ in without_shape.most_common()]
    seen = ", ".join(f"{k} ({n} rows)" for k, n in without_shape.most_common(10))
    asked = {k: v for k, v in fields.model_dump().items() if v}
    problem = "no prompt and answer fields were recognised"
    if asked:
        missing = [f"{k}: {v}" for k, v in asked.items() if v not in without_shape]
        problem = f"data.fields names {', '.join(missing) or asked}, which the rows do not have"
    prompt = next((k for k in keys if k.lower() in PROMPT_KEYS), keys[0])
    others = [k for k in keys if k != prompt and k.lower() not in ("id", "idx", "index")] or ["ANSWER_KEY"]
    answer = next((k for k in others if k.lower() in ANSWER_KEYS), others[0])
    return (
        f"{name}: {problem}.\nKeys seen: {seen}\nSay in the run file which hold the input and the answer:\n"
        f"data:\n  fields:\n    prompt: {prompt}\n    completion: {answer}"
    )


def plain(value: Any) -> Any:
    """A Parquet or Arrow value as JSON has it; NaN becomes missing."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _read_parquet(data: bytes, parsed: Parsed, progress: Progress) -> None:
    pyarrow = require("pyarrow", extra="data", purpose=f"reading {parsed.name}")
    parquet = require("pyarrow.parquet", extra="data", purpose=f"reading {parsed.name}")

    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        label_names = _label_names(file.schema_arrow.metadata)
        total = file.metadata.num_rows
        for batch in file.iter_batches(batch_size=PROGRESS_EVERY):
            progress(f"reading {parsed.name}", len(parsed.rows), total)
            for row in batch.to_pylist():
                parsed.add(_named_labels(plain(row), label_names), len(parsed.rows) + 1)
    except (pyarrow.ArrowException, OSError) as error:
        detail = str(error).splitlines()[0]
        raise DataError(f"{parsed.name}: no readable Parquet file ({detail}); write it again or give JSONL") from error


def _label_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Class names by column, which `datasets` writes into Parquet metadata."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {k: v["names"] for k, v in features.items() if isinstance(v, dict) and v.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError):
        return {}


def _named_labels(row: dict[str, Any], label_names: dict[str, list[str]]) -> dict[str, Any]:
    for key, names in label_names.items():
        value = row.get(key)
        if isinstance(value, int) and 0 <= value < len(names):
            row[key] = names[value]
    return row


def _read_datasets(source: Source, parsed: Parsed, progress: Progress) -> None:
    """Rows of a `datasets` folder (save_to_disk) or of a hub data set; line is the record number."""
    datasets = require("datasets", extra="data", purpose=f"reading {source.name}")
    progress(f"reading {source.name}", 0, None)
    try:
        if source.kind == "hub":
            found = datasets.load_dataset(source.name[3:].partition(":")[0], split=source.split)
        else:
            found = datasets.load_from_disk(str(source.path))
    except Exception as error:  # the library raises whatever its many back ends do
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = (
            "check the name, the split and the network" if source.kind == "hub" else "save it anew with save_to_disk"
        )
        what = f"`datasets` cannot load it ({type(error).__name__}: {detail})"
        raise DataError(f"{source.name}: {what}; {remedy}") from error
    if isinstance(found, dict):
        split = "train" if "train" in found else next(iter(found)) if len(found) == 1 else None
        if split is None:
            names = ", ".join(f"{source.name}/{k}" for k in found)
            raise DataError(f"{source.name}: holds several splits and none is called train; give one of: {names}")
        others = [k for k in found if k != split]
        if others:
            left = ", ".join(others)
            parsed.fault("other_splits", 0, f"split {split!r} read; left aside: {left}; name them to use them")
        found = found[split]
    label_names = {k: v.names for k, v in found.features.items() if isinstance(v, datasets.ClassLabel)}
    total = found.num_rows
    for start in range(0, total, PROGRESS_EVERY):
        progress(f"reading {source.name}", start, total)
        table = found.with_format("arrow")[start : start + PROGRESS_EVERY]
        for row in table.to_pylist():
            parsed.add(_named_labels(plain(row), label_names), len(parsed.rows) + 1)
