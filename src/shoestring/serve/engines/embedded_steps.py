"""Which tokens the next pass of the embedded engine has: one of each row that is answered, and parts of prompts.

While the same rows are answered a pass is the last one, one token on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..engine import Ask, Token
from .embedded_cache import Store
from .embedded_lora import Adapter, Linears, Slots, slot_order
from .embedded_pass import Pass, Run, hidden_above
from .embedded_sampling import Choice
from .embedded_trunk import Trunks, TrunkStore, can_share, find_cut

# Tokens of prompts in one pass: while nothing is answered, and beside rows that are.
READ_TOKENS, READ_BESIDE_TOKENS = 1024, 256
# A mask is made for so many tokens more than there are.
AHEAD_TOKENS = 64


class Forward(Protocol):
    """A model's pass."""

    @property
    def groups(self) -> Sequence[Linears]:
        """Linear layers that adapters may change."""

    @property
    def num_queries_per_key(self) -> int:
        """Query heads of one key/value head."""

    @property
    def is_exclusive(self) -> bool:
        """Whether the model's modules compute, so that nobody else may use them meanwhile."""

    def theirs(self) -> AbstractContextManager[None]:
        """Inside, the model computes as transformers has it."""

    def forward(self, now: Pass) -> Any:
        """Logits (n, V) at the places that are wanted."""


@dataclass(slots=True, eq=False)
class Row:
    """One request on its way. The store holds num_read tokens of ids, which are the prompt and what was answered."""

    ask: Ask
    adapter: Adapter | None
    choice: Choice | None
    sink: Any
    ids: list[int]
    num_read: int = 0
    num_cached: int = 0
    slot: int | None = None
    fresh: list[Token] = field(default_factory=list)  # not told yet
    is_cancelled: bool = False
    is_failed: bool = False

    @property
    def num_prompt(self) -> int:
        return len(self.ask.prompt_ids)

    @property
    def num_new(self) -> int:
        return len(self.ids) - self.num_prompt


class Passes:
    """Makes one pass after the other over the rows of a store."""

    def __init__(self, store: Store, slots: Slots, num_queries_per_key: int) -> None:
        self.store, self.slots, self.num_queries_per_key = store, slots, num_queries_per_key
        self.trunk_store = TrunkStore(store) if can_share(store.held.device) else None
        self.clear()

    def clear(self) -> None:
        """Forget what is kept from pass to pass."""
        if self.trunk_store is not None:
            self.trunk_store.clear()
        self.trunked: tuple[list[Row], Trunks | None] = ([], None)
        self.last: Pass | None = None  # where nothing was read in it
        self.asked: list[Row] = []
        self.ahead: Any = None  # its mask with AHEAD_TOKENS more columns, of which num_ahead are used
        self.num_ahead = 0
        self.held: tuple[Any, list[Row]] = (None, [])

    def next(self, rows: list[Row], num_single: int) -> tuple[Pass, list[Row]]:
        """The pass, and the rows whose next token it gives, in its order. The first num_single rows are answered."""
        is_same = self.last is not None and self.held[0] is self.store.held and self.held[1] == rows
        if is_same and self.num_ahead < AHEAD_TOKENS:
            return self._one_on(), self.asked
        self.last, self.held = None, (None, [])
        now, asked = self._new(rows, num_single)
        if num_single == len(rows):
            self.last, self.asked, self.held = now, asked, (self.store.held, list(rows))
        return now, asked

    def _one_on(self) -> Pass:
        """The last pass, one token on: a row sees one column more, so the mask moves by one."""
        import torch

        now = self.last
        assert now is not None
        self.num_ahead += 1
        now.ids = torch.tensor([row.ids[-1] for row in self.asked], device=self.store.held.device)
        now.positions.add_(1)
        now.written.add_(1)
        now.num_tokens_seen += 1
        now.hidden = self.ahead[..., AHEAD_TOKENS - self.num_ahead :]
        return now

    def _new(self, rows: list[Row], num: int) -> tuple[Pass, list[Row]]:
        import torch

        device, dtype = self.store.held.device, self.store.held.dtype
        order = sorted(range(num), key=lambda i: slot_order(rows[i].slot))
        asked = [rows[i] for i in order]
        ids = [row.ids[-1] for row in asked]
        positions = [row.num_read for row in asked]
        indices, places = order[:], list(range(num))
        slots = [row.slot for row in asked]
        runs: list[Run] = []
        left = READ_BESIDE_TOKENS if num else READ_TOKENS
        for index in range(num, len(rows)):
            row = rows[index]
            start, stop = row.num_read, min(len(row.ids), row.num_read + left)
            if start == stop:
                break
            runs.append(Run(index, start, stop, len(ids), hidden_above(start, stop, dtype=dtype, device=device)))
            ids += row.ids[start:stop]
            positions += range(start, stop)
            indices += [index] * (stop - start)
            slots += [row.slot] * (stop - start)
            left -= stop - start
            if stop < len(row.ids):
                break
            places.append(len(ids) - 1)
            asked.append(row)
        positions_N, rows_N = torch.tensor(positions, device=device), torch.tensor(indices, device=device)
        trunks = self._trunks(rows[:num])
        seen = max(positions[:num], default=-1) + 1
        if num:
            first = 0 if trunks is None else trunks.num_tokens
            by_row = torch.tensor([row.num_read for row in rows[:num]], device=device)
            later = torch.arange(first - AHEAD_TOKENS, seen, device=device)[None] > by_row[:, None]
            self.ahead, self.num_ahead = torch.where(later, -math.inf, 0.0).to(dtype)[:, None, None], 0
        now = Pass(
            ids=torch.tensor(ids, device=device),
            positions=positions_N,
            places=torch.tensor(places, dtype=torch.long, device=device) if runs else None,
            store=self.store,
            written=self.store.write_places(rows_N, positions_N),
            num_single=num,
            order=None if order == list(range(num)) else self._order(order),
            num_tokens_seen=seen,
            hidden=self.ahead[..., AHEAD_TOKENS:] if num else None,
            trunks=trunks,
            runs=runs,
            slots=self.slots,
            share=self.slots.share(slots, num),
        )
        return now, asked

    def _trunks(self, rows: list[Row]) -> Trunks | None:
        """What the rows that are answered begin with together; looked for anew when they are others."""
        if len(rows) < 2 or self.trunk_store is None:
            return None
        if self.trunked[0] != rows:
            adapters, ids = [row.adapter for row in rows], [row.ask.prompt_ids for row in rows]
            cut = find_cut(adapters, ids, [row.num_read for row in rows])
            trunks = None if cut is None else self.trunk_store.trunks(cut, adapters, ids, self.num_queries_per_key)
            self.trunked = (rows, trunks)
        return self.trunked[1]

    def _order(self, order: list[int]) -> tuple[Any, Any]:
        """Of tokens with one a row: the row of each, and the token of each row."""
        import torch

        back = sorted(range(len(order)), key=order.__getitem__)
        device = self.store.held.device
        return torch.tensor(order, device=device), torch.tensor(back, device=device)
