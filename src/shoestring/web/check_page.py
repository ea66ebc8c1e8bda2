"""What must hold before training, and the rows token by token: which of them the model learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..files import read_json
from ..stages.checking import FILE
from .places import folder_of
from .runs_page import when
from .site import page, site_of

SIGNS = {"ok": ("✔", "holds"), "warn": ("▲", "look at this"), "refuse": ("✕", "training would not start")}
ORDER = ("refuse", "warn", "ok")


def check(request: Request) -> Response:
    """The gates of each rung, as they were last looked at."""
    folder = folder_of(site_of(request).runs_dir, request.path_params["name"])
    return page(request, "check.html", title=f"{folder.name}: checks", name=folder.name, tab="check", **_told(request))


def look(request: Request) -> Response:
    """Look at the gates now: what `shoestring check` does, in a process of its own."""
    site, name = site_of(request), request.path_params["name"]
    folder_of(site.runs_dir, name)
    site.processes.check(name)
    if request.headers.get("hx-request") == "true":
        return now(request)
    return RedirectResponse(f"/runs/{name}/check", 303)


def now(request: Request) -> Response:
    """The part of the page that changes while a check works."""
    return page(request, "check_now.html", name=request.path_params["name"], **_told(request))


def _told(request: Request) -> dict[str, Any]:
    site = site_of(request)
    folder = folder_of(site.runs_dir, request.path_params["name"])
    is_working, error = site.processes.checking(folder.name)
    found, broken = recorded(folder)
    rungs = [
        {**rung, "findings": sorted(rung["findings"], key=lambda one: ORDER.index(one["level"]))}
        for rung in (found or {}).get("rungs", ())
    ]
    return {
        "is_working": is_working,
        "error": error or broken,
        "is_begun": (folder / "run.yaml").is_file(),
        "is_held": site.reader.one(folder).holder is not None,
        "rungs": rungs,
        "at": when(str(found["at"])) if found else "",
        "is_old": found is not None and _is_older(folder / FILE, folder / "run.yaml"),
        "signs": SIGNS,
        "pieces": pieces,
    }


def recorded(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """What the last check wrote, and what is wrong with the file."""
    try:
        found = read_json(folder / FILE)
        if not {"at", "rungs"} <= found.keys() or any(r["findings"] is None for r in found["rungs"]):
            raise ValueError("it lacks a part")
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"{FILE} cannot be read ({error}); check again"
    return found, ""


def _is_older(a: Path, b: Path) -> bool:
    try:
        return a.stat().st_mtime_ns < b.stat().st_mtime_ns
    except OSError:
        return False


def pieces(row: dict[str, Any]) -> list[tuple[str, bool, bool]]:
    """Text, whether it is learned, and whether a line ends in it: ends of lines are seen as signs."""
    return [(text.replace("\n", "↵"), learned, "\n" in text) for text, learned in row["pieces"]]


ROUTES = [
    Route("/runs/{name}/check", check, methods=["GET"]),
    Route("/runs/{name}/check", look, methods=["POST"]),
    Route("/runs/{name}/check/now", now),
]
