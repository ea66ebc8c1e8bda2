"""export --to: a run as TRL and Axolotl run it, by their own parsers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from shoestring.cli.main import run as cli
from shoestring.errors import BadInput, RunFolderError
from shoestring.recipe import Run
from shoestring.stages.common import replacing
from shoestring.stages.handing_over import hand_over

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = Path(sys.prefix) / "axolotl-schema"  # `make environments` puts Axolotl's schema there
WORDS = "amber birch cedar delta ember frost grove heron iris jade kelp lotus maple olive pearl".split()  # noqa: SIM905


def rows(pairs=False):
    answers = ("billing", "sales", "tech")
    for i in range(72):
        prompt = f"Ticket {WORDS[i % 15]} {WORDS[(i * 7 + 3) % 15]} {i * 37}: about {answers[i % 3]}"
        if pairs:
            yield {"prompt": prompt, "chosen": answers[i % 3], "rejected": answers[(i + 1) % 3]}
        else:
            yield {"prompt": prompt, "completion": answers[i % 3]}


def make_run(folder, text="", pairs=False):
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(pairs)))
    (folder / "run.yaml").write_text(
        "name: tickets\ntask: {kind: classify, bar: 0.5}\ndata: {train: data.jsonl}\nmodels: shoestring-1m\n"
        f"curate: {{eval_rows: 20}}\ntrain: {{num_threads: 1, num_epochs: 1, batch_tokens: 512{text}}}\n"
    )
    made = Run.from_file(folder / "run.yaml", runs_dir=folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shoestring.stages.tools.require_trackers", lambda trackers: None)  # none is installed here
        made.execute(until="plan")
    return made


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("export"), ", patience: 1, trackers: [mlflow]")


def without_trackers(config):
    return {**config, "report_to": "none"}


@pytest.fixture
def in_folder(monkeypatch):
    def go(written):
        monkeypatch.chdir(written["folder"])
        return Path(written["config"]).name

    return go


@pytest.mark.filterwarnings("ignore")  # TRL's own
def test_trl_reads_the_export_and_runs_it(planned, in_folder, monkeypatch):
    """By `trl sft`'s parser and main function; on the ids and labels that were written."""
    pytest.importorskip("trl")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from trl.scripts import sft

    written = hand_over(planned, "trl")
    name = in_folder(written)
    config = yaml.safe_load(Path(name).read_text())
    assert config["report_to"] == ["mlflow"] and config["run_name"] == "tickets/shoestring-1m"
    Path(name).write_text(yaml.safe_dump(without_trackers(config)))
    parsed = sft.make_parser().parse_args_and_config(["--config", name], fail_with_unknown_args=True)
    script, arguments, model, mixture = parsed
    assert (arguments.learning_rate, arguments.max_steps) == (config["learning_rate"], written["num_steps"])
    assert (model.lora_r, model.lora_target_modules) == (16, "all-linear")
    sft.main(script, arguments, model, mixture)
    from safetensors.torch import load_file

    weights = load_file("adapter/adapter_model.safetensors")
    assert len(weights) == 42 and any(name.endswith("lora_B.weight") and w.any() for name, w in weights.items())
    first = json.loads(Path("train.jsonl").read_text().splitlines()[0])
    assert first["labels"][-1] == first["input_ids"][-1] and first["labels"][0] == -100


@pytest.mark.filterwarnings("ignore")  # TRL's own
def test_pairs_are_written_as_turns_that_trl_renders(tmp_path, in_folder):
    pytest.importorskip("trl")
    from trl.scripts import dpo

    written = hand_over(make_run(tmp_path, ", objective: dpo", pairs=True), "trl")
    name = in_folder(written)
    _, arguments, _, _ = dpo.make_parser().parse_args_and_config(["--config", name], fail_with_unknown_args=True)
    assert arguments.beta == 0.1 and written["command"].endswith("trl dpo --config dpo.yaml")
    first = json.loads(Path("train.jsonl").read_text().splitlines()[0])
    assert first["chosen"][0]["role"] == "assistant" and first["rejected"] != first["chosen"]
    with pytest.raises(BadInput, match="writes sft alone"):
        hand_over(Run.from_folder(tmp_path / "runs" / "tickets"), "axolotl")


def test_axolotls_own_schema_takes_the_export(planned):
    """Every key known to it, every value allowed; a key that it does not know is noticed."""
    python, path = os.environ.get("SHOESTRING_AXOLOTL_PYTHON", ""), ""
    if not python:
        if not (SCHEMA / "axolotl").is_dir():
            pytest.skip("Axolotl's schema is not here: run `make environments`, or name SHOESTRING_AXOLOTL_PYTHON")
        python, path = sys.executable, str(SCHEMA)
    written = hand_over(planned, "axolotl")
    wrong = Path(written["folder"]) / "wrong.yaml"
    wrong.write_text(Path(written["config"]).read_text().replace("lora_alpha:", "lora_alfa:"))
    done = subprocess.run(
        [python, str(ROOT / "scripts" / "validate_axolotl.py"), written["config"], str(wrong)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path, "AXOLOTL_DO_NOT_TRACK": "1"},
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["valid"] for row in found] == [True, True], done.stderr[-2000:]
    assert [row["unknown"] for row in found] == [[], ["lora_alfa"]]


def test_axolotl_gets_tokenised_rows_and_what_it_cannot_do_is_said(planned):
    written = hand_over(planned, "axolotl")
    config = yaml.safe_load(Path(written["config"]).read_text())
    row = json.loads((Path(written["folder"]) / "train.jsonl").read_text().splitlines()[0])
    assert set(row) == {"input_ids", "labels", "attention_mask"} and config["datasets"][0]["type"] is None
    assert config["mlflow_run_name"] == "tickets/shoestring-1m" and config["use_mlflow"] is True
    assert any("train.patience" in note for note in written["notes"])
    assert "train.patience" in (Path(written["folder"]) / "README.md").read_text()


def test_the_command_says_where_and_how_to_run_it(planned, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("shoestring.stages.tools.require_trackers", lambda trackers: None)
    assert cli(["export", str(planned.folder), "--to", "axolotl", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["model"] == "shoestring-1m" and Path(told["config"]).is_file() and told["num_rows"] > 30
    assert cli(["export", str(planned.folder), "--to", "torchtune"]) == 2
    assert "choose one of trl, axolotl" in capfd.readouterr().err
    assert cli(["export", str(planned.folder), "--to", "trl", "--model", "other"]) == 2
    assert "the plan has shoestring-1m" in capfd.readouterr().err


def test_an_export_replaces_another_whole_and_nothing_of_the_trainer(planned):
    written = Path(hand_over(planned, "axolotl")["folder"])
    before = sorted(path.name for path in written.iterdir())
    cut_short = replacing(planned, written)
    (cut_short.__enter__() / "half").write_text("x")
    assert not cut_short.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert sorted(path.name for path in written.iterdir()) == before
    with planned.run_folder.locked(), pytest.raises(RunFolderError, match="is in use by process"):
        hand_over(planned, "axolotl")
    (written / "adapter").mkdir()
    with pytest.raises(BadInput, match="holds what axolotl trained"):
        hand_over(planned, "axolotl")
    (written / "adapter").rmdir()
    assert [path.name for path in (planned.folder / "export").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "words", [("--kind", "f16"), ("--to", "trl", "--kind", "f16"), ("--to", "gguf", "--model", "x")]
)
def test_an_option_of_another_form_is_refused(words, tmp_path, capfd):
    assert cli(["export", "tickets", *words, "--runs-dir", str(tmp_path)]) == 2
    assert f"{words[-2]} {words[-1]} is of --to" in capfd.readouterr().err
