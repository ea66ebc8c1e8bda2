"""Rows seen together: repeats, contradictions, leaks, over-long rows, odd labels; found by hash, worded from text."""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..records import Example, Fault, Progress
from .decode import shorten
from .engine import Examples, Table
from .normalise import answer_key, normalise
from .rows import hashed

# Kinds in which one prompt may have several right answers: other answers are reported, not dropped,
# unless they exclude each other.
OPEN_KINDS = ("generate", "chat")
SHORT_ANSWER_WORDS = 5
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
LENGTHS_AT_A_TIME = 10_000
PIECE = re.compile(r"\w+|\s+|[^\w\s]")
MAX_SPAN_PIECES = 500  # of an answer are aligned; the time goes with the square
IMBALANCE = 50  # times; the rarest label of such a set is hardly learned

# A string: why the model's chat template cannot carry the row.
Lengths = Callable[[list[Example]], Sequence[tuple[int, int] | str]]


@dataclass(frozen=True, slots=True)
class RowLimit:
    """How long a row may be for one model: its context for every row, seq_len for the rows that are trained on.

    lengths gives (prompt tokens, answer tokens with the end token) of each row. shows_tools: whether the model's chat
    template has a place for tools.
    """

    model: str
    lengths: Lengths
    context_tokens: int
    seq_len: int
    shows_tools: bool = True


class Items(Sequence[Example]):
    """Records on their way through curation: numbers in arrays; texts are read from the table when asked for."""

    def __init__(self, table: Table, indices: Any):
        self.table, self.indices = table, np.asarray(indices, np.int64)
        self.examples = Examples(table, self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, at: Any) -> Any:
        return self.examples[at]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def take(self, rows: Any) -> Items:
        """Those of the rows numbered, or marked."""
        return Items(self.table, self.indices[rows])

    def __add__(self, others: Items) -> Items:
        return Items(self.table, np.concatenate([self.indices, others.indices]))

    @property
    def ids(self) -> Any:
        """The examples' ids as numbers in the order of their text, which is 016x of them."""
        return self.table.keys[self.indices, 3].byteswap()

    def labels(self) -> tuple[list[str], Any]:
        """Different answers of a classification, in the order they come, and the number of each record's own."""
        key_N = self.table.keys[self.indices, 1]
        for row in np.flatnonzero(np.isin(self.indices, list(self.table.corrected))).tolist():
            key_N[row] = np.frombuffer(hashed(self[row].completion), np.uint64)[0]  # a person's spaces count
        _, first, code_N = np.unique(key_N, return_index=True, return_inverse=True)
        number: dict[str, int] = {}
        code_of = np.zeros(len(first), np.int64)
        for code in np.argsort(first).tolist():
            code_of[code] = number.setdefault(self[int(first[code])].completion, len(number))
        return list(number), code_of[code_N]


@dataclass
class Outcome:
    """The table whose records are being decided on, and what was noticed."""

    table: Table
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    open_questions: list[tuple[int, str, str]] = field(default_factory=list)  # record, code, evidence: for review.csv
    past_seq_len: dict[int, str] = field(default_factory=dict)  # record -> why it is too long to be trained on
    having_tools: list[int] = field(default_factory=list)  # records

    def fault(self, index: int, code: str, evidence: str, repair: str = "ask") -> None:
        """Report a record that stays."""
        source, line = self.table.place(index)
        self.faults.append(Fault(code, source, line, shorten(evidence, 400), repair))
        if code in ("contradiction", "near_contradiction"):
            self.open_questions.append((index, code, shorten(evidence, 400)))

    def drop(self, index: int, code: str, evidence: str, partner: int = -1) -> None:
        """Set a record aside."""
        if partner >= 0 and self.table.place(partner)[0] != self.table.place(index)[0]:
            evidence = f"{evidence} (partner in {self.table.place(partner)[0]})"
        self.table.drop(index, code, shorten(evidence, 400), partner)


def grouped(values: Any, group_N: Any, num_groups: int) -> list[Any]:
    """The values of each group, in their order."""
    ordered = values[np.argsort(group_N, kind="stable")]
    parts: list[Any] = np.split(ordered, np.cumsum(np.bincount(group_N, minlength=num_groups))[:-1])
    return parts[:num_groups]  # of no groups np.split makes one


def groups_of(keys: Any, indices: Any) -> Iterator[list[int]]:
    """Of the records numbered by indices (ascending) those that share a key, two or more at a time, in order."""
    chosen = keys[indices]
    order = np.argsort(chosen, kind="stable")
    ordered = chosen[order]
    edges = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1], True])
    sizes = np.diff(edges)
    many = np.flatnonzero(sizes > 1)
    many = many[np.argsort(indices[order[edges[many]]], kind="stable")]
    for start, size in zip(edges[many].tolist(), sizes[many].tolist(), strict=True):
        yield indices[order[start : start + size]].tolist()


def resolve_repeats(kind: str, drop_duplicates: bool, contradictions: str, out: Outcome, progress: Progress) -> None:
    """Each prompt once with each right answer.

    Of records equal after normalisation the first stays. Of records with one prompt and different answers:
    majority keeps the strict majority's answer, and none without one; drop keeps none; keep reports them. In open
    kinds they stay and are reported, unless they exclude each other.
    """
    table = out.table
    answers, meanings = table.keys[:, 1], table.keys[:, 2]
    kept = table.kept(is_held_out=False)
    progress("looking for repeats and contradictions", 0, None)
    for group in groups_of(table.keys[:, 0], kept):
        votes = Counter(meanings[group].tolist())
        if len(votes) > 1:
            if kind in OPEN_KINDS and not exclude_each_other([table.example(i).completion for i in group], kind):
                lines = ", ".join(str(table.line[i]) for i in group[:8])
                out.fault(
                    group[0], "several_answers", f"{len(votes)} different answers to one prompt, lines {lines}; kept"
                )
            else:
                _contradict(group, votes, contradictions, out)
        if not drop_duplicates:
            continue
        firsts: dict[int, int] = {}
        for index, answer in zip(group, answers[group].tolist(), strict=True):
            if table.code[index]:
                continue
            first = firsts.setdefault(answer, index)
            if first != index:
                table.drop(index, "exact_duplicate", partner=first)  # worded when it is written


def duplicate_evidence(table: Table, index: int) -> str:
    """What is said of an exact duplicate."""
    first = int(table.partner[index])
    same = "equal" if table.keys[index, 3] == table.keys[first, 3] else "equal after normalisation"
    source, line = table.place(first)
    elsewhere = f" (partner in {source})" if source != table.place(index)[0] else ""
    return shorten(f"{same} to line {line}: {table.example(index).user_text}", 300) + elsewhere


def exclude_each_other(answers: Sequence[str], kind: str) -> bool:
    """Whether answers of an open kind cannot all be right: short ones (a name, a date), or equal but for numbers."""
    keys = [answer_key(answer, kind) for answer in answers]
    if kind == "generate" and max(len(key.split()) for key in keys) <= SHORT_ANSWER_WORDS:
        return True
    return len({NUMBER.sub("0", key) for key in keys}) == 1


def _contradict(group: list[int], votes: Counter[int], rule: str, out: Outcome) -> None:
    """Drop (or only report) the records of a group that lost the vote; each names one that answers otherwise."""
    meanings = out.table.keys[:, 2]
    top, num_top = votes.most_common(1)[0]
    winner = top if num_top * 2 > len(group) and rule != "drop" else None
    for index in group:
        mine = int(meanings[index])
        if mine == winner:
            continue
        rival = next(o for o in group if meanings[o] == winner or (winner is None and meanings[o] != mine))
        said, says = (shorten(out.table.example(i).completion, 90) for i in (index, rival))
        evidence = (
            f"answer {said!r} ({votes[mine]} of {len(group)} rows with this prompt); line {out.table.line[rival]} "
            f"answers {says!r} ({votes[int(meanings[rival])]}); {differing(out.table, index, rival)}"
        )
        if rule == "keep":
            out.fault(index, "contradiction", evidence)
        else:
            out.drop(index, "contradiction", evidence, rival)


def differing(table: Table, index: int, other: int) -> str:
    """The spans in which two answers differ: only here / only there."""
    mine, theirs = (PIECE.findall(table.example(i).completion)[:MAX_SPAN_PIECES] for i in (index, other))
    spans = [
        f"{''.join(mine[a:b]).strip()!r} / {''.join(theirs[c:d]).strip()!r}"
        for tag, a, b, c, d in difflib.SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes()
        if tag != "equal"
    ]
    return f"differing: {', '.join(spans)}"


def drop_past_context(is_held_out: bool, limits: Sequence[RowLimit], out: Outcome) -> None:
    """Leave out records that a model cannot read to the end of the answer or at all, and those without an answer.

    Records that are only too long to be trained on stay, and are noted in out.past_seq_len.
    """
    drop_long(out.table.kept(is_held_out).tolist(), limits, out)


def drop_long(kept: Sequence[int], limits: Sequence[RowLimit], out: Outcome) -> None:
    """drop_past_context, of these records."""
    for start in range(0, len(kept), LENGTHS_AT_A_TIME):
        part = kept[start : start + LENGTHS_AT_A_TIME]
        examples = [out.table.example(i) for i in part]
        out.having_tools += [i for i, example in zip(part, examples, strict=True) if example.tools]
        for limit in limits:
            measured = limit.lengths(examples)
            assert len(measured) == len(part), "lengths must give one pair a row"
            for index, length in zip(part, measured, strict=True):
                if out.table.code[index]:
                    continue
                if isinstance(length, str):
                    out.drop(index, "template_refuses", f"{limit.model}: {length}")
                    continue
                num_prompt, num_answer = length
                total = num_prompt + num_answer
                if num_answer <= 1:
                    out.drop(index, "no_trainable_tokens", f"{num_answer} answer tokens, the end token included")
                elif total > limit.context_tokens:
                    what = f"the context of {limit.model}"
                    out.drop(index, "too_long", _too_long(total, num_answer, limit.context_tokens, what))
                elif total > limit.seq_len:
                    evidence = _too_long(total, num_answer, limit.seq_len, "train.seq_len")
                    out.past_seq_len.setdefault(index, evidence)


def note_hidden_tools(limits: Sequence[RowLimit], out: Outcome) -> None:
    """Report, once a model, that its chat template has no place for the tools of rows that stay."""
    hiding = [limit.model for limit in limits if not limit.shows_tools]
    if not hiding:
        return
    having = [index for index in out.having_tools if not out.table.code[index]]
    for model in hiding if having else ():
        evidence = (
            f"the chat template of {model} has no place for tools; those of {len(having)} rows, this the first, "
            "are written into the system message, and calls between <tool_call> tags"
        )
        out.fault(having[0], "tools_not_in_template", evidence, "safe")


def _too_long(total: int, num_answer: int, limit_tokens: int, what: str) -> str:
    lost = min(num_answer, total - limit_tokens)
    return f"{total} tokens, {what} is {limit_tokens}: {lost} of {num_answer} answer tokens would be lost"


def drop_leaks(out: Outcome) -> None:
    """Training records whose prompt is among the held-out ones."""
    table = out.table
    held_out, train = table.kept(is_held_out=True), table.kept(is_held_out=False)
    prompts, first = np.unique(table.keys[held_out, 0], return_index=True)
    if not len(prompts):
        return
    at = np.minimum(np.searchsorted(prompts, table.keys[train, 0]), len(prompts) - 1)
    for position in np.flatnonzero(prompts[at] == table.keys[train, 0]).tolist():
        index, partner = int(train[position]), int(held_out[first[at[position]]])
        shown = table.example(index).user_text
        out.drop(
            index, "leak_into_eval", f"the held-out row on line {table.line[partner]} has this prompt: {shown}", partner
        )


def check_eval_repeats(kind: str, out: Outcome) -> None:
    """Held-out records given by the user: identical ones once, contradictions reported and kept."""
    table = out.table
    for group in groups_of(table.keys[:, 3], table.kept(is_held_out=True)):
        for index in group[1:]:
            table.drop(index, "exact_duplicate", partner=group[0])
    if kind in OPEN_KINDS:
        return
    for group in groups_of(table.keys[:, 0], table.kept(is_held_out=True)):
        first, *others = group
        for index in others:
            if table.keys[index, 2] != table.keys[first, 2]:
                seen = f"held-out rows disagree with line {table.line[first]}: {differing(table, index, first)}"
                out.fault(index, "contradiction", seen)


def check_labels(train: Items, held_out: Items, out: Outcome) -> tuple[str, ...]:
    """The label set of a classification task; odd labels are reported."""
    counts: Counter[str] = Counter()
    everywhere: Counter[str] = Counter()
    first: dict[str, int] = {}
    for side, items in (("train", train), ("held out", held_out)):
        labels, code_N = items.labels()
        for label, indices in zip(labels, grouped(items.indices, code_N, len(labels)), strict=True):
            everywhere[label] += len(indices)
            counts[label] += len(indices) if side == "train" else 0
            first[label] = min(first.get(label, len(out.table)), int(indices.min(initial=len(out.table))))
    for label, index in sorted(first.items()):
        if everywhere[label] == 1:
            out.fault(index, "single_row_label", f"label {label!r} stands on this row only; a typing error?")
        elif held_out and not counts[label]:
            evidence = f"label {label!r} is asked for but never taught ({everywhere[label]} held-out rows)"
            out.fault(index, "label_not_in_train", evidence)
    spelled: dict[str, list[str]] = defaultdict(list)
    for label in everywhere:
        spelled[normalise(label).replace("_", " ").replace("-", " ")].append(label)
    for variants in spelled.values():
        if len(variants) > 1:
            shown = ", ".join(f"{v!r} ({everywhere[v]})" for v in sorted(variants))
            rarest = min(variants, key=lambda v: (everywhere[v], v))
            out.fault(first[rarest], "labels_alike", f"labels that differ only in writing: {shown}")
    recurring = [(number, label) for label, number in everywhere.items() if number > 1]
    if len(recurring) > 1 and max(recurring)[0] >= IMBALANCE * min(recurring)[0]:
        (least, rare), (most, common) = min(recurring), max(recurring)
        out.fault(first[rare], "label_imbalance", f"label {rare!r} has {least} rows, {common!r} has {most}")
    if len(everywhere) > 0.5 * max(everywhere.total(), 1):
        out.notes.append(
            f"{len(everywhere)} different labels in {everywhere.total()} rows: "
            "this looks like task kind generate, not classify"
        )
    return tuple(sorted(everywhere))
