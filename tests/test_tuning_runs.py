"""Fine-tuning jobs carried out: a server that is killed goes on, faults come with lines, budgets hold."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from shoestring.files import read_json, read_whole_lines
from shoestring.ledger import Ledger
from shoestring.live import Live
from shoestring.records import no_log, no_progress
from shoestring.runfolder import RunFolder
from shoestring.serve.gateway.tuning_settings import TuningSettings
from shoestring.serve.tuning.progress import JobRun
from tests.test_tuning_api import client, close_clients, served, tickets

PATIENCE_S = 300.0  # a machine that is shared may be slow


@contextlib.contextmanager
def server(runs_dir: Path, settings: str = "") -> Iterator[tuple[OpenAI, subprocess.Popen[str]]]:
    """The API in a process of its own, and ann's client of it."""
    command = [sys.executable, "-m", "tests.tuning_server", str(runs_dir)]
    if settings:
        runs_dir.mkdir(exist_ok=True)
        (runs_dir / "tuning.yaml").write_text(settings)
        command.append(str(runs_dir / "tuning.yaml"))
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        yield client(process.stdout.readline().strip()), process
    finally:
        close_clients()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) in (0, -signal.SIGINT, -signal.SIGKILL)
        process.stdout.close()


def until(done: Callable[[], Any], what: str, every_s: float = 0.3) -> Any:
    """What done() answers once it is true."""
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        if answer := done():
            return answer
        time.sleep(every_s)
    raise AssertionError(f"not within {PATIENCE_S:g} s: {what}")


def ended(ann: OpenAI, job: FineTuningJob) -> FineTuningJob:
    """The job, once it is over."""

    def look() -> FineTuningJob | None:
        now = ann.fine_tuning.jobs.retrieve(job.id)
        return now if now.status in ("succeeded", "failed", "cancelled") else None

    found: FineTuningJob = until(look, f"the end of {job.id}")
    return found


def uploaded(ann: OpenAI, data: bytes, name: str = "tickets.jsonl") -> str:
    return ann.files.create(file=(name, data), purpose="fine-tune").id


def steps_told(ann: OpenAI, job: FineTuningJob) -> list[int]:
    events = list(ann.fine_tuning.jobs.list_events(job.id, limit=100))
    return [event.data["step"] for event in reversed(events) if event.type == "metrics"]


def is_free(run: Path) -> bool:
    """Whether no process holds the run folder."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(run / ".lock", timeout=0):
            return True
    except Timeout:
        return False


def test_steps_are_counted_to_what_training_says(tmp_path: Path) -> None:
    run, records = JobRun(tmp_path), RunFolder(tmp_path)
    assert run.num_steps() is None
    records.finish("plan.json", "0" * 16, {"rungs": [{"num_steps": 138}]}, 1.0)
    assert run.num_steps() == 138, "the plan's estimate"
    clock = iter(range(0, 100, 10))  # far apart, so that each call is written
    live = Live(tmp_path, no_progress, no_log, lambda: float(next(clock)))
    live.progress("train m | $0.01 so far", 3, 137)
    assert run.num_steps() == 137
    live.end(None)
    assert run.num_steps() == 137, "told once"
    (tmp_path / "rungs" / "m").mkdir(parents=True)
    (tmp_path / "rungs" / "m" / "inputs.json").write_text("{}")
    records.finish("rungs/m/train.json", "0" * 16, {"num_steps": 137, "stopped_early": False}, 1.0)
    assert JobRun(tmp_path).num_steps() == 137, "of a training that is over"


def test_a_killed_server_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL in the middle of training: the run ends with it, and the next server continues it; nothing runs twice."""
    with server(tmp_path) as (ann, process):
        file_id = uploaded(ann, tickets(60))
        job = ann.fine_tuning.jobs.create(
            model="shoestring-1m",
            training_file=file_id,
            suffix="tickets",
            seed=3,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 10, "batch_size": 4}}},
        )
        assert (job.status, job.model, job.seed) == ("validating_files", "shoestring-1m", 3)
        waiting = ann.fine_tuning.jobs.create(model="shoestring-1m", training_file=file_id)
        ann.files.delete(file_id)  # jobs have their own link to the bytes
        run = tmp_path / f"tickets-{job.id.removeprefix('ftjob-')[:8]}"
        steps = run / "rungs" / "shoestring-1m" / "steps.jsonl"
        until(lambda: steps.is_file() and steps.stat().st_size, "the first step", every_s=0.02)
        process.kill()
        process.wait()
    until(lambda: is_free(run), "the run ends with its server")
    with server(tmp_path) as (ann, _):
        assert ann.fine_tuning.jobs.retrieve(job.id).status == "running"
        assert ann.fine_tuning.jobs.pause(job.id).status == "paused"
        assert ann.fine_tuning.jobs.cancel(waiting.id).status == "cancelled"
        with pytest.raises(openai.BadRequestError, match="paused and cannot be paused"):
            ann.fine_tuning.jobs.pause(job.id)
        until(lambda: is_free(run), "the run ends")
        num_steps = len(read_whole_lines(steps))
        assert ann.fine_tuning.jobs.resume(job.id).status == "queued"
        done = ended(ann, job)
        assert done.status == "succeeded", done.error
        told = steps_told(ann, job)
        rows = ann.files.content(done.result_files[0]).text.splitlines()
        kept = ann.fine_tuning.jobs.checkpoints.list(job.id).data
    trained = read_json(run / "rungs" / "shoestring-1m" / "train.json")["result"]
    assert told == list(range(1, trained["num_steps"] + 1)) and num_steps < trained["num_steps"]
    assert len(rows) == trained["num_steps"] + 1 and rows[0].startswith("step,train_loss,")
    assert done.trained_tokens == trained["num_train_tokens"] and done.finished_at is not None
    assert kept[0].step_number <= trained["num_steps"] and kept[0].metrics.full_valid_loss is not None
    assert done.fine_tuned_model == f"ft:shoestring-1m:shoestring:tickets:{run.name[-8:]}"
    entered = [entry["item"] for entry in Ledger(run / "ledger.jsonl").entries()]
    assert entered.count("rungs/shoestring-1m/train") == 1


def pairs(num: int) -> bytes:
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"Say {n}"}]},
            "preferred_output": [{"role": "assistant", "content": f"yes {n}"}],
            "non_preferred_output": [{"role": "assistant", "content": f"no {n}"}],
        }
        for n in range(num)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_faults_of_files_come_with_their_lines(tmp_path: Path) -> None:
    lines = tickets(50).splitlines(keepends=True)
    lines[6] = b'{"messages": [{"role": "user", "content": "and the answer?"}]}\n'
    lines[9] = b'{"question": 4}\n'
    dpo: dict[str, Any] = {"type": "dpo"}
    with served(tmp_path) as url:
        ann = client(url)
        create = ann.fine_tuning.jobs.create
        broken, few, many = uploaded(ann, b"".join(lines)), uploaded(ann, tickets(12)), uploaded(ann, tickets(50))
        wrong = create(model="gpt-4o-mini", training_file=broken)
        no_pairs = create(model="shoestring-1m", training_file=many, method=dpo)
        no_answers = create(model="shoestring-1m", training_file=uploaded(ann, pairs(50)))
        too_few = create(model="shoestring-1m", training_file=few)
        of_validation = create(model="shoestring-1m", training_file=many, validation_file=broken)
        for job, code, match in (
            (wrong, "invalid_training_file", ("line 7: no_assistant", "line 10: missing_field")),
            (no_pairs, "invalid_training_file", ("preferred_output",)),
            (no_answers, "invalid_training_file", ("method dpo takes those", "50 of 50 rows")),
            (too_few, "invalid_training_file", ("12 rows can be learned from, at least 40",)),
            (of_validation, "invalid_validation_file", ("line 7",)),
        ):
            found = ended(ann, job)
            assert found.status == "failed" and found.error is not None and found.error.code == code
            assert found.error.param == code.removeprefix("invalid_")
            for words in match:
                assert words in found.error.message
            assert str(tmp_path) not in found.error.message
            (last, *_) = ann.fine_tuning.jobs.list_events(job.id, limit=1).data
            assert last.level == "error"
        rows = ann.fine_tuning.jobs.list_events(wrong.id, limit=1).data[0].data["rows"]
        assert [(row["line"], row["code"]) for row in rows] == [(7, "no_assistant"), (10, "missing_field")]
        assert wrong.model == "Qwen3-4B-Instruct-2507"
        with pytest.raises(openai.BadRequestError, match="failed and cannot be resumed"):
            ann.fine_tuning.jobs.resume(wrong.id)
        listed = [job.id for job in ann.fine_tuning.jobs.list(limit=2)]
        assert listed == [j.id for j in (of_validation, too_few, no_answers, no_pairs, wrong)]
        assert not client(url, "bob").fine_tuning.jobs.list().data
        with pytest.raises(openai.NotFoundError):
            client(url, "bob").fine_tuning.jobs.retrieve(wrong.id)
        with pytest.raises(openai.NotFoundError):
            client(url, "bob").fine_tuning.jobs.create(model="shoestring-1m", training_file=many)
        assert client(url, "root").fine_tuning.jobs.retrieve(wrong.id).status == "failed"


def test_what_is_asked_stands_in_the_run_file(tmp_path: Path) -> None:
    """batch_size in rows becomes tokens, the multiplier is of the rate that is derived for the model; auto is left."""
    settings = TuningSettings(budget_usd=0.0, run={"train": {"lora_rank": 8}})
    with served(tmp_path, settings) as url:
        ann = client(url)
        with pytest.raises(openai.RateLimitError, match="budget_usd") as said:
            ann.fine_tuning.jobs.create(model="shoestring-1m", training_file=uploaded(ann, tickets(100)))
        assert said.value.code == "insufficient_quota"
    with served(tmp_path, TuningSettings(job_budget_usd=1e-9, run={"train": {"lora_rank": 8}})) as url:
        ann = client(url)
        hyper = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 2.0}
        job = ann.fine_tuning.jobs.create(
            model="shoestring-1m",
            training_file=uploaded(ann, tickets(100)),
            validation_file=uploaded(ann, tickets(30, seed=5)),
            seed=1,
            method={"type": "supervised", "supervised": {"hyperparameters": hyper}},
        )
        found = ended(ann, job)
        assert found.error is not None and found.error.code == "budget_exceeded"
        messages = [event.message for event in ann.fine_tuning.jobs.list_events(job.id)]
        folder = tmp_path / ".serving" / "jobs" / job.id
        written = yaml.safe_load((folder / "run.yaml").read_text())
        assert written["data"] == {"train": ["train.jsonl"], "eval": ["validation.jsonl"]}
        train = written["train"]
        assert (train["num_epochs"], train["learning_rate"], train["lora_rank"]) == (2, 0.00856, 8)
        assert f"batch_size 4 is {train['batch_tokens']} tokens a step, at 42 tokens a row" in messages
        assert 4 * 41 < train["batch_tokens"] < 4 * 43 and written["seed"] == 1
        assert ann.fine_tuning.jobs.resume(job.id).error is None  # where the owner has raised it
        assert ann.fine_tuning.jobs.cancel(job.id).status == "cancelled"
