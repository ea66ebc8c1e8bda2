"""What clients do to a server in a soak: ask, restart, read slowly, leave, send nonsense; each outcome is judged."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.soak_adapters import answers, prompts
from shoestring.serve.wire import Answer, Client, address

KEPT_EXAMPLES = 20
TIMEOUT_S = 120.0
LONGEST_RETRY_S = 2.0
BASE_TOKENS = 48
ANSWER_TOKENS = 64  # longer than any answer known by heart
PAGE = 1 << 16


@dataclass
class Tally:
    """What came of everything sent; examples of what must not be."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    first_s: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    num_requests: int = 0

    def note(self, outcome: str, detail: str = "") -> None:
        """One request came to this."""
        with self.lock:
            self.num_requests += 1
            self.counts[outcome] += 1
            if detail and len(self.examples.setdefault(outcome, [])) < KEPT_EXAMPLES:
                self.examples[outcome].append(detail)

    def judge(self, answer: Answer, expected: str | None, *, may_be_gone: bool = False) -> None:
        """A request of a well-behaved client. expected: None where no adapter's answer may come (of the base)."""
        who = f"{answer.model}: {answer.text[:120]!r}"
        if answer.status == 429:
            self.note("rejected_429" if answer.retry_after_s else "429_without_retry_after", answer.detail)
        elif answer.status == 404 and may_be_gone:
            self.note("gone")
        elif answer.error:
            self.note("lost", f"{answer.model}: {answer.error}: {answer.detail}")
        elif expected is not None and answer.text.strip() != expected:
            self.note("crossed", f"{who} instead of {expected!r}")
        elif expected is None and answer.text.strip() in KNOWN:
            self.note("crossed", f"an adapter's words of the base, {who}")
        else:
            self.note("answered")
            if answer.first_s is not None:
                with self.lock:
                    self.first_s.append(answer.first_s - answer.sent_s)

    def refusal(self, what: str, status: int | None, expected: Sequence[int | None]) -> None:
        """A request that has to be refused; None: the connection was closed without an answer."""
        if status in expected:
            self.note(f"refused_{status or 'closed'}")
        elif status == 429:
            self.note("rejected_429")
        else:
            self.note("wrong_refusal", f"{what}: {status}, expected {' or '.join(map(str, expected))}")


@dataclass(frozen=True)
class Target:
    """The server, as clients know it. steady: adapters that stay; spare: one that comes and goes, or none."""

    url: str
    key: str
    admin_key: str
    base: str
    steady: tuple[str, ...]
    spare: str
    max_body_bytes: int
    queue: int
    context_tokens: int = 512


def body_of(model: str, prompt: str, **more: Any) -> dict[str, Any]:
    """A chat request, streamed."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": ANSWER_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }


PROMPTS = prompts()
ANSWERS: dict[str, list[str]] = {}
KNOWN: set[str] = set()


def know(names: Sequence[str]) -> None:
    """Adapters whose answers are judged."""
    for name in names:
        ANSWERS[name] = answers(name)
        KNOWN.update(ANSWERS[name])


class Actor(threading.Thread):
    """Does one thing over and over until it is told to stop. pause_s: mean wait between two."""

    def __init__(
        self,
        act: Callable[[Target, Tally, random.Random], None],
        target: Target,
        tally: Tally,
        stop: threading.Event,
        *,
        pause_s: float,
        seed: int,
    ) -> None:
        super().__init__(daemon=True, name=act.__name__)
        self.act, self.target, self.tally, self.stop = act, target, tally, stop
        self.pause_s, self.draw = pause_s, random.Random(seed)

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                self.act(self.target, self.tally, self.draw)
            except Exception as error:  # an actor that dies would make the load lighter without a word
                self.tally.note("actor_failed", f"{self.name}: {type(error).__name__}: {error}")
            self.stop.wait(self.draw.expovariate(1 / self.pause_s) if self.pause_s else 0)


# ---- who asks well --------------------------------------------------------------------------


def asks(target: Target, tally: Tally, draw: random.Random) -> None:
    """A client that lives for some requests, then is another: adapters and base mixed, streamed or whole."""
    client = Client(target.url, target.key, TIMEOUT_S)
    try:
        for _ in range(draw.randint(1, 12)):
            names = [*target.steady, target.base, *([target.spare] if target.spare else [])]
            ask_one(client, draw.choice(names), target, tally, draw)
    finally:
        client.close()


def ask_one(client: Client, model: str, target: Target, tally: Tally, draw: random.Random) -> None:
    number = draw.randrange(len(PROMPTS))
    body = body_of(model, PROMPTS[number])
    if model == target.base:
        body["max_tokens"] = BASE_TOKENS
    if draw.random() < 0.3:
        body["stream"] = False
        del body["stream_options"]
    answer = client.ask(body)
    expected = ANSWERS[model][number] if model in ANSWERS else None
    tally.judge(answer, expected, may_be_gone=bool(target.spare) and model == target.spare)
    if answer.retry_after_s:
        time.sleep(min(answer.retry_after_s, LONGEST_RETRY_S))


def bursts(target: Target, tally: Tally, draw: random.Random) -> None:
    """More at once than the queue holds: each is answered rightly, or refused with 429 and when to come again."""
    wires = []
    for _ in range(target.queue + target.queue // 2):
        model, number = draw.choice(target.steady), draw.randrange(len(PROMPTS))
        wire = connect(target)
        wire.sendall(request_bytes(target, body_of(model, PROMPTS[number])))
        wires.append((wire, model, number))
    for wire, model, number in wires:
        with contextlib.closing(wire):
            tally.judge(read_answer(wire, model), ANSWERS[model][number])


def reads_slowly(target: Target, tally: Tally, draw: random.Random) -> None:
    """Several choices with twenty log-probabilities a token, taken a few bytes at a time; the server has to wait."""
    model, number, n = draw.choice(target.steady), draw.randrange(len(PROMPTS)), 4
    wire = connect(target, receive_bytes=4096)
    with contextlib.closing(wire):
        wire.sendall(request_bytes(target, body_of(model, PROMPTS[number], n=n, logprobs=True, top_logprobs=20)))
        for answer in read_choices(wire, model, n, pause_s=0.002, step=512):
            tally.judge(answer, ANSWERS[model][number])


# ---- who leaves -----------------------------------------------------------------------------


def leaves(target: Target, tally: Tally, draw: random.Random) -> None:
    """Goes away in the middle of its request, before the answer, or in it; politely, or with a reset."""
    wire = connect(target)
    data = request_bytes(target, body_of(draw.choice([*target.steady, target.base]), draw.choice(PROMPTS)))
    how = draw.choice(["in the request", "before the answer", "in the answer"])
    try:
        wire.sendall(data[: draw.randrange(1, len(data))] if how == "in the request" else data)
        if how == "in the answer":
            wire.recv(draw.choice([1, 200, 1000]))
        if draw.random() < 0.5:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass  # refused first, as when the queue is full
    wire.close()
    tally.note("dropped_by_client")


# ---- who sends what is refused --------------------------------------------------------------


def oversends(target: Target, tally: Tally, draw: random.Random) -> None:
    """Bodies beyond the limit, said in advance or not, and a prompt beyond the context."""
    how = draw.choice(["said", "chunked", "prompt"])
    if how == "prompt":
        words = " ".join(draw.choice(PROMPTS) for _ in range(target.context_tokens))
        tally.refusal("a prompt beyond the context", status_of(target, body_of(target.steady[0], words)), (400,))
        return
    wire = connect(target)
    with contextlib.closing(wire):
        head = [f"POST {path_of(target)}/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {target.key}"]
        head += ["Connection: close"]
        if how == "said":
            head += [f"Content-Length: {target.max_body_bytes + 1}"]
        else:
            head += ["Transfer-Encoding: chunked"]
        with contextlib.suppress(OSError):  # it may close before all is sent
            wire.sendall("\r\n".join([*head, "Content-Type: application/json", "", ""]).encode())
            chunk = b" " * PAGE
            for _ in range(target.max_body_bytes // PAGE + 2 if how == "chunked" else 2):
                wire.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n" if how == "chunked" else chunk)
            if how == "chunked":
                wire.sendall(b"0\r\n\r\n")
        tally.refusal(f"a body beyond the limit, {how}", read_status(wire), (413, None))


def sends_nonsense(target: Target, tally: Tally, draw: random.Random) -> None:
    """Requests that are none; never an answer, never a failure of the server."""
    good = body_of(target.steady[0], PROMPTS[0])
    what, body, expected = draw.choice(
        [
            ("no JSON", b"{'model': north", (400,)),
            ("no UTF-8", b'{"model": "\xff\xfe"}', (400,)),
            ("deep JSON", b"[" * 50_000, (400,)),
            ("a list", b"[]", (400,)),
            ("no messages", {**good, "messages": []}, (400,)),
            ("a wrong type", {**good, "max_tokens": "many"}, (400,)),
            ("an unknown field", {**good, "do_it_well": True}, (400,)),
            ("a template", {**good, "chat_template": "{{ 7 * 7 }}"}, (400,)),
            ("NaN", b'{"model": "north", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', (400,)),
            ("no such model", {**good, "model": "nowhere"}, (404,)),
            ("a path as a model", {**good, "model": "../../../etc/passwd"}, (400, 404)),
            ("a role", {**good, "messages": [{"role": "root", "content": "x"}]}, (400,)),
        ]
    )
    tally.refusal(what, status_of(target, body), expected)
    wire = connect(target)
    with contextlib.closing(wire):
        with contextlib.suppress(OSError):
            wire.sendall(draw.choice([b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n"]))
            wire.shutdown(socket.SHUT_WR)
        tally.refusal("no HTTP", read_status(wire), (400, 404, 401, 505, None))


def has_no_key(target: Target, tally: Tally, draw: random.Random) -> None:
    """No key, a wrong one, one cut short, the user's key where the administrator's is needed."""
    for key, path, expected in (
        ("", "/chat/completions", (401,)),
        ("sk-not-the-key-of-anybody", "/chat/completions", (401,)),
        (target.key[:-1], "/models", (401,)),
    ):
        body = None if path == "/models" else body_of(target.steady[0], PROMPTS[0])
        tally.refusal(f"key {key[:3]!r}", status_of(target, body, key=key, path=path), expected)


# ---- the wire -------------------------------------------------------------------------------


def path_of(target: Target) -> str:
    return address(target.url)[3]


def connect(target: Target, receive_bytes: int = 0) -> socket.socket:
    """A connection; receive_bytes: a small window."""
    _, host, port, _ = address(target.url)
    wire = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    wire.settimeout(TIMEOUT_S)
    if receive_bytes:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    wire.connect((host, port))
    return wire


def request_bytes(target: Target, body: Any, *, key: str | None = None, path: str = "/chat/completions") -> bytes:
    """A whole request that asks to close the connection after it. body: None for GET."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    key = target.key if key is None else key
    head = [f"{'GET' if body is None else 'POST'} {path_of(target)}{path} HTTP/1.1", "Host: x", "Connection: close"]
    head += [f"Content-Length: {len(data)}"] if body is not None else []
    head += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([*head, "Content-Type: application/json", "", ""]).encode() + data


def status_of(target: Target, body: Any, *, key: str | None = None, path: str = "/chat/completions") -> int | None:
    """The status that a request gets; its answer is read to the end."""
    wire = connect(target)
    with contextlib.closing(wire):
        with contextlib.suppress(OSError):
            wire.sendall(request_bytes(target, body, key=key, path=path))
        return read_status(wire)


def read_status(wire: socket.socket) -> int | None:
    """The status line's number, its body read; None where the connection was closed or reset without one."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while not is_whole(data) and (part := wire.recv(PAGE)):
            data += part
    head = data.split(b" ", 2)
    return int(head[1]) if len(head) > 1 and head[0].startswith(b"HTTP/") and head[1].isdigit() else None


def is_whole(data: bytes) -> bool:
    """Whether a response that says its length is there; another goes on until the connection closes."""
    head, end, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\ncontent-length: *(\d+)", head)
    return bool(end) and length is not None and len(body) >= int(length[1])


def read_all(wire: socket.socket, step: int = PAGE, pause_s: float = 0.0) -> Sequence[bytes]:
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := wire.recv(step):
            parts.append(part)
            if pause_s:
                time.sleep(pause_s)
    return parts


def read_answer(wire: socket.socket, model: str) -> Answer:
    return read_choices(wire, model, 1)[0]


def read_choices(wire: socket.socket, model: str, n: int, *, pause_s: float = 0.0, step: int = PAGE) -> list[Answer]:
    """The choices of one streamed response over a connection that closes after it."""
    sent_s = time.perf_counter()
    found = [Answer(model, sent_s) for _ in range(n)]
    try:
        data = b"".join(read_all(wire, step, pause_s))
    except TimeoutError:
        return _all(found, 0, "timeout", "")
    head, _, rest = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if not lines[0].startswith("HTTP/"):
        return _all(found, 0, "connection lost", "no response")
    status = int(lines[0].split(" ")[1])
    fields = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    body = unchunked(rest) if fields.get("transfer-encoding") == "chunked" else rest
    if status != 200:
        after = fields.get("retry-after", "")
        return _all(found, status, f"status {status}", body[:300].decode("utf-8", "replace"), after)
    events = [line[5:].strip() for line in body.split(b"\n") if line.startswith(b"data:")]
    if not events or events[-1] != b"[DONE]":
        return _all(found, status, "cut off", f"{len(events)} events, no [DONE]")
    for event in events[:-1]:
        told = json.loads(event)
        if "error" in told:
            return _all(found, status, "error in the stream", str(told["error"])[:300])
        for choice in told["choices"]:
            one = found[choice["index"]]
            one.text += (choice.get("delta") or {}).get("content") or ""
            one.finish = choice.get("finish_reason") or one.finish
    for one in found:
        one.status = status
        if not one.finish:
            one.error, one.detail = "cut off", "no finish_reason"
    return found


def _all(found: list[Answer], status: int, error: str, detail: str, after: str = "") -> list[Answer]:
    for one in found:
        one.status, one.error, one.detail = status, error, detail
        one.retry_after_s = float(after) if after.isdigit() else None
    return found[:1]  # one request was refused, however many choices it asked for


def unchunked(data: bytes) -> bytes:
    """The body of a chunked transfer, as far as it came."""
    parts = []
    while data:
        size, _, data = data.partition(b"\r\n")
        try:
            num = int(size.split(b";")[0], 16)
        except ValueError:
            break
        if num == 0:
            break
        parts.append(data[:num])
        data = data[num + 2 :]
    return b"".join(parts)
