"""Prompts with passages in them, the same in training and in answering, and whether what was found holds the facts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..evaluate.metrics import final_number
from ..evaluate.statistics import wilson
from ..messages import Example, Message, Prompt, split_tools, with_tools
from ..records import Estimate
from .retrieval import words

CountTokens = Callable[[Sequence[Message]], int]

# How passages stand in a prompt, before the text of the last user turn; recorded beside adapters trained with it.
HEAD = "Passages that may help:"
BORDER = "\n\n---\n\n"
# An answer of so many words is a fact as a whole; of longer ones names and numbers are.
FACT_WORDS = 6
NAME = re.compile(r"(?<![.!?:] )(?<!^)\b[A-Z][\w'-]*(?: [A-Z][\w'-]*)*|\b\w*\d[\w.,:/-]*\w|\b\d\b")


def with_passages(prompt: Prompt, passages: Sequence[str]) -> Prompt:
    """The prompt with the passages before the text of its last user turn; without either, as it is."""
    tools, turns = split_tools(prompt)
    last = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is None or not passages:
        return prompt
    listed = "\n\n".join(f"[{number}] {text}" for number, text in enumerate(passages, 1))
    turn = replace(turns[last], content=f"{HEAD}\n\n{listed}{BORDER}{turns[last].content}")
    return with_tools((*turns[:last], turn, *turns[last + 1 :]), tools)


def fitted(
    prompts: Sequence[Prompt], found: Sequence[Sequence[str]], count_tokens: CountTokens, rooms: Sequence[int]
) -> tuple[list[Prompt], list[int]]:
    """Each prompt with as many of its passages, best first, as its room in tokens holds; and how many."""
    filled, nums = [], []
    for prompt, passages, room in zip(prompts, found, rooms, strict=True):
        num = len(passages)
        while num and count_tokens(with_passages(prompt, passages[:num])) > room:
            num -= 1
        filled.append(with_passages(prompt, passages[:num]))
        nums.append(num)
    return filled, nums


def example_with(example: Example, passages: Sequence[str]) -> Example:
    """The row with passages in its prompt; its id stays, so that it is paired with itself under other arms."""
    prompt = with_passages(example.prompt, passages)
    return replace(example, messages=(*prompt, *example.messages[len(prompt) :]))


@dataclass(frozen=True, slots=True)
class Recall:
    """On the rows whose facts stand in the documents: how often those found hold all of them.

    num_findable of num_rows rows have facts that the question does not give and that stand in passages.
    at: number of passages to the share of findable rows (Wilson); in_prompt: the same of those that fitted.
    """

    num_rows: int
    num_findable: int
    at: dict[str, Estimate]
    in_prompt: Estimate | None


HOW = (
    "a fact is the whole answer of up to 6 words, each leaf of a record, the final number, or each name and number of "
    "a longer answer; those the question gives are left out; a row counts where every fact stands in some passage"
)


def told(arm: str, retrieval: dict[str, Any]) -> str:
    """What a report says of an arm's retrieval. retrieval: of its details."""
    found = retrieval["recall"]
    shown = f"{arm}: {retrieval['mean_chunks']:.1f} of {retrieval['num_passages']:,} passages a prompt"
    shown += f", by {retrieval['by']}"
    if not found["num_findable"]:
        return f"{shown}; of no held-out row do the documents hold every fact, so recall cannot be counted"
    at = ", ".join(f"first {k}: {_share(value)}" for k, value in found["at"].items())
    return (
        f"{shown}; {found['num_findable']:,} of {found['num_rows']:,} rows have their facts in the documents; recall, "
        f"{at}, in the prompt: {_share(found['in_prompt'])}"
    )


def _share(value: dict[str, float]) -> str:
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def facts_of(example: Example, kind: str) -> list[str]:
    """What must be known to answer: normalised, without what the question says already."""
    answer, asked = example.completion.strip(), _normal(example.user_text)
    if kind == "extract":
        try:
            facts = [str(leaf) for leaf in _leaves(json.loads(answer))]
        except (ValueError, RecursionError):
            facts = []
    elif kind == "math":
        number = final_number(answer)
        facts = [str(number)] if number is not None else []
    elif len(words(answer)) <= FACT_WORDS:
        facts = [answer]
    else:
        facts = NAME.findall(answer)
    normal = dict.fromkeys(_normal(fact) for fact in facts)
    return [fact for fact in normal if fact.strip() and fact not in asked]


def recall(
    examples: Sequence[Example],
    kind: str,
    texts: Sequence[str],
    found: Sequence[Sequence[int]],
    nums_in_prompt: Sequence[int],
) -> Recall:
    """Recall of what was found (places in texts, best first) for each example. HOW says what counts."""
    passages = [_normal(text) for text in texts]
    every = "\n".join(passages)
    deepest = max(map(len, found), default=0)
    depths = [k for k in (1, 2, 4, 8, 16, 32, 64) if k < deepest] + [deepest]
    hits = dict.fromkeys(depths, 0)
    in_prompt = num_findable = 0
    for example, places, num in zip(examples, found, nums_in_prompt, strict=True):
        facts = facts_of(example, kind)
        if not facts or not all(fact in every for fact in facts):
            continue
        num_findable += 1
        for depth in depths:
            hits[depth] += _all_in([passages[i] for i in places[:depth]], facts)
        in_prompt += _all_in([passages[i] for i in places[:num]], facts)
    if not num_findable:
        return Recall(len(examples), 0, {}, None)
    at = {str(depth): wilson(num, num_findable) for depth, num in hits.items()}
    return Recall(len(examples), num_findable, at, wilson(in_prompt, num_findable))


def _all_in(passages: Sequence[str], facts: Sequence[str]) -> bool:
    return all(any(fact in passage for passage in passages) for fact in facts)


def _normal(text: str) -> str:
    """Words between single spaces, with one before and after, so that facts are found whole."""
    return f" {' '.join(words(text))} "


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in _leaves(inner)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in _leaves(inner)]
    return [] if value is None or isinstance(value, bool) else [value]
