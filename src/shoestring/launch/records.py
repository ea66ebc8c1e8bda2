"""What a launch is, how it stands and what it costs: frozen records that the backends share.

A launch is written whole to runs/NAME/launch.json and to the register of this user (launch/register.py) before
anything is started, so that it is found again whatever happens to the process that started it.
No record holds a secret: handles name things (a job id, a cluster), keys stay in the environment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..records import Estimate, summed

STATES = ("pending", "running", "interrupted", "done", "failed", "stopped", "lost")
# interrupted: its machine was taken and it goes on by itself; lost: nothing is known of it any more.
ENDED = ("done", "failed", "stopped", "lost")
BASES = ("hour", "job", "free")  # hour: a machine by the hour; job: a vendor's job; free: a machine that is there


@dataclass(frozen=True, slots=True)
class Expense:
    """One item of the bill: what was predicted before the start, what it came to (None: not known yet)."""

    item: str  # rented hours, restarts, storage, egress, managed job
    predicted_usd: Estimate | None = None
    actual_usd: float | None = None
    predicted_s: Estimate | None = None
    actual_s: float | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a run; `handle` is the backend's own: job id, cluster name, process with its start time."""

    id: str  # register.new_id: name, UTC time and a random tail; backends put it in the name or tag of all they start
    backend: str  # key of backend.BACKENDS
    target: str  # what follows the colon of --on: a host, a region, an address; empty where there is nothing to say
    run_file: str  # absolute
    run_folder: str  # absolute, on this machine
    started_at: str  # ISO 8601, UTC: when it was asked for
    basis: str  # one of BASES
    price_usd_per_hour: float | None  # of the machine; None where it is billed by the job
    budget_usd: float
    deadline_h: float | None  # from started_at
    limit_s: float | None  # billed seconds after which it is ended, whoever is watching; None: no such limit
    predicted: tuple[Expense, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)  # of the run file's section launch and of the command
    handle: dict[str, Any] = field(default_factory=dict)  # empty until start returned: status then finds it by id
    state: str = "pending"  # as last seen
    ended_at: str | None = None
    bill: tuple[Expense, ...] = ()  # as last seen
    note: str = ""
    exit_code: int | None = None
    spot_seller: str = ""
    num_interruptions: int = 0

    @property
    def predicted_usd(self) -> Estimate | None:
        """All predicted expenses; None where one of them is not known."""
        parts = [expense.predicted_usd for expense in self.predicted]
        return summed(*parts) if parts and None not in parts else None

    @property
    def cost_usd(self) -> float | None:
        """What it came to as last seen; None where one of the items is not known."""
        return total_usd(self.bill)


@dataclass(frozen=True, slots=True)
class Status:
    """How a launch stands."""

    state: str  # one of STATES
    since: str | None = None  # ISO 8601, UTC
    note: str = ""  # one line for a person: where it is, why it failed, what to do
    exit_code: int | None = None  # of `shoestring run`, where it ended and is known
    bill: tuple[Expense, ...] = ()  # so far
    spot_seller: str = ""  # whose real spot machines it ran on, as the table of terms calls it; plans learn from it
    num_interruptions: int = 0  # that these had

    @property
    def cost_usd(self) -> float | None:
        """Dollars so far; None where one of the items is not known."""
        return total_usd(self.bill)


@dataclass(frozen=True, slots=True)
class Quote:
    """What a launch would cost and do, before anything is spent."""

    basis: str  # one of BASES
    price_usd_per_hour: float | None
    expenses: tuple[Expense, ...]  # predicted_usd and predicted_s; predicted_usd None: nobody knows, and notes say why
    shown: str = ""  # what --dry-run prints: the YAML, the commands, the request
    notes: tuple[str, ...] = ()
    is_held_by_place: bool = False  # start holds the service's own estimate against the budget before it orders


@dataclass(frozen=True, slots=True)
class Billing:
    """Something that bills now, for the orphan check."""

    backend: str
    name: str  # as the backend calls it
    since: str | None
    usd_per_hour: float | None  # None: billed otherwise, or not known
    launch_id: str | None  # None: no launch of ours is known by its name
    stop: str  # the command that ends it


def total_usd(bill: tuple[Expense, ...]) -> float | None:
    """Sum of the actual dollars; None for no item or where one is not known."""
    parts = [expense.actual_usd for expense in bill]
    return math.fsum(part for part in parts if part is not None) if parts and None not in parts else None


def _expense(row: dict[str, Any]) -> Expense:
    spreads = {k: Estimate(**row[k]) if row.get(k) else None for k in ("predicted_usd", "predicted_s")}
    return Expense(**{**row, **spreads})


def launch_from_json(row: dict[str, Any]) -> Launch:
    """The inverse of records.to_json for a Launch; keys of a later version are passed over."""
    known = {name: row[name] for name in Launch.__dataclass_fields__ if name in row}
    lists = {key: tuple(map(_expense, row.get(key, ()))) for key in ("predicted", "bill")}
    return Launch(**{**known, **lists})
