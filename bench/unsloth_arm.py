"""Unsloth's training of one Arm, in its own environment: `ENV/bin/python -m bench.unsloth_arm FOLDER`, as bench.arms.

Needs a CUDA device and nothing of Shoestring's but the two modules without dependencies that it imports.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from bench.clock import Clock

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    arm, rows = job["arm"], job["encoded"]
    from unsloth import FastLanguageModel  # type: ignore[import-not-found]  # before transformers: it patches them

    clock = Clock()
    clock.install()
    config = dict(arm["config"])
    recompute = config.pop("use_gradient_checkpointing")
    precision = {"bf16": {}, "nf4": {"load_in_4bit": True}, "fp8": {"load_in_fp8": True}}[arm["base"]]
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=arm["model"], max_seq_length=arm["seq_len"], dtype=None, **{"load_in_4bit": False, **precision}
    )
    model = FastLanguageModel.get_peft_model(
        model, r=job["lora"]["rank"], lora_alpha=job["lora"]["alpha"], lora_dropout=0, bias="none",
        target_modules=TARGETS, use_gradient_checkpointing=recompute, random_state=arm["seed"],
    )  # fmt: skip
    train(model, tokenizer, arm, rows, config, folder)
    facts = {**clock.facts(), "settings": {"config": arm["config"], "versions": versions()}}
    facts |= {"wall_s": time.time() - job["started_at"], "cpu_s": time.process_time()}
    (folder / "facts.json").write_text(json.dumps(facts))


def train(
    model: Any, tokenizer: Any, arm: dict[str, Any], rows: list[dict[str, Any]], config: dict[str, Any], folder: Path
) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    for row in rows:
        row["attention_mask"] = [1] * len(row["input_ids"])
    arguments = SFTConfig(
        output_dir=str(folder / "out"), num_train_epochs=arm["num_epochs"], learning_rate=arm["learning_rate"],
        lr_scheduler_type="cosine", warmup_steps=math.floor(0.05 * len(rows) / arm["rows_per_step"]), seed=arm["seed"],
        report_to="none", save_strategy="no", disable_tqdm=True, max_length=arm["seq_len"], bf16=True, **config,
    )  # fmt: skip
    SFTTrainer(model=model, processing_class=tokenizer, args=arguments, train_dataset=Dataset.from_list(rows)).train()


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("unsloth", "unsloth_zoo", "trl", "transformers", "torch")}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
