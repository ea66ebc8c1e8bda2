"""What a server can do, told apart into reading prompts and writing answers, with and without adapters.

Two loads with every client busy: answers of one token, and whole ones. With P tokens read and one written a request
takes P/prefill + 1/decode of the server's time, with C written P/prefill + C/decode; both are solved for. Base and
adapters take turns, round by round, so that other work on the machine falls on both.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ..errors import BadInput, EndpointError
from ..plan.served import ServedRates
from ..records import Estimate, Progress, no_progress
from ..train.device import present_device
from .load import Load, Measured, run_load
from .wire import Client

ROUNDS = 3
ALONE_REQUESTS = 6
LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of one model, or of the adapters mixed: seconds of the server a request, and its mean tokens."""

    short_s: float
    whole_s: float
    prompt_tokens: float
    new_tokens: float
    cached_frac: float

    @property
    def split(self) -> tuple[float, float] | None:
        """(prefill, decode) in tokens a second; None where answers were too short to tell them apart."""
        if self.new_tokens <= 1 or self.whole_s <= self.short_s:
            return None
        per_token_s = (self.whole_s - self.short_s) / (self.new_tokens - 1)
        prefill_s = self.short_s - per_token_s
        return (self.prompt_tokens / prefill_s, 1 / per_token_s) if prefill_s > 0 else None


def measure_rates(
    load: Load, base: str, adapters: Sequence[str], machine: dict[str, str], progress: Progress = no_progress
) -> ServedRates:
    """Rounds of the base and of the adapters, and one client alone. machine: engine, engine_version, device.

    Raises: EndpointError where requests fail, for rates of a failing server are none.
    """
    asked = replace(load, num_requests=requests_each(load), seconds=None)
    num_asked = 0
    rounds: dict[str, list[Round]] = {"base": [], "adapters": []}
    who = {"base": (base,), "adapters": tuple(adapters)}
    for number in range(ROUNDS):
        for name, models in who.items():
            if models:
                label = f"Round {number + 1} of {ROUNDS}, {name}"
                turn = replace(asked, models=models, offset=load.offset + num_asked)
                rounds[name].append(_round(turn, progress, label))
                num_asked += 2 * requests_each(load)
    last = replace(asked, models=(base,), clients=1, num_requests=ALONE_REQUESTS, offset=load.offset + num_asked)
    alone = _good(run_load(last, progress, "One client alone"))
    whole = [a.end_s - a.sent_s for a in alone.done]
    own = rounds["base"]
    splits = [r.split for r in own]
    known = [s for s in splits if s is not None]
    is_told = len(known) == len(splits)
    losses = [_loss(plain, lora) for plain, lora in zip(own, rounds["adapters"], strict=False)]
    loss = [one for one in losses if one is not None]
    return ServedRates(
        model=base,
        engine=machine["engine"],
        engine_version=machine["engine_version"],
        device=machine["device"],
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        clients=load.clients,
        prompt_tokens=statistics.mean(r.prompt_tokens for r in own),
        completion_tokens=statistics.mean(r.new_tokens for r in own),
        cached_frac=statistics.mean(r.cached_frac for r in own),
        requests_per_s=spread([1 / r.whole_s for r in own]),
        prefill_tokens_per_s=spread([s[0] for s in known]) if is_told else None,
        decode_tokens_per_s=spread([s[1] for s in known]) if is_told else None,
        alone_s=spread(whole),
        lora_loss_frac=spread(loss) if loss and len(loss) == len(losses) else None,
        num_adapters=len(adapters),
        reason="" if is_told else "answers were too short to tell reading prompts from writing; raise --max-tokens",
    )


def requests_each(load: Load) -> int:
    """Of each load of a round."""
    return max(2 * load.clients, load.num_requests or 0)


def requests_in_all(load: Load) -> int:
    """Prompts that measure_rates asks, no two alike where there are so many: a cache of prompts would tell a lie."""
    return ROUNDS * 2 * 2 * requests_each(load) + ALONE_REQUESTS


def _round(load: Load, progress: Progress, label: str) -> Round:
    short = _good(run_load(replace(load, max_new_tokens=1), progress, f"{label}, prompts"))
    later = replace(load, offset=load.offset + (load.num_requests or 0))
    whole = _good(run_load(later, progress, f"{label}, answers"))
    prompt = [a.num_prompt_tokens for a in whole.done]
    if any(p is None for p in prompt):
        raise EndpointError(f"{load.url} counts no prompt tokens (usage), so that its rates cannot be told")
    total = sum(p for p in prompt if p is not None)
    return Round(
        short_s=short.wall_s / len(short.done),
        whole_s=whole.wall_s / len(whole.done),
        prompt_tokens=total / len(prompt),
        new_tokens=sum(a.num_tokens for a in whole.done) / len(whole.done),
        cached_frac=sum(a.num_cached_tokens for a in whole.done) / total if total else 0.0,
    )


def _loss(plain: Round, lora: Round) -> float | None:
    """Share of the base's rate that adapters take, for the base's mix of tokens; below 0 where they were faster."""
    before, after = plain.split, lora.split
    if before is None or after is None:
        return None
    base_s, lora_s = (plain.prompt_tokens / p + plain.new_tokens / d for p, d in (before, after))
    return 1 - base_s / lora_s


def _good(measured: Measured) -> Measured:
    if measured.is_interrupted:
        raise KeyboardInterrupt
    wrong = next((a for a in measured.answers if a.error), None)
    if wrong is not None or not measured.done:
        said = f"{wrong.error}: {wrong.detail}" if wrong else "no answer came"
        raise EndpointError(
            f"{measured.load.url}: {said}; nothing is saved of a load in which requests fail: fewer --clients, or "
            "larger limits of the server"
        )
    return measured


def spread(values: Sequence[float]) -> Estimate:
    """Median, lowest, highest."""
    return Estimate(statistics.median(values), min(values), max(values))


def split_models(listed: Sequence[dict[str, Any]], wanted: Sequence[str]) -> tuple[str, list[str]]:
    """(base, adapters) among the wanted models. Raises: BadInput unless there is one base."""
    parents = {m["id"]: m.get("parent") for m in listed}
    adapters = [name for name in wanted if parents.get(name)]
    bases = [name for name in wanted if name not in adapters]
    if len(bases) != 1:
        found = ", ".join(bases) or "none"
        raise BadInput(
            f"--save measures one base, and its adapters against it; bases asked for: {found}; "
            "leave --models out, or name one base"
        )
    return bases[0], adapters


def machine_at(client: Client, listed: Sequence[dict[str, Any]], device: str | None) -> dict[str, str]:
    """Engine and version as the server's list of models tells them, and the device: this machine's where it is here.

    Raises: BadInput where the device is not known.
    """
    base = next((m for m in listed if not m.get("parent")), listed[0])
    name = device or (present_device().name if client.host in LOCAL else "")
    if not name:
        raise BadInput(f"{client.url} is on another machine; say what it runs on with --device, such as L4 or H100-SXM")
    engine, version = base.get("engine") or base.get("owned_by") or "unknown", str(base.get("server_version") or "")
    return {"engine": str(engine), "engine_version": version or _version(client), "device": name}


def _version(client: Client) -> str:
    """Of vLLM's /version; empty where there is none."""
    try:
        said = client.get_root("/version")
    except EndpointError:
        return ""
    return str(said.get("version", "")) if isinstance(said, dict) else ""
