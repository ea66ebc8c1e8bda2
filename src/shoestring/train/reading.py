"""How well a model reads plain text: negative log-likelihood a token, text by text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..records import Device
from . import loss
from .tokens import Encoded

BATCH_TOKENS = 2048  # padded


def text_losses(model: Any, tokenizer: Any, texts: Sequence[str], device: Device) -> list[float]:
    """Mean negative log-likelihood a token of each text, start token put before it where there is one.

    A text longer than the model's context is cut there.
    """
    import torch

    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    rows = [Encoded((start + tokenizer(text, add_special_tokens=False).input_ids)[:limit], 1) for text in texts]
    found = [0.0] * len(rows)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    with torch.no_grad(), loss.precision(device):
        for group in loss.padded_batches(rows, BATCH_TOKENS):
            batch = loss.on_device(loss.collate([rows[i] for i in group], pad_id), model.device)
            for i, log_prob in zip(group, loss.path_log_probs(model, batch).tolist(), strict=True):
                found[i] = -log_prob / loss.num_loss_tokens([rows[i]])
    return found
