"""Commands on a host through the user's own OpenSSH client, one connection shared by all of them.

What `ssh HOST` needs (user, port, key, jump hosts) stands in ~/.ssh/config; $SHOESTRING_SSH replaces the program and
its options, as GIT_SSH_COMMAND does. Nothing asks for a password: where one would be needed, that is said.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from ..errors import BadInput, LaunchError
from ..secrets import without_secrets

LOST_CODE = 255  # of ssh itself, where there is no connection or it was lost
WAITS_S = (1.0, 3.0, 9.0, 27.0)
OPTIONS = (
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=15"),
    *("-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3", "-o", "ControlMaster=auto"),
)
# Of the path of a socket macOS takes 103 bytes; ssh puts behind the folder 41 (%C), and 17 while it makes it.
MAX_FOLDER_BYTES = 103 - 41 - 17
PERSIST_S = 60
END_S = 10.0  # for ssh to say why its stream ended
T = TypeVar("T")


class Lost(LaunchError):
    """No connection, or it was lost: what was asked may or may not have been done."""


class Host:
    """One host. pause: how waiting between tries is done."""

    def __init__(self, target: str, pause: Callable[[float], None] = time.sleep) -> None:
        """Raises: BadInput for what is no host's name."""
        if not target or target.startswith("-") or any(c.isspace() for c in target):
            raise BadInput(f"--on ssh:{target}: give the host as ssh takes it, such as ssh:me@gpu-host")
        self.target, self.pause = target, pause

    def command(self, remote: str) -> list[str]:
        """The command line here; remote is one line for the shell there."""
        program = shlex.split(os.environ.get("SHOESTRING_SSH", "").strip() or "ssh")
        control = ["-o", f"ControlPath={control_dir() / '%C'}", "-o", f"ControlPersist={PERSIST_S}"]
        return [*program, *OPTIONS, *control, "--", self.target, remote]

    def once(self, remote: str, data: bytes | IO[bytes] = b"") -> bytes:
        """Run it, with data on its standard input; its standard output. Raises: Lost, LaunchError with its words."""
        if not isinstance(data, bytes):
            data.seek(0)
        given: dict[str, Any] = {"input": data} if isinstance(data, bytes) else {"stdin": data}
        with tempfile.TemporaryFile() as errors:  # no pipe: the shared connection's process would hold it open
            try:
                done = subprocess.run(self.command(remote), stdout=subprocess.PIPE, stderr=errors, check=False, **given)
            except FileNotFoundError as error:
                raise BadInput(f"{error.filename} is not installed here; install the OpenSSH client") from error
            except OSError as error:
                raise LaunchError(f"ssh cannot be started: {error}") from error
            self._check(done.returncode, errors)
        return done.stdout

    def _check(self, code: int, errors: IO[bytes]) -> None:
        if code == 0:
            return
        errors.seek(0)
        lines = errors.read().decode("utf-8", "replace").strip().splitlines()
        said = without_secrets(lines[-1]) if lines else "no word from it"
        if code == LOST_CODE:
            raise Lost(f"{self.target} cannot be reached ({said}); does 'ssh {self.target}' work without a password?")
        raise LaunchError(f"{self.target}: {said} (exit code {code})")

    def again(self, remote: str, data: bytes = b"") -> bytes:
        """once, tried again where the connection was lost: for what may be done twice."""
        return self.persist(lambda: self.once(remote, data))

    def persist(self, work: Callable[[], T]) -> T:
        """Do what may be done twice, again where the connection was lost."""
        for wait_s in WAITS_S:
            try:
                return work()
            except Lost:
                self.pause(wait_s)
        return work()

    def save_to(self, remote: str, data: bytes, sink: Callable[[IO[bytes]], None]) -> None:
        """Run it and hand its standard output to sink as a stream."""
        with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as given:
            given.write(data)
            given.seek(0)
            process = subprocess.Popen(self.command(remote), stdin=given, stdout=subprocess.PIPE, stderr=errors)
            assert process.stdout is not None
            broke: Exception | None = None
            with process:
                try:
                    sink(process.stdout)
                except (OSError, tarfile.TarError) as error:  # a stream cut short: the exit code says why
                    broke = error
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(END_S)
                    process.kill()
            if broke is not None and process.returncode != LOST_CODE:
                raise LaunchError(f"what {self.target} sent cannot be written or read: {broke}") from broke
            self._check(process.returncode, errors)

    def lines(self, remote: Callable[[int], str]) -> Iterator[bytes]:
        """Lines of what remote(offset) prints; where the connection is lost, on from the offset that was reached.

        Raises: Lost where it cannot be had again.
        """
        offset, failed = 0, 0
        while True:
            with tempfile.TemporaryFile() as errors:
                process = subprocess.Popen(
                    self.command(remote(offset)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
                )
                assert process.stdout is not None
                try:
                    for line in process.stdout:
                        if line.endswith(b"\n"):
                            failed, offset = 0, offset + len(line)
                            yield line[:-1]
                finally:
                    process.stdout.close()
                    if process.poll() is None:
                        process.terminate()
                    process.wait()
                if process.returncode != LOST_CODE:
                    self._check(process.returncode, errors)
                    return
                if failed >= len(WAITS_S):
                    self._check(process.returncode, errors)
                self.pause(WAITS_S[failed])
                failed += 1


def control_dir() -> Path:
    """Where the shared connection's socket lies: short, and this user's alone."""
    places = (os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir(), tempfile.gettempdir(), "/tmp")
    folders = [Path(place) / f"shoestring-{os.getuid()}" for place in places]
    folder = next((folder for folder in folders if len(os.fsencode(folder)) <= MAX_FOLDER_BYTES), folders[-1])
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise LaunchError(f"{folder} is open to others, and the connections of ssh would lie there; remove it")
    return folder


class Python:
    """A Python on a host that has this program's files."""

    def __init__(self, host: Host, python: str, package: str) -> None:
        self.host, self.python, self.package = host, python, package

    def line(self, *arguments: str) -> str:
        """The agent's command line there."""
        words = [self.python, "-m", "shoestring.launch.agent", *arguments]
        return f"PYTHONPATH={shlex.quote(self.package)} {shlex.join(words)}"

    def ask(self, *arguments: str, given: Any = None) -> Any:
        """The agent's JSON answer. Raises: LaunchError."""
        data = b"" if given is None else json.dumps(given).encode()
        answer = self.host.again(self.line(*arguments), data)
        try:
            return json.loads(answer)
        except ValueError:
            shown = answer.decode("utf-8", "replace").strip()[:200]
            raise LaunchError(
                f"{self.host.target} answered {shown!r} where JSON was due; does its shell print something at login?"
            ) from None
