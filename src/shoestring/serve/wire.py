"""One client of an OpenAI-compatible server: a connection kept open, answers timed as they stream; standard library.

Neither an SDK nor an asynchronous client stands between the socket and the clock. Source of the format: Server-Sent
Events of the chat completions API; its last event is [DONE].
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ..errors import BadInput, EndpointError

MOST_ERROR_BYTES = 64 << 10  # of a refusal's body
MOST_BODY_BYTES = 32 << 20
STALE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


@dataclass
class Answer:
    """What one request brought. error: empty, or its kind in a few words; times in seconds of time.perf_counter."""

    model: str
    sent_s: float
    first_s: float | None = None  # the first piece with content
    last_s: float | None = None  # the last one
    end_s: float = 0.0
    text: str = ""
    gaps_s: list[float] = field(default_factory=list)  # between pieces
    num_pieces: int = 0
    num_prompt_tokens: int | None = None  # as the server counts; None where it does not say
    num_cached_tokens: int = 0
    num_new_tokens: int | None = None
    finish: str = ""
    status: int = 0
    error: str = ""
    detail: str = ""  # the server's own words
    retry_after_s: float | None = None
    was_cut: bool = False  # by us, when the load was ended

    @property
    def num_tokens(self) -> int:
        """New tokens; pieces, of which each holds at least one, where the server counts none."""
        return self.num_pieces if self.num_new_tokens is None else self.num_new_tokens

    @property
    def per_token_s(self) -> float | None:
        """Seconds a token after the first; None below two tokens."""
        if self.first_s is None or self.last_s is None or self.num_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.num_tokens - 1)


def address(url: str) -> tuple[str, str, int, str]:
    """(scheme, host, port, path before /chat/completions) of a base address. Raises: BadInput."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise BadInput(f"{url!r} is no http(s) address; give one such as http://127.0.0.1:8000/v1")
    path = parts.path.rstrip("/")
    return (
        parts.scheme,
        parts.hostname,
        port or (443 if parts.scheme == "https" else 80),
        path if path else "/v1",
    )


class Client:
    """A connection that asks one thing at a time. Used by one thread; cut() may come from another."""

    def __init__(self, url: str, key: str = "", timeout_s: float = 300.0) -> None:
        self.url, self.timeout_s = url, timeout_s
        self._scheme, self._host, self._port, self._path = address(url)
        self._headers = {"Content-Type": "application/json", "User-Agent": "shoestring"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._connection: http.client.HTTPConnection | None = None
        self._is_cut = False

    def ask(self, body: Mapping[str, Any]) -> Answer:
        """Send a streamed chat completion and read it to its end; what goes wrong is in the answer."""
        answer = Answer(str(body.get("model", "")), time.perf_counter())
        try:
            response = self._send("POST", f"{self._path}/chat/completions", json.dumps(body).encode())
            answer.status = response.status
            if response.status != 200:
                _refused(answer, response)
            else:
                _read(answer, response)
        except TimeoutError:
            answer.error, answer.detail = "timeout", f"nothing for {self.timeout_s:g} s"
        except (OSError, http.client.HTTPException) as error:
            answer.error, answer.detail = "connection lost", f"{type(error).__name__}: {error}"
        except ValueError as error:  # JSON and numbers in places where they belong
            answer.error, answer.detail = "not the API's format", str(error)[:300]
        if answer.error:
            self.close()
            answer.was_cut = self._is_cut
        answer.end_s = time.perf_counter()
        return answer

    def get(self, path: str) -> Any:
        """The JSON at a path below the base address. Raises: EndpointError with status and the server's words."""
        return self._get(f"{self._path}{path}")

    def get_root(self, path: str) -> Any:
        """The JSON at a path of the server, such as /health. Raises: EndpointError."""
        return self._get(path)

    @property
    def host(self) -> str:
        return self._host

    def _get(self, path: str) -> Any:
        try:
            response = self._send("GET", path, None)
            data = response.read(MOST_BODY_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise EndpointError(
                f"{self.url} does not answer ({type(error).__name__}: {error}); is the server running, is the address "
                "right? It usually ends in /v1"
            ) from None
        where = f"{self._scheme}://{self._host}:{self._port}{path}"
        if response.status != 200:
            what = "check the key" if response.status in (401, 403) else "check the address, which usually ends in /v1"
            raise EndpointError(f"{where}: status {response.status}: {_words(data)}; {what}")
        try:
            return json.loads(data)
        except ValueError:
            raise EndpointError(f"{where}: no JSON; is it an OpenAI-compatible server?") from None

    def cut(self) -> None:
        """End what is being read, from another thread."""
        self._is_cut = True
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _send(self, method: str, path: str, data: bytes | None) -> http.client.HTTPResponse:
        """A connection that the server closed while idle is opened anew, once, as clients do (RFC 9112, 9.3.1)."""
        was_open = self._connection is not None
        try:
            return self._send_once(method, path, data)
        except STALE:
            self.close()
            if not was_open or self._is_cut:
                raise
            return self._send_once(method, path, data)

    def _send_once(self, method: str, path: str, data: bytes | None) -> http.client.HTTPResponse:
        if self._connection is None:
            if self._scheme == "https":
                self._connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=self.timeout_s, context=ssl.create_default_context()
                )
            else:
                self._connection = http.client.HTTPConnection(self._host, self._port, timeout=self.timeout_s)
        self._connection.request(method, path, data, self._headers)
        return self._connection.getresponse()


def _refused(answer: Answer, response: http.client.HTTPResponse) -> None:
    data = response.read(MOST_ERROR_BYTES)
    answer.error, answer.detail = f"status {response.status}", _words(data)
    after = response.getheader("Retry-After") or ""
    if after.replace(".", "", 1).isdigit():
        answer.retry_after_s = float(after)


def _words(data: bytes) -> str:
    """The message of an error body, or its beginning."""
    try:
        error = json.loads(data)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    except (ValueError, KeyError, TypeError):
        return data[:300].decode("utf-8", "replace").strip()


def _read(answer: Answer, response: http.client.HTTPResponse) -> None:
    """Events of a stream; a server that answers whole has one piece."""
    if "text/event-stream" not in (response.getheader("Content-Type") or ""):
        _whole(answer, json.loads(response.read(MOST_BODY_BYTES)))
        return
    parts: list[str] = []
    is_done = False
    for line in _lines(response):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            is_done = True
            continue  # to the end of the body, so that the connection stays good
        event = json.loads(data)
        if "error" in event:
            answer.error, answer.detail = "error in the stream", _words(data)
            return
        _take(answer, event, parts)
    answer.text = "".join(parts)
    if not is_done:
        answer.error, answer.detail = "cut off", "the stream ended without [DONE]"


def _lines(response: http.client.HTTPResponse) -> Iterable[bytes]:
    while line := response.readline():
        yield line


def _take(answer: Answer, event: Mapping[str, Any], parts: list[str]) -> None:
    usage = event.get("usage")
    if usage:
        _count(answer, usage)
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        said = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""
        if said or delta.get("tool_calls"):
            now_s = time.perf_counter()
            if answer.last_s is None:
                answer.first_s = now_s
            else:
                answer.gaps_s.append(now_s - answer.last_s)
            answer.last_s = now_s
            answer.num_pieces += 1
            parts.append(said)
        answer.finish = choice.get("finish_reason") or answer.finish


def _whole(answer: Answer, body: Mapping[str, Any]) -> None:
    choices = body.get("choices")
    if not choices:
        raise ValueError("an answer without choices")
    answer.text = choices[0]["message"].get("content") or ""
    answer.finish = choices[0].get("finish_reason") or ""
    answer.num_pieces = 1
    _count(answer, body.get("usage") or {})


def _count(answer: Answer, usage: Mapping[str, Any]) -> None:
    if "prompt_tokens" in usage:
        answer.num_prompt_tokens = int(usage["prompt_tokens"])
    if "completion_tokens" in usage:
        answer.num_new_tokens = int(usage["completion_tokens"])
    details = usage.get("prompt_tokens_details") or {}
    answer.num_cached_tokens = int(details.get("cached_tokens") or 0)
