"""Adapters come and go over HTTP while others answer; a request names runs, never paths."""

from __future__ import annotations

import json
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Running, running
from served_runs import CPU, make_run

from shoestring.serve.engines.embedded import open_embedded
from shoestring.serve.gateway.admin import routes

MODEL = "shoestring-1m"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    runs = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("tickets", "orders", "dora")):
        make_run(runs, name, seed=seed, **({"use_dora": True} if name == "dora" else {}))
    with running(runs, MODEL, lambda: open_embedded(MODEL, device=CPU), ("tickets",), routes=tuple(routes())) as own:
        yield own


def ask(server: Running, method: str, path: str, body: Any = None, *, key: str | None = None) -> tuple[int, Any]:
    """Status and JSON; with the admin key unless another is given."""
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    headers = {
        "Authorization": f"Bearer {server.admin_key if key is None else key}",
        "Content-Type": "application/json",
    }
    request = urllib.request.Request(f"{server.url}{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def names(server: Running) -> set[str]:
    return {entry["id"] for entry in ask(server, "GET", "/v1/models", key=server.key)[1]["data"]}


def chat(server: Running, model: str) -> tuple[int, str]:
    body = {"model": model, "messages": [{"role": "user", "content": "My order is late."}], "max_tokens": 12}
    status, told = ask(server, "POST", "/v1/chat/completions", body, key=server.key)
    return status, told["choices"][0]["message"]["content"] if status == 200 else told["error"]["code"]


def test_an_adapter_is_loaded_reloaded_and_dropped(server: Running) -> None:
    status, told = ask(server, "POST", "/admin/adapters", {"run": "orders"})
    assert (status, told["id"], told["rank"], told["score"]["value"]) == (201, "orders", 4, 0.9)
    assert names(server) == {MODEL, "tickets", "orders"}
    answers = {model: chat(server, model)[1] for model in names(server)}
    assert len(set(answers.values())) == 3, "each answers as itself"
    assert ask(server, "POST", "/admin/adapters", {"run": "orders"})[0] == 200, "a reload"
    assert chat(server, "orders") == (200, answers["orders"])
    status, told = ask(server, "POST", "/admin/adapters", {"run": "orders", "name": "ft:shoestring-1m:me:orders:7"})
    assert status == 201 and chat(server, "ft:shoestring-1m:me:orders:7") == (200, answers["orders"])
    status, told = ask(server, "GET", "/admin/adapters")
    assert [(entry["id"], entry["run"]) for entry in told["data"]] == [
        ("ft:shoestring-1m:me:orders:7", "orders"),
        ("orders", "orders"),
        ("tickets", "tickets"),
    ]
    for name in ("orders", "ft:shoestring-1m:me:orders:7"):
        assert ask(server, "DELETE", f"/admin/adapters/{name}") == (
            200,
            {"object": "adapter", "id": name, "deleted": True},
        )
    assert names(server) == {MODEL, "tickets"} and chat(server, "orders") == (404, "model_not_found")
    assert ask(server, "DELETE", "/admin/adapters/orders")[0] == 404


def test_what_the_engine_may_not_have_is_refused_with_the_next_step(server: Running) -> None:
    status, told = ask(server, "POST", "/admin/adapters", {"run": "dora"})
    assert status == 400 and told["error"]["code"] == "adapter_refused"
    assert "embedded does not serve DoRA" in told["error"]["message"]
    assert "shoestring export" in told["error"]["message"]


def test_the_admin_key_alone_comes_here(server: Running) -> None:
    for method, path in (("GET", ""), ("POST", ""), ("DELETE", "/tickets")):
        assert ask(server, method, f"/admin/adapters{path}", key=server.key)[0] == 403
        assert ask(server, method, f"/admin/adapters{path}", key="")[0] == 401
    assert "tickets" in names(server)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b'"tickets"', b"[" * 100_000),
        *({"run": 1}, {"run": ["tickets"]}, {"run": "orders", "name": 3}, {"run": "orders", "path": "/tmp"}),
        *({"run": "orders", "name": "../x"}, {"run": "orders", "name": "shoestring-1m"}),
    ],
)
def test_malformed_requests_are_refused(server: Running, body: Any) -> None:
    status, told = ask(server, "POST", "/admin/adapters", body)
    assert status == 400 and told["error"]["type"] == "invalid_request_error"
    assert names(server) == {MODEL, "tickets"}


def test_names_cannot_be_paths(server: Running, tmp_path: Path) -> None:
    outside = make_run(tmp_path, "outside", seed=9)
    rng = random.Random(1)
    parts = ["..", "/", "\\", "%2e%2e", "%2f", "a", ".", "\0", "~", "\n", "-", "\u2025", " ", "*", "$HOME", ":"]
    wanted = ["".join(rng.choices(parts, k=rng.randint(1, 6))) for _ in range(100)]
    wanted += [str(outside), f"../{tmp_path.name}/outside", "tickets/../orders", "/etc/passwd", "tickets/", "./tickets"]
    for name in wanted:
        assert ask(server, "POST", "/admin/adapters", {"run": name})[0] == 400, name
    assert names(server) == {MODEL, "tickets"}


def test_others_answer_the_same_while_adapters_come_and_go(server: Running) -> None:
    expected, wrong, stop = chat(server, "tickets"), [], threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            found = chat(server, "tickets")
            if found != expected:
                wrong.append(found)

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        for _ in range(3):
            assert ask(server, "POST", "/admin/adapters", {"run": "orders"})[0] == 201
            assert ask(server, "POST", "/admin/adapters", {"run": "tickets"})[0] == 200
            assert ask(server, "DELETE", "/admin/adapters/orders")[0] == 200
    finally:
        stop.set()
        thread.join()
    assert not wrong
