"""Load on a server: what is timed and counted, by hand and against an echo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoestring.cli.main import run
from shoestring.errors import BadInput, EndpointError
from shoestring.files import write_jsonl
from shoestring.plan.served import ServedRates, rates_for, rates_in, save
from shoestring.records import Estimate, Example, Message, example_to_json
from shoestring.serve.load import (
    Load,
    Measured,
    figures,
    fitted,
    models_at,
    run_load,
    run_prompts,
    sized_prompts,
    text_prompts,
)
from shoestring.serve.rates import Round, measure_rates
from shoestring.serve.wire import Answer, Client, address
from tests.stream_server import StreamServer

ROOT = Path(__file__).resolve().parent.parent
MODELS = {"base": None, "north": "base", "south": "base"}


@pytest.fixture
def server() -> Iterator[StreamServer]:
    running = StreamServer(MODELS, key="secret", version="1")
    yield running
    running.close()


def ask(text: str) -> tuple[list[dict[str, str]], ...]:
    return ([{"role": "user", "content": text}],)


# ---- figures --------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    """Two answers in 2 s: first tokens after 0.1 and 0.3 s, then 4 tokens in 0.4 s and 1 in 0.5 s."""
    load = Load("http://x/v1", ("m",), ask("hi") * 6, clients=2, num_requests=6)
    one = Answer("m", 0.0, 0.1, 0.5, 0.6, num_prompt_tokens=10, num_new_tokens=5, num_cached_tokens=4)
    two = Answer("m", 1.0, 1.3, 1.8, 2.0, num_prompt_tokens=30, num_new_tokens=2)
    lost = Answer("m", 1.0, error="status 429", detail="full")
    told = figures(Measured(load, (one, two, lost), 2.0, 0.1))
    assert (told["num_requests"], told["num_done"], told["requests_per_s"]) == (3, 2, 1.0)
    assert (told["prompt_tokens_per_s"], told["new_tokens_per_s"]) == (20.0, 3.5)
    assert told["cached_frac"] == 0.1
    assert told["first_token_s"]["p50"] == pytest.approx(0.2)
    assert told["first_token_s"]["p90"] == pytest.approx(0.28)
    assert told["per_token_s"]["mean"] == pytest.approx((0.1 + 0.5) / 2)
    assert told["errors"] == {"status 429": {"num": 1, "example": "full"}}
    assert told["notes"] == []


def test_a_busy_client_says_so() -> None:
    load = Load("http://x/v1", ("m",), ask("hi"), num_requests=100)
    assert "may have been the limit" in figures(Measured(load, (), 1.0, 0.9))["notes"][0]


def test_reading_and_writing_are_told_apart_by_hand() -> None:
    """100 tokens read at 1,000 a second, 11 written at 20: 0.1 + 0.05 s for one token, 0.1 + 0.55 s for eleven."""
    split = Round(short_s=0.15, whole_s=0.65, prompt_tokens=100, new_tokens=11, cached_frac=0).split
    assert split == pytest.approx((1000, 20))
    assert Round(0.15, 0.15, 100, 1, 0).split is None


# ---- one client -----------------------------------------------------------------------------


def test_an_answer_is_read_as_it_streams(server: StreamServer) -> None:
    client = Client(server.url, "secret")
    answer = client.ask(Load(server.url, ("north",), ask("one two three")).body(0))
    assert (answer.text, answer.error, answer.finish) == ("north one two three ", "", "stop")
    assert (answer.num_prompt_tokens, answer.num_new_tokens, answer.num_cached_tokens) == (3, 4, 1)
    assert answer.num_pieces == 4 and len(answer.gaps_s) == 3
    assert answer.sent_s <= answer.first_s <= answer.last_s <= answer.end_s  # type: ignore[operator]
    first = client._connection
    assert client.ask(Load(server.url, ("north",), ask("again")).body(0)).error == ""
    assert client._connection is first  # kept open
    client.close()


@pytest.mark.parametrize(
    ("prompt", "kind", "detail"),
    [
        ("busy", "status 429", "the queue is full"),
        ("cut now", "cut off", "without [DONE]"),
        ("broken now", "error in the stream", "the engine ended"),
        ("garbage now", "not the API's format", "Expecting value"),
        ("vanish", "connection lost", "closed connection"),
    ],
)
def test_what_goes_wrong_has_a_name(server: StreamServer, prompt: str, kind: str, detail: str) -> None:
    client = Client(server.url, "secret")
    answer = client.ask(Load(server.url, ("base",), ask(prompt)).body(0))
    assert answer.error == kind
    assert detail in answer.detail
    assert client.ask(Load(server.url, ("base",), ask("fine")).body(0)).error == ""  # the next one is not hurt
    client.close()


def test_addresses() -> None:
    assert address("http://127.0.0.1:8000") == ("http", "127.0.0.1", 8000, "/v1")
    assert address("localhost:9/v1/") == ("http", "localhost", 9, "/v1")
    assert address("https://api.example.com/openai/v1") == ("https", "api.example.com", 443, "/openai/v1")
    for wrong in ("ftp://x", "http://", "http://x:port/v1"):
        with pytest.raises(BadInput, match="no http"):
            address(wrong)


def test_no_server_is_told() -> None:
    with pytest.raises(EndpointError, match="is the server running"):
        models_at(Client("http://127.0.0.1:9/v1"))


# ---- many -----------------------------------------------------------------------------------


def test_models_and_prompts_take_turns(server: StreamServer) -> None:
    load = Load(server.url, tuple(MODELS), text_prompts(5, 3, 4), clients=4, num_requests=24, key="secret")
    measured = run_load(load)
    told = figures(measured)
    assert (told["num_done"], told["errors"]) == (24, {})
    assert {name: one["num_done"] for name, one in told["by_model"].items()} == dict.fromkeys(MODELS, 8)
    assert all(a.text.startswith(a.model) for a in measured.answers)  # none was crossed
    assert told["prompt_tokens_mean"] == 8
    assert sum(one["new_tokens_per_s"] for one in told["by_model"].values()) == pytest.approx(told["new_tokens_per_s"])


def test_refused_parameters_are_left_out_or_renamed() -> None:
    server = StreamServer(MODELS, refused=("temperature", "max_tokens", "stream_options"))
    load = fitted(Load(server.url, ("base",), ask("hello there"), num_requests=2))
    assert (load.parameters, load.limit_name) == ((), "max_completion_tokens")
    told = figures(run_load(load))
    assert told["num_done"] == 2 and told["prompt_tokens_per_s"] is None
    assert "pieces of the stream are counted" in told["notes"][0]
    server.close()


def test_a_wrong_key_or_model_ends_before_the_load(server: StreamServer) -> None:
    with pytest.raises(EndpointError, match="api-key-file"):
        fitted(Load(server.url, ("base",), ask("hi"), key="wrong"))
    with pytest.raises(EndpointError, match=r"no model west.*--models"):
        fitted(Load(server.url, ("west",), ask("hi"), key="secret"))


def test_a_busy_server_is_waited_for_before_the_load() -> None:
    server = StreamServer({"base": None}, busy=3)
    load = fitted(Load(server.url, ("base",), ask("hi"), num_requests=2))
    assert figures(run_load(load))["num_done"] == 2
    assert len(server.bodies) == 3 + 1 + 2
    server.close()


def test_prompts_of_a_size(server: StreamServer) -> None:
    load = Load(server.url, ("base",), ask("hi"), key="secret")
    made = sized_prompts(load, 40, 300, 5)
    assert {len(m["content"].split()) for p in made for m in p if m["role"] == "user"} == {40}
    assert {m["content"] for p in made for m in p if m["role"] == "system"} == {made[0][0]["content"]}
    assert len({p[1]["content"].split()[0] for p in made}) == 5  # they part at the first word


def test_prompts_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="curate"):
        run_prompts(tmp_path)
    (tmp_path / "data").mkdir()
    example = Example((Message("user", "q"), Message("assistant", "a")), (1, 2))
    write_jsonl(tmp_path / "data" / "eval.jsonl", [example_to_json(example)])  # as curation writes it
    assert run_prompts(tmp_path) == ([{"role": "user", "content": "q"}],)


def test_many_clients_are_refused_by_number(server: StreamServer) -> None:
    with pytest.raises(BadInput, match="--clients 5000: choose 1 to 1024"):
        run_load(Load(server.url, ("base",), ask("hi"), clients=5000))


# ---- the command ----------------------------------------------------------------------------


def test_the_command_prints_one_object(server: StreamServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    arguments = f"bench serve {server.url} --requests 12 --clients 3 --prompts 30+10 --api-key-file {key} --json"
    assert run(arguments.split()) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["num_done"], told["models"]) == (12, list(MODELS))
    assert told["prompt_tokens_mean"] == 40
    assert run([a for a in arguments.split() if a != "--json"]) == 0
    shown = capfd.readouterr().out
    assert "12 of 12 requests answered" in shown and "first token" in shown and "north" in shown


def test_wrong_arguments(server: StreamServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    for more, said in (
        (f"--api-key-file {tmp_path / 'none'}", "cannot be read"),
        ("--requests 5 --seconds 5", "exclude each other"),
        ("--requests 0", "more than 0"),
        (f"--save {tmp_path}", "no run folder"),
        ("--device L4", "--save alone"),
        (f"--prompts {tmp_path} --api-key-file {key}", "curate"),
        ("", "give the key"),
    ):
        assert run(["bench", "serve", server.url, *more.split()]) in (1, 2)
        assert said in capfd.readouterr().err.replace("check the key", "give the key")


def test_ctrl_c_gives_what_was_measured(server: StreamServer) -> None:
    arguments = f"bench serve {server.url} --models base --requests 100000 --clients 2 --prompts 20 --json".split()
    started = subprocess.Popen(
        [sys.executable, "-m", "shoestring", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "SHOESTRING_API_KEY": "secret"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert all(server.asked.acquire(timeout=60) for _ in range(40))  # the load is on
    started.send_signal(signal.SIGINT)
    out, _ = started.communicate(timeout=60)
    told = json.loads(out)
    assert started.returncode == 5
    assert told["is_interrupted"] and 20 < told["num_done"] < 100000 and told["errors"] == {}


# ---- rates for the plan ---------------------------------------------------------------------


def rates(**more: object) -> ServedRates:
    values = {
        "model": "base", "engine": "embedded", "engine_version": "1", "device": "L4", "clients": 8,
        "measured_at": "2026-11-28T12:00:00+00:00", "prompt_tokens": 200.0, "completion_tokens": 20.0,
        "cached_frac": 0.0, "requests_per_s": Estimate(4, 3, 5), "prefill_tokens_per_s": Estimate(2000, 1000, 4000),
        "decode_tokens_per_s": Estimate(100, 50, 200), "alone_s": Estimate(1, 1, 1),
        "lora_loss_frac": Estimate(0.2, 0.1, 0.3), "num_adapters": 2, **more,
    }  # fmt: skip
    return ServedRates(**values)  # type: ignore[arg-type]


def test_saved_rates_come_back_and_newer_ones_replace(tmp_path: Path) -> None:
    assert rates_in(tmp_path) == []
    save(tmp_path, rates())
    save(tmp_path, rates(device="NVIDIA L4", measured_at="2026-11-29T12:00:00+00:00"))  # the same card
    save(tmp_path, rates(device="T4"))
    found = rates_in(tmp_path)
    assert [one.device for one in found] == ["NVIDIA L4", "T4"]
    assert rates_for(found, "L4").measured_at.startswith("2026-11-29")  # type: ignore[union-attr]
    assert rates_for(found, "A10") is None
    (tmp_path / "serving.json").write_text('{"rates": [{}]}')
    with pytest.raises(OSError, match="measure again"):
        rates_in(tmp_path)


def test_seconds_of_a_request_by_hand() -> None:
    """200 tokens read at 2,000 a second and 20 written at 100: 0.1 + 0.2 s."""
    assert rates().seconds_per_request(200, 20) == pytest.approx(0.3)
    assert rates().seconds_per_request(200, 20, "high") == pytest.approx(0.6)
    assert rates(decode_tokens_per_s=None).seconds_per_request(200, 20) is None
    assert rates().kept_frac == pytest.approx(0.8)


def test_rates_of_a_server(server: StreamServer) -> None:
    load = Load(server.url, ("base",), text_prompts(20, 0, 102), clients=2, num_requests=8, key="secret")
    machine = {"engine": "echo", "engine_version": "1", "device": "L4"}
    found = measure_rates(load, "base", ["north", "south"], machine)
    assert (found.model, found.num_adapters, found.device) == ("base", 2, "L4")
    assert found.prompt_tokens == 20 and found.completion_tokens == 21
    assert found.requests_per_s.low <= found.requests_per_s.value <= found.requests_per_s.high
    said = [b["messages"][0]["content"] for b in server.bodies]
    assert len(set(said)) == len(said) == 102  # none is asked twice while there are others
    # Each model alone: 3 rounds of 2 loads of 8, and 6 of one client.
    asked = [b["model"] for b in server.bodies]
    assert asked.count("base") == 3 * 2 * 8 + 6 and asked.count("north") == asked.count("south") == 3 * 8


def test_rates_of_a_failing_server_are_none(server: StreamServer) -> None:
    load = Load(server.url, ("base",), ask("cut here"), clients=2, num_requests=4, key="secret")
    with pytest.raises(EndpointError, match="nothing is saved"):
        measure_rates(load, "base", [], {"engine": "echo", "engine_version": "1", "device": "L4"})


def test_the_command_saves_rates(server: StreamServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("name: x\n")
    os.environ["SHOESTRING_API_KEY"] = "secret"
    try:
        assert (
            run(f"bench serve {server.url} --requests 9 --clients 2 --save {tmp_path} --device L4 --json".split()) == 0
        )
    finally:
        del os.environ["SHOESTRING_API_KEY"]
    told = json.loads(capfd.readouterr().out)
    assert told["saved"] == str(tmp_path / "serving.json")
    (one,) = rates_in(tmp_path)
    assert (one.engine, one.engine_version, one.device, one.num_adapters) == ("echo", "1", "L4", 2)
