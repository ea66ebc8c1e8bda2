"""Attention for short rows on a CPU in bfloat16: plain matrix products instead of the flash kernel.

The flash kernel's backward pass in bfloat16 costs about 0.3 ms a head and row however short the row is.
Measured on one Xeon core (AMX), 32 rows x 4 heads x 64 tokens, forward + backward, torch 2.13:
flash 35 ms, matrix products 7 ms; equal near 256 tokens; at 1024 tokens flash is 3x faster.

Shapes: B rows, H heads, K key/value heads, G = H / K, T tokens, D head size.
"""

from __future__ import annotations

from typing import Any

from ..plan.memory import SHORT_ROW_TOKENS

NAME = "shoestring_short_rows"


def use_short_row_attention(model: Any) -> bool:
    """Switch a model on SDPA to this attention where it is faster: CPU, bfloat16. Longer rows stay on SDPA.

    Returns whether it was switched; True means training steps of at most SHORT_ROW_TOKENS tokens use it.
    """
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    config = model.config
    if model.device.type != "cpu" or model.dtype != torch.bfloat16 or config._attn_implementation != "sdpa":
        return False

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **kwargs: Any
    ) -> tuple[Any, None]:
        num_tokens = query.shape[2]
        short = num_tokens <= SHORT_ROW_TOKENS and num_tokens == key.shape[2]
        plain = attention_mask is None and not kwargs.get("dropout") and kwargs.get("position_bias") is None
        causal = kwargs.get("is_causal") if kwargs.get("is_causal") is not None else getattr(module, "is_causal", True)
        if not (short and plain and causal and query.requires_grad):
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return causal_attention(query, key, value, scale), None

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return True


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
