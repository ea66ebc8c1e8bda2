"""The fine-tuning API's routes, and the service behind them. Mounted by the gateway, which says whose key asks."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...units import usd
from ..gateway.errors import ApiError
from ..gateway.keys import private_folder
from .asked import read_request, refused
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
)
from .names import TUNED, Served, Trained, trained_for
from .progress import JobRun
from .runner import OnFinished, Runner
from .settings import TuningSettings
from .store import MEGABYTE, TRAIN, Files, new_id
from .upload import receive

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

MAX_BODY_BYTES = 1_000_000  # of a request for a job
PAGE, MOST_JOBS, MOST_FILES = 20, 100, 10_000
STATE_FOLDER = ".serving"
FILES, JOBS = "/v1/files", "/v1/fine_tuning/jobs"


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list, as after and limit ask for it."""

    rows: Sequence[dict[str, Any]]
    has_more: bool

    def body(self) -> dict[str, Any]:
        ids = [row["id"] for row in self.rows]
        ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
        return {"object": "list", "data": list(self.rows), "has_more": self.has_more, **ends}


class Tuning:
    """Files, jobs and their runner under RUNS_DIR/.serving. start and close belong to the server's event loop."""

    def __init__(
        self, runs_dir: Path, settings: TuningSettings, served: Served | None, on_finished: OnFinished
    ) -> None:
        self.settings, self.served = settings, served
        home = private_folder(runs_dir / STATE_FOLDER)
        self.files = Files(home / "files", max_file_mb=settings.max_file_mb, max_stored_mb=settings.max_stored_mb)
        self.jobs = Jobs(home / "jobs")
        self.on_finished = on_finished
        self.runs_dir = runs_dir
        self.runner: Runner | None = None

    async def start(self) -> None:
        """Serve again what earlier jobs tuned, and take up the queue."""
        self.runner = Runner(self.jobs, self.files, self.settings, self.runs_dir, self.on_finished)
        for job in self.jobs.known.values():
            if job.status == SUCCEEDED:
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

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """From start to close, for the gateway."""
        await self.start()
        try:
            yield
        finally:
            await self.close()

    def body_limits(self) -> dict[str, int]:
        """Bytes of a request, by the beginning of its address; the upload itself holds files to their own limit."""
        return {FILES: self.files.max_file_bytes + MEGABYTE}

    def why_not_served(self, name: str) -> str:
        """Of a tuned model that is finished and does not answer here; empty for others."""
        job = self.jobs.tuned(name)
        return job.not_served if job else ""

    def routes(self) -> list[Route]:
        """What the gateway mounts."""
        from starlette.routing import Route

        one_file, one_job = f"{FILES}/{{file_id}}", f"{JOBS}/{{job_id}}"
        return [
            Route(FILES, self.upload, methods=["POST"]),
            Route(FILES, self.list_files, methods=["GET"]),
            Route(one_file, self.file, methods=["GET"]),
            Route(one_file, self.delete_file, methods=["DELETE"]),
            Route(f"{one_file}/content", self.file_content, methods=["GET"]),
            Route(JOBS, self.create, methods=["POST"]),
            Route(JOBS, self.list_jobs, methods=["GET"]),
            Route(one_job, self.job, methods=["GET"]),
            Route(f"{one_job}/cancel", self.cancel, methods=["POST"]),
            Route(f"{one_job}/pause", self.pause, methods=["POST"]),
            Route(f"{one_job}/resume", self.resume, methods=["POST"]),
            Route(f"{one_job}/events", self.events, methods=["GET"]),
            Route(f"{one_job}/checkpoints", self.checkpoints, methods=["GET"]),
        ]

    # ---- files ----

    async def upload(self, request: Request) -> Response:
        return _answer((await receive(request, self.files, request.state.key.name)).body())

    async def list_files(self, request: Request) -> Response:
        order = request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise refused(f"order {order[:20]!r} is neither asc nor desc", "order")
        purpose = request.query_params.get("purpose")
        found = [record.body() for record in self.files.of(_sees(request)) if purpose in (None, record.purpose)]
        return _answer(_page(request, found if order == "asc" else found[::-1], MOST_FILES, MOST_FILES).body())

    async def file(self, request: Request) -> Response:
        return _answer(self._file(request).body())

    def _file(self, request: Request) -> Any:
        return self.files.get(request.path_params["file_id"], _sees(request))

    async def delete_file(self, request: Request) -> Response:
        record = self._file(request)
        self.files.delete(record.id)
        return _answer({"id": record.id, "object": "file", "deleted": True})

    async def file_content(self, request: Request) -> Response:
        from starlette.responses import FileResponse

        record = self._file(request)
        return FileResponse(self.files.content(record.id), media_type="application/octet-stream")

    # ---- jobs ----

    async def create(self, request: Request) -> Response:
        asked = read_request(await _json(request))
        sees = _sees(request)
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
            owner=request.state.key.name,
            created_at=int(time.time()),
            model=trained.name,
            asked_model=asked.model,
            run_model=trained.model,
            start=trained.start,
            training_file=asked.training_file,
            validation_file=asked.validation_file,
            suffix=asked.suffix,
            seed=secrets.randbelow(2**31) if asked.seed is None else asked.seed,
            method=asked.method,
            hyperparameters=asked.hyperparameters,
            metadata=asked.metadata,
            organisation=self.settings.organisation,
        )
        self._runner.link_files(job)
        self.jobs.save(job)
        self.jobs.event(job, f"Created fine-tuning job: {job.id}")
        self.jobs.event(job, f"Validating training file: {job.training_file}. {trained.why}")
        self._runner.wake.set()
        return self._told(job)

    @property
    def _runner(self) -> Runner:
        assert self.runner is not None, "start was called"
        return self.runner

    def _trained(self, asked: str, sees: Callable[[str], bool]) -> Trained:
        """The model to train: a base, or what an earlier job of this key tuned. Raises: ApiError 404."""
        if not asked.startswith(TUNED):
            return trained_for(asked, self.settings, self.served)
        earlier = self.jobs.tuned(asked)
        if earlier is None or not sees(earlier.owner):
            raise ApiError(
                404,
                f"The model {asked[:200]!r} does not exist or you do not have access to it; a job goes on from what an "
                "earlier one tuned on this server",
                param="model",
                code="model_not_found",
            )
        folder = self._runner.run_folder(earlier)
        return Trained(earlier.model, earlier.run_model, f"training goes on from {asked}", str(folder))

    def _require_room(self) -> None:
        """Raises: ApiError 429 where the queue is full or the budget is spent."""
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

    async def list_jobs(self, request: Request) -> Response:
        wanted = {
            key[len("metadata[") : -1]: value
            for key, value in request.query_params.items()
            if key.startswith("metadata[") and key.endswith("]")
        }
        none_wanted = request.query_params.get("metadata") == "null"
        found = [
            job
            for job in self.jobs.of(_sees(request))
            if all((job.metadata or {}).get(key) == value for key, value in wanted.items())
            and not (none_wanted and job.metadata)
        ]
        return _answer(_page(request, [self._body(job) for job in found], PAGE, MOST_JOBS).body())

    async def job(self, request: Request) -> Response:
        return self._told(self._job(request))

    def _job(self, request: Request) -> TuningJob:
        return self.jobs.get(request.path_params["job_id"], _sees(request))

    def _body(self, job: TuningJob) -> dict[str, Any]:
        is_running = job.status == RUNNING
        estimated = JobRun(self._runner.run_folder(job)).estimated_finish() if is_running else None
        ours = {"run": job.run_name, "asked_model": job.asked_model, "spent_usd": job.spent_usd}
        return {**job.body(estimated), "shoestring": {**ours, "not_served": job.not_served or None}}

    def _told(self, job: TuningJob) -> Response:
        return _answer(self._body(job))

    async def cancel(self, request: Request) -> Response:
        job = self._job(request)
        if job.status not in (*UNDER_WAY, PAUSED):
            raise refused(f"{job.id} is {job.status} and cannot be cancelled", code="invalid_status")
        job.status, job.finished_at = CANCELLED, int(time.time())
        self.jobs.save(job)
        self.jobs.event(job, "The job was cancelled; what was trained so far stays on the server")
        self._runner.interrupt(job)
        self._runner.wake.set()
        return self._told(job)

    async def pause(self, request: Request) -> Response:
        job = self._job(request)
        if job.status not in UNDER_WAY:
            raise refused(f"{job.id} is {job.status} and cannot be paused", code="invalid_status")
        job.status = PAUSED
        self.jobs.save(job)
        self.jobs.event(job, "The job is paused; resume goes on from its last checkpoint")
        self._runner.interrupt(job)
        return self._told(job)

    async def resume(self, request: Request) -> Response:
        job = self._job(request)
        stopped_by_budget = job.status == FAILED and job.error is not None and job.error["code"] == BUDGET_CODE
        if job.status != PAUSED and not stopped_by_budget:
            raise refused(f"{job.id} is {job.status} and cannot be resumed", code="invalid_status")
        self._require_room()
        job.status = QUEUED if job.checked else VALIDATING
        job.error = job.finished_at = None
        self.jobs.save(job)
        self.jobs.event(job, "The job is resumed")
        self._runner.wake.set()
        return self._told(job)

    async def events(self, request: Request) -> Response:
        found = self.jobs.events(self._job(request))
        return _answer(_page(request, found[::-1], PAGE, MOST_JOBS).body())

    async def checkpoints(self, request: Request) -> Response:
        job = self._job(request)
        found = []
        for kept in JobRun(self._runner.run_folder(job)).checkpoints():
            number = kept["step_number"]
            found.append(
                {
                    "object": "fine_tuning.job.checkpoint",
                    "id": f"ftckpt-{job.id.removeprefix('ftjob-')}-{number}",
                    "fine_tuning_job_id": job.id,
                    "fine_tuned_model_checkpoint": f"{job.tuned_name}:ckpt-step-{number}",
                    **kept,
                }
            )
        return _answer(_page(request, found, 10, MOST_JOBS).body())


def _sees(request: Request) -> Callable[[str], bool]:
    """Whether the asking key sees what belongs to an owner: its own, and an admin's key all."""
    key = request.state.key
    return lambda owner: key.is_admin or owner == key.name


def _page(request: Request, rows: Sequence[dict[str, Any]], usual: int, most: int) -> Page:
    """Raises: ApiError 400 for a limit out of range or an id that is not in the list."""
    text = request.query_params.get("limit", str(usual))
    if not text.isdigit() or not 1 <= int(text) <= most:
        raise refused(f"limit {text[:20]!r} is no whole number from 1 to {most:,}", "limit")
    after, first = request.query_params.get("after"), 0
    if after:
        ids = [row["id"] for row in rows]
        if after not in ids:
            raise refused(f"after {after[:64]!r} is in this list no more, or never was; begin without it", "after")
        first = ids.index(after) + 1
    rest = rows[first:]
    return Page(rest[: int(text)], len(rest) > int(text))


async def _json(request: Request) -> Any:
    """The body, read to a limit. Raises: ApiError 400, 413."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise ApiError(413, f"The request is larger than {MAX_BODY_BYTES:,} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise refused(f"the body is no JSON: {str(error)[:200]}") from error


def _answer(body: Any) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(body)
