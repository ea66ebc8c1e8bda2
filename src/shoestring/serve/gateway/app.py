"""The gateway as an ASGI application: routes behind one guard, refusals in the API's shape."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ...errors import BadInput
from ..registry import Registry, Served
from .answering import GONE, body_of
from .asking import unknown_model
from .chat import chat
from .completions import completions
from .errors import ApiError
from .guard import Guard, answer
from .keys import Keys
from .limits import Gate, Limits
from .metrics import Metrics
from .prompts import Prompts
from .usage import MachineTime, UsageLog

BYTES_PER_MB = 10**6


@dataclass
class Gateway:
    """What the routes share. registry and tokenizer: None where no model is served (fine-tuning jobs alone).

    whole: the run whose every weight was trained, where the base served is that one.
    body_limits: bytes a request to an address that begins so may have, else what the limits say.
    """

    state: Path  # RUNS_DIR/.serving
    keys: Keys
    registry: Registry | None = None
    tokenizer: Any = None
    whole: Served | None = None
    limits: Limits = field(default_factory=Limits)
    usd_per_hour: float | None = None
    body_limits: Mapping[str, int] = field(default_factory=dict)
    why_not_served: Callable[[str], str] = lambda name: ""  # of a model that is here and does not answer

    def __post_init__(self) -> None:
        self.prompts = Prompts(self.tokenizer) if self.tokenizer is not None else None
        self.gate = Gate(self.limits)
        self.machine = MachineTime()
        self.engine_fault = ""  # why it was down when it was last asked
        self.metrics = Metrics(self.registry.engine.stats if self.registry else None)
        self.metrics.in_flight.set_function(lambda: self.gate.num_in_flight)
        self.usage = UsageLog(self.state / "usage.jsonl", self.usd_per_hour)
        self.metrics.usage_waiting.set_function(lambda: self.usage.num_waiting)

    @property
    def fingerprint(self) -> str:
        """Changes with the base's weights or tokenizer."""
        found = self.registry.base.print if self.registry else None
        return f"fp_{found.weights[:10]}{found.tokenizer[:6]}" if found else "fp_none"

    def max_body_bytes(self, path: str) -> int:
        """Of a request to path."""
        of_path = [limit for start, limit in self.body_limits.items() if path.startswith(start)]
        return max(of_path, default=int(self.limits.max_body_mb * BYTES_PER_MB))

    def close(self) -> None:
        """Once nothing is answered any more."""
        self.usage.close()
        if self.prompts is not None:
            self.prompts.close()


Lifespan = Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]


def make_app(gateway: Gateway, more_routes: Sequence[BaseRoute] = (), lifespans: Sequence[Lifespan] = ()) -> Starlette:
    """The application. more_routes and lifespans: of other parts, behind the same guard."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for each in lifespans:
                await stack.enter_async_context(each(app))
            yield
        gateway.close()

    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", retrieve_model),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/metrics", metrics),
            Route("/admin/keys", list_keys),
            Route("/admin/keys", add_key, methods=["POST"]),
            Route("/admin/keys/{name}", remove_key, methods=["DELETE"]),
            *more_routes,
        ],
        middleware=[Middleware(Guard, keys=gateway.keys, max_body_bytes=gateway.max_body_bytes)],
        exception_handlers={
            ApiError: refused,
            HTTPException: no_such_route,
            ClientDisconnect: left,
            Exception: failed,
        },
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    return app


def gateway_of(request: Request) -> Gateway:
    """What the routes share, for a handler."""
    found: Gateway = request.app.state.gateway
    return found


async def health(request: Request) -> Response:
    """Whether it answers; 503 once the engine was found to be down, until it answers again."""
    is_down = bool(gateway_of(request).engine_fault)
    return JSONResponse({"status": "engine down" if is_down else "ok"}, 503 if is_down else 200)


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


async def metrics(request: Request) -> Response:
    """GET /metrics."""
    return Response(gateway_of(request).metrics.text(), media_type="text/plain; version=0.0.4")


async def list_keys(request: Request) -> Response:
    """GET /admin/keys: names and dates."""
    return JSONResponse({"object": "list", "data": gateway_of(request).keys.listing()})


async def add_key(request: Request) -> Response:
    """POST /admin/keys {"name"}: a new key, told this once."""
    try:
        asked = json.loads(await body_of(request))
        name = asked["name"] if set(asked) == {"name"} else None
    except (ValueError, KeyError, TypeError, RecursionError):
        name = None
    if not isinstance(name, str):
        raise ApiError(400, 'Send {"name": NAME} and nothing else; limits by name stand in the file of --limits.')
    try:
        key = gateway_of(request).keys.add(name)
    except BadInput as error:
        raise ApiError(400, str(error), param="name") from None
    return JSONResponse({"name": name, "key": key}, 201)


async def remove_key(request: Request) -> Response:
    """DELETE /admin/keys/NAME."""
    name = request.path_params["name"]
    try:
        gateway_of(request).keys.remove(name)
    except BadInput as error:
        raise ApiError(404, str(error), param="name") from None
    return JSONResponse({"name": name, "deleted": True})


async def left(request: Request, error: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=GONE)


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
