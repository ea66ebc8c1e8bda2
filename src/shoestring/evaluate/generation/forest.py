"""Greedy decoding over a prefix forest, with rows that come and go.

What several prompts begin with, on any number of levels (a system turn, the shots of a group), is run once and kept
once; each row holds its own tail alone. Rows that end leave, and prompts that wait take their places, so that the
batch stays full while answers differ in length.

Shapes: B rows, N tokens of a forest, T tokens of a tail, K key/value heads, D head size, V vocabulary.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import ModelError
from ...train.forest import Forest, as_array, laid_out, segments, shared_lengths, sort_key
from ...train.tree_attention import cut
from .attention import Layout, NotOverAForest, Run, plain, switched
from .cache import last_logits, new_cache

# A beginning is held apart from the rows where that saves at least so many tokens; it costs each step a product.
MIN_SHARED_TOKENS = 512
# Prompts that wait are let in, and rows that ended dropped, once so many of the places are free.
FREE_FRAC = 0.25
# Relative difference of two rows of logits (norms) at which they count as the same. Largest found on the embedded
# models, their own pass against the forest: 2e-6 in float32, 0.04 in bfloat16 (2026-11-28; float16 was not measured).
# Attention that a model does otherwise moves them by about 1.
LOGITS_LIMIT = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.05}

# on_done(prompt, new tokens, the row's share of the seconds)
OnDone = Callable[[int, list[int], float], None]


@dataclass(slots=True)
class Row:
    """One prompt on its way; chain: the shared runs above its tail, root first."""

    index: int
    tail: np.ndarray
    depth: int  # tokens before the tail
    chain: tuple[int, ...]
    limit: int  # new tokens at most
    tokens: list[int] = field(default_factory=list)
    since: float = 0.0  # ForestDecoder.spent when it was let in, less its share of reading the prompt
    is_told: bool = False


class ForestDecoder:
    """Answers prompts with one model; `run` may be called again for those that are left when memory ran out.

    Raises: NotOverAForest where the model's own pass gives other logits, ModelError where they are not finite.
    """

    def __init__(
        self,
        model: Any,
        *,
        stop_ids: Sequence[int],
        max_rows: int,
        budget_tokens: int,
        on_done: OnDone,
        name: str = "the model",
    ) -> None:
        if len(set(getattr(model, "hf_device_map", {}).values())) > 1 or not new_cache(model)[1]:
            raise NotOverAForest("layers that are not plain attention, or on several devices")
        self.model, self.stops, self.name = model, frozenset(stop_ids), name
        self.max_rows, self.budget_tokens, self.on_done = max_rows, budget_tokens, on_done
        self.forward = last_logits(model)
        self.is_checked = False
        self.rows: list[Row] = []
        self.cache: Any = None
        self.hidden_BT: Any = None  # True where a row's tail is filling
        self.spent = 0.0  # seconds of all steps, each divided by the rows it served

    def run(self, prompts: Sequence[list[int]], limits: Sequence[int], which: Sequence[int]) -> None:
        """Answer the prompts that `which` names."""
        import torch

        with switched(self.model), torch.no_grad():
            for chunk in self._chunks(prompts, limits, which):
                started = time.monotonic()
                rows, parts = self._planned(prompts, limits, chunk)
                self.runs = self._read_runs(parts)
                self.runs_s = (time.monotonic() - started) / len(rows)
                self._answer(rows, prompts)

    # ---- what is read once ----

    def _chunks(self, prompts: Sequence[list[int]], limits: Sequence[int], which: Sequence[int]) -> Iterator[list[int]]:
        """Prompts with the longest common beginnings together, as many as the memory for keys and values allows."""
        order = sorted(which, key=lambda i: sort_key(as_array(prompts[i])))
        shared = shared_lengths([as_array(prompts[i]) for i in order])
        chunk: list[int] = []
        used = 0
        for i, common in zip(order, shared, strict=True):
            size = len(prompts[i]) + limits[i]
            if chunk and used + size - common > self.budget_tokens:
                yield chunk
                chunk, used, common = [], 0, 0
            chunk.append(i)
            used += size - common
        if chunk:
            yield chunk

    def _planned(
        self, prompts: Sequence[list[int]], limits: Sequence[int], chunk: list[int]
    ) -> tuple[list[Row], list[tuple[np.ndarray, int, int]]]:
        """The rows, those below one run next to each other, and the runs as parts of a forest.

        A row keeps at least its last token: the logits there choose the first new one.
        """
        paths = [as_array(prompts[i]) for i in chunk]
        made, last = segments([path[:-1] for path in paths], MIN_SHARED_TOKENS)
        num_below = [0] * len(made)
        chains = []
        for end in last:
            chain = []
            while end >= 0:
                num_below[end] += 1
                chain.append(end)
                end = made[end].parent
            chains.append(chain[::-1])
        number = {s: n for n, s in enumerate(s for s in range(len(made)) if num_below[s] > 1)}
        parts = []
        for s in number:
            part = made[s]
            parts.append((paths[part.path][part.start : part.stop], part.start, number.get(part.parent, -1)))
        rows = []
        for i, path, chain in zip(chunk, paths, chains, strict=True):
            kept = tuple(number[s] for s in chain if s in number)
            depth = parts[kept[-1]][1] + len(parts[kept[-1]][0]) if kept else 0
            rows.append(Row(i, path[depth:], depth, kept, limits[i]))
        # Runs are numbered depth-first, so the rows below each stay neighbours.
        rows.sort(key=lambda row: (row.chain[-1] if row.chain else -1, -len(row.tail)))
        return rows, parts

    def _read_runs(self, parts: list[tuple[np.ndarray, int, int]]) -> list[Run]:
        if not parts:
            return []
        forest = laid_out(parts)
        cache, _ = self._pass(forest, [], None)
        return [
            Run(tuple((layer.keys[0, :, a:b].contiguous(), layer.values[0, :, a:b].contiguous())
                      for layer in cache.layers))
            for a, b in zip(forest.starts.tolist(), forest.stops.tolist(), strict=True)
        ]  # fmt: skip

    def _pass(self, forest: Forest, above: list[tuple[int, int, Run]], places: Any) -> tuple[Any, Any]:
        """One pass over a forest: its keys and values, and the logits at places (n,), or at the end."""
        import torch

        cache, _ = new_cache(self.model)
        device = self.model.device
        layout = Layout(cut(forest).to(device), None, above)
        logits = self.forward(
            cache,
            places=places,
            layout=layout,
            input_ids=torch.from_numpy(forest.ids)[None].to(device),
            position_ids=torch.from_numpy(forest.positions)[None].to(device),
        )
        self._require_all_asked(layout, cache)
        return cache, logits

    def _require_all_asked(self, layout: Layout, cache: Any) -> None:
        if layout.num_calls != len(cache.layers):
            raise NotOverAForest(f"{layout.num_calls} of {len(cache.layers)} layers asked")

    # ---- answering ----

    def _answer(self, waiting: list[Row], prompts: Sequence[list[int]]) -> None:
        import torch

        self.rows = []
        while waiting or self.rows:
            room = self.max_rows - len(self.rows)
            if waiting and room >= max(1, int(FREE_FRAC * self.max_rows)):
                admitted = self._admissible(waiting, room)
                if admitted:
                    del waiting[: len(admitted)]
                    self._admit(admitted, prompts)
                    continue
            started = time.monotonic()
            num_active = sum(not row.is_told for row in self.rows)
            self.hidden_BT = torch.nn.functional.pad(self.hidden_BT, (0, 1), value=False)
            above = self._ranges([(row.chain, 1) for row in self.rows])
            layout = Layout(None, self.hidden_BT[:, None, None, None, :], above)
            logits_BV = self.forward(
                self.cache,
                layout=layout,
                input_ids=torch.tensor([[row.tokens[-1]] for row in self.rows], device=self.model.device),
                position_ids=torch.tensor(
                    [[row.depth + len(row.tail) + len(row.tokens) - 1] for row in self.rows], device=self.model.device
                ),
            )
            self._require_all_asked(layout, self.cache)
            alive = self._extend(self.rows, logits_BV)
            self.spent += (time.monotonic() - started) / num_active
            self._hand_over(self.rows, alive)
            self._keep(alive)

    def _admissible(self, waiting: list[Row], room: int) -> list[Row]:
        """Of the rows that wait, those that have room: in places, and in memory at the longest tail."""
        longest = max((len(row.tail) + row.limit for row in self.rows), default=0)
        admitted: list[Row] = []
        for row in waiting[:room]:
            longest = max(longest, len(row.tail) + row.limit)
            if (len(self.rows) + len(admitted) + 1) * longest > self.budget_tokens and (self.rows or admitted):
                break
            admitted.append(row)
        return admitted

    def _admit(self, rows: list[Row], prompts: Sequence[list[int]]) -> None:
        """Read the tails of new rows, below what is kept of their beginnings, and choose their first tokens."""
        import torch

        started = time.monotonic()
        parts: list[tuple[np.ndarray, int, int]] = []
        ends: list[int] = []  # of each row, the last of its parts
        num_parts = []  # of each group, parts
        for _, group in itertools.groupby(rows, key=lambda row: row.chain):
            below = list(group)
            tails = [row.tail for row in below]
            made, last = segments(tails)
            first = len(parts)
            parts += [
                (tails[s.path][s.start : s.stop], below[0].depth + s.start, s.parent + first if s.parent >= 0 else -1)
                for s in made
            ]
            ends += [end + first for end in last]
            num_parts.append((below, len(made)))
        forest = laid_out(parts)
        places = [_places(forest, parts, end) for end in ends]
        sizes = iter(forest.stops - forest.starts)
        group_tokens = [(below, int(sum(next(sizes) for _ in range(count)))) for below, count in num_parts]
        above = self._ranges([(below[0].chain, tokens) for below, tokens in group_tokens])
        device = self.model.device
        cache, logits_1BV = self._pass(forest, above, torch.tensor([int(p[-1]) for p in places], device=device))
        alive = self._extend(rows, logits_1BV[0])
        if not self.is_checked:
            self._check(rows, logits_1BV[0], prompts)
        share_s = (time.monotonic() - started) / len(rows) + self.runs_s
        for row in rows:
            row.since = self.spent - share_s
        self._hand_over(rows, alive)
        self._join([row for row, is_alive in zip(rows, alive, strict=True) if is_alive], cache,
                   [place for place, is_alive in zip(places, alive, strict=True) if is_alive])  # fmt: skip

    def _join(self, rows: list[Row], cache: Any, places: list[np.ndarray]) -> None:
        """Put new rows below those under way, the last tokens of all in one column."""
        import torch

        if not rows:
            return
        longest = max(map(len, places))
        device = self.model.device
        index_BT = torch.tensor(np.stack([np.pad(p, (longest - len(p), 0)) for p in places]), device=device)
        lengths_B = torch.tensor([len(p) for p in places], device=device)
        hidden_BT = torch.arange(longest, device=device)[None] < longest - lengths_B[:, None]
        if not self.rows:
            self.cache, _ = new_cache(self.model)
            self.hidden_BT = hidden_BT[:0]
        for own, new in zip(self.cache.layers, cache.layers, strict=True):
            own.join(*(
                part[0].index_select(1, index_BT.flatten()).unflatten(1, index_BT.shape).transpose(0, 1)
                for part in (new.keys, new.values)
            ))  # fmt: skip
        width = max(longest, self.hidden_BT.shape[1])
        self.hidden_BT = torch.cat([
            torch.nn.functional.pad(part, (width - part.shape[1], 0), value=True)
            for part in (self.hidden_BT, hidden_BT)
        ])  # fmt: skip
        self.rows += rows

    def _extend(self, rows: list[Row], logits_BV: Any) -> list[bool]:
        """Give each row its next token; which of them go on. Raises: ModelError."""
        import torch

        next_B = logits_BV.argmax(-1)
        if not torch.isfinite(logits_BV.gather(1, next_B[:, None])).all():
            raise ModelError(f"{self.name} gives logits that are not finite; its weights or its adapter are damaged")
        alive = []
        for row, token in zip(rows, next_B.tolist(), strict=True):
            is_over = bool(row.tokens) and self._is_over(row)
            if not is_over:
                row.tokens.append(token)
            alive.append(not is_over and not self._is_over(row))
        return alive

    def _is_over(self, row: Row) -> bool:
        return row.tokens[-1] in self.stops or len(row.tokens) >= row.limit

    def _hand_over(self, rows: list[Row], alive: list[bool]) -> None:
        """Tell of the rows that have just ended."""
        for row, is_alive in zip(rows, alive, strict=True):
            if not is_alive and not row.is_told:
                row.is_told = True
                self.on_done(row.index, row.tokens, self.spent - row.since)

    def _keep(self, alive: list[bool]) -> None:
        """Drop the rows that ended once they are many, and columns that no row left uses.

        The batch shrinks through the same few sizes each time: kernels on CPU are made, and kept, for each size of
        product. Rows that ended fill it up.
        """
        import torch

        num_alive = sum(alive)
        size = self.max_rows
        while num_alive <= int((1 - FREE_FRAC) * size) < size:
            size = int((1 - FREE_FRAC) * size)
        if num_alive and size >= len(self.rows):
            return
        ended = [i for i, is_alive in enumerate(alive) if not is_alive]
        dropped = set(ended[size - num_alive :] if num_alive else ended)
        places = [i for i in range(len(alive)) if i not in dropped]
        self.rows = [self.rows[i] for i in places]
        if not self.rows:
            return
        kept = torch.tensor(places, device=self.model.device)
        hidden_BT = self.hidden_BT[kept]
        unused = int(hidden_BT.all(0).long().cumprod(0).sum())
        for layer in self.cache.layers:
            layer.reorder_cache(kept)
            if unused:
                layer.drop_first(unused)
        self.hidden_BT = hidden_BT[:, unused:]

    def _ranges(self, groups: Sequence[tuple[tuple[int, ...], int]]) -> list[tuple[int, int, Run]]:
        """Which queries stand below each run; groups: a chain and the number of its queries, in their order."""
        spans: dict[int, list[int]] = {}
        at = 0
        for chain, num in groups:
            for run in chain:
                spans.setdefault(run, [at, at])[1] = at + num
            at += num
        return [(first, last, self.runs[run]) for run, (first, last) in spans.items()]

    # ---- whether it is the model's own answer ----

    def _check(self, rows: list[Row], logits_BV: Any, prompts: Sequence[list[int]]) -> None:
        """Compare the shortest prompt's logits with those of the model's own pass. Raises: NotOverAForest."""
        import torch

        at = min(range(len(rows)), key=lambda i: len(prompts[rows[i].index]))
        ids = torch.tensor([prompts[rows[at].index]], device=self.model.device)
        with plain(self.model):
            plain_V = self.forward(new_cache(self.model)[0], input_ids=ids)[0].float()
        apart = float((logits_BV[at].float() - plain_V).norm() / plain_V.norm().clamp(min=1e-12))
        limit = LOGITS_LIMIT[str(logits_BV.dtype).removeprefix("torch.")]
        if not apart <= limit:
            raise NotOverAForest(f"logits differ by {apart:.2g} from the model's own pass, limit {limit:g}")
        self.is_checked = True


def _places(forest: Forest, parts: list[tuple[np.ndarray, int, int]], end: int) -> np.ndarray:
    """Where the tokens of a row stand in the layout, from the last of its parts upwards."""
    runs: list[np.ndarray] = []
    while end >= 0:
        runs.append(np.arange(forest.starts[end], forest.stops[end]))
        end = parts[end][2]
    return np.concatenate(runs[::-1])
