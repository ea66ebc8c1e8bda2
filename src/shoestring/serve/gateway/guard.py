"""In front of every route: who asks, how much they send, and what every answer carries."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .keys import Keys

OPEN = "/health"  # the one address that asks for no key
ADMIN_PREFIX = "/admin"
READ_AWAY_BYTES, READ_AWAY_S = 64 << 20, 10.0


class Guard:
    """ASGI middleware. request.state.key is who asks; request.state.id names the request in answers and records."""

    def __init__(self, app: ASGIApp, keys: Keys, max_body_bytes: Callable[[str], int]) -> None:
        """max_body_bytes: of an address."""
        self.app, self.keys, self.max_body_bytes = app, keys, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["id"] = request_id

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers.setdefault("cache-control", "no-store")
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        headers = Headers(scope=scope)
        try:
            if scope["path"] != OPEN:
                scope["state"]["key"] = self._who(scope["path"], headers)
            limit = self.max_body_bytes(scope["path"])
            length = headers.get("content-length", "0")
            if not length.isdecimal() or int(length) > limit:
                await _read_away(receive)
                raise _too_long(limit)
        except ApiError as error:
            return await answer(error)(scope, receive, sending)
        return await self.app(scope, bounded(receive, limit, lambda: _too_long(limit)), sending)

    def _who(self, path: str, headers: Headers) -> object:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise ApiError(
                401,
                "You didn't provide an API key. Send it in the header Authorization: Bearer YOUR_KEY; "
                "the server's owner finds it in the file that 'shoestring serve' named at its start.",
                code="invalid_api_key",
            )
        found = self.keys.find(key.strip())
        if found is None:
            raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
        if (path == ADMIN_PREFIX or path.startswith(ADMIN_PREFIX + "/")) and not found.is_admin:
            raise ApiError(403, f"{ADMIN_PREFIX} needs the admin key.", code="insufficient_permissions")
        return found


def answer(error: ApiError) -> JSONResponse:
    """The refusal as a response."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s + 0.499)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error.body(), error.status, headers=headers)


def _too_long(limit: int) -> ApiError:
    return ApiError(413, f"The request's body is longer than the {limit:,} bytes taken here.", code="request_too_large")


async def _read_away(receive: Receive) -> None:
    """Take a body that is refused, up to a bound: most clients read no answer before they have sent all."""
    num_bytes = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READ_AWAY_S):
            while num_bytes < READ_AWAY_BYTES:
                message = await receive()
                num_bytes += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


def bounded(receive: Receive, limit: int, refusal: Callable[[], Exception]) -> Receive:
    """receive() that ends a body longer than limit bytes with what refusal makes."""
    num_bytes = 0

    async def limited() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > limit:
            raise refusal()
        return message

    return limited
