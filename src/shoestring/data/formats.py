"""Row shapes to messages and answer spans.

Alpaca, prompt/completion and its kin, OpenAI messages, ShareGPT, preference pairs, KTO flags, plain text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ..config import FieldsConfig
from ..messages import Example, Message
from .turns import Notice, RowFault, Turns, as_list, as_text, check_tools, conversation, declarations

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
PREFERENCE_KEYS = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"), ("preferred", "non_preferred"))
FLAG_KEYS = ("kto_tag", "is_desired", "desirable")  # and `label`, where it is true or false beside an answer
FLAGS = {True: True, False: False, "true": True, "false": False}  # 1 and 0 equal True and False
BESIDE_TEXT = {"id", "idx", "index", "source", "meta", "metadata", "url", "timestamp", "date", "lang", "language"}
NO_INPUT = re.compile(r"\W*no ?input(?: (?:required|needed|provided))?\W*", re.IGNORECASE)
URL = re.compile(r"\s*(?:https?://|www\.)\S+\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Shape:
    """Where the parts of a row are. kind: pair, alpaca, messages, sharegpt, preference, text."""

    kind: str
    prompt: str | None = None
    context: str | None = None
    answer: str | None = None
    system: str | None = None
    messages: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    flag: str | None = None  # KTO: whether the answer is one to imitate

    def describe(self) -> str:
        keys = [
            k for k in (self.system, self.messages, self.prompt, self.context, self.answer, self.chosen, self.flag) if k
        ]
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
    flag = next((keys[c] for c in FLAG_KEYS if c in keys), None)
    if flag is None and "label" in keys and isinstance(row[keys["label"]], bool):
        flag = keys["label"]
    system = asked(fields.system) if fields.system else pick(SYSTEM_KEYS, fields.prompt, fields.completion)
    messages = fields.messages or (None if fields.prompt or fields.completion else pick(MESSAGES_KEYS))
    pair = next(((keys[a], keys[b]) for a, b in PREFERENCE_KEYS if a in keys and b in keys), None)
    if messages and _is_conversation(row[messages]):
        if pair:
            return Shape("preference", system=system, messages=messages, chosen=pair[0], rejected=pair[1])
        kind = "sharegpt" if _has_from(row[messages]) else "messages"
        return Shape(kind, system=system, messages=messages, flag=flag)
    if fields.messages:
        return Shape("messages", system=system, messages=messages)
    if pair and not fields.completion:
        prompt = fields.prompt or pick(PROMPT_KEYS)
        if prompt or isinstance(row[pair[0]], list):
            return Shape("preference", prompt=prompt, system=system, chosen=pair[0], rejected=pair[1])
    prompt = fields.prompt or pick(PROMPT_KEYS, fields.completion, system)
    answer = fields.completion or pick(ANSWER_KEYS, prompt, system)
    if prompt is None or answer is None:
        if set(keys) == {"column_1", "column_2"}:  # a CSV without header: input, then answer
            return Shape("pair", prompt=keys["column_1"], answer=keys["column_2"], system=system)
        if "text" in keys and not (keys.keys() - BESIDE_TEXT - {"text"}) and not fields.prompt:
            return Shape("text", answer=keys["text"])
        return None
    context = None
    if not fields.prompt and prompt.strip().lower() in ("instruction", "question", "query", "prompt"):
        context = pick(CONTEXT_KEYS, prompt, answer, system)
    kind = "alpaca" if prompt.strip().lower() == "instruction" else "pair"
    flag = flag if flag != answer else None
    return Shape(kind, prompt=prompt, context=context, answer=answer, system=system, flag=flag)


def _is_conversation(value: Any) -> bool:
    value = as_list(value)
    return isinstance(value, list) and all(isinstance(turn, dict) for turn in value)


def _has_from(value: Any) -> bool:
    turns = as_list(value)
    return bool(turns) and "from" in turns[0]


@dataclass(slots=True)
class Converted:
    """What a row gave: messages and answer span of each example (one, or one an assistant turn), and what they share.

    rejected: of a preference pair the answer that lost. tools, desired: as of an Example.
    """

    turns: Turns = field(default_factory=list)
    rejected: tuple[Message, ...] = ()
    tools: str = ""
    desired: bool | None = None
    notices: list[Notice] = field(default_factory=list)

    def examples(self, source: str, line: int) -> list[Example]:
        """The examples, with where they come from."""
        return [
            Example(m, span, source, line, rejected=self.rejected, tools=self.tools, desired=self.desired)
            for m, span in self.turns
        ]


def convert(row: dict[str, Any], shape: Shape, system: str, keeps_undesired: bool = False) -> Converted:
    """The examples of a row. keeps_undesired: answers marked as undesired are no fault. Raises: RowFault."""
    out = Converted()
    own_system = as_text(row.get(shape.system)).strip() if shape.system else ""
    head = [Message("system", own_system or system)] if (own_system or system) else []
    if shape.flag:
        out.desired = _flag(row[shape.flag], shape.flag, keeps_undesired)
    if shape.kind == "text":
        out.notices.append(
            Notice("plain_text", "text without question and answer; the whole text is learned", "ask", True)
        )
        assert shape.answer is not None
        out.turns = [((Message("user", ""), Message("assistant", as_text(row[shape.answer]))), (1, 2))]
    elif shape.kind == "preference":
        _preference(row, shape, head, out)
    elif shape.kind in ("messages", "sharegpt"):
        assert shape.messages is not None
        turns = _turns(row[shape.messages], shape.messages, row, out)
        is_curated = "answer_span" in row  # written by curation: one row an answer
        out.turns = conversation(turns, head, only_last=is_curated or shape.flag is not None, notices=out.notices)
        if is_curated and _is_conversation(row.get("rejected") or ""):
            out.rejected = conversation(as_list(row["rejected"]), [], only_last=True, notices=[])[-1][0]
    else:
        out.turns = _pair(row, shape, head, out)
    return out


def _flag(value: Any, key: str, keeps_undesired: bool) -> bool:
    known = value.strip().lower() if isinstance(value, str) else value
    flag = FLAGS.get(known) if isinstance(known, (str, int)) else None
    if flag is None:
        raise RowFault("bad_flag", f"{key!r} is {value!r}; a KTO label is true or false")
    if not flag and not keeps_undesired:
        raise RowFault("undesired_answer", f"{key!r} says the answer is not desired; not learned")
    return flag


def _turns(value: Any, key: str | None, row: dict[str, Any], out: Converted) -> list[Any]:
    """The list of turns under a key, its tools checked."""
    if isinstance(value, str):
        out.notices.append(Notice("stringified_json", f"{key!r} holds its turns as JSON text; read", "safe", True))
    turns = as_list(value)
    if not isinstance(turns, list):
        raise RowFault("not_messages", f"{key!r} holds no list of messages but {type(turns).__name__}")
    _declared(row, turns, out)
    return turns


def _declared(row: dict[str, Any], turns: list[Any], out: Converted) -> None:
    declared = row.get("tools") or row.get("functions")
    if declared:
        out.tools = declarations(declared, out.notices)
    if all(isinstance(turn, dict) for turn in turns):
        out.notices.extend(check_tools(turns, out.tools))


def _preference(row: dict[str, Any], shape: Shape, head: list[Message], out: Converted) -> None:
    """The chosen side as an example, and the rejected answer."""
    assert shape.chosen is not None and shape.rejected is not None
    what = "the chosen answer is learned; the rejected one is stored beside it"
    notices = out.notices
    notices.append(Notice("preference_as_answer", what, "safe", True))
    key = shape.messages or shape.prompt
    asked = row[key] if key else []
    if isinstance(asked, dict) and "messages" in asked:  # OpenAI: {"input": {"messages": [...], "tools": [...]}}
        asked, row = asked["messages"], {**row, **asked}
    if isinstance(asked, str) and not shape.messages:
        asked = [{"role": "user", "content": asked}]
    before = _turns(asked, key, row, out) if asked else []
    sides: list[tuple[tuple[Message, ...], tuple[int, int]] | None] = []
    for side in (shape.chosen, shape.rejected):
        answer = as_list(row[side])
        answer = [{"role": "assistant", "content": answer}] if isinstance(answer, (str, type(None))) else answer
        answer = answer if isinstance(answer, list) else [answer]
        is_whole = len(answer) > 1  # the conversation is repeated in it, prompt included
        try:
            made = conversation(answer if is_whole else [*before, *answer], head, only_last=True, notices=notices)
        except RowFault:
            if side == shape.chosen:
                raise
            sides.append(None)
            continue
        sides.append(made[0])
    chosen, rejected = sides
    assert chosen is not None
    out.turns = [chosen]
    answer_text = chosen[0][-1].text
    if rejected is None or not rejected[0][-1].text.strip():
        notices.append(Notice("rejected_missing", "the rejected answer is missing or empty", "ask"))
    elif rejected[0][-1].text.strip() == answer_text.strip():
        raise RowFault("chosen_equals_rejected", f"both answers are {answer_text[:80]!r}; nothing to prefer")
    elif rejected[0][:-1] != chosen[0][:-1]:
        notices.append(Notice("pair_prompts_differ", "chosen and rejected answer different prompts", "ask"))
    else:
        out.rejected = rejected[0][-1:]


def _pair(row: dict[str, Any], shape: Shape, head: list[Message], out: Converted) -> Turns:
    assert shape.prompt is not None and shape.answer is not None
    notices = out.notices
    prompt, answer = row[shape.prompt], row[shape.answer]
    if isinstance(prompt, list) and prompt and _is_conversation(prompt):  # conversational prompt/completion
        reply = answer if isinstance(answer, list) else [{"role": "assistant", "content": as_text(answer)}]
        _declared(row, [*prompt, *reply], out)
        return conversation([*prompt, *reply], head, only_last=True, notices=notices)
    text = as_text(prompt)
    context = as_text(row.get(shape.context)).strip() if shape.context else ""
    if context and NO_INPUT.fullmatch(context):
        notices.append(Notice("noinput_placeholder", f"{shape.context!r} says {context!r}; read as no input", "safe"))
        context = ""
    if URL.fullmatch(context or text):
        notices.append(Notice("url_as_input", f"the input is only an address: {(context or text).strip()}", "ask"))
    if context:
        text = f"{text}\n\n{context}"
    messages = (*head, Message("user", text), Message("assistant", as_text(answer)))
    return [(messages, (len(messages) - 1, len(messages)))]
