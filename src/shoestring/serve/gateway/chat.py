"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from ...messages import Message, read_answer
from .answering import EventStream, StrictCalls, Work, body_of
from .asking import chat_logprobs, find, head, new_tokens, respond, sampling_of, work_of
from .conversation import call_start, calls_json, declared, is_strict, prompt_of, refuse_names, schema_of, strict_schema
from .fields import ChatRequest, read
from .text import ALL, CALLS, Delta

if TYPE_CHECKING:
    from .app import Gateway

CHAT = "chat.completions"


@dataclass(frozen=True)
class Chat:
    """How the answers to one request are told."""

    gateway: Gateway
    asked: ChatRequest
    work: Work
    tools: str  # declarations, as of an Example
    opening: str  # of a call that must be made: what of it stands in the prompt

    def message(self, text: str) -> Message:
        """The answer with its calls read as the evaluation reads them; their ids are new."""
        read_message = read_answer(self.opening + text, self.tools)
        calls = read_message.tool_calls if self.asked.parallel_tool_calls else read_message.tool_calls[:1]
        named = tuple(replace(call, id=f"call_{secrets.token_hex(12)}") for call in calls)
        content = read_message.content if calls else text
        return Message("assistant", content, named)

    def whole(self, parts: Sequence[Sequence[Delta]]) -> dict[str, Any]:
        """The object of an answer that is not streamed."""
        choices = []
        for index, deltas in enumerate(parts):
            found = self.message("".join(delta.text for delta in deltas))
            message: dict[str, Any] = {"role": "assistant", "content": found.content, "refusal": None}
            if found.tool_calls:
                message = {**message, "content": found.content or None, "tool_calls": calls_json(found.tool_calls)}
            tokens = [token for delta in deltas for token in delta.tokens]
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": self._logprobs(tokens),
                    "finish_reason": "tool_calls" if found.tool_calls else deltas[-1].finish,
                }
            )
        return {**self._head("chat.completion"), "choices": choices, "usage": self.work.usage()}

    async def events(self, deltas: AsyncIterator[Delta]) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a stream."""
        begun: set[int] = set()
        base = self._head("chat.completion.chunk")
        if self.asked.wants_usage:
            base["usage"] = None

        def chunk(index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            return {**base, "choices": [choice]}

        async for delta in deltas:
            index, text, finish = delta.index, delta.text, delta.finish
            if index not in begun:
                begun.add(index)
                yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
            calls: list[dict[str, Any]] = []
            if finish and self.tools:
                reader = self.work.readers[index]
                found = self.message(reader.text)
                if found.tool_calls:
                    given = reader.text.removesuffix(text).lstrip()
                    text = found.content.removeprefix(given) if found.content.startswith(given) else ""
                    calls, finish = calls_json(found.tool_calls), "tool_calls"
            logprobs = self._logprobs(delta.tokens) if delta.tokens else None
            if text:
                yield chunk(index, {"content": text}, logprobs=logprobs)
                logprobs = None
            for number, call in enumerate(calls):
                function = call["function"]
                opened = {**call, "index": number, "function": {"name": function["name"], "arguments": ""}}
                yield chunk(index, {"tool_calls": [opened]})
                said = {"index": number, "function": {"arguments": function["arguments"]}}
                yield chunk(index, {"tool_calls": [said]})
            if finish:
                yield chunk(index, {}, finish, logprobs)  # of tokens without text, or of a call
        if self.asked.wants_usage:
            yield {**base, "choices": [], "usage": self.work.usage()}

    def _head(self, kind: str) -> dict[str, Any]:
        return head(self.gateway, self.work, kind, "chatcmpl-")

    def _logprobs(self, tokens: Sequence[Any]) -> dict[str, Any] | None:
        assert self.gateway.prompts is not None, "a model was found"
        return chat_logprobs(self.gateway.prompts, tokens) if self.asked.logprobs else None


async def chat(request: Request) -> Response | EventStream:
    """An answer to messages."""
    gateway: Gateway = request.app.state.gateway
    asked, raw = read(ChatRequest, await body_of(request))
    registry, prompts, adapter, served = find(gateway, asked.model)
    if prompts.shows_names:
        refuse_names(asked)
    schema, tools = schema_of(asked), declared(asked, raw)
    context = registry.engine.context_tokens
    usual = served.max_new_tokens if served else None
    room = max(1, context - (asked.most_tokens or usual or 1))
    ids = await prompts.chat(prompt_of(asked, raw), served, room, begins_call=asked.is_forced)
    most = new_tokens(context, len(ids), asked.most_tokens, usual, "messages")
    num_top = (asked.top_logprobs or 0) if asked.logprobs else None
    sampling = sampling_of(gateway, asked, most, num_top, schema)
    holds = ALL if asked.is_forced else CALLS if tools else ""
    strict = None
    if is_strict(asked):
        opening = prompts.call_opening
        opened, after_text = await prompts.plain(opening), await prompts.plain(f"\n{opening}")
        strict = StrictCalls(strict_schema(asked), call_start(asked), opening, tuple(opened), tuple(after_text))
    param = "tools" if asked.is_forced or strict else "response_format" if schema is not None else ""
    work = work_of(
        request, gateway, asked, CHAT, adapter, [ids], [sampling], holds=holds, schema_param=param, strict=strict
    )
    told = Chat(gateway, asked, work, tools, prompts.call_opening if asked.is_forced else "")
    return await respond(request, gateway, work, asked.stream, told.events, told.whole)
