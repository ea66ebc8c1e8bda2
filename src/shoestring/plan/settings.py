"""Every value training runs with, resolved before it starts, each with where it came from.

Sources: LoRA Without Regret (Schulman et al., Thinking Machines, 2025): all linear layers, learning rate
ten times that of full fine-tuning and nearly independent of rank, rank by the size of the task, small
batches. Tinker cookbook, hyperparam_utils: the learning rate by hidden size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from ..config import PREFERENCES, MarketConfig, RunConfig, TaskConfig
from ..errors import ModelError
from ..records import Device, StartAdapter, TokenCounts, TrainSettings
from ..units import count, round_up
from . import search
from .dev_rows import MAX_DEV_ROWS
from .memory import MemoryPrediction, predict_memory
from .parallel import DDP, FSDP, choose_num_processes, choose_parallelism
from .shapes import ModelShape

NARROW_KINDS = ("classify", "extract")
RANK_NARROW, RANK_WIDE = 16, 32
ALPHA_PER_RANK = 2.0

# 5e-5 is the full fine-tuning rate at hidden 2000; x 10 for LoRA; exponent by architecture.
LR_FULL, LR_LORA_FACTOR, LR_HIDDEN = 5e-5, 10.0, 2000
LR_EXPONENT = {"llama": 0.781, "qwen2": 0.0775, "qwen3": 0.0775, "qwen3_5": 0.0775}

# Of the supervised rate, and where that is from.
LR_OBJECTIVE_FRAC = {
    "dpo": (1 / 40, "as between TRL's two LoRA examples (2e-4, 5e-6)"),
    "kto": (1 / 40, "as for dpo"),
    "orpo": (0.4, "as 8e-6 of its paper (2403.07691) is to the 2e-5 of full supervised fine-tuning"),
}
SEARCHED_FULL_PARAMS = 1_000_000_000
NO_ADAPTER = "no adapter: every weight is trained"

# Random Llama of 104M on banking77, one core, steps of 480 and 1,900 example tokens (docs/results.md, 2026-11-28).
NF4_SLOWER = "NF4 would only make steps longer (by 5 % where measured)"

TINY_PARAMS = 100_000_000  # below: a demonstration model, which learns little a step
EPOCHS, EPOCHS_TINY_MIN, EPOCHS_TINY_MAX = 3.0, 3.0, 10.0
TINY_STEPS = 2500  # aimed at; early stopping guards against too many

ROWS_PER_STEP_FEW, ROWS_PER_STEP_MANY = 16, 32
MANY_ROWS = 2000  # from here a step holds ROWS_PER_STEP_MANY rows
ROUND_TOKENS = 32  # lengths are rounded up to this
MIN_BATCH_TOKENS = 512

WARMUP_FRAC, WEIGHT_DECAY, MAX_GRAD_NORM = 0.05, 0.0, 1.0
ANSWER_MARGIN_FRAC, ANSWER_MARGIN_TOKENS, MAX_NEW_TOKENS_CAP = 0.15, 4, 1024

INTERRUPTIONS_SPOT = 0.3  # as market/terms.csv, hazard_per_h
INTERRUPTIONS_OWN = 1 / 24

REGRET = "LoRA Without Regret (Thinking Machines, 2025)"
GIVEN = "given in the run file"
SEARCH = "search"  # train.learning_rate


def median(lengths: Sequence[int]) -> int:
    """Upper median."""
    return sorted(lengths)[len(lengths) // 2]


def resolve_settings(
    config: RunConfig, shape: ModelShape, counts: TokenCounts, device: Device, start: StartAdapter | None = None
) -> TrainSettings:
    """Derive what the run file leaves open; values it gives win. start: the adapter that training goes on from.

    Raises: ModelError where a given value cannot hold (seq_len past the model's context, another rank than start's).
    """
    if not counts.prompt:
        raise ModelError(f"{shape.name}: no training row to derive settings from; see data/dropped.jsonl for why")
    given = config.train
    lengths, loss_frac = counts.lengths, counts.loss_frac
    value: dict[str, Any] = {}
    reasons: dict[str, str] = {}

    def put(key: str, derived: Any, reason: str) -> Any:
        turned = getattr(given, key, None) if key in given.model_fields_set else None
        turned = None if turned == SEARCH else turned
        value[key], reasons[key] = (derived, reason) if turned is None else (turned, GIVEN)
        return value[key]

    narrow = config.task.kind in NARROW_KINDS
    usual_rank, is_full = RANK_NARROW if narrow else RANK_WIDE, config.method == "full"
    rank = put(
        "lora_rank",
        0 if is_full else usual_rank,
        NO_ADAPTER
        if is_full
        else f"{config.task.kind} is a {'narrow' if narrow else 'broad'} task: "
        f"{RANK_NARROW} suffices for narrow ones, else {RANK_WIDE}; {REGRET}",
    )
    put("rslora", given.rslora, "default: off")
    put("dora", given.dora, "default: off, for what it costs in time")
    put("lora_alpha", *_lora_alpha(rank, usual_rank, value["rslora"]))
    if start is not None:
        _as_started(given, start, value, reasons)
        rank = value["lora_rank"]
    objective = given.objective
    rate, rate_reason = _learning_rate(shape, objective, config.method)
    searches = given.learning_rate == SEARCH
    if searches and is_full and shape.num_params > SEARCHED_FULL_PARAMS:
        raise ModelError(
            f"train.learning_rate: search keeps whole models and their moments of each rate, and {shape.name} has "
            f"{count(shape.num_params)} parameters ({count(SEARCHED_FULL_PARAMS)} at most under method: full); give a "
            "number, or search with method: lora and give a tenth of what it finds"
        )
    put("learning_rate", rate, f"{rate_reason}; the search begins around it" if searches else rate_reason)

    rows_per_step = _rows_per_step(len(lengths))
    put("num_epochs", *_epochs(shape, len(lengths), rows_per_step, objective))
    seq_len = put("seq_len", *_seq_len(shape, counts.paths))
    if seq_len > shape.context_tokens:
        raise ModelError(
            f"train.seq_len = {seq_len} passes the context of {shape.name}, {shape.context_tokens} tokens; "
            f"give at most {shape.context_tokens} or leave it out"
        )
    batch = put(
        "batch_tokens",
        max(MIN_BATCH_TOKENS, seq_len, round_up(rows_per_step * median(lengths), ROUND_TOKENS)),
        f"about {rows_per_step} rows of the median {median(lengths)} tokens"
        + ("" if is_full else f"; LoRA tolerates large batches worse than full fine-tuning; {REGRET}"),
    )
    training_tokens = round(sum(min(n, seq_len * (2 if counts.rejected else 1)) for n in lengths) * value["num_epochs"])
    tokens, search_reason = search.default_tokens(training_tokens, batch)
    put(
        "search_tokens", tokens if searches else 0, search_reason if searches else "train.learning_rate is not searched"
    )
    is_ours = config.engine == "shoestring"
    num = put("num_processes", *(choose_num_processes(device) if is_ours else (1, "the engine's own")))
    row = min(seq_len, batch)
    predict = functools.partial(
        predict_memory, shape, lora_rank=rank, device=device, loss_frac=loss_frac, dora=value["dora"]
    )
    method, reasons["method"] = choose_method(config.method, predict, row, device)

    def in_shards(num_shards: int) -> MemoryPrediction:
        sharded = "lora" if config.method == "auto" else method  # NF4 that fits no card is a last resort
        return predict(method=method if num_shards == 1 else sharded, micro_batch_tokens=row, num_shards=num_shards)

    if num > 1 and given.parallelism == "auto" and (is_full or value["dora"]):
        value["parallelism"], reasons["parallelism"] = DDP, "shards are of a frozen base without DoRA"
    else:
        value["parallelism"], reasons["parallelism"] = choose_parallelism(given.parallelism, num, in_shards)
    num_shards = num if value["parallelism"] == FSDP else 1
    if num_shards > 1 and config.method == "auto":
        method, reasons["method"] = "lora", f"in {num} shards: {in_shards(num).reason}"
    predict = functools.partial(predict, method=method, row_tokens=seq_len, num_shards=num_shards)
    put("micro_batch_tokens", *_micro_batch(predict, seq_len, batch))
    if value["micro_batch_tokens"] > batch:
        value["micro_batch_tokens"] = batch
        reasons["micro_batch_tokens"] += f"; held to batch_tokens = {batch}"
    put("recompute", *_recompute(predict, shape.num_layers, value["micro_batch_tokens"]))
    put("fp8", given.fp8, "default: off, as it was not yet measured on a card")
    put("num_threads", device.num_threads, "threads of the device")
    put("num_dev_rows", given.num_dev_rows or MAX_DEV_ROWS, "held to a share of training's time by plan.dev_rows")
    for key in ("patience", "num_evals"):
        put(key, getattr(given, key), "default: training stops when the dev metric no longer rises")
    put("objective", given.objective, "default: the answer itself is learned")
    for key in ("dpo_beta", "orpo_lambda", "kto_beta"):
        put(key, getattr(given, key), "the paper's and TRL's default")
    put("stop_on", *_stop_on(config))
    value["start"], value["start_sha256"] = (start.folder, start.sha256) if start else ("", "")
    reasons["start"] = reasons["start_sha256"] = GIVEN if start else "a fresh adapter"
    put("checkpoints", given.checkpoints, "default: the run folder alone")
    value["interruptions_per_hour"], reasons["interruptions_per_hour"] = interruptions(config.market, device)
    reasons["warmup_frac"] = f"{WARMUP_FRAC:.0%} of the steps, then cosine to zero"
    reasons["weight_decay"] = (
        "none: it would pull the weights of the base towards zero" if is_full else f"none on adapters; {REGRET}"
    )
    reasons["max_grad_norm"] = "the usual clip; a non-finite norm stops training"
    reasons["seed"] = GIVEN if "seed" in config.model_fields_set else "default"
    reasons["engine"] = GIVEN if "engine" in config.model_fields_set else "default"
    max_new, reasons["max_new_tokens"] = answer_limit(config.task, counts.answer, shape.context_tokens, shape.name)
    return TrainSettings(
        method=method,
        warmup_frac=WARMUP_FRAC,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
        seed=config.seed,
        max_new_tokens=max_new,
        engine=config.engine,
        reasons=reasons,
        **value,
    )


def interruptions(market: MarketConfig, device: Device) -> tuple[float, str]:
    """Interruptions expected in an hour of training, and why so many.

    A rented card may be a spot machine, and checkpoints of adapters are cheap: too many cost less than too few.
    """
    given = market.interruptions_per_hour
    if given is not None:
        return given[1] if isinstance(given, list) else given, GIVEN
    if device.kind == "cuda":
        return (
            INTERRUPTIONS_SPOT,
            "a rented card may be a spot machine: V100 spot traces of AWS, 2023 (Can't Be Late, NSDI 2024)",
        )
    return INTERRUPTIONS_OWN, "assumption: a machine of one's own is stopped once a day"


def _as_started(given: Any, start: StartAdapter, value: dict[str, Any], reasons: dict[str, str]) -> None:
    """Rank and scale are those of the adapter training goes on from. Raises: ModelError where others are given."""
    for key in ("lora_rank", "lora_alpha"):
        own, turned = getattr(start, key), getattr(given, key)
        if turned not in (None, own):
            raise ModelError(
                f"train.{key} = {turned:g}, and the adapter of train.start ({start.folder}) has {own:g}; leave it out"
            )
        value[key], reasons[key] = own, "of the adapter in train.start"


def _stop_on(config: RunConfig) -> tuple[str, str]:
    kind, objective = config.task.kind, config.train.objective
    if objective in PREFERENCES and kind == "chat":
        return "preference", f"{objective} on {kind}: likeness to the chosen answer says little of which is preferred"
    return "task", f"the metric of {kind} is what the bar is set on"


def usual_learning_rate(model_type: str, hidden: int, objective: str = "sft", method: str = "lora") -> float:
    """Peak rate for a model of this type and hidden size; of adapters ten times that of full fine-tuning."""
    factor = 1.0 if method == "full" else LR_LORA_FACTOR
    rate = LR_FULL * factor * (LR_HIDDEN / hidden) ** LR_EXPONENT.get(model_type, 0.0)
    return rate * LR_OBJECTIVE_FRAC.get(objective, (1.0, ""))[0]


def _lora_alpha(rank: int, usual_rank: int, rslora: bool) -> tuple[float, str]:
    """Source of rsLoRA: Kalajdzievski 2023, arXiv 2312.03732, theorem 3.2."""
    if not rank:
        return 0.0, NO_ADAPTER
    if rslora:
        alpha = float(f"{ALPHA_PER_RANK * math.sqrt(usual_rank):.6g}")
        return alpha, (
            f"{ALPHA_PER_RANK:g} x root of {usual_rank}: at that rank alpha / root of rank is the scale of LoRA, "
            f"{ALPHA_PER_RANK:g}, which the learning rate is set for"
        )
    return ALPHA_PER_RANK * rank, f"{ALPHA_PER_RANK:g} x rank, the convention the learning rate is set for"


def _learning_rate(shape: ModelShape, objective: str, method: str) -> tuple[float, str]:
    exponent = LR_EXPONENT.get(shape.model_type, 0.0)
    rate = usual_learning_rate(shape.model_type, shape.hidden, objective, method)
    width = f"({LR_HIDDEN}/{shape.hidden})^{exponent:g} for {shape.model_type}"
    if method == "full":
        reason = f"{LR_FULL:g} x {width}; a tenth of LoRA's: {REGRET}"
    else:
        reason = (
            f"{LR_FULL:g} x {LR_LORA_FACTOR:g} x {width}; ten times full fine-tuning, Tinker cookbook hyperparam_utils"
        )
    if objective in LR_OBJECTIVE_FRAC:
        frac, why = LR_OBJECTIVE_FRAC[objective]
        reason += f"; x {frac:g} for {objective}, {why}"
    return float(f"{rate:.3g}"), reason


def num_epochs_of(shape: ModelShape, num_rows: int, objective: str) -> float:
    """Passes over so many rows where the run file leaves it open."""
    return _epochs(shape, num_rows, _rows_per_step(num_rows), objective)[0]


def _rows_per_step(num_rows: int) -> int:
    return ROWS_PER_STEP_MANY if num_rows >= MANY_ROWS else ROWS_PER_STEP_FEW


def _epochs(shape: ModelShape, num_rows: int, rows_per_step: int, objective: str) -> tuple[float, str]:
    if objective in ("dpo", "kto"):
        return 1.0, "one pass over the answers, TRL's default is three: more passes drift from the base"
    if shape.num_params >= TINY_PARAMS:
        return EPOCHS, "one to three passes are usual; early stopping guards against the third"
    wanted = math.ceil(TINY_STEPS * rows_per_step / num_rows)
    epochs = min(EPOCHS_TINY_MAX, max(EPOCHS_TINY_MIN, wanted))
    return epochs, (
        f"a demonstration model of {count(shape.num_params)} parameters learns little a step: "
        f"about {TINY_STEPS} steps, {EPOCHS_TINY_MIN:g} to {EPOCHS_TINY_MAX:g} passes, guarded by early stopping"
    )


def _seq_len(shape: ModelShape, lengths: Sequence[int]) -> tuple[int, str]:
    longest = max(lengths)
    if longest > shape.context_tokens:
        too_long = sum(n > shape.context_tokens for n in lengths)
        return shape.context_tokens, (
            f"the context of {shape.name}; {too_long} of {len(lengths)} rows are longer and cannot be trained on"
        )
    return min(shape.context_tokens, round_up(longest, ROUND_TOKENS)), (
        f"the longest training row has {longest} tokens; context {shape.context_tokens}"
    )


def choose_method(
    asked: str, predict: Callable[..., MemoryPrediction], row_tokens: int, device: Device
) -> tuple[str, str]:
    """lora where the 16-bit base fits with one longest row, else qlora; with the reason.

    predict: predict_memory with all but the method and the micro-batch given. Never full: LoRA learns narrow tasks as
    well (LoRA Without Regret) on a third of the memory and two thirds of the products.
    """
    if asked != "auto":
        return asked, GIVEN
    lora = predict(method="lora", micro_batch_tokens=row_tokens)
    if lora.verdict != "does_not_fit":
        return "lora", f"the {device.dtype} base fits, and {NF4_SLOWER}: {lora.reason}"
    if device.kind == "mps":
        return "lora", f"the base does not fit and NF4 does not run on mps: {lora.reason}"
    return "qlora", f"the {device.dtype} base does not fit ({lora.reason}), NF4 holds a quarter"


def _micro_batch(predict: Callable[..., MemoryPrediction], seq_len: int, batch: int) -> tuple[int, str]:
    """Halve the batch until the prediction's high end fits, but never below one longest row."""
    micro = max(batch, seq_len)
    while True:
        predicted = predict(micro_batch_tokens=micro)
        if predicted.verdict == "fits":
            whole = "the whole batch at once" if micro >= batch else "as much of the batch as fits"
            return micro, f"{whole}: {predicted.reason}"
        if micro <= seq_len:
            return micro, f"one longest row: {predicted.reason}"
        micro = max(seq_len, round_up(micro / 2, ROUND_TOKENS))


def _recompute(
    predict: Callable[..., MemoryPrediction], num_layers: int, micro_batch_tokens: int
) -> tuple[int | None, str]:
    """As few layers as make the smallest pass fit; None where none is needed, or all are not enough."""
    for num in range(num_layers + 1):
        predicted = predict(micro_batch_tokens=micro_batch_tokens, num_recomputed=num)
        if predicted.verdict != "does_not_fit":
            break
    else:
        num = 0
    again = "as few layers as memory allows, measured before the first step"
    return (num, f"{again}; {predicted.reason}") if num else (None, again)


def answer_limit(task: TaskConfig, answer_tokens: Sequence[int], context_tokens: int, name: str) -> tuple[int, str]:
    """Most tokens generated for an answer, of prompting arms and fine-tunes alike, and why.

    answer_tokens: lengths of the training answers under the model's tokenizer, end token included.
    """
    if task.max_new_tokens is not None:
        return task.max_new_tokens, GIVEN
    longest = max(answer_tokens)
    wanted = round_up(longest * (1 + ANSWER_MARGIN_FRAC) + ANSWER_MARGIN_TOKENS, 4)
    limit = min(MAX_NEW_TOKENS_CAP, context_tokens - 1)  # a long prompt shortens its own answer alone
    if wanted <= limit:
        return wanted, f"the longest training answer has {longest} tokens; {ANSWER_MARGIN_FRAC:.0%} margin"
    why = f"the cap of {MAX_NEW_TOKENS_CAP}" if limit == MAX_NEW_TOKENS_CAP else f"the context of {name}"
    return limit, f"the longest training answer has {longest} tokens; held to {why}"
