"""A served run on several machines: replicas by hand, the service's parts, and SkyPilot's own reading of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from shoestring.cli.main import run
from shoestring.config import TrafficConfig
from shoestring.launch.skyserve import Place, policy_of, service_yaml
from shoestring.market.serving import Route
from shoestring.serve.registry import read_run
from tests.served_runs import make_run

ROOT = Path(__file__).resolve().parent.parent
SKY_PYTHON = Path(os.environ.get("SHOESTRING_SKYPILOT", f"{sys.prefix}/skypilot")) / "bin" / "python"
TRAFFIC = {"requests_per_month": 26_280_000, "prompt_tokens": 400, "completion_tokens": 50}


def test_replicas_by_hand() -> None:
    """10 requests a second; a machine answers 8, adapters leave 75 %, 60 % target: 3.6 each; the busiest hour: 30."""
    policy = policy_of(TrafficConfig(**TRAFFIC), 8.0, 0.75)
    assert policy.qps == pytest.approx(3.6)
    assert (policy.min_replicas, policy.max_replicas) == (3, 9)
    few = policy_of(TrafficConfig(**{**TRAFFIC, "requests_per_month": 1000}), 8.0, 1.0)
    assert (few.min_replicas, few.max_replicas) == (1, 2)
    many = policy_of(TrafficConfig(**{**TRAFFIC, "num_adapters": 10}), 8.0, 0.75)
    assert many.min_replicas == 28


def service(places: list[Place]) -> dict:
    route = Route("hours", "x", "RunPod", 1.0, "USD", "by hand", None, "given", gpu="L4")
    text = service_yaml(
        "tickets", route, places, policy_of(TrafficConfig(**TRAFFIC), 8.0, 0.75), wheel="w.whl", mounts={}, start_s=2000
    )
    told: dict = yaml.safe_load(text)
    return told


def test_spot_beyond_the_first_where_a_cloud_has_it() -> None:
    told = service([Place("lambda", 0.5, False), Place("runpod", 0.4, True), Place("aws", 0.8, True)])
    assert [r["infra"] for r in told["resources"]["any_of"]] == ["runpod", "aws"]
    assert all(r["use_spot"] for r in told["resources"]["any_of"])
    policy = told["service"]["replica_policy"]
    assert policy["base_ondemand_fallback_replicas"] == 1 and policy["dynamic_ondemand_fallback"] is True
    assert told["service"]["readiness_probe"]["initial_delay_seconds"] == 2000
    assert told["secrets"] == {"SHOESTRING_API_KEY": None, "SHOESTRING_ADMIN_KEY": None}


def test_on_demand_where_there_is_no_spot() -> None:
    told = service([Place("lambda", 0.5, False)])
    assert told["resources"]["use_spot"] is False and told["resources"]["max_hourly_cost"] == 0.625
    assert "dynamic_ondemand_fallback" not in told["service"]["replica_policy"]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "runs", "tickets")
    config = yaml.safe_load((folder / "run.yaml").read_text())
    (folder / "run.yaml").write_text(yaml.safe_dump(config | {"traffic": TRAFFIC, "market": {"device": "L40S"}}))
    (folder / "meta.json").write_text(json.dumps({"base_dir": str(tmp_path)}))
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text("{}\n")
    return folder


def test_the_command_writes_a_service(
    trained: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOESTRING_API_KEY", "sk-of-nobody-and-in-no-file")
    assert run(["export", str(trained), "--to", "skyserve", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["gpu"] == "L40S" and told["rates"] == "predicted" and "--secret SHOESTRING_API_KEY" in told["command"]
    folder = trained / "export" / "skyserve"
    text = (folder / "service.yaml").read_text()
    copied = {str(p.relative_to(folder / "run")) for p in (folder / "run").rglob("*") if p.is_file()}
    assert "rungs/shoestring-1m/adapter/adapter_model.safetensors" in copied
    assert not any(name.startswith("data") for name in copied)  # rows stay here
    assert read_run(folder / "run").rung == "shoestring-1m"
    every = [p.read_bytes() for p in folder.rglob("*") if p.is_file()]
    assert not any(b"sk-of-nobody" in content for content in every)
    assert "python -m shoestring serve tickets --runs-dir runs --host 0.0.0.0 --port 8000" in text
    assert run(["export", str(trained), "--to", "skyserve"]) == 0
    assert "sky serve up -n shoestring-tickets" in capfd.readouterr().out


def test_without_traffic_it_is_refused(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((trained / "run.yaml").read_text())
    del config["traffic"]
    (trained / "run.yaml").write_text(yaml.safe_dump(config))
    assert run(["export", str(trained), "--to", "skyserve"]) == 2
    assert "requests_per_month" in capfd.readouterr().err


@pytest.mark.skipif(not SKY_PYTHON.is_file(), reason="no SkyPilot: scripts/check_skypilot.py --install .venv/skypilot")
def test_skypilot_itself_reads_and_validates_the_service(trained: Path, tmp_path: Path) -> None:
    assert run(["export", str(trained), "--to", "skyserve"]) == 0
    path = trained / "export" / "skyserve" / "service.yaml"
    given = yaml.safe_load(path.read_text())
    seeded = [r for r in given["resources"]["any_of"] if r["infra"] in ("runpod", "nebius")]
    given["resources"]["any_of"] = seeded  # the check's catalog knows these clouds
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    words = [str(SKY_PYTHON), str(ROOT / "scripts" / "check_skypilot.py"), str(path)]
    done = subprocess.run(words, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"], result
    assert result["service"]["readiness_path"] == "/health"
    assert result["service"]["use_ondemand_fallback"] and result["service"]["base_ondemand_fallback_replicas"] == 1
    assert result["secrets"] == ["SHOESTRING_ADMIN_KEY", "SHOESTRING_API_KEY"]
    assert "L40S" in result["chosen"]
