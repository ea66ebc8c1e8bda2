"""Conversations under a chat template; tool declarations and calls in our own form where it has no place for them.

Our own form is that of Hermes and Qwen: declarations between <tools> tags in the system message, a call between
<tool_call> tags in the assistant's turn, a result between <tool_response> tags in a user turn.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ModelError
from ..messages import Message, ToolCall, tools_text, turns_of
from .locate import first_line

DECLARED = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{tools}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML "
    'tags:\n<tool_call>\n{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)
PROBE_CALL = ToolCall("probe_of_tools", '{"probe_of_arguments": "probe_of_values"}')
PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": PROBE_CALL.name,
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}


PROBE_TOOLS = tools_text([PROBE_TOOL])


class TemplateRefused(ModelError):
    """The chat template cannot carry this conversation; others it may."""


@dataclass(frozen=True, slots=True)
class ToolForm:
    """Whether a chat template has a place for declarations, and for calls."""

    shows_tools: bool
    shows_calls: bool


_FORMS: dict[str, ToolForm] = {}  # by chat template


def is_own_form(tokenizer: Any, tools: str) -> bool:
    """Whether calls and results are written in our own form: the template shows none, or not our declarations."""
    form = tool_form(tokenizer, is_declared=bool(tools))
    return not form.shows_calls or (bool(tools) and not form.shows_tools)


def tool_form(tokenizer: Any, *, is_declared: bool = True) -> ToolForm:
    """What the tokenizer's template shows of a declaration and of a call, found by trying.

    is_declared: whether the conversation declares tools; some tokenizers have another template for those.
    """
    key = f"{is_declared}{tokenizer.chat_template!r}"
    if key not in _FORMS:
        asked = Message("user", "a")
        called = Message("assistant", "", (PROBE_CALL,))
        tools = [PROBE_TOOL] if is_declared else []
        _FORMS[key] = ToolForm(
            shows_tools=PROBE_CALL.name in _tried(tokenizer, [asked], tools),
            shows_calls="probe_of_values" in _tried(tokenizer, [asked, called], tools),
        )
    return _FORMS[key]


def shows_names(tokenizer: Any) -> bool:
    """Whether the template writes the name of a system message's, a user's or an answer's author, found by trying."""
    name = "probe_of_names"
    turns = [{"role": role, "content": "a", "name": name} for role in ("system", "user", "assistant", "user")]
    for tried in (turns, turns[1:]):  # some templates refuse a system message
        with contextlib.suppress(TemplateRefused):
            return name in _applied(tokenizer, tried, [], generation_prompt=False)
    return False


def _tried(tokenizer: Any, messages: Sequence[Message], tools: list[Any]) -> str:
    try:
        return _applied(tokenizer, turns_of(messages, as_text=False), tools, generation_prompt=False)
    except TemplateRefused:
        return ""


def _applied(tokenizer: Any, turns: list[dict[str, Any]], tools: list[Any], *, generation_prompt: bool) -> str:
    """Rendered text. Thinking is switched off where the template knows the switch. Raises: TemplateRefused."""
    from jinja2.exceptions import TemplateError

    options = {"tokenize": False, "add_generation_prompt": generation_prompt, "enable_thinking": False}
    try:
        return str(tokenizer.apply_chat_template(turns, tools=tools or None, **options))
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:  # a template is its author's code
        roles = [turn["role"] for turn in turns]
        raise TemplateRefused(f"the chat template refuses roles {roles}: {first_line(error)}") from error


def render(tokenizer: Any, messages: Sequence[Message], tools: str, *, generation_prompt: bool) -> str:
    """The conversation as the template's text. tools: as of an Example. Raises: TemplateRefused."""
    if any(m.tool_calls or m.role == "tool" for m in messages) and is_own_form(tokenizer, tools):
        messages = _in_own_form(messages)
    declared = json.loads(tools) if tools else []
    if declared and not tool_form(tokenizer).shows_tools:
        messages, declared = _with_system(messages, declaration_text(declared)), []
    turns = turns_of(messages, as_text=False)
    try:
        return _applied(tokenizer, turns, declared, generation_prompt=generation_prompt)
    except TemplateRefused as refused:
        if len(turns) < 2 or turns[0]["role"] != "system":
            raise
        # Templates without a system role (Gemma): the system text goes before the first user turn.
        turns = [{**turns[1], "content": turns[0]["content"] + "\n\n" + turns[1]["content"]}, *turns[2:]]
        try:
            return _applied(tokenizer, turns, declared, generation_prompt=generation_prompt)
        except TemplateRefused:
            raise refused from None


def declaration_text(tools: Sequence[Any]) -> str:
    """Declarations as our own form writes them into the system message."""
    return DECLARED.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))


def own_text(message: Message) -> str:
    """An assistant's turn in our own form: the content, then each call in its tags."""
    calls = [f"<tool_call>\n{_call_text(call)}\n</tool_call>" for call in message.tool_calls]
    return "\n".join([*([message.content] if message.content else []), *calls])


def _call_text(call: ToolCall) -> str:
    return json.dumps({"name": call.name, "arguments": call.values}, ensure_ascii=False)


def _in_own_form(messages: Sequence[Message]) -> list[Message]:
    """Calls as text, results as user turns; results that follow each other in one turn."""
    out: list[Message] = []
    for at, message in enumerate(messages):
        if message.role != "tool":
            out.append(Message(message.role, own_text(message)))
            continue
        text = f"<tool_response>\n{message.content}\n</tool_response>"
        if at and messages[at - 1].role == "tool":
            out[-1] = replace(out[-1], content=f"{out[-1].content}\n{text}")
        else:
            out.append(Message("user", text))
    return out


def _with_system(messages: Sequence[Message], text: str) -> list[Message]:
    """The messages with text at the end of their system message."""
    if messages and messages[0].role == "system":
        return [replace(messages[0], content=f"{messages[0].content}\n\n{text}"), *messages[1:]]
    return [Message("system", text), *messages]
