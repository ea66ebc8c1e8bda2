"""Which files a run file's `data.train` and `data.eval` mean, and refusal of what cannot be data."""

from __future__ import annotations

import difflib
import glob
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError

FORMATS_BY_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
}
PACKINGS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
PACKED = {"gzip": "a gzip file", "zstd": "a Zstandard file"}
BINARY = {"parquet": ("a Parquet file",), "arrow": ("an Arrow file", "an Arrow stream")}
EXAMPLE_ROW = '{"prompt": "...", "completion": "..."}'
KNOWN = "JSONL, JSON, CSV, TSV, Parquet, Arrow, plain text, each also as .gz or .zst"
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
OTHER_SPLITS = ("test", "valid", "validation", "validate", "dev", "eval", "heldout", "holdout")

# First bytes of things that get mistaken for data: (offset, bytes, what it is).
MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive (or an Office document)"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ\x00", "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"ARROW1", "an Arrow file"),
    (0, b"\xff\xff\xff\xff", "an Arrow stream"),
    (0, b"SQLite format 3\x00", "an SQLite database"),
    (0, b"\x7fELF", "a program (ELF)"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x93NUMPY", "a numpy array"),
    (0, b"RIFF", "a media file (RIFF)"),
    (0, b"\xd0\xcf\x11\xe0", "an old Office document"),
    (257, b"ustar", "a tar archive"),
    (0, b"GGUF", "a GGUF model"),
)
RENAME_TO = {"a gzip file": ".gz", "a Zstandard file": ".zst", "a Parquet file": ".parquet", "an Arrow file": ".arrow"}


@dataclass(frozen=True, slots=True)
class Source:
    """One thing to read. name is what reports show; kind is file, saved (a `datasets` folder) or hub.

    packing: gzip, zstd or nothing.
    """

    name: str
    kind: str
    path: Path = Path()
    format: str = ""
    packing: str = ""
    split: str = ""


def resolve_sources(sources: list[str], base_dir: Path, *, is_held_out: bool = False) -> tuple[list[Source], list[str]]:
    """Expand globs, folders and hub names; also returns notes on what was left aside.

    is_held_out: of a folder that curation wrote the eval rows are meant, else its train and dev rows.
    Raises: DataError naming every source that is missing or cannot be data, with the next step.
    """
    found: list[Source] = []
    notes: list[str] = []
    problems: list[str] = []
    for text in sources:
        try:
            found += _resolve(text, base_dir, is_held_out, notes)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    unique = {(s.name, s.split) if s.kind == "hub" else str(s.path.resolve()): s for s in found}
    if len(unique) < len(found):
        notes.append(f"{len(found) - len(unique)} file(s) named more than once were read once")
    return list(unique.values()), notes


def _resolve(text: str, base_dir: Path, is_held_out: bool, notes: list[str]) -> list[Source]:
    if text.startswith("hf:"):
        name, _, split = text[3:].partition(":")
        if name.count("/") > 1 or not name.strip("/"):
            raise DataError(f"{text}: a hub name is written hf:OWNER/NAME or hf:OWNER/NAME:SPLIT")
        return [Source(text, "hub", split=split or "train")]
    path = Path(text).expanduser()
    path = path if path.is_absolute() else base_dir / path
    try:
        if path.is_dir():
            return _curated(text, path, is_held_out) if is_curated(path) else _folder(text, path, notes)
        if path.exists():
            return [_file(text, path)]
    except OSError as error:
        raise DataError(f"{text}: cannot be read: {error.strerror}") from error
    if any(c in text for c in "*?["):
        matches = [Path(m) for m in sorted(glob.glob(str(path), recursive=True))]
        files = [m for m in matches if m.is_file()]
        if not files:
            raise DataError(f"{text}: the pattern matches no file in {base_dir.resolve()}; check it with: ls {text}")
        return [_file(_shown(m, base_dir), m) for m in files]
    raise DataError(_missing(text, path))


def _shown(path: Path, base_dir: Path) -> str:
    return str(path.relative_to(base_dir)) if path.is_relative_to(base_dir) else str(path)


def _missing(text: str, path: Path) -> str:
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    if folder != path.parent:
        return f"{text}: no such file (folder {path.parent} does not exist); paths are relative to the run file"
    near = difflib.get_close_matches(path.name, [p.name for p in folder.iterdir()], n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; paths are relative to the run file"
    return f"{text}: no such file in {folder.resolve()}{hint}"


def is_data(text: str) -> bool:
    """Whether a command's argument names data rather than a run: by its ending, or as a hub name."""
    return text.startswith("hf:") or _suffixes(Path(text))[0] in FORMATS_BY_SUFFIX


def _suffixes(path: Path) -> tuple[str, str]:
    packing = PACKINGS.get(path.suffix.lower(), "")
    return (Path(path.stem).suffix if packing else path.suffix).lower(), packing


def _file(name: str, path: Path) -> Source:
    if not path.is_file():
        raise DataError(f"{name}: not a regular file; give a data file ({KNOWN})")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{name}: the file is empty (0 bytes); write one example a line, such as {EXAMPLE_ROW}")
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}; check its permissions") from error
    suffix, packing = _suffixes(path)
    looks = looks_like(head)
    if packing:
        if looks != PACKED[packing]:
            wrong = looks or "not compressed"
            raise DataError(f"{name}: named {path.suffix} but is {wrong}; rename it without {path.suffix}")
        looks = None
    format = FORMATS_BY_SUFFIX.get(suffix)
    guess = f"it looks like {looks or _text_guess(head)}"
    if format is None:
        ending = f"ending {suffix!r}" if suffix else "no ending"
        shown = "" if packing else f"; {guess}"
        if suffix in SPREADSHEETS:
            raise DataError(f"{name}: a spreadsheet is not read; save it as CSV (UTF-8) and give that file{shown}")
        raise DataError(f"{name}: unknown kind of file ({ending}){shown}; use {KNOWN}, and name the file accordingly")
    if format in BINARY and not packing:
        if looks not in BINARY[format]:
            raise DataError(f"{name}: not {BINARY[format][0]}; {guess}")
    elif looks:
        new_ending = RENAME_TO.get(looks)
        advice = f"rename it to end in {new_ending}" if new_ending else f"give a file of rows ({KNOWN})"
        raise DataError(f"{name}: this is {looks}, not {format.upper()}; {advice}")
    elif format == "text" and "JSON" in _text_guess(head):
        raise DataError(f"{name}: plain text is expected of .txt, but {guess}; rename it")
    return Source(name, "file", path, format, packing)


def looks_like(head: bytes) -> str | None:
    """What binary thing the first bytes belong to; None for text (UTF-16 included)."""
    for offset, magic, what in MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return what
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or utf16_without_bom(head):
        return None
    control = sum(b < 32 and b not in (9, 10, 12, 13, 27) for b in head)
    return "binary data of no kind we know" if head and control > 0.1 * len(head) else None


def utf16_without_bom(head: bytes) -> str | None:
    """utf-16-le or utf-16-be when nearly every second byte is zero, as in Latin text without BOM."""
    half = max(len(head) // 2, 1)
    if len(head) >= 4 and head[1::2].count(0) > 0.7 * half and head[0::2].count(0) < 0.1 * half:
        return "utf-16-le"
    if len(head) >= 4 and head[0::2].count(0) > 0.7 * half and head[1::2].count(0) < 0.1 * half:
        return "utf-16-be"
    return None


def _text_guess(head: bytes) -> str:
    start = head.lstrip()[:1]
    return {b"{": "JSON lines (.jsonl)", b"[": "a JSON array (.json)"}.get(start, "plain text or CSV")


def _folder(name: str, path: Path, notes: list[str]) -> list[Source]:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return [Source(name, "saved", path)]
    wanted = FORMATS_BY_SUFFIX.keys() - {".txt"}  # in a folder more often notes than data
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and _suffixes(p)[0] in wanted]
    files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    files = [p for p in files if p.name not in ("dataset_info.json", "dataset_infos.json", "config.json")]
    if not files:
        inside = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
        what = f"the folder holds no data file ({KNOWN}) and is no `datasets` folder"
        raise DataError(f"{name}: {what}; it holds: {inside}")
    held_out = [p for p in files if any(p.name.lower().startswith(s) for s in OTHER_SPLITS)]
    if held_out and len(held_out) < len(files):
        files = [p for p in files if p not in held_out]
        notes.append(f"{name}: {', '.join(p.name for p in held_out)} left aside; name it under data.eval to use it")
    return [_file(str(Path(name) / p.relative_to(path)), p) for p in files]


def is_curated(folder: Path) -> bool:
    """Whether curation wrote a folder, to the end."""
    return (folder / "receipt.json").is_file() and (folder / "train.jsonl").is_file()


def _curated(name: str, path: Path, is_held_out: bool) -> list[Source]:
    """The rows a curation kept; what it dropped stays dropped."""
    if is_held_out:
        return [_file(str(Path(name) / "eval.jsonl"), path / "eval.jsonl")]
    found = [_file(str(Path(name) / "train.jsonl"), path / "train.jsonl")]
    if (path / "dev.jsonl").is_file() and (path / "dev.jsonl").stat().st_size:
        found.append(_file(str(Path(name) / "dev.jsonl"), path / "dev.jsonl"))
    return found


def files_of(sources: list[str], base_dir: Path, *, is_held_out: bool = False) -> list[Path]:
    """Every local file the sources stand for, in order; hub names have none.

    For fingerprints: the rows change when these files do. Raises: DataError as resolve_sources.
    """
    files: list[Path] = []
    for source in resolve_sources(sources, base_dir, is_held_out=is_held_out)[0]:
        if source.kind == "saved":
            files += [p for p in sorted(source.path.rglob("*")) if p.is_file()]
        elif source.kind == "file":
            files.append(source.path)
    return files
