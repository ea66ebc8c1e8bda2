"""The serving part of `shoestring plan --json`: dollars a million tokens, machines shared, what else to think of."""

from __future__ import annotations

import math
from datetime import date
from typing import Any

from ..market.serving_cost import Against, Serving, ServingCost
from ..market.terms import term
from ..plan.figures import figure

PER_MILLION_TOKENS = "USD per million tokens"


def serving_told(serving: Serving, today: date) -> dict[str, Any]:
    """Every number with its unit and where it comes from."""
    row = term("util_target_frac")
    return {
        "num_adapters": figure(serving.num_adapters, "adapters of one base", "the run file", today, today),
        "target_frac": figure(serving.target_frac, row.unit, row.source, row.as_of, today),
        "costs": [_cost(cost, today) for cost in serving.costs],
        "advice": list(serving.advice),
    }


def _cost(cost: ServingCost, today: date) -> dict[str, Any]:
    route = cost.route
    able = route.capacity
    assert able is not None
    decode = term("stream_frac")
    how = able.measured or f"predicted: plan.decode; {decode.source}"
    priced = f"{route.source} ({route.basis}); rates {how}"
    seen = None if able.measured else decode.as_of

    def dollars(value: float) -> Any:
        return figure(value, PER_MILLION_TOKENS, priced, route.observed_at, today)

    return {
        "name": route.name,
        "gpu": route.gpu,
        "is_measured": bool(able.measured),
        "rates": able.measured or "predicted",
        "price": figure(route.price_usd, route.price_unit, f"{route.source} ({route.basis})", route.observed_at, today),
        "prefill_tokens_per_s": figure(able.prefill_tokens_per_s, "prompt tokens per second", how, seen, today),
        "decode_tokens_per_s": figure(able.decode_tokens_per_s, "new tokens per second", how, seen, today),
        "requests_per_s": figure(able.requests_per_s, "requests per second", how, seen, today),
        "lora_loss_frac": figure(
            cost.lora_loss_frac, "share of the rate that adapters take", cost.loss_source, None, today
        ),
        "util_frac": figure(cost.util_frac, "share of one GPU's time", how, seen, today),
        "usd_per_million_now": dollars(cost.usd_per_million_now),
        "usd_per_million_full": dollars(cost.usd_per_million_full),
        "usd_per_million_full_lora": dollars(cost.usd_per_million_full_lora),
        "usd_per_million_target_lora": dollars(cost.usd_per_million_target_lora),
        "usd_per_million_prompt": dollars(cost.usd_per_million_prompt),
        "usd_per_million_new": dollars(cost.usd_per_million_new),
        "gpus_shared": figure(cost.gpus_shared, "GPUs for all adapters together", how, seen, today),
        "gpus_each": figure(cost.gpus_each, "GPUs with one merged model each", how, seen, today),
        "adapters_per_gpu": figure(cost.adapters_per_gpu, "adapters of this traffic on a GPU", how, seen, today),
        "against": [_against(one, today) for one in cost.against],
    }


def _against(one: Against, today: date) -> dict[str, Any]:
    api = one.api
    source = f"{api.source} ({api.basis})"
    volume = one.million_tokens if math.isfinite(one.million_tokens) else None
    how = f"730 hours at the GPU's price, over {source}" if volume else "the API costs nothing"
    return {
        "api": api.name,
        "usd_per_million": figure(one.usd_per_million, PER_MILLION_TOKENS, source, api.observed_at, today),
        "million_tokens": figure(volume, "million tokens a month", how, api.observed_at, today),
        "is_reachable": one.is_reachable,
    }
