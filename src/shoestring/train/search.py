"""Learning rate by successive halving: several rates on few tokens, the better half on twice as many, and so on.

Jamieson & Talwalkar 2016 (arXiv 1502.07943), as in Hyperband (Li et al. 2018, arXiv 1603.06560). All trials share one
loaded base, the same fresh adapter, and the same steps in the same order as the training that follows; a survivor goes
on from where it stood. Rates are compared at a constant rate after warm-up, since a decay belongs to one length of
training; in place of the decay each is scored, on the dev rows, with its weights averaged over the second half of its
steps (a mean of the iterates does what a decay does: Hägele et al. 2024, arXiv 2405.18392). The winner then trains from
the start with the full schedule.

Killed at any moment, the same call goes on and ends, on the same CPU, with the same numbers.
"""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BadInput, Interrupted, TrainingError
from ..files import read_json, write_json, write_whole
from ..plan.search import alive, at_edge, beyond, grid, rounds, survivors, unit_tokens
from ..records import Device, Example, Log, Progress, TrainSettings, no_log, no_progress
from .adapter import starting_point
from .averaging import MeanWeights
from .device import peak_bytes, reset_peak
from .loop import StepItems, begin_step, step_loss
from .memory_policy import MemoryPolicy, offloading, recompute, within_memory
from .probe import examine, refuse
from .routes import choose_policy
from .schedule import Schedule
from .setup import SetUp, set_up
from .trainer import fingerprint, limited_threads, named_faults, never, prepare
from .watch import Signals

STATE, SAVE_EVERY_S = "state.json", 30.0
COMPARED = "constant rate after warm-up, weights averaged over the second half of the steps"


@dataclass
class Trial:
    """One rate; losses: (step, dev loss) at each round it was in."""

    rate: float
    losses: list[tuple[int, float]] = field(default_factory=list)
    diverged_at: int = 0

    @property
    def score(self) -> float:
        """The newest dev loss; infinite where it diverged."""
        return math.inf if self.diverged_at or not self.losses else self.losses[-1][1]


@dataclass
class SearchState:
    """What a later session needs besides the trials' weights."""

    fingerprint: str
    trials: list[Trial] = field(default_factory=list)
    wall_s: float = 0.0
    peak_bytes: int = 0
    num_tokens: int = 0  # of finished rounds

    @classmethod
    def read(cls, path: Path, print_: str) -> SearchState:
        """The state of an earlier session with the same inputs, else a new one."""
        try:
            row = read_json(path)
            trials = [Trial(t["rate"], [(s, x) for s, x in t["losses"]], t["diverged_at"]) for t in row.pop("trials")]
            if row["fingerprint"] == print_:
                return cls(**row, trials=trials)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        for stale in (path, *path.parent.glob("*.pt")):  # the folder also holds what its process prints
            stale.unlink(missing_ok=True)
        return cls(print_)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The rate found and how; trials by rate."""

    model: str
    learning_rate: float
    derived: float  # the rate in the middle of the grid
    trials: tuple[dict[str, Any], ...]  # learning_rate, num_steps, num_tokens, dev_loss, losses, stopped
    note: str  # of a winner at the edge of what was tried, else empty
    compared: str
    num_dev_rows: int
    num_tokens: int
    tokens_frac: float  # of the tokens of the training that follows
    wall_s: float  # over all sessions
    peak_bytes: int


def search_learning_rate(
    *,
    model: str,
    train: Sequence[Example],
    dev: Sequence[Example],
    out_dir: Path,
    settings: TrainSettings,
    device: Device,
    should_stop: Callable[[float], Exception | None] = never,
    progress: Progress = no_progress,
    log: Log = no_log,
) -> SearchResult:
    """Find a rate around settings.learning_rate within settings.search_tokens, or continue; writes out_dir.

    should_stop as in train_rung. Raises: BadInput (no dev rows), TrainingError (every rate diverges), DoesNotFit,
    Interrupted, RunFolderError, ModelError.
    """
    if not dev:
        raise BadInput(
            "train.learning_rate: search compares rates on dev rows, and there are none; "
            "give more rows, or a number as train.learning_rate"
        )
    started_s = time.perf_counter()
    with limited_threads(settings.num_threads), named_faults(out_dir, settings), Signals().listening() as signals:
        reset_peak(device)
        with set_up(model, train, dev, settings, device) as ready:
            print_ = fingerprint(model, train, dev, settings, device, ready.packing.kind)
            state = SearchState.read(out_dir / STATE, print_)
            out_dir.mkdir(parents=True, exist_ok=True)
            if not state.trials:
                refuse(examine(ready), model)
            prepare(out_dir, print_, ready, signals, progress)
            policy = choose_policy(ready.routes, ready.learned, ready.packing, settings, device, {})
            search = _Search(ready, out_dir, state, started_s, signals, should_stop, progress, log)

            def recover() -> None:
                search.restore()
                ready.routes.clear()

            within_memory(policy, search.run, recover, log)
            if leaving := search.interruption():  # while the last rate was scored
                raise leaving
    return search.result()


@dataclass
class _Search:
    ready: SetUp
    out_dir: Path
    state: SearchState
    started_s: float
    signals: Signals
    should_stop: Callable[[float], Exception | None]
    progress: Progress
    log: Log

    def __post_init__(self) -> None:
        self.before_s, self.step_s, self.score_s = self.state.wall_s, 0.0, 0.0  # the longest step and scoring so far
        self.restore = starting_point(self.ready.tuned, self.ready.model, self.ready.device)
        self.own = [p for p in self.ready.tuned.parameters() if p.requires_grad]
        self.schedule: Schedule = self.ready.packing.schedule
        unit = unit_tokens(self.ready.settings.search_tokens)
        self.ends = [self._steps_of(unit * times) for times in rounds()]

    def _steps_of(self, num_tokens: float) -> int:
        """Steps that hold so many tokens, at least one and at most all."""
        done = 0
        for number, step in enumerate(self.schedule.steps, 1):
            done += self.schedule.tokens_in(step)
            if done >= num_tokens:
                return number
        return len(self.schedule.steps)

    def wall_s(self) -> float:
        return self.before_s + time.perf_counter() - self.started_s

    def run(self, policy: MemoryPolicy) -> None:
        """All rounds, or what is left of them."""
        state, settings = self.state, self.ready.settings
        recompute(self.ready.tuned, policy.chosen.num_recomputed)
        cut = self.ready.packing.within(policy.chosen.micro_batch_tokens)
        self.items = StepItems(self.ready.learned, cut.schedule, cut.collate)
        self.offload = policy.chosen.offload
        if not state.trials:
            state.trials = [Trial(rate) for rate in grid(settings.learning_rate)]
        running = list(state.trials)
        for number, end in enumerate(self.ends):
            for trial in running:
                self._round(trial, number, end)
            while number == 0 and (rate := beyond(settings.learning_rate, self._scores())) is not None:
                trial = next((t for t in state.trials if t.rate == rate), None) or Trial(rate)
                if trial not in state.trials:
                    state.trials.append(trial)
                    self.log(f"learning-rate search: the best rate so far is at the edge, so {rate:.3g} is tried too")
                self._round(trial, number, end)
            if number == 0:
                running = list(state.trials)
            kept = survivors({t.rate: t.score for t in running}, [*alive(), 1][number + 1])
            running = [t for t in running if t.rate in kept]
            if not running:
                rates = ", ".join(f"{t.rate:.3g} at step {t.diverged_at}" for t in state.trials)
                raise TrainingError(
                    f"every learning rate tried diverged ({rates}); look at the rows with `shoestring check`, or give "
                    "a far smaller train.learning_rate"
                )

    def _scores(self) -> dict[float, float]:
        return {t.rate: t.score for t in self.state.trials}

    def _round(self, trial: Trial, number: int, end: int) -> None:
        """Train one rate to a round's end and score it, unless that is done."""
        import torch

        if trial.diverged_at or len(trial.losses) > number:
            return
        settings, device, tuned = self.ready.settings, self.ready.device, self.ready.tuned
        self.restore()
        optimizer = torch.optim.AdamW(self.own, lr=trial.rate, weight_decay=settings.weight_decay, fused=True)
        scaler = torch.amp.GradScaler(device.kind, enabled=device.dtype == "float16")
        at, mean = self._load(trial, optimizer, scaler)
        first = trial.losses[-1][0] if trial.losses else 0
        warmup = max(1, math.floor(settings.warmup_frac * self.ends[-1]))
        tuned.train()
        for index in range(at, end):
            for group in optimizer.param_groups:
                group["lr"] = trial.rate * min(1.0, (index + 1) / warmup)
            began_s = time.perf_counter()
            goes_on = self._step(index, optimizer, scaler)
            self.step_s = max(self.step_s, time.perf_counter() - began_s)
            if not goes_on:
                trial.diverged_at = index + 1
                self.log(f"learning-rate search: {trial.rate:.3g} diverged at step {index + 1}")
                break
            mean.add(index + 1, first, end, self.own)
            ahead_s = self.score_s if index + 1 == end else self.step_s
            self._after_step(trial, index + 1, optimizer, scaler, mean, ahead_s=ahead_s)
        if not trial.diverged_at:
            began_s = time.perf_counter()
            score = self._score(mean)
            self.score_s = max(self.score_s, time.perf_counter() - began_s)
            if math.isfinite(score):
                trial.losses.append((end, score))
            else:
                trial.diverged_at = end
        self.state.num_tokens += self.schedule.num_tokens(trial.diverged_at or end) - self.schedule.num_tokens(first)
        self._save(trial, trial.diverged_at or end, optimizer, scaler, mean)
        self._write()

    def _step(self, index: int, optimizer: Any, scaler: Any) -> bool:
        """One optimizer step; False where loss or gradient is not finite."""
        import torch

        ready, item, total = self.ready, self.items[index], 0.0
        optimizer.zero_grad(set_to_none=True)
        begin_step(ready.learned, ready.tuned, item, ready.path, ready.device)
        for batch in item["micro_batches"]:
            with offloading(self.offload):
                value = step_loss(ready.learned, ready.tuned, batch, item["weight"], ready.path, ready.device)
            scaler.scale(value).backward()
            total += float(value.detach())
        scaler.unscale_(optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.own, ready.settings.max_grad_norm))
        if not (math.isfinite(total) and (math.isfinite(norm) or scaler.is_enabled())):
            return False
        scaler.step(optimizer)
        scaler.update()
        return True

    def _score(self, mean: MeanWeights) -> float:
        """Dev loss of the averaged weights; the model keeps them, the trial's own are in its file."""
        import torch

        with torch.no_grad():
            kept = [p.detach().clone() for p in self.own]
            for p, averaged in zip(self.own, mean.values(), strict=True):
                p.copy_(averaged)
            with self.ready.scoring():
                found = self.ready.held_out.mean_loss(self.ready.tuned, **self.ready.budget)
            for p, own in zip(self.own, kept, strict=True):
                p.copy_(own)
        return found

    # ---- continuing ----

    def interruption(self) -> Interrupted | None:
        """What to raise where a signal has come."""
        if self.signals.received is None:
            return None
        return Interrupted(
            f"stopped by {self.signals.received} in the learning-rate search; what was tried is saved, run the same "
            "command to continue"
        )

    def _after_step(
        self, trial: Trial, step: int, optimizer: Any, scaler: Any, mean: MeanWeights, *, ahead_s: float
    ) -> None:
        """Save where it is time; ahead_s: seconds until this is called again."""
        self.progress(f"search rate {self.ready.model} {trial.rate:.2g}", step, self.ends[-1])
        leaving = self.should_stop(self.wall_s() + ahead_s) or self.interruption()
        if leaving is not None or self.wall_s() - self.state.wall_s >= SAVE_EVERY_S:
            self._save(trial, step, optimizer, scaler, mean)
            self._write()
        if leaving is not None:
            raise leaving

    def _path(self, trial: Trial) -> Path:
        return self.out_dir / f"rate-{trial.rate:.6g}.pt"

    def _save(self, trial: Trial, step: int, optimizer: Any, scaler: Any, mean: MeanWeights) -> None:
        import torch

        held = io.BytesIO()
        kept = {
            "step": step,
            "own": [p.detach().cpu() for p in self.own],
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "mean": {"num": mean.num, "sums": mean.sums},
        }
        torch.save(kept, held)
        data = held.getvalue()
        write_whole(self._path(trial), hashlib.sha256(data).digest() + data)

    def _load(self, trial: Trial, optimizer: Any, scaler: Any) -> tuple[int, MeanWeights]:
        """The step reached, weights and optimizer put back; from the start where the file is damaged."""
        import torch

        mean = MeanWeights()
        try:
            raw = self._path(trial).read_bytes()
        except FileNotFoundError:
            raw = b""
        if not raw:
            return 0, mean
        if hashlib.sha256(raw[32:]).digest() != raw[:32]:
            self.log(f"{self._path(trial)}: damaged, so this rate begins anew")
            return 0, mean
        kept = torch.load(io.BytesIO(raw[32:]), weights_only=True, map_location=self.ready.tuned.device)
        with torch.no_grad():
            for p, own in zip(self.own, kept["own"], strict=True):
                p.copy_(own)
        optimizer.load_state_dict(kept["optimizer"])
        scaler.load_state_dict(kept["scaler"])
        mean.num, mean.sums = kept["mean"]["num"], kept["mean"]["sums"]
        return kept["step"], mean

    def _write(self) -> None:
        state = self.state
        state.wall_s, state.peak_bytes = self.wall_s(), max(state.peak_bytes, peak_bytes(self.ready.device))
        write_json(self.out_dir / STATE, asdict(state))

    # ---- result ----

    def result(self) -> SearchResult:
        state, settings = self.state, self.ready.settings
        last = max(len(t.losses) for t in state.trials)
        best = min((t for t in state.trials if len(t.losses) == last), key=lambda t: (t.score, t.rate))
        rows = []
        for trial in sorted(state.trials, key=lambda t: t.rate):
            steps = trial.diverged_at or trial.losses[-1][0]
            stopped = f"diverged at step {steps}" if trial.diverged_at else f"after round {len(trial.losses)} of {last}"
            rows.append(
                {
                    "learning_rate": trial.rate,
                    "num_steps": steps,
                    "num_tokens": self.schedule.num_tokens(steps),
                    "dev_loss": None if trial.diverged_at else trial.score,
                    "losses": [list(pair) for pair in trial.losses],
                    "stopped": "won" if trial is best else stopped,
                }
            )
        note = ""
        if edge := at_edge(best.rate, [t.rate for t in state.trials if not t.diverged_at]):
            further = "larger" if edge == "highest" else "smaller"
            note = (
                f"{best.rate:.3g} is the {edge} rate that was tried, and a {further} one may be better still: give "
                "one as train.learning_rate and compare"
            )
        return SearchResult(
            model=self.ready.model,
            learning_rate=best.rate,
            derived=settings.learning_rate,
            trials=tuple(rows),
            note=note,
            compared=COMPARED,
            num_dev_rows=len(self.ready.held_out.items),
            num_tokens=state.num_tokens,
            tokens_frac=state.num_tokens / max(1, self.schedule.num_tokens(len(self.schedule.steps))),
            wall_s=self.wall_s(),
            peak_bytes=state.peak_bytes,
        )
