"""Adapter and base as one set of weights, reloaded from disk and compared with the two kept apart.

A model whose every weight was trained, in float32, is rounded once to the device's type, and compared with itself
before. A 16-bit base takes the adapter in float32 and is rounded once. An adapter trained on an NF4 base is merged onto
the dequantised NF4 weights, those it was trained on: merging onto the original 16-bit weights would add the
quantisation error the adapter has learned to undo.

Shapes: N answer tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import gc
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput, ModelError
from ..evaluate.generation import decode_greedy
from ..files import read_json, write_json, writing
from ..records import Device, Example, MergeCheck
from ..train.adapter import ORIGIN
from ..train.base import load_base, load_tokenizer, quiet_loading, stop_token_ids
from ..train.loss import FULL, answer_logits, collate, on_device
from ..train.tokens import Encoded, encode_example
from ..train.watch import replace_folder

# The merge error may be at most this share of what the adapter itself changes.
ERROR_SHARE = 0.1
# Both sets of weights giving the same greatest token, and the same greedy text, at least so often.
LEAST_TOP1_FRAC, LEAST_GREEDY_FRAC = 0.95, 0.75
# Below this no merge error matters, however small the adapter's effect: float32 noise of a deep model.
NEGLIGIBLE = 1e-4
BATCH_TOKENS = 4096
GREEDY_ROWS = 16
GREEDY_MARGIN_TOKENS = 4


@dataclass(frozen=True, slots=True)
class _Readings:
    """What one set of weights says on the held-out answers."""

    logprobs_N: Any
    top1_N: Any
    texts: list[list[int]]


def merge_adapter(
    model: str, adapter_dir: Path, out_dir: Path, *, device: Device, examples: Sequence[Example], method: str = ""
) -> MergeCheck:
    """Write merged weights to out_dir with tokenizer, chat template and generation config, and check them.

    adapter_dir: of an adapter, or of a model trained whole. method: lora, qlora or full; empty: as recorded there.
    The merged weights are in the device's type;
    they are compared in float32 arithmetic where both sets fit in half the device's memory, else in its own type.
    Raises: ModelError, BadInput, RunFolderError.
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
    _write_merged(model, adapter_dir, out_dir, tokenizer, device, method)
    exact = _float32_if_it_fits(out_dir, device)
    if method == "full":
        reference = _read(load_base(str(adapter_dir), device=exact), tokenizer, rows)
        bare = _read(load_base(model, device=exact), tokenizer, rows, texts=False)
    else:
        apart = _adapted(model, adapter_dir, exact, device, method)
        reference = _read(apart, tokenizer, rows)
        with apart.disable_adapter():
            bare = _read(apart, tokenizer, rows, texts=False)
        del apart
    gc.collect()
    merged = _read(load_base(str(out_dir), device=exact), tokenizer, rows)
    check = compare(reference, merged, bare)
    write_json(
        out_dir / ORIGIN,
        {
            "model": model,
            "method": method,
            "dtype": device.dtype,
            "compared_in": exact.dtype,
            "base": _base_words(method),
            "words": origin.get("words", ""),
        },
    )
    return check


def compare(reference: _Readings, merged: _Readings, bare: _Readings) -> MergeCheck:
    """The check's numbers and its verdict."""
    error = float((merged.logprobs_N - reference.logprobs_N).abs().mean())
    effect = float((bare.logprobs_N - reference.logprobs_N).abs().mean())
    agreement = float((merged.top1_N == reference.top1_N).double().mean())
    greedy = sum(a == b for a, b in zip(merged.texts, reference.texts, strict=True)) / max(len(reference.texts), 1)
    close = error <= max(ERROR_SHARE * effect, NEGLIGIBLE)
    return MergeCheck(
        num_tokens=len(reference.logprobs_N),
        mean_abs_logprob_diff=error,
        top1_agreement_frac=agreement,
        adapter_effect=effect,
        greedy_match_frac=greedy,
        passed=close and agreement >= LEAST_TOP1_FRAC and greedy >= LEAST_GREEDY_FRAC,
    )


def _base_words(method: str) -> str:
    words = {"qlora": "dequantised NF4 weights, those the adapter was trained on", "full": "none, every weight is new"}
    return words.get(method, "original weights")


def _base(model: str, compute: Device, trained_on: Device, method: str) -> Any:
    """The base the adapter was trained on, as ordinary matrices in compute's type."""
    import logging

    import torch

    if method != "qlora":
        return load_base(model, device=compute)
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


def _adapted(model: str, adapter_dir: Path, compute: Device, trained_on: Device, method: str) -> Any:
    from peft import PeftModel
    from safetensors import SafetensorError

    base = _base(model, compute, trained_on, method)
    try:
        with quiet_loading():
            return PeftModel.from_pretrained(base, str(adapter_dir)).eval()
    except SafetensorError as error:
        raise ModelError(f"the adapter in {adapter_dir} is damaged ({error}); train this rung again") from error


def _write_merged(model: str, adapter_dir: Path, out_dir: Path, tokenizer: Any, device: Device, method: str) -> None:
    merged = (
        load_base(str(adapter_dir), device=device) if method == "full" else _merge(model, adapter_dir, device, method)
    )
    generation = merged.generation_config
    generation.eos_token_id = stop_token_ids(tokenizer, merged)
    generation.pad_token_id = tokenizer.pad_token_id
    partial = out_dir.with_name(f".{out_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with writing(out_dir):
        with quiet_loading():
            merged.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        config = read_json(partial / "config.json")
        assert "quantization_config" not in config, "a merged model is not quantised"
        replace_folder(partial, out_dir)


def _merge(model: str, adapter_dir: Path, device: Device, method: str) -> Any:
    adapted = _adapted(model, adapter_dir, device, device, method)
    try:
        with quiet_loading():
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


def _read(model: Any, tokenizer: Any, rows: Sequence[Encoded], *, texts: bool = True) -> _Readings:
    """Log-probabilities and greatest tokens at every answer token, and greedy answers to the first rows."""
    import torch

    logprobs, top1 = [], []
    with torch.no_grad():
        for batch in _batches(rows):
            tensors = on_device(collate(batch, tokenizer.pad_token_id), model.device)
            logits_NV = answer_logits(model, tensors, path=FULL)
            chosen = logits_NV.log_softmax(-1).gather(1, tensors["targets"][:, None]).squeeze(1)
            logprobs.append(chosen.cpu())
            top1.append(logits_NV.argmax(-1).cpu())
    answers = _greedy(model, tokenizer, rows[:GREEDY_ROWS]) if texts else []
    return _Readings(torch.cat(logprobs), torch.cat(top1), answers)


def _batches(rows: Sequence[Encoded]) -> list[list[Encoded]]:
    batches: list[list[Encoded]] = [[]]
    longest = 0
    for row in rows:
        longest = max(longest, len(row.ids))
        if batches[-1] and (len(batches[-1]) + 1) * longest > BATCH_TOKENS:
            batches.append([])
            longest = len(row.ids)
        batches[-1].append(row)
    return batches


def _greedy(model: Any, tokenizer: Any, rows: Sequence[Encoded]) -> list[list[int]]:
    """Greedy answers, as long as the longest expected answer and a little more."""
    answers = decode_greedy(
        model,
        [row.ids[: row.num_prompt_tokens] for row in rows],
        stop_ids=stop_token_ids(tokenizer, model),
        pad_id=tokenizer.pad_token_id,
        max_new_tokens=max(len(row.ids) - row.num_prompt_tokens for row in rows) + GREEDY_MARGIN_TOKENS,
    )
    return [tokens for tokens, _ in answers]
