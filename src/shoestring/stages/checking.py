"""Every gate before training, for each rung, and no training: what `shoestring check` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import BadInput, ModelError, TrainingError
from ..records import RungPlan
from ..train.gates import REFUSE, Finding
from ..train.probe import examine
from ..train.setup import set_up
from .common import device, held_rows
from .preparing import read_again
from .retrieving import rows_for

if TYPE_CHECKING:
    from ..recipe import Run


def check(run: Run, rung: RungPlan) -> list[Finding]:
    """The findings for a planned rung; rows or a model that cannot be set up at all are one of them."""
    curated = rows_for(run, read_again(run), rung.model)
    try:
        with set_up(
            rung.model,
            curated.all_rows("train"),
            held_rows(run, curated, rung.settings),
            rung.settings,
            device(run),
        ) as ready:
            return examine(ready)
    except (TrainingError, ModelError, BadInput) as error:
        return [Finding("rung_can_be_set_up", REFUSE, str(error), "mend what it names, then check again")]
