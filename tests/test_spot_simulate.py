"""Simulated ends and bills on spot machines, and the optimum they are held against."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from bench import spot as bench_spot
from shoestring.plan.spot import billed_h, interval_h
from shoestring.plan.spot_simulate import Drawn, Job, Jobs, Recorded, by_policy, on_spot, optimum_usd
from shoestring.plan.spot_trace import Family, Trace, exponential

# Two hours of work, a checkpoint of no time every half hour, half an hour to start.
JOB = Job(work_h=2.0, restart_h=0.5, save_h=0.0, interval_h=0.5)


def test_one_training_on_a_trace_by_hand() -> None:
    # 0 to 1.7: start, 1.0 h saved, 0.2 h lost. 3 to 3.4: no start. 5 on: start and the other hour.
    trace = Trace(((0.0, 1.7), (3.0, 3.4), (5.0, 9.0)), 10.0)
    ends = on_spot(Jobs.of(JOB, 3), Recorded(trace, np.array([0.0, 3.1, 9.5])))
    assert ends.finish_h[0] == pytest.approx(6.5)
    assert ends.billed_h[0] == pytest.approx(1.7 + 0.4 + 1.5) and ends.num_interruptions[0] == 2
    # Begun at 3.1: 0.3 h for nothing, then from 5 to 7.5.
    assert ends.finish_h[1] == pytest.approx(7.5 - 3.1) and ends.billed_h[1] == pytest.approx(0.3 + 2.5)
    # Begun at 9.5 the trace begins again at 10.
    assert ends.finish_h[2] == pytest.approx(16.5 - 9.5) and ends.num_interruptions[2] == 2


def test_a_trace_played_once_may_not_be_enough() -> None:
    trace = Trace(((0.0, 1.0),), 10.0)
    ends = on_spot(Jobs.of(JOB, 1), Recorded(trace, np.zeros(1), repeats=False))
    assert math.isinf(ends.finish_h[0]) and ends.billed_h[0] == 1.0 and ends.done_frac(100.0) == 0.0


def test_a_checkpoint_takes_its_time() -> None:
    job = Job(work_h=1.2, restart_h=0.0, save_h=0.1, interval_h=0.5)  # saved at 0.5, 1.0 and 1.2
    assert job.machine_h == pytest.approx(1.5)
    assert on_spot(Jobs.of(job, 1), Recorded(Trace(((0.0, 9.0),), 9.0), np.zeros(1))).finish_h[0] == pytest.approx(1.5)


def test_memoryless_machines_cost_what_the_formula_says() -> None:
    job = Job(4.0, 1 / 6, 5 / 3600, interval_h(0.5, 5 / 3600, 4.0))
    family = Family("", exponential(2.0), exponential(1.0))
    ends = on_spot(Jobs.of(job, 40_000), Drawn(family, np.random.default_rng(0), 40_000))
    assert ends.billed_h.mean() == pytest.approx(billed_h(4.0, 0.5, 1 / 6, 5 / 3600), rel=0.005)
    # Interruptions at their rate while billed; each waits an hour.
    assert ends.num_interruptions.mean() == pytest.approx(0.5 * ends.billed_h.mean(), rel=0.02)
    assert ends.finish_h.mean() == pytest.approx(1.5 * ends.billed_h.mean(), rel=0.02)
    assert ends.finish_quantile_h(0.1) < ends.finish_quantile_h(0.9)


def flags(text: str) -> np.ndarray:
    return np.array([c == "1" for c in text])


def test_the_optimum_by_hand() -> None:
    # Two steps of work, one to start, spot at a third. In 110111 a machine is there for three steps: 3 x 1/3.
    job = Job(2.0, 1.0, 0.0, 1.0)
    assert optimum_usd(job, [flags("110111")], 1.0, 1.0, 3.0)[0] == pytest.approx(3.0)
    # In 110110 each stay does one step: 2 + 2 steps of spot. In 110100 the second must be on demand: 2 + 2 x 3, or
    # 3 x 3 on demand alone: 8.
    assert optimum_usd(job, [flags("110110")], 1.0, 1.0, 3.0)[0] == pytest.approx(4.0)
    assert optimum_usd(job, [flags("110100")], 1.0, 1.0, 3.0)[0] == pytest.approx(8.0)
    assert optimum_usd(job, [flags("000000")], 1.0, 1.0, 3.0)[0] == pytest.approx(9.0)
    assert math.isinf(optimum_usd(job, [flags("00")], 1.0, 1.0, 3.0)[0])  # no time


def test_no_sequence_of_places_is_cheaper_than_the_optimum() -> None:
    rng, job = np.random.default_rng(1), Job(2.0, 1.0, 0.0, 1.0)
    for _ in range(6):
        trace = rng.random(6) < 0.6
        cheapest = math.inf
        for places in itertools.product(("spot", "on_demand", "wait"), repeat=6):
            if any(place == "spot" and not there for place, there in zip(places, trace, strict=True)):
                continue
            told = iter(places)
            end = by_policy(job, trace, 1.0, lambda *_, told=told: next(told))
            if math.isfinite(end.finish_h):
                cheapest = min(cheapest, end.usd(1.0, 2.5))
        assert optimum_usd(job, [trace], 1.0, 1.0, 2.5)[0] == pytest.approx(cheapest)


def test_a_policy_on_a_trace_by_hand() -> None:
    # Steps of half an hour: spot for two (start, half an hour), taken; on demand for the start and the rest.
    told = iter(["spot", "spot", "wait", *["on_demand"] * 4])
    end = by_policy(JOB, flags("11000000"), 0.5, lambda *_: next(told))
    assert (end.spot_h, end.on_demand_h, end.finish_h) == (1.0, 2.0, 3.5)
    assert end.num_interruptions == 1 and end.num_switches == 0 and end.usd(1.0, 2.0) == 5.0


def test_the_bench_in_small() -> None:
    told = bench_spot.measure(is_quick=True)
    assert told["max_relative_error_vs_monte_carlo"] < 0.01
    assert told["missed_deadlines"] == 0 and told["mean_cost_over_optimum_frac"] >= 0
    assert told["mean_cost_over_optimum_frac"] < told["mean_cost_over_optimum_as_published_frac"]


def test_no_deadline_is_missed_whatever_the_trace() -> None:
    """Where there is time for a start and the work on demand, on traces without any order, and any work and price."""
    rng, step_h = np.random.default_rng(5), bench_spot.STEP_H
    for _ in range(300):
        work_h, restart_h, save_h = rng.uniform(0.2, 6), rng.uniform(0, 0.7), rng.uniform(0, 0.05)
        job = Job(work_h, restart_h, save_h, max(0.05, rng.uniform(0, work_h)))
        least_h = job.machine_h + restart_h + step_h + save_h
        num_steps = math.ceil(least_h * rng.uniform(1, 2.5) / step_h)
        stays = np.repeat(rng.random(num_steps) < rng.random(), rng.integers(1, 30))[:num_steps]
        end = bench_spot.ended(job, num_steps * step_h, stays, float(rng.uniform(0.05, 1.1)))
        assert end.finish_h <= num_steps * step_h + 1e-9, job
