"""Becomes another program that ends with the server: python -m shoestring.serve.tuning.child PID PROGRAM...

Without threads of ours it may do what a forked server may not: hear Ctrl-C again, and ask to be ended with its parent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2), Linux
NICENESS = 5  # answers of the server go before training


def main(parent: int, command: list[str]) -> None:
    """Never returns."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.umask(0o077)
    os.nice(NICENESS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit("the server ended while this was started")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
