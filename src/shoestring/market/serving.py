"""What it costs a month to answer requests: a GPU by the hour, one that is started when asked, a service, or an API."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ..config import EndpointConfig, TrafficConfig
from ..errors import BadInput
from ..plan.decode import Capacity, capacity, measured_capacity
from ..plan.devices import gpu_spec, gpu_table
from ..plan.served import ServedRates, rates_for, row_of
from ..plan.shapes import ModelShape
from ..records import Estimate
from ..units import SECONDS_PER_HOUR
from . import managed
from .offers import Offer
from .options import PICKS, cheapest
from .table import DATED_BASES
from .terms import term, value

API_CSV = Path(__file__).with_name("api_prices.csv")
HOSTING_CSV = Path(__file__).with_name("hosting.csv")
PER_MILLION = 1e6


@dataclass(frozen=True, slots=True)
class ApiPrice:
    """List price of one model behind an API, dollars a million tokens."""

    provider: str
    model: str
    usd_per_million_input_tokens: float
    usd_per_million_output_tokens: float
    as_of: date
    basis: str
    source: str


@dataclass(frozen=True, slots=True)
class Hosting:
    """A GPU that is billed only while it works or waits for its next request."""

    provider: str
    gpu: str
    usd_per_gpu_hour: float
    as_of: date
    basis: str
    source: str


@dataclass(frozen=True, slots=True)
class Route:
    """A way to answer requests. usd(requests a month) is what a month costs.

    kind: hours (a GPU always on), asked (one that sleeps), tokens (a service that holds the adapter), api (a larger
    model, prompted).
    """

    kind: str
    name: str
    seller: str
    price_usd: float
    price_unit: str
    source: str
    observed_at: date | None
    basis: str
    usd_per_request: Estimate | None = None  # of tokens and api
    capacity: Capacity | None = None  # of hours and asked
    num_gpus: int = 1  # of an order
    gpu: str = ""  # of hours and asked
    notes: tuple[str, ...] = ()

    def usd_per_month(self, requests: float) -> Estimate:
        """Dollars of a month with so many requests."""
        return Estimate(*(self.month_usd(requests, pick) for pick in PICKS))

    def month_usd(self, requests: float, pick: str) -> float:
        """The same, one end of it: value, low or high."""
        if self.usd_per_request is not None:
            return requests * float(getattr(self.usd_per_request, pick))
        hours = _always_on_h if self.kind == "hours" else _asked_h
        return hours(self, requests, pick) * self.price_usd


def _opposite(pick: str) -> str:
    return {"low": "high", "high": "low"}.get(pick, pick)


def _always_on_h(route: Route, requests: float, pick: str) -> float:
    """GPU-hours a month of machines that hold the busiest hour; low with a fast GPU and an even load."""
    assert route.capacity is not None
    per_month = value("hours_per_month").value
    busiest = requests / per_month / SECONDS_PER_HOUR * getattr(value("peak_over_mean"), pick)
    num = max(1, math.ceil(busiest / getattr(route.capacity.requests_per_s, _opposite(pick))))
    return math.ceil(num / route.num_gpus) * route.num_gpus * per_month


def _asked_h(route: Route, requests: float, pick: str) -> float:
    """GPU-hours a month of a worker that starts at a request, and stops when none has come for a while.

    Requests come independently. A stretch of work ends once none came within the time to answer and wait (w): it lasts
    the start and (e^(rate w) - 1)/rate, the busy period of a queue with servers enough, and the pause after it 1/rate.
    Above what one GPU answers there are more.
    """
    assert route.capacity is not None
    per_month = value("hours_per_month").value
    rate = requests / per_month / SECONDS_PER_HOUR
    if rate <= 0:
        return 0.0
    window = getattr(route.capacity.alone_s, pick) + getattr(value("idle_s"), pick)
    stretch = getattr(value("cold_start_s"), pick) + math.expm1(min(rate * window, 50.0)) / rate
    up = stretch / (stretch + 1 / rate)
    return max(up, rate / getattr(route.capacity.requests_per_s, _opposite(pick))) * per_month


@functools.cache
def api_prices() -> tuple[ApiPrice, ...]:
    """Rows of api_prices.csv."""
    with API_CSV.open(encoding="utf-8", newline="") as file:
        return tuple(
            ApiPrice(
                row["provider"],
                row["model"],
                float(row["usd_per_million_input_tokens"]),
                float(row["usd_per_million_output_tokens"]),
                date.fromisoformat(row["as_of"]),
                row["basis"],
                row["source"],
            )
            for row in csv.DictReader(file)
        )


@functools.cache
def hostings() -> tuple[Hosting, ...]:
    """Rows of hosting.csv."""
    with HOSTING_CSV.open(encoding="utf-8", newline="") as file:
        return tuple(
            Hosting(
                row["provider"],
                row["gpu"],
                float(row["usd_per_gpu_hour"]),
                date.fromisoformat(row["as_of"]),
                row["basis"],
                row["source"],
            )
            for row in csv.DictReader(file)
        )


def _capacity(shape: ModelShape, gpu: str, traffic: TrafficConfig, measured: Sequence[ServedRates]) -> Capacity | None:
    """As measured on that kind of GPU, else predicted."""
    rates = rates_for(measured, gpu)
    if rates is not None:
        found = measured_capacity(rates, traffic.prompt_tokens, traffic.completion_tokens)
        if found is not None:
            return found
    spec = gpu_spec(gpu)
    if spec is None:
        return None
    return capacity(
        shape,
        spec,
        traffic.prompt_tokens,
        traffic.completion_tokens,
        stream_frac=value("stream_frac"),
        floor_s=value("decode_floor_s"),
        max_batch=value("max_batch"),
    )


def own_routes(
    shape: ModelShape,
    params_b: float,
    traffic: TrafficConfig,
    offers: Iterable[Offer],
    measured: Sequence[ServedRates] = (),
) -> list[Route]:
    """Ways to serve the fine-tuned model. measured: rates that servers of this model reached."""
    return [
        *_by_hours(shape, traffic, offers, measured),
        *_at_hand(traffic, measured),
        *_asked(shape, traffic, measured),
        *_by_tokens(shape.name, params_b, traffic),
    ]


def _at_hand(traffic: TrafficConfig, measured: Sequence[ServedRates]) -> list[Route]:
    """Machines that are no GPU of the table and were measured, where one of them holds the busiest hour."""
    row, found = term("own_machine_usd_per_h"), []
    for device in dict.fromkeys(row_of(rates.device) for rates in measured):
        rates = rates_for(measured, device)
        able = measured_capacity(rates, traffic.prompt_tokens, traffic.completion_tokens) if rates else None
        if device in gpu_table() or able is None:
            continue
        route = Route(
            kind="hours",
            name=f"{device}, as measured, always on",
            seller="this machine",
            price_usd=row.value.value,
            price_unit="USD per hour",
            source=row.source,
            observed_at=row.as_of,
            basis=row.basis,
            capacity=able,
            gpu=device,
            notes=("the machine is taken as yours: electricity alone",),
        )
        hours = _always_on_h(route, traffic.requests_per_month, "value")
        if hours <= value("hours_per_month").value:
            found.append(route)
    return found


def _by_hours(
    shape: ModelShape, traffic: TrafficConfig, offers: Iterable[Offer], measured: Sequence[ServedRates]
) -> list[Route]:
    """The offer of each GPU that costs least for this traffic."""
    best: dict[str, Route] = {}
    for offer in cheapest(o for o in offers if not o.is_spot and o.basis in DATED_BASES):
        able = _capacity(shape, offer.gpu, traffic, measured)
        if able is None:
            continue
        order = f"{offer.num_gpus}x " if offer.num_gpus > 1 else ""
        route = Route(
            kind="hours",
            name=f"{order}{offer.gpu} of {offer.seller}, always on",
            seller=offer.seller,
            price_usd=offer.usd_per_gpu_hour,
            price_unit="USD per GPU-hour",
            source=offer.source,
            observed_at=offer.observed_at,
            basis=offer.basis,
            capacity=able,
            num_gpus=offer.num_gpus,
            gpu=offer.gpu,
        )
        asked = traffic.requests_per_month
        if offer.gpu not in best or route.usd_per_month(asked).value < best[offer.gpu].usd_per_month(asked).value:
            best[offer.gpu] = route
    return list(best.values())


def _asked(shape: ModelShape, traffic: TrafficConfig, measured: Sequence[ServedRates]) -> list[Route]:
    found = []
    for row in hostings():
        able = _capacity(shape, row.gpu, traffic, measured)
        if able is not None:
            found.append(
                Route(
                    kind="asked",
                    name=f"{row.gpu} of {row.provider}, sleeps between requests",
                    seller=row.provider,
                    price_usd=row.usd_per_gpu_hour,
                    price_unit="USD per GPU-hour",
                    source=row.source,
                    observed_at=row.as_of,
                    basis=row.basis,
                    capacity=able,
                    gpu=row.gpu,
                    notes=("the first request after a pause waits for the start",),
                )
            )
    return found


def _by_tokens(model: str, params_b: float, traffic: TrafficConfig) -> list[Route]:
    """Services that serve the adapter they trained, by the token."""
    found = []
    for provider, terms in managed.TERMS.items():
        if terms.serving != "tokens" or terms.closed_to_new is not None:
            continue
        try:
            rate = managed.rate_of(provider, model, params_b)
        except BadInput:
            continue
        into, out = rate.usd_per_million_input_tokens, rate.usd_per_million_output_tokens
        if into is None or out is None:
            continue
        each = (traffic.prompt_tokens * into + traffic.completion_tokens * out) / PER_MILLION
        found.append(
            Route(
                kind="tokens",
                name=f"{provider}, by the token",
                seller=provider,
                price_usd=into,
                price_unit="USD per million input tokens",
                source=rate.source,
                observed_at=None if rate.basis == "undated page" else rate.as_of,
                basis=rate.basis,
                usd_per_request=Estimate(each, each, each),
                notes=(f"{out:g} USD per million output tokens",),
            )
        )
    return found


def api_routes(
    traffic: TrafficConfig, shot_tokens: int, endpoints: Sequence[EndpointConfig], today: date
) -> list[Route]:
    """Larger models, prompted: the run file's endpoints and the dated list. high: with shot_tokens of examples."""
    rows = [
        (e.name, e.usd_per_million_input_tokens, e.usd_per_million_output_tokens, "the run file", today, "given")
        for e in endpoints
    ]
    rows += [
        (
            f"{p.model} ({p.provider})",
            p.usd_per_million_input_tokens,
            p.usd_per_million_output_tokens,
            p.source,
            p.as_of,
            p.basis,
        )
        for p in api_prices()
    ]
    found = []
    for name, into, out, source, as_of, basis in rows:

        def each(more: float, into: float = into, out: float = out) -> float:
            return ((traffic.prompt_tokens + more) * into + traffic.completion_tokens * out) / PER_MILLION

        found.append(
            Route(
                kind="api",
                name=name,
                seller=name,
                price_usd=into,
                price_unit="USD per million input tokens",
                source=source,
                observed_at=as_of,
                basis=basis,
                usd_per_request=Estimate(each(0), each(0), each(shot_tokens)),
                notes=(f"{out:g} USD per million output tokens", "cached prompts and batches cost less, not counted"),
            )
        )
    return found
