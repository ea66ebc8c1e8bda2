"""Conversations: messages, tool calls and declarations, and the example everything downstream uses."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

TOOLS = "tools"  # role of the message in front of a prompt that holds the declarations; no row has such a message
CALL_BLOCK = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
CALL_XML = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
CALL_XML_VALUE = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
CALL_START = re.compile(r"\[?\s*\{\s*\"(?:name|type|function|id|arguments|parameters)\"\s*:")
CALL_MARKS = ("<|python_tag|>", "[TOOL_CALLS]")
BETWEEN_CALLS = re.compile(r"[\s,;\[\]]*")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool. arguments: JSON text, of an object unless the row is at fault."""

    name: str
    arguments: str = "{}"
    id: str = ""

    @property
    def values(self) -> Any:
        """The arguments as an object; the text itself where it is no JSON."""
        try:
            return json.loads(self.arguments) if self.arguments.strip() else {}
        except (ValueError, RecursionError):
            return self.arguments

    @property
    def text(self) -> str:
        """The call as calls are compared: one line of JSON, argument names sorted, without the id."""
        name, values = (json.dumps(v, ensure_ascii=False, sort_keys=True) for v in (self.name, self.values))
        return f'{{"name": {name}, "arguments": {values}}}'


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; role is system, user, assistant or tool.

    tool_call_id: of a tool's result, the id of the call it answers.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""

    @property
    def text(self) -> str:
        """What the turn says: its content, then its call on a line of its own; several as a JSON list."""
        if not self.tool_calls:
            return self.content
        calls = [call.text for call in self.tool_calls]
        line = calls[0] if len(calls) == 1 else f"[{', '.join(calls)}]"
        return f"{self.content}\n{line}" if self.content else line


# What a model is asked: messages, with the declarations in front (role TOOLS) where tools are declared.
Prompt = tuple[Message, ...]


def content_id(messages: Sequence[Message], tools: str = "") -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of messages and declarations; ids of calls apart."""
    said: list[Any] = [
        [m.role, m.content, *([[c.text for c in m.tool_calls]] if m.tool_calls else [])] for m in messages
    ]
    text = json.dumps([*([[TOOLS, tools]] if tools else []), *said], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Example:
    """One training or held-out row in the one shape everything downstream uses.

    answer_span: half-open range of message indices that bear loss and are the expected answer.
    line: from 1 in the source file (record number for Parquet and Arrow).
    rejected: of a preference pair the answer that lost; what is learned is in messages.
    desired: whether the answer is one to give, where the row says so (KTO).
    tools: declarations as JSON text, a list as OpenAI's API takes it; empty without any.
    """

    messages: tuple[Message, ...]
    answer_span: tuple[int, int]
    source: str = ""
    line: int = 0
    id: str = ""
    rejected: tuple[Message, ...] = ()
    tools: str = ""
    desired: bool | None = None

    def __post_init__(self) -> None:
        if not self.id:
            beside = [replace(m, role="rejected") for m in self.rejected]
            beside += [Message("undesired", "")] if self.desired is False else []
            object.__setattr__(self, "id", content_id((*self.messages, *beside), self.tools))

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the answer."""
        return self.messages[: self.answer_span[0]]

    @property
    def request(self) -> Prompt:
        """The prompt as a model is asked it: with the declarations."""
        return with_tools(self.prompt, self.tools)

    @property
    def answer(self) -> tuple[Message, ...]:
        """The messages that are the expected answer."""
        return self.messages[slice(*self.answer_span)]

    @property
    def completion(self) -> str:
        """The expected answer as text: that of the answer span, joined by newlines."""
        return "\n".join(m.text for m in self.answer)

    @property
    def user_text(self) -> str:
        """Contents of the prompt's user messages, joined by newlines."""
        return "\n".join(m.content for m in self.prompt if m.role == "user")


def with_tools(messages: Sequence[Message], tools: str) -> Prompt:
    """The messages with declarations in front, where there are any."""
    return (Message(TOOLS, tools), *messages) if tools else tuple(messages)


def split_tools(prompt: Sequence[Message]) -> tuple[str, tuple[Message, ...]]:
    """The inverse of with_tools."""
    if prompt and prompt[0].role == TOOLS:
        return prompt[0].content, tuple(prompt[1:])
    return "", tuple(prompt)


def answered_turns(example: Example) -> list[Message]:
    """The answer as turns that others may follow: a call gets an empty result, without which endpoints refuse them."""
    calls = [call for message in example.answer for call in message.tool_calls]
    if not calls:
        return [Message("assistant", example.completion)]
    return [*example.answer, *(Message("tool", "", tool_call_id=call.id) for call in calls)]


def all_tools(declared: Sequence[str]) -> str:
    """Several rows' declarations as one: each tool once, of those with one name the first."""
    if len(set(declared) - {""}) <= 1:
        return max(declared, default="")
    by_name: dict[str, Any] = {}
    for tools in declared:
        for tool in json.loads(tools or "[]"):
            by_name.setdefault(tool["function"]["name"], tool)
    return tools_text(list(by_name.values()))


@lru_cache(maxsize=1024)
def tools_key(tools: str) -> str:
    """Equal for the same declarations in any order, of tools and of keys."""
    return json.dumps(sorted(json.dumps(t, ensure_ascii=False, sort_keys=True) for t in json.loads(tools or "[]")))


def turns_of(messages: Sequence[Message], *, as_text: bool) -> list[dict[str, Any]]:
    """Messages as OpenAI's API and chat templates take them.

    as_text: arguments as JSON text (the API), else as objects (templates). Calls are numbered anew, with ids of nine
    letters and digits, which every template and API takes; a result without an id answers the first call that is open.
    """
    turns: list[dict[str, Any]] = []
    new_ids: dict[str, str] = {}
    names: dict[str, str] = {}
    open_ids: list[str] = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            turn["tool_calls"] = []
            turn["content"] = message.content or (None if as_text else "")
        for call in message.tool_calls:
            number = f"call{len(names) + 1:05}"
            new_ids[call.id or number], names[number] = number, call.name
            open_ids.append(number)
            function = {"name": call.name, "arguments": call.arguments if as_text else call.values}
            turn["tool_calls"].append({"id": number, "type": "function", "function": function})
        if message.role == "tool":
            answered = new_ids.get(message.tool_call_id) or (open_ids[0] if open_ids else "call00000")
            if answered in open_ids:
                open_ids.remove(answered)
            turn["tool_call_id"] = answered
            if answered in names and not as_text:
                turn["name"] = names[answered]
        turns.append(turn)
    return turns


def call_of(value: Any) -> ToolCall | None:
    """A tool call in any of its usual forms: {"name", "arguments" or "parameters"}, or that under "function"."""
    if not isinstance(value, dict):
        return None
    body = value.get("function", value)
    if not isinstance(body, dict) or not isinstance(body.get("name"), str):
        return None
    arguments = body.get("arguments", body.get("parameters", {}))
    text = (
        arguments
        if isinstance(arguments, str)
        else json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    )
    return ToolCall(body["name"], text, str(value.get("id") or ""))


def read_answer(text: str, tools: str) -> Message:
    """An answer a model wrote as text, with its calls taken out of it. tools: declared, as of an Example.

    Read are <tool_call> blocks (Hermes, Qwen) and calls as JSON at the end (Llama, Mistral, Message.text). What is
    neither is the content, as it stands; without declarations nothing is taken for a call.
    """
    if not tools:
        return Message("assistant", text)
    blocks = [_calls_to_end(block, 0) or _calls_in_xml(block, tools) for block in CALL_BLOCK.findall(text)]
    if blocks and all(blocks):
        calls = tuple(call for block in blocks for call in block or ())
        return Message("assistant", CALL_BLOCK.sub("", text).strip(), calls)
    for match in CALL_START.finditer(text):
        found = _calls_to_end(text, match.start())
        if found:
            head = text[: match.start()].strip()
            for mark in CALL_MARKS:
                head = head.removesuffix(mark).strip()
            return Message("assistant", head, tuple(found))
    return Message("assistant", text)


def _calls_to_end(text: str, position: int) -> list[ToolCall] | None:
    """The calls that fill text from position on; None where anything else stands there."""
    decoder = json.JSONDecoder()
    found: list[ToolCall] = []
    while True:
        match = BETWEEN_CALLS.match(text, position)
        position = match.end() if match else position
        if position == len(text):
            return found
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            return None
        call = call_of(value)
        if call is None or ("name" in value and not {"arguments", "parameters"} & value.keys()):
            return None
        found.append(call)


def _calls_in_xml(text: str, tools: str) -> list[ToolCall]:
    """Calls as Qwen3.5 writes them; a value that is declared as a string is one, else it is read as JSON."""
    declared = {tool["function"]["name"]: tool["function"].get("parameters") for tool in json.loads(tools)}
    found = []
    for name, body in CALL_XML.findall(text):
        schema = declared.get(name)
        properties = schema.get("properties") if isinstance(schema, dict) else None
        values: dict[str, Any] = {}
        for key, value in CALL_XML_VALUE.findall(body):
            about = properties.get(key) if isinstance(properties, dict) else None
            is_text = isinstance(about, dict) and about.get("type") == "string"
            try:
                values[key] = value if is_text else json.loads(value)
            except (ValueError, RecursionError):
                values[key] = value
        found.append(ToolCall(name, json.dumps(values, ensure_ascii=False)))
    return found


def message_to_json(message: Message) -> dict[str, Any]:
    """A message in OpenAI's form, with only the keys it needs."""
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        row["tool_calls"] = [
            {
                **({"id": c.id} if c.id else {}),
                "type": "function",
                "function": {"name": c.name, "arguments": c.arguments},
            }
            for c in message.tool_calls
        ]
    if message.tool_call_id:
        row["tool_call_id"] = message.tool_call_id
    return row


def message_from_json(row: dict[str, Any]) -> Message:
    """The inverse of message_to_json."""
    calls = [call_of(call) for call in row.get("tool_calls", ())]
    return Message(row["role"], row["content"], tuple(c for c in calls if c), row.get("tool_call_id", ""))


def example_to_json(example: Example) -> dict[str, Any]:
    """An Example as the files of curation hold it: `rejected`, `label` and `tools` only where there are any."""
    row: dict[str, Any] = {
        "messages": [message_to_json(m) for m in example.messages],
        "answer_span": list(example.answer_span),
        "source": example.source,
        "line": example.line,
        "id": example.id,
    }
    if example.rejected:
        row["rejected"] = [message_to_json(m) for m in example.rejected]
    if example.desired is not None:
        row["label"] = example.desired
    if example.tools:
        row["tools"] = json.loads(example.tools)
    return row


def example_from_json(row: dict[str, Any]) -> Example:
    """The inverse of example_to_json."""
    return Example(
        messages=tuple(message_from_json(m) for m in row["messages"]),
        answer_span=(row["answer_span"][0], row["answer_span"][1]),
        source=row.get("source", ""),
        line=row.get("line", 0),
        id=row.get("id", ""),
        rejected=tuple(message_from_json(m) for m in row.get("rejected", ())),
        desired=row.get("label"),
        tools=tools_text(row["tools"]) if row.get("tools") else "",
    )


def tools_text(tools: list[Any]) -> str:
    """Declarations as an Example holds them."""
    return json.dumps(tools, ensure_ascii=False)
