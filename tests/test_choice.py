"""`shoestring plan`: options weighed, discarded with a reason, picked; every number with unit, source and age."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoestring.cli.main import run
from shoestring.errors import ModelError
from shoestring.files import write_json
from shoestring.ledger import Ledger
from shoestring.market.options import Option
from shoestring.market.table import snapshot
from shoestring.plan.figures import discount_text, hours_text, usd_text
from shoestring.plan.hazard import Seen, basis
from shoestring.plan.spot import interval_h
from shoestring.recipe import Run
from shoestring.stages.choosing import Weighed, weigh
from shoestring.stages.told import told

ROOT = Path(__file__).resolve().parent.parent
PLANS = ROOT / "examples" / "plans"
TODAY = date(2026, 11, 28)
FIGURE_KEYS = {"value", "low", "high", "unit", "source", "observed_at", "age_days"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files of the rows that the example run files name."""
    spec = importlib.util.spec_from_file_location("make_rows", PLANS / "make_rows.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("rows")
    module.write(folder, num_tickets=1500, num_pairs=300)
    return folder


def planned(folder: Path, example: str, **changes: Any) -> Run:
    """The example run file of this name, its rows in folder."""
    raw = yaml.safe_load((PLANS / f"{example}.yaml").read_text())
    for key in ("train", "eval"):
        if str(raw["data"].get(key, "")).startswith("../"):
            raw["data"][key] = str((PLANS / raw["data"][key]).resolve())
    file = folder / f"{example}.yaml"
    file.write_text(yaml.safe_dump(raw | changes))
    return Run.from_file(file, runs_dir=folder / "runs")


@pytest.fixture(scope="module")
def commands(rows: Path) -> Weighed:
    return weigh(planned(rows, "commands-8b"), TODAY)


# ---- the choice -----------------------------------------------------------------------------


def test_an_option_by_hand(commands: Weighed) -> None:
    option = next(o for o in commands.choice.options if o.seller == "Lium" and o.gpu == "H100-PCIE")
    assert option.work is not None and option.setup_h is not None and option.hours is not None
    hours = option.setup_h.value + (option.work.train_s.value + option.work.eval_s.value) / 3600
    assert option.hours.value == pytest.approx(hours)
    assert option.usd.value == pytest.approx(hours * 2.05, rel=0.01)  # whole seconds
    assert (option.source, option.observed_at) == ("gpurentalprices.com (CC BY 4.0)", date(2026, 10, 8))


def test_a_spot_option_pays_for_checkpoints_that_move(rows: Path) -> None:
    run = planned(rows, "commands-8b", name="moving")
    option = next(o for o in weigh(run, TODAY).choice.options if o.is_spot and o.seller == "GCP")
    assert option.work is not None and option.billed_h is not None
    # Rank 16 on every matrix of the 8B model, 12 bytes each: half a gigabyte a checkpoint, at 2 cents a gigabyte.
    assert option.work.checkpoint_bytes == 12 * 43_646_976
    every_h = interval_h(option.work.settings.interruptions_per_hour, 5 / 3600, option.work.train_s.value / 3600)
    written = math.ceil(option.work.train_s.value / 3600 / every_h)
    moved = written + 0.3 * option.billed_h.value
    assert option.egress_usd.value == pytest.approx(moved * 12 * 43_646_976 / 1e9 * 0.02, rel=0.01)
    assert option.egress_usd.low == 0.0 < option.egress_usd.value < option.egress_usd.high
    assert option.usd.value == pytest.approx(option.billed_h.value * option.price_usd + option.egress_usd.value)
    kept = next(o for o in weigh(run, TODAY).choice.options if o.kind == "rented" and not o.is_spot)
    assert kept.egress_usd.high == 0.0


def test_what_launches_saw_of_a_seller_changes_its_options_alone(rows: Path) -> None:
    run = planned(rows, "commands-8b", name="seen")
    before = weigh(run, TODAY)
    Ledger(rows / "runs" / "earlier" / "ledger.jsonl").record(
        "launch",
        stage="launch",
        predicted=None,
        actual={"s": 72_000.0},
        price_usd_per_hour=1.0,
        basis=basis("GCP", Seen(20.0, 60)),
    )
    after = weigh(run, TODAY)
    for one, other in zip(spot_options(before), spot_options(after), strict=True):
        assert (one.seller, one.gpu, one.method) == (other.seller, other.gpu, other.method)
        assert (other.billed_h.value > one.billed_h.value) == (one.seller == "GCP")
    noted = next(o for o in after.choice.options if o.seller == "GCP" and o.is_spot)
    assert any("seen 60 in 20.0 h" in note for note in noted.notes)
    shutil.rmtree(rows / "runs" / "earlier")


def spot_options(weighed: Weighed) -> list[Any]:
    found = [o for o in weighed.choice.options if o.is_spot]
    return sorted(found, key=lambda o: (o.seller, o.gpu, o.method))


def test_every_offer_is_an_option_or_out_with_its_reason(commands: Weighed) -> None:
    choice = commands.choice
    seen = {(o.seller, o.gpu, o.is_spot) for o in choice.options} | {
        (d.seller, d.gpu, d.is_spot) for d in choice.discarded
    }
    no_room = {d.gpu for d in choice.discarded if d.code == "does_not_fit"}
    for offer in snapshot():
        if offer.gpu not in ("cpu", "mps"):
            assert (offer.seller, offer.gpu, offer.is_spot) in seen or offer.gpu in no_room, offer
    assert all(d.reason for d in choice.discarded)
    services = {o.seller for o in choice.options if o.kind == "managed"}
    services |= {d.seller for d in choice.discarded if d.code in ("rate_unknown", "not_offered", "closed")}
    assert {"tinker", "together", "openai", "fireworks"} <= services
    openai = next(d for d in choice.discarded if d.seller == "openai")
    assert openai.code == "closed" and "2027-01-06" in openai.reason


def test_what_is_kept_fits_at_the_high_end(commands: Weighed) -> None:
    for option in commands.choice.options:
        if option.work is not None:
            assert option.work.memory.device_high_bytes < option.work.device.memory_bytes
    out = [d for d in commands.choice.discarded if d.code == "does_not_fit"]
    assert {("lora", "V100-16GB"), ("lora", "T4")} & {(d.method, d.gpu) for d in out}
    assert all("GiB" in d.reason for d in out)


def test_the_pick_is_the_cheapest_and_no_pareto_point_is_beaten(commands: Weighed) -> None:
    choice = commands.choice
    assert choice.pick is not None and choice.pick == min(choice.best)
    assert choice.options[choice.pick].usd.value == min(o.usd.value for o in choice.options if o.is_dated)
    for i in choice.best:
        a = choice.options[i]
        for b in choice.options:
            cheaper = b.usd.value < a.usd.value and hours_of(b) < hours_of(a) and b.risk_frac <= a.risk_frac
            assert not cheaper
    assert choice.options[choice.pick].seller in choice.why


def hours_of(option: Option) -> float:
    return option.hours.value if option.hours else float("inf")


def test_a_deadline_keeps_the_pick_in_time_and_puts_the_late_aside(rows: Path) -> None:
    free = weigh(planned(rows, "tickets-8b", deadline_h=100.0), TODAY).choice
    slow = free.picked
    assert slow is not None and slow.hours is not None and slow.finish_frac is not None and slow.finish_frac > 0.9
    tight = weigh(planned(rows, "tickets-8b", deadline_h=slow.hours.value * 1.6), TODAY).choice
    assert tight.picked is not None and tight.picked.finish_frac is not None
    assert tight.picked.finish_frac >= 0.9 and tight.picked.usd.value > slow.usd.value
    assert any(d.code == "past_deadline" and "chance" in d.reason for d in tight.discarded)
    assert any(d.code == "no_time_stated" for d in tight.discarded)  # a service that says no hours
    never = weigh(planned(rows, "tickets-8b", deadline_h=0.01), TODAY).choice
    assert never.picked is None and "later deadline_h" in never.why


def test_the_budget_puts_aside_what_is_dearer(rows: Path, commands: Weighed) -> None:
    assert commands.choice.picked is not None
    budget = commands.choice.picked.usd.value * 1.5
    choice = weigh(planned(rows, "commands-8b", budget_usd=budget), TODAY).choice
    assert all(o.usd.value <= budget for o in choice.options)
    assert any(d.code == "over_budget" for d in choice.discarded)


def test_spot_machines_cost_their_interruptions(commands: Weighed) -> None:
    spot = next(o for o in commands.choice.options if o.is_spot and o.seller == "Verda" and o.gpu == "L40S")
    listed = next(o for o in commands.choice.options if not o.is_spot and o.seller == "Verda" and o.gpu == "L40S")
    assert spot.billed_h is not None and listed.billed_h is not None and spot.hours is not None
    assert spot.billed_h.value > listed.billed_h.value and spot.hours.value > spot.billed_h.value
    assert spot.usd.value < listed.usd.value and 0 < spot.risk_frac < 1 and listed.risk_frac == 0


def test_all_gpus_of_an_order_are_paid(commands: Weighed) -> None:
    eight = next(o for o in commands.choice.options if o.num_gpus == 8 and o.billed_h and not o.is_spot)
    assert eight.billed_h is not None
    assert eight.usd.value == pytest.approx(eight.billed_h.value * 8 * eight.price_usd)


def test_more_gpus_are_weighed_where_time_presses_or_one_cannot_hold_the_model(rows: Path) -> None:
    calm = weigh(planned(rows, "tickets-8b", deadline_h=100.0), TODAY).choice
    assert not any(o.num_gpus == 4 and o.gpu == "RTX4090" for o in calm.options)
    large = weigh(
        planned(rows, "tickets-8b", models=["Qwen/Qwen3-32B"], market={"device": "L40S"}, method="lora"),
        TODAY,
    ).choice
    assert large.options and all(o.num_gpus >= 2 for o in large.options)
    several = next(o for o in large.options if o.seller.startswith("RunPod"))
    assert several.work is not None and several.work.settings.parallelism == "fsdp"
    assert any("is not stated" in note for note in several.notes)
    assert any(d.code == "does_not_fit" and d.gpu == "L40S" for d in large.discarded)


def test_rows_too_long_for_seq_len_are_not_counted(rows: Path) -> None:
    """As curation drops them: of rows that are all longer than the limit none is left, and that is said."""
    whole = weigh(planned(rows, "tickets-8b"), TODAY).rows["Qwen/Qwen3-8B"]
    middle = sorted(whole.counts.paths)[len(whole.counts.paths) // 2]
    half = weigh(planned(rows, "tickets-8b", train={"seq_len": middle}), TODAY).rows["Qwen/Qwen3-8B"]
    assert 0.3 * whole.num_train < half.num_train < 0.8 * whole.num_train
    with pytest.raises(ModelError, match="every row of the sample is longer than 20 tokens"):
        weigh(planned(rows, "tickets-8b", train={"seq_len": 20}), TODAY)


def test_market_device_leaves_only_that_gpu(rows: Path) -> None:
    choice = weigh(planned(rows, "commands-8b", market={"device": "H100-SXM"}), TODAY).choice
    assert {o.gpu for o in choice.options} == {"H100-SXM"}
    ours = weigh(planned(rows, "commands-8b", market={"device": "RTX4090", "price_usd_per_hour": 0.05}), TODAY).choice
    assert any(o.kind == "here" and o.gpu == "RTX4090" and o.basis == "given" for o in ours.options)


# ---- three run files ------------------------------------------------------------------------


def numbers(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every object of the answer that holds a number, and its place; a number elsewhere is a fault."""
    if isinstance(node, dict):
        if "unit" in node:
            yield path, node
            return
        for key, value in node.items():
            yield from numbers(value, f"{path}.{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from numbers(value, f"{path}[{i}]")
    else:
        assert isinstance(node, (str, bool, type(None))), f"{path} = {node!r} has no unit"


@pytest.mark.parametrize("name", ["commands-8b", "tickets-8b", "pairs-4b"])
def test_every_number_has_unit_source_and_age(
    rows: Path, name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(rows, name)
    monkeypatch.chdir(rows)
    assert run(["plan", f"{name}.yaml", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    found = list(numbers(answer))
    assert len(found) > 300 and answer["pick"]["is_pick"]
    for path, figure in found:
        assert set(figure) <= FIGURE_KEYS and {"value", "unit", "source", "observed_at", "age_days"} <= set(figure), (
            path
        )
        assert figure["unit"] and figure["source"], path
        if figure["observed_at"] is None:
            assert "undated" in figure["source"] and figure["age_days"] is None, path
        else:
            assert figure["age_days"] == (datetime.now(UTC).date() - date.fromisoformat(figure["observed_at"])).days, (
                path
            )
        if figure.get("low") is not None and figure.get("high") is not None:
            assert figure["low"] <= figure["value"] <= figure["high"], (path, figure)
    assert (answer["total"] is None) == (name == "pairs-4b")
    if name == "pairs-4b":
        managed = [d for d in answer["discarded"]["rows"] if d.get("seller") == "tinker"]
        assert "preferences" in managed[0]["reason"]


def test_the_table_a_person_reads(
    rows: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(rows, "tickets-8b")
    monkeypatch.chdir(rows)
    assert run(["plan", "tickets-8b.yaml"]) == 0
    out = capfd.readouterr().out
    for words in (
        "<- take",
        "Take Qwen/Qwen3-8B",
        "late",
        "Not shown:",
        "--all",
        "Over 24 months",
        "training pays from",
    ):
        assert words in out
    assert run(["plan", "tickets-8b.yaml", "--all"]) == 0
    all_of_it = capfd.readouterr().out
    assert "out because" in all_of_it and "GiB" in all_of_it and len(all_of_it) > 2 * len(out)
    page = (rows / "runs" / "tickets-8b" / "report.html").read_text()
    assert "Where to train, and the bill" in page and "your traffic" in page and 'class="curve l0"' in page
    assert page.count('class="option pick"') == 1 and page.count('class="option best"') >= 1
    (rows / "runs" / "tickets-8b" / "choice.json").write_text('{"pick": 1}')
    assert run(["report", "tickets-8b.yaml"]) == 0
    page = (rows / "runs" / "tickets-8b" / "report.html").read_text()
    assert "choice.json: not as this version writes it" in page


def test_embedded_models_are_planned_here_and_elsewhere(
    rows: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = (rows / "tickets.jsonl").read_text().splitlines(keepends=True)[:200]
    (rows / "few.jsonl").write_text("".join(few))
    planned(rows, "tickets-8b", models=["shoestring-1m"], name="small", data={"train": "few.jsonl"}, deadline_h=None)
    monkeypatch.chdir(rows)
    assert run(["plan", "tickets-8b.yaml", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["rungs"][0]["model"] == "shoestring-1m"
    list(numbers(answer))
    model = answer["data"]["models"][0]
    assert "on the curated rows" in model["tokens_per_row"]["source"] and "low" not in model["tokens_per_row"]
    here = [option["method"] for option in answer["options"] if option["kind"] == "here"]
    assert here == [rung["method"] for rung in answer["rungs"]]  # what `run` would do
    assert run(["plan", "tickets-8b.yaml", "--json"]) == 0  # planned already, and told the same
    assert json.loads(capfd.readouterr().out)["data"] == answer["data"]


def test_an_interval_that_reads_as_its_value_is_not_repeated() -> None:
    assert usd_text({"value": 1489.1, "low": 1489.0, "high": 1489.2}) == "$1,489"
    assert usd_text({"value": 84.0, "low": 84.0, "high": 117.0}) == "$84.00 ($84.00 to $117)"
    assert hours_text({"value": 0.002, "low": 0.001, "high": 0.004}) == "1 min"


def test_a_run_with_traffic_keeps_the_bill_for_its_report(rows: Path) -> None:
    few = (rows / "tickets.jsonl").read_text().splitlines(keepends=True)[:200]
    (rows / "few.jsonl").write_text("".join(few))
    changes = {"models": ["shoestring-1m"], "name": "billed", "data": {"train": "few.jsonl"}, "deadline_h": None}
    planned_run = planned(rows, "tickets-8b", **changes)
    planned_run.execute(until="plan")
    answer = json.loads((planned_run.folder / "choice.json").read_text())
    assert answer["total"]["best"]["usd"]["value"] > 0
    assert "your traffic" in (planned_run.folder / "report.html").read_text()


# ---- bad input: said clearly, the rest answers -----------------------------------------------


def test_an_unknown_gpu_is_named_with_near_ones_and_all_are_weighed(rows: Path) -> None:
    weighed = weigh(planned(rows, "commands-8b", market={"device": "H10O-SXM"}), TODAY)
    assert any("H10O-SXM" in note and "H100-SXM" in note for note in weighed.notes)
    assert weighed.choice.picked is not None


def test_a_model_without_config_is_put_aside_and_the_other_planned(
    rows: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = rows / "no-config"
    folder.mkdir()
    weighed = weigh(planned(rows, "commands-8b", models=[str(folder), "Qwen/Qwen3-8B"]), TODAY)
    fault = next(d for d in weighed.choice.discarded if d.code == "model_unknown")
    assert "config.json" in fault.reason and weighed.choice.picked is not None
    planned(rows, "commands-8b", models=[str(folder)])
    monkeypatch.chdir(rows)
    assert run(["plan", "commands-8b.yaml"]) == 2
    assert "config.json" in capfd.readouterr().err


def test_without_a_network_a_model_outside_the_table_is_put_aside(rows: Path) -> None:
    weighed = weigh(planned(rows, "commands-8b", models=["nobody/has-this", "Qwen/Qwen3-8B"]), TODAY)
    fault = next(d for d in weighed.choice.discarded if d.code == "model_unknown")
    assert "nobody/has-this" in fault.reason and weighed.choice.picked is not None
    assert any("nobody/has-this is not weighed" in note for note in weighed.notes)


def test_a_mixture_of_experts_is_put_aside_by_name(rows: Path) -> None:
    weighed = weigh(planned(rows, "commands-8b", models=["Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-8B"]), TODAY)
    assert any("mixture of experts" in d.reason for d in weighed.choice.discarded)
    assert weighed.choice.picked is not None


def test_a_negative_price_in_the_run_file(
    rows: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = rows / "negative.yaml"
    file.write_text((PLANS / "pairs-4b.yaml").read_text() + "market: {price_usd_per_hour: -2}\n")
    monkeypatch.chdir(rows)
    assert run(["plan", "negative.yaml"]) == 2
    assert "market.price_usd_per_hour = -2" in capfd.readouterr().err


def cached(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SHOESTRING_CACHE", str(folder))
    (folder / "prices").mkdir(parents=True)
    (folder / "prices" / "vast.json").write_text(text)


def test_a_negative_price_in_a_fetched_table(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer = {
        "seller": "Vast.ai", "region": "", "gpu": "RTX4090", "num_gpus": 1, "memory_bytes": 24_000_000_000,
        "usd_per_gpu_hour": -0.3, "is_spot": False, "interruption": "", "source": "console.vast.ai",
        "observed_at": "2026-11-27", "basis": "quoted",
    }  # fmt: skip
    cached(tmp_path, monkeypatch, json.dumps({"offers": [offer]}))
    weighed = weigh(planned(rows, "commands-8b"), TODAY)
    assert any("-0.3 USD per GPU-hour" in note and "refused" in note for note in weighed.notes)
    assert weighed.choice.picked is not None and all(o.price_usd > 0 for o in weighed.choice.options)


def test_a_source_that_sent_html(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh refuses it (test_price_sources); a file that holds it all the same is named and left out."""
    cached(tmp_path, monkeypatch, "<!DOCTYPE html><html>Sign in</html>")
    weighed = weigh(planned(rows, "commands-8b"), TODAY)
    assert any("vast.json cannot be read" in note and "prices refresh vast" in note for note in weighed.notes)
    assert weighed.choice.picked is not None


def test_stale_prices_say_their_age_and_answer(rows: Path) -> None:
    weighed = weigh(planned(rows, "commands-8b"), TODAY + timedelta(days=365))
    assert any("older than 30 days" in note for note in weighed.notes)
    answer = told(weighed, "x")
    assert answer["pick"] is not None and answer["pick"]["price"]["age_days"] > 365


def test_a_clock_before_the_prices_is_said_and_ages_are_not_guessed(rows: Path) -> None:
    weighed = weigh(planned(rows, "commands-8b"), date(2026, 1, 1))
    assert any("clock says 2026-01-01" in note for note in weighed.notes)
    price = told(weighed, "x")["pick"]["price"]
    assert price["age_days"] is None and "after this machine's clock" in price["source"]


def test_a_folder_that_cannot_be_written_does_not_lose_the_answer(
    rows: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(rows, "commands-8b")
    (rows / "file").write_text("")
    monkeypatch.chdir(rows)
    assert run(["plan", "commands-8b.yaml", "--runs-dir", "file"]) == 0
    captured = capfd.readouterr()
    assert "<- take" in captured.out and "the plan is not kept" in captured.err


def test_pairs_are_needed_for_preferences(
    rows: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(rows, "tickets-8b", train={"objective": "dpo"})
    monkeypatch.chdir(rows)
    assert run(["plan", "tickets-8b.yaml"]) == 2
    assert "chosen and a rejected answer" in capfd.readouterr().err


def test_what_was_kept_is_json(rows: Path, commands: Weighed) -> None:
    """Infinite ends are written as null, which every reader of JSON takes."""
    answer = told(commands, "commands-8b")
    write_json(rows / "choice.json", answer)
    assert "Infinity" not in (rows / "choice.json").read_text()


def test_every_weight_is_trained_on_machines_alone(rows: Path) -> None:
    choice = weigh(planned(rows, "commands-8b", method="full"), TODAY).choice
    assert choice.options and {o.method for o in choice.options} == {"full"}
    assert not any(o.seller == "tinker" for o in choice.options)  # trains LoRA only


# ---- spot machines --------------------------------------------------------------------------


def test_spot_machines_are_simulated_on_a_trace(
    rows: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(rows, "commands-8b", name="traced", deadline_h=3.0)
    monkeypatch.chdir(rows)
    # A machine for two hours, none for one, over and over; a restart takes minutes and the work a quarter of an hour.
    ticks = {"metadata": {"gap_seconds": 3600}, "data": [1, 1, 0] * 40}
    (rows / "two-of-three.json").write_text(json.dumps(ticks))
    assert run(["plan", "commands-8b.yaml", "--trace", "two-of-three.json", "--json"]) == 0
    spot = json.loads(capfd.readouterr().out)["spot"]
    assert spot["trace"]["up_frac"]["value"] == pytest.approx(2 / 3, rel=1e-3)
    assert spot["trace"]["interruptions_per_h"]["value"] == pytest.approx(0.5)  # 40 in 80 running hours
    assert spot["trace"]["wait_h"]["value"] == pytest.approx(1.0)
    for path, figure in numbers(spot):
        assert set(figure) <= FIGURE_KEYS and figure["unit"] and figure["source"], path
    assert spot["options"]
    for one in spot["options"]:
        finish = one["finish_h"]
        assert 0 < finish["low"] <= finish["value"] <= finish["high"] < 3.0
        assert one["done_by_deadline"]["value"] > 0.9
    switched = [one["policy"] for one in spot["options"] if "policy" in one]
    assert switched and all(policy["late"]["value"] == 0.0 for policy in switched)
    assert run(["plan", "commands-8b.yaml", "--trace", "two-of-three.json"]) == 0
    said = capfd.readouterr().out
    assert "on two-of-three.json (5 d, a machine 67% of it, 0.5 interruptions a running hour):" in said
    (rows / "none.json").write_text(json.dumps(ticks | {"data": [0, 0]}))
    assert run(["plan", "commands-8b.yaml", "--trace", "none.json", "--json"]) == 0
    none = json.loads(capfd.readouterr().out)["spot"]["options"]
    assert {one["usd"]["value"] for one in none} == {one["finish_h"]["value"] for one in none} == {None}
    assert run(["plan", "commands-8b.yaml", "--trace", "none.json"]) == 0
    assert "never" in capfd.readouterr().out
    assert "in time by switching" in said and "none of your launches ran there yet" in said


def test_a_broken_trace_is_refused_before_anything_is_planned(
    rows: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(rows, "commands-8b", name="broken")
    monkeypatch.chdir(rows)
    (rows / "broken.csv").write_text("start_h,end_h\n0,1\n0.5,2\n")
    assert run(["plan", "commands-8b.yaml", "--trace", "broken.csv"]) == 2
    assert "broken.csv, line 3: start_h 0.5 is before the last end_h 1" in capfd.readouterr().err
    assert not (rows / "runs" / "broken").exists()


def test_explain_tells_the_range_what_was_seen_and_the_range_after_that(
    rows: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(rows, "commands-8b", name="explained", market={"interruptions_per_hour": [0.1, 0.3, 1.4]})
    monkeypatch.chdir(rows)
    seen = basis("GCP", Seen(30.0, 2))
    Ledger(rows / "runs" / "earlier" / "ledger.jsonl").record(
        "launch", stage="launch", predicted=None, actual={"s": 1.0}, price_usd_per_hour=1.0, basis=seen
    )
    try:
        assert run(["explain", "market.interruptions_per_hour", "--run", "commands-8b.yaml"]) == 0
        said = capfd.readouterr().out
        assert "GCP: 0.3 (0.1 to 1.4) interruptions an hour; seen 2 in 30.0 h, so 0.09 (0.04 to 0.23)" in said
        assert run(["explain", "market.interruptions_per_hour", "--run", "commands-8b.yaml", "--json"]) == 0
        told_all = json.loads(capfd.readouterr().out)["run"]["hazards"]
        assert [one["seller"] for one in told_all] == ["", "GCP"]
        assert told_all[1]["posterior"]["value"] == pytest.approx(0.0899, abs=1e-3)
    finally:
        shutil.rmtree(rows / "runs" / "earlier")


def test_a_spot_price_above_the_one_on_demand_is_no_discount() -> None:
    told = [discount_text(None if frac is None else {"value": frac}) for frac in (0.41, 0.0, -0.57, None)]
    assert told == ["41%", "0%", "none, 57% dearer", "—"]
