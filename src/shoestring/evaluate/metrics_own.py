"""A metric of the user's own: a function of a Python file, or a command that reads and writes JSON lines.

Both are given what the run's other metrics see, a row at a time: id, prompt, messages, tools, expected, output.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError, DataError
from ..messages import Example, message_to_json
from ..task import OWN_FUNCTION, TaskConfig

BASE_S, ROW_S = 60.0, 10.0  # a command may take so long, and so long for each row

Score = tuple[float, str | None]


def own_scores(task: TaskConfig, examples: Sequence[Example], outputs: Sequence[str]) -> list[Score]:
    """Score and failure of each row. Raises: ConfigError, DataError naming the row and what the metric said."""
    rows = [_row(example, output) for example, output in zip(examples, outputs, strict=True)]
    if task.metric_command:
        said = _by_command(task, rows, examples)
    else:
        said = _by_function(task, rows, examples)
    return [_score(task, value, example) for value, example in zip(said, examples, strict=True)]


def _row(example: Example, output: str) -> dict[str, Any]:
    return {
        "id": example.id,
        "prompt": example.user_text,
        "messages": [message_to_json(message) for message in example.prompt],
        **({"tools": json.loads(example.tools)} if example.tools else {}),
        "expected": example.completion,
        "output": output,
    }


def _by_function(task: TaskConfig, rows: list[dict[str, Any]], examples: Sequence[Example]) -> list[Any]:
    own = OWN_FUNCTION.fullmatch(task.metric)
    assert own, task.metric
    path = task.path(own["file"])
    spec = importlib.util.spec_from_file_location(f"shoestring_metric_{path.stem}", path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    found = []
    with contextlib.redirect_stdout(sys.stderr):  # standard output is the command line's
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise ConfigError(f"task.metric: {path} cannot be imported: {type(error).__name__}: {error}") from error
        function = getattr(module, own["name"], None)
        if not callable(function):
            raise ConfigError(f"task.metric: {path} has no function {own['name']!r}")
        for row, example in zip(rows, examples, strict=True):
            try:
                found.append(function(row))
            except Exception as error:
                raise DataError(f"{_place(task, example)}: {type(error).__name__}: {error}") from error
    return found


def _by_command(task: TaskConfig, rows: list[dict[str, Any]], examples: Sequence[Example]) -> list[Any]:
    limit_s = BASE_S + ROW_S * len(rows)
    sent = "".join(json.dumps(row) + "\n" for row in rows)
    try:
        done = subprocess.run(
            shlex.split(task.metric_command), input=sent, capture_output=True, text=True, encoding="utf-8",
            timeout=limit_s, cwd=task.base_dir, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DataError(
            f"task.metric_command {task.metric_command!r} took more than {limit_s:.0f} s for {len(rows)} rows; it is "
            "to read JSON lines until the end of its input and to answer each with a line"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"task.metric_command {task.metric_command!r} cannot be run: {error}") from error
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    last = " | ".join(done.stderr.strip().splitlines()[-3:]) or "it said nothing on standard error"
    if done.returncode:
        at = f"; it answered {len(lines)} of {len(rows)} rows, the next is {_place(task, examples[len(lines)])}"
        raise DataError(
            f"task.metric_command {task.metric_command!r} ended with status {done.returncode}: {last}"
            f"{at if len(lines) < len(rows) else ''}"
        )
    if len(lines) != len(rows):
        raise DataError(
            f"task.metric_command {task.metric_command!r} answered {len(lines)} lines to {len(rows)} rows: one JSON "
            f"line a row, in order ({last})"
        )
    found = []
    for line, example in zip(lines, examples, strict=True):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise DataError(f"{_place(task, example)}: {line[:80]!r} is no JSON") from None
    return found


def _score(task: TaskConfig, said: Any, example: Example) -> Score:
    failure = said.get("failure") if isinstance(said, dict) else None
    value = said.get("score") if isinstance(said, dict) else said
    if isinstance(value, bool):
        value = float(value)
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise DataError(
            f"{_place(task, example)}: it gave {str(said)[:80]!r}; a score is a number from 0 to 1, or an object with "
            "one under score"
        )
    return float(value), None if failure is None else str(failure)


def _place(task: TaskConfig, example: Example) -> str:
    return f"{task.metric_command or task.metric} on row {example.source}:{example.line} (id {example.id})"
