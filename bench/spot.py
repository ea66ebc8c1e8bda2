"""Spot machines: billed hours by formula against a simulation of the process; the deadline policy against the optimum.

    python -m bench.spot [--quick] [--json]

Formula: `plan.spot.billed_h` over hazards of 0.05 to 2 an hour against a simulation that shares nothing with it but
the interval: phases (start, work, checkpoint) of many trainings, each with its own exponential clock; trainings are
added until the standard error of each mean is a tenth of a percent.

Policy: `launch.policy.SpotPolicy` and uniform progress as published on the same drawn traces, in steps of five
minutes, against what somebody who knew the trace would have paid (`plan.spot_simulate.optimum_usd`, without
checkpoints). The policy begins with the hazard and the waits of market/terms.csv, not those of the
family, and learns from the trace as it goes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench import machine, versions
from shoestring.launch.policy import Learning, SpotPolicy, SpotState, Where
from shoestring.market.terms import value
from shoestring.plan.spot import billed_h, interval_h
from shoestring.plan.spot_simulate import Job, PolicyEnd, by_policy, optimum_usd
from shoestring.plan.spot_trace import Family, Flags, exponential, mixed, weibull

HAZARDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
WORKS_H = (0.5, 4.0, 24.0)
RESTARTS_H = (2 / 60, 10 / 60, 30 / 60)
SAVES_H = (5 / 3600, 60 / 3600)
STANDARD_ERROR_FRAC = 0.001

STEP_H = 5 / 60
SAVE_H = 5 / 3600
# Mean stays and waits in hours. Families 1 to 3 are the low, expected and high end of market/terms.csv.
FAMILIES = (
    Family("rare interruptions", exponential(10), exponential(1.1)),
    Family("usual interruptions", exponential(1 / 0.3), exponential(2.2)),
    Family("scarce", exponential(1 / 1.4), exponential(5)),
    Family("reliable", exponential(20), exponential(1)),
    Family("frequent interruptions", exponential(1 / 1.4), exponential(1)),
    Family("long outages", exponential(3.3), mixed(exponential(0.3), lambda rng, n: rng.uniform(6, 24, n), 0.15)),
    Family("heavy tails", weibull(3.3, 0.6), weibull(2.2, 0.6)),
    Family("nights only", lambda rng, n: rng.uniform(5, 11, n), lambda rng, n: rng.uniform(9, 15, n)),
    Family("taken every quarter hour", exponential(0.25), exponential(0.3)),
)
WORK_H = ((4.0, 10 / 60), (10.0, 10 / 60), (20.0, 20 / 60))  # with the restart
DEADLINES = (1.15, 1.5, 2.0, 3.0)  # times the work
PRICES = (0.3, 0.5, 0.7)  # of spot, in on-demand prices


# ---- the formula ----------------------------------------------------------------------------


def simulated_h(
    work_h: float, per_h: float, restart_h: float, save_h: float, num: int, rng: np.random.Generator
) -> np.ndarray[Any, Any]:
    """Billed hours of so many trainings. Phases: 0 the start, 1 work until the next checkpoint, 2 writing it."""
    tau = interval_h(per_h, save_h, work_h)
    phase, left = np.zeros(num, dtype=int), np.full(num, restart_h)
    clock, hours, saved = rng.exponential(1 / per_h, num), np.zeros(num), np.zeros(num)
    running = np.ones(num, dtype=bool)
    while running.any():
        passed = np.where(running, np.minimum(left, clock), 0.0)
        hours, left, clock = hours + passed, left - passed, clock - passed
        is_taken = running & (clock <= 0)
        is_over = running & ~is_taken
        todo = np.minimum(tau, work_h - saved)
        written = is_over & (phase == 2)
        saved = np.where(written, saved + todo, saved)
        is_done = written & (saved >= work_h - 1e-9)
        running = running & ~is_done
        todo = np.minimum(tau, work_h - saved)
        before = phase
        phase = np.where(is_taken, 0, np.where(is_over, np.where(before == 1, 2, 1), before))
        fresh = np.where(phase == 0, restart_h, np.where(phase == 1, todo, save_h))
        left = np.where(is_taken | is_over, fresh, left)
        clock = np.where(is_taken, rng.exponential(1 / per_h, num), clock)
    return hours


def formula_cell(work_h: float, per_h: float, restart_h: float, save_h: float, seed: int) -> dict[str, float]:
    """One setting: expected by the formula and by the simulation, relative error, its standard error."""
    rng = np.random.default_rng(seed)
    hours = simulated_h(work_h, per_h, restart_h, save_h, 2000, rng)
    needed = (hours.std() / hours.mean() / STANDARD_ERROR_FRAC) ** 2
    while len(hours) < needed:
        more = simulated_h(work_h, per_h, restart_h, save_h, int(min(needed - len(hours) + 1, 50_000)), rng)
        hours = np.concatenate((hours, more))
        needed = (hours.std() / hours.mean() / STANDARD_ERROR_FRAC) ** 2
    expected = billed_h(work_h, per_h, restart_h, save_h)
    return {
        "work_h": work_h,
        "hazard_per_h": per_h,
        "restart_h": round(restart_h, 4),
        "save_h": round(save_h, 5),
        "formula_h": round(expected, 4),
        "simulated_h": round(float(hours.mean()), 4),
        "relative_error": round(expected / float(hours.mean()) - 1, 5),
        "standard_error_frac": round(float(hours.std() / hours.mean() / np.sqrt(len(hours))), 5),
        "num": len(hours),
    }


def formula(is_quick: bool) -> list[dict[str, float]]:
    """Every setting."""
    works, restarts, saves = (WORKS_H[:1], RESTARTS_H[1:2], SAVES_H[:1]) if is_quick else (WORKS_H, RESTARTS_H, SAVES_H)
    cells = [(w, h, r, s) for w in works for h in HAZARDS for r in restarts for s in saves]
    return [formula_cell(*cell, seed=seed) for seed, cell in enumerate(cells)]


# ---- the policy -----------------------------------------------------------------------------


def as_published(state: SpotState, margin_h: float) -> Where:
    """Uniform progress by the rules of the paper, with the same point of no return."""
    slack_h = SpotPolicy(margin_h).slack_h(state)
    lead_h = SpotPolicy().lead_h(state)
    if state.on == "on_demand":
        is_ahead = lead_h >= 2 * state.restart_h * state.work_h / state.deadline_h
        return "spot" if state.spot_available and is_ahead and slack_h > state.restart_h else "on_demand"
    if slack_h <= 0:
        return "on_demand"
    if state.spot_available and (state.on == "spot" or slack_h > state.restart_h):
        return "spot"
    return "on_demand" if lead_h < 0 else "wait"


def ended(job: Job, deadline_h: float, flags: Flags, price_frac: float | None) -> PolicyEnd:
    """One training on a trace; price_frac None: as published."""
    margin_h = STEP_H + job.save_h
    policy = Learning(SpotPolicy(margin_h, spot_price_frac=price_frac or 0.5))

    def decide(elapsed_h: float, done_h: float, unsaved_h: float, on: Where, is_there: bool) -> Where:
        state = SpotState(elapsed_h, deadline_h, done_h, job.machine_h, job.restart_h, on, is_there, unsaved_h)
        return as_published(state, margin_h) if price_frac is None else policy.decide(state)

    return by_policy(job, flags, STEP_H, decide)


def policy_cell(
    family: Family,
    work_h: float,
    restart_h: float,
    times: float,
    num: int,
    seed: int,
    prices: Sequence[float] = PRICES,
) -> list[dict[str, Any]]:
    """One family, size of work and deadline, under each price: cost over the optimum's, and missed deadlines."""
    num_steps = round(times * work_h / STEP_H)
    deadline_h = num_steps * STEP_H
    job = Job(work_h, restart_h, SAVE_H, interval_h(value("hazard_per_h").value, SAVE_H, work_h))
    rng = np.random.default_rng(seed)
    flags = [family.trace(rng, deadline_h).available(STEP_H, num_steps) for _ in range(num)]
    published = [ended(job, deadline_h, one, None) for one in flags]
    found = []
    for price in prices:
        ends = [ended(job, deadline_h, one, price) for one in flags]
        best = optimum_usd(job, flags, STEP_H, price, 1.0)
        cost, cost_published = (np.array([end.usd(price, 1.0) for end in each]) for each in (ends, published))
        assert (cost >= best - 1e-9).all(), "the optimum is no lower bound"
        found.append(
            {
                "family": family.name,
                "work_h": work_h,
                "deadline_over_work": times,
                "spot_price_frac": price,
                "available_frac": round(float(np.mean(flags)), 3),
                "num": num,
                "missed": sum(end.finish_h > deadline_h + 1e-9 for end in ends),
                "missed_as_published": sum(end.finish_h > deadline_h + 1e-9 for end in published),
                "over_optimum_frac": round(float((cost / best).mean() - 1), 4),
                "over_optimum_as_published_frac": round(float((cost_published / best).mean() - 1), 4),
                "of_on_demand_frac": round(float(cost.mean()) / (job.work_h + restart_h), 4),
                "switches": round(sum(end.num_switches for end in ends) / num, 2),
            }
        )
    return found


def policy(is_quick: bool) -> list[dict[str, Any]]:
    """Every family, work, deadline and price."""
    works, num = (WORK_H[:1], 6) if is_quick else (WORK_H, 200)
    found = []
    for seed, family in enumerate(FAMILIES):
        for work_h, restart_h in works:
            for times in DEADLINES:
                found += policy_cell(family, work_h, restart_h, times, num, 1000 + seed)
    return found


def unseen(is_quick: bool) -> list[dict[str, Any]]:
    """Settings drawn at random, none of which the policy's one constant was chosen by."""
    rng, found = np.random.default_rng(2026), []
    for number in range(4 if is_quick else 150):
        up_h, down_h, long_h = (float(np.exp(rng.uniform(*np.log(ends)))) for ends in ((0.3, 30), (0.1, 15), (5, 40)))
        up, down = weibull(up_h, float(rng.uniform(0.5, 2))), weibull(down_h, float(rng.uniform(0.5, 2)))
        if rng.random() < 0.5:
            down = mixed(down, exponential(long_h), float(rng.uniform(0.02, 0.2)))
        work_h = round(float(np.exp(rng.uniform(*np.log((2, 30))))) / STEP_H) * STEP_H
        restart_h, times, price = (float(rng.uniform(*ends)) for ends in ((2 / 60, 0.5), (1.1, 4), (0.25, 0.8)))
        family = Family(f"drawn {number}", up, down)
        times = max(times, 1 + (2 * STEP_H + restart_h) / work_h)  # time for a start on demand
        found += policy_cell(family, work_h, restart_h, times, 4 if is_quick else 20, 5000 + number, (price,))
    return found


def means(cells: list[dict[str, Any]], key: str) -> dict[str, dict[str, float]]:
    """Mean cost over the optimum by each value of a key, ours and as published."""
    told = {}
    for name in dict.fromkeys(cell[key] for cell in cells):
        own = [cell for cell in cells if cell[key] == name]
        told[str(name)] = {
            short: round(float(np.mean([cell[long] for cell in own])), 4)
            for short, long in (
                ("ours", "over_optimum_frac"),
                ("as_published", "over_optimum_as_published_frac"),
                ("of_on_demand", "of_on_demand_frac"),
            )
        }
    return told


def measure(is_quick: bool) -> dict[str, Any]:
    """Everything."""
    hours, cells, drawn = formula(is_quick), policy(is_quick), unseen(is_quick)
    over = [cell["over_optimum_frac"] for cell in cells]
    return {
        "max_relative_error_vs_monte_carlo": max(abs(cell["relative_error"]) for cell in hours),
        "missed_deadlines": sum(cell["missed"] for cell in (*cells, *drawn)),
        "mean_cost_over_optimum_frac": round(float(np.mean(over)), 4),
        "mean_cost_over_optimum_as_published_frac": round(
            float(np.mean([cell["over_optimum_as_published_frac"] for cell in cells])), 4
        ),
        "num_traces": sum(cell["num"] for cell in cells) // len(PRICES),
        "by": {key: means(cells, key) for key in ("family", "deadline_over_work", "spot_price_frac", "work_h")},
        "unseen": {
            "num_settings": len(drawn),
            "num_traces": sum(cell["num"] for cell in drawn),
            "missed": sum(cell["missed"] for cell in drawn),
            "mean": means(drawn, "num"),
            "worst": max(drawn, key=lambda cell: cell["over_optimum_frac"]),
        },
        "worst": sorted(cells, key=lambda cell: -cell["over_optimum_frac"])[:8],
        "share_within_15_percent": round(float(np.mean(np.array(over) <= 0.15)), 3),
        "formula": {"num_cells": len(hours), "cells": hours},
        "machine": machine(),
        "versions": versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few settings, few traces")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    told = measure(asked.quick)
    if asked.json:
        print(json.dumps(told))
        return
    del told["formula"]["cells"]
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
