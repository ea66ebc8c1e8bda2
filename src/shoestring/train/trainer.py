"""One rung: LoRA, QLoRA or every weight on transformers.Trainer, along a schedule fixed before it starts.

One item of the data set is one optimizer step, so any number of micro-batches may share it and the loss is
the mean over the answer tokens of the whole step. Interrupted at any moment, the same call continues from the
last whole checkpoint and ends, on the same CPU and number of threads, in the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import DoesNotFit, Interrupted
from ..files import cannot_write, read_json, read_jsonl, sha256_file, write_json, writing
from ..records import Device, Example, Log, Progress, TrainResult, TrainSettings, no_log, no_progress
from ..units import gib
from ..versions import package_versions
from . import checkpoint, loss, preflight
from .adapter import bare, files_of, folder_name, load_trained, origin_of, publish, starting_point
from .device import peak_bytes, reset_peak
from .division import Division, divide
from .following import watch_of
from .gates import WARN
from .interval import Costs
from .locate import model_print
from .loop import StepItems, build_trainer
from .memory_policy import MemoryPolicy, recompute, shrunk, within_memory
from .objective import Objective
from .preference import Preference
from .probe import examine, refuse
from .resume import find_checkpoint, open_store
from .routes import choose_policy
from .saving import Saver, why_it_waits
from .schedule import Schedule
from .setup import SetUp, set_up
from .snapshot import snapshot_bytes
from .together import in_processes
from .tracking import NO_TRACKING, Trackers, Tracking
from .uploads import Uploads
from .watch import Signals, Watch, Watched, weights_of
from .world import current

HISTORY_POINTS = 150
NOTABLE_EVALUATION_FRAC = 0.5  # of a training's time, told
# Settings that the trained weights do not depend on, or only to rounding.
NOT_OF_THE_RESULT = (
    *("reasons", "num_threads", "max_new_tokens", "recompute", "num_processes", "parallelism"),
    *("checkpoints", "interruptions_per_hour", "start"),
)
REFERENCE = "reference.json"  # of preference training: log-probabilities under the model it starts from


def never(wall_s: float) -> Exception | None:
    """The should_stop that never stops."""
    return None


@in_processes
def train_rung(
    *,
    model: str,
    train: Sequence[Example],
    dev: Sequence[Example],
    out_dir: Path,
    settings: TrainSettings,
    device: Device,
    dev_metric: Callable[[Any, Any], float],
    should_stop: Callable[[float], Exception | None] = never,
    progress: Progress = no_progress,
    log: Log = no_log,
    tracking: Tracking = NO_TRACKING,
) -> TrainResult:
    """Train, or continue; writes out_dir/adapter (under full out_dir/model), steps.jsonl, checkpoints and best.

    dev_metric(model, tokenizer) is called in evaluation mode; the weights with the highest value are kept (ties:
    lower loss on dev). should_stop(wall_s) is asked after every step, for the seconds over all sessions that there will
    be once the next step is done and saved; what it returns is raised once a checkpoint is saved.
    settings.num_processes > 1: in so many processes, started here; where torchrun started this one, in those.
    Raises: TrainingError, DoesNotFit, Interrupted (SIGINT, SIGTERM), RunFolderError, ModelError.
    """
    world = current()
    world.lockstep = world.size > 1 and settings.parallelism == "fsdp"
    started_s = time.perf_counter()
    out_dir = Path(out_dir)
    with limited_threads(settings.num_threads), named_faults(out_dir, settings), Signals().listening() as signals:
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(out_dir, error) from error
        place = open_store(settings.checkpoints, out_dir) if world.is_first else None
        peak = reset_peak(device)
        with (
            set_up(model, train, dev, settings, device) as ready,
            Trackers(tracking if world.is_first else NO_TRACKING, out_dir, settings, log) as trackers,
        ):
            tuned, packing, routes = ready.tuned, ready.packing, ready.routes
            if packing.line:
                log(f"Rung {model}: {packing.line}")
            print_ = fingerprint(model, train, dev, settings, device, packing.kind)
            world.agree({**ready.facts, "fingerprint": print_, "schedule": hash(packing.schedule.steps)})
            store = place.under(print_) if place else None
            resume, state, restarted = world.of_first(lambda: find_checkpoint(out_dir, print_, store, log))
            findings = [] if state.finished else examine(ready)
            refuse(findings, model)
            for finding in findings:
                if finding.level == WARN:
                    log(f"Rung {model}: {finding.gate}: {finding.found}; {finding.remedy}")
            policy = choose_policy(routes, ready.learned, packing, settings, device, state.passes)
            policy = world.of_first(lambda: shrunk(policy, world.num_shrunk))
            budget = ready.budget
            asked = (tuned, ready.probed_paths, ready.tokenizer.pad_token_id, device)
            with bare(tuned):
                bare_logits = preflight.probe_logits(*asked)
            if not state.finished:
                prepare(out_dir, print_, ready, signals, progress)
                trackers.begin(state.tracking, checkpoint.step_of(resume) if resume else 0)

            def evaluate() -> dict[str, float]:
                with ready.scoring():
                    dev_loss, more = ready.held_out.measure(tuned, **budget)
                    metric = world.passing(lambda: float(dev_metric(tuned, ready.tokenizer)))
                return {"dev_metric": metric, "dev_loss": dev_loss, **more}

            def attempt(policy: MemoryPolicy) -> tuple[Schedule, Watch]:
                cut = packing.within(policy.chosen.micro_batch_tokens)
                if policy.num_shrunk:
                    budget["batch_tokens"] = policy.chosen.micro_batch_tokens
                state.passes = policy.chosen.kept()
                recompute(tuned, policy.chosen.num_recomputed)
                division = divide(cut.schedule, cut.size, world.size) if world.size > 1 else Division(cut.schedule)
                saver = Saver(
                    out_dir,
                    costs=Costs(**state.saving),
                    interruptions_per_hour=settings.interruptions_per_hour,
                    is_cpu=device.kind == "cpu",
                    waits=why_it_waits(snapshot_bytes(tuned)),
                    uploads=Uploads(store, log) if store else None,
                    log=log,
                )
                watch = watch_of(
                    world,
                    model_name=model,
                    out_dir=out_dir,
                    schedule=division.schedule,
                    state=state,
                    eval_steps=eval_steps(len(cut.schedule.steps), settings.num_evals) if dev else frozenset(),
                    patience=settings.patience,
                    evaluate=evaluate,
                    stop_on=kept_by(settings),
                    peak_bytes=lambda: peak_bytes(device),
                    should_stop=should_stop,
                    signals=signals,
                    saver=saver,
                    progress=progress,
                    report=trackers.log,
                    skips_overflow=device.dtype == "float16",
                    started_s=started_s,
                )
                with contextlib.closing(watch.steps_file), saver.ending():
                    if not state.finished:
                        items = StepItems(ready.learned, division.schedule, cut.collate, division.shares)
                        folder, offload = out_dir / "checkpoints", policy.chosen.offload
                        trainer = build_trainer(
                            tuned, items, settings, device, folder, watch.callback(), routes.loss_path, offload
                        )
                        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
                return division.schedule, watch

            start_over = starting_point(tuned, model, device)

            def recover() -> None:
                nonlocal resume, state, started_s
                start_over()
                routes.clear()
                resume, state, _ = find_checkpoint(out_dir, print_, store, log)
                trackers.begin(state.tracking, checkpoint.step_of(resume) if resume else 0)
                started_s = time.perf_counter()

            policy, (schedule, watch) = within_memory(policy, attempt, recover, log)
            source = world.of_first(lambda: _source(out_dir, state))
            load_trained(tuned, source)
            effect = preflight.effect_on(bare_logits, preflight.probe_logits(*asked))
        published = out_dir / folder_name(settings.method)
        if world.is_first:
            publish(tuned, source, published, ready.tokenizer, origin_of(model, asdict(settings), device.dtype))
        if received := world.of_first(lambda: signals.received):
            raise Interrupted(f"stopped by {received} after training {model}; run the same command to continue")
        state.wall_s = watch.wall_s()
        evaluated_frac = state.eval_s / max(1e-9, state.wall_s)
        if evaluated_frac > NOTABLE_EVALUATION_FRAC:
            log(
                f"Rung {model}: evaluating on {len(dev)} dev rows took {evaluated_frac:.0%} of the training; "
                "train.num_evals or train.num_dev_rows lowers it"
            )
    facts = {
        **ready.facts,
        **policy.facts(),
        "peak": peak,
        "restarted": restarted,
        "preflight": {finding.gate: finding.found for finding in findings},
        "supervised_first_row": preflight.supervised_text(ready.tokenizer, ready.learned.items[0][0]),
        "adapter_effect_logits": effect,
        "checkpoints": watch.saver.facts(),
        "kept_sha256": sha256_file(source / weights_of(source)),
        "adapter_sha256": {p.name: sha256_file(p) for p in files_of(published)},
        **world.facts(),
        "dev_evaluations": f"{len(state.evals)} on {len(dev)} rows each, {evaluated_frac:.0%} of the time",
        "dev_evaluations_s": state.eval_s,
    }
    return world.of_first(lambda: _result(model, out_dir, schedule, ready.learned, settings, device, state, facts))


def prepare(out_dir: Path, print_: str, ready: SetUp, signals: Signals, progress: Progress) -> None:
    """What preference training needs of the model it starts from, computed once and kept for later sessions.

    Raises: Interrupted.
    """
    import torch

    both = {"train": ready.learned, "dev": ready.held_out}
    wanted = {name: made for name, made in both.items() if isinstance(made, Preference) and made.has_reference}
    world = current()
    kept = world.of_first(lambda: read_json(out_dir / REFERENCE) if wanted and (out_dir / REFERENCE).is_file() else {})
    if kept.get("fingerprint") != print_:
        kept = {"fingerprint": print_}
    for name, made in wanted.items():

        def tick(done: int, total: int, name: str = name) -> None:
            progress(f"reference {name}", done, total)
            if signals.received:
                raise Interrupted(
                    f"stopped by {signals.received} before the first step; run the same command to continue"
                )

        if name in kept:
            made.reference = torch.tensor(kept[name], dtype=torch.float32)
            continue
        with ready.scoring(), ready.at_reference():
            made.prepare(ready.tuned, tick=tick, **ready.budget)
        kept[name] = made.reference.tolist()
        if world.is_first:
            write_json(out_dir / REFERENCE, kept)


# ---------------------------------------------------------------- continuing


def fingerprint(
    model: str,
    train: Sequence[Example],
    dev: Sequence[Example],
    settings: TrainSettings,
    device: Device,
    packing: str,
) -> str:
    """Of everything that decides the result; a checkpoint made from anything else is not continued."""
    values = asdict(settings)
    for key in NOT_OF_THE_RESULT:
        del values[key]
    ids = [[e.id for e in train], [e.id for e in dev]]
    text = json.dumps([model_print(model), ids, values, device.kind, device.dtype, packing], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def eval_steps(num_steps: int, num_evals: int) -> frozenset[int]:
    """num_evals evenly spaced steps, the last one included; fewer where there are fewer steps."""
    return frozenset(math.ceil(num_steps * i / num_evals) for i in range(1, num_evals + 1))


def kept_by(settings: TrainSettings) -> str:
    """Name of the measure on the dev rows by which the best weights are kept."""
    return "dev_preference" if settings.stop_on == "preference" else "dev_metric"


def _source(out_dir: Path, state: Watched) -> Path:
    """Folder of the weights to keep: the best on dev, else the last."""
    if state.best_step:
        return out_dir / "best" / f"step-{state.best_step}"
    last = checkpoint.newest_intact(out_dir / "checkpoints")
    assert last is not None, "training ended without a checkpoint"
    return last


# ---------------------------------------------------------------- machine


@contextlib.contextmanager
def limited_threads(num_threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def named_faults(out_dir: Path, settings: TrainSettings) -> Iterator[None]:
    """Full disks and full accelerators in our words."""
    import torch

    try:
        with writing(out_dir):
            yield
    except torch.OutOfMemoryError as error:
        if current().size > 1:
            raise  # all processes go on with smaller passes
        raise DoesNotFit(
            f"the accelerator ran out of memory at micro_batch_tokens={settings.micro_batch_tokens} ({error}); "
            f"set train.micro_batch_tokens={max(settings.micro_batch_tokens // 2, 64)}, or method: qlora; "
            "the last checkpoint is kept"
        ) from error


# ---------------------------------------------------------------- result


def _result(
    model: str,
    out_dir: Path,
    schedule: Schedule,
    learned: Objective,
    settings: TrainSettings,
    device: Device,
    state: Watched,
    facts: dict[str, Any],
) -> TrainResult:
    lines = read_jsonl(out_dir / "steps.jsonl")
    num_steps = lines[-1]["step"]
    answers = [loss.num_loss_tokens(item) for item in learned.items]
    used = {
        **{k: v for k, v in asdict(settings).items() if k != "reasons"},
        **facts,
        "device": device.name,
        "device_kind": device.kind,
        "dtype": device.dtype,
        "trained_dtype": "float32",
        "optimizer": "AdamW, fused",
        "schedule": "cosine with warm-up",
        "versions": package_versions(),
        "peak_text": gib(state.peak_bytes),
    }
    return TrainResult(
        model=model,
        method=settings.method,
        adapter_dir=inside_run(out_dir / folder_name(settings.method)),
        num_steps=num_steps,
        stopped_early=state.stopped_early,
        best_step=state.best_step or num_steps,
        dev_metric=state.best_metric if state.evals else None,
        wall_s=state.wall_s,
        peak_bytes=state.peak_bytes,
        num_train_tokens=schedule.num_tokens(num_steps),
        num_loss_tokens=sum(answers[row] for step in schedule.steps[:num_steps] for b in step for row in b),
        num_computed_tokens=schedule.num_computed_tokens(num_steps),
        final_loss=lines[-1]["loss"],
        history=thin_history(lines),
        settings=used,
    )


def inside_run(folder: Path) -> str:
    """The path from the run folder on: rungs/MODEL/adapter; the plain name outside a run folder."""
    parts = folder.parts
    if "rungs" not in parts:
        return folder.name
    last = len(parts) - 1 - parts[::-1].index("rungs")
    return Path(*parts[last:]).as_posix()


def thin_history(lines: Sequence[dict[str, float]]) -> tuple[dict[str, float], ...]:
    """At most HISTORY_POINTS points: mean loss since the point before; every evaluation is a point."""
    stride = max(1, math.ceil(len(lines) / HISTORY_POINTS))
    points: list[dict[str, float]] = []
    window: list[float] = []
    for line in lines:
        window.append(line["loss"])
        if line["step"] % stride == 0 or "dev_metric" in line or line is lines[-1]:
            kept: dict[str, float] = {
                k: line[k] for k in ("step", "learning_rate", "dev_metric", "dev_loss", "dev_preference") if k in line
            }
            points.append({**kept, "loss": sum(window) / len(window)})
            window = []
    return tuple(points)
