"""Train the same model, rows, LoRA and steps with TRL and with Shoestring, side by side.

    python -m bench.train_speed [--scenario shared_prompt dpo plain no_sharing memory] [--model shoestring-3m]
                                [--base bf16] [--seeds 0 1 2] [--toy] [--json]

Each training has a process of its own; a peer and ours run one right after the other, seed by seed. Throughput is
example tokens (tokens of the rows as given; of a pair both answers with their prompt), over the optimizer steps alone,
by the clock and by processor time: on a machine shared with others the second says more. wall_s is the whole process.
Peak memory is the largest resident size of that process (VmHWM). Held-out losses of all adapters are computed by one
piece of code, in float32, on the same base.

default: TRL as it comes (8 rows a step, float32 base under bfloat16 autocast, gradient checkpointing), but on the CPU.
best: TRL with what helps it on a CPU (16-bit base, no checkpointing, 32 rows a step), whichever is fastest at the first
seed of BEST: rows padded and grouped by length; padding-free, where transformers' SDPA masks keep the rows apart by
their positions (TRL's own advice to use FlashAttention notwithstanding); each of both in four parts. TRL 1.16 runs the
head in chunks and at loss tokens by itself.
Each time Shoestring takes the same number of optimizer steps over the same rows.

memory: peaks at equal micro-batches, and what the loss takes of a model with a vocabulary of 152k.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import machine, shapes, versions, workloads
from bench.arms import Arm, import_everything, num_tokens, run_arm, say
from bench.workloads import Workload
from shoestring.units import round_up

QUICK = {"gradient_checkpointing": False}
PADDED = {**QUICK, "train_sampling_strategy": "group_by_length"}
UNPADDED = {**QUICK, "padding_free": True, "max_length": None}
# Settings of TRL that were found to help on a CPU; rows: part of a step that is run at once.
BEST: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {
        "padded": PADDED, "padded in 4": {**PADDED, "parts": 4},
        "padding-free": UNPADDED, "padding-free in 4": {**UNPADDED, "parts": 4},
    },
    "dpo": {"at once": QUICK, "in 4": {**QUICK, "parts": 4}},
}  # fmt: skip
MODES = ("default", "best")
ROWS_PER_STEP = {"default": {"sft": 8, "dpo": 8}, "best": {"sft": 32, "dpo": 16}}
GOALS = {  # example tokens a second, ours over TRL's
    "shared_prompt": {"default": 5.0, "best": 4.0},
    "dpo": {"default": 1.7, "best": 1.7},
    "plain": {"default": 2.0, "best": 1.3},
    "no_sharing": {"best": 0.97},
}
# Training rows: enough steps for losses to be compared, few enough for a CPU.
NUM_ROWS = {
    "shoestring-3m": {"shared_prompt": 256, "dpo": 128, "plain": 640, "no_sharing": 96},
    "random-100m": {"shared_prompt": 64, "dpo": 32, "plain": 256, "no_sharing": 32},
    "random-toy": {"shared_prompt": 8, "dpo": 4, "plain": 8, "no_sharing": 4},
}
NUM_HELD_OUT = {"shoestring-3m": 100, "random-100m": 40, "random-toy": 4}
DENSE_MASK_TOKENS = 4096  # a step of more is not tried padding-free at once: attention takes its square
# A step of more is not tried at once at all on the 104M model: without checkpointing TRL was killed above 15 GB.
AT_ONCE_TOKENS = {"random-100m": 8192}


@dataclass(frozen=True)
class Place:
    """Where and how arms run."""

    folder: Path
    threads: int
    forked: bool


def run(arm: Arm, workload: Workload, place: Place, *, held_out: bool = True) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=place.folder) as folder:
        rows = workload.held_out if held_out else []
        facts = run_arm(arm, workload.train, Path(folder) / "arm", held_out=rows, forked=place.forked)
    say(f"{workload.name} {arm.trainer} seed {arm.seed}: {facts['train_s']:.1f} s, {facts['train_cpu_s']:.1f} cpu s")
    return facts


def peer_arm(arm: Arm, config: dict[str, Any]) -> Arm:
    """TRL with these settings; parts splits a step."""
    given = dict(config)
    parts = given.pop("parts", 1)
    if parts > 1:
        given |= {"per_device_train_batch_size": arm.rows_per_step // parts, "gradient_accumulation_steps": parts}
    return replace(arm, trainer="trl", config=given)


# ---------------------------------------------------------------- speed


def compare(workload: Workload, arm: Arm, seeds: Sequence[int], modes: Sequence[str], place: Place) -> dict[str, Any]:
    """Each mode: every run, ratios of throughput (median over seeds) and the held-out losses beside each other."""
    from shoestring.train.tokens import load_tokenizer

    tokenizer = load_tokenizer(arm.model)
    total = sum(num_tokens(tokenizer, row) for row in workload.train)
    found: dict[str, Any] = {"says": workload.says, "num_rows": len(workload.train), "num_example_tokens": total}
    for mode in modes:
        at = replace(arm, rows_per_step=ROWS_PER_STEP[mode][workload.objective])
        if mode == "best":
            at = replace(at, model_dtype="bfloat16")
        configs = BEST[workload.objective] if mode == "best" else {"as it comes": {}}
        step_tokens = at.rows_per_step * total / len(workload.train)
        if step_tokens > DENSE_MASK_TOKENS:
            configs = {name: config for name, config in configs.items() if name != "padding-free"}
        if mode == "best" and step_tokens > AT_ONCE_TOKENS.get(Path(arm.model).name, math.inf):
            configs = {name: config for name, config in configs.items() if "parts" in config}
        found[mode] = compare_mode(workload, at, configs, seeds, place)
        for who in ("trl", "ours"):
            for facts in found[mode][who]:
                facts["example_tokens_per_s"] = total / facts["train_s"]
                facts["example_tokens_per_cpu_s"] = total / facts["train_cpu_s"]
        found[mode]["goal"] = GOALS[workload.name].get(mode)
    return found


def compare_mode(
    workload: Workload, arm: Arm, configs: dict[str, dict[str, Any]], seeds: Sequence[int], place: Place
) -> dict[str, Any]:
    trl, ours, tried = [], [], {}
    for seed in seeds:
        arm = replace(arm, seed=seed)
        runs = {name: run(peer_arm(arm, config), workload, place) for name, config in configs.items()}
        ours.append(run(arm, workload, place))
        name = min(runs, key=lambda name: runs[name]["train_cpu_s"])
        trl.append(runs[name])
        if seed == seeds[0]:
            tried = {name: facts["train_cpu_s"] for name, facts in runs.items()}
            configs = {name: configs[name]}
    steps = {facts["num_steps"] for facts in (*trl, *ours)}
    return {
        "trl": trl,
        "ours": ours,
        "trl_settings": next(iter(configs)),
        "trl_cpu_s_of": tried,
        "num_steps": sorted(steps),
        "ratio_wall": median_ratio(trl, ours, "train_s"),
        "ratio_cpu": median_ratio(trl, ours, "train_cpu_s"),
        "ratio_peak_bytes": 1 / median_ratio(trl, ours, "peak_bytes"),
        "held_out": beside([f["held_out_loss"] for f in trl], [f["held_out_loss"] for f in ours]),
    }


def median_ratio(trl: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]], name: str) -> float:
    """Median over seeds of theirs over ours."""
    return statistics.median(theirs[name] / mine[name] for theirs, mine in zip(trl, ours, strict=True))


def beside(trl: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """Means and standard deviations over seeds; whether the means differ by less than two standard errors."""
    found: dict[str, Any] = {"trl": list(trl), "ours": list(ours)}
    means = [statistics.fmean(losses) for losses in (trl, ours)]
    found |= {"trl_mean": means[0], "ours_mean": means[1]}
    if len(trl) < 2:
        return {**found, "verdict": "one seed: no spread"}
    spreads = [statistics.stdev(losses) for losses in (trl, ours)]
    error = math.sqrt(sum(s * s for s in spreads) / len(trl))
    difference = means[1] - means[0]
    verdict = (
        "agree within noise" if abs(difference) <= 2 * error else "ours is " + ("higher" if difference > 0 else "lower")
    )
    return {**found, "trl_sd": spreads[0], "ours_sd": spreads[1], "standard_error": error, "verdict": verdict}


# ---------------------------------------------------------------- memory


def memory(arm: Arm, sizes: dict[str, int], toy: bool, place: Place) -> dict[str, Any]:
    """Bytes above what was resident when training began, at equal micro-batches and for a large vocabulary."""
    found: dict[str, Any] = {"loss": loss_memory(replace(arm, base="bf16"), 1 if toy else 4, place)}
    found["equal_micro_batch"] = {}
    for name in ("plain", "no_sharing", "shared_prompt", "dpo"):
        rows = min(sizes[name], 16 if name == "dpo" else 32)
        workload = workloads.build(name, rows, 0)
        at = replace(arm, objective=workload.objective, rows_per_step=rows, model_dtype="bfloat16")
        at = replace(at, micro_batch_tokens=whole_step_tokens(at.model, workload), learning_rate=workload.learning_rate)
        runs = {
            "trl padded": run(peer_arm(at, QUICK), workload, place, held_out=False),
            "ours": run(at, workload, place, held_out=False),
        }
        if name == "plain":  # of longer rows the dense mask alone would take gigabytes
            runs["trl padding-free"] = run(peer_arm(at, UNPADDED), workload, place, held_out=False)
        found["equal_micro_batch"][name] = {who: peaks(facts) for who, facts in runs.items()}
    return found


def peaks(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: facts[key] for key in ("peak_bytes", "train_peak_bytes", "training_bytes", "train_s", "settings")}


def whole_step_tokens(model: str, workload: Workload) -> int:
    """A micro-batch budget in which all the rows find room, padded."""
    from shoestring.train.tokens import load_tokenizer

    tokenizer = load_tokenizer(model)
    return len(workload.train) * round_up(max(num_tokens(tokenizer, row) for row in workload.train) + 16, 16)


def loss_memory(arm: Arm, rows: int, place: Place) -> dict[str, Any]:
    """Training memory with a vocabulary of 152k less that of the same body with 4k: what the loss takes.

    Answers of about 500 tokens, so that skipping the prompt is not what saves. The larger head's weights are taken off.
    """
    workload = workloads.build("no_sharing", 2 * rows, 0)
    wide, narrow = "random-wide-vocabulary", "random-narrow-vocabulary"
    weights = (
        2
        * shapes.SHAPES[wide]["hidden_size"]
        * (shapes.SHAPES[wide]["vocab_size"] - shapes.SHAPES[narrow]["vocab_size"])
    )
    found: dict[str, Any] = {"micro_batch_rows": rows, "weights_bytes": weights}
    for trainer in ("stock", "trl", "ours"):
        used = []
        for name in (wide, narrow):
            model = shapes.model_folder(name)
            at = replace(
                arm, trainer=trainer, model=model, objective="sft", rows_per_step=rows, learning_rate=1e-3,
                model_dtype="bfloat16", micro_batch_tokens=whole_step_tokens(model, workload),
                config={} if trainer == "ours" else QUICK,
            )  # fmt: skip
            used.append(run(at, workload, place, held_out=False))
        found[trainer] = {
            "loss_bytes": used[0]["train_peak_bytes"] - used[1]["train_peak_bytes"] - weights,
            "loss_bytes_before_training_too": used[0]["peak_bytes"] - used[1]["peak_bytes"] - weights,
            "wide": peaks(used[0]),
            "narrow": peaks(used[1]),
        }
    for peer in ("stock", "trl"):
        found[f"ours_over_{peer}"] = found["ours"]["loss_bytes"] / found[peer]["loss_bytes"]
    return found


# ---------------------------------------------------------------- output


def report(result: dict[str, Any]) -> None:
    print(result["measured"])
    for name, found in result["scenarios"].items():
        if name == "memory":
            report_memory(found)
            continue
        print(f"\n{name}: {found['says']}; {found['num_rows']} rows, {found['num_example_tokens']} example tokens")
        print(
            f"{'':22}{'tokens/s':>10}{'tokens/cpu s':>14}{'train s':>9}{'wall s':>8}{'peak MB':>9}{'held-out loss':>22}"
        )
        for mode in (mode for mode in MODES if mode in found):
            at = found[mode]
            for who in ("trl", "ours"):
                runs, losses = at[who], at["held_out"]
                middle = {key: statistics.median(r[key] for r in runs) for key in runs[0] if key in COLUMNS}
                loss = f"{losses[who + '_mean']:.4f} ± {losses.get(who + '_sd', math.nan):.4f}"
                print(
                    f"{mode + ' ' + who:22}{middle['example_tokens_per_s']:>10.0f}"
                    f"{middle['example_tokens_per_cpu_s']:>14.0f}{middle['train_s']:>9.1f}{middle['wall_s']:>8.1f}"
                    f"{middle['peak_bytes'] / 1e6:>9.0f}{loss:>22}"
                )
            goal = f", goal {at['goal']}" if at["goal"] else ""
            print(
                f"  ratio {at['ratio_wall']:.2f} by the clock, {at['ratio_cpu']:.2f} by processor time{goal}; "
                f"peak {at['ratio_peak_bytes']:.2f}; TRL {at['trl_settings']}; held-out losses: "
                f"{at['held_out']['verdict']}"
            )


COLUMNS = ("example_tokens_per_s", "example_tokens_per_cpu_s", "train_s", "wall_s", "peak_bytes")


def report_memory(found: dict[str, Any]) -> None:
    print("\nmemory at equal micro-batches, MB: peak of the process (above what was resident when training began)")
    for name, runs in found["equal_micro_batch"].items():
        cells = (f"{who} {r['peak_bytes'] / 1e6:.0f} (+{r['training_bytes'] / 1e6:.0f})" for who, r in runs.items())
        print(f"  {name}: {', '.join(cells)}")
    loss = found["loss"]
    cells = (f"{who} {loss[who]['loss_bytes'] / 1e6:.0f}" for who in ("stock", "trl", "ours"))
    print(f"loss with a vocabulary of 152k, MB: {', '.join(cells)}; ours over stock {loss['ours_over_stock']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--scenario", nargs="+", choices=[*workloads.SCENARIOS, "memory"], default=[*workloads.SCENARIOS]
    )
    parser.add_argument("--model", default="shoestring-3m", help="shoestring-3m, random-100m, or a model folder")
    parser.add_argument("--base", choices=["bf16", "nf4"], default="bf16")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rows-frac", type=float, default=1.0, help="of the training and held-out rows")
    parser.add_argument(
        "--forked", action="store_true", help="fork each training instead of starting it afresh; quicker"
    )
    parser.add_argument("--toy", action="store_true", help="a tiny model, few rows, one seed, forked: seconds")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.toy:
        options.model, options.seeds, options.forked, options.threads = "random-toy", [0], True, 1
    result = measure(options)
    if options.json:
        print(json.dumps(result))
    else:
        report(result)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    sizes = NUM_ROWS.get(options.model, NUM_ROWS["random-100m"])
    held_out = NUM_HELD_OUT.get(options.model, NUM_HELD_OUT["random-100m"])
    arm = Arm("ours", shapes.model_folder(options.model), options.base, "sft", 0, 0.0, 0, options.threads)
    if options.forked:
        import_everything()
    scenarios: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="shoestring-speed-") as folder:
        place = Place(Path(folder), options.threads, options.forked)
        for name in options.scenario:
            if name == "memory":
                scenarios[name] = memory(arm, sizes, options.toy, place)
                continue
            counts = [max(1, round(count * options.rows_frac)) for count in (sizes[name], held_out)]
            workload = workloads.build(name, *counts)
            at = replace(arm, objective=workload.objective, learning_rate=workload.learning_rate)
            scenarios[name] = compare(workload, at, options.seeds, options.mode, place)
    return {
        "date": datetime.date.today().isoformat(),
        "command": "python -m bench.train_speed " + " ".join(sys.argv[1:]),
        "measured": f"one epoch of LoRA r=16 on all linear layers of {options.model}, base {options.base}, "
        f"loss on answers, {options.threads} thread(s), seeds {options.seeds}",
        "scenarios": scenarios,
        "versions": versions(),
        "machine": machine(),
    }


if __name__ == "__main__":
    main()
