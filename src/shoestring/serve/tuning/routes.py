"""The addresses of the fine-tuning API. The gateway says whose key asks, and turns ApiError into answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..gateway.errors import ApiError
from .asked import read_request, refused, whole
from .service import Tuning
from .store import MEGABYTE
from .upload import receive

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from .jobs import TuningJob
    from .store import StoredFile

FILES, JOBS = "/v1/files", "/v1/fine_tuning/jobs"
MAX_BODY_BYTES = 1_000_000  # of a request for a job
PAGE, CHECKPOINTS_PAGE, MOST_JOBS, MOST_FILES = 20, 10, 100, 10_000


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list, as after and limit ask for it."""

    rows: Sequence[dict[str, Any]]
    has_more: bool

    def body(self) -> dict[str, Any]:
        ids = [row["id"] for row in self.rows]
        ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
        return {"object": "list", "data": list(self.rows), "has_more": self.has_more, **ends}


def body_limits(tuning: Tuning) -> dict[str, int]:
    """Bytes of a request, by the beginning of its address; the upload itself holds files to their own limit."""
    return {FILES: tuning.files.max_file_bytes + MEGABYTE}


def routes(tuning: Tuning) -> list[Route]:
    """What the gateway mounts."""
    from starlette.routing import Route

    at = Handlers(tuning)
    one_file, one_job = f"{FILES}/{{file_id}}", f"{JOBS}/{{job_id}}"
    return [
        Route(FILES, at.upload, methods=["POST"]),
        Route(FILES, at.list_files, methods=["GET"]),
        Route(one_file, at.file, methods=["GET"]),
        Route(one_file, at.delete_file, methods=["DELETE"]),
        Route(f"{one_file}/content", at.file_content, methods=["GET"]),
        Route(JOBS, at.create, methods=["POST"]),
        Route(JOBS, at.list_jobs, methods=["GET"]),
        Route(one_job, at.job, methods=["GET"]),
        Route(f"{one_job}/cancel", at.cancel, methods=["POST"]),
        Route(f"{one_job}/pause", at.pause, methods=["POST"]),
        Route(f"{one_job}/resume", at.resume, methods=["POST"]),
        Route(f"{one_job}/events", at.events, methods=["GET"]),
        Route(f"{one_job}/checkpoints", at.checkpoints, methods=["GET"]),
        Route("/v1/fine_tuning/checkpoints/{name:path}/permissions", at.permissions, methods=["GET", "POST"]),
        Route("/v1/models/{name:path}", at.delete_model, methods=["DELETE"]),
    ]


class Handlers:
    """One method an address."""

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning

    # ---- files ----

    async def upload(self, request: Request) -> Response:
        return _answer((await receive(request, self.tuning.files, request.state.key.name)).body())

    async def list_files(self, request: Request) -> Response:
        order = request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise refused(f"order {order[:20]!r} is neither asc nor desc", "order")
        purpose = request.query_params.get("purpose")
        found = [record.body() for record in self.tuning.files.of(_sees(request)) if purpose in (None, record.purpose)]
        return _answer(_page(request, found if order == "asc" else found[::-1], MOST_FILES, MOST_FILES).body())

    async def file(self, request: Request) -> Response:
        return _answer(self._file(request).body())

    def _file(self, request: Request) -> StoredFile:
        return self.tuning.files.get(request.path_params["file_id"], _sees(request))

    async def delete_file(self, request: Request) -> Response:
        record = self._file(request)
        self.tuning.files.delete(record.id)
        return _answer({"id": record.id, "object": "file", "deleted": True})

    async def file_content(self, request: Request) -> Response:
        from starlette.responses import FileResponse

        path = self.tuning.files.content(self._file(request).id)
        return FileResponse(path, media_type="application/octet-stream")

    # ---- jobs ----

    async def create(self, request: Request) -> Response:
        asked = read_request(await _json(request))
        return self._told(self.tuning.create(asked, request.state.key.name, _sees(request)))

    async def list_jobs(self, request: Request) -> Response:
        wanted = {
            key[len("metadata[") : -1]: value
            for key, value in request.query_params.items()
            if key.startswith("metadata[") and key.endswith("]")
        }
        none_wanted = request.query_params.get("metadata") == "null"
        found = [
            job
            for job in self.tuning.jobs.of(_sees(request))
            if all((job.metadata or {}).get(key) == value for key, value in wanted.items())
            and not (none_wanted and job.metadata)
        ]
        return _answer(_page(request, [self.tuning.body(job) for job in found], PAGE, MOST_JOBS).body())

    def _job(self, request: Request) -> TuningJob:
        return self.tuning.jobs.get(request.path_params["job_id"], _sees(request))

    def _told(self, job: TuningJob) -> Response:
        return _answer(self.tuning.body(job))

    async def job(self, request: Request) -> Response:
        return self._told(self._job(request))

    async def cancel(self, request: Request) -> Response:
        job = self._job(request)
        self.tuning.cancel(job)
        return self._told(job)

    async def pause(self, request: Request) -> Response:
        job = self._job(request)
        self.tuning.pause(job)
        return self._told(job)

    async def resume(self, request: Request) -> Response:
        job = self._job(request)
        self.tuning.resume(job)
        return self._told(job)

    async def events(self, request: Request) -> Response:
        found = self.tuning.jobs.events(self._job(request))
        return _answer(_page(request, found[::-1], PAGE, MOST_JOBS).body())

    async def checkpoints(self, request: Request) -> Response:
        found = self.tuning.checkpoints(self._job(request))
        return _answer(_page(request, found, CHECKPOINTS_PAGE, MOST_JOBS).body())

    async def permissions(self, request: Request) -> Response:
        raise refused(
            "permissions of checkpoints are not offered here: every key of this server may ask every model it serves",
            code="unsupported_endpoint",
        )

    async def delete_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        await self.tuning.delete_model(name, _sees(request))
        return _answer({"id": name, "object": "model", "deleted": True})


def _sees(request: Request) -> Callable[[str], bool]:
    """Whether the asking key sees what belongs to an owner: its own, and an admin's key all."""
    key = request.state.key
    return lambda owner: key.is_admin or owner == key.name


def _page(request: Request, rows: Sequence[dict[str, Any]], usual: int, most: int) -> Page:
    """Raises: ApiError 400 for a limit out of range or an id that is not in the list."""
    text = request.query_params.get("limit", str(usual))
    limit = whole(text, 1, most)
    if limit is None:
        raise refused(f"limit {text[:20]!r} is no whole number from 1 to {most:,}", "limit")
    after, first = request.query_params.get("after"), 0
    if after:
        ids = [row["id"] for row in rows]
        if after not in ids:
            raise refused(f"after {after[:64]!r} is in this list no more, or never was; begin without it", "after")
        first = ids.index(after) + 1
    rest = rows[first:]
    return Page(rest[:limit], len(rest) > limit)


async def _json(request: Request) -> Any:
    """The body, read to a limit. Raises: ApiError 400, 413."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise ApiError(413, f"The request is larger than {MAX_BODY_BYTES:,} bytes")
    try:
        body = json.loads(data)
        json.dumps(body, ensure_ascii=False).encode()  # half a character pair could not be answered either
        return body
    except (ValueError, RecursionError) as error:
        raise refused(f"the body is no JSON: {str(error)[:200]}") from error


def _answer(body: Any) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(body)
