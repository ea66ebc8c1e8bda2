"""The learning-rate search against training in full with every rate of its grid.

    python -m bench.rate_search [--data tickets|banking77|snips] [--model NAME] [--rows 3000] [--epochs 4] [--json]

regret: how much worse the picked rate's full training is on the dev rows than the best of the grid, in dev loss and in
the task's metric; gain: over the derived rate. Nothing is scored on held-out rows: this is about the choice.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import machine, versions
from bench.probe import KINDS, run_file


def measure(data: str, model: str, rows: int, epochs: float) -> dict[str, Any]:
    from shoestring.plan.search import grid
    from shoestring.recipe import Run
    from shoestring.stages.common import dev_rows, device
    from shoestring.stages.rungs import DevMetric
    from shoestring.train.search import search_learning_rate
    from shoestring.train.trainer import train_rung

    with tempfile.TemporaryDirectory(prefix="bench-rate-") as place:
        folder = Path(place)
        path = run_file(folder, data, model, rows, epochs, ", learning_rate: search")
        run = Run.from_file(path, runs_dir=folder / "runs")
        curated = run.curate()
        (rung,) = run.plan(curated).rungs
        dev, settings, here = dev_rows(run, curated, rung.settings), rung.settings, device(run)
        metric = DevMetric(run.config.task, tuple(dev), curated.labels, settings.max_new_tokens)
        given: dict[str, Any] = {"model": model, "train": curated.train, "dev": dev, "device": here}
        began_s = time.process_time()
        found = search_learning_rate(**given, out_dir=folder / "search", settings=settings)
        search_s = time.process_time() - began_s
        full = {}
        for rate in grid(settings.learning_rate):
            began_s = time.process_time()
            trained = train_rung(
                **given,
                out_dir=folder / f"full-{rate:g}",
                settings=replace(settings, learning_rate=rate, search_tokens=0),
                dev_metric=metric,
            )
            losses = [point["dev_loss"] for point in trained.history if "dev_loss" in point]
            full[rate] = {
                "dev_loss": min(losses),
                "dev_metric": trained.dev_metric,
                "cpu_s": time.process_time() - began_s,
            }
    picked, derived = full.get(found.learning_rate), full[settings.learning_rate]
    best_loss, best_metric = (
        pick(one[key] for one in full.values()) for pick, key in ((min, "dev_loss"), (max, "dev_metric"))
    )
    return {
        "data": data,
        "model": model,
        "num_dev_rows": len(dev),
        "picked": found.learning_rate,
        "derived": settings.learning_rate,
        "note": found.note,
        "trials": found.trials,
        "full": {f"{rate:g}": one for rate, one in full.items()},
        "regret": None
        if picked is None
        else {"dev_loss": picked["dev_loss"] - best_loss, "dev_metric": best_metric - picked["dev_metric"]},
        "gain": None
        if picked is None
        else {
            "dev_loss": derived["dev_loss"] - picked["dev_loss"],
            "dev_metric": picked["dev_metric"] - derived["dev_metric"],
        },
        "cost": {"tokens_frac": found.tokens_frac, "cpu_s_frac": search_s / derived["cpu_s"], "cpu_s": search_s},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", choices=sorted(KINDS), nargs="+", default=["tickets"])
    parser.add_argument("--model", nargs="+", default=["shoestring-1m"])
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = [measure(data, model, given.rows, given.epochs) for data in given.data for model in given.model]
    if given.json:
        print(json.dumps({"cases": found, "machine": machine(), "versions": versions()}))
        return
    for one in found:
        print(f"{one['data']}, {one['model']}: picked {one['picked']:g}, derived {one['derived']:g}")
        print(f"  regret {one['regret']}, gain {one['gain']}, {one['cost']['cpu_s_frac']:.0%} of a training's seconds")


if __name__ == "__main__":
    main()
