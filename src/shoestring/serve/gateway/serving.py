"""The gateway's server: on one address, until a signal; answers on their way are then let finish."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
from collections.abc import AsyncIterator
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from ...errors import BadInput

LOOPBACK = "127.0.0.1"
BACKLOG = 1024


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; port 0 takes one that is free. Raises: BadInput."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as error:
        raise BadInput(f"--host {host}: no address to serve on ({error}); 127.0.0.1 is this machine alone") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        is_elsewhere = error.errno == errno.EADDRNOTAVAIL
        step = (
            "127.0.0.1 is this machine alone, 0.0.0.0 all of its addresses"
            if is_elsewhere
            else "--port 0 takes one that is free"
        )
        raise BadInput(f"--host {host} --port {port}: {error.strerror}; {step}") from None
    return listening


def address_of(listening: socket.socket) -> str:
    """http://HOST:PORT of it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listening: socket.socket) -> bool:
    """Whether this machine alone can reach it."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback
    return False


def config_of(app: Starlette, drain_s: float) -> uvicorn.Config:
    """How an application is served here; drain_s: how long answers on their way may take to finish."""
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        backlog=BACKLOG,
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )


class Server(uvicorn.Server):
    """A first signal lets answers on their way finish, a second one ends at once. Neither is raised again."""

    ended: asyncio.Task[None]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn's, for either signal."""
        if self.should_exit:
            self.force_exit = True
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it tells what is cut short as an error
            for connection in list(self.server_state.connections):
                transport = getattr(connection, "transport", None)
                if transport is not None:
                    transport.abort()
        self.should_exit = True


@contextlib.asynccontextmanager
async def served(app: Starlette, listening: socket.socket, drain_s: float) -> AsyncIterator[Server]:
    """While the app answers there; server.ended once a signal came and answers have finished, drain_s at most."""
    server = Server(config_of(app, drain_s))
    server.ended = task = asyncio.create_task(server.serve([listening]))
    try:
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        if task.done():
            await task
        yield server
    finally:
        if not task.done():
            server.handle_exit(signal.SIGTERM, None)
            await task
