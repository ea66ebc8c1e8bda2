"""What stages hand to each other: frozen dataclasses, plain enough to be written as JSON.

A stage is a function from records to records. It neither prints nor writes the ledger.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .messages import Example as Example
from .messages import Message as Message
from .messages import Prompt as Prompt
from .messages import ToolCall as ToolCall
from .messages import content_id as content_id
from .messages import example_from_json as example_from_json
from .messages import example_to_json as example_to_json
from .messages import message_to_json as message_to_json
from .units import Estimate as Estimate
from .units import summed as summed

# progress(label, done, total): total None when unknown. Stages call it; the command line draws it.
# What follows NOTE in a label changes as the work goes on, such as what it has cost so far.
NOTE = " | "
Progress = Callable[[str, int, int | None], None]


def no_progress(label: str, done: int, total: int | None) -> None:
    """The Progress that draws nothing."""


# log(line): one line for the person who watches.
Log = Callable[[str], None]


def no_log(line: str) -> None:
    """The Log that says nothing."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with a source row or file. repair: safe (done), ask, drop."""

    code: str
    source: str
    line: int
    evidence: str
    repair: str = "ask"


@dataclass(frozen=True, slots=True)
class DroppedRow:
    """A row left out, whole; partner_line for duplicates; id: of the example it would have been, or empty."""

    row: Any
    source: str
    line: int
    code: str
    evidence: str
    partner_line: int | None = None
    id: str = ""


@dataclass(frozen=True, slots=True)
class Curated:
    """Result of the curate stage. counts: rows_in = rows_train + rows_dev + rows_eval + dropped."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    eval: tuple[Example, ...]
    dropped: tuple[DroppedRow, ...]
    faults: tuple[Fault, ...]
    counts: dict[str, int]
    labels: tuple[str, ...] | None  # the label set of a classification task, sorted
    notes: tuple[str, ...] = ()
    measures: dict[str, Any] = field(default_factory=dict)  # further parts of the receipt: store.MEASURES
    undesired: dict[str, tuple[Example, ...]] = field(default_factory=dict)  # under KTO, by side: train, dev, eval

    def all_rows(self, side: str) -> tuple[Example, ...]:
        """The rows of a side, undesired answers behind the others."""
        return (*getattr(self, side), *self.undesired.get(side, ()))


@dataclass(frozen=True, slots=True)
class Completion:
    """What a generator returned for one prompt."""

    text: str
    num_prompt_tokens: int
    num_completion_tokens: int
    latency_s: float
    cost_usd: float = 0.0
    stopped: bool = True  # False: cut at the token limit, or by the provider's filter
    made_at: str = ""  # when an endpoint answered, ISO 8601, UTC


# generate(prompts, progress) -> one Completion a prompt, in order.
Generate = Callable[[list[Prompt], Progress], list[Completion]]


@dataclass(frozen=True, slots=True)
class RowScore:
    """One held-out row under one arm."""

    id: str
    prompt: str
    expected: str
    output: str
    score: float
    num_prompt_tokens: int
    num_completion_tokens: int
    latency_s: float
    cost_usd: float
    failure: str | None = None  # why the output could not be scored as intended (invalid label, ...)
    cluster: str = ""  # id of the first of the held-out rows that are no draws of their own; alone: empty


@dataclass(frozen=True, slots=True)
class FarScore:
    """The score on the held-out rows that have no near-duplicate among the training rows; None if there are none."""

    num_rows: int
    score: Estimate | None


@dataclass(frozen=True, slots=True)
class ArmScore:
    """One arm (a way to answer) measured on the held-out rows."""

    arm: str  # "zero-shot shoestring-1m", "lora shoestring-3m"
    kind: str  # zero_shot, few_shot, endpoint, linear, finetune
    model: str
    metric: str
    score: Estimate
    num_rows: int
    wall_s: float
    cost_usd: float
    metrics: dict[str, float]  # every metric of the task kind, the primary one included
    interval: str  # how the interval was made: "wilson", "bootstrap"
    rows: tuple[RowScore, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    far: FarScore | None = None  # None: not known which rows are far
    ladder_low: float | None = None  # of a rung among many: the lower end at the level the ladder holds each to

    def meets(self, bar: float) -> bool:
        """Whether the lower end of the 95 % interval reaches the bar; in a ladder of many rungs a lower one."""
        return (self.score.low if self.ladder_low is None else self.ladder_low) >= bar


@dataclass(frozen=True, slots=True)
class Difference:
    """Paired difference of two arms on the same rows (a minus b)."""

    arm_a: str
    arm_b: str
    difference: Estimate
    p_value: float
    method: str


@dataclass(frozen=True, slots=True)
class Device:
    """The machine a stage runs on, or is planned for."""

    kind: str  # cpu, cuda, mps
    name: str
    memory_bytes: int  # of the accelerator, or of the host on CPU
    num_threads: int
    dtype: str  # bfloat16 or float32: what the 16-bit base is held in here
    dtype_reason: str
    num_devices: int = 1  # GPUs like it in the machine


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Token lengths of the curated rows under one rung's tokenizer, template included."""

    prompt: tuple[int, ...]  # one entry a training row
    answer: tuple[int, ...]  # end token included
    eval_prompt: tuple[int, ...]
    eval_answer: tuple[int, ...]
    rejected: tuple[int, ...] = ()  # of preference training: the answers that lost, 0 where a row is no pair
    computed_frac: float = 1.0  # computed tokens over the rows' own, where rows share beginnings (a sample)

    @property
    def paths(self) -> list[int]:
        """Longest sequence of each training row."""
        answers = self.answer if not self.rejected else map(max, self.answer, self.rejected)
        return list(map(operator.add, self.prompt, answers))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each training row: of both sides of a pair."""
        chosen = list(map(operator.add, self.prompt, self.answer))
        if not self.rejected:
            return chosen
        return [c + (p + r if r else 0) for c, p, r in zip(chosen, self.prompt, self.rejected, strict=True)]

    @property
    def loss_frac(self) -> float:
        """Share of the tokens that bear loss."""
        return (sum(self.answer) + sum(self.rejected)) / max(1, sum(self.lengths))


@dataclass(frozen=True, slots=True)
class StartAdapter:
    """An adapter that training goes on from; sha256: of its weights."""

    folder: str
    sha256: str
    lora_rank: int
    lora_alpha: float


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Every value training runs with, resolved before it starts; reasons says where each came from."""

    method: str  # lora, qlora, full
    lora_rank: int  # 0 under full
    lora_alpha: float
    learning_rate: float
    num_epochs: float
    batch_tokens: int  # padded tokens of an optimizer step, at most
    micro_batch_tokens: int  # padded tokens of one forward and backward pass, at most
    seq_len: int
    warmup_frac: float
    weight_decay: float
    max_grad_norm: float
    num_evals: int
    patience: int
    num_threads: int
    seed: int
    max_new_tokens: int
    reasons: dict[str, str]
    objective: str = "sft"  # sft: the answer; dpo, orpo: the answer over the rejected one; kto: answers marked
    dpo_beta: float = 0.1
    fp8: bool = False  # frozen base in FP8, where the card can and the loss stays the same
    recompute: int | None = None  # layers that run again in backward; None: as few as memory allows
    num_dev_rows: int = 128  # that each evaluation answers, at most
    search_tokens: int = 0  # of the search for learning_rate, which is then where it begins; 0: no search
    engine: str = "shoestring"  # whose trainer: ours, or trl, unsloth, axolotl in a process of their own
    num_processes: int = 1  # that train together, one a GPU
    parallelism: str = "none"  # ddp: each holds the base; fsdp: it lies in shards on all of them
    checkpoints: str = ""  # a second place for them: a folder or an fsspec URL
    interruptions_per_hour: float = 1 / 24  # expected; how often checkpoints are taken follows
    orpo_lambda: float = 0.1
    kto_beta: float = 0.1
    stop_on: str = "task"  # task: the task metric on dev rows; preference: the share of dev pairs preferred
    start: str = ""  # folder of the adapter that training goes on from, "" for a fresh one
    start_sha256: str = ""  # of its weights
    dora: bool = False  # adapters learn a direction, and a length of each output row
    rslora: bool = False  # adapters are scaled by alpha over the root of the rank, not over the rank


@dataclass(frozen=True, slots=True)
class RungPlan:
    """Prediction for one rung, made before any money is spent."""

    model: str
    method: str  # lora, qlora, full
    num_params: int
    num_adapter_params: int  # that learn; all of them under full
    device: Device
    settings: TrainSettings
    peak_bytes: Estimate
    device_bytes: int
    verdict: str  # fits, tight, does_not_fit
    train_s: Estimate
    eval_s: Estimate
    num_train_tokens: int
    num_steps: int
    price_usd_per_hour: float
    price_source: str
    cost_usd: Estimate
    parts_bytes: dict[str, int]
    reason: str  # of the verdict
    search_s: Estimate | None = None  # of a learning-rate search before training; its cost is in cost_usd
    derived_s: dict[str, float] = field(default_factory=dict)  # train, eval: before anything learned or probed
    timed: str = ""  # where the seconds come from, if not from the priors alone
    serve_usd: Estimate | None = None  # of serving the run file's traffic over its months; None: no traffic, no route
    is_probed: bool = False  # peak_bytes and the seconds are of steps timed on this machine


@dataclass(frozen=True, slots=True)
class Plan:
    """The ladder in order of cost."""

    rungs: tuple[RungPlan, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainResult:
    """One finished fine-tune."""

    model: str
    method: str
    adapter_dir: str  # what was trained, relative to the run folder: the adapter, or the whole model under full
    num_steps: int
    stopped_early: bool
    best_step: int
    dev_metric: float | None
    wall_s: float  # over all sessions, interrupted ones included
    peak_bytes: int
    num_train_tokens: int  # of the rows seen, padding excluded, shared tokens as often as rows have them
    num_loss_tokens: int
    num_computed_tokens: int  # run forward and backward: padding included, shared tokens once
    final_loss: float
    history: tuple[dict[str, float], ...]  # step, loss, learning_rate, [dev_metric, dev_loss]
    settings: dict[str, Any]  # what was really used, with devices, dtypes and library versions


@dataclass(frozen=True, slots=True)
class MergeCheck:
    """Merged weights against base + adapter (under full, the trained weights), on held-out prompts, after reload."""

    num_tokens: int
    mean_abs_logprob_diff: float
    top1_agreement_frac: float
    adapter_effect: float  # mean |Δ log-probability| of adapter against bare base, same tokens
    greedy_match_frac: float
    passed: bool
    kl: float = 0.0
    rounding_noise: float = 0.0  # mean |Δ log-probability| of what was trained in 16 bits; 0: not measured
    faults: tuple[str, ...] = ()
    candidates: dict[str, Any] = field(default_factory=dict)  # of an NF4 base: both merges' scores, which is shipped


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer: which arm, and why."""

    met: bool
    arm: str | None
    kind: str  # prompt, few_shot, linear, finetune, none
    bar: float
    score: Estimate | None
    reason: str
    next_step: str
    advice: str = ""  # prompt, fix_prompt, use_rag, use_linear, fine_tune, both, more_data, cannot_tell
    evidence: dict[str, Any] = field(default_factory=dict)  # decide.evidence, and its lines


def to_json(record: Any) -> Any:
    """Nested records as JSON-ready dicts and lists; messages in OpenAI's form."""
    if isinstance(record, Message):
        return message_to_json(record)
    if isinstance(record, Example):
        return example_to_json(record)
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_json(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, dict):
        return {str(k): to_json(v) for k, v in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_json(v) for v in record]
    return record


def _estimate(row: dict[str, float]) -> Estimate:
    return Estimate(row["value"], row["low"], row["high"])


def arm_from_json(row: dict[str, Any]) -> ArmScore:
    """The inverse of to_json for an ArmScore."""
    rows = tuple(RowScore(**r) for r in row["rows"])
    far = row.get("far")
    if far is not None:
        far = FarScore(far["num_rows"], None if far["score"] is None else _estimate(far["score"]))
    return ArmScore(**{**row, "score": _estimate(row["score"]), "rows": rows, "far": far})


def plan_from_json(row: dict[str, Any]) -> Plan:
    """The inverse of to_json for a Plan."""
    estimates = ("peak_bytes", "train_s", "eval_s", "cost_usd")
    rungs = []
    for rung in row["rungs"]:
        parts: dict[str, Any] = {k: _estimate(rung[k]) for k in estimates}
        for key in ("search_s", "serve_usd"):
            parts[key] = _estimate(rung[key]) if rung.get(key) else None
        parts["device"] = Device(**rung["device"])
        parts["settings"] = TrainSettings(**rung["settings"])
        rungs.append(RungPlan(**{**rung, **parts}))
    return Plan(tuple(rungs), tuple(row["notes"]))


def train_from_json(row: dict[str, Any]) -> TrainResult:
    """The inverse of to_json for a TrainResult."""
    return TrainResult(**{**row, "history": tuple(row["history"])})
