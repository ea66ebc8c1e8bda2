"""Attention over a prefix forest as dense blocks, exact, without a mask of N x N (for CPUs).

A segment's tokens attend to themselves causally (a square), and all tokens below a segment to all of it (a rectangle,
which is one matrix product, since they follow it without a gap). A token's blocks are combined by their log-sum-exp,
and the backward pass recomputes each block from the final one, as flash attention does (Dao et al., 2205.14135).

Shapes: N tokens, H heads, K key/value heads, G = H / K, D head size, M squares a batch, L tokens a square.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .forest import Forest

# Longest side of a square, and least of a rectangle: scores of one block should stay in the cache.
TILE = 128
TILE_SCORES = TILE * 512  # a rectangle of fewer keys takes more queries
# Squares of up to so many tokens, filling included, are computed in one batch.
BATCH_TOKENS = 2048
ROUND_SIDE = 16


@dataclass(frozen=True, slots=True)
class Squares:
    """Segments of similar length; places (M * L,) in the layout, kept: which of those are no filling, as indices."""

    side: int
    places: Any
    kept: Any
    filling: Any  # (M * L,) bool

    def to(self, device: Any, **options: Any) -> Squares:
        moved = {name: getattr(self, name).to(device, **options) for name in ("places", "kept", "filling")}
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries start to stop attend to keys first to last; causal: the last columns are a triangle."""

    start: int
    stop: int
    first: int
    last: int
    causal: bool


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of one forest. own holds each token exactly once, among squares or tiles."""

    squares: tuple[Squares, ...]
    own: tuple[Tile, ...]
    above: tuple[Tile, ...]
    longest: int  # row, in tokens

    def to(self, device: Any, **options: Any) -> Blocks:
        """As tensors have it, so that what moves batches to a device moves this too."""
        return replace(self, squares=tuple(group.to(device, **options) for group in self.squares))


def cut(forest: Forest) -> Blocks:
    """The blocks that make up a forest's attention."""
    sizes = forest.stops - forest.starts
    ends = forest.subtree_ends[forest.starts]
    short = [int(i) for i in np.argsort(sizes, kind="stable") if sizes[i] <= TILE]
    own, above = [], []
    for start, stop, end in zip(forest.starts.tolist(), forest.stops.tolist(), ends.tolist(), strict=True):
        if stop - start > TILE:
            own += [Tile(a, min(a + TILE, stop), start, min(a + TILE, stop), True) for a in range(start, stop, TILE)]
        rows = max(TILE, TILE_SCORES // (stop - start))
        above += [Tile(a, min(a + rows, end), start, stop, False) for a in range(stop, end, rows)]
    return Blocks(tuple(_batches(forest, short)), tuple(own), tuple(above), int(forest.positions.max()) + 1)


def _batches(forest: Forest, short: list[int]) -> Iterator[Squares]:
    import torch

    sizes = (forest.stops - forest.starts).tolist()
    at = 0
    while at < len(short):
        # Sorted by size: from the longest down, each batch takes as many as fit at the longest one's side.
        side = -(-sizes[short[len(short) - 1 - at]] // ROUND_SIDE) * ROUND_SIDE
        num = max(1, BATCH_TOKENS // side)
        batch = short[max(0, len(short) - at - num) : len(short) - at]
        at += len(batch)
        places = np.zeros((len(batch), side), dtype=np.int64)
        filling = np.ones((len(batch), side), dtype=bool)
        for row, segment in enumerate(batch):
            places[row, : sizes[segment]] = np.arange(forest.starts[segment], forest.stops[segment])
            filling[row, : sizes[segment]] = False
        yield Squares(
            side,
            torch.from_numpy(places.ravel()),
            torch.from_numpy(np.flatnonzero(~filling.ravel())),
            torch.from_numpy(filling.ravel()),
        )


def tree_attention(query_BHND: Any, key_BKND: Any, value_BKND: Any, blocks: Blocks, scale: float) -> Any:
    """softmax(scale * q k^T) v where each token sees its ancestors and itself; B is 1; returns (1, N, H, D)."""
    import torch

    _, heads, tokens, size = query_BHND.shape
    with torch.autocast(query_BHND.device.type, enabled=False):
        query_KGND = (query_BHND * scale).to(value_BKND.dtype).view(-1, heads // key_BKND.shape[1], tokens, size)
        out = _function().apply(query_KGND, key_BKND[0].to(value_BKND.dtype), value_BKND[0], blocks)
    return out.view(1, heads, tokens, size).transpose(1, 2)


@functools.cache
def _function() -> Any:
    """The autograd function, made once: torch is imported only where it is used."""
    import torch

    class TreeAttention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any, blocks: Blocks) -> Any:
            out, log_sum = forest_attention(query, key, value, blocks)
            out = out.to(value.dtype)
            ctx.save_for_backward(query, key, value, out, log_sum)
            ctx.blocks = blocks
            return out

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            query, key, value, out, log_sum = ctx.saved_tensors
            return (*_backward(query, key, value, out, log_sum, grad, ctx.blocks), None)

    return TreeAttention


def forest_attention(query: Any, key: Any, value: Any, blocks: Blocks) -> tuple[Any, Any]:
    """Output (K, G, N, D) and log-sum-exp (K, G, N) of every query, both float32."""
    import torch

    out = torch.empty(query.shape, dtype=torch.float32, device=query.device)
    log_sum = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    for group in blocks.squares:
        rows, keys, values = _gathered(group, query, key, value)
        part, part_log = block_attention(rows, keys, values, _triangle(group.side, group.side, query.device))
        flat = part.transpose(1, 2).flatten(2, 3)  # (K, M, G, L, D) -> (K, G, M * L, D)
        kept = group.places[group.kept]
        out[:, :, kept] = flat.index_select(2, group.kept)
        log_sum[:, :, kept] = part_log.transpose(1, 2).flatten(2, 3).index_select(2, group.kept)
    for tile in blocks.own:
        queries, columns = slice(tile.start, tile.stop), slice(tile.first, tile.last)
        mask = _triangle(tile.stop - tile.start, tile.last - tile.first, query.device)
        part, part_log = block_attention(query[:, :, queries], key[:, columns], value[:, columns], mask)
        out[:, :, queries], log_sum[:, :, queries] = part, part_log
    for tile in blocks.above:
        queries, columns = slice(tile.start, tile.stop), slice(tile.first, tile.last)
        part, part_log = block_attention(query[:, :, queries], key[:, columns], value[:, columns], None)
        merge(out[:, :, queries], log_sum[:, :, queries], part, part_log)
    return out, log_sum


def merge(out: Any, log_sum: Any, part: Any, part_log: Any) -> None:
    """Add the keys of one more block to the output of queries and its log-sum-exp, in place."""
    import torch

    # sigmoid(a - b) is exp(a) / (exp(a) + exp(b)): the part's share.
    out += torch.sigmoid(part_log - log_sum).unsqueeze(-1) * (part - out)
    torch.logaddexp(log_sum, part_log, out=log_sum)


def block_attention(query: Any, key: Any, value: Any, hidden: Any) -> tuple[Any, Any]:
    """One block, with its log-sum-exp: query (K, ..., G, L, D), keys (K, ..., C, D); hidden, which broadcasts to the
    scores (K, ..., G, L, C), is True where nothing is seen.
    """
    scores = _scores(query, key)
    if hidden is not None:
        scores.masked_fill_(hidden, float("-inf"))
    top = scores.amax(-1, keepdim=True)
    scores.sub_(top).exp_()
    total = scores.sum(-1, keepdim=True)
    part = _stacked(scores.to(value.dtype)) @ value
    part = part.float().view(*scores.shape[:-1], -1).div_(total)
    return part, total.log_().add_(top).squeeze(-1)


def _scores(query: Any, key: Any) -> Any:
    """Float32 (K, ..., G, L, C)."""
    scores = _stacked(query) @ key.transpose(-1, -2)
    return scores.view(*query.shape[:-1], -1).float()


def _stacked(rows: Any) -> Any:
    """(..., G, L, X) -> (..., G * L, X): heads of a group share keys and values, so one matrix product takes them."""
    return rows.reshape(*rows.shape[:-3], -1, rows.shape[-1])


def _triangle(num_queries: int, num_keys: int, device: Any) -> Any:
    """(L, C) True above the diagonal that ends at the lower right corner."""
    import torch

    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).triu(num_keys - num_queries + 1)


def _gathered(group: Squares, query: Any, *keyed: Any) -> tuple[Any, ...]:
    """query (K, M, G, L, D) and each of keyed (K, M, L, D) at the squares' places."""
    num_kv, groups = query.shape[:2]
    rows = query.index_select(2, group.places).view(num_kv, groups, -1, group.side, query.shape[-1]).transpose(1, 2)
    return rows, *(part.index_select(1, group.places).view(num_kv, -1, group.side, part.shape[-1]) for part in keyed)


def _backward(
    query: Any, key: Any, value: Any, out: Any, log_sum: Any, grad: Any, blocks: Blocks
) -> tuple[Any, Any, Any]:
    import torch

    grad = grad.to(value.dtype)
    # Of each query: sum of gradient times output, which the softmax's derivative subtracts.
    inner = (grad.float() * out.float()).sum(-1)
    grads = [torch.zeros(part.shape, dtype=torch.float32, device=part.device) for part in (query, key, value)]
    for group in blocks.squares:
        num_kv, groups = query.shape[:2]

        def a_query(part: Any, group: Squares = group, lead: tuple[int, int] = (num_kv, groups)) -> Any:
            return part.index_select(2, group.places).view(*lead, -1, group.side).transpose(1, 2)

        filling = group.filling.view(-1, 1, group.side)
        rows, keys, values = _gathered(group, query, key, value)
        grad_rows = _gathered(group, grad)[0].masked_fill(filling.unsqueeze(-1), 0)
        logs = a_query(log_sum).masked_fill(filling, float("inf"))
        inners = a_query(inner).masked_fill(filling, 0)
        hidden = _triangle(group.side, group.side, query.device)
        parts = _block_grads(rows, keys, values, grad_rows, logs, inners, hidden)
        flat = parts[0].transpose(1, 2).flatten(2, 3)
        grads[0].index_add_(2, group.places, flat)
        for total, part in zip(grads[1:], parts[1:], strict=True):
            total.index_add_(1, group.places, part.flatten(1, 2))
    for tile in (*blocks.own, *blocks.above):
        queries, columns = slice(tile.start, tile.stop), slice(tile.first, tile.last)
        hidden = _triangle(tile.stop - tile.start, tile.last - tile.first, query.device) if tile.causal else None
        parts = _block_grads(
            query[:, :, queries], key[:, columns], value[:, columns], grad[:, :, queries],
            log_sum[:, :, queries], inner[:, :, queries], hidden,
        )  # fmt: skip
        grads[0][:, :, queries] += parts[0]
        grads[1][:, columns] += parts[1]
        grads[2][:, columns] += parts[2]
    return grads[0].to(query.dtype), grads[1].to(key.dtype), grads[2].to(value.dtype)


def _block_grads(
    query: Any, key: Any, value: Any, grad: Any, log_sum: Any, inner: Any, hidden: Any
) -> tuple[Any, Any, Any]:
    """Float32 gradients of one block's queries (K, ..., G, L, D), keys and values (K, ..., C, D)."""
    weights = _scores(query, key).sub_(log_sum.unsqueeze(-1)).exp_()
    if hidden is not None:
        weights.masked_fill_(hidden, 0)
    stacked = _stacked(grad)
    grad_value = _stacked(weights.to(value.dtype)).transpose(-1, -2) @ stacked
    grad_scores = (stacked @ value.transpose(-1, -2)).view(weights.shape).float()
    grad_scores.sub_(inner.unsqueeze(-1)).mul_(weights)
    flat = _stacked(grad_scores.to(key.dtype))
    grad_query = (flat @ key).view(query.shape)
    return grad_query.float(), (flat.transpose(-1, -2) @ _stacked(query)).float(), grad_value.float()
