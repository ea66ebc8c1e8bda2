"""The command ui: serve the page and say its address."""

from __future__ import annotations

import contextlib
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadInput, require
from .output import emit, say

if TYPE_CHECKING:
    from ..web.site import Site

PACKAGES = ("starlette", "uvicorn", "jinja2", "python_multipart")


def command(runs_dir: Path, port: int, opens: bool, is_json: bool) -> int:
    """Serve until Ctrl-C. Raises: BadInput, MissingDependency."""
    if runs_dir.exists() and not runs_dir.is_dir():
        raise BadInput(f"--runs-dir {runs_dir} is a file; give the folder that holds the runs")
    if not 0 <= port <= 65535:
        raise BadInput(f"--port {port} is no port; give one from 1 to 65535, or 0 for one that is free")

    def ready(site: Site) -> None:
        if is_json:
            emit({"url": site.url, "port": site.port, "runs_dir": str(runs_dir)})
        else:
            say(f"Open {site.url}\nIt shows the runs in {runs_dir}, to this machine alone. Ctrl-C ends it.")
        if opens and not is_json:
            webbrowser.open(site.url)

    serve_until_ctrl_c(runs_dir, port, ready, "shoestring ui")
    return 0


def serve_until_ctrl_c(runs_dir: Path, port: int, ready: Callable[[Site], None], purpose: str) -> None:
    """Serve the page; ready(site) is called once it can be opened. Raises: BadInput, MissingDependency."""
    for package in PACKAGES:
        require(package, extra="ui", purpose=purpose)
    from ..web.serving import serve

    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it is ended
        serve(runs_dir, port, ready)
