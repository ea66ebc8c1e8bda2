"""What several rows begin with is attended to once: their queries stand together over one copy of it.

A step reads the keys and values of every row; where rows of one adapter share a system prompt, most of that is the
same. All rows are cut at one number of tokens C. Those with the same first C are a group; groups attend to their C
tokens in one call, rows to the rest of their own in another, and the two are weighed by their log-sum-exp.

Shapes: B rows, P groups, M rows of the largest, H heads, K key/value heads, G = H / K, D head size.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .embedded_cache import Store, common_tokens

# Reading twice costs a step about as much as so many tokens of one row, and pays where so large a part is saved.
LEAST_TOKENS, LEAST_FRAC = 384, 0.2


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows cut at num_tokens; groups: of each, its rows."""

    num_tokens: int
    groups: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Trunks:
    """The groups' first tokens.

    layers: (P, 2 K, C, D) each. places (P K M G,): the queries of each group; back (B K G,): where a row's query is.
    None where G is 1 and rows stand as groups do, M of each.
    """

    num_tokens: int
    layers: Sequence[Any]
    places: Any
    back: Any

    def attend(self, layer: int, query_BKGD: Any, scale: float) -> tuple[Any, Any]:
        """(B, K, G, D) and its log-sum-exp (B, K, G, 1), over the groups' first tokens."""
        held = self.layers[layer]
        size, num_kv = held.shape[-1], held.shape[1] // 2
        if self.places is None:
            query = query_BKGD.view(len(held), -1, num_kv, size).transpose(1, 2)
            out, logs = attention_with_logs(query, held[:, :num_kv], held[:, num_kv:], None, scale)
            shape = query_BKGD.shape
            return out.transpose(1, 2).reshape(shape), logs.transpose(1, 2).reshape(*shape[:-1], 1)
        query = query_BKGD.reshape(-1, size).index_select(0, self.places).view(len(held), num_kv, -1, size)
        out, logs = attention_with_logs(query, held[:, :num_kv], held[:, num_kv:], None, scale)
        shape = query_BKGD.shape
        return (
            out.reshape(-1, size).index_select(0, self.back).view(shape),
            logs.reshape(-1).index_select(0, self.back).view(*shape[:-1], 1),
        )


def attention_with_logs(query: Any, keys: Any, values: Any, hidden: Any, scale: float) -> tuple[Any, Any]:
    """Attention of (B, H, n, D), and the log-sum-exp of its scores (B, H, n); on a CPU."""
    import torch

    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, keys, values, 0.0, False, attn_mask=hidden, scale=scale
    )


def merged(one: Any, logs: Any, other: Any, other_logs: Any) -> Any:
    """Both parts of one softmax, weighed."""
    return one.lerp_(other, (other_logs - logs).sigmoid_())


def can_share(device: Any) -> bool:
    """Whether the function above runs here."""
    import torch

    return device.type == "cpu" and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


def find_cut(adapters: Sequence[Any], ids: Sequence[Sequence[int]], lengths: Sequence[int]) -> Cut | None:
    """Where to cut rows of these adapters, prompts and tokens read, so that a step reads least; None: not worth it.

    Rows of one adapter are put in the order of their ids, so that those with a common beginning are neighbours.
    """
    number = {adapter: n for n, adapter in enumerate(dict.fromkeys(adapters))}
    order = sorted(range(len(ids)), key=lambda i: (number[adapters[i]], ids[i]))
    shared = [common_tokens(ids[i], ids[j]) if adapters[i] is adapters[j] else 0 for i, j in itertools.pairwise(order)]
    shortest = min(lengths)

    def saved(cut: int) -> int:
        return cut * sum(common >= cut for common in shared)

    cut = max({min(common, shortest) for common in shared}, key=saved, default=0)
    if saved(cut) < max(LEAST_TOKENS, LEAST_FRAC * len(ids) * max(lengths)):
        return None
    groups: list[list[int]] = [[order[0]]]
    for row, common in zip(order[1:], shared, strict=True):
        if common >= cut:
            groups[-1].append(row)
        else:
            groups.append([row])
    return Cut(cut, tuple(tuple(sorted(group)) for group in groups))


class TrunkStore:
    """Copies of groups' first tokens, kept while rows with the same ones come and go."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.keys: list[tuple[Any, tuple[int, ...]]] = []
        self.num_tokens = 0
        self.layers: list[Any] = []

    def clear(self) -> None:
        """Give the memory back."""
        self.keys, self.num_tokens, self.layers = [], 0, []

    def trunks(self, cut: Cut, adapters: Sequence[Any], ids: Sequence[Sequence[int]], num_groups_of: int) -> Trunks:
        """Of rows that lie in the store in this order. num_groups_of: G."""
        wanted = [(adapters[group[0]], tuple(ids[group[0]][: cut.num_tokens])) for group in cut.groups]
        known = {key: n for n, key in enumerate(self.keys)}
        if cut.num_tokens != self.num_tokens or any(key not in known for key in wanted) or len(known) > len(wanted) + 1:
            self._copy(cut, wanted)
            known = {key: n for n, key in enumerate(self.keys)}
        return Trunks(cut.num_tokens, self.layers, *self._places(cut, [known[key] for key in wanted], num_groups_of))

    def _copy(self, cut: Cut, wanted: list[tuple[Any, tuple[int, ...]]]) -> None:
        import torch

        self.clear()
        rows = torch.tensor([group[0] for group in cut.groups], device=self.store.held.device)
        copied = self.store.held[:, :, :, : cut.num_tokens].index_select(1, rows)
        self.keys, self.num_tokens, self.layers = wanted, cut.num_tokens, list(copied.unbind(0))

    def _places(self, cut: Cut, numbers: list[int], num_groups_of: int) -> tuple[Any, Any]:
        import torch

        device, heads = self.store.held.device, self.store.num_heads
        most = max(map(len, cut.groups))
        rows = [row for _, group in sorted(zip(numbers, cut.groups, strict=True)) for row in group]
        if num_groups_of == 1 and rows == list(range(len(self.keys) * most)):
            return None, None
        # (P, M) row of each place, filled up with any; (B,) place of each row as a number below P M.
        row_of = torch.zeros(len(self.keys), most, dtype=torch.long)
        place_of = torch.empty(sum(map(len, cut.groups)), 2, dtype=torch.long)
        for number, group in zip(numbers, cut.groups, strict=True):
            for m, row in enumerate(group):
                row_of[number, m] = row
                place_of[row] = torch.tensor([number, m])
        k, g = torch.arange(heads), torch.arange(num_groups_of)
        places = (row_of[:, None, :, None] * heads + k[:, None, None]) * num_groups_of + g
        back = ((place_of[:, :1, None] * heads + k[:, None]) * most + place_of[:, 1:, None]) * num_groups_of + g
        return places.flatten().to(device), back.flatten().to(device)
