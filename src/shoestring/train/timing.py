"""A few real steps of a rung, timed: its own model, rows, settings, memory policy and trainer, in a folder of its own.

The steps are spread over the schedule and run twice: the second time their kernels are made, and what the first took
longer is what new sizes of passes cost. One thread of a CPU is timed by the processor's clock, so that other work on
the machine does not count; everything else by the wall's.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import Interrupted
from ..plan.probed import Probed
from ..plan.search import MAX_ADDED, num_units
from ..records import Device, Example, TrainSettings, no_log
from .base import load_base, load_tokenizer
from .device import peak_bytes, reset_peak, resident_bytes
from .interval import Costs
from .loop import StepItems, build_trainer
from .memory_policy import recompute
from .packing import Packing
from .preference import Preference
from .probe import examine, refuse
from .routes import choose_policy
from .saving import Saver
from .schedule import Schedule
from .setup import SetUp, set_up
from .trainer import limited_threads, named_faults, never
from .watch import Signals, Watch, Watched

STEPS_S = 20.0  # that the timed steps may take, about
MIN_STEPS, MAX_STEPS = 6, 60
REFERENCE_ROWS = 64
# oneDNN keeps 1,024 kernels (plan.memory); a size of pass needs one for each of some 16 products of a layer.
MAX_SIZES = 64
Clock = Callable[[], float]
Answer = Callable[[Any, Any, int], None]


def time_rung(
    *,
    model: str,
    train: Sequence[Example],
    dev: Sequence[Example],
    num_eval_rows: int,
    settings: TrainSettings,
    device: Device,
    answer: Answer,
    usual_tokens: float,
) -> Probed:
    """Time a rung on the present device; nothing of it is kept.

    answer(model, tokenizer, number) answers and scores the dev rows, each with as many tokens as a trained model will
    give it, in another order for each number; usual_tokens: the mean of those. The set-up is timed with its imports.
    Raises: TrainingError, DoesNotFit, BadInput, ModelError, Interrupted.
    """
    clock = clock_of(device, settings.num_threads)
    began_s, began_wall_s = clock(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="shoestring-probe-") as place, limited_threads(settings.num_threads):
        out_dir = Path(place)
        with named_faults(out_dir, settings), Signals().listening() as signals:
            reset_peak(device)
            with set_up(model, train, dev, settings, device) as ready:
                set_up_s = clock() - began_s
                refuse(examine(ready), model)
                policy = choose_policy(ready.routes, ready.learned, ready.packing, settings, device, {})
                gates_s = clock() - began_s - set_up_s
                reference_s = _reference_s(ready, clock)
                recompute(ready.tuned, policy.chosen.num_recomputed)
                cut = ready.packing.within(policy.chosen.micro_batch_tokens)
                timed = _Timed(ready, cut, policy.chosen.offload, out_dir, signals, answer, usual_tokens, clock)
                largest = max(range(len(cut.schedule.steps)), key=cut.schedule.computed_tokens.__getitem__)
                once = timed.run([largest])  # memory, and the seconds of a step
                num = round(STEPS_S / max(1e-3, 2 * once.step_s[-1]))
                chosen = spread(len(cut.schedule.steps), max(MIN_STEPS, min(MAX_STEPS, num)))
                resident = resident_bytes()
                cold = timed.run(chosen)
                grown = resident_bytes() - resident
                warm = timed.run(chosen, evaluates=bool(dev))
            load_s = _load_s(model, settings, device, clock)
            if signals.received:  # after the last step nobody asks
                raise Interrupted(f"stopped by {signals.received} while {model} was timed; nothing of it is kept")
    sizes = {cut.size(batch) for step in cut.schedule.steps for batch in step}
    seen = {cut.size(batch) for index in [*chosen, largest] for batch in cut.schedule.steps[index]}
    num_tokens = cut.schedule.num_tokens(len(cut.schedule.steps))
    search = settings.search_tokens * num_units() / (num_units() + MAX_ADDED)
    return Probed(
        set_up_s=set_up_s,
        gates_s=gates_s + once.begin_s,
        reference_s=reference_s,
        step_s=tuple(warm.step_s),
        step_tokens=tuple(cut.schedule.computed_tokens[index] for index in chosen),
        all_tokens=cut.schedule.num_computed_tokens(len(cut.schedule.steps)),
        new_size_s=max(0.0, sum(cold.step_s) - sum(warm.step_s)) / len(seen),
        num_sizes=len(sizes),
        dev_eval_s=warm.eval_s,
        answer_s=warm.answer_s,
        first_eval_s=warm.first_eval_s,
        dev_rows=len(dev),
        num_evals=min(settings.num_evals, len(cut.schedule.steps)) if dev else 0,
        save_s=warm.save_s,
        interruptions_per_hour=settings.interruptions_per_hour,
        load_s=load_s,
        eval_rows=num_eval_rows,
        peak_bytes=max(once.peak_bytes, cold.peak_bytes, warm.peak_bytes),
        new_size_bytes=max(0.0, grown / len(seen)) if device.kind == "cpu" else 0.0,
        num_sizes_seen=len(seen),
        max_sizes=MAX_SIZES,
        eval_bytes=warm.eval_bytes if device.kind == "cpu" else 0,
        num_steps=len(cut.schedule.steps),
        num_tokens=num_tokens,
        search_frac=search / num_tokens,
        cpu_frac=warm.cpu_frac if device.kind == "cpu" else 1.0,
        is_cpu_time=clock is time.process_time,
        wall_s=time.perf_counter() - began_wall_s,
    )


def clock_of(device: Device, num_threads: int) -> Clock:
    """Seconds as they are counted: of the processor where one thread does all the work, else of the wall."""
    return time.process_time if device.kind == "cpu" and num_threads == 1 else time.perf_counter


def spread(num_steps: int, num: int) -> list[int]:
    """Indices of num steps, evenly over the schedule; all where there are no more."""
    if num >= num_steps:
        return list(range(num_steps))
    return [int((i + 0.5) * num_steps / num) for i in range(num)]


def _load_s(model: str, settings: TrainSettings, device: Device, clock: Clock) -> float:
    """Seconds to load the base alone, as evaluation does; let go again."""
    import gc

    import torch

    began_s = clock()
    base = load_base(model, device=device, quantise=settings.method == "qlora")
    load_tokenizer(model)
    took_s = clock() - began_s
    del base
    gc.collect()
    if device.kind == "cuda":
        torch.cuda.empty_cache()
    return took_s


def _reference_s(ready: SetUp, clock: Clock) -> float:
    """Seconds that the reference of preference training takes over all rows, from a few; the others get zeros."""
    total = 0.0
    for made in (ready.learned, ready.held_out):
        if not isinstance(made, Preference) or not made.has_reference or not made.items:
            continue
        few = spread(len(made.items), REFERENCE_ROWS)
        started_s = clock()
        with ready.scoring(), ready.at_reference():
            made.prepare(ready.tuned, only=few, **ready.budget)
        total += (clock() - started_s) * len(made.items) / len(few)
    return total


class _Timed:
    """Runs steps through the trainer and its watch, as training does."""

    def __init__(
        self,
        ready: SetUp,
        cut: Packing,
        offload: bool,
        out_dir: Path,
        signals: Signals,
        answer: Answer,
        usual_tokens: float,
        clock: Clock,
    ) -> None:
        self.ready, self.cut, self.offload = ready, cut, offload
        self.out_dir, self.signals, self.clock = out_dir, signals, clock
        self.answer, self.usual_tokens = answer, usual_tokens
        self.num_runs = 0

    def run(self, indices: Sequence[int], evaluates: bool = False) -> _Found:
        """Those steps, each timed; evaluates: the dev rows once at the end.

        The first is run once more before, as the trainer's own beginning falls into it.
        """
        ready, whole, found, clock = self.ready, self.cut.schedule, _Found(), self.clock
        self.num_runs += 1
        folder = self.out_dir / f"run-{self.num_runs}"
        folder.mkdir()
        order = [indices[0], *indices]
        schedule = Schedule(
            tuple(whole.steps[i] for i in order), whole.lengths, tuple(whole.computed_tokens[i] for i in order)
        )
        stamps: list[float] = []

        def evaluate() -> dict[str, float]:
            stamps.append(clock())
            with ready.scoring():
                dev_loss = ready.held_out.mean_loss(ready.tuned, **ready.budget)
                loss_s = clock() - stamps[-1]
                self.answer(ready.tuned, ready.tokenizer, 0)
                found.eval_s = clock() - stamps[-1]
                resident = resident_bytes()
                self.answer(ready.tuned, ready.tokenizer, 1)
                found.eval_bytes = max(0, resident_bytes() - resident)
            found.answer_s = found.eval_s - loss_s
            # Before training answers run on to the limit.
            found.first_eval_s = loss_s + found.answer_s * ready.settings.max_new_tokens / self.usual_tokens
            return {"dev_metric": 0.0, "dev_loss": dev_loss}

        watch = Watch(
            model_name=ready.model,
            out_dir=folder,
            schedule=schedule,
            state=Watched("probe"),
            eval_steps=frozenset([len(order)]) if evaluates else frozenset(),
            patience=1,
            evaluate=evaluate,
            peak_bytes=lambda: peak_bytes(ready.device),
            should_stop=never,
            signals=self.signals,
            # As after one checkpoint, of a machine that is never taken away: the only one is the last.
            saver=Saver(
                folder,
                costs=Costs(num=1),
                interruptions_per_hour=0.0,
                is_cpu=ready.device.kind == "cpu",
                waits="",
                uploads=None,
                log=no_log,
            ),
            progress=lambda label, done, total: stamps.append(clock()) if len(stamps) < len(order) else None,
            skips_overflow=ready.device.dtype == "float16",
        )
        items = StepItems(ready.learned, schedule, self.cut.collate)
        began_s, began_wall_s, began_cpu_s = clock(), time.perf_counter(), time.process_time()
        try:
            folder = folder / "checkpoints"
            trainer = build_trainer(
                ready.tuned, items, ready.settings, ready.device, folder, watch.callback(), ready.path, self.offload
            )
            trainer.train()
        finally:
            watch.steps_file.close()
        found.step_s = [after - before for before, after in itertools.pairwise(stamps)]
        found.begin_s = max(0.0, stamps[0] - began_s - found.step_s[0])
        found.save_s = watch.saver.costs.cost_s
        wall_s = time.perf_counter() - began_wall_s
        found.cpu_frac = (time.process_time() - began_cpu_s) / max(1e-9, wall_s * ready.settings.num_threads)
        found.peak_bytes = watch.state.peak_bytes
        return found


class _Found:
    """What one run of steps gave."""

    def __init__(self) -> None:
        self.step_s: list[float] = []
        self.begin_s = self.eval_s = self.answer_s = self.first_eval_s = self.save_s = self.cpu_frac = 0.0
        self.peak_bytes = self.eval_bytes = 0
