"""A vendor's training as a place to launch at: what a launch asks of every place, answered by the vendor's API."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...config import RunConfig, load_run_file
from ...errors import BadInput, BudgetStopped, LaunchError
from ...records import Estimate, Log, Progress, no_log, no_progress
from ...secrets import without_secrets
from ...train.locate import with_folders
from .. import records, register
from ..backend import Order
from ..records import Billing, Expense, Launch, Quote, Status
from . import fetching
from .client import CallFailed, Client
from .data import write_rows
from .dialect import TAG_START, Seen, event_lines, request_of, seen
from .flow import Flow, curated_in, jobs_of
from .journal import FOLDER, Journal, tag_of
from .vendors import has_key, require_key, vendor_of
from .wanted import ITEM, address_of, base_of, choices, counted_tokens, priced, wanted_of

PYTHON_ENV = "SHOESTRING_VENDOR_PYTHON"
POLL_S = 20.0
TELL_NO_COST = "what it cost is not stated by the service; see its billing page"


def python_of(options: Mapping[str, Any]) -> str:
    """The Python that has the SDKs: the run file's, the environment's, that of `make environments`, or this one."""
    made = Path(sys.prefix) / "vendors" / "bin" / "python"
    return choices(options).get("python") or os.environ.get(PYTHON_ENV, "") or (str(made) if made.is_file() else "")


class Managed:
    """One vendor. start may be called again after a kill: it goes on, and orders one job."""

    can_start_again = True
    needs_rows = True

    def __init__(self, name: str, pause: Callable[[float], None] = time.sleep) -> None:
        self.vendor, self.pause = vendor_of(name), pause

    def is_configured(self) -> bool:
        """Whether there is a key, an address and an SDK to ask with, or a launch that has not ended."""
        has_sdk = bool(python_of({})) or importlib.util.find_spec(self.vendor.sdk) is not None
        has_own = any(launch.state not in records.ENDED for launch in self._launches())
        return has_own or (has_key(self.vendor) and bool(self.vendor.base_url) and has_sdk)

    def _launches(self) -> list[Launch]:
        return [launch for launch in register.registered() if launch.backend == self.vendor.name]

    # ---- before

    def quote(self, order: Order) -> Quote:
        """By the dated rates and the rows; asks nobody. Raises: DataError, BadInput."""
        vendor = self.vendor
        address = address_of(vendor, order.target, order.options)
        curated = curated_in(order.run_folder)
        wanted = wanted_of(vendor, order.config, order.run_folder, order.options)
        rows = write_rows(vendor, curated.train, wanted.objective, order.run_folder / FOLDER)
        request = request_of(vendor, wanted, f"{TAG_START}...", rows.name, None)
        given = choices(order.options).get("usd_per_million_train_tokens")
        counted = counted_tokens(order.run_folder, base_of(order.config))
        price = priced(vendor, wanted, rows, counted, given)
        notes = [*price.notes]
        if vendor.sdk == "together":
            notes.append("the service estimates the price of the uploaded file; that is held against the budget")
        return Quote(
            basis="job",
            price_usd_per_hour=None,
            expenses=(price.expense(),),
            shown=f"POST to {address}\n{json.dumps(request, indent=2, ensure_ascii=False)}",
            notes=tuple(notes),
            is_held_by_place=vendor.sdk == "together",
        )

    # ---- the job

    def start(self, launch: Launch, log: Log = no_log, progress: Progress = no_progress) -> dict[str, Any]:
        """Check, upload, estimate, order; goes on where an earlier call stopped. Raises: what a step refuses."""
        journal = self._journal(launch)
        if journal.get("is_stopped"):
            raise BadInput(f"launch {launch.id} was stopped before the job was ordered; launch it anew")
        try:
            require_key(self.vendor)
            flow = Flow(launch, self._config(launch), self.vendor, self._client(launch), journal, log, progress)
            job_id = flow.begin()
        except (BadInput, BudgetStopped) as error:
            if not journal["intents"]:
                journal.write(refused=without_secrets(str(error)))
                raise
            raise LaunchError(f"{error}. The job may be ordered already: put that right, and go on with it") from error
        return {"vendor": self.vendor.name, "job_id": job_id, "tag": journal["tag"], "base_url": journal["base_url"]}

    def status(self, launch: Launch) -> Status:
        """As the service says it now."""
        journal = self._journal(launch)
        if not journal.get("job_id") and not journal["intents"]:
            if journal.get("is_stopped"):
                return Status("stopped", note="nothing was ordered", bill=self._bill(journal, 0.0))
            if journal.get("refused"):
                note = f"nothing was ordered: {journal['refused']}"
                return Status("failed", note=note, bill=self._bill(journal, 0.0))
            return Status("pending", note=f"not ordered yet: shoestring launch {launch.id} --attach goes on with it")
        client = self._client(launch)
        if not journal.get("job_id"):
            found = jobs_of(client, journal["tag"])
            if not found:
                return Status(
                    "pending", note=f"no job with its tag yet: shoestring launch {launch.id} --attach goes on with it"
                )
            journal.write(job_id=self._seen(journal, found[0]).id)
        try:
            job = self._look(client, journal)
        except CallFailed as failure:
            if failure.status == 404:
                return Status("lost", note=f"{self.vendor.name} has no job {journal['job_id']} any more")
            raise client.told(failure, "job") from None
        return self._status(journal, job)

    def logs(self, launch: Launch, follow: bool) -> Iterator[str]:
        """The job's events and the states it goes through; under follow until it ends."""
        told, last = 0, ""
        while True:
            journal = self._journal(launch)
            if not journal.get("job_id"):
                return
            client = self._client(launch)
            job = self._seen(journal, client.ask("job", job_id=journal["job_id"]))
            lines = event_lines(client.ask("events", job_id=journal["job_id"]))
            yield from lines[told:]
            told = max(told, len(lines))
            line = self._words(job)
            if line != last:
                yield line
            last = line
            if not follow or job.state in records.ENDED:
                return
            self.pause(POLL_S)

    def stop(self, launch: Launch) -> Status:
        """Cancel the job. Raises: LaunchError where that cannot be told."""
        journal = self._journal(launch)
        if not journal.get("job_id") and not journal["intents"]:
            with journal.locked():  # else whoever starts it now would order it all the same
                if not journal.get("job_id") and not journal["intents"]:
                    journal.write(is_stopped=True)
                    return self.status(launch)
        client = self._client(launch)
        if not journal.get("job_id"):
            found = Flow(launch, self._config(launch), self.vendor, client, journal).find()
            if found is None:
                journal.write(is_stopped=True)
                return Status("stopped", note=f"no job with tag {journal['tag']} is there", bill=self._bill(journal))
            journal.write(job_id=self._seen(journal, found).id)
        try:
            return self._status(journal, self._cancelled(client, journal))
        except CallFailed as failure:
            raise client.told(failure, "job") from None

    def fetch(self, launch: Launch, log: Log = no_log, progress: Progress = no_progress) -> None:
        """Bring the result of a job that is done. Raises: LaunchError."""
        journal, config = self._journal(launch), self._config(launch)
        if not journal.get("job_id"):
            log(f"launch {launch.id}: no job was ordered, there is nothing to bring")
            return
        client = self._client(launch)
        job = self._seen(journal, client.ask("job", job_id=journal["job_id"]))
        if job.state != "done":
            log(f"{self.vendor.name}: job {job.id} is {job.said}, there is nothing to bring")
            return
        fetching.fetch(launch, config, self.vendor, client, journal, job, log, progress)

    def billing(self) -> list[Billing]:
        """Jobs of ours that have not ended. Raises: LaunchError."""
        pythons = {self.vendor.base_url: python_of({})} if self.vendor.base_url and has_key(self.vendor) else {}
        for launch in self._launches():
            pythons[address_of(self.vendor, launch.target, launch.options)] = python_of(launch.options)
        jobs: dict[str, Seen] = {}
        with tempfile.TemporaryDirectory(prefix="shoestring-") as folder:
            for address, python in pythons.items():
                log_file = Path(folder) / "sdk.log"
                client = Client(
                    self.vendor, log_file, base_url=address, python=python, pause=self.pause, max_attempts=2
                )
                jobs |= {job.id: job for job in (seen(self.vendor, raw, None) for raw in jobs_of(client, TAG_START))}
        ours = {tag_of(launch.id): launch.id for launch in register.registered()}
        return [
            Billing(
                backend=self.vendor.name,
                name=job.id,
                since=job.created_at,
                usd_per_hour=None,
                launch_id=ours.get(job.tag),
                stop=f"shoestring launch {ours[job.tag]} --stop"
                if job.tag in ours
                else f"cancel job {job.id} on {self.vendor.name}'s own page",
            )
            for job in jobs.values()
            if job.state not in records.ENDED
        ]

    # ---- parts

    def _config(self, launch: Launch) -> RunConfig:
        return with_folders(load_run_file(launch.run_file), Path(launch.run_file).parent)

    def _journal(self, launch: Launch) -> Journal:
        return Journal(Path(launch.run_folder), launch.id)

    def _client(self, launch: Launch) -> Client:
        return Client(
            self.vendor,
            self._journal(launch).folder / "sdk.log",
            base_url=address_of(self.vendor, launch.target, launch.options),
            python=python_of(launch.options),
            pause=self.pause,
        )

    def _seen(self, journal: Journal, raw: dict[str, Any]) -> Seen:
        return seen(self.vendor, raw, journal.get("usd_per_million_train_tokens"))

    def _look(self, client: Client, journal: Journal) -> Seen:
        """The job now; of jobs that a lost answer made twice, the later ones are cancelled. Raises: CallFailed."""
        if len(journal["intents"]) > 1 and not journal.get("is_single"):
            for raw in jobs_of(client, journal["tag"]):
                other = self._seen(journal, raw)
                if other.id != journal["job_id"] and other.state not in records.ENDED:
                    client.ask("cancel", job_id=other.id)
        for attempt in range(2):
            try:
                return self._seen(journal, client.once("job", job_id=journal["job_id"]))
            except CallFailed as failure:
                if not failure.may_pass or attempt:
                    raise
                client.wait(failure, attempt, "job")
        raise AssertionError("the last attempt returns or raises")

    def _cancelled(self, client: Client, journal: Journal) -> Seen:
        """The job, after it was asked to end. Raises: CallFailed, LaunchError."""
        job = self._look(client, journal)
        if job.state in records.ENDED:
            return job
        try:
            client.once("cancel", job_id=job.id)
        except CallFailed as failure:
            job = self._look(client, journal)
            if job.state not in records.ENDED:  # it did not just end by itself
                raise client.told(failure, "cancel") from None
        return self._look(client, journal)

    def _status(self, journal: Journal, job: Seen) -> Status:
        notes = [self._words(job)]
        if job.state in records.ENDED and job.usd is None:
            notes.append(TELL_NO_COST)
        if job.state in records.ENDED and not journal.get("is_single"):
            journal.write(is_single=True)
        since = job.ended_at if job.state in records.ENDED else job.created_at
        return Status(job.state, since=since, note="; ".join(notes), bill=self._bill(journal, job.usd))

    def _words(self, job: Seen) -> str:
        """State, progress and reason in one line."""
        done = f" {job.done_frac:.0%}" if job.done_frac is not None and job.state == "running" else ""
        return f"{self.vendor.name} job {job.id}: {job.said}{done}{f': {job.reason}' if job.reason else ''}"

    def _bill(self, journal: Journal, actual_usd: float | None = None) -> tuple[Expense, ...]:
        spread = journal.get("predicted_usd")
        predicted = Estimate(**spread) if spread else None
        return (Expense(ITEM, predicted_usd=predicted, actual_usd=actual_usd),)
