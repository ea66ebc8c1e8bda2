"""Where words go: results to standard output, everything else to standard error.

With --json, file descriptor 1 is pointed at standard error while the command works, so that neither
a library nor a C extension can spoil the one JSON object printed at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from ..errors import RunFolderError

_saved_stdout: int | None = None


@contextlib.contextmanager
def only_json(wanted: bool) -> Iterator[None]:
    """Keep standard output free for emit() while the block runs."""
    global _saved_stdout
    if not wanted:
        yield
        return
    sys.stdout.flush()
    _saved_stdout = os.dup(1)
    stdout = sys.stdout
    try:
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        yield
    finally:
        sys.stdout = stdout
        os.dup2(_saved_stdout, 1)
        os.close(_saved_stdout)
        _saved_stdout = None


def emit(value: Any) -> None:
    """Print value as one JSON object on the real standard output."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    data = text.encode("utf-8", "replace")
    descriptor = 1 if _saved_stdout is None else _saved_stdout
    if _saved_stdout is None:
        sys.stdout.flush()
    while data:
        data = data[os.write(descriptor, data) :]


def end_stdout() -> None:
    """After emit() in a command that goes on: whoever reads the object sees the end of the file, and need not wait."""
    if _saved_stdout is not None:
        os.dup2(2, _saved_stdout)


@contextlib.contextmanager
def written_to_out() -> Iterator[None]:
    """A place that cannot be written was chosen with --out here, not with --runs-dir as for a run."""
    try:
        yield
    except RunFolderError as error:
        raise RunFolderError(str(error).replace("--runs-dir", "--out")) from error


def say(text: str = "") -> None:
    """A line of the result, on standard output."""
    print(text)


def warn(text: str) -> None:
    """A line of comment, on standard error."""
    print(text, file=sys.stderr, flush=True)
