"""transformers.Trainer for our schedule: public extension points only (data loader, training step, loss, save)."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..records import Device, TrainSettings
from . import full, loss, preflight
from .adapter import has_learned, is_full, load_trained
from .memory_policy import offloading
from .objective import Collate, Objective, padded
from .schedule import Schedule, Step
from .world import current


class StepItems:
    """A map-style data set whose item is one optimizer step: its micro-batches and what its loss is divided by.

    shares: of each step what each process of the world takes; the weight is that of the whole step.
    """

    def __init__(
        self,
        objective: Objective,
        schedule: Schedule,
        collate: Collate = padded,
        shares: Sequence[Sequence[Step]] | None = None,
    ) -> None:
        self.objective, self.schedule, self.collate = objective, schedule, collate
        self.shares, self.world = shares, current()

    def __len__(self) -> int:
        return len(self.schedule.steps)

    def __getitem__(self, index: int) -> dict[str, Any]:
        step = self.schedule.steps[index]
        weight = sum(self.objective.weight(batch) for batch in step)
        own = step if self.shares is None else self.shares[index][self.world.rank]
        fillers = self._fillers(index) if self.shares is not None and self.world.lockstep else ()
        beside = [self.objective.beside(batch, self.collate) for batch in (*own, *fillers)]
        return {
            "micro_batches": [self.objective.batch(batch, self.collate) for batch in (*own, *fillers)],
            "beside": [batch for batch in beside if batch is not None],
            "weight": weight,
            "num_own": len(own),
            "num_alike": self.world.size if self.shares is None else 1,  # processes that run all of the step
        }

    def _fillers(self, index: int) -> Step:
        """Passes without weight, so that every process runs as many: each asks all others for its layers."""
        assert self.shares is not None
        passes = [len(share) for share in self.shares[index]]
        shortest = min(
            (row for batch in self.schedule.steps[index] for row in batch), key=lambda row: self.schedule.lengths[row]
        )
        return ((shortest,),) * (max(passes) - passes[self.world.rank])


def begin_step(objective: Objective, model: Any, item: dict[str, Any], path: str, device: Device) -> None:
    """Move a step's micro-batches to the model's device, each with what its loss needs to know of the whole step."""
    beside = [loss.on_device(batch, model.device) for batch in item["beside"]]
    # A precision of its own: what autocast keeps of weights without gradient must not serve a pass with one.
    with loss.precision(device):
        known = objective.begin(model, beside, item["num_own"], item["weight"] * item["num_alike"], path)
    item["micro_batches"] = [{**loss.on_device(batch, model.device), **known} for batch in item["micro_batches"]]


def step_loss(objective: Objective, model: Any, batch: loss.Batch, weight: float, path: str, device: Device) -> Any:
    """A micro-batch's share of its step's mean loss."""
    with loss.precision(device):
        return objective.loss_sum(model, batch, path) / weight


def only_item(items: list[Any]) -> Any:
    """The collator: a batch is one item already."""
    return items[0]


def trained_weights(tuned: Any) -> dict[str, Any]:
    """The tensors of what is trained, by the names they are saved under."""
    if is_full(tuned):
        return {name: p.detach() for name, p in tuned.named_parameters()}
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(tuned, save_embedding_layers=False))


def write_weights(weights: dict[str, Any], config: Any, folder: Path) -> None:
    """The adapter's weights and configuration, or every weight of a model that is trained whole, without one.

    PeftModel.save_pretrained would also write a card from a template and ask the hub about the base's embeddings,
    at every checkpoint.
    """
    if config is None:
        full.save(weights, folder)
        return
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in weights.items()}, str(folder / "adapter_model.safetensors"))
    config = copy.copy(config)
    config.inference_mode = True
    config.save_pretrained(str(folder))


def config_of(tuned: Any) -> Any:
    """The adapter's configuration, None of a model that is trained whole."""
    return None if is_full(tuned) else tuned.peft_config[tuned.active_adapter]


def save_trained(tuned: Any, folder: Path) -> None:
    """Both in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(trained_weights(tuned), config_of(tuned), folder)


def build_trainer(
    tuned: Any,
    items: StepItems,
    settings: TrainSettings,
    device: Device,
    folder: Path,
    callback: Any,
    loss_path: str,
    offload: bool = False,
) -> Any:
    """A Trainer that runs the schedule, reports to nothing but callback and saves when it says so.

    offload: what is kept for backward waits in host memory.
    """
    import torch
    from torch.utils.data import DataLoader
    from transformers import PrinterCallback, Trainer, TrainingArguments

    num_steps = len(items)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        num_train_epochs=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        # The first warm-up step has rate zero: a run of a few steps must not spend one of them on nothing.
        warmup_steps=math.floor(settings.warmup_frac * num_steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        seed=settings.seed,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not finite must reach us
        save_strategy="no",  # the callback writes checkpoints
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=device.kind == "cpu",
        fp16=device.dtype == "float16",
        dataloader_pin_memory=device.kind == "cuda",
    )

    has_learned(tuned)

    class ScheduleTrainer(Trainer):
        def get_train_dataloader(self) -> Any:
            loader = DataLoader(
                items, batch_size=1, shuffle=False, collate_fn=only_item, pin_memory=arguments.dataloader_pin_memory
            )
            return self.accelerator.prepare(loader)

        def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
            if not model.training:  # walking the modules costs as much as a small layer
                model.train()
            begin_step(items.objective, model, inputs, loss_path, device)
            total = torch.zeros((), device=model.device)
            for number, batch in enumerate(inputs["micro_batches"]):
                # Divided by infinity a pass has neither loss nor gradient.
                weight = inputs["weight"] if number < inputs["num_own"] else math.inf
                batch_loss = self.compute_loss(model, batch, num_items_in_batch=weight)
                self.accelerator.backward(batch_loss)
                total = total + batch_loss.detach()
            items.world.sum_gradients(model)
            total = items.world.total(total)
            if self.state.global_step == 0:
                preflight.check_gradients(model, step=1)
            return total

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            with offloading(offload):
                return step_loss(items.objective, model, inputs, num_items_in_batch, loss_path, device)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            if not is_full(tuned):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:  # Trainer's own lets names that do not fit pass
                load_trained(tuned, Path(resume_from_checkpoint))

    with warnings.catch_warnings():
        # max_grad_norm and the scheduler are as intended; Trainer warns of neither value, only of newer spellings.
        warnings.simplefilter("ignore", FutureWarning)
        trainer = ScheduleTrainer(model=tuned, args=arguments, train_dataset=items, data_collator=only_item)
    trainer.model.config.use_cache = True  # Trainer switches it off; generation on dev rows wants it
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback)
    return trainer
