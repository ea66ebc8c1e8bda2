"""A realistic finished run folder, written through the records; tests of the report start from it."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from shoestring.config import RunConfig
from shoestring.data.store import write_curated
from shoestring.evaluate.score import paired_difference, score_arm
from shoestring.files import write_json, write_whole
from shoestring.ledger import Ledger
from shoestring.market.prices import price_for
from shoestring.plan.ladder_plan import plan_ladder
from shoestring.plan.shapes import shape_from_config
from shoestring.records import (
    ArmScore,
    Completion,
    Curated,
    Device,
    DroppedRow,
    Estimate,
    Example,
    Fault,
    MergeCheck,
    Message,
    Plan,
    TokenCounts,
    TrainResult,
    Verdict,
    to_json,
)
from shoestring.runfolder import RunFolder, rung_name
from shoestring.units import SECONDS_PER_HOUR

HOSTILE = '<script>alert("x")</script><img src="http://evil.example/p.png" onerror=alert(1)> & "quoted" \x00 \ud800'
LABELS = ("billing", "bug", "delivery", "refund")
CPU = Device("cpu", "cpu", 16 * 2**30, 2, "float32", "no fast bfloat16 here")
SIZES = {"shoestring-1m": (128, 3, 2, 352), "shoestring-3m": (192, 5, 3, 512)}


def run_config(**changes: Any) -> RunConfig:
    task = {"kind": "classify", "metric": "accuracy", "bar": 0.8}
    return RunConfig.model_validate(
        {"name": "tickets", "task": task, "data": {"train": "tickets.jsonl"}, "budget_usd": 0.5, **changes}
    )


def examples(num_rows: int, start: int = 0) -> tuple[Example, ...]:
    rows = []
    for i in range(start, start + num_rows):
        text = f"Ticket {i}: my parcel {i % 17} never came, please help" + (f" {HOSTILE}" if i % 9 == 0 else "")
        answer = LABELS[i % len(LABELS)]
        rows.append(Example((Message("user", text), Message("assistant", answer)), (1, 2), "data/tickets.jsonl", i + 1))
    return tuple(rows)


def arm(name: str, kind: str, model: str, right_frac: float, rows: tuple[Example, ...], wall_s: float) -> ArmScore:
    rng = random.Random(name)
    texts = []
    for row in rows:
        wrong = rng.choice([*LABELS, HOSTILE, "I think this ticket is about " + "a delivery " * 90])
        texts.append(row.completion if rng.random() < right_frac else wrong)
    completions = [Completion(t, 40, 6, 0.02) for t in texts]
    return score_arm(
        arm=name,
        kind=kind,
        model=model,
        task=run_config().task,
        examples=rows,
        completions=completions,
        labels=LABELS,
        wall_s=wall_s,
    )


def history(num_steps: int, best: float) -> tuple[dict[str, float], ...]:
    rng = random.Random(3)
    rows = []
    for step in range(1, num_steps + 1):
        done = step / num_steps
        row = {
            "step": step,
            "loss": 3.2 * math.exp(-5 * done) + 0.2 + 0.12 * rng.random(),
            "learning_rate": 3e-3 * (1 - done),
        }
        if step % (num_steps // 6) == 0:
            row |= {"dev_metric": best * (1 - math.exp(-4 * done)), "dev_loss": 3 * math.exp(-5 * done) + 0.34}
        rows.append(row)
    return tuple(rows)


def plan_of(config: RunConfig) -> Plan:
    counts = TokenCounts((62,) * 700, (5,) * 700, (62,) * 200, (5,) * 200)
    shapes = {
        name: shape_from_config(
            name,
            {
                "model_type": "llama",
                "hidden_size": h,
                "num_hidden_layers": n,
                "num_attention_heads": a,
                "head_dim": 64,
                "intermediate_size": i,
                "vocab_size": 4096,
                "max_position_embeddings": 1024,
                "tie_word_embeddings": True,
            },
            "config.json",
        )
        for name, (h, n, a, i) in SIZES.items()
    }
    return plan_ladder(config, shapes, dict.fromkeys(shapes, counts), CPU, price_for(CPU, config.market))


def write_run(folder: Path, *, until: str = "end") -> RunConfig:
    """Write the folder as a run leaves it; until: a stage after which it was killed."""
    config = run_config()
    run = RunFolder(folder)
    ledger = Ledger(folder / "ledger.jsonl")
    price = price_for(CPU, config.market).usd_per_hour
    order = ["curate", "decide", "plan", "half-trained", "train", "end"]
    reached = order.index(until)

    def finish(name: str, result: Any, wall_s: float, predicted: Any = None, num_bytes: float | None = None) -> None:
        run.finish(name, "f" * 16, result, wall_s)
        actual = {"s": wall_s, "usd": wall_s * price / SECONDS_PER_HOUR, "bytes": num_bytes}
        item = name.removesuffix(".json")
        ledger.record(item, stage=Path(name).stem, predicted=predicted, actual=actual, price_usd_per_hour=price)

    write_whole(folder / "run.yaml", _yaml(config))
    write_json(
        folder / "meta.json",
        {
            "updated_at": "2026-11-24T14:02:11+00:00",
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
            "machine": {"platform": "Linux", "cpus": 2},
            "device": to_json(CPU),
            "command": ["shoestring", "run", HOSTILE[:40]],
        },
    )
    held_out = examples(200, start=1000)
    dropped = [
        DroppedRow({"prompt": HOSTILE, "label": "bug"}, "data/tickets.jsonl", 40 + i, code, evidence, partner)
        for i, (code, evidence, partner) in enumerate(
            [("duplicate", "same after normalisation", 3)] * 38
            + [("contradiction", 'also answered "refund"', 9)] * 12
            + [("empty_answer", "the answer is empty", None)] * 6
        )
    ]
    counts = {"rows_in": 1036, "rows_train": 700, "rows_dev": 80, "rows_eval": 200, "dropped": 56}
    faults = (Fault("mojibake", "data/tickets.jsonl", 12, "Ã© for é", "safe"),)
    curated = Curated(examples(700), examples(80, 800), held_out, tuple(dropped), faults, counts, LABELS)
    write_curated(curated, folder / "data")
    codes = {"duplicate": 38, "contradiction": 12, "empty_answer": 6}
    finish(
        "curate.json",
        {
            "counts": counts,
            "labels": LABELS,
            "notes": ["split by duplicate cluster"],
            "dropped_by_code": codes,
            "faults_by_code": {"mojibake": 1},
        },
        1.4,
    )
    if reached == 0:
        return config
    baselines = [arm("linear", "linear", "tf-idf", 0.71, held_out, 0.9)]
    for model in SIZES:
        baselines.append(arm(f"zero-shot {model}", "zero_shot", model, 0.04, held_out, 6.2))
        baselines.append(arm(f"few-shot {model}", "few_shot", model, 0.31, held_out, 11.8))
    finish(
        "decide.json",
        {
            "arms": to_json(baselines),
            "instruction": "Name the topic.",
            "detectable_difference": 0.09,
        },
        37.0,
    )
    if reached == 1:
        return config
    plan = plan_of(config)
    finish("plan.json", to_json(plan), 0.3)
    if reached == 2:
        return config
    arms = list(baselines)
    for index, (model, frac) in enumerate({"shoestring-1m": 0.78, "shoestring-3m": 0.93}.items()):
        rung = next(r for r in plan.rungs if r.model == model)
        rung_dir = f"rungs/{rung_name(model)}"
        steps = history(440, frac)
        if until == "half-trained":
            lines = "".join(f"{_json_line(row)}\n" for row in steps[:180])
            write_whole(folder / rung_dir / "steps.jsonl", lines + '{"step": 181, "lo')
            return config
        trained = TrainResult(
            model=model,
            method="lora",
            adapter_dir=f"{rung_dir}/adapter",
            num_steps=440,
            stopped_early=bool(index),
            best_step=365,
            dev_metric=frac,
            wall_s=rung.train_s.value * 1.3,
            peak_bytes=round(rung.peak_bytes.value * 0.9),
            num_train_tokens=469_000,
            num_loss_tokens=35_000,
            num_computed_tokens=512_000,
            final_loss=0.24,
            history=steps,
            settings={"dtype": "float32", "packing": "prefix forest", "sharing_factor": 3.25},
        )
        predicted = {"usd": rung.train_s.scaled(price / SECONDS_PER_HOUR), "s": rung.train_s, "bytes": rung.peak_bytes}
        finish(f"{rung_dir}/train.json", to_json(trained), trained.wall_s, predicted, trained.peak_bytes)
        if until == "train":
            return config
        tuned = arm(f"lora {model}", "finetune", model, frac, held_out, trained.wall_s + 9)
        finish(f"{rung_dir}/eval.json", {"arm": to_json(tuned)}, 9.0, {"s": rung.eval_s})
        arms.append(tuned)
    best = arms[-1]
    verdict = Verdict(
        True,
        best.arm,
        "finetune",
        0.8,
        best.score,
        f"The lower end of its interval, {best.score.low:.3f}, reaches the bar of 0.8; no cheaper arm does.",
        "export it: shoestring export RUN",
    )
    differences = [paired_difference(best, b) for b in baselines]
    finish("ladder.json", {**to_json(verdict), "model": best.model, "differences": to_json(differences)}, 0.0)
    check = MergeCheck(5120, 2.1e-4, 0.9996, 1.4, 1.0, True)
    finish(
        "export.json",
        {"adapter_dir": "rungs/shoestring-3m/adapter", "merged_dir": "export/merged", "merge_check": to_json(check)},
        2.2,
    )
    return config


def _yaml(config: RunConfig) -> str:
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _json_line(row: dict[str, float]) -> str:
    import json

    return json.dumps(row)


__all__ = ["HOSTILE", "Estimate", "write_run"]
