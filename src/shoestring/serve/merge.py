"""Adapter and base as one set of weights, reloaded from disk and compared with the two kept apart.

A model whose every weight was trained, in float32, is rounded once to the device's type, and compared with itself
before. A 16-bit base takes the adapter in float32 and is rounded once. Of an adapter trained on an NF4 base both merges
are made: onto the dequantised NF4 weights, those it was trained on, and onto the original ones, which lack the
quantisation error that the adapter has learned to undo. The better on held-out rows is shipped, the dequantised where
they are not told apart. Nothing is merged inside 4-bit weights.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput, ModelError
from ..evaluate.paired import paired_means
from ..files import read_json, write_json, writing
from ..records import Device, Example, MergeCheck
from ..train.adapter import ORIGIN
from ..train.base import load_base, load_tokenizer, quiet_loading, stop_token_ids
from ..train.locate import folder_at_hand
from ..train.tokens import Encoded, encode_example
from ..train.watch import replace_folder
from .merge_check import Readings, check_merged, read

DEQUANTISED, ORIGINAL = "dequantised", "original"
BASE_WORDS = {
    DEQUANTISED: "dequantised NF4 weights, those the adapter was trained on",
    ORIGINAL: "original weights",
    "": "none, every weight is new",
}
# The original weights are another model than the one evaluated: they must be better than chance makes them.
LEVEL_P = 0.05
LEGAL = ("LICEN", "NOTICE", "USE_POLICY", "COPYING")
Score = Callable[[Any, Any], Sequence[float]]  # model, tokenizer: a score of each row that merging is checked on


def merge_adapter(
    model: str,
    adapter_dir: Path,
    out_dir: Path,
    *,
    device: Device,
    examples: Sequence[Example],
    method: str = "",
    score: Score | None = None,
    metric: str = "",
) -> MergeCheck:
    """Write merged weights to out_dir with tokenizer, chat template, generation config and licence, and check them.

    adapter_dir: of an adapter, or of a model trained whole. method: lora, qlora or full; empty: as recorded there.
    score, metric: by which an NF4 base's two merges are told apart; default their answers' mean log-probability.
    The merged weights are in the device's type; they are compared in float32 arithmetic where both sets fit in half
    the device's memory, else in its own type. Raises: ModelError, BadInput, RunFolderError.
    """
    adapter_dir, out_dir = Path(adapter_dir), Path(out_dir)
    origin = read_json(adapter_dir / ORIGIN) if (adapter_dir / ORIGIN).is_file() else {}
    method = method or origin.get("method", "lora")
    if not (adapter_dir / ("config.json" if method == "full" else "adapter_config.json")).is_file():
        raise BadInput(
            f"{adapter_dir} holds no adapter (adapter_config.json); train first, or give a rung's adapter folder"
            if method != "full"
            else f"{adapter_dir} holds no model (config.json); train first, or give a rung's model folder"
        )
    if not examples:
        raise BadInput("merging is checked on held-out rows, and none were given")
    tokenizer = load_tokenizer(model)
    rows = [encode_example(tokenizer, example) for example in examples]
    ways = {"full": [""], "qlora": [DEQUANTISED, ORIGINAL]}.get(method, [ORIGINAL])
    partials = {way: out_dir.with_name(f".{out_dir.name}{way and '-'}{way}.partial") for way in ways}
    try:
        with writing(out_dir):
            for way, partial in partials.items():
                _write_merged(model, adapter_dir, partial, tokenizer, device, way)
                gc.collect()
            candidates = _scored(partials, tokenizer, rows, device, score, metric) if len(ways) > 1 else {}
            way = candidates.get("shipped", ways[0])
            replace_folder(partials[way], out_dir)
    finally:
        for partial in partials.values():
            shutil.rmtree(partial, ignore_errors=True)
    check = check_export(out_dir, model, adapter_dir, device=device, rows=rows, tokenizer=tokenizer, way=way)
    check = dataclasses.replace(check, candidates=candidates)
    words = {"method": method, "base": BASE_WORDS[way], "words": origin.get("words", ""), "passed": check.passed}
    exact = _float32_if_it_fits(out_dir, device)
    write_json(out_dir / ORIGIN, {"model": model, "dtype": device.dtype, "compared_in": exact.dtype, **words})
    return check


def check_export(
    folder: Path, model: str, adapter_dir: Path, *, device: Device, rows: Sequence[Encoded], tokenizer: Any, way: str
) -> MergeCheck:
    """The merged weights in folder against what was trained on the base, merged the given way ("": trained whole).

    Raises: ModelError.
    """
    exact = _float32_if_it_fits(folder, device)
    has_noise = device.dtype != exact.dtype
    rounded: Readings | None = None
    if way == "":
        trained = load_base(str(adapter_dir), device=exact)
        reference = read(trained, tokenizer, rows)
        base = load_base(model, device=exact)
        stops = stop_token_ids(tokenizer, base)
        bare = read(base, tokenizer, rows, texts=False)
        del trained, base
        if has_noise:
            rounded = read(load_base(str(adapter_dir), device=device), tokenizer, rows)
    else:
        apart = _adapted(model, adapter_dir, exact, device, way)
        stops = stop_token_ids(tokenizer, apart)
        reference = read(apart, tokenizer, rows)
        with apart.disable_adapter():
            bare = read(apart, tokenizer, rows, texts=False)
        del apart
        if has_noise:
            rounded = read(_adapted(model, adapter_dir, device, device, way), tokenizer, rows)
    gc.collect()
    return check_merged(folder, rows, tokenizer, exact, reference, bare, rounded, stops)


def _scored(
    partials: dict[str, Path], tokenizer: Any, rows: Sequence[Encoded], device: Device, score: Score | None, metric: str
) -> dict[str, Any]:
    """Both merges' scores of the same rows, their difference, and which is shipped."""
    scores = {}
    for way, folder in partials.items():
        merged = load_base(str(folder), device=device)
        means = score(merged, tokenizer) if score else read(merged, tokenizer, rows, texts=False).row_means()
        scores[way] = np.asarray(means, float)
        del merged
        gc.collect()
    result = paired_means(scores[ORIGINAL], scores[DEQUANTISED])
    is_better = result.difference.value > 0 and result.p_value < LEVEL_P
    return {
        "metric": metric if score else "mean log-probability of an answer token",
        "num_rows": len(scores[ORIGINAL]),
        **{way: float(values.mean()) for way, values in scores.items()},
        "original_minus_dequantised": float((scores[ORIGINAL] - scores[DEQUANTISED]).mean()),
        "p_value": result.p_value,
        "shipped": ORIGINAL if is_better else DEQUANTISED,
    }


def _base(model: str, compute: Device, trained_on: Device, way: str) -> Any:
    """The base of one way of merging, as ordinary matrices in compute's type. Raises: ModelError."""
    import torch

    if way != DEQUANTISED:
        base = load_base(model, device=compute)
        if getattr(base.config, "quantization_config", None):
            raise ModelError(
                f"{model} is itself quantised, and nothing is merged into quantised weights; serve the adapter beside "
                "it, or train on the 16-bit model"
            )
        return base
    base = load_base(model, device=trained_on, quantise=True)
    logger = logging.getLogger("transformers.integrations.bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it tells the type of what it dequantises, which we chose
    try:
        base = base.dequantize(dtype=getattr(torch, trained_on.dtype))
    finally:
        logger.setLevel(level)
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(base.config, name):
            delattr(base.config, name)
    base.hf_quantizer = None
    base.is_quantized = False
    base.is_loaded_in_4bit = False
    if hasattr(base, "quantization_method"):
        del base.quantization_method
    return base.to(getattr(torch, compute.dtype)).requires_grad_(False)


def _adapted(model: str, adapter_dir: Path, compute: Device, trained_on: Device, way: str) -> Any:
    from peft import PeftModel
    from safetensors import SafetensorError

    base = _base(model, compute, trained_on, way)
    refuse_unmergeable(read_json(adapter_dir / "adapter_config.json"), base, adapter_dir)
    try:
        with quiet_loading(), warnings.catch_warnings():
            # What PEFT fears of tied matrices is refused above, or compared with what comes out.
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
            return PeftModel.from_pretrained(base, str(adapter_dir)).eval()
    except SafetensorError as error:
        raise ModelError(f"the adapter in {adapter_dir} is damaged ({error}); train this rung again") from error


def refuse_unmergeable(settings: dict[str, Any], base: Any, adapter_dir: Path) -> None:
    """Raises: ModelError naming what of an adapter would not be in the merged weights as it was trained."""
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        raise ModelError(f"{adapter_dir} holds {kind}, and LoRA alone is merged; serve it beside its base")
    targets = settings.get("target_modules") or []
    names = {part.rpartition(".")[2] for part in ([targets] if isinstance(targets, str) else targets)}
    ends = names & {"embed_tokens", "lm_head", "wte", "embed_out"}
    is_tied = bool(getattr(base.config.get_text_config(), "tie_word_embeddings", False))
    if ends and is_tied and not settings.get("ensure_weight_tying"):
        raise ModelError(
            f"{adapter_dir} adapts {', '.join(sorted(ends))}, and its base has one matrix for embedding and head: "
            "merging would change both. Train without it, or with PEFT's ensure_weight_tying"
        )
    own = adapter_dir / "tokenizer.json"
    if own.is_file():
        from tokenizers import Tokenizer

        size, room = Tokenizer.from_file(str(own)).get_vocab_size(), base.get_input_embeddings().weight.shape[0]
        if size > room:
            raise ModelError(
                f"{adapter_dir} has a tokenizer of {size:,} tokens, and its base has rows for {room:,}: add the tokens "
                "to the base first, save it with its tokenizer, and train on that folder"
            )


def _write_merged(model: str, adapter_dir: Path, partial: Path, tokenizer: Any, device: Device, way: str) -> None:
    merged = load_base(str(adapter_dir), device=device) if way == "" else _merge(model, adapter_dir, device, way)
    generation = merged.generation_config
    generation.eos_token_id = stop_token_ids(tokenizer, merged)
    generation.pad_token_id = tokenizer.pad_token_id
    shutil.rmtree(partial, ignore_errors=True)
    with quiet_loading():
        merged.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    source = folder_at_hand(model)
    for file in sorted(source.iterdir()) if source else ():
        if is_legal(file):
            shutil.copyfile(file, partial / file.name)


def is_legal(file: Path) -> bool:
    """Whether a file is a licence or what goes with one, and so travels with the weights."""
    return file.is_file() and file.name.upper().startswith(LEGAL)


def _merge(model: str, adapter_dir: Path, device: Device, way: str) -> Any:
    adapted = _adapted(model, adapter_dir, device, device, way)
    try:
        with quiet_loading(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")  # as trained
            return adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ModelError(
            f"{adapter_dir}: the adapter holds values that are not finite; train this rung again"
        ) from error


def _float32_if_it_fits(folder: Path, device: Device) -> Device:
    """The device in float32 where base and adapter in float32 take at most half its memory."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    per_param = 4 if device.dtype == "float32" else 2
    if size / per_param * 4 <= device.memory_bytes / 2:
        return dataclasses.replace(device, dtype="float32")
    return device
