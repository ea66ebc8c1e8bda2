"""What a person sees while a stage works: a bar with time left on a terminal, else a line now and then.

Everything goes to standard error. Nothing is drawn for what is over within QUIET_S.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from ..live import Task
from ..records import NOTE
from ..units import duration

QUIET_S = 2.0  # shorter work is not worth a bar
LINE_EVERY_S = 10.0  # off a terminal, at first;
LINE_EVERY_FRAC = 0.05  # later after this share of the time a task has taken, so that hours do not fill a log
NUM_BARS = 2  # a stage and what it is doing inside


def line_of(task: Task, now_s: float) -> str:
    """The task in one line of plain text."""
    part = f"{task.done:,}" if task.total is None else f"{task.done:,}/{task.total:,}"
    left = task.left_s(now_s)
    time_s = f"about {duration(left)} left" if left else f"{duration(now_s - task.started_s)} so far"
    is_counted = task.total is not None or task.done > 0  # a conversion counts nothing
    return f"{task.label}: {', '.join([*([part] if is_counted else []), time_s, *([task.note] if task.note else [])])}"


class Screen:
    """Draws progress and log lines; used as a context manager so that a bar never outlives an error.

    A heartbeat writes the lines off a terminal, since a stage may be long between two calls
    (None: only the calls themselves do, for tests with a clock of their own).
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        heartbeat_s: float | None = 1.0,
    ) -> None:
        self.stream = stream or sys.stderr
        self.clock = clock
        self.is_live = self.stream.isatty() and os.environ.get("TERM", "") != "dumb"
        self._tasks: dict[str, Task] = {}
        self._last_line_s = clock()
        self._bars: Any = None
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._heartbeat_s = None if self.is_live else heartbeat_s

    def __enter__(self) -> Screen:
        if self._heartbeat_s is not None:
            threading.Thread(target=self._beat, args=(self._heartbeat_s,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        with self._lock:
            self._stop_bars()

    def progress(self, label: str, done: int, total: int | None) -> None:
        """The Progress that stages call."""
        label, _, note = label.partition(NOTE)
        with self._lock:
            now_s = self.clock()
            task = self._tasks.get(label)
            if task is None or done < task.done:  # new, or begun again
                self._drop(label)
                task = self._tasks[label] = Task(label, now_s, done, done, total, now_s)
            task.done, task.total, task.updated_s, task.note = done, total, now_s, note
            if self.is_live:
                self._draw(task)
            else:
                self._line()
            if total is not None and done >= total:
                self._drop(label)

    def _beat(self, every_s: float) -> None:
        while not self._ended.wait(every_s):
            with self._lock:
                self._line()

    def _line(self) -> None:
        """Write a line about the task last heard of, if it is time for one."""
        task = max(self._tasks.values(), key=lambda task: task.updated_s, default=None)
        if task is None or task.done == task.total:
            return
        now_s = self.clock()
        age_s = now_s - task.started_s
        if age_s >= QUIET_S and now_s - self._last_line_s >= max(LINE_EVERY_S, LINE_EVERY_FRAC * age_s):
            self._last_line_s = now_s
            self._write(line_of(task, now_s))

    def log(self, line: str) -> None:
        """A line that stays. It also ends the bars: the recipe logs between stages."""
        with self._lock:
            self._stop_bars()
            self._tasks.clear()
            self._last_line_s = self.clock()
            self._write(line)

    def _write(self, line: str) -> None:
        self.stream.write(line + "\n")
        self.stream.flush()

    def _drop(self, label: str) -> None:
        task = self._tasks.pop(label, None)
        if task is not None and task.bar is not None and self._bars is not None:
            self._bars.remove_task(task.bar)

    def _draw(self, task: Task) -> None:
        if self._bars is None:
            self._bars = _make_bars(self.stream)
            self._bars.start()
        if task.bar is None:
            task.bar = self._bars.add_task(task.label, total=task.total, completed=task.done)
            while len(self._tasks) > NUM_BARS:
                self._drop(min(self._tasks.values(), key=lambda other: other.updated_s).label)
        left = task.left_s(self.clock())
        words = [*([f"{duration(left)} left"] if left is not None else []), *([task.note] if task.note else [])]
        self._bars.update(task.bar, completed=task.done, total=task.total, left=", ".join(words))

    def _stop_bars(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            for task in self._tasks.values():
                task.bar = None


def _make_bars(stream: TextIO) -> Any:
    """rich's bars, erased when they end, showing only tasks older than QUIET_S."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    class LateBars(Progress):
        def get_renderables(self) -> Any:
            yield self.make_tasks_table([task for task in self.tasks if (task.elapsed or 0.0) >= QUIET_S])

    return LateBars(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        console=Console(file=stream, stderr=True),
        transient=True,
        refresh_per_second=4,
    )
