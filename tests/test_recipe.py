"""The main path end to end on the smallest embedded model: what is repeated, what is kept, when it stops."""

import json
import shutil
from pathlib import Path

import pytest

from shoestring.errors import BudgetStopped, ConfigError, DataError
from shoestring.files import read_json, read_jsonl, write_jsonl
from shoestring.recipe import Run

COLOURS = ("red", "green", "blue")
RUN_FILE = """
name: colours
task: {{kind: classify, bar: {bar}}}
data: {{train: rows.jsonl}}
models: shoestring-1m
budget_usd: {budget_usd}
decide: {{arms: [zero_shot, few_shot], max_rows: 20, num_shots: 2}}
train: {{num_epochs: {num_epochs}, num_evals: 2, lora_rank: 4}}
"""


def write_run(folder: Path, *, bar: float = 0.99, num_epochs: float = 1, budget_usd: float = 1) -> Path:
    rows = [{"prompt": f"thing {i} is {COLOURS[i % 3]}", "completion": COLOURS[i % 3]} for i in range(160)]
    write_jsonl(folder / "rows.jsonl", rows)
    path = folder / "run.yaml"
    path.write_text(RUN_FILE.format(bar=bar, num_epochs=num_epochs, budget_usd=budget_usd))
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
    assert stages == ["curate", "decide", "plan", "train", "eval", "export"]


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
