"""The adapter: made on a frozen base, published whole, put back where it was lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import read_json, sha256_file, write_json, writing
from ..records import Device, TrainResult, TrainSettings
from .base import load_base, load_tokenizer, quiet_loading
from .shards import in_shards, on_host, shard
from .start import load_start
from .watch import WEIGHTS, copy_adapter, replace_folder

ORIGIN = "shoestring.json"


def build_adapter(model: str, settings: TrainSettings, device: Device) -> Any:
    """The frozen base with LoRA matrices on every linear layer but the head, kept in float32.

    They are fresh, or those of the adapter that settings.start names. Raises: ModelError, BadInput.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    spreads = in_shards(settings)
    base = load_base(model, device=on_host(device) if spreads else device, quantise=settings.method == "qlora")
    torch.manual_seed(settings.seed)
    lora = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with quiet_loading():
        tuned = get_peft_model(base, lora)
    config = tuned.peft_config["default"]
    # PEFT lists every layer; the last part of the names says the same where no other module shares it.
    last_parts = {name.rpartition(".")[2] for name in config.target_modules}
    same = {n for n, _ in base.named_modules() if n.rpartition(".")[2] in last_parts and not n.endswith(".base_layer")}
    if len(same) == len(config.target_modules):
        config.target_modules = last_parts
    if settings.start:
        load_start(tuned, settings)
    if spreads:
        shard(tuned, device)
    return tuned


@contextlib.contextmanager
def adapter_in_16_bit(tuned: Any, device: Device) -> Iterator[None]:
    """Under autocast PEFT need not raise activations to float32 before each adapter matrix."""
    from peft.helpers import disable_input_dtype_casting

    with disable_input_dtype_casting(tuned, active=device.dtype != "float32"):
        yield


def fresh_copy(tuned: Any) -> Callable[[], None]:
    """Keeps the adapter's weights as they are now; the function returned puts them back, without gradients."""
    import torch

    kept = {name: p.detach().clone() for name, p in tuned.named_parameters() if p.requires_grad}

    def put_back() -> None:
        tuned.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if name in kept:
                    parameter.copy_(kept[name])

    return put_back


def load_adapter(tuned: Any, folder: Path) -> None:
    """Put the weights saved in folder into the model."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(tuned, load_file(str(folder / WEIGHTS)))


def publish(source: Path, target: Path, model: str, tokenizer: Any, method: str, dtype: str) -> None:
    """The finished adapter with its tokenizer, whole or not at all, naming the base as a person would."""
    partial = target.with_name(f".{target.name}.partial")
    copy_adapter(source, partial)
    config = read_json(partial / "adapter_config.json")
    config["base_model_name_or_path"] = model
    # A set in PEFT: its order differs from process to process.
    config["target_modules"] = sorted(config["target_modules"])
    write_json(partial / "adapter_config.json", config)
    # What merging must know: PEFT's configuration does not say what the base was held in.
    write_json(partial / ORIGIN, {"model": model, "method": method, "dtype": dtype})
    tokenizer.save_pretrained(partial)
    replace_folder(partial, target)


def is_whole(adapter: Path, sums: Mapping[str, str]) -> bool:
    """Whether every file that training left in the adapter's folder is there, as its SHA-256 says."""
    return all((adapter / name).is_file() and sha256_file(adapter / name) == sums[name] for name in sums)


def restore(out_dir: Path, trained: TrainResult) -> bool:
    """Publish out_dir/adapter again from best/ or a checkpoint; False where none holds the weights that were kept."""
    sums = trained.settings["adapter_sha256"]
    needed = {name: sums[name] for name in (WEIGHTS, "adapter_config.json")}
    for weights in sorted([*out_dir.glob(f"best/*/{WEIGHTS}"), *out_dir.glob(f"checkpoints/*/{WEIGHTS}")]):
        if sha256_file(weights) == sums[WEIGHTS]:
            tokenizer = load_tokenizer(trained.model)
            with writing(out_dir), contextlib.suppress(FileNotFoundError, ValueError, KeyError):  # its configuration
                publish(
                    weights.parent,
                    out_dir / "adapter",
                    trained.model,
                    tokenizer,
                    trained.method,
                    trained.settings["dtype"],
                )
                if is_whole(out_dir / "adapter", needed):
                    return True
    return False


def files_of(folder: Path) -> list[Path]:
    """Its files, sorted."""
    return sorted(path for path in folder.iterdir() if path.is_file())
