"""A fine-tuning job on disk: what was asked, how it stands, and what happened, a folder each."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import RunFolderError
from ...files import read_json, read_whole_lines, write_json
from ..gateway.errors import ApiError
from ..gateway.keys import private_folder
from .store import new_id

STATE, EVENTS, RUN_FILE, CHECKED, OUTPUT, LOG = (
    *("job.json", "events.jsonl", "run.yaml", "checked.json", "output.json", "log.txt"),
)
VALIDATING, QUEUED, RUNNING, PAUSED, SUCCEEDED, FAILED, CANCELLED = (
    *("validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"),
)
UNDER_WAY = (VALIDATING, QUEUED, RUNNING)
BUDGET_CODE = "budget_exceeded"  # of a failed job that resume continues


@dataclass(slots=True)
class TuningJob:
    """The state of a job. `number` is its place in the queue; files are ids; hyperparameters as asked."""

    id: str
    number: int
    owner: str
    created_at: int
    model: str  # as clients see it: the model that is trained
    asked_model: str
    run_model: str  # as the run file names it
    start: str  # run folder of the tuned model that training goes on from, or empty
    training_file: str
    validation_file: str | None
    suffix: str
    seed: int
    method: str  # supervised, dpo
    hyperparameters: dict[str, Any]
    metadata: dict[str, str] | None
    organisation: str
    method_of_run: str = "auto"  # of the run file
    status: str = VALIDATING
    checked: bool = False  # the files were read and the run file is written
    started_at: int | None = None
    finished_at: int | None = None
    error: dict[str, Any] | None = None
    fine_tuned_model: str | None = None
    trained_tokens: int | None = None
    result_files: list[str] = field(default_factory=list)
    spent_usd: float = 0.0
    is_deleted: bool = False  # the tuned model, by its owner
    not_served: str = ""  # why the tuned model does not answer here
    num_kills: int = 0  # in a row, without getting further

    @property
    def short_id(self) -> str:
        """Ends the names of the run and of the tuned model."""
        return self.id.removeprefix("ftjob-")[:8]

    @property
    def run_name(self) -> str:
        """Of the folder in RUNS_DIR."""
        return f"{self.suffix or 'tuned'}-{self.short_id}"

    @property
    def tuned_name(self) -> str:
        """ft:BASE:ORGANISATION:SUFFIX:ID, as the API forms it."""
        return f"ft:{self.model}:{self.organisation}:{self.suffix}:{self.short_id}"

    def body(self, estimated_finish: int | None = None) -> dict[str, Any]:
        """The API's job object."""
        return {
            "object": "fine_tuning.job",
            "id": self.id,
            "created_at": self.created_at,
            "error": self.error,
            "fine_tuned_model": self.fine_tuned_model,
            "finished_at": self.finished_at,
            "hyperparameters": {k: v for k, v in self.hyperparameters.items() if k != "beta"},
            "model": self.model,
            "organization_id": f"org-{self.organisation}",
            "result_files": self.result_files,
            "seed": self.seed,
            "status": self.status,
            "trained_tokens": self.trained_tokens,
            "training_file": self.training_file,
            "validation_file": self.validation_file,
            "estimated_finish": estimated_finish,
            "integrations": [],
            "metadata": self.metadata,
            "method": {"type": self.method, self.method: {"hyperparameters": self.hyperparameters}},
            "user_provided_suffix": self.suffix or None,
        }


class Jobs:
    """All jobs of a server, oldest first; every change is on disk before it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        private_folder(folder)
        for half in [path for path in folder.glob("ftjob-*") if not (path / STATE).is_file()]:
            shutil.rmtree(half, ignore_errors=True)  # its making was cut short, and nobody was told of it
        self.known = {job.id: job for job in sorted(self._read(), key=lambda job: job.number)}

    def _read(self) -> list[TuningJob]:
        found = []
        for path in self.folder.glob(f"ftjob-*/{STATE}"):
            try:
                found.append(TuningJob(**read_json(path)))
            except (OSError, ValueError, TypeError) as error:
                raise RunFolderError(f"{path}: damaged ({error}); move its folder away to go on without it") from error
        return found

    def path(self, job: TuningJob) -> Path:
        return self.folder / job.id

    def next_number(self) -> int:
        return max((job.number for job in self.known.values()), default=0) + 1

    def save(self, job: TuningJob) -> None:
        """Durably; a new job is known from here on."""
        path = self.path(job) / STATE
        path.parent.mkdir(exist_ok=True, mode=0o700)
        write_json(path, asdict(job))
        path.chmod(0o600)
        self.known[job.id] = job

    def of(self, sees: Callable[[str], bool]) -> list[TuningJob]:
        """Jobs whose owner passes, newest first."""
        return [job for job in reversed(self.known.values()) if sees(job.owner)]

    def get(self, job_id: str, sees: Callable[[str], bool]) -> TuningJob:
        """Raises: ApiError 404 for no such job, or one of another key."""
        job = self.known.get(job_id)
        if job is None or not sees(job.owner):
            raise ApiError(
                404, f"Could not find fine tune: {job_id[:64]}", param="fine_tune_id", code="fine_tune_not_found"
            )
        return job

    def tuned(self, name: str) -> TuningJob | None:
        """The job whose model has this name."""
        return next((job for job in self.known.values() if job.fine_tuned_model == name), None)

    # ---- events ----

    def event(
        self, job: TuningJob, message: str, *, level: str = "info", kind: str = "message",
        data: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Append what happened; the line is durable."""
        self.append(job, [line_of(message, level, kind, data or {})])

    def append(self, job: TuningJob, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append events; a line that a kill cut short is closed first."""
        path = self.path(job) / EVENTS
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            file.write((b"\n" if torn else b"") + b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            file.flush()
            os.fsync(descriptor)

    def events(self, job: TuningJob) -> list[dict[str, Any]]:
        """What happened, oldest first; a line that a kill cut short is left out."""
        path = self.path(job) / EVENTS
        return read_whole_lines(path) if path.is_file() else []


def line_of(message: str, level: str, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The API's event object, of now."""
    return {
        "object": "fine_tuning.job.event",
        "id": new_id("ftevent-"),
        "created_at": int(time.time()),
        "level": level,
        "message": message,
        "type": kind,
        "data": dict(data),
    }
