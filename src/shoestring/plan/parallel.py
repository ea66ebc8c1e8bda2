"""How many processes train together, whether each of them holds the base whole, and what that gains."""

from __future__ import annotations

from collections.abc import Callable

from ..records import Device, Estimate
from .memory import MemoryPrediction

NONE, DDP, FSDP = "none", "ddp", "fsdp"
# What one more GPU of a machine adds to the first, as a share of it. Assumptions of 2026-11-28, no card has measured
# them: steps of few rows divide unevenly; under fsdp a layer's weights cross the link three times a pass.
ADDED_FRAC = {NONE: Estimate(1.0, 1.0, 1.0), DDP: Estimate(0.8, 0.5, 1.0), FSDP: Estimate(0.6, 0.25, 0.95)}


def choose_num_processes(device: Device) -> tuple[int, str]:
    """One process a GPU; on CPU and MPS one, since threads already use the whole of it."""
    if device.kind == "cuda" and device.num_devices > 1:
        return device.num_devices, f"one for each of the {device.num_devices} GPUs of this machine"
    return 1, "threads use the whole CPU" if device.kind == "cpu" else "one GPU"


def choose_parallelism(asked: str, num: int, fits: Callable[[int], MemoryPrediction]) -> tuple[str, str]:
    """ddp where the base fits one device; else fsdp, where it does in shards.

    fits: the prediction of one device's memory with the base in so many shards.
    """
    if num == 1:
        return NONE, "one process"
    if asked != "auto":
        return asked, "given in the run file"
    whole = fits(1)
    if whole.verdict != "does_not_fit":
        return DDP, f"the whole base fits each of the {num}: {whole.reason}"
    shards = fits(num)
    if shards.verdict != "does_not_fit":
        return FSDP, f"the whole base does not fit ({whole.reason}); in {num} shards it does: {shards.reason}"
    return DDP, f"the base fits neither whole ({whole.reason}) nor in {num} shards ({shards.reason})"


def speed_up(num: int, parallelism: str, device: Device) -> Estimate:
    """Times as many tokens a second as one process. Processes on one CPU share its cores, and gain nothing."""
    if device.kind == "cpu":
        return Estimate(1.0, 1.0, 1.0)
    added = ADDED_FRAC[parallelism]
    return Estimate(1 + (num - 1) * added.value, 1 + (num - 1) * added.low, 1 + (num - 1) * added.high)
