"""The engine in this process: a base and many adapters, answered together by a thread of its own.

Its logits are held against transformers and PEFT before anything is served: the base's at the start, each adapter's
when it is loaded.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ...errors import BadInput, DoesNotFit, ModelError, ShoestringError
from ...records import Device
from ...train.base import load_base, load_tokenizer, stop_token_ids
from ...train.device import free_bytes
from ...units import gib
from ..engine import BASE, Ask, Busy, Capability, EngineDown, NotLoaded, Piece
from .embedded_cache import PrefixTree, Store, keyed_dtype
from .embedded_check import choose, compare, keyed_shape
from .embedded_loop import Loop
from .embedded_lora import Adapter, Slots, read_adapter
from .embedded_sampling import Grammars, make_choice
from .embedded_steps import Row

MAX_ROWS = {"cpu": 32, "mps": 32, "cuda": 128}
QUEUE_LEN = 256
# Of free memory: what rows under way may take, and at most what is kept of prompts read before.
ROWS_FRAC, PREFIX_FRAC = 0.5, 0.25
# Kept of prompts read before: half of what the weights take, but never less than this.
PREFIX_BYTES = 64 << 20


async def open_embedded(
    model: str,
    *,
    device: Device,
    method: str = "lora",
    max_rows: int | None = None,
    queue_len: int = QUEUE_LEN,
) -> EmbeddedEngine:
    """An engine over a base of that name or folder, without adapters.

    max_rows: requests answered at once; queue_len: requests that wait beyond them. Raises: ModelError, DoesNotFit,
    MissingDependency.
    """
    return await asyncio.to_thread(_open, model, device, method, max_rows, queue_len)


def _open(name: str, device: Device, method: str, max_rows: int | None, queue_len: int) -> EmbeddedEngine:
    tokenizer = load_tokenizer(name)
    model = load_base(name, device=device, quantise=method == "qlora")
    return EmbeddedEngine(
        model, tokenizer, device=device, name=name, max_rows=max_rows or MAX_ROWS[device.kind], queue_len=queue_len
    )


class EmbeddedEngine:
    """serve.engine.Engine over a model that is loaded here."""

    def __init__(self, model: Any, tokenizer: Any, *, device: Device, name: str, max_rows: int, queue_len: int) -> None:
        import torch

        self.model, self.tokenizer, self.name, self.queue_len = model, tokenizer, name, queue_len
        self.context_tokens: int = getattr(model.config.get_text_config(), "max_position_embeddings", None) or int(1e9)
        self.num_ids: int = model.get_input_embeddings().weight.shape[0]  # a tokenizer may know more
        self.stop_ids = frozenset(stop_token_ids(tokenizer, model))
        self.grammars = Grammars(tokenizer, sorted(self.stop_ids), model.get_output_embeddings().weight.shape[0])
        self.forward, self.route = choose(model, name, free_bytes(device))
        self.adapters: dict[str, Adapter] = {}
        self.loading = asyncio.Lock()
        self.num_open = 0
        self.max_rows = max_rows
        is_quantised = getattr(model, "is_quantized", False)
        self.capability = Capability(
            "embedded", mixes_adapters=True, patterns=True, quantised_base=bool(is_quantised), notes=(self.route,)
        )
        store = Store(keyed_shape(model), dtype=keyed_dtype(model), device=model.device, budget_tokens=0)
        free = free_bytes(device)
        store.budget_tokens = int(free * ROWS_FRAC) // store.token_bytes
        if store.budget_tokens < 256:
            raise DoesNotFit(
                f"{name} leaves {gib(free)} GiB free, which holds {store.budget_tokens} tokens of a request; serve "
                "with method: qlora, or on a device with more memory"
            )
        weights_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        kept_bytes = max(PREFIX_BYTES, min(weights_bytes // 2, int(free * PREFIX_FRAC)))
        self.loop = Loop(
            self.forward,
            store,
            PrefixTree(kept_bytes // store.token_bytes),
            Slots(self.forward.groups, dtype=torch.float32, device=model.device),
            stop_ids=self.stop_ids,
            context_tokens=self.context_tokens,
            max_rows=max_rows,
            deliver=_deliver,
            num_threads=device.num_threads,
            name=name,
        )
        self.loop.start()

    # ---- adapters ----

    async def load(self, name: str, folder: Path) -> None:
        """As Engine.load."""
        async with self.loading:
            adapter = await asyncio.to_thread(read_adapter, name, folder, self.forward.groups)
            if self.forward.is_exclusive:
                await self.loop.run_between(lambda: compare(self.forward, self.model, adapter, folder))
            else:
                await asyncio.to_thread(compare, self.forward, self.model, adapter, folder)
        await self.drop(name)
        self.adapters[name] = adapter

    async def drop(self, name: str) -> None:
        """As Engine.drop."""
        adapter = self.adapters.pop(name, None)
        if adapter is not None:
            self.loop.call(lambda: self.loop.forget(adapter))

    # ---- answers ----

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """As Engine.generate."""
        row = await self._row(ask)
        self.num_open += 1
        is_over = False
        try:
            self.loop.submit(row)
            if self.loop.is_over:
                raise EngineDown("the engine has ended; start the server again")
            while not is_over:
                told = await row.sink.get()
                if isinstance(told, ShoestringError):
                    is_over = True
                    raise told
                is_over = bool(told.finish)
                yield told
        finally:
            self.num_open -= 1
            if not is_over:
                self.loop.cancel(row)

    async def _row(self, ask: Ask) -> Row:
        if self.loop.is_over:
            raise EngineDown("the engine has ended; start the server again")
        if self.num_open >= self.max_rows + self.queue_len:
            raise Busy(f"{self.num_open} requests are on their way, {self.queue_len} may wait; come again in a moment")
        if not 0 < len(ask.prompt_ids) < self.context_tokens:
            raise ModelError(
                f"the prompt has {len(ask.prompt_ids)} tokens; {self.name} reads {self.context_tokens}, the answer "
                "included; shorten the prompt"
            )
        if max(ask.prompt_ids) >= self.num_ids:
            raise BadInput(
                f"the prompt holds token {max(ask.prompt_ids)}, and {self.name} has numbers for those below "
                f"{self.num_ids}; leave out the special token that it is"
            )
        if ask.sampling.schema is None:
            choice = make_choice(ask.sampling, self.grammars, self.stop_ids)
        else:  # a grammar may take long to make
            choice = await asyncio.to_thread(make_choice, ask.sampling, self.grammars, self.stop_ids)
        # Last, for it may be dropped meanwhile: what the loop has forgotten must not come back.
        if ask.adapter != BASE and ask.adapter not in self.adapters:
            raise NotLoaded(f"no adapter {ask.adapter!r} is loaded; loaded: {', '.join(self.adapters) or 'none'}")
        adapter = None if ask.adapter == BASE else self.adapters[ask.adapter]
        return Row(ask, adapter, choice, Sink(), list(ask.prompt_ids))

    def stats(self) -> dict[str, float]:
        """As Engine.stats."""
        loop = self.loop
        return {
            "num_running": len(loop.rows),
            "num_waiting": len(loop.waiting) + loop.inbox.qsize(),
            **loop.counts,
            "num_kept_tokens": loop.tree.num_tokens,
            "num_adapters": len(self.adapters),
            "adapter_bytes": sum(adapter.num_bytes for adapter in self.adapters.values()),
        }

    async def close(self) -> None:
        """As Engine.close."""
        self.loop.stop()
        await asyncio.to_thread(self.loop.join)
        self.model = None
        gc.collect()


class Sink:
    """Where the engine's thread puts what one request is told."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Piece | ShoestringError] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self.get, self.put = self.queue.get, self.queue.put_nowait


def _deliver(told: list[tuple[Sink, Piece | ShoestringError]]) -> None:
    """Hand over what one pass gave: each event loop is woken once."""
    by_loop: dict[Any, list[tuple[Sink, Piece | ShoestringError]]] = {}
    for sink, piece in told:
        by_loop.setdefault(sink.loop, []).append((sink, piece))
    for loop, own in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_put, own)


def _put(told: list[tuple[Sink, Piece | ShoestringError]]) -> None:
    for sink, piece in told:
        sink.put(piece)
