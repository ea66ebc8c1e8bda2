"""Labels of a person on answers of a run, one at a time and blind to arm and judge; they correct the judges."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

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
from .forms import number_of
from .places import folder_of
from .site import page, site_of

MOST_KEPT = 4
NUM_ROWS = 100  # after which the page says that it is enough
MOST_ROWS = 1_000_000
ANSWERED = ("run.yaml", "decide.json", "ladder.json", "data/receipt.json")


@dataclass(frozen=True, slots=True)
class Asked:
    """Which answers are labelled (of the arm that the verdict is about where none is named), and how many rows."""

    folder: Path
    arms: tuple[str, ...]
    num_rows: int

    @classmethod
    def of(cls, request: Request) -> Asked:
        """What the address says. Raises: HTTPException 404, BadInput."""
        query = request.query_params
        num_rows = number_of(query, "num", at_least=1, at_most=MOST_ROWS)
        folder = folder_of(site_of(request).runs_dir, request.path_params["name"])
        return cls(folder, tuple(query.getlist("arm")), int(num_rows or NUM_ROWS))

    def address(self, num_more: int = 0, is_in: bool = False) -> str:
        """Of the page that asks for this, or for some rows more; is_in: the labels are in the scores."""
        return label_address(self.folder.name, self.arms, self.num_rows + num_more, is_in)


def label_address(name: str, arms: Sequence[str] = (), num_rows: int = NUM_ROWS, is_in: bool = False) -> str:
    """Where a run's answers are labelled."""
    query = [("arm", arm) for arm in arms]
    query += [("num", str(num_rows))] if num_rows != NUM_ROWS else []
    query += [("in", "1")] if is_in else []
    return f"/runs/{name}/label" + (f"?{urlencode(query)}" if query else "")


class Sessions:
    """Sessions that are under way, each kept while the answers it asks about are the same."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, tuple[Any, Labelling]] = OrderedDict()
        self.lock = threading.Lock()  # a label is kept before the next item is drawn

    def of(self, asked: Asked) -> Labelling:
        """The session, opened again where answers or labels changed on disk. Raises: BadInput."""
        signature = _signature(asked.folder)
        kept = self._kept.get((asked.folder, asked.arms))
        if kept is None or kept[0] != signature:
            session = open_session(Run.from_folder(asked.folder), asked.arms)[0]
            self.keep(asked, session)
            return session
        return kept[1]

    def keep(self, asked: Asked, session: Labelling) -> None:
        """What a session wrote itself changes nothing."""
        self._kept[asked.folder, asked.arms] = (_signature(asked.folder), session)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)


SESSIONS = Sessions()


def _signature(folder: Path) -> list[tuple[str, int, int]]:
    files = [*(folder / name for name in (*ANSWERED, LABELS)), *sorted(folder.glob("rungs/*/eval.json"))]
    return [(str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files if f.is_file()]


def show(request: Request) -> Response:
    """The next answer to judge."""
    asked = Asked.of(request)
    told: dict[str, Any] = {"name": asked.folder.name, "tab": "data", "title": f"{asked.folder.name}: labels"}
    try:
        with SESSIONS.lock:
            session = SESSIONS.of(asked)
            is_enough = session.num_rows >= asked.num_rows
            item = None if is_enough else session.next()
            SESSIONS.keep(asked, session)
    except ShoestringError as error:
        if request.headers.get("hx-request") == "true":
            raise
        return page(request, "label.html", status_code=422, problem=str(error), **told)
    return page(
        request,
        "label.html",
        **told,
        problem="",
        said="The labels are in: scores are calibrated by them." if "in" in request.query_params else "",
        address=asked.address(),
        more=asked.address(NUM_ROWS) if is_enough else "",
        item=item,
        criteria=session.criteria,
        is_pair=session.config.mode == "pairwise",
        num_rows=session.num_rows,
        wanted=asked.num_rows,
        least=MIN_LABELS,
        can_undo=session.can_undo,
    )


async def say(request: Request) -> Response:
    """Keep a label, take the last one back, or take the labels into the scores."""
    async with request.form(max_files=0, max_fields=40) as form:
        return await run_in_threadpool(_say, request, form)


def _say(request: Request, form: FormData) -> Response:
    asked = Asked.of(request)
    act = form.get("act")
    if act == "in":
        take_in(Run.from_folder(asked.folder))
        return RedirectResponse(asked.address(is_in=True), 303)
    with SESSIONS.lock:
        session = SESSIONS.of(asked)
        if act == "undo":
            session.undo()
        else:
            item = session.next()
            if item is None or form.get("id") != str(item.id):
                return RedirectResponse(asked.address(), 303)  # another row is due: a page that was sent twice
            given = _given(session, form)
            if not session.is_label(given):
                raise BadInput("that is no label; answer each question, or choose 'Cannot say'")
            session.say(item, given)
        SESSIONS.keep(asked, session)
    return RedirectResponse(asked.address(), 303)


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
