"""One machine at one price, whoever sells it, and the checks that every table of offers passes.

A source yields Quotes in its own terms; `normalise` turns them into Offers per GPU-hour, `audit` compares them with
each other and with the market. What is refused says its value, the limit and the reason.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

from ..plan.devices import gpu_table
from ..units import gib
from .names import gpu_named

LIST_BASES = ("quoted", "third-party copy", "undated catalog", "recalled", "assumption")
MACHINES_AT_HAND = ("cpu", "mps")  # priced by their electricity; no GPU of the table
MEMORY_TOLERANCE = 0.13  # an "80 GB" card reports 85.5e9 bytes, a "16 GB" T4 15.6e9
FARTHEST_FROM_MEDIAN = 5.0  # list prices of one GPU lie within a factor of 4.6 over all sellers (market.md)
LOWEST_SPOT_OF_MEDIAN = 0.05
TENTH_TOLERANCE = 1e-3
FEWEST_SELLERS = 3  # below, there is no market to compare with


@dataclass(frozen=True, slots=True)
class Quote:
    """What a source says of one machine, in the source's terms; usd_per_hour is for all its GPUs."""

    seller: str
    gpu: str  # the source's name, with what else says the form factor
    num_gpus: float
    usd_per_hour: float
    region: str = ""
    gpu_memory_bytes: int | None = None  # of each GPU, as stated
    is_spot: bool = False
    interruption: str = ""
    detail: str = ""  # machine type, for the reader
    excludes: str = ""  # what the price leaves out, such as "the GPU"


@dataclass(frozen=True, slots=True)
class Offer:
    """A machine to rent. num_gpus: the smallest order; memory_bytes: of each GPU, by the GPU table (0: no GPU)."""

    seller: str
    region: str  # empty: not stated, or the same everywhere
    gpu: str  # a row of the GPU table
    num_gpus: int
    memory_bytes: int
    usd_per_gpu_hour: float
    is_spot: bool
    interruption: str  # of spot: what the source says of it
    source: str
    observed_at: date
    basis: str = "quoted"  # one of LIST_BASES

    @property
    def words(self) -> str:
        """The offer in a few words."""
        kind = " spot" if self.is_spot else ""
        where = f" in {self.region}" if self.region else ""
        return f"{self.seller} {self.num_gpus}x {self.gpu}{kind}{where}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An offer left out: what it was, its value, the limit it broke, and why that matters."""

    what: str
    value: str
    limit: str
    reason: str
    is_implausible: bool = False  # many of these mean that the source changed its units or fields

    def __str__(self) -> str:
        return f"{self.what}: {self.value}, limit {self.limit}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Checked:
    """A source's offers that passed, those refused, and how many were of GPUs that the GPU table does not have."""

    offers: tuple[Offer, ...]
    refused: tuple[Refusal, ...]
    outside: Counter[str]


def check(
    quotes: Iterable[Quote],
    *,
    source: str,
    observed_at: date,
    basis: str = "quoted",
    market: Sequence[Offer] = (),
    previous: Sequence[Offer] = (),
) -> Checked:
    """Normalise a source's quotes and audit them. market: other sources' offers; previous: this source's last table."""
    offers, refused, outside = [], [], Counter[str]()
    for quote in quotes:
        result = normalise(quote, source, observed_at, basis)
        if isinstance(result, Offer):
            offers.append(result)
        elif result is None:
            outside[quote.gpu] += 1
        else:
            refused.append(result)
    kept, more = audit(offers, market=market, previous=previous)
    return Checked(tuple(kept), (*refused, *more), outside)


def normalise(quote: Quote, source: str, observed_at: date, basis: str = "quoted") -> Offer | Refusal | None:
    """The quote per GPU-hour; a Refusal if its numbers cannot be; None for a GPU outside the table."""
    what = f"{quote.seller} {quote.num_gpus:g}x {quote.gpu}" + (f" ({quote.detail})" if quote.detail else "")
    if quote.excludes:
        return Refusal(
            what, f"{quote.usd_per_hour:g} USD/h", "the whole machine", f"the price leaves out {quote.excludes}"
        )
    if quote.num_gpus < 1 or quote.num_gpus != int(quote.num_gpus):
        return Refusal(what, f"{quote.num_gpus:g} GPUs", "1 or more, whole", "a price per GPU cannot be had of it")
    gpu = gpu_named(quote.gpu, quote.gpu_memory_bytes)
    if gpu is None:
        return None
    memory_bytes = gpu_table()[gpu].memory_bytes
    stated = quote.gpu_memory_bytes
    if stated is not None and abs(stated / memory_bytes - 1) > MEMORY_TOLERANCE:
        return Refusal(
            what,
            f"{gib(stated)} a GPU",
            f"{gib(memory_bytes)} within {MEMORY_TOLERANCE:.0%}",
            f"no {gpu} has that much; gigabytes in a mebibyte field, the sum over GPUs, or a part of a GPU",
            is_implausible=True,
        )
    return Offer(
        seller=quote.seller,
        region=quote.region,
        gpu=gpu,
        num_gpus=int(quote.num_gpus),
        memory_bytes=memory_bytes,
        usd_per_gpu_hour=round(quote.usd_per_hour / quote.num_gpus, 6),
        is_spot=quote.is_spot,
        interruption=(quote.interruption or "not stated") if quote.is_spot else "",
        source=source,
        observed_at=observed_at,
        basis=basis,
    )


def audit(
    offers: Sequence[Offer], *, market: Sequence[Offer] = (), previous: Sequence[Offer] = ()
) -> tuple[list[Offer], list[Refusal]]:
    """Split a table into what passes and what does not.

    List prices are compared with the median of market (default: the table itself) and with the previous table of the
    same source; spot prices with the same seller's list price too.
    """
    medians = market_medians(market or offers)
    before = _level(previous)
    kept: list[Offer] = []
    refused: list[Refusal] = []
    lists: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for offer in sorted(offers, key=lambda o: o.is_spot):  # list prices first
        fault = _price_fault(offer, medians.get(offer.gpu), before.get((offer.seller, offer.gpu, offer.is_spot)))
        if fault is None and offer.is_spot:
            same_place = lists.get((offer.seller, offer.gpu, offer.region))
            fault = _spot_fault(offer, same_place or lists.get((offer.seller, offer.gpu), []))
        if fault is not None:
            refused.append(fault)
            continue
        kept.append(offer)
        if not offer.is_spot:
            lists[offer.seller, offer.gpu, offer.region].append(offer.usd_per_gpu_hour)
            lists[offer.seller, offer.gpu].append(offer.usd_per_gpu_hour)
    return kept, refused


def market_medians(offers: Iterable[Offer]) -> dict[str, float]:
    """GPU -> median over sellers of each seller's median list price; GPUs of fewer than FEWEST_SELLERS left out."""
    by_gpu: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for offer in offers:
        if not offer.is_spot and _is_price(offer.usd_per_gpu_hour):
            by_gpu[offer.gpu][offer.seller].append(offer.usd_per_gpu_hour)
    return {
        gpu: statistics.median(statistics.median(prices) for prices in sellers.values())
        for gpu, sellers in by_gpu.items()
        if len(sellers) >= FEWEST_SELLERS
    }


def _level(offers: Iterable[Offer]) -> dict[tuple[str, str, bool], float]:
    prices: dict[tuple[str, str, bool], list[float]] = defaultdict(list)
    for offer in offers:
        prices[offer.seller, offer.gpu, offer.is_spot].append(offer.usd_per_gpu_hour)
    return {key: statistics.median(values) for key, values in prices.items()}


def _is_price(usd_per_gpu_hour: float) -> bool:
    return math.isfinite(usd_per_gpu_hour) and usd_per_gpu_hour > 0


def _price_fault(offer: Offer, median: float | None, before: float | None) -> Refusal | None:
    """What is wrong with a price by itself, against the market's median, or against the source's last table."""
    price = offer.usd_per_gpu_hour
    value = f"{price:g} USD per GPU-hour"
    if not _is_price(price):
        what = "a spot price of zero is a missing one, not a gift" if offer.is_spot and price == 0 else "not a price"
        return Refusal(offer.words, value, "above 0", what)
    if median is not None:
        lowest = median * (LOWEST_SPOT_OF_MEDIAN if offer.is_spot else 1 / FARTHEST_FROM_MEDIAN)
        highest = median * FARTHEST_FROM_MEDIAN
        if not lowest <= price <= highest:
            reason = f"implausible against the market's median list price of {median:.2f}"
            return Refusal(offer.words, value, f"{lowest:.2f} to {highest:.2f}", reason, is_implausible=True)
    if before is not None and not before / FARTHEST_FROM_MEDIAN <= price <= before * FARTHEST_FROM_MEDIAN:
        limit = f"{before / FARTHEST_FROM_MEDIAN:.2f} to {before * FARTHEST_FROM_MEDIAN:.2f}"
        reason = f"the same source said {before:.2f} the time before"
        return Refusal(offer.words, value, limit, reason, is_implausible=True)
    return None


def _spot_fault(offer: Offer, list_prices: Sequence[float]) -> Refusal | None:
    """What is wrong with a spot price beside the seller's list prices of that GPU."""
    price = offer.usd_per_gpu_hour
    value = f"{price:g} USD per GPU-hour"
    for listed in list_prices:
        if math.isclose(price, listed, rel_tol=1e-6):
            return Refusal(offer.words, value, f"below {listed:g}", "equal to the list price: a filler, no spot market")
        if math.isclose(price, listed / 10, rel_tol=TENTH_TOLERANCE):
            reason = f"exactly a tenth of the list price {listed:g}: a filler where nothing is traded"
            return Refusal(offer.words, value, f"other than {listed / 10:g}", reason)
    if list_prices and price > max(list_prices):
        return Refusal(offer.words, value, f"below {max(list_prices):g}", "dearer than the seller's own list price")
    return None
