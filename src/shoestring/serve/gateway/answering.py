"""From a request to its answers: limited, asked of the engine, timed, recorded, ended when nobody listens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from ...errors import BadInput, DoesNotFit, MissingDependency, ModelError, ShoestringError
from ..engine import Ask, Busy, EngineDown, NotLoaded
from .errors import ApiError
from .text import Delta, Detokeniser, Reader
from .usage import Used

if TYPE_CHECKING:
    from .app import Gateway

LOG = logging.getLogger(__name__)
GONE = 499  # of a client that left before its answer
BODY_S = 60.0
EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

T = TypeVar("T")


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True)
class StrictCalls:
    """Calls that keep to a schema wherever one is made. opening: what the template writes before a call's JSON.

    opening_ids: its ids; after_text_ids: those where text stands before it.
    """

    schema: str
    begins: re.Pattern[str]
    opening: str
    opening_ids: tuple[int, ...]
    after_text_ids: tuple[int, ...]

    def rest_of(self, ask: Ask, reader: Reader, context_tokens: int, detokeniser: Detokeniser) -> Ask:
        """The same request from where the call begins, held to the schema."""
        said = reader.begin_call(self.opening, detokeniser)
        ids = (*ask.prompt_ids, *said, *(self.after_text_ids if said else self.opening_ids))
        most = min(ask.sampling.max_new_tokens - reader.num_tokens, context_tokens - len(ids))
        if most < 1 or len(ids) >= context_tokens:
            raise BadInput("no tokens are left for the call that has begun; raise max_completion_tokens")
        sampling = replace(ask.sampling, max_new_tokens=most, schema=self.schema)
        return replace(ask, id=f"{ask.id}-call", prompt_ids=ids, sampling=sampling)


@dataclass(frozen=True)
class Work:
    """One request. num_prompt_tokens: of its prompts, each once."""

    id: str
    key: str
    model: str
    endpoint: str
    asks: Sequence[Ask]
    readers: Sequence[Reader]
    num_prompt_tokens: int
    schema_param: str = ""  # the field whose schema answers keep to
    strict: StrictCalls | None = None

    @property
    def num_new_tokens(self) -> int:
        """So far, of all answers."""
        return sum(reader.num_tokens for reader in self.readers)

    @property
    def num_cached_tokens(self) -> int:
        """Of the prompts: what the first answer to each found."""
        by_prompt: dict[tuple[int, ...], int] = {}
        for ask, reader in zip(self.asks, self.readers, strict=True):
            by_prompt.setdefault(ask.prompt_ids, reader.num_cached_tokens)
        return sum(by_prompt.values())

    def usage(self) -> dict[str, object]:
        """As the API tells it."""
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_new_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_new_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
        }


async def body_of(request: Request) -> bytes:
    """Raises: ApiError 408 where it does not come."""
    try:
        async with asyncio.timeout(BODY_S):
            return await request.body()
    except TimeoutError:
        raise ApiError(408, f"The request's body did not come within {BODY_S:g} s.") from None


async def answers(gateway: Gateway, work: Work) -> AsyncGenerator[Delta, None]:
    """What is new of any of the answers, until all have ended; closing the iterator ends them.

    Raises: ApiError.
    """
    status, started, first_s = GONE, time.monotonic(), None
    with contextlib.ExitStack() as stack:
        try:
            if gateway.usage.is_full:
                raise ApiError(
                    503, "Usage cannot be written down here; the server's log says why.", code="usage_unavailable"
                )
            pay = stack.enter_context(
                gateway.gate.admitted(work.key, work.model, len(work.asks), work.num_prompt_tokens)
            )
        except ApiError as error:
            gateway.metrics.requests.labels(work.model, work.endpoint, error.status).inc()
            raise
        begun = gateway.machine.begin()
        try:
            async with contextlib.aclosing(_merged(gateway, work)) as deltas:
                async for delta in deltas:
                    if first_s is None:
                        first_s = time.monotonic() - started
                    yield delta
            status, gateway.engine_fault = 200, ""
        except ShoestringError as error:
            told = as_api_error(error, gateway)
            status = told.status
            if status == 400:
                told.param = work.schema_param or None
            raise told from error
        except ApiError as error:
            status = error.status
            raise
        except Exception:
            status = 500
            raise
        finally:
            pay(work.num_new_tokens)
            machine_s = gateway.machine.end(begun)
            _record(gateway, work, status, time.monotonic() - started, machine_s, first_s)


def as_api_error(error: ShoestringError, gateway: Gateway) -> ApiError:
    """What an engine raises, for a client; that it is down is logged and kept for /health."""
    fault = str(error) if isinstance(error, EngineDown) else ""
    if fault and fault != gateway.engine_fault:
        LOG.error("%s", fault)
    gateway.engine_fault = fault
    if isinstance(error, Busy):
        return ApiError(429, str(error), code="rate_limit_exceeded", retry_after_s=error.retry_after_s)
    if isinstance(error, NotLoaded):
        return ApiError(404, str(error), param="model", code="model_not_found")
    if isinstance(error, EngineDown):  # which may hold the last lines of the engine's log: they are the owner's
        return ApiError(503, "The engine does not answer; the server's log says why.", code="engine_unavailable")
    if isinstance(error, DoesNotFit):
        return ApiError(503, str(error), code="engine_unavailable")
    if isinstance(error, BadInput) and not isinstance(error, (ModelError, MissingDependency)):
        return ApiError(400, str(error), code="invalid_value")
    return ApiError(500, str(error))


async def _merged(gateway: Gateway, work: Work) -> AsyncGenerator[Delta, None]:
    assert gateway.registry is not None, "a model was found"
    engine = gateway.registry.engine
    queue: asyncio.Queue[Delta | Exception] = asyncio.Queue()

    async def read(ask: Ask, reader: Reader) -> None:
        async with contextlib.aclosing(engine.generate(ask)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                delta = reader.feed(piece)
                if delta is not None:
                    queue.put_nowait(delta)
                if reader.finish or reader.begins_strict_call:
                    return
        raise EngineDown("the engine ended an answer without a word; its log says why")

    async def run(ask: Ask, reader: Reader) -> None:
        try:
            await read(ask, reader)
            if work.strict is not None and reader.begins_strict_call:
                detokeniser, num_cached = Detokeniser(reader.detokeniser.tokenizer), reader.num_cached_tokens
                await read(work.strict.rest_of(ask, reader, engine.context_tokens, detokeniser), reader)
                reader.num_cached_tokens = num_cached  # what the second reading found is the first one's own
        except Exception as error:  # told to whoever waits for the answer
            queue.put_nowait(error)

    limit_s = gateway.limits.timeout_s
    late = ApiError(503, f"The answer took longer than {limit_s:g} s, the limit here.", code="timeout")
    timer = asyncio.get_running_loop().call_later(limit_s, queue.put_nowait, late)
    tasks = [asyncio.create_task(run(*pair)) for pair in zip(work.asks, work.readers, strict=True)]
    try:
        num_left = len(tasks)
        while num_left:
            told = await queue.get()
            if isinstance(told, Exception):
                raise told
            num_left -= bool(told.finish)
            yield told
    finally:
        timer.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _record(gateway: Gateway, work: Work, status: int, wall_s: float, machine_s: float, first_s: float | None) -> None:
    used = Used(
        id=work.id,
        key=work.key,
        model=work.model,
        endpoint=work.endpoint,
        status=status,
        num_prompt_tokens=work.num_prompt_tokens,
        num_cached_tokens=work.num_cached_tokens,
        num_completion_tokens=work.num_new_tokens,
        wall_s=wall_s,
        machine_s=machine_s,
    )
    record = gateway.usage.add(used)
    metrics = gateway.metrics
    metrics.requests.labels(work.model, work.endpoint, status).inc()
    metrics.prompt_tokens.labels(work.model).inc(work.num_prompt_tokens)
    metrics.cached_tokens.labels(work.model).inc(work.num_cached_tokens)
    metrics.new_tokens.labels(work.model).inc(work.num_new_tokens)
    metrics.cost.labels(work.model).inc(record["cost_usd"] or 0.0)
    metrics.whole_s.labels(work.model).observe(wall_s)
    if first_s is not None:
        metrics.first_s.labels(work.model).observe(first_s)


async def unless_gone(receive: Receive, awaited: Awaitable[T]) -> T:
    """What is awaited; cancelled once the client leaves. Raises: ClientLeft."""

    async def leaves() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def work() -> T:
        return await awaited

    task, watch = asyncio.create_task(work()), asyncio.create_task(leaves())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class EventStream:
    """Server-sent events as a response. An error on the way is an event, and the stream then lacks its [DONE]."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], answers: AsyncGenerator[Delta, None], limit_s: float
    ) -> None:
        """answers: closed at the end, whatever ends it. limit_s: of a client that does not read."""
        self.events, self.answers, self.limit_s = events, answers, limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            async with asyncio.timeout(self.limit_s):
                await unless_gone(receive, self._send(send))
        except (ClientLeft, OSError):  # a TimeoutError is one
            pass
        finally:
            await self.events.aclose()
            await self.answers.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(EVENT_HEADERS)})
        async for event in self.events:
            await send(_part(event))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _part(event: bytes) -> Message:
    return {"type": "http.response.body", "body": b"data: " + event + b"\n\n", "more_body": True}
