"""Carries jobs out: files are checked at once, runs go one at a time in the order they were asked for.

All of it is on disk, so a server that was killed goes on where it was: a run that is over is recognised by its records,
one that was cut short continues from its checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ...files import read_json, write_json, write_whole
from ...secrets import without_secrets
from ...units import usd
from ..gateway.tuning_settings import TuningSettings
from .jobs import (
    BUDGET_CODE,
    CANCELLED,
    CHECKED,
    FAILED,
    LOG,
    OUTPUT,
    QUEUED,
    RUN_FILE,
    RUNNING,
    SUCCEEDED,
    UNDER_WAY,
    VALIDATING,
    Jobs,
    TuningJob,
    line_of,
)  # fmt: skip
from .prepare import ASK, TRAIN, VALIDATION, Ask
from .processes import send, spawn
from .progress import MOST_TOLD_CODES, JobRun, failure, metrics_csv
from .store import ID_CHARACTERS, RESULTS, Files

POLL_S, STEPS_EVERY_S = 0.2, 1.0
GRACE_S = 90.0  # from SIGINT to SIGKILL: a checkpoint is written in between
MOST_KILLS = 3  # in a row without getting further: most likely memory
KILLED = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)
DONE_CODES, BUDGET_EXIT, INTERRUPTED_EXIT = (0, 3), 4, 5

# Load a finished job's adapter into the gateway: (run folder, name) -> why it cannot be served here, or "".
OnFinished = Callable[[Path, str], Awaitable[str]]


class Runner:
    """The queue and the one run under way. Methods belong to the event loop that start was called in."""

    def __init__(
        self, jobs: Jobs, files: Files, settings: TuningSettings, runs_dir: Path, on_finished: OnFinished
    ) -> None:
        self.jobs, self.files, self.settings, self.on_finished = jobs, files, settings, on_finished
        self.runs_dir = runs_dir
        self.wake = asyncio.Event()
        self.process: subprocess.Popen[bytes] | None = None  # the run under way
        self.current: TuningJob | None = None
        self.is_closing = False
        self.tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Take up what an earlier server left, and the queue."""
        self.tasks = [asyncio.create_task(self._validate_all()), asyncio.create_task(self._run_all())]
        for task in self.tasks:
            task.add_done_callback(_tell_fault)

    async def close(self) -> None:
        """End; a run under way saves a checkpoint and goes on with the next server."""
        self.is_closing = True
        self.interrupt(None)
        self.wake.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def failed(self) -> BaseException | None:
        """The fault of ours that ended the queue; nothing is carried out after it."""
        for task in self.tasks:
            if task.done() and not task.cancelled() and (error := task.exception()):
                return error
        return None

    # ---- files are checked ----

    async def _validate_all(self) -> None:
        while not self.is_closing:
            job = next((j for j in self.jobs.known.values() if j.status == VALIDATING), None)
            if job is None:
                self.wake.clear()
                await self._woken()
                continue
            try:
                await self._validate(job)
            except OSError as error:
                await self._cannot(job, error)

    async def _woken(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wake.wait(), timeout=5.0)

    async def _validate(self, job: TuningJob) -> None:
        folder = self.jobs.path(job)
        ask = Ask(
            id=job.id, run_name=job.run_name, model=job.run_model, start=job.start, method=job.method,
            method_of_run=job.method_of_run,
            hyperparameters=job.hyperparameters, seed=job.seed, budget_usd=self.settings.job_budget_usd,
            overlay=dict(self.settings.run),
        )  # fmt: skip
        if _read(folder / ASK) != asdict(ask):  # else an earlier server had the files checked, or began to
            (folder / CHECKED).unlink(missing_ok=True)
            write_json(folder / ASK, asdict(ask))
        code = 0
        if not (folder / CHECKED).is_file():
            process = spawn(folder, ["-m", "shoestring.serve.tuning.prepare", str(folder)])
            while process.poll() is None:
                if self.is_closing or job.status != VALIDATING:
                    send(process, signal.SIGKILL)
                await asyncio.sleep(POLL_S / 4)
            code = process.returncode
        if job.status != VALIDATING or self.is_closing:
            return
        if not (folder / CHECKED).is_file():
            self._fail(job, "server_error", f"checking the files ended with code {code}; {self._log(job)}")
            return
        told = read_json(folder / CHECKED)
        if told["error"]:
            job.error = {**told["error"], "message": self._plain(told["error"]["message"])}
            job.status, job.finished_at = FAILED, int(time.time())
            self.jobs.save(job)
            self.jobs.event(job, job.error["message"], level="error", data={"rows": told["rows"]})
            return
        job.status, job.checked = QUEUED, True
        self.jobs.save(job)
        self.jobs.event(job, "Files validated, moving job to queued state", data={"num_rows": told["num_rows"]})
        for note in told["notes"]:
            self.jobs.event(job, note)
        self.wake.set()

    # ---- runs ----

    async def _run_all(self) -> None:
        while not self.is_closing:
            waiting = [j for j in self.jobs.known.values() if j.status in (QUEUED, RUNNING)]
            job = min(waiting, key=lambda j: (j.status != RUNNING, j.number), default=None)
            if job is None:
                self.wake.clear()
                await self._woken()
                continue
            try:
                await self._carry_out(job)
            except OSError as error:
                await self._cannot(job, error)

    async def _cannot(self, job: TuningJob, error: OSError) -> None:
        """The disk is full, most likely: the job stays where it was, and is tried again later."""
        sys.stderr.write(f"{job.id}: {without_secrets(str(error))}\n")
        self.wake.clear()
        await self._woken()

    def run_folder(self, job: TuningJob) -> Path:
        return self.runs_dir / job.run_name

    async def _carry_out(self, job: TuningJob) -> None:
        self.current = job
        try:
            left_usd = self.settings.budget_usd - self.spent_usd(but=job)
            own_usd = JobRun(self.run_folder(job)).spent_usd()
            if left_usd <= own_usd:
                self._fail(job, BUDGET_CODE, self._budget_words())
                return
            if not await self._is_free(job):
                return
            _set_budget(self.jobs.path(job) / RUN_FILE, min(self.settings.job_budget_usd, left_usd))
            if job.status != RUNNING:
                job.status, job.started_at = RUNNING, job.started_at or int(time.time())
                self.jobs.save(job)
                self.jobs.event(job, f"Fine-tuning job started: {job.model}, run {job.run_name}")
            code = await self._watch(job)
            await self._ended(job, code)
        finally:
            self.current = self.process = None

    async def _is_free(self, job: TuningJob) -> bool:
        """Wait until no process of an earlier server holds the run folder; False where the job is wanted no more."""
        lock = self.run_folder(job) / ".lock"
        while lock.exists() and job.status in UNDER_WAY and not self.is_closing:
            try:
                with FileLock(lock, timeout=0):
                    break
            except Timeout:
                await asyncio.sleep(POLL_S)
        return job.status in UNDER_WAY and not self.is_closing

    async def _watch(self, job: TuningJob) -> int:
        """The run, until it ends; its steps become events. The exit code."""
        folder, run = self.jobs.path(job), JobRun(self.run_folder(job))
        command = ["-m", "shoestring", "run", RUN_FILE, "--runs-dir", str(self.runs_dir), "--json"]
        with (folder / OUTPUT).open("wb") as output:
            process = self.process = spawn(folder, command, output.fileno())
        first_step = max((e["data"]["step"] for e in self.jobs.events(job) if e["type"] == "metrics"), default=0)
        told_step, looked_s, signalled_s = first_step, time.monotonic(), None
        while process.poll() is None:
            now_s = time.monotonic()
            if signalled_s is None and (self.is_closing or job.status != RUNNING):
                signalled_s = now_s
            if signalled_s is not None and now_s - signalled_s > GRACE_S:
                send(process, signal.SIGKILL)
            if now_s - looked_s > STEPS_EVERY_S:
                told_step, looked_s = self._tell_steps(job, run, told_step), now_s
            await asyncio.sleep(POLL_S)
        if self._tell_steps(job, run, told_step) > first_step:
            job.num_kills = 0
        return process.returncode

    def _tell_steps(self, job: TuningJob, run: JobRun, told_step: int) -> int:
        """An event for each step not told yet; a step done again after an interruption is not told twice."""
        new = [row for row in run.steps() if row["step"] > told_step]
        num_steps = run.num_steps()
        if not new or num_steps is None:
            return told_step
        lines = []
        for row in new:
            data = {"step": row["step"], "total_steps": num_steps, "train_loss": row["loss"]}
            message = f"Step {row['step']}/{num_steps}: training loss={row['loss']:.4f}"
            if "dev_loss" in row:
                data["full_valid_loss"] = row["dev_loss"]
                message += f", full validation loss={row['dev_loss']:.4f}"
            lines.append(line_of(message, "info", "metrics", data))
        self.jobs.append(job, lines)
        return int(new[-1]["step"])

    async def _ended(self, job: TuningJob, code: int) -> None:
        """What the exit of the run means. A job that was paused or cancelled in time stays so."""
        job.spent_usd = max(job.spent_usd, JobRun(self.run_folder(job)).spent_usd())
        if code in DONE_CODES and job.status != CANCELLED:
            await self._succeed(job)
            return
        self.jobs.save(job)
        if job.status != RUNNING or self.is_closing:
            return
        if code == BUDGET_EXIT:
            self._fail(job, BUDGET_CODE, f"{self._said(job)[1]} ({self._budget_words()})")
        elif code in (*KILLED, INTERRUPTED_EXIT):  # by others than us
            job.num_kills += 1
            self.jobs.save(job)
            self.jobs.event(job, "The run was ended from outside; it goes on from its last checkpoint", level="warn")
            if job.num_kills >= MOST_KILLS:
                self._fail(job, "killed", f"ended {MOST_KILLS} times without getting further; most likely memory")
        else:
            kind, message = self._said(job)
            is_data = kind == "DataError"
            self._fail(job, "invalid_training_file" if is_data else kind or "server_error", message, is_data=is_data)

    def _said(self, job: TuningJob) -> tuple[str, str]:
        """Type and message of the error that the run ended with."""
        kind, message = failure(self.jobs.path(job) / OUTPUT)
        return kind, self._plain(message or f"the run ended without a word; {self._log(job)}")

    def _log(self, job: TuningJob) -> str:
        return f"jobs/{job.id}/{LOG} on the server, in its folder .serving, has more"

    def _plain(self, text: str) -> str:
        """A message of ours without secrets and folders of this machine."""
        for folder in (self.jobs.folder, self.runs_dir, Path.home()):
            text = text.replace(f"{folder}/", "")
        return without_secrets(text)[:4000]

    def _fail(self, job: TuningJob, code: str, message: str, *, is_data: bool = False) -> None:
        job.status, job.finished_at = FAILED, int(time.time())
        job.error = {"code": code, "message": message, "param": "training_file" if is_data else None}
        self.jobs.save(job)
        self.jobs.event(job, message, level="error")

    async def _succeed(self, job: TuningJob) -> None:
        """Results, then the model in the gateway, then the word that it is done; each can be done again."""
        run = JobRun(self.run_folder(job))
        outcome = run.outcome()
        if outcome is None:
            self._fail(job, "server_error", f"the run ended well and holds no training; {self._log(job)}")
            return
        result_id = "file-" + job.id.removeprefix("ftjob-")[:ID_CHARACTERS]
        self.files.put(result_id, job.owner, "step_metrics.csv", RESULTS, metrics_csv(run.steps()))
        job.result_files, job.trained_tokens = [result_id], outcome.trained_tokens
        job.not_served = await self.on_finished(self.run_folder(job), job.tuned_name)
        told_before = {event["message"] for event in self.jobs.events(job)}  # by a server that was killed in here

        def tell(message: str, level: str = "info", data: Mapping[str, Any] | None = None) -> None:
            if message not in told_before:
                self.jobs.event(job, message, level=level, data=data)

        left_out = sorted(run.left_out().items(), key=lambda item: -item[1])[:MOST_TOLD_CODES]
        if left_out:
            listed = ", ".join(f"{code} {number:,}" for code, number in left_out)
            tell(f"Rows that curation left out: {listed}", "warn", dict(left_out))
        for arm, score, num_rows in outcome.scores:
            what = {"arm": arm, "metric": outcome.metric, "score": score, "num_rows": num_rows}
            tell(f"{arm}: {outcome.metric} {score:.3f} on {num_rows:,} held-out rows", data=what)
        for words in filter(None, (outcome.stopped, outcome.verdict)):
            tell(words)
        if job.not_served:
            tell(f"{job.tuned_name} is not served here: {job.not_served}", "warn")
        tell(f"New fine-tuned model created: {job.tuned_name}, for {usd(job.spent_usd)}")
        job.fine_tuned_model, job.status, job.finished_at = job.tuned_name, SUCCEEDED, int(time.time())
        job.error = None
        self.jobs.save(job)
        self.jobs.event(job, "The job has successfully completed")

    # ---- what clients ask ----

    def interrupt(self, job: TuningJob | None) -> None:
        """SIGINT to the run under way, if it is the job's (None: whichever)."""
        if self.process is not None and self.process.poll() is None and job in (None, self.current):
            send(self.process, signal.SIGINT)

    def is_finishing(self, job: TuningJob) -> bool:
        """Whether its run ended well and its model is being loaded: too late to stop it."""
        return job is self.current and self.process is not None and self.process.poll() in DONE_CODES

    def spent_usd(self, but: TuningJob | None = None) -> float:
        """What all jobs have cost, by their ledgers; of a run folder that is gone, as last known."""
        return sum(
            max(job.spent_usd, JobRun(self.run_folder(job)).spent_usd())
            for job in self.jobs.known.values()
            if job is not but
        )

    def _budget_words(self) -> str:
        return (
            f"the jobs of this server have cost {usd(self.spent_usd())}; its budgets are "
            f"{usd(self.settings.budget_usd)} for all and {usd(self.settings.job_budget_usd)} for one. Its owner can "
            "raise them; a job that a budget stopped can then be resumed"
        )

    def link_files(self, job: TuningJob) -> None:
        """The job's own link to the bytes of its files, so that deleting them disturbs nothing."""
        folder = self.jobs.path(job)
        folder.mkdir(exist_ok=True, mode=0o700)
        for name, file_id in ((TRAIN, job.training_file), (VALIDATION, job.validation_file)):
            if file_id:
                source = self.files.content(file_id)
                try:
                    os.link(source, folder / name)
                except OSError:
                    shutil.copyfile(source, folder / name)


def _read(path: Path) -> Any:
    """The JSON of a file, None where there is none."""
    return read_json(path) if path.is_file() else None


def _tell_fault(task: asyncio.Task[None]) -> None:
    """On standard error, for the server's owner."""
    if not task.cancelled() and (error := task.exception()):
        sys.stderr.write("".join(traceback.format_exception(error)))


def _set_budget(run_file: Path, budget_usd: float) -> None:
    """Write what may be spent now into the run file; all else stays."""
    text = run_file.read_text(encoding="utf-8")
    raw = yaml.safe_load(text)
    if raw["budget_usd"] != budget_usd:
        raw["budget_usd"] = budget_usd
        write_whole(run_file, text.split("\n", 1)[0] + "\n" + yaml.safe_dump(raw, sort_keys=False))
