"""The endpoint client against a real HTTP server on the loopback: answers, faults, retries, cache, threads."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from shoestring.config import EndpointConfig
from shoestring.decide.answers import AnswerFile
from shoestring.decide.client import Client
from shoestring.errors import ConfigError, EndpointError
from shoestring.records import Generate, Message, no_progress
from tests.loopback import LoopbackServer, QuietHandler

# What a server does with the n-th request (from 0): status, headers, body.
Reply = tuple[int, dict[str, str], bytes]


class Server(LoopbackServer):
    """A chat-completions server whose replies a test scripts; it keeps the requests it saw."""

    def __init__(self, reply: Callable[[int, dict[str, Any]], Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        lock = threading.Lock()
        server = self

        class Handler(QuietHandler):
            protocol_version = "HTTP/1.0"  # a connection a request

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(server.requests)
                    server.requests.append({**body, "path": self.path})
                    server.headers.append(dict(self.headers))
                    server.in_flight += 1
                    server.most_in_flight = max(server.most_in_flight, server.in_flight)
                status, headers, data = reply(number, body)
                with lock:
                    server.in_flight -= 1
                self.answer(status, headers, data)

        self.serve(Handler)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setenv("TEST_KEY", "sk-test")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(reply: Callable[[int, dict[str, Any]], Reply]) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def chat(text: str | None, finish: str = "stop", tokens: tuple[int, int] | None = (100, 10)) -> Reply:
    body: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}
    if tokens:
        body["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return 200, {}, json.dumps(body).encode()


def echo(number: int, body: dict[str, Any]) -> Reply:
    return chat("re: " + body["messages"][-1]["content"])


def client(server: Server, cache: Path, **options: Any) -> Generate:
    settings = {"name": "big", "base_url": server.url + "/", "model": "m-1", "api_key_env": "TEST_KEY"}
    settings |= {"usd_per_million_input_tokens": 2.0, "usd_per_million_output_tokens": 10.0, "timeout_s": 5} | options
    return Client(EndpointConfig(**settings), AnswerFile(cache / "answers.jsonl"), 32, backoff_s=0.01).generate


def ask(*texts: str) -> list[tuple[Message, ...]]:
    return [(Message("system", "S"), Message("user", text)) for text in texts]


def test_answers_in_order_with_cost_and_the_request_the_api_expects(serve: Any, tmp_path: Path) -> None:
    server = serve(echo)
    seen: list[tuple[str, int, int | None]] = []
    got = client(server, tmp_path)(ask("a", "b", "a"), lambda *step: seen.append(step))

    assert [c.text for c in got] == ["re: a", "re: b", "re: a"]
    assert got[0].cost_usd == pytest.approx((100 * 2 + 10 * 10) / 1e6)
    assert (got[0].num_prompt_tokens, got[0].num_completion_tokens, got[0].stopped) == (100, 10, True)
    assert 0 < got[0].latency_s < 5
    assert len(server.requests) == 2  # equal prompts are asked once
    first = next(r for r in server.requests if r["messages"][-1]["content"] == "a")
    assert first == {
        "path": "/v1/chat/completions",
        "model": "m-1",
        "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}],
        "max_tokens": 32,
        "temperature": 0,
    }
    assert server.headers[0]["Authorization"] == "Bearer sk-test"
    assert seen[0] == ("big", 0, 3) and seen[-1] == ("big", 3, 3)


def test_the_cache_saves_a_second_payment_and_holds_no_key(serve: Any, tmp_path: Path) -> None:
    server = serve(echo)
    first = client(server, tmp_path)(ask("a", "b"), no_progress)
    again = client(server, tmp_path)(ask("b", "a"), no_progress)
    assert again == first[::-1] and len(server.requests) == 2
    file = tmp_path / "answers.jsonl"
    kept = file.read_text()
    assert len(kept.splitlines()) == 2 and "sk-test" not in kept
    file.write_text(kept[:-20])  # a line that a kill cut short is asked for again, and spoils none after it
    assert client(server, tmp_path)(ask("a", "b"), no_progress)[0].text == "re: a" and len(server.requests) == 3
    assert client(server, tmp_path)(ask("a", "b"), no_progress)[1].text == "re: b" and len(server.requests) == 3
    client(server, tmp_path, model="m-2")(ask("a"), no_progress)
    assert len(server.requests) == 4


def test_requests_run_in_parallel_up_to_the_limit(serve: Any, tmp_path: Path) -> None:
    def slow(number: int, body: dict[str, Any]) -> Reply:
        time.sleep(0.05)
        return echo(number, body)

    server = serve(slow)
    client(server, tmp_path, num_parallel=3)(ask(*"abcdefghi"), no_progress)
    assert server.most_in_flight == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_faults_are_retried(serve: Any, tmp_path: Path, status: int) -> None:
    server = serve(lambda n, body: (status, {}, b"busy") if n < 3 else echo(n, body))
    assert client(server, tmp_path)(ask("a"), no_progress)[0].text == "re: a"
    assert len(server.requests) == 4


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(serve: Any, tmp_path: Path, as_date: bool) -> None:
    # A date has whole seconds: two from now is at least one.
    wait = formatdate(time.time() + 2, usegmt=True) if as_date else "0.4"
    server = serve(lambda n, body: (429, {"Retry-After": wait}, b"slow down") if n == 0 else echo(n, body))
    started = time.monotonic()
    client(server, tmp_path)(ask("a"), no_progress)
    assert time.monotonic() - started > (0.9 if as_date else 0.4)


def test_a_server_that_asks_for_an_hour_is_not_waited_for(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda n, body: (429, {"Retry-After": "3600"}, b"quota"))
    with pytest.raises(EndpointError, match=r"'quota' \(1 attempt\); it asks to wait 3600 s, and no more than 120 s"):
        client(server, tmp_path)(ask("a"), no_progress)


def test_lasting_faults_name_url_status_body_and_next_step(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda n, body: (500, {}, b"boom " * 100))
    with pytest.raises(EndpointError) as failure:
        client(server, tmp_path)(ask("a"), no_progress)
    text = str(failure.value)
    assert f"{server.url}/chat/completions" in text and "HTTP 500, 'boom boom" in text and "6 attempts" in text
    assert "try again later" in text and len(text) < 500
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("status", "step"),
    [
        (401, "check the key in the environment variable TEST_KEY"),
        (402, "check the account's balance"),
        (403, "check that the key in TEST_KEY may use model 'm-1'"),
        (404, r"check base_url \(it usually ends in /v1\) and model \('m-1'\)"),
        (400, "length of the prompts"),
        (413, "shorten the prompts"),
        (422, "whether it takes OpenAI's parameters"),
    ],
)
def test_refusals_are_not_retried(serve: Any, tmp_path: Path, status: int, step: str) -> None:
    server = serve(lambda n, body: (status, {}, b'{"error": "no"}'))
    with pytest.raises(EndpointError, match=step) as failure:
        client(server, tmp_path)(ask("a"), no_progress)
    assert len(server.requests) == 1 and "sk-test" not in str(failure.value)


def test_an_exhausted_quota_is_not_retried(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda n, body: (429, {}, b'{"error": {"code": "insufficient_quota"}}'))
    with pytest.raises(EndpointError, match="the account's quota is used up: raise it"):
        client(server, tmp_path)(ask("a"), no_progress)
    assert len(server.requests) == 1


def test_a_redirect_is_not_followed_with_the_key(serve: Any, tmp_path: Path) -> None:
    other = serve(echo)
    server = serve(lambda n, body: (302, {"Location": other.url}, b"moved"))
    with pytest.raises(EndpointError, match="HTTP 302, 'moved'; a redirect is not followed"):
        client(server, tmp_path)(ask("a"), no_progress)
    assert not other.requests


def test_a_slow_server_times_out(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoestring.decide.client.MAX_ATTEMPTS", 2)
    release = threading.Event()

    def hang(number: int, body: dict[str, Any]) -> Reply:
        release.wait(10)
        return echo(number, body)

    server = serve(hang)
    with pytest.raises(EndpointError, match=r"no answer within 0.2 s \(timeout_s\) \(2 attempts\); raise timeout_s"):
        client(server, tmp_path, timeout_s=0.2)(ask("a"), no_progress)
    release.set()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>login</html>", "is no chat completion: '<html>login</html>'; check that base_url is the address of"),
        (b'{"choices": []}', "is no chat completion"),
        (b"[1]", "is no chat completion"),
        (b'{"choices": [{"message": {"content": [1]}}], "usage": {}}', "content is no text"),
        (chat("x", tokens=None)[2], "states no token usage"),
    ],
)
def test_nonsense_is_refused(serve: Any, tmp_path: Path, body: bytes, message: str) -> None:
    server = serve(lambda n, request: (200, {}, body))
    with pytest.raises(EndpointError, match=message):
        client(server, tmp_path)(ask("a"), no_progress)
    assert not list(tmp_path.iterdir())


def test_without_prices_usage_may_be_missing(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda n, body: chat(None, finish="length", tokens=None))
    free = {"usd_per_million_input_tokens": 0, "usd_per_million_output_tokens": 0}
    (got,) = client(server, tmp_path, **free)(ask("a"), no_progress)
    assert (got.text, got.cost_usd, got.stopped) == ("", 0.0, False)


def test_a_body_cut_short_is_asked_for_again(serve: Any, tmp_path: Path) -> None:
    def cut(number: int, body: dict[str, Any]) -> Reply:
        status, _, data = echo(number, body)
        return (
            (status, {"Content-Length": str(len(data) + 50), "Connection": "close"}, data)
            if number == 0
            else echo(number, body)
        )

    server = serve(cut)
    assert client(server, tmp_path)(ask("a"), no_progress)[0].text == "re: a"
    assert len(server.requests) == 2


def test_newer_models_get_the_parameters_they_ask_for(serve: Any, tmp_path: Path) -> None:
    def strict(number: int, body: dict[str, Any]) -> Reply:
        if "max_tokens" in body:
            return 400, {}, b"Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        if "temperature" in body:
            return 400, {}, b"Unsupported value: 'temperature' does not support 0."
        return echo(number, body)

    server = serve(strict)
    client(server, tmp_path / "1", num_parallel=1)(ask("a", "b"), no_progress)
    assert len(server.requests) == 4
    assert server.requests[-1]["max_completion_tokens"] == 32 and "max_tokens" not in server.requests[-1]
    # All at once: what one thread has learnt is no reason for another to give up.
    together = threading.Barrier(4)

    def strict_together(number: int, body: dict[str, Any]) -> Reply:
        if number < 4:
            together.wait(5)
        return strict(number, body)

    crowd = serve(strict_together)
    assert len(client(crowd, tmp_path / "2", num_parallel=4)(ask(*"abcd"), no_progress)) == 4


def test_sampling_seeds_give_answers_of_their_own(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda n, body: chat(f"seed {body.get('seed')}"))
    settings = EndpointConfig(
        name="big", base_url=server.url, model="m", api_key_env="",
        usd_per_million_input_tokens=1, usd_per_million_output_tokens=2,
    )  # fmt: skip
    asked = Client(settings, AnswerFile(tmp_path / "answers.jsonl"), max_new_tokens=8, temperature=0.7)
    (prompt,) = ask("a")
    texts = [asked.sampling(seed)([prompt], no_progress)[0].text for seed in (0, 1, 0)]
    assert texts == ["seed 0", "seed 1", "seed 0"] and len(server.requests) == 2
    assert server.requests[0]["temperature"] == 0.7
    assert asked.has(prompt, 1) and not asked.has(prompt, 2) and not asked.has(prompt)
    again = AnswerFile(tmp_path / "answers.jsonl")
    assert again.spent_usd() == pytest.approx(2 * (100 + 2 * 10) / 1e6)
    assert again.get(asked.key(prompt, 1)).made_at.endswith("+00:00")  # type: ignore[union-attr]


def test_what_a_providers_filter_stops_is_an_answer_that_is_not_whole(serve: Any, tmp_path: Path) -> None:
    def filtered(number: int, body: dict[str, Any]) -> Reply:
        if body["messages"][-1]["content"] == "a":
            return 400, {}, b'{"error": {"code": "content_filter"}}'
        return chat("half", finish="content_filter")

    server = serve(filtered)
    first, second = client(server, tmp_path)(ask("a", "b"), no_progress)
    assert (first.text, first.stopped, first.cost_usd) == ("", False, 0.0)
    assert (second.text, second.stopped) == ("half", False)


def test_one_failure_stops_the_rest_and_keeps_what_was_paid_for(serve: Any, tmp_path: Path) -> None:
    def one_bad(number: int, body: dict[str, Any]) -> Reply:
        if body["messages"][-1]["content"] == "bad":
            time.sleep(0.1)
            return 400, {}, b"context length exceeded"
        return echo(number, body)

    server = serve(one_bad)
    with pytest.raises(EndpointError, match="context length exceeded"):
        client(server, tmp_path, num_parallel=1)(ask("a", "b", "bad", *"cdefgh"), no_progress)
    assert len(server.requests) == 3
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 2


def test_answers_in_flight_when_another_fails_are_kept(serve: Any, tmp_path: Path) -> None:
    def one_bad(number: int, body: dict[str, Any]) -> Reply:
        if body["messages"][-1]["content"] == "bad":
            return 400, {}, b"no"
        time.sleep(0.3)
        return echo(number, body)

    server = serve(one_bad)
    with pytest.raises(EndpointError):
        client(server, tmp_path, num_parallel=3)(ask("a", "b", "bad", "c"), no_progress)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == len(server.requests) - 1


def test_an_interrupt_leaves_at_once_and_stops_the_threads(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda n, body: (503, {}, b"busy") if body["messages"][-1]["content"] != "a" else echo(n, body))

    def interrupted(label: str, done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    settings = EndpointConfig(
        name="big", base_url=server.url, model="m", api_key_env="TEST_KEY",
        usd_per_million_input_tokens=1, usd_per_million_output_tokens=1,
    )  # fmt: skip
    generate = Client(settings, AnswerFile(tmp_path / "answers.jsonl"), max_new_tokens=8, backoff_s=60.0).generate
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        generate(ask(*"abcd"), interrupted)
    assert time.monotonic() - started < 30
    deadline = time.monotonic() + 20
    while any(t.name == "endpoint-big" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(t.name == "endpoint-big" for t in threading.enumerate())


def test_a_missing_key_or_a_bad_address_is_refused_before_any_request(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(echo)
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(
        ConfigError, match=r"environment variable TEST_KEY is not set; export the key there, or set api_key_env"
    ):
        client(server, tmp_path)
    assert client(server, tmp_path, api_key_env="")(ask("a"), no_progress)[0].text == "re: a"
    assert "Authorization" not in server.headers[0]
    monkeypatch.setenv("TEST_KEY", "sk-\u200btest")
    with pytest.raises(ConfigError, match="characters no key has"):
        client(server, tmp_path)
    with pytest.raises(ConfigError, match="is no http"):
        client(server, tmp_path, base_url="api.example.com/v1", api_key_env="")


def test_a_key_that_was_never_sent_is_named(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda n, body: (401, {}, b"no key"))
    with pytest.raises(EndpointError, match=r"no key was sent; name the environment variable .* under api_key_env"):
        client(server, tmp_path, api_key_env="")(ask("a"), no_progress)


def test_https_where_http_is_spoken(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoestring.decide.client.MAX_ATTEMPTS", 1)
    server = serve(echo)
    with pytest.raises(EndpointError, match=r"connection failed: .*SSL.*; check base_url: http:// or https://"):
        client(server, tmp_path, base_url=server.url.replace("http:", "https:"))(ask("a"), no_progress)


def test_an_address_nobody_listens_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoestring.decide.client.MAX_ATTEMPTS", 2)
    settings = EndpointConfig(
        name="big", base_url="http://127.0.0.1:9/v1", model="m", api_key_env="",
        usd_per_million_input_tokens=1, usd_per_million_output_tokens=1,
    )  # fmt: skip
    with pytest.raises(EndpointError, match=r"connection failed: .*refused.* \(2 attempts\); is the server running"):
        Client(settings, AnswerFile(tmp_path / "answers.jsonl"), 8, backoff_s=0.01).generate(ask("a"), no_progress)
