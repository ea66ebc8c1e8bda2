"""A run as Axolotl's YAML, for `engine: axolotl` and for export. Keys: Axolotl 0.19's AxolotlInputConfig."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...files import write_jsonl, write_whole
from ..tracking import NO_TRACKING, PROJECT, Tracking

# Which keys switch a tracker on; NAME stands for the run's.
TRACKERS: dict[str, dict[str, Any]] = {
    "tensorboard": {"use_tensorboard": True},
    "wandb": {"use_wandb": True, "wandb_project": PROJECT, "wandb_name": "NAME"},
    "mlflow": {"use_mlflow": True, "mlflow_experiment_name": PROJECT, "mlflow_run_name": "NAME"},
    "trackio": {"use_trackio": True, "trackio_project_name": PROJECT, "trackio_run_name": "NAME"},
}
YAML, ROWS = "axolotl.yaml", "axolotl.jsonl"


def axolotl_config(
    terms: Mapping[str, Any],
    *,
    rows: str,
    output: str,
    prepared: str,
    lora_targets: Sequence[str] = (),
    tracking: Tracking = NO_TRACKING,
) -> dict[str, Any]:
    """The settings as Axolotl's configuration.

    rows: a JSONL file of input_ids, attention_mask and labels. lora_targets: empty for every linear layer but the head.
    """
    on_gpu = terms["device_kind"] == "cuda"
    return {
        "base_model": terms["model"],
        "special_tokens": {"pad_token": terms["pad_token"]},
        "adapter": terms["method"],
        **({"load_in_4bit": True} if terms["method"] == "qlora" else {}),
        "lora_r": terms["lora_rank"],
        "lora_alpha": terms["lora_alpha"],
        "lora_dropout": 0.0,
        "peft_use_dora": terms["dora"],
        "peft_use_rslora": terms["rslora"],
        **({"lora_target_modules": list(lora_targets)} if lora_targets else {"lora_target_linear": True}),
        # Axolotl's kernels need Triton on a GPU.
        **({} if on_gpu else dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False)),
        "datasets": [{"path": rows, "ds_type": "json", "type": None}],  # no type: the rows are tokenised
        "dataset_prepared_path": prepared,
        "output_dir": output,
        "sequence_len": terms["seq_len"],
        "sample_packing": False,
        "micro_batch_size": terms["rows_per_pass"],
        "gradient_accumulation_steps": terms["grad_accum_steps"],
        "max_steps": terms["max_steps"],
        "optimizer": "adamw_torch",
        "lr_scheduler": "cosine",
        "learning_rate": terms["learning_rate"],
        "warmup_steps": terms["warmup_steps"],
        "weight_decay": terms["weight_decay"],
        "max_grad_norm": terms["max_grad_norm"],
        "gradient_checkpointing": terms["gradient_checkpointing"],
        "bf16": on_gpu and terms["dtype"] == "bfloat16",
        "fp16": on_gpu and terms["dtype"] == "float16",
        "tf32": False,
        "attn_implementation": "sdpa",
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": terms["seed"],
        **{
            key: tracking.run_name if value == "NAME" else value
            for name in tracking.trackers
            for key, value in TRACKERS[name].items()
        },
    }


def write_engine_yaml(folder: Path, job: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Path:
    """The YAML with our plugin in it, and the rows with the mask Axolotl asks for."""
    write_rows(folder / ROWS, rows)
    shutil.rmtree(folder / "prepared", ignore_errors=True)  # Axolotl goes by the path of the rows, not by what they say
    config = axolotl_config(
        job,
        rows=str((folder / ROWS).resolve()),
        output=job["checkpoints"],
        prepared=str((folder / "prepared").resolve()),
        lora_targets=job["lora_targets"],
    )
    # As the device's type asks, also on a CPU: the plugin tells the Trainer that it is one.
    config |= {"bf16": job["dtype"] == "bfloat16", "plugins": ["shoestring_worker.Plugin"]}
    if job["resume"]:
        config["resume_from_checkpoint"] = job["resume"]
    return write_yaml(folder / YAML, config)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Tokenised rows as Axolotl takes them."""
    write_jsonl(path, ({**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows))


def write_yaml(path: Path, config: Mapping[str, Any], head: str = "") -> Path:
    """The configuration in its own order."""
    write_whole(path, head + yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    return path
