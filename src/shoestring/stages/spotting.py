"""What `shoestring plan` says of spot machines: how often they are taken, and simulated ends and bills.

Machines are drawn from the hazards of the sellers, or those of a trace, begun at many places. Under a deadline the
policy of the launcher is simulated too, with machines on demand to fall back on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

from ..launch.policy import Learning, SpotPolicy, SpotState, Where
from ..market.options import Option
from ..market.spot import hazard_known, hazard_of
from ..market.terms import value
from ..plan.figures import Figure, figure
from ..plan.hazard import HazardKnown
from ..plan.spot_simulate import Jobs, Machines, PolicyEnd, Recorded, by_policy, memoryless, on_spot
from ..plan.spot_trace import Family, Hours, Trace, exponential
from ..records import Estimate
from ..units import SECONDS_PER_HOUR
from .choosing import Weighed
from .common import seen_by_seller

if TYPE_CHECKING:
    from ..recipe import Run

NUM_SIMULATED = 2000
NUM_UNDER_POLICY = 200
MOST_OPTIONS = 4  # spot options that are simulated
STEP_H = 5 / 60  # of the policy's decisions, at most
GIVE_UP_TIMES = 50  # of the trace's length, or of the expected hours: later ends count as never


@dataclass(frozen=True, slots=True)
class Ends:
    """What became of the simulated trainings of one option."""

    option: Option
    known: HazardKnown
    finish_h: Estimate  # the median; low and high: one in ten, nine in ten
    usd: Estimate | None  # the mean of those that end; low and high: 5 and 95 %; None where none does
    ended_frac: float  # share that ends at all
    done_frac: float | None  # by the deadline; None without one
    fallback: Option | None  # the same machine on demand
    policy_usd: Estimate | None
    policy_late_frac: float | None
    policy_on_demand_frac: float | None  # share of the billed hours
    on_demand_alone_usd: Estimate | None


def ends_of(run: Run, weighed: Weighed, trace: Trace | None) -> list[Ends]:
    """The cheapest spot option of each seller and GPU, a few of them, simulated on the trace or on drawn machines."""
    first: dict[tuple[str, str], Option] = {}
    for option in weighed.choice.options:
        if option.is_spot:
            first.setdefault((option.seller, option.gpu), option)
    return [_ends(run, weighed, option, trace) for option in list(first.values())[:MOST_OPTIONS]]


def _ends(run: Run, weighed: Weighed, option: Option, trace: Trace | None) -> Ends:
    config, work = run.config, option.work
    assert work is not None and option.setup_h is not None and option.hours is not None
    known = hazard_known(config.market, option.seller, weighed.seen)
    rng = np.random.default_rng(config.seed)
    save_h = value("save_s").value / SECONDS_PER_HOUR
    planned_per_h = work.settings.interruptions_per_hour
    jobs = Jobs.spread(work.hours, option.setup_h, save_h, planned_per_h, rng, NUM_SIMULATED)
    machines: Machines
    if trace is None:
        machines = memoryless(hazard_of(config.market, option.seller, weighed.seen), rng, NUM_SIMULATED)
    else:
        machines = Recorded(trace, rng.uniform(0, trace.length_h, NUM_SIMULATED))
    longest_h = max(trace.length_h if trace else 0.0, option.hours.high)
    found = on_spot(jobs, machines, GIVE_UP_TIMES * longest_h)
    usd_per_h = option.price_usd * option.num_gpus
    is_ended = np.isfinite(found.finish_h)
    usd = found.billed_h[is_ended] * usd_per_h + option.egress_usd.value
    late = policy_usd = on_demand = alone_usd = None
    fallback = _fallback(weighed, option)
    if fallback is not None and config.deadline_h:
        ends = _under_policy(jobs, option, fallback, known, config.deadline_h, trace, rng)
        fallback_usd_per_h = fallback.price_usd * fallback.num_gpus
        bills = np.array([end.usd(usd_per_h, fallback_usd_per_h) for end in ends]) + option.egress_usd.value
        policy_usd = _mean(bills)
        alone_usd = _mean((jobs.work_h + jobs.restart_h) * fallback_usd_per_h)
        late = float(np.mean([end.finish_h > config.deadline_h + 1e-9 for end in ends]))
        hours = sum(end.spot_h + end.on_demand_h for end in ends)
        on_demand = sum(end.on_demand_h for end in ends) / hours if hours else 0.0
    return Ends(
        option=option,
        known=known,
        finish_h=Estimate(*(found.finish_quantile_h(share) for share in (0.5, 0.1, 0.9))),
        usd=_mean(usd) if len(usd) else None,
        ended_frac=float(is_ended.mean()),
        done_frac=found.done_frac(config.deadline_h) if config.deadline_h else None,
        fallback=fallback,
        policy_usd=policy_usd,
        policy_late_frac=late,
        policy_on_demand_frac=on_demand,
        on_demand_alone_usd=alone_usd,
    )


def _mean(bills: Hours) -> Estimate:
    low, high = (float(q) for q in np.quantile(bills, (0.05, 0.95)))
    mean = float(bills.mean())
    return Estimate(mean, min(low, mean), max(high, mean))


def _fallback(weighed: Weighed, option: Option) -> Option | None:
    """The same machine on demand: of the seller, else the cheapest."""
    alike = [
        other
        for other in weighed.choice.options
        if other.kind == "rented"
        and not other.is_spot
        and (other.model, other.method, other.gpu, other.num_gpus)
        == (option.model, option.method, option.gpu, option.num_gpus)
    ]
    return next((other for other in alike if other.seller == option.seller), alike[0] if alike else None)


def _under_policy(
    jobs: Jobs,
    option: Option,
    fallback: Option,
    known: HazardKnown,
    deadline_h: float,
    trace: Trace | None,
    rng: np.random.Generator,
) -> list[PolicyEnd]:
    """Trainings that take a machine on demand where they would be late."""
    step_h = min(STEP_H, deadline_h / 200)
    num_steps = int(deadline_h / step_h) + 1
    hazard = known.posterior
    family = Family("", exponential(1 / max(hazard.value, 1e-12)), exponential(value("wait_h", option.seller).value))
    price_frac = option.price_usd * option.num_gpus / (fallback.price_usd * fallback.num_gpus)

    def end(index: int) -> PolicyEnd:
        job = jobs.job(index)
        drawn = trace or family.trace(rng, num_steps * step_h)
        begun = drawn.rolled(float(rng.uniform(0, drawn.length_h))) if trace else drawn
        policy = SpotPolicy(step_h + job.save_h, spot_price_frac=price_frac, hazard_per_h=hazard.value)
        learning = Learning(policy, hazard=hazard)

        def decide(elapsed_h: float, done_h: float, unsaved_h: float, on: Where, is_there: bool) -> Where:
            state = SpotState(
                elapsed_h, deadline_h, done_h, job.machine_h, job.restart_h, on, is_there, unsaved_h=unsaved_h
            )
            return learning.decide(state)

        # Two deadlines long, so that one that is late has an end too.
        return by_policy(job, begun.available(step_h, 2 * num_steps), step_h, decide)

    return [end(index) for index in range(min(NUM_UNDER_POLICY, len(jobs)))]


# ---- as `shoestring plan --json` prints it --------------------------------------------------


def told(run: Run, weighed: Weighed, trace: Trace | None) -> dict[str, Any] | None:
    """Hazards and simulated ends of spot options; None where there is none."""
    ends = ends_of(run, weighed, trace)
    if not ends:
        return None
    today = weighed.today
    return {
        "simulated": figure(NUM_SIMULATED, "trainings an option", "plan.spot_simulate", today, today),
        "trace": _trace_told(trace, today) if trace else None,
        "hazards": hazards_told([end.known for end in ends], today),
        "options": [_told(end, trace, today) for end in ends],
    }


def _trace_told(trace: Trace, today: date) -> dict[str, Any]:
    def known(what: float | None, unit: str) -> Figure:
        return figure(what, unit, f"counted in {trace.name}", today, today)

    out_h = trace.length_h - trace.up_h
    return {
        "file": trace.name,
        "length_h": known(trace.length_h, "hours"),
        "up_frac": known(trace.up_h / trace.length_h, "share of the time with a machine"),
        "interruptions_per_h": known(
            trace.num_interruptions / trace.up_h if trace.up_h else None, "interruptions per running hour"
        ),
        "wait_h": known(
            out_h / trace.num_interruptions if trace.num_interruptions else None, "hours without a machine, on average"
        ),
    }


def hazards_told(known: Sequence[HazardKnown], today: date) -> list[dict[str, Any]]:
    """By seller: the range, what launches saw, the range after that."""
    unit = "interruptions per running hour"
    found = {}
    for one in known:
        as_of = date.fromisoformat(one.as_of) if one.as_of else today
        found[one.seller] = {
            "seller": one.seller,
            "words": one.words,
            "prior": figure(one.prior, unit, one.source, as_of, today),
            "seen_interruptions": figure(one.seen.num_interruptions, "interruptions", "ledgers", today, today),
            "seen_hours": figure(one.seen.running_h, "running hours", "ledgers", today, today),
            "posterior": figure(one.posterior, unit, "the range, narrowed by the ledgers (plan.hazard)", as_of, today),
        }
    return list(found.values())


def _told(end: Ends, trace: Trace | None, today: date) -> dict[str, Any]:
    how = f"simulated on {trace.name}" if trace else "simulated with drawn interruptions and waits"
    option, seen = end.option, end.option.observed_at

    def simulated(what: Estimate | float | None, unit: str, observed_at: date | None = today) -> Figure:
        return figure(what, unit, how, observed_at, today)

    record: dict[str, Any] = {
        "words": option.words,
        "seller": option.seller,
        "gpu": option.gpu,
        "finish_h": simulated(end.finish_h, "hours; half are done, one in ten, nine in ten"),
        "usd": simulated(end.usd, "USD; mean, 5 % and 95 %, of those that end", seen),
        "ended_frac": simulated(end.ended_frac, "share that ends at all"),
    }
    if end.done_frac is not None:
        record["done_by_deadline"] = simulated(end.done_frac, "share done by the deadline")
    if end.fallback is not None:
        below = 1 - option.price_usd * option.num_gpus / (end.fallback.price_usd * end.fallback.num_gpus)
        priced = f"{option.source}; {end.fallback.source}"
        record["discount_frac"] = figure(below, f"share below {end.fallback.seller} on demand", priced, seen, today)
    if end.fallback is not None and end.policy_usd is not None:
        record["policy"] = {
            "fallback": end.fallback.words,
            "usd": simulated(end.policy_usd, "USD; mean, 5 % and 95 %", seen),
            "late": simulated(end.policy_late_frac, "share late"),
            "on_demand": simulated(end.policy_on_demand_frac, "share of the billed hours on demand"),
            "on_demand_alone_usd": simulated(end.on_demand_alone_usd, "USD; mean, 5 % and 95 %", seen),
        }
    return record


def hazards_of(run: Run) -> list[HazardKnown]:
    """For `shoestring explain`: of everybody, and of each seller that a launch has seen."""
    seen: Mapping[str, Any] = seen_by_seller(run.folder.parent)
    return [hazard_known(run.config.market, seller, seen) for seller in ("", *sorted(seen))]
