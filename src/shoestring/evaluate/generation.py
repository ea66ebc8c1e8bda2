"""Greedy generation in batches with a model on this machine.

An own loop beats `model.generate` here: it runs a prefix that all prompts of a batch share once,
drops finished rows out of the batch, and keeps keys and values in place instead of copying them at
every token. What it returns is what `model.generate(do_sample=False)` returns, to rounding.

Shapes: B rows, P tokens of the shared prefix, T tokens after it, V vocabulary.
"""

from __future__ import annotations

import gc
import inspect
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import DoesNotFit, ModelError
from ..messages import Message, Prompt, read_answer, split_tools
from ..records import Completion, Device, Generate, Progress, no_progress
from ..train.base import encode_prompt, load_base, load_tokenizer, quiet_loading, stop_token_ids
from ..train.world import current

MAX_ROWS = {"cpu": 128, "mps": 128, "cuda": 256}
# Memory for the keys, values and activations of one batch where the device does not say what is free.
BATCH_BYTES = 1 << 30
# Share of the free accelerator memory one batch may take.
FREE_FRAC = 0.5
# Rows are compacted once so many of them have finished.
FINISHED_FRAC = 0.25
# A shared prefix shorter than this is not worth a pass of its own.
MIN_PREFIX_TOKENS = 16
# Room for new tokens is made in steps of so many.
GROWTH_TOKENS = 64


class LocalGenerator:
    """A model, its tokenizer and the limits of what it may be asked; `generate` is a records.Generate."""

    def __init__(self, model: Any, tokenizer: Any, *, max_new_tokens: int, name: str = "the model") -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.max_new_tokens = max_new_tokens
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.context_tokens: int = limit or int(1e9)
        self.stop_ids = stop_token_ids(tokenizer, model)
        if max_new_tokens >= self.context_tokens:
            raise ModelError(
                f"max_new_tokens {max_new_tokens} leaves no room for a prompt in the {self.context_tokens} tokens "
                f"{name} reads; lower task.max_new_tokens"
            )

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, template included."""
        return len(encode_prompt(self.tokenizer, messages))

    def generate(
        self, prompts: list[Prompt], progress: Progress = no_progress, limits: Sequence[int] | None = None
    ) -> list[Completion]:
        """One completion a prompt, in order; equal prompts are run once.

        limits: most new tokens of each prompt (max_new_tokens); of equal prompts the last one's counts.
        latency_s of a row is the wall time of its batch divided by the rows it answers.
        num_completion_tokens counts the end token. Where a prompt declares tools, calls are in the text as
        Message.text writes them. Raises: ModelError, DoesNotFit.
        """
        rows_of: dict[Prompt, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows_of.setdefault(prompt, []).append(row)
        unique = list(rows_of)
        limit_of = dict(zip(prompts, limits or [self.max_new_tokens] * len(prompts), strict=True))
        most = [limit_of[prompt] for prompt in unique]
        ids = [self._encode(prompt, rows_of[prompt][0]) for prompt in unique]
        order = sorted(range(len(unique)), key=lambda i: -len(ids[i]))
        completions: dict[int, Completion] = {}
        was_training = self.model.training
        self.model.eval()
        try:
            progress("generate", 0, len(prompts))
            pending = self._batches(order, ids)
            while pending:
                batch = pending.pop(0)
                started = time.monotonic()
                outputs = self._decode_or_split(batch, ids, most, pending)
                if outputs is None:
                    continue
                num_rows = sum(len(rows_of[unique[i]]) for i in batch)
                latency_s = (time.monotonic() - started) / num_rows
                for i, (tokens, stopped) in zip(batch, outputs, strict=True):
                    text = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                    text = read_answer(text, split_tools(unique[i])[0]).text
                    completion = Completion(text, len(ids[i]), len(tokens), latency_s, stopped=stopped)
                    completions.update((row, completion) for row in rows_of[unique[i]])
                progress("generate", len(completions), len(prompts))
        finally:
            self.model.train(was_training)
        return [completions[row] for row in range(len(prompts))]

    def close(self) -> None:
        """Give the memory back."""
        import torch

        self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _encode(self, prompt: Prompt, row: int) -> list[int]:
        ids = encode_prompt(self.tokenizer, prompt)
        if len(ids) >= self.context_tokens:
            start = prompt[-1].content[:40]
            raise ModelError(
                f"prompt {row + 1} ({start!r}...) has {len(ids)} tokens; {self.name} reads {self.context_tokens}, "
                "which leaves none for the answer; shorten the prompt (fewer shots, a shorter task.instruction), "
                "or take a model with a longer context"
            )
        return ids

    def _batches(self, order: list[int], ids: list[list[int]]) -> list[list[int]]:
        """Prompts of like length together, as many as the memory of a batch allows."""
        kind = self.model.device.type
        budget_tokens = _batch_bytes(kind) // _bytes_per_token(self.model)
        batches: list[list[int]] = []
        for i in order:
            longest = len(ids[batches[-1][0]] if batches else ids[i]) + self.max_new_tokens
            if batches and len(batches[-1]) < min(MAX_ROWS.get(kind, 64), budget_tokens // longest):
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches

    def _decode_or_split(
        self, batch: list[int], ids: list[list[int]], most: list[int], pending: list[list[int]]
    ) -> list[tuple[list[int], bool]] | None:
        """Decode a batch; where memory runs out, put its halves first in line and return None."""
        import torch

        try:
            return decode_greedy(
                self.model,
                [ids[i] for i in batch],
                stop_ids=self.stop_ids,
                pad_id=self.tokenizer.pad_token_id,
                max_new_tokens=self.max_new_tokens,
                name=self.name,
                limits=[min(most[i], self.max_new_tokens, self.context_tokens - len(ids[i])) for i in batch],
            )
        except torch.OutOfMemoryError as error:
            if current().lockstep:
                raise
            if len(batch) == 1:
                raise DoesNotFit(
                    f"{self.name} runs out of memory on one prompt of {len(ids[batch[0]])} tokens with "
                    f"{self.max_new_tokens} new ones ({error}); lower task.max_new_tokens or use method: qlora"
                ) from error
        torch.cuda.empty_cache()
        half = len(batch) // 2
        pending[:0] = [batch[:half], batch[half:]]
        return None


def load_generator(
    model: str,
    adapter_dir: Path | None = None,
    *,
    method: str = "lora",
    device: Device,
    max_new_tokens: int,
    over_all_gpus: bool = False,
) -> LocalGenerator:
    """A model, with an adapter if given, ready to generate; the adapter is not merged.

    over_all_gpus: its layers one after the other on the GPUs of this machine, for a base that fits none of them.
    method: full: adapter_dir holds the whole model, rounded here to the device's type.
    Raises: ModelError, MissingDependency.
    """
    import torch

    if device.kind == "cpu":
        torch.set_num_threads(device.num_threads)
    tokenizer = load_tokenizer(model)
    is_full = method == "full" and adapter_dir is not None
    name, quantise = str(adapter_dir) if is_full else model, method == "qlora"
    network = load_base(name, device=device, quantise=quantise, over_all_gpus=over_all_gpus)
    if adapter_dir is not None and not is_full:
        from peft import PeftModel

        try:
            with quiet_loading():
                network = PeftModel.from_pretrained(network, str(adapter_dir), is_trainable=False)
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"the adapter in {adapter_dir} cannot be put on {model!r}: {reason}; train this rung again"
            ) from error
    return LocalGenerator(network.eval(), tokenizer, max_new_tokens=max_new_tokens, name=model)


def make_generate(model: Any, tokenizer: Any, *, max_new_tokens: int) -> Generate:
    """records.Generate over a model already loaded, such as one in training (its mode is put back)."""
    return LocalGenerator(model, tokenizer, max_new_tokens=max_new_tokens).generate


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
    cache, is_plain = _new_cache(model, num_rows)
    num_prefix = _shared_prefix(prompts) if is_plain and num_rows > 1 else 0
    forward = _last_logits(model)
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


def _last_logits(model: Any) -> Callable[..., Any]:
    """The model's logits at the last position, computed there alone where the model allows.

    The position is given as a tensor: the slice that a number selects is not contiguous, and torch
    then multiplies by one copy of the output matrix for each row.
    """
    import torch

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = inspect.signature(base.forward).parameters
    # Renamed in transformers 5.2x.
    cache_name = "cache" if "cache" in known else "past_key_values"

    def forward(cache: Any, **inputs: Any) -> Any:
        inputs = {name: value for name, value in inputs.items() if name in known}
        if "logits_to_keep" in known:
            inputs["logits_to_keep"] = torch.tensor(
                [inputs["input_ids"].shape[1] - 1], device=inputs["input_ids"].device
            )
        return model(**inputs, **{cache_name: cache}, use_cache=True).logits[:, -1]

    return forward


def _new_cache(model: Any, num_rows: int) -> tuple[Any, bool]:
    """An empty cache, and whether all its layers are plain attention over everything before.

    Only then may padding stand between a shared prefix and the rest.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache(config=model.config)
    is_plain = bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)
    if is_plain:
        cache.layers = [_growing_layer()() for _ in cache.layers]
    return cache, is_plain


@lru_cache(maxsize=1)
def _growing_layer() -> Any:
    """A cache layer that writes into spare room; DynamicLayer copies all keys and values at every token."""
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):
        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.room = [key_states[:, :, :0], value_states[:, :, :0]]
                self.keys, self.values = self.room
            start = self.keys.shape[-2]
            stop = start + key_states.shape[-2]
            if stop > self.room[0].shape[-2]:
                shape = (*key_states.shape[:2], stop + GROWTH_TOKENS)
                grown = [s.new_empty(*shape, s.shape[-1]) for s in (key_states, value_states)]
                for new, old in zip(grown, (self.keys, self.values), strict=True):
                    new[:, :, :start] = old
                self.room = grown
            self.room[0][:, :, start:stop] = key_states
            self.room[1][:, :, start:stop] = value_states
            self.keys, self.values = (r[:, :, :stop] for r in self.room)
            return self.keys, self.values

        def batch_repeat_interleave(self, repeats: int) -> None:
            super().batch_repeat_interleave(repeats)
            self.room = [self.keys, self.values]

        def reorder_cache(self, beam_idx: Any) -> None:
            used = self.keys.shape[-2]
            self.room = [r.index_select(0, beam_idx.to(r.device)) for r in self.room]
            self.keys, self.values = (r[:, :, :used] for r in self.room)

    return GrowingLayer


def _bytes_per_token(model: Any) -> int:
    """Memory a token of a batch takes: keys, values and the widest activations, generously."""
    config = model.config.get_text_config()
    hidden = config.hidden_size
    try:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = heads * (getattr(config, "head_dim", None) or hidden // config.num_attention_heads)
    except (AttributeError, RuntimeError):  # no attention, or heads that differ between layers
        width = hidden
    widest = getattr(config, "intermediate_size", None)
    widest = widest if isinstance(widest, int) else 4 * hidden
    return (2 * config.num_hidden_layers * width + 8 * hidden + 4 * widest) * max(2, model.dtype.itemsize)


def _alone(value: int) -> list[int]:
    return [value]


def _batch_bytes(kind: str) -> int:
    import torch

    if kind == "cuda":
        # Processes that generate together over a base in shards must make the same batches.
        world = current()
        free_bytes = min((world.of_all if world.lockstep else _alone)(torch.cuda.mem_get_info()[0]))
        return int(free_bytes * FREE_FRAC)
    return BATCH_BYTES
