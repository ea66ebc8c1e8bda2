"""How long training stands still for a checkpoint: written while it waits, and written while it goes on.

    python -m bench.checkpoint_cost [--saves 7] [--model shoestring-3m] [--json]

cases: an adapter of rank 16 on an embedded model, and one of rank 256 on a random Llama of 104 million parameters, with
AdamW's moments; seconds are medians over the saves, the first (which reserves memory) apart. training: a whole rung on
the embedded model, what its checkpoints took of its time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench import machine, versions
from bench.kill import Job, worker

LARGE = {
    "hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 2048, "num_attention_heads": 12,
    "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 512,
}  # fmt: skip


def embedded(model: str, lora_rank: int) -> Any:
    """The adapter as training makes it."""
    from shoestring.records import TrainSettings
    from shoestring.train.adapter import build_adapter
    from shoestring.train.base import detect_device

    settings = TrainSettings(
        method="lora", lora_rank=lora_rank, lora_alpha=2 * lora_rank, learning_rate=1e-3, num_epochs=1,
        batch_tokens=512, micro_batch_tokens=512, seq_len=256, warmup_frac=0.0, weight_decay=0.0, max_grad_norm=1.0,
        num_evals=1, patience=1, num_threads=1, seed=0, max_new_tokens=8, reasons={},
    )  # fmt: skip
    return build_adapter(model, settings, detect_device(1))


def random_llama(lora_rank: int, **shape: int) -> Any:
    """A Llama with random weights in bfloat16, and an adapter on it in float32."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16)
    tuned = get_peft_model(model, LoraConfig(r=lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return tuned


def cost(tuned: Any, saves: int) -> dict[str, Any]:
    """Seconds that a checkpoint of this adapter takes from training, in both ways."""
    import torch
    from transformers import TrainerState

    from shoestring.train.interval import Costs
    from shoestring.train.saving import Saver
    from shoestring.train.snapshot import Copier, Uncopied, snapshot_bytes, take
    from shoestring.train.watch import Watched

    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    schedule.step()
    found: dict[str, Any] = {"snapshot_bytes": snapshot_bytes(tuned)}
    for name, waits in (("waiting", "measured"), ("going_on", "")):
        with tempfile.TemporaryDirectory(prefix="shoestring-checkpoints-") as folder:
            (Path(folder) / "steps.jsonl").touch()
            saver = Saver(
                Path(folder), costs=Costs(), interruptions_per_hour=1.0, is_cpu=True, waits=waits, uploads=None,
                log=print,
            )  # fmt: skip
            copier = Uncopied() if waits else Copier()
            blocked_s, latency_s = [], []
            for step in range(1, saves + 1):
                running = {
                    "model": tuned,
                    "optimizer": optimizer,
                    "lr_scheduler": schedule,
                    "state": TrainerState(global_step=step),
                }
                began = time.perf_counter()
                saver.save(partial(take, copier, **running), Watched("bench"), wait=False)
                blocked_s.append(time.perf_counter() - began)
                saver.writer.wait()
                latency_s.append(time.perf_counter() - began)
                saver.is_due()
        found[name] = {
            "first_blocked_s": blocked_s[0],
            "blocked_s": statistics.median(blocked_s[1:]),
            "until_it_counts_s": statistics.median(latency_s[1:]),
            "cost_s": saver.costs.cost_s,
            "interval_s": {f"{rate:g} an hour": saver.costs.interval_s(rate) for rate in (1 / 24, 0.3, 1.0)},
        }
    return found


def training(model: str, num_rows: int) -> dict[str, Any]:
    """A whole rung: what its checkpoints took of its time."""
    with tempfile.TemporaryDirectory(prefix="shoestring-checkpoints-") as folder:
        result = worker(Job(model, num_rows, interruptions_per_hour=1 / 24), Path(folder) / "rung")
    told = result.settings["checkpoints"]
    return {
        "model": Path(model).name,
        "num_steps": result.num_steps,
        "wall_s": result.wall_s,
        "num_checkpoints": told["num"],
        "interval_s": told["interval_s"],
        "blocked_s": told["blocked_s"],
        "blocked_frac": told["blocked_s"] / result.wall_s,
        "cost_s": told["cost_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--saves", type=int, default=7)
    parser.add_argument("--model", default="shoestring-3m")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = {
        "measured": "seconds that training stands still for a checkpoint",
        "cases": {
            f"rank 16 on {options.model}": cost(embedded(options.model, 16), options.saves),
            "rank 256 on a random Llama of 104M": cost(random_llama(256, **LARGE), options.saves),
        },
        "training": training(options.model, options.rows),
        "versions": versions(),
        "machine": machine(),
    }
    if options.json:
        print(json.dumps(result))
        return
    for name, case in result["cases"].items():
        waiting, going_on = case["waiting"], case["going_on"]
        print(
            f"{name}: {case['snapshot_bytes'] / 2**20:.1f} MiB; training stands still {waiting['blocked_s']:.3f} s "
            f"while it is written, {going_on['blocked_s']:.4f} s while it is copied"
        )
    told = result["training"]
    print(
        f"{told['model']}: {told['num_checkpoints']} checkpoints in {told['wall_s']:.0f} s stood still "
        f"{told['blocked_s']:.3f} s ({told['blocked_frac']:.2%})"
    )


if __name__ == "__main__":
    main()
