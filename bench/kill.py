"""Kill a training with SIGKILL at random moments, run it again each time, and compare with one left alone.

    python -m bench.kill [--kills 5] [--model shoestring-1m] [--json]

bit_equal: the final adapter's bytes are those of the run left alone. lost: optimizer steps missing from, or
twice in, the step record, or recorded with another loss.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import machine, versions

Run = Any  # subprocess.Popen or Forked
POLL_S = 0.01
LONGEST_RUN_S = 600.0


def worker(model: str, out_dir: Path, num_rows: int) -> None:
    """One training of generated additions, the same each time."""
    from shoestring.records import Example, Message, TrainSettings
    from shoestring.train.base import detect_device
    from shoestring.train.trainer import train_rung

    rows = [
        Example(
            (Message("user", f"What is {i} plus {i % 7}?"), Message("assistant", str(i + i % 7))), (1, 2), "kill", i
        )
        for i in range(1, num_rows + 21)
    ]
    settings = TrainSettings(
        method="lora", lora_rank=4, lora_alpha=8, learning_rate=5e-3, num_epochs=2, batch_tokens=512,
        micro_batch_tokens=256, seq_len=256, warmup_frac=0.1, weight_decay=0.01, max_grad_norm=1.0, num_evals=5,
        patience=5, num_threads=1, seed=0, max_new_tokens=8, reasons={},
    )  # fmt: skip
    train_rung(
        model=model,
        train=rows[:num_rows],
        dev=rows[num_rows:],
        out_dir=out_dir,
        settings=settings,
        device=detect_device(1),
        dev_metric=lambda tuned, tokenizer: 0.0,  # the dev loss decides which adapter is kept
    )


class Forked:
    """A run in a fork of this process, which has imported everything but computed nothing: starts at once."""

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        self.pid = os.fork()
        self.returncode: int | None = None
        if self.pid == 0:
            try:
                work(*arguments)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = LONGEST_RUN_S) -> int:
        until = time.perf_counter() + timeout
        while self.poll() is None and time.perf_counter() < until:
            time.sleep(POLL_S)
        assert self.returncode is not None, f"a training run took longer than {timeout} s"
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def start(model: str, out_dir: Path, num_rows: int) -> Run:
    command = [sys.executable, "-m", "bench.kill", "--worker", str(out_dir), "--model", model, "--rows", str(num_rows)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=sys.stderr, cwd=Path(__file__).resolve().parents[1])


def start_forked(model: str, out_dir: Path, num_rows: int) -> Run:
    return Forked(worker, model, out_dir, num_rows)


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def finish(process: Run) -> None:
    if process.wait(LONGEST_RUN_S) != 0:
        raise SystemExit(f"a training run failed with status {process.returncode}")


def measure(
    model: str, kills: int, num_rows: int, seed: int = 0, start: Callable[[str, Path, int], Run] = start
) -> dict[str, Any]:
    """Train once alone, once with kills; each kill comes at a random time after some new step was recorded."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="shoestring-kill-") as name:
        folder = Path(name)
        finish(start(model, folder / "alone", num_rows))
        alone = steps(folder / "alone")
        done, at_steps = 0, []
        targets = sorted(rng.randint(1, len(alone) - 1) for _ in range(kills))
        for target in targets:
            process = start(model, folder / "killed", num_rows)
            began = time.perf_counter()
            path = folder / "killed" / "steps.jsonl"
            # The record of an earlier life stands until the run continues, so the step must be new in this one.
            before = path.stat().st_mtime_ns if path.is_file() else 0
            while process.poll() is None and time.perf_counter() - began < LONGEST_RUN_S:
                if path.is_file() and path.stat().st_mtime_ns != before and num_lines(path) >= target:
                    break
                time.sleep(POLL_S)
            time.sleep(rng.random() * 0.2)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                done += 1
                at_steps.append(num_lines(path))
            process.wait()
        finish(start(model, folder / "killed", num_rows))
        killed = steps(folder / "killed")
        files = [(folder / run / "adapter" / "adapter_model.safetensors").read_bytes() for run in ("alone", "killed")]
        same = dict(killed)
        lost = sum(same.get(step) != loss for step, loss in alone) + abs(len(killed) - len(alone))
        return {
            "measured": "LoRA training on CPU killed with SIGKILL and continued, against one left alone",
            "model": Path(model).name,
            "kills": done,
            "killed_at_steps": at_steps,
            "num_steps": len(alone),
            "bit_equal": files[0] == files[1],
            "lost": lost,
        }


def steps(run: Path) -> list[tuple[int, float]]:
    lines = (run / "steps.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, lines)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--model", default="shoestring-1m")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--forked", action="store_true", help="fork each run instead of starting it afresh; quicker")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.model, Path(options.worker), options.rows)
        return
    if options.forked:
        import peft  # noqa: F401
        from transformers import Trainer  # noqa: F401
    begin = start_forked if options.forked else start
    result = {
        **measure(options.model, options.kills, options.rows, start=begin),
        "versions": versions(),
        "machine": machine(),
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(f"{result['kills']} kills at steps {result['killed_at_steps']} of {result['num_steps']}")
        print(f"adapter bit-equal: {result['bit_equal']}; steps lost or doubled: {result['lost']}")


if __name__ == "__main__":
    main()
