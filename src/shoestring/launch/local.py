"""On this machine: a supervisor that outlives the terminal; a simulated spot machine for trying things out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..market.prices import price_for
from ..records import Estimate, Log, no_log
from ..secrets import to_hand_on
from ..train.device import present_device
from ..units import SECONDS_PER_HOUR
from . import jobs
from .backend import Order
from .needs import run_command, variables
from .preempt import spans_of
from .records import Billing, Expense, Launch, Quote, Status
from .register import registered

WORK, STARTS = "hours of work", "starts and work done again"
START_S = Estimate(15.0, 5.0, 90.0)  # libraries and weights from this machine's disk; two cores of an AMD EPYC: 9 s


class Local:
    """The backend of this machine."""

    can_start_again = True

    def __init__(self, name: str) -> None:
        self.name = name

    def is_configured(self) -> bool:
        return True

    def quote(self, order: Order) -> Quote:
        config = order.config
        given = order.options.get("usd_per_hour")
        price = price_for(present_device(config.train.num_threads), config.market).usd_per_hour
        price = price if given is None else given
        notes = () if order.work_s else ("how long it takes is not known: the models are not on this machine",)
        expenses = predicted(order, price, START_S)
        shown = " ".join(run_command(sys.executable, str(order.run_file), str(order.run_folder.parent)))
        return Quote("hour", price, expenses, shown, notes)

    def start(self, launch: Launch, log: Log = no_log) -> dict[str, Any]:
        needed, optional = variables_of(launch)
        environment = to_hand_on(needed, optional)
        command = run_command(sys.executable, launch.run_file, str(Path(launch.run_folder).parent))
        job = job_of(launch, command, str(Path(launch.run_file).parent), launch.run_folder, needed)
        beat = jobs.start(self._folder(launch), job, environment)
        return {"folder": str(self._folder(launch)), "pid": beat["pid"]}

    def status(self, launch: Launch) -> Status:
        told = jobs.status(self._folder(launch))
        if told["state"] == "lost" and not launch.handle and age_s(launch) < jobs.START_S:
            return Status("pending", note="it is being started")
        return status_of(launch, told)

    def logs(self, launch: Launch, follow: bool) -> Iterator[str]:
        for line in jobs.logs(self._folder(launch), follow):
            yield line.decode("utf-8", "replace")

    def stop(self, launch: Launch) -> Status:
        return status_of(launch, jobs.stop(self._folder(launch)))

    def fetch(self, launch: Launch, log: Log = no_log) -> None:
        """Nothing to bring: the run folder is here."""

    def billing(self) -> list[Billing]:
        known = {str(self._folder(launch).resolve()): launch for launch in registered() if launch.backend == self.name}
        found = []
        for folder in jobs.running():
            launch = known.get(str(folder.resolve()))
            since = launch.started_at if launch else None
            price = launch.price_usd_per_hour if launch else None
            stop = f"shoestring launch {launch.id} --stop" if launch else f"touch {folder / jobs.STOP}"
            found.append(Billing(self.name, str(folder), since, price, launch.id if launch else None, stop))
        return found

    @staticmethod
    def _folder(launch: Launch) -> Path:
        return Path(launch.run_folder) / "launches" / launch.id


def age_s(launch: Launch) -> float:
    """Seconds since it was asked for."""
    return (datetime.now(UTC) - datetime.fromisoformat(launch.started_at)).total_seconds()


# ---- what machines by the hour share --------------------------------------------------------


def variables_of(launch: Launch) -> tuple[list[str], list[str]]:
    """Names of the variables the run needs, and of those it takes."""
    from ..config import load_run_file

    return variables(load_run_file(launch.run_file), launch.options)


def predicted(order: Order, price_usd_per_hour: float, start_s: Estimate) -> tuple[Expense, ...]:
    """Work and starts, in seconds and dollars; nothing where the work is not known."""
    if order.work_s is None:
        return (Expense(WORK), Expense(STARTS))
    each = price_usd_per_hour / SECONDS_PER_HOUR
    num_starts, lost_s = 1, 0.0
    for start, end in spans(order.options) or ():
        if start > 0 and start < order.work_s.value:
            num_starts += 1
            lost_s += min(end - start, 60.0) / 2  # at most since the last checkpoint
    starts_s = start_s.scaled(num_starts)
    starts_s = Estimate(starts_s.value + lost_s, starts_s.low, starts_s.high + 2 * lost_s)
    return (
        Expense(WORK, order.work_s.scaled(each), predicted_s=order.work_s),
        Expense(STARTS, starts_s.scaled(each), predicted_s=starts_s),
    )


def spans(options: Mapping[str, Any]) -> Any:
    """When the simulated spot machine is there, None for always."""
    if not options.get("preempt"):
        return None
    return spans_of(options["preempt"], options.get("restart_delay_s", 5.0), options.get("trace_speed", 1.0))


def job_of(
    launch: Launch, command: Sequence[str], cwd: str, run_folder: str, secret_names: Sequence[str] = ()
) -> jobs.Job:
    """What the supervisor is to do."""
    options = launch.options
    work = [e.predicted_s for e in launch.predicted if e.item == WORK and e.predicted_s]
    return jobs.Job(
        id=launch.id,
        command=tuple(command),
        cwd=cwd,
        run_folder=run_folder,
        price_usd_per_hour=launch.price_usd_per_hour or 0.0,
        budget_usd=launch.budget_usd,
        limit_s=launch.limit_s,
        deadline_s=None if launch.deadline_h is None else launch.deadline_h * SECONDS_PER_HOUR,
        restart_delay_s=options.get("restart_delay_s", 5.0),
        available_s=spans(options),
        on_demand_usd_per_hour=options.get("on_demand_usd_per_hour"),
        work_s=work[0].high if work else None,
        restart_s=START_S.value,
        at_end=options.get("at_end", ""),
        secret_names=tuple(secret_names),
    )


def status_of(launch: Launch, told: Mapping[str, Any]) -> Status:
    """The status of a job as the contract has it, with its bill."""
    sessions = [jobs.Session(**session) for session in told.get("sessions", ())]
    job = job_of(launch, [], "", "")
    billed_s, useful_s = jobs.billed_s(sessions), min(told.get("useful_s") or 0.0, jobs.billed_s(sessions))
    billed_usd = jobs.billed_usd(sessions, job)
    share = useful_s / billed_s if billed_s else 0.0
    known = {expense.item: expense for expense in launch.predicted}

    def entry(item: str, seconds: float, frac: float) -> Expense:
        before = known.get(item, Expense(item))
        return Expense(item, before.predicted_usd, billed_usd * frac, before.predicted_s, seconds)

    bill = (entry(WORK, useful_s, share), entry(STARTS, billed_s - useful_s, 1.0 - share))
    return Status(told["state"], told.get("since"), told.get("note") or "", told.get("exit_code"), bill)
