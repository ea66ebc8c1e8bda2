"""serve/: merged weights are what base and adapter are together, and the card says what the records say."""

import dataclasses
import json
import os

import pytest

from shoestring.config import parse_run_file
from shoestring.errors import BadInput, ModelError
from shoestring.records import ArmScore, Device, Estimate, Example, MergeCheck, Message, TrainSettings
from shoestring.serve.card import merge_choice, write_gguf_card, write_model_card
from shoestring.serve.gguf_check import GgufCheck
from shoestring.serve.merge import ORIGIN, merge_adapter
from shoestring.train.trainer import train_rung
from tests.tiny import make_model

HALF = Device("cpu", "cpu", 2**33, 1, "bfloat16", "")
ROWS = [
    Example((Message("user", f"one more than {i}?"), Message("assistant", str(i + 1))), (1, 2), "sums", i)
    for i in range(60)
]
CONFIG = parse_run_file("name: sums\ntask: {kind: generate, bar: 0.5}\ndata: {train: rows.jsonl}\n")
ARM = ArmScore(
    "lora tiny", "finetune", "shoestring-1m", "chrf", Estimate(0.61, 0.55, 0.67), 100, 65.0, 0.02,
    {"chrf": 0.61, "rouge_l": 0.5}, "bootstrap", details={"train_s": 60.0, "num_steps": 30},
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("model") / "tiny", hidden=64))


def adapter_of(tiny, out_dir, method="lora"):
    settings = TrainSettings(
        method=method, lora_rank=4, lora_alpha=8, learning_rate=1e-2, num_epochs=2, batch_tokens=512,
        micro_batch_tokens=512, seq_len=128, warmup_frac=0.1, weight_decay=0.0, max_grad_norm=1.0, num_evals=1,
        patience=1, num_threads=1, seed=0, max_new_tokens=8, reasons={},
    )  # fmt: skip
    train_rung(
        model=tiny, train=ROWS[:48], dev=[], out_dir=out_dir, settings=settings, device=HALF,
        dev_metric=lambda model, tokenizer: 0.0,
    )  # fmt: skip
    return out_dir / "adapter"


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_merged_weights_are_base_and_adapter(tiny, tmp_path, method):
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    adapter = adapter_of(tiny, tmp_path / "rung", method)
    check = merge_adapter(tiny, adapter, tmp_path / "merged", device=HALF, examples=ROWS[48:])
    assert check.passed and check.num_tokens == sum(len(e.completion) + 1 for e in ROWS[48:])
    assert 0 < check.mean_abs_logprob_diff < 0.1 * check.adapter_effect
    merged = tmp_path / "merged"
    assert {path.stat().st_mode for path in merged.iterdir()} == {(merged / "config.json").stat().st_mode}
    config = json.loads((merged / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "bfloat16"
    assert (merged / "chat_template.jinja").is_file() and (merged / "generation_config.json").is_file()
    origin = json.loads((merged / ORIGIN).read_text())
    assert origin["compared_in"] == "float32" and ("NF4" in origin["base"]) == (method == "qlora")
    card = write_model_card(merged, CONFIG, ARM, {"rows_in": 60, "rows_train": 48}, check).read_text()
    assert "0.610 | 0.550 | 0.670" in card and "Merge check" in card and "rows train: 48" in card


def test_merging_nothing_is_refused(tiny, tmp_path):
    with pytest.raises(BadInput, match="holds no adapter"):
        merge_adapter(tiny, tmp_path, tmp_path / "merged", device=HALF, examples=ROWS)


def test_a_damaged_adapter_is_named(tiny, tmp_path):
    weights = adapter_of(tiny, tmp_path / "rung") / "adapter_model.safetensors"
    os.truncate(weights, 100)
    with pytest.raises(ModelError, match=r"is damaged .*train this rung again"):
        merge_adapter(tiny, weights.parent, tmp_path / "merged", device=HALF, examples=ROWS[48:])


def test_a_card_says_what_failed_and_what_is_unknown(tiny, tmp_path):
    check = MergeCheck(10, 0.4, 0.7, 0.5, 0.2, False)
    arm = dataclasses.replace(ARM, model=tiny)
    text = write_model_card(tmp_path, CONFIG, arm, {}, check).read_text()
    assert "failed: use the adapter" in text and "not stated here" in text
    (tmp_path / "adapter_config.json").write_text("{}")
    text = write_model_card(tmp_path, CONFIG, ARM, {}, check).read_text()
    assert "PeftModel" in text and "license: apache-2.0" in text and "Merge check" not in text


def test_cards_tell_of_two_merges_and_of_gguf_files(tiny, tmp_path):
    told = {
        "metric": "chrf",
        "num_rows": 9,
        "dequantised": 0.5,
        "original": 0.7,
        "p_value": 0.01,
        "shipped": "original",
    }
    words = merge_choice(told)
    assert words == "onto original weights (chrf 0.700, onto the dequantised 0.500; 9 held-out rows, p = 0.01)"
    check = MergeCheck(10, 0.4, 0.7, 0.5, 0.2, False, faults=("its files lack x",), candidates=told)
    text = write_model_card(tmp_path, CONFIG, ARM, {}, check).read_text()
    assert f"- of two merges: {words}" in text and "- its files lack x" in text
    gguf = GgufCheck("sums-q8_0.gguf", "q8_0", 17, 17, 48, 0.002, 1.0, 0.94, 0.001, 0.5, True, "")
    text = write_gguf_card(tmp_path, CONFIG, ARM, {}, [gguf], ["llama-server -m x"], ["rounded"]).read_text()
    assert (
        "library_name: gguf" in text
        and "| sums-q8_0.gguf | q8_0 | 0.002 | 0.001 | 0.5 | 100.0% | 94% | 17/17 |" in text
    )
    assert "$ llama-server -m x" in text
