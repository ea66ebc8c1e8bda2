"""Folders of curated files: what may be written over, and what they mean as data of another run."""

import json

import pytest

from shoestring.config import RunConfig
from shoestring.data.curate import curate_into
from shoestring.data.folder import curate
from shoestring.data.sources import files_of
from shoestring.data.store import FILES, read_curated
from shoestring.errors import BadInput, DataError
from shoestring.stages.closing import base_dir_of


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(number):
    return [{"prompt": f"what is {i} and {i * 7}", "completion": f"it is {i * 13}"} for i in range(number)]


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "a.jsonl", [*rows(80), rows(1)[0]])


def config(train, *held_out):
    data = {"train": [str(train)], "eval": list(map(str, held_out))}
    return RunConfig.model_validate({"name": "t", "task": {"kind": "generate", "bar": 0.5}, "data": data})


@pytest.mark.parametrize("name", FILES)
def test_a_file_changed_by_hand_is_not_written_over(tmp_path, source, name):
    out = tmp_path / "out"
    before = curate(source, out)
    assert curate(source, out) == before, "the same command again"
    with (out / name).open("a") as file:
        file.write("{}\n")
    changed = (out / name).read_bytes()
    with pytest.raises(BadInput, match=rf"{name}: changed since it was curated.*review.csv, and move .* elsewhere"):
        curate(source, out)
    assert (out / name).read_bytes() == changed
    (out / name).rename(tmp_path / "mine.jsonl")
    assert curate(source, out) == before


def test_a_run_does_not_write_over_a_changed_file_either(tmp_path, source):
    curate_into(tmp_path / "data", config(source), tmp_path)
    with (tmp_path / "data/train.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(BadInput, match="changed since it was curated"):
        curate_into(tmp_path / "data", config(source), tmp_path)


def test_a_source_in_the_folder_to_write_is_refused(tmp_path, source):
    curate(source, tmp_path / "out")
    with pytest.raises(BadInput, match=r"train.jsonl is in --out .*out, which would be written over; give another"):
        curate(tmp_path / "out/train.jsonl", tmp_path / "out")
    with pytest.raises(BadInput, match="give another --out"):
        curate(tmp_path / "out", tmp_path / "out")


def test_a_curated_folder_as_data_is_its_kept_rows(tmp_path, source):
    curate(source, tmp_path / "first")
    first = read_curated(tmp_path / "first")
    curate_into(tmp_path / "second", config("first", "first"), tmp_path)
    second = read_curated(tmp_path / "second")
    assert {e.id for e in second.eval} == {e.id for e in first.eval}
    assert {e.id for e in (*second.train, *second.dev)} == {e.id for e in (*first.train, *first.dev)}
    assert not second.dropped and not any("data.eval too" in note for note in second.notes)
    alone = curate_into(tmp_path / "third", config("first"), tmp_path)
    assert alone["counts"]["rows_in"] == len(first.train) + len(first.dev)
    assert "first: its eval rows are not used; to score on them name it under data.eval too" in alone["notes"]
    assert [p.name for p in files_of(["first"], tmp_path)] == ["train.jsonl", "dev.jsonl"]
    assert [p.name for p in files_of(["first"], tmp_path, is_held_out=True)] == ["eval.jsonl"]
    with pytest.raises(BadInput, match=r"holds curated data and is no run folder.*curate FILES --out"):
        base_dir_of(tmp_path / "first")


def test_a_curated_folder_without_held_out_rows_cannot_be_scored_on(tmp_path):
    curate(write(tmp_path / "few.jsonl", rows(25)), tmp_path / "few")
    with pytest.raises(DataError, match=r"few/eval.jsonl: the file is empty"):
        curate_into(tmp_path / "out", config("few", "few"), tmp_path)


def test_answers_of_conversations_and_rejected_ones_survive_being_curated_twice(tmp_path):
    chats = [
        {"messages": [{"role": ("user", "assistant")[i % 2], "content": f"turn {i} of {n * 31}"} for i in range(6)]}
        for n in range(30)
    ]
    pairs = [{"prompt": f"pair {i * 17}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(30)]
    curate(
        [write(tmp_path / "chats.jsonl", chats), write(tmp_path / "pairs.jsonl", pairs)], tmp_path / "one", kind="chat"
    )
    curate(tmp_path / "one", tmp_path / "two", kind="chat")
    one, two = read_curated(tmp_path / "one"), read_curated(tmp_path / "two")
    assert {e.id for e in (*one.train, *one.dev)} == {e.id for e in (*two.train, *two.dev, *two.eval)}
    assert two.counts["rows_expanded"] == 0 and not two.dropped
    assert sum(bool(e.rejected) for e in two.train) > 10
