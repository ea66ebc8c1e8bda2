"""A model server in a process of its own, asked over HTTP: what the drivers of vLLM and llama.cpp share.

It listens on loopback behind our gateway with a key made for it, ends when this process ends, and is watched: once it
is gone every request says so, with its last words.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import BadInput, ModelError, ShoestringError, require
from ..engine import Busy, EngineDown

LOG = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1  # prctl(2)
LAST_LINES = 8
LAST_BYTES = 1 << 14
MAX_LOG_BYTES = 16 << 20  # of a server's log; as much of what was before is kept beside it
LOG_EVERY_S = 30.0
GRACE_S = 10.0  # between SIGTERM and SIGKILL
POLL_S = 0.2
CONNECT_S = 10.0
LOOPBACK = "127.0.0.1"
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def free_port() -> int:
    """A port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def new_key() -> str:
    """A key for one server, known to this process and to it alone."""
    return secrets.token_urlsafe(32)


def _end_with_parent() -> None:
    """In the child: ask to be ended when this process dies, however it dies (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def earlier(log_file: Path) -> Path:
    """Where what a log had before it was cut is."""
    return log_file.with_name(f"{log_file.name}.1")


def bound_log(log_file: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
    """Cut a log beyond max_bytes, its last max_bytes moved beside it in place of what was cut before.

    It is copied, since the server holds it open; what is written during the copy is lost.
    """
    if not log_file.is_file() or log_file.stat().st_size <= max_bytes:
        return
    try:
        descriptor = os.open(earlier(log_file), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(_end(log_file, max_bytes))
    except OSError as error:  # a full disk: all the more must it be cut
        LOG.warning("%s is cut, and what it had is not kept: %s", log_file, error.strerror)
        earlier(log_file).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.truncate(log_file, 0)


def _end(file: Path, num_bytes: int = LAST_BYTES) -> bytes:
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - num_bytes))
        return opened.read()


class ServerProcess:
    """A program that serves HTTP; its words go to a log file that its owner alone may read."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log_file: Path) -> None:
        self.name, self.process, self.log_file = name, process, log_file
        self.is_stopping = False
        self.bounding = asyncio.create_task(self._bound_log())

    @classmethod
    async def start(
        cls, name: str, command: Sequence[str], log_file: Path, environment: Mapping[str, str]
    ) -> ServerProcess:
        """Start it, in a session of its own: a terminal's Ctrl-C reaches this process alone. Raises: BadInput."""
        log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        earlier(log_file).unlink(missing_ok=True)
        # Appended to, so that it can be cut while the server writes.
        descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env={**os.environ, **environment},
                start_new_session=True,
                preexec_fn=_end_with_parent if _LIBC is not None else None,
            )
        except OSError as error:
            raise BadInput(f"{name}: {command[0]} cannot be started: {error.strerror}") from error
        finally:
            os.close(descriptor)
        return cls(name, process, log_file)

    def check(self) -> None:
        """Raises: EngineDown with how it ended and its last words."""
        status = self.process.returncode
        if status is None:
            return
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        raise EngineDown(f"{self.name} {how}; its last words:\n{self.last_words()}\nall: {self.log_file}")

    def last_words(self) -> str:
        """The end of its log."""
        ends = b"".join(_end(file) for file in (earlier(self.log_file), self.log_file) if file.is_file())
        lines = ends.decode("utf-8", "replace").strip().splitlines()
        return "\n".join(f"  {line[:300]}" for line in lines[-LAST_LINES:]) or "  (none)"

    async def _bound_log(self) -> None:
        while self.process.returncode is None:
            await asyncio.sleep(LOG_EVERY_S)
            await asyncio.to_thread(bound_log, self.log_file)

    async def ready(self, is_up: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
        """Wait until it answers. Raises: EngineDown where it ends first, or is not up in time."""
        until = time.monotonic() + timeout_s
        while True:
            self.check()
            with contextlib.suppress(EngineDown, Busy):  # llama-server is busy while it loads
                if await is_up():
                    return
            if time.monotonic() > until:
                raise EngineDown(
                    f"{self.name} does not answer after {timeout_s:.0f} s; its last words:\n{self.last_words()}\n"
                    f"all: {self.log_file}"
                )
            await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        """End it and what it started, which its session holds together."""
        self.is_stopping = True
        self.bounding.cancel()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.process.pid, number)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.process.wait(), GRACE_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # workers that outlived it


class Remote:
    """HTTP to one server. A refused request becomes BadInput, other refusals ModelError, silence EngineDown."""

    def __init__(self, name: str, base_url: str, key: str, process: ServerProcess | None = None) -> None:
        httpx = require("httpx2", extra="serve", purpose=f"asking {name}")
        self.name, self.process, self.errors = name, process, (httpx.HTTPError, httpx.StreamError, OSError)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.AsyncClient(
            base_url=base_url.rstrip("/"),
            headers=headers,
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            trust_env=False,
        )

    async def json(self, method: str, path: str, body: Any = None) -> Any:
        """One request, one answer: JSON, or text where it is none. Raises: BadInput, ModelError, Busy, EngineDown."""
        self._check_open()
        try:
            answer = await self.client.request(method, path, json=body)
        except self.errors as error:
            raise self._down(error) from error
        if answer.status_code >= 400:
            raise self._refusal(answer.status_code, answer.text)
        try:
            return answer.json()
        except ValueError:
            return answer.text

    async def events(self, path: str, body: Any) -> AsyncGenerator[dict[str, Any], None]:
        """The JSON events of a stream, until [DONE] or its end; closing the iterator hangs up.

        Raises: BadInput, ModelError, Busy, EngineDown, also where the stream breaks off.
        """
        self._check_open()
        try:
            async with self.client.stream("POST", path, json=body) as answer:
                if answer.status_code >= 400:
                    raise self._refusal(answer.status_code, (await answer.aread()).decode("utf-8", "replace"))
                async for line in answer.aiter_lines():
                    if line.startswith("error:"):
                        raise self._refusal(500, line.removeprefix("error:").strip())
                    if not line.startswith("data:"):
                        continue
                    text = line.removeprefix("data:").strip()
                    if text == "[DONE]":
                        return
                    event = json.loads(text)
                    if "error" in event:
                        raise self._refusal(_status_in(event["error"]), text)
                    yield event
        except self.errors as error:
            raise self._down(error) from error

    def _check_open(self) -> None:
        if self.client.is_closed:
            raise EngineDown(f"{self.name} was ended")

    def _refusal(self, status: int, text: str) -> ShoestringError:
        message = text.strip()[:500]
        with contextlib.suppress(ValueError, TypeError, KeyError):
            told = json.loads(text)["error"]
            message = str(told["message"] if isinstance(told, dict) else told)
        if status in (429, 503):
            return Busy(f"{self.name} is busy: {message}")
        if status in (401, 403):
            return ModelError(f"{self.name} does not take the key ({message}); give its key in SHOESTRING_ENGINE_KEY")
        if status in (400, 422):
            return BadInput(f"{self.name} refused the request: {message}")
        return ModelError(f"{self.name} refused (HTTP {status}): {message}")

    def _down(self, error: Exception) -> EngineDown:
        """Raises: EngineDown with its last words where the process has ended."""
        if self.process is not None:
            self.process.check()
        return EngineDown(f"{self.name} at {self.client.base_url} does not answer: {error or type(error).__name__}")

    async def close(self) -> None:
        """Hang up."""
        await self.client.aclose()


def _status_in(error: Any) -> int:
    """The HTTP status that an error inside a stream has, where it says one."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500


class Counters:
    """Requests and tokens of one engine, and the bound on how many it takes at once."""

    def __init__(self, name: str, max_rows: int, queue_len: int) -> None:
        self.name, self.max_rows, self.queue_len = name, max_rows, queue_len
        self.num_active = self.num_prompt_tokens = self.num_cached_tokens = self.num_new_tokens = self.num_steps = 0

    @contextlib.contextmanager
    def place(self) -> Any:
        """A place for one request. Raises: Busy."""
        if self.num_active >= self.max_rows + self.queue_len:
            raise Busy(
                f"{self.name} has {self.num_active} requests, of which {self.max_rows} are answered at once and "
                f"{self.queue_len} may wait"
            )
        self.num_active += 1
        try:
            yield
        finally:
            self.num_active -= 1

    def stats(self) -> dict[str, float]:
        """As Engine.stats; a step is an event of one answer, since the server's own are not seen here."""
        running = min(self.num_active, self.max_rows)
        return {
            "num_running": running,
            "num_waiting": self.num_active - running,
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_cached_tokens": self.num_cached_tokens,
            "num_new_tokens": self.num_new_tokens,
            "num_steps": self.num_steps,
        }
