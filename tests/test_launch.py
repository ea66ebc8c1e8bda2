"""launch/: what is written down, the supervisor on this machine, spot simulated, the bill, what is found again."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import bench.launch
from shoestring.cli.launch import _hold_against_budget, _launch
from shoestring.cli.main import run as shoestring
from shoestring.config import load_run_file
from shoestring.errors import BadInput, BudgetStopped, LaunchError
from shoestring.files import read_jsonl, write_json
from shoestring.launch import jobs, register, supervisor, watch
from shoestring.launch.backend import BACKENDS, Order, backend, parse_place
from shoestring.launch.local import Local
from shoestring.launch.preempt import spans_of
from shoestring.launch.records import Expense, Launch, Quote, Status, launch_from_json
from shoestring.ledger import Ledger
from shoestring.plan.hazard import Seen
from shoestring.plan.learned import track_record
from shoestring.plan.spot_simulate import Job, Jobs, Recorded, on_spot
from shoestring.plan.spot_trace import Trace
from shoestring.records import Estimate, to_json
from shoestring.report.launched import launched
from shoestring.stages.common import seen_by_seller
from tests.launched import adapter, environment, write_run

# Works for as many seconds as its argument says, in steps of 0.1 s that it does not forget when it is killed.
STEPS = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
done = pathlib.Path("done")
print("begins", flush=True)
while (n := len(done.read_text()) if done.exists() else 0) < float(sys.argv[1]) * 10:
    time.sleep(0.1)
    done.write_text("x" * (n + 1))
print("ends")
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A register of this test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def launch_of(folder: Path, **changed: object) -> Launch:
    spread = Estimate(2.0, 1.0, 4.0)
    base = Launch(
        id=register.new_id(folder.name),
        backend="local",
        target="",
        run_file=str(folder.parent / "run.yaml"),
        run_folder=str(folder.resolve()),
        started_at=register.now(),
        basis="hour",
        price_usd_per_hour=3600.0,  # a dollar a second
        budget_usd=100.0,
        deadline_h=None,
        limit_s=None,
        predicted=(Expense("hours of work", spread, None, spread), Expense("starts and work done again", spread)),
    )
    return replace(base, **changed)  # type: ignore[arg-type]


def job_of(folder: Path, seconds: float, **changed: object) -> jobs.Job:
    folder.mkdir(parents=True, exist_ok=True)
    command = (sys.executable, "-c", STEPS, str(seconds))
    made = jobs.Job("job", command, str(folder), str(folder), 3600.0, 100.0, restart_delay_s=0.0)
    return replace(made, **changed)  # type: ignore[arg-type]


def ended(folder: Path) -> dict[str, object]:
    """The job's status once it has ended."""
    for _ in jobs.logs(folder, follow=True):
        pass
    return jobs.status(folder)


# ---- records and register -------------------------------------------------------------------


def test_a_launch_is_found_by_folder_name_and_id_and_reads_as_it_was_written(tmp_path: Path, state: Path) -> None:
    first = register.save(launch_of(tmp_path / "runs" / "tour", started_at="2026-11-28T10:00:00+00:00"))
    second = register.save(launch_of(tmp_path / "runs" / "tour", started_at="2026-11-28T11:00:00+00:00"))
    assert first.id != second.id and (state / "shoestring/launches" / f"{first.id}.json").is_file()
    assert register.of_folder(tmp_path / "runs" / "tour") == register.find("tour") == second
    assert register.find(first.id) == first and launch_from_json(to_json(first)) == first
    with pytest.raises(BadInput, match=f"nowhere: no launch .* {second.id}"):
        register.find("nowhere")
    (state / "shoestring/launches" / f"{first.id}.json").write_text('{"id": ')  # a full disk
    assert register.registered() == [second]


def test_what_is_known_in_part_has_no_sum() -> None:
    one = Expense("a", Estimate(1, 1, 1), actual_usd=0.5)
    assert Status("done", bill=(one, one)).cost_usd == 1.0
    assert Status("done", bill=(one, Expense("b"))).cost_usd is None and Status("done").cost_usd is None


def test_ids_fit_every_service_and_places_are_named() -> None:
    made = register.new_id("Ünsere Tickets_v2 " + "x" * 80)
    assert len(made) <= 48 and set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and made[0].isalpha()
    assert parse_place("ssh:me@host") == ("ssh", "me@host") and parse_place("local") == ("local", "")
    with pytest.raises(BadInput, match="choose one of local"):
        backend("moon")
    assert all(callable(getattr(backend("local"), name)) for name in ("quote", "start", "status", "logs", "billing"))
    assert isinstance(backend("local"), Local) and "local" in BACKENDS


# ---- spot, simulated ------------------------------------------------------------------------


def test_schedules_and_traces_are_spans(tmp_path: Path) -> None:
    assert spans_of("60,180+30", 5.0) == ((0.0, 60.0), (90.0, 180.0), (210.0, math.inf))
    assert spans_of("7", 5.0) == ((0.0, 7.0), (12.0, math.inf))
    trace = tmp_path / "trace.csv"
    trace.write_text("start_h,end_h\n0,1\n1,2\n3,4\n")
    assert spans_of(str(trace), 0.0, trace_speed=3600.0)[:4] == ((0, 1), (1, 2), (3, 4), (4, 5))  # and again
    for wrong in ("often", "5,5", "60,70+30", "-1", "inf", "10+-1", "nan"):
        with pytest.raises(BadInput, match="--preempt"):
            spans_of(wrong, 5.0)


def test_a_run_that_is_killed_goes_on_and_the_bill_is_the_simulators(tmp_path: Path) -> None:
    """The same trace into both: machines of 0.8 s, 1 s and as long as it takes, half a second between them."""
    folder, up = tmp_path / "job", ((0.0, 0.8), (1.3, 2.3), (2.8, math.inf))
    jobs.start(folder, job_of(folder, 2.0, available_s=up))
    told = ended(folder)
    sessions = [jobs.Session(**session) for session in told["sessions"]]  # type: ignore[union-attr]
    assert told["state"] == "done" and [s.how for s in sessions] == ["taken", "taken", "done"]
    assert (folder / "done").read_text() == "x" * 20
    # What a start took, by the log's side: all that was billed but the steps.
    steps_h, billed_h = 20 * 0.1 / 3600, jobs.billed_s(sessions) / 3600
    restart_h = (billed_h - steps_h) / len(sessions)
    trace = Trace(tuple((a / 3600, min(b, 1e6) / 3600) for a, b in up), 1e6 / 3600)
    simulated = on_spot(Jobs.of(Job(steps_h, restart_h, 0.0, 0.1 / 3600), 1), Recorded(trace, np.zeros(1)))
    assert simulated.num_interruptions[0] == 2
    assert billed_h == pytest.approx(float(simulated.billed_h[0]), rel=0.35)  # bench.launch says how near
    assert jobs.billed_usd(sessions, job_of(folder, 2.0)) == pytest.approx(billed_h * 3600)


def test_the_bench_bills_drawn_traces_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.launch, "START_S", 0.2)
    monkeypatch.setattr(bench.launch, "NUM_STEPS", 16)
    measured = bench.launch.clockwork(tmp_path, 1)
    assert measured["step_s"] > 0 and len(measured["relative_errors"]) == 1 and measured["machines"][0] >= 1


def test_the_policy_takes_a_machine_on_demand_where_spot_would_be_late(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    made = job_of(
        folder, 1.0, available_s=((0.0, 0.5), (90.0, 99.0)), on_demand_usd_per_hour=7200.0, deadline_s=9.0, work_s=2.0
    )
    jobs.start(folder, made)
    told = ended(folder)
    sessions = [jobs.Session(**session) for session in told["sessions"]]  # type: ignore[union-attr]
    assert told["state"] == "done" and {s.place for s in sessions} >= {"on_demand"}
    spent = {place: sum(s.end_s - s.start_s for s in sessions if s.place == place) for place in ("spot", "on_demand")}
    assert jobs.billed_usd(sessions, made) == pytest.approx(spent["spot"] + 2 * spent["on_demand"])


CHILD = "import os, pathlib, time; pathlib.Path('born').write_text(str(os.getpid())); time.sleep(60)"
PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"


@pytest.mark.parametrize("how", ["taken", "stopped"])
def test_a_machine_takes_every_process_with_it(tmp_path: Path, how: str) -> None:
    """Those of one GPU each are in sessions of their own."""
    folder = tmp_path / "job"
    command = (sys.executable, "-c", f"{PARENT}; time.sleep(60)", CHILD)
    spans = ((0.0, 4.0), (60.0, 61.0)) if how == "taken" else None
    jobs.start(folder, job_of(folder, 1.0, command=command, available_s=spans))
    while not (folder / "born").is_file() or not (folder / "born").read_text():
        time.sleep(0.02)
    while how == "taken" and not any(session.how == "taken" for session in jobs.sessions_of(folder)):
        time.sleep(0.02)
    jobs.stop(folder)
    child = (folder / "born").read_text()
    left = subprocess.run(["ps", "-o", "stat=", "-p", child], capture_output=True, text=True, check=False).stdout
    assert left.strip() == "" or left.startswith("Z")  # gone, or waiting for the container's first process


# ---- the supervisor -------------------------------------------------------------------------


def test_the_budget_ends_a_run_that_nobody_watches(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    jobs.start(folder, job_of(folder, 60.0, budget_usd=4.0))  # seconds, in which the program has begun by far
    told = ended(folder)
    assert told["state"] == "stopped" and "the budget of $4.00 is spent" in str(told["note"])
    spent_usd = jobs.billed_usd(jobs.sessions_of(folder), job_of(folder, 60.0))
    assert spent_usd >= 4.0 and told["exit_code"] == 5  # ended by SIGTERM, so that it could save
    assert not jobs.is_alive(folder)


def test_one_that_is_killed_again_and_again_without_getting_further_is_given_up(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    command = (sys.executable, "-c", "import os; print('in vain', flush=True); os.kill(os.getpid(), 9)")
    jobs.start(folder, job_of(folder, 1.0, command=command))
    told = ended(folder)
    assert told["state"] == "failed" and "killed 3 times without getting further" in str(told["note"])
    assert jobs.log_bytes(folder, 0) == b"in vain\n" * 3


def test_why_a_run_failed_is_said_in_its_words_without_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-4711")
    folder = tmp_path / "job"
    code = "import os, sys; print('error: 401 for', os.environ['SOME_API_KEY']); print('bye'); sys.exit(2)"
    jobs.start(folder, job_of(folder, 1.0, command=(sys.executable, "-c", code)))
    told = ended(folder)
    assert (told["state"], told["exit_code"], told["note"]) == ("failed", 2, "error: 401 for ***")
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"planted-4711" not in written


def test_a_job_whose_client_died_before_its_supervisor_came_is_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    job = job_of(folder, 0.1)
    write_json(folder / jobs.JOB, asdict(job))
    jobs.start(folder, job)
    assert ended(folder)["state"] == "done"
    assert supervisor.main(folder) == 1  # another that comes late does nothing again
    assert len(jobs.sessions_of(folder)) == 1


def test_a_supervisor_that_is_killed_leaves_nothing_running_and_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    beat = jobs.start(folder, job_of(folder, 60.0))
    assert jobs.is_alive(folder) and folder.resolve() in [path.resolve() for path in jobs.running()]
    while not (folder / "done").is_file():
        time.sleep(0.02)
    os.kill(beat["pid"], signal.SIGKILL)
    while jobs.is_alive(folder):
        time.sleep(0.02)
    told = jobs.status(folder)
    assert told["state"] == "lost" and "launched again, it goes on" in told["note"]
    assert [session["how"] for session in told["sessions"]] == ["running"]  # billed until it was last heard of
    if sys.platform == "linux":
        until = time.monotonic() + 10
        while (last := (folder / "done").stat().st_mtime) and time.time() - last < 1 and time.monotonic() < until:
            time.sleep(0.1)
        assert time.monotonic() < until, "the worker went on without its supervisor"


def test_a_machine_ends_itself_once_results_are_fetched(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    code = f"printf '%s' \"$SOME_TOKEN\" && touch {tmp_path / 'over'}"
    jobs.start(folder, job_of(folder, 0.1, at_end=code), {"SOME_TOKEN": "planted-4711"})
    assert ended(folder)["state"] == "done" and not (tmp_path / "over").exists()  # results may still be wanted
    (folder / "fetched").touch()
    while jobs.is_alive(folder):
        time.sleep(0.02)
    assert (tmp_path / "over").exists()
    assert json.loads((folder / "at_end.json").read_text()) == {"command": code, "exit_code": 0, "said": "***"}


def test_a_machine_ends_itself_although_its_supervisor_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    job = job_of(folder, 60, at_end=f"touch {tmp_path / 'over'}", linger_s=0.0)
    write_json(folder / jobs.JOB, asdict(job))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(supervisor.Supervisor, "run", full)
    with pytest.raises(OSError, match="No space left"):
        supervisor.main(folder)
    assert (tmp_path / "over").exists()


@pytest.mark.parametrize("name", [jobs.END, jobs.HEARTBEAT, jobs.EVENTS])
@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_damaged_files_of_a_job_are_told(tmp_path: Path, name: str, text: str) -> None:
    write_json(tmp_path / jobs.JOB, {})
    (tmp_path / name).write_text(text, encoding="utf-8")
    if name == jobs.EVENTS and text == "{":  # a line that a kill cut short
        assert jobs.status(tmp_path)["sessions"] == []
        return
    with pytest.raises(LaunchError, match="damaged"):
        print(jobs.status(tmp_path))


# ---- the register ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["{", "[]", '"launch"', '{"predicted": ["x"]}', "{}"])
def test_a_damaged_file_of_the_register_is_told_and_hides_no_launch(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "runs" / "tour"
    register.save(launch_of(folder, started_at="2026-11-27T10:00:00+00:00", state="done"))
    going_on = register.save(launch_of(folder, state="running"))
    file = register.state_dir() / f"{going_on.id}.json"
    file.write_text(text, encoding="utf-8")
    assert len(register.registered()) == 1 and register.damaged() == [file]
    assert register.of_folder(folder) == going_on  # by the run folder's own file: it is not launched a second time
    assert str(file) in watch.orphans().not_asked["register"]


def test_a_status_that_was_asked_while_it_was_started_keeps_its_handle(tmp_path: Path) -> None:
    early = register.save(launch_of(tmp_path / "runs" / "tour"))
    register.save(replace(early, handle={"pid": 7}, state="running"))
    seen, _ = watch.keep(early, Status("running"))
    assert seen.handle == register.find(early.id).handle == {"pid": 7}


# ---- the bill -------------------------------------------------------------------------------


def test_a_bill_is_entered_once_whoever_sees_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tour"
    spread = Estimate(2.0, 1.0, 4.0)
    bill = (Expense("hours of work", spread, 1.5, spread, 1.5), Expense("starts and work done again", spread, 0.5))
    done = launch_of(folder, state="done", ended_at=register.now(), bill=bill)
    register.save(done)
    for _ in range(3):
        seen, status = watch.refresh(done)
    entries = read_jsonl(folder / "launches.jsonl")
    assert [(e["item"], e["actual"]["usd"], e["predicted"]["usd"]["expected"]) for e in entries] == [
        ("hours of work", 1.5, 2.0),
        ("starts and work done again", 0.5, 2.0),
    ]
    assert status.cost_usd == seen.cost_usd == 2.0 and watch.off_frac(seen) == pytest.approx(-0.5)
    assert watch.off_frac(replace(seen, state="stopped")) is None  # less was done than was predicted


def test_a_launch_that_was_lost_and_is_found_again_is_not_billed_twice(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tour"
    spread = Estimate(2.0, 1.0, 4.0)
    known = Expense("hours of work", spread, 1.0, spread, 60.0)
    lost = launch_of(folder, state="lost", ended_at="x", bill=(known,), spot_seller="Vast.ai")
    watch.enter(lost)
    watch.enter(replace(lost, state="done", bill=(replace(known, actual_usd=3.0, actual_s=180.0),)))
    entries = read_jsonl(folder / "launches.jsonl")
    assert [(e["actual"], e["predicted"] is None) for e in entries] == [
        ({"usd": 1.0, "s": 60.0}, False),
        ({"usd": 2.0, "s": 120.0}, True),
    ]


def test_plan_and_report_say_how_far_off_earlier_predictions_were(tmp_path: Path) -> None:
    def entry(expected: float, actual: float, **more: object) -> dict[str, object]:
        spread = {"low": 0.0, "expected": expected, "high": 9.0}
        return {"predicted": {"s": spread, "usd": spread}, "actual": {"s": actual, "usd": actual}, **more}

    record = track_record([[entry(10, 15), entry(10, 7)], [{"predicted": None, "actual": {"s": 3}}]], [[entry(4, 3)]])
    assert record.runs == (pytest.approx(0.1),) and record.launches == (pytest.approx(-0.25),)
    assert record.words == (
        "On 1 finished run here predicted times were off by 10% (median; +10% to +10%); "
        "on 1 finished launch here predicted bills were off by 25% (median; -25% to -25%)"
    )
    assert track_record([], []).words == ""
    spread = Estimate(2.0, 1.0, 4.0)
    bill = (Expense("hours <of> work", spread, 1.5, spread, 90.0), Expense("managed job"))
    launch = launch_of(tmp_path / "runs" / "tour", state="done", ended_at=register.now(), bill=bill)
    watch.enter(launch)
    page = launched(tmp_path / "runs" / "tour")
    assert launch.id in page and "hours &lt;of&gt; work" in page and "$2.00 ($1.00 to $4.00)" in page
    assert "-25%" in page and "not known" in page and "1 launch: $1.50" in page
    assert launched(tmp_path) == ""


def test_what_spot_machines_did_is_kept_for_later_plans(tmp_path: Path) -> None:
    bill = (Expense("rented hours", None, 1.0, None, 7200.0), Expense("egress", None, 0.0))
    watch.enter(
        launch_of(
            tmp_path / "runs" / "a", state="done", ended_at="x", bill=bill, spot_seller="RunPod", num_interruptions=3
        )
    )
    assert seen_by_seller(tmp_path / "runs") == {"RunPod": Seen(2.0, 3)}


# ---- a real run, from the command line ------------------------------------------------------


def test_a_budget_below_what_is_expected_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, "dear", "budget_usd: 0.0000001\n")
    assert shoestring(["launch", "dear.yaml"]) == 4
    told = "".join(capfd.readouterr())
    assert "expected, budget_usd is" in told and "nothing was started" in told and "not on this machine" not in told
    assert not (tmp_path / "runs" / "dear" / "launches").exists()


def test_the_budget_is_of_all_launches_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, "twice", "budget_usd: 2\nlaunch: {usd_per_hour: 1}\n")
    ledger = Ledger(tmp_path / "runs" / "twice" / "launches.jsonl")
    paid = {"stage": "launch", "predicted": None, "price_usd_per_hour": 1.0, "fingerprint": "an-earlier-one"}
    ledger.record("machine", actual={"usd": 1.5}, **paid)
    quote = Quote("hour", 1.0, (), "", ())
    order = Order(
        config=load_run_file("twice.yaml"), run_file=tmp_path / "twice.yaml", run_folder=tmp_path / "runs" / "twice",
        target="", budget_usd=2.0, deadline_h=None, work_s=None,
    )  # fmt: skip
    assert _hold_against_budget(order, quote) == pytest.approx(0.5)
    made = _launch("twice", "local", order, quote, 0.5)
    assert (made.budget_usd, made.limit_s) == (0.5, pytest.approx(1800.0))
    dear = Expense("job", predicted_usd=Estimate(1.0, 1.0, 1.0))
    _hold_against_budget(order, replace(quote, expenses=(dear,)))  # a machine goes on where the earlier one ended
    with pytest.raises(BudgetStopped, match=r"\$1.00 expected, budget_usd is \$2.00, and earlier launches .* \$1.50"):
        _hold_against_budget(order, replace(quote, basis="job", expenses=(dear,)))
    ledger.record("machine", actual={"usd": 0.5}, **paid)
    assert shoestring(["launch", "twice.yaml"]) == 4
    assert "nothing was started; raise the budget" in "".join(capfd.readouterr())


def records_of(folder: Path) -> str:
    """What became of the launches of the runs in a folder."""
    files = sorted(folder.glob("runs/*/launches/*/*.json*"))
    return "".join(f"\n{file.name}: {file.read_text()}" for file in files)


def hears_ctrl_c() -> None:
    """Where the tests run in a shell's background, SIGINT is ignored by all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_launched_run_outlives_its_client_is_preempted_and_ends_with_the_same_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], run_alone: Path
) -> None:
    write_run(tmp_path, "taken")
    # The client is killed as soon as there is a launch; its first two machines are taken.
    with (tmp_path / "client.txt").open("wb") as output:
        client = subprocess.Popen(
            [sys.executable, "-m", "shoestring", "launch", "taken.yaml", "--preempt", "2,9+0.5"],
            stdout=output,
            stderr=output,
            env=environment(),
            cwd=tmp_path,
        )
    while not list(tmp_path.glob("runs/taken/launches/*/heartbeat.json")):
        assert client.poll() is None, (tmp_path / "client.txt").read_text()
        time.sleep(0.02)
    client.kill()
    client.wait()
    # Another that follows it is told how to come back.
    follower = subprocess.Popen(
        [sys.executable, "-m", "shoestring", "launch", "taken", "--attach"],
        stderr=subprocess.PIPE,
        env=environment(),
        cwd=tmp_path,
        preexec_fn=hears_ctrl_c,
    )
    assert follower.stderr is not None
    said = ""
    while "curate" not in said:  # the run's own words: it follows
        line = follower.stderr.readline().decode()
        assert line, f"{follower.wait()}: {said}{records_of(tmp_path)}"
        said += line
    follower.send_signal(signal.SIGINT)
    said += follower.communicate()[1].decode()
    assert "goes on. To follow it again: shoestring launch taken-" in said and follower.returncode == 5, (
        f"{follower.returncode}: {said}{records_of(tmp_path)}"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert shoestring(["runs", "--json"]) == 0
    assert [one["state"] for one in json.loads(capfd.readouterr().out)["launches"]] != ["done"]
    assert shoestring(["launch", "taken", "--attach", "--json"]) == 3  # the bar was not met
    told = json.loads(capfd.readouterr().out)
    assert told["status"]["state"] == "done" and told["launch"]["id"].startswith("taken-")
    taken = tmp_path / "runs" / "taken"
    assert adapter(taken) == adapter(run_alone)
    sessions = jobs.sessions_of(next((taken / "launches").iterdir()))
    assert sessions[0].how == "taken" and sessions[-1].how == "done"
    entries = read_jsonl(taken / "launches.jsonl")
    assert sum(e["actual"]["s"] for e in entries) == pytest.approx(jobs.billed_s(sessions))
    assert shoestring(["runs", "--orphans", "--json"]) == 0
    orphans = json.loads(capfd.readouterr().out)
    assert not [one for one in orphans["billing"] if str(tmp_path) in one["name"]]
