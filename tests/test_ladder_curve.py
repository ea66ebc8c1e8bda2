"""Learning curves: what points say of the whole, and what the climb does with it."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from bench.ladder import planted
from shoestring.config import RunConfig, TaskConfig, load_run_file
from shoestring.decide.curve import Point, forecast
from shoestring.errors import ConfigError
from shoestring.ladder import climb, held_to_ladder
from shoestring.plan.shapes import shape_of
from shoestring.recipe import Run
from shoestring.records import ArmScore, Estimate, RowScore
from tests.test_ladder import TASK, arm, rung

LAW = {"start": 0.9, "floor": 0.1, "knee": 400.0, "beta": 1.0}


def law(rows: float) -> float:
    error = LAW["floor"] + (LAW["start"] - LAW["floor"]) / (1 + (rows / LAW["knee"]) ** LAW["beta"])
    return 1 - error


def test_the_band_holds_what_the_law_gives() -> None:
    # By hand: at 400 rows half of the way from 0.1 to 0.9, so 0.5; at 8,000 rows 0.9 - 0.8 / 21 = 0.862.
    assert law(400) == pytest.approx(0.5) and law(8000) == pytest.approx(0.862, abs=1e-3)
    points = [Point(n, law(n), 256) for n in (250, 500, 1000)]
    found = forecast(points, 8000, 500, 0.8, 0.05)
    assert found.measured.low < law(8000) < found.measured.high
    assert found.score.low >= found.measured.low - 0.02 and 0 < found.pass_chance < 1
    nearer = forecast([*points, Point(4000, law(4000), 256)], 8000, 500, 0.8, 0.05)
    assert nearer.measured.high - nearer.measured.low < found.measured.high - found.measured.low


def test_a_flat_curve_is_hopeless_and_asks_for_a_larger_model() -> None:
    flat = forecast([Point(n, 0.5, 256) for n in (250, 500, 1000)], 8000, 500, 0.9, 0.05)
    assert flat.is_hopeless and flat.is_settled and "larger model" in flat.advice
    assert flat.needed == pytest.approx(464 / 500)  # the least whose Wilson end reaches 0.9
    rising = forecast([Point(n, law(n), 256) for n in (250, 500, 1000)], 2000, 500, 0.87, 0.05)
    assert (rising.is_hopeless and rising.rows_needed is not None) or "larger model" in rising.advice
    good = forecast([Point(n, 0.97, 256) for n in (250, 500, 1000)], 8000, 500, 0.9, 0.05)
    assert not good.is_hopeless and good.is_settled


def test_points_that_agree_with_no_curve_widen_the_band() -> None:
    falling = forecast([Point(250, 0.9, 256), Point(500, 0.5, 256), Point(1000, 0.1, 256)], 8000, 500, 0.9, 0.05)
    assert falling.widened > 1 and falling.measured.high - falling.measured.low > 0.3


def test_a_hopeless_rung_is_skipped_and_where_all_are_the_verdict_says_what_to_do() -> None:
    hopeless = forecast([Point(n, 0.5, 256) for n in (250, 500, 1000)], 8000, 500, 0.8, 0.05)
    measured, verdict, steps = climb(
        [rung("small"), rung("large")],
        [],
        TASK,
        lambda r: arm(r.model, 0.9, 0.85),
        foresee=lambda r, num: hopeless if r.model == "small" else None,
    )
    assert [a.model for a in measured] == ["large"] and verdict.met
    assert [(s.model, s.did) for s in steps] == [("small", "skipped"), ("large", "passed")]

    measured, verdict, steps = climb(
        [rung("small")], [], TASK, lambda r: pytest.fail("trained"), foresee=lambda r, num: hopeless
    )
    assert not measured and not verdict.met and "curve: off" in verdict.next_step and "small" in verdict.reason


def test_held_out_rows_are_touched_for_rungs_that_dev_rows_let_through() -> None:
    touched = []

    def measure(planned):
        touched.append(planned.model)
        return arm(planned.model, 0.6, 0.5)

    rungs = [rung("small"), rung("large")]
    _, _, steps = climb(rungs, [], TASK, measure, gate=lambda r: "too low" if r.model == "small" else "")
    assert touched == ["large"] and [s.did for s in steps] == ["rejected", "missed"]
    touched.clear()
    measured, _, _ = climb(rungs, [], TASK, measure, gate=lambda r: "too low")
    assert touched == ["large"] and len(measured) == 1  # of those turned away one is measured, for the record


def test_many_rungs_are_each_held_to_a_stricter_end() -> None:
    rows = tuple(RowScore(str(i), "p", "a", "a", float(i < 85), 1, 1, 0.1, 0.0) for i in range(100))
    one = ArmScore("a", "finetune", "m", "accuracy", Estimate(0.85, 0.767, 0.907), 100, 1, 0, {}, "wilson", rows)
    assert held_to_ladder(one, 2).ladder_low is None
    strict = held_to_ladder(one, 5)
    assert strict.ladder_low == pytest.approx(0.748, abs=0.002)  # Wilson at one-sided 1 %
    assert one.meets(0.76) and not strict.meets(0.76)


def test_planted_curves_in_small() -> None:
    found = planted(60)
    assert found["right"] >= 0.9 and found["spent"] <= 0.6 and found["covered"] >= 0.9


def test_the_key_takes_what_yaml_makes_of_on_and_off(tmp_path) -> None:
    path = tmp_path / "run.yaml"
    text = "name: a\ntask: {kind: classify, bar: 0.5}\ndata: {train: x.jsonl}\nladder: {curve: %s}\n"
    for word in ("on", "off", "auto"):
        path.write_text(text % word)
        assert load_run_file(path).ladder.curve == word
    path.write_text(text % "maybe")
    with pytest.raises(ConfigError, match=r"ladder\.curve"):
        load_run_file(path)
    assert TaskConfig(kind="classify", bar=0.5).computed_metric == "accuracy"


def test_a_real_rung_is_skipped_on_a_part_of_its_cost(tmp_path) -> None:
    """Labels drawn by lot cannot be learned: the curve says so, nothing is trained in full or held out."""
    rng = random.Random(0)
    words = [f"{a}{b}" for a in ("lo", "mi", "ra", "su", "te") for b in ("ban", "del", "fin", "gor", "hum", "kes")]
    with (tmp_path / "rows.jsonl").open("w") as file:
        for _ in range(240):
            row = {"prompt": " ".join(rng.sample(words, 5)), "completion": rng.choice(["yes", "no"])}
            file.write(json.dumps(row) + "\n")
    (tmp_path / "run.yaml").write_text(
        "name: skipped\ntask: {kind: classify, bar: 0.9}\ndata: {train: rows.jsonl}\nmodels: shoestring-1m\n"
        "curate: {max_train_rows: 130, max_eval_rows: 40}\ntrain: {num_threads: 1, num_epochs: 17, batch_tokens: 224}\n"
        "decide: {arms: []}\nevaluate: {regression: false}\nladder: {curve: on}\n"
    )
    run = Run.from_file(tmp_path / "run.yaml", runs_dir=tmp_path / "runs")
    said: list[str] = []
    verdict = run.execute(log=said.append)
    assert not verdict.met and "no rung was trained in full" in verdict.reason
    folder = tmp_path / "runs" / "skipped"
    record = json.loads((folder / "rungs" / "shoestring-1m" / "curve.json").read_text())["result"]
    assert [point["num_rows"] for point in record["points"]] == [8, 16, 32, 65]
    assert not (folder / "rungs" / "shoestring-1m" / "train.json").exists()
    assert not (folder / "rungs" / "shoestring-1m" / "curve").exists()  # weights of the parts are not kept
    entry = next(e for e in run.ledger.entries() if e["item"].endswith("/curve"))
    assert entry["actual"]["s"] > 0 and entry["predicted"]["s"]["expected"] > 0
    assert json.loads((folder / "ladder.json").read_text())["result"]["steps"][0]["did"] == "skipped"
    assert "predicted on 130" in (folder / "report.html").read_text()
    before = len(run.ledger.entries())
    again = Run.from_file(tmp_path / "run.yaml", runs_dir=tmp_path / "runs")
    again.execute()
    assert len(again.ledger.entries()) == before  # the curve is read back, not trained again


def test_rungs_go_by_the_total_where_there_is_traffic() -> None:
    from shoestring.plan.ladder_plan import total_usd
    from shoestring.stages.preparing import serving_usd

    cheap, dear = (replace(rung(m), cost_usd=Estimate(c, c, c)) for m, c in (("cheap", 1.0), ("dear", 2.0)))
    served = [replace(cheap, serve_usd=Estimate(9.0, 9, 9)), replace(dear, serve_usd=Estimate(3.0, 3, 3))]
    assert sorted([cheap, dear], key=lambda r: total_usd(r, [cheap, dear]))[0].model == "cheap"
    assert sorted(served, key=lambda r: total_usd(r, served))[0].model == "dear"
    assert total_usd(served[0], [served[0], dear]) == 1.0  # known of one alone it compares nothing

    config = RunConfig.model_validate(
        {
            "name": "a",
            "task": {"kind": "classify", "bar": 0.5},
            "data": {"train": ["x.jsonl"]},
            "traffic": {"requests_per_month": 1_000_000, "prompt_tokens": 300, "completion_tokens": 80},
        }
    )
    models = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B")
    found = serving_usd(config, {model: shape_of(model) for model in models})
    assert all(0 < found[model].low <= found[model].value for model in models)
    assert serving_usd(config.model_copy(update={"traffic": None}), {}) == {}
