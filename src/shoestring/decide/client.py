"""A model behind any OpenAI-compatible endpoint, as a records.Generate; standard library only."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import queue
import random
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ..config import EndpointConfig
from ..errors import ConfigError, EndpointError
from ..messages import Message, Prompt, call_of, read_answer, split_tools, turns_of
from ..records import Completion, Generate, Progress, no_progress
from .answers import AnswerFile

MAX_ATTEMPTS = 6
BACKOFF_S = 0.5  # doubles with each attempt
LONGEST_BACKOFF_S = 30.0
LONGEST_RETRY_AFTER_S = 120.0
MAX_BODY_BYTES = 32 << 20
RETRIED_STATUSES = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
# Newer models refuse parameters the older ones need; what to do when a 400 names one.
ADAPTATIONS: dict[str, dict[str, str | None]] = {
    "max_completion_tokens": {"max_tokens": "max_completion_tokens"},
    "temperature": {"temperature": None},
    "seed": {"seed": None},
}
# What to do next, by HTTP status or by what failed; filled in from the endpoint's settings.
LATER = "try again later, answers so far are cached; or take the endpoint out of the run file"
NO_ANSWER = (
    "check that base_url is the address of an OpenAI-compatible API, which usually ends in /v1, and not of a web page "
    "or a proxy's login"
)
MOVED = "a redirect is not followed, it would carry the key elsewhere; give base_url as it is now"
NEXT_STEPS: dict[int | str, str] = {
    400: "check the endpoint in the run file: its model ({model!r}), and the length of the prompts",
    401: "check the key in the environment variable {key}",
    402: "check the account's balance; answers so far are cached",
    403: "check that the key in {key} may use model {model!r}",
    404: "check base_url (it usually ends in /v1) and model ({model!r}) in the run file",
    413: "shorten the prompts: fewer decide.num_shots, a shorter task.instruction",
    422: "check the endpoint in the run file: its model ({model!r}), and whether it takes OpenAI's parameters",
    429: "wait, lower num_parallel (now {num_parallel}), set max_requests_per_min, or check the account's quota; "
    "answers so far are cached",
    "quota": "the account's quota is used up: raise it, or wait for the next period; answers so far are cached",
    "timeout": "raise timeout_s, lower num_parallel (now {num_parallel}), or ask for shorter answers; those so far are "
    "cached",
    "refused": "is the server running? check host and port of base_url",
    "unknown host": "check the host of base_url, and the network",
    "certificate": "check base_url: http:// or https://, and whether this machine trusts the server's certificate",
    "no completion": NO_ANSWER,
    **dict.fromkeys((301, 302, 303, 307, 308), MOVED),
}


def headers_for(config: EndpointConfig) -> dict[str, str]:
    """Headers of a request, the key among them. Raises: ConfigError for a bad URL or a missing key."""
    parts = urlsplit(config.base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"endpoint {config.name!r}: base_url {config.base_url!r} is no http(s) address; "
            "give one such as https://api.example.com/v1"
        )
    headers = {"Content-Type": "application/json", "User-Agent": "shoestring"}
    if config.api_key_env:
        key = os.environ.get(config.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"endpoint {config.name!r}: environment variable {config.api_key_env} is not set; export the key "
                "there, or set api_key_env: '' for an endpoint that needs none"
            )
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"endpoint {config.name!r}: the key in {config.api_key_env} holds characters no key has")
        headers["Authorization"] = f"Bearer {key}"
    return headers


class _RefuseRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would turn POST into GET and hand the key to another host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


class _Retry(Exception):
    """An attempt failed in a way that may pass; wait_s when the server said how long. step: of NEXT_STEPS."""

    def __init__(self, reason: str, step: int | str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.step, self.wait_s = reason, step, wait_s


# Of what a connection fails with, in order: which next step.
CONNECTION_STEPS: tuple[tuple[type[Exception], str], ...] = (
    (ConnectionRefusedError, "refused"),
    (socket.gaierror, "unknown host"),
    (ssl.SSLError, "certificate"),
)


class Pace:
    """Spaces requests evenly: at most so many begin in a minute, over all threads. None: no limit."""

    def __init__(self, per_min: int | None) -> None:
        self.gap_s = 60 / per_min if per_min else 0.0
        self._lock = threading.Lock()
        self._next_s = 0.0

    def wait_s(self) -> float:
        """Take the next place in line; seconds until it comes."""
        if not self.gap_s:
            return 0.0
        with self._lock:
            now_s = time.monotonic()
            begins_s = max(now_s, self._next_s)
            self._next_s = begins_s + self.gap_s
            return begins_s - now_s


class _Stopped(Exception):
    """Another request failed, or the user pressed Ctrl-C."""


@dataclass
class Client:
    """One endpoint, asked several requests at once, and the file its answers are kept in.

    Answers are kept by the hash of endpoint, model, messages, token limit, temperature and seed: a stopped run does
    not pay twice. A kept answer carries the cost and latency it had when it was made.
    temperature 0 is greedy. Above it each sampling seed gives an answer of its own, kept apart; an endpoint
    that knows no seed is asked once for each all the same.
    Raises at once: ConfigError for a bad URL or a missing key. Raises on use: EndpointError.
    """

    config: EndpointConfig
    answers: AnswerFile
    max_new_tokens: int
    temperature: float = 0.0
    backoff_s: float = BACKOFF_S
    renamed: dict[str, str | None] = field(default_factory=dict)  # parameters this endpoint wants otherwise
    troubles: list[str] = field(default_factory=list)  # attempts that failed: HTTP status, timeout, connection

    def __post_init__(self) -> None:
        self.headers = headers_for(self.config)
        self.url = self.config.base_url.rstrip("/") + "/chat/completions"
        self.opener = urllib.request.build_opener(_RefuseRedirects())
        self.pace = Pace(self.config.max_requests_per_min)

    def sampling(self, seed: int) -> Generate:
        """generate with a sampling seed, for several answers to one prompt."""
        return partial(self.generate, seed=seed)

    def has(self, prompt: Prompt, seed: int | None = None) -> bool:
        """Whether the answer is there already, so that asking costs nothing."""
        return self.answers.get(self.key(prompt, seed)) is not None

    def generate(
        self, prompts: list[Prompt], progress: Progress = no_progress, seed: int | None = None
    ) -> list[Completion]:
        """One completion a prompt, in order; equal prompts are asked once.

        Raises: EndpointError at the first request that cannot be completed; the others stop.
        """
        rows_of: dict[Prompt, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows_of.setdefault(prompt, []).append(row)
        waiting: queue.SimpleQueue[Prompt] = queue.SimpleQueue()
        for prompt in rows_of:
            waiting.put(prompt)
        answers: queue.SimpleQueue[tuple[Prompt, Completion | Exception]] = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                try:
                    prompt = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    answers.put((prompt, self._answer(prompt, seed, stop)))
                except Exception as error:  # handed to the caller's thread, which raises it
                    answers.put((prompt, error))
                    return

        # Daemons, so that Ctrl-C does not wait for requests in flight.
        threads = [
            threading.Thread(target=work, name=f"endpoint-{self.config.name}", daemon=True)
            for _ in range(min(self.config.num_parallel, len(rows_of)))
        ]
        for thread in threads:
            thread.start()
        completions: dict[int, Completion] = {}
        try:
            progress(self.config.name, 0, len(prompts))
            while len(completions) < len(prompts):
                prompt, answer = answers.get()
                if isinstance(answer, Exception):
                    raise answer
                completions.update((row, answer) for row in rows_of[prompt])
                progress(self.config.name, len(completions), len(prompts))
        except EndpointError:
            stop.set()
            deadline = time.monotonic() + self.config.timeout_s
            for thread in threads:  # what is in flight will be billed, so its answers are kept
                thread.join(max(0.0, deadline - time.monotonic()))
            raise
        finally:
            stop.set()
        return [completions[row] for row in range(len(prompts))]

    def _answer(self, prompt: Prompt, seed: int | None, stop: threading.Event) -> Completion:
        key = self.key(prompt, seed)
        kept = self.answers.get(key)
        if kept is not None:
            return kept
        for attempt in range(MAX_ATTEMPTS):
            if stop.wait(self.pace.wait_s()):
                raise _Stopped
            try:
                completion = self._ask(prompt, seed)
                self.answers.add(key, completion, url=self.url, model=self.config.model)
                return completion
            except _Retry as retry:
                step = str(retry.step)
                self.troubles.append(step if step.isdigit() or step == "timeout" else "connection")
                if attempt == MAX_ATTEMPTS - 1 or (retry.wait_s or 0) > LONGEST_RETRY_AFTER_S:
                    what = f"{retry.reason} ({attempt + 1} attempt{'s' if attempt else ''})"
                    if retry.wait_s:
                        limit = f"no more than {LONGEST_RETRY_AFTER_S:.0f} s are waited"
                        what += f"; it asks to wait {retry.wait_s:.0f} s, and {limit}"
                    raise self._error(what, retry.step) from None
                longest = min(LONGEST_BACKOFF_S, self.backoff_s * 2**attempt)
                delay_s = retry.wait_s if retry.wait_s is not None else 0.0
                if stop.wait(delay_s + random.uniform(longest / 2, longest)):
                    raise _Stopped from None
        raise AssertionError("the last attempt returns or raises")

    def _ask(self, prompt: Prompt, seed: int | None) -> Completion:
        started = time.monotonic()
        for _ in range(len(ADAPTATIONS) + 1):
            sent = self._body(prompt, seed)
            status, body, retry_after = self._post(sent)
            if not (status == 400 and self._adapt(sent, body)):
                break
        shown = repr(body[:200].decode("utf-8", "replace"))
        if status in RETRIED_STATUSES and b"insufficient_quota" not in body:
            raise _Retry(f"HTTP {status}, {shown}", status, retry_after)
        if status == 400 and b"content_filter" in body:
            return Completion("", 0, 0, time.monotonic() - started, stopped=False, made_at=now())
        if status != 200:
            is_quota = b"insufficient_quota" in body
            raise self._error(f"HTTP {status}, {shown}", "quota" if is_quota else status)
        latency_s = time.monotonic() - started
        try:
            answer = json.loads(body)
            choice = answer["choices"][0]
            message = choice["message"]
            calls = message.get("tool_calls") or []
            content = message.get("content") if calls else message["content"]
            stopped = choice.get("finish_reason") not in ("length", "content_filter")
            usage = answer.get("usage") or {}
            tokens_in, tokens_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise self._error(f"the answer is no chat completion: {shown}", "no completion") from None
        if content is not None and not isinstance(content, str):
            raise self._error(f"the answer's content is no text: {shown}")
        text = _text_of(content or "", calls, split_tools(prompt)[0])
        if text is None:
            raise self._error(f"a tool call of the answer names no function: {shown}")
        prices = (self.config.usd_per_million_input_tokens, self.config.usd_per_million_output_tokens)
        if not (isinstance(tokens_in, int) and isinstance(tokens_out, int)):
            if any(prices):
                raise self._error(
                    "the answer states no token usage, so its cost is unknown; set both prices to 0 to go on without"
                )
            tokens_in = tokens_out = 0
        cost_usd = (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6
        return Completion(text, tokens_in, tokens_out, latency_s, cost_usd, stopped, now())

    def _body(self, prompt: Prompt, seed: int | None) -> dict[str, Any]:
        tools, turns = split_tools(prompt)
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": turns_of(turns, as_text=True),
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature or 0,
            **({"tools": json.loads(tools)} if tools else {}),
        }
        if seed is not None:
            body["seed"] = seed
        for old, new in self.renamed.copy().items():
            value = body.pop(old)
            if new:
                body[new] = value
        return body

    def _adapt(self, sent: dict[str, Any], refusal: bytes) -> bool:
        """Learn from a 400 which parameter this endpoint wants otherwise; whether to ask again."""
        for named, change in ADAPTATIONS.items():
            if named.encode() in refusal and change.keys() <= sent.keys():
                self.renamed.update(change)
                return True
        return False

    def _post(self, body: dict[str, Any]) -> tuple[int, bytes, float | None]:
        """Status, body and Retry-After in seconds. Raises: _Retry where the connection fails."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url, data, self.headers, method="POST")
        deadline = time.monotonic() + self.config.timeout_s
        try:
            try:
                with self.opener.open(request, timeout=self.config.timeout_s) as response:
                    return response.status, self._read(response, deadline), None
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read(4096), _seconds(error.headers.get("Retry-After"))
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _Retry(f"no answer within {self.config.timeout_s:g} s (timeout_s)", "timeout") from None
            step = next((step for kind, step in CONNECTION_STEPS if isinstance(reason, kind)), "")
            raise _Retry(f"connection failed: {reason or type(error).__name__}", step) from None

    def _read(self, response: Any, deadline: float) -> bytes:
        """The body, read in pieces: the socket's timeout does not bound a server that drips."""
        pieces, num_bytes = [], 0
        while piece := response.read1(65536):
            pieces.append(piece)
            num_bytes += len(piece)
            if num_bytes > MAX_BODY_BYTES:
                raise self._error(f"the answer is longer than {MAX_BODY_BYTES >> 20} MiB")
            if time.monotonic() > deadline:
                raise TimeoutError
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        return b"".join(pieces)

    def key(self, prompt: Prompt, seed: int | None) -> str:
        """Hash of what decides the answer."""
        has_calls = any(m.tool_calls for m in prompt)
        messages = turns_of(prompt, as_text=True) if has_calls else [[m.role, m.content] for m in prompt]
        identity = [self.url, self.config.model, self.max_new_tokens, messages, self.temperature, seed]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def _error(self, what: str, step: int | str = "") -> EndpointError:
        """step: of NEXT_STEPS, an HTTP status or what failed."""
        config = self.config
        if step == 401 and not config.api_key_env:
            advice = "no key was sent; name the environment variable that holds it under api_key_env"
        else:
            key = config.api_key_env or "(none was sent)"
            advice = NEXT_STEPS.get(step, LATER).format(key=key, model=config.model, num_parallel=config.num_parallel)
        return EndpointError(f"endpoint {config.name!r} ({self.url}): {what}; {advice}")


def _text_of(content: str, calls: Any, tools: str) -> str | None:
    """What a reply says, calls as Message.text writes them, wherever they stand; None where one cannot be read."""
    if not calls:
        return read_answer(content, tools).text
    read = [call_of(call) for call in (calls if isinstance(calls, list) else [calls])]
    found = tuple(call for call in read if call)
    return Message("assistant", content, found).text if len(found) == len(read) else None


def now() -> str:
    """The time in UTC, as records carry it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After, in seconds or as a date; None when absent or unreadable."""
    if not retry_after:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None
