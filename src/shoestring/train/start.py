"""The adapter that training goes on from: one that another run left, of the same base and the same shape.

Its weights are loaded into the adapter that is trained, so what comes out is complete alone; preferences are measured
from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..files import read_json, sha256_file
from ..records import StartAdapter, TrainSettings
from ..runfolder import rung_name
from .locate import model_print, resolve_model
from .watch import WEIGHTS

CONFIG, ORIGIN = "adapter_config.json", "shoestring.json"
# Switches of PEFT under which the same weights mean something else.
SWITCHES = ("r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out", "bias", "rank_pattern", "alpha_pattern")
SHOWN = 3


def find_start(start: str, model: str) -> StartAdapter:
    """The adapter for this model in a run folder, a rung's folder, or an adapter's own.

    Raises: BadInput where there is none, or it was made on another base.
    """
    given = Path(start)
    places = [given / "rungs" / rung_name(model) / "adapter", given / "adapter", given]
    folder = next((place for place in places if (place / CONFIG).is_file()), None)
    if folder is None or not (folder / WEIGHTS).is_file():
        looked = ", ".join(str(place) for place in places)
        raise BadInput(
            f"train.start = {start!r} holds no adapter for {model} (looked for {CONFIG} and {WEIGHTS} in {looked}); "
            "give the folder of a run that trained this model, or of an adapter"
        )
    config = _config(folder)
    base = _base(folder, config)
    if base and _is_other(base, model):
        raise BadInput(
            f"train.start: the adapter in {folder} was made on {base}, and this rung is {model}; name {base}"
        )
    kind = config.get("peft_type")
    if kind != "LORA":
        raise BadInput(f"train.start: the adapter in {folder} is of type {kind}, training goes on from LoRA alone")
    return StartAdapter(str(folder), sha256_file(folder / WEIGHTS), int(config["r"]), float(config["lora_alpha"]))


def load_start(tuned: Any, settings: TrainSettings) -> None:
    """Put the weights of the adapter training goes on from into the fresh one.

    Raises: BadInput where they are not those the run was planned with, or of another shape.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    folder = Path(settings.start)
    found = sha256_file(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else "missing"
    if found != settings.start_sha256:
        raise BadInput(
            f"{folder / WEIGHTS} is not the adapter this run was planned with (SHA-256 {found[:12]}, planned "
            f"{settings.start_sha256[:12]}); put it back, or run again to plan with it as it is"
        )
    theirs, own = _config(folder), tuned.peft_config[tuned.active_adapter].to_dict()
    other = [key for key in SWITCHES if key in theirs and theirs[key] != own.get(key)]
    if other:
        told = ", ".join(f"{key}: {theirs[key]} there, {own.get(key)} here" for key in other)
        raise BadInput(f"the adapter in {folder} is of another kind than this run's ({told}); train it alike")
    weights, wanted = load_file(str(folder / WEIGHTS)), get_peft_model_state_dict(tuned, save_embedding_layers=False)
    apart = sorted(
        key
        for key in weights.keys() | wanted.keys()
        if key not in weights or key not in wanted or weights[key].shape != wanted[key].shape
    )
    if apart:
        raise BadInput(
            f"the adapter in {folder} does not fit this model: {len(apart)} matrices are missing, not known here or of "
            f"another size, first {', '.join(apart[:SHOWN])}; give an adapter of this model"
        )
    set_peft_model_state_dict(tuned, weights)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = read_json(folder / CONFIG)
        assert isinstance(config, dict)
    except (OSError, ValueError, AssertionError) as error:
        raise BadInput(f"{folder / CONFIG} cannot be read ({error}); give another train.start") from error
    return config


def _base(folder: Path, config: dict[str, Any]) -> str:
    """The model an adapter was made on, "" where it does not say."""
    origin = read_json(folder / ORIGIN) if (folder / ORIGIN).is_file() else {}
    return str(origin.get("model") or config.get("base_model_name_or_path") or "")


def _is_other(base: str, model: str) -> bool:
    """Whether two names are surely of different models: folders by content, else by name; a hub name and a folder
    cannot be compared."""
    if base == model:
        return False
    folders = [Path(resolve_model(name)).is_dir() for name in (base, model)]
    if all(folders):
        return model_print(base).rpartition(" ")[2] != model_print(model).rpartition(" ")[2]
    return not any(folders)
