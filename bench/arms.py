"""One training of one trainer in a process of its own: the common part of bench.train_speed and bench.gpu_train.

`python -m bench.arms FOLDER` reads FOLDER/job.json, trains, and writes FOLDER/facts.json and FOLDER/adapter.
Rows, base, LoRA, optimizer, learning rate, its schedule, seeds and the number of optimizer steps are the same for
every trainer. train_s runs from the first step's start to the last one's end, wall_s is the whole process.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.clock import Clock
from shoestring.records import Example, TrainSettings, example_from_json, example_to_json

ROOT = Path(__file__).resolve().parents[1]
LORA_RANK, LORA_ALPHA, WARMUP_FRAC, DPO_BETA = 16, 32, 0.05, 0.1
LEFT_OUT = ("versions", "preflight", "supervised_first_row", "adapter_sha256")  # of the record of ours
HELD_OUT_BATCH_ROWS = 8


class ArmFailed(Exception):
    """A training ended with an error; the text is its last words."""


@dataclass(frozen=True)
class Arm:
    """What to train and with what.

    trainer: ours, trl, stock (transformers.Trainer with the model's own loss), unsloth.
    base: bf16, nf4, fp8. config: the peer's settings where they are not its defaults; a key given here wins.
    micro_batch_tokens: of ours. model_dtype: what the peer loads a 16-bit or NF4 base as.
    """

    trainer: str
    model: str
    base: str
    objective: str
    rows_per_step: int
    learning_rate: float
    seed: int
    threads: int
    num_epochs: int = 1
    seq_len: int = 1024
    micro_batch_tokens: int = 8192
    model_dtype: str = "float32"
    config: dict[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------- starting one


def run_arm(
    arm: Arm,
    rows: Sequence[Example],
    folder: Path,
    *,
    held_out: Sequence[Example] = (),
    forked: bool = False,
    python: str = "",
) -> dict[str, Any]:
    """Train in a new process, to the end; what that process measured (see `measure`).

    forked: a fork of this process, which must have computed nothing yet, in place of a fresh interpreter; starts at
    once. python: the interpreter of another environment.
    Raises: ArmFailed.
    """
    folder.mkdir(parents=True)
    job: dict[str, Any] = {
        "arm": asdict(arm),
        "rows": [example_to_json(row) for row in rows],
        "held_out": [example_to_json(row) for row in held_out],
        "started_at": time.time(),
    }
    if arm.trainer == "unsloth":
        job |= {"encoded": encoded_rows(arm.model, rows), "lora": {"rank": LORA_RANK, "alpha": LORA_ALPHA}}
    (folder / "job.json").write_text(json.dumps(job))
    status = fork(folder) if forked else start(folder, arm, python)
    if status != 0:
        words = (folder / "log.txt").read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        raise ArmFailed(f"exit status {status}: " + "\n".join(words[-12:]))
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return facts


def start(folder: Path, arm: Arm, python: str) -> int:
    module = "bench.unsloth_arm" if arm.trainer == "unsloth" else "bench.arms"
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(arm.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    }  # fmt: skip
    with (folder / "log.txt").open("w") as log:
        command = [python or sys.executable, "-m", module, str(folder)]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    return done.returncode


def fork(folder: Path) -> int:
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        with (folder / "log.txt").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                measure(folder)
                status = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(status)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def import_everything() -> None:
    """What forked trainings would otherwise each import; computes nothing."""
    import datasets  # noqa: F401
    from peft import get_peft_model  # noqa: F401
    from transformers import LlamaForCausalLM, Trainer  # noqa: F401
    from trl import DPOTrainer, SFTTrainer  # noqa: F401

    from shoestring.train import trainer  # noqa: F401


# ---------------------------------------------------------------- in the process


def measure(folder: Path) -> None:
    """Train what job.json says; facts.json gets Clock.facts, wall_s and cpu_s of the process, and held_out_loss."""
    job = json.loads((folder / "job.json").read_text())
    arm, rows, held_out = Arm(**job["arm"]), *([example_from_json(row) for row in job[k]] for k in ("rows", "held_out"))
    set_threads(arm.threads)
    clock = Clock()
    clock.install()
    facts = {"ours": train_ours, "trl": train_trl, "stock": train_stock}[arm.trainer](arm, rows, folder, clock)
    facts |= {**clock.facts(), "wall_s": time.time() - job["started_at"], "cpu_s": time.process_time()}
    if held_out:
        facts["held_out_loss"] = held_out_loss(arm, folder / "adapter", held_out)
    (folder / "facts.json").write_text(json.dumps(facts))


def set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def train_ours(arm: Arm, rows: list[Example], folder: Path, clock: Clock) -> dict[str, Any]:
    """Shoestring, as a stage of a run calls it."""
    from shoestring.train import trainer
    from shoestring.train.base import detect_device

    settings = TrainSettings(
        method="qlora" if arm.base == "nf4" else "lora",
        lora_rank=LORA_RANK, lora_alpha=LORA_ALPHA, learning_rate=arm.learning_rate, num_epochs=arm.num_epochs,
        micro_batch_tokens=arm.micro_batch_tokens, seq_len=arm.seq_len, warmup_frac=WARMUP_FRAC, weight_decay=0.0,
        max_grad_norm=1.0, num_evals=1, patience=1, num_threads=arm.threads, seed=arm.seed, max_new_tokens=16,
        objective=arm.objective, dpo_beta=DPO_BETA, batch_tokens=1, fp8=arm.base == "fp8",
        reasons={},
    )  # fmt: skip
    settings = replace(
        settings, batch_tokens=matched_batch_tokens(arm.model, settings, rows, num_steps(arm, len(rows)))
    )
    with clock.counting(trainer, "prepare"):  # the reference of preference training, which TRL computes in its steps
        result = trainer.train_rung(
            model=arm.model, train=rows, dev=[], out_dir=folder, settings=settings,
            device=detect_device(arm.threads), dev_metric=lambda model, tok: 0.0,
        )  # fmt: skip
    used = result.settings
    if arm.base == "fp8" and "fp8" not in used["base_format"]:
        raise SystemExit(f"the base is {used['base_format']}: {used['base_reason']}")
    return {"settings": {key: value for key, value in used.items() if key not in LEFT_OUT}}


def matched_batch_tokens(model: str, settings: TrainSettings, rows: list[Example], wanted: int) -> int:
    """The step budget with which the schedule has as many steps as wanted, or as near as it gets."""
    from shoestring.train.base import load_tokenizer
    from shoestring.train.objective import encode_item
    from shoestring.train.packing import PADDED, as_rows, schedules

    tokenizer = load_tokenizer(model)
    encoded = as_rows([encode_item(tokenizer, row, settings.objective) for row in rows])
    places = [(row.source, row.line) for row in rows]

    def steps_at(budget: int) -> int:
        # Either packing draws the same steps.
        return len(schedules(encoded, places, replace(settings, batch_tokens=budget))[PADDED].steps)

    middle = sum(len(path) for row in encoded for path in row) * settings.num_epochs / wanted
    nearest: tuple[int, int] | None = None
    for percent in sorted(range(85, 160), key=lambda percent: abs(percent - 100)):
        budget = max(1, int(middle * percent / 100))
        apart = abs(steps_at(budget) - wanted)
        nearest = min(nearest or (apart, budget), (apart, budget))
        if apart == 0:
            break
    assert nearest is not None
    return nearest[1]


def num_steps(arm: Arm, num_rows: int) -> int:
    return math.ceil(num_rows / arm.rows_per_step) * arm.num_epochs


def train_trl(arm: Arm, rows: list[Example], folder: Path, clock: Clock) -> dict[str, Any]:
    """TRL as its command line calls it; the rows of sft arrive as the token ids that ours trains on."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    config_class, trainer_class = {"sft": (SFTConfig, SFTTrainer), "dpo": (DPOConfig, DPOTrainer)}[arm.objective]
    given = {**common_arguments(arm, len(rows), folder), **arm.config}
    given["model_init_kwargs"] = {"dtype": arm.model_dtype, **given.get("model_init_kwargs", {})}
    if arm.objective == "dpo":
        given["beta"] = DPO_BETA
        made = [preference(row) for row in rows]
    else:
        made = encoded_rows(arm.model, rows)
    trainer = trainer_class(
        model=model_path(arm.model), args=config_class(**given), train_dataset=Dataset.from_list(made),
        peft_config=lora(), quantization_config=nf4(arm.model_dtype) if arm.base == "nf4" else None,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(folder / "adapter"))
    return {"settings": {"config": arm.config, "model_dtype": arm.model_dtype}}


def train_stock(arm: Arm, rows: list[Example], folder: Path, clock: Clock) -> dict[str, Any]:
    """transformers.Trainer and PEFT with the model's own loss, padded batches."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForTokenClassification, Trainer
    from transformers import TrainingArguments as Arguments

    base = AutoModelForCausalLM.from_pretrained(model_path(arm.model), dtype=getattr(torch, arm.model_dtype))
    given = {**common_arguments(arm, len(rows), folder), "bf16": True, **arm.config}
    tokenizer = AutoTokenizer.from_pretrained(model_path(arm.model))
    Trainer(
        model=get_peft_model(base, lora()), args=Arguments(**given), train_dataset=encoded_rows(arm.model, rows),  # type: ignore[arg-type]
        data_collator=DataCollatorForTokenClassification(tokenizer),
    ).train()  # fmt: skip
    return {"settings": {"config": arm.config, "model_dtype": arm.model_dtype}}


def common_arguments(arm: Arm, num_rows: int, folder: Path) -> dict[str, Any]:
    import torch

    return {
        "output_dir": str(folder / "out"), "per_device_train_batch_size": arm.rows_per_step, "seed": arm.seed,
        "num_train_epochs": arm.num_epochs, "learning_rate": arm.learning_rate, "lr_scheduler_type": "cosine",
        "warmup_steps": math.floor(WARMUP_FRAC * num_steps(arm, num_rows)), "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", "use_cpu": not torch.cuda.is_available(),
    }  # fmt: skip


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def nf4(compute_dtype: str) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )  # fmt: skip


# ---------------------------------------------------------------- rows


def model_path(name: str) -> str:
    from shoestring.train.base import resolve_model

    return resolve_model(name)


def num_tokens(tokenizer: Any, row: Example) -> int:
    """Example tokens of a row; of a pair, of both answers with their prompt."""
    from shoestring.train.objective import encode_item

    return sum(len(path.ids) for path in encode_item(tokenizer, row, "dpo" if row.rejected else "sft"))


def encoded_rows(model: str, rows: Sequence[Example]) -> list[dict[str, Any]]:
    """input_ids and labels (-100 where no loss is borne) of each row."""
    from shoestring.train.tokens import encode_example, load_tokenizer

    tokenizer = load_tokenizer(model)
    encoded = [encode_example(tokenizer, row) for row in rows]
    return [
        {"input_ids": e.ids, "labels": [-100] * e.num_prompt_tokens + e.ids[e.num_prompt_tokens :]} for e in encoded
    ]


def preference(row: Example) -> dict[str, Any]:
    """A pair as TRL reads it."""
    parts = {"prompt": row.prompt, "chosen": row.messages[slice(*row.answer_span)], "rejected": row.rejected}
    return {name: [{"role": m.role, "content": m.content} for m in turns] for name, turns in parts.items()}


# ---------------------------------------------------------------- what was learned


def held_out_loss(arm: Arm, adapter: Path, rows: Sequence[Example]) -> float:
    """Mean loss an answer token, or mean DPO loss a pair, in float32 from the model's own logits."""
    import torch.nn.functional as F
    from peft import PeftModel

    from shoestring.train.base import detect_device, load_base, load_tokenizer, quiet_loading
    from shoestring.train.objective import other_side

    tokenizer = load_tokenizer(arm.model)
    with quiet_loading():
        device = replace(detect_device(arm.threads), dtype="float32")
        tuned = PeftModel.from_pretrained(load_base(arm.model, device=device, quantise=arm.base == "nf4"), adapter)
    tuned.eval()
    if arm.objective == "sft":
        sums, counts = log_probs(tuned, tokenizer, rows)
        return -float(sums.sum() / counts.sum())
    both = [*rows, *map(other_side, rows)]
    with tuned.disable_adapter():
        reference, _ = log_probs(tuned, tokenizer, both)
    gains = (log_probs(tuned, tokenizer, both)[0] - reference).view(2, len(rows))
    return -float(F.logsigmoid(DPO_BETA * (gains[0] - gains[1])).mean())


def log_probs(model: Any, tokenizer: Any, rows: Sequence[Example]) -> tuple[Any, Any]:
    """Log-probability of each row's answer, and its number of tokens."""
    import torch

    from shoestring.train.tokens import encode_example

    encoded = [encode_example(tokenizer, row) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(encoded[i].ids))
    sums, counts = torch.zeros(len(rows)), torch.zeros(len(rows))
    for at in range(0, len(order), HELD_OUT_BATCH_ROWS):
        batch = order[at : at + HELD_OUT_BATCH_ROWS]
        width = max(len(encoded[i].ids) for i in batch)
        ids_BT = torch.tensor(
            [encoded[i].ids + [tokenizer.pad_token_id] * (width - len(encoded[i].ids)) for i in batch]
        )
        with torch.no_grad():
            logits_BTV = model(input_ids=ids_BT.to(model.device)).logits.float().log_softmax(-1)
        picked_BT = logits_BTV[:, :-1].gather(-1, ids_BT[:, 1:, None].to(model.device))[..., 0].cpu()
        for row, index in enumerate(batch):
            answer = slice(encoded[index].num_prompt_tokens - 1, len(encoded[index].ids) - 1)
            sums[index], counts[index] = picked_BT[row, answer].sum(), answer.stop - answer.start
    return sums, counts


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
