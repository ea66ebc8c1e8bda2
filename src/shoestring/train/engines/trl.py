"""A run as TRL's command line reads it: `trl sft --config FILE`, `trl dpo --config FILE`. Keys: TRL 1.16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..tracking import NO_TRACKING, PROJECT, Tracking


def trl_config(terms: Mapping[str, Any], *, rows: str, output: str, tracking: Tracking = NO_TRACKING) -> dict[str, Any]:
    """The settings as TRL's configuration. rows: a JSONL file, of token ids and labels, or of pairs as turns."""
    on_cpu = terms["device_kind"] == "cpu"
    return {
        "model_name_or_path": terms["model"],
        "dtype": terms["dtype"],
        "datasets": [{"path": "json", "data_files": rows, "split": "train"}],
        "use_peft": True,
        "lora_r": terms["lora_rank"],
        "lora_alpha": terms["lora_alpha"],
        "lora_dropout": 0.0,
        "use_dora": terms["dora"],
        "use_rslora": terms["rslora"],
        "lora_target_modules": ["all-linear"],
        **(
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}
            if terms["method"] == "qlora"
            else {}
        ),
        "max_length": terms["seq_len"],
        **({"beta": terms["dpo_beta"]} if terms["objective"] == "dpo" else {"packing": False}),
        "per_device_train_batch_size": terms["rows_per_pass"],
        "gradient_accumulation_steps": terms["grad_accum_steps"],
        "max_steps": terms["max_steps"],
        "learning_rate": terms["learning_rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": terms["warmup_steps"],
        "weight_decay": terms["weight_decay"],
        "max_grad_norm": terms["max_grad_norm"],
        "seed": terms["seed"],
        "optim": "adamw_torch",
        "bf16": terms["dtype"] == "bfloat16",
        "fp16": terms["dtype"] == "float16",
        **({"use_cpu": True} if on_cpu else {}),
        "gradient_checkpointing": terms["gradient_checkpointing"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": list(tracking.trackers) or "none",
        **({"run_name": tracking.run_name, "project": PROJECT} if tracking.trackers else {}),
        "output_dir": output,
    }
