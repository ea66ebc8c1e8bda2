"""One result whichever engine reads the rows; interrupted or fed with rubbish, no row is lost."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.fuzz import one_case
from shoestring.config import CurateConfig, FieldsConfig
from shoestring.data import engine as engines
from shoestring.data.curate import curate_into
from shoestring.data.engine import Local, Table
from shoestring.data.folder import curate
from shoestring.data.load import scan
from shoestring.data.rows import Builder, Settings
from shoestring.errors import BadInput
from shoestring.records import no_progress
from tests.tiny import WORDS


def rows(number, seed=0):
    """JSON lines of every kind: plain, odd, broken, repeated, contradicting."""
    rng = random.Random(seed)
    lines = []
    for i in range(number):
        row = {"prompt": " ".join(rng.choices(WORDS, k=6)) + f" {i} ?", "completion": f"label {i % 7}"}
        match rng.randrange(12):
            case 0:
                row["prompt"] = "café " + row["prompt"]
            case 1 if lines:
                lines.append(rng.choice(lines))
                continue
            case 2:
                row["completion"] = rng.choice(["", "N/A", "a <b>", "`x`", "a\ufffd", "```", "Über"])
            case 3:
                lines.append('{"prompt": "x" "y"}')
                continue
            case 4:
                row = {"prompt": f"same {i % 20}", "completion": f"label {i % 3}"}
            case 5:
                row = {"instruction": row["prompt"], "input": rng.choice(["", "more"]), "output": "fine"}
            case 6:
                row["prompt"] = "<|im_start|> " + row["prompt"]
        lines.append(json.dumps(row, ensure_ascii=rng.random() < 0.5))
    return "\n".join(lines) + "\n"


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def adds_up(folder):
    """Rows in = rows kept + rows set aside, in the receipt and in the files."""
    counts = json.loads((folder / "receipt.json").read_text())["counts"]
    lines = {n: len((folder / f"{n}.jsonl").read_text().splitlines()) for n in ("train", "dev", "eval", "dropped")}
    kept = lines["train"] + lines["dev"] + lines["eval"]
    return counts["rows_in"] + counts["rows_expanded"] == kept + lines["dropped"] == kept + counts["dropped"]


def test_the_same_bytes_in_one_process_or_two(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "WORKERS_FROM_BYTES", 0)
    monkeypatch.setattr("shoestring.data.load.WORKERS_FROM_BYTES", 0)
    monkeypatch.setattr("shoestring.data.decode.BLOCK_BYTES", 20_000)
    text = rows(3000)
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(rows(500, 1).encode()))
    (tmp_path / "c.csv").write_text("text,label\n" + "".join(f"{w} {i},l{i % 3}\n" for i, w in enumerate(WORDS * 20)))
    from shoestring.config import RunConfig

    files = [str(tmp_path / n) for n in ("a.jsonl", "b.jsonl.gz", "c.csv")]
    config = RunConfig.model_validate({"name": "t", "task": {"kind": "classify", "bar": 0}, "data": {"train": files}})
    for workers in (1, 2, 3):
        curate_into(tmp_path / str(workers), config, tmp_path, num_workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")
    assert adds_up(tmp_path / "1")


def table_of(path, kind):
    with Table() as table:
        seen = scan([str(path)], Path(), Settings(FieldsConfig(), "", kind), table, Local(1), no_progress)
        table.close()
        return list(table.lines()), table.keys.tolist(), table.code.tolist(), seen.faults


@pytest.mark.parametrize("kind", ["classify", "generate", "math", None])
def test_the_short_way_of_plain_rows_gives_what_the_long_way_gives(tmp_path, monkeypatch, kind):
    (tmp_path / "a.jsonl").write_text(rows(1500, 2))
    short = table_of(tmp_path / "a.jsonl", kind)
    monkeypatch.setattr(Builder, "_lean", lambda *_: False)
    assert table_of(tmp_path / "a.jsonl", kind) == short


def test_blocks_change_nothing(tmp_path, monkeypatch):
    text = rows(400, 3).replace("\n", "\r\n").encode() + "\xe9\n".encode("latin-1")
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text)
    (tmp_path / "b.jsonl").write_bytes(text.decode("latin-1").encode("utf-16"))
    whole = [table_of(tmp_path / name, "generate") for name in ("a.jsonl", "b.jsonl")]
    monkeypatch.setattr("shoestring.data.decode.BLOCK_BYTES", 100)
    assert [table_of(tmp_path / name, "generate") for name in ("a.jsonl", "b.jsonl")] == whole


def test_ray_keeps_the_same_rows(tmp_path):
    ray = pytest.importorskip("ray")
    (tmp_path / "a.jsonl").write_text(rows(2000))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        curate(tmp_path / "a.jsonl", tmp_path / "ray", engine="ray")
    finally:
        ray.shutdown()
    curate(tmp_path / "a.jsonl", tmp_path / "local")
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


# ---------------------------------------------------------------- folders


def test_a_folder_of_others_is_refused_and_few_rows_are_kept_together(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a b", "completion": "c d"}\n')
    summary = curate(tmp_path / "a.jsonl", tmp_path / "out")
    assert summary["counts"]["rows_train"] == 1 and "too few" in summary["notes"][-1]
    summary = curate(tmp_path / "a.jsonl", tmp_path / "out", kind="classify")  # again
    assert summary["labels"] == ["c d"] and adds_up(tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(BadInput, match="holds other files"):
        curate(tmp_path / "a.jsonl", tmp_path / "mine")
    with pytest.raises(BadInput, match="choose local or ray"):
        curate(tmp_path / "a.jsonl", tmp_path / "out", engine="spark")


def test_killed_at_any_moment_it_starts_over_and_ends_the_same(tmp_path):
    (tmp_path / "a.jsonl").write_text(rows(4000))
    code = (
        "import sys; from shoestring.data.folder import curate; "
        "print('ready', flush=True); curate('a.jsonl', sys.argv[1], kind='classify')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(name):
        return subprocess.Popen(
            [sys.executable, "-c", code, name], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
        )

    with start("whole") as whole:
        began = time.monotonic()
        assert whole.wait() == 0
        took_s = time.monotonic() - began
    for number in range(6):
        with start("killed") as process:
            process.stdout.readline()
            time.sleep(took_s * number / 8)
            process.send_signal(signal.SIGKILL)
            process.wait()
        folder = tmp_path / "killed"
        if (folder / "receipt.json").exists():
            assert contents(folder) == contents(tmp_path / "whole")
    with start("killed") as process:
        assert process.wait() == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_worker_that_dies_is_named(tmp_path, monkeypatch):
    from shoestring.errors import ShoestringError

    monkeypatch.setattr("shoestring.data.load.WORKERS_FROM_BYTES", 0)
    (tmp_path / "a.jsonl").write_text(rows(300))
    with Table() as table, Local(2) as local:
        settings = Settings(FieldsConfig(), "", "classify")
        scan([str(tmp_path / "a.jsonl")], Path(), settings, table, local, no_progress)
        local.workers[0].process.kill()
        with pytest.raises(ShoestringError, match="worker ended with status -9"):
            scan([str(tmp_path / "a.jsonl")], Path(), settings, table, local, no_progress)


# ---------------------------------------------------------------- rubbish


@pytest.mark.parametrize("number", range(12))
def test_mutated_files_neither_crash_nor_hang_nor_lose_a_row(number, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # power failures are not what this is about
    for case in range(number * 25, number * 25 + 25):
        problem = one_case(tmp_path, case)
        assert problem is None, (case, problem)


def test_rules_reach_the_engine(tmp_path):
    lines = ["same\tl1", "same\tl2", *(f"{WORDS[i % 13]} {i}\tl{i % 2}" for i in range(60))]
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    for rule, number in (("drop", 2), ("majority", 2), ("keep", 0)):
        rules = CurateConfig.model_validate({"contradictions": rule})
        summary = curate(tmp_path / "a.tsv", tmp_path / rule, kind="classify", rules=rules)
        assert summary["dropped_by_code"].get("contradiction", 0) == number
        assert ("contradiction" in summary["faults_by_code"]) == (rule == "keep")
