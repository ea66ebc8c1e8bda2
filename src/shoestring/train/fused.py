"""LoRA layers that share an input computed as one: one A-product for q, k, v (gate, up), B added inside the product.

PEFT computes every layer on its own: two matrix products and two passes over the output for the adapter, and one
summand of the input's gradient for each adapter and each base matrix. Here, for a group of layers i on one input:

    forward   A = [A_1; A_2; ...],  h = x A^T,  y_i = x W_i^T + s_i h_i B_i^T
    backward  g_i = s_i dy_i B_i,   dB_i = s_i dy_i^T h_i,  dA = [g_1 ...]^T x,  dx = [g_1 ...] A + sum dy_i W_i

with every sum inside a matrix product. The adapter's parameters stay PEFT's own, in name, type and place.

Shapes: N tokens of the micro-batch, I input size, O output size, R rank (of all layers of a group together).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from ..errors import TrainingError
from . import parity
from .adapter import is_full
from .locate import first_line

FUSED, PEFT, NONE = "fused", "PEFT", "none"


class Frozen(Protocol):
    """A frozen matrix W (O, I) as its layer holds it."""

    def prepare(self, x_NI: Any) -> Any:
        """What `product` wants of the input; layers of one group share it."""

    def product(self, prepared: Any) -> Any:
        """A new tensor x W^T + bias (N, O)."""

    def add_input_gradient(self, grad_NO: Any, into_NI: Any) -> None:
        """Add grad W to into, in place."""


class Plain:
    """A torch.nn.Linear."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def prepare(self, x_NI: Any) -> Any:
        return x_NI

    def product(self, prepared: Any) -> Any:
        import torch.nn.functional as F

        bias = self.layer.bias
        return F.linear(
            prepared, self.layer.weight.to(prepared.dtype), None if bias is None else bias.to(prepared.dtype)
        )

    def add_input_gradient(self, grad_NO: Any, into_NI: Any) -> None:
        into_NI.addmm_(grad_NO, self.layer.weight.to(grad_NO.dtype))


class Nf4:
    """A bitsandbytes Linear4bit: its own forward product; dequantised for the gradient."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def prepare(self, x_NI: Any) -> Any:
        return x_NI

    def product(self, prepared: Any) -> Any:
        return self.layer(prepared)

    def add_input_gradient(self, grad_NO: Any, into_NI: Any) -> None:
        from bitsandbytes.functional import dequantize_4bit

        weight = self.layer.weight
        # A weight gathered from shards comes without its state; the layer has it too.
        state = getattr(weight, "quant_state", None) or self.layer.quant_state
        into_NI.addmm_(grad_NO, dequantize_4bit(weight.data.view(-1, 1), state).to(grad_NO.dtype))


def frozen_matrix(layer: Any) -> Frozen | None:
    """The layer as a Frozen, None where its kind is not known here or its weight is trained."""
    import torch

    if hasattr(layer, "frozen_matrix"):
        return layer.frozen_matrix()
    if any(parameter.requires_grad for parameter in layer.parameters()):
        return None
    if type(layer) is torch.nn.Linear:
        return Plain(layer)
    if type(layer).__name__ == "Linear4bit" and type(layer).__module__.startswith("bitsandbytes"):
        return Nf4(layer)
    return None


@functools.cache
def _function() -> Any:
    """The autograd function, made once: torch is imported only where it is used."""
    import torch

    class GroupProduct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, frozen: Sequence[Frozen], scales: Sequence[float], *matrices: Any) -> Any:
            num = len(frozen)
            x_NI = x.reshape(-1, x.shape[-1])
            a_RI = torch.cat(matrices[:num]).to(x.dtype) if num > 1 else matrices[0].to(x.dtype)
            bs_OR = [b.to(x.dtype) for b in matrices[num:]]
            ranks = [b.shape[1] for b in bs_OR]
            h_NR = torch.mm(x_NI, a_RI.t())
            prepared = frozen[0].prepare(x_NI)
            outputs = []
            for matrix, h, b_OR, scale in zip(frozen, h_NR.split(ranks, 1), bs_OR, scales, strict=True):
                y_NO = matrix.product(prepared)
                y_NO.addmm_(h, b_OR.t(), alpha=scale)
                outputs.append(y_NO.view(*x.shape[:-1], -1))
            ctx.save_for_backward(x_NI, h_NR, a_RI, *bs_OR)
            ctx.set_materialize_grads(False)
            ctx.frozen, ctx.scales, ctx.ranks, ctx.shape = frozen, scales, ranks, x.shape
            return tuple(outputs)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            x_NI, h_NR, a_RI, *bs_OR = ctx.saved_tensors
            grads_NO = [None if g is None else g.reshape(-1, g.shape[-1]) for g in grads]
            g_NR = torch.zeros_like(h_NR) if None in grads else torch.empty_like(h_NR)
            grad_bs: list[Any] = []
            parts = zip(grads_NO, h_NR.split(ctx.ranks, 1), g_NR.split(ctx.ranks, 1), bs_OR, ctx.scales, strict=True)
            for grad_NO, h, g, b_OR, scale in parts:
                if grad_NO is None:
                    grad_bs.append(None)
                    continue
                g.copy_(torch.mm(grad_NO, b_OR).mul_(scale))
                grad_bs.append(torch.mm(grad_NO.t(), h).float().mul_(scale))
            grad_as = torch.mm(g_NR.t(), x_NI).float().split(ctx.ranks)
            dx = None
            if ctx.needs_input_grad[0]:
                dx_NI = torch.mm(g_NR, a_RI)
                for matrix, grad_NO in zip(ctx.frozen, grads_NO, strict=True):
                    if grad_NO is not None:
                        matrix.add_input_gradient(grad_NO, dx_NI)
                dx = dx_NI.view(ctx.shape)
            return dx, None, None, *grad_as, *grad_bs

    return GroupProduct


class Group:
    """LoRA layers that are given one and the same input, in the order of their calls."""

    def __init__(self, layers: Sequence[Any], name: str, slot: Slot) -> None:
        self.layers, self.name, self.slot = list(layers), name, slot
        found = [frozen_matrix(layer.base_layer) for layer in self.layers]
        assert all(found), "fusible() lets no other layer in"
        self.frozen = found
        self.scales = [float(layer.scaling[name]) for layer in self.layers]
        self.function = slot.function

    def outputs(self, x: Any) -> tuple[Any, ...]:
        """Of all layers of the group, for input x (..., I)."""
        import torch

        # Asked for at each call: whoever loads a checkpoint may put other parameters in their place.
        matrices = [layer.lora_A[self.name].weight for layer in self.layers]
        matrices += [layer.lora_B[self.name].weight for layer in self.layers]
        device = x.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                low = x.to(torch.get_autocast_dtype(device))
                return tuple(self.function.apply(low, self.frozen, self.scales, *matrices))
        return tuple(self.function.apply(x, self.frozen, self.scales, *matrices))


class Slot:
    """The outputs of the group that is being called, until its last layer has taken its own.

    One a model: a pass that breaks off inside a group (recomputation stops early) leaves at most one group's
    outputs here, and the next group takes their place.
    """

    def __init__(self) -> None:
        self.function = _function()
        self.clear()

    def clear(self) -> None:
        """Let go of what an interrupted pass left."""
        self.group: Group | None = None
        self.x: Any = None
        self.outputs: tuple[Any, ...] = ()

    def take(self, group: Group, index: int, x: Any) -> Any:
        """Output of the group's layer of that index for input x."""
        if len(group.layers) == 1:
            return group.outputs(x)[0]
        if self.group is not group or self.x is not x or index == 0:
            self.group, self.x, self.outputs = group, x, group.outputs(x)
        output = self.outputs[index]
        if index == len(group.layers) - 1:
            self.clear()
        return output


def _is_fusible(layer: Any, name: str) -> bool:
    """A LoRA layer as we make them: one adapter, no dropout, no bias, no variant such as DoRA, a known base."""
    import torch

    return (
        list(layer.lora_A) == [name]
        and isinstance(layer.lora_dropout[name], torch.nn.Identity)
        and layer.lora_B[name].bias is None
        and name not in layer.lora_variant
        and type(layer.lora_A[name]) is type(layer.lora_B[name]) is torch.nn.Linear
        and frozen_matrix(layer.base_layer) is not None
    )


def lora_layers(tuned: Any) -> Iterator[Any]:
    """Every linear LoRA layer of a PEFT model."""
    from peft.tuners.lora import LoraLayer

    for module in tuned.modules():
        if isinstance(module, LoraLayer) and hasattr(module, "lora_A") and len(module.lora_A):
            yield module


def find_groups(tuned: Any, probe: Any) -> list[list[Any]]:
    """Layers in the order in which probe() calls them, those called one after another with the very same input
    together. Layers that are called twice, or never, are left out."""
    calls: list[tuple[Any, Any]] = []  # the inputs are held, so that no two of them have one identity
    hooks = [
        layer.register_forward_pre_hook(lambda module, args: calls.append((module, args[0])))
        for layer in lora_layers(tuned)
    ]
    try:
        probe()
    finally:
        for hook in hooks:
            hook.remove()
    times: dict[Any, int] = {}
    for layer, _ in calls:
        times[layer] = times.get(layer, 0) + 1
    groups: list[list[Any]] = []
    held: Any = None
    for layer, x in calls:
        if times[layer] > 1:
            held = None
            continue
        if x is held:
            groups[-1].append(layer)
        else:
            groups.append([layer])
        held = x
    return groups


def fuse_adapters(tuned: Any, probe: Any) -> dict[str, Any]:
    """Give every LoRA layer of a PEFT model the forward pass above; what it cannot compute stays with PEFT's.

    probe: calls the model once, without gradient; which layers share an input is seen there.
    A call under disable_adapter(), with a merged or another adapter, or without autocast over a 16-bit base goes to
    PEFT's own forward, decided at each call. `unfuse_adapters` takes it back.
    Returns facts for the record: num_layers, num_groups (of two layers or more), num_left.
    Raises: TrainingError where the model has not exactly one active adapter.
    """
    names = tuned.active_adapters
    if len(names) != 1:
        raise TrainingError(f"fused adapters need one active adapter, the model has {names}; call set_adapter first")
    name, slot = names[0], Slot()
    num_layers = num_groups = 0
    for found in find_groups(tuned, probe):
        for members in _of_one_kind([layer for layer in found if _is_fusible(layer, name)]):
            group = Group(members, name, slot)
            for index, layer in enumerate(members):
                layer.forward = _forward(layer, group, index, name)
            num_layers += len(members)
            num_groups += len(members) > 1
    tuned.shoestring_slot = slot
    return {
        "num_layers": num_layers,
        "num_groups": num_groups,
        "num_left": sum(1 for _ in lora_layers(tuned)) - num_layers,
    }


def _of_one_kind(layers: list[Any]) -> list[list[Any]]:
    """Layers that prepare their input alike: those whose base is of one class."""
    kinds: dict[type, list[Any]] = {}
    for layer in layers:
        kinds.setdefault(type(layer.base_layer), []).append(layer)
    return list(kinds.values())


def _forward(layer: Any, group: Group, index: int, name: str) -> Any:
    import torch

    theirs = type(layer).forward

    def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
        plain = not (args or kwargs or layer.disable_adapters or layer.merged) and layer.active_adapters == [name]
        if plain and (x.dtype == layer.lora_A[name].weight.dtype or torch.is_autocast_enabled(x.device.type)):
            return group.slot.take(group, index, x)
        return theirs(layer, x, *args, **kwargs)

    return forward


def unfuse_adapters(tuned: Any) -> None:
    """PEFT's own forward everywhere again."""
    for layer in lora_layers(tuned):
        vars(layer).pop("forward", None)
    vars(tuned).pop("shoestring_slot", None)


def choose_adapters(tuned: Any, loss: parity.Loss, kind: str) -> tuple[str, str]:
    """Fuse the adapters where that gives PEFT's loss and gradients on the probe rows; (FUSED, PEFT or NONE, why).

    loss: of the probe rows, in the precision of training; called a few times with and without gradient.
    kind: the key of parity's limits.
    """
    import torch

    if is_full(tuned):
        return NONE, "method: full trains the weights themselves"
    if any(config.use_dora for config in tuned.peft_config.values()):
        return PEFT, "fused adapters are off: DoRA layers divide by the lengths of weight rows, which PEFT computes"

    def without_gradient() -> None:
        with torch.no_grad():
            loss()

    with parity.stirred(tuned):
        theirs = parity.measure(tuned, loss)
        facts = fuse_adapters(tuned, without_gradient)
        try:
            fault = parity.fault(theirs, parity.measure(tuned, loss), kind)
        except RuntimeError as error:  # a product that this build of torch lacks
            fault = first_line(error)
    if not facts["num_layers"]:
        fault = "no layer is a plain LoRA layer over a linear one"
    if fault:
        unfuse_adapters(tuned)
        return PEFT, f"fused adapters are off: {fault}"
    left = f", {facts['num_left']} left to PEFT" if facts["num_left"] else ""
    return FUSED, f"{facts['num_layers']} layers{left}, {facts['num_groups']} groups on one input each; as PEFT's"
