"""What every page shares: where runs lie, who may ask, the templates and the static files."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup as Trusted
from starlette.requests import Request
from starlette.responses import HTMLResponse

from ..report.style import STYLE
from ..report.text import Markup, esc
from ..units import count, duration, gib, usd
from .model_server import ModelServer
from .overview import STATES, WORKING, Overview, Reader
from .processes import Processes

HOST = "127.0.0.1"
MAX_BODY_BYTES = 1 << 20
TYPES = {".js": "text/javascript", ".css": "text/css", ".txt": "text/plain", ".svg": "image/svg+xml"}
PACKAGE = "shoestring.web"
# The pages of a run: what follows /runs/NAME/, and its name.
RUN_TABS = (
    ("", "Result"),
    ("outputs", "Outputs"),
    ("data", "Data"),
    ("check", "Checks"),
    ("plan", "Plan"),
    ("try", "Try it"),
)


@dataclass(frozen=True)
class Static:
    """One file of the page, held in memory under an address that changes with its bytes."""

    url: str
    content: bytes
    media_type: str


@dataclass(frozen=True)
class Seen:
    """A run as the page shows it."""

    run: Overview
    state: str
    why: str

    @property
    def sign(self) -> str:
        """The state's sign, which tells by shape what the colour says."""
        return STATES[self.state][0]

    @property
    def words(self) -> str:
        """The state in words."""
        return STATES[self.state][1]

    @property
    def is_working(self) -> bool:
        """Whether something works on it now."""
        return self.state in WORKING

    @property
    def can_stop(self) -> bool:
        """Whether it can be stopped from here."""
        holder = self.run.holder
        return self.state == "away" or (self.state == "running" and holder is not None and holder.is_here)

    @property
    def can_start(self) -> bool:
        """Whether it can go on from here."""
        return not self.is_working and self.state not in ("met", "unmet", "broken", "new")

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """What it is doing, the innermost first."""
        return list((self.run.facts.live or {}).get("tasks", ())) if self.run.holder is not None else []


@dataclass
class Site:
    """One page as it is served. body_limits: bytes that a request to this very address may have, else 1 MiB."""

    runs_dir: Path
    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    body_limits: dict[str, int] = field(default_factory=dict)
    statics: dict[str, Static] = field(default_factory=lambda: static_files())
    is_closing: Callable[[], bool] = lambda: False  # the server, which then waits for its answers to end

    def __post_init__(self) -> None:
        self.hosts = (f"{HOST}:{self.port}", f"localhost:{self.port}")
        self.cookie = f"shoestring-{self.port}"  # cookies do not tell ports apart
        self.by_url = {static.url: static for static in self.statics.values()}
        self.templates = jinja2.Environment(
            loader=jinja2.PackageLoader(PACKAGE), autoescape=True, undefined=jinja2.StrictUndefined, auto_reload=False
        )
        self.templates.globals["static"] = lambda name: self.statics[name].url
        self.templates.filters |= {"usd": usd, "duration": duration, "gib": gib, "count": count}
        self.templates.globals["run_tabs"] = RUN_TABS
        self.reader, self.processes = Reader(self.runs_dir), Processes(self.runs_dir)
        self.model_server = ModelServer(self.runs_dir)
        self.templates.filters |= {"clean": lambda value: Trusted(esc(value))}

    @property
    def url(self) -> str:
        """The first address, with the token."""
        return self.url_of("/")

    def url_of(self, address: str) -> str:
        """A page as the first address, with the token."""
        return f"http://{HOST}:{self.port}{address}{'&' if '?' in address else '?'}token={self.token}"

    def max_body_bytes(self, path: str) -> int:
        """The longest body that this address takes."""
        return self.body_limits.get(path, MAX_BODY_BYTES)

    def seen(self, run: Overview) -> Seen:
        """An overview with what this page started and asked of it."""
        return Seen(run, *self.processes.seen(run))

    def render(self, template: str, context: Mapping[str, Any]) -> str:
        """A template as text; what came from `report` parts is passed through trusted()."""
        return self.templates.get_template(template).render(context)


def static_files() -> dict[str, Static]:
    """The package's static files by name, and the report's style as report.css."""
    folder = resources.files(PACKAGE) / "static"
    contents = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    contents["report.css"] = STYLE.encode()
    return {
        name: Static(
            f"/static/{hashlib.sha256(content).hexdigest()[:16]}/{name}",
            content,
            TYPES.get(Path(name).suffix, "application/octet-stream"),
        )
        for name, content in contents.items()
    }


def trusted(part: Markup) -> Trusted:
    """Markup of the report's parts, which are escaped where they are made, for a template."""
    return Trusted(part)


def site_of(request: Request) -> Site:
    """The site that a request reached."""
    site: Site = request.app.state.site
    return site


def page(request: Request, template: str, *, status_code: int = 200, **context: Any) -> HTMLResponse:
    """A template as the answer; `path` is the address asked for."""
    text = site_of(request).render(template, {"path": request.url.path, **context})
    return HTMLResponse(text, status_code)
