"""Seeds with tools: which tools a new row declares, and what is wrong with the calls a teacher wrote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...messages import Example, read_answer, tools_key


def commonest_tools(seeds: Sequence[Example]) -> str:
    """The declarations of most seeds; empty where most have none."""
    counts = Counter(seed.tools for seed in seeds)
    return counts.most_common(1)[0][0] if counts else ""


def with_same_tools(seeds: Sequence[Example], tools: str) -> list[Example]:
    """The seeds that declare these tools."""
    return [seed for seed in seeds if seed.tools == tools or tools_key(seed.tools) == tools_key(tools)]


def call_problem(answer: str, tools: str) -> tuple[str, str] | None:
    """Code and evidence when a call in an answer cannot be made: an unknown tool, or arguments it does not take."""
    declared: dict[str, Any] = {tool["function"]["name"]: tool["function"] for tool in json.loads(tools or "[]")}
    for call in read_answer(answer, tools).tool_calls:
        if call.name not in declared:
            return "undeclared_tool", f"calls {call.name!r}; declared: {', '.join(sorted(declared))}"
        values, schema = call.values, declared[call.name].get("parameters")
        if not isinstance(values, dict):
            return "bad_tool_arguments", f"arguments of {call.name} are no JSON object: {call.arguments[:80]}"
        properties = schema.get("properties") if isinstance(schema, dict) else None
        if not isinstance(properties, dict):
            continue
        required = schema.get("required", []) if isinstance(schema, dict) else []
        missing = [name for name in required if isinstance(name, str) and name not in values]
        unknown = [name for name in values if name not in properties]
        if missing or unknown:
            what = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(unknown)}, which it does not take"
            return "bad_tool_arguments", f"a call of {call.name} {what}"
    return None
