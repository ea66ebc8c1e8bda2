"""The gateway over an engine that says what it is told: texts, stops, calls, log-probabilities, limits, records."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from shoestring.errors import BadInput
from shoestring.serve.engine import Ask, Busy, EngineDown, NotLoaded
from shoestring.serve.gateway import usage
from shoestring.serve.gateway.limits import Limits
from tests.scripted_engine import ScriptedEngine
from tests.served import Running, running
from tests.served_runs import make_run
from tests.tiny import make_model, make_tokenizer

TOKENIZER = make_tokenizer()
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


class Said:
    """What the engine says, by the text of the request's last line that names it."""

    text = "hello"

    def __call__(self, ask: Ask) -> list[int]:
        ids: list[int] = TOKENIZER(self.text, add_special_tokens=False).input_ids
        return ids


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def said() -> Said:
    return Said()


@pytest.fixture(scope="module")
def engine(said: Said) -> ScriptedEngine:
    return ScriptedEngine(said)


@pytest.fixture(scope="module")
def server(
    model: Path, said: Said, engine: ScriptedEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    async def open_engine() -> Any:
        return engine

    with running(tmp_path_factory.mktemp("runs"), str(model), open_engine) as found:
        yield found


@pytest.fixture
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0) as found:
        yield found


def ask(client: OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}], **more)


def test_an_answer_by_hand(client: OpenAI, said: Said, server: Running, engine: ScriptedEngine) -> None:
    said.text = "hello"
    answer = ask(client)
    assert answer.choices[0].message.content == "hello" and answer.choices[0].finish_reason == "stop"
    prompt = TOKENIZER.decode(engine.asked[-1].prompt_ids)
    assert prompt == "<|bos|><|user|>\nhi<|end|>\n<|assistant|>\n"
    assert answer.usage.prompt_tokens == len(engine.asked[-1].prompt_ids)
    assert answer.usage.completion_tokens == 6  # five letters and the end
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert engine.asked[-1].sampling.temperature == 0
    record = server.usage()[-1]
    assert (record["model"], record["key"], record["status"]) == ("tiny", "default", 200)
    assert "hello" not in json.dumps(record) and record["cost_usd"] > 0


def test_an_answer_is_given_where_the_disk_is_full(
    client: OpenAI, said: Said, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    said.text = "hello"
    ask(client)
    path, old = server.gateway.state / "usage.jsonl", server.gateway.state / "usage.old"
    path.rename(old)
    path.symlink_to("/dev/full")
    try:
        assert ask(client).choices[0].message.content == "hello"
        assert b"shoestring_usage_records_waiting 1.0" in server.gateway.metrics.text()
        monkeypatch.setattr(usage, "MAX_WAITING", 1)
        with pytest.raises(openai.InternalServerError, match="Usage cannot be written down here"):
            ask(client)
    finally:
        path.unlink()
        old.rename(path)
    monkeypatch.undo()
    num = len(server.usage())
    ask(client)
    assert len(server.usage()) - num in (1, 2), "its own, and the one that waited unless that was written meanwhile"
    assert b"shoestring_usage_records_waiting 0.0" in server.gateway.metrics.text()


def test_names_are_refused_where_the_template_writes_them(model: Path, said: Said, tmp_path: Path) -> None:
    named = tmp_path / "named"
    shutil.copytree(model, named)
    written = "{% for m in messages %}{{ m.get('name', '') + m['role'] + m['content'] }}{% endfor %}"
    (named / "chat_template.jinja").write_text(written)
    with held(named, said, tmp_path) as (_, engine, client):
        engine.go.set()
        turns = [{"role": "user", "content": "hi", "name": "Ada"}]
        with pytest.raises(openai.BadRequestError, match="chat template writes names") as caught:
            client.chat.completions.create(model="named", messages=turns)
        assert caught.value.param == "messages[0].name"
        del turns[0]["name"]
        client.chat.completions.create(model="named", messages=turns)


def test_best_of_more_than_is_asked_for_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"best_of: 3 where n is 1; .* ask for n and choose"):
        client.completions.create(model="tiny", prompt="a", best_of=3)


def test_a_stream_says_the_same(client: OpenAI, said: Said) -> None:
    said.text = "né ☃ 日本"
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == said.text
    assert not any("\ufffd" in (c.choices[0].delta.content or "") for c in chunks if c.choices)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == len(said.text.encode()) + 1
    assert all(c.usage is None for c in chunks[:-1])


def test_without_a_key_nothing_but_health_answers(server: Running) -> None:
    with (
        OpenAI(base_url=server.base_url, api_key="sk-wrong-key-of-some-length", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="Incorrect API key"),
    ):
        client.models.list()


# ---- stops, calls, log-probabilities ----


def test_a_stop_string_cancels_the_engine(client: OpenAI, said: Said, engine: ScriptedEngine) -> None:
    said.text = "one END two three"
    before = engine.num_cancelled
    answer = ask(client, stop="END")
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one ", "stop")
    assert answer.usage.completion_tokens == 7 and engine.num_cancelled == before + 1 and engine.num_running == 0
    assert engine.asked[-1].is_streamed  # or an engine tells all of its tokens at the end


def test_length_is_said_and_the_context_is_the_limit_where_none_is(client: OpenAI, said: Said) -> None:
    said.text = "x" * 3000
    assert ask(client, max_tokens=3).choices[0].finish_reason == "length"
    answer = ask(client)
    assert answer.choices[0].finish_reason == "length" and answer.usage.total_tokens == 2000


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
TWICE = f"Let me see.\n{CALL}\n{CALL}"


def test_calls_are_read_as_the_evaluation_reads_them(client: OpenAI, said: Said) -> None:
    said.text = TWICE
    choice = ask(client, tools=[WEATHER]).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    assert [call.function.name for call in choice.message.tool_calls] == ["weather"] * 2
    assert choice.message.tool_calls[0].function.arguments == '{"city": "Oslo"}'
    assert choice.message.tool_calls[0].id != choice.message.tool_calls[1].id
    assert len(ask(client, tools=[WEATHER], parallel_tool_calls=False).choices[0].message.tool_calls) == 1
    plain = ask(client).choices[0]  # without declarations nothing is a call
    assert (plain.message.content, plain.message.tool_calls) == (TWICE, None)


def test_a_stream_of_text_and_calls(client: OpenAI, said: Said) -> None:
    said.text = TWICE
    with client.chat.completions.stream(
        model="tiny", messages=[{"role": "user", "content": "hi"}], tools=[WEATHER]
    ) as stream:
        contents = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion().choices[0]
    assert "".join(contents) == final.message.content == "Let me see." and len(contents) > 5
    assert final.finish_reason == "tool_calls"
    assert [call.function.arguments for call in final.message.tool_calls] == ['{"city": "Oslo"}'] * 2


def test_a_call_that_must_be_made_begins_in_the_prompt(client: OpenAI, said: Said, engine: ScriptedEngine) -> None:
    said.text = '{"name": "weather", "arguments": {"city": "Oslo"}}'
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        found = ask(client, tools=[strict], tool_choice=choice)
        assert found.choices[0].message.tool_calls[0].function.arguments == '{"city": "Oslo"}'
        asked = engine.asked[-1]
        assert TOKENIZER.decode(asked.prompt_ids).endswith("<|assistant|>\n<tool_call>\n")
        schema = json.loads(asked.sampling.schema or "")
        assert schema["properties"]["name"] == {"const": "weather"}
        assert schema["properties"]["arguments"] == {
            **WEATHER["function"]["parameters"],
            "additionalProperties": False,
        }
    said.text = said.text[:-4]  # cut short: no call, and said to be
    found = ask(client, tools=[WEATHER], tool_choice="required", max_tokens=len(said.text)).choices[0]
    assert found.finish_reason == "length" and found.message.tool_calls is None


WRONG = '<tool_call>\n{"name": "weather", "arguments": {"town": 1}}\n</tool_call>'
RIGHT = '{"name": "weather", "arguments": {"city": "Oslo"}}'


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("head", ["Let me see.\n", ""])
def test_a_strict_call_that_is_not_forced_is_held_to_its_schema_from_where_it_begins(
    client: OpenAI, engine: ScriptedEngine, stream: bool, head: str
) -> None:
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    kept = engine.script
    engine.script = lambda asked: ids_of(RIGHT if asked.sampling.schema else head + WRONG)
    try:
        if stream:
            with client.chat.completions.stream(
                model="tiny", messages=[{"role": "user", "content": "hi"}], tools=[strict]
            ) as told:
                choice = told.get_final_completion().choices[0]
        else:
            choice = ask(client, tools=[strict]).choices[0]
        assert (choice.message.content or "", choice.finish_reason) == (head.strip(), "tool_calls")
        assert [call.function.arguments for call in choice.message.tool_calls] == ['{"city": "Oslo"}']
        prompt = TOKENIZER.decode(engine.asked[-1].prompt_ids)
        assert prompt.endswith(f"<|assistant|>\n{head}<tool_call>\n")
        assert engine.asked[-2].prompt_ids == engine.asked[-1].prompt_ids[: len(engine.asked[-2].prompt_ids)]
        engine.script = lambda asked: ids_of('plain {"name": "Bob"}')  # no call of a declared function
        assert ask(client, tools=[strict]).choices[0].message.content == 'plain {"name": "Bob"}'
    finally:
        engine.script = kept
    assert engine.num_running == 0


def ids_of(text: str) -> list[int]:
    found: list[int] = TOKENIZER(text, add_special_tokens=False).input_ids
    return found


def test_definitions_of_a_tools_schema_stand_at_the_root(client: OpenAI, said: Said, engine: ScriptedEngine) -> None:
    parameters = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "string"}}}
    said.text = '{"name": "f", "arguments": {"a": "x"}}'
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}, WEATHER]
    ask(client, tools=tools, tool_choice="required")
    schema = json.loads(engine.asked[-1].sampling.schema or "")
    assert schema["$defs"] == {"A": {"type": "string"}} and len(schema["anyOf"]) == 2


@pytest.mark.parametrize("defs", [[1], "a", None])
def test_definitions_that_are_none_are_left_to_the_engine(client: OpenAI, engine: ScriptedEngine, defs: Any) -> None:
    parameters = {"type": "object", "$defs": defs}
    ask(
        client,
        tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}],
        tool_choice="required",
    )
    assert json.loads(engine.asked[-1].sampling.schema)["properties"]["arguments"] == parameters


def test_history_with_calls_is_written_as_training_wrote_it(client: OpenAI, said: Said, engine: ScriptedEngine) -> None:
    said.text = TWICE
    first = ask(client, tools=[WEATHER]).choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": text, "name": "weather"}
        for call, text in zip(first.tool_calls, ("rain", "sun"), strict=True)
    ]
    client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}, first, *results], tools=[WEATHER]
    )
    prompt = TOKENIZER.decode(engine.asked[-1].prompt_ids)
    answers = "<tool_response>\nrain\n</tool_response>\n<tool_response>\nsun\n</tool_response>"
    assert prompt.endswith(f"<|assistant|>\n{TWICE}<|end|>\n<|user|>\n{answers}<|end|>\n<|assistant|>\n")


def test_turns_of_one_role_are_one(client: OpenAI, said: Said, engine: ScriptedEngine) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "brief"},
            {"role": "user", "content": parts},
            {"role": "user", "content": "c"},
        ],
    )
    prompt = TOKENIZER.decode(engine.asked[-1].prompt_ids)
    assert prompt == "<|bos|><|system|>\nbrief<|end|>\n<|user|>\nab\nc<|end|>\n<|assistant|>\n"


def test_log_probabilities_by_hand(client: OpenAI, said: Said) -> None:
    said.text = "é!"
    content = ask(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert [entry.bytes for entry in content] == [[0xC3], [0xA9], [0x21]]
    assert content[2].token == "!" and content[2].logprob == -0.5
    assert [top.logprob for top in content[2].top_logprobs] == [-0.5, -1.5]
    streamed = [c for chunk in ask(client, logprobs=True, stream=True) for c in chunk.choices if c.logprobs]
    assert [[len(c.logprobs.content), c.delta.content] for c in streamed] == [[2, "é"], [1, "!"]]
    text = client.completions.create(model="tiny", prompt="a", max_tokens=5, logprobs=1).choices[0]
    assert text.logprobs.text_offset == [0, 0, 1] and text.text == "é!"  # the first two are one character
    assert text.logprobs.tokens == [r"bytes:\xc3", r"bytes:\xa9", "!"]
    chunks = client.completions.create(model="tiny", prompt="a", max_tokens=5, logprobs=1, stream=True)
    streamed = [at for chunk in chunks for c in chunk.choices if c.logprobs for at in c.logprobs.text_offset]
    assert streamed == [0, 0, 1]


def test_a_stream_has_the_log_probabilities_of_tokens_without_text(client: OpenAI, said: Said) -> None:
    for text, tools in (("a<|user|>", None), (CALL, [WEATHER])):
        said.text = text
        more = {"tools": tools} if tools else {}
        whole = ask(client, logprobs=True, **more).choices[0].logprobs.content
        chunks = list(ask(client, logprobs=True, stream=True, **more))
        told = [entry for chunk in chunks for c in chunk.choices if c.logprobs for entry in c.logprobs.content]
        assert told == whole and len(whole) == len(ids_of(text))


def test_sampling_is_passed_on_and_each_answer_has_its_seed(client: OpenAI, said: Said, engine: ScriptedEngine) -> None:
    said.text = "a"
    ask(client, temperature=0.5, top_p=0.9, seed=7, n=2, presence_penalty=1, frequency_penalty=-1, logit_bias={"65": 5})
    first, second = (asked.sampling for asked in engine.asked[-2:])
    assert (first.temperature, first.top_p, first.seed, second.seed) == (0.5, 0.9, 7, 8)
    assert (first.presence_penalty, first.frequency_penalty, first.logit_bias) == (1, -1, ((65, 5.0),))
    with pytest.raises(openai.BadRequestError, match="is no token"):
        ask(client, logit_bias={"99999": 1})


# ---- what the engine raises ----


@pytest.mark.parametrize(
    ("raised", "status", "retry_after"),
    [
        (Busy("full", 7.2), 429, "8"),
        (EngineDown("gone"), 503, None),
        (BadInput("bad schema"), 400, None),
        (NotLoaded("dropped on the way"), 404, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_faults_of_the_engine_have_a_status(
    client: OpenAI,
    server: Running,
    engine: ScriptedEngine,
    raised: Exception,
    status: int,
    retry_after: str | None,
    stream: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.raises = raised
    try:
        with pytest.raises(openai.APIStatusError) as caught:
            ask(client, stream=stream)
    finally:
        engine.raises = None
    assert caught.value.status_code == status and caught.value.response.headers.get("retry-after") == retry_after
    assert httpx2.get(f"{server.url}/health").status_code == (503 if status == 503 else 200)
    assert status != 503 or "gone" not in str(caught.value)  # the words of an engine that ended are for the log
    assert [record.getMessage() for record in caplog.records if record.name.startswith("shoestring")] == (
        ["gone"] if status == 503 else []
    )
    ask(client)
    assert httpx2.get(f"{server.url}/health").json() == {"status": "ok"}


def test_a_fault_of_ours_is_told_without_its_text(client: OpenAI, engine: ScriptedEngine) -> None:
    engine.raises = RuntimeError("what the request said")
    try:
        with pytest.raises(openai.InternalServerError, match=r"req_[0-9a-f]+") as caught:
            ask(client)
    finally:
        engine.raises = None
    assert "what the request said" not in str(caught.value) and engine.num_running == 0


def test_a_fault_within_a_stream_is_an_event(client: OpenAI, said: Said, engine: ScriptedEngine) -> None:
    said.text = "abc"

    def broken(ask: Ask) -> Any:
        yield from said(ask)[:2]
        raise EngineDown("the engine has ended")

    engine.script, kept = (lambda ask: Lazy(broken(ask))), engine.script
    try:
        with pytest.raises(openai.APIError, match="the server's log says why"):
            list(ask(client, stream=True))
    finally:
        engine.script = kept
    assert engine.num_running == 0


class Lazy(list[int]):
    """Ids that come one by one, and may not."""

    def __init__(self, ids: Any) -> None:
        super().__init__()
        self.ids = ids

    def __getitem__(self, item: Any) -> Any:
        return self

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids)


# ---- limits, disconnection, the end ----


def opened(server: Running, body: dict[str, Any]) -> socket.socket:
    """A connection on which a chat was asked, nothing read yet."""
    text = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **body}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
    return connection


async def until(is_so: Any) -> None:
    """Wait for the server to come so far; the test's own limit is that of the caller."""
    while not is_so():
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_row(server: Running, engine: ScriptedEngine, said: Said, stream: bool) -> None:
    said.text = "a long answer"
    before, engine.held = engine.num_cancelled, True
    try:
        with opened(server, {"stream": stream, "n": 2}) as connection:
            server.run(until(lambda: engine.num_running == 2))
            if stream:
                assert b"200 OK" in connection.recv(4096)
        server.run(until(lambda: engine.num_running == 0))
    finally:
        engine.held = False
    server.run(until(lambda: server.gateway.gate.num_in_flight == 0))
    assert engine.num_cancelled == before + 2
    assert server.usage()[-1]["status"] == 499 and server.usage()[-1]["num_completion_tokens"] == 2


@contextlib.contextmanager
def held(model: Path, said: Said, folder: Path, **limits: Any) -> Iterator[tuple[Running, ScriptedEngine, OpenAI]]:
    """A server of its own whose engine waits after each answer's first token."""
    engine = ScriptedEngine(said)
    engine.held = True

    async def open_engine() -> Any:
        return engine

    with (
        running(folder, str(model), open_engine, limits=Limits(**limits)) as server,
        OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0) as client,
    ):
        yield server, engine, client


def test_a_full_queue_and_a_large_body(model: Path, said: Said, tmp_path: Path) -> None:
    said.text = "abc"
    with held(model, said, tmp_path, queue=2, max_body_mb=0.01) as (server, engine, client):
        with opened(server, {"n": 2}):
            server.run(until(lambda: engine.num_running == 2))
            with pytest.raises(openai.RateLimitError, match="2 are its limit") as full:
                ask(client)
            assert full.value.response.headers["retry-after"] == "1"
        server.run(until(lambda: engine.num_running == 0))
        with pytest.raises(openai.APIStatusError) as large:
            ask(client, user="x" * 20_000)
        assert large.value.status_code == 413
        headers = {"Authorization": f"Bearer {server.key}"}
        parts = (b"x" * 5_000 for _ in range(4))
        chunked = httpx2.post(f"{server.base_url}/chat/completions", content=parts, headers=headers)
        assert chunked.status_code == 413
        metrics = httpx2.get(f"{server.url}/metrics", headers=headers).text
        assert 'shoestring_requests_total{endpoint="chat.completions",model="tiny",status="429"} 1.0' in metrics


def test_an_answer_that_takes_too_long_is_ended(model: Path, said: Said, tmp_path: Path) -> None:
    said.text = "abc"
    with held(model, said, tmp_path, timeout_s=0.1) as (server, engine, client):
        with pytest.raises(openai.InternalServerError, match=r"longer than 0\.1 s") as late:
            ask(client)
        assert late.value.status_code == 503
        with pytest.raises(openai.APIError, match=r"longer than 0\.1 s"):
            list(ask(client, stream=True))
        assert engine.num_running == 0
        assert [row["status"] for row in server.usage()] == [503, 503]


def test_answers_on_their_way_are_let_finish(model: Path, said: Said, tmp_path: Path) -> None:
    said.text = "abc"
    engine = ScriptedEngine(said)
    engine.held = True

    async def open_engine() -> Any:
        return engine

    with running(tmp_path, str(model), open_engine) as server, opened(server, {}) as connection:
        server.run(until(lambda: engine.num_running == 1))
        ends = threading.Thread(target=server.stop)
        ends.start()
        server.run(until(lambda: server.is_ending()))
        server.run(release(engine))
        text = b""
        while part := connection.recv(4096):
            text += part
        ends.join()
    assert b'"content":"abc"' in text and engine.is_closed


async def release(engine: ScriptedEngine) -> None:
    engine.go.set()


def test_keys_are_made_and_removed_while_serving(server: Running) -> None:
    admin = {"Authorization": f"Bearer {server.admin_key}"}
    url = f"{server.url}/admin/keys"
    made = httpx2.post(url, json={"name": "team"}, headers=admin)
    assert made.status_code == 201
    with OpenAI(base_url=server.base_url, api_key=made.json()["key"], max_retries=0) as client:
        ask(client)
        assert server.usage()[-1]["key"] == "team"
        assert httpx2.post(url, json={"name": "team"}, headers=admin).status_code == 400
        assert httpx2.post(url, json={"name": "x", "is_admin": True}, headers=admin).status_code == 400
        assert made.json()["key"] not in httpx2.get(url, headers=admin).text
        assert httpx2.delete(f"{url}/team", headers=admin).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            ask(client)
    assert httpx2.delete(f"{url}/team", headers=admin).status_code == 404


def test_no_key_and_no_text_is_written_anywhere(server: Running, client: OpenAI, capfd: Any) -> None:
    client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a secret matter"}])
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a secret matter"}], n=99)
    written = "".join(path.read_text() for path in server.gateway.state.rglob("*") if path.is_file())
    out, err = capfd.readouterr()
    for text in (server.key, server.admin_key, "secret matter"):
        assert text not in written + out + err


def test_the_system_prompt_of_a_run_is_put_before_requests_without_one(model: Path, said: Said, tmp_path: Path) -> None:
    make_run(tmp_path, "tickets", str(model), system="Sort it.")
    engine = ScriptedEngine(said)

    async def open_engine() -> Any:
        return engine

    with (
        running(tmp_path, str(model), open_engine, ("tickets",)) as server,
        OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0) as client,
    ):
        for messages, head in (([], "Sort it."), ([{"role": "system", "content": "Else."}], "Else.")):
            client.chat.completions.create(model="tickets", messages=[*messages, {"role": "user", "content": "hi"}])
            asked = engine.asked[-1]
            assert TOKENIZER.decode(asked.prompt_ids).startswith(f"<|bos|><|system|>\n{head}<|end|>\n<|user|>")
            assert (asked.adapter, asked.sampling.max_new_tokens) == ("tickets", 16)  # as many as in the evaluation
