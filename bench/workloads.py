"""The rows that training is timed on: real text from examples/, the same for every trainer and every run."""

from __future__ import annotations

import csv
import functools
import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from bench import EXAMPLES
from shoestring.records import Example, Message

SEED = 5
POLICY = (
    "You sort messages that customers send to the support desk of a bank. Read the message, decide what the customer "
    "wants to get done, and answer with the one name that fits best and with nothing else: no greeting, no full stop, "
    "no explanation. A message may touch several matters; name the one that the customer would be annoyed not to see "
    "dealt with. A card that was lost is not a card that was stolen, and a payment that is pending has not failed. "
    "Names that may be given: "
)
NUM_POLICY_LABELS = 29  # makes the system turn 400 tokens of the embedded tokenizer
NUM_SHOTS = 12  # makes a DPO prompt 300 to 400 tokens
REQUESTS_A_ROW = (10, 14)  # makes a long row 500 to 1,000 tokens


@dataclass(frozen=True, slots=True)
class Workload:
    """Rows to train on and rows held out; objective is sft or dpo (rows of pairs)."""

    name: str
    objective: str
    learning_rate: float
    train: list[Example]
    held_out: list[Example]
    says: str


def build(name: str, num_train: int, num_held_out: int) -> Workload:
    """The workload of one name in SCENARIOS; row i never depends on how many are asked for after it."""
    return numbered(SCENARIOS[name](num_train, num_held_out))


def numbered(made: Workload) -> Workload:
    """With a line for each training row: rows of one source and line would be the answers of one conversation."""
    train = [replace(row, source="bench", line=line) for line, row in enumerate(made.train, start=1)]
    return replace(made, train=train)


def plain(num_train: int, num_held_out: int) -> Workload:
    """banking77 as it is: short rows, nothing shared but the template."""
    train, held_out = (
        [example(Message("user", text), answer=label) for text, label in spaced(banking(part), count)]
        for part, count in (("train", num_train), ("test", num_held_out))
    )
    return Workload("plain", "sft", 2e-3, train, held_out, "banking77 as it is")


def shared_prompt(num_train: int, num_held_out: int) -> Workload:
    """banking77 under one system turn of 400 tokens, as a classifier with instructions would be trained."""
    system = Message("system", POLICY + ", ".join(labels()[:NUM_POLICY_LABELS]) + ".")
    train, held_out = (
        [example(system, Message("user", text), answer=label) for text, label in spaced(banking(part), count)]
        for part, count in (("train", num_train), ("test", num_held_out))
    )
    return Workload("shared_prompt", "sft", 2e-3, train, held_out, "banking77 under one system turn of 400 tokens")


def dpo(num_train: int, num_held_out: int) -> Workload:
    """Pairs over long prompts: banking77 messages sorted by example, the right label against a wrong one.

    Each prompt shows NUM_SHOTS solved messages of its own, one of them with the rejected label, which is drawn from
    the labels shown: two pairs share no more than a heading.
    """
    train, held_out = (
        [pair(index, text, label) for index, (text, label) in enumerate(spaced(banking(part), count))]
        for part, count in (("train", num_train), ("test", num_held_out))
    )
    return Workload("dpo", "dpo", 5e-4, train, held_out, "DPO on banking77 with twelve solved messages in the prompt")


def pair(index: int, text: str, label: str) -> Example:
    """One preference row; what it shows depends on its index alone."""
    rng = random.Random(f"{SEED} {index}")
    pool = banking("train")
    shots = rng.sample([row for row in pool if row[1] != label], NUM_SHOTS)
    wrong = rng.choice(shots)[1]
    shown = "\n".join(f"{shot} -> {name}" for shot, name in shots)
    made = example(Message("user", f"{shown}\n{text} ->"), answer=label)
    return Example(made.messages, made.answer_span, rejected=(Message("assistant", wrong),))


def no_sharing(num_train: int, num_held_out: int) -> Workload:
    """Long rows with nothing in common: snips requests by the dozen, answered by their JSON, none used twice."""
    train = [long_row(group) for group in groups(snips("train"), num_train)]
    held_out = [long_row(group) for group in groups(snips("validate"), num_held_out)]
    return Workload(
        "no_sharing", "sft", 2e-3, train, held_out, "snips requests by the dozen, 500 to 1,000 tokens a row"
    )


def groups(rows: list[tuple[str, str]], wanted: int) -> Iterator[list[tuple[str, str]]]:
    """Runs of rows of uneven length, in a fixed random order."""
    rng = random.Random(SEED)
    shuffled = rng.sample(rows, len(rows))
    at = 0
    for _ in range(wanted):
        size = rng.randint(*REQUESTS_A_ROW)
        if at + size > len(shuffled):
            return
        yield shuffled[at : at + size]
        at += size


def long_row(group: list[tuple[str, str]]) -> Example:
    return example(
        Message("user", "\n".join(request for request, _ in group)), answer="\n".join(answer for _, answer in group)
    )


SCENARIOS: dict[str, Callable[[int, int], Workload]] = {
    "shared_prompt": shared_prompt,
    "dpo": dpo,
    "plain": plain,
    "no_sharing": no_sharing,
}


def example(*prompt: Message, answer: str) -> Example:
    """A row whose answer is its last turn."""
    messages = (*prompt, Message("assistant", answer))
    return Example(messages, (len(prompt), len(messages)))


def spaced(rows: list[tuple[str, str]], wanted: int) -> list[tuple[str, str]]:
    """Rows evenly spaced over a file that is sorted by label."""
    return rows[:: max(1, len(rows) // max(1, wanted))][:wanted]


@functools.cache
def banking(part: str) -> list[tuple[str, str]]:
    """(message, label) of examples/banking77."""
    with gzip.open(EXAMPLES / "banking77" / f"{part}.csv.gz", "rt", newline="") as file:
        return [(row["text"].strip(), row["category"]) for row in csv.DictReader(file)]


def labels() -> list[str]:
    """The labels of banking77, in order of appearance."""
    return list(dict.fromkeys(label for _, label in banking("train")))


@functools.cache
def snips(part: str) -> list[tuple[str, str]]:
    """(request, JSON) of examples/snips."""
    with gzip.open(EXAMPLES / "snips" / f"{part}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(row["prompt"], row["completion"]) for row in rows]
