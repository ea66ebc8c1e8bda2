"""One training by another engine, in that engine's environment. Stands alone: nothing of Shoestring is imported here.

`python -I worker.py versions PACKAGE...` prints the installed version of each, null where there is none.
`python -I worker.py train FOLDER FD` trains what FOLDER/job.json says and writes JSON lines to the pipe FD:
started {versions}, rows {num_rows}, step {step, loss, learning_rate, grad_norm, num_tokens, num_computed_tokens,
peak_bytes}, saved {step, folder}, finished {step}, stopped {step}. SIGTERM asks for a checkpoint and the end.
Exit status: 0 finished, STOPPED after SIGTERM, anything else a failure whose words are on standard error.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import types
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

STOPPED = 5
SAVE_EVERY_S, SAVE_SHARE = 30.0, 20  # as often as that, but for at most a twentieth of the time
PAIR = ("prompt_ids", "chosen_ids", "rejected_ids")
ROW = ("input_ids", "labels")


class WrongRows(Exception):
    """The engine would train on other tokens than those that were checked."""


class Pipe:
    """Where events go; a parent that is gone ends the training."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def tell(self, event: str, **facts: Any) -> None:
        try:
            os.write(self.descriptor, json.dumps({"event": event, **facts}).encode() + b"\n")
        except BrokenPipeError:
            raise SystemExit("the process that started this training is gone") from None


class Stop:
    """Whether SIGTERM has come."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.asked = True


def versions(packages: list[str]) -> dict[str, str | None]:
    """The installed version of each package."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def rows_print(rows: Any) -> str:
    """SHA-256 over the rows' token ids and labels, in any order. rows: dicts with ROW or PAIR."""
    prints = []
    for row in rows:
        names = PAIR if PAIR[0] in row else ROW
        prints.append(hashlib.sha256(json.dumps([list(row[name]) for name in names]).encode()).digest())
    return hashlib.sha256(b"".join(sorted(prints))).hexdigest()


def read_rows(path: str) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# ---------------------------------------------------------------- what every engine's trainer gets


def attach(trainer: Any, job: dict[str, Any], pipe: Pipe, stop: Stop) -> Any:
    """Check that the trainer holds the rows of the job, and add the callback that reports, saves and stops."""
    if rows_print(trainer.train_dataset) != job["rows_sha256"]:
        raise WrongRows("the engine's data set is not, token for token, the rows that were checked")
    supervised_first(trainer, job)
    pipe.tell("rows", num_rows=len(trainer.train_dataset))
    trainer.args.logging_nan_inf_filter = False  # a loss that is not finite must reach the parent
    callback = make_callback(job, pipe, stop)
    trainer.add_callback(callback)
    return callback


def supervised_first(trainer: Any, job: dict[str, Any]) -> None:
    """What bears loss in a collated batch is what bears loss in its rows. Raises: WrongRows."""
    if job["objective"] != "sft":
        return
    rows = [trainer.train_dataset[i] for i in range(min(2, len(trainer.train_dataset)))]
    rows = [{name: list(row[name]) for name in (*ROW, "attention_mask") if name in row} for row in rows]
    wanted = sorted(label for row in rows for label in row["labels"][1:] if label != -100)
    batch = trainer.data_collator(rows)
    got = sorted(int(label) for label in batch["labels"].flatten() if label != -100)
    firsts = [row["labels"][0] for row in rows if row["labels"][0] != -100]
    if got not in (wanted, sorted([*wanted, *firsts])):
        raise WrongRows("the engine's collator changes which tokens bear loss")


def make_callback(job: dict[str, Any], pipe: Pipe, stop: Stop) -> Any:
    import torch
    from transformers import TrainerCallback

    class Report(TrainerCallback):
        def __init__(self) -> None:
            self.seen = {"num_tokens": 0, "num_computed_tokens": 0}
            self.saved_s = time.monotonic()
            self.save_cost_s = 0.0
            self.was_stopped = False

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            model.register_forward_pre_hook(self.count, with_kwargs=True)

        def count(self, module: Any, args: Any, kwargs: Any) -> None:
            ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
            if ids is None or not torch.is_grad_enabled():
                return
            self.seen["num_computed_tokens"] += ids.numel()
            real = int(mask.sum()) if mask is not None and mask.shape == ids.shape else ids.numel()
            self.seen["num_tokens"] += real

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.was_stopped = stop.asked and state.global_step < job["max_steps"]
            waited_s = time.monotonic() - self.saved_s
            due = waited_s >= max(SAVE_EVERY_S, SAVE_SHARE * self.save_cost_s)
            if due or self.was_stopped or state.global_step in job["save_steps"]:
                control.should_save = True
            control.should_training_stop = control.should_training_stop or self.was_stopped
            self.save_began_s = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if not logs or "loss" not in logs:
                return
            pipe.tell(
                "step", step=state.global_step, peak_bytes=peak_bytes(), **self.seen,
                **{name: float(logs[name]) for name in ("loss", "learning_rate", "grad_norm") if name in logs},
            )  # fmt: skip
            self.seen = dict.fromkeys(self.seen, 0)
            self.save_began_s = time.monotonic()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.saved_s = time.monotonic()
            self.save_cost_s = self.saved_s - self.save_began_s
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            pipe.tell("saved", step=state.global_step, folder=str(folder))

    return Report()


def peak_bytes() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---------------------------------------------------------------- engines


def train_trl(job: dict[str, Any], pipe: Pipe, stop: Stop) -> Any:
    """TRL's SFTTrainer or DPOTrainer, on token ids made by the parent."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    class PairTrainer(DPOTrainer):
        """DPOTrainer would tokenise the text of the pairs itself; these are tokenised."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    is_pair = job["objective"] == "dpo"
    extra: dict[str, Any] = {"beta": job["dpo_beta"]} if is_pair else {"packing": False}
    arguments = (DPOConfig if is_pair else SFTConfig)(
        **common_arguments(job), max_length=job["seq_len"], use_cpu=job["device_kind"] == "cpu",
        model_init_kwargs={"dtype": job["dtype"]}, **extra,
    )  # fmt: skip
    lora = LoraConfig(
        r=job["lora_rank"], lora_alpha=job["lora_alpha"], lora_dropout=0.0, target_modules=job["lora_targets"],
        task_type="CAUSAL_LM", use_dora=job["dora"], use_rslora=job["rslora"],
    )  # fmt: skip
    given: dict[str, Any] = {"quantization_config": nf4(job)} if job["method"] == "qlora" else {}
    trainer = (PairTrainer if is_pair else SFTTrainer)(
        model=job["model"], args=arguments, train_dataset=Dataset.from_list(read_rows(job["rows"])),
        processing_class=tokenizer_of(job), peft_config=lora, **given,
    )  # fmt: skip
    callback = attach(trainer, job, pipe, stop)
    trainer.train(resume_from_checkpoint=job["resume"])
    return callback


def train_unsloth(job: dict[str, Any], pipe: Pipe, stop: Stop) -> Any:
    """Unsloth's patched model under TRL's SFTTrainer."""
    from unsloth import FastLanguageModel  # type: ignore[import-not-found]  # isort: skip  # it patches what follows
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=job["model"], max_seq_length=job["seq_len"], dtype=getattr(torch, job["dtype"]),
        load_in_4bit=job["method"] == "qlora", use_exact_model_name=True,  # not Unsloth's own copy of the weights
    )  # fmt: skip
    tokenizer.pad_token = job["pad_token"]
    model = FastLanguageModel.get_peft_model(
        model, r=job["lora_rank"], lora_alpha=job["lora_alpha"], lora_dropout=0, bias="none",
        target_modules=job["lora_targets"], random_state=job["seed"], use_rslora=job["rslora"],
        use_gradient_checkpointing="unsloth" if job["gradient_checkpointing"] else False,
    )  # fmt: skip
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in read_rows(job["rows"])]
    arguments = SFTConfig(**common_arguments(job), max_length=job["seq_len"], packing=False)
    trainer = SFTTrainer(model=model, processing_class=tokenizer, args=arguments, train_dataset=Dataset.from_list(rows))
    callback = attach(trainer, job, pipe, stop)
    trainer.train(resume_from_checkpoint=job["resume"])
    return callback


def train_axolotl(job: dict[str, Any], pipe: Pipe, stop: Stop) -> Any:
    """`axolotl train CONFIG` in this process, with a plugin of Axolotl's own kind that holds our callback."""
    from axolotl.cli.train import do_cli  # type: ignore[import-not-found]
    from axolotl.integrations.base import BasePlugin  # type: ignore[import-not-found]

    made: list[Any] = []

    class Plugin(BasePlugin):
        def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
            made.append(attach(trainer, job, pipe, stop))

        def get_training_args(self, cfg: Any) -> dict[str, Any]:
            return {"use_cpu": True} if job["device_kind"] == "cpu" else {}

    module = types.ModuleType("shoestring_worker")
    module.Plugin = Plugin  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    sys.argv = ["axolotl"]  # it reads the command line again
    do_cli(job["config"])
    if not made:
        raise WrongRows("axolotl trained without the plugin that checks its rows")
    return made[0]


def common_arguments(job: dict[str, Any]) -> dict[str, Any]:
    """What SFTConfig and DPOConfig share."""
    from transformers import TrainingArguments

    fields = TrainingArguments.__dataclass_fields__
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    return {
        "output_dir": job["checkpoints"], "per_device_train_batch_size": job["rows_per_pass"],
        "gradient_accumulation_steps": job["grad_accum_steps"], "max_steps": job["max_steps"],
        "learning_rate": job["learning_rate"], "lr_scheduler_type": "cosine", "warmup_steps": job["warmup_steps"],
        "weight_decay": job["weight_decay"], "max_grad_norm": job["max_grad_norm"], "seed": job["seed"],
        "optim": "adamw_torch", "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "bf16": job["dtype"] == "bfloat16", "fp16": job["dtype"] == "float16",
        checkpointing: job["gradient_checkpointing"],
    }  # fmt: skip


def tokenizer_of(job: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.pad_token = job["pad_token"]
    return tokenizer


def nf4(job: dict[str, Any]) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=job["dtype"],
    )  # fmt: skip


ENGINES = {"trl": train_trl, "unsloth": train_unsloth, "axolotl": train_axolotl}


def train(folder: Path, descriptor: int) -> int:
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    pipe, stop = Pipe(descriptor), Stop()
    pipe.tell("started", versions=versions(job["packages"]))
    if job["device_kind"] == "cpu":
        import torch

        torch.set_num_threads(job["num_threads"])
    callback = ENGINES[job["engine"]](job, pipe, stop)
    if callback.was_stopped:
        pipe.tell("stopped")
        return STOPPED
    pipe.tell("finished", step=job["max_steps"])
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "versions":
        sys.stdout.write(json.dumps(versions(sys.argv[2:])))
    else:
        sys.exit(train(Path(sys.argv[2]), int(sys.argv[3])))
