"""How many requests a GPU answers: reading the prompt at a share of its peak, decoding at a share of its bandwidth.

Every decoded position reads all weights once and the keys and values of each request in flight; that, or the FLOPs of
the batch, whichever takes longer, and a floor for launching kernels. 16-bit weights, one adapter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..records import Estimate
from .devices import GpuSpec
from .served import ServedRates
from .shapes import ModelShape

WIDTH = 2  # bytes of a weight, key or value
USABLE_FRAC = 0.90  # of the memory, what serving engines take by default
WORKSPACE_BYTES = 2e9
PREFILL_FRAC = Estimate(0.45, 0.3, 0.6)  # of the peak while prompts are read, as in priors.csv for training


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one GPU does. requests_per_s: with a full batch; alone_s: one request by itself."""

    num_in_flight: int
    requests_per_s: Estimate
    tokens_per_s: Estimate  # decoded
    alone_s: Estimate
    prefill_tokens_per_s: Estimate  # while nothing but prompts is read
    decode_tokens_per_s: Estimate  # of all requests in flight, while nothing but answers is written
    measured: str = ""  # by what; empty: predicted here


def kv_bytes_per_token(shape: ModelShape) -> int:
    """Keys and values of one token over all layers; windowed layers are counted as full ones."""
    layers = shape.num_layers - shape.num_linear_attention_layers
    return 2 * WIDTH * layers * shape.num_kv_heads * shape.head_dim


def capacity(
    shape: ModelShape,
    spec: GpuSpec,
    prompt_tokens: int,
    completion_tokens: int,
    *,
    stream_frac: Estimate,
    floor_s: Estimate,
    max_batch: Estimate,
) -> Capacity | None:
    """Requests a second of one GPU; None if weights and one request do not fit it."""
    weights = shape.num_params * WIDTH
    free = USABLE_FRAC * spec.memory_bytes - weights - WORKSPACE_BYTES
    each = kv_bytes_per_token(shape) * (prompt_tokens + completion_tokens)
    if free < each:
        return None
    most = math.floor(free / each) if each else 10**6
    mean_kv = kv_bytes_per_token(shape) * (prompt_tokens + completion_tokens / 2)
    flops = 2 * (shape.num_linear_params + shape.num_embedding_params)

    def seconds(batch: int, pick: str) -> tuple[float, float]:
        """Reading one prompt; decoding one position of the batch."""
        rate = spec.peak_flops_per_s * getattr(PREFILL_FRAC, pick)
        reading = (weights + batch * mean_kv) / (spec.mem_bw_bytes_per_s * getattr(stream_frac, pick))
        slow = {"low": "high", "high": "low"}.get(pick, pick)  # a slow rate goes with a large floor
        return prompt_tokens * flops / rate, max(reading, batch * flops / rate) + getattr(floor_s, slow)

    def requests(pick: str) -> float:
        batch = max(1, min(most, round(getattr(max_batch, pick))))
        prefill, position = seconds(batch, pick)
        return batch / (batch * prefill + completion_tokens * position)

    def alone(pick: str) -> float:
        prefill, position = seconds(1, pick)
        return prefill + completion_tokens * position

    def alone_rates(pick: str) -> tuple[float, float]:
        batch = max(1, min(most, round(getattr(max_batch, pick))))
        prefill, position = seconds(batch, pick)
        return prompt_tokens / prefill, batch / position

    rate = Estimate(requests("value"), requests("low"), requests("high"))
    prefills, decodes = zip(*(alone_rates(pick) for pick in ("value", "low", "high")), strict=True)
    return Capacity(
        num_in_flight=max(1, min(most, round(max_batch.value))),
        requests_per_s=rate,
        tokens_per_s=rate.scaled(completion_tokens),
        alone_s=Estimate(alone("value"), alone("high"), alone("low")),
        prefill_tokens_per_s=Estimate(*prefills),
        decode_tokens_per_s=Estimate(*decodes),
    )


def measured_capacity(rates: ServedRates, prompt_tokens: int, completion_tokens: int) -> Capacity | None:
    """The same, as a server reached it; None where reading and writing could not be told apart.

    One request alone is taken to last as measured, in proportion to its new tokens.
    """
    seconds = [rates.seconds_per_request(prompt_tokens, completion_tokens, pick) for pick in ("value", "high", "low")]
    if None in seconds or rates.prefill_tokens_per_s is None or rates.decode_tokens_per_s is None:
        return None
    rate = Estimate(*(1 / each for each in seconds if each))
    return Capacity(
        num_in_flight=rates.clients,
        requests_per_s=rate,
        tokens_per_s=rate.scaled(completion_tokens),
        alone_s=rates.alone_s.scaled(completion_tokens / rates.completion_tokens),
        prefill_tokens_per_s=rates.prefill_tokens_per_s,
        decode_tokens_per_s=rates.decode_tokens_per_s,
        measured=rates.words,
    )
