"""The forward pass of any model of transformers whose layers ask for attention through its interface.

The modules stay transformers'; attention is ours, over the store, and a hook after each linear layer adds the adapters.
For models without a short form (embedded_lean.py) and for bases in NF4.

Shapes: N tokens of a pass, H query heads, K key/value heads, D head size, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ...errors import ModelError
from ...evaluate.generation.cache import last_logits
from ...train.attention import beyond_plain
from .embedded_lora import Linears
from .embedded_pass import Pass
from .embedded_sizes import filled, has_kernels_by_size

NAME = "shoestring_serves"


class Plain:
    """A model with our attention; `forward` is its pass. Raises: ModelError where attention is not the plain one."""

    is_exclusive = True  # its modules compute, so nobody else may use them meanwhile

    def __init__(self, model: Any) -> None:
        from transformers import AttentionInterface

        self.model = model
        config = model.config.get_text_config()
        num_kv = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.num_queries_per_key = config.num_attention_heads // num_kv
        self.num_layers, self.num_calls = config.num_hidden_layers, 0
        self.now: Pass | None = None
        self.has_kernels_by_size = has_kernels_by_size(model)
        self.groups = [
            Linears(name, (name,), (module.out_features,), module.in_features) for name, module in _linears(model)
        ]
        for name, module in _linears(model):
            module.register_forward_hook(self._hook(name))
        AttentionInterface.register(NAME, _attend)  # without a mask function: transformers then makes no mask
        model.set_attn_implementation(NAME)
        self.logits = last_logits(model)

    @contextlib.contextmanager
    def theirs(self) -> Iterator[None]:
        """The model as transformers has it."""
        self.model.set_attn_implementation("sdpa")
        try:
            yield
        finally:
            self.model.set_attn_implementation(NAME)

    def forward(self, now: Pass) -> Any:
        """Logits (n, V) at the places that are wanted."""
        import torch

        places = torch.arange(len(now.ids), device=now.ids.device) if now.places is None else now.places
        ids, positions = now.ids, now.positions
        if self.has_kernels_by_size:  # what stands after the pass's own tokens is seen by nobody
            ids, positions = filled(ids), filled(positions)
        self.now, self.num_calls = now, 0
        try:
            logits = self.logits(None, places=places, layout=self, input_ids=ids[None], position_ids=positions[None])
        finally:
            self.now = None
        if self.num_calls != self.num_layers:
            raise ModelError(f"{self.num_calls} of {self.num_layers} layers ask for attention through the interface")
        return logits[0]

    def attend(self, layer: int, query_1HND: Any, key_1KND: Any, value_1KND: Any, scale: float) -> Any:
        """(1, N, H, D)"""
        import torch

        now = self.now
        assert now is not None
        self.num_calls += 1
        kind, num = now.store.held.dtype, len(now.ids)
        keyed_NKD = torch.cat([key_1KND[0, :, :num], value_1KND[0, :, :num]]).transpose(0, 1).to(kind)
        out = now.attend(layer, query_1HND[0, :, :num].transpose(0, 1).to(kind), keyed_NKD, scale)
        if self.has_kernels_by_size:
            out = filled(out)
        return out.view(1, -1, query_1HND.shape[1], query_1HND.shape[3]).to(query_1HND.dtype)

    def _hook(self, name: str) -> Any:
        def add(module: Any, given: tuple[Any, ...], output: Any) -> None:
            if self.now is not None:
                num = len(self.now.ids)
                self.now.add_adapters(name, given[0].flatten(0, -2)[:num], output.flatten(0, -2)[:num])

        return add


def _linears(model: Any) -> Iterator[tuple[str, Any]]:
    """Every linear layer but the head."""
    import torch

    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            yield name, module


def _attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    layout: Plain | None = None,
    **asked: Any,
) -> tuple[Any, None]:
    if why := beyond_plain(query, value, layout, asked):
        raise ModelError(why)
    assert layout is not None
    return layout.attend(
        module.layer_idx, query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling
    ), None
