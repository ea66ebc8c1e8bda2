"""The list of runs: what each came to, what it cost, what it does now; starting and stopping."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from markupsafe import Markup as Trusted
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..config import load_run_file
from ..errors import BadInput
from ..report.svg import score_bar
from ..stages.closing import meta_of
from . import events
from .places import folder_of
from .site import Seen, Site, page, site_of, trusted


def runs(request: Request) -> Response:
    """The list."""
    site = site_of(request)
    rows = [(_id(seen), row(site, seen)) for seen in _all(site)]
    return page(request, "runs.html", title="Runs", rows=rows, shown=_print(rows), runs_dir=str(site.runs_dir))


def _print(rows: Iterable[tuple[str, str]]) -> str:
    """Of the list as it is shown, so that its events begin with what changed before they were asked for."""
    of_ids, of_cells = hashlib.sha256(), hashlib.sha256()
    for element_id, cells in sorted(rows):
        of_ids.update(f"{element_id}\n".encode())
        of_cells.update(cells.encode("utf-8", "surrogatepass"))
    return f"{of_ids.hexdigest()[:16]}-{of_cells.hexdigest()[:16]}"


def row(site: Site, seen: Seen) -> Trusted:
    """The cells of a run's line."""
    facts = seen.run.facts
    chart = trusted(score_bar(facts.score, facts.bar)) if facts.score and facts.bar is not None else None
    return Trusted(site.render("runs_row.html", {"seen": seen, "facts": facts, "chart": chart, "when": when}))


def when(stamp: str) -> str:
    """A stored time in this machine's zone."""
    try:
        return datetime.fromisoformat(stamp).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return stamp


def _all(site: Site) -> list[Seen]:
    return [site.seen(run) for run in site.reader.all()]


def _id(seen: Seen) -> str:
    return f"run-{seen.run.name}"


def follow(request: Request) -> Response:
    """Events of the list: lines that changed; where runs came or went, the list anew."""
    site = site_of(request)
    changes, before = events.Changes(), {_id(seen): seen for seen in _all(site)}
    rows = [(element_id, row(site, seen)) for element_id, seen in before.items()]
    shown, current = request.query_params.get("shown", ""), _print(rows)
    missed: list[events.Event] = []
    if shown == current:
        for element_id, cells in rows:
            changes.known(element_id, cells)
    elif shown.partition("-")[0] == current.partition("-")[0]:
        missed = list(changes.parts(rows))
    else:
        missed = [events.fresh("runs")]

    def look() -> list[events.Event]:
        nonlocal before, missed
        if missed:
            told, missed = missed, []
            return told
        now = {_id(seen): seen for seen in _all(site)}
        if now.keys() != before.keys():
            before = now
            return [events.fresh("runs")]
        differing = [(element_id, row(site, seen)) for element_id, seen in now.items() if seen != before[element_id]]
        said = [
            events.say(f"{seen.run.name}: {seen.words}")
            for element_id, seen in now.items()
            if seen.state != before[element_id].state
        ]
        before = now
        return [*changes.parts(differing), *said]

    return events.stream(look, lambda: site.is_closing())


def start(request: Request) -> Response:
    """Start a run, or let it go on: what `shoestring run RUN_FILE` does, or of its folder where that is gone."""
    site, name = site_of(request), request.path_params["name"]
    folder = folder_of(site.runs_dir, name)
    if not (folder / "run.yaml").is_file():
        raise BadInput(f"{name} holds no run file yet; start it with: shoestring run RUN_FILE")
    site.processes.start(name, own_run_file(folder) or folder)
    return _acted(request)


def own_run_file(folder: Path) -> Path | None:
    """The run file that a run was started with, as it is now: what was changed in it (a budget) is meant.

    None where it is gone, or is another run's by now.
    """
    path = meta_of(folder).get("run_file")
    if path is None or not Path(path).is_file():
        return None
    try:
        return Path(path) if load_run_file(path).name == folder.name else None
    except BadInput:
        return Path(path)  # the run says what is wrong with it


def stop(request: Request) -> Response:
    """Stop a run as Ctrl-C does."""
    site = site_of(request)
    folder = folder_of(site.runs_dir, request.path_params["name"])
    site.processes.stop(site.reader.one(folder))
    return _acted(request)


def _acted(request: Request) -> Response:
    """htmx is told nothing, for the events show the change; a form without it sees the run again."""
    if request.headers.get("hx-request") == "true":
        return Response(status_code=204)
    return RedirectResponse(f"/runs/{request.path_params['name']}", 303)


ROUTES = [
    Route("/", runs),
    Route("/events", follow),
    Route("/runs/{name}/start", start, methods=["POST"]),
    Route("/runs/{name}/stop", stop, methods=["POST"]),
]
