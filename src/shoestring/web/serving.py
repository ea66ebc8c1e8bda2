"""The page's server: on the loopback address, until Ctrl-C."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import uvicorn

from ..errors import BadInput
from ..serve.gateway.serving import BACKLOG, config_of
from .app import make_app
from .site import HOST, Site

GRACE_S = 2


def serve(runs_dir: Path, port: int, ready: Callable[[Site], None]) -> None:
    """Serve runs_dir; port 0 takes one that is free. ready(site) is called once connections are taken.

    Raises: BadInput where the port cannot be had.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except OSError as error:
            raise BadInput(f"--port {port}: {error.strerror}; leave it out to take one that is free") from None
        listening.listen(BACKLOG)
        site = Site(runs_dir, listening.getsockname()[1])
        server = uvicorn.Server(config_of(make_app(site), GRACE_S))
        site.is_closing = lambda: server.should_exit
        threading.Thread(target=site.reader.all, daemon=True).start()  # while the browser opens
        ready(site)
        server.run(sockets=[listening])
