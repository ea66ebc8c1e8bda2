"""What is trained, an adapter or the whole model: made, published whole, put back where it was lost."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..files import read_json, sha256_file, write_json, writing
from ..ladder import model_of
from ..records import Device, TrainResult, TrainSettings
from . import full
from .base import load_base, load_tokenizer, quiet_loading
from .prints import base_print
from .shards import in_shards, on_host, shard
from .start import load_start
from .watch import FULL_WEIGHTS, WEIGHTS, copy_trained, replace_folder

ORIGIN = "shoestring.json"
HOST = Device("cpu", "cpu", 0, 1, "float32", "weights are only moved")


def folder_name(method: str) -> str:
    """Of what a rung has trained, below its own folder."""
    return "model" if method == "full" else "adapter"


def method_words(method: str, dora: bool = False, rslora: bool = False) -> str:
    """The method as a model card names it."""
    words = {"full": "full fine-tuning", "qlora": "QLoRA (NF4 base, double quantised)"}.get(method, "LoRA")
    return words + "".join(f", {name}" for name, is_on in (("DoRA", dora), ("rsLoRA", rslora)) if is_on)


def is_full(tuned: Any) -> bool:
    """Whether a model trains all of its weights; else it is a PEFT model."""
    return not hasattr(tuned, "disable_adapter")


def build_tuned(model: str, settings: TrainSettings, device: Device) -> Any:
    """The model about to be trained: every weight under full, else the frozen base with a fresh adapter."""
    if settings.method == "full":
        return full.load(model, device)
    return build_adapter(model, settings, device)


def bare(tuned: Any) -> contextlib.AbstractContextManager[Any]:
    """The base without what is trained; of a model whose every weight is, only before the first step."""
    if not is_full(tuned):
        return tuned.disable_adapter()
    assert not vars(tuned).get(HAS_LEARNED), "the base's weights are gone"
    return contextlib.nullcontext()


HAS_LEARNED = "shoestring_has_learned"


def has_learned(tuned: Any) -> None:
    """From here on the weights are no longer the base's."""
    setattr(tuned, HAS_LEARNED, True)


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
        use_dora=settings.dora,
        use_rslora=settings.rslora,
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
    """Under autocast PEFT need not raise activations to float32 before each adapter matrix.

    DoRA divides by the lengths of weight rows, in the type of its input: in 16 bits each would be off by 0.4 %.
    """
    if is_full(tuned):
        yield
        return
    from peft.helpers import disable_input_dtype_casting

    is_dora = any(config.use_dora for config in tuned.peft_config.values())
    with disable_input_dtype_casting(tuned, active=device.dtype != "float32" and not is_dora):
        yield


def fresh_copy(tuned: Any, names: Container[str] | None = None) -> Callable[[], None]:
    """Keeps what is trained as it is now; the function returned puts it back, without gradients.

    names: of the parameters that alone may change meanwhile.
    """
    import torch

    own = ((name, p) for name, p in tuned.named_parameters() if p.requires_grad)
    kept = {name: p.detach().clone() for name, p in own if names is None or name in names}

    def put_back() -> None:
        tuned.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if name in kept:
                    parameter.copy_(kept[name])

    return put_back


def starting_point(tuned: Any, model: str, device: Device) -> Callable[[], None]:
    """The function returned makes the model as it was built."""
    return full.back_to_base(tuned, model, device) if is_full(tuned) else fresh_copy(tuned)


def load_trained(tuned: Any, folder: Path) -> None:
    """Put the weights saved in folder into the model."""
    if is_full(tuned):
        full.restore(dict(tuned.named_parameters()), folder)
        return
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(tuned, load_file(str(folder / WEIGHTS)))


def publish(tuned: Any, source: Path, target: Path, tokenizer: Any, origin: Mapping[str, str]) -> None:
    """What was trained with its tokenizer, whole or not at all; an adapter names its base as a person would.

    source: the checkpoint it is in, also loaded into tuned (None where that is an adapter). origin: model, method,
    dtype and words, for ORIGIN: what merging must know and PEFT's configuration does not say.
    """
    partial = target.with_name(f".{target.name}.partial")
    if origin["method"] == "full":
        shutil.rmtree(partial, ignore_errors=True)
        full.write(tuned, tokenizer, partial)
    else:
        copy_trained(source, partial)
        config = read_json(partial / "adapter_config.json")
        config["base_model_name_or_path"] = origin["model"]
        # A set in PEFT: its order differs from process to process.
        config["target_modules"] = sorted(config["target_modules"])
        write_json(partial / "adapter_config.json", config)
    write_json(partial / ORIGIN, dict(origin))
    tokenizer.save_pretrained(partial)
    replace_folder(partial, target)


def is_whole(adapter: Path, sums: Mapping[str, str]) -> bool:
    """Whether every file that training left in the adapter's folder is there, as its SHA-256 says."""
    return all((adapter / name).is_file() and sha256_file(adapter / name) == sums[name] for name in sums)


def origin_of(model: str, settings: Mapping[str, Any], dtype: str) -> dict[str, str]:
    """What ORIGIN holds; settings: of TrainSettings, as a mapping. Of an adapter also what its base is, by content."""
    words = method_words(settings["method"], settings.get("dora", False), settings.get("rslora", False))
    origin = {"model": model_of(model), "method": settings["method"], "dtype": dtype, "words": words}
    if settings["method"] == "full":
        return origin
    try:
        return origin | base_print(model_of(model)).to_json()
    except ModelError as error:  # what was trained is worth keeping all the same; serving then compares shapes alone
        return origin | {"base_not_hashed": str(error)}


def restore(out_dir: Path, trained: TrainResult) -> bool:
    """Publish what was trained again from best/ or a checkpoint; False where none holds the weights that were kept."""
    facts, is_whole_model = {**trained.settings, "method": trained.method}, trained.method == "full"
    sums, origin = facts["adapter_sha256"], origin_of(trained.model, facts, facts["dtype"])
    name, config = (FULL_WEIGHTS, "config.json") if is_whole_model else (WEIGHTS, "adapter_config.json")
    target, kept = out_dir / folder_name(trained.method), facts.get("kept_sha256", sums[name])
    for weights in sorted([*out_dir.glob(f"best/*/{name}"), *out_dir.glob(f"checkpoints/*/{name}")]):
        if sha256_file(weights) == kept:
            tokenizer = load_tokenizer(trained.model)
            with writing(out_dir), contextlib.suppress(FileNotFoundError, ValueError, KeyError):  # its configuration
                tuned = None
                if is_whole_model:
                    tuned = full.load(trained.model, HOST)
                    load_trained(tuned, weights.parent)
                publish(tuned, weights.parent, target, tokenizer, origin)
                if is_whole(target, {name: sums[name], config: sums[config]}):
                    return True
    return False


def files_of(folder: Path) -> list[Path]:
    """Its files, sorted."""
    return sorted(path for path in folder.iterdir() if path.is_file())
