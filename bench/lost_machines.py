"""Take machines away in the middle of training, go on on fresh ones from the bucket, compare with a run left alone.

    python -m bench.lost_machines [--machines 3] [--rows 400] [--json]

A machine is an empty folder with the run file and its data; its processes are killed with SIGKILL some optimizer steps
after its first, and the folder is deleted. What the next one knows lies in the place (launch.aboard), a folder that
stands for a bucket. bit_equal: the last machine's adapter is that of the run left alone. lost: optimizer steps missing
from, or twice in, the step record.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import machine, versions
from bench.kill import LONGEST_RUN_S, POLL_S, steps
from bench.kill_run import BAR_NOT_MET_CODE, finish, start, write_inputs
from shoestring.launch.aboard import MARKER, Place

SOURCE = Path(__file__).resolve().parent.parent / "src"
NAME, EVERY_S, STEPS_EACH = "run", 0.5, 5
RUNS = "runs"


def num_steps(rung: Path) -> int:
    path = rung / "steps.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def rent(folder: Path, inputs: Path, place: Path) -> subprocess.Popen[bytes]:
    """A fresh machine that goes on with what the place has, in a process group of its own."""
    shutil.copytree(inputs, folder)
    words = [sys.executable, "-m", "shoestring", "run", f"{NAME}.yaml", "--runs-dir", RUNS]
    settings = ["--place", str(place), "--run-folder", f"{RUNS}/{NAME}", "--limit-s", "1e6", "--every-s", str(EVERY_S)]
    command = [sys.executable, "-m", "shoestring.launch.aboard", *settings, "--", *words]
    environment, quiet = {**os.environ, "PYTHONPATH": str(SOURCE)}, subprocess.DEVNULL
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, stdout=quiet, stderr=quiet)


def lose(process: subprocess.Popen[bytes], rung: Path, place: Place) -> bool:
    """Kill the machine STEPS_EACH steps after its first and a checkpoint in the place; False if it was done before."""
    until, first = time.perf_counter() + LONGEST_RUN_S, None
    while process.poll() is None and time.perf_counter() < until:
        done = num_steps(rung)
        first = done if first is None and done else first
        kept = any(name.endswith(MARKER) for name in place.state().files)
        if first is not None and kept and done >= first + STEPS_EACH:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(POLL_S)
    return False


def measure(model: str, num_machines: int, num_rows: int) -> dict[str, Any]:
    """Run once alone, once on machines that are taken away."""
    with tempfile.TemporaryDirectory(prefix="shoestring-machines-") as name:
        folder = Path(name)
        (folder / "inputs").mkdir()
        write_inputs(folder / "inputs", model, num_rows, NAME)
        began = time.time()
        finish(start(write_inputs(folder, model, num_rows, "alone")))
        alone_s = time.time() - began
        place = Place(str(folder / "place"))
        lost = 0
        for number in range(num_machines + 1):
            home = folder / f"machine-{number}"
            process = rent(home, folder / "inputs", folder / "place")
            rung = home / RUNS / NAME / "rungs" / model
            if number < num_machines and lose(process, rung, place):
                lost += 1
                shutil.rmtree(home)
                continue
            if process.wait(LONGEST_RUN_S) not in (0, BAR_NOT_MET_CODE):
                raise SystemExit(f"machine {number} ended with status {process.returncode}")
            break
        alone = folder / "alone" / "rungs" / model
        adapters = [(path / "adapter" / "adapter_model.safetensors").read_bytes() for path in (alone, rung)]
        left_alone, again = steps(alone), steps(rung)
        state = place.state()
        return {
            "measured": "whole runs on machines that are taken away, going on from a bucket, against one left alone",
            "model": model,
            "alone_s": round(alone_s, 1),
            "machines_lost": lost,
            "num_steps": len(left_alone),
            "bit_equal": adapters[0] == adapters[1],
            "lost": sum(dict(again).get(step) != loss for step, loss in left_alone) + abs(len(again) - len(left_alone)),
            "billed_s": [one["billed_s"] for one in state.machines],
            "outcome": state.outcome,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--machines", type=int, default=3, help="that are taken away")
    parser.add_argument("--model", default="shoestring-1m")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = {
        **measure(options.model, options.machines, options.rows),
        "versions": versions(),
        "machine": machine(),
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{result['machines_lost']} machines taken away; seconds billed on each: {result['billed_s']}")
    print(f"adapter bit-equal: {result['bit_equal']}; steps lost or doubled: {result['lost']} of {result['num_steps']}")


if __name__ == "__main__":
    main()
