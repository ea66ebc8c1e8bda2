"""A chat request as a prompt and a form of the answer: messages and tools as training and evaluation had them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...messages import Message, Prompt, ToolCall, tools_text, with_tools
from ...train.tools import PROBE_CALL, PROBE_TOOLS, TemplateRefused, render
from .errors import ApiError
from .fields import (
    MAX_SCHEMA_CHARACTERS,
    AssistantMessage,
    ChatRequest,
    JsonFormat,
    NamedTool,
    SchemaFormat,
    Text,
    ToolMessage,
)
from .text import MARKS

ANY_OBJECT = "{}"
# Keys of a schema that say what else an object may have.
OPEN_BY = {
    "additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames",
    "allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas",
}  # fmt: skip
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
SHARED = ("$defs", "definitions")
LONGEST_OPENING = 40


def text_of(content: Text | None) -> str:
    """Parts joined as rows of training are."""
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def refuse_names(asked: ChatRequest) -> None:
    """Where the template writes authors' names. Raises: ApiError 400.

    Rows are trained without them, so that a prompt with them is one the model was neither trained nor scored on; where
    the template writes none, as nearly all, the prompt is the same with or without.
    """
    for number, turn in enumerate(asked.messages):
        if not isinstance(turn, ToolMessage) and turn.name is not None:
            raise ApiError(
                400,
                f"messages[{number}].name: this model's chat template writes names, and it was trained on rows without "
                "them; leave name out, or put it into the content.",
                param=f"messages[{number}].name",
                code="unsupported_parameter",
            )


def prompt_of(asked: ChatRequest, raw: Mapping[str, Any]) -> Prompt:
    """The messages with the declarations in front; turns of one role that follow each other are one, as in training.

    raw: the request's JSON, whose declarations are shown as they came. Raises: ApiError 400.
    """
    messages: list[Message] = []
    names: dict[str, str] = {}  # of calls, by id
    for number, turn in enumerate(asked.messages):
        where = f"messages[{number}]"
        if isinstance(turn, ToolMessage):
            if turn.tool_call_id not in names:
                raise ApiError(
                    400,
                    f"{where}: a tool's result must follow an assistant's message with the call it answers; no call "
                    f"has the id {turn.tool_call_id[:80]!r}.",
                    param=f"{where}.tool_call_id",
                )
            if turn.name not in (None, names[turn.tool_call_id]):
                raise ApiError(
                    400,
                    f"{where}: name is {turn.name!r}, and the call was of {names[turn.tool_call_id]!r}.",
                    param=f"{where}.name",
                )
            messages.append(Message("tool", text_of(turn.content), tool_call_id=turn.tool_call_id))
            continue
        calls = (turn.tool_calls or ()) if isinstance(turn, AssistantMessage) else ()
        own = tuple(ToolCall(call.function.name, call.function.arguments, call.id) for call in calls)
        names |= {call.id: call.name for call in own}
        role = "system" if turn.role == "developer" else turn.role
        content = text_of(turn.content)
        if messages and messages[-1].role == role:
            before = messages.pop()
            content = "\n".join([before.content, content] if content or not own else [before.content])
            own = before.tool_calls + own
        messages.append(Message(role, content, own))
    return with_tools(messages, declared(asked, raw))


def declared(asked: ChatRequest, raw: Mapping[str, Any]) -> str:
    """Declarations as of an Example; none where no call is wanted."""
    if not asked.tools or asked.tool_choice == "none":
        return ""
    return tools_text(raw["tools"])


def is_strict(asked: ChatRequest) -> bool:
    """Whether a call that the model may make must keep to its schema."""
    may_call = asked.tools is not None and asked.tool_choice != "none" and not asked.is_forced
    return may_call and any(tool.function.strict for tool in asked.tools or ())


def strict_schema(asked: ChatRequest) -> str:
    """JSON schema of one call of any tool, as text. Raises: ApiError 400."""
    return _bounded(json.dumps(call_schema(asked)), "tools")


def call_start(asked: ChatRequest) -> re.Pattern[str]:
    """How a call begins in an answer: by a mark, or as JSON that names a declared function."""
    marks = "|".join(re.escape(mark) for mark in MARKS)
    names = "|".join(re.escape(tool.function.name) for tool in asked.tools or ())
    return re.compile(rf'\s*(?:{marks}|\[?\s*\{{\s*"name"\s*:\s*"(?:{names})")')


def schema_of(asked: ChatRequest) -> str | None:
    """JSON schema that the answer keeps to, as text: of response_format, or of a call that must be made.

    Raises: ApiError 400.
    """
    wanted = asked.response_format
    is_json = isinstance(wanted, (JsonFormat, SchemaFormat))
    if is_json and asked.tools and asked.tool_choice != "none":
        raise ApiError(
            400,
            "An answer is either JSON or may call tools; send response_format or tools, or tool_choice: none.",
            param="response_format",
            code="unsupported_value",
        )
    if asked.is_forced:
        return _bounded(json.dumps(call_schema(asked)), "tools")
    if isinstance(wanted, SchemaFormat):
        return _bounded(json.dumps(wanted.json_schema.schema_), "response_format.json_schema.schema")
    return ANY_OBJECT if isinstance(wanted, JsonFormat) else None


def _bounded(schema: str, param: str) -> str:
    if len(schema) > MAX_SCHEMA_CHARACTERS:
        raise ApiError(
            400, f"The schema has {len(schema):,} characters; {MAX_SCHEMA_CHARACTERS:,} are taken.", param=param
        )
    return schema


def call_schema(asked: ChatRequest) -> dict[str, Any]:
    """JSON schema of one call of a tool that may be called."""
    only = asked.tool_choice.function.name if isinstance(asked.tool_choice, NamedTool) else None
    kinds = []
    for tool in asked.tools or ():
        own = tool.function
        if only in (None, own.name):
            arguments = dict(own.parameters or NO_ARGUMENTS)
            # What a schema refers to stands at its own root.
            shared = {key: arguments.pop(key) for key in SHARED if isinstance(arguments.get(key), dict)}
            if arguments.get("properties") is not None and not OPEN_BY & arguments.keys():
                arguments["additionalProperties"] = False  # a function takes no arguments that it does not declare
            kinds.append((own.name, arguments, shared))
    defs: dict[str, Any] = {}
    for _, _, shared in kinds:
        for key, entries in shared.items():
            for name, entry in entries.items():
                if defs.setdefault(key, {}).setdefault(name, entry) != entry:
                    raise ApiError(400, f"Two tools define {key}/{name} differently; name them apart.", param="tools")
    schemas = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": arguments},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, arguments, _ in kinds
    ]
    return {**(schemas[0] if len(schemas) == 1 else {"anyOf": schemas}), **defs}


def call_opening(tokenizer: Any) -> str:
    """What the chat template writes before the JSON of a call, such as <tool_call>; empty where it writes none."""
    asked, called = Message("user", "a"), Message("assistant", "", (PROBE_CALL,))
    try:
        prompt = render(tokenizer, [asked], PROBE_TOOLS, generation_prompt=True)
        full = render(tokenizer, [asked, called], PROBE_TOOLS, generation_prompt=False)
    except TemplateRefused:
        return ""
    head, found, _ = full.removeprefix(prompt).partition('{"name": "' + PROBE_CALL.name)
    is_short = full.startswith(prompt) and found and len(head) <= LONGEST_OPENING
    return head if is_short else ""


def calls_json(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Calls as an answer has them; their ids are told by the caller."""
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]
