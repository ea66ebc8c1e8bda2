"""A hub model that is not in the table: planned from its config.json, against a hub of our own on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.tiny import make_model

ROOT = Path(__file__).resolve().parent.parent
NAME = "owner/tiny"
SHAPE = """
import sys
from shoestring.errors import ModelError
from shoestring.stages.common import shape
try:
    print(shape(sys.argv[1]).num_params)
except ModelError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("hub") / "tiny")


@pytest.fixture(scope="module")
def hub(model: Path) -> Iterator[str]:
    """The address of a hub that has one model."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            owner_name, _, file = self.path.removeprefix("/").partition("/resolve/main/")
            path = model / file
            if self.path.startswith(f"/api/models/{NAME}"):
                self.answer(200, json.dumps({"id": NAME, "siblings": []}).encode())
            elif owner_name == NAME and file and path.is_file():
                self.answer(200, path.read_bytes())
            else:
                self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound" if owner_name == NAME else "RepoNotFound"})

        do_HEAD = do_GET

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            digest = hashlib.sha1(body).hexdigest()
            self.send_response(status)
            for key, value in {"ETag": f'"{digest}"', "X-Repo-Commit": "0" * 40, **(headers or {})}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def told(code: str, *arguments: str, home: Path, endpoint: str) -> str:
    """What a fresh interpreter prints whose hub is at endpoint; the hub's address is read once a process."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "PYTHONPATH": str(ROOT / "src"),
        "no_proxy": "127.0.0.1",
    }
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_model_outside_the_table_is_planned_from_the_hubs_config(model: Path, hub: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    expected = AutoModelForCausalLM.from_pretrained(model).num_parameters()
    assert told(SHAPE, NAME, home=tmp_path, endpoint=hub) == str(expected)
    # Once it is in the cache, the hub may be away.
    assert told(SHAPE, NAME, home=tmp_path, endpoint="http://127.0.0.1:9") == str(expected)


def test_without_the_hub_or_the_model_the_refusal_says_what_to_do(hub: str, tmp_path: Path) -> None:
    away = told(SHAPE, "Qwen/Qwen3-0.6", home=tmp_path, endpoint="http://127.0.0.1:9")
    assert "cannot be reached" in away and "give the folder" in away and "near: Qwen/Qwen3-0.6B" in away
    unknown = told(SHAPE, "owner/unknown", home=tmp_path, endpoint=hub)
    assert "the hub has no model 'owner/unknown'" in unknown and "check the spelling" in unknown
