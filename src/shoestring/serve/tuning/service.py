"""Files, jobs and their queue as one service, which the gateway starts and ends; the routes are in routes.py."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...errors import BadInput
from ...units import usd
from ..gateway.errors import ApiError
from ..gateway.keys import private_folder
from ..gateway.tuning_settings import TuningSettings
from ..registry import check_name
from .asked import Asked, refused
from .jobs import (
    BUDGET_CODE,
    CANCELLED,
    FAILED,
    PAUSED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    UNDER_WAY,
    VALIDATING,
    Jobs,
    TuningJob,
)  # fmt: skip
from .names import TUNED, Served, Trained, trained_for
from .progress import JobRun
from .runner import OnFinished, Runner
from .store import TRAIN, Files, new_id

STATE_FOLDER = ".serving"
# Unload a tuned model, by name, where it is loaded.
OnDeleted = Callable[[str], Awaitable[None]]
Sees = Callable[[str], bool]  # whether a key sees what belongs to the key of this name


async def not_served_here(folder: Path, name: str) -> str:
    """Of a server without a base."""
    return "this server has no base loaded; start it with a run of the same base: shoestring serve RUN --tuning"


async def nothing_to_drop(name: str) -> None:
    """Of a server without a base."""


class Tuning:
    """Files, jobs and their runner under RUNS_DIR/.serving. start and close belong to the server's event loop."""

    def __init__(
        self,
        runs_dir: Path,
        settings: TuningSettings,
        served: Served | None = None,
        on_finished: OnFinished = not_served_here,
        on_deleted: OnDeleted = nothing_to_drop,
    ) -> None:
        """served: the base of the gateway. Raises: BadInput where another server has the folder; RunFolderError."""
        self.settings, self.served = settings, served
        runs_dir = runs_dir.resolve()  # runs are started in folders of their own
        home = private_folder(runs_dir / STATE_FOLDER)
        self.lock = FileLock(home / "tuning.lock", timeout=0, thread_local=False, mode=0o600)
        try:
            self.lock.acquire()
        except Timeout:
            raise BadInput(
                f"another server carries out the fine-tuning jobs of {runs_dir}; stop it, or give this one a folder of "
                "its own with --runs-dir"
            ) from None
        self.files = Files(home / "files", max_file_mb=settings.max_file_mb, max_stored_mb=settings.max_stored_mb)
        self.jobs = Jobs(home / "jobs")
        self.on_finished, self.on_deleted = on_finished, on_deleted
        self.runs_dir = runs_dir
        self.runner: Runner | None = None

    async def start(self) -> None:
        """Serve again what earlier jobs tuned, and take up the queue."""
        self.runner = Runner(self.jobs, self.files, self.settings, self.runs_dir, self.on_finished)
        for job in self.jobs.known.values():
            if job.status == SUCCEEDED and not job.is_deleted:
                assert job.fine_tuned_model is not None
                why = await self.on_finished(self.runner.run_folder(job), job.fine_tuned_model)
                if why != job.not_served:
                    job.not_served = why
                    self.jobs.save(job)
        self.runner.start()

    async def close(self) -> None:
        """A run under way saves a checkpoint and goes on with the next server."""
        if self.runner is not None:
            await self.runner.close()
        self.lock.release()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """From start to close, for the gateway."""
        await self.start()
        try:
            yield
        finally:
            await self.close()

    def why_not_served(self, name: str) -> str:
        """Of a tuned model that is finished and does not answer here; empty for others, and for one that is deleted."""
        job = self.jobs.tuned(name)
        return job.not_served if job and not job.is_deleted else ""

    @property
    def _runner(self) -> Runner:
        assert self.runner is not None, "start was called"
        return self.runner

    def create(self, asked: Asked, owner: str, sees: Sees) -> TuningJob:
        """A new job, on disk and in the queue. Raises: ApiError 400, 404, 429, 503."""
        trained = self._trained(asked.model, sees)
        for param, file_id in (("training_file", asked.training_file), ("validation_file", asked.validation_file)):
            if file_id is None:
                continue
            record = self.files.get(file_id, sees, param)
            if record.purpose != TRAIN:
                raise refused(f"{file_id} has purpose {record.purpose}, and {param} needs {TRAIN}", param)
        self._require_room()
        job = TuningJob(
            id=new_id("ftjob-"),
            number=self.jobs.next_number(),
            owner=owner,
            created_at=int(time.time()),
            model=trained.name,
            asked_model=asked.model,
            run_model=trained.model,
            start=trained.start,
            method_of_run=self._method_of_run(trained),
            training_file=asked.training_file,
            validation_file=asked.validation_file,
            suffix=asked.suffix,
            seed=secrets.randbelow(2**31) if asked.seed is None else asked.seed,
            method=asked.method,
            hyperparameters=asked.hyperparameters,
            metadata=asked.metadata,
            organisation=self.settings.organisation,
        )
        try:  # now, and not once it is trained
            check_name(job.tuned_name)
        except BadInput as error:
            raise refused(f"the tuned model would have no name: {error}; give a shorter suffix", "suffix") from None
        self._runner.link_files(job)
        self.jobs.save(job)
        self.jobs.event(job, f"Created fine-tuning job: {job.id}")
        self.jobs.event(job, f"Validating training file: {job.training_file}. {trained.why}")
        self._runner.wake.set()
        return job

    def _trained(self, asked: str, sees: Sees) -> Trained:
        """The model to train: a base, or what an earlier job of this key tuned. Raises: ApiError 404."""
        if not asked.startswith(TUNED):
            return trained_for(asked, self.settings, self.served)
        earlier = self.jobs.tuned(asked)
        if earlier is None or earlier.is_deleted or not sees(earlier.owner):
            raise ApiError(
                404,
                f"The model {asked[:200]!r} does not exist or you do not have access to it; a job goes on from what an "
                "earlier one tuned on this server",
                param="model",
                code="model_not_found",
            )
        folder = self._runner.run_folder(earlier)
        return Trained(earlier.model, earlier.run_model, f"training goes on from {asked}", str(folder))

    def _method_of_run(self, trained: Trained) -> str:
        """On the served base as the engine holds it: an adapter is served on what it was trained on alone."""
        on_nf4 = self.served is not None and self.served.on_nf4 and trained.model == self.served.model
        return "qlora" if on_nf4 else "auto"

    def _require_room(self) -> None:
        """Raises: ApiError 429 where the queue is full or the budget is spent, 503 where it has broken down."""
        if fault := self._runner.failed():
            raise ApiError(503, f"The queue of this server has stopped ({type(fault).__name__}); its log says why")
        num = sum(job.status in UNDER_WAY for job in self.jobs.known.values())
        if num >= self.settings.max_jobs:
            raise ApiError(
                429,
                f"{num} jobs wait or run, and {self.settings.max_jobs} is the limit of this server (max_jobs)",
                code="rate_limit_exceeded",
                retry_after_s=60.0,
            )
        spent_usd = self._runner.spent_usd()
        if spent_usd >= self.settings.budget_usd:
            raise ApiError(
                429,
                f"The jobs of this server have cost {usd(spent_usd)}, its budget is {usd(self.settings.budget_usd)}; "
                "its owner can raise it (budget_usd)",
                code="insufficient_quota",
            )

    def cancel(self, job: TuningJob) -> None:
        """End a job for good; what it trained so far stays in its run folder. Raises: ApiError 400."""
        if job.status not in (*UNDER_WAY, PAUSED) or self._runner.is_finishing(job):
            raise self._too_late(job, "cancelled")
        job.status, job.finished_at = CANCELLED, int(time.time())
        self.jobs.save(job)
        self.jobs.event(job, "The job was cancelled; what was trained so far stays on the server")
        self._runner.interrupt(job)
        self._runner.wake.set()

    def _too_late(self, job: TuningJob, what: str) -> ApiError:
        state = "trained, its model is being loaded," if self._runner.is_finishing(job) else job.status
        return refused(f"{job.id} is {state} and cannot be {what}", code="invalid_status")

    def pause(self, job: TuningJob) -> None:
        """Stop a job so that it can go on; one that trains saves a checkpoint. Raises: ApiError 400."""
        if job.status not in UNDER_WAY or self._runner.is_finishing(job):
            raise self._too_late(job, "paused")
        job.status = PAUSED
        self.jobs.save(job)
        self.jobs.event(job, "The job is paused; resume goes on from its last checkpoint")
        self._runner.interrupt(job)

    def resume(self, job: TuningJob) -> None:
        """Queue a paused job again, or one that a budget stopped. Raises: ApiError 400, 429."""
        stopped_by_budget = job.status == FAILED and job.error is not None and job.error["code"] == BUDGET_CODE
        if job.status != PAUSED and not stopped_by_budget:
            raise refused(f"{job.id} is {job.status} and cannot be resumed", code="invalid_status")
        self._require_room()
        job.status = QUEUED if job.checked else VALIDATING
        job.error = job.finished_at = None
        self.jobs.save(job)
        self.jobs.event(job, "The job is resumed")
        self._runner.wake.set()

    async def delete_model(self, name: str, sees: Sees) -> None:
        """A tuned model answers no longer; its run stays in the owner's folder. Raises: ApiError 404."""
        job = self.jobs.tuned(name)
        if job is None or not sees(job.owner) or job.is_deleted:
            raise ApiError(
                404,
                f"The model {name[:200]!r} does not exist, or no job of yours tuned it; those alone can be deleted",
                param="model",
                code="model_not_found",
            )
        job.is_deleted, job.not_served = True, f"{name} was deleted"
        self.jobs.save(job)
        await self.on_deleted(name)
        self.jobs.event(job, f"The model {name} was deleted")

    def body(self, job: TuningJob) -> dict[str, Any]:
        """The API's job object, with what is ours under shoestring."""
        is_running = job.status == RUNNING
        estimated = JobRun(self._runner.run_folder(job)).estimated_finish() if is_running else None
        ours = {"run": job.run_name, "asked_model": job.asked_model, "spent_usd": job.spent_usd}
        return {**job.body(estimated), "shoestring": {**ours, "not_served": job.not_served or None}}

    def checkpoints(self, job: TuningJob) -> list[dict[str, Any]]:
        """The API's checkpoint objects of the adapters that training kept, newest first."""
        return [
            {
                "object": "fine_tuning.job.checkpoint",
                "id": f"ftckpt-{job.id.removeprefix('ftjob-')}-{kept['step_number']}",
                "fine_tuning_job_id": job.id,
                "fine_tuned_model_checkpoint": f"{job.tuned_name}:ckpt-step-{kept['step_number']}",
                **kept,
            }
            for kept in JobRun(self._runner.run_folder(job)).checkpoints()
        ]
