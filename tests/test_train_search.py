"""train/search.py: halving by hand, rates compared fairly, killed and continued, edges said."""

import dataclasses
import json
import math
import signal

import pytest

from shoestring.config import parse_run_file
from shoestring.errors import BadInput, BudgetStopped, ConfigError, Interrupted, TrainingError
from shoestring.files import read_json, write_jsonl
from shoestring.plan import search as halving
from shoestring.recipe import Run
from shoestring.stages import rungs, searching
from shoestring.train.search import STATE, search_learning_rate
from shoestring.train.trainer import train_rung
from tests.test_train_trainer import HALF, additions, settings
from tests.tiny import make_model


def test_halving_by_hand():
    assert halving.grid(4e-3) == [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
    assert halving.alive() == [5, 3, 2] and halving.rounds() == [1, 2, 4]
    assert halving.num_units() == 5 * 1 + 3 * 1 + 2 * 2
    assert halving.unit_tokens(1400) == 100  # two units are kept for rates beyond the edge
    scores = {1.0: 3.0, 2.0: 1.0, 4.0: 2.0, 8.0: math.inf, 16.0: math.inf}
    assert halving.survivors(scores, 3) == [2.0, 4.0, 1.0]
    assert halving.survivors({1.0: math.inf}, 1) == []


def test_the_budget_is_a_quarter_of_training_but_never_too_short_to_tell():
    tokens, why = halving.default_tokens(1_000_000, 1000)
    assert tokens == 250_000 and why.startswith("25%")
    tokens, why = halving.default_tokens(400_000, 1000)
    assert tokens == 14 * 12 * 1000 and why.startswith("42%") and "12 steps" in why
    assert halving.default_tokens(50_000, 1000)[0] == 50_000  # never more than training itself


def test_a_best_rate_at_the_edge_adds_the_next_one():
    rates = halving.grid(1e-2)
    low = {rate: rate for rate in rates}  # the lowest is best
    assert halving.beyond(1e-2, low) == 1.25e-3
    assert halving.beyond(1e-2, {**low, 1.25e-3: 0.0}) == 6.25e-4
    assert halving.beyond(1e-2, {**low, 1.25e-3: 0.0, 6.25e-4: -1.0}) is None  # MAX_ADDED
    assert halving.beyond(1e-2, {rate: abs(rate - 1e-2) for rate in rates}) is None
    high = {rate: 1 / rate for rate in rates}
    assert halving.beyond(1e-2, high) == 8e-2
    assert halving.beyond(1e-2, {**high, 4e-2: math.inf}) is None  # 2e-2 is best, and beyond it is what diverged
    assert halving.at_edge(4e-2, rates) == "highest" and halving.at_edge(1e-2, rates) == ""


def test_the_run_file_takes_search_or_a_rate():
    head = "name: a\ntask: {kind: generate, bar: 0.5}\ndata: {train: [x]}\n"
    assert parse_run_file(head + "train: {learning_rate: search, search_tokens: 900}").train.search_tokens == 900
    assert parse_run_file(head + "train: {learning_rate: 1e-3}").train.learning_rate == 1e-3
    for wrong in ("searched", "2", "0", "yes"):
        with pytest.raises(ConfigError, match="a number above 0 and below 1, or search") as error:
            parse_run_file(head + f"train: {{learning_rate: {wrong}}}")
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ConfigError, match="search_tokens is what learning_rate: search may spend"):
        parse_run_file(head + "train: {search_tokens: 900}")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def find(tiny, tmp_path):
    lines = []

    def run(out="search", dev_rows=8, stop=None, **changes):
        return search_learning_rate(
            model=tiny,
            train=additions(80),
            dev=additions(dev_rows, 500),
            out_dir=tmp_path / out,
            settings=settings(**{"search_tokens": 14 * 700, "num_epochs": 6, **changes}),
            device=HALF,
            log=lines.append,
            **({"should_stop": stop} if stop else {}),
        )

    run.folder, run.lines = tmp_path, lines
    return run


def told(result):
    return [(t["learning_rate"], t["losses"], t["stopped"]) for t in result.trials]


def test_a_search_prefers_a_rate_that_learns_and_goes_on_where_it_was_stopped(find, tiny):
    whole = find(learning_rate=1e-4)  # far too small: the grid's upper edge is better, and is left upwards
    rates = [t["learning_rate"] for t in whole.trials]
    assert whole.learning_rate > 2e-4 and len(rates) > 5 and rates == sorted(rates)
    assert any("at the edge" in line for line in find.lines)
    rounds = sorted(len(t["losses"]) for t in whole.trials)
    assert rounds[-2:] == [3, 3] and rounds.count(1) == len(rates) - 3
    assert whole.learning_rate != max(rates) or "highest rate that was tried" in whole.note
    best = min((t for t in whole.trials if len(t["losses"]) == 3), key=lambda t: t["dev_loss"])
    assert best["stopped"] == "won" and best["learning_rate"] == whole.learning_rate
    assert whole.num_tokens <= 14 * 700 * 1.25  # whole steps: a round ends with the step that fills it

    seen = 0

    def stop(wall_s):
        nonlocal seen
        seen += 1
        return BudgetStopped("spent") if seen % 9 == 0 else None

    sessions = 0
    while True:
        sessions += 1
        try:
            parts = find("parts", learning_rate=1e-4, stop=stop)
            break
        except BudgetStopped:
            assert json.loads((find.folder / "parts" / STATE).read_text())["wall_s"] > 0
    assert sessions > 2
    assert told(parts) == told(whole) and parts.num_tokens == whole.num_tokens
    again = find("parts", learning_rate=1e-4, stop=lambda wall_s: pytest.fail("a finished search takes no step"))
    assert told(again) == told(whole)


def test_a_damaged_trial_begins_anew_with_the_same_numbers(find):
    whole = find()
    state = find.folder / "search" / STATE
    row = json.loads(state.read_text())
    for trial in row["trials"]:
        trial["losses"] = trial["losses"][:1]
    state.write_text(json.dumps(row))
    weights = sorted((find.folder / "search").glob("*.pt"))
    for path in weights:
        path.write_bytes(path.read_bytes()[:-7])
    again = find()
    assert told(again) == told(whole) and any("damaged" in line for line in find.lines)


def test_a_signal_at_the_last_score_is_not_lost_and_the_search_goes_on(find, monkeypatch):
    from shoestring.train.search import _Search

    score, num = _Search._score, 0

    def stop_in_the_last(self, mean):
        nonlocal num
        num += 1
        if num == 12:  # five rates, then three, then two, and two beyond the edge
            signal.raise_signal(signal.SIGTERM)
        return score(self, mean)

    monkeypatch.setattr(_Search, "_score", stop_in_the_last)
    with pytest.raises(Interrupted, match="SIGTERM in the learning-rate search"):
        find(learning_rate=1e-4)
    assert num == 12
    find(learning_rate=1e-4, stop=lambda wall_s: pytest.fail("it was whole"))
    assert num == 12


def test_what_the_guard_is_asked_for_holds_the_next_step_and_the_scoring(find, monkeypatch):
    from shoestring.train.search import _Search

    asked = []
    monkeypatch.setattr(_Search, "wall_s", lambda self: 0.0)
    find(stop=lambda wall_s: asked.append(wall_s))
    assert (
        min(asked) >= 0 and sum(wall_s > 0 for wall_s in asked) >= len(asked) - 1
    )  # nothing is known of a first score


def test_other_inputs_begin_anew_and_leave_what_a_process_prints(find):
    find()
    printed = find.folder / "search" / "processes" / "rank-0.txt"
    printed.parent.mkdir()
    printed.write_text("a warning")
    stale = find.folder / "search" / "rate-9.pt"
    stale.write_bytes(b"of other rows")
    find(seed=5)
    assert printed.read_text() == "a warning" and not stale.exists()


def test_rates_that_diverge_are_out(find):
    assert find(learning_rate=1e-3, dev_rows=8).learning_rate > 0
    with pytest.raises(BadInput, match="compares rates on dev rows, and there are none"):
        find("none", dev_rows=0)


def test_a_round_scores_a_rate_as_its_own_training_would(find, tiny, monkeypatch):
    """With no averaging and no decay to speak of: a trial's first steps are those of train_rung's trainer."""
    from shoestring.train import search

    monkeypatch.setattr(search.MeanWeights, "values", lambda self: self.last)

    def add(self, step, first, end, own):
        self.last, self.num, self.sums = [p.detach().clone() for p in own], 1, [p.detach().clone() for p in own]

    monkeypatch.setattr(search.MeanWeights, "add", add)
    found = find("plain", warmup_frac=0.0)
    steps, score = found.trials[2]["losses"][0]
    assert found.trials[2]["learning_rate"] == pytest.approx(1e-2)
    from transformers import TrainingArguments

    class Constant(TrainingArguments):
        def __init__(self, **options):
            super().__init__(**{**options, "lr_scheduler_type": "constant", "warmup_steps": 0})

    monkeypatch.setattr("transformers.TrainingArguments", Constant)
    rows, dev = additions(80), additions(8, 500)
    taken = []

    def stop(wall_s):
        taken.append(wall_s)
        return BudgetStopped("enough") if len(taken) == steps else None

    values = settings(num_epochs=6, num_evals=100, patience=100)
    with pytest.raises(BudgetStopped):
        train_rung(model=tiny, train=rows, dev=dev, out_dir=find.folder / "full", settings=values, device=HALF,
                   dev_metric=lambda model, tokenizer: 0.0, should_stop=stop)  # fmt: skip
    lines = [json.loads(line) for line in (find.folder / "full" / "steps.jsonl").read_text().splitlines()]
    at = {line["step"]: line["dev_loss"] for line in lines if "dev_loss" in line}
    assert at[steps] == pytest.approx(score, rel=1e-6)


def test_every_rate_diverged_is_an_error(find, monkeypatch):
    from shoestring.train.search import _Search

    monkeypatch.setattr(_Search, "_step", lambda self, index, optimizer, scaler: False)
    with pytest.raises(TrainingError, match=r"every learning rate tried diverged .*0.0025 at step 1"):
        find()


# ---------------------------------------------------------------- in a run


RUN_FILE = """
name: sums
task: {kind: generate, metric: exact_match, bar: 0.9}
data: {train: rows.jsonl}
models: ./tiny
decide: {arms: [], train_anyway: true}
market: {price_usd_per_hour: 3600}
budget_usd: 900
train: {learning_rate: search, search_tokens: 12000, num_epochs: 3, batch_tokens: 400, num_threads: 1, num_evals: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    make_model(place / "tiny")
    write_jsonl(place / "rows.jsonl", [{"prompt": f"one more than {i}?", "completion": str(i + 1)} for i in range(200)])
    (place / "run.yaml").write_text(RUN_FILE)
    return place


def test_a_run_searches_once_enters_it_and_trains_with_the_winner(folder):
    def run():
        return Run.from_file(folder / "run.yaml", runs_dir=folder / "runs")

    first = run()
    first.execute(until="train")
    rung = first.run_folder.rung(first.config.models[0])
    searched = read_json(rung / "search.json")["result"]
    trained = read_json(rung / "train.json")["result"]
    assert trained["settings"]["learning_rate"] == searched["learning_rate"]
    items = [entry["item"] for entry in first.ledger.entries()]
    at = items.index(f"rungs/{rung.name}/search")
    assert items[at + 1] == f"rungs/{rung.name}/train"
    line = first.ledger.entries()[at]
    assert line["actual"]["usd"] == pytest.approx(searched["wall_s"]) and line["predicted"]["s"]["expected"] > 0
    (planned,) = read_json(first.folder / "plan.json")["result"]["rungs"]
    parts = sum(planned[k]["value"] for k in ("search_s", "train_s", "eval_s"))
    assert planned["cost_usd"]["value"] == pytest.approx(parts)  # a dollar a second
    assert not list((rung / "search").glob("*.pt"))
    assert first.summary()["searches"] == [searched]
    assert "Learning-rate search" in (first.folder / "report.html").read_text()

    again = run()
    again.execute(until="train")
    assert [entry["item"] for entry in again.ledger.entries()] == items


def test_the_budget_stops_a_search_and_what_was_tried_is_kept_and_counted(folder):
    (folder / "poor.yaml").write_text(
        RUN_FILE.replace("name: sums", "name: poor").replace("budget_usd: 900", "budget_usd: 900000")
    )
    rich = Run.from_file(folder / "poor.yaml", runs_dir=folder / "runs")
    plan = rich.plan(rich.curate())
    rung = plan.rungs[0]
    seen = []

    def stop(wall_s):
        seen.append(wall_s)
        return BudgetStopped("enough") if len(seen) == 9 else None

    rungs.begin(rich, rung)
    with pytest.raises(BudgetStopped):
        searching.settled(rich, rung, rich.curate(), stop)
    live = rich.ledger.live_s()[rich.run_folder.rung(rung.model).name]
    assert 0 < live <= seen[-1] + 5
    before = rich.ledger.spent_usd()
    assert rich.ledger.spent_usd(live_usd_per_hour=3600) == pytest.approx(before + live)
    found = searching.settled(rich, rung, rich.curate(), lambda wall_s: None)
    (entry,) = [entry for entry in rich.ledger.entries() if entry["stage"] == "search"]
    assert found.learning_rate != 0 and entry["actual"]["s"] > live and not rich.ledger.live_s()


def test_a_base_in_shards_is_refused(folder):
    run = Run.from_file(folder / "run.yaml", runs_dir=folder / "runs")
    curated = run.curate()
    rung = run.plan(curated).rungs[0]
    run.run_folder.retract("rungs/*/search.json")
    shards = dataclasses.replace(rung, settings=dataclasses.replace(rung.settings, parallelism="fsdp"))
    with pytest.raises(BadInput, match=r"in shards \(fsdp\)"):
        searching.settled(run, shards, curated, lambda wall_s: None)
