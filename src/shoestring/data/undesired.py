"""Answers marked as undesired, which KTO learns from: found no wrong rows among, and put where their prompts are.

They take no part in what curation asks of right answers (contradictions, labels, the split); nothing scores on them
as expected answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .clean import Items, Outcome, RowLimit, drop_long
from .rows import NUMBER_OF, UNDESIRED


@dataclass(frozen=True, slots=True)
class Undesired:
    """Records that are kept, by side."""

    train: Items
    dev: Items
    held_out: Items


def pending(out: Outcome) -> Any:
    """Records read and set aside, whose answers are undesired."""
    return np.flatnonzero(out.table.code == NUMBER_OF[UNDESIRED])


def placed(
    train: Items, dev: Items, held_out: Items, limits: Sequence[RowLimit], seed: int, has_eval: bool, out: Outcome
) -> Undesired:
    """Keep the undesired records that can be learned from, each on the side of its prompt.

    A prompt that no kept record has is drawn, in proportion. has_eval: held-out rows were given, so training rows
    with a prompt of theirs are leaks and none is drawn for them.
    """
    table, waiting = out.table, pending(out)
    table.code[waiting] = 0
    for index in waiting.tolist():
        table.evidence.pop(index, None)
    sides = (train, dev, held_out)
    kept = np.concatenate([items.indices for items in sides])
    right = {tuple(key): int(i) for key, i in zip(table.keys[kept, :2].tolist(), kept, strict=True)}
    seen: dict[tuple[int, ...], int] = {}
    for index, key in zip(waiting.tolist(), map(tuple, table.keys[waiting, :2].tolist()), strict=True):
        if key in right:
            line = table.line[right[key]]
            out.drop(index, "contradiction", f"line {line} says that this answer is desired", right[key])
        elif (first := seen.setdefault(key, index)) != index:
            table.drop(index, "exact_duplicate", partner=first)
    drop_long(waiting[table.code[waiting] == 0].tolist(), limits, out)

    number = {prompt: side for side, items in enumerate(sides) for prompt in table.keys[items.indices, 0].tolist()}
    sizes = np.array([0 if has_eval and side == 2 else len(items) for side, items in enumerate(sides)])
    ends = np.cumsum(sizes) / max(1, sizes.sum())
    found: tuple[list[int], ...] = ([], [], [])
    for index in waiting[table.code[waiting] == 0].tolist():
        prompt = int(table.keys[index, 0])
        if table.is_held_out[index]:
            side = 2
        elif has_eval and number.get(prompt) == 2:
            out.drop(index, "leak_into_eval", f"a held-out row has this prompt: {table.example(index).user_text}")
            continue
        else:
            side = number.get(prompt, int(np.searchsorted(ends, _drawn(seed, prompt), side="right")))
        if side != 2 and index in out.past_seq_len:
            out.drop(index, "too_long", out.past_seq_len[index])
            continue
        found[side].append(index)
    return Undesired(*(Items(table, sorted(indices)) for indices in found))


def _drawn(seed: int, prompt: int) -> float:
    """From 0 to 1, the same for the same prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed}:undesired:{prompt}".encode()).digest()[:7], "big") / 2**56
