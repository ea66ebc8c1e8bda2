"""shoestring serve as a process: a run that was really trained answers its held-out rows as the evaluation did."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from shoestring.cli.main import run as command
from shoestring.cli.serve import wanted
from shoestring.errors import BadInput
from shoestring.files import read_json, read_jsonl, write_jsonl
from shoestring.recipe import Run
from tests.served_runs import make_run

COLOURS = ("red", "green", "blue")
RUN_FILE = """
name: colours
task: {kind: classify, bar: 0.99, max_new_tokens: 12}
data: {train: rows.jsonl, system: "Name the colour."}
models: shoestring-1m
curate: {eval_rows: 24}
decide: {arms: []}
train: {num_epochs: 1, num_evals: 1, num_dev_rows: 8, lora_rank: 4}
evaluate: {regression: false}
ladder: {curve: off}
market: {price_usd_per_hour: 36}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("serve")
    rows = [{"prompt": f"thing {i} is {COLOURS[i % 3]}", "completion": COLOURS[i % 3]} for i in range(130)]
    write_jsonl(base / "rows.jsonl", rows)
    (base / "run.yaml").write_text(RUN_FILE)
    Run.from_file(base / "run.yaml", runs_dir=base / "runs").execute()
    make_run(base / "runs", "other", "shoestring-1m", seed=3)
    return base


@dataclass
class Process:
    told: dict[str, Any]
    child: subprocess.Popen[str]
    key: str


def heard() -> None:
    """A test's shell in the background ignores Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Process]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SHOESTRING_")}
    with (folder / "stderr.txt").open("w") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", "shoestring", "serve", "colours", "other", "--runs-dir", "runs", "--json"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**environment, "PYTHONPATH": str(Path(__file__).parent.parent / "src")},
            preexec_fn=heard,
        )
    try:
        assert child.stdout is not None
        with child.stdout as stdout:
            text = stdout.read()  # the object's end is the file's, while the server goes on
        assert text, (folder / "stderr.txt").read_text()
        told = json.loads(text)
        yield Process(told, child, Path(told["api_key_file"]).read_text().strip())
    finally:
        child.kill()
        child.wait()


def test_one_object_says_where(server: Process, folder: Path) -> None:
    told = server.told
    assert told["base_url"].startswith("http://127.0.0.1:") and told["base_url"].endswith("/v1")
    assert told["models"] == ["shoestring-1m", "colours", "other"] and told["engine"] == "embedded"
    assert told["usd_per_hour"] == 36 and Path(told["usage_file"]).is_file()
    for name in ("api_key_file", "admin_key_file"):
        assert stat.S_IMODE(Path(told[name]).stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "runs" / ".serving").stat().st_mode) == 0o700
    assert server.key not in (folder / "stderr.txt").read_text()


def test_served_answers_are_the_evaluated_ones(server: Process, folder: Path) -> None:
    rung = folder / "runs" / "colours" / "rungs" / "shoestring-1m"
    arm = read_json(rung / "eval.json")["result"]["arm"]
    evaluated = {row["id"]: row["output"] for row in arm["rows"]}
    assert len(evaluated) == 24 and len(set(evaluated.values())) > 1
    rows = [row for row in read_jsonl(folder / "runs" / "colours" / "data" / "eval.jsonl") if row["id"] in evaluated]
    with OpenAI(base_url=server.told["base_url"], api_key=server.key, max_retries=0) as client:

        def ask(row: dict[str, Any]) -> tuple[str, int]:
            turns = [turn for turn in row["messages"][:-1] if turn["role"] != "system"]  # the run's own is put there
            answer = client.chat.completions.create(model="colours", messages=turns)
            return answer.choices[0].message.content, answer.usage.prompt_tokens

        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(ask, rows))
    assert {row["id"]: text for row, (text, _) in zip(rows, told, strict=True)} == evaluated
    num_tokens = {row["id"]: row["num_prompt_tokens"] for row in arm["rows"]}
    assert [num_tokens[row["id"]] for row in rows] == [number for _, number in told]
    used = read_jsonl(folder / "runs" / ".serving" / "usage.jsonl")[-24:]
    assert all(row["model"] == "colours" and row["key"] == "default" for row in used)
    # Shares of the machine's time add up to no more than it was busy.
    spent = sum(row["cost_usd"] for row in used)
    assert 0 < spent <= 36 / 3600 * sum(row["wall_s"] for row in used)


def test_a_second_signal_ends_at_once(server: Process, folder: Path) -> None:
    with OpenAI(base_url=server.told["base_url"], api_key=server.key, max_retries=0) as client:
        stream = client.chat.completions.create(
            model="other", messages=[{"role": "user", "content": "a"}], n=16, stream=True, temperature=2, max_tokens=400
        )
        chunks = iter(stream)
        next(chunks)
        server.child.send_signal(signal.SIGINT)
        for _ in range(50):
            next(chunks)  # goes on
        server.child.send_signal(signal.SIGINT)
        with pytest.raises(Exception):  # noqa: B017  # whatever the SDK makes of a connection that breaks
            for _ in chunks:
                pass
    assert server.child.wait(300) == 0
    assert "Traceback" not in (folder / "stderr.txt").read_text()


# ---- what is refused ----


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "name what to serve"),
        (["nowhere"], "no run"),
        (["other", "other"], "named twice"),
        (["other", "shoestring-1m"], "is a base model"),
        (["other", "--port", "70000"], "is no port"),
        (["other", "--engine", "magic"], "no engine"),
        (["other", "--limits", "none.yaml"], "cannot be read"),
        (["other", "--host", "no such host"], "no address"),
        (["rows.jsonl"], "rows.jsonl"),
    ],
)
def test_what_cannot_be_served_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, arguments: list[str], why: str
) -> None:
    monkeypatch.chdir(folder)
    assert command(["serve", *arguments, "--runs-dir", "runs"]) == 2
    assert why in capfd.readouterr().err


def test_check_says_what_would_be_served(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(folder)
    assert command(["serve", "colours", "runs/other", "--runs-dir", "runs", "--check", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["serves"] and [(row["name"], row["decision"]) for row in told["runs"]] == [
        ("colours", "serve"),
        ("other", "serve"),
    ]
    make_run(folder / "runs", "odd", "shoestring-1m", use_dora=True)
    assert command(["serve", "other", "odd", "--runs-dir", "runs", "--check"]) == 2
    assert "DoRA" in capfd.readouterr().out


def test_a_mistyped_run_path_is_no_model_to_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="there is no run 'runs/nosuch'"):
        wanted(("runs/nosuch",), Path("runs"))
    assert wanted(("Qwen/Qwen3-0.6B",), Path("runs")) == ([], "Qwen/Qwen3-0.6B")
