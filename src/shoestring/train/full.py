"""Every weight trained: the base in float32, its products in the device's 16-bit type, tied tables kept tied.

Updates of a fine-tune are smaller than the last bit of a 16-bit weight, so the weights that learn are float32 and
autocast rounds a copy for each product (mixed precision, Micikevicius et al. 2018, arXiv 1710.03740, section 3.1).

A checkpoint holds the parameters under the names they have in memory, each once; the published model is written by
transformers, whose names on disk may differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError, TrainingError
from ..records import Device
from .base import load_base, quiet_loading, stop_token_ids
from .watch import FULL_WEIGHTS

ONE_FILE = "100TB"  # larger than any model: one file of weights


def load(model: str, device: Device) -> Any:
    """The base in float32 on its device, every weight trainable. Raises: ModelError where it is held quantised."""
    base = load_base(model, device=dataclasses.replace(device, dtype="float32"))
    held = sorted({str(p.dtype).removeprefix("torch.") for p in base.parameters() if not p.is_floating_point()})
    if held or getattr(base, "is_quantized", False):
        raise ModelError(
            f"{model} comes with quantised weights ({', '.join(held) or 'see its config.json'}), which cannot be "
            "trained; name the model it was quantised from, or use method: lora"
        )
    return base.requires_grad_(True)


def save(parameters: Mapping[str, Any], folder: Path) -> None:
    """Write parameters by name to folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: p.detach().contiguous() for name, p in parameters.items()}, str(folder / FULL_WEIGHTS))


def restore(parameters: Mapping[str, Any], folder: Path) -> None:
    """Put what folder holds into the parameters, in place. Raises: TrainingError where the names differ."""
    import torch
    from safetensors import safe_open

    with safe_open(str(folder / FULL_WEIGHTS), "pt") as file, torch.no_grad():
        found = set(file.keys())
        if found != set(parameters):
            odd = sorted(found ^ set(parameters))
            raise TrainingError(
                f"{folder / FULL_WEIGHTS} holds other weights than this model has: {len(odd)} names differ, first "
                f"{odd[0]}; it was written by another version or model, train this rung again"
            )
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(name))


def back_to_base(tuned: Any, model: str, device: Device) -> Callable[[], None]:
    """The function returned puts the base's own weights back, read from where the model lies, without gradients."""
    import torch

    host = dataclasses.replace(device, kind="cpu")

    def put_back() -> None:
        tuned.zero_grad(set_to_none=True)
        base = dict(load(model, host).named_parameters())
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                parameter.copy_(base.pop(name))

    return put_back


def write(tuned: Any, tokenizer: Any, folder: Path) -> None:
    """A model folder as transformers reads it, in float32, stopping where the rows' answers end."""
    generation = tuned.generation_config
    generation.eos_token_id = stop_token_ids(tokenizer, tuned)
    generation.pad_token_id = tokenizer.pad_token_id
    with quiet_loading():
        tuned.save_pretrained(folder, max_shard_size=ONE_FILE)
