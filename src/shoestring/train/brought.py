"""An adapter that somebody else trained: refused unless its matrices are those of this base, then published as ours."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..files import read_json, sha256_file
from .adapter import files_of, origin_of, publish
from .base import load_tokenizer
from .locate import resolve_model
from .watch import WEIGHTS

CONFIG = "adapter_config.json"
MATRIX = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(A|B)(?:\.\w+)?\.weight")
SHOWN = 3


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, by its header alone."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tuple(facts["shape"]) for name, facts in header.items() if name != "__metadata__"}


def require_of_base(folder: Path, model: str) -> None:
    """Raises: BadInput where an adapter is no LoRA, fits another base, or has learned nothing."""
    try:
        config, adapter = read_json(folder / CONFIG), shapes_in(folder / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder}: no adapter that can be read ({error}); bring it again") from error
    if config.get("peft_type") != "LORA":
        raise BadInput(f"{folder}: an adapter of type {config.get('peft_type')}; LoRA alone can be scored here")
    base: dict[str, tuple[int, ...]] = {}
    for path in sorted(Path(resolve_model(model)).glob("*.safetensors")):
        base |= shapes_in(path)
    apart = [name for name, shape in adapter.items() if not _fits(name, shape, base)]
    if apart or not adapter:
        raise BadInput(
            f"{folder} does not fit {model}: {len(apart)} of its {len(adapter)} matrices belong to no layer of it or "
            f"are of another size, first {', '.join(apart[:SHOWN])}; name in models: the base it was tuned on"
        )
    if not _has_learned(folder / WEIGHTS):
        raise BadInput(f"{folder} changes nothing: each of its B matrices is zero, so {model} was not tuned")


def _fits(name: str, shape: tuple[int, ...], base: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether A (rank, in) or B (out, rank) belongs to a weight (out, in) of the base."""
    match = MATRIX.fullmatch(name)
    weight = base.get(f"{match[1]}.weight") if match else None
    if match is None or weight is None or len(weight) != 2 or len(shape) != 2:
        return False
    return shape[1] == weight[1] if match[2] == "A" else shape[0] == weight[0]


def _has_learned(path: Path) -> bool:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return any(bool(file.get_tensor(name).any()) for name in file.keys() if ".lora_B" in name)  # noqa: SIM118


def take(folder: Path, target: Path, model: str, dtype: str) -> dict[str, Any]:
    """Publish an adapter at target, with the base's tokenizer; settings of its training as a record holds them.

    Raises: BadInput as require_of_base.
    """
    require_of_base(folder, model)
    config = read_json(folder / CONFIG)
    facts = {
        "method": "lora",
        "lora_rank": config["r"],
        "lora_alpha": config["lora_alpha"],
        "dora": bool(config.get("use_dora")),
        "rslora": bool(config.get("use_rslora")),
        "dtype": dtype,
    }
    publish(None, folder, target, load_tokenizer(model), origin_of(model, facts, dtype))
    return {**facts, "adapter_sha256": {path.name: sha256_file(path) for path in files_of(target)}}
