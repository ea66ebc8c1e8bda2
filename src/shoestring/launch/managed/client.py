"""The process boundary to a vendor's SDK: its worker is started, asked, and what it cannot do is explained.

Reads and uploads are made again where a failure may pass; a call that starts a job is made once and its failure handed
to the caller, who looks for the job before asking again.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import BadInput, LaunchError, MissingDependency
from ...records import Progress, no_progress
from ...secrets import without_secrets
from .vendors import Vendor, require_key

WORKER = Path(__file__).with_name("worker.py")
MAX_ATTEMPTS = 6
BACKOFF_S = 1.0  # doubles with each attempt
LONGEST_BACKOFF_S = 30.0
LONGEST_RETRY_AFTER_S = 300.0
TIMEOUT_S = 60.0  # of one request
MAY_PASS = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
REFUSED_FOR_NOW = 429  # nothing was done: asking again costs nothing twice
NO_LOGS = {"OPENAI_LOG": "", "TOGETHER_LOG": "", "FIREWORKS_LOG": ""}  # at debug level an SDK writes request headers
NEXT_STEPS: dict[int | str, str] = {
    400: "the message says what is refused; put it right in the run file and run the same command again",
    401: "check the key in the environment variable {key}",
    402: "check the account's balance on the service's page, then run the same command again",
    403: "check that the key in {key} may fine-tune, and that the model may be tuned",
    404: "check the model's name as the service has it (launch.managed.model), and the address ({address})",
    413: "the file is larger than the service takes; choose fewer rows (curate.max_train_rows)",
    422: "the message says what is refused; put it right in the run file and run the same command again",
    429: "wait, and run the same command again; nothing was started",
    "connection": "check the network and the address ({address}); it goes on from here",
    "timeout": "try again later, it goes on from here",
    "nonsense": "check the address ({address}): a web page or a proxy's login answered instead of the service, or the "
    "service changed its API since {package}",
    "sdk": "the SDK itself refuses this; put it right in the run file",
    "died": "its log says more: {log}",
}


class CallFailed(Exception):
    """One call failed. kind: status, connection, timeout, nonsense, sdk, missing, died."""

    def __init__(self, kind: str, message: str, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.message, self.status, self.retry_after_s = kind, message, status, retry_after_s

    @property
    def may_pass(self) -> bool:
        """Whether the same call may succeed later."""
        return self.status in MAY_PASS if self.kind == "status" else self.kind in ("connection", "timeout", "died")

    @property
    def is_unknown(self) -> bool:
        """Whether the call may have been carried out all the same."""
        if self.kind == "status":
            return self.status in MAY_PASS and self.status != REFUSED_FOR_NOW
        return self.kind in ("connection", "timeout", "nonsense", "died")


class Worker:
    """One SDK's process, kept as long as this one: several launches of it are asked about through one."""

    def __init__(self, python: str, sdk: str, log_file: Path) -> None:
        """Raises: BadInput where the program cannot be started."""
        self.lock, self.number, self.log_file = threading.Lock(), 0, log_file
        self.opened: tuple[str, ...] = ()  # what the SDK's client was made with
        self.version = ""
        try:
            with log_file.open("ab") as words:
                self.process = subprocess.Popen(
                    [python, "-I", str(WORKER), sdk],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=words,
                    text=True,
                    encoding="utf-8",
                    env={**os.environ, **NO_LOGS},
                    start_new_session=True,  # a terminal's Ctrl-C reaches this process alone
                )
        except OSError as error:
            raise BadInput(f"{python} cannot be started: {error.strerror}") from error

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self.process.poll() is None

    def call(self, op: str, progress: Progress, args: dict[str, Any]) -> Any:
        """One request and its answer. Raises: CallFailed."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.number += 1
        try:
            self.process.stdin.write(json.dumps({"id": self.number, "op": op, "args": args}) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise self._died() from None
        for line in self.process.stdout:
            reply = json.loads(line)
            if reply["id"] != self.number:
                continue  # the rest of a call that was given up
            if "progress" in reply:
                progress(op, *reply["progress"])
            elif "error" in reply:
                raise CallFailed(**reply["error"])
            else:
                return reply["result"]
        raise self._died()

    def _died(self) -> CallFailed:
        words = self.log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        return CallFailed("died", f"the SDK's process ended; its last words: {' / '.join(words) or '(none)'}")

    def end(self) -> None:
        """Let it end; it does so when nothing more can be asked."""
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


_WORKERS: dict[tuple[str, str], Worker] = {}


@atexit.register
def end_workers() -> None:
    """None outlives this process."""
    while _WORKERS:
        _WORKERS.popitem()[1].end()


class Client:
    """A vendor's SDK, asked through its process. pause: sleeps between attempts."""

    def __init__(
        self,
        vendor: Vendor,
        log_file: Path,
        *,
        base_url: str = "",
        python: str = "",
        pause: Callable[[float], None] = time.sleep,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        self.vendor, self.log_file, self.pause, self.max_attempts = vendor, log_file, pause, max_attempts
        self.base_url = base_url or vendor.base_url
        self.python = str(Path(python).expanduser()) if python else sys.executable

    # ---- calls

    def ask(self, op: str, progress: Progress = no_progress, **args: Any) -> Any:
        """A call that may be made again without harm. Raises: LaunchError."""
        for attempt in range(self.max_attempts):
            try:
                return self.once(op, progress, **args)
            except CallFailed as failure:
                if not failure.may_pass or attempt == self.max_attempts - 1:
                    raise self.told(failure, op, attempt + 1) from None
                self.wait(failure, attempt, op)
        raise AssertionError("the last attempt returns or raises")

    def wait(self, failure: CallFailed, attempt: int, op: str) -> None:
        """Before the next attempt: as long as the service asks, else longer each time. Raises: LaunchError."""
        asked_s = failure.retry_after_s or 0.0
        if asked_s > LONGEST_RETRY_AFTER_S:
            raise self.told(failure, op, attempt + 1) from None
        longest_s = min(LONGEST_BACKOFF_S, BACKOFF_S * 2**attempt)
        self.pause(max(asked_s, random.uniform(longest_s / 2, longest_s)))

    def once(self, op: str, progress: Progress = no_progress, **args: Any) -> Any:
        """One call, made once. Raises: CallFailed, MissingDependency, BadInput, and ConfigError without a key."""
        worker = self._worker()
        with worker.lock:
            self._open(worker)
            return worker.call(
                op, lambda label, done, total: progress(f"{label} {self.vendor.name}", done, total), args
            )

    def told(self, failure: CallFailed, op: str, num_attempts: int = 1) -> LaunchError:
        """The failure in words, with the next step."""
        where = f"{self.vendor.name} ({self.base_url}), {op.replace('_', ' ')}"
        what = f"HTTP {failure.status}: {failure.message}" if failure.status else failure.message
        if failure.retry_after_s and failure.retry_after_s > LONGEST_RETRY_AFTER_S:
            what += f"; it asks to wait {failure.retry_after_s:.0f} s, and {LONGEST_RETRY_AFTER_S:.0f} s are waited"
        tried = f" ({num_attempts} attempts)" if num_attempts > 1 else ""
        step = NEXT_STEPS.get(failure.status or failure.kind) or NEXT_STEPS["timeout"]
        step = step.format(
            key=self.vendor.key_env, address=self.base_url, package=self.vendor.package, log=self.log_file
        )
        return LaunchError(without_secrets(f"{where}: {what}{tried}; {step}"))

    # ---- the process

    def _worker(self) -> Worker:
        if not Path(self.python).is_file():
            raise BadInput(f"launch.managed.python {self.python!r} is no program: {self.environment_lines()}")
        place = (self.python, self.vendor.sdk)
        worker = _WORKERS.get(place)
        if worker is None or not worker.is_alive:
            if worker is not None:
                worker.end()
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            worker = _WORKERS[place] = Worker(self.python, self.vendor.sdk, self.log_file)
        return worker

    def _open(self, worker: Worker) -> None:
        """Have the SDK's client for this service, with the key as it is now; the pipe is read by nobody else."""
        require_key(self.vendor)
        key = os.environ[self.vendor.key_env].strip()
        account = os.environ[self.vendor.account_env].strip() if self.vendor.account_env else ""
        wanted = (self.base_url, key, account, str(self.log_file))
        if worker.opened != wanted:
            args = {"base_url": self.base_url, "api_key": key, "account": account, "timeout_s": TIMEOUT_S}
            worker.opened = ()
            try:
                self.log_file.parent.mkdir(parents=True, exist_ok=True)
                opened = worker.call("open", no_progress, {**args, "log_file": str(self.log_file)})
            except CallFailed as failure:
                if failure.kind != "missing":
                    raise
                raise MissingDependency(
                    f"{self.vendor.name} needs {self.vendor.package}, which {self.python} does not have "
                    f"({failure.message}); {self.environment_lines()}"
                ) from None
            worker.opened, worker.version, worker.log_file = wanted, opened["version"], self.log_file

    def sdk_words(self) -> str:
        """The SDK and its version. Raises: LaunchError, and as once."""
        worker = self._worker()
        with worker.lock:
            try:
                self._open(worker)
            except CallFailed as failure:
                raise self.told(failure, "open") from None
        return f"{self.vendor.sdk} {worker.version}"

    def environment_lines(self) -> str:
        """How to make the environment of the SDK."""
        return (
            f"make an environment for it: python3 -m venv ~/vendor-sdk && ~/vendor-sdk/bin/pip install "
            f"'{self.vendor.package}' zstandard, and set launch: {{managed: {{python: ~/vendor-sdk/bin/python}}}}"
        )
