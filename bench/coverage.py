"""How often the intervals hold the truth, and the tests cry wolf: by exact sums where scores are 0 or 1, else by seeds.

    python -m bench.coverage [--seeds 1000] [--json]

lowest, highest: of the coverage of all 95 % intervals. A cell marked `few_failures` holds samples in which a failure
often was not met at all: an interval that allows for it cannot miss on that side, so it covers more than 95 %; one that
does not covers far less (`plain` shows the percentile bootstrap there).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench import machine, versions

ROWS, RATES = (50, 100, 200, 500), (0.5, 0.7, 0.8, 0.9, 0.95, 0.97)
Draw = Callable[[np.random.Generator, int], np.ndarray]


def leaf_f1(rng: np.random.Generator, num: int, wrong: float, missed: float) -> np.ndarray:
    """Records mostly right in every leaf; a share with some leaves wrong, a share with all of them."""
    place = rng.random(num)
    return np.where(place < missed, 0.0, np.where(place < wrong, rng.beta(5, 2, num), 1.0))


SCORES: dict[str, tuple[Draw, float]] = {
    "leaf F1 of 0.97": (lambda rng, n: leaf_f1(rng, n, 0.10, 0.005), 1 - 0.005 - 0.095 * 2 / 7),
    "leaf F1 of 0.90": (lambda rng, n: leaf_f1(rng, n, 0.30, 0.02), 1 - 0.02 - 0.28 * 2 / 7),
    "leaf F1 of 0.83": (lambda rng, n: rng.choice([1.0, 0.5, 0.0], n, p=[0.75, 0.15, 0.10]), 0.825),
    "chrF of 0.60": (lambda rng, n: rng.beta(6, 4, n), 0.6),
    "rare failures": (lambda rng, n: rng.choice([1.0, 0.9, 0.8, 0.0], n, p=[0.8, 0.1, 0.08, 0.02]), 0.954),
}


def cell(test: str, where: str, num_rows: int, covered: float, too_low: float | None, how: str) -> dict[str, Any]:
    """too_low: share of samples whose lower end passes the truth, which is what lets a bad model through."""
    return {
        "interval": test,
        "truth": where,
        "rows": num_rows,
        "coverage": round(float(covered), 4),
        "claims_too_much": None if too_low is None else round(float(too_low), 4),
        "by": how,
    }


def proportions(rows: tuple[int, ...] = ROWS) -> Iterator[dict[str, Any]]:
    from scipy.stats import binom

    from shoestring.evaluate.statistics import wilson

    for num in rows:
        found = [wilson(k, num) for k in range(num + 1)]
        low, high = np.array([e.low for e in found]), np.array([e.high for e in found])
        for rate in RATES:
            chance = binom.pmf(np.arange(num + 1), num, rate)
            inside = (low <= rate) & (rate <= high)
            yield cell("Wilson", f"rate {rate}", num, chance[inside].sum(), chance[low > rate].sum(), "exact sum")


def by_seeds(
    name: str, where: str, num: int, seeds: int, truth: float, once: Callable[[np.random.Generator, int], Any]
) -> dict[str, Any]:
    """once(rng, seed) -> an Estimate."""
    found = [once(np.random.default_rng(10_000 + seed), seed) for seed in range(seeds)]
    low, high = np.array([e.low for e in found]), np.array([e.high for e in found])
    inside = (low <= truth + 1e-12) & (truth - 1e-12 <= high)
    return cell(name, where, num, inside.mean(), (low > truth + 1e-12).mean(), f"{seeds} seeds")


def means(seeds: int, rows: tuple[int, ...] = (50, 100, 300)) -> Iterator[dict[str, Any]]:
    from shoestring.evaluate.statistics import bootstrap_mean

    for name, (draw, truth) in SCORES.items():
        for num in rows:
            one = by_seeds(
                "bootstrap of a mean",
                name,
                num,
                seeds,
                truth,
                lambda rng, seed, draw=draw, num=num: bootstrap_mean(draw(rng, num), seed=seed),  # type: ignore[misc]
            )
            unmet = [(draw(np.random.default_rng(seed), num) > 0.3).all() for seed in range(200)]
            one["few_failures"] = bool(np.mean(unmet) > 0.1 and (draw(np.random.default_rng(0), 9999) < 0.01).any())
            yield one


def plain(seeds: int) -> dict[str, float]:
    """Coverage of scipy's percentile and BCa bootstrap where failures are rare, for comparison."""
    from scipy.stats import bootstrap

    draw, truth = SCORES["rare failures"]
    found = {}
    for method in ("percentile", "BCa"):
        inside = 0
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            sample = draw(rng, 100)
            got = bootstrap((sample,), np.mean, n_resamples=999, method=method, rng=rng, vectorized=True)
            inside += int(got.confidence_interval.low <= truth <= got.confidence_interval.high)
        found[method] = inside / seeds
    return found


def in_clusters(seeds: int, numbers: tuple[int, ...] = (60, 150)) -> Iterator[dict[str, Any]]:
    """Rows of a cluster are right together: half of the variance lies between clusters."""
    from shoestring.evaluate.statistics import bootstrap_mean

    for num in numbers:
        for rate in (0.7, 0.9):

            def once(rng: np.random.Generator, seed: int, num: int = num, rate: float = rate) -> Any:
                sizes = 1 + rng.poisson(2, num)
                cluster_N = np.repeat(np.arange(num), sizes)
                ability = rng.beta(rate, 1 - rate, num)  # correlation within a cluster of one half
                return bootstrap_mean(
                    (rng.random(len(cluster_N)) < ability[cluster_N]).astype(float), seed=seed, cluster_N=cluster_N
                )

            yield by_seeds("cluster bootstrap of a mean", f"rate {rate}, clusters of 3", num * 3, seeds, rate, once)


def pairs(seeds: int, rows: tuple[int, ...] = (50, 100, 300)) -> Iterator[dict[str, Any]]:
    from shoestring.evaluate.paired import paired_means

    for num in rows:
        for only_a, only_b in ((0.05, 0.05), (0.15, 0.05), (0.10, 0.02)):

            def once(rng: np.random.Generator, seed: int, num: int = num, a: float = only_a, b: float = only_b) -> Any:
                place = rng.random(num)
                left, right = (place < a).astype(float), ((place >= a) & (place < a + b)).astype(float)
                return paired_means(left, right, seed=seed).difference

            where = f"{only_a:.0%} only a right, {only_b:.0%} only b"
            one = by_seeds("paired bootstrap, 0/1", where, num, seeds, only_a - only_b, once)
            one["few_failures"] = num * only_b < 2
            yield one

        def leaves(rng: np.random.Generator, seed: int, num: int = num) -> Any:
            difficulty = rng.random(num)
            left = np.clip(1.1 - difficulty * rng.beta(2, 4, num), 0, 1)
            right = np.clip(1.1 - difficulty * rng.beta(3, 4, num), 0, 1)
            return paired_means(left, right, seed=seed, num_resamples=1000).difference

        big = leaf_truth()
        yield by_seeds("paired bootstrap, leaf F1", "two models, one better", num, seeds, big, leaves)


def leaf_truth() -> float:
    rng = np.random.default_rng(1)
    difficulty = rng.random(4_000_000)
    left = np.clip(1.1 - difficulty * rng.beta(2, 4, len(difficulty)), 0, 1)
    return float((left - np.clip(1.1 - difficulty * rng.beta(3, 4, len(difficulty)), 0, 1)).mean())


def macro(seeds: int, rows: tuple[int, ...] = (100, 300)) -> Iterator[dict[str, Any]]:
    from shoestring.evaluate.paired import paired_macro_f1
    from shoestring.evaluate.statistics import bootstrap_macro_f1

    for labels in (4, 12):
        right = np.random.default_rng(labels).uniform(0.7, 0.97, labels)

        def draw(rng: np.random.Generator, num: int, right: np.ndarray = right, labels: int = labels) -> Any:
            expected = rng.integers(0, labels, num)
            wrong = (expected + rng.integers(1, labels, num)) % labels
            one = np.where(rng.random(num) < right[expected], expected, wrong)
            other = np.where(rng.random(num) < right[expected] - 0.05, expected, wrong)
            return expected, one, np.where(rng.random(num) < 0.5, one, other)

        whole = draw(np.random.default_rng(0), 1_000_000)
        first, second = (bootstrap_macro_f1(whole[0], side, num_resamples=1).value for side in whole[1:])
        for num in rows:

            def alone(rng: np.random.Generator, seed: int, num: int = num, draw: Any = draw) -> Any:
                expected, one, _ = draw(rng, num)
                return bootstrap_macro_f1(expected, one, seed=seed, num_resamples=1000)

            def paired(rng: np.random.Generator, seed: int, num: int = num, draw: Any = draw) -> Any:
                return paired_macro_f1(*draw(rng, num), seed=seed, num_resamples=1000).difference

            yield by_seeds("bootstrap of macro F1", f"{labels} labels", num, seeds, first, alone)
            yield by_seeds("paired bootstrap of macro F1", f"{labels} labels", num, seeds, first - second, paired)


def error_rates(seeds: int) -> dict[str, float]:
    """How often there is said to be something where there is nothing; each is to be at most 0.05."""
    from scipy.stats import binom

    from shoestring.evaluate.paired import mcnemar_mid_p
    from shoestring.evaluate.sequential import betting_wealth, look

    found: dict[str, float] = {}
    for num in (50, 200):
        for discordant in (0.1, 0.3):
            error = 0.0
            for k in range(num + 1):
                weight = binom.pmf(k, num, discordant)
                if weight > 1e-9:
                    split = [mcnemar_mid_p(a, k - a) < 0.05 for a in range(k + 1)]
                    error += weight * binom.pmf(np.arange(k + 1), k, 0.5)[split].sum()
            found[f"mid-p McNemar, {num} rows, {discordant:.0%} discordant"] = round(float(error), 4)
    for bar in (0.5, 0.9, 0.97):
        rng = np.random.default_rng(7)
        wealth = betting_wealth((rng.random((seeds, 500)) < bar).astype(float), bar)
        found[f"early rejection at 5 %, 500 looks, bar {bar}"] = float((wealth >= 20).any(axis=1).mean())
        planned, wrong = (100, 200, 300, 400, 500), {"accept": 0, "reject": 0}
        for _ in range(seeds):
            scores = (rng.random(500) < bar).astype(float)
            for num in planned:
                decision = look(scores[:num].tolist(), planned, bar).decision
                if decision != "go on":
                    wrong[decision] += 1
                    break
        found[f"five looks: accepted at the bar {bar}"] = wrong["accept"] / seeds
    draw, truth = SCORES["leaf F1 of 0.97"]
    wealth = betting_wealth(np.stack([draw(np.random.default_rng(s), 500) for s in range(seeds)]), truth)
    found["early rejection at 5 %, 500 looks, leaf F1 of 0.97"] = float((wealth >= 20).any(axis=1).mean())
    return found


def power(seeds: int) -> dict[str, Any]:
    """What early rejection saves: rows read of a hopeless arm, of 500."""
    from shoestring.evaluate.sequential import MIN_ROWS, REJECT_LEVEL, betting_wealth

    rng, found = np.random.default_rng(3), {}
    for bar, true in ((0.9, 0.8), (0.9, 0.6), (0.9, 0.3)):
        over = betting_wealth((rng.random((seeds, 500)) < true).astype(float), bar) >= 1 / REJECT_LEVEL
        over[:, :MIN_ROWS] = False
        rows = np.where(over.any(axis=1), over.argmax(axis=1) + 1, 500)
        found[f"bar {bar}, true {true}"] = {"rejected": float(over.any(axis=1).mean()), "mean_rows": float(rows.mean())}
    return found


def family(seeds: int) -> dict[str, float]:
    """Ladders of rungs that all lie just below the bar, on the same rows: how often any passes."""
    from shoestring.evaluate.statistics import wilson
    from shoestring.ladder import rung_level

    found = {}
    for num_rungs in (1, 2, 3, 5, 8):
        for bar in (0.8, 0.95):
            rng, wrong = np.random.default_rng(num_rungs), 0
            passing = np.array([wilson(k, 300, 2 * rung_level(num_rungs)).low >= bar for k in range(301)])
            for _ in range(seeds):
                # Rungs share half of what makes a row hard.
                shared = rng.random(300) < 0.5
                hard = rng.random(300)
                own = rng.random((num_rungs, 300))
                hits = (np.where(shared, hard, own) < bar - 1e-9).sum(axis=1)
                wrong += int(passing[hits].any())
            found[f"{num_rungs} rungs, bar {bar}"] = wrong / seeds
    return found


def measure(seeds: int) -> dict[str, Any]:
    began_s = time.process_time()
    cells = [*proportions(), *means(seeds), *in_clusters(seeds), *pairs(seeds), *macro(seeds)]
    errors, ladder = error_rates(seeds), family(4 * seeds)
    usual = [c["coverage"] for c in cells if not c.get("few_failures")]
    return {
        "lowest": min(c["coverage"] for c in cells),
        "highest": max(c["coverage"] for c in cells),
        "highest_but_few_failures": max(usual),
        "most_claims_too_much": max(c["claims_too_much"] for c in cells if c["claims_too_much"] is not None),
        "num_cells": len(cells),
        "num_93_to_97": sum(0.93 <= round(c["coverage"], 3) <= 0.97 for c in cells),
        "most_sequential_error": max(errors.values()),
        "most_family_error": max(ladder.values()),
        "cells": cells,
        "errors": errors,
        "family": ladder,
        "power": power(seeds),
        "plain": plain(min(seeds, 300)),
        "cpu_s": round(time.process_time() - began_s, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given.seeds)
    if given.json:
        print(json.dumps({**found, "machine": machine(), "versions": versions()}))
        return
    for one in found["cells"]:
        mark = "" if 0.93 <= one["coverage"] <= 0.97 else "  <-" + (" few failures" if one.get("few_failures") else "")
        print(
            f"{one['interval']:30} {one['truth']:34} {one['rows']:4} rows  {one['coverage']:.3f} "
            f"(claims too much {one['claims_too_much']:.3f}){mark}"
        )
    for name in ("errors", "family", "power", "plain"):
        for key, value in found[name].items():
            print(f"{name}: {key}: {value}")
    print(f"lowest {found['lowest']}, highest {found['highest']}; {found['cpu_s']} CPU seconds")


if __name__ == "__main__":
    main()
