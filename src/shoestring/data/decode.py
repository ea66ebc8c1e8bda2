"""Bytes to text in blocks of whole lines: compression, encodings, byte order marks, NULs, each oddity a Fault."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, require
from ..records import Fault
from .sources import Source, looks_like, utf16_without_bom

EVIDENCE_CHARS = 100
BLOCK_BYTES = 1 << 20
MAX_LINE_BYTES = 16 << 20  # about four million tokens: no training row
ZSTD_PIECE_BYTES = 1 << 15  # of damaged data a piece is lost that could be read in part
WIDE_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
REPLACED = "\ufffd".encode()


def shorten(text: str, limit: int = EVIDENCE_CHARS) -> str:
    """One line of at most `limit` characters."""
    if len(text) > 50 * limit:  # white space apart, more than enough is looked at
        text = text[: 50 * limit]
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass(frozen=True, slots=True)
class Charset:
    """How the lines of a file are read: UTF-8, and what a line that is not UTF-8 is taken for."""

    name: str
    fallback: str = "latin-1"
    scope: str = ""  # of the fallback, for the evidence


UTF8 = Charset("utf-8")


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines of a file. start, size: where it stands in the file if that is plain bytes, else data holds it."""

    first_line: int
    is_last: bool
    data: bytes = b""
    start: int = 0
    size: int = 0


@dataclass(slots=True)
class Survey:
    """What one pass over a file says of it as a whole."""

    charset: Charset
    blocks: list[Block]  # of plain files; empty for others, which are read again
    faults: list[Fault]
    is_mac: bool = False  # lines end in a carriage return alone
    is_blank: bool = True
    num_lines: int = 0


def unpack(source: Source, problems: list[str]) -> Iterator[bytes]:
    """The file's bytes, unpacked, in pieces; of damaged data what comes before the damage, and the problem.

    Raises: DataError.
    """
    try:
        if source.packing == "zstd":
            yield from _unpack_zstd(source, problems)
            return
        with source.path.open("rb") as file:
            if source.packing == "gzip":
                yield from _unpack_gzip(file, problems)
            else:
                while piece := file.read(BLOCK_BYTES):
                    yield piece
    except OSError as error:
        raise DataError(f"{source.name}: cannot be read: {error.strerror}; check its permissions") from error


def _unpack_gzip(file: Any, problems: list[str]) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=31)
    pending = b""
    is_started = False
    while True:
        piece = pending or file.read(BLOCK_BYTES)
        if not piece:
            if is_started:
                problems.append("the file ends in the middle of the compressed data")
            return
        is_started = True
        try:
            unpacked = unpacker.decompress(piece, BLOCK_BYTES)
        except zlib.error as error:
            problems.append(str(error))
            return
        if unpacked:
            yield unpacked
        pending = unpacker.unconsumed_tail
        if unpacker.eof:  # padding, or another member
            pending = unpacker.unused_data.lstrip(b"\0")
            unpacker = zlib.decompressobj(wbits=31)
            is_started = False


def _unpack_zstd(source: Source, problems: list[str]) -> Iterator[bytes]:
    pyarrow = require("pyarrow", extra="data", purpose=f"reading {source.name} (Zstandard)")
    try:
        with pyarrow.input_stream(str(source.path), compression="zstd") as file:
            while piece := file.read(ZSTD_PIECE_BYTES):
                yield piece
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        problems.append(str(error).splitlines()[0])


def read_bytes(source: Source, expects: tuple[str, ...]) -> tuple[bytes, list[Fault]]:
    """All bytes of a binary file. expects: what looks_like must say of them. Raises: DataError."""
    problems: list[str] = []
    data = b"".join(unpack(source, problems))
    _check_content(source, data[:4096], problems, expects)
    return data, [_damage(source, data.count(b"\n") + 1, problems[0])] if problems else []


def _check_content(source: Source, head: bytes, problems: list[str], expects: tuple[str, ...]) -> None:
    if not source.packing:
        return
    if not head:
        what = problems[0] if problems else "it holds no bytes"
        raise DataError(f"{source.name}: nothing unpacks ({what}); compress it anew")
    looks = looks_like(head)
    if looks not in (expects or (None,)):
        wanted = " or ".join(expects) or "rows of text"
        raise DataError(
            f"{source.name}: inside the {source.packing} is {looks or 'text'}, not {wanted}; rename it or give the data"
        )


def _damage(source: Source, line: int, problem: str) -> Fault:
    return Fault(f"damaged_{source.packing}", source.name, line, f"rows after this line are lost: {problem}", "ask")


def survey(source: Source) -> Survey:
    """Read the file once: its encoding, and where blocks of whole lines begin. Raises: DataError."""
    problems: list[str] = []
    found = Survey(UTF8, [], [])
    bad_lines: list[bytes] = []  # a sample, to choose the charset by
    has_high_controls = fits_cp1252 = False
    num_utf8 = num_crlf = num_cr = num_broken = 0
    broken_line = 0
    wide = ""
    line = 1
    for block in _line_blocks(source, problems, None, first := [b""]):
        if line == 1:
            wide = _wide(first[0])
            _check_content(source, first[0], problems, ())
        found.is_blank = found.is_blank and not block.data.strip(b" \t\r\n\0\xef\xbb\xbf")
        if b"\r" in block.data:
            num_crlf += block.data.count(b"\r\n")
            num_cr += block.data.count(b"\r")
        if wide:
            if REPLACED in block.data:
                if not num_broken:
                    broken_line = line + block.data[: block.data.index(REPLACED)].count(b"\n")
                num_broken += block.data.count(REPLACED)
        elif not block.data.isascii():
            try:
                block.data.decode("utf-8")
                num_utf8 += 1
            except UnicodeDecodeError:
                for raw in block.data.split(b"\n"):
                    try:
                        raw.decode("utf-8")
                        num_utf8 += not raw.isascii()
                    except UnicodeDecodeError:
                        high = any(0x80 <= b <= 0x9F for b in raw)
                        fits_cp1252 = (fits_cp1252 or not has_high_controls) and _fits(raw) if high else fits_cp1252
                        has_high_controls = has_high_controls or high
                        bad_lines = bad_lines or [raw]
        line = block.first_line + block.data.count(b"\n")
        if not source.packing and not wide:
            found.blocks.append(Block(block.first_line, block.is_last, b"", block.start, len(block.data)))
    found.num_lines = line
    if first[0].startswith(codecs.BOM_UTF8):
        seen = "UTF-8 byte order mark at the start; ignored"
        found.faults.append(Fault("byte_order_mark", source.name, 1, seen, "safe"))
    if wide:
        seen = f"the file is {wide.upper()}, read as such; UTF-8 is safer"
        found.faults.append(Fault("utf16", source.name, 1, seen, "safe"))
        if num_broken:
            seen = f"{num_broken} characters could not be decoded"
            found.faults.append(Fault("undecodable", source.name, broken_line, seen, "ask"))
    if num_crlf:
        seen = f"{num_crlf} lines end in carriage return and line feed"
        found.faults.append(Fault("crlf", source.name, 1, seen, "safe"))
    elif num_cr and line == 1:
        found.is_mac, found.blocks = True, []
    if problems:
        found.faults.append(_damage(source, line, problems[0]))
    if bad_lines:
        fallback = "cp1252" if has_high_controls and fits_cp1252 else "latin-1"
        scope = "other non-ASCII lines of the file are UTF-8" if num_utf8 else "so is the whole file"
        found.charset = Charset("utf-8", fallback, scope)
    return found


def _fits(raw: bytes) -> bool:
    try:
        raw.decode("cp1252")
    except UnicodeDecodeError:
        return False
    return True


def _wide(head: bytes) -> str:
    """utf-16, utf-32 and the like by the first bytes; empty for anything else."""
    marked = next((name for mark, name in WIDE_MARKS if head.startswith(mark)), "")
    return marked or (utf16_without_bom(head) or "" if b"\0" in head else "")


def blocks_of(source: Source, found: Survey) -> Iterator[Block]:
    """The file in blocks of whole lines, to be read by `text_of`."""
    yield from found.blocks or _line_blocks(source, [], found, [b""])


def _line_blocks(source: Source, problems: list[str], found: Survey | None, first: list[bytes]) -> Iterator[Block]:
    """Blocks of about BLOCK_BYTES that end with a line end; first[0] becomes the first bytes as they stand.

    UTF-16 and UTF-32 are passed on as UTF-8. What was cut off the front (a byte order mark) counts in `start`.
    """
    decoder: Any = None
    rest: list[bytes] = []
    size, start, line = 0, 0, 1
    open_bytes = 0  # of the line that has not ended
    is_first, has_feed = True, False
    is_bounded: bool | None = None
    pieces = unpack(source, problems)
    for raw in pieces:
        piece = raw
        if is_first:
            is_first = False
            first[0] = raw[:4096]
            wide = _wide(first[0])
            if wide:
                decoder = codecs.getincrementaldecoder(wide)("replace")
            elif piece.startswith(codecs.BOM_UTF8):
                piece, start = piece[3:], 3
        if decoder is not None:
            piece = decoder.decode(piece).encode("utf-8", "surrogatepass")
        if found is not None and found.is_mac:
            piece = piece.replace(b"\r", b"\n")
        if is_bounded is None:
            is_bounded = source.format != "json" and not is_array(source, piece)
        has_feed = has_feed or b"\n" in piece
        ended, left = line_ends(piece, has_feed)
        if is_bounded and open_bytes + ended > MAX_LINE_BYTES:
            number = line + sum(held.count(b"\n") for held in rest)
            raise too_long(source, number, open_bytes + ended, () if left is not None else pieces)
        open_bytes = open_bytes + ended if left is None else left
        rest.append(piece)
        size += len(piece)
        if size < BLOCK_BYTES or b"\n" not in piece:
            continue
        data = b"".join(rest)
        cut = data.rindex(b"\n") + 1
        yield Block(line, False, data[:cut], start, cut)
        line += data.count(b"\n", 0, cut)
        start += cut
        rest = [data[cut:]]
        size = len(rest[0])
    data = b"".join(rest)
    if decoder is not None:
        data += decoder.decode(b"", True).encode("utf-8", "surrogatepass")
    yield Block(line, True, data, start, len(data))


def is_array(source: Source, start: bytes) -> bool:
    """Whether JSON lines begin as one array, which is read as such and may stand on one line."""
    return source.format == "jsonl" and start.lstrip(b" \t\r\n\0\xef\xbb\xbf").startswith(b"[")


def line_ends(piece: bytes, has_feed: bool) -> tuple[int, int | None]:
    """Bytes before the first line end, and after the last one; None where no line ends here.

    has_feed: the file has line feeds, so that a carriage return alone ends no line.
    """
    end = b"\n" if has_feed else b"\r"
    at = piece.find(end)
    return (len(piece), None) if at < 0 else (at, len(piece) - 1 - piece.rfind(end))


def too_long(source: Source, number: int, num_bytes: int, pieces: Iterable[bytes]) -> DataError:
    """The refusal of a line. num_bytes: read of it so far; pieces: what follows, read to its end but not held."""
    for piece in pieces:
        ended, left = line_ends(piece, True)
        num_bytes += ended
        if left is not None:
            break
    return DataError(
        f"{source.name}: line {number:,} has {num_bytes / (1 << 20):,.1f} MiB, the most is {MAX_LINE_BYTES >> 20} MiB "
        "a line; no training row is as long: end each row with a line break, or name one JSON array .json"
    )


def text_of(block: Block, path: Path, charset: Charset, name: str) -> tuple[str, list[Fault]]:
    """Text of a block with `\\n` line ends, and what was wrong with its encoding, by line."""
    data = block.data
    if block.size and not data:
        with path.open("rb") as file:
            file.seek(block.start)
            data = file.read(block.size)
    faults: list[Fault] = []
    try:
        text = data.decode(charset.name)
    except UnicodeDecodeError:
        text = _decode_lines(data, block.first_line, charset, name, faults)
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    if "\0" in text:
        for number, line in enumerate(text.split("\n"), block.first_line):
            if "\0" in line:
                seen = f"{line.count(chr(0))} NUL characters removed: {shorten(line.replace(chr(0), '␀'))}"
                faults.append(Fault("nul", name, number, seen, "safe"))
        text = text.replace("\0", "")
    return text, faults


def _decode_lines(data: bytes, first_line: int, charset: Charset, name: str, faults: list[Fault]) -> str:
    lines: list[str] = []
    shown = {"latin-1": "Latin-1", "cp1252": "Windows-1252"}[charset.fallback]
    for number, raw in enumerate(data.split(b"\n"), first_line):
        try:
            lines.append(raw.decode("utf-8"))
            continue
        except UnicodeDecodeError:
            text = raw.decode(charset.fallback, "replace")
        lines.append(text)
        at = next(k for k, c in enumerate(text) if ord(c) > 127)
        high = sum(b > 127 for b in raw)
        # Western text is mostly ASCII; more high bytes than that point to another alphabet.
        is_western = high <= 0.3 * len(raw)
        advice = "" if is_western else "; this hardly is Western text, convert the file to UTF-8"
        seen = f"not UTF-8, read as {shown} ({charset.scope}): {shorten(text[max(0, at - 20) :][:200], 60)}{advice}"
        faults.append(Fault("not_utf8", name, number, seen, "safe" if is_western else "ask"))
    return "\n".join(lines)
