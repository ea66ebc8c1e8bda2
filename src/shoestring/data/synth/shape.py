"""What right answers look like, learnt from the seeds: labels, JSON keys and types, closed values, lengths."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...records import Example
from ..answers import answer_problem
from ..normalise import FINAL_NUMBER
from ..safety import refusal
from ..turns import as_text

MIN_SEEDS = 10  # from fewer, keys and lengths are not inferred
# From fewer, no field is taken to have a fixed list of values.
MIN_VALUES = 100
LENGTH_FACTOR = 4  # longer than so many times the longest seed is something else
STYLES: tuple[dict[str, Any], ...] = ({}, {"separators": (",", ":")}, {"indent": 2}, {"indent": 4})
TYPES = {str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null", dict: "an object",
         list: "a list"}  # fmt: skip


@dataclass
class Node:
    """What stood at one place of the seeds' JSON."""

    types: set[str] = field(default_factory=set)
    num_objects: int = 0
    keys: dict[str, Node] = field(default_factory=dict)
    num_seen: int = 0
    items: Node | None = None
    values: Counter[str] = field(default_factory=Counter)

    def add(self, value: Any) -> None:
        self.num_seen += 1
        self.types.add(TYPES[type(value)])
        if isinstance(value, dict):
            self.num_objects += 1
            for key, inner in value.items():
                self.keys.setdefault(key, Node()).add(inner)
        elif isinstance(value, list):
            self.items = self.items or Node()
            for inner in value:
                self.items.add(inner)
        elif isinstance(value, str):
            self.values[value] += 1

    def has_all_keys(self) -> bool:
        """Whether objects here have no other keys than those seen."""
        return _is_closed([node.num_seen for node in self.keys.values()])

    def problem(self, value: Any, path: str = "") -> str | None:
        """What in value the seeds never showed; None when nothing."""
        kind = TYPES[type(value)]
        where = path or "the answer"
        if kind not in self.types and self.num_seen >= MIN_SEEDS:
            return f"{where} is {kind}, in the seeds {' or '.join(sorted(self.types))}"
        if isinstance(value, dict):
            for key in value:
                if key not in self.keys and self.has_all_keys():
                    return f"key {f'{path}.{key}' if path else key!r} stands in no seed"
            for key, node in self.keys.items():
                if node.num_seen == self.num_objects >= MIN_SEEDS and key not in value:
                    return f"key {f'{path}.{key}' if path else key!r} is missing, every seed has it"
            inner = (self.keys[k].problem(v, f"{path}.{k}" if path else k) for k, v in value.items() if k in self.keys)
            return next((found for found in inner if found), None)
        if isinstance(value, list) and self.items is not None and self.items.num_seen:
            return next((p for v in value if (p := self.items.problem(v, f"{path}[]"))), None)
        is_closed = self.values.total() >= MIN_VALUES and _is_closed(self.values.values())
        if isinstance(value, str) and is_closed and value not in self.values:
            return f"{where} is {value!r}, in the seeds one of {', '.join(sorted(self.values))}"
        return None


def _is_closed(counts: Iterable[int]) -> bool:
    """Whether no more than what was seen is to be expected: nothing was seen only once.

    The chance that the next one is new is about the share seen once (Good 1953, Biometrika 40, after Turing).
    """
    return 1 not in counts


class AnswerShape:
    """The check an answer of the teacher has to pass."""

    def __init__(self, seeds: Sequence[Example], kind: str, labels: Sequence[str]) -> None:
        self.kind, self.labels = kind, tuple(labels)
        self.label_of = {label.casefold(): label for label in labels}
        answers = [seed.completion for seed in seeds]
        is_enough = len(seeds) >= MIN_SEEDS
        self.longest_answer = LENGTH_FACTOR * max(map(len, answers)) if is_enough else None
        self.longest_input = LENGTH_FACTOR * max(len(s.user_text) for s in seeds) if is_enough else None
        self.ends_in_number = kind == "math" and bool(answers) and all(FINAL_NUMBER.search(a) for a in answers)
        self.json: Node | None = None
        self.style = STYLES[0]
        if kind == "extract":
            values = [json.loads(answer) for answer in answers]
            if is_enough:
                self.json = Node()
                for value in values:
                    self.json.add(value)
            matches = Counter(
                i
                for answer, value in zip(answers, values, strict=True)
                for i, style in enumerate(STYLES)
                if json.dumps(value, ensure_ascii=False, **style) == answer.strip()
            )
            self.style = STYLES[min(matches, key=lambda i: (-matches[i], i), default=0)]

    def tidy(self, answer: Any) -> str:
        """An answer as text, JSON in the style of the seeds."""
        text = as_text(answer)
        if self.kind == "extract":
            try:
                return json.dumps(json.loads(text), ensure_ascii=False, **self.style)
            except (ValueError, RecursionError):
                return text
        text = text.strip()
        # Chat models write "Billing." for billing; what is no label stays as it is and is refused later.
        return self.label_of.get(text.strip("\"'`*. ").casefold(), text) if self.kind == "classify" else text

    def input_problem(self, text: str) -> tuple[str, str] | None:
        """Code and evidence when an input cannot be one of this task."""
        if not text.strip():
            return "empty_prompt", "the input is empty"
        if self.longest_input and len(text) > self.longest_input:
            return (
                "off_length",
                f"input of {len(text)} characters, the seeds allow {self.longest_input}",
            )
        return None

    def answer_problem(self, answer: str) -> tuple[str, str] | None:
        """Code and evidence when an answer cannot be right, by the rules of curation and those the seeds teach."""
        problem = answer_problem(answer, self.kind)
        if problem:
            return problem
        if self.kind == "classify":
            if self.labels and answer not in self.labels:
                return "unknown_label", f"{answer[:120]!r} is none of the {len(self.labels)} labels"
            return None
        if self.kind == "extract" and self.json is not None:
            off = self.json.problem(json.loads(answer))
            if off:
                return "off_schema", off
        said = refusal(answer)
        if said:
            return "refusal", f"the answer says {said!r}"
        if self.ends_in_number and not FINAL_NUMBER.search(answer):
            return "off_schema", f"does not end with '#### number', as every seed does: …{answer[-60:]}"
        if self.longest_answer and len(answer) > self.longest_answer:
            return (
                "off_length",
                f"answer of {len(answer)} characters, the seeds allow {self.longest_answer}",
            )
        return None
