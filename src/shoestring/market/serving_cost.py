"""What a million tokens cost on a GPU by the hour, from which volume that beats an API, how many adapters share one.

R dollars an hour, T tokens a second with every client busy, u the share of the time that is used, o what adapters take
of the rate: a million tokens cost R 10^6 / (3600 T (1 - o) u). Source: the definitions; o of vLLM's own users
(terms.csv), or as `shoestring bench serve --save` measured it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..config import TrafficConfig
from ..plan.served import ServedRates, rates_for
from ..records import Estimate
from ..units import SECONDS_PER_HOUR
from .offers import Offer
from .serving import PER_MILLION, Route
from .terms import term, value

MOST_ROWS = 4


def usd_per_million(
    usd_per_hour: float, tokens_per_s: float, util_frac: float = 1.0, lora_loss_frac: float = 0.0
) -> float:
    """Dollars of a million tokens."""
    return usd_per_hour * PER_MILLION / (SECONDS_PER_HOUR * tokens_per_s * (1 - lora_loss_frac) * util_frac)


def million_tokens_per_month(tokens_per_s: float, util_frac: float = 1.0, lora_loss_frac: float = 0.0) -> float:
    """What one GPU gives in a month: 2.63 T (1 - o) u million tokens."""
    seconds = value("hours_per_month").value * SECONDS_PER_HOUR
    return seconds * tokens_per_s * (1 - lora_loss_frac) * util_frac / PER_MILLION


def break_even_million_tokens(usd_per_hour: float, api_usd_per_million: float) -> float:
    """Tokens a month for which an API costs what one GPU always on does: 730 R / price."""
    if api_usd_per_million <= 0:
        return math.inf
    return value("hours_per_month").value * usd_per_hour / api_usd_per_million


def gpus_shared(util_fracs: Sequence[float], target_frac: float, lora_loss_frac: float) -> int:
    """GPUs that hold adapters of one base together, each using util_fracs of a GPU by itself (merged)."""
    return max(1, math.ceil(sum(util_fracs) / ((1 - lora_loss_frac) * target_frac) - 1e-9))


def gpus_each(util_fracs: Sequence[float], target_frac: float) -> int:
    """GPUs where each is merged and has its own."""
    return sum(max(1, math.ceil(util / target_frac - 1e-9)) for util in util_fracs)


def away_frac(pick: str, seller: str = "") -> float:
    """Share of the time that a spot machine is not there: hazard x wait / (1 + hazard x wait)."""
    lost = float(getattr(value("hazard_per_h", seller), pick)) * float(getattr(value("wait_h", seller), pick))
    return lost / (1 + lost)


@dataclass(frozen=True, slots=True)
class Against:
    """An API beside a GPU. million_tokens: a month's, from which the GPU costs less; is_reachable: it gives as many."""

    api: Route
    usd_per_million: float  # of the traffic's mix
    million_tokens: float
    is_reachable: bool


@dataclass(frozen=True, slots=True)
class ServingCost:
    """One GPU by the hour. Rates are of one GPU with every client busy, the model merged."""

    route: Route
    lora_loss_frac: Estimate
    loss_source: str
    util_frac: float  # of the run file's traffic on one GPU; above 1 it needs more
    usd_per_million_now: float  # all tokens of a month at the run file's traffic, machines always on
    usd_per_million_full: float  # at full load, merged
    usd_per_million_full_lora: float
    usd_per_million_target_lora: float  # at the target load, an adapter among others
    usd_per_million_prompt: float  # at full load, merged
    usd_per_million_new: float
    gpus_shared: int
    gpus_each: int
    adapters_per_gpu: int  # of this traffic, at the target load
    against: tuple[Against, ...]


@dataclass(frozen=True, slots=True)
class Serving:
    """The GPUs that cost least for the run file's traffic, and what else to think of."""

    num_adapters: int
    target_frac: float
    costs: tuple[ServingCost, ...]
    advice: tuple[str, ...]


def serving_of(
    traffic: TrafficConfig,
    routes: Iterable[Route],
    apis: Sequence[Route],
    offers: Iterable[Offer],
    measured: Sequence[ServedRates] = (),
) -> Serving | None:
    """None where no GPU by the hour can serve it. measured: what adapters take there; else it is of terms.csv."""
    routes = list(routes)
    by_hours = sorted(
        (r for r in routes if r.kind == "hours"), key=lambda r: r.month_usd(traffic.requests_per_month, "value")
    )
    if not by_hours:
        return None
    target = value("util_target_frac").value
    costs = tuple(_cost(traffic, route, apis, target, rates_for(measured, route.gpu)) for route in by_hours[:MOST_ROWS])
    advice = [_sleep_advice(traffic, routes, by_hours[0]), _spot_advice(by_hours[0], offers)]
    return Serving(traffic.num_adapters, target, costs, tuple(said for said in advice if said))


def _cost(
    traffic: TrafficConfig, route: Route, apis: Sequence[Route], target: float, rates: ServedRates | None
) -> ServingCost:
    assert route.capacity is not None
    row = term("lora_loss_frac")
    loss, source = row.value, row.source
    if rates is not None and rates.lora_loss is not None:
        loss, source = rates.lora_loss, rates.words
    o = min(0.95, max(0.0, loss.value))
    mix = traffic.prompt_tokens + traffic.completion_tokens
    able = route.capacity
    tokens_per_s = able.requests_per_s.value * mix
    asked_per_s = traffic.requests_per_month / value("hours_per_month").value / SECONDS_PER_HOUR
    util = asked_per_s / able.requests_per_s.value
    month = route.month_usd(traffic.requests_per_month, "value")
    utils = [util] * traffic.num_adapters
    most = million_tokens_per_month(tokens_per_s)
    return ServingCost(
        route=route,
        lora_loss_frac=loss,
        loss_source=source,
        util_frac=util,
        usd_per_million_now=month / (traffic.requests_per_month * mix / PER_MILLION),
        usd_per_million_full=usd_per_million(route.price_usd, tokens_per_s),
        usd_per_million_full_lora=usd_per_million(route.price_usd, tokens_per_s, 1.0, o),
        usd_per_million_target_lora=usd_per_million(route.price_usd, tokens_per_s, target, o),
        usd_per_million_prompt=usd_per_million(route.price_usd, able.prefill_tokens_per_s.value),
        usd_per_million_new=usd_per_million(route.price_usd, able.decode_tokens_per_s.value),
        gpus_shared=gpus_shared(utils, target, o),
        gpus_each=gpus_each(utils, target),
        adapters_per_gpu=math.floor((1 - o) * target / util) if util > 0 else 0,
        against=tuple(_against(route, api, traffic, most) for api in _spread(apis, traffic)),
    )


def _spread(apis: Sequence[Route], traffic: TrafficConfig) -> list[Route]:
    """The cheapest, the middle and the dearest for this traffic."""
    ordered = sorted(apis, key=lambda api: api.month_usd(traffic.requests_per_month, "value"))
    places = dict.fromkeys((0, len(ordered) // 2, len(ordered) - 1))
    return [ordered[place] for place in places if 0 <= place < len(ordered)]


def _against(route: Route, api: Route, traffic: TrafficConfig, most: float) -> Against:
    mix = traffic.prompt_tokens + traffic.completion_tokens
    price = api.month_usd(1.0, "value") * PER_MILLION / mix
    needed = break_even_million_tokens(route.price_usd * route.num_gpus, price)
    return Against(api, price, needed, needed <= most * route.num_gpus)


def _sleep_advice(traffic: TrafficConfig, routes: Sequence[Route], always: Route) -> str:
    """Whether a GPU that sleeps costs less: when its hours, at its price, are fewer than those of one always on."""
    asked = [r for r in routes if r.kind == "asked"]
    if not asked:
        return ""
    requests = traffic.requests_per_month
    best = min(asked, key=lambda r: r.month_usd(requests, "value"))
    sleeping, on = best.month_usd(requests, "value"), always.month_usd(requests, "value")
    start = value("cold_start_s")
    hours = sleeping / best.price_usd
    if sleeping < on:
        return (
            f"scale to zero pays: {best.name} is up {hours:,.0f} of 730 hours a month, {sleeping:,.2f} against "
            f"{on:,.2f} dollars always on; a request after a pause waits {start.low:g} to {start.high:g} s"
        )
    return (
        f"scale to zero does not pay at this traffic: {best.name} would be up {hours:,.0f} hours a month, "
        f"{sleeping:,.2f} dollars against {on:,.2f} always on"
    )


def _spot_advice(always: Route, offers: Iterable[Offer]) -> str:
    gpu = always.gpu
    spots = [o for o in offers if o.is_spot and o.gpu == gpu]
    if not spots:
        return ""
    best = min(spots, key=lambda o: o.usd_per_gpu_hour)
    if best.usd_per_gpu_hour >= always.price_usd:
        return ""
    away = {pick: away_frac(pick, best.seller) for pick in ("low", "value", "high")}
    return (
        f"spot {gpu} of {best.seller} costs {best.usd_per_gpu_hour:g} dollars an hour, "
        f"{1 - best.usd_per_gpu_hour / always.price_usd:.0%} less, and is away {away['value']:.0%} of the time "
        f"({away['low']:.0%} to {away['high']:.0%}): not for a single machine; of several keep one on demand, as "
        "'shoestring export RUN --to skyserve' writes it"
    )
