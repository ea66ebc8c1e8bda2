"""A thread that does one job at a time, whose faults are never lost."""

from __future__ import annotations

import threading
from collections.abc import Callable

LEAVE_S = 2.0  # a second Ctrl-C waits so long for the thread to notice


class Background:
    """One job at a time in a thread of its own; its fault comes out at the next call."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Run job. Raises: the fault of the one before."""
        self.wait()

        def work() -> None:
            try:
                job()
            except BaseException as error:
                self._fault = error

        # A daemon: a process that must end does not wait, and what is not sealed does not count.
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raises: the fault of a job that is over."""
        if not self.is_busy:
            self.wait()

    def wait(self) -> None:
        """Until no job runs. Raises: its fault."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault

    def leave(self) -> None:
        """Ask the job to give up, and wait a little."""
        self.cancelled.set()
        if self._thread is not None:
            self._thread.join(LEAVE_S)
