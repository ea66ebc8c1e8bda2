"""Ends and bills of a training on spot machines, simulated.

`on_spot` waits for the next machine whenever its own is taken; `by_policy` may take one on demand. `optimum` is what
somebody who knew the trace would have paid. Work is done in intervals, each with a checkpoint; what was done since
the last one is lost with the machine, and each machine first starts for restart_h, billed and as easily taken.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..records import Estimate
from .spot import Hazard, Where, interval_h, quantile_of
from .spot_trace import Family, Flags, Hours, Trace, exponential

MOST_MACHINES = 100_000  # of one training, before it is given up
SHORTEST_INTERVAL_H = 1e-6
LEAST_PER_H = 1e-12


@dataclass(frozen=True, slots=True)
class Job:
    """interval_h: of work between two checkpoints, each of which takes save_h."""

    work_h: float
    restart_h: float
    save_h: float
    interval_h: float

    def __post_init__(self) -> None:
        assert self.work_h > 0 and self.interval_h > 0 and min(self.restart_h, self.save_h) >= 0

    @property
    def machine_h(self) -> float:
        """Work with its checkpoints."""
        return self.work_h + math.ceil(self.work_h / self.interval_h - 1e-9) * self.save_h


@dataclass(frozen=True, slots=True)
class Jobs:
    """Many trainings: a Job each."""

    work_h: Hours
    restart_h: Hours
    interval_h: Hours
    save_h: float

    @classmethod
    def of(cls, job: Job, num: int) -> Jobs:
        """The same one so many times."""
        return cls(np.full(num, job.work_h), np.full(num, job.restart_h), np.full(num, job.interval_h), job.save_h)

    @classmethod
    def spread(
        cls,
        work_h: Estimate,
        restart_h: Estimate,
        save_h: float,
        planned_per_h: float,
        rng: np.random.Generator,
        num: int,
    ) -> Jobs:
        """Work and restart over their ranges, checkpoints at the interval that training takes for planned_per_h."""
        work, restart = (spread_over(estimate, rng, num) for estimate in (work_h, restart_h))
        interval = np.array([max(interval_h(planned_per_h, save_h, w), SHORTEST_INTERVAL_H) for w in work.tolist()])
        return cls(work, restart, interval, save_h)

    def __len__(self) -> int:
        return len(self.work_h)

    def job(self, index: int) -> Job:
        """One of them."""
        work_h, restart_h, interval_h = (float(x[index]) for x in (self.work_h, self.restart_h, self.interval_h))
        return Job(work_h, restart_h, self.save_h, interval_h)


def spread_over(estimate: Estimate, rng: np.random.Generator, num: int) -> Hours:
    """So many values of an estimate, evenly over its distribution, in random order."""
    shares = (np.arange(num) + 0.5) / num
    return rng.permutation([quantile_of(estimate, share) for share in shares.tolist()])


@dataclass(frozen=True, slots=True)
class Ends:
    """One entry a simulated training; finish_h is infinite where it never came to an end."""

    finish_h: Hours
    billed_h: Hours
    num_interruptions: Hours

    def finish_quantile_h(self, share: float) -> float:
        """Hours by which this share is done; infinite where fewer ever are."""
        return float(np.quantile(self.finish_h, share, method="inverted_cdf"))

    def done_frac(self, deadline_h: float) -> float:
        """Share done by the deadline."""
        return float(np.mean(self.finish_h <= deadline_h + 1e-9))


class Machines(Protocol):
    """One machine after another, for many trainings at once."""

    def next(self) -> tuple[Hours, Hours]:
        """Hours until each training's next machine, and for how long it stays; infinite wait: none comes any more."""
        ...


class Drawn:
    """Machines of a family; the first is there at once."""

    def __init__(self, family: Family, rng: np.random.Generator, num: int) -> None:
        self.family, self.rng, self.num, self.is_first = family, rng, num, True

    def next(self) -> tuple[Hours, Hours]:
        wait = np.zeros(self.num) if self.is_first else self.family.down(self.rng, self.num)
        self.is_first = False
        return wait, self.family.up(self.rng, self.num)


def memoryless(hazard: Hazard, rng: np.random.Generator, num: int) -> Drawn:
    """Machines by a hazard and waits that are known as ranges."""
    per_h, wait_h = spread_over(hazard.per_h, rng, num), spread_over(hazard.wait_h, rng, num)
    return Drawn(Family("", exponential(1 / np.maximum(per_h, LEAST_PER_H)), exponential(wait_h)), rng, num)


class Recorded:
    """Machines of a trace, from each start on; after its end the trace begins again, unless it is to be played once."""

    def __init__(self, trace: Trace, start_h: Hours, repeats: bool = True) -> None:
        self.trace, self.repeats = trace, repeats
        self.start, self.end = (np.array([pair[i] for pair in trace.up]) for i in (0, 1))
        self.at = start_h.astype(float)
        self.index = np.searchsorted(self.end, self.at, side="right")

    def next(self) -> tuple[Hours, Hours]:
        if not len(self.start):
            return np.full(len(self.at), np.inf), np.zeros(len(self.at))
        lap, place = np.divmod(self.index, len(self.start))
        start = self.start[place] + lap * self.trace.length_h
        end = self.end[place] + lap * self.trace.length_h
        begin = np.maximum(start, self.at)
        wait = np.where((lap == 0) | self.repeats, begin - self.at, np.inf)
        self.at, self.index = end, self.index + 1
        return wait, end - begin


def on_spot(jobs: Jobs, machines: Machines, give_up_h: float = math.inf) -> Ends:
    """Trainings on spot machines alone; after give_up_h no further machine is taken."""
    num = len(jobs)
    now, billed, done, taken = np.zeros(num), np.zeros(num), np.zeros(num), np.zeros(num)
    finish = np.full(num, np.inf)
    for _ in range(MOST_MACHINES):
        running = np.isinf(finish) & (now < give_up_h)
        if not running.any():
            break
        wait, stay = machines.next()
        left = jobs.work_h - done
        need = jobs.restart_h + left + np.ceil(left / jobs.interval_h - 1e-9) * jobs.save_h
        now = np.where(running, now + wait, now)
        is_done = running & (stay >= need - 1e-12) & np.isfinite(now)
        finish = np.where(is_done, now + need, finish)
        is_taken = running & ~is_done & np.isfinite(now)
        intervals = np.floor(np.maximum(stay - jobs.restart_h, 0) / (jobs.interval_h + jobs.save_h) + 1e-9)
        done = np.where(is_taken, np.minimum(done + intervals * jobs.interval_h, jobs.work_h), done)
        used = np.where(is_done, need, np.where(is_taken, stay, 0.0))
        billed, now, taken = billed + used, now + used, taken + is_taken
    return Ends(finish, billed, taken)


# ---- with on-demand machines to fall back on ------------------------------------------------

# decide(elapsed_h, done_h, unsaved_h, on, spot_available); done_h and unsaved_h count checkpoints as work, as
# Job.machine_h does.
Decide = Callable[[float, float, float, Where, bool], Where]


@dataclass(frozen=True, slots=True)
class PolicyEnd:
    """One training under a policy."""

    finish_h: float
    spot_h: float
    on_demand_h: float
    num_interruptions: int
    num_switches: int  # from one machine to another, neither taken

    def usd(self, spot_usd_per_h: float, on_demand_usd_per_h: float) -> float:
        """The bill."""
        return self.spot_h * spot_usd_per_h + self.on_demand_h * on_demand_usd_per_h


def by_policy(job: Job, available: Flags, step_h: float, decide: Decide) -> PolicyEnd:
    """One training on a trace of steps, decided on at the beginning of each; on-demand machines are always there."""
    billed = {"spot": 0.0, "on_demand": 0.0}
    on: Where = "wait"
    starting = done = unsaved = 0.0
    work, every = job.machine_h, job.interval_h + job.save_h
    taken = switches = 0
    for number, is_there in enumerate(available.tolist()):
        if on == "spot" and not is_there:
            on, unsaved, taken = "wait", 0.0, taken + 1
        place = decide(number * step_h, done, unsaved, on, is_there)
        assert place != "spot" or is_there, "a policy cannot have a spot machine where there is none"
        if place != on:
            saving = 0.0
            if on != "wait":  # left on purpose: saved first
                done, unsaved, saving, switches = done + unsaved, 0.0, job.save_h, switches + (place != "wait")
            starting = job.restart_h + saving if place != "wait" else 0.0
            on = place
        if on == "wait":
            continue
        run = max(0.0, step_h - starting)
        need = work - done - unsaved
        if run >= need - 1e-9:
            used = min(step_h, starting + need)
            billed[on] += used
            return PolicyEnd(number * step_h + used, billed["spot"], billed["on_demand"], taken, switches)
        starting = max(0.0, starting - step_h)
        billed[on] += step_h
        unsaved += run
        saved = math.floor(unsaved / every + 1e-9) * every
        done, unsaved = done + saved, unsaved - saved
    return PolicyEnd(math.inf, billed["spot"], billed["on_demand"], taken, switches)


def optimum_usd(
    job: Job, available: Sequence[Flags], step_h: float, spot_usd_per_h: float, on_demand_usd_per_h: float
) -> Hours:
    """The least that each trace of steps could have cost with the work done by its end, known beforehand.

    Backward over steps and steps of work done; who knows when machines are taken needs no checkpoints. Restart and
    work in whole steps, rounded down, so that it is a lower bound for by_policy.
    """
    flags = np.asarray(available)
    num, num_steps = flags.shape
    boot, work = math.floor(job.restart_h / step_h + 1e-9), math.floor(job.work_h / step_h + 1e-9)
    assert work >= 1
    spot, on_demand = spot_usd_per_h * step_h, on_demand_usd_per_h * step_h
    # Steps for which the machine that is there now stays.
    stays = np.zeros((num_steps + 1, num), dtype=int)
    for t in range(num_steps - 1, -1, -1):
        stays[t] = np.where(flags[:, t], stays[t + 1] + 1, 0)
    end = np.full((num, work + 1), np.inf)
    end[:, work] = 0.0
    idle = end
    # The last boot + 1 of each, newest first: a machine ordered at t works from t + boot on.
    on_spot_at, on_demand_at = (deque([end] * (boot + 1), maxlen=boot + 1) for _ in range(2))
    for t in range(num_steps - 1, -1, -1):
        stay_on_spot = np.where(flags[:, t, None], _worked(on_spot_at[0], spot), np.inf)
        stay_on_demand = _worked(on_demand_at[0], on_demand)
        order_spot = np.where((stays[t] > boot)[:, None], boot * spot + on_spot_at[boot - 1], np.inf)
        order_on_demand = boot * on_demand + on_demand_at[boot - 1]
        if boot == 0:
            order_spot, order_on_demand = stay_on_spot, stay_on_demand
        idle = np.minimum(idle, np.minimum(order_spot, order_on_demand))
        idle[:, work] = 0.0
        on_spot_at.appendleft(np.minimum(idle, stay_on_spot))
        on_demand_at.appendleft(np.minimum(idle, stay_on_demand))
    return idle[:, 0]


def _worked(after: Hours, usd: float) -> Hours:
    """Cost from each amount of work, one step of work later."""
    moved = np.full_like(after, np.inf)
    moved[:, :-1] = after[:, 1:] + usd
    moved[:, -1] = 0.0
    return moved
