"""How launches stand now, what they came to, and what bills although nobody looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import ShoestringError
from ..files import cannot_write
from ..ledger import LAUNCH_LEDGER, Ledger
from ..plan.hazard import Seen as Exposure
from ..plan.hazard import basis as hazard_basis
from ..secrets import without_secrets
from ..units import SECONDS_PER_HOUR
from . import register
from .backend import BACKENDS, backend
from .records import ENDED, Billing, Launch, Status


def refresh(launch: Launch, asks_for_lost: bool = True) -> tuple[Launch, Status]:
    """Ask the backend how a launch stands, and keep what it says; when it has ended its bill is entered, once.

    asks_for_lost: what was taken as lost may have been out of reach for a while.
    Raises: LaunchError where the backend cannot be asked.
    """
    is_over = launch.state in ENDED and launch.ended_at is not None
    if is_over and not (asks_for_lost and launch.state == "lost"):
        enter(launch)  # a client may have been killed before it did
        return launch, Status(launch.state, launch.ended_at, launch.note, launch.exit_code, launch.bill)
    return keep(launch, backend(launch.backend).status(launch))


def keep(launch: Launch, status: Status) -> tuple[Launch, Status]:
    """Write down how a launch was seen to stand. Raises: RunFolderError."""
    if not launch.handle:  # whoever starts it may have written the handle since it was read
        latest = next((other for other in register.registered() if other.id == launch.id), launch)
        launch = replace(launch, handle=latest.handle)
    status = replace(status, note=without_secrets(status.note))
    bill = status.bill or launch.bill
    ended_at = (status.since or register.now()) if status.state in ENDED else None
    seen = replace(
        launch,
        state=status.state,
        ended_at=ended_at,
        bill=bill,
        note=status.note,
        exit_code=status.exit_code,
        spot_seller=status.spot_seller,
        num_interruptions=status.num_interruptions,
    )
    if seen != launch:
        register.save(seen)
    if ended_at is not None:
        enter(seen)
    return seen, replace(status, bill=bill)


def billed_usd(folder: Path) -> float:
    """What the ended launches of a run came to."""
    return sum(entry["actual"].get("usd", 0.0) for entry in Ledger(folder / LAUNCH_LEDGER).entries())


def enter(launch: Launch) -> None:
    """Write the ledger lines of an ended launch, each expense once; what was lost and is found again, the difference.

    Raises: RunFolderError.
    """
    folder = Path(launch.run_folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".launches.lock"):
            ledger = Ledger(folder / LAUNCH_LEDGER)
            entered: dict[str, list[dict[str, Any]]] = {}
            for entry in ledger.entries():
                if entry.get("fingerprint") == launch.id:
                    entered.setdefault(entry["item"], []).append(entry)
            basis = {"backend": launch.backend, "target": launch.target, "state": launch.state}
            running_h = sum(e.actual_s or 0.0 for e in launch.bill) / SECONDS_PER_HOUR
            saw = Exposure(running_h, launch.num_interruptions)
            spot = hazard_basis(launch.spot_seller, saw) if launch.spot_seller else {}
            for number, expense in enumerate(launch.bill or launch.predicted):
                earlier = entered.get(expense.item, [])
                if any(entry["basis"]["state"] == launch.state for entry in earlier):
                    continue
                predicted = {"usd": expense.predicted_usd, "s": expense.predicted_s} if not earlier else {}
                ledger.record(
                    expense.item,
                    stage="launch",
                    predicted={k: v for k, v in predicted.items() if v is not None} or None,
                    actual={
                        key: None if value is None else value - sum(e["actual"].get(key, 0.0) for e in earlier)
                        for key, value in (("usd", expense.actual_usd), ("s", expense.actual_s))
                    },
                    price_usd_per_hour=launch.price_usd_per_hour,
                    fingerprint=launch.id,
                    basis=basis | (spot if number == 0 and not earlier else {}),
                )
    except OSError as error:
        if isinstance(error, ShoestringError):
            raise
        raise cannot_write(folder, error) from error


@dataclass(frozen=True, slots=True)
class Seen:
    """A launch and how it stands; trouble: why that could not be asked, the launch is then as last seen."""

    launch: Launch
    trouble: str = ""


def look(launches: list[Launch]) -> list[Seen]:
    """How each stands; those that have ended are not asked about again."""
    found = []
    for launch in launches:
        try:
            found.append(Seen(refresh(launch, asks_for_lost=False)[0]))
        except ShoestringError as error:
            found.append(Seen(launch, str(error)))
    return found


@dataclass(frozen=True, slots=True)
class Orphans:
    """What bills now, wherever we could ask; not_asked: backend and why."""

    billing: tuple[Billing, ...]
    not_asked: Mapping[str, str]


def orphans() -> Orphans:
    """Ask every backend that is configured what of ours bills there."""
    found: list[Billing] = []
    not_asked: dict[str, str] = {}
    for name in BACKENDS:
        try:
            place = backend(name)
            if place.is_configured():
                found += place.billing()
        except ShoestringError as error:
            not_asked[name] = without_secrets(str(error))
    damaged = register.damaged()
    if damaged:
        not_asked["register"] = (
            f"{', '.join(map(str, damaged))}: damaged, so what it started is not known; look at {register.LAUNCH_FILE} "
            "in its run folder and at the seller's page, then remove it"
        )
    return Orphans(tuple(found), not_asked)


def off_frac(launch: Launch) -> float | None:
    """(actual - predicted) / predicted dollars of an ended launch; seconds where it cost nothing; None if not known."""
    if launch.state != "done" or not launch.bill:
        return None
    for predicted_key, actual_key in (("predicted_usd", "actual_usd"), ("predicted_s", "actual_s")):
        pairs: list[tuple[Any, Any]] = [(getattr(e, predicted_key), getattr(e, actual_key)) for e in launch.bill]
        if all(p is not None and a is not None for p, a in pairs):
            predicted = sum(p.value for p, _ in pairs)
            if predicted > 0:
                return float(sum(a for _, a in pairs) / predicted - 1)
    return None
