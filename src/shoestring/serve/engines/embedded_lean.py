"""The forward pass of Llama, Mistral, Qwen2 and Qwen3 with few calls of the library: one product for q, k, v, one for
gate and up, keys and values written where they stay.

transformers' own modules take about four times as many calls, which is most of the time where a step has few rows. The
weights remain theirs: a layer's matrices become parts of one, in place. `embedded.py` compares it with the model's own
pass before it is used.

Shapes: N tokens of a pass, I hidden size, H query heads, K key/value heads, D head size, V vocabulary.
"""

from __future__ import annotations

import contextlib
from typing import Any

from .embedded_cache import keyed_dtype
from .embedded_lora import Linears
from .embedded_pass import Pass
from .embedded_sizes import has_kernels_by_size, in_few_sizes

PACKED_FOR_ROWS = 8
KNOWN = {"llama", "mistral", "qwen2", "qwen3"}


def refusal(model: Any) -> str:
    """Why the pass below is not this model's, "" where it is."""
    import torch

    config = model.config
    if config.model_type not in KNOWN:
        return f"{config.model_type} models have no short form here"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "attention over a window"
    if config.hidden_act not in ("silu", "swish"):
        return f"activation {config.hidden_act}"
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") not in (
        "default",
        "llama3",
        "linear",
    ):
        return "positions whose frequencies depend on the length"
    linears = [m for layer in model.model.layers for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    if any(type(m) is not torch.nn.Linear for m in linears) or len(linears) != 7 * len(model.model.layers):
        return "layers that are not plain matrices"
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return "layers on several devices"
    return ""


class Lean:
    """A model of these shapes; `forward` is its pass."""

    is_exclusive = False

    def __init__(self, model: Any, *, may_pack: bool) -> None:
        """may_pack: memory has room for a second copy of the weights, in the order that the CPU multiplies them."""
        self.model = model
        self.is_packed = may_pack and _can_pack(model)
        product = packed_product if self.is_packed else plain_product
        self.product = in_few_sizes(product) if has_kernels_by_size(model) else product
        config = model.config
        self.num_heads, self.num_kv = config.num_attention_heads, config.num_key_value_heads
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // self.num_heads
        self.num_queries_per_key = self.num_heads // self.num_kv
        self.num_layers = config.num_hidden_layers
        self.eps = config.rms_norm_eps
        self.kind, self.wide = model.dtype, keyed_dtype(model)
        self.groups: list[Linears] = []
        self.layers = [self._joined(i, layer) for i, layer in enumerate(model.model.layers)]
        self.norm = model.model.norm.weight.to(self.wide)
        self.head = self._packed(model.lm_head.weight, model.lm_head.bias)
        self.rope: tuple[Any, Any] | None = None

    def _packed(self, weight: Any, bias: Any) -> tuple[Any, Any]:
        import torch

        if not self.is_packed:
            return weight, bias
        with torch.inference_mode():
            return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACKED_FOR_ROWS), bias

    def theirs(self) -> contextlib.AbstractContextManager[None]:
        """The model as transformers has it."""
        return contextlib.nullcontext()

    def _joined(self, i: int, layer: Any) -> tuple[Any, ...]:
        name = f"model.layers.{i}"
        attention, mlp = layer.self_attn, layer.mlp
        qkv, gate_up = [attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]
        ways = [
            (f"{name}.self_attn", ("q_proj", "k_proj", "v_proj"), qkv),
            (f"{name}.self_attn", ("o_proj",), [attention.o_proj]),
            (f"{name}.mlp", ("gate_proj", "up_proj"), gate_up),
            (f"{name}.mlp", ("down_proj",), [mlp.down_proj]),
        ]
        weights: list[Any] = []
        for place, names, linears in ways:
            full = tuple(f"{place}.{n}" for n in names)
            sizes = tuple(linear.out_features for linear in linears)
            self.groups.append(Linears(full[0], full, sizes, linears[0].in_features))
            weights += [full[0], self._packed(*_together(linears))]
        norms = [norm.weight.to(self.wide) for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
        of_heads = None
        if hasattr(attention, "q_norm"):
            of_heads = tuple(norm.weight.to(self.wide) for norm in (attention.q_norm, attention.k_norm))
        return (*norms, of_heads, *weights)

    def forward(self, now: Pass) -> Any:
        """Logits (n, V) at the places that are wanted.

        Between products numbers are in the type of the store: on a CPU float32, in which they are quicker than in
        bfloat16, and adapters need no other.
        """
        import torch.nn.functional as F

        heads, num_kv, size = self.num_heads, self.num_kv, self.head_size
        scale, num_rotated, product, kind, wide = size**-0.5, heads + num_kv, self.product, self.kind, self.wide
        x_NI = F.embedding(now.ids, self.model.model.embed_tokens.weight).to(wide)
        cos_N1D, sin_N1D = self._rotation(now)
        shape = (x_NI.shape[-1],)
        for i, layer in enumerate(self.layers):
            norm1, norm2, of_heads, qkv, w_qkv, o, w_o, gate, w_gate, down, w_down = layer
            normed = F.rms_norm(x_NI, shape, norm1, self.eps)
            y = product(normed.to(kind), *w_qkv).to(wide)
            now.add_adapters(qkv, normed, y)
            y_NHD = y.view(-1, heads + 2 * num_kv, size)
            if of_heads is not None:
                for first, last, weight in ((0, heads, of_heads[0]), (heads, num_rotated, of_heads[1])):
                    y_NHD[:, first:last] = F.rms_norm(y_NHD[:, first:last], (size,), weight, self.eps)
            turned = y_NHD[:, :num_rotated]
            crossed = turned.roll(size // 2, -1)  # its sign is in the sines
            turned.mul_(cos_N1D).addcmul_(crossed, sin_N1D)
            seen = now.attend(i, y_NHD[:, :heads], y_NHD[:, heads:], scale)
            x_NI.add_(product(seen.to(kind), *w_o))
            now.add_adapters(o, seen, x_NI)
            normed = F.rms_norm(x_NI, shape, norm2, self.eps)
            y = product(normed.to(kind), *w_gate).to(wide)
            now.add_adapters(gate, normed, y)
            of_gate, up = y.chunk(2, -1)
            gated = F.silu(of_gate).mul_(up)
            x_NI.add_(product(gated.to(kind), *w_down))
            now.add_adapters(down, gated, x_NI)
        wanted = x_NI if now.places is None else x_NI.index_select(0, now.places)
        return product(F.rms_norm(wanted, shape, self.norm, self.eps).to(kind), *self.head)

    def _rotation(self, now: Pass) -> tuple[Any, Any]:
        """Cosines and signed sines (N, 1, D) of the tokens' positions."""
        import torch

        longest = now.store.held.shape[3]
        if self.rope is None or len(self.rope[0]) < longest:
            positions = torch.arange(longest, device=now.ids.device)[None]
            cos, sin = self.model.model.rotary_emb(self.model.model.embed_tokens.weight, positions)
            sign = torch.ones(self.head_size, dtype=sin.dtype, device=sin.device)
            sign[: self.head_size // 2] = -1
            self.rope = (cos[0][:, None].to(self.wide), (sin[0] * sign)[:, None].to(self.wide))
        return self.rope[0].index_select(0, now.positions), self.rope[1].index_select(0, now.positions)


def plain_product(x_NI: Any, weight: Any, bias: Any) -> Any:
    """x W^T + bias."""
    import torch.nn.functional as F

    return F.linear(x_NI, weight, bias)


def packed_product(x_NI: Any, weight: Any, bias: Any) -> Any:
    """The same with a weight that oneDNN has put in its own order; plain ones it puts so at each call."""
    import torch

    return torch.ops.mkldnn._linear_pointwise(x_NI, weight, bias, "none", [], "")


def _can_pack(model: Any) -> bool:
    import torch

    has = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
    return has and model.device.type == "cpu" and model.dtype == torch.bfloat16


def _together(linears: list[Any]) -> tuple[Any, Any]:
    """Weight and bias of layers on one input as one; theirs become parts of it."""
    import torch

    if len(linears) == 1:
        return linears[0].weight, linears[0].bias
    weight = torch.cat([linear.weight.data for linear in linears])
    first = 0
    for linear in linears:
        linear.weight.data = weight[first : first + linear.out_features]
        first += linear.out_features
    biases = [linear.bias for linear in linears]
    if all(bias is None for bias in biases):
        return weight, None
    filled = [torch.zeros(w.out_features, dtype=weight.dtype, device=weight.device) if b is None else b.data
              for w, b in zip(linears, biases, strict=True)]  # fmt: skip
    return weight, torch.cat(filled)
