"""Dollars a million tokens, break-even volumes and shared GPUs, by hand; measured rates in place of predicted ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from shoestring.cli.main import run
from shoestring.config import TrafficConfig
from shoestring.market.serving import own_routes
from shoestring.market.serving_cost import (
    away_frac,
    break_even_million_tokens,
    gpus_each,
    gpus_shared,
    million_tokens_per_month,
    serving_of,
    usd_per_million,
)
from shoestring.market.table import snapshot
from shoestring.plan.served import ServedRates, save
from shoestring.plan.shapes import shape_of
from shoestring.records import Estimate

TRAFFIC = TrafficConfig(requests_per_month=300_000, prompt_tokens=400, completion_tokens=100)


def rates(**more: object) -> ServedRates:
    """100 requests of 400 + 100 tokens in 100 s: 0.2 s of reading, 0.8 s of writing each."""
    values = {
        "model": "Qwen/Qwen3-8B", "engine": "vllm", "engine_version": "0.33.0", "device": "NVIDIA L4", "clients": 8,
        "measured_at": "2026-11-28T12:00:00+00:00", "prompt_tokens": 400.0, "completion_tokens": 100.0,
        "cached_frac": 0.0, "requests_per_s": Estimate(1, 1, 1), "prefill_tokens_per_s": Estimate(2000, 1800, 2200),
        "decode_tokens_per_s": Estimate(125, 110, 140), "alone_s": Estimate(5, 5, 5),
        "lora_loss_frac": Estimate(0.2, 0.1, 0.3), "num_adapters": 4, **more,
    }  # fmt: skip
    return ServedRates(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(("util", "merged", "lora"), [(1.0, 0.12, 0.15), (0.3, 0.39, 0.51), (0.1, 1.16, 1.54)])
def test_a_million_tokens_by_hand(util: float, merged: float, lora: float) -> None:
    """An A100 at 1.25 dollars an hour, 3,000 tokens a second, adapters take a quarter."""
    assert usd_per_million(1.25, 3000, util) == pytest.approx(merged, abs=0.005)
    assert usd_per_million(1.25, 3000, util, 0.25) == pytest.approx(lora, abs=0.005)


def test_break_even_volumes_by_hand() -> None:
    """730 h x 1.25 dollars = 912.50: 608 million tokens at 1.50, 1.9 billion at 0.48, 4.6 billion at 0.20."""
    assert break_even_million_tokens(1.25, 1.50) == pytest.approx(608, abs=0.5)
    assert break_even_million_tokens(1.25, 0.48) == pytest.approx(1901, abs=0.5)
    assert break_even_million_tokens(1.25, 0.20) == pytest.approx(4562.5)
    assert break_even_million_tokens(1.25, 0.0) == math.inf
    # One such GPU gives 2.63 x 3,000 x 0.75 = 5,913 million a month: 32 % and 77 % of it.
    most = million_tokens_per_month(3000, 1.0, 0.25)
    assert most == pytest.approx(5913)
    assert 1901 / most == pytest.approx(0.32, abs=0.005) and 4562.5 / most == pytest.approx(0.77, abs=0.005)


def test_shared_gpus_by_hand() -> None:
    """Forty tenants at 3 % load, 60 % target, a quarter lost: 1.2 / 0.45 = 2.7, three GPUs against forty."""
    assert gpus_shared([0.03] * 40, 0.6, 0.25) == 3
    assert gpus_each([0.03] * 40, 0.6) == 40
    assert gpus_each([1.3], 0.6) == 3
    assert gpus_shared([0.06] * 10, 0.6, 0.0) == 1  # exactly full, not a rounding error more


def test_a_spot_machine_is_away_by_hand() -> None:
    """0.3 interruptions an hour and 2.2 h until the next machine: 0.66 / 1.66."""
    assert away_frac("value") == pytest.approx(0.66 / 1.66)


def test_measured_rates_stand_for_predicted_ones() -> None:
    shape, offers = shape_of("Qwen/Qwen3-8B"), snapshot()
    plain = {r.gpu: r for r in own_routes(shape, 8.2, TRAFFIC, offers) if r.kind == "hours"}
    told = {r.gpu: r for r in own_routes(shape, 8.2, TRAFFIC, offers, [rates()]) if r.kind == "hours"}
    able = told["L4"].capacity
    assert able is not None and able.measured == "vllm 0.33.0 on NVIDIA L4, measured 2026-11-28"
    assert able.requests_per_s.value == pytest.approx(1.0)  # 400 / 2000 + 100 / 125 seconds
    assert able.requests_per_s.low < 1 < able.requests_per_s.high
    assert told["A10"].capacity == plain["A10"].capacity and plain["L4"].capacity != able


def test_the_serving_of_a_plan_by_hand() -> None:
    shape, offers = shape_of("Qwen/Qwen3-8B"), snapshot()
    traffic = TRAFFIC.model_copy(update={"num_adapters": 40})
    routes = [r for r in own_routes(shape, 8.2, traffic, offers, [rates()]) if r.gpu == "L4" and r.kind == "hours"]
    serving = serving_of(traffic, routes, [], offers, [rates()])
    assert serving is not None
    (cost,) = serving.costs
    hourly = cost.route.price_usd
    # 300,000 requests a month of 500 tokens on a GPU that answers 1 a second, 2,628,000 a month.
    assert cost.util_frac == pytest.approx(300_000 / 2_628_000)
    assert cost.usd_per_million_now == pytest.approx(730 * hourly / 150)
    assert cost.usd_per_million_full == pytest.approx(hourly / 3600 / 500 * 1e6)
    assert cost.usd_per_million_prompt == pytest.approx(hourly / 3600 / 2000 * 1e6)
    assert cost.usd_per_million_new == pytest.approx(hourly / 3600 / 125 * 1e6)
    assert cost.lora_loss_frac.value == 0.2 and "vllm 0.33.0" in cost.loss_source
    assert cost.gpus_shared == math.ceil(40 * cost.util_frac / (0.8 * 0.6))
    assert cost.gpus_each == 40
    assert cost.adapters_per_gpu == math.floor(0.8 * 0.6 / cost.util_frac)


def test_a_machine_that_is_no_gpu_is_weighed_where_it_was_measured() -> None:
    shape = shape_of("Qwen/Qwen3-8B")
    own = rates(device="AMD EPYC", engine="embedded")
    route = next(r for r in own_routes(shape, 8.2, TRAFFIC, [], [own]) if r.gpu == "AMD EPYC")
    assert route.seller == "this machine" and route.usd_per_month(300_000).value == pytest.approx(730 * 0.011)
    more = TRAFFIC.model_copy(update={"requests_per_month": 3e6})  # more than one such machine answers
    assert not [r for r in own_routes(shape, 8.2, more, [], [own]) if r.gpu == "AMD EPYC"]


def test_the_plan_says_what_it_reckons_with(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"ticket {i} about {'ab'[i % 2]}", "completion": "ab"[i % 2]} for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "name": "priced", "task": {"kind": "classify", "bar": 0.9}, "data": {"train": "rows.jsonl"},
        "models": ["Qwen/Qwen3-8B"], "budget_usd": 50,
        "traffic": {**TRAFFIC.model_dump(), "num_adapters": 40},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    folder = tmp_path / "runs" / "priced"
    folder.mkdir(parents=True)
    save(folder, rates(decode_tokens_per_s=Estimate(2000, 1900, 2100)))
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "other" / "serving.json").write_text("{")
    command = ["plan", str(tmp_path / "run.yaml"), "--runs-dir", str(tmp_path / "runs")]
    assert run([*command, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    measured = [c for c in told["serving"]["costs"] if c["is_measured"]]
    assert [c["gpu"] for c in measured] == ["L4"]
    assert "vllm 0.33.0" in measured[0]["requests_per_s"]["source"]
    assert any("other/serving.json is damaged" in note for note in told["notes"])
    assert run(command) == 0
    shown = capfd.readouterr().out
    assert "measured" in shown and "40 adapters of this traffic on one base need" in shown


def test_adapters_that_were_faster_by_noise_add_no_rate() -> None:
    noisy = rates(lora_loss_frac=Estimate(-0.26, -0.38, 0.43))
    assert noisy.lora_loss == Estimate(0.0, 0.0, 0.43) and noisy.kept_frac == 1.0
    assert rates().kept_frac == 0.8 and rates(lora_loss_frac=None).lora_loss is None
