"""A run as Axolotl's YAML, for `engine: axolotl` and for export. Keys: Axolotl 0.19's AxolotlInputConfig."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...files import read_jsonl, write_jsonl, write_whole

YAML = "axolotl.yaml"


def axolotl_config(job: Mapping[str, Any], rows: str, output: str, prepared: str) -> dict[str, Any]:
    """The job as Axolotl's configuration. rows: a JSONL file of input_ids, attention_mask and labels."""
    on_gpu = job["device_kind"] == "cuda"
    quantised = job["method"] == "qlora"
    return {
        "base_model": job["model"],
        "special_tokens": {"pad_token": job["pad_token"]},
        "adapter": job["method"],
        **({"load_in_4bit": True} if quantised else {}),
        "lora_r": job["lora_rank"],
        "lora_alpha": job["lora_alpha"],
        "lora_dropout": 0.0,
        "lora_target_modules": list(job["lora_targets"]),
        # Axolotl's kernels need Triton on a GPU.
        **({} if on_gpu else dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False)),
        "datasets": [{"path": rows, "ds_type": "json", "type": None}],  # no type: the rows are tokenised
        "dataset_prepared_path": prepared,
        "output_dir": output,
        "sequence_len": job["seq_len"],
        "sample_packing": False,
        "micro_batch_size": job["rows_per_pass"],
        "gradient_accumulation_steps": job["grad_accum_steps"],
        "max_steps": job["max_steps"],
        "optimizer": "adamw_torch",
        "lr_scheduler": "cosine",
        "learning_rate": job["learning_rate"],
        "warmup_steps": job["warmup_steps"],
        "weight_decay": job["weight_decay"],
        "max_grad_norm": job["max_grad_norm"],
        "gradient_checkpointing": job["gradient_checkpointing"],
        "bf16": job["dtype"] == "bfloat16",
        "fp16": job["dtype"] == "float16",
        "tf32": False,
        "attn_implementation": "sdpa",
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": job["seed"],
    }


def write_engine_yaml(folder: Path, job: Mapping[str, Any]) -> Path:
    """The YAML with our plugin in it, and the rows with the mask Axolotl asks for."""
    rows = folder / "axolotl.jsonl"
    write_rows(rows, read_jsonl(Path(job["rows"])))
    config = axolotl_config(job, str(rows.resolve()), job["checkpoints"], str((folder / "prepared").resolve()))
    config |= {"plugins": ["shoestring_worker.Plugin"]}
    if job["resume"]:
        config["resume_from_checkpoint"] = job["resume"]
    return write_yaml(folder / YAML, config)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Tokenised rows as Axolotl takes them."""
    write_jsonl(path, ({**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows))


def write_yaml(path: Path, config: Mapping[str, Any], head: str = "") -> Path:
    """The configuration in its own order."""
    write_whole(path, head + yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    return path
