"""Models and adapters as llama.cpp reads them: GGUF files, made by llama.cpp's own convert scripts.

What those scripts would get wrong without a word is put right or refused here: the scale of rsLoRA, LoRA on tied
embeddings (llama.cpp ends the whole process), a tokenizer they do not know. `gguf_check` proves what came out.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import MissingDependency, ModelError, ShoestringError
from ..files import read_json, write_json
from ..train.base import load_tokenizer
from ..train.locate import folder_at_hand
from .gguf_convert import UNKNOWN
from .llamacpp_home import CONVERT, CONVERT_LORA, LlamaCpp

CONVERTED = ("f32", "f16", "bf16", "q8_0")  # written by the convert script itself
QUANTISED = ("q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "iq4_xs")  # by llama-quantize, of 16 bits
KINDS = (*CONVERTED, *QUANTISED)
# Kinds that hold a 16-bit model's weights as they are, so that what differs is arithmetic alone.
EXACT = ("f32", "f16", "bf16")
SECONDS = 3600.0
TAIL_CHARS = 800

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def require_kind(kind: str) -> None:
    """Raises: ModelError."""
    if kind not in KINDS:
        raise ModelError(f"GGUF kind {kind!r} is not one of {', '.join(KINDS)}")


def write_model(folder: Path, out: Path, kind: str, home: LlamaCpp) -> str:
    """A model's folder (config, weights, tokenizer) as one GGUF file; returns the pre-tokenizer it names, and how.

    Raises: ModelError, MissingDependency, ShoestringError.
    """
    require_kind(kind)
    if kind in QUANTISED and home.quantize is None:
        raise MissingDependency(
            f"GGUF kind {kind} needs llama-quantize beside {home.server}; choose one of {', '.join(CONVERTED)}"
        )
    config = read_json(folder / "config.json")
    if "quantization_config" in config:
        raise ModelError(f"{folder} holds quantised weights, which are not converted; export merged weights first")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=out.parent) as work:
        staged = _staged(folder, Path(work) / folder.name)
        first = partial if kind in CONVERTED else Path(work) / "whole.gguf"
        outtype = kind if kind in CONVERTED else "bf16" if config.get("dtype") == "bfloat16" else "f16"
        said = _convert(
            home, CONVERT, _rules(folder), str(staged), "--outfile", str(first), "--outtype", outtype,
            purpose=f"{folder} as GGUF",
        )  # fmt: skip
        if kind in QUANTISED:
            _run([str(home.quantize), str(first), str(partial), kind.upper()], f"{folder} quantised to {kind}")
    partial.replace(out)
    return next((line.partition(": ")[2] for line in said.splitlines() if line.startswith("pre-tokenizer: ")), "own")


def _staged(folder: Path, work: Path) -> Path:
    """The folder by links, saying whether the tokenizer puts a start and an end token around a text.

    Where the file is silent llama.cpp decides by the pre-tokenizer's name, and Ollama puts a start token.
    """
    work.mkdir()
    for file in folder.iterdir():
        if file.is_file() and file.name != "tokenizer_config.json":
            (work / file.name).symlink_to(file.resolve())
    tokenizer = load_tokenizer(str(folder))
    ids = tokenizer("a").input_ids
    says = {"add_bos_token": ids[:1] == [tokenizer.bos_token_id], "add_eos_token": ids[-1:] == [tokenizer.eos_token_id]}
    config = folder / "tokenizer_config.json"
    write_json(work / config.name, {**(read_json(config) if config.is_file() else {}), **says})
    return work


def base_folder(model: str, work: Path) -> Path:
    """A base for `write_model`, in work: its weights by links, with the tokenizer and template training used.

    Raises: ModelError where the base is not on this machine.
    """
    source = folder_at_hand(model)
    if source is None:
        raise ModelError(f"{model}: its weights are not on this machine; evaluate or train with it first")
    work.mkdir(parents=True, exist_ok=True)
    load_tokenizer(model).save_pretrained(work)
    for file in source.iterdir():
        is_tokenizer = (
            file.name.startswith(("tokenizer", "special_tokens", "chat_template")) and file.suffix != ".model"
        )
        if file.is_file() and not is_tokenizer and not (work / file.name).exists():
            (work / file.name).symlink_to(file.resolve())
    return work


def write_adapter(adapter: Path, base: Path, out: Path, home: LlamaCpp, kind: str = "f32") -> None:
    """An adapter in PEFT's form as a GGUF file for llama-server --lora; base: the folder of its base.

    Kept in float32 by default: the files are small, and llama.cpp adds them to rounded weights anyway.
    Raises: ModelError naming what GGUF adapters cannot hold, ShoestringError.
    """
    settings = read_json(adapter / "adapter_config.json")
    refuse_adapter(settings, read_json(base / "config.json"), str(adapter))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=out.parent) as work:
        copy = Path(work)
        (copy / "adapter_model.safetensors").symlink_to((adapter / "adapter_model.safetensors").resolve())
        write_json(copy / "adapter_config.json", {**settings, "lora_alpha": gguf_alpha(settings)})
        _convert(
            home, CONVERT_LORA, "", str(copy), "--base", str(base), "--outfile", str(partial), "--outtype", kind,
            purpose=f"{adapter} as GGUF",
        )  # fmt: skip
    partial.replace(out)


def gguf_alpha(settings: dict[str, Any]) -> float:
    """The alpha that gives PEFT's scale: llama.cpp divides by r, where rsLoRA divides by its root.

    Source: rsLoRA, arXiv 2312.03732; src/llama-adapter.h of llama.cpp (alpha / rank).
    """
    alpha, rank = float(settings["lora_alpha"]), int(settings["r"])
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


def refuse_adapter(settings: dict[str, Any], base_config: dict[str, Any], name: str) -> None:
    """Raises: ModelError naming what of the adapter a GGUF file cannot hold."""
    is_tied = bool(base_config.get("tie_word_embeddings"))
    targets = settings.get("target_modules") or []
    ends = {part.rpartition(".")[2] for part in ([targets] if isinstance(targets, str) else targets)}
    reasons = {
        f"it is {settings.get('peft_type')}, not LoRA": settings.get("peft_type", "LORA") != "LORA",
        "it is DoRA": bool(settings.get("use_dora")),
        f"it has whole modules ({', '.join(settings.get('modules_to_save') or [])})": bool(
            settings.get("modules_to_save")
        ),
        "it has trained tokens": bool(settings.get("trainable_token_indices")),
        "it has biases": settings.get("bias", "none") != "none" or bool(settings.get("lora_bias")),
        "it adapts expert parameters": bool(settings.get("target_parameters")),
        "its modules have ranks or alphas of their own": bool(
            settings.get("rank_pattern") or settings.get("alpha_pattern")
        ),
        "it adapts the embedding or the head of a base that ties them": is_tied
        and bool(ends & {"embed_tokens", "lm_head", "wte"}),
    }
    found = [words for words, holds in reasons.items() if holds]
    if found:
        raise ModelError(
            f"{name} cannot be a GGUF adapter: {'; '.join(found)}. Merge it and convert the merged weights instead: "
            "shoestring export RUN --to gguf"
        )


def _rules(folder: Path) -> str:
    """llama.cpp's pre-tokenizer that splits as tokenizer.json says, for tokenizers it does not know; "" if none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return ""
    rules = json.loads(path.read_text(encoding="utf-8"))
    if rules["model"].get("type") != "BPE" or not rules.get("pre_tokenizer"):
        return ""
    return pre_tokenizer(rules["pre_tokenizer"], bool(rules["model"].get("ignore_merges")))


def pre_tokenizer(rules: dict[str, Any], ignore_merges: bool = False) -> str:
    """The name in llama.cpp (src/llama-vocab.cpp, 0.3.36) of rules in tokenizer.json's form; "" where it has none.

    A splitting at newlines besides changes nothing where no token holds a newline and something else, which the
    comparison of token ids shows.
    """
    parts = rules["pretokenizers"] if rules["type"] == "Sequence" else [rules]
    kinds = [part["type"] for part in parts]
    patterns = [part["pattern"].get("Regex", "") for part in parts if part["type"] == "Split"]
    if kinds[-1:] != ["ByteLevel"] or set(kinds) - {"Split", "Digits", "ByteLevel"}:
        return ""
    if parts[-1].get("use_regex", True):
        is_single = any(part["type"] == "Digits" and part.get("individual_digits") for part in parts)
        return "" if set(patterns) - {"\n"} else "smollm" if is_single else "gpt-2" if "Digits" not in kinds else ""
    known = {_LLAMA3: "llama-bpe" if ignore_merges else "dbrx", _QWEN2: "qwen2"}
    return known.get(patterns[0], "") if len(patterns) == 1 and "Digits" not in kinds else ""


def _convert(home: LlamaCpp, script: str, pre: str, *arguments: str, purpose: str) -> str:
    program = str(Path(__file__).with_name("gguf_convert.py"))
    return _run([home.python, program, str(home.convert_dir), pre, script, *arguments], purpose)


def _run(command: Sequence[str], purpose: str) -> str:
    """What the program printed. Raises: ModelError, ShoestringError with its last words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ShoestringError(f"{purpose}: {command[0]} did not end within {SECONDS / 60:.0f} minutes") from error
    if done.returncode == UNKNOWN:
        raise ModelError(
            f"{purpose}: llama.cpp does not know this tokenizer (its split into words is none of those it has), so no "
            "GGUF file is written; serve the run with --engine embedded or vllm"
        )
    if done.returncode:
        words = (done.stderr or done.stdout).strip()[-TAIL_CHARS:]
        raise ShoestringError(f"{purpose} failed (exit status {done.returncode}): {words}")
    return done.stdout
