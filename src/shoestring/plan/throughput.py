"""Seconds of one fine-tune: load + steps x floor + FLOPs / achieved rate + evaluation.

FLOPs of LoRA without recomputation are 4N a token: 2N forward and 2N for the gradient of the inputs;
the frozen weights need no gradient. Trained whole, a model takes 2N more for that, and its head 4 more for each entry:
one for the weight's gradient, one for logits computed again (train.head_loss). The adapter itself costs
6 a parameter, attention 6 x positions attended x q_dim a layer, the output head 4 x vocab x hidden where loss
is borne. Rates and floors are priors (priors.csv) with a low and a high until this machine has been measured.
"""

from __future__ import annotations

import csv
import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..records import Device, Estimate, TokenCounts, TrainSettings
from .devices import gpu_spec
from .memory import num_trained_params
from .parallel import speed_up
from .search import MAX_ADDED, alive, num_units
from .shapes import ModelShape

PRIORS_CSV = Path(__file__).with_name("priors.csv")
# A batch made of rows of near length pads little; of mixed length, more.
PADDING_LOW, PADDING_EXPECTED, PADDING_HIGH = 1.0, 1.06, 1.25
MIN_GAIN = 1.25  # train.packing shares beginnings of rows where that computes so many times fewer tokens
FORWARD_FRAC = 0.5  # of a token's FLOPs in training: forward alone
GENERATE_BATCH_ROWS = 128  # evaluate.generation on a CPU; more on a GPU
# Answers of a batch end with its longest; this quantile of the lengths stands for it.
LONGEST_OF_BATCH_QUANTILE = 0.97
# DoRA on shoestring-3m, bfloat16, one thread of an AMD EPYC, 2026-11-28: a pass over 661 tokens took 1.5 times LoRA's,
# a decoded position twice; other sizes unknown.
DORA_SLOWDOWN, DORA_DECODE_FACTOR = Estimate(1.5, 1.2, 2.2), 2
DORA_BYTES = 36  # moved for each entry of a matrix whenever the lengths of its rows are taken: twice DORA_MATRIX_BYTES
OPTIMIZER_BYTES = 40  # moved for a parameter and step
NF4_READ_WRITE_BYTES = 2.5  # dequantising a parameter reads half a byte and writes two
NF4_CPU_SLOWDOWN = Estimate(1.2, 1.05, 2.0)  # 1.10 and 1.20 measured on shoestring-3m, 2026-11-24; other sizes unknown


@dataclass(frozen=True, slots=True)
class Prior:
    """One row of priors.csv; low and high are of the quantity itself."""

    device_kind: str
    dtype: str  # empty: any
    quantity: str
    value: Estimate
    unit: str
    source: str
    as_of: str
    basis: str


@dataclass(frozen=True, slots=True)
class TimePrediction:
    """Predicted wall time of training (load and dev evaluations included) and of the held-out evaluation."""

    train_s: Estimate
    eval_s: Estimate
    num_steps: int
    num_train_tokens: int  # unpadded, over all epochs
    tokens_per_s: Estimate  # unpadded training tokens, load and evaluation excluded
    reason: str
    search_s: Estimate | None = None  # of a learning-rate search, its own load included


@functools.cache
def priors() -> dict[tuple[str, str, str], Prior]:
    """Rows of priors.csv by device kind, dtype and quantity."""
    with PRIORS_CSV.open(encoding="utf-8", newline="") as file:
        rows = [
            Prior(
                r["device_kind"],
                r["dtype"],
                r["quantity"],
                Estimate(float(r["expected"]), float(r["low"]), float(r["high"])),
                r["unit"],
                r["source"],
                r["as_of"],
                r["basis"],
            )
            for r in csv.DictReader(file)
        ]
    return {(row.device_kind, row.dtype, row.quantity): row for row in rows}


def prior(device: Device, quantity: str) -> Prior:
    """The row for the device's kind and dtype, else for its kind."""
    rows = priors()
    return rows.get((device.kind, device.dtype, quantity)) or rows[device.kind, "", quantity]


def achieved_flops_per_s(device: Device, num_threads: int) -> Estimate:
    """Rate the device reaches in training steps; low and high from the priors."""
    if device.kind == "cuda":
        spec = gpu_spec(device.name)
        # A card the table does not list: between the slowest and an A100.
        peak = Estimate(*[spec.peak_flops_per_s] * 3) if spec else Estimate(150e12, 65e12, 312e12)
        frac = prior(device, "peak_frac").value
        return Estimate(peak.value * frac.value, peak.low * frac.low, peak.high * frac.high)
    if device.kind == "mps":
        return prior(device, "flops_per_s").value
    one, exponent = prior(device, "flops_per_s_per_thread").value, prior(device, "thread_exponent").value
    return Estimate(*(getattr(one, k) * num_threads ** getattr(exponent, k) for k in ("value", "low", "high")))


def train_flops_per_token(
    shape: ModelShape, lora_rank: int, row_tokens: float, loss_frac: float, method: str = "lora"
) -> float:
    """FLOPs of forward and backward a token, without recomputation; causal attention sees half of row_tokens."""
    attention = 12 * shape.num_layers * shape.num_heads * shape.head_dim * (row_tokens / 2)
    if method == "full":
        return 6 * shape.num_linear_params + attention + 8 * shape.vocab * shape.hidden * loss_frac
    head = 4 * shape.vocab * shape.hidden * loss_frac
    return 4 * shape.num_linear_params + 6 * shape.num_adapter_params(lora_rank) + attention + head


def _recompute_flops_per_token(shape: ModelShape, num_recomputed: int) -> float:
    """FLOPs of running some layers forward a second time."""
    return 2 * shape.num_linear_params * min(num_recomputed, shape.num_layers) / shape.num_layers


def _sum(*terms: Estimate) -> Estimate:
    return Estimate(*(sum(getattr(t, k) for t in terms) for k in ("value", "low", "high")))


def _dequantise_s(shape: ModelShape, num_micro: int, device: Device) -> Estimate:
    """Seconds on CUDA to dequantise NF4 matrices, forward and backward of each micro-batch."""
    spec = gpu_spec(device.name)
    bandwidth = spec.mem_bw_bytes_per_s if spec else 300e9
    once = 2 * num_micro * shape.num_linear_params * NF4_READ_WRITE_BYTES / bandwidth
    return Estimate(1.5 * once, once, 3 * once)


def micro_batch_s(
    shape: ModelShape,
    method: str,
    lora_rank: int,
    num_tokens: int,
    row_tokens: int,
    device: Device,
    num_recomputed: int = 0,
) -> Estimate:
    """Seconds of one micro-batch of full rows on a GPU, every token bearing loss, without the optimizer step."""
    flops = num_tokens * train_flops_per_token(shape, lora_rank, row_tokens, 1.0, method)
    flops += num_tokens * _recompute_flops_per_token(shape, num_recomputed)
    rate = achieved_flops_per_s(device, device.num_threads)
    compute = Estimate(flops / rate.value, flops / rate.high, flops / rate.low)
    floor = prior(device, "layer_floor_s").value.scaled(shape.num_layers)
    return _sum(compute, floor, *([_dequantise_s(shape, 1, device)] if method == "qlora" else []))


def optimizer_step_s(num_trained: int, device: Device) -> Estimate:
    """Seconds of clipping and AdamW on float32 weights: seven words of four bytes moved for a step, three to clip."""
    return _moving_s(num_trained * OPTIMIZER_BYTES, device)


def _moving_s(num_bytes: float, device: Device) -> Estimate:
    """Seconds to read or write so many bytes of the device's memory, element by element."""
    spec = gpu_spec(device.name) if device.kind == "cuda" else None
    if device.kind == "cuda":
        rate = prior(device, "stream_frac").value.scaled(spec.mem_bw_bytes_per_s if spec else 300e9)
    else:
        rate = prior(device, "stream_bytes_per_s").value
    return Estimate(num_bytes / rate.value, num_bytes / rate.high, num_bytes / rate.low)


def quantile(lengths: Sequence[int], q: float) -> int:
    """The q-quantile (0-1) by rank, 0 of none."""
    ordered = sorted(lengths)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else 0


def generate_s(
    shape: ModelShape,
    prompts: Sequence[int],
    answers: Sequence[int],
    device: Device,
    num_threads: int,
    batch_rows: int = GENERATE_BATCH_ROWS,
    *,
    dora: bool = False,
) -> Estimate:
    """Seconds to answer these prompts in batches; answers are the expected lengths in tokens.

    dora: with an adapter that takes the lengths of all weight rows anew at every position.
    """
    if not prompts:
        return Estimate(0.0, 0.0, 0.0)
    rate = achieved_flops_per_s(device, num_threads)
    floor = prior(device, "decode_layer_floor_s").value
    num_batches = math.ceil(len(prompts) / batch_rows)
    positions = num_batches * quantile(answers, LONGEST_OF_BATCH_QUANTILE)
    num_tokens = sum(prompts) * PADDING_EXPECTED + sum(answers)  # finished rows leave their batch
    flops = num_tokens * 2 * (shape.num_linear_params + shape.num_embedding_params)
    floor_s = floor.scaled(shape.num_layers * (positions + num_batches) * (DORA_DECODE_FACTOR if dora else 1))
    if dora:
        floor_s = _sum(floor_s, _moving_s((positions + num_batches) * shape.num_linear_params * DORA_BYTES, device))
    return Estimate(
        floor_s.value + flops / rate.value, floor_s.low + flops / rate.high, floor_s.high + flops / rate.low
    )


def num_steps_of(lengths: Sequence[int], settings: TrainSettings) -> tuple[int, int]:
    """Optimizer steps and micro-batches of a training on rows of these lengths in tokens.

    As train.schedule draws them: rows of an ordinary shuffle while they fit batch_tokens. Every pass over the rows
    is counted as this one.
    """
    shuffled = random.Random(settings.seed).sample(list(lengths), len(lengths))
    whole, rest = divmod(settings.num_epochs, 1)
    num_steps = num_micro = 0
    for frac, times in ((1.0, int(whole)), (rest, 1)):
        if frac * times:
            steps, micro = _fill(shuffled[: math.ceil(frac * len(shuffled) - 1e-9)], settings)
            num_steps, num_micro = num_steps + times * steps, num_micro + times * micro
    return num_steps, num_micro


def _fill(lengths: Sequence[int], settings: TrainSettings) -> tuple[int, int]:
    """Steps that rows fill one after the other, and the micro-batches in them."""
    sizes: list[int] = []
    for length in lengths:
        if sizes and sizes[-1] + length <= settings.batch_tokens:
            sizes[-1] += length
        else:
            sizes.append(length)
    return len(sizes), sum(max(1, math.ceil(size / settings.micro_batch_tokens)) for size in sizes)


def _forward_tokens(objective: str, tokens_per_epoch: int, num_tokens: int) -> int:
    """Tokens that run forward alone beside training: for the reference once, under kto for mismatched answers too.

    Those are as long as the rows; they are referred to once and run again before each step.
    """
    return {"dpo": tokens_per_epoch, "kto": 2 * tokens_per_epoch + num_tokens}.get(objective, 0)


def predict_time(
    shape: ModelShape,
    settings: TrainSettings,
    counts: TokenCounts,
    device: Device,
    *,
    num_dev_rows: int,
) -> TimePrediction:
    """Wall time of training and of the held-out evaluation; a dev evaluation generates num_dev_rows answers."""
    longest = settings.seq_len * (2 if counts.rejected else 1)
    lengths = [min(n, longest) for n in counts.lengths]
    tokens_per_epoch = sum(lengths)
    num_tokens = round(tokens_per_epoch * settings.num_epochs)
    num_steps, num_micro = num_steps_of(lengths, settings)
    mean_tokens = sum(min(n, settings.seq_len) for n in counts.paths) / max(1, len(lengths))
    computed = num_tokens * (counts.computed_frac if counts.computed_frac <= 1 / MIN_GAIN else 1.0)
    computed += FORWARD_FRAC * _forward_tokens(settings.objective, tokens_per_epoch, num_tokens)

    rate = achieved_flops_per_s(device, settings.num_threads)
    flops = computed * train_flops_per_token(shape, settings.lora_rank, mean_tokens, counts.loss_frac, settings.method)
    flops += computed * _recompute_flops_per_token(shape, settings.recompute or 0)
    slow = NF4_CPU_SLOWDOWN if settings.method == "qlora" and device.kind != "cuda" else Estimate(1.0, 1.0, 1.0)
    slow = DORA_SLOWDOWN if settings.dora and settings.method == "lora" else slow
    compute = Estimate(
        flops * PADDING_EXPECTED / rate.value * slow.value,
        flops * PADDING_LOW / rate.high * slow.low,
        flops * PADDING_HIGH / rate.low * slow.high,
    )
    if settings.method == "qlora" and device.kind == "cuda":
        compute = _sum(compute, _dequantise_s(shape, num_micro, device))
    if settings.dora:
        forwards = 1 + (settings.recompute or 0) / shape.num_layers
        compute = _sum(compute, _moving_s(num_micro * forwards * shape.num_linear_params * DORA_BYTES, device))
    num_trained = num_trained_params(shape, settings.method, settings.lora_rank, settings.dora)
    compute = _sum(compute, optimizer_step_s(num_trained, device).scaled(num_steps))
    layer, step = prior(device, "layer_floor_s").value, prior(device, "step_floor_s").value
    load = prior(device, "load_s").value
    dev_answers = counts.answer[:num_dev_rows] or counts.eval_answer[:num_dev_rows]
    dev_prompts = counts.prompt[:num_dev_rows] or counts.eval_prompt[:num_dev_rows]
    dev = generate_s(shape, dev_prompts, dev_answers, device, settings.num_threads, dora=settings.dora)
    dev = dev.scaled(settings.num_evals)

    def steps_s(pick: str) -> float:
        return num_steps * getattr(step, pick) + num_micro * shape.num_layers * getattr(layer, pick)

    run = {k: steps_s(k) + getattr(compute, k) for k in ("value", "low", "high")}
    times = speed_up(settings.num_processes, settings.parallelism, device)
    steps_take = {"value": run["value"] / times.value, "low": run["low"] / times.high, "high": run["high"] / times.low}
    train = Estimate(*(steps_take[k] + getattr(load, k) + getattr(dev, k) for k in ("value", "low", "high")))
    evaluation = generate_s(
        shape, counts.eval_prompt, counts.eval_answer, device, settings.num_threads, dora=settings.dora
    )
    eval_s = Estimate(*(getattr(evaluation, k) + getattr(load, k) for k in ("value", "low", "high")))
    search = None
    if settings.search_tokens:
        # Each trial is scored by the loss on the dev rows after each of its rounds: forward only, half the FLOPs.
        share = settings.search_tokens / max(1, num_tokens) * num_units() / (num_units() + MAX_ADDED)
        scored = sum(alive()) * (sum(dev_prompts) + sum(dev_answers)) / 2 / max(1, num_tokens)
        most = share * (num_units() + MAX_ADDED) / num_units()
        shares = {"value": share + scored, "low": share, "high": most + 2 * scored}
        search = Estimate(*(run[k] * shares[k] + getattr(load, k) for k in ("value", "low", "high")))
    row = prior(device, "layer_floor_s")
    speed = Estimate(*(num_tokens / steps_take[k] for k in ("value", "high", "low")))
    return TimePrediction(
        train_s=train,
        eval_s=eval_s,
        num_steps=num_steps,
        num_train_tokens=num_tokens,
        tokens_per_s=speed,
        reason=f"{num_steps} steps at the {device.kind} rates of {row.as_of} ({row.basis})",
        search_s=search,
    )
