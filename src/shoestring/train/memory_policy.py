"""Free memory turned into speed: how many tokens a pass takes, how many layers recompute, what is offloaded.

What a pass keeps for backward is measured on the longest row, without and with recomputation, by counting the
storages that autograd holds (exact, and the same on every device); on CUDA the allocator's peak is measured too.
The largest micro-batch that fits is taken. Layers recompute only as far as they must: each costs a third of its time.

Steps are cut, never regrouped: a step's loss is a mean over all its tokens, so its gradient stays what it was.
"""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from ..errors import DoesNotFit
from ..plan.memory import FIT_FRAC, VARYING_FACTOR
from ..records import Device, Log
from ..units import gib
from .device import free_bytes
from .world import current

# Gradients in flight while one layer runs backward, over what that layer keeps: those of gate, up, their product
# and the residual stream are there together, in the type of the activations.
IN_FLIGHT_LAYERS = 1.5
# Another choice than the largest micro-batch with the least recomputation must be this much faster.
FASTER = 1.03
ALTERNATIVES = 3  # candidates that are timed

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes a token of a pass over the longest row.

    kept, kept_recomputed: held for backward with no and with every layer recomputed; num_layers: that can recompute.
    peak: most that was allocated above what stood before, whole pass, CUDA only.
    """

    num_layers: int
    kept: float
    kept_recomputed: float
    peak: float | None = None

    @property
    def one_layer(self) -> float:
        """Bytes a token that a layer no longer keeps when it recomputes."""
        return (self.kept - self.kept_recomputed) / max(1, self.num_layers)

    def bytes_per_token(self, num_recomputed: int) -> float:
        """What a token takes at the peak when so many layers recompute."""
        one_layer = self.one_layer
        # A layer that recomputes is there in full while its turn lasts.
        during = one_layer * (IN_FLIGHT_LAYERS + (1 if num_recomputed else 0))
        kept = self.kept - one_layer * num_recomputed
        modelled = kept + during
        if self.peak is None:
            return modelled
        return max(modelled, self.peak - one_layer * num_recomputed)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run: tokens of a pass, layers that recompute, whether what they keep lies in host memory."""

    micro_batch_tokens: int
    num_recomputed: int = 0
    offload: bool = False
    needed_bytes: int = 0
    tokens_per_s: float | None = None  # measured, None where it was not

    def kept(self) -> dict[str, Any]:
        """What a checkpoint keeps of it; Candidate(**kept) is the same way to run."""
        return {k: getattr(self, k) for k in ("micro_batch_tokens", "num_recomputed", "offload")}

    def __str__(self) -> str:
        words = f"{self.micro_batch_tokens} tokens a pass, "
        words += f"{self.num_recomputed} layers recomputed" if self.num_recomputed else "nothing recomputed"
        return words + (", activations offloaded to host memory" if self.offload else "")


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """What was chosen, why, and what was measured for it."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    measured: Measured | None
    num_layers: int
    longest_tokens: int  # of a pass over the longest row: no pass is smaller
    free_bytes: int
    reason: str
    num_shrunk: int = 0  # times that memory ran out all the same

    def facts(self) -> dict[str, Any]:
        """For the record."""
        return {
            "micro_batch_tokens": self.chosen.micro_batch_tokens,
            "recompute": f"{self.chosen.num_recomputed} of {self.num_layers} layers",
            "offload": self.chosen.offload,
            "memory_policy": {k: v for k, v in asdict(self).items() if k not in ("chosen", "num_layers")},
        }

    def smaller(self) -> MemoryPolicy | None:
        """After memory ran out: half the tokens a pass, then every layer recomputed; None where both were tried."""
        now = self.chosen
        tokens = max(self.longest_tokens, math.ceil(now.micro_batch_tokens / 2))
        if tokens < now.micro_batch_tokens:
            chosen = replace(now, micro_batch_tokens=tokens)
        elif now.num_recomputed < self.num_layers:
            chosen = replace(now, num_recomputed=self.num_layers)
        else:
            return None
        chosen = replace(chosen, needed_bytes=0, tokens_per_s=None)
        reason = f"memory ran out at {now}; {self.reason}"
        return replace(self, chosen=chosen, num_shrunk=self.num_shrunk + 1, reason=reason)


# ---------------------------------------------------------------- layers that recompute


def recomputable(model: Any) -> list[Any]:
    """The layers of a transformers model that can run again in backward instead of keeping what they computed."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def recompute(model: Any, num_layers: int) -> None:
    """Let the first num_layers layers recompute, and no other. The last ones gain nothing: their turn comes first."""
    from torch.utils.checkpoint import checkpoint

    for index, layer in enumerate(recomputable(model)):
        layer.gradient_checkpointing = index < num_layers
        layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)


def offloading(offload: bool) -> contextlib.AbstractContextManager[Any]:
    """Around a forward pass: what is kept for backward goes to host memory."""
    if not offload:
        return contextlib.nullcontext()
    import torch

    return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())


# ---------------------------------------------------------------- measuring


@contextlib.contextmanager
def counting_kept(model: Any, copies: Counter[int] | None = None) -> Iterator[Callable[[], int]]:
    """Gives a function for the bytes that autograd keeps, when it is asked, of what has run inside.

    Each storage counts once; parameters and buffers do not count, nor do copies of weights by their sizes: a linear
    layer keeps its weight turned, as it keeps nothing else.
    """
    import torch

    # Of a layer in shards what was gathered is freed after its turn, and then counts nothing.
    whole = [t for t in (*model.parameters(), *model.buffers()) if not hasattr(t, "to_local")]
    own = {t.untyped_storage().data_ptr() for t in whole}
    packed: list[weakref.ref[Any]] = []  # alive while the graph is: what DoRA detaches is not kept

    def pack(tensor: Any) -> Any:
        packed.append(weakref.ref(tensor))
        return tensor

    def count() -> int:
        left, total, seen = Counter(copies), 0, set(own)
        for tensor in (ref() for ref in packed):
            if tensor is None or (at := tensor.untyped_storage().data_ptr()) in seen:
                continue
            seen.add(at)
            size = tensor.untyped_storage().nbytes()
            is_turned = tensor.dim() == 2 and tensor.t().is_contiguous() and not tensor.is_contiguous()
            if is_turned and left[size] > 0:
                left[size] -= 1
            else:
                total += size
        return total

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield count


def measure(model: Any, loss: Callable[[], Any], num_tokens: int, dtype: str = "float32") -> Measured:
    """loss: of a pass over num_tokens tokens in dtype, its graph attached; it runs twice (on CUDA three times).

    The model is left as it was, in training mode and without gradients, and with no layer recomputed.
    """
    import torch

    layers = recomputable(model)
    kept = []
    for num in (0, len(layers)):
        recompute(model, num)
        with counting_kept(model, trained_copies(model, dtype)) as count:
            held = loss()
            kept.append(count() / num_tokens)
            del held
    recompute(model, 0)
    peak = None
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss().backward()
        peak = (torch.cuda.max_memory_allocated() - before) / num_tokens
        model.zero_grad(set_to_none=True)
    return Measured(len(layers), kept[0], kept[1], peak)


def standing_bytes(model: Any, device: Device) -> int:
    """What a step adds to what is allocated before the first, whatever its tokens.

    Gradients and two moments, float32 each, and autocast's copies of the weights that learn.
    """
    copies = sum(size * count for size, count in trained_copies(model, device.dtype).items())
    return sum(12 * p.numel() for p in model.parameters() if p.requires_grad) + copies


def trained_copies(model: Any, dtype: str) -> Counter[int]:
    """Sizes in bytes of the copies in dtype that autocast makes of linear weights which learn, and how many."""
    import torch

    each = getattr(torch, dtype).itemsize
    weights = [m.weight for m in model.modules() if type(m) is torch.nn.Linear and m.weight.requires_grad]
    named = {id(weight): weight for weight in weights if weight.dtype.itemsize > each}
    adapters = {id(p) for name, p in model.named_parameters() if ".lora_" in name}  # small, and counted with the rest
    return Counter(each * weight.numel() for at, weight in named.items() if at not in adapters)


# ---------------------------------------------------------------- choosing


def candidates(
    measured: Measured,
    *,
    sizes: Sequence[int],
    nums: Sequence[int],
    room_bytes: float,
    margin: float,
    made_tokens: float = math.inf,
) -> list[Candidate]:
    """Ways to run that fit in room_bytes: for each number of tokens a pass the first number of layers that fits.

    margin: what is really taken over what was counted. made_tokens: of the largest pass there is to make.
    """
    found = []
    for tokens in sizes:
        for num in nums:
            needed = round(measured.bytes_per_token(num) * min(tokens, made_tokens) * margin)
            if needed <= room_bytes:
                found.append(Candidate(tokens, num, False, needed))
                break
    return found


def choose(
    model: Any,
    device: Device,
    *,
    measured: Measured,
    largest_tokens: int,
    longest_tokens: int,
    made_tokens: float = math.inf,
    may_cut: bool = True,
    num_recomputed: int | None = None,
    tokens_per_s: Callable[[Candidate], float] | None = None,
) -> MemoryPolicy:
    """The fastest way to run that fits.

    largest_tokens: of the whole batch, or of a pass where may_cut is False; longest_tokens: of one longest row, below
    which nothing can be cut; made_tokens: of the largest pass there is to make. num_recomputed: layers that recompute,
    where that is given.
    tokens_per_s: measures a candidate; None where the choice must not depend on a clock (on a CPU the same run
    gives the same bytes): then the one that recomputes least, and of those the largest.
    Raises: DoesNotFit where one longest row with every layer recomputed, on CUDA offloaded too, is more than is free.
    """
    free = free_bytes(device)
    room = FIT_FRAC * free - standing_bytes(model, device)
    margin = VARYING_FACTOR[device.kind][2]
    largest_tokens = max(largest_tokens, longest_tokens)
    sizes = _halved(largest_tokens, longest_tokens) if may_cut else [largest_tokens]
    given = num_recomputed is not None
    nums = [min(num_recomputed or 0, measured.num_layers)] if given else range(measured.num_layers + 1)
    made_tokens = max(made_tokens, longest_tokens)
    found = candidates(measured, sizes=sizes, nums=nums, room_bytes=room, margin=margin, made_tokens=made_tokens)
    if not found:
        safest = _safest(measured, device, int(min(sizes[-1], made_tokens)), nums[-1], room)
        found = [replace(safest, micro_batch_tokens=sizes[-1])]
    order = sorted(found, key=lambda c: (c.num_recomputed, -c.micro_batch_tokens))
    if tokens_per_s is not None and len(order) > 1:
        order = [replace(c, tokens_per_s=tokens_per_s(c)) for c in order[:ALTERNATIVES]]
    chosen = order[0]
    for other in order[1:]:
        if (other.tokens_per_s or 0) > FASTER * (chosen.tokens_per_s or math.inf):
            chosen = other
    reason = f"up to {gib(chosen.needed_bytes)} of {gib(room)} that are free"
    if chosen.tokens_per_s:
        reason += f"; {chosen.tokens_per_s:,.0f} tokens/s, the most of {len(order)} measured"
    elif chosen.num_recomputed or chosen.micro_batch_tokens < largest_tokens:
        reason += "; the least recomputation that fits, then the largest pass"
    else:
        reason += "; no larger pass is made, and nothing needs recomputing"
    return MemoryPolicy(chosen, tuple(order), measured, measured.num_layers, longest_tokens, free, reason)


def _safest(measured: Measured, device: Device, tokens: int, num_recomputed: int, room_bytes: float) -> Candidate:
    """The way to run that takes least, where none surely fits: tried if it fits at the low end of what is likely.

    Raises: DoesNotFit.
    """
    offload = device.kind == "cuda"
    # Offloaded, what stays on the card is one layer's.
    a_token = measured.one_layer * (IN_FLIGHT_LAYERS + 1) if offload else measured.bytes_per_token(num_recomputed)
    low, high = (round(a_token * tokens * factor) for factor in VARYING_FACTOR[device.kind][::2])
    if low > room_bytes:
        raise DoesNotFit(
            f"a pass of {tokens} tokens with {num_recomputed} layers recomputed needs {gib(low)} to {gib(high)}, "
            f"{gib(max(0, room_bytes))} are free on {device.name}; lower train.seq_len or train.micro_batch_tokens, "
            "or use method: qlora"
        )
    return Candidate(tokens, num_recomputed, offload, high)


def _halved(largest_tokens: int, longest_tokens: int) -> list[int]:
    """From the largest pass down by halves to one longest row."""
    sizes, tokens = [], largest_tokens
    while tokens > longest_tokens:
        sizes.append(tokens)
        tokens = math.ceil(tokens / 2)
    return [*sizes, longest_tokens]


def as_given(model: Any, device: Device, chosen: Candidate, longest_tokens: int, reason: str) -> MemoryPolicy:
    """No choice to make: what the run file gives, or what a checkpoint was made with."""
    layers = len(recomputable(model))
    chosen = replace(chosen, num_recomputed=min(chosen.num_recomputed, layers))
    return MemoryPolicy(chosen, (), None, layers, longest_tokens, free_bytes(device), reason)


def shrunk(policy: MemoryPolicy, times: int) -> MemoryPolicy:
    """The policy after memory ran out so often in earlier processes. Raises: DoesNotFit where nothing is smaller."""
    for _ in range(times):
        smaller = policy.smaller()
        if smaller is None:
            raise DoesNotFit(
                f"memory ran out at {policy.chosen}, and nothing smaller is left to try; lower train.seq_len, or use "
                "method: qlora; the last checkpoint is kept"
            )
        policy = smaller
    return policy


def is_out_of_memory(error: BaseException) -> bool:
    """An accelerator's allocator, or the one of a CPU, that could not give what was asked for."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def within_memory(
    policy: MemoryPolicy, attempt: Callable[[MemoryPolicy], Result], recover: Callable[[], None], log: Log
) -> tuple[MemoryPolicy, Result]:
    """attempt(policy); where memory runs out all the same, recover() and attempt a smaller one.

    Raises: what attempt raises; its out-of-memory error where nothing smaller is left.
    """
    while True:
        try:
            return policy, attempt(policy)
        except RuntimeError as error:
            smaller = policy.smaller() if is_out_of_memory(error) else None
            if smaller is None or current().size > 1:  # all processes begin again, not this one alone
                raise
        # Out here the error is gone, and with it the tensors that its frames held.
        log(f"memory ran out at {policy.chosen}; going on from the last checkpoint with {smaller.chosen}")
        policy = smaller
        recover()
