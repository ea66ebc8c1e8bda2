"""train/: two processes take the steps that one takes, and a lost one is named."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shoestring.errors import BadInput, TrainingError
from shoestring.records import Device, Example, Message, TrainSettings
from shoestring.train.division import divide, share_out
from shoestring.train.processes import call_together
from shoestring.train.schedule import Schedule
from shoestring.train.trainer import train_rung
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


def train_cases(model: str, folder: Path, names: list[str], log, changes: dict) -> dict:
    """Each case in this process, or in those of its group."""
    found = {}
    for name in names:
        turned, kind = CASES[name]
        found[name] = train_rung(
            model=model,
            train=rows(24, **kind),
            dev=rows(5, 500, **kind),
            out_dir=folder / name,
            settings=settings(**{**turned, **changes}),
            device=EXACT,
            dev_metric=metric,
            log=log,
        )
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """The cases as one process trains them: folder and results."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, train_cases(tiny, folder, list(CASES), print, {})


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


def together(tiny, folder, names, **changes):
    lines = []
    found = call_together(
        train_cases,
        {"model": tiny, "folder": folder, "names": names, "changes": changes},
        num=2,
        device=EXACT,
        folder=folder,
        hooks={"log": lines.append},
    )
    return found, lines


def test_a_base_in_shards_trains_as_a_whole_one(tiny, alone, tmp_path):
    for_one, results = alone
    measured = {"micro_batch_tokens": "derived", "recompute": "derived"}
    found, _ = together(tiny, tmp_path, ["padded", "dpo"], parallelism="fsdp", reasons=measured)
    for name in found:
        assert_same(for_one / name, tmp_path / name)
        assert found[name].settings["parallelism"] == "fsdp"
        for fact in ("adapters", "loss_path", "attention"):
            assert found[name].settings[fact] == results[name].settings[fact]


def test_two_processes_take_the_steps_of_one(tiny, alone, tmp_path):
    for_one, results = alone
    found, _ = together(tiny, tmp_path, list(CASES))
    for name in CASES:
        assert_same(for_one / name, tmp_path / name)
        assert found[name].num_steps == results[name].num_steps
        assert found[name].best_step == results[name].best_step
        assert found[name].settings["packing"] == results[name].settings["packing"]
        assert found[name].settings["backend"] == "gloo"
    assert results["forest"].settings["packing"] == "prefix forest"
    assert results["padded"].settings["packing"] == "padded rows"
