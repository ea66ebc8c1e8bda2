"""Rows that would teach the wrong thing: empty, cut off, repeated, contradicting each other, too long."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..records import DroppedRow, Example, Fault, Progress
from .decode import shorten
from .normalise import answer_key, meaning_key, normalise, prompt_key
from .parse import PROGRESS_EVERY, is_cut_off

PLACEHOLDERS = {
    "nooutput", "no output", "n/a", "nan", "tbd", "todo", "...", "placeholder", "insert answer here",
    "your answer here", "output", "answer", "no answer provided", "undefined",
}  # fmt: skip
LABEL_PLACEHOLDERS = {"nooutput", "no output", "nan", "undefined"}  # the rest may be a class
# Kinds in which one prompt may have several right answers: other answers are reported, not dropped,
# unless they exclude each other.
OPEN_KINDS = ("generate", "chat")
SHORT_ANSWER_WORDS = 5
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


Lengths = Callable[[list[Example]], list[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class RowLimit:
    """How long a row may be for one model: its context for every row, seq_len for the rows that are trained on.

    lengths gives (prompt tokens, answer tokens with the end token) of each row.
    """

    model: str
    lengths: Lengths
    context_tokens: int
    seq_len: int


@dataclass(slots=True)
class Item:
    """An example on its way through curation, with its source row and what it is compared by."""

    example: Example
    row: Any
    prompt_key: str = ""
    answer_key: str = ""
    meaning_key: str = ""
    past_seq_len: str = ""  # evidence that it is too long to be trained on, though not to be answered


@dataclass
class Outcome:
    """What curation has decided so far."""

    dropped: list[DroppedRow] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def drop(self, item: Item, code: str, evidence: str, partner: Example | None = None) -> None:
        example = item.example
        if partner is not None and partner.source != example.source:
            evidence = f"{evidence} (partner in {partner.source})"
        line = partner.line if partner is not None else None
        self.dropped.append(DroppedRow(item.row, example.source, example.line, code, shorten(evidence, 400), line))

    def fault(self, example: Example, code: str, evidence: str, repair: str = "ask") -> None:
        self.faults.append(Fault(code, example.source, example.line, shorten(evidence, 400), repair))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def answer_problem(answer: str, kind: str) -> tuple[str, str] | None:
    """Code and evidence when an answer cannot be a right one whatever the prompt; else None."""
    text = answer.strip()
    if not text:
        return "empty_answer", "the answer is empty" if not answer else "the answer is only white space"
    if len(text) < 30:
        bare = re.sub(r"^\W+|\W+$", "", text.casefold()) or text
        if bare in (LABEL_PLACEHOLDERS if kind == "classify" else PLACEHOLDERS):
            return "placeholder_answer", f"the answer is a placeholder: {text}"
    if kind == "extract":
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
            if not isinstance(value, dict | list):
                return "answer_not_json", f"neither an object nor a list: {text[:120]}"
        except (ValueError, RecursionError) as error:
            if text[0] in "{[" and is_cut_off(text):
                return "truncated_answer", f"the JSON answer breaks off: …{text[-60:]}"
            return "answer_not_json", f"{str(error).split(':')[0]}: {text[:120]}"
    elif kind == "math" and not re.search(r"\d", text):
        return "no_number", f"a math answer states a number: {text[:120]}"
    elif kind != "classify" and re.match(r'\{\s*"|\[\s*\{\s*"', text) and is_cut_off(text):
        # Text tasks: only what plainly is JSON can be seen to break off.
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return "truncated_answer", f"the answer begins like JSON and breaks off: …{text[-60:]}"
    return None


def validate(items: list[Item], kind: str, out: Outcome, progress: Progress) -> list[Item]:
    """Rows with a prompt and a possible answer, with their comparison keys filled in."""
    kept: list[Item] = []
    for index, item in enumerate(items):
        if index % PROGRESS_EVERY == 0:
            progress("checking rows", index, len(items))
        example = item.example
        answer = example.completion
        if kind == "classify" and answer != answer.strip():
            example = item.example = _with_answer(example, answer.strip())
            answer = answer.strip()
        if not any(m.content.strip() for m in example.prompt if m.role != "system"):
            out.drop(item, "empty_prompt", "there is nothing to answer: the prompt is empty")
            continue
        problem = answer_problem(answer, kind)
        if problem:
            out.drop(item, *problem)
            continue
        if kind not in ("classify", "extract") and answer.count("```") % 2:
            out.fault(example, "open_code_block", f"a code block is opened and not closed; cut off? …{answer[-80:]}")
        item.prompt_key = prompt_key(example)
        item.answer_key = answer_key(answer, kind)
        item.meaning_key = meaning_key(answer, kind) if kind == "math" else item.answer_key
        kept.append(item)
    return kept


def _with_answer(example: Example, answer: str) -> Example:
    *before, last = example.messages
    return Example((*before, type(last)(last.role, answer)), example.answer_span, example.source, example.line)


def resolve_repeats(
    items: list[Item], kind: str, drop_duplicates: bool, drop_contradictions: bool, out: Outcome
) -> list[Item]:
    """Each prompt once with each right answer.

    Of rows equal after normalisation the first stays. Of rows with one prompt and different answers the
    strict majority's answer stays; without majority none does. In open kinds they stay and are reported,
    unless they exclude each other.
    """
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.prompt_key].append(item)
    left_out: set[int] = set()
    for group in groups.values():
        if len(group) == 1:
            continue
        votes = Counter(item.meaning_key for item in group)
        winner: str | None = None
        if len(votes) > 1:
            top, num_top = votes.most_common(1)[0]
            winner = top if num_top * 2 > len(group) else None
            if kind in OPEN_KINDS and not _exclude_each_other(group, kind):
                lines = ", ".join(str(item.example.line) for item in group[:8])
                evidence = f"{len(votes)} different answers to one prompt, lines {lines}; kept"
                out.fault(group[0].example, "several_answers", evidence)
            else:
                _contradict(group, votes, winner, drop_contradictions, left_out, out)
        firsts: dict[str, Item] = {}
        for item in group:
            if id(item) in left_out or not drop_duplicates:
                continue
            first = firsts.setdefault(item.answer_key, item)
            if first is not item:
                left_out.add(id(item))
                same = "equal" if first.example.id == item.example.id else "equal after normalisation"
                evidence = f"{same} to line {first.example.line}: {item.example.user_text}"
                out.drop(item, "exact_duplicate", evidence, first.example)
    return [item for item in items if id(item) not in left_out]


def _exclude_each_other(group: list[Item], kind: str) -> bool:
    """Whether answers of an open kind cannot all be right: short ones (a name, a date), or equal but for numbers."""
    answers = [item.answer_key for item in group]
    if kind == "generate" and max(len(answer.split()) for answer in answers) <= SHORT_ANSWER_WORDS:
        return True
    return len({NUMBER.sub("0", answer) for answer in answers}) == 1


def _contradict(
    group: list[Item], votes: Counter[str], winner: str | None, is_dropping: bool, left_out: set[int], out: Outcome
) -> None:
    """Drop (or only report) the rows of a group that lost the vote; each names a row that answers otherwise."""
    for item in group:
        if item.meaning_key == winner:
            continue
        rivals = (o for o in group if o.meaning_key == winner or (winner is None and o.meaning_key != item.meaning_key))
        rival = next(rivals)
        evidence = _both_answers(item, rival, votes, len(group))
        if is_dropping:
            left_out.add(id(item))
            out.drop(item, "contradiction", evidence, rival.example)
        else:
            out.fault(item.example, "contradiction", evidence)


def _both_answers(item: Item, other: Item, votes: Counter[str], total: int) -> str:
    mine, theirs = shorten(item.example.completion, 90), shorten(other.example.completion, 90)
    return (
        f"answer {mine!r} ({votes[item.meaning_key]} of {total} rows with this prompt); "
        f"line {other.example.line} answers {theirs!r} ({votes[other.meaning_key]})"
    )


def drop_past_context(items: list[Item], limits: Sequence[RowLimit], out: Outcome) -> list[Item]:
    """Rows that every model can read to the end of the answer; the others are left out with what would be lost.

    Rows that are only too long to be trained on stay, and are marked.
    """
    past_context: dict[int, str] = {}
    for limit in limits:
        measured = limit.lengths([item.example for item in items])
        for index, (num_prompt, num_answer) in enumerate(measured):
            total, item = num_prompt + num_answer, items[index]
            if total > limit.context_tokens:
                what = f"the context of {limit.model}"
                past_context.setdefault(index, _too_long(total, num_answer, limit.context_tokens, what))
            elif total > limit.seq_len and not item.past_seq_len:
                item.past_seq_len = _too_long(total, num_answer, limit.seq_len, "train.seq_len")
    for index, evidence in past_context.items():
        out.drop(items[index], "too_long", evidence)
    return [item for index, item in enumerate(items) if index not in past_context]


def _too_long(total: int, num_answer: int, limit_tokens: int, what: str) -> str:
    lost = min(num_answer, total - limit_tokens)
    return f"{total} tokens, {what} is {limit_tokens}: {lost} of {num_answer} answer tokens would be lost"


def drop_leaks(train: list[Item], held_out: list[Item], out: Outcome) -> list[Item]:
    """Training rows whose prompt is not among the held-out ones."""
    by_prompt = {item.prompt_key: item for item in reversed(held_out)}
    kept: list[Item] = []
    for item in train:
        partner = by_prompt.get(item.prompt_key)
        if partner is None:
            kept.append(item)
        else:
            evidence = f"the held-out row on line {partner.example.line} has this prompt: {item.example.user_text}"
            out.drop(item, "leak_into_eval", evidence, partner.example)
    return kept


def check_eval_repeats(items: list[Item], kind: str, out: Outcome) -> list[Item]:
    """Held-out rows given by the user: identical ones once, contradictions reported and kept."""
    kept: list[Item] = []
    seen: dict[str, Item] = {}
    by_prompt: dict[str, Item] = {}
    for item in items:
        first = seen.setdefault(item.example.id, item)
        if first is not item:
            evidence = f"equal to line {first.example.line}: {item.example.user_text}"
            out.drop(item, "exact_duplicate", evidence, first.example)
            continue
        kept.append(item)
        other = by_prompt.setdefault(item.prompt_key, item)
        if other.meaning_key != item.meaning_key and kind not in OPEN_KINDS:
            mine, theirs = item.example.completion, other.example.completion
            evidence = f"held-out rows disagree: {mine!r} here, line {other.example.line} says {theirs!r}"
            out.fault(item.example, "contradiction", evidence)
    return kept


def check_labels(train: list[Item], held_out: list[Item], out: Outcome) -> tuple[str, ...]:
    """The label set of a classification task; odd labels are reported."""
    counts = Counter(item.example.completion for item in train)
    first = {item.example.completion: item.example for item in reversed([*train, *held_out])}
    everywhere = counts + Counter(item.example.completion for item in held_out)
    for label, example in sorted(first.items()):
        if everywhere[label] == 1:
            out.fault(example, "single_row_label", f"label {label!r} stands on this row only; a typing error?")
        elif held_out and label not in counts:
            evidence = f"label {label!r} is asked for but never taught ({everywhere[label]} held-out rows)"
            out.fault(example, "label_not_in_train", evidence)
    spelled: dict[str, list[str]] = defaultdict(list)
    for label in everywhere:
        spelled[normalise(label).replace("_", " ").replace("-", " ")].append(label)
    for variants in spelled.values():
        if len(variants) > 1:
            shown = ", ".join(f"{v!r} ({everywhere[v]})" for v in sorted(variants))
            rarest = min(variants, key=lambda v: (everywhere[v], v))
            out.fault(first[rarest], "labels_alike", f"labels that differ only in writing: {shown}")
    if len(everywhere) > 0.5 * max(everywhere.total(), 1):
        out.notes.append(
            f"{len(everywhere)} different labels in {everywhere.total()} rows: "
            "this looks like task kind generate, not classify"
        )
    return tuple(sorted(everywhere))
