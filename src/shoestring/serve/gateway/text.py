"""From token ids to text while they come: characters whole, stop strings cut, calls held until they are read.

The text of an answer is exactly what the tokenizer makes of all its ids at once, as in the evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...messages import CALL_MARKS, CALL_START
from ..engine import Piece, Token

UNFINISHED = "\ufffd"  # what decoding puts for bytes that are no whole character
MARKS = ("<tool_call>", *CALL_MARKS)
HALF_CALL = re.compile(r'(\[\s*)?(\{\s*("[a-z]{0,10}("\s*)?)?)?$')
LONGEST_HALF = 64
CALLS, ALL = "calls", "all"  # what a Reader holds back until the end: what may begin a call, or everything
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokeniser:
    """Text of ids that come one by one. A character is given out once all of its bytes are there."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.seen = 0  # ids whose text is given out
        self.start = 0  # where decoding begins: before the last ids given out, whose spaces the next ones may need
        self.num_given = 0  # characters
        core = getattr(tokenizer, "backend_tokenizer", None)
        # Bytes are what they are, whatever stands before them.
        self.is_context_free = core is not None and type(core.decoder).__name__ == "ByteLevel"

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def add(self, token: int) -> str:
        """The text that has become certain."""
        self.ids.append(token)
        now = self._decode(self.ids[self.start :])
        before = self._decode(self.ids[self.start : self.seen]) if self.start < self.seen else ""
        if now.endswith(UNFINISHED) or not now.startswith(before):
            return ""
        self.start, self.seen = len(self.ids) if self.is_context_free else self.seen, len(self.ids)
        self.num_given += len(now) - len(before)
        return now[len(before) :]

    def rest(self) -> str:
        """What is left at the end, unfinished characters as decoding shows them."""
        return self._decode(self.ids)[self.num_given :] if self.seen < len(self.ids) else ""


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new of one answer. finish: "", or stop or length at the end; starts: of tokens, in the answer's text."""

    index: int
    text: str
    tokens: tuple[Token, ...] = ()
    finish: str = ""
    starts: tuple[int, ...] = ()


@dataclass
class Reader:
    """One answer as it comes. strict: how a call begins whose rest must be asked for anew, held to a schema."""

    index: int
    detokeniser: Detokeniser
    stops: tuple[str, ...] = ()
    holds: str = ""  # CALLS or ALL
    text: str = ""
    finish: str = ""
    num_tokens: int = 0  # the end token included, as the evaluation counts
    num_cached_tokens: int = 0
    num_given: int = 0  # characters
    waiting: list[tuple[int, Token]] = field(default_factory=list)  # tokens not given out, with where they begin
    strict: re.Pattern[str] | None = None
    call_at: int = -1  # where the first call begins

    @property
    def begins_strict_call(self) -> bool:
        """Whether a call has begun that must keep to its schema."""
        return self.strict is not None and self.call_at >= 0 and bool(self.strict.match(self.text, self.call_at))

    def begin_call(self, opening: str, detokeniser: Detokeniser) -> list[int]:
        """Put opening in the place of the call that has begun; its rest is read next. Returns the ids before it."""
        ids = self.detokeniser.ids
        before = ids[: len(ids) - sum(start >= self.call_at for start, _ in self.waiting)]
        head = self.text[: self.call_at]
        self.text = (f"{head}\n" if head else "") + opening
        self.detokeniser, self.waiting, self.strict, self.stops = detokeniser, [], None, ()
        return before

    def feed(self, piece: Piece) -> Delta | None:
        """What may be told now, if anything."""
        self.num_cached_tokens = piece.num_cached_tokens or self.num_cached_tokens
        for token in piece.tokens:
            self.num_tokens += 1
            self.waiting.append((len(self.text), token))
            self._add(self.detokeniser.add(token.id))
            if self.finish:
                return self._told(len(self.text))
            if self.strict is not None:
                self._certain()
                if self.begins_strict_call:
                    return None
        if piece.finish:
            self._add(self.detokeniser.rest())
            self.num_tokens += piece.finish == "stop" and piece.has_end_token
            self.finish = self.finish or piece.finish
            return self._told(len(self.text))
        return self._told(self._certain())

    def _add(self, new: str) -> None:
        old = len(self.text)
        self.text += new
        found = [at for stop in self.stops if (at := self.text.find(stop, max(0, old - len(stop) + 1))) >= 0]
        if new and found:
            self.text, self.finish = self.text[: min(found)], "stop"
            self.waiting = [(start, token) for start, token in self.waiting if start < len(self.text)]

    def _certain(self) -> int:
        """Characters that no later token can take back."""
        held = 0
        for stop in self.stops:
            for length in range(min(len(stop) - 1, len(self.text)), held, -1):
                if self.text.endswith(stop[:length]):
                    held = length
                    break
        certain = len(self.text) - held
        if self.holds == CALLS:
            begins, is_call = before_call(self.text, self.num_given)
            if is_call:
                self.holds, self.call_at = ALL, begins
            return min(certain, begins)
        return 0 if self.holds == ALL else certain

    def _told(self, until: int) -> Delta | None:
        until = max(until, self.num_given)
        text, self.num_given = self.text[self.num_given : until], until
        if not text and not self.finish:
            return None
        ready = [waiting for waiting in self.waiting if self.finish or waiting[0] < until]
        self.waiting = self.waiting[len(ready) :]
        starts, tokens = tuple(start for start, _ in ready), tuple(token for _, token in ready)
        return Delta(self.index, text, tokens, self.finish, starts)


def before_call(text: str, start: int) -> tuple[int, bool]:
    """Where in text, from start on, a tool call begins or may yet begin, and which; blanks before it belong to it."""
    sure = [at for mark in MARKS if (at := text.find(mark, start)) >= 0]
    if match := CALL_START.search(text, start):
        sure.append(match.start())
    ends = sure or [len(text)]
    for mark in () if sure else MARKS:
        sizes = range(min(len(mark) - 1, len(text) - start), 0, -1)
        ends += [len(text) - size for size in sizes if text.endswith(mark[:size])]
    if not sure and (match := HALF_CALL.search(text, max(start, len(text) - LONGEST_HALF))) and match.group():
        ends.append(match.start())
    return max(start, len(text[: min(ends)].rstrip())), bool(sure)


def is_byte_level(tokenizer: Any) -> bool:
    """Whether its tokens are written in the alphabet of bytes (GPT-2, Llama 3, Qwen)."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    return core is not None and "ByteLevel" in type(core.decoder).__name__ + repr(core.decoder)[:400]


def byte_alphabet() -> dict[str, int]:
    """Character of byte-level BPE -> byte. Source: GPT-2, encoder.py, bytes_to_unicode."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


class TokenBytes:
    """The bytes each token stands for, as log-probabilities are told with."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.alphabet = byte_alphabet() if is_byte_level(tokenizer) else {}
        self.added = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items()}

    def of(self, token: int) -> bytes:
        """Of one id; of an id beyond the vocabulary none."""
        if token in self.added:
            return self.added[token].encode()
        written = self.tokenizer.convert_ids_to_tokens(token)
        if written is None:
            return b""
        if self.alphabet and all(character in self.alphabet for character in written):
            return bytes(self.alphabet[character] for character in written)
        if match := BYTE_TOKEN.fullmatch(written):
            return bytes([int(match[1], 16)])
        return str(written).replace("\u2581", " ").encode("utf-8", "surrogatepass")
