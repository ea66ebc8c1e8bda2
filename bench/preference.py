"""Does preference training prefer better answers on rows it never saw, and does the task keep its score?

    python -m bench.preference [--model shoestring-1m] [--seeds 0 1 2] [--json]

Generated support tickets (the demo's), to be written as records. A supervised adapter learns from tickets whose
annotators wrote each of five fields in an unwanted way three times in five ("yes" for true, "45 dollars" for 45). From
it DPO, ORPO and KTO train on pairs of other tickets: the record as wanted, and with one field that is not. KTO sees the
two answers of a pair as two marked rows; ORPO also begins at the bare base. Held out: of how many pairs the wanted
record is preferred, by the implicit reward and by log-probability, and the share of records and fields right in what
the model writes: preferences must not be bought with the task.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import machine, versions
from shoestring.config import TaskConfig
from shoestring.demo.tickets import Ticket, sample_ticket
from shoestring.evaluate.statistics import wilson
from shoestring.messages import Example, Message
from shoestring.records import Device, TrainSettings, to_json

TASK = TaskConfig(kind="extract", bar=0.5, metric="exact_record")
ALONE = "orpo alone"
ARMS = ("dpo", "orpo", "kto", ALONE)
UNWANTED_FRAC = 0.6  # of the supervised rows write a field in the unwanted way, for each field apart


def yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


# How a careless annotator writes a field.
UNWANTED: dict[str, Callable[[Any], Any]] = {
    "order": str.lower,
    "amount": lambda value: "none" if value is None else f"{value} dollars",
    "urgent": yes_or_no,
    "refund": yes_or_no,
    "issue": str.title,
}


def written(ticket: Ticket, unwanted: Sequence[str]) -> Message:
    """The ticket's record with these fields in the unwanted way."""
    record = {key: UNWANTED[key](value) if key in unwanted else value for key, value in ticket.record.items()}
    return Message("assistant", json.dumps(record, ensure_ascii=False))


def asked(rng: random.Random) -> tuple[Ticket, Message]:
    ticket = sample_ticket(rng)
    return ticket, Message("user", ticket.prompt)


def supervised(num: int, rng: random.Random) -> list[Example]:
    """Tickets as annotators left them."""
    made = []
    for line in range(1, num + 1):
        ticket, prompt = asked(rng)
        answer = written(ticket, [key for key in UNWANTED if rng.random() < UNWANTED_FRAC])
        made.append(Example((prompt, answer), (1, 2), "tickets", line))
    return made


def pairs(num: int, rng: random.Random) -> list[Example]:
    """Tickets, each with its record as wanted and with one field that is not."""
    made = []
    for line in range(1, num + 1):
        ticket, prompt = asked(rng)
        lost = written(ticket, [rng.choice(list(UNWANTED))])
        made.append(Example((prompt, written(ticket, ())), (1, 2), "pairs", line, rejected=(lost,)))
    return made


def marked(rows: Sequence[Example]) -> list[Example]:
    """Each answer of a pair as a row of its own."""
    made = []
    for row in rows:
        for answer, flag in ((row.answer, True), (row.rejected, False)):
            messages = (*row.prompt, *answer)
            made.append(dataclasses.replace(row, messages=messages, rejected=(), desired=flag, id=""))
    return made


def settings_of(model: str, device: Device, objective: str, **changes: Any) -> TrainSettings:
    """The derived learning rate of the objective; steps of about 16 pairs."""
    from shoestring.plan.settings import usual_learning_rate
    from shoestring.plan.shapes import shape_of
    from shoestring.train.base import resolve_model

    shape = shape_of(model, Path(resolve_model(model)))
    values: dict[str, Any] = {
        "method": "lora", "lora_rank": 16, "lora_alpha": 32, "num_epochs": 1,
        "learning_rate": usual_learning_rate(shape.model_type, shape.hidden, objective), "objective": objective,
        "batch_tokens": 4096, "micro_batch_tokens": 4096, "seq_len": 512, "warmup_frac": 0.05, "weight_decay": 0.0,
        "max_grad_norm": 1.0, "num_evals": 1, "patience": 2, "num_threads": device.num_threads, "seed": 0,
        "max_new_tokens": 112, "reasons": {},
    }  # fmt: skip
    return TrainSettings(**{**values, **changes})


def scores(model: str, out_dir: Path, settings: TrainSettings, device: Device, held_out: Sequence[Example]) -> Any:
    """Of a trained rung: pairs preferred before and after, records right, fields right."""
    from shoestring.evaluate.generation import load_generator
    from shoestring.evaluate.score import metric_value
    from shoestring.train.preferred import preferred

    generator = load_generator(model, out_dir / "adapter", device=device, max_new_tokens=settings.max_new_tokens)
    found = preferred(generator.model, generator.tokenizer, held_out, settings, device)
    answers = generator.generate([row.request for row in held_out])
    right = round(metric_value(TASK, held_out, answers, None) * len(held_out))
    fields = metric_value(TASK.model_copy(update={"metric": "leaf_f1"}), held_out, answers, None)
    return {"pairs": found, "exact_record": to_json(wilson(right, len(held_out))), "leaf_f1": fields}


def one_seed(
    model: str, seed: int, num_sft: int, num_pairs: int, num_held_out: int, sft_epochs: float, arms: Sequence[str],
    changes: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    from shoestring.train.base import detect_device
    from shoestring.train.start import find_start
    from shoestring.train.trainer import train_rung

    device, rng = detect_device(1), random.Random(seed)
    taught, compared, held_out = supervised(num_sft, rng), pairs(num_pairs, rng), pairs(num_held_out, rng)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="shoestring-preference-") as place:

        def arm(name: str, objective: str, rows: Sequence[Example], **given: Any) -> dict[str, Any]:
            settings = settings_of(model, device, objective, seed=seed, **given)
            out_dir, started_s = Path(place) / name, time.monotonic()
            trained = train_rung(
                model=model, train=rows, dev=[], out_dir=out_dir, settings=settings, device=device,
                dev_metric=lambda tuned, tokenizer: 0.0,
            )  # fmt: skip
            # A supervised adapter is judged by its own log-probabilities: it has no reward.
            judged = settings if objective != "sft" else dataclasses.replace(settings, objective="dpo")
            made = scores(model, out_dir, judged, device, held_out)
            if objective == "sft":
                made["pairs"]["reward"] = None
            return {
                **made,
                "objective": objective,
                "num_steps": trained.num_steps,
                "learning_rate": settings.learning_rate,
                "sharing_factor": trained.settings["sharing_factor"],
                "wall_s": round(time.monotonic() - started_s, 1),
            }

        found["sft"] = arm("sft", "sft", taught, num_epochs=sft_epochs)
        start = find_start(str(Path(place) / "sft"), model)
        given = {"start": start.folder, "start_sha256": start.sha256}
        for objective in (name for name in arms if name != ALONE):
            rows = marked(compared) if objective == "kto" else compared
            found[f"sft, then {objective}"] = arm(f"then-{objective}", objective, rows, **given, **changes)
        if ALONE in arms:
            found[ALONE] = arm("orpo", "orpo", compared, num_epochs=sft_epochs)
    return found


def pooled(by_seed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pairs and records of all seeds together: each seed has rows and an adapter of its own."""

    def share(values: Sequence[dict[str, float]], num: int) -> dict[str, Any]:
        hits = sum(round(value["value"] * num) for value in values)
        return {**to_json(wilson(hits, num * len(values))), "by_seed": [round(v["value"], 4) for v in values]}

    found: dict[str, Any] = {}
    for name in by_seed[0]:
        arms = [seed[name] for seed in by_seed]
        num = arms[0]["pairs"]["num_pairs"]
        found[name] = {
            "log_prob_before": share([a["pairs"]["log_prob"]["before"] for a in arms], num),
            "log_prob_after": share([a["pairs"]["log_prob"]["after"] for a in arms], num),
            "reward_after": share([a["pairs"]["reward"]["after"] for a in arms], num) if arms[0]["pairs"]["reward"] else
            None,
            "exact_record": share([a["exact_record"] for a in arms], num),
            "leaf_f1": [round(a["leaf_f1"], 4) for a in arms],
            "num_steps": arms[0]["num_steps"],
            "learning_rate": arms[0]["learning_rate"],
            "wall_s": [a["wall_s"] for a in arms],
        }  # fmt: skip
    return found


def measure(
    model: str, seeds: Sequence[int], num_sft: int = 300, num_pairs: int = 200, num_held_out: int = 200,
    sft_epochs: float = 5, arms: Sequence[str] = ARMS, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    by_seed = [one_seed(model, seed, num_sft, num_pairs, num_held_out, sft_epochs, arms, changes) for seed in seeds]
    return {
        "measured": f"held-out pairs whose right record is preferred, and records right, {model}",
        "seeds": list(seeds),
        "num_sft_rows": num_sft,
        "num_pairs": num_pairs,
        "num_held_out": num_held_out,
        "sft_epochs": sft_epochs,
        "changes": changes,
        "arms": pooled(by_seed),
    }


def told(share: dict[str, Any]) -> str:
    return f"{share['value']:.1%} [{share['low']:.1%}, {share['high']:.1%}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="shoestring-1m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sft-rows", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--sft-epochs", type=float, default=5)
    parser.add_argument("--epochs", type=float, default=1, help="passes over the pairs")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    result = measure(
        options.model, options.seeds, options.sft_rows, options.pairs, options.held_out, options.sft_epochs,
        options.arms, num_epochs=options.epochs,
    )  # fmt: skip
    result |= {"versions": versions(), "machine": machine()}
    if options.json:
        print(json.dumps(result))
        return
    for name, arm in result["arms"].items():
        reward = arm["reward_after"]
        words = "" if reward is None else f", by reward {told(reward)}"
        print(
            f"{name:16} more probable {arm['log_prob_before']['value']:.1%} -> {told(arm['log_prob_after'])}{words}; "
            f"records right {told(arm['exact_record'])}, fields {arm['leaf_f1']}"
        )


if __name__ == "__main__":
    main()
