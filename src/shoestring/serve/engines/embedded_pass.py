"""One forward pass of the embedded engine: tokens of many requests, each with its own past and its own adapter.

First come rows that have one token each (they are answered), then runs of a prompt that is being read. Keys and values
go into the store at once; attention reads them there.

Shapes: N tokens of the pass, B rows with one token, n tokens of a run, T tokens of the past, K key/value heads, G query
heads of each, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .embedded_cache import Store
from .embedded_lora import Share, Slots
from .embedded_trunk import Trunks, attention_with_logs, merged


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens of one row's prompt: those from start to stop of the row; first: their place in the pass."""

    row: int
    start: int
    stop: int
    first: int
    hidden: Any  # (n, stop) 0 or -inf, in the type of the store

    @property
    def last(self) -> int:
        return self.first + self.stop - self.start


@dataclass(slots=True)
class Pass:
    """What layers ask for while it runs. ids, positions: (N,); places: (n,) of the tokens whose logits are wanted."""

    ids: Any
    positions: Any
    places: Any
    store: Store
    written: Any  # where keys and values go, as Store.write_places
    num_single: int
    order: tuple[Any, Any] | None  # of those tokens: the row of each, the token of each row; None: their own order
    num_tokens_seen: int  # T of the rows with one token
    hidden: Any  # (B, 1, 1, T - C) 0 or -inf, in the type of the store
    trunks: Trunks | None  # the first C tokens of those rows, or None and C = 0
    runs: Sequence[Run]
    slots: Slots | None
    share: Share | None

    def add_adapters(self, key: str, x_NI: Any, y_NO: Any) -> None:
        """Add to a group's output what the rows' adapters give for its input."""
        if self.share is not None and self.slots is not None:
            self.slots.add(key, x_NI, y_NO, self.share)

    def attend(self, layer: int, query_NHD: Any, keyed_NKD: Any, scale: float) -> Any:
        """Attention of the pass's queries (N, H, D) over their rows; keyed: keys, then values (N, 2 K, D)."""
        import torch

        held = self.store.layers[layer]
        held.view(-1, held.shape[-1]).index_copy_(0, self.written, keyed_NKD.reshape(-1, held.shape[-1]))
        num_kv, size = held.shape[1] // 2, held.shape[-1]
        num, heads = self.num_single, query_NHD.shape[1]
        attention = torch.nn.functional.scaled_dot_product_attention
        outs = []
        if num:
            # Query heads of one key head stand where queries of a sequence would: no key is copied for them.
            query = query_NHD[:num] if self.order is None else query_NHD.index_select(0, self.order[1])
            out = self._over_rows(layer, query.view(num, num_kv, -1, size), scale)
            out = out.reshape(num, -1)
            outs.append(out if self.order is None else out.index_select(0, self.order[0]))
        for run in self.runs:
            past = held[run.row : run.row + 1, :, : run.stop]
            query_1HnD = query_NHD[run.first : run.last].transpose(0, 1)[None]
            keys, values = past[:, :num_kv], past[:, num_kv:]
            groups = heads // num_kv
            if groups > 1:
                query_1HnD = query_1HnD.reshape(1, num_kv, -1, size)
                hidden = run.hidden.repeat(groups, 1)
            else:
                hidden = run.hidden
            out = attention(query_1HnD, keys, values, attn_mask=hidden, scale=scale)
            outs.append(out.view(heads, -1, size).transpose(0, 1).reshape(-1, heads * size))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _over_rows(self, layer: int, query_BKGD: Any, scale: float) -> Any:
        """Query heads of one key head stand where queries of a sequence would: no key is copied for them."""
        import torch

        num, num_kv = query_BKGD.shape[:2]
        first = 0 if self.trunks is None else self.trunks.num_tokens
        rows = self.store.layers[layer][:num, :, first : self.num_tokens_seen]
        keys, values = rows[:, :num_kv], rows[:, num_kv:]
        if self.trunks is None:
            return torch.nn.functional.scaled_dot_product_attention(
                query_BKGD, keys, values, attn_mask=self.hidden, scale=scale
            )
        own, logs = attention_with_logs(query_BKGD, keys, values, self.hidden, scale)
        return merged(own, logs[..., None], *self.trunks.attend(layer, query_BKGD, scale))


def hidden_above(start: int, stop: int, *, dtype: Any, device: Any) -> Any:
    """(stop - start, stop) -inf where a token from start on would see a later one."""
    import torch

    return torch.full((stop - start, stop), float("-inf"), dtype=dtype, device=device).triu_(start + 1)
