"""What was read of the runs looked at last, while their records stay as they were."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..report.folder import RunFiles, read_run

K = TypeVar("K")
V = TypeVar("V")

MOST_KEPT = 4  # runs
RECORDS = ("*.json", "*.jsonl", "decide/*.json", "rungs/*/*.json")
CHANGES_ALWAYS = ("live.json",)


class Kept(Generic[K, V]):
    """One value a run folder, made again when the signature it was made under is another."""

    def __init__(self) -> None:
        self._values: OrderedDict[Hashable, tuple[K, V]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, folder: Path, signature: K, make: Callable[[], V]) -> V:
        """The folder's value."""
        key = folder.resolve()
        with self._lock:
            found = self._values.get(key)
        if found is None or found[0] != signature:
            found = (signature, make())
        with self._lock:
            self._values[key] = found
            self._values.move_to_end(key)
            while len(self._values) > MOST_KEPT:
                self._values.popitem(last=False)
        return found[1]


RUNS: Kept[Any, RunFiles] = Kept()


def signature_of(folder: Path) -> list[tuple[str, int, int]]:
    """Times and sizes of a folder's records."""
    found = []
    for pattern in RECORDS:
        for path in folder.glob(pattern):
            if path.name not in CHANGES_ALWAYS:
                stat = path.stat()
                found.append((str(path), stat.st_mtime_ns, stat.st_size))
    return sorted(found)


def run_of(folder: Path) -> RunFiles:
    """The records of a run, the rows of its arms unparsed in `rows`."""
    return RUNS.of(folder, signature_of(folder), lambda: read_run(folder, with_rows=False))
