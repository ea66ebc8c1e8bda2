"""A run: verdict first, then how it came about; while it works what it does now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup as Trusted
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..report import parts
from ..report.curves import curves, growth
from ..report.folder import RunFiles
from ..report.html import problems
from ..report.judge import judges
from ..report.ladder import ladder, price_chart
from ..report.launched import launched
from ..report.scores import scores
from ..report.verdict import verdict
from . import events
from .kept import Kept, run_of, signature_of
from .places import folder_of
from .processes import LOG, log_end
from .site import Seen, Site, page, site_of
from .steps import Training, left_s, memory_of, point, training_of

NOW = "now"
LAST_LINES = 8


PARTS: Kept[tuple[str | None, Any], list[tuple[str, str]]] = Kept()


def parts_of(folder: Path, training: str | None) -> list[tuple[str, str]]:
    """Element and content of each part; training: a model whose curve is drawn live."""
    signature = (training, signature_of(folder))
    made = lambda: [(f"part-{name}", str(part)) for name, part in _parts(run_of(folder), training)]  # noqa: E731
    return PARTS.of(folder, signature, made)


def _parts(run: RunFiles, training: str | None) -> list[tuple[str, str]]:
    return [
        ("verdict", verdict(run)),
        ("problems", problems(run)),
        ("scores", scores(run)),
        ("price", price_chart(run)),
        ("judges", judges(run)),
        ("curves", curves(run, but=training)),
        ("growth", growth(run)),
        ("climb", ladder(run)),
        ("searches", parts.searches(run)),
        ("predicted", parts.predicted(run)),
        ("launched", launched(run.folder)),
        ("forgotten", parts.forgotten(run)),
        ("settings", parts.settings(run)),
        ("environment", parts.environment(run)),
    ]


def run(request: Request) -> Response:
    """The page of one run."""
    site = site_of(request)
    folder = folder_of(site.runs_dir, request.path_params["name"])
    seen = site.seen(site.reader.one(folder))
    training = _training(folder, seen)
    if (folder / "run.yaml").is_file():
        found = parts_of(folder, training.model if training else None)
    else:  # the places that events fill once the run has read its run file
        found = [(f"part-{name}", "") for name, _ in _parts(RunFiles(folder), None)]
    return page(
        request,
        "run.html",
        title=folder.name,
        name=folder.name,
        tab="",
        seen=seen,
        now=_now(site, folder, seen, training),
        parts=[(element_id, Trusted(content)) for element_id, content in found],
        has_report=(folder / "report.html").is_file(),
    )


def _training(folder: Path, seen: Seen) -> Training | None:
    """What trains now, its last steps read."""
    found = training_of(folder, is_whole=False) if seen.run.holder is not None else None
    if found is not None:
        found.read()
    return found


def _now(site: Site, folder: Path, seen: Seen, training: Training | None) -> Trusted:
    """State, what it does, and what can be done."""
    holder, row = seen.run.holder, training.rows[-1] if training and training.rows else None
    live = seen.run.facts.live or {}
    return Trusted(
        site.render(
            "now.html",
            {
                "seen": seen,
                "facts": seen.run.facts,
                "training": training,
                "step": row,
                "memory_bytes": memory_of(holder.pid) if holder is not None and holder.is_here else None,
                "left": left_s(folder, training) if holder is not None else None,
                "lines": list(live.get("lines", ()))[-LAST_LINES:] if seen.state not in ("met", "unmet") else [],
                "log": log_end(folder) if (folder / LOG).is_file() and seen.state == "failed" else "",
            },
        )
    )


def follow(request: Request) -> Response:
    """Events of one run: what it does, new steps, and parts whose records changed."""
    site = site_of(request)
    folder = folder_of(site.runs_dir, request.path_params["name"])
    changes, state, training = events.Changes(), "", Followed(folder)

    def look() -> list[events.Event] | None:
        nonlocal state
        if not folder.is_dir():
            return None  # deleted; asked again, the address answers 404, and the page says that it follows no more
        seen = site.seen(site.reader.one(folder))
        found = training.look(seen)
        found += changes.parts([(NOW, _now(site, folder, seen, training.now))])
        if (folder / "run.yaml").is_file():
            found += changes.parts(parts_of(folder, training.now.model if training.now else None))
        if state and seen.state != state:
            found.append(events.say(f"{folder.name}: {seen.words}"))
        state = seen.state
        return found

    return events.stream(look, lambda: site.is_closing())


@dataclass
class Followed:
    """The training of a run as one page follows it."""

    folder: Path
    now: Training | None = None
    is_told: bool = False

    def look(self, seen: Seen) -> list[events.Event]:
        """The steps that came: all of them at first and where training began again."""
        latest = training_of(self.folder) if seen.run.holder is not None else None
        if latest is None or self.now is None or latest.folder != self.now.folder:
            was, self.now, self.is_told = self.now, latest, False
            if latest is None:
                return [("steps", {"model": None})] if was is not None else []
        assert self.now is not None
        new, again = self.now.read()
        if self.is_told and not again:
            return [("steps", {"model": self.now.model, "rows": [point(row) for row in new]})] if new else []
        self.is_told = True
        told = {"model": self.now.model, "rows": self.now.points(), "num_steps": self.now.num_steps, "all": True}
        return [("steps", told)]


def report(request: Request) -> Response:
    """The report as the run wrote it; its own policy lets no script run."""
    folder = folder_of(site_of(request).runs_dir, request.path_params["name"])
    path = folder / "report.html"
    if not path.is_file():
        return Response("no report yet", 404, media_type="text/plain")
    headers = {"Content-Disposition": f'attachment; filename="{folder.name}.html"'}
    return Response(path.read_bytes(), media_type="text/html; charset=utf-8", headers=headers)


ROUTES = [
    Route("/runs/{name}", run),
    Route("/runs/{name}/events", follow),
    Route("/runs/{name}/report.html", report),
]
