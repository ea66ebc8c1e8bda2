"""From a few timed steps to a whole training: seconds, dollars and peak memory with narrow intervals.

Pure arithmetic; train/timing.py measures. Steps are extrapolated by the ratio of seconds to computed tokens over the
sampled steps (Cochran 1977, Sampling Techniques, 6.2), kernels of new sizes, evaluations and checkpoints apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..records import Estimate, RungPlan, summed
from ..units import SECONDS_PER_HOUR
from .interval import daly_interval_s
from .throughput import GENERATE_BATCH_ROWS

# What a probe of seconds cannot see: the machine's speed drifts, answers grow shorter as training goes on.
DRIFT_FRAC = 0.06
MEMORY_LOW, MEMORY_HIGH = 0.92, 1.10
MOST_EVALS = 8  # whose kernels add up, before they replace each other
LOOSE_FRAC = 0.5  # of the dev evaluation's seconds, where generation was not timed on trained answers
BUSY_FRAC = 0.8  # of its threads that a probe got, below which it says so


@dataclass(frozen=True, slots=True)
class Probed:
    """What was timed on the present device, in seconds."""

    set_up_s: float  # load, tokenise, choose routes
    gates_s: float  # checks, memory policy, first step's overhead
    reference_s: float  # of preference training, over all rows
    step_s: tuple[float, ...]  # of each sampled step, kernels made
    step_tokens: tuple[int, ...]  # computed tokens of the same steps
    all_tokens: int  # computed tokens of the whole schedule
    new_size_s: float  # more for each size of pass met for the first time
    num_sizes: int  # sizes in the whole schedule
    dev_eval_s: float  # one evaluation in training: loss and answers
    answer_s: float  # the answers of it
    first_eval_s: float  # while answers do not end yet
    dev_rows: int
    num_evals: int
    save_s: float
    interruptions_per_hour: float
    load_s: float  # of the base alone
    eval_rows: int
    peak_bytes: int
    new_size_bytes: float  # resident memory more for each new size
    num_sizes_seen: int
    max_sizes: int  # after so many, kernels replace each other
    eval_bytes: int  # resident memory more after each evaluation: rows end at other places, which are other sizes
    num_steps: int
    num_tokens: int  # of the rows, all passes
    search_frac: float  # tokens of a learning-rate search over those of training, 0 without
    cpu_frac: float  # processor seconds a second and thread, while steps ran
    is_cpu_time: bool  # seconds are the processor's
    wall_s: float  # of the probe

    @property
    def steps_s(self) -> Estimate:
        """All steps: ratio estimate with its standard error, and drift."""
        ratio = sum(self.step_s) / sum(self.step_tokens)
        total = ratio * self.all_tokens
        rest = [s - ratio * t for s, t in zip(self.step_s, self.step_tokens, strict=True)]
        num = len(rest)
        spread = math.sqrt(sum(r * r for r in rest) / max(1, num - 1) / num) / (sum(self.step_tokens) / num)
        off = 2 * spread * self.all_tokens + DRIFT_FRAC * total
        kernels = self.new_size_s * self.num_sizes
        return Estimate(total + kernels, max(0.0, total - off) + kernels / 2, total + off + 1.5 * kernels)

    @property
    def train_s(self) -> Estimate:
        """Of a training that runs to its end."""
        steps = self.steps_s
        once = self.set_up_s + self.gates_s + self.reference_s
        evals = max(0, self.num_evals - 1) * self.dev_eval_s + min(1, self.num_evals) * self.first_eval_s
        every_s = daly_interval_s(self.save_s, self.interruptions_per_hour)
        saves = (self.num_evals + (steps.value + evals) / every_s if every_s > 0 else 0) * self.save_s
        fixed = once + saves
        return Estimate(
            steps.value + evals + fixed,
            steps.low + (1 - LOOSE_FRAC) * evals + fixed * (1 - DRIFT_FRAC),
            steps.high + (1 + LOOSE_FRAC) * evals + fixed * (1 + DRIFT_FRAC),
        )

    @property
    def eval_s(self) -> Estimate:
        """Of the held-out rows, load included: half of a batch's seconds go by its rows, half by its longest answer."""
        batches = math.ceil(self.eval_rows / GENERATE_BATCH_ROWS) / max(
            1, math.ceil(self.dev_rows / GENERATE_BATCH_ROWS)
        )
        rows = self.answer_s * (batches + self.eval_rows / max(1, self.dev_rows)) / 2
        return Estimate(
            rows + self.load_s, (1 - LOOSE_FRAC) * rows + self.load_s, (1 + LOOSE_FRAC) * rows + self.load_s
        )

    @property
    def search_s(self) -> Estimate | None:
        """Of a learning-rate search."""
        if not self.search_frac:
            return None
        steps = self.steps_s.scaled(self.search_frac)
        once = self.set_up_s + self.gates_s + self.reference_s
        return Estimate(steps.value + once, steps.low + once, 1.2 * steps.high + once)

    @property
    def peak(self) -> Estimate:
        """Peak memory as training measures it."""
        # Kernels are mostly made over the sampled steps: three trainings ended within 1 % of their probes (2026-11-28).
        more = max(0, min(self.num_sizes, self.max_sizes) - self.num_sizes_seen) * self.new_size_bytes
        later = max(0, min(self.num_evals, MOST_EVALS) - 1) * self.eval_bytes
        peak = self.peak_bytes + later
        return Estimate(peak, MEMORY_LOW * self.peak_bytes, MEMORY_HIGH * peak + more)

    @property
    def note(self) -> str:
        """What a person should know of the probe."""
        speed = self.num_tokens / self.steps_s.value
        said = f"settled by {len(self.step_s)} steps timed on this machine: {speed:,.0f} tokens/s"
        if self.cpu_frac < BUSY_FRAC:
            counted = "by processor time, as if it were idle" if self.is_cpu_time else "as busy as it was"
            said += f"; the probe got {self.cpu_frac:.0%} of its threads, and times are predicted {counted}"
        return said


def settle(rung: RungPlan, probed: Probed) -> RungPlan:
    """The rung with what was timed in place of what was derived."""
    seconds = summed(probed.search_s, probed.train_s, probed.eval_s)
    return replace(
        rung,
        train_s=probed.train_s,
        eval_s=probed.eval_s,
        search_s=probed.search_s,
        peak_bytes=probed.peak,
        cost_usd=seconds.scaled(rung.price_usd_per_hour / SECONDS_PER_HOUR),
        num_steps=probed.num_steps,
        timed=probed.note,
        is_probed=True,
    )


def probed_from_json(row: dict[str, Any]) -> Probed:
    """The inverse of to_json for a Probed. Raises: KeyError, TypeError where it is not one."""
    steps: Sequence[float] = row["step_s"]
    return Probed(**{**row, "step_s": tuple(steps), "step_tokens": tuple(row["step_tokens"])})
