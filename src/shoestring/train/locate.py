"""Where a named model is: in the package, in a folder, or on the hub."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..embedded import embedded_path, family
from ..errors import ConfigError, ModelError
from ..files import sha256_file
from ..ladder import model_of

HUB_TIMEOUT_S = 10.0
BIG_BYTES = 100_000_000


def resolve_model(name: str) -> str:
    """Where transformers finds the model: the embedded folder, a local folder, or the hub name as it is.

    A rung's name means its model. Raises: ModelError with a suggestion for a name that is none of these.
    """
    name = model_of(name)
    names = list(family())
    if name in names:
        return str(embedded_path(name))
    if not name.strip():
        raise ModelError(f"the model name is empty; embedded models: {', '.join(names)}")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return str(folder)
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{name} holds an adapter, not a model; give the base model, or merge with `shoestring export`"
            )
        raise ModelError(
            f"{name} holds no config.json; a model folder has config.json, *.safetensors and tokenizer files"
        )
    if folder.is_file():
        raise ModelError(
            f"{name} is a file; give the model's folder, a hub name OWNER/NAME, or one of: {', '.join(names)}"
        )
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        return name
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"did you mean {close[0]!r}? " if close else ""
    raise ModelError(
        f"unknown model {name!r}: {guess}It is no embedded model ({', '.join(names)}), no folder, "
        "and no hub name of the shape OWNER/NAME such as Qwen/Qwen3-0.6B"
    )


def folder_at_hand(name: str) -> Path | None:
    """Where a model's configuration and tokenizer lie on this machine, the hub's cache included; None if nowhere.

    Looks at files alone: nothing is imported and nothing asked of the network.
    """
    path = Path(resolve_model(name))
    if path.is_dir():
        return path
    home = os.environ.get("HF_HOME", "").strip() or "~/.cache/huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE", "").strip() or f"{home}/hub").expanduser()
    found = sorted(cache.glob(f"models--{name.replace('/', '--')}/snapshots/*/config.json"))
    folders = [file.parent for file in found if (file.parent / "tokenizer_config.json").is_file()]
    return folders[-1] if folders else None


def with_folders(config: RunConfig, base_dir: Path) -> RunConfig:
    """The config with each folder (models, checkpoints, train.start) in full, as seen from the run file's, base_dir.

    The files of section task are looked for from there.

    Raises: ConfigError for a folder that only the working directory has.
    """
    models = [_model_folder(name, base_dir) for name in config.models]
    train = config.train
    changed: dict[str, str] = {}
    for key in ("checkpoints", "start"):
        place = getattr(train, key)
        if place and "://" not in place:
            changed[key] = str((base_dir / Path(place).expanduser()).resolve())
    task = config.task.beside(base_dir)
    for path in task.files():
        if not path.is_file():
            raise ConfigError(f"task: there is no file {path}; paths of the run file are relative to it")
    return config.model_copy(update={"models": models, "task": task, "train": train.model_copy(update=changed)})


def _model_folder(name: str, base_dir: Path) -> str:
    path = Path(name).expanduser()
    if name in (*family(), "embedded") or not name.strip() or path.is_absolute():
        return name
    beside = base_dir / path
    if beside.is_dir() or name.startswith("."):
        return str(beside.resolve())
    if path.is_dir():
        raise ConfigError(
            f"models: the folder {name!r} is looked for beside the run file, as {beside}, and is not there; "
            f"for the one in the working directory give its full path, {path.resolve()}"
        )
    return name


@lru_cache(maxsize=64)
def model_print(name: str) -> str:
    """What a model's folder holds, so that other weights under the same name are told apart; a hub name stands as is.

    Files to BIG_BYTES count by content, larger ones by size and time of change.
    """
    path = Path(resolve_model(name))
    if not path.is_dir():
        return name
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors", ".jinja", ".model")):
        facts = file.stat()
        what = sha256_file(file) if facts.st_size <= BIG_BYTES else str(facts.st_mtime_ns)
        digest.update(f"{file.name} {facts.st_size} {what}\n".encode())
    return f"{name} {digest.hexdigest()[:16]}"


def hub_config(name: str) -> Path:
    """The config.json of a hub model, from the cache or downloaded. Raises: ModelError."""
    options = hub_options(name)
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(name, "config.json", **options))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the config.json of {name!r} cannot be had from the hub: {first_line(error)}; try again, or download "
            "the model elsewhere and give its folder"
        ) from error


@lru_cache(maxsize=64)
def hub_options(path: str) -> dict[str, Any]:
    """Keyword arguments for from_pretrained: the cache alone when the hub is out of reach.

    One quick request first: transformers itself retries for a minute before it gives up.
    Raises: ModelError when the model is neither cached nor to be had.
    """
    if Path(path).is_dir():
        return {"local_files_only": True}
    import huggingface_hub
    from huggingface_hub import constants

    cached = isinstance(huggingface_hub.try_to_load_from_cache(path, "config.json"), str)
    remedy = "connect, or download it elsewhere and give the folder; embedded models need no network: " + ", ".join(
        family()
    )
    if constants.HF_HUB_OFFLINE:
        if cached:
            return {"local_files_only": True}
        raise ModelError(f"model {path!r} is not in the local cache and HF_HUB_OFFLINE is set; unset it, {remedy}")
    try:
        status = (
            huggingface_hub.get_session()
            .head(
                f"{constants.ENDPOINT}/api/models/{path}",
                timeout=HUB_TIMEOUT_S,
                headers=huggingface_hub.utils.build_hf_headers(),
            )
            .status_code
        )
    except Exception as error:  # the HTTP library's own tree, which differs between versions of huggingface_hub
        if cached:
            return {"local_files_only": True}
        raise ModelError(
            f"model {path!r} is not here and {constants.ENDPOINT} cannot be reached ({error}); {remedy}"
        ) from error
    if status in (401, 403, 404) and not cached:
        raise ModelError(
            f"the hub has no model {path!r} you may read (HTTP {status}); check the spelling, and for a gated "
            "model accept its licence on its page and run `hf auth login`"
        )
    return {}


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
