"""The ladder on planted learning curves, and its predictions on the demonstration models for real.

    python -m bench.ladder [--tasks 500] [--json]            planted curves: seconds
    python -m bench.ladder --real [--only NAME ...] [--json]  ten small tasks: about ten minutes of one idle core

Planted: four rungs, each about three times as dear as the one before; tasks in equal shares whose cheapest passing rung
is the first, second, third, fourth, or none. right: the climb ends where training and measuring every rung would say.
spent: dollars of the climb over those of training every rung; plain: of a climb without curves.
Real: of each task the parts' dev scores, the band predicted of the held-out score, and that score; covered: of ten.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import EXAMPLES, machine, versions

NUM_RUNGS, TIMES_AS_DEAR, OVERHEAD = 4, 3.0, 1.05
SEED_NOISE = 0.01


class Planted:
    """One task: the score of each rung after training on so many rows, in the form of the paper, to a power."""

    def __init__(self, number: int) -> None:
        rng = self.rng = np.random.default_rng(number)
        self.num_rows = int(np.exp(rng.uniform(np.log(800), np.log(20_000))))
        self.num_dev = int(np.clip(0.05 * self.num_rows, 32, 256))
        self.num_held_out = int(rng.choice([200, 500, 1000]))
        self.costs = TIMES_AS_DEAR ** np.arange(NUM_RUNGS) * rng.uniform(0.8, 1.25, NUM_RUNGS)
        self.power, start = rng.uniform(0.8, 1.25), rng.uniform(0.5, 1.0)
        floor, beta = start * rng.uniform(0.1, 0.6), rng.uniform(0.4, 1.6)
        knee = self.num_rows * np.exp(rng.uniform(np.log(1 / 200), 0.0))
        self.laws = []
        for _ in range(NUM_RUNGS):
            self.laws.append((start, floor, knee, beta))
            floor, knee, start = (
                floor * rng.uniform(0.3, 0.9),
                knee * rng.uniform(0.4, 1.0),
                start * rng.uniform(0.9, 1),
            )
        self.full = [self.train(rung, self.num_rows) for rung in range(NUM_RUNGS)]
        self.measured = [float(rng.binomial(self.num_held_out, score)) / self.num_held_out for score in self.full]

    def train(self, rung: int, rows: int) -> float:
        start, floor, knee, beta = self.laws[rung]
        error = (floor + (start - floor) / (1 + (rows / knee) ** beta)) ** self.power
        return float(np.clip(1 - error + SEED_NOISE * self.rng.standard_normal(), 0, 1))

    def bar_for(self, target: int, level: float) -> float:
        """A bar that the rung numbered target is the first to pass, if held-out rows agree; NUM_RUNGS: none is."""
        from shoestring.evaluate.statistics import wilson

        below = max(self.full[:target], default=self.full[0] - 0.25)
        above = max(below, self.full[target]) if target < NUM_RUNGS else below + 0.6 * (1 - below)
        needed = below + (above - below) * self.rng.uniform(0.2, 0.8)
        return max(0.05, wilson(round(needed * self.num_held_out), self.num_held_out, level).low)


def planted(num_tasks: int) -> dict[str, Any]:
    from shoestring.decide.curve import FRACS, Point, forecast
    from shoestring.evaluate.statistics import wilson
    from shoestring.ladder import rung_level

    level = 2 * rung_level(NUM_RUNGS)
    right = covered = seen = skipped = 0
    spent, plain, whole = np.zeros(num_tasks), np.zeros(num_tasks), np.zeros(num_tasks)
    for number in range(num_tasks):
        task = Planted(number)
        bar = task.bar_for(number % (NUM_RUNGS + 1), level)
        num = task.num_held_out
        passes = [wilson(round(score * num), num, level).low >= bar - 1e-12 for score in task.measured]
        cheapest = next((rung for rung in range(NUM_RUNGS) if passes[rung]), None)
        whole[number] = task.costs.sum()
        plain[number] = task.costs[: NUM_RUNGS if cheapest is None else cheapest + 1].sum()
        picked = None
        for rung in range(NUM_RUNGS):
            points: list[Point] = []
            for frac in FRACS:
                rows = max(1, round(frac * task.num_rows))
                hits = task.rng.binomial(task.num_dev, task.train(rung, rows))
                points.append(Point(rows, float(hits) / task.num_dev, task.num_dev))
                spent[number] += frac * task.costs[rung] * OVERHEAD
                found = forecast(points, task.num_rows, num, bar, level) if len(points) > 1 else None
                if found and found.is_settled:
                    break
            assert found
            covered += found.measured.low <= task.measured[rung] <= found.measured.high
            seen += 1
            if found.is_hopeless:
                skipped += 1
                continue
            spent[number] += task.costs[rung]
            if passes[rung]:
                picked = rung
                break
        right += picked == cheapest
    none = np.arange(num_tasks) % (NUM_RUNGS + 1) == NUM_RUNGS
    return {
        "tasks": num_tasks,
        "right": right / num_tasks,
        "spent": float(spent.sum() / whole.sum()),
        "plain": float(plain.sum() / whole.sum()),
        "spent_where_none_passes": float(spent[none].sum() / whole[none].sum()),
        "covered": covered / seen,
        "rungs_looked_at": seen,
        "rungs_skipped": skipped,
    }


# ---- for real ----

TICKETS = "train: {folder}/tickets/train.jsonl"
SNIPS = f"train: {EXAMPLES}/snips/train.jsonl.gz"
BANKING = f"train: {EXAMPLES}/banking77/train.csv.gz, fields: {{prompt: text, completion: category}}"
RUN_FILE = """
name: {name}
task: {{kind: {kind}, bar: 0.9}}
data: {{{data}}}
models: {model}
seed: {seed}
train: {{num_threads: 1, num_epochs: {epochs}}}
curate: {{max_train_rows: {rows}, max_eval_rows: 200}}
decide: {{arms: [], train_anyway: true}}
evaluate: {{regression: false, give_up_early: false}}
"""
# name -> kind, data, model, rows, epochs, seed
TASKS: dict[str, tuple[str, str, str, int, float, int]] = {
    "snips, intent": ("classify", "train: {folder}/intents.jsonl", "shoestring-1m", 1600, 3, 0),
    "snips, 7 intents to JSON": ("extract", SNIPS, "shoestring-1m", 1600, 4, 0),
    "snips, other rows": ("extract", SNIPS, "shoestring-1m", 2400, 3, 1),
    "snips, larger model": ("extract", SNIPS, "shoestring-3m", 1600, 3, 2),
    "banking77, 10 labels": ("classify", "train: {folder}/banking-0.jsonl", "shoestring-1m", 1000, 5, 0),
    "banking77, 10 others": ("classify", "train: {folder}/banking-1.jsonl", "shoestring-1m", 1000, 5, 0),
    "banking77, 77 labels": ("classify", BANKING, "shoestring-1m", 3000, 3, 0),
    "tickets": ("extract", TICKETS, "shoestring-1m", 1500, 4, 0),
    "tickets, other rows": ("extract", TICKETS, "shoestring-1m", 1000, 5, 1),
    "tickets, larger model": ("extract", TICKETS, "shoestring-3m", 1000, 5, 2),
}


def write_data(folder: Path) -> None:
    """Variants of the examples: intents alone, and ten of the 77 labels."""
    from shoestring.config import FieldsConfig
    from shoestring.data.load import load
    from shoestring.demo.tickets import write_tickets

    write_tickets(folder / "tickets")
    snips = load([f"{EXAMPLES}/snips/train.jsonl.gz"], FieldsConfig(), "", folder).examples
    with (folder / "intents.jsonl").open("w") as file:
        for row in snips:
            file.write(json.dumps({"prompt": row.user_text, "completion": json.loads(row.completion)["intent"]}) + "\n")
    fields = FieldsConfig(prompt="text", completion="category")
    banking = load([f"{EXAMPLES}/banking77/train.csv.gz"], fields, "", folder).examples
    labels = sorted({row.completion for row in banking})
    random.Random(0).shuffle(labels)
    for part in range(2):
        kept = set(labels[10 * part : 10 * part + 10])
        with (folder / f"banking-{part}.jsonl").open("w") as file:
            for row in banking:
                if row.completion in kept:
                    file.write(json.dumps({"prompt": row.user_text, "completion": row.completion}) + "\n")


def measure(name: str, folder: Path) -> dict[str, Any]:
    """The curve of one task, then its training and held-out score, by the recipe's own stages."""
    from shoestring.decide.curve import FRACS, forecast
    from shoestring.recipe import Run
    from shoestring.stages.climbing import curve_settings, measure_curve
    from shoestring.stages.closing import opened

    kind, data, model, rows, epochs, seed = TASKS[name]
    path = folder / f"{name.replace(' ', '-').replace(',', '')}.yaml"
    path.write_text(
        RUN_FILE.format(
            name=path.stem,
            kind=kind,
            data=data.replace("{folder}", str(folder)),
            model=model,
            rows=rows,
            epochs=epochs,
            seed=seed,
        )
    )
    run = Run.from_file(path, runs_dir=folder / "runs")
    with opened(run):
        curated = run.curate()
        (rung,) = run.plan(curated).rungs
        num_rows = len(curated.train)
        began_s = time.process_time()

        def judged(points: Any) -> Any:
            return forecast(points, num_rows, len(curated.eval), 0.0, 0.05)

        curve = measure_curve(run, rung, curated, curve_settings(rung.settings), FRACS, judged, stops=False)
        curve_s, began_s = time.process_time() - began_s, time.process_time()
        arm = run.measure(rung, curated)
        full_s = time.process_time() - began_s
    found = judged(curve.points)
    return {
        "task": name,
        "model": model,
        "metric": arm.metric,
        "rows": num_rows,
        "held_out": arm.num_rows,
        "points": [[p.num_rows, round(p.score, 4)] for p in curve.points],
        "predicted": [round(v, 4) for v in (found.measured.low, found.measured.value, found.measured.high)],
        "actual": round(arm.score.value, 4),
        "covered": bool(found.measured.low <= arm.score.value <= found.measured.high),
        "curve_cpu_s": round(curve_s, 1),
        "full_cpu_s": round(full_s, 1),
    }


def real(names: list[str]) -> dict[str, Any]:
    found = []
    with tempfile.TemporaryDirectory(prefix="bench-ladder-") as place:
        write_data(Path(place))
        for name in names:
            found.append(measure(name, Path(place)))
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    widths = [one["predicted"][2] - one["predicted"][0] for one in found]
    return {
        "tasks": found,
        "covered": sum(one["covered"] for one in found),
        "num_tasks": len(found),
        "mean_width": round(float(np.mean(widths)), 3),
        "mean_abs_error": round(float(np.mean([abs(one["predicted"][1] - one["actual"]) for one in found])), 3),
        "curve_cpu_frac": round(sum(one["curve_cpu_s"] for one in found) / sum(o["full_cpu_s"] for o in found), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), metavar="NAME")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = real(given.only or list(TASKS)) if given.real else planted(given.tasks)
    if given.json:
        print(json.dumps({**found, "machine": machine(), "versions": versions()}))
        return
    for key, value in found.items():
        for line in value if isinstance(value, list) else [value]:
            print(f"{key}: {line}")


if __name__ == "__main__":
    main()
