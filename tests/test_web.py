"""The page: who may look, the list of runs, a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from shoestring.web.app import make_app
from shoestring.web.site import MAX_BODY_BYTES, Site

ROOT = Path(__file__).resolve().parent.parent
PORT = 8123
BASE = f"http://127.0.0.1:{PORT}"


def client_of(runs_dir: Path) -> TestClient:
    """A browser that has opened the first address."""
    site = Site(runs_dir, PORT)
    client = TestClient(make_app(site), base_url=BASE, headers={"origin": BASE})
    assert client.get(f"/?token={site.token}").status_code == 200
    return client


# ---- who may look ---------------------------------------------------------------------------


def test_the_first_address_becomes_a_cookie(tmp_path: Path) -> None:
    site = Site(tmp_path, PORT)
    client = TestClient(make_app(site), base_url=BASE, follow_redirects=False)
    first = client.get(f"/?token={site.token}&of=it")
    assert (first.status_code, first.headers["location"]) == (303, "/?of=it")
    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and f"shoestring-{PORT}=" in cookie
    assert client.get("/").status_code == 200


def test_without_the_token_nothing_is_shown(tmp_path: Path) -> None:
    (tmp_path / "secret-run").mkdir()
    site = Site(tmp_path, PORT)
    client = TestClient(make_app(site), base_url=BASE)
    for path in ("/", "/runs/secret-run", "/nowhere", *site.by_url):
        for headers in ({}, {"cookie": f"shoestring-{PORT}=wrong"}, {"cookie": f'shoestring-{PORT}="'}):
            answer = client.get(path, headers=headers)
            assert answer.status_code == 401 and "secret-run" not in answer.text
    assert client.get("/?token=wrong").status_code == 401
    assert client.post(f"/?token={site.token}", headers={"origin": BASE}).status_code == 401


def test_a_foreign_name_for_this_machine_is_refused(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    assert client.get("/", headers={"host": f"localhost:{PORT}"}).status_code == 200
    for host in ("evil.example", f"evil.example:{PORT}", "127.0.0.1", f"127.0.0.1:{PORT + 1}", ""):
        assert client.get("/", headers={"host": host}).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": BASE}, 405),  # the page itself; nothing is posted to this address
        ({"origin": "https://evil.example"}, 403),
        ({"origin": f"http://127.0.0.1:{PORT + 1}"}, 403),  # another server of this machine: the same site to a cookie
        ({"origin": f"http://localhost:{PORT}"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 405),
        ({}, 403),
    ],
)
def test_posts_of_other_origins_are_refused(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    client = client_of(tmp_path)
    del client.headers["origin"]
    assert client.post("/", headers=headers).status_code == status


def test_reads_by_other_origins_are_refused(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    opened = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/", headers=opened).status_code == 200
    assert client.get("/", headers={**opened, "sec-fetch-dest": "iframe"}).status_code == 403
    assert client.get("/", headers={"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}).status_code == 403


def test_bodies_are_bounded(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    assert client.post("/", content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 413
    assert client.post("/", headers={"content-length": "-1"}).status_code == 413


def test_every_answer_carries_the_policy(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    for answer in (client.get("/"), client.get("/nowhere"), client.get("/", headers={"host": "evil.example"})):
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self';" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_command_prints_where_it_is_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "shoestring", "ui", "--runs-dir", str(tmp_path), "--json"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert started.stdout is not None
        text = b""
        while not text.endswith(b"}\n"):
            line = started.stdout.readline()
            assert line, "ended before it was ready"
            text += line
        told = json.loads(text)
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(told["url"]) as answer:
            assert answer.status == 200 and answer.url == f"http://127.0.0.1:{told['port']}/"
        started.send_signal(signal.SIGINT)
        assert started.wait(20) == 0
    finally:
        started.kill()
        started.wait()
        started.stdout.close()
