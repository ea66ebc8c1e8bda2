"""Server-sent events: what changed on the folders, about once a second, to the pages that are looked at."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

EVERY_S = 1.0
QUIET_TURNS = 15  # without an event; then a comment is sent, by which a page that is gone is noticed

# One event: its name, and what page.js does with it (see follow() there).
Event = tuple[str, Any]


def part(element_id: str, html: str) -> Event:
    """The new content of an element."""
    return "part", {"id": element_id, "html": html}


def say(text: str) -> Event:
    """A line for everyone, screen readers too."""
    return "say", text


def fresh(element_id: str) -> Event:
    """Asks the page to fetch an element anew, from the page's own address."""
    return "fresh", element_id


class Changes:
    """Tells parts that differ from those sent before."""

    def __init__(self) -> None:
        self._sent: dict[str, str] = {}

    def known(self, element_id: str, html: str) -> None:
        """What the page shows already."""
        self._sent[element_id] = html

    def parts(self, found: Iterable[tuple[str, str]]) -> Iterator[Event]:
        """An event for each part that changed."""
        for element_id, html in found:
            if self._sent.get(element_id) != html:
                self._sent[element_id] = html
                yield part(element_id, html)


def stream(
    look: Callable[[], list[Event] | None], is_closing: Callable[[], bool], every_s: float = EVERY_S
) -> StreamingResponse:
    """Events as they come: look() is asked for them, in a thread, until it gives None or the server is closing."""

    async def sent() -> AsyncIterator[str]:
        num_quiet = 0
        yield "retry: 2000\n\n"
        while not is_closing():
            found = await run_in_threadpool(look)
            if found is None:
                return
            num_quiet = 0 if found else num_quiet + 1
            for name, data in found:
                yield f"event: {name}\ndata: {json.dumps(data, ensure_ascii=True)}\n\n"
            if num_quiet >= QUIET_TURNS:
                num_quiet = 0
                yield ": still here\n\n"
            await asyncio.sleep(every_s)

    return StreamingResponse(sent(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
