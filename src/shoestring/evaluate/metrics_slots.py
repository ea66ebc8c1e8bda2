"""Slot errors of texts made from data: the text has to say what the prompt's slots say, and nothing else of their kind.

Slots are read from prompts such as `name[Blue Spice], area[riverside]` or a JSON object of texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import DataError
from ..messages import Example
from .metrics import parse_json

_WORD = re.compile(r"[\w£$€]+")
_BRACKETED = re.compile(r"([A-Za-z][\w ]*?)\s*\[([^\[\]]+)\]")


def slots_of(prompt: str) -> dict[str, str]:
    """The slots of a prompt, in its order; empty where it has none."""
    found = dict(_BRACKETED.findall(prompt))
    if found:
        return {name.strip(): value.strip() for name, value in found.items()}
    record = parse_json(prompt) or {}
    return {
        str(name): str(value).strip()
        for name, value in record.items()
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and str(value).strip()
    }


class Slots:
    """The slots of all rows: a value of another row's slot is a wrong one in this row's text."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.values: dict[str, set[str]] = {}
        self.has_slots = True
        for example in examples:
            slots = slots_of(example.user_text)
            self.has_slots = self.has_slots and bool(slots)
            for name, value in slots.items():
                self.values.setdefault(name, set()).add(value)

    def match(self, example: Example, output: str) -> tuple[float, str | None]:
        """1 less the slot error rate, at least 0, and the first error.

        The rate is (missing + wrong) / slots. Counted are slots whose value the expected text says in these words;
        wrong is a value that another row has in this slot, where neither the prompt nor the expected text has it.
        Source: Wen et al. 2015, 1508.01745, section 4.1. Raises: DataError where a prompt has no slots.
        """
        slots = slots_of(example.user_text)
        if not slots:
            raise DataError(
                "the prompt has no slots (name[value], ... or a JSON object), so slot_match cannot score it"
            )
        said, expected = _words(output), _words(example.completion)
        given = {_words(value) for value in slots.values()}
        missing = [n for n, value in slots.items() if _words(value) in expected and _words(value) not in said]
        wrong = [
            f"{name} {value!r}"
            for name in slots
            for value in sorted(self.values[name])
            if (text := _words(value)) in said and text not in expected and not any(text in own for own in given)
        ]
        faults = [*(f"{name} is missing" for name in missing), *(f"{one} is said and not given" for one in wrong)]
        return max(0.0, 1 - len(faults) / len(slots)), faults[0] if faults else None


def _words(text: str) -> str:
    """The text as space-separated words, so that values are found at word boundaries."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "
