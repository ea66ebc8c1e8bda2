"""The frozen base in FP8: both products that LoRA needs of it, forward and input gradient, run on FP8 tensor cores.

W is held once, as e4m3 with one scale an output row (1 byte a parameter, bf16 takes 2). Activations and gradients
are scaled a row (a token) at a time when they are used. With w_o the scale of row o and Q the FP8 matrix:

    forward         y[n, o] = x_n (sum_i X[n, i] Q[o, i]) w_o           X: x scaled by x_n, in FP8
    input gradient  dx[n, i] = g_n  sum_o G[n, o] Q[o, i]               G: dy[n, o] w_o scaled by g_n, in FP8

The row scales of W lie along the sum of the second product, so they go into the gradient before it is rounded: both
products use the very same Q. Gradients are e4m3 too: a scale for every token gives its range, and a bit more
precision than e5m2 counts.

torch._scaled_mm on CUDA takes the first matrix by rows and the second by columns, both divisible by 16; the second
product therefore turns Q while it runs (torch 2.13, torch/_meta_registrations.py, _check_scaled_mm_sizes). Row-wise
scales come inside the product on Hopper and data-centre Blackwell; elsewhere they come after it, with the same numbers
(cuBLASLt has no row-wise scales on compute capability 12.0, pytorch#192707).

Shapes: N tokens, I input size, O output size.
"""

from __future__ import annotations

import functools
from typing import Any

from ..records import Device
from . import parity
from .locate import first_line

LARGEST = 448.0  # of float8_e4m3fn
MULTIPLE = 16
CAPABILITY, ROW_WISE_MAJORS = (8, 9), (9, 10)


def quantised_rows(matrix: Any, columns: Any = None) -> tuple[Any, Any]:
    """A matrix as float8_e4m3fn and its scales (rows, 1), float32; matrix ~ quantised * scales.

    columns: (1, columns) factors that the matrix is multiplied by first.
    """
    import torch

    numbers = matrix.float() if columns is None else matrix.float() * columns
    scales = (numbers.abs().amax(1, keepdim=True) / LARGEST).clamp(min=1e-12)
    return (numbers / scales).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scales


@functools.cache
def _rounding(device_kind: str) -> Any:
    """quantised_rows; on CUDA compiled into one kernel, for its five passes cost as much as a small product."""
    import torch

    return torch.compile(quantised_rows, dynamic=True) if device_kind == "cuda" else quantised_rows


def product(a: Any, b: Any, a_scales: Any, b_scales: Any, dtype: Any, *, fast: bool) -> Any:
    """(a * a_scales) @ (b * b_scales): a (N, K) by rows, b (K, M) by columns, in FP8; scales (N, 1), (1, M).

    fast: sums in the tensor core's own precision (14 bits on Hopper): for activations, not for gradients.
    """
    import torch

    if a.device.type != "cuda" or torch.cuda.get_device_capability(a.device)[0] in ROW_WISE_MAJORS:
        return torch._scaled_mm(a, b, a_scales, b_scales, out_dtype=dtype, use_fast_accum=fast)
    one = torch.ones((), device=a.device)
    found = torch._scaled_mm(a, b, one, one, out_dtype=torch.float32, use_fast_accum=fast)
    return (found * a_scales * b_scales).to(dtype)


class Fp8:
    """fused.Frozen of an FP8 layer."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def prepare(self, x_NI: Any) -> Any:
        return (*_rounding(x_NI.device.type)(x_NI), x_NI.dtype)

    def product(self, prepared: Any) -> Any:
        x, scales, dtype = prepared
        layer = self.layer
        y = product(x, layer.quantised.t(), scales, layer.scales.t(), dtype, fast=True)
        return y if layer.bias is None else y.add_(layer.bias.to(dtype))

    def add_input_gradient(self, grad_NO: Any, into_NI: Any) -> None:
        import torch

        layer = self.layer
        grad, scales = _rounding(grad_NO.device.type)(grad_NO, layer.scales.t())
        turned = layer.quantised.t().contiguous().t()  # by columns
        ones = torch.ones((1, turned.shape[1]), dtype=torch.float32, device=grad.device)
        into_NI.add_(product(grad, turned, scales, ones, into_NI.dtype, fast=False))


@functools.cache
def _classes() -> tuple[Any, Any]:
    """The layer's class and its autograd function, made once: torch is imported only where it is used."""
    import torch

    class Fp8Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, frozen: Fp8) -> Any:
            ctx.frozen, ctx.shape = frozen, x.shape
            y = frozen.product(frozen.prepare(x.reshape(-1, x.shape[-1])))
            return y.view(*x.shape[:-1], -1)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            flat = grad.reshape(-1, grad.shape[-1])
            dx = flat.new_zeros((len(flat), ctx.shape[-1]))
            ctx.frozen.add_input_gradient(flat, dx)
            return dx.view(ctx.shape), None

    class Fp8Linear(torch.nn.Module):
        """A frozen linear layer in FP8: in the place of a torch.nn.Linear."""

        def __init__(self, linear: Any) -> None:
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            quantised, scales = quantised_rows(linear.weight.detach())
            self.register_buffer("quantised", quantised)
            self.register_buffer("scales", scales)
            self.bias = None if linear.bias is None else torch.nn.Parameter(linear.bias.detach(), requires_grad=False)
            self.dtype = linear.weight.dtype

        def frozen_matrix(self) -> Fp8:
            return Fp8(self)

        @property
        def weight(self) -> Any:
            """What the layer stands for, (O, I) in the type it was made from; computed anew at each call."""
            return (self.quantised.float() * self.scales).to(self.dtype)

        def forward(self, x: Any) -> Any:
            device = x.device.type
            if torch.is_autocast_enabled(device):
                x = x.to(torch.get_autocast_dtype(device))
            with torch.autocast(device, enabled=False):
                return Fp8Product.apply(x, self.frozen_matrix())

    return Fp8Linear, Fp8Product


def refusal(device: Device, asked: bool, method: str, dora: bool = False) -> str:
    """Why this run does not get an FP8 base, "" if it may: asked is train.fp8."""
    if not asked:
        return "train.fp8 is false"
    if method != "lora":
        return "method: qlora holds the base in NF4" if method == "qlora" else "method: full freezes no base"
    return "dora reads the rows of the base" if dora else cannot_run(device)


def cannot_run(device: Device) -> str:
    """Why this machine cannot train on an FP8 base, "" if it can."""
    if device.kind != "cuda":
        return f"{device.name} has no FP8 tensor cores"
    import torch

    found = torch.cuda.get_device_capability(0)
    if found < CAPABILITY:
        return f"compute capability {found[0]}.{found[1]}, FP8 products begin at {CAPABILITY[0]}.{CAPABILITY[1]}"
    return ""


def convert(tuned: Any) -> int:
    """Hold the base weight of every LoRA layer over a frozen torch.nn.Linear in FP8; returns how many there were.

    Sizes that are not divisible by 16 stay as they are. The 16-bit weights are gone afterwards.
    """
    import torch

    from .fused import lora_layers

    num = 0
    for layer in lora_layers(tuned):
        base = layer.base_layer
        fits = type(base) is torch.nn.Linear and not (base.in_features % MULTIPLE or base.out_features % MULTIPLE)
        if fits and not base.weight.requires_grad:
            layer.base_layer = _classes()[0](base)
            num += 1
    return num


def convert_checked(tuned: Any, loss: parity.Loss) -> str:
    """Convert the base where the probe rows' loss and gradients stay; why it may not be used, "" where it may.

    Where a reason is given the model must be loaded anew.
    """
    with parity.stirred(tuned):
        theirs = parity.measure(tuned, loss)
        if not convert(tuned):
            return f"no linear layer has sizes divisible by {MULTIPLE}"
        try:
            return parity.fault(theirs, parity.measure(tuned, loss), "fp8 for 16 bits") or ""
        except RuntimeError as error:  # a product that this card or build of torch lacks
            return first_line(error)
