"""Step metrics to TensorBoard, Weights & Biases, MLflow or Trackio, through transformers' own integrations.

A continued training goes on in the tracker's same run, whose id is in each checkpoint, and reports each step once:
steps that a lost session reported already are left out (they are the same to the bit), or, in TensorBoard's files,
marked as replaced.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput, MissingDependency
from ..files import read_whole_lines
from ..records import Log, TrainSettings, no_log
from ..secrets import without_secrets

PROJECT = "shoestring"
OUR_NAMES = {"dev_metric": "eval_dev_metric", "dev_loss": "eval_dev_loss"}  # eval_: so that trackers group them
LEFT_OUT = ("step", "wall_s")
# What a person can do where a tracker does not start.
REMEDY = {
    "wandb": "run `wandb login`, or set WANDB_MODE=offline",
    "mlflow": "set MLFLOW_TRACKING_URI to a server or to a file such as sqlite:///mlflow.db",
}


@dataclass(frozen=True, slots=True)
class Tracking:
    """Which trackers, and what the run is called there."""

    trackers: tuple[str, ...] = ()
    run_name: str = ""


NO_TRACKING = Tracking()


def require_trackers(trackers: Sequence[str]) -> None:
    """Raises: MissingDependency with the install line, before anything is trained."""
    missing = []
    for name in trackers:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise MissingDependency(
            f"train.trackers: {', '.join(missing)} not installed; install with: pip install {' '.join(missing)}"
        )


class Trackers:
    """The trackers of one training; `log` takes a line of steps.jsonl. As a context it ends their runs."""

    def __init__(self, tracking: Tracking, out_dir: Path, settings: TrainSettings, log: Log = no_log) -> None:
        is_first = int(os.environ.get("RANK", "0")) == 0  # of several processes the first one reports
        self.tracking = tracking if is_first else Tracking()
        self.out_dir, self.settings, self.say = out_dir, settings, log
        steps = out_dir / "steps.jsonl"
        lines = read_whole_lines(steps) if self.tracking.trackers and steps.is_file() else []
        self.reported_step = max((line["step"] for line in lines), default=0)
        self.running: dict[str, Any] = {}
        self.ids: dict[str, str] = {}

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *raised: Any) -> None:
        for name in list(self.running):
            self._call(name, lambda callback: callback.on_train_end(self.args, self.state, self.control))
            if name == "wandb" and name in self.running:  # else the next rung would report to this run
                self._call(name, lambda callback: importlib.import_module("wandb").finish())
        self.running.clear()

    def begin(self, ids: dict[str, str], step: int) -> None:
        """Start or continue each tracker's run after a step; ids, of a checkpoint, are filled in.

        Raises: BadInput where a tracker does not start.
        """
        if self.tracking.trackers and not self.running:
            self._prepare()
            self.reported_step = self.reported_step if ids else step
            for name in self.tracking.trackers:
                self.ids[name] = ids.get(name) or secrets.token_hex(8)
                try:
                    self.running[name] = START.get(name, _started)(self, name, step, name in ids)
                except Exception as error:  # each tracker has exceptions of its own
                    remedy = REMEDY.get(name, "see its documentation")
                    raise BadInput(
                        f"train.trackers: {name} does not start ({type(error).__name__}: {_first_line(error)}); "
                        f"{remedy}, or take it out of the run file"
                    ) from error
        ids.update(self.ids)

    def log(self, line: dict[str, Any]) -> None:
        """Report a step once. A tracker that fails is named and given up; training goes on."""
        if not self.running:
            return
        seen = line["step"] <= self.reported_step
        self.reported_step = max(self.reported_step, line["step"])
        self.state.global_step = line["step"]
        values = {OUR_NAMES.get(k, k): v for k, v in line.items() if k not in LEFT_OUT and v is not None}
        for name in list(self.running):
            if name == "tensorboard" or not seen:
                self._call(
                    name, lambda callback: callback.on_log(self.args, self.state, self.control, logs=dict(values))
                )

    def _prepare(self) -> None:
        """The Trainer's objects that integrations read, with our settings in place of TrainingArguments' hundred."""
        from transformers import TrainerControl, TrainerState, TrainingArguments

        from .trainer import NOT_OF_THE_RESULT

        told = {k: v for k, v in asdict(self.settings).items() if k not in NOT_OF_THE_RESULT}

        class Told(TrainingArguments):
            def to_dict(self) -> dict[str, Any]:
                return told

        self.args = Told(
            output_dir=str(self.out_dir), run_name=self.tracking.run_name, project=PROJECT, report_to="none"
        )
        self.state, self.control = TrainerState(), TrainerControl()

    def _call(self, name: str, doing: Callable[[Any], None]) -> None:
        try:
            doing(self.running[name])
        except Exception as error:  # as above; hours of training are not lost for a curve
            self.say(f"train.trackers: {name} failed ({_first_line(error)}); it gets no further step")
            del self.running[name]


def _first_line(error: BaseException) -> str:
    return without_secrets(next(iter(str(error).strip().splitlines()), type(error).__name__))


def _callback(name: str) -> Any:
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    return get_reporting_integration_callbacks([name])[0]


def _started(trackers: Trackers, name: str, step: int, continues: bool) -> Any:
    made = _callback(name)()
    made.on_train_begin(trackers.args, trackers.state, trackers.control)
    return made


def _tensorboard(trackers: Trackers, name: str, step: int, continues: bool) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    folder = os.environ.get("TENSORBOARD_LOGGING_DIR") or str(trackers.out_dir / "tensorboard" / trackers.ids[name])
    writer = SummaryWriter(log_dir=os.path.expanduser(folder), purge_step=step + 1 if continues else None)
    made = _callback(name)(tb_writer=writer)
    made.on_train_begin(trackers.args, trackers.state, trackers.control)
    return made


def _wandb(trackers: Trackers, name: str, step: int, continues: bool) -> Any:
    os.environ.setdefault("WANDB_PROJECT", PROJECT)
    with _environment(WANDB_RUN_ID=trackers.ids[name], WANDB_RESUME="allow"):
        return _started(trackers, name, step, continues)


def _mlflow(trackers: Trackers, name: str, step: int, continues: bool) -> Any:
    import mlflow  # type: ignore[import-not-found]

    os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", PROJECT)
    with _environment(**({"MLFLOW_RUN_ID": trackers.ids[name]} if continues else {})):
        made = _started(trackers, name, step, continues)
    trackers.ids[name] = mlflow.active_run().info.run_id  # MLflow chooses it
    return made


def _trackio(trackers: Trackers, name: str, step: int, continues: bool) -> Any:
    # Trackio continues a run by its name, so that needs the id in it.
    trackers.args.run_name = f"{trackers.tracking.run_name} {trackers.ids[name]}"
    try:
        return _started(trackers, name, step, continues)
    finally:
        trackers.args.run_name = trackers.tracking.run_name


class _environment:
    """Environment variables for as long as the block runs."""

    def __init__(self, **values: str) -> None:
        self.values = values

    def __enter__(self) -> None:
        self.before = {name: os.environ.get(name) for name in self.values}
        os.environ.update(self.values)

    def __exit__(self, *raised: Any) -> None:
        for name, value in self.before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


START: dict[str, Callable[[Trackers, str, int, bool], Any]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
