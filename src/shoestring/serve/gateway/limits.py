"""How much a server takes: of all, of each key, of each model. A YAML file says what differs from the defaults."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ConfigDict, Field, ValidationError

from ...errors import ConfigError
from ...sections import Section
from ...yaml_lines import line_of, read_mapping
from .errors import ApiError
from .tuning_settings import TuningSettings

MINUTE_S = 60.0


class Allowance(Section):
    """What one key, or all requests to one model, may take."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests begun in a minute."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Tokens of prompts and answers in a minute."""
    in_flight: int | None = Field(default=None, ge=1)
    """Answers on their way at once."""


class Limits(Section):
    """The file of --limits."""

    queue: int = Field(default=256, ge=1, le=100_000)
    """Answers on their way or waiting, of all clients together."""
    timeout_s: float = Field(default=600, gt=0)
    """Longest time an answer may take."""
    drain_s: float = Field(default=30, ge=0)
    """At the end (SIGTERM, Ctrl-C): how long answers on their way may take to finish."""
    max_body_mb: float = Field(default=4, gt=0, le=1024)
    """Largest request, in megabytes (10^6 bytes)."""
    keys: dict[str, Allowance] = Field(default={})
    """By name of the key; `default` is that of the start, and * stands for those not named."""
    models: dict[str, Allowance] = Field(default={})
    """By name of the model; * stands for those not named."""
    tuning: TuningSettings = TuningSettings()
    """Fine-tuning jobs, with --tuning."""


def read_limits(path: Path | None) -> Limits:
    """The file's limits, or the defaults. Raises: ConfigError with file and line."""
    if path is None:
        return Limits()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--limits {path}: cannot be read: {error}") from None
    node, raw = read_mapping(text, str(path))
    try:
        return Limits.model_validate(raw)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            where = ".".join(str(step) for step in fault["loc"])
            said = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
            if fault["type"] == "extra_forbidden":
                inner = TuningSettings if fault["loc"][0] == "tuning" else Allowance
                known = Limits if len(fault["loc"]) == 1 else inner
                said = f"no such key; allowed here: {', '.join(known.model_fields)}"
            faults.append(f"{path}:{line_of(node, fault['loc'])}: {where}: {said}")
        raise ConfigError("\n".join(faults)) from None


@dataclass
class Bucket:
    """So much a minute, in one go or spread; what was taken beyond is owed, and the next ones wait."""

    per_minute: float
    clock: Callable[[], float]
    level: float = field(init=False)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.level, self.at = self.per_minute, self.clock()

    def wait_s(self, amount: float) -> float:
        """Seconds until amount may be taken; an amount above the minute's whole share needs a full bucket."""
        now = self.clock()
        self.level = min(self.per_minute, self.level + (now - self.at) * self.per_minute / MINUTE_S)
        self.at = now
        missing = min(amount, self.per_minute) - self.level
        return max(0.0, missing * MINUTE_S / self.per_minute)

    def take(self, amount: float) -> None:
        """Have it taken, whether or not it is there."""
        self.level -= amount


@dataclass
class Account:
    """What one key or model has on its way."""

    name: str  # in words: key NAME, model NAME
    allowance: Allowance
    requests: Bucket | None
    tokens: Bucket | None
    num_in_flight: int = 0


class Gate:
    """Lets requests in, or says when to come again."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self.clock = limits, clock
        self.num_in_flight = 0
        self._accounts: dict[tuple[str, str], Account] = {}

    def _account(self, kind: str, name: str, of_kind: dict[str, Allowance]) -> Account:
        found = self._accounts.get((kind, name))
        if found is None:
            own = of_kind.get(name) or of_kind.get("*") or Allowance()
            requests, tokens = (
                Bucket(each, self.clock) if each else None for each in (own.requests_per_minute, own.tokens_per_minute)
            )
            found = self._accounts[kind, name] = Account(f"{kind} {name!r}", own, requests, tokens)
        return found

    @contextlib.contextmanager
    def admitted(
        self, key: str, model: str, num_answers: int, num_prompt_tokens: int
    ) -> Iterator[Callable[[int], None]]:
        """While a request runs. What is given takes the number of new tokens. Raises: ApiError 429."""
        accounts = [
            self._account("key", key, self.limits.keys),
            self._account("model", model, self.limits.models),
        ]
        own_most = [account.allowance.in_flight for account in accounts]
        most = min(limit for limit in (self.limits.queue, *own_most) if limit is not None)
        if num_answers > most:
            raise ApiError(400, f"{num_answers} answers in one request; {most} is the limit here.", param="n")
        if self.num_in_flight + num_answers > self.limits.queue:
            raise _later(
                f"The server has {self.num_in_flight} answers on their way; {self.limits.queue} are its limit.",
                1.0,
            )
        for account in accounts:
            self._check(account, num_answers, num_prompt_tokens)
        for account in accounts:
            account.num_in_flight += num_answers
            if account.requests:
                account.requests.take(1)
            if account.tokens:
                account.tokens.take(num_prompt_tokens)
        self.num_in_flight += num_answers

        def pay(num_new_tokens: int) -> None:
            for account in accounts:
                if account.tokens:
                    account.tokens.take(num_new_tokens)

        try:
            yield pay
        finally:
            self.num_in_flight -= num_answers
            for account in accounts:
                account.num_in_flight -= num_answers

    def _check(self, account: Account, num_answers: int, num_prompt_tokens: int) -> None:
        own = account.allowance
        if own.in_flight is not None and account.num_in_flight + num_answers > own.in_flight:
            raise _later(
                f"Of {account.name} {account.num_in_flight} answers are on their way; {own.in_flight} is the limit.",
                1.0,
            )
        wait_s = account.requests.wait_s(1) if account.requests else 0.0
        if wait_s > 0:
            raise _later(f"Rate limit of {account.name}: {own.requests_per_minute} requests a minute.", wait_s)
        wait_s = account.tokens.wait_s(num_prompt_tokens) if account.tokens else 0.0
        if wait_s > 0:
            raise _later(
                f"Rate limit of {account.name}: {own.tokens_per_minute} tokens a minute, and this prompt has "
                f"{num_prompt_tokens}.",
                wait_s,
            )


def _later(message: str, retry_after_s: float) -> ApiError:
    return ApiError(429, message, code="rate_limit_exceeded", retry_after_s=retry_after_s)
