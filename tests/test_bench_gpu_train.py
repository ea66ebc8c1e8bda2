"""bench.gpu_train goes from end to end at toy size on a CPU; an arm that cannot run says why and stops nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.arms import num_tokens
from bench.gpu_train import SCENARIOS, SIZES, claims, steady_tokens_per_s
from shoestring.train.tokens import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]


def test_full_rows_fill_the_sequence_and_the_shared_turn_has_its_size() -> None:
    tokenizer = load_tokenizer("shoestring-3m")
    size = replace(SIZES[False], num_steps=1)
    lengths = [num_tokens(tokenizer, row) for row in SCENARIOS["full"](size, tokenizer).train]
    assert len(lengths) == size.rows_per_step * size.num_steps
    assert all(0.97 * size.row_tokens <= length <= size.row_tokens for length in lengths)
    shared = SCENARIOS["shared"](size, tokenizer).train[0]
    assert 0.97 * size.shared_tokens <= num_tokens(tokenizer, shared) <= size.shared_tokens + 100


def test_the_first_steps_do_not_count() -> None:
    assert steady_tokens_per_s({"step_s": [60.0, 30.0, 2.0, 2.0]}, 4000) == 500.0


def test_a_claim_without_its_arm_is_not_made() -> None:
    found = claims({"full": {"ours bf16": {"tokens_per_s": 30.0}, "trl bf16": {"failed": "out of memory"}}})
    assert found["ours bf16 over TRL at its best"] is None
    assert found["ours bf16 tokens/s, goal on an H200 16000"] == 30.0


def test_a_toy_run_reports_every_arm() -> None:
    pytest.importorskip("trl")
    command = [sys.executable, "-m", "bench.gpu_train", "--toy", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    full = found["scenarios"]["full"]
    for arm in ("ours bf16", "trl bf16"):
        assert full[arm]["tokens_per_s"] > 0 and full[arm]["num_steps"] == 3
    assert found["scenarios"]["shared"]["ours bf16"]["settings"]["sharing_factor"] > 1.3
    assert full["ours fp8"]["failed"]
    assert "--unsloth-python" in full["unsloth bf16"]["skipped"]
