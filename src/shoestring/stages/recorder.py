"""How a stage is run once: its record is read back, or the work is done, entered in the ledger, and recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ..records import Estimate
from ..runfolder import fingerprint
from . import closing

if TYPE_CHECKING:
    from ..recipe import Run

T = TypeVar("T")


def print_of(run: Run, name: str, after: str | None, depends_on: Any) -> str:
    """Fingerprint of what the stage with record `name` is computed from."""
    return fingerprint(name, run.prints.get(after or ""), depends_on)


def once(
    run: Run,
    name: str,
    work: Callable[[], tuple[Any, T]],
    read: Callable[[Any], T],
    *,
    after: str | None,
    depends_on: Any,
    predicted: Mapping[str, Estimate] | None = None,
) -> T:
    """The value of the stage with record `name`.

    work() returns (JSON-ready result, value); read(result) gives the value back in a later session.
    Seconds that parts of the work entered in the ledger themselves are not entered again.
    The record counts while the fingerprint of `depends_on`, and of the stage `after` which it follows, is the same.
    """
    inputs_print = run.prints[name] = print_of(run, name, after, depends_on)
    finished = run.run_folder.finished(name, inputs_print)
    if finished is not None:
        return read(finished)
    if run.run_folder.record(name) is not None:
        run.log(f"{name}: the run file or the data changed; doing this stage again (superseded/ keeps the old)")
        run.run_folder.retract(name)
    if name != "export.json":
        run.run_folder.retract("ladder.json")
    run.log(f"{name.removesuffix('.json')} ...")
    started, num_entries = time.monotonic(), len(run.ledger.entries())
    result, value = work()
    wall_s = time.monotonic() - started
    in_parts_s = sum(entry["actual"].get("s", 0.0) for entry in run.ledger.entries()[num_entries:])
    closing.enter(run, name, predicted or {}, value, max(0.0, wall_s - in_parts_s), inputs_print)
    run.run_folder.finish(name, inputs_print, result, wall_s)
    return value
