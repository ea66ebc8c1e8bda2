"""The page's parts for newcomers: a dropped file, its faults, the run file; data and decisions; the plan; a chat."""

from __future__ import annotations

import asyncio
import html
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from shoestring.config import load_run_file, parse_run_file
from shoestring.data.review import Mark, read_review
from shoestring.errors import BadInput, ConfigError
from shoestring.files import read_jsonl
from shoestring.recipe import Run
from shoestring.stages.run_text import with_values
from shoestring.web import drop, runs_page
from shoestring.web.app import make_app
from shoestring.web.choices import changed
from shoestring.web.model_server import ModelServer
from shoestring.web.site import Site

ROOT = Path(__file__).resolve().parent.parent
PORT = 8124
BASE = f"http://127.0.0.1:{PORT}"
SCRIPT = "<script>document.title='planted'</script><img src=x onerror=alert(1)>"


def client_of(runs_dir: Path) -> TestClient:
    """A browser that has opened the first address."""
    site = Site(runs_dir, PORT)
    client = TestClient(make_app(site), base_url=BASE, headers={"origin": BASE})
    assert client.get(f"/?token={site.token}").status_code == 200
    return client


def tickets(num: int = 60) -> bytes:
    """A CSV of labelled texts with two faulty lines: one with three cells, one with markup in it."""
    lines = ["text,label", "one,two,three", f'"{SCRIPT}",billing']
    lines += [f"my {what} number {i} is late,{label}" for i in range(num // 2) for what, label in KINDS]
    return "\n".join(lines).encode()


KINDS = (("parcel", "delivery"), ("invoice", "billing"))


def dropped(client: TestClient, content: bytes, name: str = "tickets.csv") -> str:
    """Drop a file; the address of its page."""
    answer = client.post("/new", files={"data": (name, content)}, follow_redirects=False)
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


def form(**changed: str) -> dict[str, str]:
    """The choices of a new run."""
    return {
        "name": "tickets",
        "kind": "classify",
        "metric": "accuracy",
        "bar": "0.9",
        "models": "shoestring-1m",
        "budget_usd": "1",
        "max_train_rows": "",
        "max_eval_rows": "",
        "then": "plan",
        **changed,
    }


# ---- a dropped file -------------------------------------------------------------------------


def test_a_dropped_file_is_read_and_its_faults_are_shown_with_their_lines(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    page = client.get(dropped(client, tickets())).text
    assert "csv, pair (text, label)" in page and "62" in page
    assert "ragged row" in page and "tickets.csv:2" in page
    assert "only 2 different ones" in page and '<option value="classify" selected>' in page


def test_the_run_is_named_after_the_file_and_no_other_run(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    for name, proposed in (("train.csv", "train"), ("tickets.csv", "tickets")):
        address = dropped(client, tickets(), name)
        assert f'maxlength="64" pattern="[A-Za-z0-9][A-Za-z0-9._\\-]*" value="{proposed}"' in client.get(address).text
        (tmp_path / proposed).mkdir()
        assert f'value="{proposed}-2"' in client.get(address).text


def test_markup_in_rows_is_text(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    page = client.get(dropped(client, tickets())).text
    assert SCRIPT not in page and "<script>" not in page and "&lt;script&gt;" in page


def test_the_run_file_says_what_was_chosen(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    address = dropped(client, tickets())
    answer = client.post(address, data=form(max_train_rows="40", trains_anyway="on"), follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{address}/plan")
    config = load_run_file(tmp_path / ".uploads" / address.rpartition("/")[2] / "run.yaml")
    assert (config.name, config.task.kind, config.task.metric, config.task.bar) == (
        "tickets", "classify", "accuracy", 0.9,
    )  # fmt: skip
    assert config.models == ["shoestring-1m"] and config.budget_usd == 1
    assert config.curate.max_train_rows == 40 and config.decide.train_anyway
    assert config.data.train == ["tickets.csv"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "../up"}, "is no name of a run"),
        ({"name": "taken"}, "there is a run named taken already"),
        ({"bar": "1.5"}, "bar = 1.5, the most is 1"),
        ({"bar": ""}, "bar is empty"),
        ({"budget_usd": "much"}, "is no number"),
        ({"models": "/etc"}, "neither an embedded one"),
        ({"models": "../../x"}, "neither an embedded one"),
        ({"models": ""}, "no model is named"),
        ({"kind": "dance"}, "task.kind"),
        ({"metric": "chrf"}, "chrf"),
        ({"max_train_rows": "3"}, "max_train_rows = 3, the least is 20"),
    ],
)
def test_a_choice_that_cannot_be_is_said_and_nothing_is_lost(
    tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    client = client_of(tmp_path)
    (tmp_path / "taken").mkdir()
    answer = client.post(dropped(client, tickets()), data=form(**changed), follow_redirects=False)
    assert answer.status_code == 422
    assert said in answer.text.replace("&#x27;", "'")
    assert 'value="tickets"' in answer.text or "name" in changed


@pytest.mark.parametrize(
    "name", ["../../evil.csv", "..\\..\\evil.csv", "/etc/evil.csv", "a/../../evil.csv", "\x00evil.csv", ".hidden.csv"]
)
def test_a_file_name_leads_nowhere(tmp_path: Path, name: str) -> None:
    runs_dir = tmp_path / "in" / "runs"
    client = client_of(runs_dir)
    address = dropped(client, tickets(), name)
    (kept,) = (runs_dir / ".uploads" / address.rpartition("/")[2]).iterdir()
    assert kept.parent.parent.parent == runs_dir and kept.suffix == ".csv" and not kept.name.startswith(".")
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {kept}


def test_fuzzed_names_and_numbers_lead_nowhere(tmp_path: Path) -> None:
    draw = random.Random(7)
    pieces = ["..", "/", "\\", "%2e%2e", "%2f", "a", ".csv", "\x00", "~", "é", " ", ":", "C:", "\n", "con", ".uploads"]
    for _ in range(300):
        given = "".join(draw.choice(pieces) for _ in range(draw.randrange(1, 9))) + "x.csv"
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", drop.safe_name(given))
    client = client_of(tmp_path)
    for _ in range(100):
        given = "".join(draw.choice([p for p in pieces if p.isprintable()]) for _ in range(draw.randrange(1, 6)))
        answer = client.get(f"/new/{given}")
        assert answer.status_code in (400, 404) or answer.url.path in ("/", "/new")


def test_what_is_no_data_is_refused_and_not_kept(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    for name, content, said in (
        ("x.exe", b"MZ", "is no data file by its ending"),
        ("x.csv", b"\x89PNG\r\n\x1a\n", "PNG"),
        ("x.csv", b"", "empty"),
        ("x.jsonl", b'{"a": 1}\n', "x.jsonl"),
    ):
        answer = client.post("/new", files={"data": (name, content)})
        assert answer.status_code == 422 and said in answer.text
    assert list((tmp_path / ".uploads").iterdir()) == []


def test_an_upload_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(tmp_path)
    client.app.state.site.body_limits["/new"] = 1000  # type: ignore[attr-defined]
    assert client.post("/new", files={"data": ("x.csv", tickets())}).status_code == 413
    client.app.state.site.body_limits["/new"] = 1 << 20  # type: ignore[attr-defined]
    monkeypatch.setattr(drop, "MAX_UPLOADS_BYTES", 100)
    dropped(client, tickets())
    answer = client.post("/new", files={"data": ("x.csv", tickets())})
    assert answer.status_code == 422 and "delete old folders in it" in answer.text


def test_held_out_rows_may_come_in_a_second_file(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    rows = "\n".join(json.dumps({"text": f"late parcel {i}", "label": "delivery"}) for i in range(30)).encode()
    answer = client.post("/new", files={"data": ("a.csv", tickets()), "held_out": ("a.jsonl", rows)})
    assert "held-out-a.jsonl" in answer.text
    client.post(answer.url.path, data=form())
    config = load_run_file(next(tmp_path.glob(".uploads/*/run.yaml")))
    assert config.data.train == ["a.csv"] and config.data.eval == ["held-out-a.jsonl"]


# ---- data and decisions ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with one run, curated and no more: repeats, a contradiction, markup, a secret, a wrong label."""
    folder = tmp_path_factory.mktemp("curated")
    rows = [{"text": f"my {what} number {i} is late", "label": label} for i in range(40) for what, label in KINDS]
    rows += [
        rows[0],
        {"text": SCRIPT, "label": "billing"},
        {"text": "my parcel number 7 is late!", "label": "delivery"},
    ]
    rows += [{"text": f"write to a.person{i}@example.org about my parcel", "label": "delivery"} for i in range(3)]
    rows += [{"text": "my parcel number 3 is late", "label": "billing"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_file = folder / "run.yaml"
    run_file.write_text(
        "name: tickets\ntask: {kind: classify, bar: 0.9}\ndata: {train: rows.jsonl}\nmodels: [shoestring-1m]\n"
        "# my own words\nbudget_usd: 1  # at most\ndecide: {arms: [linear]}\n"
    )
    Run.from_file(run_file, runs_dir=folder / "runs").execute(until="curate")
    return folder / "runs"


@pytest.fixture
def with_data(curated: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    shutil.copytree(curated.parent, tmp_path / "all")
    meta = json.loads((tmp_path / "all/runs/tickets/meta.json").read_text())
    moved = json.dumps(meta).replace(str(curated.parent), str(tmp_path / "all"))
    (tmp_path / "all/runs/tickets/meta.json").write_text(moved)
    return tmp_path / "all" / "runs"


def hidden_fields(article: str) -> dict[str, str]:
    """What a row's form sends beside the button."""
    return {k: html.unescape(v) for k, v in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', article)}


def test_the_data_page_shows_what_came_of_the_rows(curated: Path) -> None:
    client = client_of(curated)
    page = client.get("/runs/tickets/data").text
    assert "87 rows in" in page and "exact duplicate" in page and "contradiction" in page
    assert "/runs/tickets/data/rows?code=exact_duplicate" in page
    assert SCRIPT not in page and "a.person" not in page  # masked, as in the report
    side_by_side = client.get("/runs/tickets/data/rows?code=contradiction").text
    assert "<mark>billing</mark>" in side_by_side and "<mark>delivery</mark>" in side_by_side
    assert client.get("/runs/tickets/data/rows?code=nonsense").status_code == 404
    assert client.get("/runs/tickets/data/rows?code=crlf").status_code == 200  # none is there


def test_a_decision_stands_in_review_csv_and_the_next_curation_carries_it_out(with_data: Path) -> None:
    client = client_of(with_data)
    page = client.get("/runs/tickets/data/rows?code=exact_duplicate").text
    fields = hidden_fields(page)
    answer = client.post("/runs/tickets/data/decide", data={**fields, "action": "keep"}, headers={"hx-request": "true"})
    assert answer.status_code == 200 and "from the next curation on" in answer.text and "saved" in answer.text
    run = Run.from_folder(with_data / "tickets")
    before = run.run_folder.record("curate.json")["result"]["counts"]["dropped"]
    run.execute(until="curate")
    assert Run.from_folder(run.folder).run_folder.record("curate.json")["result"]["counts"]["dropped"] == before - 1
    # A row that was kept may be dropped, corrected, or left as it was.
    kept = next(iter(read_jsonl(run.folder / "data" / "train.jsonl")))
    mark = {"id": kept["id"], "source": kept["source"], "line": str(kept["line"])}
    assert (
        client.post("/runs/tickets/data/decide", data={**mark, "action": "fix", "answer": "other"}).status_code == 200
    )
    path = run.folder / "data" / "review.csv"
    decided = read_review(path)[Mark(kept["id"], kept["source"], kept["line"])]
    assert (decided.action, decided.answer) == ("fix", "other")
    client.post("/runs/tickets/data/decide", data={**mark, "action": ""})
    assert Mark(kept["id"], kept["source"], kept["line"]) not in read_review(path)


def test_decisions_that_cannot_be_are_said(with_data: Path) -> None:
    client = client_of(with_data)
    train = read_jsonl(with_data / "tickets" / "data" / "train.jsonl")[0]
    mark = {"id": train["id"], "source": train["source"], "line": str(train["line"])}
    for other, said in (
        ({"action": "eat"}, "none of keep, drop, fix"),
        ({"action": "fix"}, "fix takes the right answer"),
        ({"action": "keep", "line": "x"}, "is no line number"),
        ({"action": "keep", "id": "0" * 16}, "no such row"),
        ({"action": "drop", "source": "../../etc/passwd"}, "no such row"),
    ):
        answer = client.post("/runs/tickets/data/decide", data={**mark, **other}, headers={"hx-request": "true"})
        assert answer.status_code == 422 and said in answer.text, answer.text
    with Run.from_folder(with_data / "tickets").run_folder.locked():
        answer = client.post("/runs/tickets/data/decide", data={**mark, "action": "drop"})
        assert answer.status_code == 422 and "in use by process" in answer.text
        assert "decisions can be saved when it does not" in client.get("/runs/tickets/data").text


# ---- the plan -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values", "line"),
    [
        ("budget_usd: 1  # at most\n", {("budget_usd",): 2.5}, "budget_usd: 2.5  # at most"),
        ("budget_usd: 1", {("deadline_h",): 4.0}, "deadline_h: 4"),
        ("deadline_h: 8 # h\n", {("deadline_h",): None}, "deadline_h: null # h"),
        ("budget_usd: 1\n", {("deadline_h",): None}, "budget_usd: 1"),
        (
            "curate: {redact: true}  # mine\n",
            {("curate", "max_train_rows"): 9},
            "curate: {max_train_rows: 9, redact: true}  # mine",
        ),
        ("curate: {}\n", {("curate", "max_train_rows"): 9}, "curate: {max_train_rows: 9}"),
        ("curate:\n  # why\n  redact: true\n", {("curate", "max_train_rows"): 9}, "  max_train_rows: 9"),
        ("train:\n  num_epochs: 3 # three\n\n# end\n", {("train", "num_epochs"): 0.5}, "  num_epochs: 0.5 # three"),
        (
            "traffic:\n  requests_per_month: 10\n  prompt_tokens: 5\n  completion_tokens: 7\n# end\n",
            {("traffic",): {"requests_per_month": 1e6, "prompt_tokens": 5, "completion_tokens": 7, "months": 12.0}},
            "  {requests_per_month: 1e+06, prompt_tokens: 5, completion_tokens: 7, months: 12}",
        ),
    ],
)
def test_a_value_of_the_run_file_changes_and_no_comment_is_lost(
    text: str, values: dict[tuple[str, ...], Any], line: str
) -> None:
    head = "name: x\ntask: {kind: classify, bar: 0.5}\ndata: {train: x.csv}\n"
    before = parse_run_file(head + text)
    new = with_values(head + text, values, changed(before, values))
    assert line in new.splitlines()
    assert re.findall("#.*", new) == re.findall("#.*", head + text)
    assert with_values(new, values, parse_run_file(new)) == new


def test_a_run_file_that_cannot_be_changed_is_refused_with_what_to_write() -> None:
    text = "{name: x, task: {kind: classify, bar: 0.5}, data: {train: x.csv}}\n"
    values: dict[tuple[str, ...], Any] = {("deadline_h",): 3.0}
    with pytest.raises(ConfigError, match="write into it: deadline_h: 3"):
        with_values(text, values, changed(parse_run_file(text), values))


def test_the_plan_follows_its_dials(curated: Path) -> None:
    client = client_of(curated)
    page = client.get("/runs/tickets/plan").text
    assert 'id="budget_usd" name="budget_usd"' in page and "Where each price comes from" in page
    assert "shoestring-1m: " in page and "Dollars over hours of every option" in page
    traffic = {"requests_per_month": "100000", "prompt_tokens": "300", "completion_tokens": "80", "months": "6"}
    told = client.get("/runs/tickets/plan/told", params={**traffic, "rows": "30"}).text
    assert "6 months at 100,000 requests a month" in told and "shoestring-1m: 30 training rows" in told
    assert "6 months" not in client.get("/runs/tickets/plan/told", params={"rows": "30"}).text
    refused = client.get("/runs/tickets/plan/told", params={"deadline_h": "-1"}, headers={"hx-request": "true"})
    assert refused.status_code == 422 and "deadline_h" in refused.text


def test_the_dials_are_written_into_the_run_file(with_data: Path) -> None:
    client = client_of(with_data)
    run_file = with_data.parent / "run.yaml"
    before = run_file.read_text()
    fields = {"rows": "50", "budget_usd": "3", "epochs": "2", "deadline_h": "", "requests_per_month": ""}
    fields["then"] = "write"
    answer = client.post("/runs/tickets/plan", data=fields)
    assert answer.status_code == 200 and "Written into the run file" in answer.text
    config = load_run_file(run_file)
    assert (config.curate.max_train_rows, config.budget_usd, config.train.num_epochs) == (50, 3, 2)
    assert "# my own words" in run_file.read_text() and "budget_usd: 3  # at most" in run_file.read_text()
    run_file.unlink()  # then the folder's own copy is the run file
    (with_data / "tickets" / "run.yaml").write_text(before.replace("rows.jsonl", str(with_data.parent / "rows.jsonl")))
    assert client.post("/runs/tickets/plan", data=fields).status_code == 200
    assert load_run_file(with_data / "tickets" / "run.yaml").budget_usd == 3


def test_a_dropped_file_is_planned_before_it_runs(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    address = dropped(client, tickets())
    assert client.get(f"{address}/plan").status_code == 404
    page = client.post(address, data=form()).text
    assert "tickets: the plan" in page and "shoestring-1m: " in page
    client.post(f"{address}/plan", data={"budget_usd": "7", "then": "write"})
    assert load_run_file(next(tmp_path.glob(".uploads/*/run.yaml"))).budget_usd == 7


# ---- try it ---------------------------------------------------------------------------------


def test_without_a_loaded_model_a_question_says_what_to_do(curated: Path) -> None:
    client = client_of(curated)
    assert "Nothing is trained yet" in client.get("/runs/tickets/try").text
    asked = {"model": "tickets", "messages": [{"role": "user", "content": "hello"}]}
    answer = client.post("/runs/tickets/try/chat", json=asked)
    assert answer.status_code == 422 and "load the models again" in answer.json()["error"]
    for changed_part, said in (
        ({"messages": []}, "messages is no list"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages is no list"),
        ({"max_tokens": 10**9}, "max_tokens = 1000000000"),
        ({"temperature": "hot"}, "temperature = 'hot'"),
        ({"model": 3}, "model is missing"),
    ):
        answer = client.post("/runs/tickets/try/chat", json={**asked, **changed_part})
        assert answer.status_code == 422 and said in answer.json()["error"]
    for content in (b"no json", b"[" * 400_000):
        assert client.post("/runs/tickets/try/chat", content=content).status_code == 400
    assert client.post("/runs/tickets/try", data={"with": "../../etc"}).status_code == 404
    assert client.post("/runs/tickets/try", data={"with": ["a", "b", "c"]}).status_code == 422
    assert client.app.state.site.model_server.child() is None  # type: ignore[attr-defined]


# ---- every address --------------------------------------------------------------------------


def test_no_address_answers_without_the_token_or_a_post_of_another_origin(curated: Path) -> None:
    client = client_of(curated)
    stranger = TestClient(client.app, base_url=BASE)  # type: ignore[arg-type]
    posts = 0
    for route in client.app.routes:  # type: ignore[attr-defined]
        path = route.path.replace("{name}", "tickets").replace("{id}", "0" * 12).replace("{digest}", "x")
        for method in route.methods:
            assert stranger.request(method, path, headers={"origin": BASE}).status_code == 401, (method, path)
            if method == "POST":
                posts += 1
                for origin in ("https://evil.example", f"http://127.0.0.1:{PORT + 1}", "null"):
                    answer = client.post(path, headers={"origin": origin})
                    assert answer.status_code == 403, (path, origin)
    assert posts >= 8


def test_a_run_name_leads_nowhere(curated: Path, tmp_path: Path) -> None:
    client = client_of(curated)
    (curated / "link").symlink_to(tmp_path)
    names = [
        "..",
        "%2e%2e",
        "..%2f..%2fetc",
        ".uploads",
        ".hidden",
        "link",
        "tickets%00",
        "tickets%2f..",
        "a" * 65,
        "é",
    ]
    for name in names:
        for page in ("data", "data/rows?code=crlf", "plan", "plan/told", "try", "try/state", "label"):
            answer = client.get(f"/runs/{name}/{page}")
            assert answer.status_code in (400, 404) or answer.url.path == "/", (name, page, answer.status_code)
    (curated / "link").unlink()


def test_the_server_of_models_ends_with_what_started_it(tmp_path: Path) -> None:
    """By the end of its standard input, which a kill closes too."""
    with subprocess.Popen(
        [sys.executable, "-m", "shoestring.web.tied", "ui", "--runs-dir", str(tmp_path), "--json", "--no-open"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        while process.stdout.readline() not in (b"}\n", b""):
            pass
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(60) in (0, -signal.SIGTERM)


def test_why_a_model_cannot_be_served_is_said(curated: Path) -> None:
    """The run is not trained, which the page would have said; its server says it too."""
    server = ModelServer(curated)
    child = server.start(["tickets"])
    try:
        child.process.wait(120)
        assert child.state == "ended"
        assert "holds nothing trained" in child.end_of_what_it_said()
        with pytest.raises(BadInput, match="load the models again"):
            server.ask({"model": "tickets", "messages": []})
    finally:
        server.stop()
    assert server.child() is None


def test_what_changed_between_the_list_and_its_events_is_not_lost(with_data: Path) -> None:
    client = client_of(with_data)
    shown = re.search(r'data-events="(/events\?shown=([0-9a-f-]+))"', client.get("/").text)
    assert shown is not None

    def first_event() -> str:
        query = f"shown={shown[2]}".encode()
        request = Request({"type": "http", "app": client.app, "query_string": query, "headers": [], "path": "/events"})

        async def first() -> str:
            pieces = runs_page.follow(request).body_iterator
            assert "retry" in str(await anext(pieces))
            try:
                return str(await asyncio.wait_for(anext(pieces), 1))
            except TimeoutError:
                return ""

        return asyncio.run(first())

    assert first_event() == ""
    with Run.from_folder(with_data / "tickets").run_folder.locked():  # a process works on it since
        assert first_event().startswith("event: part\n") and "running" in first_event()
    (with_data / "another").mkdir()
    assert first_event().startswith("event: fresh\n")
