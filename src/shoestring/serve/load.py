"""Load on an OpenAI-compatible server from another process: so many clients, each with one request at a time.

A closed loop: a client sends its next request when the last answer has ended, so the server is never asked for more
than `clients` at once. What a request waits in the server's queue counts towards its first token.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput, EndpointError
from ..files import read_jsonl
from ..records import Progress, example_from_json, message_to_json, no_progress
from .wire import Answer, Client

Messages = list[dict[str, str]]

PERCENTILES = (50, 90, 99)
MOST_CLIENTS = 1024
LONGEST_RETRY_AFTER_S = 30.0
BUSY_FRAC = 0.8  # of one core: Python runs one thread at a time, and above this the load would measure itself
TICK_S = 0.1
MOST_TRIES = 10  # before the load, of a busy server
# Parameters that some servers refuse, and what is sent instead; None: nothing.
ADAPTATIONS: dict[str, str | None] = {
    "max_tokens": "max_completion_tokens",
    "stream_options": None,
    "temperature": None,
}
TEXT = (
    "amber anchor basket bridge candle canyon carbon castle cedar circle copper corner cotton desert dinner dragon "
    "eagle engine fabric falcon fever filter finger flame forest garden ginger glass granite harbor hazel helmet "
    "honey island ivory jacket jungle kettle ladder lantern lemon letter lizard magnet maple marble meadow mirror "
    "needle ocean olive orange orbit oyster paper pepper pillow planet pocket quartz rabbit ribbon river rocket saddle "
    "salmon shadow silver spider spring stone summer sunset temple tiger timber tunnel valley velvet violet walnut "
    "willow window winter wolf yellow zebra"
)


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent. One of num_requests and seconds is given; models and prompts are taken in turn."""

    url: str
    models: tuple[str, ...]
    prompts: tuple[Messages, ...]
    clients: int = 8
    num_requests: int | None = 100
    seconds: float | None = None
    max_new_tokens: int = 64
    key: str = field(default="", repr=False)
    timeout_s: float = 300.0
    # Of each request, besides model, messages and stream; fitted() leaves out what the server refuses.
    parameters: tuple[tuple[str, Any], ...] = (("temperature", 0), ("stream_options", {"include_usage": True}))
    limit_name: str = "max_tokens"
    offset: int = 0  # of the prompts: where this load begins among them

    def body(self, number: int) -> dict[str, Any]:
        """The request of that number, from 0."""
        return {
            "model": self.models[number % len(self.models)],
            "messages": self.prompts[(self.offset + number) % len(self.prompts)],
            "stream": True,
            self.limit_name: self.max_new_tokens,
            **dict(self.parameters),
        }


@dataclass(frozen=True, slots=True)
class Measured:
    """What a load brought. wall_s: from the first request to the last answer."""

    load: Load
    answers: tuple[Answer, ...]
    wall_s: float
    cpu_s: float  # of this process
    is_interrupted: bool = False

    @property
    def done(self) -> list[Answer]:
        """Answers that came whole."""
        return [a for a in self.answers if not a.error]


def models_at(client: Client) -> list[dict[str, Any]]:
    """What /v1/models lists. Raises: EndpointError."""
    listed = client.get("/models")
    data = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(data, list) or not all(isinstance(m, dict) and isinstance(m.get("id"), str) for m in data):
        raise EndpointError(f"{client.url}/models lists no models in OpenAI's form; name them with --models")
    if not data:
        raise EndpointError(f"{client.url}/models is empty: the server serves nothing yet")
    return data


def fitted(load: Load) -> Load:
    """The load without the parameters that the server refuses, each model asked once so that none is cold.

    Raises: EndpointError with the server's words.
    """
    client = Client(load.url, load.key, load.timeout_s)
    try:
        for number in range(len(load.models)):
            for _ in range(len(ADAPTATIONS) + 1):
                answer = _patient(client, replace(load, max_new_tokens=1).body(number))
                told = answer.status == 400 and _adapted(load, answer.detail)
                if not told:
                    break
                load = told
            if answer.error:
                raise EndpointError(
                    f"{load.url}: model {load.models[number]!r}: {answer.error}: {answer.detail}; {_next_step(answer)}"
                )
    finally:
        client.close()
    return load


def _patient(client: Client, body: Mapping[str, Any]) -> Answer:
    """The answer, asked for again where the server is busy and says when to come back."""
    for _ in range(MOST_TRIES):
        answer = client.ask(body)
        if answer.retry_after_s is None:
            break
        time.sleep(min(answer.retry_after_s, LONGEST_RETRY_AFTER_S))
    return answer


def _adapted(load: Load, detail: str) -> Load | None:
    """The load with the refused parameter renamed or left out; None where the refusal names none of them."""
    for name, other in ADAPTATIONS.items():
        if name not in detail:
            continue
        if name == load.limit_name and other:
            return replace(load, limit_name=other)
        if name in dict(load.parameters):
            return replace(load, parameters=tuple(p for p in load.parameters if p[0] != name))
    return None


def _next_step(answer: Answer) -> str:
    if answer.status in (401, 403):
        return "give the key with --api-key-file, or in SHOESTRING_API_KEY"
    if answer.status == 404:
        return "check the address, which usually ends in /v1, and the names after --models"
    return "is the server running, and does it take this request?"


# ---- prompts --------------------------------------------------------------------------------


def text_prompts(num_own: int, num_shared: int, num: int, seed: int = 0) -> tuple[Messages, ...]:
    """Prompts of random words: a shared beginning of num_shared, then num_own of each; no two begin alike after that.

    Random, so that no cache of prompts helps beyond the shared words.
    """
    draw = random.Random(seed)
    words = TEXT.split()
    shared = " ".join(draw.choices(words, k=num_shared))
    made = []
    for number in range(num):
        own = " ".join([str(number), *draw.choices(words, k=max(0, num_own - 1))])
        made.append(([{"role": "system", "content": shared}] if shared else []) + [{"role": "user", "content": own}])
    return tuple(made)


def sized_prompts(load: Load, own_tokens: int, shared_tokens: int, num: int) -> tuple[Messages, ...]:
    """text_prompts of so many tokens, as the server counts them: two requests tell how many a word takes.

    Raises: EndpointError where it does not count them.
    """
    client = Client(load.url, load.key, load.timeout_s)
    seen = []
    for num_words in (8, 72):
        asked = replace(load, prompts=text_prompts(num_words, 0, 1, seed=1), max_new_tokens=1)
        answer = _patient(client, asked.body(0))
        if answer.error or answer.num_prompt_tokens is None:
            said = f"{answer.error}: {answer.detail}" if answer.error else "its answers have no usage"
            client.close()
            raise EndpointError(f"{load.url} does not tell how long a prompt is ({said}); give --prompts RUN instead")
        seen.append(answer.num_prompt_tokens)
    client.close()
    per_word = max(0.1, (seen[1] - seen[0]) / 64)
    frame = max(0.0, seen[0] - 8 * per_word)
    own, shared = (max(0, round((t - f) / per_word)) for t, f in ((own_tokens, frame), (shared_tokens, 0)))
    return text_prompts(max(1, own), shared, num)


def run_prompts(folder: Path) -> tuple[Messages, ...]:
    """Prompts of a run's held-out rows. Raises: BadInput where the folder has none."""
    path = folder / "data" / "eval.jsonl"
    if not path.is_file():
        raise BadInput(f"{path} is not there; give a run folder whose data are curated (shoestring curate RUN)")
    made = [[message_to_json(m) for m in example_from_json(row).prompt] for row in read_jsonl(path)]
    if not made:
        raise BadInput(f"{path} has no prompts")
    return tuple(made)


# ---- the load -------------------------------------------------------------------------------


class _Shared:
    """What the clients of a load share."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.answers: list[Answer] = []
        self.num_begun = 0
        self.ends_s = None if load.seconds is None else time.perf_counter() + load.seconds

    def next_number(self) -> int | None:
        """The number of the next request; None when there is none."""
        with self.lock:
            if self.stop.is_set() or (self.ends_s is not None and time.perf_counter() >= self.ends_s):
                return None
            if self.ends_s is None and self.num_begun >= (self.load.num_requests or 0):
                return None
            self.num_begun += 1
            return self.num_begun - 1

    def take(self, answer: Answer) -> None:
        with self.lock:
            self.answers.append(answer)


def _client_loop(client: Client, shared: _Shared) -> None:
    try:
        while (number := shared.next_number()) is not None:
            answer = client.ask(shared.load.body(number))
            shared.take(answer)
            if answer.retry_after_s is not None:  # as a well-behaved client
                shared.stop.wait(min(answer.retry_after_s, LONGEST_RETRY_AFTER_S))
            elif answer.error == "connection lost":
                shared.stop.wait(TICK_S)
    finally:
        client.close()


def run_load(load: Load, progress: Progress = no_progress, label: str = "Load") -> Measured:
    """Send it and wait. Ctrl-C ends it early, and what came until then is given."""
    if not 1 <= load.clients <= MOST_CLIENTS:
        raise BadInput(f"--clients {load.clients}: choose 1 to {MOST_CLIENTS}; more need several such processes")
    shared = _Shared(load)
    clients = [Client(load.url, load.key, load.timeout_s) for _ in range(load.clients)]
    threads = [threading.Thread(target=_client_loop, args=(client, shared), daemon=True) for client in clients]
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    is_interrupted = False
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(TICK_S)
                _tell(shared, started_s, progress, label)
    except KeyboardInterrupt:
        is_interrupted = True
        shared.stop.set()
        for client in clients:
            client.cut()
        for thread in threads:
            thread.join()
    with shared.lock:
        answers = tuple(sorted((a for a in shared.answers if not a.was_cut), key=lambda a: a.sent_s))
    end_s = max((a.end_s for a in answers), default=time.perf_counter())
    return Measured(load, answers, end_s - started_s, time.process_time() - started_cpu_s, is_interrupted)


def _tell(shared: _Shared, started_s: float, progress: Progress, label: str) -> None:
    load = shared.load
    if load.seconds is None:
        progress(label, len(shared.answers), load.num_requests)
    else:
        progress(label, min(round(time.perf_counter() - started_s), round(load.seconds)), round(load.seconds))


# ---- figures --------------------------------------------------------------------------------


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """{p50, p90, p99, mean}, between neighbours by straight lines; None of none."""
    if not values:
        return None
    found = np.percentile(values, PERCENTILES)
    return {f"p{p}": float(v) for p, v in zip(PERCENTILES, found, strict=True)} | {"mean": float(np.mean(values))}


def figures(measured: Measured) -> dict[str, Any]:
    """Rates, percentiles in seconds, and errors by kind, of the whole load and of each model."""
    load, done = measured.load, measured.done
    notes = []
    if any(a.num_new_tokens is None for a in done):
        notes.append("the server counts no tokens: pieces of the stream are counted instead, each of one token or more")
    cpu_frac = measured.cpu_s / measured.wall_s if measured.wall_s > 0 else 0.0
    if cpu_frac > BUSY_FRAC:
        notes.append(
            f"this process was busy {cpu_frac:.0%} of the time: it may have been the limit, not the server; "
            "spread the clients over several processes"
        )
    if len(measured.answers) > len(load.prompts):
        notes.append(
            f"{len(load.prompts):,} prompts were asked {len(measured.answers):,} times: a cache of prompts helps more "
            "than with requests that are new"
        )
    if load.num_requests is not None and load.seconds is None and load.num_requests < 3 * load.clients:
        notes.append("fewer than three requests a client: start and end of the load weigh on its rates")
    told: dict[str, Any] = {
        "url": load.url,
        "models": list(load.models),
        "clients": load.clients,
        "max_new_tokens": load.max_new_tokens,
        "is_interrupted": measured.is_interrupted,
        "wall_s": measured.wall_s,
        "client_cpu_frac": cpu_frac,
        **_rates(measured.answers, measured.wall_s),
    }
    if len(load.models) > 1:
        by_model = {m: [a for a in measured.answers if a.model == m] for m in load.models}
        told["by_model"] = {m: _rates(answers, measured.wall_s) for m, answers in by_model.items()}
    return told | {"notes": notes}


def _rates(answers: Sequence[Answer], wall_s: float) -> dict[str, Any]:
    done = [a for a in answers if not a.error]
    prompt, new = _total(done, lambda a: a.num_prompt_tokens), sum(a.num_tokens for a in done)
    cached = sum(a.num_cached_tokens for a in done)
    kinds = Counter(a.error for a in answers if a.error)

    def rate(value: float | None) -> float | None:
        return None if value is None or wall_s <= 0 else value / wall_s

    return {
        "num_requests": len(answers),
        "num_done": len(done),
        "errors": {kind: {"num": num, "example": _example(answers, kind)} for kind, num in kinds.most_common()},
        "requests_per_s": rate(len(done)),
        "prompt_tokens_per_s": rate(prompt),
        "new_tokens_per_s": rate(new),
        "prompt_tokens_mean": None if prompt is None or not done else prompt / len(done),
        "new_tokens_mean": new / len(done) if done else None,
        "cached_frac": cached / prompt if prompt else None,
        "first_token_s": percentiles([a.first_s - a.sent_s for a in done if a.first_s is not None]),
        "per_token_s": percentiles([s for a in done if (s := a.per_token_s) is not None]),
        "between_pieces_s": percentiles([gap for a in done for gap in a.gaps_s]),
        "whole_answer_s": percentiles([a.end_s - a.sent_s for a in done]),
    }


def _total(answers: Sequence[Answer], count: Callable[[Answer], int | None]) -> int | None:
    """The sum; None where one is not known."""
    counts = [count(a) for a in answers]
    return None if None in counts else sum(c for c in counts if c is not None)


def _example(answers: Sequence[Answer], kind: str) -> str:
    return next(a.detail for a in answers if a.error == kind)


def by_parent(listed: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """(bases, adapters) of /v1/models: an adapter names its parent."""
    adapters = [m["id"] for m in listed if m.get("parent")]
    return [m["id"] for m in listed if m["id"] not in adapters], adapters
