"""Merged weights, read back from disk, against what was trained: numbers against measured rounding, and files.

Shapes: N answer tokens, K the first of them, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..evaluate.generation import decode_greedy
from ..files import read_json
from ..records import Device, MergeCheck
from ..train.base import quiet_loading, stop_token_ids
from ..train.loss import FULL, answer_logits, collate, on_device
from ..train.tokens import Encoded

# The merge error may be at most this share of what training changed: a merge that did nothing is off by all of it.
ERROR_SHARE = 0.1
# It may be at most so many times the rounding noise, and training must have changed at least so many times that noise.
ERROR_TIMES, EFFECT_TIMES = 4.0, 3.0
# Same greatest token and same greedy text: at least this share of how often rounding alone leaves them the same.
LEAST_TOP1_FRAC, LEAST_GREEDY_FRAC = 0.95, 0.75
# Below this no merge error matters: float32 noise of a deep model, where rounding is not measured.
NEGLIGIBLE = 1e-4
BATCH_TOKENS = 4096
GREEDY_ROWS = 16
GREEDY_MARGIN_TOKENS = 4
KL_TOKENS = 256  # each takes a row of the vocabulary's width


@dataclass(frozen=True, slots=True)
class Readings:
    """What one set of weights says on the held-out answers."""

    logprobs_N: Any
    top1_N: Any
    logprobs_KV: Any
    row_N: Any  # of each token, the number of its row
    texts: list[list[int]]

    def row_means(self) -> list[float]:
        """Mean log-probability of each row's answer tokens."""
        import torch

        sums = torch.zeros(int(self.row_N[-1]) + 1, dtype=torch.float64)
        counts = torch.bincount(self.row_N)
        return (sums.index_add(0, self.row_N, self.logprobs_N.double()) / counts).tolist()


def check_merged(
    folder: Path, rows: Sequence[Encoded], tokenizer: Any, exact: Device, reference: Readings, bare: Readings,
    rounded: Readings | None, stop_ids: Sequence[int],
) -> MergeCheck:  # fmt: skip
    """The folder's weights and files.

    reference: what was trained; bare: its base; both read in exact arithmetic. rounded: what was trained, in 16 bits.
    Raises: ModelError where the folder cannot be loaded.
    """
    told = wrong_files(folder, tokenizer, stop_ids)
    model, wrong_weights = load_whole(folder, exact)
    check = compare(reference, read(model, tokenizer, rows), bare, rounded)
    found = (*told, *wrong_weights, *check.faults)
    return dataclasses.replace(check, faults=found, passed=not found)


def compare(reference: Readings, merged: Readings, bare: Readings, rounded: Readings | None) -> MergeCheck:
    """The check's numbers, and what of them is out of bounds, in words."""
    error = _apart(merged, reference)
    effect = _apart(bare, reference)
    noise = _apart(rounded, reference) if rounded is not None else 0.0
    agreement, greedy = _same(merged, reference)
    least_top1, least_greedy = _same(rounded, reference) if rounded is not None else (1.0, 1.0)
    least_top1, least_greedy = LEAST_TOP1_FRAC * least_top1, LEAST_GREEDY_FRAC * least_greedy
    kl = (reference.logprobs_KV.exp() * (reference.logprobs_KV - merged.logprobs_KV)).sum(-1).clamp(min=0).mean()
    faults = []
    if not error <= max(ERROR_SHARE * effect, min(NEGLIGIBLE, effect / 2)):
        faults.append(f"log-probabilities are off by {error:.2g}, and training changed them by {effect:.2g}")
    if rounded is not None and error > max(ERROR_TIMES * noise, NEGLIGIBLE):
        faults.append(f"log-probabilities are off by {error:.2g}, over {ERROR_TIMES:g} times rounding ({noise:.2g})")
    if effect == 0 or effect < EFFECT_TIMES * noise:
        faults.append(
            f"training changed log-probabilities by {effect:.2g}, under {EFFECT_TIMES:g} times rounding ({noise:.2g}): "
            "merged and bare weights cannot be told apart"
        )
    if agreement < least_top1:
        faults.append(f"the greatest token is the same at {agreement:.1%}, less than {least_top1:.1%}")
    if greedy < least_greedy:
        faults.append(f"the greedy answer is the same for {greedy:.0%} of rows, less than {least_greedy:.0%}")
    return MergeCheck(
        num_tokens=len(reference.logprobs_N),
        mean_abs_logprob_diff=error,
        top1_agreement_frac=agreement,
        adapter_effect=effect,
        greedy_match_frac=greedy,
        passed=not faults,
        kl=float(kl),
        rounding_noise=noise,
        faults=tuple(faults),
    )


def _apart(a: Readings, b: Readings) -> float:
    return float((a.logprobs_N - b.logprobs_N).abs().mean())


def _same(a: Readings, b: Readings) -> tuple[float, float]:
    """Shares of tokens with the same greatest one, and of rows with the same greedy answer."""
    same = sum(x == y for x, y in zip(a.texts, b.texts, strict=True))
    return float((a.top1_N == b.top1_N).double().mean()), same / max(len(b.texts), 1)


def wrong_files(folder: Path, tokenizer: Any, stop_ids: Sequence[int]) -> list[str]:
    """What of configuration, tokenizer, template and end tokens is not what was trained with, in words."""
    from transformers import AutoTokenizer

    config = read_json(folder / "config.json")
    found = []
    if config.get("quantization_config") or config.get("text_config", {}).get("quantization_config"):
        found.append("config.json holds a quantization_config, and the weights are not quantised")
    try:
        own = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        return [*found, f"the tokenizer does not load: {str(error).splitlines()[0]}"]
    if _print(own) != _print(tokenizer):
        found.append("the tokenizer is another than the one trained with")
    if own.chat_template != tokenizer.chat_template:
        found.append("the chat template is another than the one trained with")
    generation = folder / "generation_config.json"
    stops = read_json(generation).get("eos_token_id") if generation.is_file() else None
    missing = set(stop_ids) - set(stops if isinstance(stops, list) else [stops])
    if missing:
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(missing)))
        found.append(f"generation_config.json does not stop at {names}, where answers ended in training")
    return found


def _print(tokenizer: Any) -> str:
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return hashlib.sha256(str(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
    rules = json.loads(core.to_str())
    kept = {name: part for name, part in rules.items() if name not in ("padding", "truncation")}  # of the last call
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def load_whole(folder: Path, device: Device) -> tuple[Any, list[str]]:
    """The model, and which tensors its files lack or have too many: transformers fills those in with random numbers.

    Raises: ModelError.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with quiet_loading():
            config = AutoConfig.from_pretrained(str(folder))
            if hasattr(config, "quantization_config"):  # told by wrong_files; with it, nothing would load
                del config.quantization_config
            model, told = AutoModelForCausalLM.from_pretrained(
                str(folder), config=config, dtype=getattr(torch, device.dtype), attn_implementation="sdpa",
                output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"the merged weights in {folder} do not load: {str(error).splitlines()[0]}") from error
    model.to("cuda:0" if device.kind == "cuda" else device.kind).requires_grad_(False)
    found = [
        f"{words} {_few(told[key])}"
        for key, words in (("missing_keys", "its files lack"), ("unexpected_keys", "its files have beside the model's"))
        if told.get(key)
    ]
    return model.eval(), found


def _few(names: Any) -> str:
    every = sorted(map(str, names))
    return ", ".join(every[:3]) + (f" and {len(every) - 3} more" if len(every) > 3 else "")


def read(model: Any, tokenizer: Any, rows: Sequence[Encoded], *, texts: bool = True) -> Readings:
    """Log-probabilities and greatest tokens at every answer token, and greedy answers to the first rows."""
    import torch

    logprobs, top1, whole, numbers, num_kept, first = [], [], [], [], 0, 0
    with torch.no_grad():
        for batch in _batches(rows):
            tensors = on_device(collate(batch, tokenizer.pad_token_id), model.device)
            logprobs_NV = answer_logits(model, tensors, path=FULL).float().log_softmax(-1)
            logprobs.append(logprobs_NV.gather(1, tensors["targets"][:, None]).squeeze(1).cpu())
            top1.append(logprobs_NV.argmax(-1).cpu())
            whole.append(logprobs_NV[: KL_TOKENS - num_kept].cpu())
            num_kept += len(whole[-1])
            row_N = torch.empty_like(tensors["entry_paths"])
            row_N[tensors["entries"]] = tensors["entry_paths"]
            numbers.append(row_N.cpu() + first)
            first += len(batch)
    answers = greedy_answers(model, tokenizer, rows[:GREEDY_ROWS]) if texts else []
    return Readings(torch.cat(logprobs), torch.cat(top1), torch.cat(whole), torch.cat(numbers), answers)


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


def greedy_answers(model: Any, tokenizer: Any, rows: Sequence[Encoded]) -> list[list[int]]:
    """Greedy answers, as long as the longest expected answer and a little more."""
    answers = decode_greedy(
        model,
        [row.ids[: row.num_prompt_tokens] for row in rows],
        stop_ids=stop_token_ids(tokenizer, model),
        pad_id=tokenizer.pad_token_id,
        max_new_tokens=max(len(row.ids) - row.num_prompt_tokens for row in rows) + GREEDY_MARGIN_TOKENS,
    )
    return [tokens for tokens, _ in answers]
