"""The models of one or a few runs, answering beside the page: `shoestring serve` as a child that ends with it."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from ..errors import BadInput
from ..files import cannot_write
from ..launch.jobs import import_path
from ..serve.gateway.keys import ADMIN_VARIABLE, KEY_VARIABLE

IDLE_S = 600.0  # without a request, then memory is given back
LOOK_EVERY_S = 5.0
ANSWER_TIMEOUT_S = 300.0  # to the next piece of an answer
END_S = 10.0
MOST_SAID = 2000


@dataclass
class Child:
    """One server of models. told: what it printed once it was ready."""

    names: tuple[str, ...]
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    key: str
    told: dict[str, Any] | None = None
    error: str = ""  # as it printed it before it ended
    used_at: float = field(default_factory=time.monotonic)
    num_answering: int = 0
    listening: threading.Thread | None = None  # to what it prints

    @property
    def state(self) -> str:
        """starting, ready, or ended."""
        if self.process.poll() is not None:
            return "ended"
        return "ready" if self.told else "starting"

    def end_of_what_it_said(self) -> str:
        """Why it ended, in its words."""
        if self.listening is not None:
            self.listening.join(END_S)
        self.said.seek(0)
        text = self.said.read().decode("utf-8", "replace").strip()
        return (self.error or text)[-MOST_SAID:] or f"it ended with code {self.process.returncode}"


class ModelServer:
    """At most one child at a time: a machine has memory for one base."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self._child: Child | None = None
        self._lock = threading.Lock()
        self._watch: threading.Thread | None = None

    def child(self) -> Child | None:
        """What serves now, or served last."""
        with self._lock:
            return self._child

    def start(self, names: Sequence[str]) -> Child:
        """Serve these runs, instead of what is served now. Raises: RunFolderError."""
        wanted = tuple(dict.fromkeys(names))
        with self._lock:
            if self._child is not None and self._child.names == wanted and self._child.state != "ended":
                return self._child
            self._end()
            self._child = child = self._begin(wanted)
            if self._watch is None:
                self._watch = threading.Thread(target=self._end_when_idle, daemon=True)
                self._watch.start()
        child.listening = threading.Thread(target=_listen, args=(child,), daemon=True)
        child.listening.start()
        return child

    def stop(self) -> None:
        """End it and wait; nothing where there is none."""
        with self._lock:
            self._end()
            self._child = None

    def ask(self, body: dict[str, Any]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send a chat request of a model that is served; the caller reads the answer and calls done().

        Raises: BadInput where nothing serves, or the model is none of those served; OSError.
        """
        with self._lock:
            child = self._child
            if child is None or child.state != "ready" or child.told is None:
                raise BadInput("no model is loaded any more; load the models again")
            if body["model"] not in child.told["models"]:
                raise BadInput(f"{str(body['model'])[:80]!r} is none of {', '.join(child.told['models'])}")
            child.used_at = time.monotonic()
            child.num_answering += 1
        address = urlsplit(child.told["base_url"])
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=ANSWER_TIMEOUT_S)
        try:
            connection.request(
                "POST",
                f"{address.path}/chat/completions",
                json.dumps(body),
                {"Authorization": f"Bearer {child.key}", "Content-Type": "application/json"},
            )
            return connection, connection.getresponse()
        except BaseException:
            self.done(connection)
            raise

    def done(self, connection: http.client.HTTPConnection) -> None:
        """An answer ended, or nobody listens any more: the child is told by the closed connection."""
        connection.close()
        with self._lock:
            if self._child is not None:
                self._child.used_at = time.monotonic()
                self._child.num_answering = max(0, self._child.num_answering - 1)

    def _begin(self, names: tuple[str, ...]) -> Child:
        key = secrets.token_urlsafe(32)
        command = [
            sys.executable,
            "-m",
            "shoestring.web.tied",
            "serve",
            *(str((self.runs_dir / n).resolve()) for n in names),
        ]
        command += ["--runs-dir", str(self.runs_dir.resolve()), "--port", "0", "--json"]
        environment = {**os.environ, "PYTHONPATH": import_path(), KEY_VARIABLE: key}
        environment[ADMIN_VARIABLE] = secrets.token_urlsafe(32)
        said = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the child
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,
                env=environment,
            )
        except OSError as error:
            said.close()
            raise cannot_write(self.runs_dir, error) from error
        return Child(names, process, said, key)

    def _end(self) -> None:
        """With the lock held."""
        child = self._child
        if child is None:
            return
        assert child.process.stdin is not None and child.process.stdout is not None
        child.process.stdin.close()
        try:
            child.process.wait(END_S)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
        child.process.stdout.close()
        child.said.close()

    def _end_when_idle(self) -> None:
        while True:
            time.sleep(LOOK_EVERY_S)
            with self._lock:
                child = self._child
                is_idle = child is not None and not child.num_answering
                if child is not None and is_idle and time.monotonic() - child.used_at > IDLE_S:
                    self._end()
                    self._child = None


def _listen(child: Child) -> None:
    """Read the one object that it prints."""
    text = b""
    assert child.process.stdout is not None
    try:
        for line in child.process.stdout:
            text += line
            if line == b"}\n":
                printed = json.loads(text)
                if "error" in printed:
                    child.error = str(printed["error"]["message"])
                else:
                    child.used_at = time.monotonic()
                    child.told = printed
                return
    except ValueError:  # the pipe was closed, or it printed something else; its state and its words say so
        return
