"""Row shapes (Alpaca, prompt/completion and its kin, OpenAI messages, ShareGPT) to messages and answer spans."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from ..config import FieldsConfig
from ..records import Message

# In order of preference; compared without case.
PROMPT_KEYS = (
    "instruction", "prompt", "question", "query", "input", "text", "utterance", "sentence", "ticket", "email",
    "document", "article", "source", "content", "message", "body", "request", "review", "comment", "tweet", "problem",
    "user_input", "mr", "user",
)  # fmt: skip
ANSWER_KEYS = (
    "completion", "output", "response", "answer", "target", "label_text", "label", "category", "intent", "class",
    "labels", "sql", "summary", "json", "record", "expected", "expected_output", "highlights", "ref", "reference",
    "sentiment", "topic", "emotion", "solution", "reply", "translation", "assistant",
)  # fmt: skip
CONTEXT_KEYS = ("input", "context", "schema")  # follow an instruction or a question
SYSTEM_KEYS = ("system", "system_prompt")
MESSAGES_KEYS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns")
ROLES = {
    "user": "user", "human": "user", "prompter": "user", "instruction": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "ai": "assistant", "bing": "assistant", "bard": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "system": "system", "developer": "system",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
}  # fmt: skip
NO_INPUT = re.compile(r"\W*no ?input(?: (?:required|needed|provided))?\W*", re.IGNORECASE)

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


@dataclass(frozen=True, slots=True)
class Shape:
    """Where the parts of a row are. kind: pair, alpaca, messages, sharegpt, preference."""

    kind: str
    prompt: str | None = None
    context: str | None = None
    answer: str | None = None
    system: str | None = None
    messages: str | None = None
    chosen: str | None = None

    def describe(self) -> str:
        keys = [k for k in (self.system, self.messages, self.prompt, self.context, self.answer, self.chosen) if k]
        return f"{self.kind} ({', '.join(keys)})"


def known_key(name: str) -> bool:
    """Whether a column name is one we know the meaning of."""
    return name.strip().lower() in {*PROMPT_KEYS, *ANSWER_KEYS, *CONTEXT_KEYS, *SYSTEM_KEYS, *MESSAGES_KEYS}


def shape_of(row: dict[str, Any], fields: FieldsConfig) -> Shape | None:
    """The shape of a row by its keys; None when no prompt or no answer key is recognised."""
    keys = {str(k).strip().lower(): k for k in reversed(list(row))}

    def pick(candidates: tuple[str, ...], *taken: str | None) -> str | None:
        return next((keys[c] for c in candidates if c in keys and keys[c] not in taken), None)

    def asked(name: str | None) -> str | None:
        return name if name in row else None

    wanted = (fields.prompt, fields.completion, fields.messages)
    if any(name and name not in row for name in wanted):
        return None
    system = asked(fields.system) if fields.system else pick(SYSTEM_KEYS, fields.prompt, fields.completion)
    messages = fields.messages or (None if fields.prompt or fields.completion else pick(MESSAGES_KEYS))
    if messages and _is_conversation(row[messages]):
        if "chosen" in keys and "rejected" in keys:
            return Shape("preference", system=system, messages=messages, chosen=keys["chosen"])
        return Shape("sharegpt" if _has_from(row[messages]) else "messages", system=system, messages=messages)
    if fields.messages:
        return Shape("messages", system=system, messages=messages)
    if "chosen" in keys and "rejected" in keys and not fields.completion:
        prompt = fields.prompt or pick(PROMPT_KEYS)
        if prompt or isinstance(row[keys["chosen"]], list):
            return Shape("preference", prompt=prompt, system=system, chosen=keys["chosen"])
    prompt = fields.prompt or pick(PROMPT_KEYS, fields.completion, system)
    answer = fields.completion or pick(ANSWER_KEYS, prompt, system)
    if prompt is None or answer is None:
        if set(keys) == {"column_1", "column_2"}:  # a CSV without header: input, then answer
            return Shape("pair", prompt=keys["column_1"], answer=keys["column_2"], system=system)
        return None
    context = None
    if not fields.prompt and prompt.strip().lower() in ("instruction", "question", "query", "prompt"):
        context = pick(CONTEXT_KEYS, prompt, answer, system)
    kind = "alpaca" if prompt.strip().lower() == "instruction" else "pair"
    return Shape(kind, prompt=prompt, context=context, answer=answer, system=system)


def _as_list(value: Any) -> Any:
    """A list of turns, also when it stands as JSON text in a CSV cell."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _is_conversation(value: Any) -> bool:
    value = _as_list(value)
    return isinstance(value, list) and all(isinstance(turn, dict) for turn in value)


def _has_from(value: Any) -> bool:
    turns = _as_list(value)
    return bool(turns) and "from" in turns[0]


def as_text(value: Any) -> str:
    """The text a model reads or writes: objects and lists as JSON, numbers as written, missing as empty."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def to_examples(row: dict[str, Any], shape: Shape, system: str) -> tuple[Turns, list[Notice]]:
    """Messages and answer span of each example in a row: one, or one an assistant turn.

    Raises: RowFault.
    """
    notices: list[Notice] = []
    own_system = as_text(row.get(shape.system)).strip() if shape.system else ""
    head = [Message("system", own_system or system)] if (own_system or system) else []
    if shape.kind in ("messages", "sharegpt", "preference"):
        if shape.messages:
            turns = _as_list(row[shape.messages])
        else:
            turns = [{"role": "user", "content": as_text(row[shape.prompt])}] if shape.prompt else []
        if shape.chosen:
            what = "the chosen answer is learned, the rejected one left aside"
            notices.append(Notice("preference_as_answer", what, "safe", True))
            chosen = _as_list(row[shape.chosen])
            if isinstance(chosen, str):
                chosen = [{"role": "assistant", "content": chosen}]
            chosen = chosen if isinstance(chosen, list) else [chosen]
            is_whole = len(chosen) > 1  # the conversation is repeated in it, prompt included
            turns = chosen if is_whole else [*turns, *chosen]
        if not isinstance(turns, list):
            raise RowFault("not_messages", f"{shape.messages!r} holds no list of messages but {type(turns).__name__}")
        if row.get("tools") or row.get("functions"):
            what = "tool declarations are not shown to the model in this version"
            notices.append(Notice("tools_left_aside", what, "ask", True))
        return _conversation(turns, head, only_last=shape.chosen is not None, notices=notices), notices
    assert shape.prompt is not None and shape.answer is not None
    prompt, answer = row[shape.prompt], row[shape.answer]
    if isinstance(prompt, list) and prompt and _is_conversation(prompt):  # conversational prompt/completion
        reply = answer if isinstance(answer, list) else [{"role": "assistant", "content": as_text(answer)}]
        return _conversation([*prompt, *reply], head, only_last=True, notices=notices), notices
    text = as_text(prompt)
    context = as_text(row.get(shape.context)).strip() if shape.context else ""
    if context and NO_INPUT.fullmatch(context):
        notices.append(Notice("noinput_placeholder", f"{shape.context!r} says {context!r}; read as no input", "safe"))
        context = ""
    if context:
        text = f"{text}\n\n{context}"
    messages = (*head, Message("user", text), Message("assistant", as_text(answer)))
    return [(messages, (len(messages) - 1, len(messages)))], notices


def _conversation(turns: list[Any], head: list[Message], *, only_last: bool, notices: list[Notice]) -> Turns:
    """One example an assistant turn, each with the turns before it as prompt."""
    messages: list[Message] = []
    answers: list[int] = []  # indices of assistant messages that bear loss
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise RowFault("not_messages", f"turn {number} is no object but {type(turn).__name__}")
        raw_role = turn.get("role", turn.get("from"))
        role = ROLES.get(str(raw_role).strip().lower())
        if role is None:
            known = "system, user, assistant, tool"
            what = "has no role" if raw_role is None else f"has the unknown role {raw_role!r}"
            raise RowFault("unknown_role", f"turn {number} {what}; known: {known}")
        content = _content(turn, number, notices)
        if messages and messages[-1].role == role and role != "tool":
            what = f"turns {number - 1} and {number} are both {role}; joined"
            notices.append(Notice("consecutive_roles", what, "safe"))
            messages[-1] = Message(role, f"{messages[-1].content}\n{content}")
            continue
        if role == "system" and messages:
            notices.append(Notice("system_not_first", f"turn {number} is a system message", "ask"))
        messages.append(Message(role, content))
        if role == "assistant" and turn.get("weight", 1) != 0:
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


def _content(turn: dict[str, Any], number: int, notices: list[Notice]) -> str:
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
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    if calls:
        notices.append(Notice("tool_call_as_text", "tool calls are learned as JSON text", "safe", True))
        plain = [call.get("function", call) if isinstance(call, dict) else call for call in calls]
        return "\n".join([*([as_text(content)] if content else []), *(as_text(call) for call in plain)])
    return as_text(content)
