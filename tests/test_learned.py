"""Predictions learn from the ledgers beside them, and from a probe of this machine."""

import dataclasses
import json
import math
import random
import shutil
import signal

import pytest

from shoestring.errors import BadInput, Interrupted
from shoestring.files import read_json, write_jsonl
from shoestring.ledger import Ledger
from shoestring.plan import learned
from shoestring.plan.interval import daly_interval_s
from shoestring.plan.ladder_plan import plan_rung
from shoestring.plan.learned import OTHER_MODEL_SD, SAME_MODEL_SD, Line, apply, basis_of, learn, lines_of, machine_of
from shoestring.plan.probed import Probed, probed_from_json, settle
from shoestring.recipe import Run
from shoestring.records import plan_from_json, to_json
from shoestring.stages.probing import forget_outrun, ledger_lines, plan_probed, record_of
from shoestring.train.timing import spread
from tests.test_plan import COUNTS, CPU, PRICE, TINY, config
from tests.tiny import make_model

RUNG = plan_rung(config(), "tiny", TINY, COUNTS, CPU, PRICE)
HERE = machine_of(RUNG)


def line(ratio, model="tiny", stage="train", machine=HERE, at="2026-11-28"):
    return Line(stage, model, machine, at, 100.0, 100.0 * ratio)


def test_one_line_by_hand():
    """Prior sd ln(3)/2 and drift 0.05 against a noise of 0.10: the gain, and what is left of the surprise."""
    variance = (math.log(3) / 2) ** 2 + 0.05**2
    gain = variance / (variance + SAME_MODEL_SD**2)
    found = learn([line(1.2)], "train", "tiny", HERE)
    assert found.ratio.value == pytest.approx(1.2**gain) and 0.95 < gain < 0.98
    spread_ = 2 * math.sqrt((1 - gain) * variance + SAME_MODEL_SD**2)
    assert found.ratio.high == pytest.approx(1.2**gain * math.exp(spread_))
    assert found.note.startswith("your last training on this machine took 1.20 of predicted; applied: 1.19")
    weaker = learn([line(1.2, model="another")], "train", "tiny", HERE).ratio.value
    assert 1 < weaker < found.ratio.value and OTHER_MODEL_SD > SAME_MODEL_SD


def test_a_machine_half_as_fast_is_known_after_few_runs():
    rng = random.Random(0)
    lines = []
    off = []
    for _ in range(6):
        known = learn(lines, "train", "tiny", HERE)
        off.append(abs(math.log(2.0 / (known.ratio.value if known else 1.0))))
        lines.append(line(2.0 * math.exp(rng.gauss(0, 0.05))))
    assert off[0] == pytest.approx(math.log(2)) and off[1] < 0.2 and max(off[3:]) < 0.08
    final = learn(lines, "train", "tiny", HERE).ratio
    assert final.low < 2.0 < final.high and final.high / final.low < 1.8


def test_an_outlier_moves_little_and_a_changed_machine_is_followed():
    steady = [line(1.0)] * 8
    disturbed = learn([*steady, line(30.0)], "train", "tiny", HERE).ratio.value
    assert 1.0 < disturbed < 1.25
    assert learn([*steady, line(30.0), line(1.0), line(1.0)], "train", "tiny", HERE).ratio.value < 1.08
    assert learn([*steady, *[line(2.0)] * 8], "train", "tiny", HERE).ratio.value == pytest.approx(2.0, rel=0.1)


def test_only_this_machine_and_this_kind_of_work_teach():
    others = [line(3.0, machine="cuda H100 bfloat16 x1, shoestring"), line(3.0, stage="eval")]
    assert learn(others, "train", "tiny", HERE) is None
    assert apply(RUNG, others[:1]) is RUNG
    settled = apply(RUNG, others)
    assert settled.train_s == RUNG.train_s and settled.eval_s.value > 2 * RUNG.eval_s.value
    assert "last evaluation on this machine took 3.00" in settled.timed


def test_what_is_learned_scales_seconds_and_dollars_but_not_what_the_next_line_is_compared_with():
    settled = apply(RUNG, [line(2.0)] * 5)
    ratio = settled.train_s.value / RUNG.train_s.value
    assert ratio == pytest.approx(2.0, rel=0.03)
    assert settled.train_s.high / settled.train_s.low < RUNG.train_s.high / RUNG.train_s.low
    assert settled.cost_usd.value == pytest.approx((settled.train_s.value + RUNG.eval_s.value) * 1e-4)
    assert "your last 5 trainings on this machine took 2.00 of predicted; applied: " in settled.timed
    assert basis_of(settled, "train") == basis_of(RUNG, "train")
    assert basis_of(RUNG, "train", 0.5)["predicted_s"] == RUNG.train_s.value / 2
    assert basis_of(RUNG, "regression") == {}
    assert plan_from_json({"rungs": [to_json(settled)], "notes": []}).rungs[0] == settled


def test_damaged_ledgers_teach_nothing_and_stop_nothing(tmp_path):
    ledger = Ledger(tmp_path / "a" / "ledger.jsonl")
    common = {"stage": "train", "predicted": None, "price_usd_per_hour": 1}
    ledger.record("x", actual={"s": 50}, basis={"model": "m", "machine": HERE, "predicted_s": 100}, **common)
    ledger.record("x", actual={"s": 50}, basis={"model": "m", "machine": HERE, "predicted_s": 0}, **common)
    ledger.record("x", actual={"usd": 1}, basis={"model": "m", "machine": HERE, "predicted_s": 9}, **common)
    ledger.record("x", actual={"s": 50}, **common)
    entries = [*ledger.entries(), {"stage": "train", "basis": "?", "actual": {"s": 1}}, {"stage": "train", "actual": 3}]
    assert [one.actual_s for one in lines_of(entries[:-1])] == [50.0]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "ledger.jsonl").write_bytes(b"\xff\xfe\x00 not a ledger\n{}\n[]\n")
    assert len(ledger_lines(tmp_path)) == 1 and ledger_lines(tmp_path / "none") == []


# ---------------------------------------------------------------- a probe

PROBED = Probed(
    set_up_s=2.0, gates_s=1.0, reference_s=0.0, step_s=(1.0, 1.0, 2.0), step_tokens=(100, 100, 200), all_tokens=4000,
    new_size_s=0.1, num_sizes=10, dev_eval_s=3.0, answer_s=3.0, first_eval_s=3.0,
    dev_rows=30, num_evals=2, save_s=0.5, interruptions_per_hour=1.0,
    load_s=2.0, eval_rows=60,
    peak_bytes=10**9, new_size_bytes=10**6, num_sizes_seen=4, max_sizes=64, eval_bytes=0, num_steps=40, num_tokens=3600,
    search_frac=0.0, cpu_frac=1.0, is_cpu_time=True, wall_s=9.0,
)  # fmt: skip


def test_a_probe_extrapolated_by_hand():
    assert PROBED.steps_s.value == pytest.approx(4000 * 4 / 400 + 10 * 0.1)  # 41 s, residuals are zero
    saves = (2 + (41 + 6) / daly_interval_s(0.5, 1)) * 0.5  # about once a minute
    assert PROBED.train_s.value == pytest.approx(41 + 2 * 3 + 3 + saves)
    assert PROBED.eval_s.value == pytest.approx(3.0 * (1 + 2) / 2 + 2)  # twice the rows, in one batch still
    assert PROBED.search_s is None
    searched = dataclasses.replace(PROBED, search_frac=0.25)
    assert searched.search_s.value == pytest.approx(41 / 4 + 3)
    noisy = dataclasses.replace(PROBED, step_s=(0.5, 1.5, 2.0))
    assert noisy.train_s.high - noisy.train_s.value > PROBED.train_s.high - PROBED.train_s.value
    assert PROBED.peak.low < 10**9 == PROBED.peak.value < PROBED.peak.high
    assert "87.8" not in PROBED.note and "88 tokens/s" in PROBED.note
    busy = dataclasses.replace(PROBED, cpu_frac=0.4)
    assert "40%" in busy.note and "as if it were idle" in busy.note
    assert "as busy as it was" in dataclasses.replace(busy, is_cpu_time=False).note
    assert probed_from_json(json.loads(json.dumps(to_json(PROBED)))) == PROBED
    rung = settle(RUNG, PROBED)
    assert rung.train_s == PROBED.train_s and rung.settings == RUNG.settings and rung.timed == PROBED.note
    assert rung.is_probed and not RUNG.is_probed
    assert rung.cost_usd.value == pytest.approx((PROBED.train_s.value + PROBED.eval_s.value) * 1e-4)


def test_sampled_steps_lie_over_the_whole_schedule():
    assert spread(10, 5) == [1, 3, 5, 7, 9] and spread(3, 5) == [0, 1, 2]


RUN_FILE = """
name: {name}
task: {{kind: generate, metric: exact_match, bar: 0.9}}
data: {{train: rows.jsonl}}
models: ./tiny
decide: {{arms: [], train_anyway: true}}
evaluate: {{regression: false}}
train: {{num_epochs: 3, batch_tokens: 400, num_threads: 1, num_evals: 1}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_model(folder / "tiny")
    write_jsonl(
        folder / "rows.jsonl", [{"prompt": f"one more than {i}?", "completion": str(i + 1)} for i in range(150)]
    )
    return folder


def opened(place, name, more=""):
    path = place / f"{name}.yaml"
    path.write_text(RUN_FILE.format(name=name) + more)
    return Run.from_file(path, runs_dir=place / "runs")


def test_a_probe_settles_the_plan_and_touches_nothing_else(place, monkeypatch):
    from shoestring.train import timing

    monkeypatch.setattr(timing, "STEPS_S", 0.5)
    run = opened(place, "probed")
    before = run.plan(run.curate()).rungs[0]
    run = opened(place, "probed")
    lines = []
    after = plan_probed(run, lambda *told: None, lines.append).rungs[0]
    assert after.settings == before.settings and "steps timed on this machine" in after.timed
    assert after.train_s.high / after.train_s.low < before.train_s.high / before.train_s.low
    assert after.derived_s == before.derived_s
    assert not (run.folder / "rungs").exists() and not [e for e in run.ledger.entries() if "rungs" in e["item"]]
    kept = read_json(run.folder / record_of(after.model))["result"]
    assert kept["num_steps"] == after.num_steps and kept["peak_bytes"] > 2**26
    again = opened(place, "probed").execute
    again(until="plan")
    assert read_json(run.folder / "plan.json")["result"]["rungs"][0]["timed"] == after.timed
    run.execute(until="train")  # the ledger compares with the probe, and later plans learn from what was derived
    entry = run.ledger.entries()[-1]
    assert entry["predicted"]["s"]["expected"] == pytest.approx(after.train_s.value)
    assert entry["basis"]["predicted_s"] == pytest.approx(before.train_s.value)
    other = opened(place, "probed", "seed: 1\n")  # another training: the probe is not its own
    other.execute(until="plan")
    planned = plan_from_json(read_json(other.folder / "plan.json")["result"]).rungs[0]
    assert planned.timed.startswith("your last training on this machine took")


def test_a_signal_in_the_last_timed_step_ends_the_probe(place, monkeypatch):
    from shoestring.stages import probing
    from shoestring.train import timing

    monkeypatch.setattr(timing, "STEPS_S", 0.1)
    monkeypatch.setattr(probing, "metric_value", lambda *asked: signal.raise_signal(signal.SIGTERM) or 0.0)
    run = opened(place, "stopped")
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM while .* was timed"):
        plan_probed(run, lambda *told: None, lambda text: None)
    assert not (run.folder / "probes").exists()


def test_a_second_run_is_predicted_from_the_first(place):
    first = opened(place, "first")
    first.execute(until="eval")
    second = opened(place, "second", "seed: 3\n")
    second.execute(until="plan")
    rung = plan_from_json(read_json(second.folder / "plan.json")["result"]).rungs[0]
    entries = {entry["stage"]: entry for entry in first.ledger.entries()}
    took = entries["train"]["actual"]["s"] / entries["train"]["basis"]["predicted_s"]
    applied = rung.train_s.value / rung.derived_s["train"]
    # The first run is one of several in the folder; where the prediction was good, the others weigh more.
    assert abs(math.log(applied / took)) < max(0.5, abs(math.log(took))) and "on this machine took" in rung.timed
    assert "evaluation" in rung.timed
    forget_outrun(second)  # nothing new
    assert (second.folder / "plan.json").is_file()
    later = {**entries["train"], "at": "2999-01-01T00:00:00+00:00"}
    write_jsonl(place / "runs" / "later" / "ledger.jsonl", [later])
    forget_outrun(second)
    assert not (second.folder / "plan.json").exists()
    shutil.rmtree(place / "runs" / "later")
    assert (first.folder / "report.html").is_file() and learned.STAGES.keys() == {"train", "eval"}


def test_a_probe_of_another_machine_or_trainer_is_refused(place):
    run = opened(place, "elsewhere", "market: {device: H100-SXM}\n")
    with pytest.raises(BadInput, match=r"planned for H100-SXM .* a probe times this machine"):
        plan_probed(run, lambda *told: None, lambda text: None)
