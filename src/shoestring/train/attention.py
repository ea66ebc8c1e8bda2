"""The attention that training registers with transformers: a prefix forest, short rows on a CPU, or torch's own.

A forest comes as the keyword argument `forest` of the model's forward pass, which transformers hands down to every
layer: `Blocks` on a CPU, a FlexAttention BlockMask on CUDA.

Short rows on a CPU in bfloat16 are plain matrix products instead of the flash kernel, whose backward pass costs
about 0.3 ms a head and row however short the row is. Measured on one Xeon core (AMX), 32 rows x 4 heads x 64 tokens,
forward + backward, torch 2.13: flash 35 ms, matrix products 7 ms; equal near 256 tokens; at 1024 tokens flash is 3x
faster.

Shapes: B rows, H heads, K key/value heads, G = H / K, T tokens, D head size.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ..errors import TrainingError
from ..plan.memory import SHORT_ROW_TOKENS
from .tree_attention import Blocks, tree_attention

NAME = "shoestring"
# What an attention layer may ask for beyond scaling and causality, and a forest cannot give.
NOT_IN_A_FOREST = ("softcap", "s_aux", "position_bias")


def beyond_plain(query: Any, value: Any, layout: Any, asked: Mapping[str, Any]) -> str:
    """Why a layer cannot be answered by scaling and causality alone; "" where it can.

    layout: what the pass hands down to its layers, None where they do not. asked: further arguments of the layer.
    """
    if unmet := [name for name in (*NOT_IN_A_FOREST, "sliding_window") if asked.get(name) is not None]:
        return f"attention asks for {', '.join(unmet)}"
    if layout is None:
        return "layers do not hand down what attention is told"
    if query.shape[-1] != value.shape[-1]:
        return f"heads have {query.shape[-1]} numbers in queries and {value.shape[-1]} in values"
    return ""


def use_attention(model: Any, dtype: str = "") -> str:
    """Register and switch on; returns what the model's rows will run through, "" where it keeps its own attention.

    dtype: that products are computed in, where it is not the weights' own.
    """
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation != "sdpa":
        return ""
    computes_in = getattr(torch, dtype) if dtype else model.dtype
    fast_when_short = model.device.type == "cpu" and computes_in == torch.bfloat16
    AttentionInterface.register(NAME, functools.partial(_attend, fast_when_short=fast_when_short))
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return f"matrix products to {SHORT_ROW_TOKENS} tokens, then sdpa" if fast_when_short else "sdpa"


def forest_route(device_kind: str) -> str:
    """The attention that forests run through, in words."""
    return "FlexAttention block mask" if device_kind == "cuda" else "dense blocks of the prefix forest"


def _attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    fast_when_short: bool = False,
    forest: Any = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = _as_autocast(query, key, value)
    if forest is not None:
        return _forest_attention(query, key, value, scale, forest, kwargs), None
    num_tokens = query.shape[2]
    short = fast_when_short and num_tokens <= SHORT_ROW_TOKENS and num_tokens == key.shape[2]
    plain = attention_mask is None and not kwargs.get("dropout") and kwargs.get("position_bias") is None
    causal = kwargs.get("is_causal") if kwargs.get("is_causal") is not None else getattr(module, "is_causal", True)
    if short and plain and causal and query.requires_grad:
        return causal_attention(query, key, value, scale), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def _as_autocast(*tensors: Any) -> tuple[Any, ...]:
    """In autocast's type: rotations in float32 have raised queries and keys, and FlexAttention wants all alike."""
    import torch

    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)


def _forest_attention(query: Any, key: Any, value: Any, scale: float, forest: Any, asked: dict[str, Any]) -> Any:
    unmet = [name for name in NOT_IN_A_FOREST if asked.get(name) is not None]
    window = asked.get("sliding_window")
    if isinstance(forest, Blocks) and window is not None and forest.longest > window:
        unmet.append(f"sliding_window={window} under rows of {forest.longest} tokens")
    if unmet or asked.get("dropout"):
        raise TrainingError(f"tree packing does not cover {', '.join(unmet) or 'attention dropout'} of this model")
    if isinstance(forest, Blocks):
        return tree_attention(query, key, value, forest, scale)
    out = _flex_attention()(query, key, value, block_mask=forest, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


@functools.cache
def _flex_attention() -> Any:
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if torch.cuda.is_available() else flex_attention


def block_mask(subtree_ends_N: Any) -> Any:
    """FlexAttention's mask of a forest: token q sees k where k <= q < subtree_ends[k]."""
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(batch: Any, head: Any, q: Any, k: Any) -> Any:
        return (k <= q) & (q < subtree_ends_N[k])

    size = len(subtree_ends_N)
    return create_block_mask(seen, None, None, size, size, device=subtree_ends_N.device)


def causal_attention(query_BHTD: Any, key_BKTD: Any, value_BKTD: Any, scale: float) -> Any:
    """softmax(scale * q k^T) v under the causal mask, softmax in float32; returns (B, T, H, D)."""
    import torch

    batch, heads, tokens, size = query_BHTD.shape
    groups = heads // key_BKTD.shape[1]
    # The heads of a group share keys and values: one matrix product with their rows stacked.
    query_BKGD = (query_BHTD * scale).reshape(batch, -1, groups * tokens, size)
    scores = (query_BKGD @ key_BKTD.transpose(-1, -2)).view(batch, -1, groups, tokens, tokens)
    hidden_TT = torch.ones(tokens, tokens, dtype=torch.bool, device=scores.device).triu(1)
    weights = torch.softmax(scores.masked_fill(hidden_TT, float("-inf")), dim=-1, dtype=torch.float32)
    weights = weights.to(value_BKTD.dtype).view(batch, -1, groups * tokens, tokens)
    return (weights @ value_BKTD).view(batch, heads, tokens, size).transpose(1, 2)
