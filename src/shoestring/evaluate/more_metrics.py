"""Metrics that need more than two texts: a database, a schema, declared tools, other rows, a function of the user's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec

from ..errors import DataError
from ..messages import Example
from ..task import COMMAND, OWN_FUNCTION, TaskConfig
from .metrics import Scored, parse_json
from .metrics_json import schema_fault, score_calls, validator
from .metrics_math import math_equal
from .metrics_own import own_scores
from .metrics_slots import Slots
from .metrics_sql import Databases, ast_match

# What a metric needs installed, and the extra that brings it.
NEEDS = {
    "ast_match": ("sqlglot", "sql"),
    "math_equal": ("math_verify", "math"),
    "schema_valid": ("jsonschema", "schema"),
}
MAX_FAULTS_TOLD = 5

Values = tuple[dict[str, float], str | None]


def add_values(
    task: TaskConfig, examples: Sequence[Example], outputs: Sequence[str], scored: list[Scored], only: str = ""
) -> list[Scored]:
    """The scores of rows with those of further metrics: all that apply, or one.

    A metric whose package is missing is left out, unless it is the task's: `left_out` names it.
    Raises: DataError naming rows, ConfigError, MissingDependency.
    """
    for score in _scorers(task, examples, only):
        faults = []
        for i, (example, output) in enumerate(zip(examples, outputs, strict=True)):
            try:
                values, failure = score(example, output)
            except DataError as error:
                faults.append(f"{example.source}:{example.line}: {error}")
                continue
            scored[i] = replace(scored[i], values={**scored[i].values, **values}, failure=scored[i].failure or failure)
        if faults:
            more = f" (and {len(faults) - MAX_FAULTS_TOLD} more rows)" if len(faults) > MAX_FAULTS_TOLD else ""
            raise DataError("; ".join(faults[:MAX_FAULTS_TOLD]) + more)
    if task.metric == COMMAND or OWN_FUNCTION.fullmatch(task.metric):
        own = own_scores(task, examples, outputs)
        return [
            replace(row, values={**row.values, task.metric: value}, failure=failure or row.failure)
            for row, (value, failure) in zip(scored, own, strict=True)
        ]
    return scored


def left_out(task: TaskConfig) -> dict[str, str]:
    """Metrics of the kind that are not measured here, with what they need."""
    of_kind = {"sql": "ast_match", "math": "math_equal", "extract": "schema_valid"}.get(task.kind)
    return {of_kind: f"pip install 'shoestring[{NEEDS[of_kind][1]}]'"} if of_kind and not _is_there(of_kind) else {}


@functools.cache
def _is_there(metric: str) -> bool:
    return find_spec(NEEDS[metric][0]) is not None


def _scorers(task: TaskConfig, examples: Sequence[Example], only: str) -> list[Callable[[Example, str], Values]]:
    def wanted(*metrics: str) -> bool:
        return (not only or only in metrics) and (
            task.metric in metrics or all(metric not in NEEDS or _is_there(metric) for metric in metrics)
        )

    found: list[Callable[[Example, str], Values]] = []
    if task.kind == "sql" and task.database and wanted("execution_match"):
        found.append(functools.partial(_by_execution, Databases(task)))
    if task.kind == "sql" and wanted("ast_match"):
        found.append(functools.partial(_or_as_text, "ast_match", ast_match, task.metric == "ast_match"))
    if task.kind == "math" and wanted("math_equal"):
        found.append(functools.partial(_or_as_text, "math_equal", math_equal, task.metric == "math_equal"))
    if task.kind == "extract" and wanted("schema_valid"):
        records = [parse_json(example.completion.strip(), kind) for example in examples for kind in _kind(example)]
        path = task.path(task.record_schema) if task.record_schema else None
        found.append(functools.partial(_by_schema, validator(path, records)))
    if task.kind in ("generate", "chat"):
        has_calls = any(e.tools or any(m.tool_calls for m in e.answer) for e in examples)
        if (has_calls or task.metric in ("call_exact", "call_f1")) and wanted("call_exact", "call_f1"):
            found.append(score_calls)
    if task.kind == "generate" and wanted("slot_match"):
        slots = Slots(examples)
        if slots.has_slots or task.metric == "slot_match":
            found.append(functools.partial(_by_slots, slots))
    return found


def _kind(example: Example) -> tuple[type, ...]:
    return (list,) if example.completion.lstrip().startswith("[") else (dict,)


def _by_execution(databases: Databases, example: Example, output: str) -> Values:
    is_same, fault, is_telling = databases.match(
        example.completion, output, "\n".join(m.content for m in example.prompt)
    )
    return {"execution_match": float(is_same), "expected_empty_frac": float(not is_telling)}, fault


def _by_schema(checker: object, example: Example, output: str) -> Values:
    fault = schema_fault(checker, output, _kind(example)[0])
    return {"schema_valid": float(fault is None)}, fault


def _by_slots(slots: Slots, example: Example, output: str) -> Values:
    value, fault = slots.match(example, output)
    return {"slot_match": value}, fault


def _or_as_text(
    metric: str,
    match: Callable[[str, str], tuple[bool, str | None]],
    is_asked: bool,
    example: Example,
    output: str,
) -> Values:
    """A match beside the task's own metric does not end the scoring where the expected answer cannot be read."""
    try:
        is_same, fault = match(example.completion, output)
    except DataError:
        if is_asked:
            raise
        is_same, fault = example.completion.strip() == output.strip(), None
    return {metric: float(is_same)}, fault if is_asked else None
