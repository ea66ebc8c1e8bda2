"""How rows share a forward pass: one prefix forest a micro-batch, or padded rows side by side."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..plan.throughput import MIN_GAIN
from ..records import Device, Example, TrainSettings
from . import loss
from .attention import NAME, forest_route
from .forest import as_array, packed_tokens
from .objective import Collate, Item, Objective, padded
from .schedule import (
    FOREST,
    PADDED,
    Cut,
    MicroBatch,
    Schedule,
    build_schedule,
    conversations,
    padded_tokens,
    row_widths,
    step_cut,
)

# MIN_GAIN: a forest's smaller blocks of attention cost more a token than padded rows do, up to 1.3 times for rows of 50
# tokens (shoestring-3m, bfloat16, one AMD EPYC core, 2026-11-28); from about 300 tokens on it is the other way round.
# Largest mean difference of an answer token's log-probability between the two, from rounding alone.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}
PROBED_TOKENS = 1024  # of rows that both are computed on
Row = Sequence[np.ndarray]  # token ids of an item's paths
REFUSED = "were possible, but"


@dataclass(frozen=True, slots=True)
class Packing:
    """kind: FOREST or PADDED, why, and how many example tokens one computed token stands for."""

    kind: str
    reason: str
    schedule: Schedule
    collate: Collate
    size: Callable[[MicroBatch], int]  # tokens that a micro-batch computes
    cut: Callable[[int], Cut]  # by tokens of a pass
    micro_batch_tokens: int  # that the schedule is cut by

    def within(self, micro_batch_tokens: int) -> Packing:
        """The same steps in passes of at most so many computed tokens; a row that is larger alone in its own."""
        if micro_batch_tokens == self.micro_batch_tokens:
            return self
        cut = self.cut(micro_batch_tokens)
        made = [cut([row for batch in step for row in batch]) for step in self.schedule.steps]
        steps, computed = (tuple(part) for part in zip(*made, strict=True))
        schedule = Schedule(steps, self.schedule.lengths, computed)
        return dataclasses.replace(self, schedule=schedule, micro_batch_tokens=micro_batch_tokens)

    @property
    def sharing_factor(self) -> float:
        steps = len(self.schedule.steps)
        return self.schedule.num_tokens(steps) / max(1, self.schedule.num_computed_tokens(steps))

    @property
    def line(self) -> str:
        """What a person should hear of it, "" where there was nothing to share."""
        if self.kind == FOREST and self.sharing_factor >= MIN_GAIN:
            return (
                f"rows share beginnings: each computed token stands for {self.sharing_factor:.1f} of the rows' tokens"
            )
        return self.reason if REFUSED in self.reason else ""

    def attention(self, otherwise: str, device: Device) -> str:
        """What the training steps' attention is, in words."""
        return forest_route(device.kind) if self.kind == FOREST else otherwise


def as_rows(items: Sequence[Item]) -> list[Row]:
    """The items' token ids, as schedules take them."""
    return [[as_array(path.ids) for path in item] for item in items]


def schedules(rows: Sequence[Row], sources: Sequence[tuple[str, int]], settings: TrainSettings) -> dict[str, Schedule]:
    """The run under each packing. sources: file and line of each row."""

    def made(packing: str) -> Schedule:
        return build_schedule(
            rows,
            settings.num_epochs,
            settings.batch_tokens,
            settings.micro_batch_tokens,
            settings.seed,
            packing=packing,
            round_to=loss.ROUND_WIDTH,
            units=conversations(sources),
        )

    return {packing: made(packing) for packing in (PADDED, FOREST)}


def sizes(rows: Sequence[Row]) -> dict[str, Callable[[MicroBatch], int]]:
    """Tokens that a micro-batch of rows computes, under each packing."""
    widths = row_widths(rows, loss.ROUND_WIDTH)
    return {
        PADDED: lambda batch: padded_tokens([widths[row] for row in batch]),
        FOREST: lambda batch: packed_tokens([path for row in batch for path in rows[row]]),
    }


def choose_packing(
    objective: Objective,
    examples: Sequence[Example],
    settings: TrainSettings,
    model: Any,
    path: str,
    device: Device,
) -> Packing:
    """A forest where it computes at least MIN_GAIN times fewer tokens and the model's loss on it is that of its rows.

    path: the loss path. The model is asked in evaluation mode, on the first rows of the first step.
    """
    rows = as_rows(objective.items)
    made = schedules(rows, [(e.source, e.line) for e in examples], settings)
    forests = functools.partial(loss.collate_forest, as_blocks=device.kind != "cuda")
    gain = _computed(made[PADDED]) / max(1, _computed(made[FOREST]))
    kind = PADDED
    if gain < MIN_GAIN:
        reason = f"a prefix forest would compute {gain:.2f}x fewer tokens, from {MIN_GAIN}x on it is worth it"
    elif refusal := cannot_take(model, objective, _few(made[FOREST].steps[0][0], rows), forests, path, device):
        reason = f"{gain:.2f}x fewer tokens {REFUSED} {refusal}"
    else:
        kind, reason = FOREST, f"{gain:.2f}x fewer computed tokens than padded rows"
    return Packing(
        kind=kind,
        reason=reason,
        schedule=made[kind],
        collate=forests if kind == FOREST else padded,
        size=sizes(rows)[kind],
        cut=functools.partial(step_cut, rows, packing=kind, round_to=loss.ROUND_WIDTH),
        micro_batch_tokens=settings.micro_batch_tokens,
    )


def computed_frac(items: Sequence[Item], rows_per_step: int = 32) -> float:
    """Tokens a forest computes over the rows' own, over runs of rows_per_step items: what planning expects."""
    own = computed = 0
    for at in range(0, len(items), rows_per_step):
        paths = [as_array(path.ids) for item in items[at : at + rows_per_step] for path in item]
        own += sum(map(len, paths))
        computed += packed_tokens(paths)
    return computed / max(1, own)


def _computed(schedule: Schedule) -> int:
    return schedule.num_computed_tokens(len(schedule.steps))


def _few(batch: MicroBatch, rows: Sequence[Row]) -> MicroBatch:
    """The first rows of a micro-batch, at least two paths, while they take PROBED_TOKENS side by side."""
    size = sizes(rows)[PADDED]
    least = 1 if len(rows[batch[0]]) > 1 else 2
    num = max([least, *(n for n in range(1, len(batch) + 1) if size(batch[:n]) <= PROBED_TOKENS)])
    return batch[:num]


def cannot_take(
    model: Any, objective: Objective, indices: Sequence[int], collate: Collate, path: str, device: Device
) -> str:
    """Why this model cannot train on forests, "" if it can.

    Layers that carry a state or look back a limited way show in the layer types; whatever else a model does differs
    in the loss of the same rows.
    """
    import torch

    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    longest = max(len(path_.ids) for item in objective.items for path_ in item)
    window = getattr(config, "sliding_window", None)
    for kind in sorted(set(getattr(config, "layer_types", None) or ())):
        if kind == "sliding_attention" and window is not None and longest <= window:
            continue
        if kind != "full_attention":
            beyond = f" of {window} tokens under rows of {longest}" if kind == "sliding_attention" else ""
            return f"its layers include {kind}{beyond}"
    if config._attn_implementation != NAME:
        return f"its attention is {config._attn_implementation}"
    paths = [path_ for index in indices for path_ in objective.items[index]]
    batches = [loss.on_device(make(paths, objective.pad_id), model.device) for make in (collate, padded)]
    try:
        with torch.no_grad():
            ours, plain = (loss.path_log_probs(model, batch, path) for batch in batches)
    except Exception as error:  # models are other people's code: whatever it raises, rows can still be padded
        return f"its forward pass refused the forest ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
    tokens = torch.tensor([loss.num_loss_tokens([p]) for p in paths], device=ours.device)
    apart = float(((ours - plain).abs() / tokens).mean())
    limit = TOLERANCE[device.dtype]
    if not apart <= limit:
        return f"its loss on the forest differs by {apart:.3g} a token, {limit} is rounding"
    return ""
