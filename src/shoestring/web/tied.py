"""`python -m shoestring.web.tied ARGUMENTS`: shoestring ARGUMENTS, ended once what started it is gone.

The page holds the other end of standard input. However it ends, a kill included, that end closes.
"""

from __future__ import annotations

import os
import runpy
import signal
import threading


def _wait() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_wait, daemon=True).start()
    runpy.run_module("shoestring", run_name="__main__", alter_sys=True)
