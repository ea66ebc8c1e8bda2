"""What a machine that may be taken away costs and when it is done.

W useful hours, tau hours between checkpoints, c to write one, r to start again, lambda interruptions a running hour.
An interval is expected to take (1/lambda) e^(lambda r) (e^(lambda (tau + c)) - 1) billed hours (Daly 2006, Future
Generation Computer Systems 22), tau as training chooses it (plan.interval). Two corrections to his total make it
exact: the last interval is as long as what is left, and the first start can be interrupted too, (e^(lambda r) - 1) /
lambda for r. bench/spot.py holds it against a simulation.
Interruptions are taken as memoryless, waits for another machine as exponential: replayed on 2023 traces the billed
hours were right to 7 %, but mean ends came up to 31 % later than this, so waits are given wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from ..records import Estimate
from ..units import SECONDS_PER_HOUR
from .interval import daly_interval_s

Where = Literal["spot", "on_demand", "wait"]  # where a training is; "wait": on no machine
NUM_QUANTILES = 20
NORMAL = NormalDist()
QUANTILES = tuple((i + 0.5) / NUM_QUANTILES for i in range(NUM_QUANTILES))
END = NORMAL.inv_cdf(0.95)  # where an estimate's high lies; its low is the opposite one
# Of a hazard known as a range, low and high its 5 and 95 %. Source: Keefer & Bodily, Management Science 29(5), 1983.
SCENARIOS = (("low", 0.185), ("value", 0.63), ("high", 0.185))
MOST_WAITS = 200
MOST_INTERVALS = 1_000_000


@dataclass(frozen=True, slots=True)
class Hazard:
    """Interruptions a running hour, and hours until there is another machine."""

    per_h: Estimate
    wait_h: Estimate


def interval_h(hazard_per_h: float, save_h: float, work_h: float) -> float:
    """Hours between checkpoints that cost least, at most the work itself."""
    return min(work_h, daly_interval_s(save_h * SECONDS_PER_HOUR, hazard_per_h) / SECONDS_PER_HOUR)


def billed_h(
    work_h: float, hazard_per_h: float, restart_h: float, save_h: float, planned_per_h: float | None = None
) -> float:
    """Expected billed hours with checkpoints at the best interval and at the end, the first start included.

    planned_per_h: the hazard that training takes its interval by, where that is another than the true one.
    """
    if work_h <= 0:
        return restart_h
    tau = interval_h(hazard_per_h if planned_per_h is None else planned_per_h, save_h, work_h)
    if tau <= 0:  # checkpoints that cost nothing are written all the time
        tau, save_h = work_h / MOST_INTERVALS, 0.0
    num_whole = math.floor(work_h / tau + 1e-9)
    rest = max(0.0, work_h - num_whole * tau)
    is_whole = rest <= 1e-9 * work_h
    if hazard_per_h <= 0:
        return restart_h + work_h + save_h * (num_whole + (not is_whole))
    start = math.expm1(hazard_per_h * restart_h) / hazard_per_h
    again = math.exp(hazard_per_h * restart_h)
    whole = math.expm1(hazard_per_h * (tau + save_h)) / hazard_per_h
    last = 0.0 if is_whole else math.expm1(hazard_per_h * (rest + save_h)) / hazard_per_h
    return start + again * (num_whole * whole + last)


def billed(
    work_h: Estimate, hazard: Hazard, restart_h: Estimate, save_h: Estimate, planned_per_h: float | None = None
) -> Estimate:
    """Billed hours, low with few interruptions and high with many."""

    def hours(pick: str) -> float:
        work, per_h, restart, save = (getattr(e, pick) for e in (work_h, hazard.per_h, restart_h, save_h))
        return billed_h(work, per_h, restart, save, planned_per_h)

    return Estimate(hours("value"), hours("low"), hours("high"))


def expected_wait_h(billed: Estimate, hazard: Hazard) -> Estimate:
    """Hours spent waiting for machines."""
    return Estimate(
        *(getattr(billed, p) * getattr(hazard.per_h, p) * getattr(hazard.wait_h, p) for p in ("value", "low", "high"))
    )


def quantile_of(estimate: Estimate, share: float) -> float:
    """The value that holds with this share: lognormal on either side, low and high at 5 and 95 %."""
    if estimate.value <= 0:
        return estimate.value
    side = estimate.high if share > 0.5 else estimate.low
    width = abs(math.log(max(side, 1e-12) / estimate.value)) / END
    return estimate.value * math.exp(width * NORMAL.inv_cdf(share))


def share_below(estimate: Estimate, limit: float) -> float:
    """Chance that the estimated quantity stays under the limit."""
    if limit <= 0:
        return 0.0
    side = estimate.high if limit > estimate.value else estimate.low
    width = abs(math.log(max(side, 1e-12) / max(estimate.value, 1e-12))) / END
    if width == 0:
        return 1.0 if limit >= estimate.value else 0.0
    return NORMAL.cdf(math.log(limit / estimate.value) / width)


def finish_frac(
    work_h: Estimate,
    restart_h: Estimate,
    save_h: Estimate,
    deadline_h: float,
    hazard: Hazard | None = None,
    planned_per_h: float | None = None,
) -> float:
    """Chance of being done by the deadline, starts and waits included; hazard None: the machine is not taken away."""
    total = 0.0
    for share in QUANTILES:
        work, restart = quantile_of(work_h, share), quantile_of(restart_h, share)
        if hazard is None:
            total += work + restart <= deadline_h
            continue
        for pick, weight in SCENARIOS:
            per_h, wait = getattr(hazard.per_h, pick), getattr(hazard.wait_h, pick)
            hours = billed_h(work, per_h, restart, save_h.value, planned_per_h)
            total += weight * _waits_below(deadline_h - hours, per_h * hours, wait)
    return total / len(QUANTILES)


def _waits_below(slack_h: float, num_expected: float, wait_h: float) -> float:
    """Chance that a Poisson number of exponential waits fits the slack (Erlang sums)."""
    if slack_h < 0:
        return 0.0
    if wait_h <= 0 or num_expected <= 0:
        return 1.0
    x = slack_h / wait_h
    total, log_number, log_term = 0.0, -num_expected, -x
    tail = 0.0  # chance of fewer than n arrivals in the slack
    for n in range(MOST_WAITS):
        total += math.exp(log_number) * (1.0 if n == 0 else max(0.0, 1.0 - tail))
        tail += math.exp(log_term)
        log_number += math.log(num_expected / (n + 1))
        log_term += math.log(x / (n + 1)) if x > 0 else -math.inf
        if n > num_expected and log_number < -20:
            break
    return min(1.0, total)


def pareto(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Indices of the points that no other equals or betters in everything; less is better, of equals the first."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    kept: list[int] = []
    for i in order:
        if not any(all(a <= b for a, b in zip(points[j], points[i], strict=True)) for j in kept):
            kept.append(i)
    return kept
