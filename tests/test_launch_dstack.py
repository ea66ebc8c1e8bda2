"""Launching through dstack: the task that is written, dstack's own reading of it, the program's answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoestring.errors import BadInput
from shoestring.files import write_json
from shoestring.launch.aboard import Copies, Place, State
from shoestring.launch.backend import Order, backend
from shoestring.launch.dstack import FILES_LIMIT_BYTES, machines, run_name, task_of
from shoestring.launch.rented import order_of
from shoestring.recipe import Run
from shoestring.stages.choosing import weigh
from shoestring.stages.told import told
from tests.test_launch_skypilot import SECRET, launch_of, run_file, stand_in_bucket

ROOT = Path(__file__).resolve().parent.parent
# `make environments` puts dstack there; a checkout without it runs the rest.
DSTACK_PYTHON = Path(os.environ.get("SHOESTRING_DSTACK", f"{sys.prefix}/dstack")) / "bin" / "python"
STAND_IN = """
import json, os, pathlib, sys
state = pathlib.Path(os.environ["STAND_IN_DSTACK"])
words = sys.argv[1:]
with (state / "calls.jsonl").open("a") as file:
    file.write(json.dumps(words) + "\\n")
runs = json.loads((state / "runs.json").read_text()) if (state / "runs.json").is_file() else []
if words[0] == "apply":
    sys.path.insert(0, os.environ["YAML_AT"])
    import yaml
    task = yaml.safe_load(pathlib.Path(words[2]).read_text())
    missing = [name for name in task.get("env", []) if not os.environ.get(name)]
    if missing:
        sys.exit(f"Error: environment variables are not set: {missing}")
    run = {"run_spec": {"configuration": task}, "status": "submitted", "cost": 0.0}
    run["submitted_at"] = "2026-11-28T12:00:00Z"
    (state / "runs.json").write_text(json.dumps([*runs, run]))
elif words[0] == "ps":
    print(json.dumps({"project": "main", "runs": runs}))
elif words[0] == "stop":
    for run in runs:
        if run["run_spec"]["configuration"]["name"] == words[-1]:
            run |= {"status": "terminated", "termination_reason": "stopped_by_user"}
    (state / "runs.json").write_text(json.dumps(runs))
elif words[0] == "logs":
    print("step 1")
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Order:
    folder = tmp_path_factory.mktemp("planned")
    path = run_file(folder)
    run = Run.from_file(path, runs_dir=folder / "runs")
    write_json(run.folder / "choice.json", told(weigh(run), "cloud"))
    return order_of(launch_of(path, run.folder, {"bucket": "s3://kept/runs"}, backend="dstack"))


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in as `dstack` on the path; keys of the bucket are planted in the environment."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "stand_in.py").write_text(STAND_IN)
    program = folder / "dstack"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder / "stand_in.py"}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("STAND_IN_DSTACK", str(tmp_path))
    stand_in_bucket(monkeypatch, tmp_path)
    monkeypatch.setenv("YAML_AT", str(Path(yaml.__file__).parent.parent))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return tmp_path


def test_names_that_dstack_allows_and_that_tell_launches_apart() -> None:
    """At most 41 of lower case letters, digits and hyphens, beginning with a letter: the id's end is kept."""
    assert run_name("cloud-20261128-120000-ab12") == "ss-cloud-20261128-120000-ab12"
    long = run_name("a-name-of-twenty-four-ch-20261128-120000-ab12")
    assert len(long) <= 41 and long.startswith("ss-") and long.endswith("-20261128-120000-ab12")


def test_the_quote_shows_the_task(planned: Order, state: Path) -> None:
    place = backend("dstack")
    quote = place.quote(planned)
    best = machines(planned)[0]
    assert quote.price_usd_per_hour == best.usd_per_hour
    task = yaml.safe_load(quote.shown)
    assert task["type"] == "task" and best.place in task["backends"]
    assert task["max_price"] == pytest.approx(max(m.most_usd_per_hour for m in machines(planned)), rel=1e-3)
    assert task["env"] == ["AWS_SECRET_ACCESS_KEY"] and SECRET not in quote.shown
    assert "--place s3://kept/runs/ID" in task["commands"][-1] and "[all,s3]" in task["commands"][-2]
    assert not [note for note in quote.notes if "2 MB" in note]
    rows = planned.run_file.parent.parent / "data" / "rows.jsonl"
    rows.write_text(rows.read_text() + "\n" * 2**21)
    assert any(note.endswith("larger are: rows.jsonl") for note in place.quote(planned).notes)
    rows.write_text(rows.read_text().rstrip("\n") + "\n")
    with pytest.raises(BadInput, match=r"dstack:nowhere: no backend .*runpod"):
        place.quote(replace(planned, target="nowhere"))
    with pytest.raises(BadInput, match=r"launch\.bucket = empty: dstack needs a bucket"):
        place.quote(replace(planned, options={}))


def test_spot_and_on_demand_make_its_policy(planned: Order) -> None:
    (first, *_) = machines(planned)
    both = [replace(first, is_spot=True), replace(first, is_spot=False)]
    assert task_of(planned, "x", "s3://b/x", both, None).spot_policy == "auto"
    assert task_of(planned, "x", "s3://b/x", both[:1], None).spot_policy == "spot"
    assert task_of(planned, "x", "s3://b/x", both[1:], 60.0).max_duration == "60s"


@pytest.mark.skipif(not DSTACK_PYTHON.is_file(), reason="no dstack: scripts/check_dstack.py --install .venv/dstack")
def test_dstack_parses_the_task(planned: Order, tmp_path: Path) -> None:
    """Its own models, for a task of each GPU of our table that it may be asked for."""
    from shoestring.plan.devices import gpu_table

    (first, *_) = machines(planned)
    paths = []
    for gpu in gpu_table():
        path = tmp_path / f"{gpu}.dstack.yml"
        path.write_text(task_of(planned, f"cloud-{gpu.lower()}", "s3://b/x", [replace(first, gpu=gpu)], None).to_yaml())
        paths.append(str(path))
    words = [str(DSTACK_PYTHON), str(ROOT / "scripts" / "check_dstack.py"), *paths]
    done = subprocess.run(words, capture_output=True, text=True)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(paths) and all(result["ok"] for result in results), results


def test_a_run_is_submitted_found_billed_and_stopped(planned: Order, state: Path) -> None:
    place = backend("dstack")
    launch = launch_of(planned.run_file, planned.run_folder, {"bucket": "s3://kept/runs"}, backend="dstack")
    assert place.status(launch).state == "lost"
    handle = place.start(launch)
    (wheel,) = Path(handle["yaml"]).parent.glob("*.whl")
    assert wheel.stat().st_size < FILES_LIMIT_BYTES  # what a dstack server takes as it is set up
    assert handle["name"] == "ss-cloud-1" and SECRET not in Path(handle["yaml"]).read_text()
    assert SECRET not in (state / "calls.jsonl").read_text()
    assert place.status(launch).state == "pending"
    runs: list[dict[str, Any]] = json.loads((state / "runs.json").read_text())
    (state / "runs.json").write_text(json.dumps([{**runs[0], "status": "running", "cost": 0.42}]))
    (state / "runs.json").write_text(json.dumps([{**runs[0], "status": "pending"}]))
    assert place.status(launch).state == "pending"  # no machine yet
    Place("s3://kept/runs/cloud-1").write(State(1, billed_s=60.0))
    assert place.status(launch).state == "interrupted"  # it had one
    (state / "runs.json").write_text(json.dumps([{**runs[0], "status": "running", "cost": 0.42}]))
    status = place.status(launch)
    assert status.state == "running" and status.cost_usd == 0.42  # dstack's own count
    (billing,) = place.billing()
    assert (billing.launch_id, billing.stop) == ("cloud-1", "dstack stop -y ss-cloud-1")
    assert list(place.logs(launch, follow=False)) == ["step 1"]
    assert place.stop(launch).state == "stopped" and place.stop(launch).state == "stopped"
    assert place.billing() == []


def test_what_is_done_here_goes_ahead_of_the_machine(planned: Order, state: Path) -> None:
    """Launched again after a stop: the machine finds the run folder in the bucket, without the files of launches."""
    folder = state / "runs" / "cloud"
    for name in ("data/receipt.json", "curate.json", "launch.json", "launches/x/state.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    write_json(folder / "choice.json", json.loads((planned.run_folder / "choice.json").read_text()))
    said: list[str] = []
    launch = launch_of(planned.run_file, folder, {"bucket": "s3://kept/runs"}, id="cloud-2", backend="dstack")
    backend("dstack").start(launch, said.append)
    assert set(Place("s3://kept/runs/cloud-2").state().files) == {"data/receipt.json", "curate.json", "choice.json"}
    assert said[0].startswith("3 files of ")
    machine = state / "machine"
    assert Copies(Place("s3://kept/runs/cloud-2"), machine).bring() == 3 and (machine / "curate.json").is_file()
