"""Launched runs whose spot machine is taken, against one left alone and against the simulator on the same schedule.

    python -m bench.launch [--machines 4] [--rows 400] [--traces 6] [--json]

bit_equal: the adapter's bytes are those of the run left alone. billed_s: what the ledger of the launch says.
simulated_s: plan.spot_simulate with the same machines; a start takes what it took in the run left alone, work what it
came to in the ledger of this one (other load on the machine moves both).
clockwork: a job that starts for START_S and then sleeps in steps, so that other load moves nothing, on drawn traces
under the same supervisor: errors of what it billed against the simulator.
policy: a real run under a deadline, with one short-lived spot machine and then none for longer than the deadline;
on_demand_s is what SpotPolicy took on demand.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, versions
from bench.kill_run import write_inputs
from shoestring.files import read_json, read_jsonl
from shoestring.launch import jobs
from shoestring.plan.spot_simulate import Job, Jobs, Recorded, on_spot
from shoestring.plan.spot_trace import Trace
from shoestring.units import SECONDS_PER_HOUR

SAVED_EVERY_S, AWAY_S = 2.0, 3.0
START_S, STEP_S, NUM_STEPS = 1.5, 0.1, 80
CLOCKWORK = """
import pathlib, sys, time
time.sleep(float(sys.argv[1]))
done = pathlib.Path("done")
while (n := len(done.read_text()) if done.exists() else 0) < int(sys.argv[3]):
    time.sleep(float(sys.argv[2]))
    done.write_text("x" * (n + 1))
"""
BAR_NOT_MET_CODE = 3
MORE = "market: {{interruptions_per_hour: {per_hour:.0f}}}\nlaunch: {{on_demand_usd_per_hour: 0.033}}\n{deadline}"


def launched(folder: Path, name: str, rows: int, per_hour: float, deadline_h: float = 0, preempt: str = "") -> Path:
    """Launch a run here and follow it to its end; its run folder."""
    run_file = write_inputs(folder, "shoestring-1m", rows, name)
    deadline = f"deadline_h: {deadline_h:.6f}\n" if deadline_h else ""
    run_file.write_text(run_file.read_text() + MORE.format(per_hour=per_hour, deadline=deadline))
    command = [sys.executable, "-m", "shoestring", "launch", str(run_file), "--runs-dir", str(folder), "--on", "local"]
    environment = {**os.environ, "PYTHONPATH": jobs.import_path(), "XDG_STATE_HOME": str(folder / "state")}
    more = ["--preempt", preempt] if preempt else []
    done = subprocess.run([*command, *more], capture_output=True, text=True, env=environment, check=False)
    if done.returncode not in (0, BAR_NOT_MET_CODE):
        raise SystemExit(f"{name}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return folder / name


def outcome(run_folder: Path) -> dict[str, Any]:
    """Sessions, useful seconds and adapter of a launched run, and whether its ledger says what was billed."""
    of_launch = next((run_folder / "launches").iterdir())
    sessions = jobs.sessions_of(of_launch)
    entries = read_jsonl(run_folder / "launches.jsonl")
    billed_s = jobs.billed_s(sessions)
    return {
        "sessions": sessions,
        "billed_s": billed_s,
        "useful_s": read_json(of_launch / jobs.END)["useful_s"],
        "ledger_is_exact": abs(sum(e["actual"]["s"] for e in entries) - billed_s) < 1e-6,
        "adapter": next(run_folder.glob("rungs/*/adapter/adapter_model.safetensors")).read_bytes(),
    }


def clockwork(folder: Path, num_traces: int, seed: int = 0) -> dict[str, Any]:
    """Billed against simulated seconds on drawn traces, after two left alone have said what starts and steps take."""
    rng = np.random.default_rng(seed)

    def billed(name: str, up_s: list[tuple[float, float]] | None, num_steps: int = NUM_STEPS) -> float:
        of_job = folder / name
        of_job.mkdir()
        command = (sys.executable, "-c", CLOCKWORK, str(START_S), str(STEP_S), str(num_steps))
        spans = None if up_s is None else tuple(up_s)
        jobs.start(of_job, jobs.Job(name, command, str(of_job), str(of_job), 1.0, 100.0, available_s=spans))
        for _ in jobs.logs(of_job, follow=True):
            pass
        return jobs.billed_s(jobs.sessions_of(of_job))

    long_s, short_s = billed("long", None), billed("short", None, NUM_STEPS // 4)
    step_s = (long_s - short_s) / (NUM_STEPS - NUM_STEPS // 4)
    restart_s = long_s - NUM_STEPS * step_s
    errors, machines = [], []
    for number in range(num_traces):
        up_s, at = [], 0.0
        for _ in range(40):
            stay = float(rng.uniform(1.0, 6.0))
            up_s.append((at, at + stay))
            at += stay + float(rng.uniform(0.5, 1.5))
        got = billed(f"trace-{number}", up_s)
        expected = simulated_s(up_s, NUM_STEPS * step_s, restart_s, step_s)
        errors.append(round(got / expected - 1, 3))
        machines.append(len(jobs.sessions_of(folder / f"trace-{number}")))
    return {"start_s": round(restart_s, 2), "step_s": round(step_s, 3), "machines": machines, "relative_errors": errors}


def simulated_s(
    up_s: list[tuple[float, float]], work_s: float, restart_s: float, every_s: float = SAVED_EVERY_S
) -> float:
    """Billed seconds of such a run on these machines, by the planner's simulator."""
    hours = [(a / SECONDS_PER_HOUR, b / SECONDS_PER_HOUR) for a, b in up_s]
    job = Job(work_s / SECONDS_PER_HOUR, restart_s / SECONDS_PER_HOUR, 0.0, every_s / SECONDS_PER_HOUR)
    ends = on_spot(Jobs.of(job, 1), Recorded(Trace(tuple(hours), hours[-1][1]), np.zeros(1)))
    return float(ends.billed_h[0]) * SECONDS_PER_HOUR


def measure(num_machines: int, rows: int, num_traces: int) -> dict[str, Any]:
    """Left alone, taken num_machines - 1 times, and under a deadline."""
    with tempfile.TemporaryDirectory(prefix="shoestring-launch-") as name:
        folder = Path(name)
        per_hour = 2 * SECONDS_PER_HOUR * 0.05 / SAVED_EVERY_S**2  # Young: a checkpoint takes about 0.05 s
        alone = outcome(launched(folder, "alone", rows, per_hour))
        restart_s = alone["billed_s"] - alone["useful_s"]
        stay_s = restart_s + 1.3 * alone["useful_s"] / num_machines
        kills = [n * (stay_s + AWAY_S) + stay_s for n in range(num_machines - 1)]
        schedule = ",".join(f"{kill:.1f}" for kill in kills) + f"+{AWAY_S}"
        taken = outcome(launched(folder, "taken", rows, per_hour, preempt=schedule))
        starts = [0.0, *(kill + AWAY_S for kill in kills)]
        up_s = [*zip(starts, [*kills, 1e7], strict=True)]
        expected_s = simulated_s(up_s, taken["useful_s"], restart_s)
        trace = folder / "outage.csv"
        first_h = (restart_s + 0.15 * alone["useful_s"]) / SECONDS_PER_HOUR
        trace.write_text(f"start_h,end_h\n0,{first_h:.6f}\n24,25\n")
        deadline_h = 4 * (restart_s + alone["useful_s"]) / SECONDS_PER_HOUR
        late = outcome(launched(folder, "late", rows, per_hour, deadline_h, str(trace)))
        by_place = {
            place: sum(s.end_s - s.start_s for s in late["sessions"] if s.place == place)
            for place in ("spot", "on_demand")
        }
        return {
            "measured": "launched runs on this machine whose simulated spot machine is taken",
            "alone_s": round(alone["billed_s"], 1),
            "start_s": round(restart_s, 1),
            "work_s": round(taken["useful_s"], 1),
            "machines": [f"{s.how} after {s.end_s - s.start_s:.1f} s" for s in taken["sessions"]],
            "billed_s": round(taken["billed_s"], 1),
            "simulated_s": round(expected_s, 1),
            "relative_error": round(taken["billed_s"] / expected_s - 1, 3),
            "ledger_is_exact": alone["ledger_is_exact"] and taken["ledger_is_exact"] and late["ledger_is_exact"],
            "bit_equal": alone["adapter"] == taken["adapter"] == late["adapter"],
            "clockwork": clockwork(folder, num_traces),
            "policy": {
                "deadline_s": round(deadline_h * SECONDS_PER_HOUR, 1),
                "finished_s": round(late["sessions"][-1].end_s, 1),
                "spot_s": round(by_place["spot"], 1),
                "on_demand_s": round(by_place["on_demand"], 1),
            },
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--machines", type=int, default=4)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--traces", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = {**measure(options.machines, options.rows, options.traces), "versions": versions(), "machine": machine()}
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"billed {result['billed_s']} s on {len(result['machines'])} machines, by the simulator "
            f"{result['simulated_s']} s; adapter bit-equal: {result['bit_equal']}; "
            f"ledger exact: {result['ledger_is_exact']}"
        )
        print(f"under a deadline: {result['policy']}")


if __name__ == "__main__":
    main()
