"""Names that clients use, and what a server calls the same adapter: each load gets a name of its own there."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator

from ..engine import BASE, NotLoaded


class Names:
    """Which inner name answers for an outer one now, and how many requests use each."""

    def __init__(self) -> None:
        self._inner: dict[str, str] = {}
        self._users: Counter[str] = Counter()
        self._freed = asyncio.Event()
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self) -> Iterator[str]:
        return iter(self._inner)

    def fresh(self, outer: str) -> str:
        """An inner name that was never used."""
        return f"{outer}@{next(self._numbers)}"

    def put(self, outer: str, inner: str) -> str:
        """Let inner answer for outer from now on; the one it replaces, or ""."""
        old = self._inner.get(outer, "")
        self._inner[outer] = inner
        return old if old != inner else ""

    def take(self, outer: str) -> str:
        """Let nothing answer for outer; what did, or ""."""
        return self._inner.pop(outer, "")

    def get(self, outer: str) -> str:
        """The inner name. Raises: NotLoaded."""
        if outer not in self._inner:
            raise NotLoaded(f"no adapter {outer!r} is loaded")
        return self._inner[outer]

    @contextlib.contextmanager
    def using(self, outer: str, base: str) -> Iterator[str]:
        """The inner name for one request (base for BASE), which stays until it ends."""
        inner = base if outer == BASE else self.get(outer)
        self._users[inner] += 1
        try:
            yield inner
        finally:
            self._users[inner] -= 1
            if not self._users[inner]:
                del self._users[inner]
                self._freed.set()

    async def unused(self, inner: str) -> None:
        """Wait until no request uses it."""
        while self._users.get(inner):
            self._freed.clear()
            await self._freed.wait()
