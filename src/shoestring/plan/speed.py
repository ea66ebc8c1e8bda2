"""Tokens a second of a fine-tune under any profiled stack, by keyword: `shoestring.predict_throughput`.

Time of a micro-batch: matrix products at a share of the GPU's best measured product, attention at a share of the
peak, everything else at a share of the memory bandwidth, dequantisation likewise; or the time to launch its kernels,
if that is longer. The bytes that are not matrix products were counted from the operations PyTorch executes forward
and backward (TRAFFIC). Rates and shares are rows of priors.csv, none fitted to a published run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..records import Estimate
from .devices import GpuSpec, gpu_spec
from .predict import base_bytes, refuse_own
from .question import Asked, read
from .shapes import architecture_of
from .stacks import Stack, stream_width
from .throughput import micro_batch_s, optimizer_step_s, prior, priors

# Bytes moved a token and layer outside matrix products, for each unit of hidden, intermediate, q_dim and kv_dim:
# forward, backward. eager: counted over the operations of a Llama layer of transformers 5.24 in bfloat16 (2026-11-28,
# exact to 0.1 for six shapes); fused: norm, rope, SwiGLU and residual each read and written once.
TRAFFIC = {
    "eager": ((82.4, 9.2, 34.4, 8.0), (219.6, 16.8, 45.6, 22.0)),
    "fused": ((14, 6, 4, 4), (22, 12, 4, 4)),
}
# Of one adapter, for each unit of its input and output: copies to fp32 and back, scaling, sum; counted likewise.
ADAPTER_TRAFFIC_COPIES, ADAPTER_TRAFFIC_PLAIN = ((12, 10), (10, 4)), ((0, 10), (6, 4))
# The same where the stream is fp32 over a 4-bit base (prepare_model_for_kbit_training): bitsandbytes casts each
# matrix's input to 16 bits and its output back, PEFT clones the output. eager and adapters: counted over transformers
# 5.24, PEFT 0.21 and bitsandbytes 0.50 under autocast (2026-11-28, exact for seven shapes, tests/test_speed_counts.py);
# fused: twice the 16-bit bytes, and the casts.
TRAFFIC_UPCAST = {
    "eager": ((114.1, 38, 52, 80), (262.1, 54, 76, 88)),
    "fused": ((64, 30, 20, 32), (80, 42, 20, 32)),
}
ADAPTER_TRAFFIC_UPCAST, ADAPTER_TRAFFIC_UPCAST_O = ((6, 30), (18, 10)), ((12, 14), (18, 4))
CAST_KERNELS = (11, 12)  # those casts, forward and backward
EAGER_SCORE_BYTES = (22, 30)  # a score: scaled, masked, softmax in fp32, cast; and back
# Kernels a layer launches forward and backward, counted likewise; each adapter adds some.
KERNELS = {"eager": (43, 74), "fused": (25, 40)}
ADAPTER_KERNELS = (8, 8.5)
LOGIT_TRAFFIC = {"whole": 40, "chunked": 14, "fused": 8}  # bytes a token and entry of the vocabulary
DEQUANTISED_BYTES = {  # a parameter each time a matrix is used
    "none": 0.0,
    "fp8": 0.0,
    "nf4": 2.5,  # half a byte read, two written
    "nf4-dq": 2.5,
    "int8": 3.0,
    "gptq4": 28.5,  # unpacked by torch operations: shift 4.5, cast 5, mask 2, gather 4 + 3, subtract 4, scale 6
}
DEQUANTISE_KERNELS = {"nf4": 1, "nf4-dq": 2, "int8": 2, "gptq4": 9}
ADAM_BYTES = {True: 7.0, False: 21.0}  # of one step, for each byte of a parameter: fused, operation by operation


@dataclass(frozen=True, slots=True)
class ThroughputPrediction:
    """Tokens trained a second, padding included; parts_s is the time of one micro-batch."""

    tokens_per_s_per_gpu: float
    tokens_per_s_per_gpu_low: float
    tokens_per_s_per_gpu_high: float
    tokens_per_s_total: float
    parts_s: dict[str, float]
    reason: str


def predict_throughput(
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
) -> ThroughputPrediction:
    """Tokens a second of training steps, without evaluation, loading and saving; words as in predict_memory.

    Of rows that are not packed give the mean length as seq_len: it decides what a step costs a token.
    Raises: BadInput, ModelError naming what it cannot predict.
    """
    asked = read(**locals())
    spec = gpu_spec(asked.device.name)
    if spec is None:
        raise BadInput(f"gpu = {gpu!r} says a size, not a speed; name a row of the GPU table")
    if asked.quantisation == "fp8" or asked.precision == "fp32":
        raise BadInput("the speed of fp8 and fp32 is not predicted yet; choose bf16, fp16 or nf4")
    if asked.stack is None:
        return _own(asked)
    parts = {pick: _parts_s(asked, asked.stack, spec, pick) for pick in ("value", "low", "high")}
    rate = {pick: asked.num_tokens / _total_s(parts[pick]) for pick in parts}
    return ThroughputPrediction(
        tokens_per_s_per_gpu=rate["value"],
        tokens_per_s_per_gpu_low=rate["low"],
        tokens_per_s_per_gpu_high=rate["high"],
        tokens_per_s_total=rate["value"] * asked.num_gpus,
        parts_s={name: seconds for name, seconds in parts["value"].items() if seconds},
        reason=_reason(asked, asked.stack, spec, parts["value"]),
    )


def _own(asked: Asked) -> ThroughputPrediction:
    """Shoestring's own loop: plan.throughput."""
    refuse_own(asked)
    num_recomputed = asked.shape.num_layers if asked.gradient_checkpointing else 0
    seconds = micro_batch_s(
        asked.shape, asked.method, asked.lora_rank, asked.num_tokens, asked.seq_len, asked.device, num_recomputed
    )
    floor, update = prior(asked.device, "step_floor_s").value, optimizer_step_s(asked.num_trained_params, asked.device)
    step = Estimate(*(getattr(floor, k) + getattr(update, k) for k in ("value", "low", "high"))).scaled(
        1 / asked.grad_accum
    )
    return ThroughputPrediction(
        tokens_per_s_per_gpu=asked.num_tokens / (seconds.value + step.value),
        tokens_per_s_per_gpu_low=asked.num_tokens / (seconds.high + step.high),
        tokens_per_s_per_gpu_high=asked.num_tokens / (seconds.low + step.low),
        tokens_per_s_total=asked.num_tokens / (seconds.value + step.value),
        parts_s={"micro_batch": seconds.value, "step": step.value},
        reason=f"{asked.num_tokens:,} tokens a micro-batch in {seconds.value:.3f} s, every token bearing loss",
    )


def _total_s(parts: dict[str, float]) -> float:
    """Work on the GPU, or the launching of it from Python, whichever takes longer; then exchange and step."""
    on_gpu = sum(parts[k] for k in ("matmul", "attention", "elementwise", "logits", "dequantise"))
    return max(on_gpu, parts["launch"]) + parts["exchange"] + parts["step"]


def _rate(quantity: str, pick: str) -> float:
    """The prior as it makes training slow (low), likely (value) or fast (high)."""
    value: Estimate = priors()["cuda", "", quantity].value
    if quantity == "kernel_s":
        pick = {"low": "high", "high": "low"}.get(pick, pick)
    return float(getattr(value, pick))


def _parts_s(asked: Asked, stack: Stack, spec: GpuSpec, pick: str) -> dict[str, float]:
    shape, tokens = asked.shape, asked.num_tokens
    is_full = asked.method == "full"
    best = spec.measured_flops_per_s or spec.peak_flops_per_s * _rate("unmeasured_matmul_frac", pick)
    best = min(best, spec.power_limited_flops_per_s or best)
    stream = spec.mem_bw_bytes_per_s * _rate("stream_frac", pick)
    forwards = 2 if asked.gradient_checkpointing else 1

    passes = forwards + (2 if is_full else 1)
    linear = 2 * shape.num_linear_params * passes + 2 * asked.num_adapter_params * (forwards + 2)
    head = 2 * shape.vocab * shape.hidden * (3 if is_full or "head" in asked.saved else 2)
    # Causal scores and their product: half of 4 x seq_len x q_dim, 2.5 times as much backward.
    scores = 2 * asked.seq_len * shape.num_heads * shape.head_dim * shape.num_layers * (forwards + 2.5)
    loss = "fused" if stack.has_fused_loss else "chunked" if stack.num_head_gradients else "whole"
    uses = _uses(asked, forwards)
    return {
        "matmul": tokens * (linear + head) / (best * _rate("matmul_frac", pick)),
        "attention": tokens * scores / (spec.peak_flops_per_s * _rate("attention_frac", pick)),
        "elementwise": tokens * shape.num_layers * _traffic_bytes(asked, stack, forwards) / stream,
        "logits": tokens * shape.vocab * LOGIT_TRAFFIC[loss] / stream,
        "dequantise": shape.num_linear_params * DEQUANTISED_BYTES[asked.quantisation] * uses / stream,
        "launch": shape.num_layers * _kernels(asked, stack, forwards) * _rate("kernel_s", pick),
        "exchange": _exchange_bytes(asked, stack, forwards + 1) / spec.link_bytes_per_s,
        "step": _step_bytes(asked, stack) / stream / asked.grad_accum,
    }


def _uses(asked: Asked, forwards: int) -> int:
    """How often a matrix is dequantised: forward and backward, but GPTQ's backward finds it on the graph."""
    return forwards + (asked.quantisation != "gptq4")


def _family(stack: Stack) -> str:
    return "fused" if stack.has_lean_norm or stack.num_mlp_kept == 2 else "eager"


def _traffic_bytes(asked: Asked, stack: Stack, forwards: int) -> float:
    """Bytes moved a token and layer outside matrix products."""
    shape = asked.shape
    q_dim, kv_dim = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sizes = (shape.hidden, shape.intermediate, q_dim, kv_dim)
    is_upcast = _is_upcast(asked, stack)
    counted = (TRAFFIC_UPCAST if is_upcast else TRAFFIC)[_family(stack)]
    forward, backward = (sum(c * s for c, s in zip(side, sizes, strict=True)) for side in counted)
    usual = ADAPTER_TRAFFIC_COPIES if stack.copies_inputs else ADAPTER_TRAFFIC_PLAIN
    wide = {"q": (0, 2), "k": (0, 3), "v": (0, 3), "o": (2, 0), "gate": (0, 1), "up": (0, 1), "down": (1, 0)}
    adapters = [0.0, 0.0]
    for target in asked.targets & set(wide):
        into, out = (sizes[n] for n in wide[target])
        each = (ADAPTER_TRAFFIC_UPCAST_O if target == "o" else ADAPTER_TRAFFIC_UPCAST) if is_upcast else usual
        for side in (0, 1):
            adapters[side] += each[side][0] * into + each[side][1] * out
    if asked.attention == "eager" or (architecture_of(shape.model_type).soft_capped and asked.attention != "flash"):
        forward += EAGER_SCORE_BYTES[0] * shape.num_heads * asked.seq_len
        backward += EAGER_SCORE_BYTES[1] * shape.num_heads * asked.seq_len
    return forwards * (forward + adapters[0]) + backward + adapters[1]


def _is_upcast(asked: Asked, stack: Stack) -> bool:
    """Whether the residual stream is fp32 over 16-bit products."""
    return stream_width(stack, asked.layer_run()) == 4 and asked.width == 2


def _kernels(asked: Asked, stack: Stack, forwards: int) -> float:
    forward, backward = KERNELS[_family(stack)]
    if _is_upcast(asked, stack):
        forward, backward = forward + CAST_KERNELS[0], backward + CAST_KERNELS[1]
    num_adapters = len(asked.targets - {"head"})
    num_matrices = 4 + asked.shape.num_mlp_matrices
    dequantise = num_matrices * DEQUANTISE_KERNELS.get(asked.quantisation, 0) * _uses(asked, forwards)
    adapters = num_adapters * (forwards * ADAPTER_KERNELS[0] + ADAPTER_KERNELS[1])
    return forwards * forward + backward + adapters + dequantise


def _exchange_bytes(asked: Asked, stack: Stack, uses: int) -> float:
    """Bytes a GPU receives for a micro-batch: gathered weights, and gradients once a step."""
    if asked.num_gpus == 1:
        return 0.0
    share = (asked.num_gpus - 1) / asked.num_gpus
    gradients = 2 * asked.num_trained_params * asked.width * share / asked.grad_accum
    return gradients + (uses * base_bytes(asked, stack) * share if asked.num_shards > 1 else 0.0)


def _step_bytes(asked: Asked, stack: Stack) -> float:
    return asked.trained_bytes(stack) * ADAM_BYTES[asked.is_step_fused] / asked.num_shards


def _reason(asked: Asked, stack: Stack, spec: GpuSpec, parts: dict[str, float]) -> str:
    on_gpu = {k: v for k, v in parts.items() if k not in ("launch", "exchange", "step")}
    largest = max(on_gpu, key=lambda k: on_gpu[k])
    bound = f"most of it {largest}"
    if parts["launch"] > sum(on_gpu.values()):
        bound = "held up by launching kernels from Python: larger micro-batches cost little time"
    basis = "measured" if spec.measured_flops_per_s else "assumed share of the peak"
    seconds = f"{asked.num_tokens:,} tokens a micro-batch in {_total_s(parts):.3f} s"
    return f"{seconds}, {bound}; matmul rate {basis}, {stack.name}"
