"""Predicted memory and speed against fine-tunes other people measured.

    python -m bench.plan_accuracy [--rows] [--json]

Rows: /work/shared/facts/measured_runs.csv, tiers A and B. Nothing is fitted to them: the coefficients are read from
the stacks' code and the GPU table, so every source is a left-out one. Like is compared with like: torch's allocated
or active peak with the predicted allocated bytes; reserved bytes with the predicted device bytes less the context;
nvidia-smi's and unstated ones with the predicted device bytes. Where a unit is ambiguous the nearer reading counts.
A row whose configuration the arguments cannot say is refused by name and listed, not counted.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import shoestring as ss
from shoestring.errors import BadInput

RUNS = Path("/work/shared/facts/measured_runs.csv")
GIB = 2**30
MEMORY_TOLERANCE, SPEED_TOLERANCE = 0.10, 0.25
MEMORY_GOAL, SPEED_GOAL = 0.85, 0.75
ALLOCATED = ("torch_allocated", "torch_active", "unstated(torch)")
STACKS = {"LitGPT": "litgpt", "torchtune": "torchtune", "Unsloth": "unsloth"}
QUANTISATIONS = {
    "none": "none",
    "nf4 (bnb)": "nf4",
    "fp4 (bnb)": "nf4",  # the same bytes
    "nf4 (torchao)": "nf4",
    "nf4+dq (bnb)": "nf4-dq",
    "llm.int8": "int8",
    "gptq-int4": "gptq4",
}


def measured_runs() -> list[dict[str, str]]:
    """Rows of the file of measured runs."""
    with RUNS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def unsayable(row: dict[str, str]) -> str | None:
    """What of a row's configuration the arguments cannot say, or the row does not."""
    if row["framework"].startswith("NeMo"):
        return "stack NeMo is not profiled"
    if "(" in row["lora_targets"]:
        return f"{row['lora_targets']} is not plain LoRA"
    if "2 nodes" in row["notes"]:
        return "two nodes: what links them is not stated"
    if not row["seq_len"] or "dynamic lengths" in row["notes"]:  # of unpacked rows only the limit is stated
        return "sequence length not stated"
    if row["optimizer"] in ("see config", "unstated", "lora-fa"):
        return f"optimizer: {row['optimizer']}"
    if row["parallelism"].startswith(("TP", "device_map")) or "CPU offload" in row["parallelism"] + row["optimizer"]:
        return f"parallelism: {row['parallelism']}, {row['optimizer']}"
    return None


def arguments(row: dict[str, str]) -> dict[str, Any]:
    """A row in the arguments of predict_memory. Raises: BadInput for what they cannot say."""
    reason = unsayable(row)
    if reason:
        raise BadInput(reason)
    words = row["parallelism"].lower().replace("-", "")
    num_gpus = int(row["n_gpus"])
    parallelism = next((p for p in ("fsdp", "zero3") if p in words), "ddp" if num_gpus > 1 else "single")
    is_all = row["lora_targets"].startswith("all") or not row["lora_targets"]
    return {
        "model": row["model"],
        "method": row["method"],
        "quantisation": QUANTISATIONS[row["quantisation"]],
        "lora_rank": int(row["lora_rank"] or 16),
        "lora_targets": "all-linear" if is_all else row["lora_targets"],
        "modules_to_save": "embed_tokens,lm_head" if "lm_head" in row["lora_targets"] else (),
        "seq_len": int(row["seq_len"]),
        "micro_batch": int(row["micro_batch"]),
        "packing": row["packing"].startswith("y"),
        "gradient_checkpointing": row["gradient_checkpointing"].startswith(("y", "?")),
        "attention": "flash" if "FA2" in row["attention"] else "eager" if row["attention"] == "eager" else "sdpa",
        # A plain loop means torch's own AdamW.
        "optimizer": "adamw_torch" if "plain loop" in row["framework"] else row["optimizer"],
        "stack": stack_name(row),
        "gpu": row["gpu"],
        "num_gpus": num_gpus,
        "parallelism": parallelism,
        "grad_accum": int(row["grad_accum"]) if row["grad_accum"].isdigit() else 1,
        "offload_activations": "act offload" in row["parallelism"],
    }


def stack_name(row: dict[str, str]) -> str:
    """The profile of a row; of torchtune's, by what the row says was switched on."""
    name = "trl-chunked" if "Liger=y" in row["notes"] else STACKS.get(row["framework"], "stock-hf")
    if name != "torchtune" or "FSDP2" in row["parallelism"]:
        return name
    if "compile" not in row["parallelism"]:
        return "torchtune-eager"
    is_full_logits = row["row_id"] == "torchtune-011"  # its notes: "+compile", and chunked CE only in the next row
    return "torchtune-compile" if is_full_logits else name


def memory_row(row: dict[str, str]) -> dict[str, Any]:
    """One row's measured and predicted GiB, error and verdict; or why it is refused."""
    told = {k: row[k] for k in ("row_id", "source", "model", "method", "outcome")}
    told |= {"tier": row["tier_mem"], "kind": row["mem_kind"] or "boundary"}
    try:
        predicted = ss.predict_memory(**arguments(row))
    except BadInput as error:
        return told | {"refused": str(error)}
    told |= {"verdict": predicted.verdict, "phase": predicted.phase}
    expected = predicted.device_expected_bytes
    if row["mem_kind"] in ALLOCATED:
        expected = predicted.allocated_expected_bytes
    elif row["mem_kind"] == "torch_reserved":
        expected -= predicted.parts["runtime"]
    if not row["mem_gib_hi"]:
        return told | {"predicted_gib": round(expected / GIB, 2)}
    measured = min(max(expected, float(row["mem_gib_lo"]) * GIB), float(row["mem_gib_hi"]) * GIB)
    return told | {
        "measured_gib": round(measured / GIB, 2),
        "predicted_gib": round(expected / GIB, 2),
        "error_frac": round(expected / measured - 1, 4),
    }


def speed_row(row: dict[str, str]) -> dict[str, Any]:
    """One row's measured and predicted tokens a second and GPU; or why it is refused."""
    told = {k: row[k] for k in ("row_id", "source", "model", "method")} | {"tier": row["tier_speed"]}
    try:
        asked = arguments(row)
        stated = re.search(r"mean (\d+) tokens", row["notes"])
        predicted = ss.predict_throughput(**asked | ({"seq_len": int(stated[1])} if stated else {}))
    except BadInput as error:
        return told | {"refused": str(error)}
    measured = float(row["tokens_per_s_per_gpu"])
    return told | {
        "measured_tokens_per_s": measured,
        "predicted_tokens_per_s": round(predicted.tokens_per_s_per_gpu, 1),
        "error_frac": round(predicted.tokens_per_s_per_gpu / measured - 1, 4),
        "in_range": predicted.tokens_per_s_per_gpu_low <= measured <= predicted.tokens_per_s_per_gpu_high,
    }


def shares(rows: list[dict[str, Any]], tolerance: float) -> dict[str, Any]:
    """By source: how many rows are within tolerance, and the others with their errors."""
    sources: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if "error_frac" in row and row["tier"] in ("A", "B"):
            sources[row["source"]].append(row)
    return {
        source: {
            "num_rows": len(found),
            "within_frac": round(sum(abs(r["error_frac"]) <= tolerance for r in found) / len(found), 3),
            "missed": {r["row_id"]: r["error_frac"] for r in found if abs(r["error_frac"]) > tolerance},
        }
        for source, found in sources.items()
    }


def refusals(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many rows are not counted, by reason."""
    found: dict[str, int] = defaultdict(int)
    for row in rows:
        if "refused" in row:
            found[row["refused"]] += 1
    return dict(found)


def memory_summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares by what was measured; out-of-memory rows called fitting; refusals."""
    kinds = {
        "allocated": ALLOCATED,
        "reserved": ("torch_reserved",),
        "unstated": ("unstated", "device (unstated)"),
    }
    told = {what: shares([r for r in rows if r["kind"] in kind], MEMORY_TOLERANCE) for what, kind in kinds.items()}
    oom = [r for r in rows if "OOM" in r["outcome"] and "refused" not in r]
    false_fits = [r["row_id"] for r in oom if r["verdict"] == "fits"]
    return told | {"oom": {"num_rows": len(oom), "false_fits": false_fits}, "refused": refusals(rows)}


def measure() -> dict[str, Any]:
    """Everything, rows included."""
    runs = measured_runs()
    memory = [memory_row(row) for row in runs]
    speed = [speed_row(row) for row in runs if row["tokens_per_s_per_gpu"]]
    return {
        "memory": memory_summary(memory) | {"tolerance": MEMORY_TOLERANCE, "goal": MEMORY_GOAL},
        "speed": shares(speed, SPEED_TOLERANCE)
        | {"tolerance": SPEED_TOLERANCE, "goal": SPEED_GOAL, "refused": refusals(speed)},
        "rows": {"memory": memory, "speed": speed},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", action="store_true", help="print every row")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    told = measure()
    rows = told["rows"]
    if not asked.rows:
        del told["rows"]
    if asked.json:
        print(json.dumps(told))
        return
    if asked.rows:
        for row in rows["memory"] + rows["speed"]:
            print({k: v for k, v in row.items() if k not in ("source", "outcome", "phase")})
        del told["rows"]
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
