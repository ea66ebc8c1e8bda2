"""A person's session of labels: which row next, what was said, and taking it back. The screen is elsewhere."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...config import JudgeConfig
from ...files import cannot_write
from ...messages import split_tools
from ...records import ArmScore, Example, to_json
from .checks import is_reference
from .labels import ORDERS, SKIPPED, Label, answers_print, criteria_print, current, read_labels
from .scoring import criteria_of
from .verdicts import FIRST, LOSS, SECOND, TIE, WIN

BLOCK = 10  # pairs after which the same ones come in the other order


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to label: an answer, or a pair in one order. The arm's name is never shown."""

    id: int
    arm: str
    answers_print: str
    row: str
    order: str
    turns: tuple[tuple[str, str], ...]  # of the request: role and text
    reference: str | None  # shown beside a rubric's answer
    answers: tuple[str, ...]  # one, or A and B


class Labelling:
    """Rows of some arms in an order drawn by chance, each once (a pair in both orders), less those labelled already."""

    def __init__(
        self, arms: Sequence[ArmScore], examples: Mapping[str, Example], config: JudgeConfig, path: Path, seed: int
    ) -> None:
        self.config, self.path = config, path
        self.criteria = criteria_of(config)
        self._asked = criteria_print(config)
        self.items = self._items(arms, examples, seed)
        keys = {self._key(item): item for item in self.items}
        mine = [la for la in current(read_labels(path)).values() if la.criteria_print == self._asked]
        self._said = {k: la.said for la in mine if (k := (la.answers_print, la.row, la.order)) in keys}
        self._history = [keys[k] for k in self._said if not _is_same(keys[k])]

    def _items(self, arms: Sequence[ArmScore], examples: Mapping[str, Example], seed: int) -> list[Item]:
        draw = random.Random(f"{seed} {[answers_print(arm) for arm in arms]}")
        rows = [(arm, answers_print(arm), row) for arm in arms for row in arm.rows]
        draw.shuffle(rows)
        items: list[Item] = []

        def add(arm: ArmScore, of: str, row: Any, order: str) -> None:
            example = examples[row.id]
            _, turns = split_tools(example.request)
            shown = (row.output, example.completion) if order != ORDERS[1] else (example.completion, row.output)
            is_pair = bool(order)
            is_shown = self.config.use_reference and not is_pair and is_reference(example.completion)
            reference = example.completion if is_shown else None
            answers = shown if is_pair else shown[:1]
            said = tuple((turn.role, turn.text) for turn in turns)
            items.append(Item(len(items), arm.arm, of, row.id, order, said, reference, answers))

        if self.config.mode == "rubric":
            for arm, of, row in rows:
                add(arm, of, row, "")
            return items
        for start in range(0, len(rows), BLOCK):
            block = [(entry, draw.randrange(2)) for entry in rows[start : start + BLOCK]]
            for (arm, of, row), place in block:
                add(arm, of, row, ORDERS[place])
            draw.shuffle(block)
            for (arm, of, row), place in block:
                add(arm, of, row, ORDERS[1 - place])
        return items

    @staticmethod
    def _key(item: Item) -> tuple[str, str, str]:
        return item.answers_print, item.row, item.order

    def next(self) -> Item | None:
        """The first item without a label, None at the end. A pair of equal texts is a tie, and nobody is asked."""
        for item in self.items:
            if self._key(item) in self._said:
                continue
            if not _is_same(item):
                return item
            self._keep(item, TIE)
        return None

    def is_label(self, said: Any) -> bool:
        """Whether this is something that may be said of an item: for those who ask over a wire."""
        if said == SKIPPED:
            return True
        if self.config.mode == "pairwise":
            return said in (FIRST, SECOND, TIE)
        is_rubric = isinstance(said, list) and len(said) == len(self.criteria)
        return is_rubric and all(isinstance(value, bool) for value in said)

    @property
    def num_rows(self) -> int:
        """Rows labelled whole: a pair in both orders; skipped ones are not counted."""
        orders: dict[tuple[str, str], int] = {}
        for (of, row, _), said in self._said.items():
            if said != SKIPPED:
                orders[of, row] = orders.get((of, row), 0) + 1
        needed = 2 if self.config.mode == "pairwise" else 1
        return sum(count == needed for count in orders.values())

    @property
    def num_skipped(self) -> int:
        """Items that the person could not tell."""
        return sum(said == SKIPPED for said in self._said.values())

    @property
    def can_undo(self) -> bool:
        """Whether there is a label to take back."""
        return bool(self._history)

    def say(self, item: Item, said: Any) -> None:
        """Keep a label, durably: of a rubric a list of booleans, of a pair A, B or tie, or `skipped`.

        Raises: RunFolderError where it cannot be written.
        """
        if said != SKIPPED and self.config.mode == "pairwise":
            said = self._of_the_answer(item, said)
        elif said != SKIPPED:
            assert isinstance(said, list) and len(said) == len(self.criteria), said
            assert all(isinstance(value, bool) for value in said), said
        self._keep(item, said)
        self._history.append(item)

    def _keep(self, item: Item, said: Any) -> None:
        self._append(item, said)
        self._said[self._key(item)] = said

    def undo(self) -> Item | None:
        """Take the last label back; its item comes next again. None where there is nothing to take back."""
        if not self._history:
            return None
        item = self._history.pop()
        self._append(item, None)
        del self._said[self._key(item)]
        return item

    @staticmethod
    def _of_the_answer(item: Item, said: str) -> str:
        """win, tie or loss of the arm's answer, from which text was called better."""
        own = FIRST if item.order == ORDERS[0] else SECOND
        assert said in (FIRST, SECOND, TIE), said
        return TIE if said == TIE else WIN if said == own else LOSS

    def _append(self, item: Item, said: Any) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        label = Label(item.answers_print, self._asked, item.arm, item.row, item.order, said, at)
        line = json.dumps(to_json(label), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else b"\n" + line  # what a kill cut short is closed
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error


def _is_same(item: Item) -> bool:
    return len(item.answers) == 2 and item.answers[0].split() == item.answers[1].split()
