"""The whole bill: parts by hand, capacity by hand, and where training begins to pay."""

from __future__ import annotations

import math
from datetime import date

import pytest

from shoestring.config import RunConfig, TrafficConfig
from shoestring.market.serving import Route, api_prices, api_routes, hostings, own_routes
from shoestring.market.table import snapshot
from shoestring.market.terms import value
from shoestring.market.total import GRID, Part, Way, break_even, first_crossing, judge_part
from shoestring.market.work import Rows
from shoestring.plan.decode import USABLE_FRAC, capacity, kv_bytes_per_token
from shoestring.plan.devices import gpu_table
from shoestring.plan.shapes import shape_of
from shoestring.records import Estimate, TokenCounts

TODAY = date(2026, 11, 28)


def exactly(number: float) -> Estimate:
    return Estimate(number, number, number)


def by_token(name: str, usd_per_request: float, kind: str = "tokens") -> Route:
    return Route(
        kind=kind,
        name=name,
        seller=name,
        price_usd=1.0,
        price_unit="USD per million input tokens",
        source="by hand",
        observed_at=TODAY,
        basis="given",
        usd_per_request=exactly(usd_per_request),
    )


def trained(route: Route, usd: float) -> Way:
    return Way(route, (Part("train", exactly(usd), "by hand"),), "a model")


def test_the_break_even_by_hand() -> None:
    # 120 dollars once; over 12 months each request saves 0.002 - 0.001 dollars: 120 / (12 x 0.001) = 10,000 a month.
    even = break_even([trained(by_token("ours", 0.001), 120)], by_token("larger", 0.002, "api"), 12)
    assert even.requests_per_month is not None
    assert even.requests_per_month.value == pytest.approx(10_000, rel=1e-6)


def test_an_api_that_costs_less_than_serving_is_never_passed() -> None:
    even = break_even([trained(by_token("ours", 0.002), 1)], by_token("larger", 0.001, "api"), 12)
    assert even.requests_per_month is None and "less than serving" in even.reason


def test_the_break_even_takes_the_cheapest_way_at_each_volume() -> None:
    cheap_once, cheap_each = trained(by_token("a", 0.0019), 1), trained(by_token("b", 0.0001), 1000)
    api = by_token("larger", 0.002, "api")
    alone = break_even([cheap_each], api, 12).requests_per_month
    both = break_even([cheap_once, cheap_each], api, 12).requests_per_month
    assert alone is not None and both is not None and both.value < alone.value
    assert both.value == pytest.approx(1 / (12 * 0.0001), rel=1e-6)


def test_a_crossing_is_the_last_one() -> None:
    assert first_crossing(lambda x: 100 - x) == pytest.approx(100, rel=1e-9)
    assert first_crossing(lambda x: 1.0) is None
    assert first_crossing(lambda x: -1.0) == GRID[0]
    # Below, above and below again: a second machine is needed at 1,000 and pays from 5,000.
    assert first_crossing(lambda x: -1 if x < 1000 or x > 5000 else 1) == pytest.approx(5000, rel=1e-6)


def test_an_api_request_by_hand() -> None:
    traffic = TrafficConfig(requests_per_month=1000, prompt_tokens=400, completion_tokens=100)
    route = next(r for r in api_routes(traffic, 300, [], TODAY) if r.name.startswith("gpt-5.4-mini"))
    assert route.usd_per_request is not None
    assert route.usd_per_request.value == pytest.approx((400 * 0.75 + 100 * 4.5) / 1e6)
    assert route.usd_per_request.high == pytest.approx((700 * 0.75 + 100 * 4.5) / 1e6)
    assert route.usd_per_month(1000).value == pytest.approx(0.75)


def test_decoding_by_hand() -> None:
    shape, spec = shape_of("Qwen/Qwen3-8B"), gpu_table()["H100-SXM"]
    one = exactly(1.0)
    able = capacity(shape, spec, 1, 100, stream_frac=one, floor_s=exactly(0.0), max_batch=one)
    assert able is not None and able.num_in_flight == 1
    position = (shape.num_params * 2 + kv_bytes_per_token(shape) * 51) / spec.mem_bw_bytes_per_s
    assert able.alone_s.value == pytest.approx(100 * position, rel=0.01)  # one prompt token besides
    assert kv_bytes_per_token(shape) == 2 * 2 * 36 * 8 * 128


def test_more_in_flight_answers_more_and_memory_limits_it() -> None:
    shape, spec = shape_of("Qwen/Qwen3-8B"), gpu_table()["RTX4090"]
    args = {"stream_frac": value("stream_frac"), "floor_s": value("decode_floor_s")}
    few, many = (capacity(shape, spec, 500, 200, max_batch=exactly(n), **args) for n in (1.0, 1000.0))
    assert few is not None and many is not None
    assert few.requests_per_s.value < many.requests_per_s.value < few.requests_per_s.value * many.num_in_flight
    free = USABLE_FRAC * spec.memory_bytes - shape.num_params * 2 - 2e9
    assert many.num_in_flight == math.floor(free / (700 * kv_bytes_per_token(shape)))
    assert capacity(shape, gpu_table()["T4"], 500, 200, max_batch=exactly(1.0), **args) is None


# Requests a second that others measured: vLLM 0.30 in bf16 (tgarg01/silybench-data, run 20260924T125045Z, most users
# that keep its latency bound), and vLLM 0.2 with all the memory holds (benchmarks of neuralmagic/nm-vllm, May 2024).
PUBLISHED = (
    ("Qwen/Qwen3-8B", "H100-SXM", 128, 128, 512, 113.59),
    ("Qwen/Qwen3-8B", "H100-SXM", 1024, 128, 80, 23.58),
    ("Qwen/Qwen3-8B", "H100-SXM", 128, 1024, 396, 13.01),
    ("Qwen/Qwen3-8B", "H100-SXM", 2048, 2048, 40, 1.374),
    ("Qwen/Qwen3-8B", "H100-SXM", 8192, 512, 7, 0.980),
    ("meta-llama/Llama-2-7b-hf", "A10G", 256, 128, 10_000, 3.84),
)


@pytest.mark.parametrize(("model", "gpu", "prompt", "completion", "users", "per_s"), PUBLISHED)
def test_capacity_is_near_what_others_measured(
    model: str, gpu: str, prompt: int, completion: int, users: int, per_s: float
) -> None:
    able = capacity(
        shape_of(model),
        gpu_table()[gpu],
        prompt,
        completion,
        stream_frac=value("stream_frac"),
        floor_s=value("decode_floor_s"),
        max_batch=exactly(users),
    )
    assert able is not None and able.requests_per_s.value == pytest.approx(per_s, rel=0.25)


@pytest.fixture
def routes() -> list[Route]:
    traffic = TrafficConfig(requests_per_month=100_000, prompt_tokens=400, completion_tokens=100)
    return own_routes(shape_of("Qwen/Qwen3-8B"), 8.2, traffic, snapshot())


def test_a_machine_always_on_costs_its_hours_until_another_is_needed(routes: list[Route]) -> None:
    route = next(r for r in routes if r.kind == "hours" and r.num_gpus == 1)
    assert route.usd_per_month(1).value == pytest.approx(route.price_usd * 730)
    assert route.capacity is not None
    busiest = route.capacity.requests_per_s.value * 730 * 3600 / value("peak_over_mean").value
    assert route.usd_per_month(busiest * 0.99).value == pytest.approx(route.price_usd * 730)
    assert route.usd_per_month(busiest * 1.01).value == pytest.approx(2 * route.price_usd * 730)


def test_a_machine_that_sleeps_costs_less_when_little_is_asked_and_never_more_than_its_hours(
    routes: list[Route],
) -> None:
    route = next(r for r in routes if r.kind == "asked")
    always = route.price_usd * 730
    months = [route.usd_per_month(requests).value for requests in (1, 100, 10_000, 1_000_000)]
    assert months == sorted(months) and months[0] < 0.01 * always and months[-1] <= always * 1.001
    # One request a month: its start, its answer, and the wait for another.
    assert route.capacity is not None
    alone = value("cold_start_s").value + route.capacity.alone_s.value + value("idle_s").value
    assert months[0] == pytest.approx(alone / 3600 * route.price_usd, rel=1e-3)
    for requests in (10, 1e5, 1e7):
        month = route.usd_per_month(requests)
        assert month.low <= month.value <= month.high


def test_an_adapter_trained_at_a_service_is_served_there(routes: list[Route]) -> None:
    names = [r.seller for r in routes if r.kind == "tokens"]
    assert names == ["tinker"]


def test_every_listed_price_is_positive_dated_and_has_a_source() -> None:
    for row in api_prices():
        assert 0 < row.usd_per_million_input_tokens < row.usd_per_million_output_tokens < 200, row
        assert row.source and row.as_of <= TODAY and row.basis == "third-party copy", row
    assert len({(row.provider, row.model) for row in api_prices()}) == len(api_prices())
    for row in hostings():
        assert row.gpu in gpu_table() and row.usd_per_gpu_hour > 0 and row.source and row.as_of <= TODAY


def test_what_the_judge_costs_by_hand() -> None:
    endpoint = {"name": "j", "base_url": "http://x/v1", "model": "m", "usd_per_million_input_tokens": 1,
                "usd_per_million_output_tokens": 10}  # fmt: skip
    raw = {
        "name": "n", "task": {"kind": "generate", "metric": "judge", "bar": 0.5}, "data": {"train": "t.jsonl"},
        "models": ["a", "b"], "decide": {"arms": ["zero_shot", "few_shot", "rag", "linear"]},
        "judge": {"endpoints": [endpoint], "probe_rows": 20},
    }  # fmt: skip
    rows = Rows(TokenCounts((10,), (5,), (30,), (25,)), 500, 50, 100, exactly(1.0), "counted")
    part = judge_part(RunConfig.model_validate(raw), rows, 100, 30, 25)
    # Two arms of two models on 100 rows, a rung on 100, 7 probes on each of 20: 640 requests of 220 + 30 + 2 x 25
    # tokens at $1 a million, and 40 of reply at $10.
    assert part.usd.value == pytest.approx(640 * (300 * 1 + 40 * 10) / 1e6)
    assert part.usd.low < part.usd.value < part.usd.high and "640 requests" in part.source
    pairs = {**raw, "judge": {**raw["judge"], "mode": "pairwise"}}
    both = judge_part(RunConfig.model_validate(pairs), rows, 100, 30, 25)
    assert both.usd.value == pytest.approx((2 * 500 + 140) * 700 / 1e6)
    computed = {**raw, "task": {"kind": "generate", "bar": 0.5}}
    assert judge_part(RunConfig.model_validate(computed), rows, 100, 30, 25).source == "none: chrf is computed"
