"""What every engine behind the gateway must do, asked by the real openai SDK: functions of (base_url, key, models).

models: names, the base first, then two adapters or more that answer apart. Nothing here knows what they say.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai import OpenAI

Check = Callable[[str, str, Sequence[str]], None]
CHECKS: list[Check] = []
HI = [{"role": "user", "content": "Where is my parcel? It was due on Monday."}]
COLOURS = ["amber", "jade"]
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": COLOURS}, "count": {"type": "integer", "minimum": 1, "maximum": 3}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "found", "schema": SCHEMA, "strict": True}}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "paint", "description": "Paint it.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "wait"}},
]


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


def sdk(base_url: str, key: str) -> OpenAI:
    return OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=600)


def said(client: OpenAI, model: str, **more: Any) -> Any:
    asked = {"messages": HI, "max_tokens": 12, **more}
    return client.chat.completions.create(model=model, **asked).choices[0]


def raw(base_url: str, key: str, path: str, body: bytes | None = None, method: str = "") -> tuple[int, Any, Any]:
    """Status, JSON and headers of one request without the SDK."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(
        base_url.removesuffix("/v1") + path, body, headers, method=method or ("GET" if body is None else "POST")
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            text = answer.read()
            status, told = answer.status, answer.headers
    except urllib.error.HTTPError as error:
        text, status, told = error.read(), error.code, error.headers
    try:
        return status, json.loads(text), told
    except ValueError:
        return status, text.decode(), told


@check
def models_are_listed(base_url: str, key: str, models: Sequence[str]) -> None:
    with sdk(base_url, key) as client:
        listed = {model.id: model for model in client.models.list()}
        assert set(models) <= set(listed)
        base, *adapters = models
        assert listed[base].parent is None
        assert all(listed[name].parent == base for name in adapters)
        assert client.models.retrieve(adapters[0]).id == adapters[0]


@check
def a_chat_is_answered(base_url: str, key: str, models: Sequence[str]) -> None:
    with sdk(base_url, key) as client:
        answer = client.chat.completions.create(model=models[1], messages=HI, max_completion_tokens=12)
    choice, usage = answer.choices[0], answer.usage
    assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert choice.finish_reason in ("stop", "length") and answer.model == models[1]
    assert usage.prompt_tokens > 5 and 0 < usage.completion_tokens <= 12
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@check
def a_stream_says_the_same(base_url: str, key: str, models: Sequence[str]) -> None:
    with sdk(base_url, key) as client:
        for model in models[:2]:
            whole = client.chat.completions.create(model=model, messages=HI, max_tokens=24)
            chunks = list(
                client.chat.completions.create(
                    model=model, messages=HI, max_tokens=24, stream=True, stream_options={"include_usage": True}
                )
            )
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text == whole.choices[0].message.content
            finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
            assert finishes[-1] == whole.choices[0].finish_reason and set(finishes[:-1]) <= {None}
            assert chunks[-1].choices == []
            mine, theirs = chunks[-1].usage, whole.usage
            assert (mine.prompt_tokens, mine.completion_tokens) == (theirs.prompt_tokens, theirs.completion_tokens)
            assert len({c.id for c in chunks}) == 1


@check
def a_stream_ends_in_done(base_url: str, key: str, models: Sequence[str]) -> None:
    body = {"model": models[0], "messages": HI, "max_tokens": 3, "stream": True}
    status, text, headers = raw(base_url, key, "/v1/chat/completions", json.dumps(body).encode())
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    events = [event for event in text.split("\n\n") if event]
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]" and all(json.loads(event[6:]) for event in events[:-1])


@check
def an_answer_ends_at_max_tokens(base_url: str, key: str, models: Sequence[str]) -> None:
    with sdk(base_url, key) as client:
        for name in ("max_tokens", "max_completion_tokens"):
            answer = client.chat.completions.create(model=models[0], messages=HI, **{name: 2})
            assert answer.usage.completion_tokens <= 2
            assert answer.choices[0].finish_reason == "length" or answer.usage.completion_tokens < 3


@check
def a_stop_string_is_cut(base_url: str, key: str, models: Sequence[str]) -> None:
    with sdk(base_url, key) as client:
        for model in models[:2]:
            text = said(client, model, max_tokens=24).message.content
            if len(text) < 4:
                continue
            stop = text[len(text) // 2 : len(text) // 2 + 2]
            cut = said(client, model, max_tokens=24, stop=["never to be said", stop])
            assert cut.message.content == text[: text.index(stop)] and cut.finish_reason == "stop"
            chunks = client.chat.completions.create(model=model, messages=HI, max_tokens=24, stop=stop, stream=True)
            told = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert told == cut.message.content


@check
def several_answers_are_numbered(base_url: str, key: str, models: Sequence[str]) -> None:
    with sdk(base_url, key) as client:
        asked = {"model": models[1], "messages": HI, "n": 3, "temperature": 1.5, "seed": 5, "max_tokens": 12}
        first = client.chat.completions.create(**asked)
        assert [choice.index for choice in first.choices] == [0, 1, 2]
        texts = [choice.message.content for choice in first.choices]
        assert len(set(texts)) > 1
        chunks = client.chat.completions.create(**asked, stream=True)
        streamed = ["", "", ""]
        for chunk in chunks:
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
        assert streamed == texts  # by the seed


@check
def log_probabilities_are_of_the_text(base_url: str, key: str, models: Sequence[str]) -> None:
    with sdk(base_url, key) as client:
        choice = said(client, models[1], logprobs=True, top_logprobs=3)
    entries = choice.logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode("utf-8", "replace") == choice.message.content
    for entry in entries:
        assert entry.logprob <= 1e-6 and len(entry.top_logprobs) == 3
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert entry.logprob == pytest.approx(values[0], abs=2e-2)  # greedy


@check
def an_answer_keeps_to_a_schema(base_url: str, key: str, models: Sequence[str]) -> None:
    with sdk(base_url, key) as client:
        for model in models[:2]:
            choice = said(client, model, response_format=FORMAT, max_tokens=100)
            assert choice.finish_reason == "stop"
            found = json.loads(choice.message.content)
            assert found["colour"] in COLOURS and 1 <= found["count"] <= 3 and len(found) == 2
            chunks = client.chat.completions.create(
                model=model, messages=HI, response_format=FORMAT, max_tokens=100, stream=True
            )
            assert json.loads("".join(c.choices[0].delta.content or "" for c in chunks)) == found
            for short in (0, 1):  # where it is complete with the last token that it may have, and one before
                whole = client.chat.completions.create(model=model, messages=HI, response_format=FORMAT, max_tokens=100)
                most = whole.usage.completion_tokens - short
                cut = client.chat.completions.create(model=model, messages=HI, response_format=FORMAT, max_tokens=most)
                assert cut.usage.completion_tokens <= most
                assert short or cut.choices[0].message.content == choice.message.content
        loose = said(client, models[0], response_format={"type": "json_object"}, max_tokens=60)
        assert loose.message.content.lstrip().startswith("{")
        if loose.finish_reason == "stop":
            assert isinstance(json.loads(loose.message.content), dict)


@check
def a_call_that_must_be_made_is_made(base_url: str, key: str, models: Sequence[str]) -> None:
    paint = {"type": "function", "function": {"name": "paint"}}
    with sdk(base_url, key) as client:
        for choice_of_tool in (paint, "required"):
            choice = said(client, models[1], tools=TOOLS, tool_choice=choice_of_tool, max_tokens=100)
            assert choice.finish_reason == "tool_calls" and choice.message.content is None
            (call,) = choice.message.tool_calls
            arguments = json.loads(call.function.arguments)
            assert call.type == "function" and call.id
            if call.function.name == "paint":
                assert arguments["colour"] in COLOURS and 1 <= arguments["count"] <= 3
            else:
                assert choice_of_tool == "required" and call.function.name == "wait"
        chunks = list(
            client.chat.completions.create(
                model=models[1], messages=HI, tools=TOOLS, tool_choice=paint, max_tokens=100, stream=True
            )
        )
        deltas = [d for c in chunks for d in c.choices[0].delta.tool_calls or ()]
        assert deltas[0].function.name == "paint" and deltas[0].id
        assert json.loads("".join(d.function.arguments or "" for d in deltas))["colour"] in COLOURS
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        # The call and its result go back, as the SDK writes them.
        later = [*HI, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
        answer = client.chat.completions.create(model=models[1], messages=later, tools=TOOLS, max_tokens=5)
        assert answer.choices[0].message.role == "assistant"
        without = said(client, models[1], tools=TOOLS, tool_choice="none")
        assert without.message.tool_calls is None


@check
def models_at_once_answer_as_alone(base_url: str, key: str, models: Sequence[str]) -> None:
    prompts = [f"Ticket {number}: it does not work." for number in range(3)]
    with sdk(base_url, key) as client, ThreadPoolExecutor(9) as pool:

        def ask(pair: tuple[str, str]) -> str:
            messages = [{"role": "user", "content": pair[1]}]
            return str(said(client, pair[0], messages=messages).message.content)

        pairs = [(model, prompt) for prompt in prompts for model in models[:3]]
        alone = [ask(pair) for pair in pairs]
        assert list(pool.map(ask, pairs)) == alone
        told = dict(zip(pairs, alone, strict=True))
        assert (
            len({tuple(told[model, prompt] for prompt in prompts) for model in models[:3]}) == 3
        )  # each answers apart


@check
def text_is_continued(base_url: str, key: str, models: Sequence[str]) -> None:
    with sdk(base_url, key) as client:
        own = client.completions.create(model=models[0], prompt="The parcel", max_tokens=6)
        assert own.object == "text_completion" and own.usage.completion_tokens <= 6
        both = client.completions.create(model=models[0], prompt=["The parcel", "A"], max_tokens=6)
        assert [choice.index for choice in both.choices] == [0, 1] and both.choices[0].text == own.choices[0].text
        ids = client.completions.create(model=models[1], prompt=[5, 6, 7, 8], max_tokens=6, logprobs=2)
        told = ids.choices[0].logprobs
        assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == len(told.top_logprobs) > 0
        assert told.text_offset[0] == 0 and all(len(top) in (1, 2) for top in told.top_logprobs)
        chunks = client.completions.create(model=models[0], prompt="The parcel", max_tokens=6, stream=True)
        assert "".join(c.choices[0].text for c in chunks) == own.choices[0].text


@check
def a_wrong_key_and_none_are_refused(base_url: str, key: str, models: Sequence[str]) -> None:
    with sdk(base_url, "sk-wrong-key-of-some-length") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(model=models[0], messages=HI)
    assert caught.value.code == "invalid_api_key"
    for path in ("/v1/models", "/v1/chat/completions", "/v1/files", "/metrics", "/admin/adapters", "/", "/nowhere"):
        status, body, _ = raw(base_url, "", path)
        assert status == 401 and body["error"]["type"] == "authentication_error", path
    assert raw(base_url, "", "/health")[0] == 200
    assert raw(base_url, key, "/admin/adapters")[0] == 403


@check
def an_unknown_model_and_address_are_told(base_url: str, key: str, models: Sequence[str]) -> None:
    with sdk(base_url, key) as client:
        for name in ("gpt-none", "../../etc/passwd", f"{models[1]}/../{models[0]}"):
            with pytest.raises(openai.NotFoundError) as caught:
                client.chat.completions.create(model=name, messages=HI)
            assert caught.value.code == "model_not_found" and models[1] in caught.value.message
    assert raw(base_url, key, "/v1/nowhere")[0] == 404
    assert raw(base_url, key, "/v1/chat/completions")[0] == 405


@check
def what_is_too_long_is_told_with_numbers(base_url: str, key: str, models: Sequence[str]) -> None:
    with sdk(base_url, key) as client:
        for more in ({"messages": [{"role": "user", "content": "word " * 60_000}]}, {"max_tokens": 10_000_000}):
            with pytest.raises(openai.BadRequestError, match="maximum context length is") as caught:
                said(client, models[0], **more)
            assert caught.value.code == "context_length_exceeded"


@check
def what_is_not_supported_is_refused_by_name(base_url: str, key: str, models: Sequence[str]) -> None:
    refused: list[tuple[str, Any]] = [
        ("chat_template", "{{ 7 * 7 }}"),
        ("chat_template_kwargs", {"a": 1}),
        ("top_k", 3),
        ("frobnicate", True),
        ("store", True),
        ("temperature", 3),
        ("top_p", -0.1),
        ("best_of", 1),
        ("temperature", "hot"),
        ("n", 0),
        ("n", 1000),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("top_logprobs", 21),
        ("response_format", {"type": "grammar"}),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"1" * 5000: 1}),
        ("reasoning_effort", "high"),
        ("functions", [{"name": "f"}]),
        ("seed", 1.5),
        ("max_tokens", 0),
    ]
    for name, value in refused:
        body = {"model": models[0], "messages": HI, name: value}
        if name == "top_logprobs":
            body["logprobs"] = True
        status, told, _ = raw(base_url, key, "/v1/chat/completions", json.dumps(body).encode())
        assert status == 400 and name in (told["error"]["param"] or ""), (name, told)
        assert told["error"]["type"] == "invalid_request_error" and told["error"]["message"]
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://example.org/a.png"}}]}]
    body = {"model": models[0], "messages": image}
    status, told, _ = raw(base_url, key, "/v1/chat/completions", json.dumps(body).encode())
    assert status == 400 and told["error"]["param"] == "messages[0].content" and "image_url" in told["error"]["message"]


@check
def what_changes_nothing_is_taken(base_url: str, key: str, models: Sequence[str]) -> None:
    with sdk(base_url, key) as client:
        plain = said(client, models[0])
        taken = said(
            client,
            models[0],
            user="someone",
            metadata={"a": "b"},
            store=False,
            service_tier="auto",
            parallel_tool_calls=True,
            messages=[{"role": "user", "content": [{"type": "text", "text": HI[0]["content"]}]}],
        )
        assert taken.message.content == plain.message.content
        named = [{"role": role, "content": text, "name": "Ada"} for role, text in (("system", "a"), ("user", "b"))]
        plainly = [{"role": turn["role"], "content": turn["content"]} for turn in named]
        by_name = [said(client, models[0], messages=turns).message.content for turns in (named, plainly)]
        assert by_name[0] == by_name[1], "its template writes no names"
        likeliest = said(client, models[0], temperature=2, top_p=0, seed=3)
        assert likeliest.message.content == plain.message.content
        both = [
            client.completions.create(model=models[0], prompt="Paint it", n=2, max_tokens=6, **more)
            for more in ({}, {"best_of": 2})
        ]
        assert [c.text for c in both[0].choices] == [c.text for c in both[1].choices]
        as_system, as_developer = (
            said(client, models[0], messages=[{"role": role, "content": "Be brief."}, *HI]).message.content
            for role in ("system", "developer")
        )
        assert as_system == as_developer


@check
def malformed_bodies_are_refused(base_url: str, key: str, models: Sequence[str]) -> None:
    bodies = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model": 5, "messages": []}',
        b"[" * 100_000,
        json.dumps({"model": models[0], "messages": [{"role": "user", "content": "\ud800"}]}).encode(),
        json.dumps(
            {
                "model": models[0],
                "messages": HI,
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"\ud800": 1}}}],
            }
        ).encode(),
        json.dumps({"model": models[0]}).encode(),
        json.dumps({"model": models[0], "messages": []}).encode(),
        json.dumps({"model": models[0], "messages": "hi"}).encode(),
        json.dumps({"model": models[0], "messages": [{"role": "robot", "content": "hi"}]}).encode(),
        json.dumps({"model": models[0], "messages": [{"role": "tool", "tool_call_id": "x", "content": "hi"}]}).encode(),
        json.dumps({"model": models[0], "messages": HI, "response_format": {"type": "json_schema"}}).encode(),
    ]
    for body in bodies:
        status, told, _ = raw(base_url, key, "/v1/chat/completions", body)
        assert status == 400 and told["error"]["message"], body[:60]
    robot = {"model": models[0], "messages": [{"role": "robot", "content": "hi"}]}
    _, told, _ = raw(base_url, key, "/v1/chat/completions", json.dumps(robot).encode())
    assert told["error"]["param"] == "messages[0].role" and told["error"]["message"].startswith(
        "messages[0].role: 'robot' is none of 'system', 'developer', 'user', 'assistant', 'tool'"
    )
    impossible = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    body = json.dumps({"model": models[0], "messages": HI, "response_format": impossible}).encode()
    assert raw(base_url, key, "/v1/chat/completions", body)[0] == 400
    assert raw(base_url, key, "/v1/chat/completions", b" " * (40 << 20))[0] == 413


@check
def a_cancelled_stream_frees_its_row(base_url: str, key: str, models: Sequence[str]) -> None:
    with sdk(base_url, key) as client:
        for _ in range(3):
            stream = client.chat.completions.create(
                model=models[1], messages=HI, stream=True, temperature=2, n=4, logit_bias={}
            )
            next(iter(stream))
            stream.close()
        for _ in range(600):  # bounded by requests, not by time
            status, text, _ = raw(base_url, key, "/metrics")
            assert status == 200
            left = [line for line in text.splitlines() if line.startswith("shoestring_answers_in_flight ")]
            if float(left[0].split()[1]) == 0:
                break
        else:
            raise AssertionError(left)
        assert said(client, models[1]).message.role == "assistant"
