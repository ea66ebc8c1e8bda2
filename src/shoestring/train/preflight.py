"""Checks that fail before, or right after, time is spent: each way a fine-tune goes wrong without a word."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from ..errors import TrainingError
from ..records import Device
from .adapter import is_full
from .loss import answer_logits, collate, few_targets, on_device, precision
from .tokens import Encoded


def supervised_text(tokenizer: Any, row: Encoded) -> str:
    """What the first row teaches, decoded: for a person to look at."""
    return str(tokenizer.decode(row.ids[row.num_prompt_tokens :]))


def check_gradients(model: Any, step: int) -> None:
    """After the first backward pass every trained matrix has a gradient, and a non-zero one where it can.

    B starts at zero, so A's gradient is zero in the very first step.
    Raises: TrainingError naming the matrices.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise TrainingError("no adapter matrix is trainable: the model has no linear layer PEFT can adapt")
    missing = [name for name, p in trainable.items() if p.grad is None]
    whole = is_full(model)
    flat = [n for n, p in trainable.items() if (whole or "lora_B" in n) and p.grad is not None and not p.grad.any()]
    if missing or flat:
        fault = missing or flat
        kind = "no gradient" if missing else "a gradient of zero"
        what = "weights" if whole else "adapter matrices"
        raise TrainingError(
            f"step {step}: {len(fault)} of {len(trainable)} {what} got {kind}, first {fault[0]}; "
            "the loss does not reach these layers of the model, choose another model or method"
        )


def probe_logits(model: Any, rows: Sequence[Encoded], pad_id: int, device: Device) -> Any:
    """Logits of a few answer tokens of the given rows, on the host."""
    import torch

    batch = on_device(few_targets(collate(rows, pad_id)), model.device)
    with torch.no_grad(), precision(device):
        return answer_logits(model, batch).cpu()


def effect_on(bare_NV: Any, tuned_NV: Any) -> float:
    """Largest change that training made to a logit: probe_logits of the bare base, and with what was trained.

    Raises: TrainingError when it made none.
    """
    effect = float((tuned_NV - bare_NV).abs().max())
    if not effect > 0:
        raise TrainingError("what was trained changes no logit; raise train.learning_rate or train.num_epochs")
    return effect


@contextlib.contextmanager
def evaluation_mode(model: Any) -> Any:
    """The model in evaluation mode, and the random state as it was afterwards."""
    import torch

    training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            yield
    finally:
        model.train(training)
