"""Held-out rows and what each arm answered to them, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..decide.evidence import BARE, style
from ..files import parse_json
from ..records import ArmScore, RowScore, example_from_json
from ..report.folder import RunFiles
from ..report.rows import ArmRows
from ..report.sides import marked
from ..report.text import Markup, block, esc
from .kept import run_of
from .places import folder_of
from .site import page, site_of, trusted

ROWS_A_PAGE = 20
MOST_ARMS = 4
MOST_QUERY = 200

# Which rows are shown: name -> (words, whether a row is, by the scores of the arms shown; None: not asked).
Scores = Sequence[float | None]
FILTERS: dict[str, tuple[str, Callable[[Scores], bool]]] = {
    "all": ("every row", lambda scores: True),
    "wrong": ("the last arm is wrong", lambda scores: _is_wrong(scores[-1])),
    "any": ("any arm is wrong", lambda scores: any(map(_is_wrong, scores))),
    "every": ("every arm is wrong", lambda scores: all(map(_is_wrong, scores))),
    "gained": ("the last arm is better than the first", lambda scores: _less(scores[0], scores[-1])),
    "lost": ("the last arm is worse than the first", lambda scores: _less(scores[-1], scores[0])),
}


def _is_wrong(score: float | None) -> bool:
    return score is not None and score < 1.0


def _less(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and a < b


@dataclass(frozen=True)
class Answer:
    """What one arm answered to a row; None where it was not asked."""

    arm: str
    row: RowScore | None
    shown: Markup


def outputs(request: Request) -> Response:
    """A page of rows."""
    folder = folder_of(site_of(request).runs_dir, request.path_params["name"])
    run = run_of(folder)
    asked = request.query_params
    arms = chosen_arms(run, asked.getlist("arm"))
    only = asked.get("only", "all")
    if only not in FILTERS:
        raise HTTPException(422, f"only={only[:40]}: not one of {', '.join(FILTERS)}")
    query, number = asked.get("q", "")[:MOST_QUERY], asked.get("page", "1")
    found = matching(run.rows, arms, only, query) if arms else []
    num_pages = max(1, -(-len(found) // ROWS_A_PAGE))
    at = min(int(number), num_pages) if number.isdecimal() and len(number) < 9 and int(number) else 1
    shown = found[(at - 1) * ROWS_A_PAGE : at * ROWS_A_PAGE]
    return page(
        request,
        "outputs.html",
        title=f"{folder.name}: outputs",
        name=folder.name,
        tab="outputs",
        arms=arms,
        every_arm=[arm.arm for arm in run.arms],
        filters={key: words for key, (words, _) in FILTERS.items()},
        only=only,
        query=query,
        rows=[side_by_side(run.rows, arms, row_id) for row_id in shown],
        num_found=len(found),
        num_rows=len(run.rows[arms[-1]]) if arms else 0,
        at=at,
        num_pages=num_pages,
        most_arms=MOST_ARMS,
        num_ticked=len(set(asked.getlist("arm")) & run.rows.keys()),
    )


def chosen_arms(run: RunFiles, asked: Sequence[str]) -> list[str]:
    """The arms shown: those asked for, else the bare base, the best prompt and the best fine-tune, in this order."""
    known = [arm.arm for arm in run.arms if len(run.rows.get(arm.arm, ()))]
    if asked:
        return [arm for arm in known if arm in asked][:MOST_ARMS]
    by_score: Callable[[ArmScore], float] = lambda arm: arm.score.value  # noqa: E731
    tuned = max((arm for arm in run.arms if arm.kind == "finetune"), key=by_score, default=None)
    verdict = next((arm for arm in run.arms if arm.arm == (run.verdict or {}).get("arm")), None)
    last = verdict if verdict is not None and verdict.kind == "finetune" else tuned
    bare = [arm for arm in run.arms if style(arm) in BARE]
    own = [arm for arm in bare if last is not None and arm.model == last.model]
    base = max(own or bare, key=by_score, default=None)
    prompts = [arm for arm in run.arms if arm.kind not in ("finetune", "linear") and arm is not base]
    prompt = max(prompts, key=lambda arm: (style(arm) not in BARE, arm.score.value), default=None)
    found = [arm.arm for arm in (base, prompt, last) if arm is not None and arm.arm in known]
    return found or known[:MOST_ARMS]


def matching(rows: Mapping[str, ArmRows], arms: Sequence[str], only: str, query: str) -> list[str]:
    """Ids of the rows to show, in the order in which the last arm was asked them."""
    test, last = FILTERS[only][1], rows[arms[-1]]
    needle = json.dumps(query, ensure_ascii=False)[1:-1].lower()
    found = []
    for row_id, place in last.places.items():
        scores = [_score(rows[arm], row_id) for arm in arms]
        if test(scores) and (not needle or needle in last.raw[place].decode("utf-8", "replace").lower()):
            found.append(row_id)
    return found


def _score(rows: ArmRows, row_id: str) -> float | None:
    place = rows.places.get(row_id)
    return None if place is None else rows.scores[place]


def side_by_side(rows: Mapping[str, ArmRows], arms: Sequence[str], row_id: str) -> dict[str, Any]:
    """One held-out row: what was asked and expected, and the answers of the arms, what differs marked."""
    found = [(arm, rows[arm].places.get(row_id)) for arm in arms]
    read = [(arm, None if place is None else rows[arm].row(place)) for arm, place in found]
    any_row = next(row for _, row in read if row is not None)
    answers = [Answer(arm, row, _shown(row) if row is not None else esc("")) for arm, row in read]
    return {
        "id": row_id,
        "prompt": trusted(block(any_row.prompt)),
        "expected": trusted(block(any_row.expected)),
        "answers": [{"arm": a.arm, "row": a.row, "shown": trusted(a.shown)} for a in answers],
    }


def _shown(row: RowScore) -> Markup:
    """The output; where it is wrong what the expected answer has not is marked."""
    if row.score >= 1.0 or not row.output:
        return block(row.output)
    return Markup(f'<pre dir="auto">{marked(row.expected, row.output)[1]}</pre>')


def whole(request: Request) -> Response:
    """Every message of one held-out row, and the outputs uncut: a part of the page."""
    site = site_of(request)
    folder, row_id = folder_of(site.runs_dir, request.path_params["name"]), request.path_params["row_id"]
    run = run_of(folder)
    answers = [(arm, rows.row(rows.places[row_id])) for arm, rows in run.rows.items() if row_id in rows.places]
    if not answers:
        raise HTTPException(404, f"no held-out row has the id {row_id[:40]!r}")
    turns = [(turn.role, turn.text) for turn in messages_of(folder, row_id)] or [("user", answers[0][1].prompt)]
    return page(request, "outputs_row.html", turns=turns, answers=answers, expected=answers[0][1].expected)


def messages_of(folder: Path, row_id: str) -> list[Any]:
    """The messages before the answer of a held-out row, found without parsing the others; [] where it is not there."""
    wanted = json.dumps(row_id).encode()
    try:
        with (folder / "data" / "eval.jsonl").open("rb") as file:
            for line in file:
                if wanted in line and (row := parse_json(line)).get("id") == row_id:
                    return list(example_from_json(row).request)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return []
    return []


ROUTES = [Route("/runs/{name}/outputs", outputs), Route("/runs/{name}/outputs/{row_id}", whole)]
