"""Peak memory of one fine-tune: the largest of loading, backward and the optimizer step, by part.

Sources: which activations a transformer layer keeps, Korthikanti et al. 2022 (arXiv 2205.05198,
section 4); LoRA trains rank x (in + out) parameters a matrix, Hu et al. 2021 (arXiv 2106.09685);
NF4 with double quantisation holds 4 + 8/64 + 32/(64 x 256) = 4.127 bits a parameter, Dettmers et al.
2023 (arXiv 2305.14314, section 3). The activation coefficients below are Korthikanti's derivation done
again for Llama layers, and agree with the bytes autograd keeps (tests/test_plan.py, tests/test_train_methods.py).

Trained whole, a model is held in float32 with gradients and two moments likewise, 16 bytes a parameter, and autocast
copies its matrices to 16 bits for each pass: 2 more (mixed precision, Micikevicius et al. 2018, arXiv 1710.03740).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Device, Estimate
from ..units import gib
from .shapes import ModelShape

NF4_BYTES_PER_PARAM = (4 + 8 / 64 + 32 / (64 * 256)) / 8
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
ADAPTER_BYTES_PER_PARAM = 4  # PEFT holds adapters in fp32 over a 16-bit base
ADAM_BYTES_PER_PARAM = 8  # two fp32 moments
SNAPSHOT_BYTES_PER_PARAM = 12  # a checkpoint: what learns and its moments

# Bytes autograd keeps a token and layer in train/'s loop (autocast over a 16-bit base, adapter inputs not cast
# up): for each unit of hidden, intermediate, q_dim and kv_dim.
# hidden: the two norms' inputs in fp32 (4 + 4) and their outputs, shared by q, k, v and by gate, up (2 x dtype).
# intermediate: gate, silu(gate), up and their product (4 x dtype). q_dim: q, attention output; kv_dim: k, v.
ACTIVATION_BYTES = {
    "16": {"hidden": 12, "intermediate": 8, "q_dim": 4, "kv_dim": 4},
    "32": {"hidden": 16, "intermediate": 16, "q_dim": 8, "kv_dim": 8},
}
# The same where every weight learns: a norm's float32 output before it is scaled (4 + 4), and a copy of its own for
# each of q, k, v, gate and up, whose weights want their input (5 x 2; float32 shares one: 4 + 4).
FULL_ACTIVATION_BYTES = {
    "16": {"hidden": 26, "intermediate": 8, "q_dim": 4, "kv_dim": 4},
    "32": {"hidden": 24, "intermediate": 16, "q_dim": 8, "kv_dim": 8},
}
# DoRA keeps more than LoRA: of every matrix what the base and what the adapter gave, which its lengths multiply.
DORA_MORE_BYTES = {
    "16": {"hidden": 14, "intermediate": 8, "q_dim": 6, "kv_dim": 8},
    "32": {"hidden": 16, "intermediate": 16, "q_dim": 8, "kv_dim": 16},
}
# Of one matrix at a time, in PEFT 0.21: the identity it multiplies A and B with, in float32 and 16 bits, and their
# product, the weight and the sum in float32 or on the way there; for each entry of (input, input) and (output, input).
DORA_SQUARE_BYTES, DORA_MATRIX_BYTES = 6, 18
HEAD_CHUNK_BYTES = 32 * 2**20  # float32 logits that are there at a time: train.head_loss
HEAD_CHUNK_COPIES = 3  # logits, their softmax, a 16-bit copy
NUM_ADAPTED = 7  # q, k, v, o, gate, up, down: each keeps a vector of length rank a token
# train/attention.py takes rows to SHORT_ROW_TOKENS on a CPU in bfloat16, and keeps their attention weights:
# fp32 softmax and 16-bit copy.
SHORT_ROW_TOKENS, SHORT_ROW_BYTES = 256, 6
# Where loss is borne: log-softmax and its gradient in fp32, and the head's 16-bit output.
LOGIT_BYTES = {"16": 10, "32": 8}
LOSS_FRAC_DEFAULT = 0.3  # of a micro-batch's tokens, where the caller does not know

# What the process holds besides tensors, low, expected and high. CPU: resident set of Python with torch,
# transformers, PEFT, datasets and scikit-learn imported, 0.56 GB measured on 2026-11-24, and the decoding of the
# dev rows. CUDA: context and kernels; fitcheck found most of its error there.
RUNTIME_BYTES = {"cpu": (550e6, 640e6, 1200e6), "cuda": (600e6, 750e6, 1100e6), "mps": (500e6, 700e6, 1400e6)}
# oneDNN compiles a bfloat16 kernel for every shape it meets and keeps 1,024 of them: 0.55 GB more after 25 steps
# of 25 row lengths (shoestring-3m, 2026-11-24), and no more in later runs of the process; none in float32.
CPU_BFLOAT16_KERNEL_BYTES = (150e6, 550e6, 1200e6)
# Resident or reserved bytes for each byte predicted. Fixed: weights, adapter, optimizer. Varying: activations and
# logits. On a CPU the heap keeps 1.6 to 1.9 times the predicted activations (four runs of 927 to 2,403 tokens,
# 2026-11-24); on CUDA the caching allocator rounds and splits.
FIXED_FACTOR = (1.0, 1.03, 1.10)
VARYING_FACTOR = {"cpu": (1.2, 1.8, 2.6), "cuda": (0.85, 1.1, 1.5), "mps": (0.9, 1.4, 2.2)}
FIT_FRAC = 0.92  # a prediction whose high end stays under this share of the device fits


@dataclass(frozen=True, slots=True)
class MemoryPrediction:
    """Predicted peak. allocated: tensors; device: with the runtime's share, what the card or host must have."""

    allocated_low_bytes: int
    allocated_expected_bytes: int
    allocated_high_bytes: int
    device_low_bytes: int
    device_expected_bytes: int
    device_high_bytes: int
    parts: dict[str, int]
    phase: str  # load, backward, optimizer_step
    verdict: str  # fits, tight, does_not_fit
    reason: str

    @property
    def device(self) -> Estimate:
        """What the card or host must have."""
        return Estimate(self.device_expected_bytes, self.device_low_bytes, self.device_high_bytes)

    @property
    def allocated(self) -> Estimate:
        """What tensors take."""
        return Estimate(self.allocated_expected_bytes, self.allocated_low_bytes, self.allocated_high_bytes)


def weight_bytes(shape: ModelShape, method: str, dtype: str) -> int:
    """Bytes of the model's weights: NF4 for its linear layers under qlora, the rest in dtype; float32 under full."""
    if method == "full":
        return shape.num_params * DTYPE_BYTES["float32"]
    if method == "qlora":
        rest = shape.num_params - shape.num_linear_params
        return round(shape.num_linear_params * NF4_BYTES_PER_PARAM + rest * DTYPE_BYTES[dtype])
    return shape.num_params * DTYPE_BYTES[dtype]


def _width(dtype: str) -> str:
    return "32" if dtype == "float32" else "16"


def num_trained_params(shape: ModelShape, method: str, lora_rank: int, dora: bool = False) -> int:
    """Parameters that learn."""
    if method == "full":
        return shape.num_params
    return shape.num_adapter_params(lora_rank) + (shape.num_dora_params if dora else 0)


def activation_bytes_per_token(
    shape: ModelShape, lora_rank: int, device: Device, row_tokens: int, *, method: str = "lora", dora: bool = False
) -> int:
    """Bytes kept for backward a token, over all layers, without recomputation; rows have row_tokens each."""
    width = _width(device.dtype)
    each = (FULL_ACTIVATION_BYTES if method == "full" else ACTIVATION_BYTES)[width]
    if dora:
        each = {name: each[name] + more for name, more in DORA_MORE_BYTES[width].items()}
    short = device.kind == "cpu" and device.dtype == "bfloat16" and row_tokens <= SHORT_ROW_TOKENS
    layer = (
        each["hidden"] * shape.hidden
        + each["intermediate"] * shape.intermediate
        + each["q_dim"] * shape.num_heads * shape.head_dim
        + each["kv_dim"] * shape.num_kv_heads * shape.head_dim
        + NUM_ADAPTED * DTYPE_BYTES[device.dtype] * lora_rank
        + (SHORT_ROW_BYTES * row_tokens * shape.num_heads if short else 0)
    )
    return shape.num_layers * layer


def predict_memory(
    shape: ModelShape,
    *,
    method: str,
    lora_rank: int,
    micro_batch_tokens: int,
    device: Device,
    loss_frac: float = LOSS_FRAC_DEFAULT,
    row_tokens: int | None = None,
    num_recomputed: int = 0,
    num_shards: int = 1,
    dora: bool = False,
) -> MemoryPrediction:
    """Peak memory of training; micro_batch_tokens padding included, loss_frac of them bear loss.

    num_recomputed: layers that keep their input alone and run again in backward, one at a time.
    num_shards: devices over which the layers of the base are spread; each holds one part, and two layers in their turn.
    row_tokens: length of a row, where attention depends on it (default: the whole micro-batch is one row).
    """
    dtype, is_full = device.dtype, method == "full"
    weights = weight_bytes(shape, method, dtype)
    if num_shards > 1:
        width = NF4_BYTES_PER_PARAM if method == "qlora" else DTYPE_BYTES[dtype]
        layers = shape.num_linear_params * width
        weights = round(weights - layers + layers / num_shards + 2 * layers / shape.num_layers)
    num_trained = num_trained_params(shape, method, lora_rank, dora)
    adapter, gradients = 0 if is_full else num_trained * ADAPTER_BYTES_PER_PARAM, num_trained * 4
    moments = num_trained * ADAM_BYTES_PER_PARAM
    activations = activation_bytes_per_token(
        shape, lora_rank, device, row_tokens or micro_batch_tokens, method=method, dora=dora
    )
    recomputed_frac = min(num_recomputed, shape.num_layers) / shape.num_layers
    in_turn = activations / shape.num_layers if recomputed_frac else 0
    inputs = recomputed_frac * shape.num_layers * shape.hidden * DTYPE_BYTES["float32" if is_full else dtype]
    activations = round((activations * (1 - recomputed_frac) + in_turn + inputs) * micro_batch_tokens)
    logits = round(loss_frac * micro_batch_tokens) * shape.vocab * LOGIT_BYTES[_width(dtype)]
    copies = table_gradient = 0
    if is_full:
        logits = min(logits, HEAD_CHUNK_COPIES * HEAD_CHUNK_BYTES)
        if dtype != "float32":
            copies = (shape.num_linear_params + shape.num_embedding_params) * DTYPE_BYTES[dtype]
        table_gradient = shape.num_embedding_params * DTYPE_BYTES["float32"]  # before it joins the others
    # One layer's gradients in flight: gate, up and their product, and the residual stream, in fp32.
    in_flight = micro_batch_tokens * (3 * shape.intermediate + 2 * shape.hidden) * 4
    largest_matrix = shape.hidden * max(shape.intermediate, shape.num_heads * shape.head_dim)
    dequantised = largest_matrix * DTYPE_BYTES[dtype] if method == "qlora" else 0
    if dora:
        dequantised += DORA_SQUARE_BYTES * shape.intermediate**2 + DORA_MATRIX_BYTES * largest_matrix
    runtimes = list(RUNTIME_BYTES[device.kind])
    if device.kind == "cpu" and dtype == "bfloat16":
        runtimes = [a + b for a, b in zip(runtimes, CPU_BFLOAT16_KERNEL_BYTES, strict=True)]

    # Loading streams tensor by tensor; the largest one exists twice (file and device).
    load = weights + max(largest_matrix, shape.num_embedding_params) * DTYPE_BYTES[dtype]
    passing = copies + table_gradient + dequantised
    # A checkpoint is copied before it is written where the host has twice the room (train.saving).
    snapshot = SNAPSHOT_BYTES_PER_PARAM * num_trained if is_full and device.kind == "cpu" else 0
    if 2 * snapshot > device.memory_bytes - weights - gradients - moments - passing:
        snapshot = 0
    passing += snapshot
    backward = weights + adapter + gradients + moments + activations + logits + in_flight + passing
    step = weights + adapter + gradients + moments + adapter
    phase, allocated = max((("load", load), ("backward", backward), ("optimizer_step", step)), key=lambda p: p[1])
    varying = activations + logits + in_flight if phase == "backward" else 0
    fixed = allocated - varying
    factors = zip(FIXED_FACTOR, VARYING_FACTOR[device.kind], strict=True)
    low, expected, high = (round(fixed * f + varying * v) for f, v in factors)
    on_device = [round(t + r) for t, r in zip((low, expected, high), runtimes, strict=True)]
    parts = {
        "weights": weights,
        "adapter": adapter,
        "gradients": gradients + table_gradient,
        "optimizer": moments,
        "copies": copies + snapshot,
        "activations": activations + in_flight,
        "logits": logits,
        "dequantised": dequantised,
        "runtime": round(runtimes[1]),
    }
    verdict, reason = verdict_of(on_device[0], on_device[1], on_device[2], device)
    return MemoryPrediction(
        allocated_low_bytes=low,
        allocated_expected_bytes=expected,
        allocated_high_bytes=high,
        device_low_bytes=on_device[0],
        device_expected_bytes=on_device[1],
        device_high_bytes=on_device[2],
        parts=parts,
        phase=phase,
        verdict=verdict,
        reason=f"{reason}; the peak is in {phase.replace('_', ' ')}",
    )


def verdict_of(low: float, expected: float, high: float, device: Device) -> tuple[str, str]:
    """fits, tight or does_not_fit, and the numbers in words; all bytes of the device, not of tensors alone."""
    have = device.memory_bytes
    numbers = f"{gib(expected)} expected ({gib(low)} to {gib(high)}) of {gib(have)} on {device.name}"
    if high <= FIT_FRAC * have:
        return "fits", numbers
    if expected <= FIT_FRAC * have:
        return "tight", f"{numbers}: the high end leaves no room"
    return "does_not_fit", numbers
