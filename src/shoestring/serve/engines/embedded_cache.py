"""Keys and values of the embedded engine: those of the rows under way, and those of prompts read before.

Shapes: L layers, S rows of the store, K key/value heads, T tokens, D head size.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

# Room for new tokens is made in steps of so many.
GROWTH_TOKENS = 128
# Kept while nothing is under way.
IDLE_BYTES = 64 << 20
# Of the budget, what is left after leaves were dropped: dropping one by one would look at all of them each time.
KEPT_FRAC = 0.875


def keyed_dtype(model: Any) -> Any:
    """The type of keys and values in the store.

    On a CPU float32: its attention of one query a row takes 0.7 ms for 8 rows of 360 tokens in bfloat16, 0.1 in float32
    (3 heads of 64, one core of an EPYC with AVX512-BF16, torch 2.13).
    """
    import torch

    return torch.float32 if model.device.type == "cpu" else model.dtype


class NoRoom(Exception):
    """The rows under way need more memory than the store may take."""


class Store:
    """One tensor (L, S, 2 K, T, D) of keys, then values; row i answers the i-th request under way."""

    def __init__(self, shape: tuple[int, int, int], *, dtype: Any, device: Any, budget_tokens: int) -> None:
        """shape: layers, key/value heads, head size; budget_tokens: S x T at most, but one row always has room."""
        import torch

        self.num_layers, self.num_heads, self.head_size = shape
        self.budget_tokens = budget_tokens
        self.held = torch.empty(self.num_layers, 0, 2 * self.num_heads, 0, self.head_size, dtype=dtype, device=device)
        self.layers: list[Any] = []

    @property
    def token_bytes(self) -> int:
        """Of one token's keys and values."""
        return self.num_layers * 2 * self.num_heads * self.head_size * int(self.held.element_size())

    def require(self, num_rows: int, num_tokens: int) -> None:
        """Room for so many rows of so many tokens; what is held stays. Raises: NoRoom, torch.OutOfMemoryError."""
        rows, tokens = self.held.shape[1], self.held.shape[3]
        if num_rows <= rows and num_tokens <= tokens:
            return
        if num_tokens > tokens:
            num_tokens = -(-max(num_tokens, min(2 * tokens, num_tokens + 1024)) // GROWTH_TOKENS) * GROWTH_TOKENS
        if rows < num_rows <= 2 * rows <= self.budget_tokens // max(num_tokens, tokens):
            rows_then = 2 * rows
        else:
            rows_then = max(num_rows, rows)
        wanted_rows, wanted_tokens = rows_then, max(num_tokens, tokens)
        if wanted_rows * wanted_tokens > self.budget_tokens:
            # Empty rows of the store are given back before a request is.
            wanted_rows = num_rows
            if wanted_rows * wanted_tokens > self.budget_tokens and num_rows > 1:
                raise NoRoom(f"{num_rows} requests of up to {num_tokens} tokens, room for {self.budget_tokens}")
        grown = self.held.new_zeros(
            self.num_layers, wanted_rows, 2 * self.num_heads, wanted_tokens, self.head_size
        )  # never read before written, but for 0 x what was there, which must be finite
        kept = min(rows, wanted_rows)
        grown[:, :kept, :, :tokens] = self.held[:, :kept]
        self.held = grown
        self.layers = list(grown.unbind(0))

    def release(self) -> None:
        """Give large memory back; no row is under way."""
        if self.held.numel() * self.held.element_size() > IDLE_BYTES:
            self.layers = []
            self.held = self.held[:, :0, :, :0].clone()

    def write_places(self, rows: Any, positions: Any) -> Any:
        """Where keys and values of tokens (N,) go in a layer seen as (S * 2 K * T, D): (N * 2 K,)."""
        import torch

        heads, tokens = 2 * self.num_heads, self.held.shape[3]
        of_head = torch.arange(heads, device=self.held.device) * tokens
        return (rows[:, None] * (heads * tokens) + of_head + positions[:, None]).flatten()

    def read(self, row: int, start: int, stop: int) -> Any:
        """A view (n, L, 2 K, D)."""
        return self.held[:, row, :, start:stop].permute(2, 0, 1, 3)

    def write(self, row: int, start: int, keyed: Any) -> None:
        """Put (n, L, 2 K, D) at a place of a row."""
        self.read(row, start, start + len(keyed)).copy_(keyed)

    def move(self, source: int, target: int, num_tokens: int) -> None:
        """Copy a row over another."""
        self.held[:, target, :, :num_tokens] = self.held[:, source, :, :num_tokens]


@dataclass(slots=True, eq=False)
class Node:
    """A run of tokens after those of its parent; places: of their keys and values in what the tree keeps (n,)."""

    ids: tuple[int, ...]
    places: Any
    parent: Node | None
    children: dict[int, Node] = field(default_factory=dict)
    used: int = 0


class PrefixTree:
    """What was read before, by adapter and token ids; of leaves the one unused for longest goes first.

    Keys and values lie token by token in one tensor (budget_tokens, L, 2 K, D) that is made once: pieces of many sizes,
    taken and given back for hours, would leave holes in the process's memory.
    """

    def __init__(self, budget_tokens: int) -> None:
        self.budget_tokens, self.num_tokens = budget_tokens, 0
        self.kept: Any = None
        self.free: list[int] = []  # places of kept that hold nothing
        self.roots: dict[Hashable, Node] = {}
        self.clock = itertools.count(1)

    def find(self, adapter: Hashable, ids: Sequence[int]) -> list[tuple[Node, int]]:
        """The nodes that hold a beginning of ids, and how many tokens of each."""
        found: list[tuple[Node, int]] = []
        node, at, now = self.roots.get(adapter), 0, next(self.clock)
        while node is not None and at < len(ids):
            node.used = now
            child = node.children.get(ids[at])
            if child is None:
                break
            num = _common(child.ids, ids, at)
            child.used = now
            found.append((child, num))
            if num < len(child.ids):
                break
            node, at = child, at + num
        return found

    def add(self, adapter: Hashable, ids: Sequence[int], store: Store, row: int) -> None:
        """Keep the tokens of a row of the store that are not here yet; the row holds all of ids."""
        if len(ids) > self.budget_tokens:
            return
        found = self.find(adapter, ids)
        if self.num_tokens + len(ids) - sum(num for _, num in found) > self.budget_tokens:
            self._shrink(min(int(KEPT_FRAC * self.budget_tokens), self.budget_tokens - len(ids)))
            found = self.find(adapter, ids)  # which may have gone
        node = found[-1][0] if found else self.roots.setdefault(adapter, Node((), None, None))
        if found and found[-1][1] < len(node.ids):
            if sum(num for _, num in found) == len(ids):
                return
            node = self._split(node, found[-1][1])
        known = sum(num for _, num in found)
        if known == len(ids):
            return
        leaf = Node(tuple(ids[known:]), self._keep(store.read(row, known, len(ids))), node, used=next(self.clock))
        node.children[leaf.ids[0]] = leaf
        self.num_tokens += len(leaf.ids)

    def read(self, node: Node, num: int) -> Any:
        """Keys and values of a node's first tokens (num, L, 2 K, D)."""
        return self.kept.index_select(0, node.places[:num])

    def _keep(self, keyed: Any) -> Any:
        """Places (n,) where keys and values (n, L, 2 K, D) now are."""
        import torch

        if self.kept is None:
            # Written, so that the system gives all of it now: memory that is short is noticed early.
            self.kept = keyed.new_empty(self.budget_tokens, *keyed.shape[1:]).fill_(0)
            self.free = list(range(self.budget_tokens - 1, -1, -1))
        taken = self.free[-len(keyed) :]
        del self.free[-len(keyed) :]
        places = torch.tensor(taken, device=keyed.device)
        self.kept.index_copy_(0, places, keyed)
        return places

    def _drop(self, node: Node) -> None:
        self.num_tokens -= len(node.ids)
        self.free += node.places.tolist()

    def forget(self, adapter: Hashable) -> None:
        """Everything read with an adapter."""
        root = self.roots.pop(adapter, None)
        for node in _below(root) if root is not None else ():
            self._drop(node)

    def clear(self) -> None:
        """Everything, where memory has run out."""
        self.roots.clear()
        self.num_tokens, self.kept = 0, None

    def _split(self, node: Node, num: int) -> Node:
        """The node's first tokens as a node of their own, above the rest."""
        parent = node.parent
        assert parent is not None
        upper = Node(node.ids[:num], node.places[:num], parent, used=node.used)
        parent.children[upper.ids[0]] = upper
        node.ids, node.places, node.parent = node.ids[num:], node.places[num:], upper
        upper.children[node.ids[0]] = node
        return upper

    def _shrink(self, num_tokens: int) -> None:
        while self.num_tokens > num_tokens:
            leaves = [node for root in self.roots.values() for node in _below(root) if not node.children]
            for leaf in sorted(leaves, key=lambda node: node.used):
                if self.num_tokens <= num_tokens:
                    break
                assert leaf.parent is not None
                del leaf.parent.children[leaf.ids[0]]
                self._drop(leaf)


def common_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return _common(one if isinstance(one, tuple) else tuple(one), other, 0)


def _common(run: tuple[int, ...], ids: Sequence[int], at: int) -> int:
    limit = min(len(run), len(ids) - at)
    same, apart = 0, limit + 1  # so many are the same, so many are not
    step = limit
    while step:
        if run[same : same + step] == tuple(ids[at + same : at + same + step]):
            same += step
        else:
            apart = same + step
        step = (apart - same) // 2 if apart <= limit else 0
    return same


def _below(root: Node) -> Iterator[Node]:
    stack = list(root.children.values())
    while stack:
        node = stack.pop()
        yield node
        stack += node.children.values()
