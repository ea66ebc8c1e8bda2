"""`shoestring plan --probe` against the training that follows, each in a process of its own.

    python -m bench.probe [--data tickets|banking77|snips] [--model shoestring-1m] [--rows 3000] [--epochs 2] [--json]

seconds: predicted and taken, by the clock the probe used (the processor's for one thread of a CPU, the wall's else) and
by the wall; ratio is taken over predicted. bytes: peak memory likewise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import EXAMPLES, machine, versions

DATA = {
    "banking77": f"train: {EXAMPLES}/banking77/train.csv.gz, fields: {{prompt: text, completion: category}}",
    "snips": f"train: {EXAMPLES}/snips/train.jsonl.gz",
}
KINDS = {"tickets": "extract", "banking77": "classify", "snips": "extract"}
RUN_FILE = """
name: {name}
task: {{kind: {kind}, bar: 0}}
data: {{{data}}}
models: {model}
train: {{num_threads: 1, patience: 100, num_epochs: {epochs}{more}}}
curate: {{max_train_rows: {rows}}}
decide: {{arms: [], train_anyway: true}}
evaluate: {{regression: false}}
"""


def run_file(folder: Path, data: str, model: str, rows: int, epochs: float, more: str = "") -> Path:
    """A run of one rung on one thread that ends where its schedule does."""
    from shoestring.demo.tickets import write_tickets

    source = DATA.get(data)
    if source is None:
        write_tickets(folder / "tickets")
        source = f"train: {folder}/tickets/train.jsonl"
    path = folder / f"{data}-{model}.yaml"
    path.write_text(
        RUN_FILE.format(name=path.stem, kind=KINDS[data], data=source, model=model, rows=rows, epochs=epochs, more=more)
    )
    return path


def step(path: Path, what: str) -> dict[str, Any]:
    """In a process of its own: probe, or train."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.probe", "--step", what, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def worker(what: str, path: Path) -> dict[str, Any]:
    from shoestring.recipe import Run
    from shoestring.records import no_log, no_progress, to_json
    from shoestring.stages.closing import opened
    from shoestring.stages.probing import plan_probed, record_of

    run = Run.from_file(path, runs_dir=path.parent / "runs")
    if what == "probe":
        began_s = time.perf_counter()
        (rung,) = plan_probed(run, no_progress, no_log).rungs
        record = run.run_folder.record(record_of(rung.model))
        assert record is not None
        kept = {k: to_json(getattr(rung, k)) for k in ("train_s", "eval_s", "peak_bytes", "derived_s", "timed")}
        return {**kept, "probe": record["result"], "wall_s": time.perf_counter() - began_s}
    with opened(run):
        curated = run.curate()
        (rung,) = run.plan(curated).rungs
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        trained = run.train(rung, curated)
        train = {"wall_s": time.perf_counter() - began_s, "cpu_s": time.process_time() - began_cpu_s}
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        run.measure(rung, curated)
        evaluation = {"wall_s": time.perf_counter() - began_s, "cpu_s": time.process_time() - began_cpu_s}
    return {"train": train, "eval": evaluation, "peak_bytes": trained.peak_bytes, "num_steps": trained.num_steps}


def measure(data: str, model: str, rows: int, epochs: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bench-probe-") as place:
        path = run_file(Path(place), data, model, rows, epochs)
        probed = step(path, "probe")
        took = step(path, "train")
    clock = "cpu_s" if probed["probe"]["is_cpu_time"] else "wall_s"
    return {
        "data": data,
        "model": model,
        "clock": clock,
        "seconds": {
            "predicted": probed["train_s"],
            "derived": probed["derived_s"]["train"],
            "taken": took["train"][clock],
            "wall": took["train"]["wall_s"],
            "ratio": took["train"][clock] / probed["train_s"]["value"],
            "ratio_wall": took["train"]["wall_s"] / probed["train_s"]["value"],
        },
        "evaluation": {
            "predicted": probed["eval_s"],
            "taken": took["eval"][clock],
            "ratio": took["eval"][clock] / probed["eval_s"]["value"],
        },
        "bytes": {
            "predicted": probed["peak_bytes"],
            "taken": took["peak_bytes"],
            "ratio": took["peak_bytes"] / probed["peak_bytes"]["value"],
        },
        "num_steps": took["num_steps"],
        "probe_s": probed["probe"]["wall_s"],
        "got_of_its_thread": probed["probe"]["cpu_frac"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", choices=sorted(KINDS), nargs="+", default=["tickets"])
    parser.add_argument("--model", nargs="+", default=["shoestring-1m"])
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", nargs=2, metavar=("WHAT", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(worker(given.step[0], Path(given.step[1]))))
        return
    found = [measure(data, model, given.rows, given.epochs) for data in given.data for model in given.model]
    if given.json:
        print(json.dumps({"cases": found, "machine": machine(), "versions": versions()}))
        return
    for one in found:
        seconds, memory = one["seconds"], one["bytes"]
        print(
            f"{one['data']}, {one['model']}: {seconds['predicted']['value']:.1f} s predicted, "
            f"{seconds['taken']:.1f} taken ({seconds['ratio']:.2f}); "
            f"peak {memory['ratio']:.2f} of predicted; probed in {one['probe_s']:.0f} s"
        )


if __name__ == "__main__":
    main()
