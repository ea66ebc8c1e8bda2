"""train/: two processes take the steps that one takes, and a lost one is named."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from shoestring.errors import BadInput, Interrupted, TrainingError
from shoestring.records import Device, Example, Message, TrainSettings
from shoestring.train.division import divide, share_out
from shoestring.train.processes import START, call_together
from shoestring.train.schedule import PASS_TOKENS, Schedule
from shoestring.train.trainer import train_rung
from tests import group_work
from tests.tiny import WORDS, make_model

EXACT = Device("cpu", "cpu", 2**33, 1, "float32", "so that sums can be compared")


def settings(**changes) -> TrainSettings:
    values = {
        "method": "lora", "lora_rank": 4, "lora_alpha": 8, "learning_rate": 1e-2, "num_epochs": 1, "batch_tokens": 400,
        "micro_batch_tokens": 200, "seq_len": 256, "warmup_frac": 0.1, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "num_evals": 2, "patience": 2, "num_threads": 1, "seed": 0, "max_new_tokens": 8, "reasons": {},
    }  # fmt: skip
    return TrainSettings(**{**values, **changes})


def rows(num_rows: int, first: int = 0, *, pairs: bool = False, shared: str = "") -> list[Example]:
    """Sums; prompts and answers differ in length, and begin with `shared`."""
    made = []
    for i in range(first, first + num_rows):
        answer = " ".join(WORDS[: i % 5]) + f" {i + 1}"
        asked = f"{shared}{WORDS[i * 5 % 13]} {WORDS[i % 7]}: one more than {i}?"
        turns = (Message("user", asked), Message("assistant", answer))
        rejected = (Message("assistant", f"{i + 7}"),) if pairs else ()
        made.append(Example(turns, (1, 2), "sums", i, rejected=rejected))
    return made


SHARED = "You add one to a number, and you answer with the sum in words and digits. "
CASES = {
    "padded": ({}, {}),
    "forest": ({"batch_tokens": 1000, "micro_batch_tokens": 500}, {"shared": SHARED}),
    "dpo": ({"objective": "dpo", "learning_rate": 1e-3}, {"pairs": True}),
    "kto": ({"objective": "kto", "learning_rate": 1e-3}, {"pairs": True}),
}


def metric(model, tokenizer) -> float:
    """Of the weights, so that each evaluation has another one."""
    return float(sum(p.detach().abs().sum() for n, p in model.named_parameters() if "lora_B" in n)) % 1.0


def train_case(model: str, folder: Path, name: str, log, **changes):
    turned, kind = CASES[name]
    return train_rung(
        model=model,
        train=rows(24, **kind),
        dev=rows(5, 500, **kind),
        out_dir=folder,
        settings=settings(**{**turned, **changes}),
        device=EXACT,
        dev_metric=metric,
        log=log,
    )


def train_cases(model: str, folder: Path, kinds: dict[str, dict], log) -> dict:
    """Each case under each kind of settings, in this process or in those of its group."""
    return {
        f"{name} {kind}": train_case(model, folder / f"{name} {kind}", name, log, **changes)
        for kind, changes in kinds.items()
        for name in CASES
        if kind == "ddp" or name in ("forest", "dpo")  # seconds
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """The cases as one process trains them: folder and results."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, {name: train_case(tiny, folder / name, name, print) for name in CASES}


def steps_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def assert_same(one: Path, other: Path) -> None:
    """Loss and gradient norm of every step, evaluations, and the adapter, to rounding in float32."""
    steps = list(zip(steps_of(one), steps_of(other), strict=True))
    for a, b in steps:
        assert a.keys() == b.keys()
        for key in {"loss", "grad_norm", "dev_loss"} & a.keys():
            assert a[key] == pytest.approx(b[key], rel=1e-5), (a["step"], key)
    weights = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, matrix in weights[0].items():
        assert float((matrix - weights[1][name]).norm() / matrix.norm()) < 1e-5, name


KINDS = {
    "ddp": {"parallelism": "ddp"},
    # Passes are measured too, over layers that come and go.
    "fsdp": {"parallelism": "fsdp", "reasons": {"micro_batch_tokens": "derived", "recompute": "derived"}},
}


def children():
    """Processes of this one; other tests may have left some to go on until it ends."""
    return set(psutil.Process().children())


def test_two_processes_take_the_steps_of_one(tiny, alone, tmp_path):
    for_one, results = alone
    job = {"model": tiny, "folder": tmp_path, "kinds": KINDS}
    found = call_together(train_cases, job, num=2, device=EXACT, folder=tmp_path, hooks={"log": print})
    assert len(found) == 6
    for name, result in found.items():
        one = results[name.split()[0]]
        assert_same(for_one / name.split()[0], tmp_path / name)
        assert (result.num_steps, result.best_step) == (one.num_steps, one.best_step)
        assert result.settings["parallelism"] == name.split()[1]
        assert result.settings["backend"] == "gloo"
        for fact in ("packing", "adapters", "loss_path", "attention"):
            assert result.settings[fact] == one.settings[fact]
    assert results["forest"].settings["packing"] == "prefix forest"
    assert results["padded"].settings["packing"] == "padded rows"


def test_a_killed_process_is_named_and_the_rest_is_trained_by_one(tiny, alone, tmp_path):
    for_one, _ = alone
    seen = []
    others = children()

    def kill_second(label: str, done: int, total: int | None) -> None:
        seen.append(done)
        if label.startswith("train") and done == 3:
            members = sorted(children() - others, key=lambda child: (child.create_time(), child.pid))
            members[1].kill()

    job = {
        "model": tiny, "train": rows(24), "dev": rows(5, 500), "out_dir": tmp_path / "rung", "device": EXACT,
        "dev_metric": metric,
    }  # fmt: skip
    with pytest.raises(TrainingError, match=r"process 1 of 2 was killed by SIGKILL.*run the same command"):
        train_rung(**job, settings=settings(num_processes=2, parallelism="ddp"), progress=kill_second)
    assert not children() - others
    assert len(seen) >= 3
    train_rung(**job, settings=settings())
    assert_same(for_one / "padded", tmp_path / "rung")


# ---------------------------------------------------------------- processes


def test_an_unforeseen_failure_is_named_with_its_process(tmp_path):
    others = children()
    with pytest.raises(TrainingError, match=r"process 1 of 2 failed: LookupError: no such thing.*rank-1\.txt"):
        call_together(group_work.fail, {}, num=2, device=EXACT, folder=tmp_path, hooks={"log": print})
    assert not children() - others
    assert "Traceback" in (tmp_path / "processes" / "rank-1.txt").read_text()


def test_the_first_process_is_heard_and_a_signal_to_the_caller_reaches_it(tmp_path):
    told = []

    def stop(total: int) -> None:
        told.append(total)
        os.kill(os.getpid(), signal.SIGTERM)

    job = {"numbers": list(range(101))}
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        call_together(group_work.add_up_and_wait, job, num=2, device=EXACT, folder=tmp_path, hooks={"log": stop})
    assert told == [5050]


def test_a_process_ends_with_its_caller():
    """The end of the pipe that the caller holds is all that it sees of a kill -9."""
    life, keep = os.pipe()
    ours, theirs = Pipe()
    alone = subprocess.Popen(
        [sys.executable, "-c", START, str(theirs.fileno()), str(life)], pass_fds=(theirs.fileno(), life)
    )
    os.close(life)
    os.close(keep)
    assert alone.wait(60) == 1
    ours.close()


def test_what_does_not_pickle_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(BadInput, match="dev_metric must be a function of a module"):
        call_together(lambda log: None, {}, num=2, device=EXACT, folder=tmp_path, hooks={"log": print})


def test_more_processes_than_gpus_are_refused(tiny, tmp_path):
    card = replace(EXACT, kind="cuda", num_devices=2)
    with pytest.raises(BadInput, match=r"num_processes = 3, and this machine has 2 x cpu; give at most 2"):
        train_rung(
            model=tiny, train=rows(4), dev=[], out_dir=tmp_path, settings=settings(num_processes=3), device=card,
            dev_metric=metric,
        )  # fmt: skip


# ---------------------------------------------------------------- division


def test_a_step_is_divided_by_computed_tokens():
    """Rows of 100 tokens in two micro-batches, then one of 400: half of the tokens each."""
    sizes = {0: 100, 1: 100, 2: 100, 3: 100, 4: 400}
    size = lambda batch: sum(sizes[row] for row in batch)  # noqa: E731
    assert share_out(((0, 1), (2, 3), (4,)), size, 2) == (((0, 1), (2, 3)), ((4,),))
    assert share_out(((0, 1, 2, 3),), size, 2) == (((0, 1),), ((2, 3),))
    assert share_out(((4,),), size, 3) == (((4,),), (), ())


@pytest.mark.parametrize("num", [2, 3, 8])
def test_a_division_loses_no_row_and_is_nearly_even(num):
    rng = random.Random(num)
    lengths = [rng.choice([20, 50, 300]) for _ in range(60)]
    size = lambda batch: len(batch) * max(lengths[row] for row in batch)  # noqa: E731
    order = sorted(range(60), key=lengths.__getitem__)
    step = tuple(tuple(order[at : at + 7]) for at in range(0, 60, 7))
    made = divide(Schedule((step,), tuple(lengths), (0,)), size, num)
    assert [row for share in made.shares[0] for batch in share for row in batch] == order
    assert made.schedule.steps == (tuple(batch for share in made.shares[0] for batch in share),)
    assert made.schedule.computed_tokens == (sum(map(size, made.schedule.steps[0])),)
    loads = [sum(size(batch) + PASS_TOKENS for batch in share) for share in made.shares[0]]
    assert max(loads) <= sum(loads) / num + max(lengths) + PASS_TOKENS
