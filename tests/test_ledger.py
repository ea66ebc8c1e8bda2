"""The ledger: appended, summed, and readable after a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoestring.errors import RunFolderError
from shoestring.ledger import Ledger
from shoestring.records import Estimate


def test_entries_and_sum_by_hand(tmp_path):
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    assert ledger.entries() == [] and ledger.spent_usd() == 0
    predicted = {"usd": Estimate(0.02, 0.01, 0.05), "s": Estimate(60, 30, 150), "bytes": None}
    ledger.record(
        "train a", stage="train", predicted=predicted, actual={"usd": 0.03, "s": 90, "bytes": 7}, price_usd_per_hour=1.2
    )
    ledger.record(
        "curate", stage="curate", predicted=None, actual={"usd": 0.01, "s": 2, "bytes": None}, price_usd_per_hour=1.2
    )
    first, second = ledger.entries()
    assert first["predicted"] == {
        "usd": {"low": 0.01, "expected": 0.02, "high": 0.05},
        "s": {"low": 30, "expected": 60, "high": 150},
    }
    assert first["actual"] == {"usd": 0.03, "s": 90.0, "bytes": 7.0}
    assert second["predicted"] is None and second["actual"] == {"usd": 0.01, "s": 2.0}
    assert ledger.spent_usd() == pytest.approx(0.04)
    assert first["stage"] == "train" and first["at"].endswith("+00:00")


def test_torn_last_line_is_ignored_reported_and_survived(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    for item in ("one", "two"):
        ledger.record(item, stage="s", predicted=None, actual={"usd": 1.0}, price_usd_per_hour=1)
    whole = path.read_bytes()
    last = whole.rindex(b'{"at"')
    for cut in range(last + 1, len(whole) - 1):  # every place a kill can cut the second line
        path.write_bytes(whole[:cut])
        assert [e["item"] for e in ledger.entries()] == ["one"]
        assert ledger.torn_lines() == [2]
    ledger.record("three", stage="s", predicted=None, actual={"usd": 1.0}, price_usd_per_hour=1)
    assert [e["item"] for e in ledger.entries()] == ["one", "three"]
    assert ledger.torn_lines() == [2] and ledger.spent_usd() == 2
    path.write_bytes(whole[:-1])  # only the newline is missing: the entry is whole
    ledger.record("three", stage="s", predicted=None, actual={"usd": 1.0}, price_usd_per_hour=1)
    assert [e["item"] for e in ledger.entries()] == ["one", "two", "three"]


def test_a_training_under_way_is_priced_from_its_step_records(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for name, mark in (("a", "aaaa"), ("b", "bbbb")):
        (tmp_path / "rungs" / name).mkdir(parents=True)
        (tmp_path / "rungs" / name / "inputs.json").write_text(json.dumps({"fingerprint": mark, "num_entries": 0}))
        lines = '{"step": 1, "wall_s": 90.0}\n{"step": 2, "wall_s": 180.0}\n{"step": 3, "wal'
        (tmp_path / "rungs" / name / "steps.jsonl").write_text(lines)
    entry = {"stage": "train", "predicted": None, "price_usd_per_hour": 1, "fingerprint": "aaaa"}
    ledger.record("rungs/a/train", actual={"usd": 0.5}, **entry)

    assert ledger.live_s() == {"b": 180.0}
    assert ledger.spent_usd() == 0.5
    assert ledger.spent_usd(live_usd_per_hour=2) == pytest.approx(0.6)  # a twentieth of an hour
    assert ledger.spent_usd(live_usd_per_hour=2, but="b") == 0.5
    (tmp_path / "rungs" / "a" / "inputs.json").write_text(json.dumps({"fingerprint": "aaaa", "num_entries": 1}))
    assert ledger.live_s() == {"a": 180.0, "b": 180.0}  # begun again after that line


def test_lines_are_one_json_object_each_whatever_the_item(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.record('a "b"\n\u2028</script>', stage="s", predicted=None, actual={}, price_usd_per_hour=None)
    lines = (tmp_path / "ledger.jsonl").read_bytes().split(b"\n")
    assert len(lines) == 2 and json.loads(lines[0])["item"] == 'a "b"\n\u2028</script>'


def test_entries_survive_kill_9(tmp_path):
    path = tmp_path / "ledger.jsonl"
    code = (
        "import os, signal, sys; from pathlib import Path; from shoestring.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "for i in range(5):\n"
        "    ledger.record(f'{i}', stage='s', predicted=None, actual={'usd': 1}, price_usd_per_hour=1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    source = str(Path(__file__).parents[1] / "src")
    subprocess.run([sys.executable, "-c", code, str(path)], env={**os.environ, "PYTHONPATH": source}, check=False)
    assert Ledger(path).spent_usd() == 5


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_says_what_to_do(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match="permission denied"):
        Ledger(tmp_path / "ledger.jsonl").record("x", stage="s", predicted=None, actual={}, price_usd_per_hour=1)


def test_full_disk_says_what_to_do():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(RunFolderError, match="disk is full"):
        Ledger(Path("/dev/full")).record("x", stage="s", predicted=None, actual={}, price_usd_per_hour=1)
