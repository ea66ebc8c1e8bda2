"""Linear algebra on one thread."""

from __future__ import annotations

from contextlib import AbstractContextManager

from ...errors import require


def one_thread(purpose: str) -> AbstractContextManager[object]:
    """Same bytes on any number of cores, and no waiting for threads where cores are busy (measured: 4 s, not 100).

    Raises: MissingDependency without scikit-learn, which brings threadpoolctl.
    """
    require("sklearn", extra="linear", purpose=purpose)
    limits: AbstractContextManager[object] = require(
        "threadpoolctl", extra="linear", purpose=purpose
    ).threadpool_limits(1)
    return limits
