"""The model as a run computes with it: base precision, adapters, loss path, attention, each with why.

A faster way is on where the probe rows' loss and gradients are those of the plain way; otherwise the plain way is on
and the record says for what reason.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..plan.settings import GIVEN
from ..records import Device, TrainSettings
from . import fp8, fused, kernels, loss, memory_policy, preflight
from .adapter import adapter_in_16_bit, build_tuned
from .attention import use_attention
from .memory_policy import Candidate, MemoryPolicy
from .objective import Objective
from .packing import Packing
from .tokens import Encoded
from .world import current

NF4 = "nf4, double quantised"
RAN_OUT = "memory ran out over the longest row alone"
FULL_FORMAT = "float32, products in {}"
FP8 = "fp8 (e4m3), a scale a row; products in fp8 forward and for the input gradient"


@dataclass(frozen=True, slots=True)
class Routes:
    """The model that is trained, and how it computes."""

    tuned: Any
    loss_path: str
    rows_attention: str
    facts: dict[str, Any]

    @property
    def holds_fp8(self) -> bool:
        """Whether the frozen base is in FP8."""
        return bool(self.facts["base_format"] == FP8)

    def clear(self) -> None:
        """Let go of what a pass that broke off left in memory."""
        import torch

        slot = vars(self.tuned).get("shoestring_slot")
        if slot is not None:
            slot.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def build_routes(model: str, settings: TrainSettings, device: Device, probe: Sequence[Encoded], pad_id: int) -> Routes:
    """Load the model, then switch on what is faster and passes on the probe rows."""
    refusal = fp8.refusal(device, settings.fp8, settings.method, dora=settings.dora)
    if settings.fp8 and settings.parallelism == "fsdp":
        refusal = "parallelism: fsdp shards the 16-bit base"
    routes = _load(model, settings, device, probe, pad_id)
    if not refusal:
        with preflight.evaluation_mode(routes.tuned), adapter_in_16_bit(routes.tuned, device):
            refusal = fp8.convert_checked(routes.tuned, _loss_of(routes, device, probe, pad_id))
        if refusal:  # the 16-bit weights are gone
            del routes
            routes = _load(model, settings, device, probe, pad_id)
    with preflight.evaluation_mode(routes.tuned), adapter_in_16_bit(routes.tuned, device):
        of_probe, kind = _loss_of(routes, device, probe, pad_id), device.dtype if refusal else "fp8"
        adapters, why = fused.choose_adapters(routes.tuned, of_probe, kind)
        kernel, kernels_why = kernels.choose_kernels(routes.tuned, of_probe, kind, device)
    base_format = {"qlora": NF4, "full": FULL_FORMAT.format(device.dtype)}.get(settings.method, device.dtype)
    routes.facts.update(
        base_format=base_format if refusal else FP8,
        base_reason=f"fp8 is off: {refusal}" if refusal else "the probe rows' loss is that of the 16-bit base",
        adapters=adapters,
        adapters_reason=why,
        kernels=kernel,
        kernels_reason=kernels_why,
        loss_path=routes.loss_path,
        compile="off" if refusal or device.kind != "cuda" else "rounding to fp8",
    )
    return routes


def _load(model: str, settings: TrainSettings, device: Device, probe: Sequence[Encoded], pad_id: int) -> Routes:
    tuned = build_tuned(model, settings, device)
    attention = use_attention(loss.causal(tuned), device.dtype)
    shortest = min(probe, key=lambda path: len(path.ids))  # every logit of it is computed
    batch = loss.on_device(loss.collate([shortest], pad_id), tuned.device)
    with preflight.evaluation_mode(tuned), adapter_in_16_bit(tuned, device), loss.precision(device):
        path = loss.choose_path(tuned, batch)
    return Routes(tuned, path, attention, {})


def _loss_of(routes: Routes, device: Device, probe: Sequence[Encoded], pad_id: int) -> Any:
    batch = loss.on_device(loss.collate(probe, pad_id), routes.tuned.device)

    def of_probe() -> Any:
        with loss.precision(device):
            return loss.loss_sum(routes.tuned, batch, routes.loss_path)

    return of_probe


def choose_policy(
    routes: Routes,
    learned: Objective,
    packing: Packing,
    settings: TrainSettings,
    device: Device,
    before: dict[str, Any],
) -> MemoryPolicy:
    """Tokens of a pass and layers that recompute, where the run file leaves them open.

    before: what a checkpoint to continue from was made with, empty without one.
    """
    tuned, world = routes.tuned, current()
    given = settings.reasons.get("micro_batch_tokens", GIVEN) == GIVEN
    num_recomputed = settings.recompute if settings.reasons.get("recompute", GIVEN) == GIVEN else None
    longest = max(range(len(learned.items)), key=lambda index: packing.size((index,)))
    longest_tokens = packing.size((longest,))
    if before:
        reason = "as the checkpoint was made, so that the same passes follow"
        return memory_policy.as_given(tuned, device, Candidate(**before), longest_tokens, reason)
    if given and num_recomputed is not None:
        chosen = Candidate(settings.micro_batch_tokens, num_recomputed)
        return memory_policy.as_given(tuned, device, chosen, longest_tokens, GIVEN)

    smallest = settings.micro_batch_tokens if given else longest_tokens
    least = Candidate(smallest, len(memory_policy.recomputable(tuned)), device.kind == "cuda")
    if world.lockstep and world.num_shrunk:  # in earlier processes, which ended with that
        return memory_policy.as_given(tuned, device, least, longest_tokens, RAN_OUT)

    def loss_of(rows: Sequence[int]) -> Any:
        batch = loss.on_device(learned.batch(rows, packing.collate), tuned.device)
        with loss.precision(device):
            return loss.loss_sum(tuned, batch, routes.loss_path)

    def tokens_per_s(candidate: Candidate) -> float:
        return _timed(routes, learned, packing, candidate, loss_of)

    training = tuned.training
    tuned.train()
    try:
        try:
            measured = memory_policy.measure(tuned, lambda: loss_of((longest,)), longest_tokens, device.dtype)
        except RuntimeError as error:
            if world.lockstep or not memory_policy.is_out_of_memory(error):
                raise  # in lockstep one process cannot go another way
            return memory_policy.as_given(tuned, device, least, longest_tokens, RAN_OUT)
        most = max(packing.schedule.computed_tokens)
        if world.size > 1:  # a process takes its share of a step
            most = min(most, most // world.size + longest_tokens)
        if world.lockstep:
            measured = world.passing(lambda: measured)
        return memory_policy.choose(
            tuned,
            device,
            measured=measured,
            largest_tokens=settings.micro_batch_tokens if given else most,
            made_tokens=most,
            longest_tokens=longest_tokens,
            may_cut=not given,
            num_recomputed=num_recomputed,
            tokens_per_s=tokens_per_s if device.kind == "cuda" and not world.lockstep else None,
        )
    finally:
        tuned.train(training)
        routes.clear()


def _timed(routes: Routes, learned: Objective, packing: Packing, candidate: Candidate, loss_of: Any) -> float:
    """Tokens of the rows a second in the largest pass that the candidate makes; 0 where it does not fit after all."""
    import torch

    batches = [batch for step in packing.within(candidate.micro_batch_tokens).schedule.steps for batch in step]
    batch = max(batches, key=packing.size)
    tokens = sum(len(path.ids) for row in batch for path in learned.items[row])
    memory_policy.recompute(routes.tuned, candidate.num_recomputed)
    try:
        with memory_policy.offloading(candidate.offload):
            loss_of(batch).backward()  # kernels are chosen and made
            torch.cuda.synchronize()
            started_s = time.perf_counter()
            loss_of(batch).backward()
            torch.cuda.synchronize()
        return tokens / (time.perf_counter() - started_s)
    except torch.OutOfMemoryError:
        return 0.0
    finally:
        routes.tuned.zero_grad(set_to_none=True)
        memory_policy.recompute(routes.tuned, 0)
