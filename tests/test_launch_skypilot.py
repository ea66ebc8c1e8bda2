"""Launching on clouds: the task that is written, SkyPilot's reading of it, the machine that goes on from a bucket."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoestring.cli.launch import _refuse_second, _start
from shoestring.cli.main import run as cli
from shoestring.config import load_run_file
from shoestring.errors import BadInput, LaunchError, MissingDependency
from shoestring.files import write_json
from shoestring.launch import aboard, register, rented
from shoestring.launch.backend import Order, backend
from shoestring.launch.records import Launch
from shoestring.launch.rented import laid_out, limit_of, order_of
from shoestring.launch.skypilot import SkyPilot, machines, task_of
from shoestring.launch.wheel import build_wheel, wheel_name
from shoestring.recipe import Run
from shoestring.stages.choosing import weigh
from shoestring.stages.told import told
from shoestring.train.locate import with_folders

ROOT = Path(__file__).resolve().parent.parent
# `make environments` puts SkyPilot there; a checkout without it runs the rest.
SKY_PYTHON = Path(os.environ.get("SHOESTRING_SKYPILOT", f"{sys.prefix}/skypilot")) / "bin" / "python"
SECRET = "planted-secret-0123456789"


def run_file(folder: Path, text: str = "", model: str = "Qwen/Qwen3-4B") -> Path:
    rows = [{"prompt": f"Ticket {i} about word{i % 7}", "completion": ("billing", "tech")[i % 2]} for i in range(200)]
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "runs-of").mkdir(exist_ok=True)
    path = folder / "runs-of" / "cloud.yaml"
    path.write_text(
        f"name: cloud\ntask: {{kind: classify, bar: 0.5}}\ndata: {{train: ../data/rows.jsonl}}\nmodels: {model}\n{text}"
    )
    return path


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Order:
    """A run that was planned: its options are real ones of the price table."""
    folder = tmp_path_factory.mktemp("planned")
    path = run_file(folder)
    run = Run.from_file(path, runs_dir=folder / "runs")
    choice = told(weigh(run), "cloud")
    write_json(run.folder / "choice.json", choice)
    return order_of(launch_of(path, run.folder, {"bucket": "s3://kept/runs"}))


def launch_of(path: Path, run_folder: Path, options: dict[str, Any], **more: Any) -> Launch:
    values: dict[str, Any] = {
        "id": "cloud-1", "backend": "skypilot", "target": "", "run_file": str(path), "run_folder": str(run_folder),
        "started_at": "2026-11-28T12:00:00+00:00", "basis": "hour", "price_usd_per_hour": 1.0, "budget_usd": 10.0,
        "deadline_h": None, "limit_s": None, "options": options,
    }  # fmt: skip
    return Launch(**{**values, **more})


# ---- the task -------------------------------------------------------------------------------


def test_the_budget_at_the_dearest_price_is_the_limit(planned: Order) -> None:
    """10 USD at 1 USD an hour, taken up to 1.25: eight hours; a launch's own limit counts where it is shorter."""
    (one,) = machines(replace(planned, target="runpod"))[:1]
    dollar = [replace(one, usd_per_hour=1.0), replace(one, usd_per_hour=0.4)]
    assert limit_of(dollar, 10.0, None) == 8 * 3600
    assert limit_of(dollar, 10.0, 600.0) == 600


def test_machines_are_the_plans_in_its_order(planned: Order) -> None:
    found = machines(planned)
    known = [o for o in planned.offers if o["seller"] in ("RunPod", "RunPod secure", "AWS", "GCP", "Lambda", "Verda")]
    assert found[0].option == known[0] or found[0].option["usd"]["value"] <= known[0]["usd"]["value"]
    assert 1 <= len(found) <= 3 and len({one.option["model"] for one in found}) == 1
    for one in found:
        assert one.usd_per_hour == pytest.approx(one.option["price"]["value"] * one.num_gpus)
    aws = machines(replace(planned, target="aws/eu-west-1"))
    assert {(one.place, one.region) for one in aws} == {("aws", "eu-west-1")}


def test_a_cloud_that_is_not_there_and_a_budget_too_small_are_refused(planned: Order) -> None:
    with pytest.raises(BadInput, match=r"skypilot:awz.*choose one of aws, azure"):
        machines(replace(planned, target="awz"))
    with pytest.raises(BadInput, match=r"within 1e-09 USD.*raise budget_usd"):
        machines(replace(planned, budget_usd=1e-9))
    with pytest.raises(BadInput, match=r"launch\.bucket = empty.*s3://BUCKET"):
        SkyPilot("skypilot").quote(replace(planned, options={}))
    with pytest.raises(BadInput, match=r"launch\.bucket = az://kept: .*of s3://, gs://\)"):
        SkyPilot("skypilot").quote(replace(planned, options={"bucket": "az://kept"}))


def test_the_quote_is_the_plans_and_shows_the_task(planned: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    quote = backend("skypilot").quote(planned)
    best = machines(planned)[0]
    assert quote.basis == "hour" and quote.price_usd_per_hour == best.usd_per_hour
    (hours,) = quote.expenses
    assert hours.predicted_usd is not None and hours.predicted_usd.value == best.option["usd"]["value"]
    assert hours.predicted_s is not None
    assert hours.predicted_s.value == pytest.approx(best.option["billed_hours"]["value"] * 3600)
    assert SECRET not in quote.shown and "--secret HF_TOKEN" in quote.shown
    task = yaml.safe_load(quote.shown)
    assert task["secrets"] == {"HF_TOKEN": None}
    assert task["file_mounts"]["/shoestring-place"] == {"source": "s3://kept", "mode": "MOUNT"}
    assert "--place /shoestring-place/runs/ID --run-folder runs/cloud --limit-s" in task["run"]
    first = task["resources"].get("ordered", [task["resources"]])[0]
    assert first["max_hourly_cost"] == pytest.approx(best.most_usd_per_hour, rel=1e-3)
    assert first["autostop"] == {"idle_minutes": 5, "down": True}


def test_files_lie_as_the_run_file_names_them(planned: Order, tmp_path: Path) -> None:
    there, copied = laid_out(planned.config, planned.run_file)
    assert (there, sorted(copied)) == ("work/runs-of/cloud.yaml", ["work/data/rows.jsonl", "work/runs-of/cloud.yaml"])
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    path = run_file(tmp_path, model=str(model))
    config = with_folders(load_run_file(path), path.parent)
    assert laid_out(config, path)[1][str(model)] == str(model)  # absolute: stays where the run file says
    path = run_file(tmp_path)
    path.write_text(path.read_text().replace("../data/rows.jsonl", "~/rows.jsonl"))
    with pytest.raises(BadInput, match=r"~/rows.jsonl begins with ~"):
        laid_out(load_run_file(path), path)


def test_curated_folders_and_the_files_of_scoring_come_along(tmp_path: Path) -> None:
    """Without its receipt a curated folder would be read as other data; without the metric nothing could be scored."""
    path = run_file(tmp_path)
    folder = tmp_path / "curated"
    folder.mkdir()
    for name in ("train.jsonl", "dev.jsonl", "receipt.json"):
        (folder / name).write_text((tmp_path / "data" / "rows.jsonl").read_text())
    (tmp_path / "runs-of" / "mine.py").write_text("def score(prompt, expected, output): return 1.0\n")
    text = (
        path.read_text()
        .replace("../data/rows.jsonl", "../curated")
        .replace("bar: 0.5", "bar: 0.5, metric: 'mine.py:score'")
    )
    path.write_text(text)
    _, copied = laid_out(with_folders(load_run_file(path), path.parent), path)
    names = {
        "curated/train.jsonl",
        "curated/dev.jsonl",
        "curated/receipt.json",
        "runs-of/mine.py",
        "runs-of/cloud.yaml",
    }
    assert set(copied) == {f"work/{name}" for name in names}


@pytest.mark.skipif(not SKY_PYTHON.is_file(), reason="no SkyPilot: scripts/check_skypilot.py --install .venv/skypilot")
def test_skypilot_loads_the_task_and_its_dry_run_finishes(planned: Order, tmp_path: Path) -> None:
    """SkyPilot's own parser, optimizer and dry run, on a catalog of seeded prices; no account, no network."""
    order = replace(planned, target="runpod", run_folder=tmp_path)
    build_wheel(tmp_path / "launch")
    path = tmp_path / "task.yaml"
    path.write_text(task_of(order, "shoestring-cloud-1", "s3://kept/runs/cloud-1", machines(order), None).to_yaml())
    words = [str(SKY_PYTHON), str(ROOT / "scripts" / "check_skypilot.py"), str(path)]
    done = subprocess.run(words, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"], result
    assert result["dry_run"] == "finished" and result["chosen"].startswith("RunPod(")
    assert result["buckets"] == ["/shoestring-place: s3://kept"]


def test_the_wheel_is_this_package_and_installs(tmp_path: Path) -> None:
    built = build_wheel(tmp_path)
    assert built.name == wheel_name() and built.read_bytes() == build_wheel(tmp_path / "again").read_bytes()
    with zipfile.ZipFile(built) as archive:
        names = set(archive.namelist())
    assert {"shoestring/launch/aboard.py", "shoestring/run.schema.json", "shoestring/plan/models.csv"} <= names
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(tmp_path / "env"), str(built)], check=True
    )
    told = subprocess.run(
        [sys.executable, "-c", "import shoestring; print(shoestring.__version__, shoestring.__file__)"],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": str(tmp_path / "env")},
    )  # fmt: skip
    version, file = told.stdout.split()
    assert version in built.name and file.startswith(str(tmp_path))


# ---- the program ----------------------------------------------------------------------------


def stand_in_bucket(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """s3://kept/ is the folder bucket below this one."""
    monkeypatch.setenv("STAND_IN_SKY", str(folder))
    path = ROOT / "tests" / "stand_in_s3" / "s3fs.py"
    spec = importlib.util.spec_from_file_location("s3fs", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "s3fs", module)
    monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, "s3", module.S3FileSystem)


@pytest.fixture
def sky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in as `sky` on the path; gives its module, to run its machines."""
    state, folder = tmp_path / "sky", tmp_path / "bin"
    state.mkdir()
    folder.mkdir()
    program = folder / "sky"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "tests" / "stand_in_sky.py"}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    stand_in_bucket(monkeypatch, state)
    spec = importlib.util.spec_from_file_location("stand_in_sky", ROOT / "tests" / "stand_in_sky.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_job_is_submitted_found_billed_and_cancelled(
    planned: Order, sky: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secrets go by their names; the handle may be lost, the job is found by the launch's id."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    place = backend("skypilot")
    launch = launch_of(planned.run_file, planned.run_folder, {"bucket": "s3://kept/runs"})
    assert place.status(launch).state == "lost"
    handle = place.start(launch)
    assert handle["job_id"] == 1 and SECRET not in Path(handle["yaml"]).read_text()
    calls = (sky.STATE / "calls.jsonl").read_text()
    assert SECRET not in calls and '"--secret", "HF_TOKEN"' in calls
    started = replace(launch, handle=handle)
    for known in (started, launch):  # the latter: killed before the handle was on disk
        status = place.status(known)
        assert status.state == "pending" and "RunPod (US)" in status.note
    (job,) = sky.jobs()
    sky.keep([{**job, "status": "RUNNING", "job_duration": 1800.0}])
    status = place.status(started)
    assert status.state == "running" and status.cost_usd == pytest.approx(0.5)  # half an hour at 1 USD
    assert list(place.logs(started, follow=False)) == ["(setup) installed", "(run) step 1"]
    named = {billing.name: billing for billing in place.billing()}
    assert named["shoestring-cloud-1"].launch_id == "cloud-1"
    assert named["sky-jobs-controller-1a2b"].usd_per_hour == pytest.approx(0.2)  # 0.40 USD in two hours
    assert named["sky-jobs-controller-1a2b"].stop == "sky down -y sky-jobs-controller-1a2b"
    assert place.stop(started).state == "stopped"
    assert place.stop(started).state == "stopped"
    sky.keep([])  # the jobs controller has stopped by itself: what the machine wrote is what is known
    kept = aboard.Place("s3://kept/runs/cloud-1")
    kept.write(aboard.State(1, billed_s=3600.0))
    assert place.status(started).state == "lost"
    kept.write(aboard.State(2, billed_s=3600.0, outcome={"exit_code": 3, "why": ""}))
    status = place.status(started)
    assert (status.state, status.exit_code) == ("done", 3) and status.cost_usd == pytest.approx(1.0)
    assert [billing.name for billing in place.billing()] == ["sky-jobs-controller-1a2b"]


def test_what_the_program_says_of_a_fault_is_told_without_secrets(
    planned: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_bucket(monkeypatch, tmp_path)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    launch = launch_of(
        planned.run_file, planned.run_folder, {"bucket": "s3://kept/runs", "skypilot_python": "/no/python"}
    )
    with pytest.raises(MissingDependency, match=r"no program `sky` beside /no/python; install it: .*skypilot"):
        SkyPilot("skypilot").start(launch)
    program = tmp_path / "sky"
    program.write_text('#!/bin/sh\nprintf "\\033[31mquota exceeded for $HF_TOKEN\\033[0m\\n" >&2\nexit 3\n')
    program.chmod(0o755)
    told = replace(launch, options={**launch.options, "skypilot_python": str(tmp_path / "python")})
    with pytest.raises(LaunchError, match=r"`sky jobs launch` failed with exit code 3:\nquota exceeded for \*\*\*"):
        SkyPilot("skypilot").start(told)


def test_an_order_whose_answer_was_lost_is_looked_for(
    planned: Order, tmp_path: Path, sky: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The job was taken and the client failed all the same: it is not called failed, and no second one is started."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    program, words = tmp_path / "bin" / "sky", (tmp_path / "bin" / "sky").read_text()
    taken = words.replace("exec ", "") + 'if [ "$2" = launch ]; then echo connection lost >&2; exit 1; fi\n'
    options = {"bucket": "s3://kept/runs"}
    for id_, script, state in (
        ("cloud-1", "#!/bin/sh\necho quota exceeded >&2\n[ $2 != launch ] && echo [] || exit 1\n", "failed"),
        ("cloud-2", "#!/bin/sh\necho no network >&2\nexit 1\n", "lost"),
        ("cloud-3", taken, "pending"),
    ):
        launch = launch_of(
            planned.run_file, planned.run_folder, options, id=id_, started_at=f"2026-11-28T12:00:0{id_[-1]}+00:00"
        )
        program.write_text(script)
        with pytest.raises(LaunchError):
            _start(backend("skypilot"), register.save(launch))
        assert register.find(id_).state == state
    assert "--stop" in capfd.readouterr().err and len(sky.jobs()) == 1
    program.write_text(words)
    with pytest.raises(BadInput, match="launched already"):
        _refuse_second(planned.run_folder)
    register.save(replace(register.find("cloud-3"), state="lost"))  # could not be asked then, can be now
    with pytest.raises(BadInput, match="launched already"):
        _refuse_second(planned.run_folder)
    sky.keep([])
    _refuse_second(planned.run_folder)


def test_a_program_that_only_a_launch_names_is_asked_what_bills(
    tmp_path: Path, sky: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the path, but where the run file said: found by the register; gone since, the check says so."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    program = tmp_path / "bin" / "sky"
    monkeypatch.setenv("PATH", os.environ["PATH"].split(os.pathsep, 1)[1])
    place = SkyPilot("skypilot")
    assert not place.is_configured() and place.billing() == []
    register.save(launch_of(tmp_path / "r.yaml", tmp_path, {"skypilot_python": str(tmp_path / "bin" / "python")}))
    assert place.is_configured() and [b.name for b in place.billing()] == ["sky-jobs-controller-1a2b"]
    program.unlink()
    with pytest.raises(MissingDependency, match="there is no program `sky` beside"):
        place.billing()


# ---- aboard ---------------------------------------------------------------------------------

WORK = """
import json, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1]); steps = folder / "steps.jsonl"; folder.mkdir(parents=True, exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
done = len(steps.read_text().splitlines()) if steps.is_file() else 0
for step in range(done + 1, int(sys.argv[2]) + 1):
    part = folder / "checkpoints" / f"checkpoint-{step}"
    part.mkdir(parents=True)
    (part / "state.bin").write_text(str(step) * 9)
    (part / "COMPLETE.json").write_text("{}")
    with steps.open("a") as file:
        file.write(json.dumps({"step": step}) + "\\n")
    time.sleep(float(sys.argv[3]))
(folder / "result.json").write_text("{}")
sys.exit(int(sys.argv[4]))
"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """start(folder, place, num_steps, pause_s): aboard in a process group of its own, all of them gone at the end."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, place: Path, num_steps: int, pause_s: float, *, code: int = 0, limit_s: float = 1e6) -> Any:
        words = [sys.executable, "-c", WORK, str(folder), str(num_steps), str(pause_s), str(code)]
        settings = ["--place", str(place), "--run-folder", str(folder), "--limit-s", str(limit_s), "--boot-s", "10"]
        command = [sys.executable, "-m", "shoestring.launch.aboard", *settings, "--every-s", "0.05", "--", *words]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.stderr is not None and not process.stderr.closed:
            process.stderr.close()
        process.wait()


def at(place: Path) -> aboard.State:
    return aboard.Place(str(place)).state()


def steps_of(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "steps.jsonl").read_text().splitlines()]


def test_a_lost_machine_is_gone_on_from_on_the_next(tmp_path: Path, machine: Any) -> None:
    """Killed in the middle: the second machine begins with what the place has, and ends with all steps done once."""
    place = tmp_path / "place"
    first = machine(tmp_path / "one", place, 400, 0.05)
    while len(at(place).files) < 6:
        assert first.poll() is None
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)  # with its run: the machine is gone
    first.wait()
    assert at(place).outcome is None
    second = machine(tmp_path / "two", place, 60, 0.0, code=3)
    words = second.communicate(timeout=60)[1]
    assert second.returncode == 0, words  # a bar that is not met is a result
    assert at(place).outcome == {"exit_code": 3, "why": ""}
    assert len(at(place).machines) == 2 and at(place).billed_s > 20  # 10 s of boot each
    home = tmp_path / "home"
    copies = aboard.Copies(aboard.Place(str(place)), home)
    assert copies.bring() == len(at(place).files) and copies.bring() == 0
    assert steps_of(home) == list(range(1, 61)) and (home / "result.json").is_file()


def test_the_limit_ends_the_run_with_what_it_has(tmp_path: Path, machine: Any) -> None:
    """Stopped aboard.STOP_S before the limit, by SIGTERM; what is spent counts over machines."""
    place = tmp_path / "place"
    limit_s = aboard.STOP_S + 12.0
    done = machine(tmp_path / "one", place, 10_000, 0.02, limit_s=limit_s)
    assert "exit code 4: the limit of 132 billed seconds" in done.communicate(timeout=60)[1]
    assert done.returncode == 4
    assert at(place).outcome == {"exit_code": 4, "why": "the limit of 132 billed seconds"}
    assert steps_of(tmp_path / "one") and "steps.jsonl" in at(place).files
    again = machine(tmp_path / "two", place, 10_000, 0.02, limit_s=limit_s)
    assert "leaves no time to run" in again.communicate(timeout=60)[1] and again.returncode == 4


def test_a_notice_reaches_the_run_and_all_is_copied(tmp_path: Path, machine: Any) -> None:
    place = tmp_path / "place"
    process = machine(tmp_path / "one", place, 10_000, 0.02)
    while "steps.jsonl" not in at(place).files:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 5 and at(place).outcome == {"exit_code": 5, "why": ""}
    aboard.Copies(aboard.Place(str(place)), tmp_path / "home").bring()
    assert steps_of(tmp_path / "home") == steps_of(tmp_path / "one")


def test_half_written_things_are_not_copied(tmp_path: Path) -> None:
    """A checkpoint without its marker, hidden and partial files; one that is gone goes there two states later."""
    folder, place = tmp_path / "run", tmp_path / "place"
    for name in ("a.json", ".lock", "b.part", "r/checkpoints/checkpoint-1/w", "r/checkpoints/checkpoint-2/w"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "r/checkpoints/checkpoint-2/COMPLETE.json").write_text("{}")
    copies = aboard.Copies(aboard.Place(str(place)), folder)
    assert copies.send() == 3 and copies.send() == 0
    wanted = {"a.json", "r/checkpoints/checkpoint-2/w", "r/checkpoints/checkpoint-2/COMPLETE.json"}
    assert set(at(place).files) == wanted
    (folder / "a.json").unlink()
    copies.send()
    assert set(at(place).files) == wanted - {"a.json"} and len(list((place / "objects").iterdir())) == 3
    copies.send()
    assert len(list((place / "objects").iterdir())) == 2


def test_cut_short_at_any_write_the_state_before_still_holds(tmp_path: Path) -> None:
    """The later state is torn, and a file it named has changed meanwhile: the earlier one is brought, whole."""
    folder, place = tmp_path / "run", tmp_path / "place"
    folder.mkdir()
    copies = aboard.Copies(aboard.Place(str(place)), folder)
    for text in ("first", "second"):
        (folder / "a.json").write_text(text)
        copies.send(billed_s=1.0)
    torn = place / aboard.STATES[copies.state.round % 2]
    torn.write_bytes(torn.read_bytes()[:20])
    again = aboard.Copies(aboard.Place(str(place)), tmp_path / "home")
    assert again.bring() == 1 and (tmp_path / "home" / "a.json").read_text() == "first"
    again.send()
    assert at(place).round == 2 and at(place).billed_s == 1.0


def test_a_place_that_names_files_outside_or_lies_is_refused(tmp_path: Path) -> None:
    place = aboard.Place(str(tmp_path / "place"))
    place.write(aboard.State(1, {"../evil": "0" * 64}))
    with pytest.raises(LaunchError, match=r"\.\./evil, which leads out of the run folder"):
        aboard.Copies(place, tmp_path / "run").bring()
    place.write(aboard.State(2, {"a": "0" * 64}))
    (tmp_path / "other").write_text("other")
    place.put(tmp_path / "other", "0" * 64)
    with pytest.raises(LaunchError, match="a is not there as its state says, 3 times"):
        aboard.Copies(place, tmp_path / "run").bring()


def test_what_was_brought_is_not_brought_again_over_later_work(tmp_path: Path) -> None:
    """Attached to once more after the run went on here: the old state neither overwrites nor removes anything."""
    place, home, lines = tmp_path / "place", tmp_path / "home", list[str]()
    there = tmp_path / "there"
    there.mkdir()
    (there / "a.json").write_text("of the machine")
    copies = aboard.Copies(aboard.Place(str(place)), there)
    copies.send()
    launch = launch_of(tmp_path / "run.yaml", home, {}, state="done")
    rented.bring(launch, str(place), lines.append)
    assert (home / "a.json").read_text() == "of the machine"
    (home / "a.json").write_text("gone on here")
    checkpoint = home / "rungs" / "m" / "checkpoints" / "step-9"
    checkpoint.mkdir(parents=True)
    (checkpoint / aboard.MARKER).write_text("{}")
    rented.bring(launch, str(place), lines.append)
    assert (home / "a.json").read_text() == "gone on here" and checkpoint.is_dir() and "already" in lines[-1]
    (there / "b.json").write_text("later")  # the machine was still at work
    copies.send()
    rented.bring(launch, str(place), lines.append)
    assert (home / "b.json").read_text() == "later"
    (home / "launch" / "cloud-1.brought.json").write_text("{")
    rented.bring(launch, str(place), lines.append)


def test_the_command_launches_follows_and_brings_the_result_home(
    tmp_path: Path, sky: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The whole recipe on the job's machine, its result home from the bucket; planted keys are in no file."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    # No token is generated: the linear model reaches the bar, so nothing is trained.
    text = "launch: {bucket: 's3://kept/runs', place: skypilot, env: [HF_TOKEN]}\ndecide: {arms: [linear]}\n"
    path = run_file(tmp_path, text, model="shoestring-1m")
    path.write_text(path.read_text().replace("bar: 0.5", "bar: 0.1"))
    assert cli(["launch", str(path), "--detach", "--json"]) == 0
    launched = json.loads(capfd.readouterr().out)["launch"]
    (job,) = sky.jobs()
    task = yaml.safe_load(Path(job["yaml"]).read_text())
    code = sky.run_on(task, job)
    said = capfd.readouterr()
    assert code == 0 and SECRET not in said.out + said.err, said.err
    sky.keep([{**job, "status": "RECOVERING", "recovery_count": 1, "job_duration": 60.0}])
    assert cli(["launch", str(path), "--status", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["launch"]["state"] == "interrupted"
    sky.keep([{**job, "status": "SUCCEEDED", "job_duration": 120.0}])
    assert cli(["launch", str(path), "--attach", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["launch"]["state"] == "done" and told["status"]["exit_code"] == 0
    verdict = json.loads((tmp_path / "runs" / "cloud" / "ladder.json").read_text())["result"]
    assert verdict["kind"] == "linear" and (tmp_path / "runs" / "cloud" / "report.html").is_file()
    assert len(aboard.Place(f"s3://kept/runs/{launched['id']}").state().machines) == 1
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
    assert cli(["launch", str(path), "--stop", "--json"]) == 0
    assert sky.jobs()[0]["status"] == "SUCCEEDED"
