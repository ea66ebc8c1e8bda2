"""Run folders with real adapters in a second, as training leaves them; the adapters are random and so answer apart."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import yaml

from shoestring.files import sha256_file
from shoestring.records import ArmScore, Device, Estimate, RowScore, TrainResult, to_json
from shoestring.runfolder import RunFolder
from shoestring.train.adapter import files_of, origin_of, publish
from shoestring.train.base import load_base, load_tokenizer, quiet_loading

CPU = Device("cpu", "cpu", 1 << 34, 1, "float32", "for tests")


def write_run_yaml(folder: Path, model: str, system: str = "") -> None:
    """A run file as a finished run has it."""
    config = {
        "name": folder.name,
        "task": {"kind": "classify", "bar": 0.5},
        "data": {"train": "rows.jsonl", "system": system},
        "models": [model],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def make_adapter(folder: Path, model: str, seed: int, scale: float = 0.3, **lora: Any) -> Path:
    """An adapter with random matrices, as PEFT saves it."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    wanted = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    with quiet_loading(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of features that a test asks for
        tuned = get_peft_model(load_base(model, device=CPU), LoraConfig(**{**wanted, **lora}))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                parameter.normal_(0, scale)
    with quiet_loading(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT tells that the embedding is saved
        tuned.save_pretrained(folder)
    return folder


def make_run(
    runs_dir: Path,
    name: str,
    model: str = "shoestring-1m",
    *,
    seed: int = 0,
    method: str = "lora",
    system: str = "",
    value: float | None = 0.9,
    made: Path | None = None,
    rung: str = "",
    **lora: Any,
) -> Path:
    """A trained run; value: its score (None: not scored yet); made: its adapter, else a random one.

    rung: its name, where it is not the model's.
    """
    folder, run = runs_dir / name, RunFolder(runs_dir / name)
    write_run_yaml(folder, model, system)
    source = made or make_adapter(folder / "made", model, seed, **lora)
    own, rung_name = run.rung(rung or model), rung or model
    own.mkdir(parents=True)
    facts = {"method": method, "rslora": bool(lora.get("use_rslora")), "dora": bool(lora.get("use_dora"))}
    publish(None, source, own / "adapter", load_tokenizer(model), origin_of(model, facts, "float32"))
    settings = {"adapter_sha256": {p.name: sha256_file(p) for p in files_of(own / "adapter")}, "max_new_tokens": 16}
    place = str((own / "adapter").relative_to(folder))
    trained = TrainResult(rung_name, method, place, 1, False, 1, 0.9, 1.0, 0, 1, 1, 1, 0.1, (), settings)
    run.finish(f"rungs/{own.name}/train.json", "0" * 16, to_json(trained), 1.0)
    if value is not None:
        row = RowScore("a", "p", "e", "e", value, 1, 1, 0.1, 0.0)
        score = Estimate(value, value - 0.1, min(1.0, value + 0.1))
        arm = ArmScore(f"lora {rung_name}", "finetune", rung_name, "accuracy", score, 1, 1.0, 0.0, {}, "wilson", (row,))
        run.finish(f"rungs/{own.name}/eval.json", "0" * 16, {"arm": to_json(arm)}, 1.0)
    return folder
