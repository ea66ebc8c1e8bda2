"""The main path end to end on the smallest embedded model: what is repeated, what is kept, when it stops."""

import json
import os
import shutil
from pathlib import Path

import pytest
from test_client import Server

from shoestring.cli.main import run as command
from shoestring.config import EndpointConfig
from shoestring.errors import BudgetStopped, ConfigError, DataError
from shoestring.files import read_json, read_jsonl, write_jsonl
from shoestring.recipe import Run
from shoestring.records import Message, no_progress
from shoestring.stages import rungs
from shoestring.stages.deciding import paying

COLOURS = ("red", "green", "blue")
RUN_FILE = """
name: colours
task: {{kind: classify, bar: {bar}}}
data: {{train: rows.jsonl}}
models: {models}
budget_usd: {budget_usd}
decide: {{arms: [zero_shot, few_shot], max_rows: 20, num_shots: 2}}
train: {{num_epochs: {num_epochs}, num_evals: 2, lora_rank: 4}}
"""


def write_run(
    folder: Path,
    *,
    bar: float = 0.99,
    num_epochs: float = 1,
    budget_usd: float = 1,
    models: str = "shoestring-1m",
    more: str = "",
) -> Path:
    rows = [{"prompt": f"thing {i} is {COLOURS[i % 3]}", "completion": COLOURS[i % 3]} for i in range(160)]
    write_jsonl(folder / "rows.jsonl", rows)
    path = folder / "run.yaml"
    text = RUN_FILE.format(bar=bar, num_epochs=num_epochs, budget_usd=budget_usd, models=models)
    path.write_text(text + more)
    return path


def finished_at(folder: Path) -> dict[str, str]:
    names = (
        "curate.json",
        "decide.json",
        "plan.json",
        "rungs/shoestring-1m/train.json",
        "rungs/shoestring-1m/eval.json",
    )
    return {name: read_json(folder / name)["finished_at"] for name in names}


def arms_of(path: Path) -> list[dict]:
    result = read_json(path)["result"]
    return result.get("arms") or [result["arm"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    base = tmp_path_factory.mktemp("recipe")
    run = Run.from_file(write_run(base), runs_dir=base / "runs")
    verdict = run.execute()
    return base, run, verdict


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run in a place of its own."""
    base = finished[0]
    shutil.copytree(base, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_run_leaves_every_record_and_a_report(finished):
    _, run, verdict = finished

    assert not verdict.met  # twenty rows of held-out data cannot show 0.99
    for name in ("run.yaml", "meta.json", "export.json", "ladder.json", "report.html", "export/merged/config.json"):
        assert (run.folder / name).is_file(), name
    counts = read_json(run.folder / "curate.json")["result"]["counts"]
    kept = sum(counts[f"rows_{part}"] for part in ("train", "dev", "eval"))
    assert counts["rows_in"] + counts["rows_expanded"] == kept + counts["dropped"]
    stages = [entry["stage"] for entry in run.ledger.entries()]
    in_order = "curate decide plan train eval calibration regression export"
    assert list(dict.fromkeys(stages)) == in_order.split()
    assert stages.count("decide") == 3  # a line each for two arms, and for what is left of the stage
    near = set(read_json(run.folder / "data/receipt.json")["near_eval_ids"])
    arms = [arm for name in ("decide.json", "rungs/shoestring-1m/eval.json") for arm in arms_of(run.folder / name)]
    for arm, said in zip(arms, run.summary()["arms"], strict=True):
        assert said["far"]["num_rows"] == sum(row["id"] not in near for row in arm["rows"]) == arm["far"]["num_rows"]
        assert said["far"]["score"] is not None and said["far"]["low"] <= said["far"]["score"] <= said["far"]["high"]


def test_held_out_rows_are_in_no_other_part(finished):
    _, run, _ = finished
    ids = {
        part: {row["id"] for row in read_jsonl(run.folder / "data" / f"{part}.jsonl")}
        for part in ("train", "dev", "eval")
    }

    assert not ids["eval"] & (ids["train"] | ids["dev"])
    assert not ids["dev"] & ids["train"]


def test_a_second_run_repeats_nothing(copied):
    before = finished_at(copied / "runs/colours")

    verdict = Run.from_file(copied / "run.yaml", runs_dir=copied / "runs").execute()

    assert finished_at(copied / "runs/colours") == before
    assert not (copied / "runs/colours/superseded").exists()
    assert not verdict.met


def test_another_bar_changes_the_verdict_and_repeats_no_stage(copied):
    before = finished_at(copied / "runs/colours")

    verdict = Run.from_file(write_run(copied, bar=0.0), runs_dir=copied / "runs").execute()

    assert verdict.met
    assert finished_at(copied / "runs/colours") == before


def test_other_training_values_train_anew_and_keep_the_old_rung(copied):
    before = finished_at(copied / "runs/colours")

    Run.from_file(write_run(copied, num_epochs=0.5), runs_dir=copied / "runs").execute(until="train")

    after = read_json(copied / "runs/colours/rungs/shoestring-1m/train.json")
    assert after["result"]["settings"]["num_epochs"] == 0.5
    assert read_json(copied / "runs/colours/curate.json")["finished_at"] == before["curate.json"]
    assert [p for p in (copied / "runs/colours/superseded").iterdir() if p.name.endswith("rungs-shoestring-1m")]


def test_a_budget_below_the_prediction_stops_before_training_and_goes_on_when_raised(tmp_path):
    with pytest.raises(BudgetStopped, match="raise budget_usd"):
        Run.from_file(write_run(tmp_path, budget_usd=0), runs_dir=tmp_path / "runs").execute()
    assert not (tmp_path / "runs/colours/rungs").exists()
    assert (tmp_path / "runs/colours/report.html").is_file()

    Run.from_file(write_run(tmp_path, num_epochs=0.5), runs_dir=tmp_path / "runs").execute(until="train")

    assert (tmp_path / "runs/colours/rungs/shoestring-1m/adapter/adapter_model.safetensors").is_file()


def test_a_baseline_that_meets_the_bar_ends_the_run_without_training(tmp_path):
    verdict = Run.from_file(write_run(tmp_path, bar=0.0), runs_dir=tmp_path / "runs").execute()

    assert verdict.met
    assert verdict.kind in ("prompt", "few_shot")
    assert not (tmp_path / "runs/colours/rungs").exists()


def test_a_run_folder_can_be_reopened_without_its_run_file(copied):
    (copied / "run.yaml").unlink()

    summary = Run.from_folder(copied / "runs/colours").summary()

    assert summary["stage"] == "done"
    assert [arm["kind"] for arm in summary["arms"]] == ["zero_shot", "few_shot", "finetune"]
    json.dumps(summary)


def test_what_is_wrong_with_paths_is_said(tmp_path):
    with pytest.raises(ConfigError, match="no such run file"):
        Run.from_file(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="not a run folder"):
        Run.from_folder(tmp_path)
    path = write_run(tmp_path)
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        Run.from_file(path, runs_dir=tmp_path / "runs").execute()


# ---- what is shown and what is kept when the run file changes ----------------------------------


def shown(run: Run) -> tuple[list[str], str]:
    """Arms of the summary, and the report."""
    return [arm["arm"] for arm in run.summary()["arms"]], run.write_report().read_text(encoding="utf-8")


def test_a_rung_that_the_run_file_no_longer_names_is_not_shown_and_not_lost(copied):
    arms, report = shown(Run.from_file(copied / "run.yaml", runs_dir=copied / "runs"))
    assert "lora shoestring-1m" in arms and "lora shoestring-1m" in report

    run = Run.from_file(write_run(copied, models="shoestring-3m"), runs_dir=copied / "runs")
    run.execute(until="plan")

    arms, report = shown(run)
    assert "lora shoestring-1m" not in arms and "lora shoestring-1m" not in report
    assert (copied / "runs/colours/rungs/shoestring-1m/eval.json").is_file()


def test_a_score_of_earlier_training_values_is_set_aside_before_its_rung_is_trained_anew(copied):
    run = Run.from_file(write_run(copied, num_epochs=0.5, budget_usd=0), runs_dir=copied / "runs")

    with pytest.raises(BudgetStopped):
        run.execute()

    arms, report = shown(run)
    assert "lora shoestring-1m" not in arms and "lora shoestring-1m" not in report
    assert [p for p in (run.folder / "superseded").iterdir() if p.name.endswith("rungs-shoestring-1m")]


def test_a_plan_alone_sets_no_trained_rung_aside(copied):
    Run.from_file(write_run(copied, num_epochs=0.5), runs_dir=copied / "runs").execute(until="plan")

    assert (copied / "runs/colours/rungs/shoestring-1m/eval.json").is_file()


def test_a_model_added_to_the_ladder_leaves_the_trained_rung_as_it_is(copied):
    folder = copied / "runs/colours"
    before = finished_at(folder)
    run = Run.from_file(write_run(copied, models="[shoestring-1m, shoestring-3m]"), runs_dir=copied / "runs")

    run.execute(until="train")

    after = finished_at(folder)
    assert {name for name in after if after[name] != before[name]} <= {"curate.json", "decide.json", "plan.json"}
    assert "lora shoestring-1m" in shown(run)[0]


def test_other_baselines_are_paired_with_the_same_scores_anew(copied):
    folder = copied / "runs/colours"
    before = finished_at(folder)
    path = write_run(copied)
    path.write_text(path.read_text().replace("arms: [zero_shot, few_shot]", "arms: [zero_shot]"))

    Run.from_file(path, runs_dir=copied / "runs").execute()

    assert finished_at(folder)["rungs/shoestring-1m/eval.json"] == before["rungs/shoestring-1m/eval.json"]
    differences = read_json(folder / "ladder.json")["result"]["differences"]
    assert [(d["arm_a"], d["arm_b"]) for d in differences] == [("lora shoestring-1m", "zero-shot shoestring-1m")]


def test_notes_of_the_plan_speak_of_the_budget_as_it_is(copied):
    run = Run.from_file(write_run(copied, budget_usd=7), runs_dir=copied / "runs")

    run.execute(until="plan")

    assert any("budget of $7.00" in note for note in read_json(run.folder / "plan.json")["result"]["notes"])


def test_data_that_is_not_what_was_curated_is_refused_and_deleted_data_made_again(copied):
    run = Run.from_file(copied / "run.yaml", runs_dir=copied / "runs")
    trained = finished_at(run.folder)["rungs/shoestring-1m/train.json"]
    receipt = run.folder / "data/receipt.json"
    receipt.write_text(receipt.read_text().replace('"notes": []', '"notes": [ ]') + " ")

    with pytest.raises(DataError, match=r"receipt\.json: not the receipt that curation wrote.*delete"):
        run.execute()
    shutil.rmtree(run.folder / "data")
    run.execute()

    assert receipt.is_file()
    assert finished_at(run.folder)["rungs/shoestring-1m/train.json"] == trained


def test_two_run_files_of_one_name_do_not_share_a_folder(tmp_path):
    first = write_run(tmp_path)
    Run.from_file(first, runs_dir=tmp_path / "runs").execute(until="curate")
    second = tmp_path / "other.yaml"
    second.write_text(first.read_text() + "seed: 3\n")

    with pytest.raises(ConfigError) as refused:
        Run.from_file(second, runs_dir=tmp_path / "runs")

    for words in (str(first), str(second), "'colours'", "another name", "--runs-dir"):
        assert words in str(refused.value)
    Run.from_file(second, runs_dir=tmp_path / "elsewhere")
    second.write_text(first.read_text())
    Run.from_file(second, runs_dir=tmp_path / "runs")  # says the same
    second.write_text(first.read_text() + "seed: 3\n")
    first.unlink()
    Run.from_file(second, runs_dir=tmp_path / "runs").execute(until="curate")  # the first is gone
    assert read_json(tmp_path / "runs/colours/meta.json")["run_file"] == str(second)


# ---- export ------------------------------------------------------------------------------------


def test_export_uses_what_is_trained_and_trains_nothing(copied, capfd, monkeypatch):
    monkeypatch.chdir(copied)
    folder = copied / "runs/colours"
    shutil.rmtree(folder / "export")
    (folder / "export.json").unlink()
    before = finished_at(folder), read_json(folder / "ladder.json")
    write_run(copied, num_epochs=0.5, models="[shoestring-1m, shoestring-3m]")

    assert command(["export", "run.yaml"]) == 0

    captured = capfd.readouterr()
    assert "changed since it was run" in captured.err and "does not meet the bar of 0.99" in captured.err
    assert (folder / "export/merged/model.safetensors").is_file()
    assert (finished_at(folder), read_json(folder / "ladder.json")) == before
    assert [p.name for p in (folder / "rungs").iterdir()] == ["shoestring-1m"]


def test_export_of_a_run_that_has_not_scored_a_rung_says_what_to_do(copied, capfd):
    folder = copied / "runs/colours"
    (folder / "rungs/shoestring-1m/eval.json").unlink()

    assert command(["export", str(folder)]) == 2

    assert "no rung is trained and scored yet; first: shoestring run" in capfd.readouterr().err


# ---- what was deleted or damaged in a finished run -----------------------------------------------


def cut_weights(adapter: Path) -> None:
    os.truncate(adapter / "adapter_model.safetensors", 100)


@pytest.mark.parametrize("damage", [shutil.rmtree, cut_weights])
@pytest.mark.parametrize("verb", ["run", "export"])
def test_a_lost_adapter_is_put_back_and_no_stage_but_the_export_is_repeated(copied, capfd, damage, verb):
    folder = copied / "runs/colours"
    adapter = folder / "rungs/shoestring-1m/adapter"
    weights, before = (adapter / "adapter_model.safetensors").read_bytes(), finished_at(folder)
    damage(adapter)

    assert command([verb, str(folder)]) in (0, 3)

    assert "its adapter was missing or damaged, and is put back" in capfd.readouterr().err
    assert (adapter / "adapter_model.safetensors").read_bytes() == weights
    assert (adapter / "README.md").is_file()
    assert finished_at(folder) == before


def test_an_adapter_lost_for_good_is_trained_again(copied, capfd):
    folder = copied / "runs/colours"
    rung, before = folder / "rungs/shoestring-1m", finished_at(folder)
    weights = (rung / "adapter/adapter_model.safetensors").read_bytes()
    for name in ("adapter", "best", "checkpoints"):
        shutil.rmtree(rung / name)

    assert command(["export", str(folder)]) == 2
    assert f"train it again: shoestring run {folder}" in capfd.readouterr().err
    assert command(["run", str(folder)]) == 3

    assert "so it is trained again" in capfd.readouterr().err
    assert (rung / "adapter/adapter_model.safetensors").read_bytes() == weights
    assert (folder / "export/merged/model.safetensors").is_file()
    assert finished_at(folder)["decide.json"] == before["decide.json"]
    entries = Run.from_folder(folder).ledger.entries()
    stages = [e["stage"] for e in entries if e["item"].startswith("rungs/")]
    assert stages == ["train", "eval", "calibration", "regression"] * 2


def test_an_export_that_misses_a_file_is_made_again_and_an_edited_card_stays(copied):
    folder = copied / "runs/colours"
    merged = folder / "export/merged"
    (merged / "README.md").write_text("ours")
    Run.from_folder(folder).execute()
    assert (merged / "README.md").read_text() == "ours"
    os.truncate(merged / "model.safetensors", 100)

    Run.from_folder(folder).execute()

    assert (merged / "model.safetensors").stat().st_size > 100


# ---- money -------------------------------------------------------------------------------------


def test_evaluation_is_within_the_budget_too(copied):
    folder = copied / "runs/colours"
    trained = finished_at(folder)["rungs/shoestring-1m/train.json"]
    (folder / "rungs/shoestring-1m/eval.json").unlink()

    with pytest.raises(BudgetStopped, match=r"evaluating shoestring-1m is predicted to cost .* raise budget_usd"):
        Run.from_file(write_run(copied, budget_usd=0), runs_dir=copied / "runs").execute()
    Run.from_file(write_run(copied), runs_dir=copied / "runs").execute()

    assert finished_at(folder)["rungs/shoestring-1m/train.json"] == trained


def test_a_training_under_way_is_in_the_sum_and_counts_once_when_it_is_finished(copied, capfd):
    run = Run.from_file(copied / "run.yaml", runs_dir=copied / "runs")
    whole_usd = run.ledger.spent_usd()
    lines = run.ledger.path.read_text().splitlines(keepends=True)
    run.ledger.path.write_text("".join(line for line in lines if '"stage": "train"' not in line))
    for name in ("ladder.json", "rungs/shoestring-1m/train.json", "rungs/shoestring-1m/eval.json"):
        (run.folder / name).unlink()

    summary = run.summary()

    assert summary["stage"] == "train shoestring-1m"
    assert run.ledger.spent_usd() < summary["spent_usd"] <= whole_usd
    assert "train, under way" in shown(run)[1]
    assert command(["runs", "--runs-dir", str(copied / "runs"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["runs"][0]["spent_usd"] == summary["spent_usd"]
    run.execute(until="train")
    assert run.summary()["spent_usd"] == run.ledger.spent_usd()


def test_work_done_twice_is_paid_twice_and_a_kill_before_the_record_counts_nothing_twice(copied):
    folder = copied / "runs/colours"

    def times_entered(item: str) -> int:
        run = Run.from_file(copied / "run.yaml", runs_dir=copied / "runs")
        run.execute(until="train")
        return sum(entry["item"] == item for entry in run.ledger.entries())

    write_run(copied, num_epochs=0.5)
    assert times_entered("rungs/shoestring-1m/train") == 2
    write_run(copied)  # back to what was trained first and set aside
    assert times_entered("rungs/shoestring-1m/train") == 3
    (folder / "rungs/shoestring-1m/train.json").unlink()  # as a kill after the ledger's line leaves it
    assert times_entered("rungs/shoestring-1m/train") == 3


@pytest.fixture
def endpoint(monkeypatch):
    """A server whose every answer is 'red' and takes 1,000 tokens in and 1 out, and its entry in a run file."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    answer = {
        "choices": [{"message": {"content": "red"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 1},
    }
    server = Server(lambda number, body: (200, {}, json.dumps(answer).encode()))
    prices = {"usd_per_million_input_tokens": 1, "usd_per_million_output_tokens": 0}
    yield server, {"name": "hosted", "base_url": server.url, "model": "m", "api_key_env": "", **prices}
    server.close()


def test_cached_answers_are_not_entered_in_the_ledger_again(copied, endpoint):
    server, entry = endpoint
    more = f"decide: {{arms: [zero_shot], max_rows: 20, endpoints: [{json.dumps(entry)}]}}\n"

    def decided(price: float) -> float:
        path = write_run(copied)
        kept = [line for line in path.read_text().splitlines() if not line.startswith("decide:")]
        path.write_text("\n".join(kept) + f"\n{more}market: {{price_usd_per_hour: {price}}}\n")
        run = Run.from_file(path, runs_dir=copied / "runs")
        run.execute(until="decide")
        return sum(e["actual"]["usd"] for e in run.ledger.entries() if e["item"] == "endpoint hosted")

    assert decided(0) == pytest.approx(0.02)  # 20 rows, each 1,000 tokens at a dollar the million
    assert decided(1) == pytest.approx(0.02)  # decided again: another price of the machine
    assert len(server.requests) == 20


def test_an_endpoint_sees_what_the_one_before_it_spent_and_what_a_kill_left_out(copied, endpoint):
    _, entry = endpoint
    run = Run.from_file(write_run(copied, budget_usd=0.02), runs_dir=copied / "runs")
    first = EndpointConfig.model_validate(entry)
    second = EndpointConfig.model_validate({**entry, "name": "second", "model": "n"})
    prompts = [(Message("user", f"{i} " + "x" * 990),) for i in range(15)]  # about 500 tokens each, by our count

    paying(run, first, 1)(prompts, no_progress)
    spent_usd = run.ledger.spent_usd()
    assert spent_usd >= 0.015
    with pytest.raises(BudgetStopped, match="prompting second could cost"):
        paying(run, second, 1)(prompts, no_progress)
    paying(run, first, 1)(prompts, no_progress)  # all cached, so nothing can be refused
    assert run.ledger.spent_usd() == spent_usd

    lines = run.ledger.path.read_text().splitlines(keepends=True)
    run.ledger.path.write_text("".join(line for line in lines if "endpoint hosted" not in line))
    paying(run, first, 1)(prompts, no_progress)
    assert run.ledger.spent_usd() == pytest.approx(spent_usd)


def test_a_training_that_costs_more_than_predicted_stops_within_the_budget_and_goes_on_when_raised(
    finished, tmp_path, monkeypatch, capfd
):
    """At a dollar a second; the prediction is set aside, as if it had been far too low."""
    budget_usd, more = 0.5, "market: {price_usd_per_hour: 3600}\n"
    monkeypatch.setattr(rungs, "check_budget", lambda *_: None)
    folder = tmp_path / "runs/colours/rungs/shoestring-1m"
    arguments = ["run", str(tmp_path / "run.yaml"), "--runs-dir", str(tmp_path / "runs"), "--json"]
    write_run(tmp_path, budget_usd=budget_usd, more=more)
    for _ in range(2):  # again with the same budget: nothing is loaded, no step is begun
        assert command(arguments) == 4
        told = json.loads(capfd.readouterr().out)["error"]
        assert told["type"] == "BudgetStopped" and "raise budget_usd" in told["message"]
        assert (
            len(read_jsonl(folder / "steps.jsonl")) == 1
            and (folder / "checkpoints/checkpoint-1/COMPLETE.json").exists()
        )

    write_run(tmp_path, budget_usd=1e6, more=more)
    assert command(arguments) == 3
    assert capfd.readouterr().out
    weights = "rungs/shoestring-1m/adapter/adapter_model.safetensors"
    assert (tmp_path / "runs/colours" / weights).read_bytes() == (finished[1].folder / weights).read_bytes()
    assert len(read_jsonl(folder / "steps.jsonl")) > 1
