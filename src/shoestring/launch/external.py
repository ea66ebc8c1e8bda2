"""A launcher that is a program of its own: found in its environment or on the path, run, and its words taken."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LaunchError, MissingDependency
from ..secrets import without_secrets
from .records import ENDED
from .register import registered

LAST_LINES = 6
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # of programs that colour all the same


@dataclass(frozen=True, slots=True)
class Program:
    """key: of the section launch, the Python of its environment. Keys it needs it reads from our environment."""

    name: str
    key: str
    install: str

    def found(self, options: Mapping[str, Any]) -> str | None:
        """Its path: beside the Python that the run file names, else on the path."""
        python = options.get(self.key)
        if python:
            beside = Path(python).expanduser().parent / self.name
            return str(beside) if beside.is_file() else None
        return shutil.which(self.name)

    def options_seen(self, backend: str) -> Mapping[str, Any] | None:
        """Options by which it is found where no run file says them: of a registered launch; None where none went there.

        Nothing may bill unseen: where a launch went and the program is gone, the options are those of that launch,
        and path() says so.
        """
        went = [launch for launch in reversed(registered()) if launch.backend == backend]
        at_hand = [{}, *(launch.options for launch in went)]
        found = next((options for options in at_hand if self.found(options)), None)
        still = next((launch.options for launch in went if launch.state not in ENDED), None)
        return found if found is not None else still

    def path(self, options: Mapping[str, Any]) -> str:
        """Raises: MissingDependency with the install line."""
        found = self.found(options)
        if found is None:
            where = f"beside {options[self.key]}" if options.get(self.key) else "on PATH"
            raise MissingDependency(f"there is no program `{self.name}` {where}; install it: {self.install}")
        return found

    def run(self, options: Mapping[str, Any], words: Sequence[str]) -> str:
        """What it says. Raises: LaunchError with its last words, MissingDependency."""
        command = [self.path(options), *words]
        environment = {**os.environ, "NO_COLOR": "1"}
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
        if done.returncode:
            said = COLOURS.sub("", done.stderr + done.stdout)
            last = [line for line in said.splitlines() if line.strip()][-LAST_LINES:]
            told = without_secrets("\n".join(last))
            raise LaunchError(f"`{self.name} {' '.join(words[:2])}` failed with exit code {done.returncode}:\n{told}")
        return done.stdout + done.stderr

    def json(self, options: Mapping[str, Any], words: Sequence[str]) -> Any:
        """The JSON that it prints, after any lines of its own; None where it prints none. Raises: LaunchError."""
        told = self.run(options, words)
        start = re.search(r"^[\[{]", told, re.MULTILINE)
        if start is None:
            return None
        try:
            return json.JSONDecoder().raw_decode(told[start.start() :])[0]
        except json.JSONDecodeError as error:
            raise LaunchError(f"`{self.name} {' '.join(words)}` printed no JSON: {error}; {self.install}") from error

    def lines(self, options: Mapping[str, Any], words: Sequence[str]) -> Iterator[str]:
        """Its lines as they come."""
        command = [self.path(options), *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                yield line.rstrip("\n")
