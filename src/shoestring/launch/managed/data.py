"""The rows as the service takes them: written once, checked by its rules before anything is sent."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...files import write_whole
from ...messages import turns_of
from ...records import Estimate, Example
from .vendors import Vendor

CHARS_PER_TOKEN = Estimate(4.0, 2.5, 6.0)  # of text in the languages a tokenizer was made for
TOKENS_PER_TURN = Estimate(5.0, 4.0, 6.0)  # around its content, in the templates of Llama 3, Qwen and Gemma
MAX_FAULTS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Rows:
    """A file ready to be sent; its name holds the content's hash, so that it is not sent twice."""

    path: str
    sha256: str
    num_bytes: int
    num_rows: int
    num_chars: int  # of what is said, which the price is counted on
    num_turns: int
    longest_chars: int

    @property
    def name(self) -> str:
        """File name, and for Fireworks the data set's."""
        return Path(self.path).name

    def to_json(self) -> dict[str, Any]:
        """As the journal holds it."""
        return asdict(self)


def tokens_of(rows: Rows) -> Estimate:
    """Tokens of one epoch where no tokenizer is at hand."""
    chars, turns = CHARS_PER_TOKEN, TOKENS_PER_TURN
    return Estimate(
        rows.num_chars / chars.value + rows.num_turns * turns.value,
        rows.num_chars / chars.high + rows.num_turns * turns.low,
        rows.num_chars / chars.low + rows.num_turns * turns.high,
    )


def row_of(vendor: Vendor, example: Example, objective: str) -> dict[str, Any]:
    """One example in the chat format of OpenAI's fine-tuning, which all of them take."""
    tools = {"tools": json.loads(example.tools)} if example.tools else {}
    if objective == "dpo":
        return {
            "input": {"messages": turns_of(example.prompt, as_text=True), **tools},
            "preferred_output": turns_of(example.answer, as_text=True),
            "non_preferred_output": turns_of(example.rejected, as_text=True),
        }
    turns = turns_of(example.messages, as_text=True)
    if vendor.weighs_turns:
        start, end = example.answer_span
        for place, turn in enumerate(turns):
            if turn["role"] == "assistant" and not start <= place < end:
                turn["weight"] = 0
    return {"messages": turns, **tools}


def faults_of(vendor: Vendor, example: Example, objective: str) -> Iterator[str]:
    """What the service would refuse of a row."""
    if objective == "dpo":
        if not example.rejected:
            yield "is no pair: it has no rejected answer"
        return
    roles = [message.role for message in example.messages]
    if roles[-1] != "assistant":
        yield f"ends with a turn of {roles[-1]!r}, and the last has to be the assistant's"
    if "system" in roles[1:]:
        yield "has a system turn that is not the first"
    if vendor.turns_alternate:
        repeated = next((a for a, b in itertools.pairwise(roles) if a == b and a in ("user", "assistant")), None)
        if repeated:
            yield f"has two turns of {repeated!r} in a row; join them"
    if example.messages[-1].tool_calls and not vendor.learns_calls:
        yield f"ends with a tool call, and {vendor.name} learns answers in words"
    start, end = example.answer_span
    earlier = [place for place, role in enumerate(roles) if role == "assistant" and not start <= place < end]
    if earlier and not vendor.weighs_turns:
        yield f"has {len(earlier)} earlier answers, which {vendor.name} would learn too: they cannot be left out there"


def write_rows(
    vendor: Vendor, examples: Sequence[Example], objective: str, folder: Path, *, is_validation: bool = False
) -> Rows:
    """Write the file, checked by the service's rules. Raises: DataError naming rows, limit and remedy."""
    faults = [
        f"{example.source}:{example.line} {fault}"
        for example in examples
        for fault in faults_of(vendor, example, objective)
    ]
    if faults:
        more = f"\n... and {len(faults) - MAX_FAULTS_SHOWN} more" if len(faults) > MAX_FAULTS_SHOWN else ""
        raise DataError(
            f"{vendor.name} would refuse {len(faults)} of {len(examples):,} rows ({vendor.source}); put them right or "
            "drop them:\n" + "\n".join(faults[:MAX_FAULTS_SHOWN]) + more
        )
    lines = [json.dumps(row_of(vendor, example, objective), ensure_ascii=False) for example in examples]
    content = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
    _check_size(vendor, len(lines), len(content), is_validation)
    sha256 = hashlib.sha256(content).hexdigest()
    path = folder / f"shoestring-{sha256[:24]}.jsonl"
    if not path.is_file() or path.stat().st_size != len(content):
        write_whole(path, content)
    said = [_said(example, objective) for example in examples]
    num_chars = [sum(map(len, texts)) for texts in said]
    return Rows(
        str(path), sha256, len(content), len(lines), sum(num_chars), sum(map(len, said)), max(num_chars, default=0)
    )


def _said(example: Example, objective: str) -> list[str]:
    """What the turns say; of a pair both answers, and the prompt twice."""
    turns = [*example.messages]
    if objective == "dpo":
        turns += [*example.prompt, *example.rejected]
    return [message.text for message in turns] + ([example.tools] if example.tools else [])


def _check_size(vendor: Vendor, num_rows: int, num_bytes: int, is_validation: bool) -> None:
    rows = "dev rows" if is_validation else "training rows"
    if num_rows < (1 if is_validation else vendor.min_rows):
        raise DataError(
            f"{num_rows} {rows}: {vendor.name} takes no fewer than {vendor.min_rows} ({vendor.source}); add rows"
        )
    if vendor.max_rows is not None and num_rows > vendor.max_rows:
        raise DataError(
            f"{num_rows:,} {rows}: {vendor.name} takes no more than {vendor.max_rows:,} ({vendor.source}); set "
            "curate.max_train_rows"
        )
    if vendor.max_file_bytes is not None and num_bytes > vendor.max_file_bytes:
        raise DataError(
            f"{num_bytes:,} bytes of {rows}: {vendor.name} takes files of up to {vendor.max_file_bytes:,} "
            f"({vendor.source}); set curate.max_train_rows"
        )


def check_lengths(vendor: Vendor, rows: Rows, max_tokens: int) -> str:
    """A note where rows may be longer than the model learns there. Raises: DataError where they surely are."""
    least, most = rows.longest_chars / CHARS_PER_TOKEN.high, rows.longest_chars / CHARS_PER_TOKEN.low
    if least > max_tokens:
        raise DataError(
            f"the longest row has {rows.longest_chars:,} characters, at least some {least:,.0f} tokens, and "
            f"{vendor.name} learns rows of up to {max_tokens:,} of this model; set train.seq_len: {max_tokens}"
        )
    if most > max_tokens:
        return (
            f"the longest row has {rows.longest_chars:,} characters and may pass the {max_tokens:,} tokens that "
            f"{vendor.name} learns; train.seq_len: {max_tokens} drops such rows before"
        )
    return ""
