"""Adapters loaded, reloaded and dropped while serving: by the name of a run, with the admin key, never by a path.

GET    /admin/adapters
POST   /admin/adapters         {"run": "tickets", "name": "tickets-v2"}    name: default the run's own
DELETE /admin/adapters/NAME
"""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...errors import BadInput, ShoestringError
from ..registry import Registry, Served
from .answering import as_api_error, body_of
from .errors import ApiError


def routes() -> list[Route]:
    """For make_app; the guard lets the admin key alone come here."""
    return [
        Route("/admin/adapters", listing, methods=["GET"]),
        Route("/admin/adapters", load, methods=["POST"]),
        Route("/admin/adapters/{name:path}", drop, methods=["DELETE"]),
    ]


def _registry(request: Request) -> Registry:
    registry: Registry | None = request.app.state.gateway.registry
    if registry is None:
        raise ApiError(409, "No base is served here, so there is nothing to put an adapter on.", code="no_base")
    return registry


async def listing(request: Request) -> Response:
    """What is loaded, with scores and ranks."""
    registry = _registry(request)
    capability = registry.engine.capability
    return JSONResponse(
        {
            "object": "list",
            "engine": capability.name,
            "base": registry.base_name,
            "max_adapters": capability.max_adapters,
            "data": [told(run) for _, run in sorted(registry.models.items())],
        }
    )


def told(run: Served) -> dict[str, Any]:
    """One adapter as the API tells it; of folders the run's name alone."""
    adapter = run.adapter
    return {
        "object": "adapter",
        "id": run.name,
        "run": run.run.name,
        "created": run.created,
        "method": run.method,
        "rank": adapter.rank if adapter else None,
        "num_bytes": adapter.num_bytes if adapter else None,
        "metric": run.metric,
        "score": run.score,
        "meets_bar": run.meets_bar,
        "notes": list(run.notes),
    }


async def load(request: Request) -> Response:
    """Load a run's adapter, or the newer one of that name; 201 where the name is new."""
    body = await _body(request)
    registry = _registry(request)
    run, name = body["run"], body.get("name", "")
    try:
        is_new = (name or run) not in registry.models
        served = await registry.add_named(run, name)
    except BadInput as error:
        raise ApiError(400, str(error), param="run", code="adapter_refused") from error
    except ShoestringError as error:
        raise as_api_error(error, request.app.state.gateway) from error
    return JSONResponse(told(served), 201 if is_new else 200)


async def drop(request: Request) -> Response:
    """Answer by that name no longer; requests on their way end first."""
    registry, name = _registry(request), request.path_params["name"]
    if name not in registry.models:
        raise ApiError(404, f"No adapter {name[:200]!r} is loaded; loaded are: {registry.names() or 'none'}.")
    try:
        await registry.drop(name)
    except BadInput as error:
        raise ApiError(404, str(error)) from error
    except ShoestringError as error:
        raise as_api_error(error, request.app.state.gateway) from error
    return JSONResponse({"object": "adapter", "id": name, "deleted": True})


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await body_of(request))
    except (ValueError, RecursionError):
        raise ApiError(400, 'The body is not JSON; send {"run": "NAME"}.') from None
    if not isinstance(body, dict) or not isinstance(body.get("run"), str):
        raise ApiError(400, 'The body names no run; send {"run": "NAME"}.', param="run")
    if unknown := sorted(set(body) - {"run", "name"}):
        raise ApiError(400, f"{unknown[0]!r} is not taken here; only run and name are.", param=unknown[0])
    if not isinstance(body.get("name", ""), str):
        raise ApiError(400, "name is text.", param="name")
    return body
