"""What both ways to ask share: the model meant, the limits of its context, how tokens are chosen, how they are told."""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..engine import BASE, Ask, Sampling, Token
from ..registry import Registry, Served
from .answering import GONE, ClientLeft, EventStream, StrictCalls, Work, answers, unless_gone
from .errors import ApiError
from .fields import Common
from .prompts import Prompts
from .text import Delta, Reader

if TYPE_CHECKING:
    from .app import Gateway

LOWEST_LOGPROB = -9999.0  # JSON has no minus infinity
SLACK_S = 5.0  # the last words of an answer that took its whole time
DONE = b"[DONE]"


def find(gateway: Gateway, name: str) -> tuple[Registry, Prompts, str, Served | None]:
    """Where the model of that name is, the engine's name of its adapter, and its run. Raises: ApiError 404."""
    registry, prompts = gateway.registry, gateway.prompts
    if registry is not None and prompts is not None:
        if name in registry.models:
            return registry, prompts, name, registry.models[name]
        if name == registry.base_name:
            return registry, prompts, BASE, gateway.whole
    if why := gateway.why_not_served(name):
        raise ApiError(503, f"{name} is not served here: {why}", param="model", code="model_not_served")
    raise unknown_model(name, registry)


def unknown_model(name: str, registry: Registry | None) -> ApiError:
    """404, with the models there are."""
    known = ", ".join(str(entry["id"]) for entry in registry.listing()) if registry else "none"
    return ApiError(
        404,
        f"The model {name[:200]!r} does not exist or you do not have access to it. Models here: {known}.",
        param="model",
        code="model_not_found",
    )


def new_tokens(context: int, num_prompt: int, wanted: int | None, usual: int | None, param: str) -> int:
    """Tokens an answer may have: as asked, else as in the run's evaluation, else what the context holds.

    Raises: ApiError 400 with the numbers.
    """
    if num_prompt >= context or num_prompt + (wanted or 0) > context:
        asked = f" ({num_prompt} in the {param}, {wanted} in the completion)" if wanted else f" in the {param}"
        raise ApiError(
            400,
            f"This model's maximum context length is {context} tokens. However, you requested "
            f"{num_prompt + (wanted or 0)} tokens{asked}. Please reduce the length of the {param} or completion.",
            param=param,
            code="context_length_exceeded",
        )
    return wanted or min(usual or context, context - num_prompt)


def sampling_of(
    gateway: Gateway, asked: Common, most: int, num_top: int | None, schema: str | None
) -> Callable[[int], Sampling]:
    """How the answer of a number is chosen: the same but for the seed. Raises: ApiError 400 beyond the engine."""
    assert gateway.registry is not None and gateway.prompts is not None, "a model was found"
    able = gateway.registry.engine.capability
    if num_top is not None and num_top > able.max_top_logprobs:
        raise beyond(able.name, "top_logprobs", f"gives {able.max_top_logprobs} log-probabilities of a token at most")
    if schema is not None and not able.schema:
        raise beyond(able.name, "response_format", "cannot keep to a schema")
    if asked.seed is not None and not able.seed:
        raise beyond(able.name, "seed", "takes no seed")
    biases = tuple((int(token), bias) for token, bias in (asked.logit_bias or {}).items())
    if wrong := [token for token, _ in biases if token >= gateway.prompts.num_ids]:
        raise ApiError(
            400, f"logit_bias: {wrong[0]} is no token; {gateway.prompts.num_ids} are known.", param="logit_bias"
        )

    def of(number: int) -> Sampling:
        return Sampling(
            max_new_tokens=most,
            # top_p 0 leaves the likeliest token alone, as temperature 0 does; vLLM refuses it as a number.
            temperature=asked.temperature if asked.top_p else 0.0,
            top_p=asked.top_p or 1.0,
            seed=None if asked.seed is None else asked.seed + number,
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            logit_bias=biases,
            num_top_logprobs=num_top,
            schema=schema,
        )

    return of


def beyond(engine: str, param: str, why: str) -> ApiError:
    """400: the engine behind this server cannot."""
    return ApiError(400, f"The engine {engine} {why}.", param=param, code="unsupported_value")


def work_of(
    request: Request,
    gateway: Gateway,
    asked: Common,
    endpoint: str,
    adapter: str,
    prompts_ids: Sequence[Sequence[int]],
    sampling: Sequence[Callable[[int], Sampling]],
    *,
    holds: str = "",
    schema_param: str = "",
    strict: StrictCalls | None = None,
) -> Work:
    """n answers to each prompt, numbered on."""
    assert gateway.prompts is not None, "a model was found"
    asks: list[Ask] = []
    readers: list[Reader] = []
    for ids, of in zip(prompts_ids, sampling, strict=True):
        for number in range(asked.n):
            index = len(asks)
            # Where a stop string or a call comes, the engine is ended there.
            is_streamed = asked.stream or bool(asked.stops) or strict is not None
            asks.append(Ask(f"{request.state.id}-{index}", adapter, tuple(ids), of(number), is_streamed))
            reader = Reader(index, gateway.prompts.detokeniser(), asked.stops, holds)
            reader.strict = strict.begins if strict else None
            readers.append(reader)
    num_prompt = sum(len(ids) for ids in prompts_ids)
    return Work(
        request.state.id, request.state.key.name, asked.model, endpoint, asks, readers, num_prompt, schema_param, strict
    )


async def respond(
    request: Request,
    gateway: Gateway,
    work: Work,
    is_streamed: bool,
    events: Callable[[AsyncIterator[Delta]], AsyncIterator[dict[str, Any]]],
    whole: Callable[[list[list[Delta]]], dict[str, Any]],
) -> Response | EventStream:
    """The answer as a stream of events, or whole. What goes wrong before the first text has a status of its own."""
    told = answers(gateway, work)
    try:
        first = await unless_gone(request.receive, anext(told))
        if is_streamed:
            limit_s = gateway.limits.timeout_s + SLACK_S
            return EventStream(as_sent(events(_with_first(first, told))), told, limit_s)
        parts: list[list[Delta]] = [[] for _ in work.readers]

        async def collect() -> None:
            parts[first.index].append(first)
            async for delta in told:
                parts[delta.index].append(delta)

        await unless_gone(request.receive, collect())
    except ClientLeft:
        await told.aclose()
        return Response(status_code=GONE)
    return JSONResponse(whole(parts))


async def _with_first(first: Delta, told: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
    yield first
    async for delta in told:
        yield delta


async def as_sent(chunks: AsyncIterator[dict[str, Any]]) -> AsyncGenerator[bytes, None]:
    """Chunks as JSON, then [DONE]; an error is the last event instead."""
    try:
        async for chunk in chunks:
            yield json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode()
    except ApiError as error:
        yield json.dumps(error.body()).encode()
        return
    yield DONE


def head(gateway: Gateway, work: Work, kind: str, prefix: str) -> dict[str, Any]:
    """What each chunk begins with."""
    return {
        "id": work.id.replace("req_", prefix),
        "object": kind,
        "created": int(time.time()),
        "model": work.model,
        "system_fingerprint": gateway.fingerprint,
    }


def logprob(value: float | None) -> float:
    """As JSON can say it."""
    return value if value is not None and math.isfinite(value) else LOWEST_LOGPROB


def chat_logprobs(prompts: Prompts, tokens: Sequence[Token]) -> dict[str, Any]:
    """Log-probabilities as chat answers have them."""

    def entry(token: int, value: float | None) -> dict[str, Any]:
        raw = prompts.token_bytes.of(token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob(value), "bytes": list(raw)}

    content = [
        {**entry(token.id, token.logprob), "top_logprobs": [entry(other, value) for other, value in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}
