"""The judge as a run's metric, on the smallest embedded model: scores, costs, interruption, labels, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from shoestring.cli.running import summary_of
from shoestring.config import JudgeConfig
from shoestring.errors import BadInput, BudgetStopped, ConfigError, EndpointError
from shoestring.evaluate.judge.labels import ORDERS, answers_print, criteria_print, human_scores, read_labels
from shoestring.files import read_json, read_jsonl, write_jsonl
from shoestring.ladder import held_to_ladder
from shoestring.messages import example_from_json
from shoestring.recipe import Run
from shoestring.records import arm_from_json
from shoestring.stages.judging import family_notes, refuse_useless, require_judge
from tests.judge_server import JudgeServer, rows

RUN_FILE = """
name: places
task: {{kind: generate, metric: judge, bar: 0.9}}
data: {{train: rows.jsonl}}
models: shoestring-1m
budget_usd: {budget_usd}
curate: {{eval_rows: 40}}
decide: {{arms: [zero_shot], max_rows: 40}}
train: {{num_epochs: 1, num_evals: 1, lora_rank: 4, num_dev_rows: 4}}
evaluate: {{regression: false}}
judge:
  endpoints:
  - {{name: fair, base_url: {url}, model: "{model}", api_key_env: '', num_parallel: 4,
     usd_per_million_input_tokens: 1, usd_per_million_output_tokens: 2}}
  probe_rows: 10
"""
EVERY = rows(240)


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def write_run(folder: Path, server: JudgeServer, *, model: str = "scripted", budget_usd: float = 5, more="") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "rows.jsonl", [{"prompt": e.user_text, "completion": e.completion} for e in EVERY])
    path = folder / "run.yaml"
    path.write_text(RUN_FILE.format(url=server.url, model=model, budget_usd=budget_usd) + more)
    return path


@pytest.fixture(scope="module")
def server():
    running = JudgeServer("fair", EVERY)
    yield running
    running.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, server):
    base = tmp_path_factory.mktemp("judged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        run = Run.from_file(write_run(base, server), runs_dir=base / "runs")
        run.execute()
    return run


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished.folder.parent.parent, tmp_path / "copy")
    return Run.from_folder(tmp_path / "copy" / "runs" / "places")


def arms(run: Run):
    decided = read_json(run.folder / "decide.json")["result"]["arms"]
    return [
        arm_from_json(a) for a in [*decided, read_json(run.folder / "rungs/shoestring-1m/eval.json")["result"]["arm"]]
    ]


def test_every_arm_is_judged_and_what_it_cost_is_in_the_ledger(finished, server) -> None:
    for arm in arms(finished):
        told = arm.details["judge"]
        assert arm.metric == "judge" and arm.num_rows == 40 == len(told["rows"])
        assert sum(told["num_checked"].values()) + told["num_judged"] + told["num_no_verdict"] == 40
        assert "chrf" in arm.metrics and not told["is_calibrated"]
    spent = sum(e["actual"]["usd"] for e in finished.ledger.entries() if e["item"] == "judge fair")
    lines = [json.loads(line) for line in (finished.folder / "cache/judge-fair.jsonl").read_text().splitlines()]
    assert spent == pytest.approx(sum(line["answer"]["cost_usd"] for line in lines)) and spent > 0
    assert server.num_billed == len(lines) and len({line["request"] for line in lines}) == len(lines)
    predicted = [e["predicted"]["usd"] for e in finished.ledger.entries() if e["item"] == "judge fair"]
    assert all(p["low"] <= p["expected"] <= p["high"] for p in predicted)
    assert read_json(finished.folder / "judge.json")["result"]["biases"][0]["named"] == []


def test_training_looks_at_the_metric_that_is_computed(finished) -> None:
    trained = read_json(finished.folder / "rungs/shoestring-1m/train.json")["result"]
    assert trained["dev_metric"] is not None and 0 <= trained["dev_metric"] <= 1


def test_the_verdict_and_the_summary_say_that_no_label_has_calibrated_the_judge(finished) -> None:
    summary = finished.summary()
    assert [arm["judge"]["is_calibrated"] for arm in summary["arms"]] == [False, False]
    assert f"check the judge first: shoestring label {finished.folder}" in summary_of(finished)["verdict"]["next_step"]
    assert summary["metric"] == "judge" and "not calibrated by human labels" in summary["verdict"]["reason"]


def test_the_report_shows_the_judge_its_probes_and_what_it_decided(finished) -> None:
    text = (finished.folder / "report.html").read_text()
    assert "<h2>The judge</h2>" in text and "no bias found on 10 rows" in text and "right over wrong" in text
    assert "no human label has calibrated" in text and "is not known, so kinship is unchecked" in text


def test_a_finished_run_asks_nothing_again(copied, server) -> None:
    before = len(server.requests)
    copied.execute()
    assert len(server.requests) == before


def test_judging_that_was_cut_short_goes_on_and_pays_for_no_verdict_twice(tmp_path) -> None:
    server = JudgeServer("fair", EVERY)
    try:
        run = Run.from_file(write_run(tmp_path, server), runs_dir=tmp_path / "runs")
        server.refuse_after = 75
        with pytest.raises(EndpointError, match="401"):
            run.execute(until="decide")
        server.refuse_after = None
        Run.from_folder(run.folder).execute(until="decide")
        lines = (run.folder / "cache/judge-fair.jsonl").read_text().splitlines()
        assert server.num_billed == len(lines) == len({json.loads(line)["request"] for line in lines})
        spent = sum(e["actual"]["usd"] for e in run.ledger.entries() if e["item"] == "judge fair")
        assert spent == pytest.approx(sum(json.loads(line)["answer"]["cost_usd"] for line in lines))
    finally:
        server.close()


def test_a_judge_that_cannot_tell_right_from_wrong_is_refused_before_it_scores(tmp_path) -> None:
    server = JudgeServer("always_yes", EVERY)
    try:
        run = Run.from_file(write_run(tmp_path, server), runs_dir=tmp_path / "runs")
        with pytest.raises(BadInput, match="no better than chance"):
            run.execute(until="decide")
        found = read_json(run.folder / "judge.json")["result"]
        other = JudgeConfig.model_validate({**run.config.judge.model_dump(), "criteria": ["It is polite."]})
        refuse_useless(other, found)  # whether it is polite has nothing to do with the right answer
        mute = {"biases": [{**found["biases"][0], "num_no_verdict": 30, "num_asked": 50}]}
        with pytest.raises(BadInput, match="30 of 50 requests gave no verdict"):
            refuse_useless(other, mute)
        unasked = write_run(tmp_path / "b", server, more="").read_text().replace("probe_rows: 10", "probe_rows: 0")
        (tmp_path / "b" / "run.yaml").write_text(unasked)
        Run.from_file(tmp_path / "b" / "run.yaml", runs_dir=tmp_path / "b" / "runs").execute(until="decide")
    finally:
        server.close()


def test_pairs_by_two_judges_in_both_orders(copied, server) -> None:
    rough = JudgeServer("fair", EVERY, error_frac=0.02)
    try:
        path = copied.folder / "run.yaml"
        text = path.read_text().replace("mode: rubric", "mode: pairwise").replace("bar: 0.9", "bar: 0.5")
        raw = yaml.safe_load(text)
        second = {**raw["judge"]["endpoints"][0], "name": "rough", "base_url": rough.url}
        raw["judge"]["endpoints"].append(second)
        path.write_text(yaml.safe_dump(raw))
        run = Run.from_folder(copied.folder)
        run.execute(until="decide")
        (arm,) = (arm_from_json(a) for a in read_json(run.folder / "decide.json")["result"]["arms"])
        told = arm.details["judge"]
        assert set(told["orders"]) == {"fair", "rough"} and told["orders"]["fair"]["flip_frac"]["value"] == 0
        assert {row.score for row in arm.rows} <= {0.0, 0.5, 1.0} and told["judges_agree"] is not None
        assert told["length_controlled"]["num_pairs"] == told["num_judged"] >= 30
        spent = {e["item"] for e in run.ledger.entries() if e["item"].startswith("judge ")}
        assert spent == {"judge fair", "judge rough"}
    finally:
        rough.close()


def test_kin_and_a_missing_key_are_refused_before_anything_is_done(tmp_path, server) -> None:
    path = write_run(tmp_path, server, model="shoestring-9b")
    with pytest.raises(ConfigError, match=r"of the family shoestring, and so is shoestring-1m.*allow_same_family"):
        Run.from_file(path, runs_dir=tmp_path / "runs").execute()
    assert not (tmp_path / "runs/places/curate.json").exists()
    allowed = write_run(tmp_path, server, model="shoestring-9b", more="  allow_same_family: true\n")
    run = Run.from_file(allowed, runs_dir=tmp_path / "runs")
    require_judge(run)
    assert "may favour its own" in family_notes(run, run.config.judge)[0]
    keyed = write_run(tmp_path / "c", server)
    keyed.write_text(keyed.read_text().replace("api_key_env: ''", "api_key_env: NO_SUCH_KEY"))
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        Run.from_file(keyed, runs_dir=tmp_path / "c/runs").execute()


def test_judging_is_within_the_budget(tmp_path, server) -> None:
    path = write_run(tmp_path, server, budget_usd=0.001)
    before = len(server.requests)
    with pytest.raises(BudgetStopped, match="judging by fair could cost"):
        Run.from_file(path, runs_dir=tmp_path / "runs").execute(until="decide")
    assert len(server.requests) == before


# Labels


def labels_for(run: Run, arm, num_labels: int, said: bool) -> list[dict]:
    asked = criteria_print(run.config.judge)
    return [
        {"answers_print": answers_print(arm), "criteria_print": asked, "arm": arm.arm, "row": row.id, "order": "",
         "said": [said]}
        for row in arm.rows[:num_labels]
    ]  # fmt: skip


def test_labels_calibrate_the_record_and_nothing_is_judged_again(copied, server) -> None:
    _, tuned = arms(copied)
    held = {example_from_json(row).id for row in read_jsonl(copied.folder / "data/eval.jsonl")}
    assert {row.id for row in tuned.rows} <= held
    write_jsonl(copied.folder / "labels.jsonl", labels_for(copied, tuned, 29, said=True))
    copied.execute()
    before, generated = len(server.requests), read_json(copied.folder / "rungs/shoestring-1m/eval.json")["finished_at"]
    few = arms(copied)[1].details["judge"]
    assert few["num_labels"] == 29 and not few["is_calibrated"] and few["agreement"]["num_rows"] == 29
    write_jsonl(copied.folder / "labels.jsonl", labels_for(copied, tuned, 36, said=True))
    verdict = copied.execute()
    baseline, labelled = arms(copied)
    told = labelled.details["judge"]
    assert told["is_calibrated"] and told["num_labels"] == 36 and told["uncalibrated"]["value"] == tuned.score.value
    assert labelled.score.value > 0.9 and labelled.interval == "label-calibrated"
    assert baseline.details["judge"]["num_labels"] == 0
    held = held_to_ladder(labelled, 5)
    assert held.ladder_low is not None and tuned.score.high < held.ladder_low < labelled.score.low
    assert [r.output for r in labelled.rows] == [r.output for r in tuned.rows] and generated
    assert len(server.requests) == before and "not calibrated" not in verdict.reason
    # Labels of other answers of the same arm do not count, and that is told.
    stale = [{**label, "answers_print": "0" * 16} for label in labels_for(copied, tuned, 36, said=True)]
    write_jsonl(copied.folder / "labels.jsonl", stale)
    copied.execute()
    told = arms(copied)[1].details["judge"]
    assert not told["is_calibrated"] and told["num_stale_labels"] == 36 and arms(copied)[1].score == tuned.score


def test_a_pair_counts_when_both_orders_are_labelled(copied, tmp_path) -> None:
    settings = copied.config.judge.model_copy(update={"mode": "pairwise"})
    arm = arms(copied)[1]
    one, two, three = (row.id for row in arm.rows[:3])
    said = [(one, 0, "win"), (one, 1, "win"), (two, 0, "win"), (two, 1, "loss"), (three, 0, "win"), (one, 1, None)]
    base = {"answers_print": answers_print(arm), "criteria_print": criteria_print(settings), "arm": arm.arm}
    lines = [{**base, "row": row, "order": ORDERS[order], "said": value} for row, order, value in said]
    write_jsonl(tmp_path / "labels.jsonl", lines[:-1])
    assert human_scores(arm, read_labels(tmp_path / "labels.jsonl"), settings) == {one: 1.0, two: 0.5}
    write_jsonl(tmp_path / "labels.jsonl", lines)  # the last takes one back
    assert human_scores(arm, read_labels(tmp_path / "labels.jsonl"), settings) == {two: 0.5}
