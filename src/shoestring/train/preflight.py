"""Checks that fail before, or right after, time is spent: each way a fine-tune goes wrong without a word."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from ..errors import TrainingError
from ..records import Device, Example
from .loss import answer_logits, collate, on_device, precision
from .tokens import Encoded, encode_example, end_token_ids


def encode_rows(tokenizer: Any, examples: Sequence[Example], seq_len: int | None, what: str) -> list[Encoded]:
    """Every row tokenised and checked: an answer to learn, its end token supervised, not longer than seq_len.

    seq_len: None for rows that are only scored; curation holds them to the model's context.
    Raises: TrainingError naming the row.
    """
    ends = end_token_ids(tokenizer)
    rows = []
    for example in examples:
        row = encode_example(tokenizer, example)
        where = f"{what} row {example.source}:{example.line}"
        supervised = row.ids[max(row.num_prompt_tokens, 1) :]
        if len(supervised) < 2:
            raise TrainingError(f"{where} has no answer token to learn from; `shoestring curate` drops empty answers")
        if supervised[-1] not in ends:
            raise TrainingError(f"{where}: the end token is not supervised, so the model would never learn to stop")
        if seq_len is not None and len(row.ids) > seq_len:
            raise TrainingError(
                f"{where} has {len(row.ids)} tokens, seq_len is {seq_len}; "
                "curate with this seq_len, or raise train.seq_len"
            )
        rows.append(row)
    if tokenizer.pad_token_id in ends:
        raise TrainingError(
            f"pad and end token are both {tokenizer.pad_token_id}; load the tokenizer with load_tokenizer"
        )
    return rows


def supervised_text(tokenizer: Any, row: Encoded) -> str:
    """What the first row teaches, decoded: for a person to look at."""
    return str(tokenizer.decode(row.ids[row.num_prompt_tokens :]))


def check_gradients(model: Any, step: int) -> None:
    """After the first backward pass every adapter matrix has a gradient, and a non-zero one where it can.

    B starts at zero, so A's gradient is zero in the very first step.
    Raises: TrainingError naming the matrices.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise TrainingError("no adapter matrix is trainable: the model has no linear layer PEFT can adapt")
    missing = [name for name, p in trainable.items() if p.grad is None]
    flat = [n for n, p in trainable.items() if "lora_B" in n and p.grad is not None and not p.grad.any()]
    if missing or flat:
        fault = missing or flat
        kind = "no gradient" if missing else "a gradient of zero"
        raise TrainingError(
            f"step {step}: {len(fault)} of {len(trainable)} adapter matrices got {kind}, first {fault[0]}; "
            "this model's layers are not reached by the adapter, choose another model or method"
        )


def adapter_effect(model: Any, rows: Sequence[Encoded], pad_id: int, device: Device) -> float:
    """Largest change the adapter makes to a logit of the given rows.

    Raises: TrainingError when it makes none.
    """
    import torch

    batch = on_device(collate(rows, pad_id), model.device)
    with torch.no_grad(), precision(device):
        tuned = answer_logits(model, batch)
        with model.disable_adapter():
            bare = answer_logits(model, batch)
    effect = float((tuned - bare).abs().max())
    if not effect > 0:
        raise TrainingError("the trained adapter changes no logit; raise train.learning_rate or train.num_epochs")
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
