"""Cross-entropy in chunks: the logits of all loss tokens are never there at once.

Of a frozen head, the gradient of each hidden state is complete once its own logits are known. It is kept in place of
the logits: N x D numbers instead of N x V, and nothing is computed twice (Liger's fused linear cross-entropy,
2410.10989). The gradient of a trained head sums over tokens what each token's loss is weighted with, which is known
in backward alone: its logits are computed again there, a chunk at a time (as Cut Cross-Entropy does, 2411.09009).

Shapes: N loss tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from ..plan.memory import HEAD_CHUNK_BYTES


def applies(head: Any) -> bool:
    """Whether the head is a plain linear layer, frozen or trained whole."""
    import torch

    return type(head) is torch.nn.Linear and len({p.requires_grad for p in head.parameters()}) == 1


def chunked_losses(hidden_ND: Any, head: Any, targets_N: Any, ignored: int) -> Any:
    """Negative log-likelihood (N,) of the targets, float32; 0 where a target is `ignored`."""
    import torch

    if torch.is_autocast_enabled(hidden_ND.device.type):
        hidden_ND = hidden_ND.to(torch.get_autocast_dtype(hidden_ND.device.type))
    function = _trained_head() if head.weight.requires_grad else _frozen_head()
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return function.apply(hidden_ND, head.weight, head.bias, targets_N, ignored)


def _chunks(hidden: Any, weight: Any) -> Iterator[slice]:
    """Tokens whose logits are there together."""
    rows = max(1, HEAD_CHUNK_BYTES // (4 * weight.shape[0]))
    return (slice(at, at + rows) for at in range(0, len(hidden), rows))


def _logits(hidden: Any, weight: Any, bias: Any) -> Any:
    """Float32 logits; weight in the type of hidden."""
    logits = hidden @ weight.T
    return (logits if bias is None else logits + bias.to(logits.dtype)).float()


def _losses(logits: Any, target: Any, counted: Any) -> tuple[Any, Any]:
    """Losses (n,), 0 where not counted, and the logarithms of the normaliser (n, 1)."""
    import torch

    log_sum = logits.logsumexp(-1, keepdim=True)
    return torch.where(counted, (log_sum - logits.gather(-1, target)).squeeze(-1), 0), log_sum


def _slope(logits: Any, log_sum: Any, target: Any, counted: Any) -> Any:
    """Gradient of each loss by its logits, in their place: softmax, less one at the target."""
    import torch

    slope = logits.sub_(log_sum).exp_()
    slope.scatter_add_(-1, target, torch.full_like(log_sum, -1.0))
    return slope.masked_fill_(~counted.unsqueeze(-1), 0)


def _of_targets(targets: Any, ignored: int) -> tuple[Any, Any]:
    """Targets (n, 1) with a stand-in where ignored, and which are counted (n,)."""
    import torch

    counted = targets != ignored
    return torch.where(counted, targets, 0).unsqueeze(-1), counted


@functools.cache
def _frozen_head() -> Any:
    """The autograd function, made once: torch is imported only where it is used."""
    import torch

    class ChunkedLosses(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, targets: Any, ignored: int) -> Any:
            wanted, weight = ctx.needs_input_grad[0], weight.to(hidden.dtype)
            losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
            grad = torch.empty_like(hidden) if wanted else None
            for part in _chunks(hidden, weight):
                logits = _logits(hidden[part], weight, bias)
                target, counted = _of_targets(targets[part], ignored)
                losses[part], log_sum = _losses(logits, target, counted)
                if wanted:
                    grad[part] = _slope(logits, log_sum, target, counted).to(weight.dtype) @ weight  # type: ignore[index]
            ctx.save_for_backward(grad)
            return losses

        @staticmethod
        def backward(ctx: Any, upstream: Any) -> Any:
            (grad,) = ctx.saved_tensors
            return grad * upstream.unsqueeze(-1).to(grad.dtype), None, None, None, None

    return ChunkedLosses


@functools.cache
def _trained_head() -> Any:
    """The same for a head whose weight (V, D), float32 or of hidden's type, learns too."""
    import torch

    class ChunkedLossesOfTrained(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, targets: Any, ignored: int) -> Any:
            low = weight.to(hidden.dtype)
            losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
            log_sums = losses.new_empty(len(hidden), 1)
            for part in _chunks(hidden, low):
                logits = _logits(hidden[part], low, bias)
                losses[part], log_sums[part] = _losses(logits, *_of_targets(targets[part], ignored))
            ctx.save_for_backward(hidden, weight, bias, targets, log_sums)
            ctx.ignored = ignored
            return losses

        @staticmethod
        def backward(ctx: Any, upstream: Any) -> Any:
            hidden, weight, bias, targets, log_sums = ctx.saved_tensors
            low, grad_hidden = weight.to(hidden.dtype), torch.empty_like(hidden)
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
            grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
            # A token's share of a step's mean may be too small for 16 bits; the largest is 1 here.
            largest = upstream.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            for part in _chunks(hidden, low):
                target, counted = _of_targets(targets[part], ctx.ignored)
                slope = _slope(_logits(hidden[part], low, bias), log_sums[part], target, counted)
                slope *= (upstream[part] / largest).unsqueeze(-1)
                if grad_bias is not None:
                    grad_bias += slope.sum(0)
                slope = slope.to(hidden.dtype)
                grad_hidden[part] = slope @ low
                grad_weight += slope.T @ hidden[part]
            grad_weight *= largest
            grad_bias = None if grad_bias is None else (grad_bias * largest).to(bias.dtype)
            return grad_hidden * largest.to(hidden.dtype), grad_weight.to(weight.dtype), grad_bias, None, None

    return ChunkedLossesOfTrained
