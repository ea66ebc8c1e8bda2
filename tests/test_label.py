"""Labels by a person: the order of rows, taking back, the terminal by keystrokes, the page by its requests."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient
from test_judge_run import EVERY, write_run

from shoestring.cli.main import run as command
from shoestring.config import JudgeConfig
from shoestring.evaluate.judge.labelling import Labelling
from shoestring.evaluate.judge.labels import ORDERS, human_scores, read_labels
from shoestring.files import read_json
from shoestring.recipe import Run
from shoestring.records import ArmScore, Estimate, RowScore
from shoestring.web.app import make_app
from shoestring.web.label_page import label_address
from shoestring.web.site import Site
from tests.judge_server import JudgeServer

EXAMPLES = {example.id: example for example in EVERY[:40]}
ENDPOINT = {
    "name": "j", "base_url": "http://127.0.0.1:9/v1", "model": "m", "usd_per_million_input_tokens": 1,
    "usd_per_million_output_tokens": 1,
}  # fmt: skip


def config(**changes: Any) -> JudgeConfig:
    return JudgeConfig.model_validate({"endpoints": [ENDPOINT], **changes})


def arm(name: str = "secret arm") -> ArmScore:
    rows = tuple(
        RowScore(e.id, e.user_text, e.completion, f"answer {i}", 0.0, 1, 1, 0.1, 0.0)
        for i, e in enumerate(EXAMPLES.values())
    )
    return ArmScore(name, "endpoint", "m", "judge", Estimate(0, 0, 1), len(rows), 1.0, 0.0, {}, "wilson", rows)


def session(folder: Path, **changes: Any) -> Labelling:
    return Labelling([arm()], EXAMPLES, config(**changes), folder / "labels.jsonl", seed=0)


# The session


def test_rows_come_in_an_order_drawn_by_chance_and_the_same_each_time(tmp_path) -> None:
    rows = [item.row for item in session(tmp_path).items]
    assert sorted(rows) == sorted(EXAMPLES) and rows != list(EXAMPLES)
    assert rows == [item.row for item in session(tmp_path).items]


def test_labels_are_kept_resumed_and_taken_back(tmp_path) -> None:
    first = session(tmp_path)
    one, two = first.items[:2]
    first.say(one, [True])
    first.say(two, "skipped")
    again = session(tmp_path)
    assert again.next() == again.items[2] and (again.num_rows, again.num_skipped) == (1, 1)
    assert again.undo().row == two.row and again.next().row == two.row
    assert again.undo().row == one.row and again.undo() is None
    third = session(tmp_path)
    assert third.next().row == one.row and third.num_rows == third.num_skipped == 0
    assert len(read_labels(tmp_path / "labels.jsonl")) == 4  # nothing is rewritten


def test_a_line_that_a_kill_cut_short_is_closed_and_ignored(tmp_path) -> None:
    first = session(tmp_path)
    first.say(first.items[0], [True])
    with (tmp_path / "labels.jsonl").open("ab") as file:
        file.write(b'{"answers_print": "x')
    again = session(tmp_path)
    again.say(again.next(), [False])
    assert session(tmp_path).num_rows == 2


def test_pairs_come_in_both_orders_apart_and_count_when_both_agree(tmp_path) -> None:
    pairs = session(tmp_path, mode="pairwise")
    assert len(pairs.items) == 2 * len(EXAMPLES)
    for start in range(0, 80, 20):
        one, other = pairs.items[start : start + 10], pairs.items[start + 10 : start + 20]
        assert {i.row for i in one} == {i.row for i in other}
        assert all({a.order, b.order} == set(ORDERS) for a in one for b in other if a.row == b.row)
    for item in pairs.items[:20]:
        own = item.answers.index(next(text for text in item.answers if text.startswith("answer ")))
        assert (own == 0) == (item.order == ORDERS[0]) and item.reference is None
        pairs.say(item, "AB"[own])  # always the arm's answer, wherever it stands
    assert pairs.num_rows == 10
    assert set(human_scores(arm(), read_labels(tmp_path / "labels.jsonl"), config(mode="pairwise")).values()) == {1.0}


def test_equal_texts_are_a_tie_without_asking_and_stay_in_the_sample(tmp_path) -> None:
    same = arm()
    rows = tuple(dataclasses.replace(r, output=r.expected) if i % 2 else r for i, r in enumerate(same.rows))
    equal = dataclasses.replace(same, rows=rows)
    pairs = Labelling([equal], EXAMPLES, config(mode="pairwise"), tmp_path / "labels.jsonl", seed=0)
    while (item := pairs.next()) is not None and pairs.num_rows < 30:
        assert item.answers[0] != item.answers[1]
        pairs.say(item, "A")
    assert pairs.num_rows >= 30
    scores = human_scores(equal, read_labels(tmp_path / "labels.jsonl"), config(mode="pairwise"))
    assert set(scores.values()) == {0.5} and len(scores) >= 30
    taken_back = pairs.undo()
    assert taken_back.answers[0] != taken_back.answers[1]


def test_labels_of_other_criteria_are_not_mixed(tmp_path) -> None:
    first = session(tmp_path)
    first.say(first.items[0], [True])
    assert session(tmp_path, criteria=["It is short."]).num_rows == 0
    assert session(tmp_path).num_rows == 1


# The commands, on a run


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    base = tmp_path_factory.mktemp("labels")
    server = JudgeServer("fair", EVERY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        path = write_run(base, server)
        path.write_text(path.read_text().replace("metric: judge", "metric: chrf"))
        run = Run.from_file(path, runs_dir=base / "runs")
        run.execute(until="decide")
        yield run, server
    server.close()


def test_judge_probes_and_scores_beside_the_metric(decided, capfd) -> None:
    run, server = decided
    assert command(["judge", str(run.folder), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert [bias["judge"] for bias in told["biases"]] == ["fair"] and told["biases"][0]["named"] == []
    assert [a["arm"] for a in told["arms"]] == ["zero-shot shoestring-1m"] and told["spent_usd"] > 0
    assert read_json(run.folder / "decide.json")["result"]["arms"][0]["metric"] == "chrf"
    assert "<h2>The judge</h2>" in (run.folder / "report.html").read_text()
    before = len(server.requests)
    assert command(["judge", str(run.folder)]) == 0
    shown = capfd.readouterr().out
    assert "no bias found" in shown and "zero-shot shoestring-1m" in shown and len(server.requests) == before
    server.defect = "always_yes"
    text = (run.folder / "run.yaml").read_text()
    (run.folder / "run.yaml").write_text(text.replace("max_new_tokens: 300", "max_new_tokens: 301"))  # asked anew
    assert command(["judge", str(run.folder), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert {d["code"] for d in told["biases"][0]["named"]} == {"says_yes", "no_better_than_chance"}
    assert told["arms"] == [] and "no better than chance" in told["refused"]
    (run.folder / "run.yaml").write_text(text)
    server.defect = "fair"
    assert command(["judge", str(run.folder), "--arm", "none such"]) == 2
    assert "'none such': the run has 'zero-shot shoestring-1m'" in capfd.readouterr().err


def test_keys_of_a_pipe_label_and_thirty_calibrate(decided, capfd, monkeypatch) -> None:
    run, server = decided
    assert command(["judge", str(run.folder)]) == 0
    capfd.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("ynsu" + "n" * 33 + "q"))
    before = len(server.requests)
    assert command(["label", str(run.folder), "--json"]) == 0
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert told["num_rows"] == 35 and told["num_skipped"] == 0  # the one passed over was taken back, and labelled
    (judged,) = told["arms"]
    assert judged["is_calibrated"] and judged["num_labels"] == 35 and judged["low"] <= judged["score"] <= judged["high"]
    assert "zero-shot" not in err and "request:" in err.lower() and len(server.requests) == before
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert command(["label", str(run.folder)]) == 0
    shown = capfd.readouterr().out
    assert "35 rows labelled" in shown and "calibrated by 35 labels" in shown and "kappa" in shown


def test_a_terminal_takes_single_keystrokes(decided) -> None:
    run, _ = decided
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "shoestring", "label", str(run.folder), "--num", "40", "--json"],
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": "src"},
    )  # fmt: skip
    os.write(ours, b"nxq")  # x is no key
    out, _ = process.communicate(timeout=120)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0 and json.loads(out)["num_rows"] == 36


def page_of(runs_dir: Path) -> TestClient:
    site = Site(runs_dir, 8125)
    base = "http://127.0.0.1:8125"
    client = TestClient(make_app(site), base_url=base, headers={"origin": base})
    client.get(f"/?token={site.token}")
    return client


def copy_of(run: Run, runs_dir: Path) -> Path:
    """The run without labels, in another folder of runs."""
    shutil.copytree(run.folder, runs_dir / run.folder.name)
    (runs_dir / run.folder.name / "labels.jsonl").unlink(missing_ok=True)
    return runs_dir / run.folder.name


def say_on(client: TestClient, address: str, act: str, **more: str) -> str:
    """Answer the row that the page shows."""
    asked = re.search(r'name="id" value="(\d+)"', client.get(address).text)
    assert asked is not None
    return client.post(address, data={"id": asked[1], "act": act, **more}).text


def test_the_page_labels_blind_and_row_by_row(decided, tmp_path) -> None:
    folder = copy_of(decided[0], tmp_path / "runs")
    labels, client, address = folder / "labels.jsonl", page_of(tmp_path / "runs"), f"/runs/{folder.name}/label"
    first = client.get(address).text
    assert "0 of 100 labelled" in first and "zero-shot" not in first and "Undo" not in first
    assert "1 of 100" in say_on(client, address, "yes") and "2 of 100" in say_on(client, address, "no")
    assert "2 of 100" in say_on(client, address, "skipped")
    assert "2 of 100" in say_on(client, address, "undo") and "1 of 100" in say_on(client, address, "undo")
    assert [label.said for label in read_labels(labels)] == [[True], [False], "skipped", None, None]
    assert "that is no label" in say_on(client, address, "perhaps").replace("&#x27;", "'")
    assert client.post(address, data={"id": "999", "act": "yes"}).status_code == 200  # another row is due: not kept
    assert len(read_labels(labels)) == 5
    assert "calibrated by them" in client.post(address, data={"act": "in"}).text
    (folder / "run.yaml").write_text("name: x")
    assert client.get(address).status_code == 422
    part = client.get(address, headers={"hx-request": "true"})  # a refusal that is shown as text
    assert part.status_code == 422 and "<" not in part.text


def test_the_page_asks_for_the_arms_and_the_rows_of_its_address(decided, tmp_path) -> None:
    folder = copy_of(decided[0], tmp_path / "runs")
    client = page_of(tmp_path / "runs")
    address = label_address(folder.name, ["zero-shot shoestring-1m"], 2)
    assert address == f"/runs/{folder.name}/label?arm=zero-shot+shoestring-1m&num=2"
    assert "1 of 2 labelled" in say_on(client, address, "yes")
    enough = say_on(client, address, "no")
    assert "All that was asked for is labelled" in enough and "num=102" in enough and "Undo the last" in enough
    assert "the run has" in client.get(label_address(folder.name, ["none such"])).text
    assert client.get(f"/runs/{folder.name}/label?num=0").status_code == 422


def test_each_criterion_is_answered(decided, tmp_path) -> None:
    folder = copy_of(decided[0], tmp_path / "runs")
    raw = yaml.safe_load((folder / "run.yaml").read_text())
    raw["judge"]["criteria"] = ["Right?", "Short?"]
    (folder / "run.yaml").write_text(yaml.safe_dump(raw))
    client, address = page_of(tmp_path / "runs"), f"/runs/{folder.name}/label"
    assert "answer each question" in say_on(client, address, "all", **{"criterion-0": "yes"})
    assert "1 of 100" in say_on(client, address, "all", **{"criterion-0": "yes", "criterion-1": "no"})
    assert [label.said for label in read_labels(folder / "labels.jsonl")] == [[True, False]]


def test_the_command_opens_that_page_and_takes_the_labels_in_at_its_end(decided, tmp_path) -> None:
    folder = copy_of(decided[0], tmp_path / "runs")
    process = subprocess.Popen(
        [sys.executable, "-m", "shoestring", "label", str(folder), "--page", "--num", "2", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "src"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    url = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor())
    with opener.open(url, timeout=60) as answer:
        text = answer.read().decode()
        assert "token=" not in answer.url and answer.url.endswith("/label?num=2") and "0 of 2 labelled" in text
    form = urllib.parse.urlencode({"id": re.search(r'name="id" value="(\d+)"', text)[1], "act": "yes"}).encode()
    origin = {"Origin": answer.url.partition("/runs")[0]}
    with opener.open(urllib.request.Request(answer.url, form, origin), timeout=60) as answer:
        assert "1 of 2 labelled" in answer.read().decode()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and json.loads(out)["num_rows"] == 1


def test_what_cannot_be_labelled_is_said(decided, capfd, tmp_path) -> None:
    run, server = decided
    assert command(["label", str(run.folder), "--arm", "other"]) == 2
    assert "'other': the run has 'zero-shot shoestring-1m'" in capfd.readouterr().err
    path = write_run(tmp_path, server)
    assert command(["label", str(path), "--runs-dir", str(tmp_path / "runs")]) == 2
    assert "no arm has answered yet" in capfd.readouterr().err
    text = path.read_text().replace("metric: judge", "metric: chrf")
    path.write_text(text[: text.index("judge:")])
    assert command(["judge", str(path), "--runs-dir", str(tmp_path / "runs")]) == 2
    assert "has no section judge" in capfd.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        {"row": ["a"]},
        {"order": 1},
        {"said": "maybe"},
        {"said": {"a": True}},
        {"said": ["yes"]},
        {"said": []},
        {"answers_print": None},
    ],
)
def test_a_label_that_is_none_is_left_out(tmp_path: Path, damage: dict[str, Any]) -> None:
    whole = {"answers_print": "p", "criteria_print": "c", "arm": "a", "row": "r", "order": "", "said": [True], "at": ""}
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in ([], "x", 7, {**whole, **damage}, whole)))
    assert [label.said for label in read_labels(path)] == [[True]]
