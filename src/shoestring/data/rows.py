"""One block of a source to records: read, converted, checked and hashed, each row once, independent of other blocks."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from json.encoder import encode_basestring as quoted  # as json.dumps(ensure_ascii=False) writes a string
from pathlib import Path
from typing import Any

import numpy as np

from ..config import FieldsConfig
from ..records import Example, Fault, example_to_json
from .answers import answer_problem, oddities
from .codes import CODES
from .decode import UTF8, Block, Charset, shorten, text_of
from .formats import Shape, convert, shape_of
from .language import languages_of
from .normalise import answer_key, meaning_key, normalise_prompt, prompt_key
from .parse import Entry, Json, Parsed, parse_line
from .safety import boilerplate, redacted, refusal, safety_faults, scan
from .turns import Notice, RowFault

BETWEEN = "\x1f"  # between example and source row of a record; JSON text cannot hold it unescaped
NAMES = ("", *CODES)
UNDESIRED = "undesired_answer"  # under KTO of records that undesired.placed decides on
NUMBER_OF = {name: number for number, name in enumerate(NAMES)}

Signature = tuple[Any, ...]  # keys of a row and the types of their values


@dataclass(frozen=True, slots=True)
class Settings:
    """What rows are read by. kind: of the task; None: rows are converted and not judged."""

    fields: FieldsConfig
    system: str
    kind: str | None
    is_redacting: bool = False
    keeps_undesired: bool = False  # answers marked as undesired are set aside with their text


@dataclass(frozen=True, slots=True)
class Work:
    """A block of lines, or rows a parser of the whole file has read."""

    name: str
    settings: Settings
    path: Path = Path()
    charset: Charset = UTF8
    block: Block | None = None
    entries: tuple[Entry, ...] = ()


@dataclass(slots=True)
class Seen:
    """Rows of one signature in a file."""

    shape: Shape
    num_rows: int
    first_line: int


@dataclass
class Records:
    """A block's records: one an example, or a row that gave none; its arrays are one entry a record.

    text: records one after another, each `example JSON, BETWEEN, row JSON, line end` of sizes[i] bytes.
    codes: number in NAMES of why the record is dropped, 0 for none. keys: hashes of prompt, answer, meaning, content.
    languages: of prompt and answer, as languages_of gives them.
    is_first: the first record of its row. is_loose: rows that could not be read, which count for no shape.
    """

    text: bytes = b""
    sizes: Any = None
    lines: Any = None
    codes: Any = None
    is_first: Any = None
    keys: Any = None
    languages: Any = None
    evidence: dict[int, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    once: list[Fault] = field(default_factory=list)  # to be said once a file
    seen: dict[Signature, Seen] = field(default_factory=dict)
    without_shape: Counter[str] = field(default_factory=Counter)
    num_unreadable: int = 0


class Builder:
    """Collects the records of one block."""

    def __init__(self, work: Work):
        self.name, self.settings = work.name, work.settings
        self.quoted_name = quoted(work.name)
        self.out = Records()
        self.texts: list[str] = []
        self.lines: list[int] = []
        self.codes: list[int] = []
        self.firsts: list[bool] = []
        self.digests: list[bytes] = []
        self.languages: list[tuple[int, int]] = []
        self.shapes: dict[Signature, Shape | None] = {}
        # A row of text to text without system prompt, by far the commonest, is built from its strings.
        self.is_lean = not work.settings.system

    def add(
        self, text: str, raw: str, line: int, digests: bytes, languages: tuple[int, int], is_first: bool, code: str = ""
    ) -> None:
        self.texts.append(f"{text}{BETWEEN}{raw}\n")
        self.lines.append(line)
        self.codes.append(NUMBER_OF[code])
        self.firsts.append(is_first)
        self.digests.append(digests)
        self.languages.append(languages)

    def drop(self, code: str, evidence: str, raw: str, line: int) -> None:
        """A row that gives no example."""
        self.out.evidence[len(self.texts)] = shorten(evidence, 400)
        self.add("", raw, line, bytes(32), (0, 0), True, code)

    def notice(self, notice: Notice, line: int) -> None:
        fault = Fault(notice.code, self.name, line, shorten(notice.evidence, 240), notice.repair)
        if not notice.once:
            self.out.faults.append(fault)
        elif not any(f.code == notice.code for f in self.out.once):
            self.out.once.append(fault)

    def entry(self, entry: Entry) -> None:
        """A row, or what could not be read as one (its fault is noted already)."""
        raw = json.dumps(entry.row, ensure_ascii=False)
        if entry.code:
            self.out.num_unreadable += 1
            self.drop(entry.code, entry.evidence, raw, entry.line)
        else:
            self.row(entry.row, raw, entry.line)

    def row(self, row: dict[str, Any], raw: str, line: int) -> None:
        """The records of a row; raw is its JSON text."""
        signature = (*row, *map(type, row.values()))
        seen = self.out.seen.get(signature)
        if seen is None:
            shape = shape_of(row, self.settings.fields)
            if shape is None:
                self.out.without_shape.update(str(k) for k in row)
                shown = ", ".join(str(k) for k in list(row)[:12]) or "none"
                self._drop_with_fault("missing_field", f"no prompt and answer among its fields: {shown}", raw, line)
                return
            seen = self.out.seen[signature] = Seen(shape, 0, line)
        seen.num_rows += 1
        shape = seen.shape
        if self.is_lean and shape.kind == "pair" and not (shape.context or shape.system or shape.flag):
            prompt, answer = row[shape.prompt], row[shape.answer]  # type: ignore[index]
            if type(prompt) is str and type(answer) is str and self._lean(prompt, answer, raw, line):
                return
        try:
            converted = convert(row, shape, self.settings.system, self.settings.keeps_undesired)
        except RowFault as fault:
            self._drop_with_fault(fault.code, fault.evidence, raw, line)
            return
        for notice in converted.notices:
            self.notice(notice, line)
        examples = converted.examples(self.name, line)
        if converted.desired is not False:
            self._content(examples[-1], line)
        if self.settings.is_redacting:
            examples = [redacted(example) for example in examples]
        for number, example in enumerate(examples):
            self._example(example, shape, raw, number == 0)

    def _drop_with_fault(self, code: str, evidence: str, raw: str, line: int) -> None:
        self.out.faults.append(Fault(code, self.name, line, shorten(evidence, 240), "drop"))
        self.drop(code, evidence, raw, line)

    def _content(self, example: Example, line: int) -> None:
        """Report what is odd or sensitive in a row's text; example: its longest."""
        if self.settings.kind is None:
            return
        *before, last = example.messages
        for code, evidence in oddities("\n".join(m.content for m in before), last.text, self.settings.kind):
            self.out.faults.append(Fault(code, self.name, line, shorten(evidence, 240), CODES[code].repair))
        for fault in safety_faults(example):
            is_mended = self.settings.is_redacting and fault.code.startswith(("secret_", "personal_"))
            self.out.faults.append(replace(fault, repair="safe") if is_mended else fault)

    def _lean(self, prompt: str, answer: str, raw: str, line: int) -> bool:
        """Add the record of a plain pair, as _example would; False, and nothing done, if it must take the long way."""
        kind = self.settings.kind
        if kind is not None:
            if kind == "classify":
                answer = answer.strip()
            if not prompt.strip() or URL_START.match(prompt) or answer_problem(answer, kind):
                return False
            is_plain = prompt.isascii() and answer.isascii() and "`" not in answer and "nstruction" not in answer
            if not is_plain or "<" in prompt or "<" in answer or "INST]" in prompt or "INST]" in answer:
                for _ in oddities(prompt, answer, kind):
                    return False
            if scan(prompt) or scan(answer) or refusal(answer) or boilerplate(answer):
                return False
            key, meaning = answer_key(answer, kind), None
            if kind == "math":
                meaning = meaning_key(answer, kind)
            digests = _digests(normalise_prompt(prompt), key, meaning)
            languages = languages_of(prompt, answer)
        else:
            digests, languages = bytes(24), (0, 0)
        asked, told = quoted(prompt), quoted(answer)
        identity = hashlib.sha256(f'[["user", {asked}], ["assistant", {told}]]'.encode("utf-8", "surrogatepass"))
        text = (
            f'{{"messages": [{{"role": "user", "content": {asked}}}, {{"role": "assistant", "content": {told}}}], '
            f'"answer_span": [1, 2], "source": {self.quoted_name}, "line": {line}, '
            f'"id": "{identity.hexdigest()[:16]}"}}'
        )
        self.add(text, raw, line, digests + identity.digest()[:8], languages, True)
        return True

    def _example(self, example: Example, shape: Shape, raw: str, is_first: bool) -> None:
        kind = self.settings.kind
        problem: tuple[str, str] | None = None
        if kind is None:
            digests, languages = bytes(24) + bytes.fromhex(example.id), (0, 0)
        else:
            answer = example.completion
            if kind == "classify" and answer != answer.strip():
                *before, last = example.messages
                example = replace(example, messages=(*before, replace(last, content=last.content.strip())), id="")
                answer = answer.strip()
            if shape.kind != "text" and not any(m.text.strip() for m in example.prompt if m.role != "system"):
                problem = "empty_prompt", "there is nothing to answer: the prompt is empty"
            elif example.desired is False:
                problem = answer_problem(answer, "chat") if not answer.strip() else (UNDESIRED, "")
            else:
                problem = answer_problem(answer, kind)
            digests = digests_of(example, kind)
            languages = languages_of(example.user_text, answer)
        text = json.dumps(example_to_json(example), ensure_ascii=False)
        if problem:
            self.out.evidence[len(self.texts)] = shorten(problem[1], 400)
        self.add(text, raw, example.line, digests, languages, is_first, problem[0] if problem else "")

    def finish(self) -> Records:
        """The records as arrays."""
        out = self.out
        encoded = [text.encode("utf-8", "surrogatepass") for text in self.texts]
        out.text = b"".join(encoded)
        out.sizes = np.array([len(text) for text in encoded], np.int32)
        out.lines = np.array(self.lines, np.int64)
        out.codes = np.array(self.codes, np.uint8)
        out.is_first = np.array(self.firsts, bool)
        out.keys = np.frombuffer(b"".join(self.digests), np.uint64).reshape(len(encoded), 4)
        out.languages = np.array(self.languages, np.uint8).reshape(len(encoded), 2)
        return out


URL_START = re.compile(r"\s*(?:https?://|www\.)", re.IGNORECASE)


def digests_of(example: Example, kind: str) -> bytes:
    """8 bytes each of the hashes of what prompt, answer and meaning are compared by, and the id."""
    answer = example.completion
    key, meaning = answer_key(answer, kind), meaning_key(answer, kind)
    if example.rejected:  # pairs that lost otherwise teach something else
        key = "\x1e".join([key, *(m.text for m in example.rejected)])
    return _digests(prompt_key(example), key, meaning) + bytes.fromhex(example.id)


def _digests(prompt: str, answer: str, meaning: str | None) -> bytes:
    """8 bytes each of the hashes of the keys; without a meaning of its own an answer means itself."""
    first, second = hashed(prompt), hashed(answer)
    return first + second + (second if meaning is None else hashed(meaning))


def hashed(key: str) -> bytes:
    """8 bytes that stand for a key."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def process(work: Work) -> Records:
    """The records of a block."""
    builder = Builder(work)
    if work.block is None:
        for entry in work.entries:
            builder.entry(entry)
        return builder.finish()
    text, faults = text_of(work.block, work.path, work.charset, work.name)
    builder.out.faults += faults
    parsed = Parsed(work.name)
    reader = Json(parsed)
    lines = text.split("\n")
    last = len(lines) - 1 if work.block.is_last else -1
    for index, body in enumerate(lines):
        line = work.block.first_line + index
        row = reader.plain(body)
        if row is not None:
            builder.row(row, body, line)
            continue
        parse_line(body, line, index == last, reader)
        builder.out.faults += parsed.faults
        parsed.faults.clear()
        for entry in parsed.entries:
            builder.entry(entry)
        parsed.entries.clear()
    return builder.finish()
