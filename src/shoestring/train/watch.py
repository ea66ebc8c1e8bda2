"""What happens around each optimizer step: the step's record, evaluation, early stop, checkpoint, interruption.

Everything a later session needs is in `Watched`, written into each checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import Interrupted, TrainingError
from ..files import sync_file, sync_folder, write_jsonl
from ..records import Progress
from .schedule import Schedule
from .snapshot import TAKEN, Copier, Snapshot, Uncopied, take

if TYPE_CHECKING:
    from .saving import Saver

T = TypeVar("T")
STEPS_LOOKED_AT = 20  # for how long the next one may take
WEIGHTS, FULL_WEIGHTS = "adapter_model.safetensors", "model.safetensors"


@dataclass
class Watched:
    """State of a training across sessions."""

    fingerprint: str
    wall_s: float = 0.0
    peak_bytes: int = 0
    evals: list[dict[str, float]] = field(default_factory=list)  # step, and what evaluate gives
    best_step: int = 0
    best_sha256: str = ""  # of its weights
    best_metric: float = -math.inf
    best_loss: float = math.inf
    num_worse: int = 0  # evaluations since the best one
    stopped_early: bool = False
    finished: bool = False
    passes: dict[str, Any] = field(default_factory=dict)  # memory_policy.Candidate: how steps are cut
    eval_s: float = 0.0  # of all evaluations
    tracking: dict[str, str] = field(default_factory=dict)  # run ids, by tracker
    saving: dict[str, Any] = field(default_factory=dict)  # interval.Costs
    step_s: float = 0.0  # longest of the last steps

    def to_json(self) -> dict[str, Any]:
        return {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Watched:
        given = {k: v for k, v in row.items() if v is not None}
        return cls(**given)


class Signals:
    """SIGINT and SIGTERM ask for a stop at the next step's end; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.received: str | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[Signals]:
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        outer = getattr(before[signal.SIGTERM], "__self__", None)
        if isinstance(outer, Signals):  # one that came before this part of the work
            self.received = self.received or outer.received
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.received == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name


@dataclass
class Watch:
    """The decisions at the end of each step; `callback` ties them to transformers.Trainer."""

    model_name: str
    out_dir: Path
    schedule: Schedule
    state: Watched
    eval_steps: frozenset[int]
    patience: int
    evaluate: Callable[[], dict[str, float]]  # dev_metric, dev_loss, and dev_preference of preference objectives
    peak_bytes: Callable[[], int]
    should_stop: Callable[[float], Exception | None]  # given the wall seconds at the end of the next step and its save
    signals: Signals
    saver: Saver
    progress: Progress
    report: Callable[[dict[str, Any]], None] = lambda line: None  # to trackers
    stop_on: str = "dev_metric"  # the measure by which the best adapter is kept
    skips_overflow: bool = False  # float16: the gradient scaler leaves out steps whose gradient overflows
    started_s: float = field(default_factory=time.perf_counter)
    leaving: BaseException | None = None

    def __post_init__(self) -> None:
        self.before_s = self.state.wall_s
        self.step_s = time.perf_counter()
        self.last_steps_s: deque[float] = deque([self.state.step_s], maxlen=STEPS_LOOKED_AT)
        self.steps_file = (self.out_dir / "steps.jsonl").open("a", encoding="utf-8")

    def wall_s(self) -> float:
        """Seconds of training over all sessions."""
        return self.before_s + time.perf_counter() - self.started_s

    def after_step(self, step: int, loss: float, learning_rate: float, grad_norm: float) -> tuple[bool, bool]:
        """Record a step; returns (save a checkpoint, stop training).

        Raises: TrainingError when the loss is not finite.
        """
        if not (math.isfinite(loss) and (math.isfinite(grad_norm) or self.skips_overflow)):
            raise TrainingError(
                f"step {step}: loss {loss}, gradient norm {grad_norm}: training diverged; "
                "lower train.learning_rate (a third is a good try); the last checkpoint is kept"
            )
        now = time.perf_counter()
        tokens = self.schedule.tokens_in(self.schedule.steps[step - 1])
        line = {
            "step": step,
            "loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "num_tokens": tokens,
            "tokens_per_s": round(tokens / max(now - self.step_s, 1e-9), 1),
            "wall_s": round(self.wall_s(), 3),
            "peak_bytes": self.peak_bytes(),
        }
        self.last_steps_s.append(now - self.step_s)
        self.state.step_s = max(self.last_steps_s)
        last = step == len(self.schedule.steps)
        save = last
        if step in self.eval_steps:
            line |= self._evaluate(step)
            save = True
        self.steps_file.write(json.dumps(line) + "\n")
        self.steps_file.flush()
        self.report(line)
        self.progress(f"train {self.model_name}", step, len(self.schedule.steps))
        self.state.finished = last or self.state.stopped_early
        if not self.state.finished:
            self.leaving = self.should_stop(self.wall_s() + self.ahead_s(step)) or self._interruption(step)
        save = save or self.leaving is not None or self.saver.is_due()
        self.step_s = time.perf_counter()
        return save, self.state.finished

    def ahead_s(self, step: int) -> float:
        """Seconds that the next step can take with what follows it: its evaluation, and a save to stop with."""
        state = self.state
        eval_s = state.eval_s / len(state.evals) if step + 1 in self.eval_steps and state.evals else 0.0
        return state.step_s + eval_s + self.saver.costs.latency_s

    def begin(self, step: int) -> None:
        """Before the first step of a session that continues after step.

        Raises: what should_stop returns for the next step.
        """
        self.step_s = time.perf_counter()
        self.leaving = self.decided(lambda: self.should_stop(self.wall_s() + self.ahead_s(step)) if step else None)
        if self.leaving is not None:
            raise self.leaving

    def decided(self, decide: Callable[[], T]) -> T:
        """What this process decides; of several the first one does for all."""
        return decide()

    def save(self, take: Callable[[], Snapshot]) -> None:
        """Save the training as it is; raises what asked for the stop, once that is written."""
        self.state.wall_s, self.state.peak_bytes = self.wall_s(), max(self.state.peak_bytes, self.peak_bytes())
        self.saver.save(take, self.state, wait=self.state.finished or self.leaving is not None)
        self.step_s = time.perf_counter()
        if self.leaving is not None:
            raise self.leaving

    def _evaluate(self, step: int) -> dict[str, float]:
        state, began_s = self.state, time.perf_counter()
        found = self.evaluate()
        state.eval_s += time.perf_counter() - began_s
        metric, loss = found[self.stop_on], found["dev_loss"]
        state.evals.append({"step": step, **found})
        if metric > state.best_metric or (metric == state.best_metric and loss < state.best_loss):
            state.best_step, state.best_metric, state.best_loss, state.num_worse = step, metric, loss, 0
        else:
            state.num_worse += 1
            state.stopped_early = state.num_worse >= self.patience and step < len(self.schedule.steps)
        return found

    def _interruption(self, step: int) -> Interrupted | None:
        if self.signals.received is None:
            return None
        return Interrupted(
            f"stopped by {self.signals.received} after step {step} of {len(self.schedule.steps)} of {self.model_name}; "
            "a checkpoint is saved, run the same command to continue"
        )

    def callback(self) -> Any:
        """The TrainerCallback that calls this."""
        from transformers import TrainerCallback

        watch, copier = self, Uncopied() if self.saver.waits else Copier()

        class WatchCallback(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                watch.begin(state.global_step)

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
                if logs is None or "loss" not in logs:
                    return  # the summary at the end of training
                state.log_history.clear()  # ours is steps.jsonl; theirs would grow in every checkpoint
                save, stop = watch.after_step(
                    state.global_step, logs["loss"], logs["learning_rate"], float(logs["grad_norm"])
                )
                control.should_training_stop = control.should_training_stop or stop
                if save:
                    watch.save(lambda: take(copier, state=state, **{k: kwargs[k] for k in TAKEN}))

        return WatchCallback()


def weights_of(folder: Path) -> str:
    """Name of the trained weights in a checkpoint or what was kept of one: an adapter's, or a whole model's."""
    return FULL_WEIGHTS if (folder / FULL_WEIGHTS).is_file() else WEIGHTS


def copy_trained(source: Path, target: Path) -> None:
    """What was trained, from source in a new folder target, whole or not at all; base_model_name stays as it is."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    names = [weights_of(source)]
    names += ["adapter_config.json"] if names == [WEIGHTS] else []
    for name in names:
        shutil.copyfile(source / name, partial / name)
    replace_folder(partial, target)


def replace_folder(partial: Path, target: Path) -> None:
    """Make files and rename durable; a target that is there gives way."""
    for path in partial.iterdir():
        sync_file(path)
    sync_folder(partial)
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    sync_folder(target.parent)


def restart_steps(out_dir: Path, step: int) -> float:
    """Cut steps.jsonl after a step; returns the wall seconds of its last line, work since lost included."""
    path = out_dir / "steps.jsonl"
    kept, wall_s = [], 0.0
    if path.is_file():
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the line a kill cut short
            wall_s = max(wall_s, row["wall_s"])
            if row["step"] <= step:
                kept.append(row)
    write_jsonl(path, kept)
    return wall_s
