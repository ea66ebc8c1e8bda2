"""What is done about near-duplicates and near-contradictions of the training records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np

from ..records import Example, Progress
from .clean import Outcome, differing
from .engine import Examples
from .near import near_rows
from .normalise import tools_mark


def resolve_near(kind: str, drop_duplicates: bool, contradictions: str, out: Outcome, progress: Progress) -> None:
    """Drop training records that say the same as one that stays; report or settle those that contradict one.

    Of a near-contradiction majority drops the side with fewer rows (those dropped for it included) and reports a tie;
    drop drops both sides; keep reports.
    """
    table = out.table
    kept = table.kept(is_held_out=False)
    asked, answers = compared(Examples(table, kept))
    near = near_rows(asked, answers, kind=kind, progress=progress)
    for pair in near.duplicates if drop_duplicates else ():
        first, index = int(kept[pair.first]), int(kept[pair.second])
        evidence = f"as line {table.line[first]} but for {pair.evidence}: {table.example(index).user_text}"
        out.drop(index, "near_duplicate", evidence, first)
    votes = np.bincount(table.partner[table.partner >= 0], minlength=len(table))
    for pair in near.contradictions:
        sides = int(kept[pair.first]), int(kept[pair.second])
        if any(table.code[i] for i in sides):
            continue
        mine, theirs = (1 + votes[i] for i in sides)
        losers = [i for i, n in zip(sides, (mine, theirs), strict=True) if n < max(mine, theirs)]
        losers = {"majority": losers, "drop": list(sides), "keep": []}[contradictions]
        for index, rival in (sides, sides[::-1]):
            evidence = (
                f"line {table.line[rival]} asks the same but for {pair.evidence}; "
                f"{differing(table, index, rival)} ({votes[index] + 1} to {votes[rival] + 1} rows)"
            )
            if index in losers:
                out.drop(index, "near_contradiction", evidence, rival)
            elif not losers:
                out.fault(index, "near_contradiction", evidence)


class Texts(Sequence[str]):
    """One text of each example, made when it is looked at."""

    def __init__(self, examples: Sequence[Example], text: Callable[[Example], str]):
        self.examples, self.text = examples, text

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self.text(example) for example in self.examples[at]]
        return self.text(self.examples[at])


def compared(examples: Sequence[Example]) -> tuple[Texts, Texts]:
    """Prompts and answers as near-duplicates are sought in: a system prompt that all rows share says nothing.

    Tools stand as a number of their own, which the guard takes for a difference.
    """
    shared = _shared_system(examples)

    def asked(example: Example) -> str:
        said = [m for m in example.prompt if m.content != shared or m.role != "system"]
        prompt = said[0].text if len(said) == 1 else "\n".join(f"{m.role}: {m.text}" for m in said)
        return (prompt or example.completion) + tools_mark(example.tools)

    return Texts(examples, asked), Texts(examples, lambda example: example.completion)


def _shared_system(examples: Sequence[Example]) -> str | None:
    """The system prompt that every example has."""
    shared = None
    for example in examples:
        first = example.messages[0]
        if first.role != "system" or (shared is not None and first.content != shared):
            return None
        shared = first.content
    return shared
