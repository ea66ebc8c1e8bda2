"""A person's labels of a run's answers: whose answers, the session, and what the labels change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import BadInput
from ..evaluate.judge.labelling import Labelling
from ..evaluate.judge.labels import LABELS
from ..records import ArmScore
from .judging import config_of, recalibrate, recorded_arms
from .preparing import read_again

if TYPE_CHECKING:
    from ..recipe import Run


def open_session(run: Run, names: Sequence[str]) -> tuple[Labelling, list[str]]:
    """The session over some arms, by default the one the verdict is about, and the arms' names. Raises: BadInput."""
    config = config_of(run)
    if run.run_folder.record("curate.json") is None:
        raise BadInput(f"{run.folder}: no arm has answered yet; first: shoestring run {run.run_file or run.folder}")
    curated = read_again(run)
    chosen = _arms(run, recorded_arms(run, curated), names)
    examples = {example.id: example for example in curated.eval}
    session = Labelling(chosen, examples, config, run.folder / LABELS, run.config.seed)
    return session, [arm.arm for arm in chosen]


def _arms(run: Run, recorded: Sequence[ArmScore], names: Sequence[str]) -> list[ArmScore]:
    """The arms named; without names the one the verdict is about, else the best. Raises: BadInput."""
    arms = {arm.arm: arm for arm in recorded}
    if not arms:
        raise BadInput(f"{run.folder}: no arm has answered yet; first: shoestring run {run.folder}")
    unknown = [name for name in names if name not in arms]
    if unknown:
        raise BadInput(f"--arm {unknown[0]!r}: the run has {', '.join(map(repr, arms))}")
    if names:
        return [arms[name] for name in dict.fromkeys(names)]
    concluded = run.run_folder.record("ladder.json")
    best = max(arms.values(), key=lambda arm: arm.score.value)
    return [arms.get(str(concluded["result"]["arm"]), best) if concluded else best]


def take_in(run: Run) -> dict[str, ArmScore]:
    """Calibrate the records by the labels and write the report; judged arms by name.

    Raises: RunFolderError while another process works on the run.
    """
    with run.run_folder.locked():
        arms = {arm.arm: arm for arm in recalibrate(run)}
    run.write_report()
    return arms
