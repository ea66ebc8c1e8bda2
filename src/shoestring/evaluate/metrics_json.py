"""JSON answers beyond their leaves: whether a record keeps to its schema, and whether tool calls are the right ones."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, require
from ..messages import Example, ToolCall, read_answer
from .metrics import matching_leaves, num_leaves, parse_json

_TYPES = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}


def validator(path: Path | None, expected: Sequence[Any]) -> Any:
    """What checks records: the JSON Schema of a file, or without one what the expected records have in common.

    Raises: ConfigError, MissingDependency.
    """
    jsonschema = require("jsonschema", extra="schema", purpose="checking records against a schema")
    if path is None:
        return jsonschema.Draft202012Validator(common_schema(expected))
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except (OSError, ValueError, jsonschema.SchemaError) as error:
        raise ConfigError(f"task.record_schema: {path} is no JSON Schema: {str(error).splitlines()[0]}") from error
    return kind(schema)


def schema_fault(checker: Any, output: str, kind: type) -> str | None:
    """The first place where an output breaks the schema, None where it keeps to it."""
    record = parse_json(output.strip(), kind)
    if record is None:
        return "no JSON in the output"
    try:
        fault = next(iter(checker.iter_errors(record)), None)
    except RecursionError:
        return "nested too deep"
    return None if fault is None else f"{fault.json_path}: {fault.message[:120]}"


def common_schema(records: Sequence[Any]) -> dict[str, Any]:
    """A JSON Schema that all records keep to: types by place; a field that is in every object is required.

    Fields that no record has are refused.
    """
    types = sorted({_TYPES.get(type(record), "null") for record in records})
    schema: dict[str, Any] = {"type": types}
    objects = [record for record in records if isinstance(record, dict)]
    if objects:
        keys = list(dict.fromkeys(key for record in objects for key in record))
        schema["properties"] = {
            key: common_schema([record[key] for record in objects if key in record]) for key in keys
        }
        schema["required"] = [key for key in keys if all(key in record for record in objects)]
        schema["additionalProperties"] = False
    items = [item for record in records if isinstance(record, list) for item in record]
    if items:
        schema["items"] = common_schema(items)
    return schema


def score_calls(example: Example, output: str) -> tuple[dict[str, float], str | None]:
    """call_exact and call_f1 of one row, and what is wrong with the calls as such.

    call_exact: as many calls, in the same order, of the same names with equal arguments. call_f1: F1 over names and
    argument leaves, calls aligned whatever their order. A row without expected calls is right where none is made.
    """
    expected = [call for message in example.answer for call in message.tool_calls]
    # Without declarations nothing is read as a call; the expected ones are then what is declared.
    tools = example.tools or json.dumps([{"function": {"name": call.name}} for call in expected])
    made = list(read_answer(output, tools).tool_calls)
    wanted, found = [_as_value(call) for call in expected], [_as_value(call) for call in made]
    fault = next((f for call in made if (f := call_fault(call, example.tools))), None)
    if not expected or not made:
        right = float(not expected and not made)
        missing = "no call in the output" if expected else "a call where none is expected" if made else None
        return {"call_exact": right, "call_f1": right}, fault or missing
    is_exact = len(expected) == len(made) and all(
        num_leaves(a) == num_leaves(b) == matching_leaves(a, b) for a, b in zip(wanted, found, strict=True)
    )
    f1 = 2 * matching_leaves(wanted, found) / (num_leaves(wanted) + num_leaves(found))
    return {"call_exact": float(is_exact), "call_f1": f1}, fault


def _as_value(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": call.values}


def call_fault(call: ToolCall, tools: str) -> str | None:
    """Why a call cannot be carried out: no such tool, arguments that are no object, a required one missing."""
    if not isinstance(call.values, dict):
        return f"arguments of {call.name} are no JSON object"
    if not tools:
        return None
    declared = _parameters(tools)
    if call.name not in declared:
        return f"calls {call.name!r}, which is not declared"
    required = declared[call.name].get("required", [])
    missing = [name for name in required if name not in call.values] if isinstance(required, list) else []
    return f"{call.name} lacks {', '.join(missing)}" if missing else None


@functools.lru_cache(maxsize=1024)
def _parameters(tools: str) -> dict[str, dict[str, Any]]:
    functions = [tool["function"] for tool in json.loads(tools)]
    return {f["name"]: f.get("parameters") if isinstance(f.get("parameters"), dict) else {} for f in functions}
