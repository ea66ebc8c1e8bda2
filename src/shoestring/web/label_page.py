"""Labels of a person on answers of a run, one at a time and blind to arm and judge; they correct the judges."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..errors import BadInput, ShoestringError
from ..evaluate.judge.calibrate import MIN_LABELS
from ..evaluate.judge.labelling import Labelling
from ..evaluate.judge.labels import LABELS, SKIPPED
from ..recipe import Run
from ..stages.labelling import open_session, take_in
from .places import folder_of
from .site import page, site_of

MOST_KEPT = 4
ANSWERED = ("run.yaml", "decide.json", "ladder.json", "data/receipt.json")


class Sessions:
    """Sessions that are under way, each kept while the answers it asks about are the same."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, tuple[Any, Labelling]] = OrderedDict()
        self.lock = threading.Lock()  # a label is kept before the next item is drawn

    def of(self, folder: Path) -> Labelling:
        """The session of a run, opened again where answers or labels changed on disk. Raises: BadInput."""
        signature = _signature(folder)
        kept = self._kept.get(folder)
        if kept is None or kept[0] != signature:
            kept = (signature, open_session(Run.from_folder(folder), ())[0])
            self.keep(folder, kept[1])
        return kept[1]

    def keep(self, folder: Path, session: Labelling) -> None:
        """What a session wrote itself changes nothing."""
        self._kept[folder] = (_signature(folder), session)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)


SESSIONS = Sessions()


def _signature(folder: Path) -> list[tuple[str, int, int]]:
    files = [*(folder / name for name in (*ANSWERED, LABELS)), *sorted(folder.glob("rungs/*/eval.json"))]
    return [(str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files if f.is_file()]


def show(request: Request) -> Response:
    """The next answer to judge."""
    folder = folder_of(site_of(request).runs_dir, request.path_params["name"])
    said = "The labels are in: scores are calibrated by them." if request.query_params.get("in") else ""
    try:
        with SESSIONS.lock:
            session = SESSIONS.of(folder)
            item = session.next()
            SESSIONS.keep(folder, session)
    except ShoestringError as error:
        return page(
            request, "label.html", status_code=422, name=folder.name, tab="data", title="Labels", problem=str(error)
        )
    return page(
        request,
        "label.html",
        name=folder.name,
        tab="data",
        title=f"{folder.name}: labels",
        problem="",
        said=said,
        item=item,
        criteria=session.criteria,
        is_pair=session.config.mode == "pairwise",
        num_rows=session.num_rows,
        num_items=len(session.items),
        least=MIN_LABELS,
    )


async def say(request: Request) -> Response:
    """Keep a label, take the last one back, or take the labels into the scores."""
    async with request.form(max_files=0, max_fields=40) as form:
        return await run_in_threadpool(_say, request, form)


def _say(request: Request, form: FormData) -> Response:
    folder = folder_of(site_of(request).runs_dir, request.path_params["name"])
    here = f"/runs/{folder.name}/label"
    act = form.get("act")
    if act == "in":
        take_in(Run.from_folder(folder))
        return RedirectResponse(f"{here}?in=1", 303)
    with SESSIONS.lock:
        session = SESSIONS.of(folder)
        if act == "undo":
            session.undo()
        else:
            item = session.next()
            if item is None or form.get("id") != str(item.id):
                return RedirectResponse(here, 303)  # another row is due: a page that was sent twice
            given = _given(session, form)
            if not session.is_label(given):
                raise BadInput("that is no label; answer each question, or choose 'Cannot say'")
            session.say(item, given)
        SESSIONS.keep(folder, session)
    return RedirectResponse(here, 303)


def _given(session: Labelling, form: FormData) -> Any:
    """What the form says of the item."""
    act = form.get("act")
    if act == SKIPPED or session.config.mode == "pairwise":
        return act
    if len(session.criteria) == 1 and act in ("yes", "no"):
        return [act == "yes"]
    answers = [form.get(f"criterion-{i}") for i in range(len(session.criteria))]
    return [answer == "yes" for answer in answers] if all(a in ("yes", "no") for a in answers) else None


ROUTES = [
    Route("/runs/{name}/label", show, methods=["GET"]),
    Route("/runs/{name}/label", say, methods=["POST"]),
]
