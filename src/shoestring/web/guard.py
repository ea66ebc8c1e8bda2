"""Who may ask: the person who started the page, from the page itself, with no more than was agreed.

The token of the first address becomes a cookie. A page of another origin can neither read nor post: it has no
token, SameSite keeps the cookie from other sites, and origins on other ports of this machine, which share a site,
are told apart by the headers Origin and Sec-Fetch-Site. A foreign name that resolves to 127.0.0.1 fails on Host.
"""

from __future__ import annotations

import hmac
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..serve.gateway.guard import bounded
from .site import Site

SAFE = ("GET", "HEAD")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # under no-referrer a form of ours would post with Origin: null
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """ASGI middleware in front of every route, the static files included."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self.app, self.site = app, site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        refused = self._refused(scope, headers) or self._first(scope) or self._unknown(headers)
        if refused is not None:
            return await refused(scope, receive, _with_headers(send))
        limit = self.site.max_body_bytes(scope["path"])
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            return await _too_long(limit)(scope, receive, _with_headers(send))
        return await self.app(
            scope, bounded(receive, limit, lambda: HTTPException(413, _longer(limit))), _with_headers(send)
        )

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a request that does not come from the page itself."""
        host = headers.get("host", "")
        if host not in self.site.hosts:
            return PlainTextResponse(f"this page answers to {self.site.hosts[0]} alone\n", 403)
        origin, fetched_from = headers.get("origin"), headers.get("sec-fetch-site")
        if scope["method"] in SAFE:
            is_opened = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            own = fetched_from in (None, "same-origin", "none") or is_opened
        else:
            own = origin == f"http://{host}" if origin is not None else fetched_from == "same-origin"
        return None if own else PlainTextResponse("asked for by another site; use the page itself\n", 403)

    def _first(self, scope: Scope) -> Response | None:
        """The answer to the first address: a cookie, and the same address without its token."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        token = dict(query).get("token")
        if token is None or scope["method"] not in SAFE or not self._is_token(token):
            return None
        left = urlencode([(key, value) for key, value in query if key != "token"])
        path = "/" + scope["path"].lstrip("/")  # '//host' would lead away
        answer = RedirectResponse(path + (f"?{left}" if left else ""), 303)
        answer.set_cookie(self.site.cookie, self.site.token, httponly=True, samesite="strict", path="/")
        return answer

    def _unknown(self, headers: Headers) -> Response | None:
        given = cookie_parser(headers.get("cookie", "")).get(self.site.cookie)
        if given is not None and self._is_token(given):
            return None
        return PlainTextResponse("open the address that shoestring ui printed, with its token\n", 401)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.site.token.encode())


def _too_long(limit: int) -> Response:
    return PlainTextResponse(f"{_longer(limit)}\n", 413)


def _longer(limit: int) -> str:
    return f"longer than the {limit:,} bytes this address takes"


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending
