"""Train the same model, rows, LoRA and steps with the TRL command line and with Shoestring, side by side.

    python -m bench.train_speed [--rows 320] [--model shoestring-3m] [--json]

Both run in processes of their own, one after the other. Throughput counts example tokens (padding excluded) over
the training loop alone; wall_s is the whole process, imports and loading included. cpu_s is the processor time of
that process: on a machine shared with others it says more than the clock. Held-out losses of both adapters are
computed by one piece of code on the same base.

vs_default: TRL as `trl sft` comes (8 rows a step, float32 base under bfloat16 autocast, gradient
checkpointing), with --use_cpu, without which it refuses to start on a CPU.
vs_best: TRL with what helps it on a CPU (16-bit base, no checkpointing, 32 rows a step, rows grouped by length).
Packing and padding-free need a FlashAttention kernel, which a CPU lacks; without one rows would see each other.
Each time Shoestring takes the same number of optimizer steps over the same rows.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import EXAMPLES, machine, versions
from shoestring.records import Device, Example, Message, TrainSettings

ROOT = Path(__file__).resolve().parents[1]
LORA_RANK, LORA_ALPHA, LEARNING_RATE, WARMUP_FRAC = 16, 32, 2e-3, 0.05
MICRO_BATCH_TOKENS = 8192
HELD_OUT_ROWS = 200
MODES: dict[str, dict[str, Any]] = {
    "vs_default": {"rows_per_step": 8, "trl": []},
    "vs_best": {
        "rows_per_step": 32,
        "trl": [
            "--dtype",
            "DTYPE",
            "--gradient_checkpointing",
            "False",
            "--train_sampling_strategy",
            "group_by_length",
        ],
    },
}


def data(num_rows: int) -> tuple[str, list[tuple[str, str]], list[tuple[str, str]]]:
    """Name, training and held-out (prompt, answer) rows, evenly spaced over banking77."""
    found = []
    for name, wanted in (("train", num_rows), ("test", HELD_OUT_ROWS)):
        with gzip.open(EXAMPLES / "banking77" / f"{name}.csv.gz", "rt", newline="") as file:
            rows = [(row["text"], row["category"]) for row in csv.DictReader(file)]
        stride = max(1, len(rows) // wanted)
        found.append(rows[::stride][:wanted])
    return "banking77", found[0], found[1]


def examples(rows: list[tuple[str, str]]) -> list[Example]:
    return [Example((Message("user", p), Message("assistant", a)), (1, 2), "bench", i) for i, (p, a) in enumerate(rows)]


# ---------------------------------------------------------------- ours


def matched_batch_tokens(lengths: list[int], num_epochs: float, num_steps: int) -> int:
    """The step budget with which the schedule has num_steps steps, or as close as it gets."""
    from shoestring.train.loss import ROUND_WIDTH
    from shoestring.train.schedule import build_schedule

    def steps_at(budget: int) -> int:
        return len(build_schedule(lengths, num_epochs, budget, MICRO_BATCH_TOKENS, 0, ROUND_WIDTH).steps)

    middle = sum(lengths) * num_epochs / num_steps
    candidates = [max(1, int(middle * factor / 100)) for factor in range(85, 150)]
    return min(candidates, key=lambda budget: (abs(steps_at(budget) - num_steps), budget))


def worker(job: dict[str, Any]) -> None:
    """One Shoestring training, as a user would run it."""
    from shoestring.train.base import detect_device, load_tokenizer
    from shoestring.train.tokens import encode_example
    from shoestring.train.trainer import train_rung

    rows = examples(job["rows"])
    tokenizer = load_tokenizer(job["model"])
    lengths = [len(encode_example(tokenizer, row).ids) for row in rows]
    batch_tokens = matched_batch_tokens(lengths, 1, job["num_steps"])
    settings = TrainSettings(
        method="lora", lora_rank=LORA_RANK, lora_alpha=LORA_ALPHA, learning_rate=LEARNING_RATE, num_epochs=1,
        batch_tokens=batch_tokens, micro_batch_tokens=MICRO_BATCH_TOKENS, seq_len=1024, warmup_frac=WARMUP_FRAC,
        weight_decay=0.0, max_grad_norm=1.0, num_evals=1, patience=1, num_threads=job["threads"], seed=0,
        max_new_tokens=16, reasons={},
    )  # fmt: skip
    out_dir = Path(job["out_dir"])
    result = train_rung(
        model=job["model"], train=rows, dev=[], out_dir=out_dir, settings=settings,
        device=detect_device(job["threads"]), dev_metric=lambda model, tok: 0.0,
    )  # fmt: skip
    lines = [json.loads(line) for line in (out_dir / "steps.jsonl").read_text().splitlines()]
    first_s = lines[0]["num_tokens"] / lines[0]["tokens_per_s"]
    loop_s = lines[-1]["wall_s"] - lines[0]["wall_s"] + first_s
    facts = {
        "train_s": loop_s,
        "num_steps": result.num_steps,
        "num_example_tokens": result.num_train_tokens,
        "padding_frac": 1 - result.num_train_tokens / result.num_computed_tokens,
        "batch_tokens": batch_tokens,
        "loss_path": result.settings["loss_path"],
        "attention": result.settings["attention"],
        "base_dtype": result.settings["dtype"],
    }
    (out_dir / "facts.json").write_text(json.dumps(facts))


def run_ours(folder: Path, model: str, rows: list[tuple[str, str]], num_steps: int, threads: int) -> dict[str, Any]:
    job = {"model": model, "rows": rows, "num_steps": num_steps, "threads": threads, "out_dir": str(folder)}
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(job))
    wall_s, cpu_s, _ = timed([sys.executable, "-m", "bench.train_speed", "--worker", str(folder / "job.json")], threads)
    facts = json.loads((folder / "facts.json").read_text())
    return {**facts, "wall_s": wall_s, "cpu_s": cpu_s, "adapter": str(folder / "adapter")}


# ---------------------------------------------------------------- theirs


def run_trl(
    folder: Path,
    model: str,
    rows: list[tuple[str, str]],
    rows_per_step: int,
    flags: list[str],
    threads: int,
    device: Device,
) -> dict[str, Any]:
    from shoestring.train.base import resolve_model

    trl = shutil.which("trl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if trl is None:
        raise SystemExit("the TRL command line is not installed: pip install 'shoestring[bench]'")
    (folder / "data").mkdir(parents=True)
    with (folder / "data" / "train.jsonl").open("w") as file:
        for prompt, answer in rows:
            turns = {
                "prompt": [{"role": "user", "content": prompt}],
                "completion": [{"role": "assistant", "content": answer}],
            }
            file.write(json.dumps(turns) + "\n")
    num_steps = math.ceil(len(rows) / rows_per_step)
    given = {
        "model_name_or_path": resolve_model(model), "dataset_name": str(folder / "data"),
        "output_dir": str(folder / "out"),
        "use_peft": "True", "lora_r": LORA_RANK, "lora_alpha": LORA_ALPHA, "lora_dropout": 0.0,
        "lora_target_modules": "all-linear", "learning_rate": LEARNING_RATE, "lr_scheduler_type": "cosine",
        "warmup_steps": math.ceil(WARMUP_FRAC * num_steps), "num_train_epochs": 1, "report_to": "none",
        "use_cpu": device.kind == "cpu", "save_strategy": "no", "disable_tqdm": "True",
        "per_device_train_batch_size": rows_per_step,
    }  # fmt: skip
    extra = [device.dtype if flag == "DTYPE" else flag for flag in flags]
    command = [trl, "sft", *(str(part) for key, value in given.items() for part in (f"--{key}", value)), *extra]
    wall_s, cpu_s, printed = timed(command, threads)
    runtime = re.search(r"'?train_runtime'?: '?([0-9.e+-]+)", printed)
    if runtime is None:
        raise SystemExit(f"TRL printed no train_runtime; its last words:\n{printed[-2000:]}")
    return {
        "train_s": float(runtime[1]),
        "num_steps": num_steps,
        "rows_per_step": rows_per_step,
        "flags": extra,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "adapter": str(folder / "out"),
    }


# ---------------------------------------------------------------- both


def timed(command: list[str], threads: int) -> tuple[float, float, str]:
    """Run to the end: wall seconds, processor seconds, what it printed."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    }  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command[:4])} ... failed:\n{done.stderr[-3000:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall_s, cpu_s, done.stdout + done.stderr


def held_out_loss(model: str, adapter: str, rows: list[tuple[str, str]]) -> float:
    """Mean loss an answer token, in float32, of base + adapter."""
    import dataclasses

    from peft import PeftModel

    from shoestring.train.base import detect_device, load_base, load_tokenizer, quiet_loading
    from shoestring.train.objective import Objective
    from shoestring.train.tokens import encode_example

    tokenizer = load_tokenizer(model)
    with quiet_loading():
        base = load_base(model, device=dataclasses.replace(detect_device(), dtype="float32"))
        tuned = PeftModel.from_pretrained(base, adapter).eval()
    items = [(encode_example(tokenizer, example),) for example in examples(rows)]
    return Objective(items, tokenizer.pad_token_id).mean_loss(tuned, batch_tokens=MICRO_BATCH_TOKENS)


def measure(model: str, num_rows: int, threads: int) -> dict[str, Any]:
    from shoestring.train.base import detect_device

    name, rows, held_out = data(num_rows)
    device = detect_device(threads)
    ours: dict[str, Any] = {}
    trl: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="shoestring-speed-") as place:
        for mode, options in MODES.items():
            theirs = run_trl(
                Path(place) / f"trl-{mode}", model, rows, options["rows_per_step"], options["trl"], threads, device
            )
            mine = run_ours(Path(place) / f"ours-{mode}", model, rows, theirs["num_steps"], threads)
            for run in (theirs, mine):
                run["example_tokens_per_s"] = mine["num_example_tokens"] / run["train_s"]
                run["held_out_loss"] = held_out_loss(model, run.pop("adapter"), held_out)
            ours[mode], trl[mode] = mine, theirs
    plain = {mode: ours[mode]["example_tokens_per_s"] / trl[mode]["example_tokens_per_s"] for mode in MODES}
    return {
        "measured": f"one epoch of LoRA r={LORA_RANK} on all linear layers of {model}, {len(rows)} rows of {name}, "
        f"completion-only loss, {threads} thread(s)",
        "ours": ours,
        "trl": trl,
        "ratio": plain["vs_default"],
        "scenarios": {"plain": plain},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--model", default="shoestring-3m")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(json.loads(Path(options.worker).read_text()))
        return
    result = {**measure(options.model, options.rows, options.threads), "versions": versions(), "machine": machine()}
    if options.json:
        print(json.dumps(result))
        return
    print(result["measured"])
    print(f"{'':24}{'example tokens/s':>18}{'train s':>10}{'wall s':>10}{'cpu s':>10}{'held-out loss':>16}")
    for mode in MODES:
        for who, run in (("trl", result["trl"][mode]), ("shoestring", result["ours"][mode])):
            numbers = f"{run['train_s']:>10.1f}{run['wall_s']:>10.1f}{run['cpu_s']:>10.1f}{run['held_out_loss']:>16.3f}"
            print(f"{mode + ' ' + who:24}{run['example_tokens_per_s']:>18.0f}{numbers}")
        print(f"{mode} ratio: {result['scenarios']['plain'][mode]:.2f}")


if __name__ == "__main__":
    main()
