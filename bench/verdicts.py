"""Planted tasks whose right verdict is known by construction, through the real decide stage.

    python -m bench.verdicts [--seeds 4] [--cases a b ...] [--json]

A scripted model behind a chat-completions server on the loopback answers questions about products. What it lacks is
planted: (a) the facts, which stand in documents alone; (b) the form of the answer; (c) nothing; (d) nothing that so few
held-out rows could show; (e) facts and form, after which scripted fine-tunes answer with and without passages; (f) what
more rows of training would teach. (b) is also run for real: tickets, an embedded model, a bar that training meets.
right: verdicts with the advice that was planted; said: what came instead.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench import machine, versions
from tests.scripted_server import Reply, ScriptedServer, chat

WORKSHOPS = ("Lindau", "Meran", "Gmunden", "Annecy", "Varenna", "Stresa")
RUN_FILE = """
name: {name}
task: {{kind: extract, metric: exact_record, bar: {bar}}}
data: {{train: train.jsonl, eval: eval.jsonl, documents: covers.md}}
models: shoestring-1m
seed: {seed}
retrieval: {{chunk_tokens: 64}}
decide:
  arms: [zero_shot, few_shot, rag]
  endpoints:
    - {{name: scripted, base_url: {url}, model: base, api_key_env: "",
       usd_per_million_input_tokens: 0.1, usd_per_million_output_tokens: 0.4}}
"""
# What the plan of each case is, and the advice that is right.
RIGHT = {"a": "use_rag", "b": "fine_tune", "c": "prompt", "d": "cannot_tell", "e": "both", "f": "more_data"}


@dataclass(frozen=True)
class Plant:
    """What the scripted model lacks. Shares are of rows, drawn by the product's name."""

    knows: bool  # the facts, without passages
    form_frac: float  # answers in the right form without examples
    shown_frac: float = 1.0  # with examples in the prompt
    slip_frac: float = 0.02  # answers wrong all the same
    num_eval: int = 120
    bar: float = 0.85
    tuned_frac: float | None = None  # right form of a scripted fine-tune; None: none is scored


def plant(case: str, draw: random.Random) -> Plant:
    """One planted task of a case; seeds differ in how much is lacking and in how many rows show it."""
    num_eval = draw.randint(100, 160)
    if case == "a":
        return Plant(False, 1.0, num_eval=num_eval)
    if case == "b":
        bare_frac = draw.uniform(0, 0.4)
        return Plant(True, bare_frac, bare_frac + 0.3, num_eval=num_eval)
    if case == "c":
        return Plant(True, 1.0, num_eval=num_eval)
    if case == "d":
        return Plant(True, 1.0, slip_frac=0.15, num_eval=draw.randint(20, 30))
    if case == "e":
        return Plant(False, draw.uniform(0.3, 0.6), num_eval=num_eval, tuned_frac=1.0)
    bare_frac = draw.uniform(0, 0.3)
    return Plant(True, bare_frac, bare_frac + 0.1, num_eval=num_eval, tuned_frac=draw.uniform(0.5, 0.65))


@dataclass(frozen=True)
class Product:
    name: str
    months: int
    workshop: str

    @property
    def question(self) -> str:
        return f"Which cover has the {self.name}?"

    @property
    def passage(self) -> str:
        return f"The {self.name} is covered for {self.months} months. Repairs are done in {self.workshop}."

    @property
    def answer(self) -> str:
        return json.dumps({"months": self.months, "workshop": self.workshop})


def products(num: int, draw: random.Random) -> list[Product]:
    """So many, each with a name of its own."""
    letters = "ABCDEFGHKLMNPRSTUVWXYZ"
    names: dict[str, None] = {}
    while len(names) < num:
        names[f"{draw.choice(letters)}{draw.choice(letters)}-{draw.randint(1000, 9999)}"] = None
    return [Product(name, draw.randint(6, 60), draw.choice(WORKSHOPS)) for name in names]


class Player:
    """The scripted model: one that is asked as `tuned` has the form it was trained for."""

    def __init__(self, planted: Plant, known: Sequence[Product], seed: int) -> None:
        self.planted, self.seed = planted, seed
        self.known = {product.name: product for product in known}

    def __call__(self, number: int, body: dict[str, Any]) -> Reply:
        text = body["messages"][-1]["content"]
        name = re.findall(r"[A-Z]{2}-\d{4}", text)[-1]
        product = self.known[name]
        has_shots = any(message["role"] == "assistant" for message in body["messages"])
        sees = f"{name} is covered" in text
        right = (self.planted.knows or sees) and not self._drawn("slip", name, self.planted.slip_frac)
        if not right:
            product = replace(product, months=product.months + 1)
        form_frac = self.planted.shown_frac if has_shots else self.planted.form_frac
        if body["model"] == "tuned":
            form_frac = self.planted.tuned_frac or 0.0
        if self._drawn("form", name, form_frac):
            return chat(product.answer, tokens=(40, 16))
        return chat(f"{product.months} months, and repairs are done in {product.workshop}.", tokens=(40, 14))

    def _drawn(self, what: str, name: str, share: float) -> bool:
        return random.Random(f"{self.seed} {what} {name}").random() < share


def measure(case: str, seed: int) -> dict[str, Any]:
    """Plant a case, let the decide stage measure it, and take the verdict."""
    from shoestring.config import EndpointConfig
    from shoestring.decide.verdict import verdict
    from shoestring.recipe import Run
    from shoestring.stages.arms import Arms
    from shoestring.stages.closing import opened
    from shoestring.stages.deciding import measure, remote

    draw = random.Random(f"{case}{seed}")
    planted = plant(case, draw)
    every = products(200 + planted.num_eval, draw)
    held_out, learned = every[: planted.num_eval], every[planted.num_eval :]
    server = ScriptedServer(Player(planted, every, seed))
    try:
        with tempfile.TemporaryDirectory(prefix="bench-verdicts-") as place:
            folder = Path(place)
            for name, rows in (("train", learned), ("eval", held_out)):
                lines = [json.dumps({"prompt": p.question, "completion": p.answer}) for p in rows]
                (folder / f"{name}.jsonl").write_text("\n".join(lines))
            (folder / "covers.md").write_text("\n\n".join(p.passage for p in draw.sample(every, len(every))))
            path = folder / "run.yaml"
            path.write_text(RUN_FILE.format(name=f"{case}-{seed}", bar=planted.bar, seed=seed, url=server.url))
            run = Run.from_file(path, runs_dir=folder / "runs")
            with opened(run, "decide"):
                curated = run.curate()
                arms = Arms(run, curated)
                (base,) = run.config.decide.endpoints
                found = [
                    arm for arm, _ in measure(run, arms, base.name, partial(remote, run, curated, base), "") if arm
                ]
                tuned: EndpointConfig = base.model_copy(update={"name": "tuned", "model": "tuned"})
                before = verdict(found, run.config.task)
                said = [before.advice]
                if planted.tuned_frac is not None:
                    for kind in ("zero_shot", "rag") if case == "e" else ("zero_shot",):
                        arm, why = arms.measure(kind, partial(remote, run, curated, tuned), arms.instruction)
                        assert arm is not None, why
                        found.append(replace(arm, arm=f"lora {kind}", kind="finetune"))
                    said.append(verdict(found, run.config.task).advice)
    finally:
        server.close()
    # What more rows would teach can be seen only once something is trained; that both are needed is seen before, too.
    expected = ["fine_tune", RIGHT[case]] if case == "f" else [RIGHT[case]] * len(said)
    return {"case": case, "seed": seed, "expected": expected, "said": said, "num_eval": planted.num_eval,
            "scores": {arm.arm: round(arm.score.value, 3) for arm in found}}  # fmt: skip


def trained(seed: int) -> dict[str, Any]:
    """(b) for real: no prompt makes the embedded model write records, training does."""
    from shoestring.demo.tickets import write_tickets
    from shoestring.recipe import Run

    with tempfile.TemporaryDirectory(prefix="bench-verdicts-") as place:
        folder = Path(place)
        write_tickets(folder / "tickets")
        path = folder / "run.yaml"
        path.write_text(
            f"name: tickets\ntask: {{kind: extract, bar: 0.5}}\ndata: {{train: tickets/train.jsonl}}\n"
            f"models: shoestring-1m\nseed: {seed}\ndecide: {{arms: [zero_shot, few_shot], max_rows: 60}}\n"
            "evaluate: {regression: false}\ntrain: {num_threads: 1}\n"
        )
        run = Run.from_file(path, runs_dir=folder / "runs")
        found = run.execute()
        scores = {arm["arm"]: round(arm["score"], 3) for arm in run.summary()["arms"]}
    return {"case": "b, trained", "seed": seed, "expected": ["fine_tune"], "said": [found.advice], "scores": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--cases", nargs="+", choices=sorted(RIGHT), default=sorted(RIGHT))
    parser.add_argument("--no-training", action="store_true", help="leave out the case that trains an embedded model")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = [measure(case, seed) for case in given.cases for seed in range(given.seeds)]
    if "b" in given.cases and not given.no_training:
        found.append(trained(0))
    right = sum(one["said"] == one["expected"] for one in found)
    if given.json:
        result = {"cases": len(found), "right": right, "each": found, "machine": machine(), "versions": versions()}
        print(json.dumps(result))
        return
    for one in found:
        mark = "right" if one["said"] == one["expected"] else f"WRONG, right is {one['expected']}"
        print(f"({one['case']}) seed {one['seed']}: {', then '.join(one['said'])}; {mark}; {one['scores']}")
    print(f"{right} of {len(found)} right")


if __name__ == "__main__":
    main()
