"""The bench of the embedded engine, small: what it compares is the same work."""

from __future__ import annotations

import pytest

from bench import serve


def test_small_run_has_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight clients over four adapters in float32: the engine's tokens are the ones PEFT gives, ratios are of rates."""
    monkeypatch.setattr(serve, "SHARED_TOKENS", 40)
    found = serve.run(
        "shoestring-1m", rounds=1, new_tokens=4, num_more=2, dtype="float32", with_llama=False, with_http=False
    )
    engine, theirs = found["engine"], found["peft_tokens_per_s"]
    assert theirs["largest_gap"] < 1e-4, "greedy tokens of both are the same"
    assert found["ratio_vs_sequential"] == engine["tokens_per_s"] / theirs["sequential"]
    assert found["ratio_vs_generate_batch"] == engine["tokens_per_s"] / theirs["generate_batch"]
    assert found["ratio_vs_llama_server"] is None and found["llama_server"]["reason"]
    assert 0 < engine["cached_frac"] < 1
    assert engine["adapters"]["num"] == 2 and engine["adapters"]["bytes"] > 0
    for name in ("first_token_s", "per_token_s"):
        assert 0 < engine[name]["p50"] <= engine[name]["p90"] <= engine[name]["p99"]
