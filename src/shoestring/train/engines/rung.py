"""One rung trained by another engine: checked before, watched while it runs, scored and published after.

The rows are tokenised here, with the mask that preflight checked; the engine's process trains on those ids. Its
checkpoints are sealed like ours, so that the same call continues where it stopped. What comes back is refused unless
its matrices are those of this base.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import Interrupted, TrainingError
from ...files import read_json, read_jsonl, sha256_file, write_json, write_jsonl, writing
from ...plan.engines import require_device
from ...records import Device, Example, Log, Progress, TrainResult, TrainSettings, no_log, no_progress
from ...units import gib
from ...versions import package_versions
from .. import checkpoint, loss, preflight
from ..adapter import bare, files_of, load_trained, origin_of, publish
from ..gates import WARN
from ..loop import save_trained
from ..preference import Preference
from ..probe import examine, refuse
from ..resume import find_checkpoint
from ..setup import SetUp, set_up
from ..tracking import NO_TRACKING, Trackers, Tracking
from ..trainer import eval_steps, fingerprint, inside_run, kept_by, never, thin_history
from ..watch import WEIGHTS, Signals, Watched, copy_trained
from .job import environment, terms_of, write_job
from .process import Child, child, interpreter

VERSIONS = "versions.json"  # of the packages that the engine ran on
START = Callable[[str, Path, dict[str, str]], AbstractContextManager[Child]]


def train_with_engine(
    *,
    engine_python: str,
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
    start: START = child,
) -> TrainResult:
    """As trainer.train_rung, by settings.engine; writes the same files. The engine's words: out_dir/engine/log.txt.

    There is no early stop: of the adapters at num_evals evenly spaced steps the best on dev is kept. should_stop is
    asked twice a second. start: starts a worker (a stand-in in tests).
    Raises: BadInput, MissingDependency, TrainingError, Interrupted, ModelError, and what should_stop returns.
    """
    engine, out_dir = settings.engine, Path(out_dir)
    require_device(engine, device.kind, device.name)
    python = interpreter(engine, engine_python)
    with (
        writing(out_dir),
        Signals().listening() as signals,
        Trackers(tracking, out_dir, settings, log) as trackers,
    ):
        (out_dir / "engine").mkdir(parents=True, exist_ok=True)
        print_ = fingerprint(model, train, dev, settings, device, f"engine {engine}")
        resume, state, restarted = find_checkpoint(out_dir, print_, None, log)
        run = EngineRun(out_dir, model, state, should_stop, signals, progress, log, trackers.log)
        if not state.finished:
            with set_up(model, train, dev, settings, device) as ready:
                job = run.prepare(ready, resume)
            trackers.begin(state.tracking, checkpoint.step_of(resume) if resume else 0)
            del ready
            gc.collect()
            run.train(start(python, out_dir / "engine", environment(model, device, settings.num_threads)), job)
        with set_up(model, train, dev, settings, device) as ready:
            facts = run.finish(ready, dev_metric)
        if signals.received:
            raise Interrupted(f"stopped by {signals.received} after training {model}; run the same command to continue")
        facts["restarted"] = restarted
        return run.result(settings, device, facts)


@dataclass
class EngineRun:
    """The state of one training across the boundary."""

    out_dir: Path
    model: str
    state: Watched
    should_stop: Callable[[float], Exception | None]
    signals: Signals
    progress: Progress
    log: Log
    report: Callable[[dict[str, Any]], None]
    findings: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started_s, self.before_s = time.perf_counter(), self.state.wall_s

    def wall_s(self) -> float:
        """Seconds over all sessions."""
        return self.before_s + time.perf_counter() - self.started_s

    # ---- before

    def prepare(self, ready: SetUp, resume: Path | None) -> dict[str, Any]:
        """Ask every gate, and write what the engine needs. Raises: TrainingError."""
        self.findings = examine(ready)
        refuse(self.findings, self.model)
        for finding in self.findings:
            if finding.level == WARN:
                self.log(f"Rung {self.model}: {finding.gate}: {finding.found}; {finding.remedy}")
        settings = ready.settings
        terms = terms_of(
            model=self.model,
            items=ready.learned.items,
            settings=settings,
            device=ready.device,
            pad_token=ready.tokenizer.pad_token,
        )
        at = checkpoint.step_of(resume) if resume else 0
        for old in self.out_dir.glob("engine/step-*"):
            if checkpoint.step_of(old) > at:
                shutil.rmtree(old)
        (self.out_dir / "checkpoints").mkdir(exist_ok=True)
        return write_job(
            self.out_dir / "engine",
            engine=settings.engine,
            terms=terms,
            items=ready.learned.items,
            lora_targets=ready.tuned.peft_config["default"].target_modules,
            save_steps=sorted(eval_steps(terms["max_steps"], settings.num_evals)) if ready.held_out.items else [],
            checkpoints=self.out_dir / "checkpoints",
            resume=resume,
        )

    # ---- while it runs

    def train(self, starting: AbstractContextManager[Child], job: dict[str, Any]) -> None:
        """Listen until the worker ends; raises what asked for the stop once it has saved."""
        lines, leaving = StepLines(self.out_dir / "steps.jsonl"), None
        self.log(f"Rung {self.model}: engine {job['engine']}, {job['max_steps']} steps; log: {self.out_dir / 'engine'}")
        with starting as worker:
            try:
                for event in worker.events():
                    if leaving is None:
                        leaving = self.should_stop(self.wall_s()) or self._interruption()
                        if leaving is not None:
                            worker.ask_to_stop()
                    if event is not None:
                        self._take(event, job, lines)
                done = worker.finish()
            finally:
                lines.close()
        if leaving is not None and not (done and self.state.finished):
            raise leaving
        if not self.state.finished:
            raise TrainingError(
                f"engine {job['engine']} ended after step {lines.last_step} of {job['max_steps']} without saying why; "
                f"its log: {worker.log_file}"
            )

    def _interruption(self) -> Interrupted | None:
        if self.signals.received is None:
            return None
        return Interrupted(
            f"stopped by {self.signals.received} while training {self.model}; its last checkpoint is saved, "
            "run the same command to continue"
        )

    def _take(self, event: dict[str, Any], job: dict[str, Any], lines: StepLines) -> None:
        """Record one event. Raises: TrainingError for a loss that is not finite."""
        kind = event["event"]
        if kind == "started":
            write_json(self.out_dir / "engine" / VERSIONS, event["versions"])
        elif kind == "step":
            bad = [n for n in ("loss", "grad_norm") if n in event and not math.isfinite(event[n])]
            if bad and not (bad == ["grad_norm"] and job["dtype"] == "float16"):
                raise TrainingError(
                    f"step {event['step']}: {bad[0]} {event[bad[0]]}: training diverged; lower train.learning_rate "
                    "(a third is a good try); the last checkpoint is kept"
                )
            self.state.peak_bytes = max(self.state.peak_bytes, event["peak_bytes"])
            self.report(lines.add(event, self.wall_s()))
            self.progress(f"train {self.model}", event["step"], job["max_steps"])
        elif kind == "saved":
            folder = Path(event["folder"])
            if event["step"] in job["save_steps"]:
                copy_trained(folder, self.out_dir / "engine" / f"step-{event['step']}")
            self.state.finished = event["step"] == job["max_steps"]
            self.state.wall_s = self.wall_s()
            checkpoint.seal(folder, self.state.to_json())
            checkpoint.prune(folder.parent)

    # ---- after

    def finish(self, ready: SetUp, dev_metric: Callable[[Any, Any], float]) -> dict[str, Any]:
        """Score what was saved on the dev rows, publish the best; the facts of the record.

        Raises: TrainingError where an adapter is not of this base or changes nothing, or none can be kept.
        """
        state, tuned, engine = self.state, ready.tuned, ready.settings.engine
        steps = sorted(checkpoint.step_of(path) for path in self.out_dir.glob("engine/step-*"))
        state.evals.clear()
        state.best_step, state.best_metric, state.best_loss = 0, -math.inf, math.inf
        if ready.held_out.items and isinstance(ready.held_out, Preference) and ready.held_out.has_reference:
            with ready.scoring(), ready.at_reference():
                ready.held_out.prepare(tuned, **ready.budget)
        for step in steps if ready.held_out.items else steps[-1:]:
            folder = self.out_dir / "engine" / f"step-{step}"
            require_fitting(tuned, folder, engine, self.model)
            load_trained(tuned, folder)
            with ready.scoring():
                found = (0.0, 0.0)
                if ready.held_out.items:
                    dev_loss, more = ready.held_out.measure(tuned, **ready.budget)
                    metric = float(dev_metric(tuned, ready.tokenizer))
                    state.evals.append({"step": step, "dev_metric": metric, "dev_loss": dev_loss, **more})
                    found = (state.evals[-1][kept_by(ready.settings)], dev_loss)
            if (found[0], -found[1]) > (state.best_metric, -state.best_loss):
                state.best_step, (state.best_metric, state.best_loss) = step, found
        if not state.best_step:
            why = "no dev score is a number" if steps else "none of the adapters it saved is left"
            raise TrainingError(f"{engine} trained {self.model}, and {why}; delete {self.out_dir} and train again")
        best = self.out_dir / "best" / f"step-{state.best_step}"
        load_trained(tuned, self.out_dir / "engine" / f"step-{state.best_step}")
        asked = (tuned, ready.probed_paths, ready.tokenizer.pad_token_id, ready.device)
        with bare(tuned):
            bare_logits = preflight.probe_logits(*asked)
        effect = preflight.effect_on(bare_logits, preflight.probe_logits(*asked))
        shutil.rmtree(best.parent, ignore_errors=True)
        save_trained(tuned, best)  # as ours are: float32, PEFT's names
        settings = ready.settings
        versions = read_json(self.out_dir / "engine" / VERSIONS)
        origin = origin_of(self.model, asdict(settings), ready.device.dtype)
        origin["words"] += f", trained by {engine} {versions.get(engine) or '(version unknown)'}"  # for the model card
        publish(tuned, best, self.out_dir / "adapter", ready.tokenizer, origin)
        items = ready.learned.items
        total = sum(len(path.ids) for item in items for path in item)
        return {
            "engine": engine,
            "engine_versions": versions,
            "base_format": "nf4, double quantised" if settings.method == "qlora" else ready.device.dtype,
            "packing": f"padded rows, by {engine}",
            "preflight": {finding.gate: finding.found for finding in self.findings},
            "supervised_first_row": preflight.supervised_text(ready.tokenizer, ready.learned.items[0][0]),
            "adapter_effect_logits": effect,
            "adapter_sha256": {p.name: sha256_file(p) for p in files_of(self.out_dir / "adapter")},
            "loss_tokens_frac": sum(loss.num_loss_tokens(item) for item in items) / total,
        }

    def result(self, settings: TrainSettings, device: Device, facts: dict[str, Any]) -> TrainResult:
        """The record, of the shape that our own trainer gives."""
        state, lines = self.state, read_jsonl(self.out_dir / "steps.jsonl")
        found = {row["step"]: row for row in state.evals}
        for line in lines:
            if line["step"] in found:
                line |= {k: v for k, v in found[line["step"]].items() if k != "step"}
        write_jsonl(self.out_dir / "steps.jsonl", lines)
        num_tokens = sum(line["num_tokens"] for line in lines)
        used = {
            **{k: v for k, v in asdict(settings).items() if k != "reasons"},
            **facts,
            "device": device.name,
            "device_kind": device.kind,
            "dtype": device.dtype,
            "adapter_dtype": "float32",
            "optimizer": "AdamW",
            "schedule": "cosine with warm-up",
            "versions": package_versions(),
            "peak_text": gib(state.peak_bytes),
        }
        return TrainResult(
            model=self.model,
            method=settings.method,
            adapter_dir=inside_run(self.out_dir / "adapter"),
            num_steps=lines[-1]["step"],
            stopped_early=False,
            best_step=state.best_step,
            dev_metric=state.best_metric if state.evals else None,
            wall_s=self.wall_s(),
            peak_bytes=state.peak_bytes,
            num_train_tokens=num_tokens,
            num_loss_tokens=round(num_tokens * facts["loss_tokens_frac"]),
            num_computed_tokens=sum(line["num_computed_tokens"] for line in lines),
            final_loss=lines[-1]["loss"],
            history=thin_history(lines),
            settings=used,
        )


class StepLines:
    """steps.jsonl, a line a step as our own trainer writes it."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")
        self.last_step, self.last_s = 0, time.perf_counter()

    def add(self, event: dict[str, Any], wall_s: float) -> dict[str, Any]:
        """Append a step event; returns the line."""
        now = time.perf_counter()
        tokens = event["num_tokens"]
        norm = event.get("grad_norm")
        line = {
            **{name: event[name] for name in ("step", "loss", "learning_rate")},
            "grad_norm": norm if norm is not None and math.isfinite(norm) else None,
            "num_tokens": tokens,
            "num_computed_tokens": event["num_computed_tokens"],
            "tokens_per_s": round(tokens / max(now - self.last_s, 1e-9), 1),
            "wall_s": round(wall_s, 3),
        }
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        self.last_step, self.last_s = event["step"], now
        return line

    def close(self) -> None:
        self.file.close()


def require_fitting(tuned: Any, folder: Path, engine: str, model: str) -> None:
    """Refuse an adapter whose matrices are not, by name and shape, those of this base.

    PEFT takes such a file without a word and adapts nothing.
    Raises: TrainingError.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    wanted = {name: tuple(p.shape) for name, p in get_peft_model_state_dict(tuned, save_embedding_layers=False).items()}
    with safe_open(str(folder / WEIGHTS), framework="pt") as file:
        got = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    wrong = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))
    if not wrong:
        return
    name = wrong[0]
    raise TrainingError(
        f"adapter_fits_the_base: {len(wrong)} matrices of the adapter that engine {engine} saved are not those of "
        f"{model}, first {name}: {_shape(got.get(name))} in the adapter, {_shape(wanted.get(name))} in the model; "
        f"served, such an adapter changes nothing. It is in {folder}; another version of {engine} may name them right"
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape))
