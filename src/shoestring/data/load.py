"""Sources to records: every format we read, in one shape, with the line of each row and all faults at once."""

from __future__ import annotations

import datetime
import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import FieldsConfig
from ..errors import DataError, require
from ..records import DroppedRow, Example, Fault, Progress, no_progress
from .csv_rows import parse_csv
from .decode import blocks_of, read_bytes, shorten, survey, text_of
from .engine import WORKERS_FROM_BYTES, Local, Ray, Table
from .formats import ANSWER_KEYS, PROMPT_KEYS, Shape
from .parse import ROWS_PER_BLOCK, Parsed, layout_of, parse_json, parse_other_layout, parse_text
from .rows import NAMES, Records, Seen, Settings, Signature, Work
from .sources import BINARY, EXAMPLE_ROW, Source, resolve_sources


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


@dataclass(frozen=True, slots=True)
class Scanned:
    """What scanning some sources said beside the records."""

    faults: list[Fault]
    notes: list[str]
    shapes: tuple[Shape, ...]
    formats: tuple[str, ...]


def load(
    sources: list[str], fields: FieldsConfig, system: str, base_dir: Path, progress: Progress = no_progress,
    max_rows: int | None = None,
) -> Loaded:  # fmt: skip
    """Read every source; rows that cannot be read are in `dropped` with their reason.

    max_rows: stop once about so many are read, for a look at the beginning.
    Raises: DataError when a source is missing or is no data, or no row of any source can be read.
    """
    with Table() as table:
        settings = Settings(fields, system, None)
        seen = scan(sources, base_dir, settings, table, Local(1), progress, max_rows=max_rows)
        table.close()
        examples: list[Example] = []
        rows: list[Any] = []
        dropped: list[DroppedRow] = []
        for index, (_, row_text) in enumerate(table.lines()):
            row = json.loads(row_text)
            if table.code[index]:
                place = table.sources[table.source[index]], int(table.line[index])
                dropped.append(DroppedRow(row, *place, table.code_of(index), table.evidence[index]))
            else:
                examples.append(table.example(index))
                rows.append(row)
        return Loaded(
            examples=tuple(examples),
            faults=tuple(seen.faults),
            dropped=tuple(dropped),
            num_rows=table.num_rows,
            rows=tuple(rows),
            num_expanded=len(table) - table.num_rows,
            shapes=seen.shapes,
            formats=seen.formats,
            notes=tuple(seen.notes),
        )


def scan(
    sources: list[str], base_dir: Path, settings: Settings, table: Table, engine: Local | Ray, progress: Progress,
    *, is_held_out: bool = False, max_rows: int | None = None,
) -> Scanned:  # fmt: skip
    """Append the records of every source to the table; faults are in the order of sources and lines.

    Raises: DataError as load.
    """
    found, notes = resolve_sources(sources, base_dir, is_held_out=is_held_out)
    out = Scanned([], notes, (), tuple(sorted({s.format or s.kind for s in found})))
    shapes: Counter[Shape] = Counter()
    without_shape: Counter[str] = Counter()
    first_drops: list[tuple[int, str]] = []
    num_unreadable = num_rows = 0
    is_large = sum(s.path.stat().st_size for s in found if s.kind == "file") >= WORKERS_FROM_BYTES
    for source in found:
        number = len(table.sources)
        table.sources.append(source.name)
        file = _File(source, settings)
        faults = file.faults
        seen: dict[Signature, Seen] = {}
        once: dict[str, Fault] = {}
        num_lines = 0
        for block in engine.map(file.works(), is_large):
            progress(f"reading {source.name}", num_lines, file.num_lines)
            num_lines = int(block.lines[-1]) if len(block.lines) else num_lines
            table.append(number, is_held_out, block)
            faults += block.faults
            for fault in block.once:
                once.setdefault(fault.code, fault)
            _merge(seen, block.seen)
            without_shape += block.without_shape
            num_unreadable += block.num_unreadable
            num_rows += int(block.is_first.sum())
            if len(first_drops) < 5:
                first_drops += [(int(block.lines[i]), f"{_code(block, i)}: {e}") for i, e in block.evidence.items()]
            if max_rows is not None and num_rows >= max_rows:
                break
        for one in seen.values():
            shapes[one.shape] += one.num_rows
        out.faults.extend(sorted([*faults, *once.values(), *_mixtures(source.name, seen)], key=lambda f: f.line))
    if not shapes:
        names = [s.name for s in found]
        raise DataError(_nothing_found(names, settings.fields, without_shape, first_drops[:5], num_unreadable))
    return Scanned(out.faults, out.notes, tuple(shape for shape, _ in shapes.most_common()), out.formats)


def _code(block: Records, index: int) -> str:
    return NAMES[block.codes[index]]


def _merge(seen: dict[Signature, Seen], more: dict[Signature, Seen]) -> None:
    for signature, one in more.items():
        known = seen.setdefault(signature, one)
        if known is not one:
            known.num_rows += one.num_rows


def _mixtures(name: str, seen: dict[Signature, Seen]) -> Iterator[Fault]:
    """Rows of another shape, or with a field of another type, than most rows of the file; once a kind."""
    rows: Counter[Shape] = Counter()
    first: dict[Any, int] = {}
    types: dict[tuple[Shape, str], Counter[str]] = defaultdict(Counter)
    for signature, one in seen.items():
        rows[one.shape] += one.num_rows
        first.setdefault(one.shape, one.first_line)
        kinds = dict(zip(signature[: len(signature) // 2], signature[len(signature) // 2 :], strict=True))
        for key in (one.shape.prompt, one.shape.context, one.shape.answer):
            kind = "number" if kinds.get(key) in (int, float) else getattr(kinds.get(key), "__name__", "NoneType")
            if key is not None and kind != "NoneType":
                types[one.shape, key][kind] += one.num_rows
                first.setdefault((one.shape, key, kind), one.first_line)
    main = rows.most_common(1)[0][0] if rows else None
    for shape, num_rows in rows.items():
        if main is not None and shape != main:
            seen_text = f"{num_rows} rows are {shape.describe()} where most are {main.describe()}; first here"
            yield Fault("mixed_shapes", name, first[shape], shorten(seen_text, 240), "ask")
    for (shape, key), counts in types.items():
        usual = counts.most_common(1)[0][0]
        for kind, num_rows in counts.items():
            if kind != usual:
                seen_text = f"field {key!r} is {kind} in {num_rows} rows where most hold {usual}; first here"
                yield Fault("wrong_type", name, first[shape, key, kind], shorten(seen_text, 240), "ask")


class _File:
    """One source as works. faults grows, and num_lines becomes known, while works() is consumed."""

    def __init__(self, source: Source, settings: Settings):
        self.source, self.settings = source, settings
        self.faults: list[Fault] = []
        self.num_lines: int | None = None

    def works(self) -> Iterator[Work]:
        """Blocks of lines, or rows in batches. Raises: DataError."""
        source = self.source
        parsed = Parsed(source.name)
        if source.kind != "file":
            yield from self._batches(_read_datasets(source, parsed), parsed)
            return
        if source.format in BINARY:
            yield from self._batches(_read_columns(source, parsed), parsed)
            return
        found = survey(source)
        self.faults += found.faults
        if found.is_blank:
            raise DataError(f"{source.name}: the file holds only white space; write one example a line")
        self.num_lines = found.num_lines
        blocks = blocks_of(source, found)
        layout = ""
        if source.format == "jsonl":
            first = next(blocks)
            layout = layout_of(text_of(first, source.path, found.charset, source.name)[0])
            blocks = itertools.chain([first], blocks)
            if layout == "lines":
                for block in blocks:
                    yield Work(source.name, self.settings, source.path, found.charset, block)
                return
        parts: list[str] = []
        for block in blocks:
            text, faults = text_of(block, source.path, found.charset, source.name)
            parts.append(text)
            self.faults += faults
        text = "".join(parts)
        del parts
        if layout:
            steps = parse_other_layout(text, layout, parsed)
        elif source.format == "json":
            steps = parse_json(text, parsed)
        elif source.format == "text":
            steps = parse_text(text, parsed)
        else:
            steps = parse_csv(text, parsed, "\t" if source.format == "tsv" else None)
        del text
        yield from self._batches(steps, parsed)

    def _batches(self, steps: Iterator[None], parsed: Parsed) -> Iterator[Work]:
        """What a parser has read, each time it pauses and at its end."""
        for _ in itertools.chain(steps, [None]):
            entries = tuple(parsed.entries)
            parsed.entries.clear()
            self.faults += parsed.faults
            parsed.faults.clear()
            if entries:
                yield Work(self.source.name, self.settings, entries=entries)


def _nothing_found(
    names: list[str], fields: FieldsConfig, without_shape: Counter[str], dropped: list[tuple[int, str]],
    num_unreadable: int,
) -> str:  # fmt: skip
    name = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if not without_shape:
        reasons = "\n".join(f"  line {line}: {why}" for line, why in dropped)
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
        f"{name}: {problem}.\nKeys seen: {seen}\nCall them prompt and completion in the file, or say in the run file "
        f"which hold input and answer:\ndata:\n  fields:\n    prompt: {prompt}\n    completion: {answer}"
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


def _read_columns(source: Source, parsed: Parsed) -> Iterator[None]:
    """Rows of a Parquet or Arrow file; line is the record number."""
    pyarrow = require("pyarrow", extra="data", purpose=f"reading {source.name}")
    parquet = require("pyarrow.parquet", extra="data", purpose=f"reading {source.name}")
    file: Any = str(source.path)
    if source.packing:
        data, faults = read_bytes(source, BINARY[source.format])
        parsed.faults += faults
        file = pyarrow.BufferReader(data)
    what = {"parquet": "Parquet", "arrow": "Arrow"}[source.format]
    line = 1
    try:
        if source.format == "parquet":
            table = parquet.ParquetFile(file)
            schema, batches = table.schema_arrow, table.iter_batches(batch_size=ROWS_PER_BLOCK)
        else:
            opened = pyarrow.OSFile(file) if isinstance(file, str) else file
            if opened.read(6) == b"ARROW1":
                whole = pyarrow.ipc.open_file(opened)
                schema, batches = whole.schema, (whole.get_batch(i) for i in range(whole.num_record_batches))
            else:
                opened.seek(0)
                batches = pyarrow.ipc.open_stream(opened)
                schema = batches.schema
        label_names = _label_names(schema.metadata)
        for batch in batches:
            batch.validate(full=True)  # offsets of a damaged file may point anywhere
            for start in range(0, batch.num_rows, ROWS_PER_BLOCK):
                for row in batch.slice(start, ROWS_PER_BLOCK).to_pylist():
                    parsed.add(_named_labels(plain(row), label_names), line)
                    line += 1
                yield
    except (pyarrow.ArrowException, OSError) as error:
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{source.name}: no readable {what} file ({detail}); write it again or give JSONL") from error


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


def _read_datasets(source: Source, parsed: Parsed) -> Iterator[None]:
    """Rows of a `datasets` folder (save_to_disk) or of a hub data set; line is the record number."""
    datasets = require("datasets", extra="data", purpose=f"reading {source.name}")
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
    for start in range(0, found.num_rows, ROWS_PER_BLOCK):
        table = found.with_format("arrow")[start : start + ROWS_PER_BLOCK]
        for line, row in enumerate(table.to_pylist(), start + 1):
            parsed.add(_named_labels(plain(row), label_names), line)
        yield
