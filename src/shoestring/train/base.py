"""The model to be adapted: frozen weights in the right precision, its tokenizer, and the device it runs on."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from ..errors import ModelError, require
from ..records import Device
from .device import detect_device
from .locate import first_line, hub_options, resolve_model
from .tokens import (
    Encoded,
    count_lengths,
    encode_example,
    encode_prompt,
    end_token_id,
    load_tokenizer,
    stop_token_ids,
)

__all__ = [
    "Encoded",
    "count_lengths",
    "detect_device",
    "encode_example",
    "encode_prompt",
    "end_token_id",
    "load_base",
    "load_tokenizer",
    "quiet_loading",
    "resolve_model",
    "stop_token_ids",
]


def load_base(name: str, *, device: Device, quantise: bool = False, over_all_gpus: bool = False) -> Any:
    """The frozen base on its device, in the device's type, or NF4 with double quantisation.

    over_all_gpus: layers spread over the GPUs of this machine, to answer, not to train.
    Norms and head of an NF4 base stay as they are loaded; nothing is raised to float32.
    Raises: ModelError, MissingDependency (NF4 without bitsandbytes) with the alternative.
    """
    import torch
    from transformers import AutoModelForCausalLM

    path = resolve_model(name)
    dtype = getattr(torch, device.dtype)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa", **hub_options(path)}
    if quantise:
        options |= {"quantization_config": _nf4_config(device, dtype), "device_map": {"": _placement(device)}}
    if over_all_gpus:
        options["device_map"] = "auto"
    try:
        with quiet_loading():
            model = AutoModelForCausalLM.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {name!r} cannot be loaded: {first_line(error)}") from error
    if quantise and device.kind == "cpu":
        _keep_nf4_trainable(model)
    if not quantise and not over_all_gpus:
        model.to(_placement(device))
    model.requires_grad_(False)
    model.config.use_cache = True
    return model.eval()


def _keep_nf4_trainable(model: Any) -> None:
    """Stop bitsandbytes from repacking CPU weights at the first forward pass in evaluation mode.

    The repacking rounds the scales to bfloat16 and has no backward pass: after one evaluation during training
    the adapters below would get no gradient (bitsandbytes 0.50, Linear4bit.forward).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _placement(device: Device) -> str:
    return "cuda:0" if device.kind == "cuda" else device.kind


def _nf4_config(device: Device, compute_dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig

    if device.kind == "mps":
        raise ModelError(
            "NF4 (method: qlora) does not run on Apple MPS: bitsandbytes has no backward pass there; use method: lora"
        )
    require("bitsandbytes", extra="qlora", purpose="method: qlora (method: lora does without)")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' bars (the command line draws ours) and the libraries' warnings to each other."""
    from transformers.utils import logging as hf_logging

    enabled = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # PEFT 0.21 calls names that transformers 5.2x renames: for their makers, not for ours.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if enabled:
            hf_logging.enable_progress_bar()
