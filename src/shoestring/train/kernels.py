"""Liger's Triton kernels for RMSNorm and SwiGLU, on CUDA, where they are installed and give the model's own numbers.

Each norm and each MLP gets another forward pass of its own, which `switch_off` takes back: nothing of transformers is
patched. The linear layers inside an MLP stay what they are, so adapters and FP8 go on as before. Norms are not computed
in place: the gradient that one receives is also that of the residual stream.

Source: Liger Kernel (Hsu et al. 2024, arXiv 2410.10989), version 0.8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..records import Device
from . import parity
from .locate import first_line
from .loss import causal

LIGER, TORCH = "Liger's RMSNorm and SwiGLU", "torch's"
# Models whose norm is weight * (x / rms) rounded first, and whose MLP is down(act(gate) * up): model type to the
# beginning of their class names.
KNOWN = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
ACTIVATIONS = ("silu", "swish")
Function = Callable[..., Any]


def refusal(model: Any, device: Device) -> str:
    """Why this model does not run them here, "" where it can."""
    if device.kind != "cuda":
        return f"they are for CUDA, this is {device.kind}"
    if model.config.model_type not in KNOWN:
        return f"not known for {model.config.model_type} models, only for {', '.join(KNOWN)}"
    if model.config.hidden_act not in ACTIVATIONS:
        return f"its activation is {model.config.hidden_act}"
    return ""


def functions() -> tuple[Function, Function]:
    """(normed(x, weight, eps), gated(gate, up)). Raises: ImportError."""
    from liger_kernel.ops import LigerRMSNormFunction, LigerSiLUMulFunction

    def normed(x: Any, weight: Any, eps: float) -> Any:
        return LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)

    return normed, LigerSiLUMulFunction.apply


def modules_of(model: Any) -> Iterator[tuple[Any, bool]]:
    """Every norm and MLP of a known model; whether it is a norm."""
    prefix = KNOWN[model.config.model_type]
    for module in model.modules():
        if type(module).__name__ in (prefix + "RMSNorm", prefix + "MLP"):
            yield module, type(module).__name__.endswith("Norm")


def switch_on(model: Any, normed: Function, gated: Function) -> int:
    """Number of modules that run them from now on."""

    def norm(module: Any) -> Function:
        return lambda x: normed(x, module.weight, module.variance_epsilon)

    def mlp(module: Any) -> Function:
        return lambda x: module.down_proj(gated(module.gate_proj(x), module.up_proj(x)))

    found = list(modules_of(model))
    for module, is_norm in found:
        module.forward = norm(module) if is_norm else mlp(module)
    return len(found)


def switch_off(model: Any) -> None:
    """Their own forward passes again."""
    for module, _ in modules_of(model):
        vars(module).pop("forward", None)


def choose_kernels(tuned: Any, loss: parity.Loss, kind: str, device: Device) -> tuple[str, str]:
    """(LIGER or TORCH, the reason): on where loss and gradients of the probe rows stay the same.

    loss: of the probe rows, in the precision of training; kind: the key of parity's limits.
    """
    model = causal(tuned)
    if why := refusal(model, device):
        return TORCH, f"Liger's kernels are off: {why}"
    try:
        normed, gated = functions()
    except ImportError as error:
        return TORCH, f"Liger's kernels are off: {first_line(error)}; pip install liger-kernel"
    with parity.stirred(tuned):
        theirs = parity.measure(tuned, loss)
        num = switch_on(model, normed, gated)
        try:
            fault = parity.fault(theirs, parity.measure(tuned, loss), kind)
        except (
            Exception
        ) as error:  # what a Triton kernel raises on a card or version that it does not know is not listed
            fault = f"{type(error).__name__}: {first_line(error)}"
    if fault:
        switch_off(model)
        return TORCH, f"Liger's kernels are off: {fault}"
    return LIGER, f"{num} modules; the probe rows' loss and gradients stay the same"
