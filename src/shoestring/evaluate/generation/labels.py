"""How probable a model holds each label of a classification as the whole answer.

The prompt is read once for all labels: one prefix forest a few rows, as training packs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...messages import Example, Message
from ...records import Progress, no_progress
from ...train import loss
from ...train.attention import use_attention
from ...train.tokens import Encoded, encode_example

BATCH_TOKENS = 2048  # of the forest's, about
# Difference of a log-probability from the plain pass's, absolute or relative, at which the forest is not used.
LIMIT = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}


def label_log_probs(
    model: Any, tokenizer: Any, examples: Sequence[Example], labels: Sequence[str], progress: Progress = no_progress
) -> np.ndarray:
    """Log-probability (N, K) of each label, its end token included, after each row's prompt."""
    import torch

    pad_id = tokenizer.pad_token_id
    tails: list[list[int]] = []
    for label in labels:
        one = encode_example(tokenizer, _answered(examples[0], label))
        tails.append(one.ids[one.num_prompt_tokens :])
    prompts = [_prompt(tokenizer, example, labels[0]) for example in examples]
    found = np.zeros((len(examples), len(labels)), dtype=np.float64)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = base.config._attn_implementation
    was_training = model.training
    model.eval()
    is_forest = bool(use_attention(base)) and len(labels) > 1
    try:
        with torch.no_grad():
            paths = [Encoded([*prompts[0], *tail], len(prompts[0])) for tail in tails[:2]]
            head = loss.choose_path(model, loss.on_device(loss.collate(paths, pad_id), model.device))
            if is_forest:
                both = [_log_probs(model, paths, pad_id, packed, head) for packed in (True, False)]
                is_forest = _agree(both[0], both[1], model)
            size = max(1, BATCH_TOKENS // (max(map(len, prompts)) + sum(map(len, tails))))
            for start in range(0, len(examples), size):
                chunk = prompts[start : start + size]
                paths = [Encoded([*prompt, *tail], len(prompt)) for prompt in chunk for tail in tails]
                found[start : start + size] = _log_probs(model, paths, pad_id, is_forest, head).reshape(len(chunk), -1)
                progress("label probabilities", min(start + size, len(examples)), len(examples))
    finally:
        base.set_attn_implementation(own)
        model.train(was_training)
    return found


def _answered(example: Example, label: str) -> Example:
    messages = (*example.prompt, Message("assistant", label))
    return replace(example, messages=messages, answer_span=(len(example.prompt), len(messages)), rejected=(), id="")


def _prompt(tokenizer: Any, example: Example, label: str) -> list[int]:
    one = encode_example(tokenizer, _answered(example, label))
    ids: list[int] = one.ids[: one.num_prompt_tokens]
    return ids


def _log_probs(model: Any, paths: Sequence[Encoded], pad_id: int, is_forest: bool, head: str) -> np.ndarray:
    collate = loss.collate_forest if is_forest else loss.collate
    batch = loss.on_device(collate(paths, pad_id), model.device)
    found: np.ndarray = loss.path_log_probs(model, batch, head).double().cpu().numpy()
    return found


def _agree(one: np.ndarray, other: np.ndarray, model: Any) -> bool:
    limit = LIMIT.get(str(model.dtype).removeprefix("torch."), 1e-3)
    return bool((np.abs(one - other) <= limit * np.maximum(1, np.abs(other))).all())
