"""The attention of rows that are answered together: what they begin with is there once, and attended to once.

Queries see the keys of their own pass (a prefix forest when prompts are read, their own tail when they are answered)
and whole runs of tokens that several of them begin with; the parts are combined by their log-sum-exp.

Shapes: B rows, N tokens of a forest, T tokens of a tail, C of a shared run, H heads, K key/value heads, G = H / K,
D head size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...train.attention import NAME as OF_TRAINING
from ...train.attention import beyond_plain
from ...train.tree_attention import TILE, TILE_SCORES, Blocks, block_attention, forest_attention, merge

NAME = "shoestring_answers"


class NotOverAForest(Exception):
    """The model's attention is not the plain one that this computes; the padded way answers instead."""


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens that several prompts begin with, after those of its parent; one pair (K, C, D) of keys, values a layer."""

    keyed: tuple[tuple[Any, Any], ...]


@dataclass(slots=True)
class Layout:
    """What the queries of one forward pass see; num_calls: attention layers that asked.

    blocks: of a forest, or None for one query a row; hidden: (B, 1, 1, 1, T) True where a tail is filling, or None.
    above: queries start to stop see the whole run.
    """

    blocks: Blocks | None
    hidden: Any
    above: list[tuple[int, int, Run]]
    num_calls: int = 0


@contextlib.contextmanager
def switched(model: Any) -> Iterator[None]:
    """The model with this attention, its own put back at the end. Raises: NotOverAForest."""
    from transformers import AttentionInterface

    base = _base(model)
    own = base.config._attn_implementation
    if own not in ("sdpa", OF_TRAINING):
        raise NotOverAForest(f"attention {own!r}")
    AttentionInterface.register(NAME, _attend)  # without a mask function: transformers then makes no mask
    base.set_attn_implementation(NAME)
    try:
        yield
    finally:
        base.set_attn_implementation(own)


@contextlib.contextmanager
def plain(model: Any) -> Iterator[None]:
    """Inside `switched`: the model with torch's own attention for a while."""
    base = _base(model)
    base.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        base.set_attn_implementation(NAME)


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    layout: Layout | None = None,
    **asked: Any,
) -> tuple[Any, None]:
    import torch

    if why := beyond_plain(query, value, layout, asked):
        raise NotOverAForest(why)
    assert layout is not None
    layout.num_calls += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast(query.device.type, enabled=False):
        query, key = (query * scale).to(value.dtype), key.to(value.dtype)
        if layout.blocks is None:
            out = _over_tails(query, key, value, layout, module.layer_idx)
        else:
            out = _over_forest(query, key, value, layout, layout.blocks, module.layer_idx)
        return out.to(value.dtype), None


def _over_forest(query_1HND: Any, key: Any, value: Any, layout: Layout, blocks: Blocks, layer: int) -> Any:
    _, heads, tokens, size = query_1HND.shape
    query_KGND = query_1HND.view(-1, heads // key.shape[1], tokens, size)
    out, log_sum = forest_attention(query_KGND, key[0], value[0], blocks)
    for first, last, run in layout.above:
        keys, values = run.keyed[layer]
        step = max(TILE, TILE_SCORES // keys.shape[1])
        for start in range(first, last, step):
            rows = slice(start, min(start + step, last))
            part, part_log = block_attention(query_KGND[:, :, rows], keys, values, None)
            merge(out[:, :, rows], log_sum[:, :, rows], part, part_log)
    return out.view(1, heads, tokens, size).transpose(1, 2)


def _over_tails(query_BH1D: Any, key: Any, value: Any, layout: Layout, layer: int) -> Any:
    rows, heads, _, size = query_BH1D.shape
    query_BKG1D = query_BH1D.view(rows, key.shape[1], -1, 1, size)
    out, log_sum = block_attention(query_BKG1D, key, value, layout.hidden)
    for first, last, run in layout.above:
        keys, values = run.keyed[layer]
        query_KGBD = query_BKG1D[first:last, :, :, 0].permute(1, 2, 0, 3)
        part, part_log = block_attention(query_KGBD, keys, values, None)
        merge(
            out[first:last, :, :, 0].permute(1, 2, 0, 3), log_sum[first:last, :, :, 0].permute(1, 2, 0), part, part_log
        )
    return out.view(rows, heads, 1, size).transpose(1, 2)
