"""Who turns blocks into records (this process, worker processes, Ray), and the table the records make.

Every engine gives the same records in the same order: a block is processed the same way wherever that happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, overload

import numpy as np

from ..errors import BadInput, ShoestringError, require
from ..files import cannot_write
from ..records import Example, example_from_json
from .rows import BETWEEN, NAMES, NUMBER_OF, Records, Work, process

EngineName = Literal["local", "ray"]
WORKERS_FROM_BYTES = 8 << 20  # below this, starting worker processes costs more than they save
CACHED_RECORDS = 100_000  # of a table that has no more, examples stay in memory once read
EXAMPLES_AT_A_TIME = 1000
YIELDING = ("exact_duplicate", "near_duplicate", "contradiction", "near_contradiction")  # to a person's decision
RAY_TASKS_IN_FLIGHT = 4  # a CPU: enough to hide the transfer, few enough to bound memory


def give_back() -> None:
    """Return freed memory to the system between stages; glibc keeps it, in pieces the next stage may not fit in."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class Table:
    """All records in order: small numbers in arrays, text in a file without a name that vanishes with the process."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder or Path(tempfile.gettempdir())
        try:
            self.spool: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed in __exit__)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        self._num_records = self._num_bytes = 0
        self._parts: list[tuple[Any, ...]] = []
        self.evidence: dict[int, str] = {}
        self.wordings: dict[str, Callable[[int], str]] = {}  # by code: of records dropped without evidence
        self.sources: list[str] = []  # name by source number
        self._cache: dict[int, Example] = {}
        self.corrected: dict[int, Example] = {}  # by a person's review
        self.num_rows = 0

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what could not be written has been said
            self.spool.close()

    def append(self, source: int, is_held_out: bool, block: Records) -> None:
        """Add a block's records."""
        self.evidence.update({self._num_records + index: text for index, text in block.evidence.items()})
        num_records = len(block.lines)
        ends = self._num_bytes + np.cumsum(block.sizes, dtype=np.int64)
        numbers, held_out = np.full(num_records, source, np.int32), np.full(num_records, is_held_out)
        columns = (block.lines, block.codes, block.is_first, block.keys, block.languages, ends, numbers, held_out)
        self._parts.append(columns)
        try:
            self.spool.write(block.text)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        self._num_records += num_records
        self._num_bytes += len(block.text)

    def close(self) -> None:
        """Join the parts; from here on the arrays can be used."""
        columns = list(zip(*self._parts, strict=True))
        self._parts = []
        joined = [np.concatenate(columns.pop(0)) for _ in range(len(columns))]
        self.line, self.code, self.is_first, self.keys, self.languages = joined[:5]
        self._end, self.source, self.is_held_out = joined[5:]
        self.partner = np.full(len(self), -1, np.int64)
        self.row_number = np.cumsum(self.is_first)
        self.is_wanted = np.zeros(len(self), bool)  # by a person's decision
        self.yielded: dict[int, str] = {}  # wanted record -> the code it would have been dropped for
        self.num_rows = int(self.is_first.sum())
        try:
            self.spool.flush()
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def __len__(self) -> int:
        return len(self.line)

    def kept(self, is_held_out: bool) -> Any:
        """Numbers of the records not dropped, of the training or the held-out sources."""
        return np.flatnonzero((self.code == 0) & (self.is_held_out == is_held_out))

    def drop(self, index: int, code: str, evidence: str = "", partner: int = -1) -> None:
        """Set a record aside, unless a person wants it; without evidence it is worded when it is written."""
        if self.is_wanted[index] and code in YIELDING:
            self.yielded.setdefault(index, code)
            return
        self.code[index] = NUMBER_OF[code]
        self.partner[index] = partner
        if evidence:
            self.evidence[index] = evidence

    def restore(self, index: int) -> None:
        """Keep a record, whatever the codes of YIELDING say of it now or later."""
        if self.code[index]:
            self.yielded[index] = self.code_of(index)
        self.code[index] = 0
        self.evidence.pop(index, None)
        self.is_wanted[index] = True

    def place(self, index: int) -> tuple[str, int]:
        """Source name and line of a record."""
        return self.sources[self.source[index]], int(self.line[index])

    def code_of(self, index: int) -> str:
        """Why a record is dropped; empty for a kept one."""
        return NAMES[self.code[index]]

    def texts(self, index: int) -> tuple[str, str]:
        """Example JSON (empty if the row gave none) and row JSON of a record."""
        start = int(self._end[index - 1]) if index else 0
        raw = os.pread(self.spool.fileno(), int(self._end[index]) - start, start)
        example, _, row = raw.decode("utf-8", "surrogatepass").partition(BETWEEN)
        return example, row[:-1]

    def example(self, index: int) -> Example:
        """The example of a record."""
        if index in self.corrected:
            return self.corrected[index]
        if len(self) > CACHED_RECORDS:
            return self.original(index)
        if index not in self._cache:
            self._cache[index] = self.original(index)
        return self._cache[index]

    def original(self, index: int) -> Example:
        """The example of a record before any correction."""
        return example_from_json(json.loads(self.texts(index)[0]))

    def lines(self) -> Iterator[tuple[bytes, bytes]]:
        """What `texts` gives, as UTF-8, of every record in order, in one pass over the file."""
        self.spool.seek(0)
        between = BETWEEN.encode()
        for raw in self.spool:
            example, _, row = raw.partition(between)
            yield example, row[:-1]


class Examples(Sequence[Example]):
    """The examples of some records, read from the table when they are looked at."""

    def __init__(self, table: Table, indices: Any):
        self.table, self.indices = table, np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> list[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | list[Example]:
        if isinstance(at, slice):
            return [self.table.example(i) for i in self.indices[at].tolist()]
        return self.table.example(int(self.indices[at]))

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), EXAMPLES_AT_A_TIME):
            yield from self[start : start + EXAMPLES_AT_A_TIME]


class Local:
    """Blocks processed here, or in worker processes once there is enough to do."""

    def __init__(self, num_workers: int):
        self.num_workers = num_workers
        self.workers: list[_Worker] = []

    def map(self, works: Iterable[Work], is_large: bool) -> Iterator[Records]:
        """The records of each work, in order."""
        if self.num_workers < 2 or not is_large:
            yield from map(process, works)
            return
        if not self.workers:
            self.workers = [_Worker() for _ in range(self.num_workers)]
        busy: deque[_Worker] = deque()
        for work, worker in zip(works, itertools.cycle(self.workers), strict=False):
            done = busy.popleft().receive() if len(busy) == len(self.workers) else None
            worker.send(work)
            busy.append(worker)
            if done is not None:
                yield done
        while busy:
            yield busy.popleft().receive()

    def __enter__(self) -> Local:
        return self

    def stop(self) -> None:
        """End the worker processes."""
        for worker in self.workers:
            worker.stop()
        self.workers = []

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()


class _Worker:
    """A process that answers each work with its records; it ends when its input does."""

    def __init__(self) -> None:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from shoestring.data.engine import serve; serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip

    def send(self, work: Work) -> None:
        assert self.process.stdin is not None
        try:
            _write(self.process.stdin, work)
        except BrokenPipeError as error:
            raise self._ended() from error

    def receive(self) -> Records:
        assert self.process.stdout is not None
        try:
            answer = _read(self.process.stdout)
        except EOFError as error:
            raise self._ended() from error
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, Records)
        return answer

    def _ended(self) -> ShoestringError:
        code = self.process.wait()
        why = "killed, perhaps for memory" if code < 0 else "see the messages above"
        return ShoestringError(f"a curation worker ended with status {code} ({why}); run the same command again")

    def stop(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.kill()  # what it may still be working on is no longer wanted
        self.process.wait()
        self.process.stdout.close()


def _write(stream: IO[bytes], value: Any) -> None:
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(struct.pack("<Q", len(data)))
    stream.write(data)
    stream.flush()


def _read(stream: IO[bytes]) -> Any:
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    size = struct.unpack("<Q", head)[0]
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)


def serve() -> None:
    """The worker's side: works from standard input, records to standard output, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a stray print must not break the protocol
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            work = _read(sys.stdin.buffer)
            try:
                answer: Any = process(work)
            except Exception as error:  # raised again by the parent
                answer = error
            _write(answers, answer)


class Ray:
    """Blocks processed by Ray tasks: on this machine, or on the cluster that RAY_ADDRESS names.

    Workers read plain files themselves, so those must lie where every node sees them.
    """

    def __init__(self) -> None:
        self.ray: Any = require("ray", extra="ray", purpose="--engine ray")
        self.started_here = not self.ray.is_initialized()
        if self.started_here:
            self.ray.init(log_to_driver=False, include_dashboard=False)
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self.task = self.ray.remote(runtime_env={"env_vars": {"PYTHONPATH": paths}})(process)
        self.num_in_flight = RAY_TASKS_IN_FLIGHT * max(1, int(self.ray.cluster_resources().get("CPU", 1)))

    def map(self, works: Iterable[Work], is_large: bool) -> Iterator[Records]:
        """The records of each work, in order."""
        waiting: deque[Any] = deque()
        for work in works:
            if len(waiting) == self.num_in_flight:
                yield self.ray.get(waiting.popleft())
            waiting.append(self.task.remote(work))
        while waiting:
            yield self.ray.get(waiting.popleft())

    def __enter__(self) -> Ray:
        return self

    def stop(self) -> None:
        """Shut Ray down if it was started here."""
        if self.started_here:
            self.ray.shutdown()
        self.started_here = False

    def __exit__(self, *_: object) -> None:
        self.stop()


def engine_named(name: str, num_workers: int | None = None) -> Local | Ray:
    """The engine. num_workers: processes of the local one; None: as many as there are CPUs.

    Raises: BadInput, MissingDependency.
    """
    if name == "ray":
        return Ray()
    if name != "local":
        raise BadInput(f"engine {name!r} is unknown; choose local or ray")
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Local(num_workers if num_workers is not None else num_cpus)
