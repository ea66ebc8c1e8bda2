"""`shoestring bench serve`: load a server, and print what came."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..plan.served import ServedRates
from ..plan.served import save as save_rates
from ..serve.load import Load, Messages, figures, fitted, models_at, run_load, run_prompts, sized_prompts, text_prompts
from ..serve.rates import machine_at, measure_rates, requests_in_all, split_models
from ..serve.wire import Client
from .output import emit, say, warn
from .progress import Screen
from .tables import table

INTERRUPTED_CODE = 5
DEFAULT_REQUESTS = 100
KEY_VARIABLE = "SHOESTRING_API_KEY"
MOST_PROMPTS = 5_000  # texts made; a longer load asks them again
SIZE = re.compile(r"(?:(\d+)\+)?(\d+)")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The command's arguments."""

    url: str
    models: tuple[str, ...]
    clients: int
    requests: int | None
    seconds: float | None
    prompts: str
    max_tokens: int
    api_key_file: Path | None


def command(wanted: Wanted, save: Path | None, device: str | None, is_json: bool) -> int:
    """Measure, print, and with save add rates to the run folder. Raises: BadInput, EndpointError."""
    _check(wanted)
    if save is not None and not (save / "run.yaml").is_file():
        raise BadInput(f"--save {save}: no run folder; give one such as runs/tickets")
    if device is not None and save is None:
        raise BadInput(f"--device {device} is said for --save alone; add --save RUN, or leave it out")
    key = key_of(wanted.api_key_file)
    client = Client(wanted.url, key)
    try:
        listed = models_at(client)
        names = wanted.models or tuple(m["id"] for m in listed)
        of_base = split_models(listed, names) if save is not None else None
        machine = machine_at(client, listed, device) if save is not None else {}
    finally:
        client.close()
    load = Load(
        url=wanted.url,
        models=names,
        prompts=text_prompts(8, 0, 1),
        clients=wanted.clients,
        num_requests=None if wanted.seconds else (wanted.requests or DEFAULT_REQUESTS),
        seconds=wanted.seconds,
        max_new_tokens=wanted.max_tokens,
        key=key,
    )
    load = fitted(load)
    load = replace(load, prompts=_prompts(wanted.prompts, load, requests_in_all(load) if save is not None else 0))
    rates: ServedRates | None = None
    with Screen() as screen:
        measured = run_load(load, screen.progress)
        is_interrupted = measured.is_interrupted
        if of_base is not None and not is_interrupted:
            try:
                later = replace(load, offset=len(measured.answers))
                rates = measure_rates(later, *of_base, machine, screen.progress)
            except KeyboardInterrupt:
                is_interrupted = True
    answer = figures(measured) | {"is_interrupted": is_interrupted}
    if save is not None and rates is None:
        answer["notes"].append("interrupted before the rates were known: nothing is saved")
    if save is not None and rates is not None:
        answer["saved"] = str(save_rates(save, rates))
    if is_json:
        emit(answer)
    else:
        show(answer, rates)
    if is_interrupted:
        return INTERRUPTED_CODE
    return 0 if answer["num_done"] else 1


def _check(wanted: Wanted) -> None:
    if wanted.requests is not None and wanted.seconds is not None:
        raise BadInput("--requests and --seconds exclude each other; give one")
    for name, value in (
        ("--requests", wanted.requests),
        ("--seconds", wanted.seconds),
        ("--max-tokens", wanted.max_tokens),
    ):
        if value is not None and not value > 0:
            raise BadInput(f"{name} {value}: must be more than 0")


def key_of(path: Path | None) -> str:
    """The key of a file, else of the environment, else none. Raises: BadInput."""
    if path is None:
        return os.environ.get(KEY_VARIABLE, "").strip()
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--api-key-file {path} cannot be read: {error}") from None
    if not key or not (key.isascii() and key.isprintable()):
        raise BadInput(f"--api-key-file {path} holds no key; it should hold one line, the key")
    return key


def _prompts(said: str, load: Load, more: int) -> tuple[Messages, ...]:
    size = SIZE.fullmatch(said)
    if size is None:
        return run_prompts(Path(said))
    num = min(MOST_PROMPTS, more + (load.num_requests or MOST_PROMPTS))
    return sized_prompts(load, int(size[2]), int(size[1] or 0), num)


# ---- printing -------------------------------------------------------------------------------


def show(answer: dict[str, Any], rates: ServedRates | None) -> None:
    """One table of times, one line of rates, and what went wrong."""
    if answer["is_interrupted"]:
        warn("interrupted: this is what came until then")
    say(
        f"{answer['num_done']:,} of {answer['num_requests']:,} requests answered in {answer['wall_s']:.1f} s, "
        f"{answer['clients']} clients, {len(answer['models'])} models"
    )
    parts = {
        "requests a second": answer["requests_per_s"],
        "prompt tokens a second": answer["prompt_tokens_per_s"],
        "new tokens a second": answer["new_tokens_per_s"],
    }
    say("; ".join(f"{name} {value:,.1f}" for name, value in parts.items() if value is not None))
    means = [answer["prompt_tokens_mean"], answer["new_tokens_mean"]]
    if None not in means:
        cached = f", {answer['cached_frac']:.0%} of the prompts cached" if answer["cached_frac"] else ""
        say(f"a request: {means[0]:,.0f} + {means[1]:,.0f} tokens{cached}")
    names = {
        "first_token_s": "first token",
        "per_token_s": "a token after it",
        "between_pieces_s": "between pieces",
        "whole_answer_s": "whole answer",
    }
    rows = [
        (what, *(f"{1000 * answer[key][p]:,.1f}" for p in ("p50", "p90", "p99", "mean")))
        for key, what in names.items()
        if answer[key]
    ]
    if rows:
        say()
        say(table(("milliseconds", "p50", "p90", "p99", "mean"), rows, right=(1, 2, 3, 4)))
    _show_models(answer)
    for kind, error in answer["errors"].items():
        sys.stdout.flush()
        warn(f"{error['num']:,} x {kind}: {error['example']}")
    for note in answer["notes"]:
        warn(f"note: {note}")
    if rates is not None:
        _show_rates(rates, answer["saved"])


def _show_models(answer: dict[str, Any]) -> None:
    if "by_model" not in answer:
        return
    rows = []
    for name, one in answer["by_model"].items():
        first, each = one["first_token_s"], one["per_token_s"]
        rows.append(
            (
                name,
                f"{one['num_done']:,} of {one['num_requests']:,}",
                f"{one['new_tokens_per_s'] or 0:,.1f}",
                f"{1000 * first['p50']:,.1f}" if first else "-",
                f"{1000 * each['p50']:,.1f}" if each else "-",
            )
        )
    say()
    heads = ("model", "answered", "new tokens a second", "first token, ms (p50)", "a token after it, ms (p50)")
    say(table(heads, rows, right=(1, 2, 3, 4)))


def _show_rates(rates: ServedRates, path: str) -> None:
    say()
    if rates.prefill_tokens_per_s is None or rates.decode_tokens_per_s is None:
        warn(f"note: {rates.reason}")
    else:
        say(
            f"{rates.model}, {rates.words}: reads {rates.prefill_tokens_per_s.value:,.0f} prompt tokens a second, "
            f"writes {rates.decode_tokens_per_s.value:,.0f}"
        )
    if rates.lora_loss_frac is not None:
        loss = rates.lora_loss_frac
        told = f"take {loss.value:.0%} of that" if loss.value > 0 else "were no slower than the base"
        noise = "" if loss.low > 0 else "; below 0 is noise between rounds, more --requests tell more"
        say(f"{rates.num_adapters} adapters mixed {told} ({loss.low:.0%} to {loss.high:.0%} by round{noise})")
    say(f"saved in {path}; 'shoestring plan' reckons with it")
