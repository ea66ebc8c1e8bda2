"""The rows there are already: seeds to learn from, and the two sides new rows must not repeat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import BadInput
from ...records import Example, Progress
from ..answers import answer_problem
from ..curate import curate
from ..load import load
from ..sizes import MIN_ROWS

if TYPE_CHECKING:
    from ...config import RunConfig


@dataclass(frozen=True)
class Known:
    """train: seeds. eval: held-out rows, never shown to a teacher. is_split: they were split off here."""

    train: tuple[Example, ...]
    eval: tuple[Example, ...]
    labels: tuple[str, ...]
    is_split: bool = False
    notes: tuple[str, ...] = ()

    @property
    def system(self) -> str:
        """The system message that all seeds have, or an empty text."""
        found = {e.messages[0].content if e.messages[0].role == "system" else "" for e in self.train}
        return found.pop() if len(found) == 1 else ""


def known_rows(config: RunConfig, base_dir: Path, needs_seeds: bool, progress: Progress) -> Known:
    """Training and held-out rows of a run file.

    Without data.eval they are split as the run would; seeds come from the training side alone. Where seeds are
    not needed, data.train may name files that do not exist yet.
    Raises: DataError where the data cannot be used, BadInput where there is no seed.
    """
    data = config.data
    labels = tuple(config.synth.labels) if config.task.kind == "classify" else ()
    if not needs_seeds and not any(text.startswith("hf:") or _is_there(base_dir, text) for text in data.train):
        there = _usable(data.eval, config, base_dir, progress) if data.eval else ()
        note = f"no seeds: {', '.join(data.train)} is not there yet"
        return Known((), there, labels, notes=(note,))
    train = _usable(data.train, config, base_dir, progress)
    if not train and needs_seeds:
        raise BadInput(f"{', '.join(data.train)}: no usable row to serve as a seed; give at least one under data.train")
    held_out: tuple[Example, ...] = ()
    is_split = False
    notes: tuple[str, ...] = ()
    if data.eval:
        held_out = _usable(data.eval, config, base_dir, progress)
    elif len(train) >= 2 * MIN_ROWS:
        curated = curate(config, base_dir, progress=progress)
        train, held_out, is_split = (*curated.train, *curated.dev), curated.eval, True
    else:
        notes = (
            f"{len(train)} seeds are too few to hold rows out, so nothing guards a later score against rows made "
            "from its own test: write held-out rows by hand and name them under data.eval",
        )
    if config.task.kind == "classify" and not labels:
        labels = tuple(sorted({e.completion.strip() for e in train}))
    return Known(train, held_out, labels, is_split, notes)


def _is_there(base_dir: Path, text: str) -> bool:
    return bool(list(base_dir.glob(text))) if any(c in text for c in "*?[") else (base_dir / text).exists()


def _usable(sources: Sequence[str], config: RunConfig, base_dir: Path, progress: Progress) -> tuple[Example, ...]:
    """Rows with a prompt and a possible answer, each prompt once."""
    loaded = load(list(sources), config.data.fields, config.data.system, base_dir, progress)
    times: Counter[str] = Counter()
    rows = []
    for example in loaded.examples:
        times[example.user_text] += 1
        is_new = times[example.user_text] == 1
        if is_new and example.user_text.strip() and not answer_problem(example.completion.strip(), config.task.kind):
            rows.append(example)
    return tuple(rows)
