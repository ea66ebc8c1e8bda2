"""What serving costs a million tokens, as `shoestring plan` prints it."""

from __future__ import annotations

from typing import Any

from ..units import usd
from .output import say
from .tables import table


def show_serving(serving: dict[str, Any]) -> None:
    """One line a GPU, then break-even volumes of the first, sharing, and advice."""
    costs = serving["costs"]
    rows = []
    for cost in costs:
        rates = (f"{cost[key]['value']:,.0f}" for key in ("prefill_tokens_per_s", "decode_tokens_per_s"))
        keys = ("usd_per_million_now", "usd_per_million_full", "usd_per_million_full_lora")
        dollars = (usd(cost[key]["value"]) for key in keys)
        rows.append((cost["name"], "measured" if cost["is_measured"] else "predicted", *rates, *dollars))
    say()
    say("Serving, dollars a million tokens (prompt and answer together):")
    heads = ("where", "rates", "reads/s", "writes/s", "at your traffic", "fully used", "as adapter, fully used")
    say(table(heads, rows, right=(2, 3, 4, 5, 6)))
    first = costs[0]
    loss = first["lora_loss_frac"]
    say(
        f"Your traffic uses {_share(first['util_frac']['value'])} of one {first['gpu']}. Adapters take "
        f"{loss['value']:.0%} of its rate ({_source(loss['source'])})."
    )
    for one in first["against"]:
        if one["million_tokens"]["value"] is None:
            continue
        reach = "" if one["is_reachable"] else ", more than one such machine gives"
        say(
            f"Always on it costs what {one['api']} ({usd(one['usd_per_million']['value'])} a million) does at "
            f"{one['million_tokens']['value']:,.0f} million tokens a month{reach}."
        )
    _show_sharing(serving, first)
    for said in serving["advice"]:
        say(f"{said[:1].upper()}{said[1:]}.")


def _show_sharing(serving: dict[str, Any], cost: dict[str, Any]) -> None:
    num, target = serving["num_adapters"]["value"], serving["target_frac"]["value"]
    shared, each = cost["gpus_shared"]["value"], cost["gpus_each"]["value"]
    if num > 1:
        say(
            f"{num:,} adapters of this traffic on one base need {shared:,} {cost['gpu']} at {target:.0%} load; merged, "
            f"on machines of their own, {each:,}."
        )
    elif cost["adapters_per_gpu"]["value"] > 1:
        say(
            f"One {cost['gpu']} carries {cost['adapters_per_gpu']['value']:,} adapters of this traffic on one base, at "
            f"{target:.0%} load (traffic.num_adapters reckons with yours)."
        )


def _share(frac: float) -> str:
    return f"{frac:.2%}" if frac < 0.1 else f"{frac:.0%}"


def _source(words: str) -> str:
    return words if "measured" in words and "bench serve" not in words else "others' measurements; see --json"
