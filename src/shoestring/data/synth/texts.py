"""Inputs without answers, and documents in passages, from files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError, require
from ..formats import PROMPT_KEYS
from ..turns import as_text

PROSE_SUFFIXES = (".txt", ".md", ".rst")
PARAGRAPH = re.compile(r"\S[^\n]*(?:\n[^\S\n]*\S[^\n]*)*")
PASSAGE_CHARS = 2000  # about 500 tokens: room for several facts, little to pay for


@dataclass(frozen=True, slots=True)
class Text:
    """A text with where it came from; line counts from 1."""

    text: str
    source: str
    line: int


def read_inputs(files: Sequence[str], prompt_key: str | None = None) -> list[Text]:
    """Inputs to be answered: a line each of prose files, the prompt of each row of data files.

    prompt_key: the key that holds it, where detection cannot tell. Raises: DataError.
    """
    texts: list[Text] = []
    for name in files:
        if Path(name).suffix.lower() in PROSE_SUFFIXES:
            lines = enumerate(_decoded(name).split("\n"), 1)
            texts += [Text(line.strip(), name, number) for number, line in lines if line.strip()]
        else:
            texts += _rows(name, prompt_key)
    if not texts:
        raise DataError(f'{", ".join(files)}: no input found; give one a line, or rows such as {{"prompt": "..."}}')
    return texts


def read_passages(files: Sequence[str]) -> list[Text]:
    """Documents in passages of at most PASSAGE_CHARS, cut between paragraphs. Raises: DataError."""
    passages: list[Text] = []
    for name in files:
        is_prose = Path(name).suffix.lower() in PROSE_SUFFIXES
        documents = [Text(_decoded(name), name, 1)] if is_prose else _rows(name, None)
        for document in documents:
            passages += _cut(document)
    if not passages:
        raise DataError(f"{', '.join(files)}: no text found; give .txt or .md files, or rows with a field text")
    return passages


def rows_of(name: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows of a JSON, JSON lines, CSV, TSV or Parquet file (.gz of the text ones), with line or record number.

    What a teacher is to be paid for is read strictly. Raises: DataError at the first row that is none.
    """
    suffix = Path(name.removesuffix(".gz")).suffix.lower()
    rows: Iterator[tuple[Any, int]]
    if suffix in (".parquet", ".pq"):
        rows = _parquet(name)
    elif suffix in (".jsonl", ".ndjson"):
        rows = ((_json(line, name, n), n) for n, line in enumerate(_decoded(name).split("\n"), 1) if line.strip())
    elif suffix == ".json":
        value = _json(_decoded(name), name, 1)
        rows = ((row, n) for n, row in enumerate(value if isinstance(value, list) else [value], 1))
    elif suffix in (".csv", ".tsv"):
        table = csv.DictReader(io.StringIO(_decoded(name), newline=""), delimiter="\t" if suffix == ".tsv" else ",")
        rows = ((row, table.line_num) for row in table)
    else:
        known = ", ".join((*PROSE_SUFFIXES, ".jsonl", ".json", ".csv", ".tsv", ".parquet"))
        raise DataError(f"{name}: unknown kind of file (ending {suffix!r}); give one of {known}")
    for row, line in rows:
        if not isinstance(row, dict):
            raise DataError(f"{name}:{line}: a row is an object with named fields, this is {type(row).__name__}")
        yield row, line


def _decoded(name: str) -> str:
    """The text of a file, unpacked. Raises: DataError."""
    try:
        data = Path(name).read_bytes()
        return (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text (byte {error.start}); convert it") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _json(text: str, name: str, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}:{line}: no JSON ({error}); mend the line or take it out") from error


def _parquet(name: str) -> Iterator[tuple[Any, int]]:
    parquet = require("pyarrow.parquet", extra="data", purpose=f"reading {name}")
    try:
        table = parquet.read_table(name)
    except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of these
        raise DataError(f"{name}: no readable Parquet file ({str(error).splitlines()[0]})") from error
    return ((row, n) for n, row in enumerate(table.to_pylist(), 1))


def _rows(name: str, prompt_key: str | None) -> list[Text]:
    texts = []
    for row, line in rows_of(name):
        text = _prompt_of(row, prompt_key)
        if text is None:
            keys = ", ".join(str(k) for k in row)
            raise DataError(
                f"{name}:{line}: no input among the fields {keys}; name one of them prompt, or say "
                "data.fields.prompt in the run file"
            )
        texts.append(Text(text, name, line))
    return texts


def _prompt_of(row: dict[str, Any], prompt_key: str | None) -> str | None:
    by_name = {str(k).strip().lower(): k for k in reversed(list(row))}
    key = prompt_key if prompt_key in row else next((by_name[k] for k in PROMPT_KEYS if k in by_name), None)
    if key is not None:
        return as_text(row[key]).strip()
    turns = row.get("messages")
    if isinstance(turns, list):
        return next((as_text(t.get("content")) for t in turns if isinstance(t, dict) and t.get("role") == "user"), None)
    return None


def _cut(document: Text) -> list[Text]:
    """Paragraphs joined up to PASSAGE_CHARS; a longer one is cut between sentences, or where it must be."""
    is_prose = Path(document.source).suffix.lower() in PROSE_SUFFIXES
    passages: list[Text] = []
    held, held_line = "", document.line
    for found in PARAGRAPH.finditer(document.text):
        line = document.line + (document.text.count("\n", 0, found.start()) if is_prose else 0)
        for piece in _sentences(found.group().strip()):
            if held and len(held) + len(piece) + 2 > PASSAGE_CHARS:
                passages.append(Text(held, document.source, held_line))
                held = ""
            held, held_line = (f"{held}\n\n{piece}", held_line) if held else (piece, line)
    if held:
        passages.append(Text(held, document.source, held_line))
    return passages


def _sentences(paragraph: str) -> list[str]:
    """The paragraph in pieces of at most PASSAGE_CHARS, cut after a sentence, else between words where it can be."""
    pieces = []
    while len(paragraph) > PASSAGE_CHARS:
        ends = [m.end() for m in re.finditer(r"[.!?。]\s+", paragraph[:PASSAGE_CHARS])]
        at = ends[-1] if ends and ends[-1] > PASSAGE_CHARS // 2 else paragraph.rfind(" ", 0, PASSAGE_CHARS)
        at = at if at > 0 else PASSAGE_CHARS
        pieces.append(paragraph[:at].strip())
        paragraph = paragraph[at:]
    return [*pieces, paragraph.strip()]
