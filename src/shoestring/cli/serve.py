"""The command serve: open a base and its adapters, answer until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import MarketConfig, load_run_file
from ..errors import BadInput, Interrupted, ModelError, require
from ..market.prices import price_for
from ..secrets import without_secrets
from ..units import usd
from .output import emit, end_stdout, say, warn
from .tables import table

if TYPE_CHECKING:
    from starlette.routing import Route

    from ..records import Device
    from ..serve.gateway.app import Gateway, Lifespan
    from ..serve.registry import Line, Registry, Served

PACKAGES = ("starlette", "uvicorn", "prometheus_client", "llguidance", "python_multipart")
STATE = ".serving"
ENGINE_KEY_VARIABLE = "SHOESTRING_ENGINE_KEY"


@dataclass(frozen=True)
class Asked:
    """The command line."""

    targets: tuple[str, ...]
    engine: str
    engine_url: str
    host: str
    port: int
    api_key_file: Path | None
    limits: Path | None
    tuning: bool
    runs_dir: Path


def command(asked: Asked, is_check: bool, is_json: bool) -> int:
    """Serve until a signal, or only say what would be served. Raises: BadInput, ModelError, EngineDown, ..."""
    if not 0 <= asked.port <= 65535:
        raise BadInput(f"--port {asked.port} is no port; give one from 1 to 65535, or 0 for one that is free")
    if asked.runs_dir.exists() and not asked.runs_dir.is_dir():
        raise BadInput(f"--runs-dir {asked.runs_dir} is a file; give the folder that holds the runs")
    for package in PACKAGES:
        require(package, extra="serve", purpose="shoestring serve")
    if not asked.targets and asked.tuning and not is_check:
        return _until_signal(asked, [], "", is_json)
    runs, model = wanted(asked.targets, asked.runs_dir)
    if runs:
        from ..serve.opening import by_merged_weights

        runs = by_merged_weights(runs, asked.engine, asked.engine_url)
    if is_check:
        return _check(asked, runs, model, is_json)
    return _until_signal(asked, runs, model, is_json)


def _until_signal(asked: Asked, runs: Sequence[Served], model: str, is_json: bool) -> int:
    try:
        return asyncio.run(_serve(asked, runs, model, is_json))
    except KeyboardInterrupt:  # while it loads; once it answers, signals are its own
        raise Interrupted("interrupted before the server was ready; the same command starts it again") from None


def wanted(targets: Sequence[str], runs_dir: Path) -> tuple[list[Served], str]:
    """The runs that targets mean, or the base model that the one target is. Raises: BadInput."""
    from ..serve.registry import find_run, read_run
    from ..train.locate import resolve_model

    if not targets:
        raise BadInput("name what to serve: runs that share a base, or a base model; 'shoestring runs' lists runs")
    found: list[Served] = []
    for target in targets:
        try:
            folder = find_run(target, runs_dir)
        except BadInput as no_run:
            try:
                resolve_model(target)
            except ModelError:
                raise no_run from None
            if Path(target).parent.resolve() == runs_dir.resolve():  # owner/name of a hub has this form too
                raise no_run from None
            if len(targets) > 1:
                raise BadInput(
                    f"{target} is a base model; it is served by its own name beside any run on it, so name runs alone"
                ) from None
            return [], target
        found.append(read_run(folder))
    names = [run.name for run in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"{', '.join(twice)}: named twice; each run is served once, by its name")
    return found, ""


def _check(asked: Asked, runs: Sequence[Served], model: str, is_json: bool) -> int:
    """What the engine would do with each run; 2 where it would refuse one."""
    from ..serve.opening import engine_named, preflight

    if not runs:
        raise BadInput(f"{model} is a base model, and --check is about runs")
    base, lines = preflight(runs, asked.engine, asked.engine_url)
    serves = all(line.verdict.decision == "serve" for line in lines)
    if is_json:
        engine = engine_named(asked.engine, asked.engine_url)
        emit({"engine": engine, "base": base.model, "serves": serves, "runs": [line.to_json() for line in lines]})
    else:
        say(runs_table(lines))
    return 0 if serves else BadInput.exit_code


def runs_table(lines: Sequence[Line]) -> str:
    """Runs with what becomes of each."""
    rows = []
    for line in lines:
        told = line.to_json()
        score = "not scored" if told["score"] is None else f"{told['metric']} {told['score']['value']:.3f}"
        rank = "" if told["rank"] is None else str(told["rank"])
        verdict = f"{told['decision']}: {told['reason']}" if told["reason"] else told["decision"]
        rows.append((told["name"], told["base"], told["method"], rank, score, "; ".join([verdict, *told["notes"]])))
    return table(("run", "base", "method", "rank", "score", "verdict"), rows, right=(3,))


async def _serve(asked: Asked, runs: Sequence[Served], model: str, is_json: bool) -> int:
    from ..serve.arenas import bound_arenas
    from ..serve.gateway import admin
    from ..serve.gateway.app import Gateway, make_app
    from ..serve.gateway.keys import starting_keys
    from ..serve.gateway.limits import read_limits
    from ..serve.gateway.serving import address_of, is_loopback, listen, served
    from ..train.base import detect_device, load_tokenizer

    bound_arenas()
    limits = read_limits(asked.limits)
    state = asked.runs_dir / STATE
    keys, key_file, admin_file = starting_keys(state, asked.api_key_file)
    device = detect_device()
    with listen(asked.host, asked.port) as listening:
        registry = await _opened(asked, runs, model, device) if runs or model else None
        try:
            gateway = Gateway(
                state,
                keys,
                registry,
                load_tokenizer(registry.base.model) if registry else None,
                whole=next((run for run in runs if run.adapter is None), None),
                limits=limits,
                usd_per_hour=usd_per_hour(device, runs),
            )
            jobs, lifespans = _tuning(gateway, asked.runs_dir) if asked.tuning else ([], [])
            app = make_app(gateway, [*admin.routes(), *jobs], lifespans)
            async with served(app, listening, limits.drain_s) as server:
                told = {
                    "base_url": f"{address_of(listening)}/v1",
                    "models": [entry["id"] for entry in registry.listing()] if registry else [],
                    "engine": registry.engine.capability.name if registry else None,
                    "api_key_file": str(key_file.absolute()) if key_file else None,
                    "admin_key_file": str(admin_file.absolute()) if admin_file else None,
                    "usage_file": str(gateway.usage.path.absolute()) if gateway.usage.path else None,
                    "usd_per_hour": gateway.usage.usd_per_hour,
                    "tuning": _trained_for(gateway) if asked.tuning else None,
                }
                if is_json:
                    emit(told)
                    end_stdout()
                else:
                    _show(told, registry)
                if not is_loopback(listening):
                    warn(
                        f"warning: {asked.host} can be reached from other machines, and keys and texts travel "
                        "unencrypted; put a proxy with TLS in front, or leave --host out"
                    )
                await server.ended
                given = "" if server.force_exit else f"; answers on their way had {limits.drain_s:g} s to finish"
                warn(f"ended{given}")
        finally:
            if registry is not None:
                await registry.engine.close()
    return 0


async def _opened(asked: Asked, runs: Sequence[Served], model: str, device: Device) -> Registry:
    from ..serve.opening import open_registry

    warn(f"loading {', '.join(run.name for run in runs) or model}")
    return await open_registry(
        runs,
        runs_dir=asked.runs_dir,
        device=device,
        model=model,
        engine=asked.engine,
        url=asked.engine_url,
        url_key=os.environ.get(ENGINE_KEY_VARIABLE, ""),
        log=lambda text: warn(without_secrets(text)),
    )


def _tuning(gateway: Gateway, runs_dir: Path) -> tuple[list[Route], list[Lifespan]]:
    """Routes and lifespan of the fine-tuning API."""
    from ..serve.tuning.mounted import mounted

    routes, lifespan = mounted(gateway, runs_dir, gateway.limits.tuning)
    return routes, [lifespan]


def _trained_for(gateway: Gateway) -> dict[str, str]:
    """What is trained for each name that a job may ask for."""
    from ..serve.tuning.mounted import served_base
    from ..serve.tuning.names import map_lines

    return {name: model for name, model, _ in map_lines(gateway.limits.tuning, served_base(gateway))}


def usd_per_hour(device: Device, runs: Sequence[Served]) -> float | None:
    """Price of this machine: as the first run's file says, else of the price table; None where it has none."""
    market = load_run_file(runs[0].run / "run.yaml").market if runs else MarketConfig()
    with contextlib.suppress(BadInput):
        return price_for(device, market).usd_per_hour
    warn(
        f"note: the price of {device.name} is not known, so usage has no dollars; set market.price_usd_per_hour in the "
        "run file"
    )
    return None


def _show(told: dict[str, Any], registry: Registry | None) -> None:
    what = f"{', '.join(told['models'])} ({told['engine']} engine)" if registry else "fine-tuning jobs"
    say(f"Serving {what} at {told['base_url']}")
    price = told["usd_per_hour"]
    if price is not None:
        say(f"This machine costs {usd(price)} an hour")
    say(f"What each request took: {told['usage_file']}")
    key = told["api_key_file"]
    say(f"API key: {f'in {key}' if key else 'that of SHOESTRING_API_KEY'}")
    shown = f"$(cat {key})" if key else "$SHOESTRING_API_KEY"
    if registry is not None:
        say(
            f'Try it: curl {told["base_url"]}/chat/completions -H "Authorization: Bearer {shown}" \\\n'
            "  -H 'Content-Type: application/json' "
            f"""-d '{{"model": "{told["models"][-1]}", "messages": [{{"role": "user", "content": "..."}}]}}'"""
        )
        for run in registry.models.values():
            for note in run.notes:
                say(f"note: {run.name}: {note}")
    if told["tuning"]:
        say("Fine-tuning jobs are taken; what is trained for the name that a job asks for (tuning.models changes it):")
        say(table(("asked for", "trained"), sorted(told["tuning"].items())))
    say("Ctrl-C ends it.")
