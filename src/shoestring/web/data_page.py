"""A run's data: what came in and what became of it; rows side by side; decisions on them."""

from __future__ import annotations

import hashlib
import itertools
import math
from pathlib import Path
from typing import Any

from markupsafe import Markup as Trusted
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..config import FieldsConfig, RunConfig, load_run_file
from ..data.codes import CODES
from ..data.restore import ADVICE, can_come_back
from ..data.review import Mark
from ..data.safety import redact
from ..errors import BadInput, ConfigError
from ..files import read_json
from ..report.data import data, words
from ..report.data_cases import Found, cases
from ..report.folder import read_run
from ..report.sides import case_card, cut
from .decisions import Suspect, save, suspects
from .kept import Kept
from .places import folder_of
from .site import page, site_of, trusted

PER_PAGE = 20
MAX_MEASURED = 10_000  # rows of a side whose lengths are drawn
MAX_ANSWER = 30_000  # characters of a corrected answer

SECTIONS: Kept[Any, Trusted] = Kept()


def show(request: Request) -> Response:
    """The data section, and the rows for a person to judge."""
    folder = folder_of(site_of(request).runs_dir, request.path_params["name"])
    number = _page_number(request)
    listed, num_suspects, num_decided = _suspects(folder, number)
    return page(
        request,
        "data.html",
        name=folder.name,
        tab="data",
        title=f"{folder.name}: data",
        has_data=(folder / "data" / "receipt.json").is_file(),
        section=_section(folder),
        has_judge=(config := _config(folder)) is not None and config.judge is not None,
        suspects=[_suspect_cells(folder.name, one) for one in listed],
        num_suspects=num_suspects,
        num_decided=num_decided,
        pages=_pages(number, num_suspects, f"/runs/{folder.name}/data?page="),
        seen=site_of(request).seen(site_of(request).reader.one(folder)),
    )


def _section(folder: Path) -> Trusted:
    """report.data's section, kept while the files it is made from are the same."""
    names = ("run.yaml", "plan.json", "curate.json", "data/receipt.json", "data/review.csv")
    signature = [(p.stat().st_mtime_ns, p.stat().st_size) if p.is_file() else None for p in map(folder.joinpath, names)]
    address = f"/runs/{folder.name}/data/rows?code="
    made = lambda: trusted(data(read_run(folder, with_rows=False), address, MAX_MEASURED))  # noqa: E731
    return SECTIONS.of(folder, signature, made)


def _suspects(folder: Path, number: int) -> tuple[list[Suspect], int, int]:
    """One page of review.csv, how many lines it has, and how many are decided."""
    shown: list[Suspect] = []
    num = num_decided = 0
    for num, one in enumerate(suspects(folder), 1):
        num_decided += bool(one.decision)
        if (number - 1) * PER_PAGE < num <= number * PER_PAGE:
            shown.append(one)
    return shown, num, num_decided


def _suspect_cells(name: str, one: Suspect) -> dict[str, Any]:
    answer = one.answer
    is_whole = redact(answer) == answer and not answer.endswith(" characters)")
    return {
        "name": name,
        "key": _key(one.mark),
        "mark": one.mark,
        "what": words(one.code),
        "place": f"{Path(one.mark.source).name}:{one.mark.line}",
        "score": one.score[:4],
        "evidence": redact(one.evidence),
        "prompt": trusted(cut(redact(one.prompt))),
        "answer": trusted(cut(redact(answer))),
        "decision": one.decision,
        "corrected": one.corrected or (answer if is_whole else ""),
        "may_keep": True,
        "may_drop": True,
        "said": "",
    }


def _key(mark: Mark) -> str:
    """An element id for a row."""
    return "row-" + hashlib.sha256(repr(tuple(mark)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def rows(request: Request) -> Response:
    """Every row of one code, a page at a time."""
    folder = folder_of(site_of(request).runs_dir, request.path_params["name"])
    code = request.query_params.get("code", "")
    if code not in CODES:
        raise HTTPException(404, f"{code[:60]!r} is no fault code")
    receipt = _receipt(folder)
    num = (receipt.get("dropped_by_code") or {}).get(code) or (receipt.get("faults_by_code") or {}).get(code) or 0
    number = _page_number(request)
    config = _config(folder)
    fields, system = (config.data.fields, config.data.system) if config else (FieldsConfig(), "")
    found = cases(folder / "data", code, (number - 1) * PER_PAGE, PER_PAGE, fields, system)
    decided = {one.mark: one.decision for one in suspects(folder)}
    return page(
        request,
        "data_rows.html",
        name=folder.name,
        tab="data",
        title=f"{folder.name}: {words(code)}",
        code=words(code),
        meaning=CODES[code].meaning,
        advice=ADVICE.get(code, ""),
        num=num,
        rows=[_row_cells(folder.name, code, one, decided) for one in found],
        pages=_pages(number, num, f"/runs/{folder.name}/data/rows?code={code}&page="),
    )


def _row_cells(name: str, code: str, one: Found, decided: dict[Mark, str]) -> dict[str, Any]:
    mark = Mark(one.id, one.case.source, one.case.line)
    is_dropped = one.case.repair == "drop"
    return {
        "name": name,
        "key": _key(mark),
        "mark": mark,
        "card": trusted(case_card(one.case)),
        "decision": decided.get(mark, decided.get(Mark(one.id), "")),
        "may_keep": bool(one.id) and (can_come_back(code) if is_dropped else True),
        "may_drop": bool(one.id) and not is_dropped,
        "said": "",
    }


async def decide(request: Request) -> Response:
    """Save a decision; answers with the row's buttons, or goes back to the page where no script asked."""
    async with request.form(max_files=0, max_fields=8, max_part_size=4 * MAX_ANSWER) as form:
        return await run_in_threadpool(_decide, request, form)


def _decide(request: Request, form: FormData) -> Response:
    folder = folder_of(site_of(request).runs_dir, request.path_params["name"])
    given = {key: value if isinstance(value, str) else "" for key, value in form.items()}
    line, action, answer = given.get("line", ""), given.get("action", ""), given.get("answer", "")
    if not line.isdecimal() or len(line) > 12:
        raise BadInput(f"line {line[:40]!r} is no line number")
    if len(answer) > MAX_ANSWER:
        raise BadInput(f"the corrected answer has {len(answer):,} characters, the most is {MAX_ANSWER:,}")
    mark = Mark(given.get("id", ""), given.get("source", ""), int(line))
    answer = answer.replace("\r\n", "\n") if action == "fix" else ""
    save(folder, mark, action, answer)
    if request.headers.get("hx-request") != "true":
        return RedirectResponse(f"/runs/{folder.name}/data", 303)
    return page(
        request,
        "decision.html",
        one={
            "name": folder.name,
            "key": _key(mark),
            "mark": mark,
            "decision": action,
            "corrected": answer,
            "may_keep": given.get("may_keep") == "1",
            "may_drop": given.get("may_drop") == "1",
            "said": "saved" if action else "taken back",
        },
        can_fix=given.get("can_fix") == "1",
    )


def _receipt(folder: Path) -> dict[str, Any]:
    try:
        receipt = read_json(folder / "data" / "receipt.json")
    except (OSError, ValueError):
        raise HTTPException(404, f"{folder.name} has no curated data yet") from None
    return receipt if isinstance(receipt, dict) else {}


def _config(folder: Path) -> RunConfig | None:
    try:
        return load_run_file(folder / "run.yaml")
    except ConfigError:  # the run's own page says what is wrong with it
        return None


def _page_number(request: Request) -> int:
    text = request.query_params.get("page", "1")
    return int(text) if text.isdecimal() and 0 < len(text) < 8 and int(text) else 1


def _pages(number: int, num: int, address: str) -> list[tuple[str, str, bool]]:
    """(words, address, whether it is this one) of the pages beside this one."""
    last = max(1, math.ceil(num / PER_PAGE))
    if last == 1:
        return []
    near = sorted({1, last, *range(max(1, number - 2), min(last, number + 2) + 1)})
    found: list[tuple[str, str, bool]] = []
    for before, one in itertools.pairwise([0, *near]):
        if one > before + 1:
            found.append(("…", "", False))
        found.append((str(one), f"{address}{one}", one == number))
    return found


ROUTES = [
    Route("/runs/{name}/data", show),
    Route("/runs/{name}/data/rows", rows),
    Route("/runs/{name}/data/decide", decide, methods=["POST"]),
]
