"""What a run would take and cost, with dials; a button writes them into the run file."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup as Trusted
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..errors import ShoestringError
from ..report.costs import costs, sources
from .choices import Target, dials, given_dials, looked_at, of_drop, of_run, planned, read_dials, values_of, write
from .drop import drop_of
from .places import folder_of
from .site import page, site_of, trusted


def _target(request: Request) -> Target:
    runs_dir = site_of(request).runs_dir
    if "id" in request.path_params:
        return of_drop(runs_dir, drop_of(runs_dir, request.path_params["id"]))
    return of_run(folder_of(runs_dir, request.path_params["name"]))


def show(request: Request) -> Response:
    """The dials as the run file has them, or as the address says, and what they come to."""
    target = _target(request)
    said = "Written into the run file." if request.query_params.get("written") else ""
    return _page(request, target, request.query_params, said=said)


def _page(request: Request, target: Target, given: Any, problem: str = "", said: str = "") -> Response:
    turned = given_dials(target.config)
    try:
        turned = read_dials(given, target.config)
    except ShoestringError as error:
        problem = problem or str(error)
    most_rows = 0
    answer = Trusted("")
    try:
        most_rows = looked_at(target).sample.num_examples
        answer = _answer(target, turned)
    except ShoestringError as error:
        problem = problem or str(error)
    is_drop = target.address.startswith("/new/")
    site = site_of(request)
    return page(
        request,
        "plan_new.html" if is_drop else "plan.html",
        status_code=422 if problem else 200,
        name=target.config.name,
        tab="plan",
        title=f"{target.config.name}: plan",
        address=target.address,
        run_file=str(target.run_file or target.folder / "run.yaml"),
        dials=[(dial, turned[dial.name]) for dial in dials(most_rows)],
        answer=answer,
        problem=problem,
        said=said,
        can_start=is_drop or not site.seen(site.reader.one(target.folder)).is_working,
    )


def _answer(target: Target, turned: dict[str, float | None]) -> Trusted:
    told = planned(target, values_of(turned))
    lines = []
    for model in told["data"]["models"]:
        tokens, longest = model["tokens_per_row"], model["longest_row_tokens"]
        spread = f" ({tokens['low']:,.0f} to {tokens['high']:,.0f})" if "low" in tokens else ""
        lines.append(
            f"{model['model']}: {model['rows_train']['value']:,} training rows of {tokens['value']:,.0f}{spread} "
            f"tokens, the longest {longest['value']:,.0f}; {model['rows_eval']['value']:,} held out."
        )
    return (
        Trusted("").join([Trusted("<p class=note>{}</p>").format(line) for line in lines])
        + trusted(costs(told))
        + trusted(sources(told))
    )


def weighed(request: Request) -> Response:
    """What the dials come to, for the part of the page below them."""
    target = _target(request)
    return page(
        request, "plan_told.html", answer=_answer(target, read_dials(request.query_params, target.config)), said=""
    )


async def save(request: Request) -> Response:
    """Write the dials into the run file; start the run where asked to."""
    async with request.form(max_files=0, max_fields=20) as form:
        return await run_in_threadpool(_save, request, form)


def _save(request: Request, form: FormData) -> Response:
    target = _target(request)
    site = site_of(request)
    try:
        target = write(target, values_of(read_dials(form, target.config)))
        if form.get("then") == "start":
            site.processes.start(target.config.name, target.run_file or target.folder)
            return RedirectResponse(f"/runs/{target.config.name}", 303)
    except ShoestringError as error:
        return _page(request, target, form, str(error))
    return RedirectResponse(f"{target.address}?written=1", 303)


ROUTES = [
    Route("/runs/{name}/plan", show, methods=["GET"]),
    Route("/runs/{name}/plan", save, methods=["POST"]),
    Route("/runs/{name}/plan/told", weighed),
    Route("/new/{id}/plan", show, methods=["GET"]),
    Route("/new/{id}/plan", save, methods=["POST"]),
    Route("/new/{id}/plan/told", weighed),
]
