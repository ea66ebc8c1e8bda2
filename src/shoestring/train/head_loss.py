"""Cross-entropy of a frozen output head in chunks: the logits of all loss tokens are never there at once.

The head bears no gradient, so the gradient of each hidden state is complete once its own logits are known. It is
kept in place of the logits: N x D numbers instead of N x V, and nothing is computed twice (Liger's fused linear
cross-entropy, 2410.10989, does this for a trained head too).

Shapes: N loss tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

# Float32 logits of one chunk.
CHUNK_BYTES = 32 * 2**20


def applies(head: Any) -> bool:
    """Whether the head is a plain linear layer without gradient."""
    import torch

    return type(head) is torch.nn.Linear and not any(p.requires_grad for p in head.parameters())


def chunked_losses(hidden_ND: Any, head: Any, targets_N: Any, ignored: int) -> Any:
    """Negative log-likelihood (N,) of the targets, float32; 0 where a target is `ignored`."""
    import torch

    weight = head.weight
    if torch.is_autocast_enabled(hidden_ND.device.type):
        dtype = torch.get_autocast_dtype(hidden_ND.device.type)
        hidden_ND, weight = hidden_ND.to(dtype), weight.to(dtype)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return _function().apply(hidden_ND, weight, head.bias, targets_N, ignored)


@functools.cache
def _function() -> Any:
    """The autograd function, made once: torch is imported only where it is used."""
    import torch

    class ChunkedLosses(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, targets: Any, ignored: int) -> Any:
            wanted = ctx.needs_input_grad[0]
            rows = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
            losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
            grad = torch.empty_like(hidden) if wanted else None
            for at in range(0, len(hidden), rows):
                part = slice(at, at + rows)
                logits = hidden[part] @ weight.T
                logits = (logits if bias is None else logits + bias).float()
                counted = targets[part] != ignored
                target = torch.where(counted, targets[part], 0).unsqueeze(-1)
                log_sum = logits.logsumexp(-1, keepdim=True)
                losses[part] = torch.where(counted, (log_sum - logits.gather(-1, target)).squeeze(-1), 0)
                if wanted:
                    slope = logits.sub_(log_sum).exp_()  # softmax, less one at the target
                    slope.scatter_add_(-1, target, torch.full_like(log_sum, -1.0))
                    slope.masked_fill_(~counted.unsqueeze(-1), 0)
                    grad[part] = slope.to(weight.dtype) @ weight  # type: ignore[index]
            ctx.save_for_backward(grad)
            return losses

        @staticmethod
        def backward(ctx: Any, upstream: Any) -> Any:
            (grad,) = ctx.saved_tensors
            return grad * upstream.unsqueeze(-1).to(grad.dtype), None, None, None, None

    return ChunkedLosses
