"""What training one model takes on one kind of machine, from a sample of the rows, for machines that are elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..config import RunConfig
from ..plan.memory import MemoryPrediction, num_trained_params, predict_memory
from ..plan.parallel import FSDP
from ..plan.settings import num_epochs_of, resolve_settings
from ..plan.shapes import ModelShape
from ..plan.throughput import predict_time
from ..records import Device, Estimate, TokenCounts, TrainSettings
from ..units import SECONDS_PER_HOUR

CHECKPOINT_BYTES = 12  # of a parameter that learns, with its two moments
MAX_ROWS = 2000  # lengths looked at; the rest of the rows are like them


@dataclass(frozen=True, slots=True)
class Rows:
    """Lengths in tokens of rows and how they are known. counts: of at most MAX_ROWS training rows.

    error: what the true number of tokens is to the counted one, low and high; 1 where a tokenizer counted.
    """

    counts: TokenCounts
    num_train: int
    num_dev: int
    num_eval: int
    error: Estimate
    how: str

    @property
    def train_tokens(self) -> Estimate:
        """Tokens of the training rows, once."""
        lengths = self.counts.lengths
        return self.error.scaled(sum(lengths) / len(lengths) * self.num_train)


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds and bytes of a fine-tune by one method on one GPU, or processor."""

    model: str
    method: str
    device: Device
    settings: TrainSettings
    memory: MemoryPrediction
    train_s: Estimate  # a learning-rate search, loading and evaluations during training included
    eval_s: Estimate
    reason: str
    checkpoint_bytes: int = 0  # what is trained and Adam's two moments of it, in float32

    @property
    def precision(self) -> str:
        """What the weights are held in."""
        return {"qlora": "NF4", "full": "float32"}.get(self.method, self.device.dtype)

    @property
    def hours(self) -> Estimate:
        """Training and the held-out evaluation."""
        seconds = (getattr(self.train_s, k) + getattr(self.eval_s, k) for k in ("value", "low", "high"))
        return Estimate(*(s / SECONDS_PER_HOUR for s in seconds))


def tiled(lengths: Sequence[int], num: int) -> tuple[int, ...]:
    """So many lengths, the given ones over and over."""
    if not lengths or num <= 0:
        return ()
    times, rest = divmod(num, len(lengths))
    return (*lengths,) * times + tuple(lengths[:rest])


def methods_of(config: RunConfig, device: Device) -> tuple[str, ...]:
    """The run file's method, or both; NF4 does not train on MPS."""
    if config.method != "auto":
        return (config.method,)
    return ("lora", "qlora") if device.kind != "mps" else ("lora",)


def work_of(config: RunConfig, model: str, shape: ModelShape, rows: Rows, device: Device, method: str) -> Work:
    """Predict one fine-tune. Raises: ModelError for a given seq_len past the context."""
    given = config.train
    if given.num_epochs is None:  # by all rows, not by those looked at
        epochs = num_epochs_of(shape, rows.num_train, given.objective)
        given = given.model_copy(update={"num_epochs": epochs})
    asked = config.model_copy(update={"method": method, "train": given})
    settings = resolve_settings(asked, shape, rows.counts, device)
    memory = predict_memory(
        shape,
        method=method,
        lora_rank=settings.lora_rank,
        micro_batch_tokens=settings.micro_batch_tokens,
        device=device,
        loss_frac=rows.counts.loss_frac,
        row_tokens=settings.seq_len,
        num_recomputed=settings.recompute or 0,
        num_shards=settings.num_processes if settings.parallelism == FSDP else 1,
        dora=settings.dora,
    )
    time = predict_time(shape, settings, rows.counts, device, num_dev_rows=rows.num_dev)
    more = rows.num_train / len(rows.counts.prompt)
    speed, num_tokens = time.tokens_per_s, time.num_train_tokens
    # Steps grow with the rows; loading and dev evaluations do not.
    steps = Estimate(num_tokens / speed.value, num_tokens / speed.high, num_tokens / speed.low)
    search = time.search_s or Estimate(0.0, 0.0, 0.0)
    searched = 1.0 if config.train.search_tokens else more  # a number of tokens, or a share of training's
    train = {
        k: getattr(time.train_s, k)
        + getattr(steps, k) * (more * getattr(rows.error, k) - 1)
        + getattr(search, k) * searched
        for k in ("value", "low", "high")
    }
    return Work(
        model=model,
        method=method,
        device=device,
        settings=replace(settings, method=method),
        memory=memory,
        train_s=Estimate(**train),
        eval_s=Estimate(*(getattr(time.eval_s, k) * getattr(rows.error, k) for k in ("value", "low", "high"))),
        reason=time.reason,
        checkpoint_bytes=CHECKPOINT_BYTES * num_trained_params(shape, method, settings.lora_rank, settings.dora),
    )
