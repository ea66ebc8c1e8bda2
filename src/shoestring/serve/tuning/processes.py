"""Processes that carry jobs out: they end with the server, and their words go to the job's log."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..gateway.keys import ADMIN_VARIABLE, KEY_VARIABLE
from .jobs import LOG

OF_THE_SERVER = (KEY_VARIABLE, ADMIN_VARIABLE)  # variables that a run has no use for


def spawn(folder: Path, arguments: Sequence[str], stdout: int | None = None) -> subprocess.Popen[bytes]:
    """Python with these arguments in a job's folder; it ends with this process (Linux), in a group of its own.

    stdout: where it prints, the log where None.
    """
    package = str(Path(__file__).resolve().parents[3])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    kept = {name: value for name, value in os.environ.items() if name not in OF_THE_SERVER}
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "shoestring.serve.tuning.child", str(os.getpid()), sys.executable, *arguments],
            cwd=folder,
            env={**kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
            stdin=subprocess.DEVNULL,
            stdout=log if stdout is None else stdout,
            stderr=log,
            start_new_session=True,
        )


def send(process: subprocess.Popen[bytes], number: int) -> None:
    """A signal to a process and those it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
