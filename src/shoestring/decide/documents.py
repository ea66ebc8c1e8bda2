"""The user's documents in passages: read from text, Markdown, HTML and PDF, cut at paragraphs, with overlap."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from ..errors import DataError, require

TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".rst")
HTML_SUFFIXES = (".html", ".htm")
PDF_SUFFIX = ".pdf"
SUFFIXES = (*TEXT_SUFFIXES, *HTML_SUFFIXES, PDF_SUFFIX)
KNOWN = ", ".join(SUFFIXES)
# A passage begins again with so much of the one before it: a fact at a border is whole in one of them.
OVERLAP_FRAC = 0.15
PARAGRAPH = re.compile(r"\S[^\n]*(?:\n[^\S\n]*\S[^\n]*)*")
SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+")
# Elements whose text is no prose, and those that end a paragraph.
UNSEEN = {"script", "style", "template", "noscript", "svg", "head"}
BLOCKS = {
    "address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption", "footer", "form", "h1",
    "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section", "table", "tr", "ul",
}  # fmt: skip

CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document. number: its place in the document, from 1."""

    text: str
    source: str
    number: int


def document_files(names: Sequence[str], base_dir: Path) -> list[Path]:
    """The files that data.documents means: files, globs, and folders with all documents below them.

    Raises: DataError naming each that is missing or of no kind that is read.
    """
    found: list[Path] = []
    problems: list[str] = []
    for name in names:
        path = base_dir / Path(name).expanduser()
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.is_file() and not _is_hidden(p, path)]
            files = [p for p in inside if p.suffix.lower() in SUFFIXES]
            if not files:
                shown = ", ".join(p.name for p in inside[:5]) or "nothing"
                problems.append(f"data.documents: {name} holds no document ({KNOWN}); it holds: {shown}")
        elif path.is_file():
            files = [path]
        else:
            files = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]
            if not files:
                problems.append(f"data.documents: {name}: no such file, folder or match; relative to {base_dir}")
        for file in files:
            if file.suffix.lower() not in SUFFIXES:
                problems.append(f"data.documents: {file.name} is none of {KNOWN}; save it as one of them")
        found += files
    if problems:
        raise DataError("\n".join(problems))
    return list({path.resolve(): path for path in found}.values())


def _is_hidden(path: Path, base: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(base).parts)


def read_passages(files: Sequence[Path], chunk_tokens: int, count_tokens: CountTokens) -> list[Passage]:
    """Every document in passages of at most chunk_tokens. Raises: DataError, MissingDependency (PDF)."""
    passages = [
        Passage(text, str(path), number)
        for path in files
        for number, text in enumerate(cut(text_of(path), chunk_tokens, count_tokens), 1)
    ]
    if not passages:
        raise DataError(f"data.documents: {', '.join(map(str, files))}: no text in them (scanned pages need OCR first)")
    return passages


def text_of(path: Path) -> str:
    """The text of a document, paragraphs apart by an empty line. Raises: DataError, MissingDependency."""
    suffix = path.suffix.lower()
    if suffix == PDF_SUFFIX:
        return _pdf_text(path)
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); convert it: iconv -t utf-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check its permissions") from error
    return _html_text(text) if suffix in HTML_SUFFIXES else text


def _pdf_text(path: Path) -> str:
    require("pypdf", extra="pdf", purpose=f"reading {path.name}")
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        return "\n\n".join(page.extract_text() for page in PdfReader(path).pages)
    except (PyPdfError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: no readable PDF ({error}); save it anew, or as text") from error


def _html_text(page: str) -> str:
    reader = _Reader()
    reader.feed(page)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.parts).split("\n\n"))
    return "\n\n".join(line for line in lines if line)


class _Reader(HTMLParser):
    """Collects what a browser would show."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.num_unseen = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.num_unseen += tag in UNSEEN
        self.parts += ["\n\n"] if tag in BLOCKS else [" "] if tag in ("td", "th") else []

    def handle_endtag(self, tag: str) -> None:
        self.num_unseen = max(0, self.num_unseen - (tag in UNSEEN))
        self.parts += ["\n\n"] if tag in BLOCKS else []

    def handle_data(self, data: str) -> None:
        if not self.num_unseen:
            self.parts.append(re.sub(r"\n\s*\n", "\n", data))


def cut(text: str, chunk_tokens: int, count_tokens: CountTokens) -> list[str]:
    """The text in passages of at most chunk_tokens: paragraphs together while they fit.

    A longer paragraph is cut after a sentence, a longer sentence between words. Each passage but the first begins with
    the last pieces of the one before, up to OVERLAP_FRAC of a passage.
    """
    pieces = [
        piece
        for paragraph in PARAGRAPH.findall(text)
        for piece in _pieces(paragraph.strip(), chunk_tokens, count_tokens)
    ]
    passages: list[str] = []
    held: list[str] = []
    num_new = 0
    for piece in pieces:
        if num_new and count_tokens("\n\n".join([*held, piece])) > chunk_tokens:
            passages.append("\n\n".join(held))
            held, num_new = _tail(held, OVERLAP_FRAC * chunk_tokens, count_tokens), 0
            while held and count_tokens("\n\n".join([*held, piece])) > chunk_tokens:
                held = held[1:]
        held.append(piece)
        num_new += 1
    return [*passages, "\n\n".join(held)] if num_new else passages


def _tail(pieces: list[str], max_tokens: float, count_tokens: CountTokens) -> list[str]:
    """The last pieces that are within max_tokens together; where the last is longer, its last sentences."""
    kept: list[str] = []
    for piece in reversed(pieces):
        if count_tokens("\n\n".join([piece, *kept])) > max_tokens:
            break
        kept.insert(0, piece)
    if kept:
        return kept
    sentences: list[str] = []
    for sentence in reversed(SENTENCE_END.split(pieces[-1])):
        if count_tokens(" ".join([sentence, *sentences])) > max_tokens:
            break
        sentences.insert(0, sentence)
    return [" ".join(sentences)] if sentences else []


def _pieces(paragraph: str, chunk_tokens: int, count_tokens: CountTokens) -> list[str]:
    """The paragraph itself where it fits; else its sentences, joined while they do, a longer one cut between words."""
    if count_tokens(paragraph) <= chunk_tokens:
        return [paragraph]
    units = [
        unit for sentence in SENTENCE_END.split(paragraph) for unit in _halved(sentence, chunk_tokens, count_tokens)
    ]
    # Half a passage each, so that what is carried over finds room beside them.
    pieces: list[str] = []
    for unit in units:
        joined = f"{pieces[-1]} {unit}" if pieces else unit
        if pieces and count_tokens(joined) <= chunk_tokens // 2:
            pieces[-1] = joined
        else:
            pieces.append(unit)
    return pieces


def _halved(text: str, chunk_tokens: int, count_tokens: CountTokens) -> list[str]:
    """The text in parts of at most chunk_tokens, halved between words, or anywhere where there is no space."""
    if count_tokens(text) <= chunk_tokens or len(text) < 2:
        return [text]
    middle = len(text) // 2
    at = text.rfind(" ", 1, middle + 1)
    at = at if at > 0 else middle
    parts = (text[:at].strip(), text[at:].strip())
    return [unit for part in parts if part for unit in _halved(part, chunk_tokens, count_tokens)]
