"""From rows to a running job, each step once: check, upload, estimate, hold against the budget, create.

A job costs money when it is created, so the intent is on disk before the call. Where the answer is lost (a dropped
connection, a kill), the service's list is searched for the tag before anything is created again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...config import RunConfig
from ...data.store import RECEIPT, read_curated
from ...errors import BadInput, BudgetStopped, DataError, LaunchError
from ...files import read_json
from ...records import Curated, Log, Progress, no_log, no_progress
from ...units import usd
from ..records import Launch
from .client import MAX_ATTEMPTS, CallFailed, Client
from .data import Rows, check_lengths, write_rows
from .dialect import Wanted, estimate_request, file_id_of, file_state, job_id_of, left_out, request_of
from .journal import Journal, now
from .vendors import Vendor
from .wanted import base_of, choices, counted_tokens, priced, wanted_of

FIND_WAITS_S = (0.0, 5.0, 15.0, 30.0)  # a list may lag behind what was created
FILE_WAIT_S, MAX_FILE_WAITS = 5.0, 240  # the service reads the file through before it says what training costs
UNKNOWN_RATE = (
    "launch: {{managed: {{usd_per_million_train_tokens: N}}}}, from {name}'s price page: without it the job cannot be "
    "held against the budget of {budget}"
)


def curated_in(run_folder: Path) -> Curated:
    """The rows of the run. Raises: DataError where it is not curated yet."""
    if not (run_folder / "data" / RECEIPT).is_file():
        raise DataError(f"{run_folder}: its data is not curated yet; run: shoestring plan RUN_FILE")
    return read_curated(run_folder / "data")


def data_print(run_folder: Path) -> str:
    """What the training rows are, by the receipt's hashes: a result belongs to them."""
    sums = read_json(run_folder / "data" / RECEIPT)["sha256"]
    return str(sums["train.jsonl"])


class Flow:
    """One job being started."""

    def __init__(
        self,
        launch: Launch,
        config: RunConfig,
        vendor: Vendor,
        client: Client,
        journal: Journal,
        log: Log = no_log,
        progress: Progress = no_progress,
    ) -> None:
        self.launch, self.config, self.vendor, self.client, self.journal = launch, config, vendor, client, journal
        self.log, self.progress = log, progress
        self.run_folder = Path(launch.run_folder)

    def begin(self) -> str:
        """The job's id; started if it is not. Raises: what a step refuses, with nothing started."""
        with self.journal.locked():
            # Whatever was changed since: a job that was ordered already is the one.
            if self.journal["intents"] and not self.journal.get("job_id"):
                found = self.find()
                if found is not None:
                    self._is_ours(found, "found again")
            if not self.journal.get("job_id"):
                wanted, training, validation = self.rows()
                self.upload("training", training)
                if validation:
                    self.upload("validation", validation)
                self.estimate(wanted, training, validation)
                self.create(wanted)
            return str(self.journal["job_id"])

    # ---- steps

    def rows(self) -> tuple[Wanted, Rows, Rows | None]:
        """Files as the service takes them, and what is asked for. Raises: DataError, BadInput."""
        vendor, options = self.vendor, self.launch.options
        curated = curated_in(self.run_folder)
        wanted = wanted_of(vendor, self.config, self.run_folder, options)
        training = write_rows(vendor, curated.train, wanted.objective, self.journal.folder)
        dev: Sequence[Any] = curated.dev if choices(options).get("send_dev_rows") else ()
        if wanted.objective == "dpo":
            dev = [example for example in dev if example.rejected]
        validation = write_rows(vendor, dev, wanted.objective, self.journal.folder, is_validation=True) if dev else None
        if validation and vendor.sdk == "together":
            wanted = dataclasses.replace(wanted, num_evals=self.config.train.num_evals)
        limits = self.client.ask("limits", model=wanted.model) if vendor.sdk == "together" else {}
        wanted = self._within(wanted, limits)
        longest = limits.get("max_seq_length_dpo" if wanted.objective == "dpo" else "max_seq_length_sft")
        if longest:
            note = check_lengths(vendor, training, min(longest, wanted.seq_len or longest))
            if note:
                self.log(note)
        for name in left_out(vendor, wanted):
            self.log(f"{vendor.name} decides {name} by itself; the run's {getattr(wanted, name):g} is not sent")
        self.journal.write(
            vendor=vendor.name,
            base_url=self.client.base_url,
            sdk=self.client.sdk_words(),
            wanted=dataclasses.asdict(wanted),
            data_print=data_print(self.run_folder),
            data={"training": training.to_json(), "validation": validation.to_json() if validation else None},
        )
        return wanted, training, validation

    def _within(self, wanted: Wanted, limits: dict[str, Any]) -> Wanted:
        """What is asked for, within the model's limits as the service states them.

        A value that the plan derived is moved to the limit. Raises: BadInput where a person gave it.
        """
        is_lora = wanted.method == "lora"
        bounds: tuple[tuple[str, Any, Any], ...] = (
            ("num_epochs", 1, limits.get("max_num_epochs")),
            ("learning_rate", limits.get("min_learning_rate"), limits.get("max_learning_rate")),
            ("lora_rank", 1, (limits.get("lora_training") or {}).get("max_rank") if is_lora else None),
            ("seq_len", limits.get("min_max_seq_length"), limits.get("max_seq_length_sft")),
        )
        for key, low, high in bounds:
            value = getattr(wanted, key)
            if value is None or not high or low <= value <= high:
                continue
            known = f"{self.vendor.name} takes {low:g} to {high:g} for {wanted.model}"
            if isinstance(getattr(self.config.train, key), (int, float)):
                raise BadInput(f"train.{key} {value:g}: {known}; set it so")
            moved = min(max(value, low), high)
            self.log(f"{key} {value:g} of the plan: {known}; {moved:g} is asked for")
            if key == "lora_rank" and wanted.lora_alpha:  # the scale stays
                wanted = dataclasses.replace(wanted, lora_alpha=wanted.lora_alpha * moved / value)
            wanted = dataclasses.replace(wanted, **{key: moved})
        return wanted

    def upload(self, side: str, rows: Rows) -> None:
        """Send the file unless it is there: its name holds its content's hash. Raises: DataError, LaunchError."""
        files = dict(self.journal.get("files") or {})  # by name, which other rows do not have
        if rows.name not in files:
            found = self.client.ask("find_file", name=rows.name, num_bytes=rows.num_bytes)
            if found is None:
                self.log(f"sending {rows.num_rows:,} {side} rows ({rows.num_bytes:,} bytes) to {self.vendor.name}")
                found = self.client.ask("upload", self.progress, path=rows.path, num_rows=rows.num_rows)
            else:
                self.log(f"{self.vendor.name} has these {rows.num_rows:,} {side} rows already")
            files[rows.name] = file_id_of(self.vendor, found)
            self.journal.write(files=files)
        for _ in range(MAX_FILE_WAITS):
            state, reason = file_state(self.vendor, self.client.ask("file", file_id=files[rows.name]))
            if state == "ready":
                return
            if state == "refused":
                self.journal.write(files={k: v for k, v in files.items() if k != rows.name})
                raise DataError(
                    f"{self.vendor.name} refused the {side} rows ({Path(rows.path).name}): {reason}; put the rows "
                    "right and run the same command again. Nothing was started"
                )
            self.client.pause(FILE_WAIT_S)
        raise LaunchError(
            f"{self.vendor.name} has not read the {side} rows through after "
            f"{FILE_WAIT_S * MAX_FILE_WAITS / 60:.0f} minutes; run the same command again later, it goes on from here"
        )

    def estimate(self, wanted: Wanted, training: Rows, validation: Rows | None) -> None:
        """What it will cost, by the service where it says so. Raises: BudgetStopped, BadInput, LaunchError."""
        files = self.journal["files"]
        sent = files[training.name], files[validation.name] if validation else None
        request = request_of(self.vendor, wanted, self.journal["tag"], *sent)
        given = choices(self.launch.options).get("usd_per_million_train_tokens")
        low = value = high = None
        source, rate, why = "", given, ""
        if self.vendor.sdk == "together":
            said = self.client.ask("estimate", request=estimate_request(request))
            value = said.get("estimated_total_price")
            if said.get("estimation_available") is not False and value is not None:
                low = high = float(value)
                source = f"{self.vendor.name}'s own estimate"
            why = f" (it gives no estimate: {said.get('unavailable_reason')})" if value is None else ""
            if said.get("allowed_to_proceed") is False:
                raise BudgetStopped(
                    f"{self.vendor.name} estimates {usd(float(value or 0))}, which passes the credit limit of the "
                    f"account ({usd(float(said.get('user_limit') or 0))}); raise it on its page. Nothing was started"
                )
        if value is None:
            counted = counted_tokens(self.run_folder, base_of(self.config))
            by_rate = priced(self.vendor, wanted, training, counted, given)
            rate = by_rate.usd_per_million_tokens
            if by_rate.usd is None:
                raise BadInput(
                    f"{self.vendor.name}'s price for {wanted.model} is not known{why}; set "
                    + UNKNOWN_RATE.format(name=self.vendor.name, budget=usd(self.launch.budget_usd))
                )
            low, value, high = by_rate.usd.low, by_rate.usd.value, by_rate.usd.high
            source = "; ".join(by_rate.notes)
        self.log(f"{self.vendor.name}: {usd(value)} predicted ({source})")
        self.journal.write(
            request=request,
            predicted_usd={"value": float(value), "low": low, "high": high},
            predicted_by=source,
            usd_per_million_train_tokens=rate,
        )
        assert high is not None
        if high > self.launch.budget_usd:
            spread = f"{usd(value)}, and may cost {usd(high)}" if high > value else usd(value)
            raise BudgetStopped(
                f"the job at {self.vendor.name} is predicted to cost {spread}; the budget is "
                f"{usd(self.launch.budget_usd)}, and a job cannot be stopped at a sum: raise budget_usd, or train on "
                "fewer rows or epochs. Nothing was started"
            )

    def create(self, wanted: Wanted) -> None:
        """One job, whatever happens to the answer. Raises: LaunchError."""
        journal, request = self.journal, self.journal["request"]
        for attempt in range(MAX_ATTEMPTS):
            if journal["intents"]:
                found = self.find()
                if found is not None:
                    self._is_ours(found, "found again")
                    return
            journal.write(intents=[*journal["intents"], now()])
            try:
                created = self.client.once("create", request=request, key=journal["tag"])
            except CallFailed as failure:
                if failure.is_unknown:
                    self.log(
                        f"{self.vendor.name}: the answer to the order was lost ({failure.message}); looking for the "
                        "job before ordering again"
                    )
                    if attempt == MAX_ATTEMPTS - 1:
                        raise self.client.told(failure, "create", attempt + 1) from None
                    continue
                if failure.kind == "status":  # refused: nothing was made; of an error of the SDK's own nobody knows
                    journal.write(intents=journal["intents"][:-1])
                if not failure.may_pass or attempt == MAX_ATTEMPTS - 1:
                    raise self.client.told(failure, "create", attempt + 1) from None
                self.client.wait(failure, attempt, "create")
                continue
            self._is_ours(created, "created")
            return

    def find(self) -> dict[str, Any] | None:
        """The oldest job with our tag, looked for as long as a list may lag behind."""
        for wait_s in FIND_WAITS_S:
            if wait_s:
                self.client.pause(wait_s)
            found = jobs_of(self.client, self.journal["tag"])
            if found:
                return found[0]
        return None

    def _is_ours(self, raw: dict[str, Any], how: str) -> None:
        job_id = job_id_of(self.vendor, raw)
        self.journal.write(job_id=job_id, created_at=now())
        self.log(f"{self.vendor.name}: job {job_id} {how}")


def jobs_of(client: Client, tag: str) -> list[dict[str, Any]]:
    """Jobs that carry the tag, oldest first."""
    found = client.ask("jobs", tag=tag)
    return sorted(
        found, key=lambda raw: (str(raw.get("created_at") or raw.get("createTime") or ""), str(raw.get("id")))
    )
