"""The list of runs."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .places import run_folders
from .site import page, site_of


def runs(request: Request) -> Response:
    """The list."""
    site = site_of(request)
    return page(request, "runs.html", title="Runs", runs=sorted(folder.name for folder in run_folders(site.runs_dir)))


ROUTES = [Route("/", runs)]
