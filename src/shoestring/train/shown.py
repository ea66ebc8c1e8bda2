"""Training rows as the model is given them, token by token, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .tokens import Encoded

MOST_TOKENS = 300  # of a prompt, from its end, and of an answer, from its start
MOST_PIECE_TOKENS = 8  # until the bytes of one character are together
HALF_A_CHARACTER = "\ufffd"


@dataclass(frozen=True, slots=True)
class Shown:
    """One row: pieces of text with whether the model learns them, and how much was left out."""

    pieces: tuple[tuple[str, bool], ...]
    num_tokens: int
    num_learned_tokens: int
    num_left_out: int


def shown(tokenizer: Any, row: Encoded) -> Shown:
    """The row decoded token by token; tokens that share a character are one piece."""
    start, end = max(0, row.num_prompt_tokens - MOST_TOKENS), row.num_prompt_tokens + MOST_TOKENS
    prompt, answer = row.ids[start : row.num_prompt_tokens], row.ids[row.num_prompt_tokens : end]
    pieces = [(text, False) for text in _pieces(tokenizer, row.ids[:start], prompt)]
    pieces += [(text, True) for text in _pieces(tokenizer, row.ids[: row.num_prompt_tokens], answer)]
    num_learned = len(row.ids) - row.num_prompt_tokens
    return Shown(tuple(pieces), len(row.ids), num_learned, len(row.ids) - len(prompt) - len(answer))


def _pieces(tokenizer: Any, before: Sequence[int], ids: Sequence[int]) -> list[str]:
    """Text of each token, decoded behind the one before it, since some tokenizers drop a space at the start."""

    def decode(some: Sequence[int]) -> str:
        return str(tokenizer.decode(list(some), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    found: list[str] = []
    context, waiting = list(before[-1:]), list[int]()
    for token in ids:
        waiting.append(token)
        head, whole = decode(context), decode([*context, *waiting])
        text = whole[len(head) :] if whole.startswith(head) else decode(waiting)
        if text.endswith(HALF_A_CHARACTER) and len(waiting) < MOST_PIECE_TOKENS:
            continue
        found.append(text)
        context, waiting = waiting[-1:], []
    return [*found, decode(waiting)] if waiting else found
