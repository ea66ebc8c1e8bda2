"""End a training at random moments in every way, run it again each time, and compare with one left alone.

    python -m bench.kill [--kills 8] [--model shoestring-1m] [--checkpoints URL] [--json]

SIGKILL anywhere and in the middle of a save, SIGTERM, two SIGINT, a full disk (a small tmpfs where we may mount one,
else a limit on the size of files), a truncated or bit-flipped newest checkpoint, a lost machine (the run folder is
deleted, and the second place has what is needed).

bit_equal: the final adapter's bytes are those of the run left alone. lost: optimizer steps missing from, or twice in,
the step record, or recorded with another loss. wasted: work done again after each end, against the interval that
training chose: a checkpoint is due after it, is copied at the end of the step, and counts once it is written.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import machine, versions

Run = Any  # subprocess.Popen or Forked
POLL_S = 0.001
LONGEST_RUN_S = 600.0
KINDS = ("kill_in_save", "terminate", "full_disk", "truncated", "kill", "machine_lost", "flipped", "interrupt_twice")
DISK_BYTES = 256 * 2**20
MOST_NEW_STEPS = 3  # past the target, where a life begins after it
ROOM_BYTES = 60_000  # what a full disk leaves, at most: less than a checkpoint


@dataclass(frozen=True)
class Job:
    """One training of generated additions, the same each time."""

    model: str
    num_rows: int
    interruptions_per_hour: float = 0.0
    checkpoints: str = ""


def worker(job: Job, out_dir: Path, largest_file_bytes: int = 0) -> Any:
    """Train, or go on."""
    from shoestring.records import Example, Message, TrainSettings
    from shoestring.train.base import detect_device
    from shoestring.train.trainer import train_rung

    if largest_file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, resource.RLIM_INFINITY))
    num_rows = job.num_rows
    rows = [
        Example(
            (Message("user", f"What is {i} plus {i % 7}?"), Message("assistant", str(i + i % 7))), (1, 2), "kill", i
        )
        for i in range(1, num_rows + 21)
    ]
    settings = TrainSettings(
        method="lora", lora_rank=4, lora_alpha=8, learning_rate=5e-3, num_epochs=2, batch_tokens=512,
        micro_batch_tokens=256, seq_len=256, warmup_frac=0.1, weight_decay=0.01, max_grad_norm=1.0, num_evals=5,
        patience=5, num_threads=1, seed=0, max_new_tokens=8, reasons={}, checkpoints=job.checkpoints,
        interruptions_per_hour=job.interruptions_per_hour,
    )  # fmt: skip
    return train_rung(
        model=job.model,
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
            except BaseException as error:  # most are asked for
                if os.environ.get("SHOESTRING_DEBUG"):
                    traceback.print_exception(error)
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


def start(job: Job, out_dir: Path, largest_file_bytes: int = 0) -> Run:
    given = json.dumps([asdict(job), str(out_dir), largest_file_bytes])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.kill", "--worker", given]
    return subprocess.Popen(
        command, env=environment, stdout=sys.stderr, stderr=subprocess.DEVNULL, cwd=Path(__file__).resolve().parents[1]
    )


def start_forked(job: Job, out_dir: Path, largest_file_bytes: int = 0) -> Run:
    return Forked(worker, job, out_dir, largest_file_bytes)


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def finish(process: Run) -> None:
    if process.wait(LONGEST_RUN_S) != 0:
        raise SystemExit(f"a training run failed with status {process.returncode}")


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """A small file system on folder; False where we may not mount one."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    is_mounted = shutil.which("mount") is not None and not subprocess.run(["mount", *options], check=False).returncode
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def filled(folder: Path, room_bytes: int) -> Iterator[None]:
    """folder's disk with so much room left."""
    filler = folder / "filler"
    # The run writes meanwhile, and may take what was left: then the disk is full all the same.
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        left = shutil.disk_usage(folder).free - room_bytes
        while left > 0:
            left -= file.write(b"x" * min(left, 1 << 20))
    try:
        yield
    finally:
        filler.unlink()


class Victim:
    """The run that is ended again and again."""

    def __init__(self, job: Job, out_dir: Path, start: Callable[..., Run], rng: random.Random, mounted: bool) -> None:
        self.job, self.out_dir, self.start, self.rng, self.mounted = job, out_dir, start, rng, mounted
        self.steps_file = out_dir / "steps.jsonl"
        self.ends: list[dict[str, Any]] = []

    def end(self, kind: str, target: int) -> None:
        """Run until about step target, or a save after it, and end it so; a run that is over before does not count."""
        if kind == "full_disk":
            process, is_ended = self._fill_disk(target)
        else:
            process = self.start(self.job, self.out_dir)
            is_ended = self._reach(process, kind, target)
            if is_ended:
                self._signal(process, kind)
        process.wait()
        if not is_ended:
            return
        told = {"kind": kind, "at_step": num_lines(self.steps_file), "in_save": bool(self._unsealed())}
        self._damage(kind)
        self.ends.append({**told, **self._wasted(told["at_step"])})
        if kind == "machine_lost":
            shutil.rmtree(self.out_dir)

    def _reach(self, process: Run, kind: str, target: int) -> bool:
        """Wait for the moment; whether it came before the run was over."""
        began, path = time.perf_counter(), self.steps_file
        # The record of an earlier life stands until the run continues, so the step must be new in this one.
        before = path.stat().st_mtime_ns if path.is_file() else 0
        old = self._unsealed()
        more = self.rng.randint(0, MOST_NEW_STEPS)
        from_step = None
        while process.poll() is None and time.perf_counter() - began < LONGEST_RUN_S:
            if path.is_file() and path.stat().st_mtime_ns != before:
                from_step = num_lines(path) if from_step is None else from_step
                if num_lines(path) >= max(target, from_step + more):
                    break
            time.sleep(POLL_S)
        while kind == "kill_in_save" and process.poll() is None and not self._unsealed() - old:
            time.sleep(POLL_S)
        if kind != "kill_in_save":
            time.sleep(self.rng.random() * 0.2)
        return process.poll() is None

    def _signal(self, process: Run, kind: str) -> None:
        process.send_signal({"terminate": signal.SIGTERM, "interrupt_twice": signal.SIGINT}.get(kind, signal.SIGKILL))
        if kind == "interrupt_twice":
            time.sleep(self.rng.random() * 0.05)
            if process.poll() is None:
                process.send_signal(signal.SIGINT)

    def _fill_disk(self, target: int) -> tuple[Run, bool]:
        """A run that meets a full disk from about step target on; whether it ended by it."""
        if not self.mounted:
            process = self.start(self.job, self.out_dir, ROOM_BYTES)
            return process, process.wait(LONGEST_RUN_S) != 0
        process = self.start(self.job, self.out_dir)
        if not self._reach(process, "full_disk", target):
            return process, False
        with filled(self.out_dir.parent, self.rng.randrange(ROOM_BYTES)):
            return process, process.wait(LONGEST_RUN_S) != 0

    def _unsealed(self) -> set[str]:
        found = (self.out_dir / "checkpoints").glob("checkpoint-*")
        return {path.name for path in found if not (path / "COMPLETE.json").exists()}

    def _sealed(self) -> list[Path]:
        from shoestring.train.checkpoint import is_intact, step_of

        if not self.out_dir.exists():
            return []
        return sorted(filter(is_intact, (self.out_dir / "checkpoints").glob("checkpoint-*")), key=step_of)

    def _damage(self, kind: str) -> None:
        """To the newest whole checkpoint."""
        sealed = self._sealed()
        if kind not in ("truncated", "flipped") or not sealed:
            return
        path = sealed[-1] / self.rng.choice(["optimizer.pt", "adapter_model.safetensors", "COMPLETE.json"])
        content = bytearray(path.read_bytes())
        at = self.rng.randrange(len(content))
        if kind == "truncated":
            del content[at:]
        else:
            content[at] ^= 1 << self.rng.randrange(8)
        path.write_bytes(content)

    def _wasted(self, at_step: int) -> dict[str, Any]:
        """Steps and seconds that the next life does again, and what the interval allows."""
        from shoestring.train.checkpoint import read_state, step_of
        from shoestring.train.interval import Costs

        rows = [json.loads(line) for line in self.steps_file.read_bytes().split(b"\n")[:-1]]
        sealed = self._sealed()
        kept = step_of(sealed[-1]) if sealed else 0
        costs = Costs(**read_state(sealed[-1])["saving"]) if sealed else Costs()
        # Without evaluations, which end in a checkpoint, and without loading, which comes after any interruption.
        lost_s = [row["num_tokens"] / row["tokens_per_s"] for row in rows if kept < row["step"] <= at_step]
        interval_s = costs.interval_s(self.job.interruptions_per_hour)
        return {
            "wasted_steps": len(lost_s),
            "wasted_s": round(sum(lost_s), 3),
            "interval_s": round(interval_s, 3),
            "allowed_s": round(interval_s + max(lost_s, default=0.0) + costs.latency_s, 3) if costs.num else None,
        }


def measure(
    model: str, kills: int, num_rows: int, seed: int = 0, checkpoints: str = "", start: Callable[..., Run] = start
) -> dict[str, Any]:
    """Train once alone, once with ends of every kind."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="shoestring-kill-") as name, disk(Path(name) / "disk") as mounted:
        folder = Path(name)
        began = time.perf_counter()
        finish(start(Job(model, num_rows), folder / "alone"))
        alone_s, alone = time.perf_counter() - began, steps(folder / "alone")
        job = Job(model, num_rows, 3600 * kills / alone_s, checkpoints or str(folder / "second"))
        victim = Victim(job, folder / "disk" / "killed", start, rng, mounted)
        # The last ends leave steps to go: each may come some steps after its target.
        targets = sorted(rng.randint(1, max(1, int(0.8 * len(alone)))) for _ in range(kills))
        kinds = [KINDS[i % len(KINDS)] for i in range(kills)]
        if kills > len(KINDS):
            rng.shuffle(kinds)
        for kind, target in zip(kinds, targets, strict=True):
            victim.end(kind, target)
        finish(start(job, victim.out_dir))
        killed = steps(victim.out_dir)
        files = [
            (run / "adapter" / "adapter_model.safetensors").read_bytes() for run in (folder / "alone", victim.out_dir)
        ]
        same = dict(killed)
        return {
            "measured": "LoRA training on CPU ended in every way and continued, against one left alone",
            "model": Path(model).name,
            "kills": len(victim.ends),
            "by_kind": dict(Counter(end["kind"] for end in victim.ends)),
            "in_a_save": sum(end["in_save"] for end in victim.ends),
            "full_disk_by": "a tmpfs" if mounted else "a limit on the size of files",
            "second_place": checkpoints or "a folder",
            "num_steps": len(alone),
            "alone_s": round(alone_s, 1),
            "interruptions_per_hour": round(job.interruptions_per_hour),
            "bit_equal": files[0] == files[1],
            "lost": sum(same.get(step) != loss for step, loss in alone) + abs(len(killed) - len(alone)),
            "wasted": wasted(victim.ends),
            "ends": victim.ends,
        }


def wasted(ends: list[dict[str, Any]]) -> dict[str, Any]:
    """Work done again; where the newest checkpoint was damaged the one before counts, so those stand apart."""
    plain = [end for end in ends if end["kind"] not in ("truncated", "flipped", "full_disk")]
    damaged = [end for end in ends if end["kind"] in ("truncated", "flipped")]
    timed = [end for end in plain if end["allowed_s"] is not None]
    return {
        "mean_steps": sum(end["wasted_steps"] for end in plain) / max(1, len(plain)),
        "max_steps": max((end["wasted_steps"] for end in plain), default=0),
        "mean_interval_s": sum(end["interval_s"] for end in timed) / max(1, len(timed)),
        "max_s": max((end["wasted_s"] for end in timed), default=0.0),
        "past_interval_step_and_write": sum(end["wasted_s"] > end["allowed_s"] for end in timed),
        "max_steps_newest_damaged": max((end["wasted_steps"] for end in damaged), default=0),
        "max_steps_on_sigterm": max((end["wasted_steps"] for end in ends if end["kind"] == "terminate"), default=0),
    }


def steps(run: Path) -> list[tuple[int, float]]:
    lines = (run / "steps.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, lines)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=len(KINDS))
    parser.add_argument("--model", default="shoestring-1m")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoints", default="", help="second place, such as s3://BUCKET/FOLDER; default: a folder")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--forked", action="store_true", help="fork each run instead of starting it afresh; quicker")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        job, out_dir, largest_file_bytes = json.loads(options.worker)
        worker(Job(**job), Path(out_dir), largest_file_bytes)
        return
    if options.forked:
        import peft  # noqa: F401
        from transformers import Trainer  # noqa: F401
    begin = start_forked if options.forked else start
    result = {
        **measure(options.model, options.kills, options.rows, options.seed, options.checkpoints, start=begin),
        "versions": versions(),
        "machine": machine(),
    }
    if options.json:
        print(json.dumps(result))
    else:
        kinds = ", ".join(f"{num} {kind}" for kind, num in result["by_kind"].items())
        print(f"{result['kills']} ends of {result['num_steps']} steps, {result['in_a_save']} in a save: {kinds}")
        print(f"adapter bit-equal: {result['bit_equal']}; steps lost or doubled: {result['lost']}")
        print(f"work done again: {result['wasted']}")


if __name__ == "__main__":
    main()
