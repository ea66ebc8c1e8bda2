"""Loss on the answer tokens alone, with the output head run only where a token bears loss.

Rows are padded on the right and attention is causal, so no real token sees padding and no mask is needed.

Shapes: B rows, T tokens, N loss tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from ..records import Device
from ..units import round_up
from .tokens import Encoded

# Settings under which a model changes its logits after the head; then the model's own forward pass is used.
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
# Matrix kernels are made and kept for each shape: fewer shapes are faster, and on CPU take far less memory
# (a 5.2M Llama on banking77, 100 steps: 1.31 GB and 3,310 tokens a CPU-second, against 1.82 GB and 2,890).
ROUND_WIDTH, ROUND_TARGETS = 8, 64
IGNORED = -100  # target of a position that only fills up; torch's default ignore_index
AT_LOSS_TOKENS, FULL = "head at loss tokens", "head at every token"


def collate(rows: Sequence[Encoded], pad_id: int, *, rounded: bool = False) -> dict[str, Any]:
    """A micro-batch: padded ids, flat positions whose next token bears loss, and those next tokens.

    rounded: width and number of targets are rounded up; the targets added are IGNORED.
    """
    import torch

    longest = max(len(row.ids) for row in rows)
    if rounded:
        longest = round_up(longest, ROUND_WIDTH)
    ids_BT = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    positions: list[int] = []
    targets: list[int] = []
    for index, row in enumerate(rows):
        ids_BT[index, : len(row.ids)] = torch.tensor(row.ids, dtype=torch.long)
        # The first token of a row is predicted by nothing.
        first = max(row.num_prompt_tokens, 1)
        positions += range(index * longest + first - 1, index * longest + len(row.ids) - 1)
        targets += row.ids[first:]
    if rounded:
        num_added = round_up(len(targets), ROUND_TARGETS) - len(targets)
        positions += [0] * num_added
        targets += [IGNORED] * num_added
    return {"ids": ids_BT, "positions": torch.tensor(positions), "targets": torch.tensor(targets)}


def num_loss_tokens(rows: Sequence[Encoded]) -> int:
    """Tokens of the rows that bear loss."""
    return sum(len(row.ids) - max(row.num_prompt_tokens, 1) for row in rows)


def answer_logits(model: Any, batch: dict[str, Any], path: str = AT_LOSS_TOKENS) -> Any:
    """Float32 logits (N, V) that predict the batch's targets."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    if path == FULL:
        logits_BTV = causal(input_ids=batch["ids"], use_cache=False).logits
        return logits_BTV.flatten(0, 1).index_select(0, batch["positions"]).float()
    hidden_BTD = causal.base_model(input_ids=batch["ids"], use_cache=False).last_hidden_state
    hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, batch["positions"])
    return causal.get_output_embeddings()(hidden_ND).float()


def loss_sum(model: Any, batch: dict[str, Any], path: str = AT_LOSS_TOKENS) -> Any:
    """Summed negative log-likelihood of the batch's answer tokens, in float32."""
    import torch.nn.functional as F

    return F.cross_entropy(answer_logits(model, batch, path), batch["targets"], reduction="sum", ignore_index=IGNORED)


def choose_path(model: Any, batch: dict[str, Any]) -> str:
    """The head at loss tokens where that gives the model's own loss on this batch, else its whole forward pass."""
    import torch

    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    if any(getattr(config, name, None) not in (None, 1.0) for name in LOGIT_CHANGES):
        return FULL
    with torch.no_grad():
        fast, full = (float(loss_sum(model, batch, path)) for path in (AT_LOSS_TOKENS, FULL))
    return AT_LOSS_TOKENS if abs(fast - full) <= 1e-3 * abs(full) + 1e-3 else FULL


def mean_loss(
    model: Any, rows: Sequence[Encoded], *, pad_id: int, batch_tokens: int, path: str = AT_LOSS_TOKENS
) -> float:
    """Mean loss a token over rows, without gradient, in batches of at most batch_tokens padded tokens."""
    import torch

    order = sorted(rows, key=lambda row: len(row.ids))
    device = next(model.parameters()).device
    total, count, at = 0.0, 0, 0
    with torch.no_grad():
        while at < len(order):
            size = 1
            while at + size < len(order) and (size + 1) * len(order[at + size].ids) <= batch_tokens:
                size += 1
            batch = {k: v.to(device) for k, v in collate(order[at : at + size], pad_id, rounded=True).items()}
            total += float(loss_sum(model, batch, path))
            count += num_loss_tokens(order[at : at + size])
            at += size
    return total / max(count, 1)


def precision(device: Device) -> contextlib.AbstractContextManager[Any]:
    """Matrix products in the device's 16-bit type while adapter weights stay in float32."""
    if device.dtype == "float32":
        return contextlib.nullcontext()
    import torch

    return torch.autocast(device.kind, dtype=getattr(torch, device.dtype))
