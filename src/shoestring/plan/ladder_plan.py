"""The ladder in order of cost: for each rung what it needs, takes and costs, and whether it can run here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from ..config import RunConfig
from ..records import Device, Estimate, Plan, RungPlan, StartAdapter, TokenCounts, summed
from ..units import SECONDS_PER_HOUR, duration, usd
from .dev_rows import held_to_share
from .engines import OURS
from .memory import num_trained_params, predict_memory
from .parallel import FSDP
from .settings import resolve_settings
from .shapes import ModelShape
from .throughput import predict_time

DEV_FRAC = 0.1  # dev rows where the caller does not say
BUSY_LOAD_PER_CPU = 1.25  # a run finds no free processor from about here


class PriceLike(Protocol):
    """What the plan needs to know of a price (market.prices.Price)."""

    @property
    def usd_per_hour(self) -> float: ...
    @property
    def source(self) -> str: ...


def as_derived(rung: RungPlan) -> RungPlan:
    """The settle that knows nothing of the machine."""
    return rung


def plan_ladder(
    config: RunConfig,
    shapes: Mapping[str, ModelShape],
    counts: Mapping[str, TokenCounts],
    device: Device,
    price: PriceLike,
    *,
    num_dev_rows: int | None = None,
    settle: Callable[[RungPlan], RungPlan] = as_derived,
    starts: Mapping[str, StartAdapter] | None = None,
    serve_usd: Mapping[str, Estimate] | None = None,
) -> Plan:
    """Predict every rung and sort by expected total cost; a rung past the deadline is left out and noted.

    serve_usd: of serving the run file's traffic over its months, by rung, where there is a way to; the total is that
    and training and evaluation, and without it those two alone.

    shapes and counts: by rung, in the run file's order. A rung that does not fit stays, with its verdict.
    settle: what is known of this machine put in place of what was derived. starts: the adapters that rungs go on from.
    """
    rungs, notes = [], []
    for model, shape in shapes.items():
        start = (starts or {}).get(model)
        rung = plan_rung(config, model, shape, counts[model], device, price, num_dev_rows=num_dev_rows, start=start)
        rung = replace(settle(rung), serve_usd=(serve_usd or {}).get(model))
        hours = (rung.train_s.value + rung.eval_s.value) / SECONDS_PER_HOUR
        if config.deadline_h is not None and hours > config.deadline_h:
            notes.append(
                f"{model} is left out: it would take {duration(hours * SECONDS_PER_HOUR)}, "
                f"the deadline is {config.deadline_h:g} h"
            )
            continue
        if rung.verdict == "does_not_fit":
            notes.append(f"{model} does not fit: {rung.reason}")
        elif rung.cost_usd.value > config.budget_usd:
            notes.append(
                f"{model} alone is expected to cost {usd(rung.cost_usd.value)}, the budget is {usd(config.budget_usd)}"
            )
        if shape.note and shape.kind != "dense":
            notes.append(f"{model}: {shape.note}")
        rungs.append(rung)
    if config.engine != OURS:
        notes.append(
            "time and memory are predicted as of Shoestring's own trainer; what "
            f"engine: {config.engine} really takes is learned from its runs"
        )
    if device.kind == "cpu" and hasattr(os, "getloadavg"):
        busy = busy_note(os.getloadavg()[0], os.cpu_count() or 1)
        notes += [busy] if busy else []
    rungs.sort(key=lambda r: (r.verdict == "does_not_fit", total_usd(r, rungs), r.num_params))
    if config.traffic and rungs and all(r.serve_usd for r in rungs):
        notes.append(
            f"rungs are in order of total cost, with {config.traffic.months:g} months of serving: "
            + ", ".join(f"{r.model} {usd(total_usd(r, rungs))}" for r in rungs)
        )
    fitting = [r for r in rungs if r.verdict != "does_not_fit"]
    if fitting:
        total = sum(r.cost_usd.value for r in fitting)
        high = sum(r.cost_usd.high for r in fitting)
        notes.append(
            f"climbing every rung is expected to cost {usd(total)} (up to {usd(high)}) "
            f"of the budget of {usd(config.budget_usd)}"
        )
    elif rungs:
        notes.append("no rung fits this device; name smaller models, a shorter seq_len, or a larger market.device")
    elif notes:
        notes.append("no rung is left; raise deadline_h or name smaller models")
    return Plan(tuple(rungs), tuple(notes))


def total_usd(rung: RungPlan, rungs: Sequence[RungPlan]) -> float:
    """Training, evaluation and, where it is known of every rung, serving."""
    serves = rung.serve_usd.value if rung.serve_usd and all(r.serve_usd for r in rungs) else 0.0
    return rung.cost_usd.value + serves


def busy_note(load: float, num_cpus: int) -> str | None:
    """Says so where other work already fills this machine's processors."""
    if load < BUSY_LOAD_PER_CPU * num_cpus:
        return None
    return (
        f"this machine is busy (load {load:.1f} on {num_cpus} processors): times are predicted as if it were idle, "
        f"expect about {(load + 1) / num_cpus:.0f} times as long while that lasts"
    )


def plan_rung(
    config: RunConfig,
    model: str,
    shape: ModelShape,
    counts: TokenCounts,
    device: Device,
    price: PriceLike,
    *,
    num_dev_rows: int | None = None,
    start: StartAdapter | None = None,
) -> RungPlan:
    """Predict one rung."""
    settings = resolve_settings(config, shape, counts, device, start)
    memory = predict_memory(
        shape,
        method=settings.method,
        lora_rank=settings.lora_rank,
        micro_batch_tokens=settings.micro_batch_tokens,
        device=device,
        loss_frac=counts.loss_frac,
        row_tokens=settings.seq_len,
        num_recomputed=settings.recompute or 0,
        num_shards=settings.num_processes if settings.parallelism == FSDP else 1,
        dora=settings.dora,
    )
    if num_dev_rows is None:
        num_dev_rows = max(1, round(len(counts.prompt) * DEV_FRAC))
    if settings.engine == OURS:
        settings = held_to_share(settings, config.train, shape, counts, device, num_dev_rows)
    num_dev_rows = min(num_dev_rows, settings.num_dev_rows)
    time = predict_time(shape, settings, counts, device, num_dev_rows=num_dev_rows)
    seconds = summed(time.search_s, time.train_s, time.eval_s)
    return RungPlan(
        model=model,
        method=settings.method,
        num_params=shape.num_params,
        num_adapter_params=num_trained_params(shape, settings.method, settings.lora_rank, settings.dora),
        device=device,
        settings=settings,
        # As train/ measures it: tensors on CUDA, the resident process elsewhere. The verdict is of the device.
        peak_bytes=memory.allocated if device.kind == "cuda" else memory.device,
        device_bytes=device.memory_bytes,
        verdict=memory.verdict,
        train_s=time.train_s,
        eval_s=time.eval_s,
        num_train_tokens=time.num_train_tokens,
        num_steps=time.num_steps,
        price_usd_per_hour=price.usd_per_hour,
        price_source=price.source,
        cost_usd=seconds.scaled(price.usd_per_hour / SECONDS_PER_HOUR),
        parts_bytes=memory.parts,
        reason=f"{memory.reason}; {time.reason}",
        search_s=time.search_s,
        derived_s={"train": time.train_s.value, "eval": time.eval_s.value},
    )
