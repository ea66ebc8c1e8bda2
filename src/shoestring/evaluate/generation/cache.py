"""Keys and values while a model answers, and its logits where they are wanted.

Shapes: B rows, T tokens, K key/value heads, D head size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

# Room for new tokens is made in steps of so many.
GROWTH_TOKENS = 64


def last_logits(model: Any) -> Callable[..., Any]:
    """The model's logits at the last position, or at `places`, computed there alone where the model allows.

    Positions are given as a tensor: the slice that a number selects is not contiguous, and torch then multiplies by
    one copy of the output matrix for each row.
    """
    import torch

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = inspect.signature(base.forward).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values())
    # Renamed in transformers 5.2x.
    cache_name = "cache" if "cache" in known else "past_key_values"

    def forward(cache: Any, *, places: Any = None, layout: Any = None, **inputs: Any) -> Any:
        inputs = {name: value for name, value in inputs.items() if name in known}
        if layout is not None and takes_any:
            inputs["layout"] = layout
        ids = inputs["input_ids"]
        wanted = torch.tensor([ids.shape[1] - 1], device=ids.device) if places is None else places
        if "logits_to_keep" in known:
            inputs["logits_to_keep"] = wanted
        logits = model(**inputs, **{cache_name: cache}, use_cache=True).logits
        if "logits_to_keep" not in known:
            logits = logits[:, wanted]
        return logits[:, -1] if places is None else logits

    return forward


def new_cache(model: Any) -> tuple[Any, bool]:
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

        def drop_first(self, num_tokens: int) -> None:
            """Forget the first tokens of every row."""
            used = self.keys.shape[-2]
            self.room = [r[:, :, num_tokens:] for r in self.room]
            self.keys, self.values = (r[:, :, : used - num_tokens] for r in self.room)

        def join(self, keys: Any, values: Any) -> None:
            """Add rows below those there are; the last tokens of all stand in one column."""
            if not self.is_initialized:
                self.lazy_initialization(keys, values)
                self.room = [keys[:0], values[:0]]
                self.keys, self.values = self.room
            before, used = len(self.keys), max(self.keys.shape[-2], keys.shape[-2])
            room = []
            for old, new in ((self.keys, keys), (self.values, values)):
                made = new.new_zeros(before + len(new), new.shape[1], used + GROWTH_TOKENS, new.shape[3])
                made[:before, :, used - old.shape[-2] : used] = old
                made[before:, :, used - new.shape[-2] : used] = new
                room.append(made)
            self.room = room
            self.keys, self.values = (r[:, :, :used] for r in self.room)

    return GrowingLayer
