"""Loss on the answer tokens alone, with the output head run only where a token bears loss.

A path is one prompt with one answer. Paths are padded on the right, where attention is causal, so that no real token
sees padding and no mask is needed; or they are one prefix forest (forest.py).

Shapes: B rows, T tokens, N loss tokens (or tokens of a forest), P paths, M loss tokens of all paths, D hidden size,
V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..records import Device
from ..units import round_up
from .attention import block_mask
from .forest import as_array, plant
from .head_loss import applies, chunked_losses
from .tokens import Encoded
from .tree_attention import cut

# Settings under which a model changes its logits after the head; then the model's own forward pass is used.
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
# Matrix kernels are made and kept for each shape: fewer shapes are faster, and on CPU take far less memory
# (a 5.2M Llama on banking77, 100 steps: 1.31 GB and 3,310 tokens a CPU-second, against 1.82 GB and 2,890).
ROUND_WIDTH, ROUND_TARGETS = 8, 64
PROBED_TARGETS = 64
IGNORED = -100  # target of a position that only fills up; torch's default ignore_index
CHUNKED, AT_LOSS_TOKENS, FULL = "head at loss tokens, in chunks", "head at loss tokens", "head at every token"
Batch = dict[str, Any]


def collate(paths: Sequence[Encoded], pad_id: int, *, rounded: bool = False) -> Batch:
    """A padded micro-batch, one row a path.

    ids (B, T); positions (N,): flat places whose next token bears loss, targets (N,): those tokens, counts (N,): how
    often each bears it; entries, entry_paths (M,): for each path's loss token its place in targets, and the path.
    rounded: width and number of targets are rounded up; the targets added are IGNORED.
    """
    import torch

    longest = max(len(path.ids) for path in paths)
    if rounded:
        longest = round_up(longest, ROUND_WIDTH)
    ids_BT = torch.full((len(paths), longest), pad_id, dtype=torch.long)
    for index, path in enumerate(paths):
        ids_BT[index, : len(path.ids)] = torch.tensor(path.ids, dtype=torch.long)
    places = [np.arange(len(path.ids)) + index * longest for index, path in enumerate(paths)]
    return {"ids": ids_BT, **_targets(paths, places, rounded)}


def collate_forest(paths: Sequence[Encoded], pad_id: int, *, as_blocks: bool = True) -> Batch:
    """The paths as one prefix forest: as collate, with ids (1, N), position_ids, and `forest` for the attention.

    as_blocks: dense blocks (CPU); else subtree_ends (N,), from which CUDA's block mask is made.
    """
    import torch

    forest = plant([as_array(path.ids) for path in paths], pad_id)
    route: Batch = {"forest": cut(forest)} if as_blocks else {"subtree_ends": torch.from_numpy(forest.subtree_ends)}
    return {
        "ids": torch.from_numpy(forest.ids)[None],
        "position_ids": torch.from_numpy(forest.positions)[None],
        **_targets(paths, forest.places, True),
        **route,
    }


def _targets(paths: Sequence[Encoded], places: Sequence[np.ndarray], rounded: bool) -> Batch:
    """Where loss is borne. A place and target that several paths share is there once, counted as often."""
    import torch

    # The first token of a row is predicted by nothing.
    firsts = [max(path.num_prompt_tokens, 1) for path in paths]
    where = np.concatenate([place[first - 1 : -1] for place, first in zip(places, firsts, strict=True)])
    tokens = np.concatenate([np.asarray(p.ids[first:], dtype=np.int64) for p, first in zip(paths, firsts, strict=True)])
    pairs, entries, counts = np.unique(np.stack([where, tokens]), axis=1, return_inverse=True, return_counts=True)
    num_added = round_up(pairs.shape[1], ROUND_TARGETS) - pairs.shape[1] if rounded else 0
    owners = np.repeat(np.arange(len(paths)), [len(p.ids) - first for p, first in zip(paths, firsts, strict=True)])
    return {
        "positions": torch.from_numpy(np.pad(pairs[0], (0, num_added))),
        "targets": torch.from_numpy(np.pad(pairs[1], (0, num_added), constant_values=IGNORED)),
        "counts": torch.from_numpy(np.pad(counts, (0, num_added))).float(),
        "entries": torch.from_numpy(entries.ravel()),
        "entry_paths": torch.from_numpy(owners),
        "num_paths": len(paths),
    }


def few_targets(batch: Batch) -> Batch:
    """At most PROBED_TARGETS of the loss tokens, evenly spaced: logits of a large vocabulary are wide."""
    stride = -(-len(batch["targets"]) // PROBED_TARGETS)
    few = {name: batch[name][::stride] for name in ("positions", "targets", "counts")}
    return {name: value for name, value in {**batch, **few}.items() if name not in ("entries", "entry_paths")}


def num_loss_tokens(paths: Sequence[Encoded]) -> int:
    """Tokens of the paths that bear loss."""
    return sum(len(path.ids) - max(path.num_prompt_tokens, 1) for path in paths)


def on_device(batch: Batch, device: Any) -> Batch:
    """The batch with everything that lives on a device moved there."""
    return {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}


def padded_batches(paths: Sequence[Encoded], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of the paths, by length, in groups of at most batch_tokens padded tokens."""
    order = sorted(range(len(paths)), key=lambda index: len(paths[index].ids))
    group: list[int] = []
    for index in order:
        if group and (len(group) + 1) * len(paths[index].ids) > batch_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _inputs(batch: Batch) -> dict[str, Any]:
    """What the model's forward pass is called with."""
    inputs = {"input_ids": batch["ids"], "use_cache": False}
    if "position_ids" not in batch:
        return inputs
    route = batch["forest"] if "forest" in batch else block_mask(batch["subtree_ends"])
    # transformers leaves a mask of four dimensions alone; the attention of a forest does not look at it.
    unused = batch["ids"].new_zeros((1, 1, 1, 1)).bool()
    return {**inputs, "position_ids": batch["position_ids"], "attention_mask": unused, "forest": route}


def causal(model: Any) -> Any:
    """The causal language model, without PEFT's wrapping."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _hidden(model: Any, batch: Batch) -> Any:
    """Hidden states (N, D) at the batch's positions."""
    hidden_BTD = causal(model).base_model(**_inputs(batch)).last_hidden_state
    return hidden_BTD.flatten(0, 1).index_select(0, batch["positions"])


def answer_logits(model: Any, batch: Batch, path: str = AT_LOSS_TOKENS) -> Any:
    """Float32 logits (N, V) that predict the batch's targets."""
    if path == FULL:
        logits_BTV = causal(model)(**_inputs(batch)).logits
        return logits_BTV.flatten(0, 1).index_select(0, batch["positions"]).float()
    return causal(model).get_output_embeddings()(_hidden(model, batch)).float()


def target_losses(model: Any, batch: Batch, path: str = AT_LOSS_TOKENS) -> Any:
    """Negative log-likelihood (N,) of each target, float32; 0 where it is IGNORED."""
    import torch.nn.functional as F

    if path == CHUNKED:
        head = causal(model).get_output_embeddings()
        return chunked_losses(_hidden(model, batch), head, batch["targets"], IGNORED)
    return F.cross_entropy(answer_logits(model, batch, path), batch["targets"], reduction="none", ignore_index=IGNORED)


def loss_sum(model: Any, batch: Batch, path: str = AT_LOSS_TOKENS) -> Any:
    """Summed negative log-likelihood of the batch's answer tokens, in float32."""
    return (target_losses(model, batch, path) * batch["counts"]).sum()


def path_log_probs(model: Any, batch: Batch, path: str = AT_LOSS_TOKENS) -> Any:
    """Log-probability (P,) of each path's answer, float32."""
    import torch

    losses = target_losses(model, batch, path)
    sums = torch.zeros(batch["num_paths"], dtype=losses.dtype, device=losses.device)
    return -sums.index_add(0, batch["entry_paths"], losses.index_select(0, batch["entries"]))


def choose_path(model: Any, batch: Batch) -> str:
    """The head at loss tokens where that gives the model's own loss on this batch, else its whole forward pass."""
    import torch

    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    if any(getattr(config, name, None) not in (None, 1.0) for name in LOGIT_CHANGES):
        return FULL
    fast = CHUNKED if applies(causal(model).get_output_embeddings()) else AT_LOSS_TOKENS
    with torch.no_grad():
        ours, full = (float(loss_sum(model, batch, path)) for path in (fast, FULL))
    return fast if abs(ours - full) <= 1e-3 * abs(full) + 1e-3 else FULL


def precision(device: Device) -> contextlib.AbstractContextManager[Any]:
    """Matrix products in the device's 16-bit type while adapter weights stay in float32."""
    if device.dtype == "float32":
        return contextlib.nullcontext()
    import torch

    return torch.autocast(device.kind, dtype=getattr(torch, device.dtype))
