"""The rows of an arm's record, without reading them all: a record of 100,000 rows opens as one of ten.

files.write_json puts each row at a fixed indentation, and no text within a string can hold a bare line break, so the
list is cut out by its first and last line, and rows are told apart without parsing them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..files import parse_json
from ..records import Estimate, RowScore

# ArmScore's fields in their order: what stands before its rows.
_ROWS = re.compile(rb'("interval": "[^"\n]*",\n( +)"rows": )\[(\n|\])')
_ID = re.compile(rb'^ *\{\n *"id": ("(?:[^"\\\n]|\\.)*")')
_NUMBERS = {
    key: re.compile(rb'\n *"%s": ([-+.0-9eE]+),?' % key.encode())
    for key in ("score", "num_prompt_tokens", "num_completion_tokens")
}


@dataclass(frozen=True)
class ArmRows:
    """The rows of one arm as they stand in its record, each parsed when it is asked for."""

    block: bytes
    indent: bytes  # of a row

    @classmethod
    def of(cls, rows: Sequence[Any]) -> ArmRows:
        """Rows that were parsed, as a record that another program wrote has them."""
        return cls(b",\n".join(json.dumps(row, indent=2).encode() for row in rows), b"")

    def __len__(self) -> int:
        return len(self.raw)

    def row(self, place: int) -> RowScore:
        """The row at this place of the record."""
        return RowScore(**json.loads(self.raw[place].decode("utf-8", "surrogatepass")))

    @cached_property
    def raw(self) -> tuple[bytes, ...]:
        """Each row unparsed."""
        if not self.block:
            return ()
        return tuple(row.removesuffix(b",") for row in re.split(rb"\n(?=" + self.indent + rb"\{\n)", self.block))

    @cached_property
    def places(self) -> dict[str, int]:
        """Where the row of an id is."""
        found = [_ID.match(row) for row in self.raw]
        return {str(json.loads(m[1])): place for place, m in enumerate(found) if m}

    @cached_property
    def scores(self) -> list[float]:
        """The score of each row."""
        return [float(found) for found in _NUMBERS["score"].findall(self.block)]

    @cached_property
    def mean_tokens(self) -> tuple[float, float]:
        """Mean tokens of a prompt and of an answer."""
        counts = [_NUMBERS[key].findall(self.block) for key in ("num_prompt_tokens", "num_completion_tokens")]
        prompt, answer = (sum(map(float, found)) / max(1, len(found)) for found in counts)
        return prompt, answer


def skim(path: Path) -> tuple[Any, list[ArmRows]]:
    """A record with the rows of its arms cut out, and those rows, arm by arm.

    Raises: OSError, ValueError as read_json.
    """
    content, at = path.read_bytes(), 0
    kept: list[bytes] = []
    arms: list[ArmRows] = []
    while found := _ROWS.search(content, at):
        if found[3] == b"]":
            kept, at = [*kept, content[at : found.end()]], found.end()
            arms.append(ArmRows(b"", b""))
            continue
        end = content.find(b"\n" + found[2] + b"]", found.end() - 1)
        if end < 0:
            raise ValueError(f"{path.name}: the list of rows is cut short")
        kept += [content[at : found.end(1)], b"[]"]
        arms.append(ArmRows(content[found.end() : end], found[2] + b"  "))
        at = end + len(found[2]) + 2
    kept.append(content[at:])
    return parse_json(b"".join(kept).decode("utf-8", "surrogatepass")), arms


_HEAD = re.compile(rb'"arm": ("(?:[^"\\\n]|\\.)*"),\n *"kind": ("[a-z_]*"),.*?"score": (\{[^{}]*\})', re.DOTALL)
_HEAD_BYTES = 4096


def head_of(path: Path) -> tuple[str, str, Estimate] | None:
    """Name, kind and score of the arm in a record, from its first bytes; None where they do not say."""
    try:
        with path.open("rb") as file:
            found = _HEAD.search(file.read(_HEAD_BYTES))
    except OSError:
        return None
    if found is None:
        return None
    try:
        name, kind, score = (json.loads(part) for part in found.groups())
        return str(name), str(kind), Estimate(score["value"], score["low"], score["high"])
    except (ValueError, KeyError, TypeError):
        return None
