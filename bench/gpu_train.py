"""LoRA on an 8B Llama: tokens a second and peak memory of Shoestring, TRL at its best and Unsloth on one GPU.

    python -m bench.gpu_train [--unsloth-python ENV/bin/python] [--only ours trl] [--toy] [--json]

The model has the shape of Llama-3.1-8B and random weights (written to a cache folder once, 16 GB); LoRA r=16 on all
linear layers. Two scenarios: full, rows of 4,096 tokens, most of which bear loss, nothing to share and nothing to pad;
shared, one system turn of 2,048 tokens over short rows, where tree packing computes the turn once a micro-batch.

Each arm trains in a process of its own. Of several settings the fastest counts, and all are reported: micro-batches
from large to small, for TRL with and without checkpointing, for Unsloth as it comes (every layer recomputes) and with
recomputation off. TRL runs padding-free with FlashAttention 2 and Liger's kernels where those are installed. The first
steps, which compile and tune kernels, do not count. An arm that fails (out of memory, no FP8 on this card) is reported
with its last words; the others go on.

Unsloth caps trl and transformers far below ours: give it an environment of its own (python -m venv ENV;
ENV/bin/pip install unsloth). --toy shows on a CPU, in a minute, that the script runs from end to end.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import machine, shapes, versions, workloads
from bench.arms import Arm, ArmFailed, import_everything, num_tokens, run_arm, say
from bench.workloads import Workload

WARM_STEPS = 2
GOALS = {"ours bf16": 16_000, "ours fp8": 21_000}  # tokens a second on an H200
UNSLOTH_GOAL = 1.3  # ours bf16 over Unsloth as it comes


@dataclass(frozen=True)
class Size:
    """What is trained: tokens of a row (full) and of the shared turn; rows of a step; steps."""

    model: str
    row_tokens: int
    shared_tokens: int
    rows_per_step: int
    num_steps: int


SIZES = {
    False: Size("random-llama-3.1-8b", 4096, 2048, 8, 6),
    True: Size("random-toy", 256, 128, 2, 3),
}
Options = dict[str, dict[str, Any]]  # name of the settings -> changes to the Arm


def our_options(size: Size) -> Options:
    """Micro-batches of half a step and of a quarter."""
    step = size.row_tokens * size.rows_per_step
    return {f"{part} tokens a pass": {"micro_batch_tokens": part} for part in (step // 2, step // 4)}


def trl_options(size: Size) -> Options:
    found: Options = {}
    kernels: dict[str, Any] = {"padding_free": True, "max_length": None} if installed("flash_attn") else {}
    if kernels:
        kernels["model_init_kwargs"] = {"attn_implementation": "flash_attention_2"}
    if installed("liger_kernel"):
        kernels["use_liger_kernel"] = True
    for rows, recomputed in ((4, False), (2, False), (8, True)):
        rows = min(rows, size.rows_per_step)
        config = {
            **kernels, "gradient_checkpointing": recomputed, "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": size.rows_per_step // rows,
        }  # fmt: skip
        found[f"{rows} rows a pass, {'all' if recomputed else 'nothing'} recomputed"] = {"config": config}
    return found


def unsloth_options(size: Size) -> Options:
    found: Options = {}
    for words, recompute in (("as it comes", "unsloth"), ("nothing recomputed", False)):
        rows = min(2, size.rows_per_step)
        config = {
            "use_gradient_checkpointing": recompute, "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": size.rows_per_step // rows,
        }  # fmt: skip
        found[words] = {"config": config}
    return found


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


OPTIONS = {"ours": our_options, "trl": trl_options, "unsloth": unsloth_options}
BASES = {"ours": ("bf16", "fp8", "nf4"), "trl": ("bf16", "nf4"), "unsloth": ("bf16", "fp8", "nf4")}


# ---------------------------------------------------------------- rows


def full(size: Size, tokenizer: Any) -> Workload:
    """Rows of row_tokens, all but a few of which bear loss: snips requests and their JSON, none used twice."""
    wanted = size.rows_per_step * size.num_steps
    lines = iter(f"{request} -> {answer}" for request, answer in workloads.snips("train"))
    rows = []
    for number in range(wanted):
        taken: list[str] = []
        left = size.row_tokens - 24  # the template's tokens and the prompt's
        for line in lines:
            left -= len(tokenizer(line, add_special_tokens=False).input_ids) + 1
            if left < 0:
                break
            taken.append(line)
        rows.append(workloads.example(workloads.Message("user", f"Part {number}."), answer="\n".join(taken)))
    return workloads.numbered(Workload("full", "sft", 1e-4, rows, [], f"rows of {size.row_tokens} tokens"))


def shared(size: Size, tokenizer: Any) -> Workload:
    """banking77 under one system turn of shared_tokens: solved messages."""
    shots: list[str] = []
    left = size.shared_tokens
    for text, label in workloads.spaced(workloads.banking("test"), 500):
        shot = f"{text} -> {label}"
        left -= len(tokenizer(shot, add_special_tokens=False).input_ids) + 1
        if left < 0:
            break
        shots.append(shot)
    turn = workloads.Message("system", "\n".join(shots))
    picked = workloads.spaced(workloads.banking("train"), size.rows_per_step * size.num_steps)
    rows = [workloads.example(turn, workloads.Message("user", text), answer=label) for text, label in picked]
    says = f"one system turn of {size.shared_tokens} tokens over short rows"
    return workloads.numbered(Workload("shared", "sft", 1e-4, rows, [], says))


SCENARIOS = {"full": full, "shared": shared}


# ---------------------------------------------------------------- running


def best_of(arm: Arm, options: Options, workload: Workload, folder: Path, forked: bool, python: str) -> dict[str, Any]:
    """The fastest of the settings, with what each gave; {"failed": ...} where none ran through."""
    from shoestring.train.base import load_tokenizer

    tokenizer = load_tokenizer(arm.model)
    total = sum(num_tokens(tokenizer, row) for row in workload.train)
    found: dict[str, Any] = {}
    for words, changes in options.items():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            try:
                at = replace(arm, **changes)
                facts = run_arm(at, workload.train, Path(place) / "arm", forked=forked, python=python)
            except ArmFailed as error:
                found[words] = {"failed": str(error)}
                say(f"{workload.name} {arm.trainer} {arm.base}, {words}: failed, {str(error).splitlines()[-1]}")
                continue
        found[words] = {**facts, "tokens_per_s": steady_tokens_per_s(facts, total)}
        say(f"{workload.name} {arm.trainer} {arm.base}, {words}: {found[words]['tokens_per_s']:.0f} tokens/s")
    ran = {words: facts for words, facts in found.items() if "failed" not in facts}
    if not ran:
        return {"failed": next(iter(found.values()))["failed"], "tried": found}
    words = max(ran, key=lambda name: ran[name]["tokens_per_s"])
    return {**ran[words], "chosen": words, "tried": found}


def steady_tokens_per_s(facts: dict[str, Any], num_tokens: int) -> float:
    """Example tokens a second over the steps after the first WARM_STEPS; steps have nearly equal tokens."""
    steps = facts["step_s"][min(WARM_STEPS, len(facts["step_s"]) - 1) :]
    return float(num_tokens / len(facts["step_s"]) / statistics.fmean(steps))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from shoestring.train.base import load_tokenizer

    size = SIZES[options.toy]
    model = shapes.model_folder(size.model)
    tokenizer = load_tokenizer(model)
    if options.toy:
        import_everything()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="shoestring-gpu-") as folder:
        for name in options.scenario:
            workload = SCENARIOS[name](size, tokenizer)
            for trainer in options.only:
                for base in BASES[trainer]:
                    if name == "shared" and base != "bf16":
                        continue
                    arm = Arm(
                        trainer, model, base, "sft", size.rows_per_step, workload.learning_rate, 0, options.threads,
                        seq_len=size.row_tokens + size.shared_tokens, model_dtype="bfloat16",
                    )  # fmt: skip
                    key = f"{trainer} {base}"
                    if trainer == "unsloth" and not options.unsloth_python:
                        skipped = {"skipped": "no --unsloth-python: the interpreter of an environment that has Unsloth"}
                        found.setdefault(name, {})[key] = skipped
                        continue
                    wanted = OPTIONS[trainer](size)
                    if options.toy:
                        wanted = dict([next(iter(wanted.items()))])
                    python = options.unsloth_python if trainer == "unsloth" else ""
                    forked = options.toy and trainer != "unsloth"
                    found.setdefault(name, {})[key] = best_of(arm, wanted, workload, Path(folder), forked, python)
    return {
        "date": datetime.date.today().isoformat(),
        "command": "python -m bench.gpu_train " + " ".join(sys.argv[1:]),
        "measured": f"LoRA r=16 on all linear layers of {size.model}, {size.rows_per_step} rows a step",
        "scenarios": found,
        "claims": claims(found),
        "versions": versions(),
        "machine": machine(),
    }


def claims(found: dict[str, Any]) -> dict[str, Any]:
    """What was aimed at beside what was found; None where an arm did not run."""
    speeds = {name: {arm: facts.get("tokens_per_s") for arm, facts in arms.items()} for name, arms in found.items()}
    full_rows = speeds.get("full", {})
    plain = full_rows.get("ours bf16")
    unsloth = found.get("full", {}).get("unsloth bf16", {}).get("tried", {}).get("as it comes", {}).get("tokens_per_s")
    sharing = speeds.get("shared", {}).get("ours bf16")
    made: dict[str, Any] = {
        f"{arm} tokens/s, goal on an H200 {goal}": full_rows.get(arm) for arm, goal in GOALS.items()
    }
    made[f"ours bf16 over Unsloth as it comes, goal {UNSLOTH_GOAL}"] = ratio(plain, unsloth)
    made["ours bf16 over TRL at its best"] = ratio(plain, full_rows.get("trl bf16"))
    made["ours shared over full"] = ratio(sharing, plain)
    made["ours shared over TRL shared"] = ratio(sharing, speeds.get("shared", {}).get("trl bf16"))
    return made


def ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def report(result: dict[str, Any]) -> None:
    print(f"{result['measured']}; {result['machine']['device']}")
    for name, arms in result["scenarios"].items():
        print(f"\n{name}\n{'':16}{'tokens/s':>10}{'peak GB':>10}  settings")
        for arm, facts in arms.items():
            if "tokens_per_s" not in facts:
                print(f"{arm:16}{'-':>10}{'-':>10}  {(facts.get('skipped') or facts['failed']).splitlines()[-1]}")
                continue
            peak = facts["gpu_peak_bytes"] or facts["peak_bytes"]
            print(f"{arm:16}{facts['tokens_per_s']:>10.0f}{peak / 1e9:>10.1f}  {facts['chosen']}")
    print()
    for words, value in result["claims"].items():
        print(f"{words}: {'not measured' if value is None else f'{value:,.2f}'}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenario", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--only", nargs="+", choices=list(BASES), default=list(BASES), help="trainers to run")
    parser.add_argument("--unsloth-python", default="", help="interpreter of the environment that has Unsloth")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--toy", action="store_true", help="a tiny model, short rows, forked: a minute on a CPU")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.toy:
        options.threads = 1
    elif machine()["kind"] != "cuda":
        raise SystemExit("bench.gpu_train needs a CUDA device; --toy shows on a CPU that it runs")
    result = measure(options)
    if options.json:
        print(json.dumps(result))
    else:
        report(result)


if __name__ == "__main__":
    main()
