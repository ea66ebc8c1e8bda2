"""Peak memory of a fine-tune under any profiled stack, by keyword: `shoestring.predict_memory`.

The coefficients are in stacks, Shoestring's own in memory. Peaks compared: loading, the loss's backward (every
layer's kept bytes and the logits), a layer's backward, the optimizer step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput
from .memory import (
    FIXED_FACTOR,
    NF4_BYTES_PER_PARAM,
    RUNTIME_BYTES,
    VARYING_FACTOR,
    MemoryPrediction,
    verdict_of,
)
from .memory import predict_memory as predict_own
from .question import ALL_LINEAR, Asked, read
from .stacks import GPTQ4_BYTES, Stack, layer_bytes, stream_width

# How sure tensors are; what the allocator adds is in the device figures. Errors: bench/plan_accuracy.py.
FIXED_SPREAD, VARYING_SPREAD = (0.98, 1.03), (0.85, 1.25)
WORKSPACE_BYTES = 32 * 2**20  # cuBLAS on Hopper; 8 MiB before
EAGER_SCORES = 3  # scores, scaled, masked: whole in fp32 beside what backward keeps
GATHERED_LAYERS = 2  # a sharded run holds the layer at work and the next
# DeepSpeed's defaults: parameters alive at a time, elements of a reduction bucket, of an optimizer sub-group.
ZERO_LIVE, ZERO_BUCKET, ZERO_GROUP = 1e9, 5e8, 1e9


def predict_memory(
    *,
    model: str | Path | Mapping[str, Any],
    method: str = "lora",
    quantisation: str | None = None,
    lora_rank: int = 16,
    lora_targets: str | Sequence[str] = "all-linear",
    modules_to_save: str | Sequence[str] = (),
    seq_len: int,
    micro_batch: int = 1,
    packing: bool = False,
    gradient_checkpointing: bool = True,
    attention: str = "sdpa",
    optimizer: str = "adamw",
    precision: str = "bf16",
    stack: str = "stock-hf",
    gpu: str,
    num_gpus: int = 1,
    parallelism: str = "single",
    grad_accum: int = 1,
    offload_activations: bool = False,
) -> MemoryPrediction:
    """Peak memory of one GPU, by part, and whether it fits.

    model: a name of `shoestring models`, a config.json or its folder, or its content. quantisation: none, nf4,
    nf4-dq (double quantisation), int8, gptq4, fp8; by default nf4 for qlora. lora_targets: names such as q, v,
    mlp, head, or "all-linear"; modules_to_save: embed_tokens, lm_head, trained whole. A micro-batch holds
    seq_len x micro_batch tokens, padding included; unpacked, the longest rows are taken to have seq_len. gpu: a row
    of the GPU table, or "24 GB".
    Raises: BadInput, ModelError naming what it cannot predict.
    """
    asked = read(**locals())
    return _own(asked) if asked.stack is None else _of_stack(asked, asked.stack)


def refuse_own(asked: Asked) -> None:
    """Raises: BadInput naming what Shoestring's own loop does not do, or what is not predicted of it."""
    refused = {
        f"quantisation = {asked.quantisation!r}": asked.quantisation not in ("none", "nf4", "nf4-dq"),
        "another optimizer than AdamW": asked.optimizer.moment_bytes is not None,
        f"parallelism = {asked.parallelism!r}": asked.parallelism != "single",
        "lora_targets other than all-linear": asked.method != "full" and asked.targets != ALL_LINEAR,
        "modules_to_save": bool(asked.saved),
    }
    for what, is_asked in refused.items():
        if is_asked:
            raise BadInput(f"stack = 'shoestring' is not predicted with {what}; leave it out or name another stack")


def _own(asked: Asked) -> MemoryPrediction:
    """Shoestring's own loop: plan.memory."""
    refuse_own(asked)
    return predict_own(
        asked.shape,
        method=asked.method,
        lora_rank=asked.lora_rank,
        micro_batch_tokens=asked.num_tokens,
        device=asked.device,
        loss_frac=1.0,
        row_tokens=asked.seq_len,
        num_recomputed=asked.shape.num_layers if asked.gradient_checkpointing else 0,
    )


@dataclass(frozen=True, slots=True)
class _States:
    """Bytes on one GPU that do not depend on the micro-batch."""

    weights: float
    layers_gathered: float  # layers a sharded run holds whole while it works on them
    tables_gathered: float  # embedding and head likewise
    adapter: float
    gradients: float  # after the exchange between GPUs
    early_gradients: float  # while a backward begins
    moments: float
    step: float  # temporaries of the optimizer

    @property
    def held(self) -> float:
        """Always there once training has begun."""
        return self.weights + self.adapter + self.moments


def base_bytes(asked: Asked, stack: Stack) -> float:
    """Bytes of the weights the model is held in, over all GPUs."""
    shape = asked.shape
    num_params = shape.num_params + (shape.num_embedding_params if stack.unties_head and shape.tied else 0)
    linear = shape.num_linear_params + (shape.num_embedding_params if stack.quantises_head else 0)
    if asked.quantisation == "none":
        return num_params * asked.weight_width
    each = {"nf4": stack.nf4_bytes, "nf4-dq": NF4_BYTES_PER_PARAM, "int8": 1.0, "gptq4": GPTQ4_BYTES, "fp8": 1.0}
    rest = (num_params - linear) * (4 if asked.is_upcast else asked.width)
    if stack.trains_embedding_copy:
        rest += 2 * shape.num_embedding_params * asked.width
    return linear * each[asked.quantisation] + rest


def _num_tables(asked: Asked, stack: Stack) -> int:
    return 2 if stack.unties_head or not asked.shape.tied else 1


def _states(asked: Asked, stack: Stack) -> _States:
    shape, shards = asked.shape, asked.num_shards
    is_full, is_deepspeed = asked.method == "full", asked.parallelism == "zero3" and asked.precision != "fp32"
    num_trained, trained = asked.num_trained_params / shards, asked.trained_bytes(stack) / shards
    given = asked.optimizer.moment_bytes
    moments = num_trained * given if given is not None else num_trained * 8 if is_deepspeed else 2 * trained
    gradients = trained
    if asked.optimizer.in_backward:
        largest = max(shape.num_linear_params / shape.num_layers, shape.num_embedding_params)
        gradients = largest * asked.weight_width if is_full else 0.0
    # While steps accumulate, gradients stay, and stay whole where the exchange waits for the last step.
    early = gradients if not is_full else gradients * shards if asked.grad_accum > 1 else 0.0
    weights = base_bytes(asked, stack)
    tables: float = _num_tables(asked, stack) * shape.num_embedding_params * asked.width
    layers: float = GATHERED_LAYERS * (weights - tables) / shape.num_layers
    if asked.parallelism == "zero3":
        layers, tables = (min(shape.num_params, ZERO_LIVE) + min(shape.num_params, ZERO_BUCKET)) * asked.width, 0.0
    elif shards == 1:
        layers, tables = 0.0, 0.0
    step = 0.0 if asked.is_step_fused else trained
    if is_deepspeed:  # master weights in fp32; gradients in fp32, a group at a time
        moments, step = moments + num_trained * 4, step + min(num_trained, ZERO_GROUP) * 4
    return _States(
        weights=weights / shards,
        layers_gathered=layers,
        tables_gathered=tables,
        adapter=0.0 if is_full else asked.trained_bytes(stack),
        gradients=gradients,
        early_gradients=early,
        moments=moments,
        step=step,
    )


def _logits(asked: Asked, stack: Stack) -> tuple[float, float]:
    """Bytes of logits kept through backward, and on top of them when it begins."""
    shape, tokens, width = asked.shape, asked.num_tokens, asked.width
    if stack.has_fused_loss:
        wanted = math.ceil(tokens / math.ceil(shape.vocab / shape.hidden))
        # Liger's rule: a chunk's logits weigh about what the input does.
        chunk = min(2 ** math.ceil(math.log2(wanted)), tokens)
        return width * shape.hidden * tokens, chunk * shape.vocab * width
    entries = tokens * shape.vocab
    more = stack.logits_more
    if asked.method == "full" and stack.logits_full_more is not None:
        more = stack.logits_full_more
    chunk = min(stack.loss_chunk_tokens, asked.seq_len) * asked.micro_batch
    return stack.logits_kept * entries, more * entries + chunk * shape.vocab * stack.loss_chunk_bytes


@dataclass(frozen=True, slots=True)
class _MicroBatch:
    """Bytes that grow with the tokens of a micro-batch."""

    kept: float  # checkpoints, or everything backward needs of the layers
    layer: float  # a recomputed layer, and gradients in flight
    logits_kept: float
    logits_more: float  # on top when backward begins


def _micro_batch(asked: Asked, stack: Stack) -> _MicroBatch:
    shape, tokens, run = asked.shape, asked.num_tokens, asked.layer_run()
    stream, one_layer = stream_width(stack, run), layer_bytes(stack, run) * tokens
    in_flight = asked.width * (3 * shape.intermediate + 2 * shape.hidden) * tokens
    if asked.attention == "eager":
        in_flight += EAGER_SCORES * stream * shape.num_heads * asked.seq_len * tokens
    logits_kept, logits_more = _logits(asked, stack)
    if not asked.gradient_checkpointing:
        kept = shape.num_layers * one_layer
        if asked.method == "full" and asked.weight_width > asked.width:  # autocast's 16-bit copies are on the graph
            kept += (shape.num_linear_params + shape.num_embedding_params) * asked.width
        return _MicroBatch(kept, in_flight, logits_kept, logits_more)
    is_offloaded = stack.offloads_checkpoints or asked.offload_activations
    kept = 0.0 if is_offloaded else shape.num_layers * stream * shape.hidden * tokens
    return _MicroBatch(kept, one_layer + in_flight, logits_kept, logits_more)


def _of_stack(asked: Asked, stack: Stack) -> MemoryPrediction:
    states, micro = _states(asked, stack), _micro_batch(asked, stack)
    peaks = _peaks(asked, stack, states, micro)
    phase = max(peaks, key=lambda name: sum(peaks[name].values()))
    return _prediction(asked, stack, phase, {**peaks[phase], "workspace": WORKSPACE_BYTES})


def _peaks(asked: Asked, stack: Stack, states: _States, micro: _MicroBatch) -> dict[str, dict[str, float]]:
    """Parts of each candidate peak."""
    shape, is_full, recomputes = asked.shape, asked.method == "full", asked.gradient_checkpointing
    largest = max(shape.hidden * shape.intermediate, shape.num_embedding_params * stack.quantises_head) * asked.width
    dequantised: float = largest if asked.quantisation not in ("none", "fp8") else 0
    on_graph = 0.0
    if asked.quantisation == "gptq4":  # unpacked by torch, and kept for the product's backward
        dequantised = shape.num_linear_params * asked.width / (shape.num_layers if recomputes else 1)
        on_graph = 0.0 if recomputes else dequantised
    table = shape.num_embedding_params * (asked.weight_width if is_full else 0)
    tables = states.tables_gathered
    lasting = {"weights": states.weights, "adapter": states.adapter, "optimizer": states.moments}
    lasting["checkpoints" if recomputes else "activations"] = micro.kept
    return {
        "load": {"weights": states.weights, "layer": largest},
        "loss": {
            **lasting,
            "gathered": tables / _num_tables(asked, stack) if stack.shards_tables else tables,
            "gradients": states.early_gradients + stack.num_head_gradients * table,
            "logits": micro.logits_kept + micro.logits_more,
            "dequantised": on_graph,
        },
        "backward": {
            **lasting,
            "gathered": states.layers_gathered + (0 if stack.shards_tables else tables),
            "gradients": states.early_gradients + (tables if is_full and asked.grad_accum > 1 else 0),
            "layer": micro.layer,
            "logits": micro.logits_kept if stack.holds_logits else 0,
            "dequantised": dequantised,
        },
        "optimizer_step": {
            "weights": states.weights,
            "adapter": states.adapter,
            "optimizer": states.moments + states.step,
            "gradients": states.gradients,
        },
    }


def _prediction(asked: Asked, stack: Stack, phase: str, parts: dict[str, float]) -> MemoryPrediction:
    varying = sum(parts.get(k, 0) for k in ("checkpoints", "activations", "layer", "logits"))
    fixed = sum(parts.values()) - varying
    low, high = (fixed * f + varying * v for f, v in zip(FIXED_SPREAD, VARYING_SPREAD, strict=True))
    factors = zip(FIXED_FACTOR, VARYING_FACTOR["cuda"], RUNTIME_BYTES["cuda"], strict=True)
    on_device = [fixed * f + varying * v + runtime for f, v, runtime in factors]
    if asked.quantisation == "int8":  # bitsandbytes before 0.45 may hold each matrix in two layouts
        high, on_device[2] = high + asked.shape.num_linear_params, on_device[2] + asked.shape.num_linear_params
    verdict, reason = verdict_of(on_device[0], on_device[1], on_device[2], asked.device)
    parts["runtime"] = RUNTIME_BYTES["cuda"][1]
    return MemoryPrediction(
        allocated_low_bytes=round(low),
        allocated_expected_bytes=round(fixed + varying),
        allocated_high_bytes=round(high),
        device_low_bytes=round(on_device[0]),
        device_expected_bytes=round(on_device[1]),
        device_high_bytes=round(on_device[2]),
        parts={name: round(size) for name, size in parts.items() if size},
        phase=phase,
        verdict=verdict,
        reason=f"{asked.shape.name}: {reason}; the peak is in {phase.replace('_', ' ')}, as {stack.name} trains",
    )
