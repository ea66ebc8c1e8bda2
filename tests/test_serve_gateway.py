"""The gateway over an engine that says what it is told: texts, stops, calls, log-probabilities, limits, records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from shoestring.serve.engine import Ask
from tests.scripted_engine import ScriptedEngine
from tests.served import Running, running
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
