"""What a run needs to be installed and able, asked before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadInput
from ..plan.engines import OURS, require_device, require_honoured
from ..train.engines.process import interpreter
from ..train.remote import Store
from ..train.tracking import require_trackers
from ..train.world import is_launched
from .common import device
from .judging import require_judge

if TYPE_CHECKING:
    from ..recipe import Run

NEEDS_NO_TRAINER = ("curate", "decide", "export")
NEEDS_NO_JUDGE = ("curate", "plan", "export")


def engine_python(run: Run) -> str:
    """train.engine_python, seen from the run file's folder; "" where it is left open."""
    given = run.config.train.engine_python
    return str(run.base_dir / Path(given).expanduser()) if given else ""


def require_tools(run: Run, until: str | None) -> None:
    """Trackers are installed, checkpoints have a place; the engine does what is asked, and is where it will be used.

    A judge is of another family than what it judges. Raises: ConfigError, BadInput, MissingDependency.
    """
    require_honoured(run.config)
    if until not in NEEDS_NO_JUDGE:
        require_judge(run)
    if is_launched():
        raise BadInput(
            "torchrun (or accelerate launch) started this program several times over, and each would run the whole "
            "recipe; call `shoestring run` once: it starts a process a GPU by itself (train.num_processes). Of the "
            "library train_rung alone is made for torchrun"
        )
    if until in NEEDS_NO_TRAINER:
        return
    require_trackers(run.config.train.trackers)
    if run.config.train.checkpoints:
        store = Store(run.config.train.checkpoints)
        if store.is_local and until != "plan":  # others are proven as training begins: a finished run needs no network
            store.prove()
    if run.config.engine == OURS:
        return
    require_device(run.config.engine, device(run).kind, device(run).name)
    interpreter(run.config.engine, engine_python(run))
