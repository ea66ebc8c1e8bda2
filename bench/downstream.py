"""Does dropping suspect rows help? Train on E2E dev, curated, raw and random, and count slot errors on the test set.

    python -m bench.downstream [--model shoestring-1m] [--epochs 8] [--seeds 0] [--test-rows 300] [--json]

Task: meaning representation to text. `curated` is what is left after dropping every row that
`shoestring.data.wrong.wrong_rows` lists, as a user might decide in review.csv; no test row has a say in it.
`random` is as many tokens of rows drawn from all of them; `raw` is all rows, for as many fewer epochs. So every
arm trains on the same number of tokens. `repaired` (--repaired) is the repairers' own cleaned rows, the ceiling.
Each arm is a run file, trained by shoestring.Run. Slot errors (missing, wrong and invented values, over the values
stated) are counted on unique records of the cleaned test set by the rules below, which know this task and share no
code with the curation. Names are X and Y for training and put back before counting, in every arm alike, as is usual
on this set (Dusek et al., W19-8652): a model of a million parameters spends itself on spelling them. Data: E2E NLG and
its cleaning (CC BY-SA 4.0), see /work/shared/data/README.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from bench import machine, versions
from shoestring import Run
from shoestring.data.wrong import wrong_rows
from shoestring.files import write_jsonl
from shoestring.records import Example, Message

DATA = Path("/work/shared/data/e2e_nlg")
SLOT = re.compile(r"([A-Za-z ]+)\[([^\]]*)\]")
Row = tuple[str, str]  # record, text
MAX_NEW_TOKENS = 96
SIGNS = {"name": "X", "near": "Y"}

RATED = "rat(?:ed|ing|ings)(?: of| is| as)?"
LEVELS = {
    "priceRange": (
        r"cheap|inexpensive|affordable|low(er|ly)?[- ](price|cost)|price range is (low|cheap)"
        r"|(less|lower|under|below)[a-z ]*£ ?20",
        r"moderate(ly)?|mid[- ](price|range)|average(ly)? price|reasonabl|£ ?20 ?(-|to) ?£? ?25",
        r"expensive|pricey|upscale|high(er|ly)?[- ](price|cost)|prices? (range )?(is|are) high"
        r"|(more|over|above)[a-z ]*£ ?30",
    ),
    "customer rating": (
        rf"(low|poor|bad)(ly)?[- ](customers? )?(rat|review)|{RATED} (low|poor)|(\b1|\bone)[- ](out of|star)",
        rf"average[- ](customers? )?(rat|review)|{RATED} average|(\b3|\bthree)[- ](out of|star)",
        r"(high|highly|great|excellent|good|top)[- ](customers? )?(rat|review)"
        rf"|{RATED} (high|excellent)|(\b5|\bfive)[- ](out of|star)",
    ),
}
LEVEL_OF = {
    "cheap": 0, "less than £20": 0, "moderate": 1, "£20-25": 1, "high": 2, "more than £30": 2,
    "low": 0, "1 out of 5": 0, "average": 1, "3 out of 5": 1, "5 out of 5": 2,
}  # fmt: skip
FOODS = {
    "Chinese": "chinese", "English": "english|british", "French": "french", "Fast food": "fast[- ]food|burgers",
    "Indian": r"indian(?! cuisine,? (in|is|at|near))", "Italian": "italian|pasta", "Japanese": "japanese|sushi",
}  # fmt: skip
EAT_TYPES = {"coffee shop": "coffee", "pub": r"\bpubs?\b", "restaurant": r"\brestaurants?\b"}
AREAS = {
    "riverside": r"river",
    "city centre": r"(city|town)('s)? cent(re|er)|cent(re|er) of (the )?(city|town)|downtown",
}
FRIENDLY = r"(famil|kid|child)[a-z]*"
UNFRIENDLY = (
    rf"(not|n't|no|non|isn't|nor)[- ]+(a |be |for |very |suitable for |allow |recommended for )*{FRIENDLY}"
    rf"|{FRIENDLY}[- ](friendly[- ])?(is |are )?(not|un)|adults?[- ]only|{FRIENDLY}[- ]free|unsuitable for {FRIENDLY}"
)


def parse(record: str) -> dict[str, str]:
    return {key.strip(): value for key, value in SLOT.findall(record)}


def said(text: str, record: dict[str, str]) -> dict[str, set[str]]:
    """Slot -> values the text states, by this task's rules; names and places only where the record has them."""
    low = text.lower().replace("’", "'")
    for key in ("near", "name"):  # Raja Indian Cuisine is no food
        value = record.get(key, "").lower()
        if value:
            low = low.replace(value, f"<{key}>")
    found = {"name": {record["name"]} if "<name>" in low else set()}
    found["near"] = {record["near"]} if "near" in record and "<near>" in low else set()
    for key, patterns in (("food", FOODS), ("eatType", EAT_TYPES), ("area", AREAS)):
        found[key] = {value for value, pattern in patterns.items() if re.search(pattern, low)}
    for key, levels in LEVELS.items():
        found[key] = {str(level) for level, pattern in enumerate(levels) if re.search(pattern, low)}
    friendly = {"no"} if re.search(UNFRIENDLY, low) else {"yes"} if re.search(FRIENDLY, low) else set()
    return {**found, "familyFriendly": friendly}


def slot_errors(record: str, text: str) -> dict[str, int]:
    """Missing values, wrong or invented ones, and the number of values stated."""
    stated = parse(record)
    count = {"missing": 0, "wrong": 0, "invented": 0, "stated": len(stated)}
    for key, values in said(text, stated).items():
        own = stated.get(key)
        if own is not None and key in LEVELS:
            own = str(LEVEL_OF[own])
        if own is None:
            count["invented"] += bool(values)
        elif own not in values:
            count["wrong" if values else "missing"] += 1
        elif values - {own}:
            count["wrong"] += 1
    return count


def read(name: str, record: str) -> list[Row]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return [(row[record], row["ref"]) for row in csv.DictReader(file)]


def without_names(row: Row) -> Row:
    """The row with the values of name and near as X and Y."""
    stated = parse(row[0])
    for key, sign in SIGNS.items():
        if key in stated:
            spelt = re.compile(re.escape(stated[key]), re.IGNORECASE)
            row = (spelt.sub(sign, row[0]), spelt.sub(sign, row[1]))
    return row


def with_names(record: str, text: str) -> str:
    stated = parse(record)
    for key, sign in SIGNS.items():
        text = re.sub(rf"\b{sign}\b", stated.get(key, sign).replace("\\", r"\\"), text)
    return text


def example(row: Row) -> Example:
    return Example((Message("user", row[0]), Message("assistant", row[1])), (1, 2))


def num_tokens(rows: list[Row], model: str) -> list[int]:
    from shoestring.train.base import load_tokenizer
    from shoestring.train.tokens import encode_example

    tokenizer = load_tokenizer(model)
    return [len(encode_example(tokenizer, example(row)).ids) for row in rows]


def arms(model: str, seed: int, epochs: float, with_repaired: bool) -> tuple[dict[str, tuple[list[Row], float]], Any]:
    """Arm -> (rows, epochs), and how the arms were made."""
    rows = read("devel-fixed.no-ol.csv", "orig_mr")
    repaired = read("devel-fixed.no-ol.csv", "mr")
    started = time.monotonic()
    flagged = {suspect.index for suspect in wrong_rows([example(row) for row in rows], kind="generate", seed=0)}
    curation_s = time.monotonic() - started
    sizes = num_tokens([without_names(row) for row in rows], model)
    kept = [i for i in range(len(rows)) if i not in flagged]
    budget_tokens = sum(sizes[i] for i in kept)
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    drawn, total = [], 0
    for i in order:
        if total + sizes[i] <= budget_tokens:
            drawn.append(i)
            total += sizes[i]
    made = {
        "curated": ([rows[i] for i in kept], epochs),
        "random": ([rows[i] for i in drawn], epochs),
        "raw": (rows, epochs * budget_tokens / sum(sizes)),
    }
    if with_repaired:
        made["repaired"] = ([repaired[i] for i in drawn], epochs)
    made = {name: ([without_names(row) for row in chosen], num) for name, (chosen, num) in made.items()}
    facts = {"rows": len(rows), "flagged_frac": len(flagged) / len(rows), "curation_s": curation_s}
    return made, {**facts, "train_tokens_per_epoch": budget_tokens, "num_epochs": epochs}


def train(
    folder: Path, name: str, rows: list[Row], epochs: float, model: str, seed: int, threads: int
) -> tuple[Path, dict[str, Any]]:
    """Adapter folder, and steps, seconds and tokens of the training."""
    write_jsonl(folder / f"{name}.jsonl", [{"prompt": record, "completion": text} for record, text in rows])
    config = {
        "name": name,
        "task": {"kind": "generate", "bar": 1.0},
        "data": {"train": f"{name}.jsonl"},
        "models": model,
        "seed": seed,
        "curate": {"contradictions": "keep", "drop_duplicates": False, "eval_rows": 20},
        "decide": {"arms": [], "train_anyway": True},
        "train": {"num_epochs": epochs, "num_evals": 1, "num_threads": threads},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    run = Run.from_file(path, runs_dir=folder / "runs")
    run.execute(until="train")
    (record,) = run.folder.glob("rungs/*/train.json")
    result = json.loads(record.read_text())["result"]
    return run.folder / result["adapter_dir"], {key: result[key] for key in ("num_steps", "wall_s", "num_train_tokens")}


def score(model: str, adapter: Path, records: list[str], threads: int) -> dict[str, Any]:
    from shoestring.evaluate.generation import load_generator
    from shoestring.train.base import detect_device

    generator = load_generator(model, adapter, device=detect_device(threads), max_new_tokens=MAX_NEW_TOKENS)
    asked = [(Message("user", without_names((record, ""))[0]),) for record in records]
    outputs = [with_names(record, c.text) for record, c in zip(records, generator.generate(asked), strict=True)]
    generator.close()
    total: Counter[str] = Counter()
    for record, text in zip(records, outputs, strict=True):
        total.update(slot_errors(record, text))
    errors = {kind: total[kind] / total["stated"] for kind in ("missing", "wrong", "invented")}
    return {"slot_error_frac": sum(errors.values()), **errors, "shown": outputs[:3]}


def measure(
    model: str, epochs: float, seeds: list[int], num_test: int, with_repaired: bool, threads: int
) -> dict[str, Any]:
    records = sorted({record for record, _ in read("test-fixed.csv", "mr")})
    random.Random(0).shuffle(records)
    records = records[:num_test]
    results: dict[str, list[dict[str, Any]]] = {}
    facts: dict[str, Any] = {}
    for seed in seeds:
        made, facts = arms(model, seed, epochs, with_repaired)
        for name, (rows, num_epochs) in made.items():
            with tempfile.TemporaryDirectory(prefix="shoestring-downstream-") as place:
                adapter, run = train(Path(place), name, rows, num_epochs, model, seed, threads)
                found = {"seed": seed, "rows": len(rows), **run, **score(model, adapter, records, threads)}
            results.setdefault(name, []).append(found)
            print(f"seed {seed} {name}: {found}", file=sys.stderr, flush=True)
    mean = {name: sum(r["slot_error_frac"] for r in runs) / len(runs) for name, runs in results.items()}
    return {
        "measured": f"share of slots missing, wrong or invented on {len(records)} cleaned E2E test records, {model}",
        **facts,
        "arms": results,
        "slot_error_frac": mean,
        "gain_over_random_frac": 1 - mean["curated"] / mean["random"],
        "gain_over_raw_frac": 1 - mean["curated"] / mean["raw"],
        "never_below_random": all(
            ours["slot_error_frac"] <= theirs["slot_error_frac"]
            for ours, theirs in zip(results["curated"], results["random"], strict=True)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="shoestring-1m")
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--test-rows", type=int, default=300)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repaired", action="store_true", help="the cleaned rows as one more arm: the ceiling")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.model, options.epochs, options.seeds, options.test_rows, options.repaired, options.threads)
    result = {**result, "versions": versions(), "machine": machine()}
    if options.json:
        print(json.dumps(result))
        return
    print(result["measured"])
    for name, frac in result["slot_error_frac"].items():
        print(f"{name:10}{100 * frac:8.1f} %")
    print(f"curated against random: {100 * result['gain_over_random_frac']:.0f} % fewer slot errors")


if __name__ == "__main__":
    main()
