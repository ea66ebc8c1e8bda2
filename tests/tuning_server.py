"""The gateway with the fine-tuning API and no model, with keys: python -m tests.tuning_server RUNS_DIR [SETTINGS].

Prints its address. For tests that kill the server; KEYS are those it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from shoestring.serve.gateway.app import Gateway, make_app
from shoestring.serve.gateway.keys import Keys
from shoestring.serve.gateway.limits import read_limits
from shoestring.serve.gateway.tuning_settings import TuningSettings
from shoestring.serve.tuning.routes import body_limits, routes
from shoestring.serve.tuning.service import Tuning

KEYS = {name: f"{name}-key-of-tests-0123456789" for name in ("ann", "bob", "root")}


def app_of(tuning: Tuning) -> Starlette:
    """As `shoestring serve --tuning` without a run puts it together."""
    keys = Keys()
    for name, key in KEYS.items():
        keys.give(key, name, is_admin=name == "root")
    gateway = Gateway(tuning.runs_dir / ".serving", keys, body_limits=body_limits(tuning))
    return make_app(gateway, routes(tuning), [tuning.lifespan])


def main(runs_dir: Path, settings: TuningSettings) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", flush=True)
    server = uvicorn.Server(uvicorn.Config(app_of(Tuning(runs_dir, settings)), log_level="warning"))
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has ended
        asyncio.run(server.serve(sockets=[listening]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), read_limits(Path(sys.argv[2]) if len(sys.argv) > 2 else None).tuning)
