"""How soon the page in the browser opens: a large run, a list of many runs.

    python -m bench.page --json

The large run holds 100,000 rows (10,000 of them held out and answered by four arms) and 10,000 steps; once finished and
once in training. `_s` are seconds on the server, from the request's first byte to the answer's last, in a server that
has not read the folder before (`_again_s`: that has; `_cpu_s`: its processor time, Linux alone); `paint_` are the
browser's own: from navigation to the first contentful paint, over another such server, in Debian's Chromium by
playwright; null where either is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from shoestring.config import RunConfig
from shoestring.files import write_json, write_jsonl, write_whole
from shoestring.ledger import Ledger
from shoestring.records import ArmScore, Estimate, RowScore, TrainResult, to_json
from shoestring.runfolder import RunFolder, rung_name

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MODEL = "shoestring-1m"
LABELS = ("billing", "bug", "delivery", "refund")
FULL = {"num_rows": 100_000, "num_steps": 10_000, "num_runs": 200}
SMALL = {"num_rows": 2_000, "num_steps": 200, "num_runs": 10}


def config_of(name: str) -> RunConfig:
    """The run file of a run of this name."""
    task = {"kind": "classify", "metric": "accuracy", "bar": 0.8}
    return RunConfig.model_validate({"name": name, "task": task, "data": {"train": "tickets.jsonl"}, "models": [MODEL]})


def write_run(folder: Path, num_rows: int, num_steps: int, is_finished: bool = True) -> None:
    """A run folder as the recipe writes it: records through RunFolder, rows as JSON lines."""
    rng = random.Random(folder.name)
    run, config = RunFolder(folder), config_of(folder.name)
    write_whole(folder / "run.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    write_json(folder / "meta.json", {"updated_at": "2026-11-28T12:00:00+00:00", "base_dir": str(folder)})
    num_eval = num_rows // 10
    for side, count in (("train", num_rows - num_eval - num_rows // 50), ("dev", num_rows // 50), ("eval", num_eval)):
        write_jsonl(folder / "data" / f"{side}.jsonl", [row_of(f"{side}{i}", i) for i in range(count)])
    counts = {"rows_in": num_rows, "rows_train": num_rows - num_eval, "rows_eval": num_eval, "dropped": 0}
    run.finish("curate.json", "f" * 16, {"counts": counts, "labels": LABELS, "notes": []}, 60.0)
    kinds = (("linear", "linear"), (f"zero-shot {MODEL}", "zero_shot"), (f"few-shot {MODEL}", "few_shot"))
    arms = [arm_of(name, kind, 0.5, num_eval, rng) for name, kind in kinds]
    run.finish(
        "decide.json", "f" * 16, {"arms": to_json(arms), "instruction": "", "detectable_difference": 0.02}, 600.0
    )
    rung, ledger = folder / "rungs" / rung_name(MODEL), Ledger(folder / "ledger.jsonl")
    steps = [step_of(step, num_steps, rng) for step in range(1, num_steps + 1)]
    write_jsonl(rung / "steps.jsonl", steps)
    for item in ("curate", "decide"):
        actual = {"s": 60.0, "usd": 0.01}
        ledger.record(item, stage=item, predicted=None, actual=actual, price_usd_per_hour=0.01)
    if not is_finished:
        write_json(rung / "inputs.json", {"fingerprint": "f" * 16, "num_entries": 2})
        return
    kept = tuple(steps[:: max(1, num_steps // 500)])
    trained = TrainResult(
        *(MODEL, "lora", f"rungs/{rung.name}/adapter", num_steps, False, num_steps, 0.9, 3600.0, 2**30),
        *(10**7, 10**6, 10**7, 0.1, kept, {"dtype": "float32"}),
    )
    run.finish(f"rungs/{rung.name}/train.json", "f" * 16, to_json(trained), 3600.0)
    tuned = arm_of(f"lora {MODEL}", "finetune", 0.9, num_eval, rng)
    run.finish(f"rungs/{rung.name}/eval.json", "f" * 16, {"arm": to_json(tuned)}, 60.0)
    verdict = {"met": True, "arm": tuned.arm, "kind": "finetune", "bar": 0.8, "score": to_json(tuned.score)}
    verdict |= {
        "reason": "its lower end meets the bar",
        "next_step": "",
        "model": MODEL,
        "differences": [],
        "steps": [],
    }
    run.finish("ladder.json", "f" * 16, verdict, 0.0)


def row_of(row_id: str, number: int) -> dict[str, Any]:
    """A line of data/."""
    text = f"Ticket {number}: my parcel never came, and nobody answers the telephone. " * 3
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": LABELS[number % len(LABELS)]}]
    return {"messages": messages, "answer_span": [1, 2], "source": "tickets.jsonl", "line": number + 1, "id": row_id}


def arm_of(name: str, kind: str, right_frac: float, num_rows: int, rng: random.Random) -> ArmScore:
    """An arm whose answers are right that often."""
    rows = []
    for number in range(num_rows):
        row, right = row_of(f"eval{number}", number), rng.random() < right_frac
        expected = row["messages"][1]["content"]
        output = expected if right else f"I think this is about {LABELS[(number + 1) % len(LABELS)]}"
        prompt = row["messages"][0]["content"]
        rows.append(RowScore(row["id"], prompt, expected, output, float(right), 60, 6, 0.02, 1e-6))
    value = sum(row.score for row in rows) / num_rows
    score = Estimate(value, value - 0.01, value + 0.01)
    metrics = {"accuracy": value, "macro_f1": value}
    return ArmScore(name, kind, MODEL, "accuracy", score, num_rows, 60.0, 0.01, metrics, "wilson", tuple(rows))


def step_of(step: int, num_steps: int, rng: random.Random) -> dict[str, float]:
    """A line of steps.jsonl."""
    line = {"step": step, "loss": 3.0 * 0.999**step + rng.random() / 10, "learning_rate": 1e-3, "grad_norm": 1.0}
    line |= {"num_tokens": 2048, "tokens_per_s": 9000.0, "wall_s": step * 0.2, "peak_bytes": 2**30}
    return line | ({"dev_metric": 0.8, "dev_loss": 0.4} if step % max(1, num_steps // 10) == 0 else {})


@contextlib.contextmanager
def served(runs_dir: Path) -> Iterator[tuple[str, int]]:
    """`shoestring ui` over a folder, in a process of its own; gives its first address and its process id."""
    command = [sys.executable, "-m", "shoestring", "ui", "--runs-dir", str(runs_dir), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            assert line, "the page's server did not start"
            text += line
        try:
            yield str(json.loads(text)["url"]), process.pid
        finally:
            process.terminate()


def request_s(url: str, path: str) -> float:
    """Seconds of one request."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=60)
    headers = {"Cookie": f"shoestring-{address.port}={address.query.removeprefix('token=')}"}
    connection.connect()
    started = time.perf_counter()
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    wall_s = time.perf_counter() - started
    connection.close()
    assert answer.status == 200 and b"</html>" in body, (path, answer.status, body[:200])
    return wall_s


def cpu_s(pid: int) -> float:
    """Seconds of processor time of a process so far; on a machine that others use it says more than the clock."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def paint_s(url: str, path: str) -> float | None:
    """Seconds from navigation to the first contentful paint, in a browser that was open already."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if CHROMIUM is None:
        return None
    base = url.partition("/?")[0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(url.replace("/?", "/nowhere?"))  # the cookie, and no run read
        page.goto(base + path)
        first = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        while page.evaluate(first) is None:  # wait_for_function would ask for eval, which the page refuses
            page.wait_for_timeout(10)
        found = float(page.evaluate(first)) / 1000
        browser.close()
    return found


def measure(num_rows: int, num_steps: int, num_runs: int) -> dict[str, Any]:
    """All figures, over folders made for it."""
    with tempfile.TemporaryDirectory() as place:
        large, many = Path(place) / "large", Path(place) / "many"
        write_run(large / "done", num_rows, num_steps)
        write_run(large / "training", num_rows, num_steps, is_finished=False)
        for number in range(num_runs):
            write_run(many / f"run-{number}", 500, 200, is_finished=number % 4 > 0)
        found: dict[str, Any] = {"num_rows": num_rows, "num_steps": num_steps, "num_runs": num_runs}
        pages = {
            "open": (large, "/runs/done"),
            "open_training": (large, "/runs/training"),
            "outputs": (large, "/runs/done/outputs?only=wrong"),
            "list": (many, "/"),
        }
        for name, (runs_dir, path) in pages.items():  # each in a server that has read nothing
            with served(runs_dir) as (url, pid):
                before_s = cpu_s(pid)
                found[f"{name}_s"] = request_s(url, path)
                found[f"{name}_cpu_s"] = round(cpu_s(pid) - before_s, 2)
                found[f"{name}_again_s"] = request_s(url, path)
            with served(runs_dir) as (url, _):
                found[f"paint_{name}_s"] = paint_s(url, path)
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--small", action="store_true", help="a fiftieth of the rows, for tests")
    arguments = parser.parse_args()
    found = measure(**(SMALL if arguments.small else FULL))
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:24} {value if value is None or isinstance(value, int) else f'{value:.3f}'}")


if __name__ == "__main__":
    main()
