"""Bytes to text: encodings, byte order marks, NULs and gzip, each oddity a Fault with its line."""

from __future__ import annotations

import zlib
from pathlib import Path

from ..errors import DataError
from ..records import Fault
from .sources import looks_like, utf16_without_bom

EVIDENCE_CHARS = 100


def shorten(text: str, limit: int = EVIDENCE_CHARS) -> str:
    """One line of at most `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def read_bytes(path: Path, name: str, is_gzip: bool, expects: str | None = None) -> tuple[bytes, list[Fault]]:
    """The file's bytes, unpacked; a damaged gzip gives what could be unpacked and a fault.

    expects: what looks_like must say of the unpacked bytes (None: text). Raises: DataError.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}; check its permissions") from error
    if not is_gzip:
        return data, []
    parts: list[bytes] = []
    problem = ""
    while data:
        unpacker = zlib.decompressobj(wbits=31)
        try:
            parts.append(unpacker.decompress(data))
        except zlib.error as error:
            problem = str(error)
            break
        if not unpacker.eof:
            problem = "the file ends in the middle of the compressed data"
            break
        data = unpacker.unused_data.lstrip(b"\0")
    unpacked = b"".join(parts)
    if not unpacked:
        raise DataError(f"{name}: nothing unpacks ({problem or 'it holds no bytes'}); compress it anew with gzip")
    looks = looks_like(unpacked[:4096])
    if looks != expects:
        raise DataError(
            f"{name}: inside the gzip is {looks or 'text'}, not {expects or 'rows of text'}; rename it or give the data"
        )
    if problem:
        line = unpacked.count(b"\n") + 1
        return unpacked, [Fault("damaged_gzip", name, line, f"rows after this line are lost: {problem}", "ask")]
    return unpacked, []


def decode(data: bytes, name: str) -> tuple[str, list[Fault]]:
    """Text of the file with `\\n` line ends, and what was wrong with its encoding."""
    faults: list[Fault] = []
    if data.startswith(b"\xef\xbb\xbf"):
        faults.append(Fault("byte_order_mark", name, 1, "UTF-8 byte order mark at the start; ignored", "safe"))
        data = data[3:]
    wide = None
    if data.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        wide = "utf-32"
    elif data.startswith((b"\xff\xfe", b"\xfe\xff")):
        wide = "utf-16"
    elif b"\0" in data[:4096]:
        wide = utf16_without_bom(data[:4096])
    if wide:
        text = data.decode(wide, "replace")
        faults.append(Fault("utf16", name, 1, f"the file is {wide.upper()}, read as such; UTF-8 is safer", "safe"))
        broken = text.count("\ufffd")
        if broken:
            line = text[: text.index("\ufffd")].count("\n") + 1
            faults.append(Fault("undecodable", name, line, f"{broken} characters could not be decoded", "ask"))
    else:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = _decode_mixed(data, name, faults)
    if "\r" in text:
        text = text.replace("\r\n", "\n")
        if "\n" not in text:
            text = text.replace("\r", "\n")
    if "\0" in text:
        for number, line_text in enumerate(text.split("\n"), 1):
            if "\0" in line_text:
                seen = f"{line_text.count(chr(0))} NUL characters removed: {shorten(line_text.replace(chr(0), '␀'))}"
                faults.append(Fault("nul", name, number, seen, "safe"))
        text = text.replace("\0", "")
    return text, faults


def _decode_mixed(data: bytes, name: str, faults: list[Fault]) -> str:
    """Lines that are not UTF-8 read as Latin-1 (Windows-1252 if it alone fits), chosen once for the file."""
    lines = data.split(b"\n")
    decoded: list[str | None] = []
    num_utf8 = 0
    for raw in lines:
        try:
            decoded.append(raw.decode("utf-8"))
            num_utf8 += not raw.isascii()
        except UnicodeDecodeError:
            decoded.append(None)
    bad = [i for i, line in enumerate(decoded) if line is None]
    charset, shown = "latin-1", "Latin-1"
    if any(0x80 <= b <= 0x9F for i in bad for b in lines[i]):
        try:
            for i in bad:
                lines[i].decode("cp1252")
            charset, shown = "cp1252", "Windows-1252"
        except UnicodeDecodeError:
            pass
    scope = f"the file's other {num_utf8} non-ASCII lines are UTF-8" if num_utf8 else "so is the whole file"
    for i in bad:
        text = lines[i].decode(charset)
        decoded[i] = text
        at = next(k for k, c in enumerate(text) if ord(c) > 127)
        high = sum(b > 127 for b in lines[i])
        # Western text is mostly ASCII; more high bytes than that point to another alphabet.
        is_western = high <= 0.3 * len(lines[i])
        advice = "" if is_western else "; this hardly is Western text, convert the file to UTF-8"
        evidence = f"not UTF-8, read as {shown} ({scope}): {shorten(text[max(0, at - 20) :], 60)}{advice}"
        faults.append(Fault("not_utf8", name, i + 1, evidence, "safe" if is_western else "ask"))
    return "\n".join(line for line in decoded if line is not None)
