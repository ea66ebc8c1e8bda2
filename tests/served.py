"""A gateway on a free port of this machine, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.routing import BaseRoute

from shoestring.serve.adapters import read_base
from shoestring.serve.engine import Engine
from shoestring.serve.gateway.app import Gateway, make_app
from shoestring.serve.gateway.keys import ADMIN, DEFAULT, Keys, new_key, private_folder
from shoestring.serve.gateway.limits import Limits
from shoestring.serve.gateway.serving import address_of, listen, served
from shoestring.serve.registry import Registry, read_run
from shoestring.train.base import load_tokenizer


@dataclass
class Running:
    """A server that answers. run: a coroutine in its event loop, waited for."""

    url: str
    key: str
    admin_key: str
    gateway: Gateway
    run: Callable[[Awaitable[Any]], Any]
    stop: Callable[[], None]
    is_ending: Callable[[], bool]

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def usage(self) -> list[dict[str, Any]]:
        import json

        path = self.gateway.state / "usage.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


@contextlib.contextmanager
def running(
    runs_dir: Path,
    model: str,
    open_engine: Callable[[], Awaitable[Engine]],
    names: tuple[str, ...] = (),
    *,
    limits: Limits | None = None,
    routes: tuple[BaseRoute, ...] = (),
) -> Iterator[Running]:
    """Serve the runs of these names in runs_dir, and their base."""
    state = private_folder(runs_dir / ".serving")
    keys, key, admin_key = Keys(state / "keys.json"), new_key(), new_key()
    keys.give(key, DEFAULT)
    keys.give(admin_key, ADMIN, is_admin=True)
    started, told, failed = threading.Event(), {}, []

    async def main() -> None:
        engine = await open_engine()
        try:
            registry = Registry(engine, read_base(model), runs_dir)
            for name in names:
                await registry.add(read_run(runs_dir / name))
            gateway = Gateway(state, keys, registry, load_tokenizer(model), limits=limits or Limits(), usd_per_hour=3.6)
            with listen("127.0.0.1", 0) as listening:
                url = address_of(listening)
                async with served(make_app(gateway, routes), listening, 5) as server:
                    told["server"] = server
                    told.update(gateway=gateway, url=url, loop=asyncio.get_running_loop(), stop=asyncio.Event())
                    started.set()
                    await asyncio.wait(
                        (server.ended, asyncio.create_task(told["stop"].wait())), return_when=asyncio.FIRST_COMPLETED
                    )
        finally:
            await engine.close()

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failed.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(600), "no server after ten minutes"
    if failed:
        raise failed[0]

    def run(awaited: Awaitable[Any]) -> Any:
        async def waits() -> Any:
            return await awaited

        return asyncio.run_coroutine_threadsafe(waits(), told["loop"]).result(300)

    def stop() -> None:
        with contextlib.suppress(RuntimeError):
            told["loop"].call_soon_threadsafe(told["stop"].set)
        thread.join(300)

    try:
        yield Running(told["url"], key, admin_key, told["gateway"], run, stop, lambda: told["server"].should_exit)
    finally:
        stop()
    if failed:
        raise failed[0]
