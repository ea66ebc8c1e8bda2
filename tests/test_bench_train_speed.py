"""bench.train_speed: its rows are what they are said to be, and a toy run goes from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import workloads
from bench.arms import encoded_rows, num_tokens
from bench.train_speed import beside
from shoestring.train.base import detect_device, load_base, load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
MODEL = "shoestring-3m"


def shared_start(rows: list[list[int]]) -> int:
    return next(i for i, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1)


def ids(name: str, num_rows: int) -> list[list[int]]:
    return [row["input_ids"] for row in encoded_rows(MODEL, workloads.build(name, num_rows, 0).train)]


def test_rows_share_what_their_scenario_says() -> None:
    assert 380 <= shared_start(ids("shared_prompt", 40)) <= 420
    for name in ("plain", "no_sharing", "dpo"):
        assert shared_start(ids(name, 40)) <= 8
    assert all(500 <= len(row) <= 1000 for row in ids("no_sharing", 96))


def test_pairs_have_long_prompts_and_two_different_answers() -> None:
    tokenizer = load_tokenizer(MODEL)
    rows = workloads.build("dpo", 40, 10).train
    assert all(row.completion != row.rejected[0].content for row in rows)
    lengths = [num_tokens(tokenizer, row) / 2 for row in rows]
    assert 300 <= sum(lengths) / len(lengths) <= 400
    assert rows == workloads.build("dpo", 40, 3).train


def test_positions_alone_keep_flattened_rows_apart() -> None:
    """Why TRL's padding-free batches are a fair candidate on a CPU: transformers' SDPA masks follow the positions."""
    model = load_base(MODEL, device=replace(detect_device(1), dtype="float32"))
    rows = [torch.arange(10, 27)[None], torch.arange(500, 523)[None]]
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    with torch.no_grad():
        flat = model(input_ids=torch.cat(rows, 1), position_ids=positions, use_cache=False).logits
        apart = torch.cat([model(input_ids=row, use_cache=False).logits for row in rows], 1)
    assert torch.allclose(flat, apart, atol=1e-3)


def test_losses_agree_within_two_standard_errors() -> None:
    assert beside([1.0, 1.2], [1.1, 1.3])["verdict"] == "agree within noise"
    assert beside([1.0, 1.01], [1.1, 1.11])["verdict"] == "ours is higher"
    assert beside([1.0], [1.1])["verdict"] == "one seed: no spread"


def test_a_toy_run_gives_every_number() -> None:
    pytest.importorskip("trl")
    command = [sys.executable, "-m", "bench.train_speed", "--toy", "--scenario", "shared_prompt", "dpo", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["scenarios"]
    for at in (found[scenario][mode] for scenario in ("shared_prompt", "dpo") for mode in ("default", "best")):
        assert at["ratio_wall"] > 0 and at["ratio_cpu"] > 0 and len(at["num_steps"]) == 1
        for who in ("trl", "ours"):
            (run,) = at[who]
            assert run["example_tokens_per_cpu_s"] > 0 and run["peak_bytes"] > run["training_bytes"] > 0
        assert at["held_out"]["trl_mean"] == pytest.approx(at["held_out"]["ours_mean"], abs=0.1)
