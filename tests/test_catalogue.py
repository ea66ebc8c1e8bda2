"""`shoestring models`: what it lists, filters and says to fit."""

from __future__ import annotations

import json

import pytest

from shoestring.cli.main import run
from shoestring.errors import BadInput
from shoestring.plan.catalogue import entries, fits, read_size, select
from shoestring.plan.shapes import table, table_name


def test_every_model_is_listed_with_its_licence_and_source():
    listed = entries()
    assert {e.model for e in listed} == set(table())
    assert [e.num_params for e in listed] == sorted(e.num_params for e in listed)
    for entry in listed:
        assert entry.licence and entry.source and entry.grade in "ABC", entry.model
        assert entry.gated in ("yes", "no", "unknown"), entry.model
        assert 0 < entry.embedding_frac < 0.7, entry.model
        assert entry.num_active_params <= entry.num_params, entry.model
        assert entry.num_windowed_layers + entry.num_linear_attention_layers <= entry.num_layers, entry.model


def test_names_lead_to_one_model():
    for row in table().values():
        for name in row["also_named"].split("|"):
            assert not name or table_name(name) == row["model"]
    assert table_name("llama-2-7b") == "meta-llama/Llama-2-7b-hf"
    assert table_name("Qwen3-8B") == "Qwen/Qwen3-8B" and table_name("Qwen9") is None
    for name, model in (
        ("unsloth/llama-3-8b-bnb-4bit", "meta-llama/Meta-Llama-3-8B"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-7B-v0.3"),
        ("Phi-3-mini-4k-instruct", "microsoft/Phi-3-mini-4k-instruct"),
    ):
        assert table_name(name) == model


def test_filters():
    assert all(e.is_permissive and e.num_params <= 2e9 for e in select("permissive", "2B"))
    assert {e.licence for e in select("llama")} == {"Llama community licence (not permissive)"}
    assert [read_size(s) for s in ("8B", "1.5b", "500M", "7000")] == [8e9, 1.5e9, 5e8, 7000]
    with pytest.raises(BadInput, match=r"'gpl'; known: permissive, Apache-2\.0"):
        select("gpl")
    with pytest.raises(BadInput, match="'8 bn' is not a size; write 8B"):
        select(max_params="8 bn")


def test_what_fits_grows_with_the_card():
    chosen = select(max_params="40B")
    small, large = fits(chosen, "T4"), fits(chosen, "H100")
    for entry in chosen:
        if small[entry.model].method == "lora":
            assert large[entry.model].method == "lora", entry.model
    assert small["Qwen/Qwen3-0.6B"].method.startswith("lora") and small["Qwen/Qwen3-32B"].method == "no"
    assert large["openai/gpt-oss-20b"].refused == "a mixture of experts"
    assert large["Qwen/Qwen3-32B"].method.startswith("qlora")


def test_command(capfd):
    assert run(["models", "--licence", "permissive", "--max-params", "1B", "--fits", "RTX 4090"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["model", "params", "context"] and "trains on RTX 4090" in lines[0]
    assert any(line.startswith("Qwen/Qwen3-0.6B") and "GiB" in line for line in lines)
    assert run(["models", "--licence", "llama", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["fits_gpu"] is None
    assert all(m["gated"] != "no" and not m["is_permissive"] for m in told["models"])
    assert run(["models", "--fits", "GTX 970"]) == 2
    assert "gpu = 'GTX 970' is not in the GPU table" in capfd.readouterr().err
