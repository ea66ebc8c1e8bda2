"""From a file to a chat with the tuned model, by the official SDK, on `shoestring serve --tuning`."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from shoestring.files import read_json, read_jsonl
from shoestring.serve.tuning.jobs import SUCCEEDED, Jobs
from tests.launched import environment
from tests.served_runs import make_run
from tests.test_tuning_api import a_job, tickets
from tests.test_tuning_runs import ended, uploaded

BASE = "shoestring-1m"


@contextlib.contextmanager
def serving(runs_dir: Path, *words: str) -> Iterator[tuple[OpenAI, dict[str, Any]]]:
    """`shoestring serve` with these words: a client with its key, and what it said when it was ready.

    The folder of runs is relative, as the default is.
    """
    command = [sys.executable, "-m", "shoestring", "serve", *words, "--runs-dir", runs_dir.name, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=runs_dir.parent, env=environment())
    assert process.stdout is not None
    try:
        told = json.loads(process.stdout.read())
        key = Path(told["api_key_file"]).read_text().strip()
        with OpenAI(base_url=told["base_url"], api_key=key, max_retries=0) as client:
            yield client, told
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        process.stdout.close()


def test_jobs_alone(tmp_path: Path) -> None:
    """Without a run there is no model, and files and jobs are taken."""
    with serving(tmp_path, "--tuning") as (ann, told):
        assert (told["models"], told["engine"]) == ([], None)
        assert told["tuning"]["gpt-4o-mini"] == "Qwen/Qwen3-4B-Instruct-2507"
        assert ann.files.retrieve(uploaded(ann, tickets(2))).bytes == len(tickets(2))
        assert not ann.models.list().data
        with pytest.raises(openai.NotFoundError):
            ann.chat.completions.create(model=BASE, messages=[{"role": "user", "content": "x"}])


def test_from_a_file_to_a_chat(tmp_path: Path) -> None:
    """The names are OpenAI's, the base is the one served, and the answers are those of the run's own evaluation."""
    other = a_job(status=SUCCEEDED, fine_tuned_model="ft:shoestring-3m:acme:tickets:AAAAAAAA")
    make_run(tmp_path, other.run_name, "shoestring-3m")
    (tmp_path / ".serving").mkdir(mode=0o700)
    Jobs(tmp_path / ".serving" / "jobs").save(other)
    (tmp_path / "server.yaml").write_text("tuning: {organisation: acme}")
    limits = ("--limits", str(tmp_path / "server.yaml"))
    with serving(tmp_path, BASE, "--tuning", *limits) as (ann, told):
        assert told["tuning"]["gpt-4o-mini"] == BASE
        job = ann.fine_tuning.jobs.create(
            model="gpt-4o-mini-2024-07-18",
            training_file=uploaded(ann, tickets(80)),
            validation_file=uploaded(ann, tickets(20, seed=9)),
            suffix="tickets",
            seed=1,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 12}}},
        )
        assert job.model == BASE
        job = ended(ann, job)
        assert job.status == "succeeded", job.error
        name = job.fine_tuned_model
        assert name is not None and name.startswith(f"ft:{BASE}:acme:tickets:")
        assert name in [model.id for model in ann.models.list()]
        run = tmp_path / f"tickets-{job.id.removeprefix('ftjob-')[:8]}"
        rows = read_jsonl(run / "data" / "eval.jsonl")
        evaluated = {row["id"]: row["output"] for row in read_json(arm_file(run))["result"]["arm"]["rows"]}
        assert len(rows) == 20
        for row in rows:
            asked: Any = row["messages"][:-1]
            answer = ann.chat.completions.create(model=name, messages=asked)
            assert answer.choices[0].message.content == evaluated[row["id"]]
        bare = ann.chat.completions.create(model=BASE, messages=rows[0]["messages"][:-1], max_tokens=8)
        assert bare.choices[0].message.content != evaluated[rows[0]["id"]]
        events = [event.message for event in ann.fine_tuning.jobs.list_events(job.id)]
        assert any("is trained as shoestring-1m, the base served here" in message for message in events)
        with pytest.raises(openai.APIStatusError, match=r"not served here.*shoestring-3m") as said:
            ann.chat.completions.create(model=str(other.fine_tuned_model), messages=[{"role": "user", "content": "x"}])
        assert said.value.status_code == 503
        with pytest.raises(openai.NotFoundError):
            ann.fine_tuning.jobs.create(model=str(other.fine_tuned_model), training_file=job.training_file)
        assert ann.models.delete(name).deleted
        with pytest.raises(openai.NotFoundError):
            ann.chat.completions.create(model=name, messages=[{"role": "user", "content": "x"}])
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            ann.fine_tuning.jobs.create(model=name, training_file=job.training_file)


def arm_file(run: Path) -> Path:
    return run / "rungs" / BASE / "eval.json"
