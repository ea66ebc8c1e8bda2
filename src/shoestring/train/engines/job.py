"""What an engine is given: the rows as token ids with their labels, and the resolved settings in its own terms."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import write_json, write_jsonl
from ...plan.engines import ENGINES
from ...records import Device, TrainSettings
from ..locate import hub_options, resolve_model
from ..objective import Item
from .axolotl import write_engine_yaml
from .worker import rows_print

JOB, ROWS = "job.json", "rows.jsonl"


@dataclass(frozen=True, slots=True)
class Passes:
    """How rows become passes and steps: engines count rows, where Shoestring counts tokens."""

    rows_per_pass: int
    grad_accum_steps: int
    num_steps: int

    @classmethod
    def of(cls, items: Sequence[Item], settings: TrainSettings) -> Passes:
        """Steps of about batch_tokens, in passes of at most micro_batch_tokens (or one longest row)."""
        lengths = [sum(len(path.ids) for path in item) for item in items]
        widest = max(len(path.ids) for item in items for path in item) * len(items[0])
        rows_per_step = max(1, min(len(items), round(settings.batch_tokens / (sum(lengths) / len(lengths)))))
        most = max(1, min(rows_per_step, settings.micro_batch_tokens // widest))
        accumulated = math.ceil(rows_per_step / most)
        rows_per_pass = math.ceil(rows_per_step / accumulated)
        steps_per_epoch = math.ceil(math.ceil(len(items) / rows_per_pass) / accumulated)
        return cls(rows_per_pass, accumulated, math.ceil(settings.num_epochs * steps_per_epoch))


def row_of(item: Item) -> dict[str, Any]:
    """An item as engines learn it: ids and labels of one path, or the three parts of a pair."""
    if len(item) == 1:
        path = item[0]
        first = max(path.num_prompt_tokens, 1)
        return {"input_ids": path.ids, "labels": [-100] * first + path.ids[first:]}
    chosen, rejected = item
    start = min(chosen.num_prompt_tokens, rejected.num_prompt_tokens)
    return {
        "prompt_ids": chosen.ids[:start],
        "chosen_ids": chosen.ids[start:],
        "rejected_ids": rejected.ids[start:],
    }


def terms_of(
    *, model: str, items: Sequence[Item], settings: TrainSettings, device: Device, pad_token: str
) -> dict[str, Any]:
    """The settings in the terms of engines, without paths."""
    passes = Passes.of(items, settings)
    path = Path(resolve_model(model))
    return {
        "model": str(path.resolve() if path.is_dir() else path),
        "objective": settings.objective,
        "method": settings.method,
        "dtype": device.dtype,
        "device_kind": device.kind,
        "num_threads": settings.num_threads,
        "lora_rank": settings.lora_rank,
        "lora_alpha": settings.lora_alpha,
        "dora": settings.dora,
        "rslora": settings.rslora,
        "learning_rate": settings.learning_rate,
        "max_steps": passes.num_steps,
        "rows_per_pass": passes.rows_per_pass,
        "grad_accum_steps": passes.grad_accum_steps,
        "warmup_steps": math.floor(settings.warmup_frac * passes.num_steps),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed,
        "seq_len": max(settings.seq_len, *(len(path.ids) for item in items for path in item)),
        "gradient_checkpointing": bool(settings.recompute),
        "dpo_beta": settings.dpo_beta,
        "pad_token": pad_token,
    }


def write_job(
    folder: Path,
    *,
    engine: str,
    terms: dict[str, Any],
    items: Sequence[Item],
    lora_targets: Sequence[str],
    save_steps: Sequence[int],
    checkpoints: Path,
    resume: Path | None,
) -> dict[str, Any]:
    """Write folder/rows.jsonl and folder/job.json, for axolotl also its YAML; returns the job."""
    rows = [row_of(item) for item in items]
    write_jsonl(folder / ROWS, rows)
    job = {
        "engine": engine,
        "packages": list(ENGINES[engine].packages),
        "rows": str((folder / ROWS).resolve()),
        "rows_sha256": rows_print(rows),
        "lora_targets": sorted(lora_targets),
        "save_steps": sorted({*save_steps, terms["max_steps"]}),
        "checkpoints": str(checkpoints.resolve()),
        "resume": str(resume.resolve()) if resume else None,
        **terms,
    }
    if engine == "axolotl":
        job["config"] = str(write_engine_yaml(folder, job, rows).resolve())
    write_json(folder / JOB, job)
    return job


def environment(model: str, device: Device, num_threads: int) -> dict[str, str]:
    """Environment variables of the worker: no network where the model is here, no telemetry, threads."""
    offline = hub_options(resolve_model(model)).get("local_files_only", False)
    return {
        **({"HF_HUB_OFFLINE": "1"} if offline else {}),
        **({"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(num_threads)} if device.kind == "cpu" else {}),
        **({"CUDA_VISIBLE_DEVICES": first_gpu()} if device.kind == "cuda" else {}),
        "TOKENIZERS_PARALLELISM": "false",
        "DO_NOT_TRACK": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "WANDB_MODE": "disabled",  # steps are reported by the parent
    }


def first_gpu() -> str:
    """Of the GPUs that are visible the first: a worker trains on one."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
