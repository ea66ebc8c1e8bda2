"""Every way to have a run trained: model, method, machine, seller; what it needs, takes and costs, or why it is out.

A machine's hours: it starts, installs, downloads the weights, trains, evaluates. A spot machine's are Daly's
(plan.spot). Where a seller rents eight GPUs or none, all eight are paid; training uses as many as train.num_processes
says, else all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

from ..config import PREFERENCES, RunConfig
from ..errors import BadInput
from ..plan.hazard import Seen
from ..plan.memory import FIT_FRAC
from ..plan.spot import billed, expected_wait_h, finish_frac
from ..records import Estimate
from ..units import SECONDS_PER_HOUR, duration, gib, usd
from . import managed
from .offers import MACHINES_AT_HAND, Offer
from .prices import Price
from .spot import egress_usd, hazard_known, hazard_of
from .table import DATED_BASES
from .terms import value
from .work import Rows, Work

ZERO = Estimate(0.0, 0.0, 0.0)
PICKS = ("value", "low", "high")
FEWEST_CHANCE = 0.5  # an option less likely than this to meet the deadline is out
MORE_GPUS = (2, 4, 8)
NOTHING_SEEN: Mapping[str, Seen] = {}
WEIGHT_BYTES = 2  # of a parameter, as weights are downloaded


@dataclass(frozen=True, slots=True)
class Option:
    """One way to train. hours: from order to result; None where the service states none."""

    kind: str  # rented, here, managed
    model: str
    method: str
    precision: str
    gpu: str  # empty: the service's own
    num_gpus: int
    seller: str
    region: str
    is_spot: bool
    usd: Estimate
    hours: Estimate | None
    billed_h: Estimate | None
    setup_h: Estimate | None
    work: Work | None
    finish_frac: float | None  # chance of being done by the deadline; None without one, or where no time is stated
    interrupt_frac: float  # chance that the machine is taken away at least once
    price_usd: float
    price_unit: str
    source: str
    observed_at: date | None  # None: the source has no date
    basis: str
    notes: tuple[str, ...] = ()
    egress_usd: Estimate = ZERO  # part of usd: checkpoints moved to and from another region

    @property
    def words(self) -> str:
        """The option in a few words."""
        if self.kind == "here":
            return f"{self.model} by {self.method} on this machine ({self.gpu})"
        if self.kind == "managed":
            return f"{self.model} by {self.method} at {self.seller}"
        count = f"{self.num_gpus}x " if self.num_gpus > 1 else ""
        spot = " spot" if self.is_spot else ""
        return f"{self.model} by {self.method} on {count}{self.gpu}{spot} of {self.seller}"

    @property
    def risk_frac(self) -> float:
        """Chance of being late; without a deadline, of being interrupted."""
        return self.interrupt_frac if self.finish_frac is None else 1.0 - self.finish_frac

    @property
    def is_dated(self) -> bool:
        """Whether the price was read at a known time; others fill gaps and are never picked before."""
        return self.basis in (*DATED_BASES, "given", "assumption")


@dataclass(frozen=True, slots=True)
class Discarded:
    """An option that is out. code: does_not_fit, past_deadline, over_budget, rate_unknown, closed, ..."""

    code: str
    model: str
    method: str
    gpu: str
    seller: str
    is_spot: bool
    reason: str
    option: Option | None = None  # where it can be done, but not within deadline or budget


def _sum(*terms: Estimate) -> Estimate:
    return Estimate(*(sum(getattr(t, k) for t in terms) for k in PICKS))


def setup_hours(num_params: int) -> Estimate:
    """Hours from order to the first step's loading: boot, installation, download of the 16-bit weights."""
    size, rate = num_params * WEIGHT_BYTES, value("download_bytes_per_s")
    download = Estimate(size / rate.value, size / rate.high, size / rate.low)
    return _sum(value("boot_s"), value("install_s"), download).scaled(1 / SECONDS_PER_HOUR)


def billable_h(hours: Estimate, seller: str) -> Estimate:
    """Hours as the seller counts them: whole units, and no less than its minimum."""
    unit, least = value("billed_s", seller), value("minimum_s", seller)

    def counted(pick: str) -> float:
        step = getattr(unit, pick)
        seconds = max(getattr(hours, pick) * SECONDS_PER_HOUR, getattr(least, pick))
        return math.ceil(seconds / step - 1e-9) * step / SECONDS_PER_HOUR

    return Estimate(*(counted(pick) for pick in PICKS))


def rented(
    config: RunConfig,
    work: Work,
    num_params: int,
    offer: Offer,
    is_multiple: bool = False,
    seen: Mapping[str, Seen] = NOTHING_SEEN,
) -> Option | Discarded:
    """The option of training on an offer's machine.

    is_multiple: of more GPUs than the offer's smallest order; seen: of spot machines, by seller.
    """
    setup, hours = setup_hours(num_params), work.hours
    save = value("save_s").scaled(1 / SECONDS_PER_HOUR)
    planned = work.settings.interruptions_per_hour
    hazard = hazard_of(config.market, offer.seller, seen) if offer.is_spot else None
    billed_h = wall = _sum(hours, setup)
    interruptions = ZERO
    if hazard is not None:
        billed_h = billed(hours, hazard, setup, save, planned)
        wall = _sum(billed_h, expected_wait_h(billed_h, hazard))
        interruptions = Estimate(*(getattr(hazard.per_h, k) * getattr(billed_h, k) for k in PICKS))
    egress = egress_usd(config, work, offer, interruptions)
    chance = finish_frac(hours, setup, save, config.deadline_h, hazard, planned) if config.deadline_h else None
    billed_h = billable_h(billed_h, offer.seller)
    notes = []
    if offer.num_gpus > work.settings.num_processes:
        notes.append(f"{offer.num_gpus} GPUs are rented, training uses {work.settings.num_processes}")
    if is_multiple:
        notes.append("several GPUs of the seller's machine of one: whether there is such a machine is not stated")
    if offer.is_spot:
        known = hazard_known(config.market, offer.seller, seen)
        notes.append(
            f"interruptions: {offer.interruption or 'not stated by the seller'}; {known.words}; {known.source}"
        )
    if egress.high > 0:
        notes.append(
            f"moving checkpoints between regions: {usd(egress.value)} ({usd(egress.low)} to {usd(egress.high)})"
        )
    option = Option(
        kind="rented",
        model=work.model,
        method=work.method,
        precision=work.precision,
        gpu=offer.gpu,
        num_gpus=offer.num_gpus,
        seller=offer.seller,
        region=offer.region,
        is_spot=offer.is_spot,
        usd=_sum(billed_h.scaled(offer.usd_per_gpu_hour * offer.num_gpus), egress),
        egress_usd=egress,
        hours=wall,
        billed_h=billed_h,
        setup_h=setup,
        work=work,
        finish_frac=chance,
        interrupt_frac=-math.expm1(-interruptions.value),
        price_usd=offer.usd_per_gpu_hour,
        price_unit="USD per GPU-hour",
        source=offer.source,
        observed_at=None if offer.basis == "undated catalog" else offer.observed_at,
        basis=offer.basis,
        notes=tuple(notes),
    )
    return _in_bounds(config, option)


def here(config: RunConfig, work: Work, price: Price, today: date) -> Option | Discarded:
    """The option of training on the machine at hand; its weights are taken to be there already."""
    if does_not_fit(work):
        return unfit(work, "this machine")
    option = Option(
        kind="here",
        model=work.model,
        method=work.method,
        precision=work.precision,
        gpu=work.device.name,
        num_gpus=1,
        seller="this machine",
        region="",
        is_spot=False,
        usd=work.hours.scaled(price.usd_per_hour),
        hours=work.hours,
        billed_h=work.hours,
        setup_h=ZERO,
        work=work,
        finish_frac=finish_frac(work.hours, ZERO, ZERO, config.deadline_h) if config.deadline_h else None,
        interrupt_frac=0.0,
        price_usd=price.usd_per_hour,
        price_unit="USD per hour",
        source=price.source,
        observed_at=date.fromisoformat(price.as_of) if price.as_of else today,
        basis=price.basis,
    )
    return _in_bounds(config, option)


def does_not_fit(work: Work) -> bool:
    """Whether the high end of predicted memory passes what the device can promise."""
    return work.memory.verdict != "fits"


def unfit(work: Work, seller: str = "") -> Discarded:
    """The work on a device that cannot hold it, whoever rents it."""
    reason = f"needs {gib(work.memory.device_expected_bytes)}, up to {gib(work.memory.device_high_bytes)}"
    reason += f"; {FIT_FRAC:.0%} of {gib(work.device.memory_bytes)} may be used ({work.memory.phase.replace('_', ' ')})"
    each = f" on each of {work.device.num_devices}" if work.device.num_devices > 1 else ""
    return Discarded("does_not_fit", work.model, work.method, work.device.name, seller, False, reason + each)


def _in_bounds(config: RunConfig, option: Option) -> Option | Discarded:
    """The option, unless the deadline or the budget rules it out."""
    code = reason = ""
    if config.deadline_h and option.finish_frac is not None and option.finish_frac < FEWEST_CHANCE:
        assert option.hours is not None
        code = "past_deadline"
        reason = (
            f"done after {duration(option.hours.value * SECONDS_PER_HOUR)}, within {config.deadline_h:g} h with a "
            f"chance of {option.finish_frac:.0%}"
        )
    elif option.usd.value > config.budget_usd:
        code, reason = "over_budget", f"expected {usd(option.usd.value)}, the budget is {usd(config.budget_usd)}"
    if not code:
        return option
    return Discarded(code, option.model, option.method, option.gpu, option.seller, option.is_spot, reason, option)


def of_offers(
    config: RunConfig,
    works: Mapping[tuple[str, int], Sequence[Work]],
    num_params: int,
    orders: Iterable[Order],
    seen: Mapping[str, Seen] = NOTHING_SEEN,
) -> tuple[list[Option], list[Discarded]]:
    """Options of one model on orders; works: by GPU and number. What cannot hold it is out once a GPU and method."""
    options: list[Option] = []
    out = [unfit(work) for found in works.values() for work in found if does_not_fit(work)]
    for order in orders:
        for work in works.get((order.offer.gpu, order.num_gpus), ()):
            if does_not_fit(work):
                continue
            offer = replace(order.offer, num_gpus=order.num_gpus)
            found = rented(config, work, num_params, offer, order.num_gpus > order.offer.num_gpus, seen)
            (options if isinstance(found, Option) else out).append(found)  # type: ignore[arg-type]
    return options, out


@dataclass(frozen=True, slots=True)
class Order:
    """So many GPUs of an offer."""

    offer: Offer
    num_gpus: int


def smallest(config: RunConfig, offers: Iterable[Offer]) -> list[Order]:
    """Each offer's smallest order that has a GPU for each process."""
    return [Order(offer, max(offer.num_gpus, config.train.num_processes or 1)) for offer in cheapest(offers)]


def larger(config: RunConfig, offers: Iterable[Offer]) -> list[Order]:
    """Two, four or eight GPUs of machines offered with one, on demand, where the run file leaves the number open."""
    if config.train.num_processes is not None or config.engine != "shoestring":
        return []
    single = [offer for offer in cheapest(offers) if offer.num_gpus == 1 and not offer.is_spot]
    return [Order(offer, num) for num in MORE_GPUS for offer in single]


def cheapest(offers: Iterable[Offer]) -> list[Offer]:
    """Of each seller, GPU, kind and size of order the cheapest region; processors are no offers."""
    best: dict[tuple[str, str, bool, int], Offer] = {}
    for offer in offers:
        key = (offer.seller, offer.gpu, offer.is_spot, offer.num_gpus)
        if offer.gpu not in MACHINES_AT_HAND and (
            key not in best or offer.usd_per_gpu_hour < best[key].usd_per_gpu_hour
        ):
            best[key] = offer
    return list(best.values())


def of_services(
    config: RunConfig, model: str, params_b: float, rows: Rows, num_epochs: float, num_evals: int, today: date
) -> tuple[list[Option], list[Discarded]]:
    """Options of one model at managed services; what a service does not state keeps it out, with the reason."""
    options: list[Option] = []
    out: list[Discarded] = []
    lengths = rows.counts.lengths
    method = "full" if config.method == "full" else "lora"
    for provider, terms in managed.TERMS.items():
        closed = managed.closing_words(provider, terms, today)
        if closed:
            out.append(Discarded("closed", model, method, "", provider, False, closed))
            continue
        try:
            found = managed.quote(
                provider,
                model,
                round(rows.train_tokens.value),
                num_epochs=num_epochs,
                num_rows=rows.num_train,
                max_seq_len=max(lengths),
                num_validation_tokens=round(sum(lengths) / len(lengths) * rows.num_dev),
                num_evals=num_evals,
                params_b=params_b,
                method=method,
                today=today,
            )
        except BadInput as error:
            out.append(Discarded("not_offered", model, method, "", provider, False, str(error)))
            continue
        code = reason = ""
        if config.train.objective in PREFERENCES:
            code, reason = "rate_unknown", "its rate for training on preferences is not stated"
        elif found.train_usd is None:
            code, reason = "rate_unknown", found.unknown[0]
        if code:
            out.append(Discarded(code, model, method, "", provider, False, reason))
            continue
        assert found.train_usd is not None and found.usd_per_million_train_tokens is not None
        option = Option(
            kind="managed",
            model=model,
            method=method,
            precision="the service's",
            gpu="",
            num_gpus=0,
            seller=provider,
            region="",
            is_spot=False,
            usd=rows.error.scaled(found.train_usd),
            hours=None,
            billed_h=None,
            setup_h=None,
            work=None,
            finish_frac=None,
            interrupt_frac=0.0,
            price_usd=found.usd_per_million_train_tokens,
            price_unit="USD per million tokens",
            source=found.source,
            observed_at=None if found.basis == "undated page" else found.as_of,
            basis=found.basis,
            notes=("hours are not stated by the service", *found.rules, *found.unknown),
        )
        if config.deadline_h:
            reason = f"states no time, and the deadline is {config.deadline_h:g} h"
            out.append(Discarded("no_time_stated", model, method, "", provider, False, reason))
            continue
        kept = _in_bounds(config, option)
        (options if isinstance(kept, Option) else out).append(kept)  # type: ignore[arg-type]
    return options, out
