"""A service's job from the command line: ordered, killed, attached, billed, brought, scored as the run's own rung."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.kill_run import write_inputs
from shoestring.cli.main import run as shoestring
from shoestring.errors import BadInput
from shoestring.files import read_jsonl
from shoestring.launch.managed import backend
from shoestring.recipe import Run
from shoestring.records import plan_from_json
from shoestring.stages.bringing import as_trained, record_of
from shoestring.train.base import quiet_loading
from shoestring.train.brought import require_of_base
from tests.managed_server import DOLLARS_PER_MILLION, ManagedServer
from tests.test_launch_managed import KEYS, needs_sdk
from tests.tiny import make_model

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.parametrize("vendor", [needs_sdk("together")])


def adapter_of(model: Path, folder: Path, learned: bool = True) -> dict[str, bytes]:
    """Files of a real LoRA on the model, as a service packs them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    with quiet_loading():
        tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(model), lora)
    if learned:
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
    tuned.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "Qwen/Qwen3-8B"  # as the service calls it
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return {name: (folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}


class Case:
    """A run file over a tiny model that is here, trained by the loopback's Together under another name."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = make_model(folder / "model")
        self.server = ManagedServer("together", adapter_of(self.model, folder / "adapter"))
        self.run_file = write_inputs(folder, str(self.model), 60, "served")
        place = f"launch: {{managed: {{model: Qwen/Qwen3-8B}}, place: 'together:{self.server.root}'}}"
        self.run_file.write_text(f"{self.run_file.read_text()}{place}\n")
        self.folder, self.run_folder = folder, folder / "served"
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
        monkeypatch.setattr(backend, "POLL_S", 0.0)
        monkeypatch.setattr("shoestring.launch.managed.flow.FILE_WAIT_S", 0.0)

    def shoestring(self, *arguments: str) -> int:
        return shoestring([*arguments, "--runs-dir", str(self.folder)])


@pytest.fixture
def case(vendor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    made = Case(tmp_path, monkeypatch)
    yield made
    made.server.close()


def told(capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def test_launch_follows_bills_brings_and_the_run_scores_it(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    assert case.shoestring("launch", str(case.run_file), "--json") == 0
    said = capfd.readouterr()
    status = json.loads(said.out)["status"]
    (job,) = case.server.jobs.values()
    cost_usd = job.num_tokens * DOLLARS_PER_MILLION / 1e6
    assert status["state"] == "done" and status["cost_usd"] == pytest.approx(cost_usd, abs=1e-9)
    assert len(case.server.creates) == 1
    (line,) = read_jsonl(case.run_folder / "launches.jsonl")
    assert line["actual"]["usd"] == pytest.approx(cost_usd, abs=1e-9)
    assert line["predicted"]["usd"]["expected"] == pytest.approx(cost_usd, abs=1e-9)

    assert case.shoestring("eval", str(case.run_file), "--json") in (0, 3)
    (train,) = case.run_folder.glob("rungs/*/train.json")
    trained = json.loads(train.read_text())["result"]
    assert trained["settings"]["trained_by"]["job_id"] == job.id and trained["num_steps"] == 0
    arm = json.loads(train.with_name("eval.json").read_text())["result"]["arm"]
    assert arm["num_rows"] > 0 and arm["cost_usd"] >= cost_usd
    entries = [e for e in read_jsonl(case.run_folder / "ledger.jsonl") if e["item"].endswith("/train")]
    assert [(e["predicted"], "basis" in e) for e in entries] == [(None, False)]  # no later plan learns from it
    run = Run.from_file(case.run_file, runs_dir=case.folder)
    (rung,) = plan_from_json(json.loads((case.run_folder / "plan.json").read_text())["result"]).rungs
    too_large = dataclasses.replace(rung, verdict="does_not_fit")  # to train here, and yet it is climbed
    assert as_trained(run, too_large).verdict == "fits"
    assert as_trained(run, dataclasses.replace(too_large, model="other")).verdict == "does_not_fit"
    for key in KEYS.values():
        assert key not in said.out + said.err
        for path in case.folder.rglob("*"):
            assert not path.is_file() or key.encode() not in path.read_bytes(), path


KILLED = """
import os, signal, sys
from shoestring.launch.managed.client import Client
from shoestring.cli.main import run

once = Client.once

def die(self, op, *rest, **args):
    answer = once(self, op, *rest, **args)  # it is carried out, and this process never hears of it
    if op == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer

Client.once = die
import shoestring.launch.managed.flow as flow
flow.FILE_WAIT_S = 0.0
run(sys.argv[2:])
"""


def test_killed_while_it_orders_it_is_found_and_attached(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    """`shoestring launch`, killed once the service has carried the order out."""
    assert case.shoestring("plan", str(case.run_file)) == 0
    command = [sys.executable, "-c", KILLED, "create", "launch", str(case.run_file), "--runs-dir", str(case.folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    assert done.returncode == -signal.SIGKILL, done.stderr
    capfd.readouterr()
    assert case.shoestring("runs", "--json") == 0
    assert told(capfd)["launches"][0]["state"] in ("pending", "running")
    assert case.shoestring("launch", str(case.run_file)) == 2  # nothing is paid twice
    capfd.readouterr()
    assert case.shoestring("launch", str(case.run_file), "--attach", "--json") == 0
    assert told(capfd)["status"]["state"] == "done"
    assert len(case.server.creates) == 1 and len(case.server.files) == 1
    assert list(case.run_folder.glob("managed/*/result/adapter/adapter_model.safetensors"))


def test_an_adapter_of_another_base_is_refused(case: Case) -> None:
    folder = case.folder / "adapter"
    require_of_base(folder, str(case.model))
    other = make_model(case.folder / "other", hidden=64)
    with pytest.raises(BadInput, match=r"does not fit .*other.*of another size"):
        require_of_base(folder, str(other))
    adapter_of(case.model, folder, learned=False)
    with pytest.raises(BadInput, match="changes nothing"):
        require_of_base(folder, str(case.model))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"base": "b", "kind": "adapter"}'])
def test_a_damaged_record_of_what_was_brought_is_told(vendor: str, tmp_path: Path, text: str) -> None:
    (tmp_path / "managed.json").write_text(text)
    with pytest.raises(BadInput, match="is damaged; delete"):
        record_of(tmp_path)
