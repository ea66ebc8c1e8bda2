"""Every gate before training, for each rung, and no training: what `shoestring check` prints."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, ModelError, TrainingError
from ..files import write_json
from ..records import RungPlan
from ..train.gates import REFUSE, Finding
from ..train.probe import examine
from ..train.setup import set_up
from ..train.shown import Shown, shown
from .common import device, held_rows
from .preparing import read_again
from .retrieving import rows_for

if TYPE_CHECKING:
    from ..recipe import Run

FILE = "check.json"
NUM_SHOWN = 3  # rows whose tokens are kept


@dataclass(frozen=True, slots=True)
class Checked:
    """One rung: its gates, and the first rows as the model would be given them (both sides of a pair)."""

    model: str
    findings: tuple[Finding, ...] = ()
    rows: tuple[Shown, ...] = ()
    wall_s: float = 0.0
    skipped: str = ""  # why it was not looked at


def check(run: Run, rung: RungPlan) -> Checked:
    """The findings for a planned rung; rows or a model that cannot be set up at all are one of them."""
    if rung.verdict == "does_not_fit":
        return Checked(rung.model, skipped=rung.reason)
    started = time.monotonic()
    curated = rows_for(run, read_again(run), rung.model)
    rows: tuple[Shown, ...] = ()
    try:
        with set_up(
            rung.model,
            curated.all_rows("train"),
            held_rows(run, curated, rung.settings),
            rung.settings,
            device(run),
        ) as ready:
            rows = tuple(shown(ready.tokenizer, side) for item in ready.learned.items[:NUM_SHOWN] for side in item)
            findings = tuple(examine(ready))
    except (TrainingError, ModelError, BadInput) as error:
        findings = (Finding("rung_can_be_set_up", REFUSE, str(error), "mend what it names, then check again"),)
    return Checked(rung.model, findings, rows, time.monotonic() - started)


def write_checked(run: Run, told: dict[str, Any]) -> None:
    """Keep in the run folder what `shoestring check --json` prints, with its time."""
    write_json(run.folder / FILE, {"at": datetime.now(UTC).isoformat(timespec="seconds"), **told})
