"""One price source's pages over HTTP: bounded in time and size, every failure told in words; standard library only."""

from __future__ import annotations

import csv
import http.client
import itertools
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from ..errors import SourceError

MAX_BODY_BYTES = 64 << 20
MAX_STREAM_BYTES = 2 << 30  # AWS's list of one region is several hundred megabytes
STREAM_TIME_FACTOR = 30  # a stream may take so many timeouts in all
MAX_ATTEMPTS = 2
RETRIED_STATUSES = {429, 500, 502, 503, 504}
NEXT_STEPS = {
    401: "check the key in {key}",
    403: "check the key in {key}, or whether the address is blocked from here",
    404: "the interface has moved; a newer Shoestring may know where",
    429: "wait a while",
}
Rows = Iterator[dict[str, str]]


class _RefuseRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would turn POST into GET and hand a key to another host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


@dataclass
class Web:
    """Requests to one source. Raises everywhere: SourceError."""

    timeout_s: float = 20.0
    key_env: str = ""  # environment variable of the key that is sent; empty: none
    backoff_s: float = 0.5
    server_time: datetime | None = field(default=None, init=False)  # as the last answer's Date says

    def __post_init__(self) -> None:
        self.opener = urllib.request.build_opener(_RefuseRedirects())

    def json(self, url: str, body: Any = None) -> Any:
        """The JSON value at url; with a body, the answer to its POST."""
        data = b"".join(self._pieces(url, body, self.timeout_s, MAX_BODY_BYTES))
        url = shown(url)
        try:
            return json.loads(data)
        except ValueError:
            start = data.lstrip()[:60].decode("utf-8", "replace")
            if start.startswith("<"):
                raise SourceError(f"{url} sent an HTML page, not JSON ({start!r})") from None
            raise SourceError(f"{url} sent no JSON, or it breaks off ({len(data):,} bytes, {start!r})") from None

    def rows(self, url: str, columns: Sequence[str], *, skip: int = 0, wanted: re.Pattern[str] | None = None) -> Rows:
        """The CSV rows at url as they arrive, after skip lines of preamble; only lines in which wanted is found."""
        lines = itertools.islice(self.lines(url), skip, None)
        head = next(lines, "")
        if head.lstrip().startswith("<"):
            raise SourceError(f"{url} sent an HTML page, not CSV ({head.strip()[:60]!r})")
        heads = next(csv.reader([head]), [])
        missing = [name for name in columns if name not in heads]
        if missing:
            raise SourceError(f"{url} lacks the columns {', '.join(missing)}; the interface has changed")
        for row in csv.DictReader(filter(wanted.search, lines) if wanted else lines, heads):
            if None in row.values():
                raise SourceError(f"{url} breaks off in the middle of a row")
            yield row

    def lines(self, url: str) -> Iterator[str]:
        """The lines at url, as they arrive."""
        rest = b""
        for piece in self._pieces(url, None, self.timeout_s * STREAM_TIME_FACTOR, MAX_STREAM_BYTES):
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.decode("utf-8", "replace") + "\n"
        if rest:
            yield rest.decode("utf-8", "replace")

    def _pieces(self, url: str, body: Any, total_s: float, max_bytes: int) -> Iterator[bytes]:
        """The body in pieces: the socket's timeout does not bound a server that drips."""
        deadline = time.monotonic() + total_s
        num_bytes = 0
        try:
            with self._open(url, body) as response:
                while piece := response.read1(1 << 16):
                    num_bytes += len(piece)
                    if num_bytes > max_bytes:
                        raise SourceError(f"{shown(url)} sent more than {max_bytes >> 20} MiB")
                    if time.monotonic() > deadline:
                        raise SourceError(f"{shown(url)} was not done within {total_s:g} s")
                    yield piece
                if response.length:
                    raise SourceError(f"{shown(url)} broke off {response.length:,} bytes before the end of its answer")
        except (http.client.HTTPException, OSError) as error:
            raise self._connection_error(url, error) from None

    def _open(self, url: str, body: Any) -> Any:
        request = self._request(url, body)
        for attempt in range(MAX_ATTEMPTS):
            try:
                response = self.opener.open(request, timeout=self.timeout_s)
                self.server_time = _date(response.headers.get("Date"))
                return response
            except urllib.error.HTTPError as error:
                with error:
                    if error.code in RETRIED_STATUSES and attempt < MAX_ATTEMPTS - 1:
                        time.sleep(self.backoff_s)
                        continue
                    raise self._status_error(url, error) from None
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                raise self._connection_error(url, error) from None
        raise AssertionError("the last attempt returns or raises")

    def _request(self, url: str, body: Any) -> urllib.request.Request:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SourceError(f"{url!r} is no http(s) address")
        headers = {"User-Agent": "shoestring", "Accept": "*/*"}
        if self.key_env:
            headers["Authorization"] = f"Bearer {key_of(self.key_env)}"
        if body is None:
            return urllib.request.Request(url, headers=headers)
        headers["Content-Type"] = "application/json"
        return urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")

    def _status_error(self, url: str, error: urllib.error.HTTPError) -> SourceError:
        start = error.read(200).decode("utf-8", "replace")
        step = NEXT_STEPS.get(error.code, "try again later").format(key=self.key_env or "(none sent)")
        if 300 <= error.code < 400:
            step = f"it has moved to {error.headers.get('Location')}"
        return SourceError(f"{shown(url)} answered HTTP {error.code} ({start!r}); {step}")

    def _connection_error(self, url: str, error: Exception) -> SourceError:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return SourceError(f"{shown(url)} did not answer within {self.timeout_s:g} s")
        if isinstance(error, http.client.IncompleteRead):
            return SourceError(f"{shown(url)} broke off in the middle of its answer")
        return SourceError(f"no connection to {shown(url)}: {reason or type(error).__name__}")


def shown(url: str) -> str:
    """An address as a message names it, without the query."""
    return url.split("?")[0]


def key_of(key_env: str) -> str:
    """The key in an environment variable. Raises: SourceError naming the variable."""
    key = os.environ.get(key_env, "").strip()
    if not key:
        raise SourceError(f"it wants a key, and environment variable {key_env} is not set; export the key there")
    if not (key.isascii() and key.isprintable()):
        raise SourceError(f"the key in {key_env} holds characters no key has")
    return key


def need(row: Any, name: str, kind: type | tuple[type, ...] = object) -> Any:
    """row[name], of kind. Raises: SourceError naming the field, and those that are there."""
    if not isinstance(row, dict):
        raise SourceError(f"an object with {name!r} was expected, there is {str(row)[:60]!r}")
    if name not in row:
        there = ", ".join(list(row)[:12])
        raise SourceError(f"the field {name!r} is missing (there are: {there}); the interface has changed")
    value = row[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise SourceError(f"the field {name!r} holds {str(value)[:60]!r}; the interface has changed")
    return value


def number(row: Any, name: str) -> float:
    """A field that must be a number, or text of one. Raises: SourceError."""
    value = need(row, name, (int, float, str))
    try:
        return float(value)
    except ValueError:
        raise SourceError(f"the field {name!r} holds {value[:60]!r}, no number; the interface has changed") from None


def _date(header: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(header) if header else None
    except ValueError:
        return None
    return moment.astimezone(UTC) if moment and moment.tzinfo else None
