"""Trying a run's model: the base and adapters beside each other, each answer as it comes, with its speed."""

from __future__ import annotations

import http.client
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from ..errors import BadInput, ShoestringError
from ..files import parse_json
from .places import NAME, folder_of, run_folders
from .site import page, site_of

MOST_RUNS = 3  # side by side, beside the base
MOST_SAMPLES = 4
SAMPLE_CHARACTERS = 600
MOST_TOKENS = 4096
ROLES = ("system", "user", "assistant")
PIECE_BYTES = 1 << 16


def show(request: Request) -> Response:
    """What can be loaded, what is, and the conversation."""
    site = site_of(request)
    folder = folder_of(site.runs_dir, request.path_params["name"])
    return page(
        request,
        "chat.html",
        tab="try",
        title=f"Try {folder.name}",
        is_trained=bool(_trained(folder)),
        others=_others(site.runs_dir, folder),
        samples=_samples(folder),
        **_state(request, folder),
    )


def _state(request: Request, folder: Path) -> dict[str, Any]:
    child = site_of(request).model_server.child()
    is_ours = child is not None and folder.name in child.names
    state = child.state if child is not None and is_ours else "none"
    return {
        "name": folder.name,
        "state": state,
        "models": child.told["models"] if child is not None and state == "ready" and child.told else [],
        "why": child.end_of_what_it_said() if child is not None and state == "ended" else "",
        "elsewhere": ", ".join(child.names) if child is not None and not is_ours and child.state != "ended" else "",
    }


def _trained(folder: Path) -> set[str]:
    """Rungs of a run that are trained, by folder name."""
    return {path.parent.name for path in folder.glob("rungs/*/train.json")}


def _others(runs_dir: Path, folder: Path) -> list[str]:
    """Other runs that trained a model of the same name, the newest first."""
    own = _trained(folder)
    found = [other for other in run_folders(runs_dir) if other.name != folder.name and _trained(other) & own]
    return [other.name for other in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[:20]]


def _samples(folder: Path) -> list[str]:
    """The first held-out prompts, to begin with."""
    path = folder / "data" / "eval.jsonl"
    if not path.is_file():
        return []
    prompts = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in itertools.islice(file, 3 * MOST_SAMPLES):
            try:
                row = parse_json(line)
                asked = row["messages"][: row["answer_span"][0]]
            except (ValueError, KeyError, TypeError, IndexError):
                continue  # the data page says which lines are damaged
            text = str(asked[-1].get("content", "")) if asked else ""
            if 0 < len(text) <= SAMPLE_CHARACTERS:
                prompts.append(text)
    return prompts[:MOST_SAMPLES]


def state(request: Request) -> Response:
    """The part of the page that changes while models are loaded."""
    folder = folder_of(site_of(request).runs_dir, request.path_params["name"])
    found = _state(request, folder)
    answer = page(request, "chat_state.html", **found)
    if found["state"] != "starting":
        answer.headers["HX-Refresh"] = "true"
    return answer


async def load(request: Request) -> Response:
    """Load the run's model, and those of other runs that were ticked."""
    site = site_of(request)
    folder = folder_of(site.runs_dir, request.path_params["name"])
    async with request.form(max_files=0, max_fields=40) as form:
        others = [value for value in form.getlist("with") if isinstance(value, str) and value]
    if len(others) + 1 > MOST_RUNS:
        raise BadInput(f"{len(others) + 1} runs are more than fit side by side; tick {MOST_RUNS - 1} others at most")
    for name in others:
        if not NAME.fullmatch(name):
            raise HTTPException(404, f"{name[:80]!r} is no name of a run")
        folder_of(site.runs_dir, name)
    await run_in_threadpool(site.model_server.start, [folder.name, *others])
    return RedirectResponse(f"/runs/{folder.name}/try", 303)


def unload(request: Request) -> Response:
    """End what is loaded."""
    site = site_of(request)
    folder = folder_of(site.runs_dir, request.path_params["name"])
    site.model_server.stop()
    return RedirectResponse(f"/runs/{folder.name}/try", 303)


async def chat(request: Request) -> Response:
    """One answer of one model, as the server of models streams it."""
    site = site_of(request)
    folder_of(site.runs_dir, request.path_params["name"])
    try:
        asked = _asked(await request.json())
        connection, answer = await run_in_threadpool(site.model_server.ask, asked)
    except ShoestringError as error:
        return JSONResponse({"error": str(error)}, 422)
    except (ValueError, RecursionError):
        return JSONResponse({"error": "no JSON"}, 400)
    except (OSError, http.client.HTTPException) as error:
        return JSONResponse({"error": f"the server of models does not answer ({error}); load the models again"}, 502)
    if answer.status != 200:
        text = await run_in_threadpool(answer.read, PIECE_BYTES)
        site.model_server.done(connection)
        return JSONResponse({"error": _message(text) or f"status {answer.status}"}, answer.status)

    async def relayed() -> AsyncIterator[bytes]:
        try:
            while piece := await run_in_threadpool(answer.read1, PIECE_BYTES):
                yield piece
        finally:
            site.model_server.done(connection)

    return StreamingResponse(relayed(), media_type="text/event-stream")


def _asked(body: Any) -> dict[str, Any]:
    """The request that is sent on, of checked parts alone. Raises: BadInput."""
    if not isinstance(body, dict):
        raise BadInput("no JSON object")
    messages, tokens, temperature = body.get("messages"), body.get("max_tokens", 256), body.get("temperature", 0)
    if not isinstance(body.get("model"), str):
        raise BadInput("model is missing; name one that is loaded")
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise BadInput(f"messages is no list of objects with role ({', '.join(ROLES)}) and content; give one at least")
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= MOST_TOKENS:
        raise BadInput(f"max_tokens = {tokens!r}, it lies between 1 and {MOST_TOKENS:,}")
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 <= temperature <= 2:
        raise BadInput(f"temperature = {temperature!r}, it lies between 0 and 2")
    return {
        "model": body["model"],
        "messages": [{"role": m["role"], "content": m["content"]} for m in messages],
        "max_tokens": tokens,
        "temperature": temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ROLES and isinstance(message.get("content"), str)


def _message(text: bytes) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text.decode("utf-8", "replace")[:500]


ROUTES = [
    Route("/runs/{name}/try", show, methods=["GET"]),
    Route("/runs/{name}/try", load, methods=["POST"]),
    Route("/runs/{name}/try/state", state),
    Route("/runs/{name}/try/end", unload, methods=["POST"]),
    Route("/runs/{name}/try/chat", chat, methods=["POST"]),
]
