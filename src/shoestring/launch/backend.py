"""What every place a run can be launched at offers, and the table of those places; each loads when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..config import RunConfig
from ..errors import BadInput
from ..records import Estimate, Log, no_log
from .records import Billing, Launch, Quote, Status

# --on NAME or NAME:TARGET -> module and class below shoestring.launch; the class is called with its NAME.
BACKENDS: dict[str, str] = {
    "local": "local:Local",
    "ssh": "ssh:Ssh",
    **dict.fromkeys(("together", "fireworks", "nebius", "openai", "openai-compatible"), "managed.backend:Managed"),
    "skypilot": "skypilot:SkyPilot",
    "dstack": "dstack:Dstack",
}


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be launched, before it is decided."""

    config: RunConfig
    run_file: Path  # absolute; paths inside it are relative to its folder
    run_folder: Path  # absolute
    target: str  # what follows the colon of --on
    budget_usd: float
    deadline_h: float | None
    work_s: Estimate | None  # machine time that plan predicts, on the machine of offer or on this one; None: unknown
    offer: Mapping[str, Any] | None = None  # the option of choice.json that plan picked among machines for rent
    offers: Sequence[Mapping[str, Any]] = ()  # all options of choice.json, cheapest first
    options: Mapping[str, Any] = field(default_factory=dict)  # section launch of the run file, and the command's own


class Backend(Protocol):
    """One place. Nothing here prints; what goes wrong is a ShoestringError that says the next step.

    start is called once, after the Launch is on disk with an empty handle; where its outcome is unknown (killed,
    connection lost) status(launch) with that empty handle finds by launch.id what there is, and does not start again.
    """

    can_start_again: bool  # start may be called again after a kill: it goes on, and nothing is started or paid twice

    def is_configured(self) -> bool:
        """Whether the orphan check can and should ask here: program or key at hand. Quick, no network."""
        ...

    def quote(self, order: Order) -> Quote:
        """What it would cost and do; spends nothing. Raises: BadInput where it cannot be launched here."""
        ...

    def start(self, launch: Launch, log: Log = no_log) -> dict[str, Any]:
        """Start it and return the handle. Raises: LaunchError."""
        ...

    def status(self, launch: Launch) -> Status:
        """How it stands now, and its bill so far. state 'lost' where it cannot be found; raises where not reachable."""
        ...

    def logs(self, launch: Launch, follow: bool) -> Iterator[str]:
        """Lines of its output, from the beginning; under follow until it ends. Secrets are blanked by the caller."""
        ...

    def stop(self, launch: Launch) -> Status:
        """End it so that nothing bills any more; checkpoints stay where they are. Ending it twice is no error."""
        ...

    def fetch(self, launch: Launch, log: Log = no_log) -> None:
        """Bring results to launch.run_folder; again after an interruption, only what is missing."""
        ...

    def billing(self) -> list[Billing]:
        """Everything of ours that bills there now, known to a run folder or not. Raises: LaunchError if not askable."""
        ...


def backend(name: str) -> Backend:
    """The backend of a name in BACKENDS. Raises: BadInput naming those there are."""
    if name not in BACKENDS:
        raise BadInput(f"--on {name}: there is no such place; choose one of {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    made: Backend = getattr(importlib.import_module(f".{module}", __package__), attribute)(name)
    return made


def parse_place(on: str) -> tuple[str, str]:
    """'ssh:user@host' -> ('ssh', 'user@host'); 'skypilot' -> ('skypilot', '')."""
    name, _, target = on.partition(":")
    return name, target
