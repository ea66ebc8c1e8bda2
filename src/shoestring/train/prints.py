"""What a base is, whatever it is called: hashes of its weights and of what its tokenizer does.

An adapter names its base by a path or a hub name, and both may hold other weights tomorrow; two models of one shape
take each other's adapters without a word. So training records these hashes and serving compares them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import ModelError, RunFolderError
from ..files import read_json, write_json
from .locate import BIG_BYTES, folder_at_hand, resolve_model
from .tokens import load_tokenizer

BLOCK_BYTES = 1 << 24
MAX_THREADS = 8
CACHE_ENV = "SHOESTRING_CACHE"
WEIGHTS_KEY, TOKENIZER_KEY = "base_weights_sha256", "base_tokenizer_sha256"  # in an adapter's ORIGIN
# Spaces, case, digits, punctuation, other scripts, a joined emoji: where tokenizers of one vocabulary differ.
PROBE = (
    "  The  quick-brown 0123456789 fox's\n\tcafé № \u65e5\u672c\u8a9e \u0627\u0644 \U0001f469\u200d\U0001f680 {}[]()<|>"
)


@dataclass(frozen=True, slots=True)
class BasePrint:
    """SHA-256 of the weights (each tensor's name, type, shape and bytes, however sharded) and of the tokenizer."""

    weights: str
    tokenizer: str

    def to_json(self) -> dict[str, str]:
        """As an adapter's ORIGIN holds it."""
        return {WEIGHTS_KEY: self.weights, TOKENIZER_KEY: self.tokenizer}

    @staticmethod
    def from_json(origin: Mapping[str, Any]) -> BasePrint | None:
        """Of an adapter's ORIGIN; None where it was made before hashes were recorded."""
        both = (str(origin.get(WEIGHTS_KEY) or ""), str(origin.get(TOKENIZER_KEY) or ""))
        return BasePrint(*both) if all(both) else None


def headers_in(path: Path) -> dict[str, dict[str, Any]]:
    """A safetensors file's tensors by its header alone: dtype, shape, and data_offsets counted in the whole file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("the header is longer than the file")
        header = json.loads(file.read(size))
    tensors = {}
    for name, facts in header.items():
        if name != "__metadata__":
            start, end = facts["data_offsets"]
            tensors[name] = {**facts, "data_offsets": (8 + size + start, 8 + size + end)}
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights. Raises: ModelError where there are none that can be read safely."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():  # others beside it (an adapter, an original layout) are no part of the model
        files = sorted({folder / name for name in read_json(index)["weight_map"].values()})
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    if not files or not all(file.is_file() for file in files):
        raise ModelError(
            f"{folder} holds no complete safetensors weights; convert them (save_pretrained writes safetensors), or "
            "download the model again"
        )
    return files


def base_print(model: str) -> BasePrint:
    """The hashes of a model on this machine; those of a large one are kept in the user's cache by size and time.

    Raises: ModelError where it is not here, or not in safetensors.
    """
    folder = folder_at_hand(model)
    if folder is None:
        raise ModelError(f"{model} is not on this machine yet; download it first: hf download {resolve_model(model)}")
    files = weight_files(folder)
    facts = tuple((str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    return BasePrint(_weights_print(facts), _tokenizer_print(model, _tokenizer_facts(folder)))


@lru_cache(maxsize=64)
def _weights_print(facts: tuple[tuple[str, int, int], ...]) -> str:
    cache, key = _cache_file(), hashlib.sha256(repr(facts).encode()).hexdigest()
    is_big = sum(size for _, size, _ in facts) > BIG_BYTES
    if is_big:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            known = read_json(cache).get(key)
            if isinstance(known, str):
                return known
    jobs = []
    for name, _, _ in facts:
        try:
            jobs += [(Path(name), tensor, about) for tensor, about in headers_in(Path(name)).items()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{name} is no safetensors file ({error}); download the model again") from error
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        lines = sorted(pool.map(_tensor_line, jobs))
    found = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if is_big:
        known = {}
        with contextlib.suppress(OSError, ValueError):
            known = read_json(cache)
        with contextlib.suppress(RunFolderError):  # hashed again next time
            write_json(cache, {**(known if isinstance(known, dict) else {}), key: found})
    return found


def _tensor_line(job: tuple[Path, str, dict[str, Any]]) -> str:
    path, name, about = job
    digest = hashlib.sha256()
    start, end = about["data_offsets"]
    with path.open("rb") as file:
        file.seek(start)
        while start < end:
            block = file.read(min(BLOCK_BYTES, end - start))
            if not block:
                raise ModelError(f"{path} is cut short; download the model again")
            digest.update(block)
            start += len(block)
    return f"{name} {about['dtype']} {about['shape']} {digest.hexdigest()}"


def _tokenizer_facts(folder: Path) -> tuple[tuple[str, int, int], ...]:
    names = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".jinja", ".model", ".txt") and p.is_file())
    return tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in names)


@lru_cache(maxsize=64)
def _tokenizer_print(model: str, facts: tuple[tuple[str, int, int], ...]) -> str:
    return behaviour_print(load_tokenizer(model))


def behaviour_print(tokenizer: Any) -> str:
    """Equal for tokenizers that do the same: vocabulary, template, ends, and the ids of a text with every trap.

    The files of one tokenizer differ between versions of the library that wrote them; what they do must not.
    """
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    told = [sorted(tokenizer.get_vocab().items()), tokenizer.chat_template, ends, ids]
    return hashlib.sha256(json.dumps(told, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _cache_file() -> Path:
    chosen = os.environ.get(CACHE_ENV, "").strip()
    base = os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache"
    return (Path(chosen) if chosen else Path(base) / "shoestring").expanduser() / "bases.json"
