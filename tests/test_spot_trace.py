"""Recorded and drawn traces of spot machines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shoestring.errors import BadInput
from shoestring.plan.spot_trace import Family, Trace, exponential, mixed, read_trace, weibull

TICKS = {"metadata": {"gap_seconds": 600}, "data": [0, 1, 1, 0, 0, 1]}
UP = ((1 / 6, 0.5), (5 / 6, 1.0))  # of these ticks


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_formats_say_the_same(tmp_path: Path) -> None:
    ticks = read_trace(written(tmp_path, "us-west-2b_v100_1.json", json.dumps(TICKS)))
    table = read_trace(written(tmp_path, "up.csv", "start_h,end_h\n" + "\n".join(f"{s},{e}" for s, e in UP)))
    lines = read_trace(
        written(tmp_path, "up.jsonl", "\n".join(json.dumps({"start_h": s, "end_h": e}) for s, e in UP) + "\n\n")
    )
    for trace in (ticks, table, lines):
        assert np.allclose(trace.up, UP) and trace.length_h == pytest.approx(1.0)
    # The first machine was taken after 20 minutes; the second was there at the end.
    assert ticks.num_interruptions == 1 and ticks.up_h == pytest.approx(0.5)
    assert ticks.available(1 / 6, 7).tolist() == [False, True, True, False, False, True, False]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "start_h,end_h\n0,1\n1,x\n", "a.csv, line 3: end_h is 'x'"),
        ("b.csv", "start_h,end_h\n0,2\n1,3\n", "b.csv, line 3: start_h 1 is before the last end_h 2"),
        ("c.csv", "start_h,end_h\n2,2\n", "c.csv, line 2: end_h 2 is not after start_h 2"),
        ("d.csv", "from,to\n0,1\n", "d.csv, line 1: columns from, to; a trace is"),
        ("e.jsonl", '{"start_h": 0, "end_h": 1}\n{"start_h": 2\n', "e.jsonl, line 2: no JSON"),
        ("f.jsonl", '{"start_h": -1, "end_h": 1}\n{"start_h": 2, "end_h": 3}\n', "f.jsonl, line 1: start_h is -1"),
        ("g.json", '{"metadata": {"gap_seconds": 0}, "data": [1]}', "metadata.gap_seconds is 0"),
        ("h.json", '{"metadata": {"gap_seconds": 60}, "data": [1, -1]}', "tick 2 of data is -1"),
        ("i.json", '{"metadata": {"gap_seconds": 60}, "data": []}', "data is no list of ticks"),
        ("j.csv", "start_h,end_h\n", "no interval in it"),
        ("k.csv", "start_h,end_h\n0,nan\n", "line 2: end_h is nan"),
    ],
)
def test_broken_files_are_refused_with_the_place(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(BadInput) as refused:
        read_trace(written(tmp_path, name, text))
    assert said in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_trace(tmp_path / "none.json")


def test_machines_that_follow_at_once_are_two() -> None:
    trace = Trace(((0.0, 1.0), (1.0, 2.0)), 2.0)
    assert trace.num_interruptions == 1 and trace.available(0.5, 4).all()


def test_a_rolled_trace_holds_the_same_hours() -> None:
    trace = Trace(((1.0, 3.0), (4.0, 6.0)), 8.0)
    assert trace.rolled(2.0).up == ((0.0, 1.0), (2.0, 4.0), (7.0, 8.0))
    assert trace.rolled(2.0).up_h == trace.up_h


@pytest.mark.parametrize(
    ("family", "share"),
    [
        (Family("memoryless", exponential(3), exponential(1)), 0.75),
        (Family("weibull", weibull(3, 0.7), weibull(1, 0.6)), 0.75),
        # Nine of ten waits 20 minutes, one 7 hours: a mean of an hour.
        (Family("outages", exponential(3), mixed(exponential(1 / 3), lambda r, n: np.full(n, 7.0), 0.1)), 0.75),
    ],
)
def test_drawn_traces_have_the_share_of_their_means(family: Family, share: float) -> None:
    trace = family.trace(np.random.default_rng(3), 20_000.0)
    assert trace.up_h / trace.length_h == pytest.approx(share, abs=0.03)
    assert trace.up == family.trace(np.random.default_rng(3), 20_000.0).up
