"""The fine-tuning API alone on the loopback, with keys: python -m tests.tuning_server RUNS_DIR [SETTINGS].

Prints its address; the first key is `ann`, then `bob`, and `root` is an admin's. For tests that kill the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from shoestring.serve.gateway.errors import ApiError
from shoestring.serve.tuning.service import Tuning
from shoestring.serve.tuning.settings import TuningSettings, load_settings


@dataclass(frozen=True)
class Key:
    name: str
    is_admin: bool = False


KEYS = {"Bearer ann": Key("ann"), "Bearer bob": Key("bob"), "Bearer root": Key("root", True)}


class Authenticated:
    """As the gateway's: the key of a request, or 401."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            key = KEYS.get(Request(scope).headers.get("authorization", ""))
            if key is None:
                await JSONResponse(ApiError(401, "no key").body(), 401)(scope, receive, send)
                return
            scope.setdefault("state", {})["key"] = key
        await self.app(scope, receive, send)


async def told(request: Request, error: Any) -> JSONResponse:
    return JSONResponse(error.body(), error.status)


async def nothing_served(folder: Path, name: str) -> str:
    return "no base is served here"


def make_app(tuning: Tuning) -> Starlette:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await tuning.start()
        yield
        await tuning.close()

    return Starlette(
        routes=list(tuning.routes()),
        middleware=[Middleware(Authenticated)],
        exception_handlers={ApiError: told},
        lifespan=lifespan,
    )


def main(runs_dir: Path, settings: TuningSettings) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    listening = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    app = make_app(Tuning(runs_dir, settings, None, nothing_served))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has ended
        asyncio.run(server.serve(sockets=[listening]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), load_settings(Path(sys.argv[2])) if len(sys.argv) > 2 else TuningSettings())
