"""Conversations to examples: roles, parts, tool calls, and one example an assistant turn."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..messages import Message, ToolCall, call_of, tools_text

USUAL_ROLES = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system",
    "developer": "system", "tool": "tool", "function": "tool", "function_call": "assistant", "observation": "tool",
}  # fmt: skip
ROLES = USUAL_ROLES | {
    "prompter": "user", "instruction": "user", "question": "user", "customer": "user",
    "model": "assistant", "bot": "assistant", "chatgpt": "assistant", "ai": "assistant", "bing": "assistant",
    "bard": "assistant", "tool_call": "assistant", "answer": "assistant", "agent": "assistant",
    "function_response": "tool", "tool_response": "tool", "ipython": "tool",
}  # fmt: skip

CALL_ROLES = ("function_call", "tool_call")  # of ShareGPT turns that hold nothing but calls

Turns = list[tuple[tuple[Message, ...], tuple[int, int]]]


class RowFault(Exception):
    """This row cannot become an example."""

    def __init__(self, code: str, evidence: str):
        super().__init__(evidence)
        self.code, self.evidence = code, evidence


@dataclass(frozen=True, slots=True)
class Notice:
    """Something repaired or odd in a row that is kept. once: said once a file."""

    code: str
    evidence: str
    repair: str
    once: bool = False


def as_text(value: Any) -> str:
    """The text a model reads or writes: objects and lists as JSON, numbers as written, missing as empty."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def as_list(value: Any) -> Any:
    """A list of turns, also when it stands as JSON text; what is no list stays as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def conversation(turns: list[Any], head: list[Message], *, only_last: bool, notices: list[Notice]) -> Turns:
    """One example an assistant turn, each with the turns before it as prompt.

    Raises: RowFault.
    """
    messages: list[Message] = []
    answers: list[int] = []  # indices of assistant messages that bear loss
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise RowFault("not_messages", f"turn {number} is no object but {type(turn).__name__}")
        role = _role(turn, number, notices)
        content, calls = _content(turn, number)
        if messages and messages[-1].role == role and role != "tool":
            what = f"turns {number - 1} and {number} are both {role}; joined"
            notices.append(Notice("consecutive_roles", what, "safe"))
            before = messages[-1]
            parts = [before.content, content] if content or not calls else [before.content]
            messages[-1] = replace(before, content="\n".join(parts), tool_calls=before.tool_calls + calls)
            continue
        if role == "system" and messages:
            notices.append(Notice("system_not_first", f"turn {number} is a system message", "ask"))
        if not content.strip() and not calls and role != "system" and number < len(turns):
            notices.append(Notice("empty_turn", f"turn {number} ({role}) is empty", "ask"))
        answered = as_text(turn.get("tool_call_id")) if role == "tool" else ""
        messages.append(Message(role, content, calls, answered))
        weight = turn.get("weight", 1)
        if weight not in (0, 1):
            notices.append(Notice("bad_weight", f"turn {number} has weight {weight!r}; read as 1", "ask"))
        if role == "assistant" and weight != 0:
            answers.append(len(messages) - 1)
    if not answers:
        raise RowFault("no_assistant", f"no assistant turn to learn among {len(turns)} turns")
    if answers[-1] < len(messages) - 1 and messages[-1].role in ("user", "tool"):
        what = "the turns after the last assistant turn have no answer; unused"
        notices.append(Notice("ends_without_answer", what, "safe"))
    if head and messages[0].role != "system":
        messages = [*head, *messages]
        answers = [i + len(head) for i in answers]
    chosen = answers[-1:] if only_last else answers
    return [(tuple(messages[: i + 1]), (i, i + 1)) for i in chosen]


def _role(turn: dict[str, Any], number: int, notices: list[Notice]) -> str:
    raw = turn.get("role", turn.get("from"))
    name = str(raw).strip().lower()
    role = ROLES.get(name)
    if role is None:
        what = "has no role" if raw is None else f"has the unknown role {raw!r}"
        raise RowFault("unknown_role", f"turn {number} {what}; known: system, user, assistant, tool")
    if name not in USUAL_ROLES or raw != name:
        notices.append(Notice("role_alias", f"role {raw!r} is read as {role}", "safe", True))
    return role


def _content(turn: dict[str, Any], number: int) -> tuple[str, tuple[ToolCall, ...]]:
    """Text and tool calls of a turn; what is no call that can be read stays text."""
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        parts: list[str] = []
        for part in content:
            if isinstance(part, str):
                parts.append(part)
            elif isinstance(part, dict) and isinstance(part.get("text"), str):
                parts.append(part["text"])
            else:
                kind = part.get("type", "unknown") if isinstance(part, dict) else type(part).__name__
                raise RowFault("not_text", f"turn {number} holds a part of type {kind!r}; only text is trained on")
        content = "".join(parts)
    if _is_call_turn(turn):
        held = _loaded(content)
        read = [call_of(value) for value in (held if isinstance(held, list) else [held])]
        return ("", tuple(c for c in read if c)) if read and all(read) else (as_text(content), ())
    calls = _calls_of(turn)
    if calls:
        read = [call_of(call) for call in calls]
        if all(read):
            return as_text(content), tuple(c for c in read if c)
        return "\n".join([*([as_text(content)] if content else []), *(as_text(call) for call in calls)]), ()
    return as_text(content), ()


def _is_call_turn(turn: dict[str, Any]) -> bool:
    return str(turn.get("from", turn.get("role"))).strip().lower() in CALL_ROLES


def _calls_of(turn: dict[str, Any]) -> list[Any]:
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    return calls if isinstance(calls, list) else [calls]


def check_tools(turns: list[Any], declared: str) -> Iterator[Notice]:
    """What is wrong with the tool calls and results of a conversation. declared: the row's tools, empty without any."""
    names = _tool_names(declared) if declared else None
    call_ids: set[Any] = set()
    num_calls = 0
    for number, turn in enumerate(turns, 1):
        role = ROLES.get(str(turn.get("role", turn.get("from"))).strip().lower())
        calls = _calls_of(turn)
        if _is_call_turn(turn):
            held = _loaded(turn.get("value", turn.get("content")))
            calls = held if isinstance(held, list) else [held]
        for call in calls:
            num_calls += 1
            body = call.get("function", call) if isinstance(call, dict) else None
            if not isinstance(body, dict) or not isinstance(body.get("name"), str):
                shown = as_text(call)[:80]
                yield Notice("bad_tool_arguments", f"turn {number}: the call is no object with a name: {shown}", "ask")
                continue
            if isinstance(call, dict) and call.get("id") is not None:
                call_ids.add(str(call["id"]))
            arguments = body.get("arguments", body.get("parameters", {}))
            if not isinstance(_loaded(arguments), dict):
                shown = as_text(arguments)[:80]
                yield Notice("bad_tool_arguments", f"turn {number}: arguments are no JSON object: {shown}", "ask")
            if names is not None and body["name"] not in names:
                known = ", ".join(sorted(names)) or "none"
                yield Notice("undeclared_tool", f"turn {number} calls {body['name']!r}; declared: {known}", "ask")
        if role == "tool":
            wanted = turn.get("tool_call_id")
            if not num_calls or (wanted is not None and call_ids and str(wanted) not in call_ids):
                what = f"turn {number} answers call {wanted!r}, which was not made" if num_calls else ""
                yield Notice("tool_result_without_call", what or f"turn {number} answers no call", "ask")


def _loaded(value: Any) -> Any:
    """JSON text as what it holds; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else {}
    except (ValueError, RecursionError):
        return value


def declarations(declared: Any, notices: list[Notice]) -> str:
    """A row's tools as an Example holds them, in OpenAI's form; what declares no named function is left aside."""
    tools = _loaded(declared)
    found: list[Any] = []
    for tool in tools if isinstance(tools, list) else [tools]:
        body = tool.get("function", tool) if isinstance(tool, dict) else None
        if isinstance(body, dict) and isinstance(body.get("name"), str):
            found.append(tool if "function" in tool else {"type": "function", "function": tool})
        else:
            what = f"no declaration of a function with a name; left aside: {as_text(tool)[:120]}"
            notices.append(Notice("bad_tool_declaration", what, "ask"))
    return tools_text(found) if found else ""


def _tool_names(declared: str) -> set[str]:
    return {tool["function"]["name"] for tool in json.loads(declared)}
