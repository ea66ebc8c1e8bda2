"""The engine in this process: a base and many adapters, answered together by a thread of its own.

Its logits are held against transformers and PEFT before anything is served: the base's at the start, each adapter's
when it is loaded.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ...errors import DoesNotFit, ModelError, ShoestringError
from ...evaluate.generation.forest import LOGITS_LIMIT
from ...records import Device
from ...train.base import load_base, load_tokenizer, quiet_loading, stop_token_ids
from ...train.device import free_bytes
from ...units import gib
from ..engine import BASE, Ask, Busy, Capability, EngineDown, Piece
from .embedded_cache import PrefixTree, Store, keyed_dtype
from .embedded_loop import Loop
from .embedded_lora import Adapter, Slots, read_adapter
from .embedded_pass import Pass, Run, hidden_above
from .embedded_sampling import Grammars, make_choice
from .embedded_steps import Forward, Row

_yield = getattr(os, "sched_yield", lambda: None)

MAX_ROWS = {"cpu": 32, "mps": 32, "cuda": 128}
QUEUE_LEN = 256
# Of free memory: what rows under way may take, and at most what is kept of prompts read before.
ROWS_FRAC, PREFIX_FRAC = 0.5, 0.25
# Kept of prompts read before: half of what the weights take, but never less than this.
PREFIX_BYTES = 64 << 20
PROBE_TOKENS = 24


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
        self.stop_ids = frozenset(stop_token_ids(tokenizer, model))
        self.grammars = Grammars(tokenizer, sorted(self.stop_ids), model.get_output_embeddings().weight.shape[0])
        self.forward, self.route = _choose(model, name)
        self.adapters: dict[str, Adapter] = {}
        self.loading = asyncio.Lock()
        self.num_open = 0
        self.max_rows = max_rows
        is_quantised = getattr(model, "is_quantized", False)
        self.capability = Capability(
            "embedded", mixes_adapters=True, patterns=True, quantised_base=bool(is_quantised), notes=(self.route,)
        )
        store = Store(_keyed_shape(model), dtype=keyed_dtype(model), device=model.device, budget_tokens=0)
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
            await asyncio.to_thread(self._compare, adapter, folder)
        await self.drop(name)
        self.adapters[name] = adapter

    async def drop(self, name: str) -> None:
        """As Engine.drop."""
        adapter = self.adapters.pop(name, None)
        if adapter is not None:
            self.loop.call(lambda: self.loop.forget(adapter))

    def _compare(self, adapter: Adapter, folder: Path) -> None:
        """The adapter's logits on a probe must be those of PEFT. Raises: ModelError."""
        from peft import PeftModel

        ids = _probe_ids(self.model)
        with quiet_loading():
            tuned = PeftModel.from_pretrained(self.model, str(folder), is_trainable=False)
        try:
            theirs = _own_logits(tuned, ids)
        finally:
            tuned.unload()
        apart = _apart(theirs, probe(self.forward, self.model, ids, adapter))
        limit = LOGITS_LIMIT[str(self.model.dtype).removeprefix("torch.")]
        if not apart <= limit:
            raise ModelError(
                f"with the adapter {adapter.name!r} logits differ by {apart:.2g} from PEFT's, limit {limit:g}; serve "
                "its merged weights instead (shoestring export)"
            )

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
        if ask.adapter != BASE and ask.adapter not in self.adapters:
            raise ModelError(f"no adapter {ask.adapter!r} is loaded; loaded: {', '.join(self.adapters) or 'none'}")
        if not 0 < len(ask.prompt_ids) < self.context_tokens:
            raise ModelError(
                f"the prompt has {len(ask.prompt_ids)} tokens; {self.name} reads {self.context_tokens}, the answer "
                "included; shorten the prompt"
            )
        adapter = None if ask.adapter == BASE else self.adapters[ask.adapter]
        if ask.sampling.schema is None:
            choice = make_choice(ask.sampling, self.grammars, self.stop_ids)
        else:  # a grammar may take long to make
            choice = await asyncio.to_thread(make_choice, ask.sampling, self.grammars, self.stop_ids)
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
    _yield()  # on one core what was handed over is read before the next pass


def _put(told: list[tuple[Sink, Piece | ShoestringError]]) -> None:
    for sink, piece in told:
        sink.put(piece)


# ---- whether it is the model's own answer ----


def _choose(model: Any, name: str) -> tuple[Forward, str]:
    """The quickest pass that gives the model's own logits, and why it is that one. Raises: ModelError."""
    from .embedded_lean import Lean, refusal

    ids = _probe_ids(model)
    theirs = _own_logits(model, ids)
    reason = refusal(model)
    limit = LOGITS_LIMIT[str(model.dtype).removeprefix("torch.")]
    if not reason:
        forward = Lean(model, may_pack=True)
        apart = _apart(theirs, probe(forward, model, ids, None))
        if apart <= limit:
            return forward, f"short form, logits within {apart:.1g} of transformers'"
        reason = f"logits of the short form differ by {apart:.2g} from transformers', limit {limit:g}"
    raise ModelError(f"{name} is not served by the embedded engine: {reason}; take --engine vllm or llamacpp")


def _probe_ids(model: Any) -> list[int]:
    import torch

    generator = torch.Generator().manual_seed(0)
    num_ids = model.get_input_embeddings().weight.shape[0]
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or PROBE_TOKENS
    return torch.randint(num_ids, (min(PROBE_TOKENS, context),), generator=generator).tolist()


def _own_logits(model: Any, ids: list[int]) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float()


def probe(forward: Forward, model: Any, ids: list[int], adapter: Adapter | None) -> Any:
    """Logits (N, V) after each token, the first half read as a run, the others one by one as answers are."""
    import torch

    device, dtype = model.device, keyed_dtype(model)
    with torch.inference_mode():
        store = Store(_keyed_shape(model), dtype=dtype, device=device, budget_tokens=len(ids))
        store.require(1, len(ids))
        slots = Slots(forward.groups, dtype=torch.float32, device=device)
        slot = None if adapter is None else slots.place(adapter, lambda _: True)
        half = len(ids) // 2
        found = []
        for start, stop in [(0, half), *((i, i + 1) for i in range(half, len(ids)))]:
            positions = torch.arange(start, stop, device=device)
            is_run = stop - start > 1
            own = torch.zeros_like(positions)
            now = Pass(
                ids=torch.tensor(ids[start:stop], device=device),
                positions=positions,
                places=None,
                store=store,
                written=store.write_places(own, positions),
                num_single=0 if is_run else 1,
                order=None,
                num_tokens_seen=0 if is_run else stop,
                hidden=None if is_run else torch.zeros(1, 1, 1, stop, dtype=dtype, device=device),
                trunks=None,
                runs=[Run(0, start, stop, 0, hidden_above(start, stop, dtype=dtype, device=device))] if is_run else [],
                slots=slots,
                share=slots.share([slot] * (stop - start), 0 if is_run else 1),
            )
            found.append(forward.forward(now).float())
    return torch.cat(found)


def _apart(theirs: Any, ours: Any) -> float:
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))


def _keyed_shape(model: Any) -> tuple[int, int, int]:
    """Layers, key/value heads, head size."""
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return config.num_hidden_layers, heads, size
