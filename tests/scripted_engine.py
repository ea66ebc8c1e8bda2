"""An engine that says what it is told to, token by token: for tests of the gateway alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from shoestring.serve.engine import BASE, Ask, Capability, EngineDown, Piece, Token

# script(ask): the ids of its answer; one that is longer than max_new_tokens is cut.
Script = Callable[[Ask], Sequence[int]]


class ScriptedEngine:
    """serve.engine.Engine over a script. With `held` set, each answer waits after its first token for `go`."""

    def __init__(self, script: Script, context_tokens: int = 2000) -> None:
        self.script, self.context_tokens = script, context_tokens
        self.capability = Capability("scripted", mixes_adapters=True)
        self.adapters: dict[str, Path] = {}
        self.asked: list[Ask] = []
        self.num_running = 0
        self.num_cancelled = 0
        self.go = asyncio.Event()
        self.held = False
        self.raises: Exception | None = None
        self.is_closed = False

    async def load(self, name: str, folder: Path) -> None:
        self.adapters[name] = folder

    async def drop(self, name: str) -> None:
        del self.adapters[name]

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        assert ask.adapter == BASE or ask.adapter in self.adapters
        self.asked.append(ask)
        if self.raises is not None:
            raise self.raises
        wanted = list(self.script(ask))
        ids = wanted[: ask.sampling.max_new_tokens]
        finish = "stop" if len(wanted) < ask.sampling.max_new_tokens else "length"
        num_top = ask.sampling.num_top_logprobs
        self.num_running += 1
        is_over = False
        try:
            for number, token in enumerate(ids):
                top = tuple((token + i, -0.5 - i) for i in range(num_top or 0))
                yield Piece((Token(token, None if num_top is None else -0.5, top),))
                await asyncio.sleep(0)
                if self.held and number == 0:
                    await self.go.wait()
                if self.is_closed:
                    raise EngineDown("the engine has ended")
            is_over = True
            yield Piece((), finish, num_cached_tokens=3)
        finally:
            self.num_running -= 1
            self.num_cancelled += not is_over

    def stats(self) -> dict[str, float]:
        return {"num_running": self.num_running, "num_waiting": 0}

    async def close(self) -> None:
        self.is_closed = True
        self.go.set()
