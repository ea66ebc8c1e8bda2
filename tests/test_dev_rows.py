"""Early stopping looks at the task's own metric, on so many dev rows, so often, that it stays a share of training."""

import dataclasses

import pytest

from shoestring.files import read_json, write_jsonl
from shoestring.plan.dev_rows import MAX_DEV_ROWS, MAX_SHARE, MIN_EVALS, MIN_ROWS, held_to_share
from shoestring.plan.devices import planned_device
from shoestring.plan.ladder_plan import plan_rung
from shoestring.plan.settings import GIVEN, resolve_settings
from shoestring.plan.shapes import shape_of
from shoestring.plan.throughput import generate_s, predict_time
from shoestring.recipe import Run
from shoestring.records import TokenCounts
from shoestring.stages.common import dev_rows
from tests.test_plan import COUNTS, CPU, PRICE, TINY, config
from tests.tiny import make_model

H100 = planned_device("H100-SXM", CPU)
SMALL = shape_of("Qwen/Qwen3-0.6B")
LONG = TokenCounts(prompt=(500,) * 1000, answer=(500,) * 1000, eval_prompt=(500,) * 100, eval_answer=(500,) * 100)


def held(cfg, shape, counts, device, num_rows):
    settings = resolve_settings(cfg, shape, counts, device)
    found = held_to_share(settings, cfg.train, shape, counts, device, num_rows)
    time = predict_time(shape, settings, counts, device, num_dev_rows=num_rows)
    steps_s = time.num_train_tokens / time.tokens_per_s.value
    prompts, answers = counts.prompt[: found.num_dev_rows], counts.answer[: found.num_dev_rows]
    once_s = generate_s(shape, prompts, answers, device, settings.num_threads).value
    return found, found.num_evals * once_s / steps_s


def test_short_answers_are_looked_at_as_before():
    found, share = held(config(), TINY, COUNTS, CPU, 32)
    assert (found.num_evals, found.num_dev_rows) == (6, 32) and share < MAX_SHARE
    assert "answering takes about" in found.reasons["num_dev_rows"]


def test_long_answers_of_a_small_model_are_looked_at_less_often():
    found, share = held(config(), SMALL, LONG, H100, 100)
    assert found.num_evals == MIN_EVALS and found.num_dev_rows == MIN_ROWS  # and no fewer, whatever they take
    assert "6 times 100 rows would take" in found.reasons["num_evals"]
    more = dataclasses.replace(LONG, prompt=(500,) * 8000, answer=(500,) * 8000)
    found, share = held(config(), SMALL, more, H100, 800)
    assert found.num_dev_rows == MAX_DEV_ROWS and found.num_evals in (5, 6) and share <= MAX_SHARE


def test_what_the_run_file_gives_is_left_alone():
    given = config(train={"num_evals": 6, "num_dev_rows": 90})
    found, _ = held(given, SMALL, LONG, H100, 100)
    assert (found.num_evals, found.num_dev_rows) == (6, 90) and found.reasons["num_dev_rows"] == GIVEN
    rung = plan_rung(given, "small", SMALL, LONG, H100, PRICE, num_dev_rows=100)
    assert rung.settings.num_dev_rows == 90


RUN_FILE = """
name: sums
task: {kind: generate, metric: exact_match, bar: 0.9}
data: {train: rows.jsonl}
models: ./tiny
decide: {arms: [], train_anyway: true}
evaluate: {regression: false}
train: {num_epochs: 2, batch_tokens: 400, num_threads: 1, num_evals: 2, num_dev_rows: 5}
"""


def test_training_stops_by_the_tasks_metric_on_a_sample_of_fixed_size_and_says_so(tmp_path, monkeypatch):
    make_model(tmp_path / "tiny")
    write_jsonl(
        tmp_path / "rows.jsonl", [{"prompt": f"one more than {i}?", "completion": str(i + 1)} for i in range(200)]
    )
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    run = Run.from_file(tmp_path / "run.yaml", runs_dir=tmp_path / "runs")
    curated = run.curate()
    rung = run.plan(curated).rungs[0]
    assert len(curated.dev) > 5 == len(dev_rows(run, curated, rung.settings))
    from shoestring.stages import rungs

    asked = []

    def metric_value(task, rows, completions, labels):
        asked.append((task.metric, [row.id for row in rows], [c.text for c in completions]))
        return 1.0 if len(asked) == 1 else 0.0

    monkeypatch.setattr(rungs, "metric_value", metric_value)
    run.execute(until="train")
    record = read_json(run.run_folder.rung(rung.model) / "train.json")["result"]
    assert len(asked) == 2 and {metric for metric, _, _ in asked} == {"exact_match"}
    assert asked[0][1] == asked[1][1] == [row.id for row in dev_rows(run, curated, rung.settings)]
    assert record["dev_metric"] == 1.0 and record["best_step"] < record["num_steps"]
    assert record["settings"]["dev_evaluations"].startswith("2 on 5 rows each, ")
    assert 0 < record["settings"]["dev_evaluations_s"] < record["wall_s"]


def test_more_dev_rows_than_there_are_is_no_fault():
    assert held(config(train={"num_dev_rows": 500}), TINY, COUNTS, CPU, 32)[0].num_dev_rows == 32
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        config(train={"num_dev_rows": 0})
