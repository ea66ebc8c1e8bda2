"""Where an interrupted training goes on: the newest whole checkpoint, in the run folder or in the second place."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..records import Log
from . import checkpoint
from .adapter import is_whole
from .remote import Store, fetch_newer
from .watch import Watched, restart_steps, weights_of


def open_store(url: str, out_dir: Path) -> Store | None:
    """The second place for this rung's checkpoints, proven to be writable; None where none is asked for.

    Raises: MissingDependency, BadInput.
    """
    if not url:
        return None
    parts = out_dir.absolute().parts
    store = Store(url).under(*(parts[-3:] if parts[-2] == "rungs" else parts[-1:]))  # RUN/rungs/MODEL
    store.prove()
    return store


def find_checkpoint(out_dir: Path, print_: str, store: Store | None, log: Log) -> tuple[Path | None, Watched, str]:
    """The checkpoint to continue from, the state in it, and why an older training here was given up ('' if none)."""
    resume = checkpoint.newest_intact(out_dir / "checkpoints", log)
    state = Watched.from_json(checkpoint.read_state(resume)) if resume else Watched(print_)
    restarted, paid_s, lost_s = "", state.wall_s, 0.0
    best = out_dir / "best" / f"step-{state.best_step}"
    if state.fingerprint != print_:
        restarted = "model, rows or settings differ from those of the checkpoints found here, so training began anew"
    elif state.best_sha256 and not is_whole(best, {weights_of(best): state.best_sha256}):
        restarted = f"{best} is missing or damaged, so training began anew"
    if restarted:
        for name in ("checkpoints", "best"):
            shutil.rmtree(out_dir / name, ignore_errors=True)
        lost_s = restart_steps(out_dir, 0)
        if state.fingerprint != print_:
            paid_s = lost_s = 0.0
        resume, state = None, Watched(print_)
    found = fetch_newer(store, out_dir, resume, log) if store else None
    if found:
        resume, state, restarted = found, Watched.from_json(checkpoint.read_state(found)), ""
    if restarted:
        log(restarted)
    elif resume and not found:
        log(f"{out_dir.name}: training goes on from the checkpoint of step {checkpoint.step_of(resume)}")
    lost_s = max(lost_s, restart_steps(out_dir, checkpoint.step_of(resume) if resume else 0))
    state.wall_s = max(state.wall_s, paid_s, lost_s)
    return resume, state, restarted
