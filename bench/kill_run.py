"""Kill whole runs with SIGKILL at random moments, continue each time, and compare with a run left alone.

    python -m bench.kill_run [--kills 5] [--model shoestring-1m] [--json]

The moments are spread over the whole run, from curation to export: each is a random one in its share of the time
that the run left alone took. bit_equal: the final adapter's bytes are those of the run left alone. lost: optimizer
steps missing from, or twice in, the step record. repeated: finished stages that were done again. half_written:
files that are no whole JSON, or temporary, once the last run is done.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import machine, versions
from bench.kill import LONGEST_RUN_S, POLL_S, Forked, Run, steps

STAGES = ("curate.json", "decide.json", "plan.json", "train.json", "eval.json", "export.json", "ladder.json")
BAR_NOT_MET_CODE = 3
RUN_FILE = """
name: {name}
task: {{kind: extract, bar: 0.99}}
data: {{train: rows.jsonl}}
models: {model}
curate: {{eval_rows: 40}}
decide: {{max_rows: 20, num_shots: 1}}
train: {{num_epochs: 2, num_evals: 3, lora_rank: 4, num_threads: 1}}
"""


def write_inputs(folder: Path, model: str, num_rows: int, name: str) -> Path:
    """Data and run file; returns the run file."""
    colours, things = ("red", "green", "blue"), ("cup", "door", "hat", "lamp", "boat")
    rows = [(f"{i} {things[i % 5]}s, {colours[i % 3]}", {"n": i, "colour": colours[i % 3]}) for i in range(num_rows)]
    lines = [json.dumps({"prompt": prompt, "completion": json.dumps(answer)}) for prompt, answer in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    run_file = folder / f"{name}.yaml"
    run_file.write_text(RUN_FILE.format(name=name, model=model))
    return run_file


def start(run_file: Path) -> Run:
    command = [sys.executable, "-m", "shoestring", "run", str(run_file), "--runs-dir", str(run_file.parent)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def start_forked(run_file: Path) -> Run:
    """The same in a fork of this process, which has imported everything but computed nothing."""
    return Forked(shoestring_run, run_file)


def shoestring_run(run_file: Path) -> None:
    from shoestring.cli.main import run

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os._exit(run(["run", str(run_file), "--runs-dir", str(run_file.parent)]))


def records(folder: Path) -> dict[str, tuple[str, float]]:
    """Finished stages: (finished_at, when the file was written) by name."""
    found = {}
    # os.walk passes over folders that a live run renames meanwhile; Path.rglob raises.
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "superseded"]
        for path in [Path(parent, name) for name in STAGES if name in names]:
            with contextlib.suppress(FileNotFoundError):
                found[path.name] = (json.loads(path.read_text())["finished_at"], path.stat().st_mtime)
    return found


def finish(process: Run) -> None:
    if process.wait(LONGEST_RUN_S) not in (0, BAR_NOT_MET_CODE):
        raise SystemExit(f"a run failed with status {process.returncode}")


def kill_after(process: Run, folder: Path, stage: str | None, offset_s: float) -> bool:
    """Kill offset_s after the stage's record is there (None: after the start); False if the run was over before."""
    until = time.perf_counter() + LONGEST_RUN_S
    while process.poll() is None and time.perf_counter() < until and stage and stage not in records(folder):
        time.sleep(POLL_S)
    until = time.perf_counter() + offset_s
    while process.poll() is None and time.perf_counter() < until:
        time.sleep(POLL_S)
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def half_written(folder: Path) -> list[str]:
    """Temporary files, and JSON that does not read."""
    found = [path for pattern in (".*.tmp", ".*.partial") for path in folder.rglob(pattern)]
    for path in [*folder.rglob("*.json"), *folder.rglob("*.jsonl")]:
        text = path.read_text(encoding="utf-8")
        try:
            for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
                json.loads(part)
        except ValueError:
            found.append(path)
    return sorted(str(path.relative_to(folder)) for path in found)


def measure(
    model: str, kills: int, num_rows: int, seed: int = 0, start: Callable[[Path], Run] = start
) -> dict[str, Any]:
    """Run once alone, once with kills."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="shoestring-kill-run-") as name:
        folder = Path(name)
        began = time.time()
        finish(start(write_inputs(folder, model, num_rows, "alone")))
        ended = time.time()
        # The timeline of the run left alone: what was finished last at a moment, and how long ago.
        marks: list[tuple[float, str | None]] = [(began, None)]
        marks += sorted((written, stage) for stage, (_, written) in records(folder / "alone").items())
        run_file, killed = write_inputs(folder, model, num_rows, "killed"), folder / "killed"
        seen: dict[str, str] = {}
        repeated, killed_in = set(), []

        def look() -> None:
            for stage, (finished_at, _) in records(killed).items():
                if seen.setdefault(stage, finished_at) != finished_at:
                    repeated.add(stage)

        for k in range(kills):
            moment = began + (ended - began) * (k + rng.random()) / kills
            after, stage = max(mark for mark in marks if mark[0] <= moment)
            if kill_after(start(run_file), killed, stage, moment - after):
                killed_in.append(next((s for s in STAGES if s not in records(killed)), "report").removesuffix(".json"))
            look()
        finish(start(run_file))
        look()
        runs = {run: next((folder / run / "rungs").iterdir()) for run in ("alone", "killed")}
        adapters = [(rung / "adapter" / "adapter_model.safetensors").read_bytes() for rung in runs.values()]
        alone, again = (steps(rung) for rung in runs.values())
        return {
            "measured": "whole runs on CPU killed with SIGKILL and continued, against one left alone",
            "model": Path(model).name,
            "alone_s": round(ended - began, 1),
            "kills": len(killed_in),
            "killed_in": killed_in,
            "num_steps": len(alone),
            "bit_equal": adapters[0] == adapters[1],
            "lost": sum(dict(again).get(step) != loss for step, loss in alone) + abs(len(again) - len(alone)),
            "repeated": sorted(repeated),
            "half_written": half_written(killed),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--model", default="shoestring-1m")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--forked", action="store_true", help="fork each run instead of starting it afresh; quicker")
    options = parser.parse_args()
    if options.forked:
        import peft  # noqa: F401
        import sklearn  # noqa: F401
        from transformers import Trainer  # noqa: F401
    begin = start_forked if options.forked else start
    result = {
        **measure(options.model, options.kills, options.rows, options.seed, start=begin),
        "versions": versions(),
        "machine": machine(),
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"{result['kills']} kills, in {', '.join(result['killed_in'])}; alone the run takes {result['alone_s']} s"
        )
        print(f"adapter bit-equal: {result['bit_equal']}; steps lost or doubled: {result['lost']}")
        print(f"stages repeated: {result['repeated']}; half-written files: {result['half_written']}")


if __name__ == "__main__":
    main()
