"""Greedy decoding in left-padded batches: for models whose layers are not all plain attention, and for few rows.

A prefix that all prompts of a batch share is run once, finished rows leave the batch, and keys and values stay in
place instead of being copied at every token.

Shapes: B rows, P tokens of the shared prefix, T tokens after it, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import ModelError
from .cache import last_logits, new_cache

# Rows are compacted once so many of them have finished.
FINISHED_FRAC = 0.25
# A shared prefix shorter than this is not worth a pass of its own.
MIN_PREFIX_TOKENS = 16


def decode_greedy(
    model: Any,
    prompts: list[list[int]],
    *,
    stop_ids: list[int],
    pad_id: int,
    max_new_tokens: int,
    name: str = "the model",
    limits: Sequence[int] | None = None,
) -> list[tuple[list[int], bool]]:
    """New tokens of each prompt, end token included, and whether one was reached.

    limits: most new tokens of each prompt, where the context leaves fewer than max_new_tokens.
    Raises: ModelError where the model's logits are not finite.
    """
    import torch

    device, num_rows = model.device, len(prompts)
    cache, is_plain = new_cache(model)
    num_prefix = _shared_prefix(prompts) if is_plain and num_rows > 1 else 0
    forward = last_logits(model)
    with torch.no_grad():
        if num_prefix:
            prefix_1P = torch.tensor([prompts[0][:num_prefix]], device=device)
            forward(cache, input_ids=prefix_1P)
            cache.batch_repeat_interleave(num_rows)
        ids_BT, mask_BT = _left_padded([p[num_prefix:] for p in prompts], pad_id, device)
        mask_BT = torch.cat([mask_BT.new_ones(num_rows, num_prefix), mask_BT], dim=1)
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, num_prefix:]
        rows_B = torch.arange(num_rows, device=device)  # which prompt each line of the batch answers
        stops = torch.tensor(stop_ids, device=device)
        new_tokens = torch.full((num_rows, max_new_tokens), pad_id, device=device)
        lengths = torch.full((num_rows,), max_new_tokens, device=device)
        limits_B = torch.tensor(limits or [max_new_tokens] * num_rows, device=device)
        active_B = torch.ones(num_rows, dtype=torch.bool, device=device)
        for step in range(max_new_tokens):
            logits_BV = forward(cache, input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT)
            next_B = logits_BV.argmax(-1)
            if not torch.isfinite(logits_BV.gather(1, next_B[:, None])).all():
                raise ModelError(f"{name} gives logits that are not finite; its weights or its adapter are damaged")
            new_tokens[rows_B[active_B], step] = next_B[active_B]
            ends_B = active_B & (torch.isin(next_B, stops) | (limits_B[rows_B] <= step + 1))
            lengths[rows_B[ends_B]] = step + 1
            active_B = active_B & ~ends_B
            num_active = int(active_B.sum())
            if num_active == 0:
                break
            if num_active <= (1 - FINISHED_FRAC) * len(rows_B):
                keep = active_B.nonzero().squeeze(1)
                cache.reorder_cache(keep)
                rows_B, next_B, active_B = rows_B[keep], next_B[keep], active_B[keep]
                mask_BT, positions_BT = mask_BT[keep], positions_BT[keep]
            ids_BT = next_B[:, None]
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows_B), 1)], dim=1)
            positions_BT = positions_BT[:, -1:] + 1
    ends = set(stop_ids)
    tokens = [line[:n] for line, n in zip(new_tokens.tolist(), lengths.tolist(), strict=True)]
    return [(line, line[-1] in ends) for line in tokens]


def _left_padded(rows: list[list[int]], pad_id: int, device: Any) -> tuple[Any, Any]:
    import torch

    longest = max(map(len, rows))
    ids_BT = torch.tensor([[pad_id] * (longest - len(row)) + row for row in rows], device=device)
    mask_BT = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids_BT, mask_BT


def _shared_prefix(prompts: list[list[int]]) -> int:
    """Tokens all prompts begin with, leaving each at least one of its own; 0 where not worth a pass."""
    first, last = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    shared = next((i for i in range(limit) if first[i] != last[i]), limit)
    return shared if shared >= MIN_PREFIX_TOKENS else 0
