"""What a data file is for: its format, where input and answer stand, and the task it suggests, with evidence."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..config import METRICS_BY_KIND, FieldsConfig
from ..records import Example, Progress, no_progress
from .formats import Shape
from .load import Loaded, load
from .normalise import FINAL_NUMBER

MOSTLY = 0.8  # share of rows that must show a trait
MAX_LABEL_WORDS = 8
SQL = re.compile(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Detected:
    """What `shoestring init` proposes. format: how it is stored and how rows are shaped.

    objective: what the rows allow beside learning their answers.
    fields: part name (prompt, completion, system, messages) to key, as data.fields would name it.
    """

    format: str
    fields: dict[str, str]
    kind: str
    metric: str
    evidence: str
    num_rows_seen: int
    num_faults: int = 0
    labels: tuple[str, ...] = ()
    objective: str = "sft"  # dpo where rows are pairs, kto where answers are marked as desired or not


def detect(path: Path, progress: Progress = no_progress, max_rows: int | None = None) -> Detected:
    """Read a data file, or about its first max_rows rows, and propose the task kind.

    Raises: DataError when it cannot be used.
    """
    return detected_in(load([str(path)], FieldsConfig(), "", Path(), progress, max_rows))


def detected_in(loaded: Loaded) -> Detected:
    """What rows that are read already suggest."""
    shape = loaded.shapes[0]
    kind, evidence, labels = task_kind(loaded.examples, loaded.num_rows)
    return Detected(
        format=f"{loaded.formats[0]}, {shape.describe()}",
        objective="dpo" if shape.kind == "preference" else "kto" if shape.flag else "sft",
        fields=_fields(shape),
        kind=kind,
        metric=METRICS_BY_KIND[kind][0],
        evidence=evidence,
        num_rows_seen=loaded.num_rows,
        num_faults=len(loaded.faults),
        labels=labels,
    )


def _fields(shape: Shape) -> dict[str, str]:
    parts = {"prompt": shape.prompt, "completion": shape.answer, "system": shape.system, "messages": shape.messages}
    return {name: key for name, key in parts.items() if key}


def task_kind(examples: tuple[Example, ...], num_rows: int) -> tuple[str, str, tuple[str, ...]]:
    """Task kind, the sentence of evidence, and the labels of a classification."""
    answers = [text for e in examples if (text := e.completion.strip())]
    total = len(answers)
    if not total:
        return "generate", f"none of {num_rows} rows has an answer", ()

    def share(num: int) -> str:
        return f"{num} of {total} answers"

    num_json = sum(_is_json_object(a) for a in answers)
    if num_json >= MOSTLY * total:
        return "extract", f"{share(num_json)} are JSON objects", ()
    num_sql = sum(bool(SQL.match(a)) for a in answers)
    if num_sql >= MOSTLY * total:
        return "sql", f"{share(num_sql)} begin like SQL statements", ()
    num_math = sum(bool(FINAL_NUMBER.search(a[-60:])) for a in answers)
    if num_math >= MOSTLY * total:
        return "math", f"{share(num_math)} end with '#### number'", ()
    num_turns = sum(sum(m.role == "assistant" for m in e.messages) > 1 for e in examples)
    if num_turns >= 0.3 * len(examples):
        return "chat", f"{num_turns} of {len(examples)} examples have earlier turns before the answer", ()
    counts = Counter(answers)
    longest = max(len(a.split()) for a in counts)
    # Labels recur: on average each on five rows, and nearly no row has an answer of its own.
    num_alone = sum(n == 1 for n in counts.values())
    if len(counts) > 1 and len(counts) <= total / 5 and num_alone <= 0.05 * total and longest <= MAX_LABEL_WORDS:
        shown = ", ".join(repr(a) for a, _ in counts.most_common(3))
        evidence = f"{total} answers, but only {len(counts)} different ones, such as {shown}"
        return "classify", evidence, tuple(sorted(counts))
    mean_words = sum(len(a.split()) for a in answers) / total
    evidence = f"{len(counts)} different answers in {total} rows, {mean_words:.0f} words on average: free text"
    return "generate", evidence, ()


def _is_json_object(text: str) -> bool:
    if text[0] not in "{[":
        return False
    try:
        return isinstance(json.loads(text), (dict, list))
    except ValueError:
        return False
