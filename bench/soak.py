"""A server under mixed load for a long time: is an answer lost or crossed, does memory grow, is the queue bounded?

    python -m bench.soak [--minutes 60 | --requests N] [--adapters 4] [--json]

A real `shoestring serve` (embedded engine, shoestring-1m) in a process of its own. Each adapter has learned its answers
by heart, no two alike, so that a crossed answer is seen. Clients come and go, ask streamed and whole, for adapters and
the base; send bursts beyond the queue; read slowly; leave in the middle; send bodies beyond the limit, nonsense, wrong
keys; one adapter is dropped and loaded, others reloaded, all the while. A client process is killed now and then.

lost: well-formed requests without a whole answer, apart from 429. crossed: answers other than the adapter's own.
rejected_429: with Retry-After; well-behaved clients come again. rss_growth_frac: median resident memory of the last
sixth against that of the second sixth (the first warms up). Exit status 1 where anything was lost, crossed, wrongly
refused, or not freed, and where memory grew by more than 3 % in half an hour or longer.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine, versions
from bench.soak_adapters import MODEL, NAMES, make_runs
from bench.soak_load import (
    TIMEOUT_S,
    Actor,
    Tally,
    Target,
    asks,
    bursts,
    connect,
    has_no_key,
    know,
    leaves,
    oversends,
    read_all,
    reads_slowly,
    sends_nonsense,
)
from shoestring.serve.load import percentiles
from shoestring.serve.wire import address

KEY, ADMIN_KEY = "sk-soak-of-the-server-0123456789", "sk-admin-of-the-soak-0123456789"
QUEUE = 24
LIMITS = f"queue: {QUEUE}\ntimeout_s: 120\nmax_body_mb: 1\n"
MAX_BODY_BYTES = 1_000_000
GAUGES = ("shoestring_answers_in_flight", "shoestring_engine_num_running", "shoestring_engine_num_waiting")
STARTS_S = 180.0
ENDS_S = 60.0
SAMPLES = 360  # of memory, at least every 5 s
MUST_BE_NONE = ("lost", "crossed", "wrong_refusal", "actor_failed", "429_without_retry_after")
# (what, how many, mean pause in seconds)
ACTORS: tuple[tuple[Callable[[Target, Tally, random.Random], None], int, float], ...] = (
    (asks, 4, 0.2),
    (reads_slowly, 1, 1.0),
    (leaves, 1, 0.5),
    (oversends, 1, 1.0),
    (sends_nonsense, 1, 0.5),
    (has_no_key, 1, 1.0),
    (bursts, 1, 10.0),
)
KILLED_EVERY_S = 60.0
MAX_GROWTH_FRAC, SETTLED_MINUTES = 0.03, 30.0  # shorter runs still warm up


@dataclass
class Server:
    """`shoestring serve` in a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path
    told: dict[str, Any]

    def rss_bytes(self) -> int:
        """Resident memory of the server."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the server has ended")

    def num_files(self) -> int:
        """Open descriptors."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def end(self) -> int:
        """Ctrl-C's way out. Returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(ENDS_S)


def start(folder: Path, runs: list[Path]) -> Server:
    """Start it and wait until it says that it is ready. Raises: RuntimeError with its own words."""
    limits, log = folder / "limits.yaml", folder / "server.log"
    limits.write_text(LIMITS)
    command = [sys.executable, "-m", "shoestring", "serve", *(str(run) for run in runs), "--runs-dir", str(folder)]
    command += ["--engine", "embedded", "--port", "0", "--limits", str(limits), "--json"]
    environment = {**os.environ, "SHOESTRING_API_KEY": KEY, "SHOESTRING_ADMIN_KEY": ADMIN_KEY}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=file, env=environment, preexec_fn=hears_signals
        )
    assert process.stdout is not None
    watch = threading.Timer(STARTS_S, process.kill)
    watch.start()
    said = b""
    for line in process.stdout:
        said += line
        try:
            told = json.loads(said)
        except ValueError:
            continue
        watch.cancel()
        return Server(process, log, told)
    watch.cancel()
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")


def hears_signals() -> None:
    """A shell's background ignores Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def killed_client(target: Target, tally: Tally, draw: random.Random) -> None:
    """A whole client process, killed outright in the middle of its load."""
    command = [sys.executable, "-m", "shoestring", "bench", "serve", target.url, "--clients", "2", "--prompts", "40"]
    command += ["--requests", "100000", "--max-tokens", "32", "--models", target.base]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "SHOESTRING_API_KEY": target.key},
    )
    time.sleep(draw.uniform(3, 8))
    if process.poll() is None:
        process.kill()
        tally.note("client_process_killed")
    else:
        tally.note("lost", f"the client process ended by itself with status {process.returncode}")
    process.wait()


def reloads(target: Target, tally: Tally, draw: random.Random) -> None:
    """Reload an adapter that is asked all the while; drop the spare one and load it again."""
    tally.refusal("reload", admin(target, {"run": draw.choice(target.steady)}), (200,))
    if target.spare:
        tally.refusal("drop", admin(target, None, f"/{target.spare}"), (200,))
        time.sleep(draw.uniform(0, 0.3))
        tally.refusal("load", admin(target, {"run": target.spare}), (201,))


def admin(target: Target, body: dict[str, str] | None, path: str = "") -> int:
    """Load (body) or drop an adapter; the status. Raises: OSError."""
    _, host, port, _ = address(target.url)
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        data = None if body is None else json.dumps(body)
        headers = {"Authorization": f"Bearer {target.admin_key}", "Content-Type": "application/json"}
        connection.request("DELETE" if body is None else "POST", f"/admin/adapters{path}", data, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def soak(minutes: float | None, num_requests: int | None, num_adapters: int, pause: float = 1.0) -> dict[str, Any]:
    """The whole measurement; ends after minutes, or after so many requests."""
    with tempfile.TemporaryDirectory(prefix="shoestring-soak-") as name:
        folder = Path(name)
        runs = make_runs(folder, num_adapters)
        know(NAMES[:num_adapters])
        server = start(folder, runs)
        try:
            return measure(server, minutes, num_requests, num_adapters, pause)
        finally:
            if server.process.poll() is None:
                server.process.kill()
            server.process.communicate()


def measure(
    server: Server, minutes: float | None, num_requests: int | None, num_adapters: int, pause: float
) -> dict[str, Any]:
    names, tally, stop = NAMES[:num_adapters], Tally(), threading.Event()
    spare = names[-1] if num_adapters > 2 else ""
    steady = tuple(n for n in names if n != spare)
    target = Target(server.told["base_url"], KEY, ADMIN_KEY, MODEL, steady, spare, MAX_BODY_BYTES, QUEUE)
    actors = [
        Actor(act, target, tally, stop, pause_s=each * pause, seed=100 * place + i)
        for place, (act, num, each) in enumerate([*ACTORS, (reloads, 1, 5.0)])
        for i in range(num)
    ]
    if minutes:
        actors.append(Actor(killed_client, target, tally, stop, pause_s=KILLED_EVERY_S, seed=1))
    started_s, files_before = time.monotonic(), server.num_files()
    for actor in actors:
        actor.start()
    samples = watch(server, tally, started_s, minutes, num_requests)
    stop.set()
    for actor in actors:
        actor.join(ENDS_S + STARTS_S)
    wall_s = time.monotonic() - started_s
    left = settled(target)
    files_after, rss_after = server.num_files(), server.rss_bytes()
    status = server.end()
    counts = dict(sorted(tally.counts.items()))
    failures = [name for name in MUST_BE_NONE if counts.get(name)]
    log = server.log.read_text(errors="replace")
    failures += ["traceback in the server's log"] if "Traceback" in log else []
    failures += [f"exit status {status}"] if status else []
    failures += [f"{name} = {value} after the load" for name, value in left.items() if value]
    sixth = max(1, len(samples) // 6)
    early, late = statistics.median(samples[sixth : 2 * sixth] or samples), statistics.median(samples[-sixth:])
    growth = late / early - 1
    if wall_s >= SETTLED_MINUTES * 60 and growth > MAX_GROWTH_FRAC:
        failures.append(f"memory grew by {growth:.1%}, limit {MAX_GROWTH_FRAC:.0%}")
    return {
        "requests": tally.num_requests,
        "lost": counts.get("lost", 0),
        "crossed": counts.get("crossed", 0),
        "rss_growth_frac": growth,
        "rejected_429": counts.get("rejected_429", 0),
        "ok": not failures,
        "failures": failures,
        "minutes": wall_s / 60,
        "outcomes": counts,
        "examples": {name: tally.examples.get(name, []) for name in MUST_BE_NONE if counts.get(name)},
        "first_token_s": percentiles(tally.first_s),
        "rss_early_bytes": early,
        "rss_late_bytes": late,
        "rss_after_bytes": rss_after,
        "rss_samples_bytes": samples[:: max(1, len(samples) // 60)],
        "open_files": {"before": files_before, "after": files_after},
        "left_after": left,
        "adapters": num_adapters,
        "queue": QUEUE,
        "log_tail": log[-1500:] if failures else "",
        "machine": machine(),
        "versions": versions(),
    }


def watch(server: Server, tally: Tally, started_s: float, minutes: float | None, num_requests: int | None) -> list[int]:
    """Samples of memory until the end. Raises: RuntimeError where the server ends."""
    every_s = min(5.0, (minutes or 0.5) * 60 / SAMPLES)
    samples, last_told_s = [], time.monotonic()
    while True:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended: {server.log.read_text(errors='replace')[-2000:]}")
        samples.append(server.rss_bytes())
        now_s = time.monotonic()
        if now_s - last_told_s > 30:
            last_told_s = now_s
            told = {"minutes": round((now_s - started_s) / 60, 1), "rss_mib": samples[-1] >> 20, **tally.counts}
            told |= {f"{name}_example": tally.examples[name][-1] for name in MUST_BE_NONE if tally.examples.get(name)}
            print(json.dumps(told), file=sys.stderr, flush=True)
        if now_s - started_s >= (minutes * 60 if minutes else STARTS_S):
            return samples
        if num_requests and tally.num_requests >= num_requests:
            return samples
        time.sleep(every_s)


def settled(target: Target) -> dict[str, float]:
    """What the server still holds once nobody asks: answers on their way, running or waiting; given ten seconds."""
    for _ in range(100):
        left = gauges(target)
        if len(left) == len(GAUGES) and not any(left.values()):
            break
        time.sleep(0.1)
    return left


def gauges(target: Target) -> dict[str, float]:
    """Of GET /metrics."""
    wire = connect(target)
    wire.sendall(
        f"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {target.key}\r\n\r\n".encode()
    )
    with contextlib.closing(wire):
        text = b"".join(read_all(wire)).decode()
    told = (line.split() for line in text.splitlines() if line.startswith("shoestring_"))
    return {words[0]: float(words[1]) for words in told if words[0] in GAUGES}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--adapters", type=int, default=len(NAMES), choices=range(1, len(NAMES) + 1))
    parser.add_argument("--pause", type=float, default=1.0, help="times the usual pauses of the clients")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    minutes = given.minutes if given.minutes or given.requests else float(os.environ.get("SHOESTRING_SOAK_S", 120)) / 60
    result = soak(minutes, given.requests, given.adapters, given.pause)
    if given.json:
        print(json.dumps(result, indent=2))
    else:
        for key in (
            "minutes",
            "requests",
            "lost",
            "crossed",
            "rss_growth_frac",
            "rejected_429",
            "failures",
            "outcomes",
        ):
            print(f"{key}: {result[key]}")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
