"""One process of a group: meets the others, does its part of the job, and says how it ended (see processes.py)."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from ..errors import ShoestringError
from . import world
from .watch import Signals

# What gloo and NCCL say in the other processes where one is gone.
CUT_OFF = ("Connection closed by peer", "Connection reset", "Broken pipe", "NCCL", "Gloo", "Socket")


def main() -> None:
    """Entry point: file descriptors of the link to the caller, and of the pipe that ends with the caller."""
    link, life = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()
    with Signals().listening():  # until training listens itself
        _take_part(link)
    link.close()


def _end_with(life: int) -> None:
    """Nobody is left to train for: end at once, whatever the other threads are doing."""
    os.read(life, 1)
    os._exit(1)


def _take_part(link: Connection) -> None:
    meeting = link.recv()
    rank = meeting["rank"]
    joined: world.World | None = None
    try:
        job = pickle.loads(link.recv_bytes())
        with world.joined(**meeting) as joined:
            joined.num_shrunk = job["num_shrunk"]
            hooks = {name: _hook(link, name) if rank == 0 else _nothing for name in job["hooks"]}
            result = job["function"](**job["arguments"], **hooks)
            # Before anything is taken down that another still needs.
            joined.of_all(None)
            link.send(("done", result if rank == 0 else None))
    except ShoestringError as error:
        link.send(("left" if joined is not None and joined.is_left else "raised", error))
    except Exception as error:  # whatever it was, the caller must hear of it
        traceback.print_exc()
        link.send((_kind_of(error), _last_line(error)))


def _kind_of(error: Exception) -> str:
    from .memory_policy import is_out_of_memory

    if is_out_of_memory(error):
        return "memory"
    lost = isinstance(error, RuntimeError) and any(words in str(error) for words in CUT_OFF)
    return "cut_off" if lost else "failed"


def _last_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _hook(link: Connection, name: str) -> Callable[..., Any]:
    """Asks the caller, and waits for the answer."""

    def called(*args: Any) -> Any:
        link.send(("hook", name, args))
        return link.recv()

    return called


def _nothing(*args: Any) -> None:
    """A hook in any other process than the first."""
