"""Kill a server of fine-tuning jobs with SIGKILL while a job is on its way, and compare with a job left alone.

    python -m bench.kill_tuning [--kills 5] [--json]

A job goes in through OpenAI's SDK. The server is killed in turn a random time after its start (while files are checked,
or a run loads) and some optimizer steps later; the next server goes on. bit_equal: the adapter's bytes are those of
the job left alone, of the same seed. lost: steps missing from, or told twice in, the job's events. repeated: items
that stand in the run's ledger more than once. Needs: pip install 'shoestring[serve,openai]'.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import machine, versions

ADAPTER = "rungs/shoestring-1m/adapter/adapter_model.safetensors"
HYPERPARAMETERS = {"n_epochs": 30, "batch_size": 4}
LOOK_S, LONGEST_S, SOON_S, MOST_STEPS = 0.05, 1800.0, 8.0, 60


def tickets(num: int) -> bytes:
    """Rows to tune on, as the API takes them."""
    labels = {"refund": "billing", "order": "sales", "crash": "tech"}
    rows = []
    for number in range(num):
        word = list(labels)[number % 3]
        said = [
            ("user", f"Ticket {number}: about a {word}, number {number * 7919 % 1000}"),
            ("assistant", labels[word]),
        ]
        rows.append({"messages": [{"role": role, "content": content} for role, content in said]})
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@contextlib.contextmanager
def serving(runs_dir: Path) -> Iterator[tuple[Any, subprocess.Popen[str]]]:
    """`shoestring serve --tuning`, and a client of it."""
    from openai import OpenAI

    command = [sys.executable, "-m", "shoestring", "serve", "--tuning", "--runs-dir", str(runs_dir), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        told = json.loads(process.stdout.read())
        key = Path(told["api_key_file"]).read_text(encoding="ascii").strip()
        with OpenAI(base_url=told["base_url"], api_key=key) as client:
            yield client, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        process.stdout.close()


def created(client: Any) -> str:
    file = client.files.create(file=("tickets.jsonl", tickets(60)), purpose="fine-tune")
    asked = {"model": "shoestring-1m", "training_file": file.id, "suffix": "job", "seed": 5}
    return str(client.fine_tuning.jobs.create(**asked, hyperparameters=HYPERPARAMETERS).id)


def wait(client: Any, job_id: str, is_enough: Callable[[], bool]) -> str:
    """The job's state once it is over, or enough is seen."""
    end_s = time.monotonic() + LONGEST_S
    while time.monotonic() < end_s:
        status = str(client.fine_tuning.jobs.retrieve(job_id).status)
        if status in ("succeeded", "failed") or is_enough():
            return status
        time.sleep(LOOK_S)
    raise TimeoutError(f"{job_id} was not over within {LONGEST_S:g} s")


def steps_told(runs_dir: Path, job_id: str) -> list[int]:
    path = runs_dir / ".serving" / "jobs" / job_id / "events.jsonl"
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [event["data"]["step"] for event in events if event["type"] == "metrics"]


def run_of(runs_dir: Path) -> Path:
    return next(runs_dir.glob("job-*"))


def bench(kills: int, seed: int = 0) -> dict[str, Any]:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        alone, killed = Path(name) / "alone", Path(name) / "killed"
        with serving(alone) as (client, _):
            job_id = created(client)
            assert wait(client, job_id, lambda: False) == "succeeded"
            tokens = client.fine_tuning.jobs.retrieve(job_id).trained_tokens
        job_id, states = "", []
        for number in range(kills + 1):
            with serving(killed) as (client, process):
                job_id = job_id or created(client)
                began_s, at_step = time.monotonic(), len(steps_told(killed, job_id))
                soon_s, more_steps = rng.uniform(0.5, SOON_S), rng.randint(1, MOST_STEPS)

                def is_enough() -> bool:
                    if number == kills:  # noqa: B023
                        return False
                    if number % 2 == 0:  # noqa: B023
                        return time.monotonic() - began_s > soon_s  # noqa: B023
                    return len(steps_told(killed, job_id)) >= at_step + more_steps  # noqa: B023

                states.append(wait(client, job_id, is_enough))
                if states[-1] in ("succeeded", "failed"):
                    job = client.fine_tuning.jobs.retrieve(job_id)
                    break
                process.kill()
                process.wait()
        rows = (run_of(killed) / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
        items = Counter(json.loads(row)["item"] for row in rows)
        record = json.loads((run_of(killed) / ADAPTER).parent.with_name("train.json").read_text(encoding="utf-8"))
        num_steps, told = record["result"]["num_steps"], steps_told(killed, job_id)
        return {
            "kills": len(states) - 1,
            "killed_when": Counter(states[:-1]),
            "status": job.status,
            "bit_equal": (run_of(alone) / ADAPTER).read_bytes() == (run_of(killed) / ADAPTER).read_bytes(),
            "same_trained_tokens": job.trained_tokens == tokens,
            "num_steps": num_steps,
            "lost": abs(len(told) - num_steps) + (told != sorted(set(told))),
            "repeated": sum(num - 1 for num in items.values()),
            "machine": machine(),
            "versions": versions(),
        }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Kill a server of fine-tuning jobs, and compare")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    found = bench(asked.kills, asked.seed)
    print(json.dumps(found, indent=2) if asked.json else "\n".join(f"{k}: {v}" for k, v in found.items()))


if __name__ == "__main__":
    main()
