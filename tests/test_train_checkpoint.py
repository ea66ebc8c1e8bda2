"""train/: checkpoints written while training goes on, how often, and in a second place."""

import json
import math
import os
import shutil
import threading
from pathlib import Path

import fsspec
import pytest
import torch

from bench.checkpoint_cost import cost, embedded
from shoestring.config import load_run_file
from shoestring.errors import BadInput, BudgetStopped, ConfigError, Interrupted, MissingDependency, RunFolderError
from shoestring.plan.interval import daly_interval_s, lost_frac
from shoestring.records import Device, Example, Message, TrainSettings
from shoestring.secrets import without_secrets
from shoestring.train import checkpoint, remote, snapshot
from shoestring.train.background import Background
from shoestring.train.interval import Costs
from shoestring.train.remote import Store
from shoestring.train.trainer import train_rung
from shoestring.train.uploads import Uploads
from tests.tiny import make_model

HALF = Device("cpu", "cpu", 2**33, 1, "bfloat16", "")
OFTEN = 1e9  # interruptions an hour: a checkpoint as soon as the last one is written


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def place():
    """An empty memory:// folder."""
    fs = fsspec.filesystem("memory")
    yield "memory://bucket/kept"
    fs.rm("/bucket", recursive=True)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(remote, "RETRY_WAITS_S", (0.0, 0.0, 0.0))


def train(model, out_dir, lines, *, stop=None, metric=lambda model, tokenizer: 0.0, **changes):
    values = {
        "method": "lora", "lora_rank": 4, "lora_alpha": 8, "learning_rate": 1e-2, "num_epochs": 1,
        "batch_tokens": 128, "micro_batch_tokens": 128, "seq_len": 128, "warmup_frac": 0.1, "weight_decay": 0.0,
        "max_grad_norm": 1.0, "num_evals": 3, "patience": 5, "num_threads": 1, "seed": 0, "max_new_tokens": 8,
        "reasons": {}, "interruptions_per_hour": OFTEN,
    }  # fmt: skip
    rows = [
        Example((Message("user", f"one more than {i}?"), Message("assistant", str(i + 1))), (1, 2), "sums", i)
        for i in range(44)
    ]
    return train_rung(
        model=model, train=rows[:40], dev=rows[40:], out_dir=out_dir,
        settings=TrainSettings(**{**values, **changes}), device=HALF, dev_metric=metric,
        log=lambda line: lines.append(line) if not line.startswith("Rung ") else None,
        **({"should_stop": stop} if stop else {}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The adapter of a run left alone, which keeps the best of dev loss, and its result."""
    folder = tmp_path_factory.mktemp("whole")
    result = train(tiny, folder / "rung", [], interruptions_per_hour=0.5)
    return adapter(folder / "rung"), result


@pytest.fixture
def rung(tiny, tmp_path):
    """Trains tmp_path/rung; what it logged is in rung.lines."""
    lines = []

    def run(**options):
        return train(tiny, tmp_path / "rung", lines, **options)

    run.folder, run.lines = tmp_path / "rung", lines
    return run


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def recorded(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "steps.jsonl").read_text().splitlines()]


def stop_at(step: int):
    """A should_stop that stops after so many steps."""
    calls = iter(range(1, 1000))
    return lambda wall_s: BudgetStopped("enough") if next(calls) == step else None


# ---------------------------------------------------------------- how often


def test_the_interval_is_dalys():
    """Two seconds a checkpoint, one interruption an hour: Young says sqrt(2 x 2 x 3600) = 120 s."""
    assert daly_interval_s(2, 1) == pytest.approx(120 * (1 + math.sqrt(2 / 7200) / 3 + 2 / 7200 / 9) - 2)
    assert daly_interval_s(2, 0) == math.inf and daly_interval_s(7200, 1) == 3600


@pytest.mark.parametrize(("cost_s", "an_hour"), [(0.01, 0.3), (5, 0.3), (60, 1), (600, 2)])
def test_no_other_interval_loses_less(cost_s, an_hour):
    best = min(lost_frac(tau, cost_s, an_hour) for tau in (10 ** (i / 200) for i in range(1000)))
    assert lost_frac(daly_interval_s(cost_s, an_hour), cost_s, an_hour) <= best * 1.01


def test_the_first_checkpoint_comes_at_once_and_gives_the_interval():
    costs = Costs()
    assert costs.interval_s(1) == 0
    costs.add(3.0, 3.0, 4.0)  # memory was reserved
    costs.add(1.0, 2.0, 4.0)
    assert (costs.cost_s, costs.blocked_s, costs.num) == (2.0, 4.0, 2)
    assert costs.interval_s(1) == daly_interval_s(2, 1)
    assert costs.interval_s(1e6) == 4.0  # one is written before the next
    costs.add(3.0, 4.0, 4.0)
    assert costs.cost_s == 3.0


# ---------------------------------------------------------------- while training goes on


def test_a_fault_in_the_background_comes_out_once():
    background = Background()
    background.start(lambda: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        background.wait()
    background.wait()
    gate = threading.Event()
    background.start(gate.wait)
    assert background.is_busy
    background.check()
    gate.set()
    background.wait()
    assert not background.is_busy


def test_a_snapshot_stays_as_it_was():
    copier = snapshot.Copier()
    live = {"a": torch.ones(3), "b": [torch.zeros(2), {"lr": 0.1}], "c": (1, "x")}
    taken = copier.copied(live, "")
    live["a"].fill_(7)
    live["b"][1]["lr"] = 0.2
    assert taken["a"].tolist() == [1, 1, 1] and taken["b"][1] == {"lr": 0.1} and taken["c"] == (1, "x")
    again = copier.copied(live, "")
    assert again["a"].data_ptr() == taken["a"].data_ptr() and again["a"].tolist() == [7, 7, 7]
    assert copier.num_bytes == 20


def test_the_record_says_what_checkpoints_cost(whole):
    told = whole[1].settings["checkpoints"]
    assert told["num"] >= 4 and told["interval_s"] > 0 and told["interruptions_per_hour"] == 0.5
    assert told["written"] == "while training goes on" and 0 < told["blocked_s"] < 10
    assert "Young/Daly" in told["interval_reason"]


def test_where_a_copy_has_no_room_training_waits_and_ends_the_same(rung, whole, monkeypatch):
    monkeypatch.setattr("shoestring.train.saving.ROOM", 10**12)
    told = rung().settings["checkpoints"]
    assert "no room" in told["written"] and told["interval_s"] > 0
    assert adapter(rung.folder) == whole[0]


def test_a_failed_write_ends_training_at_the_next_step_and_leaves_the_last_whole_one(rung, whole, monkeypatch):
    write, calls = snapshot.Snapshot.write, []

    def full(self, folder):
        calls.append(self.step)
        write(self, folder)
        if len(calls) == 3:
            (folder / "optimizer.pt").write_bytes(b"half")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot.Snapshot, "write", full)
    with pytest.raises(RunFolderError, match="the disk is full"):
        rung()
    kept = [p.name for p in (rung.folder / "checkpoints").iterdir()]
    assert f"checkpoint-{calls[2]}" not in kept and f"checkpoint-{calls[1]}" in kept
    rung()
    assert adapter(rung.folder) == whole[0]


def test_a_second_ctrl_c_stops_at_once_and_harms_nothing(rung, whole, monkeypatch):
    """While the last checkpoint is being written; what is not sealed does not count."""
    write, calls, gate = snapshot.Snapshot.write, [], threading.Event()

    def slow(self, folder):
        calls.append(self.step)
        write(self, folder)
        if len(calls) == 3:
            threading.Timer(0, lambda: os.kill(os.getpid(), 2)).start()
            gate.wait(0.5)

    def interrupt(wall_s):
        if len(calls) == 2:
            os.kill(os.getpid(), 2)

    monkeypatch.setattr(snapshot.Snapshot, "write", slow)
    with pytest.raises(KeyboardInterrupt):
        rung(stop=interrupt)
    monkeypatch.undo()
    rung()
    assert adapter(rung.folder) == whole[0]


def test_the_bench_of_what_a_checkpoint_costs(tiny):
    found = cost(embedded(tiny, 4), saves=3)
    assert found["snapshot_bytes"] > 0
    for way in ("waiting", "going_on"):
        assert 0 < found[way]["blocked_s"] <= found[way]["until_it_counts_s"]
        assert found[way]["interval_s"]["1 an hour"] < found[way]["interval_s"]["0.3 an hour"]


# ---------------------------------------------------------------- a second place


def test_another_machine_goes_on_from_the_second_place(rung, whole, place):
    """The run folder is gone; steps, best adapter and bytes are those of a run left alone."""
    with pytest.raises(BudgetStopped):
        rung(stop=stop_at(6), checkpoints=place)
    shutil.rmtree(rung.folder)
    result = rung(checkpoints=place)
    assert any("training continues from memory://bucket/kept/rung" in line for line in rung.lines)
    assert recorded(rung.folder) == list(range(1, result.num_steps + 1))
    assert adapter(rung.folder) == whole[0]
    told = result.settings["checkpoints"]["uploads"]
    assert told["num"] >= 1 and not told["is_behind"] and told["last_step"] == result.num_steps
    fs = fsspec.filesystem("memory")
    kept = [p for p in fs.find("/bucket") if p.endswith(checkpoint.MARKER)]
    assert len([p for p in kept if "/checkpoints/" in p]) == checkpoint.KEEP
    assert 1 <= len([p for p in kept if "/best/" in p]) <= checkpoint.KEEP


@pytest.mark.parametrize("damage", ["flip", "marker", "best"])
def test_a_damaged_newest_one_there_falls_back_to_the_one_before(rung, whole, place, damage):
    with pytest.raises(BudgetStopped):
        rung(stop=stop_at(7), checkpoints=place)
    fs = fsspec.filesystem("memory")
    newest = max(
        {p.rpartition("/")[0] for p in fs.find("/bucket") if "/checkpoints/" in p}, key=lambda p: int(p.split("-")[-1])
    )
    if damage == "flip":
        content = bytearray(fs.cat_file(f"{newest}/optimizer.pt"))
        content[len(content) // 2] ^= 1
        fs.pipe_file(f"{newest}/optimizer.pt", bytes(content))
    elif damage == "marker":
        fs.rm_file(f"{newest}/{checkpoint.MARKER}")
    else:
        for path in fs.find("/bucket"):
            if "/best/" in path and path.endswith("safetensors"):
                fs.pipe_file(path, b"x")
    shutil.rmtree(rung.folder)
    rung(checkpoints=place)
    assert damage == "marker" or any("damaged, so removed" in line for line in rung.lines)
    assert adapter(rung.folder) == whole[0]


def test_uploads_that_fail_are_told_and_training_goes_on(rung, place, monkeypatch):
    put, calls = Store.put, []

    def broken(self, folder, name):
        calls.append(name)
        if len(calls) < 3:
            raise ConnectionError("no route to host")
        put(self, folder, name)

    monkeypatch.setattr(Store, "put", broken)
    result = rung(checkpoints=place)
    told = result.settings["checkpoints"]["uploads"]
    assert told["num_failed"] == 2 and told["num"] >= 1 and "no route to host" in told["last_fault"]
    assert any("could not be copied" in line for line in rung.lines)
    assert any("again, after" in line for line in rung.lines)


def test_what_is_tried_again_ends_with_the_last_fault():
    store, calls = Store("memory://x"), []

    def work():
        calls.append(1)
        if len(calls) < 4:
            raise ConnectionError(str(len(calls)))
        return "done"

    assert store.again(work) == "done" and len(calls) == 4
    with pytest.raises(ZeroDivisionError):
        store.again(lambda: 1 // 0)


def test_only_the_newest_waits_for_an_upload(tmp_path):
    gate, seen = threading.Event(), []

    class Slow(Store):
        def put(self, folder, name):
            gate.wait()
            seen.append(name)

    uploads = Uploads(Slow("memory://x"), print)
    folders = [tmp_path / f"checkpoint-{i}" for i in range(3)]
    for folder in folders:
        folder.mkdir()
    uploads._prune = lambda: None
    held = [uploads.offer(folder, None) for folder in folders]
    gate.set()
    uploads.background.wait()
    assert seen[-1] == "checkpoints/checkpoint-2" and len(seen) <= 3
    assert "checkpoint-2" in held[2] and "checkpoint-1" not in held[2] | held[0]


def test_a_plain_folder_is_a_second_place_too(rung, whole, tmp_path):
    with pytest.raises(BudgetStopped):
        rung(stop=stop_at(4), checkpoints=str(tmp_path / "elsewhere"))
    shutil.rmtree(rung.folder)
    rung(checkpoints=str(tmp_path / "elsewhere"))
    assert adapter(rung.folder) == whole[0]


def test_places_that_cannot_be_used_are_refused_before_training(rung, tmp_path, monkeypatch):
    monkeypatch.setitem(remote.DRIVERS, "s3", ("no_such_driver", "s3"))
    with pytest.raises(MissingDependency, match=r"pip install 'shoestring\[s3\]'"):
        rung(checkpoints="s3://bucket/x")
    with pytest.raises(BadInput, match="nonsense://x"):
        rung(checkpoints="nonsense://x")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        rung(checkpoints=str(tmp_path / "file"))
    assert not (tmp_path / "rung/steps.jsonl").exists()


def test_credentials_are_neither_taken_nor_shown(rung, tmp_path, monkeypatch):
    planted = "planted-0123456789"
    for url in (f"s3://user:{planted}@bucket/x", f"az://box/x?sig={planted}"):
        (tmp_path / "run.yaml").write_text(
            f"name: x\ntask: {{kind: classify, bar: 1}}\ndata: {{train: a}}\ntrain: {{checkpoints: '{url}'}}\n"
        )
        with pytest.raises(ConfigError, match="environment variables") as refused:
            load_run_file(tmp_path / "run.yaml")
        assert planted not in str(refused.value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", planted)
    assert planted not in without_secrets(f"403 for {planted}") and "user" not in without_secrets("s3://user:x@b/c")

    def talkative(self, folder, name):
        raise PermissionError(f"denied: key {planted} of s3://me:{planted}@bucket")

    monkeypatch.setattr(Store, "put", talkative)
    result = rung(checkpoints=str(tmp_path / "elsewhere"))
    assert "denied: key ***" in result.settings["checkpoints"]["uploads"]["last_fault"]
    shown = [*rung.lines, json.dumps(result.settings)]
    shown += [p.read_text(errors="replace") for p in (tmp_path / "rung").rglob("*") if p.is_file()]
    assert not any(planted in text for text in shown)


def test_an_interruption_waits_for_the_checkpoint_and_its_upload(rung, place):
    def terminate(wall_s):
        os.kill(os.getpid(), 15)

    with pytest.raises(Interrupted):
        rung(stop=terminate, checkpoints=place, interruptions_per_hour=0.0)
    assert [p.name for p in (rung.folder / "checkpoints").iterdir()] == ["checkpoint-1"]
    found = [p for p in fsspec.filesystem("memory").find("/bucket") if p.endswith(f"checkpoint-1/{checkpoint.MARKER}")]
    assert len(found) == 1


# ---------------------------------------------------------------- the budget


def test_the_guard_is_asked_for_the_end_of_the_next_step(rung):
    """So that no step is begun that would pass the budget."""
    asked = []
    rung(stop=lambda wall_s: asked.append(wall_s))
    rows = [json.loads(line) for line in (rung.folder / "steps.jsonl").read_text().splitlines()]
    for wall_s, row in zip(asked, rows, strict=False):
        assert wall_s >= row["wall_s"] + row["num_tokens"] / row["tokens_per_s"] - 0.01


def test_a_session_begins_no_step_that_would_pass_the_budget(rung):
    with pytest.raises(BudgetStopped):
        rung(stop=stop_at(3))
    with pytest.raises(BudgetStopped):
        rung(stop=stop_at(1))
    assert recorded(rung.folder) == [1, 2, 3]
