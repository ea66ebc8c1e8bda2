"""A new run without a terminal: drop a file, see what it is, choose task and bar, start."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..config import METRICS_BY_KIND
from ..embedded import EMBEDDED
from ..errors import BadInput, ShoestringError
from ..report.data import groups
from ..report.sides import labelled
from ..report.text import join
from ..stages.proposing import Chosen, evidence_text
from ..task import STARTING_BARS
from ..units import count
from .drop import MAX_LOOKED_ROWS, MAX_UPLOAD_BYTES, Drop, drop_of, keep, look, name_for, write_run_file
from .forms import number_of, text_of
from .site import page, site_of, trusted

# A hub name; a folder of this machine is not named from a page.
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
# Metrics that need more in the run file than this page asks for.
NEED_MORE = ("judge", "execution_match", "ast_match")
KINDS = {
    "classify": "one of a few labels",
    "extract": "text to JSON",
    "generate": "free text",
    "sql": "a question to SQL",
    "math": "a problem to its number",
    "chat": "a conversation's next turn",
}
BODY_LIMITS = {"/new": MAX_UPLOAD_BYTES}


def begin(request: Request) -> Response:
    """Where a file is dropped."""
    return page(request, "new.html", title="New run", max_bytes=MAX_UPLOAD_BYTES, problem="")


async def receive(request: Request) -> Response:
    """Keep the dropped file, then show what it is."""
    site = site_of(request)
    async with request.form(max_files=2, max_fields=4) as form:
        data, held_out = form.get("data"), form.get("held_out")
        if not isinstance(data, UploadFile) or not data.filename:
            problem = "no file came; choose one, or drop it on the field"
            return page(
                request, "new.html", status_code=422, title="New run", max_bytes=MAX_UPLOAD_BYTES, problem=problem
            )
        second = (held_out.filename, held_out.file) if isinstance(held_out, UploadFile) and held_out.filename else None
        try:
            found = await run_in_threadpool(keep, site.runs_dir, data.filename, data.file, second)
        except ShoestringError as error:
            return page(
                request, "new.html", status_code=422, title="New run", max_bytes=MAX_UPLOAD_BYTES, problem=str(error)
            )
    return RedirectResponse(f"/new/{found.id}", 303)


def show(request: Request) -> Response:
    """What came, and the choices."""
    found = drop_of(site_of(request).runs_dir, request.path_params["id"])
    return _shown(request, found)


def _shown(request: Request, found: Drop, given: dict[str, str] | None = None, problem: str = "") -> Response:
    seen = look(found.data)
    kind = (given or {}).get("kind") or seen.detected.kind
    kind = kind if kind in METRICS_BY_KIND else seen.detected.kind
    dropped = {code: n for code, n in seen.counts.items() if seen.cases[code][0].repair == "drop"}
    asked = {code: n for code, n in seen.counts.items() if seen.cases[code][0].repair == "ask"}
    mended = {code: n for code, n in seen.counts.items() if seen.cases[code][0].repair == "safe"}
    faults = join(
        groups("Cannot be used", dropped, seen.cases, "left out, each with its reason", seen.num_rows, is_open=True),
        groups("For you to look at", asked, seen.cases, "kept as they are"),
        groups("Mended", mended, seen.cases, "without a question"),
    )
    return page(
        request,
        "new_task.html",
        status_code=422 if problem else 200,
        title=f"New run from {found.data.name}",
        drop=found,
        look=seen,
        max_looked=MAX_LOOKED_ROWS,
        evidence=evidence_text(seen.detected),
        faults=trusted(faults),
        num_faults=sum(seen.counts.values()),
        examples=[trusted(labelled(f"row {i}", example)) for i, example in enumerate(seen.examples[:3], 1)],
        kinds=KINDS,
        models=[(name, f"{count(model.num_params)} parameters") for name, model in EMBEDDED.items()],
        given=given or _defaults(site_of(request).runs_dir, found),
        problem=problem,
        **_of_kind(kind),
    )


def _of_kind(kind: str) -> dict[str, Any]:
    metrics = [metric for metric in METRICS_BY_KIND[kind] if metric not in NEED_MORE]
    return {"kind": kind, "metrics": metrics, "start_bar": STARTING_BARS[kind]}


def _defaults(runs_dir: Path, found: Drop) -> dict[str, str]:
    """What the form begins with."""
    return {
        "name": name_for(runs_dir, found),
        "models": "embedded",
        "budget_usd": "10",
        "max_train_rows": "",
        "max_eval_rows": "",
    }


def metrics(request: Request) -> Response:
    """The part of the form that follows the kind."""
    kind = request.query_params.get("kind", "")
    if kind not in METRICS_BY_KIND:
        raise HTTPException(422, f"kind {kind[:40]!r} is none of {', '.join(METRICS_BY_KIND)}")
    return page(request, "new_metrics.html", given={}, **_of_kind(kind))


def _chosen(form: FormData, found: Drop) -> Chosen:
    """Raises: BadInput."""
    models = tuple(part for part in re.split(r"[,\s]+", text_of(form, "models")) if part)
    for model in models:
        if model != "embedded" and model not in EMBEDDED and not HUB_NAME.fullmatch(model):
            raise BadInput(
                f"model {model[:80]!r} is neither an embedded one ({', '.join(['embedded', *EMBEDDED])}) nor a hub "
                "name such as Qwen/Qwen3-0.6B; a folder of this machine is named in a run file"
            )
    if not models:
        raise BadInput(f"no model is named; give embedded, {' or '.join(EMBEDDED)}, or a hub name")
    budget = number_of(form, "budget_usd", at_least=0.0)
    bar = number_of(form, "bar", at_least=0.0, at_most=1.0)
    rows = [number_of(form, key, at_least=20.0) for key in ("max_train_rows", "max_eval_rows")]
    if bar is None:
        raise BadInput("bar is empty; give the score, 0 to 1, from which the model is good enough")
    return Chosen(
        name=text_of(form, "name"),
        kind=text_of(form, "kind"),
        metric=text_of(form, "metric"),
        bar=bar,
        models=models,
        budget_usd=10.0 if budget is None else budget,
        held_out=found.held_out,
        max_train_rows=None if rows[0] is None else int(rows[0]),
        max_eval_rows=None if rows[1] is None else int(rows[1]),
        trains_anyway=form.get("trains_anyway") == "on",
    )


async def choose(request: Request) -> Response:
    """Write the run file; start the run, or look at its plan first."""
    async with request.form(max_files=0, max_fields=20) as form:
        given = {key: value for key, value in form.items() if isinstance(value, str)}
        return await run_in_threadpool(_choose, request, form, given)


def _choose(request: Request, form: FormData, given: dict[str, str]) -> Response:
    site = site_of(request)
    found = drop_of(site.runs_dir, request.path_params["id"])
    try:
        proposed = write_run_file(site.runs_dir, found, _chosen(form, found))
        if given.get("then") == "plan":
            return RedirectResponse(f"/new/{found.id}/plan", 303)
        site.processes.start(proposed.config.name, found.run_file)
    except ShoestringError as error:
        return _shown(request, found, given, str(error))
    return RedirectResponse(f"/runs/{proposed.config.name}", 303)


ROUTES = [
    Route("/new", begin, methods=["GET"]),
    Route("/new", receive, methods=["POST"]),
    Route("/new/metrics", metrics, methods=["GET"]),
    Route("/new/{id}", show, methods=["GET"]),
    Route("/new/{id}", choose, methods=["POST"]),
]
