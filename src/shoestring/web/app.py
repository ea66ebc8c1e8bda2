"""The application: every page's routes behind one guard."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ..errors import ShoestringError
from . import chat_page, check_page, data_page, label_page, new_page, outputs_page, plan_page, run_page, runs_page
from .damaged import SHAPE_FAULTS, run_shown, told_of
from .guard import HEADERS, Guard
from .site import Site, page, site_of

PAGES = (
    runs_page,
    run_page,
    outputs_page,
    check_page,
    data_page,
    plan_page,
    label_page,
    chat_page,
    new_page,
)
FOREVER = "private, max-age=31536000, immutable"


def make_app(site: Site) -> Starlette:
    """The page as an ASGI application."""
    app = Starlette(
        routes=[
            Route("/static/{digest}/{name}", static),
            *(route for part in PAGES for route in part.ROUTES),
        ],
        middleware=[Middleware(Guard, site=site)],
        exception_handlers={
            HTTPException: refused,
            ShoestringError: failed,
            OSError: unreadable,
            Exception: broke,
            **dict.fromkeys(SHAPE_FAULTS, unshown),
        },
        lifespan=lifetime,
    )
    app.state.site = site
    site.body_limits |= new_page.BODY_LIMITS
    return app


@contextlib.asynccontextmanager
async def lifetime(app: Starlette) -> AsyncIterator[None]:
    """While the page is served; the models that it loaded end with it, the runs that it started go on."""
    yield
    await run_in_threadpool(app.state.site.model_server.stop)


async def static(request: Request) -> Response:
    """A file of the package."""
    found = site_of(request).by_url.get(request.url.path)
    if found is None:
        raise HTTPException(404, "no such file")
    return Response(found.content, media_type=found.media_type, headers={"Cache-Control": FOREVER})


async def refused(request: Request, error: Exception) -> Response:
    """A refusal as a page, or for a part of a page as text."""
    assert isinstance(error, HTTPException)
    return _told(request, error.status_code, error.detail)


async def failed(request: Request, error: Exception) -> Response:
    """One of our errors, which names value, limit and next step."""
    return _told(request, 422, str(error))


async def unreadable(request: Request, error: Exception) -> Response:
    """A file that is no file, may not be read, or a disk that fails: a fault of the folder, not of the page."""
    assert isinstance(error, OSError)
    what = error.filename or "a file of this folder"
    said = f"{what} cannot be read or written: {error.strerror or error}. Move it away or set its rights right"
    return _told(request, 422, f"{said}; shoestring run RUN_FILE writes what a run lacks anew.")


async def unshown(request: Request, error: Exception) -> Response:
    """What a damaged record of a run raised; anywhere else it is a fault of ours."""
    folder = run_shown(request)
    if folder is None:
        raise error
    return _told(request, 422, await run_in_threadpool(told_of, folder, error))


async def broke(request: Request, error: Exception) -> Response:
    """A fault of ours; the server goes on and writes where it was to the terminal."""
    message = (
        f"This is a fault of the page ({type(error).__name__}: {error}); the terminal of shoestring ui says where."
    )
    answer = _told(request, 500, message)
    answer.headers.update(HEADERS)  # the guard is inside of what answers here
    return answer


def _told(request: Request, status_code: int, message: str) -> Response:
    if request.headers.get("hx-request") == "true":
        return PlainTextResponse(message, status_code)
    folder = run_shown(request)
    run = folder.name if folder else ""
    return page(request, "error.html", status_code=status_code, status=status_code, message=message, run=run)
