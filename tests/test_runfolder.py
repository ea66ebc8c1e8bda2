"""The run folder: records count only while their inputs do, and one process holds it at a time."""

import json
import os
import subprocess
import sys

import pytest

from shoestring.errors import RunFolderError
from shoestring.files import cannot_write, write_whole
from shoestring.live import Live, read_live
from shoestring.records import no_log, no_progress
from shoestring.runfolder import RunFolder, fingerprint, rung_name


def test_a_finished_record_is_read_back_for_the_same_inputs_only(tmp_path):
    folder = RunFolder(tmp_path)
    folder.finish("decide.json", "aaaa", {"arms": [1]}, wall_s=2.0)

    assert folder.finished("decide.json", "aaaa") == {"arms": [1]}
    assert folder.finished("decide.json", "bbbb") is None


def test_a_replaced_record_is_kept_in_superseded(tmp_path):
    folder = RunFolder(tmp_path)
    folder.finish("plan.json", "aaaa", 1, wall_s=0)
    folder.finish("plan.json", "bbbb", 2, wall_s=0)

    kept = list((tmp_path / "superseded").iterdir())
    assert [json.loads(p.read_text())["result"] for p in kept] == [1]


def test_what_a_killed_process_left_half_written_goes_at_the_next_start(tmp_path):
    (tmp_path / "rungs/m/.adapter.partial").mkdir(parents=True)
    for name in ("plan.json", ".plan.json.x1.tmp", "rungs/m/.adapter.partial/a", "rungs/m/.steps.jsonl.x2.tmp"):
        (tmp_path / name).write_text("{}")

    with RunFolder(tmp_path).locked():
        files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}

    assert files == {"plan.json", ".lock", ".holder.json"}


def test_a_torn_record_counts_as_not_finished(tmp_path):
    (tmp_path / "plan.json").write_text('{"stage": "plan", "fingerprint": "aaaa", "resu')

    assert RunFolder(tmp_path).finished("plan.json", "aaaa") is None


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path):
    code = (
        "import sys, pathlib; from shoestring.runfolder import RunFolder\n"
        f"with RunFolder(pathlib.Path({str(tmp_path)!r})).locked():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match=f"process {holder.pid}"), RunFolder(tmp_path).locked():
            pass
        holder.kill()
    with RunFolder(tmp_path).locked():  # a killed holder lets go
        pass


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "record.json"
    write_whole(target, "old")
    (tmp_path / "blocked").write_text("a file where a folder is needed")

    with pytest.raises(RunFolderError, match="cannot write"):
        write_whole(tmp_path / "blocked" / "record.json", "new")

    assert target.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["blocked", "record.json"]


def test_ctrl_c_in_the_middle_of_a_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    target = tmp_path / "record.json"
    write_whole(target, "old")

    def pressed(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", pressed)
    with pytest.raises(KeyboardInterrupt):
        write_whole(target, "new")

    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_rung_names_are_safe_and_distinct():
    assert rung_name("shoestring-1m") == "shoestring-1m"
    assert "/" not in rung_name("Qwen/Qwen3-0.6B")
    assert rung_name("a/b-c") != rung_name("a-b/c")
    assert rung_name("../..") not in (".", "..")


def test_fingerprints_see_every_part_and_not_the_order_of_keys():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint("a", 1) != fingerprint("a", 2)


def test_what_cannot_be_written_is_told_with_the_next_step(tmp_path):
    for number, remedy in ((28, "free space"), (30, "--runs-dir"), (13, "--runs-dir"), (1, "chattr -i"), (5, "same")):
        message = str(cannot_write(tmp_path, OSError(number, os.strerror(number))))
        assert str(tmp_path) in message and remedy in message


def test_files_have_the_mode_the_umask_asks_for(tmp_path):
    before = os.umask(0o077)
    try:
        write_whole(tmp_path / "private.json", "{}")
    finally:
        os.umask(before)
    assert (tmp_path / "private.json").stat().st_mode & 0o777 == 0o600


def test_who_works_on_a_folder_is_known_while_it_does(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.holder() is None
    with folder.locked():
        holder = folder.holder()
        assert (holder.pid, holder.is_here) == (os.getpid(), True)
    assert folder.holder() is None  # its process id is still one of ours
    write_whole(tmp_path / ".holder.json", '{"pid": "x"}')
    assert folder.holder() is None


def test_live_tells_what_a_run_does_and_how_it_ended(tmp_path):
    clock = [0.0]
    live = Live(tmp_path, no_progress, no_log, lambda: clock[0])
    assert read_live(tmp_path)["tasks"] == []
    for done in range(4):  # a step a second, ten to go
        clock[0] += 1.0
        live.progress("train m | $0.01 so far", done, 10)
    task = read_live(tmp_path)["tasks"][0]
    assert (task["label"], task["done"], task["total"], task["note"]) == ("train m", 3, 10, "$0.01 so far")
    assert task["left_s"] == 7.0
    live.progress("train m", 10, 10)
    live.log("a stage is done")
    told = read_live(tmp_path)
    assert (told["tasks"], told["lines"], told["ended"]) == ([], ["a stage is done"], None)
    live.end(RunFolderError("the disk is full"))
    ended = read_live(tmp_path)["ended"]
    assert (ended["type"], ended["message"], ended["exit_code"]) == ("RunFolderError", "the disk is full", 1)
    live.end(KeyboardInterrupt())
    assert read_live(tmp_path)["ended"]["exit_code"] == 5


def test_live_does_not_stop_a_run_where_it_cannot_be_written(tmp_path):
    (tmp_path / "blocked").write_text("a file where a folder is needed")
    live = Live(tmp_path / "blocked", no_progress, no_log)
    live.log("goes on")
    live.end(None)
