"""The gateway as an ASGI application: routes behind one guard, refusals in the API's shape."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ..registry import Registry
from .errors import ApiError
from .guard import Guard, answer
from .keys import Keys

MAX_BODY_BYTES = 4 << 20


@dataclass
class Gateway:
    """What the routes share. registry and tokenizer: None where no model is served (fine-tuning jobs alone).

    body_limits: bytes a request to an address that begins so may have, else MAX_BODY_BYTES.
    """

    state: Path  # RUNS_DIR/.serving
    keys: Keys
    registry: Registry | None = None
    tokenizer: Any = None
    body_limits: Mapping[str, int] = field(default_factory=dict)

    def max_body_bytes(self, path: str) -> int:
        """Of a request to path."""
        of_path = [limit for start, limit in self.body_limits.items() if path.startswith(start)]
        return max(of_path, default=MAX_BODY_BYTES)


Lifespan = Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]


def make_app(gateway: Gateway, more_routes: Sequence[BaseRoute] = (), lifespans: Sequence[Lifespan] = ()) -> Starlette:
    """The application. more_routes and lifespans: of other parts, behind the same guard."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for each in lifespans:
                await stack.enter_async_context(each(app))
            yield

    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", retrieve_model),
            *more_routes,
        ],
        middleware=[Middleware(Guard, keys=gateway.keys, max_body_bytes=gateway.max_body_bytes)],
        exception_handlers={ApiError: refused, HTTPException: no_such_route, Exception: failed},
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    return app


def gateway_of(request: Request) -> Gateway:
    """What the routes share, for a handler."""
    found: Gateway = request.app.state.gateway
    return found


async def health(request: Request) -> Response:
    """Whether it answers."""
    return JSONResponse({"status": "ok"})


async def list_models(request: Request) -> Response:
    """GET /v1/models."""
    registry = gateway_of(request).registry
    return JSONResponse({"object": "list", "data": registry.listing() if registry else []})


async def retrieve_model(request: Request) -> Response:
    """GET /v1/models/NAME."""
    registry, name = gateway_of(request).registry, request.path_params["name"]
    for entry in registry.listing() if registry else ():
        if entry["id"] == name:
            return JSONResponse(entry)
    raise unknown_model(name, registry)


def unknown_model(name: str, registry: Registry | None) -> ApiError:
    """404, with the models there are."""
    known = ", ".join(str(entry["id"]) for entry in registry.listing()) if registry else "none"
    return ApiError(
        404,
        f"The model {name[:200]!r} does not exist or you do not have access to it. Models here: {known}.",
        param="model",
        code="model_not_found",
    )


async def refused(request: Request, error: Exception) -> Response:
    """One of our refusals."""
    assert isinstance(error, ApiError)
    return answer(error)


async def no_such_route(request: Request, error: Exception) -> Response:
    """Starlette's own refusals in the API's shape."""
    assert isinstance(error, HTTPException)
    words = {404: f"Unknown address {request.url.path[:200]}.", 405: f"{request.method} is not taken here."}
    found = ApiError(error.status_code, words.get(error.status_code, str(error.detail)))
    response = answer(found)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def failed(request: Request, error: Exception) -> Response:
    """Our fault: told without its text, which may hold the request's."""
    return answer(ApiError(500, f"The server failed on this request ({request.state.id}); its log says why."))
