"""The page: who may look, the list of runs, a run."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import launched
import pytest
from report_folder import HOSTILE, write_run
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.testclient import TestClient
from tiny import make_tokenizer

from bench import page as page_bench
from shoestring.errors import BudgetStopped, TrainingError
from shoestring.files import write_json
from shoestring.live import Live
from shoestring.recipe import Run
from shoestring.records import no_log, no_progress, to_json
from shoestring.report.curves import curves
from shoestring.report.folder import read_run
from shoestring.report.html import render_report
from shoestring.report.parts import predicted
from shoestring.report.rows import ArmRows, head_of, skim
from shoestring.report.scores import scores
from shoestring.report.verdict import verdict
from shoestring.runfolder import RunFolder
from shoestring.stages.closing import write_run_file
from shoestring.train.shown import MOST_TOKENS, shown
from shoestring.train.tokens import Encoded
from shoestring.web import run_page
from shoestring.web.app import make_app
from shoestring.web.outputs_page import chosen_arms, matching
from shoestring.web.overview import Reader
from shoestring.web.places import folder_of
from shoestring.web.run_page import Followed
from shoestring.web.runs_page import own_run_file
from shoestring.web.site import MAX_BODY_BYTES, Site
from shoestring.web.steps import Tail

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


def test_odd_cookies_of_other_programs_on_this_machine_do_not_lock_out(tmp_path: Path) -> None:
    site = Site(tmp_path, PORT)
    client = TestClient(make_app(site), base_url=BASE)
    odd = '{"a": [1, "b"]}=x; =; ;;; é="\\q'.encode()
    headers = {"cookie": odd + b"; " + f"{site.cookie}={site.token}".encode()}
    assert client.get("/", headers=headers).status_code == 200


def test_bodies_are_bounded(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    client.app.state.site.body_limits["/new"] = 1000  # type: ignore[attr-defined]
    parts = [b'--x\r\ncontent-disposition: form-data; name="data"; filename="a.csv"\r\n\r\n', *[b"a,b\n" * 50] * 9]
    form = {"content-type": "multipart/form-data; boundary=x", "transfer-encoding": "chunked"}
    assert client.post("/new", content=iter(parts), headers=form).status_code == 413  # its length is not said
    for small in ("/", "/new/0123456789ab", "/new/0123456789ab/plan", "/newer", "/runs/x/label"):
        assert client.post(small, content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 413
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
        stderr=subprocess.PIPE,
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
        with opener.open(f"http://127.0.0.1:{told['port']}/events") as events:  # a tab that is open
            assert events.readline() == b"retry: 2000\n"
            started.send_signal(signal.SIGINT)
            assert started.wait(60) == 0
        assert started.stderr is not None
        assert b"Traceback" not in started.stderr.read()
    finally:
        started.kill()
        started.communicate()


# ---- the list -------------------------------------------------------------------------------


def test_the_list_says_what_each_run_came_to(tmp_path: Path) -> None:
    write_run(tmp_path / "done")
    write_run(tmp_path / "half", until="half-trained")
    (tmp_path / "fresh").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.yaml").write_text("name: [")
    states = {run.name: run.state for run in Reader(tmp_path).all()}
    assert states == {"done": "met", "half": "killed", "fresh": "new", "broken": "broken"}
    text = client_of(tmp_path).get("/").text
    for words in ("bar met", "stopped without a word", "not started", "cannot be read", "lora shoestring-3m"):
        assert words in text


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (BudgetStopped("the next step would pass it"), "budget"),
        (KeyboardInterrupt(), "interrupted"),
        (TrainingError("the loss is not finite"), "failed"),
        (None, "part"),
    ],
)
def test_how_a_run_ended_is_its_state(tmp_path: Path, error: BaseException | None, state: str) -> None:
    write_run(tmp_path / "half", until="half-trained")
    Live(tmp_path / "half", no_progress, no_log).end(error)
    run = Reader(tmp_path).all()[0]
    assert run.state == state
    if error is not None and str(error):
        assert str(error) in client_of(tmp_path).get("/").text


def test_a_run_that_is_worked_on_shows_its_task(tmp_path: Path) -> None:
    write_run(tmp_path / "half", until="half-trained")
    with RunFolder(tmp_path / "half").locked():
        clock = iter(range(100))
        live = Live(tmp_path / "half", no_progress, no_log, clock=lambda: float(next(clock)))
        live.progress("train shoestring-1m", 179, 440)
        live.progress("train shoestring-1m", 180, 440)
        text = client_of(tmp_path).get("/").text
    assert "running" in text and "180 of 440" in text and "<progress" in text and "Stop" in text


def test_where_nothing_was_run_the_way_to_the_first_run_is_shown(tmp_path: Path) -> None:
    text = client_of(tmp_path / "none").get("/").text
    assert '<a class="button main" href="/new">' in text


def test_only_runs_are_listed_and_links_out_are_not_followed(tmp_path: Path) -> None:
    runs, outside = tmp_path / "runs", tmp_path / "outside"
    write_run(runs / "done", until="curate")
    write_run(outside, until="curate")
    (runs / "out").symlink_to(outside)
    (runs / ".serving").mkdir()
    (runs / "a file").write_text("")
    assert [run.name for run in Reader(runs).all()] == ["done"]
    assert client_of(runs).get("/runs/out").status_code == 404


def test_a_run_that_is_deleted_while_it_is_followed_ends_its_events(tmp_path: Path) -> None:
    write_run(tmp_path / "done", until="curate")
    client = client_of(tmp_path)
    scope = {"type": "http", "app": client.app, "query_string": b"", "headers": [], "path": "/runs/done/events"}
    pieces = run_page.follow(Request({**scope, "path_params": {"name": "done"}})).body_iterator

    async def whole() -> list[str]:
        told = [str(await anext(pieces)), str(await anext(pieces))]
        shutil.rmtree(tmp_path / "done")
        return told + [str(piece) async for piece in pieces]

    assert "retry" in asyncio.run(whole())[0]
    assert client.get("/runs/done/events").status_code == 404
    assert Reader(tmp_path).one(tmp_path / "done").state == "new"  # between the listing and the reading of a folder


# ---- a run ----------------------------------------------------------------------------------


def test_no_name_leads_out_of_the_runs(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "done", until="curate")
    (tmp_path / "secret.html").write_text("secret")
    write_run(tmp_path / "secret", until="curate")
    client = client_of(runs)
    rng = random.Random(11)
    pieces = ["..", ".", "/", "\\", "%2e%2e", "%2f", "%5c", "%00", "done", "secret", "~", "//", "%252e", "\u202e", "C:"]
    names = {"../secret", "..%2fsecret", "%2e%2e/secret", ".", "..", ".done", "done/../../secret", "done%00", "a" * 300}
    names |= {"".join(rng.choices(pieces, k=rng.randint(1, 6))) for _ in range(150)}
    for name in names:
        for tail in ("", "/report.html", "/outputs/x"):
            answer = client.get(f"/runs/{name}{tail}", follow_redirects=False)
            assert answer.status_code in (200, 303, 307, 404), (name, answer.status_code)
            assert "secret.html" not in answer.text and "<h1>secret</h1>" not in answer.text
    for name in ("..", ".", "a/b", "done\x00", "done\n", "", "-x", "ä", "done "):
        with pytest.raises(HTTPException):
            folder_of(runs, name)
    assert folder_of(runs, "done") == runs / "done"


def test_a_run_shows_its_verdict_first_and_shares_the_reports_parts(tmp_path: Path) -> None:
    write_run(tmp_path / "done")
    text = client_of(tmp_path).get("/runs/done").text
    order = ["Bar met", "Score of each arm", "Learning curves", "Predicted against actual"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    report = render_report(tmp_path / "done")
    run = read_run(tmp_path / "done", with_rows=False)
    for part in (verdict(run), scores(run), curves(run), predicted(run)):
        assert part and part in text and part in report


def test_planted_markup_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    """HOSTILE is in prompts, outputs, dropped rows and the recorded command of this folder."""
    write_run(tmp_path / "done")
    client = client_of(tmp_path)
    row_id = next(iter(read_run(tmp_path / "done", with_rows=False).rows["linear"].places))
    for path in ("/", "/runs/done", "/runs/done/outputs?only=any", f"/runs/done/outputs/{row_id}", "/runs/<script>"):
        text = client.get(path).text
        assert "<script>alert" not in text and "<img src=" not in text
        assert text.count("<script") == text.count("<script defer src=")
    shown = client.get("/runs/done/outputs?q=alert").text
    assert "&lt;script&gt;" in shown


def test_outputs_are_side_by_side_and_filtered(tmp_path: Path) -> None:
    write_run(tmp_path / "done")
    run = read_run(tmp_path / "done", with_rows=False)
    arms = chosen_arms(run, [])
    best_prompt = max((a for a in run.arms if a.kind == "few_shot"), key=lambda a: a.score.value).arm
    assert arms == ["zero-shot shoestring-3m", best_prompt, "lora shoestring-3m"]
    every = matching(run.rows, arms, "all", "")
    tuned = run.rows[arms[-1]]
    wrong = matching(run.rows, arms, "wrong", "")
    assert len(every) == 200 and {tuned.row(tuned.places[row_id]).score for row_id in wrong} == {0.0}
    assert len(wrong) == sum(score < 1 for score in tuned.scores)
    lost = matching(run.rows, arms, "lost", "")
    assert set(lost) < set(wrong)
    found = matching(run.rows, arms, "all", "Ticket 1007:")
    assert [tuned.row(tuned.places[row_id]).prompt[:12] for row_id in found] == ["Ticket 1007:"]
    client = client_of(tmp_path)
    text = client.get("/runs/done/outputs?only=wrong&page=99999999").text
    assert f"{len(wrong)} of 200 rows" in text
    nonsense = client.get("/runs/done/outputs?only=nonsense")
    assert nonsense.status_code == 422 and '<a href="/runs/done">' in nonsense.text  # the way back
    assert "All runs" in client.get("/runs/none").text and '<a href="/runs/none">' not in client.get("/runs/none").text
    ticked = client.get("/runs/done/outputs", params={"arm": [arm.arm for arm in run.arms]}).text
    assert f"Of the {len(run.arms)} arms ticked the first 4 are shown" in ticked
    assert client.get("/runs/done/outputs/none-such").status_code == 404


def test_rows_are_told_apart_without_parsing_the_record(tmp_path: Path) -> None:
    write_run(tmp_path / "done")
    record, arms = skim(tmp_path / "done" / "decide.json")
    whole = json.loads((tmp_path / "done" / "decide.json").read_text(errors="surrogatepass"))
    assert [arm["rows"] for arm in record["result"]["arms"]] == [[] for _ in arms]
    for skimmed, arm in zip(arms, whole["result"]["arms"], strict=True):
        assert [to_json(skimmed.row(place)) for place in range(len(skimmed))] == arm["rows"]
        assert skimmed.scores == [row["score"] for row in arm["rows"]]
        assert skimmed.mean_tokens[0] == sum(row["num_prompt_tokens"] for row in arm["rows"]) / len(arm["rows"])
    found = head_of(tmp_path / "done" / "rungs" / "shoestring-3m" / "eval.json")
    assert found is not None and found[:2] == ("lora shoestring-3m", "finetune")
    compact = {"stage": "eval", "result": {"arm": whole["result"]["arms"][0]}}
    (tmp_path / "compact.json").write_text(json.dumps(compact))
    assert skim(tmp_path / "compact.json")[1] == []  # another program's: its rows are in the record
    assert [to_json(row) for row in map(ArmRows.of(arm["rows"]).row, range(3))] == arm["rows"][:3]


def test_steps_are_read_as_they_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    tail = Tail(path)
    assert tail.read() == ([], False)
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert [row["step"] for row in tail.read()[0]] == [1]
    with path.open("a") as file:
        file.write('ss": 1.0}\n')
    assert tail.read() == ([{"step": 2, "loss": 1.0}], False)
    path.write_text('{"step": 1, "loss": 2.0}\n')  # resumed from an earlier checkpoint
    assert tail.read() == ([{"step": 1, "loss": 2.0}], True)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00", b'{"result": null}', b'{"result": []}', b'{"result": {"a": NaN}}', b"[]", b"", b"[" * 5000, None],
)
def test_a_damaged_folder_is_told_and_no_page_of_it_breaks(tmp_path: Path, content: bytes | None) -> None:
    """None: a folder stands in the file's place."""
    write_run(tmp_path / "done")
    client = client_of(tmp_path)
    names = ("decide.json", "rungs/shoestring-3m/eval.json", "data/receipt.json", "data/dropped.jsonl", "plan.json")
    parts = ("", "/outputs", "/data", "/data/rows?code=duplicate", "/plan", "/label")
    for name in (*names, "rungs/shoestring-3m/regression.json", "ledger.jsonl"):
        path = tmp_path / "done" / name
        before = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        path.mkdir() if content is None else path.write_bytes(content)
        for page in ("/", *(f"/runs/done{part}" for part in parts)):
            assert client.get(page).status_code in (200, 404, 422), (name, page)
        path.rmdir() if content is None else path.unlink()
        if before is not None:
            path.write_bytes(before)


def test_a_record_with_values_of_another_type_is_told_and_names_what_was_met(tmp_path: Path) -> None:
    write_run(tmp_path / "done")
    client = client_of(tmp_path)
    gate = {"gate": "g", "level": "ok", "found": "f", "remedy": ""}
    row = {"num_learned_tokens": "1", "num_tokens": "2", "num_left_out": 0, "pieces": []}
    checked = {"at": "x", "rungs": [{"model": "m", "findings": [gate], "rows": [row]}]}
    write_json(tmp_path / "done" / "check.json", checked)
    write_json(tmp_path / "done" / "curate.json", {"result": {"languages": [1], "dropped_by_code": "x"}})
    for page in ("data", "check"):
        answer = client.get(f"/runs/done/{page}")
        assert answer.status_code == 422 and "done cannot be shown here" in answer.text, (page, answer.text)
    (tmp_path / "done" / "plan.json").unlink(missing_ok=True)
    (tmp_path / "done" / "plan.json").mkdir()
    assert "plan.json is a folder in place of a file" in client.get("/runs/done/data").text


def test_a_fault_of_the_page_is_said_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path, PORT)
    client = TestClient(make_app(site), base_url=BASE, headers={"origin": BASE}, raise_server_exceptions=False)
    client.get(f"/?token={site.token}")
    monkeypatch.setattr(site.reader, "all", lambda: {}["arms"])
    answer = client.get("/")
    assert answer.status_code == 500 and "fault of the page (KeyError: " in answer.text and "<nav" in answer.text
    assert answer.headers["content-security-policy"] and "Traceback" not in answer.text


# ---- checks ---------------------------------------------------------------------------------


def test_tokens_of_one_character_are_one_piece() -> None:
    tokenizer = make_tokenizer()
    row = Encoded(tokenizer("Né").input_ids + tokenizer("ü!").input_ids, 3)  # a token a byte
    found = shown(tokenizer, row)
    assert found.pieces == (("N", False), ("é", False), ("ü", True), ("!", True))
    assert (found.num_tokens, found.num_learned_tokens, found.num_left_out) == (6, 3, 0)
    long = shown(tokenizer, Encoded([40] * 2000, 1000))
    assert len(long.pieces) == 2 * MOST_TOKENS and long.num_left_out == 2000 - 2 * MOST_TOKENS


def test_checks_show_what_refuses_first_and_the_learned_tokens(tmp_path: Path) -> None:
    write_run(tmp_path / "done")
    client = client_of(tmp_path)
    assert "Not looked at yet" in client.get("/runs/done/check").text
    findings = [
        {"gate": "rows_fit", "level": "ok", "found": "all do", "remedy": ""},
        {"gate": "sides_differ", "level": "refuse", "found": HOSTILE, "remedy": "leave them out"},
    ]
    row = {"pieces": [["Say\n", False], [HOSTILE, True]], "num_tokens": 2, "num_learned_tokens": 1, "num_left_out": 7}
    rung = {"model": "m", "findings": findings, "rows": [row], "skipped": ""}
    write_json(tmp_path / "done" / "check.json", {"at": "2026-11-28T12:00:00+00:00", "passed": False, "rungs": [rung]})
    text = client.get("/runs/done/check").text
    assert text.index("sides differ") < text.index("1 of 2 gates hold") < text.index("Say↵")
    assert '<span class="tok learned">&lt;script&gt;' in text and "<script>alert" not in text
    (tmp_path / "done" / "check.json").write_text("[]")
    assert "check again" in client.get("/runs/done/check").text


def test_a_training_under_way_shows_its_speed_memory_and_money(tmp_path: Path) -> None:
    page_bench.write_run(tmp_path / "training", 200, 40, is_finished=False)
    client = client_of(tmp_path)
    assert "tokens a second" not in client.get("/runs/training").text  # no process works on it
    with RunFolder(tmp_path / "training").locked():
        text = " ".join(client.get("/runs/training").text.split())
        seen = client.app.state.site.seen(client.app.state.site.reader.one(tmp_path / "training"))
        followed = Followed(tmp_path / "training")
        ((name, told),) = followed.look(seen)
        assert followed.look(seen) == []
    for figure in ("<dt>step</dt><dd>40", "9,000", "1.00 GiB at most", "$0.02", "of $10.00"):
        assert figure in text, figure
    assert (name, told["model"], told["all"], len(told["rows"])) == ("steps", "shoestring-1m", True, 40)
    step, loss, dev_loss, dev_metric = told["rows"][-1]
    assert (step, dev_loss, dev_metric) == (40, 0.4, 0.8) and 2.8 < loss < 3.1


def test_the_bench_measures_what_it_says(tmp_path: Path) -> None:
    page_bench.write_run(tmp_path / "done", 200, 40)
    page_bench.write_run(tmp_path / "training", 200, 40, is_finished=False)
    states = {run.name: run.state for run in Reader(tmp_path).all()}
    assert states == {"done": "met", "training": "killed"}
    with page_bench.served(tmp_path) as (url, pid):
        for path in ("/", "/runs/done", "/runs/training", "/runs/done/outputs?only=wrong"):
            assert page_bench.request_s(url, path) > 0
        assert page_bench.cpu_s(pid) > 0


# ---- starting and stopping ------------------------------------------------------------------


def until(holds: Callable[[], bool], limit_s: float = 180.0) -> None:
    """Wait for what another process does."""
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_run_is_started_stopped_and_can_go_on(tmp_path: Path) -> None:
    run_file = launched.write_run(tmp_path, "small")
    runs = tmp_path / "runs"
    write_run_file(Run.from_file(run_file, runs_dir=runs))
    client = client_of(runs)
    site = client.app.state.site

    def state() -> str:
        return str(site.seen(site.reader.one(runs / "small")).state)

    assert client.post("/runs/small/stop").status_code == 422  # nothing works on it
    assert client.post("/runs/small/start", headers={"hx-request": "true"}).status_code == 204
    assert state() in ("starting", "running")
    assert "already" in client.post("/runs/small/start").text
    until(lambda: state() == "running")
    assert client.post("/runs/small/stop", follow_redirects=False).status_code == 303
    assert state() in ("stopping", "interrupted")
    until(lambda: state() == "interrupted" and site.processes.num_working == 0)
    assert "Resume" in client.get("/runs/small").text
    assert "interrupted" in (runs / "small" / "page.log").read_text()


def test_a_run_goes_on_by_its_run_file_as_it_is_now(tmp_path: Path) -> None:
    run_file = launched.write_run(tmp_path, "small")
    run = Run.from_file(run_file, runs_dir=tmp_path / "runs")
    write_run_file(run)
    assert own_run_file(run.folder) == run_file
    run_file.write_text(run_file.read_text().replace("name: small", "name: other"))
    assert own_run_file(run.folder) is None  # another run's by now
    run_file.write_text("name: [")
    assert own_run_file(run.folder) == run_file  # the run says what is wrong with it
    run_file.unlink()
    assert own_run_file(run.folder) is None


def test_what_keeps_a_run_from_starting_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "half", until="half-trained")  # its meta.json does not say where the data are
    client = client_of(tmp_path)
    site = client.app.state.site
    client.post("/runs/half/start")
    until(lambda: site.seen(site.reader.one(tmp_path / "half")).state == "failed")
    assert site.processes.num_working == 0
    assert "give the original run file instead" in client.get("/").text
