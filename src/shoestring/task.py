"""Section `task` of the run file: what is to be done, how it is scored, and how good is good enough."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from .sections import Section

TaskKind = Literal["classify", "extract", "generate", "sql", "math", "chat"]

# First of each is the default metric of the kind.
METRICS_BY_KIND: dict[str, tuple[str, ...]] = {
    "classify": ("accuracy", "macro_f1"),
    "extract": ("leaf_f1", "exact_record"),
    "generate": ("chrf", "rouge_l", "exact_match", "slot_match", "call_exact", "call_f1", "judge"),
    "sql": ("exact_match", "execution_match", "ast_match", "chrf"),
    "math": ("final_number", "math_equal", "exact_match"),
    "chat": ("chrf", "rouge_l", "call_exact", "call_f1", "judge"),
}
# A bar is the user's decision; these are where each kind's metric starts to be useful.
STARTING_BARS = {"classify": 0.85, "extract": 0.85, "generate": 0.5, "sql": 0.7, "math": 0.5, "chat": 0.4}
# A metric of the user's own: a function of a Python file, or a command (task.metric_command).
OWN_FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")
COMMAND = "command"
FROM_PROMPT = "prompt"  # as task.database: the tables that a row's prompt declares


class TaskConfig(Section):
    """What is to be done, how it is scored, and how good is good enough."""

    kind: TaskKind
    """classify, extract (text to JSON), generate, sql, math or chat."""
    metric: str = ""
    """Primary metric, 0 to 1 (default: that of the kind), or a function of your own, such as my_metric.py:score."""
    metric_command: str = ""
    """A command that is the metric: rows come as JSON lines, a line with a score goes back for each."""
    bar: float = Field(ge=0.0, le=1.0)
    """Quality bar on the metric; met when the lower end of its 95 % interval reaches it."""
    database: str = ""
    """For execution_match: SQLite file, SQL script, folder of several, or `prompt` (tables declared in the prompts)."""
    record_schema: str = ""
    """JSON Schema that an extracted record should keep to (default: the fields that the expected answers share)."""
    instruction: str = ""
    """What the model is told in prompting arms; empty: derived from the data."""
    max_new_tokens: int | None = Field(default=None, ge=1, le=32768)
    """Longest answer generated; empty: from the longest training answer."""
    _base_dir: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _metric_of_kind(self) -> TaskConfig:
        allowed = METRICS_BY_KIND[self.kind]
        if self.database and self.kind != "sql":
            raise ValueError(f"database is of task kind sql, and this is {self.kind}; leave it out")
        if self.record_schema and self.kind != "extract":
            raise ValueError(f"record_schema is of task kind extract, and this is {self.kind}; leave it out")
        if self.metric_command and self.metric not in ("", COMMAND):
            raise ValueError(f"metric_command and metric {self.metric!r} exclude each other; leave one out")
        if self.metric == COMMAND and not self.metric_command:
            raise ValueError("metric command needs metric_command, such as `metric_command: python grade.py`")
        if not self.metric:
            default = "execution_match" if self.database else allowed[0]
            object.__setattr__(self, "metric", COMMAND if self.metric_command else default)
        elif self.metric not in (*allowed, COMMAND) and not OWN_FUNCTION.fullmatch(self.metric):
            raise ValueError(
                f"metric {self.metric!r} does not score task kind {self.kind!r}; "
                f"choose one of: {', '.join(allowed)}{did_you_mean(self.metric, allowed)}, "
                "or a function of your own (my_metric.py:score)"
            )
        if self.metric == "execution_match" and not self.database:
            raise ValueError(
                "execution_match runs queries, and there is no database; name one: task.database (a SQLite file, an "
                "SQL script, or `prompt` where each prompt declares its tables)"
            )
        return self

    @property
    def computed_metric(self) -> str:
        """The metric, or where a judge gives it, the one of the kind that is computed: training looks at that."""
        return METRICS_BY_KIND[self.kind][0] if self.metric == "judge" else self.metric

    def beside(self, base_dir: Path) -> TaskConfig:
        """The same, with its paths meant relative to base_dir; the values stay as written."""
        copy = self.model_copy()
        copy._base_dir = base_dir
        return copy

    def path(self, name: str) -> Path:
        """A path of this section in full."""
        return (self._base_dir / Path(name).expanduser()).resolve()

    @property
    def base_dir(self) -> Path:
        """Where commands run: the run file's folder."""
        return self._base_dir.resolve()

    def files(self) -> list[Path]:
        """What scoring reads, there or not: database, schema, metric, and files beside the run file in the command."""
        found = [self.path(self.record_schema)] if self.record_schema else []
        if self.database and self.database != FROM_PROMPT:
            place = self.path(self.database)
            found += sorted(p for p in place.iterdir() if p.is_file()) if place.is_dir() else [place]
        if own := OWN_FUNCTION.fullmatch(self.metric):
            file = self.path(own["file"])
            found += [file, *(p for p in [file.with_suffix(".jsonl")] if p.is_file())]  # what an imported one reads
        named = [self.path(word) for word in self.metric_command.split()]
        return found + [path for path in named if path.is_file() and path.is_relative_to(self.base_dir)]


def did_you_mean(word: str, candidates: Any) -> str:
    """A suggestion to end a message with, or nothing."""
    close = difflib.get_close_matches(str(word), [str(c) for c in candidates], n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
