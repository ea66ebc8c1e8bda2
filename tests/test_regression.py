"""The regression pack: checks by hand, the comparison, planted forgetting told and a sane adapter quiet."""

import math

import pytest

from shoestring.evaluate import regression
from shoestring.evaluate.regression import Check, Pack, compare, from_json, pack, passes
from shoestring.files import read_json, write_jsonl
from shoestring.recipe import Run
from shoestring.records import Device, to_json
from shoestring.train.base import load_base, load_tokenizer
from shoestring.train.reading import text_losses
from tests.tiny import make_model

EXACT = Device("cpu", "cpu", 2**33, 1, "float32", "so that sums can be compared")


def test_checks_by_hand():
    right = {
        "contains": ("The answer is twelve.", ("12", "twelve")),
        "starts": ("No, it is a mammal", ("no",)),
        "only": (' "Lantern". ', ("lantern",)),
        "cased": ("RIVER", ("RIVER",)),
        "json": ('```json\n{"ok": true}\n```', ("ok",)),
    }
    wrong = {
        "contains": ("a vacation", ("cat",)),
        "starts": ("Nothing", ("no",)),
        "only": ("a lantern", ("lantern",)),
        "cased": ("river", ("RIVER",)),
        "json": ('{"ok": true', ("ok",)),
    }
    assert set(right) == set(wrong) == set(regression.CHECKS)
    for kind in right:
        assert passes(Check("?", kind, right[kind][1]), right[kind][0]), kind
        assert not passes(Check("?", kind, wrong[kind][1]), wrong[kind][0]), kind


def test_the_pack_is_whole_and_its_own_answers_pass():
    shipped = pack()
    assert len(set(shipped.texts)) == len(shipped.texts) >= 20
    assert 20 <= len(shipped.checks) == len({check.prompt for check in shipped.checks})
    for check in shipped.checks:
        answer = '{"ok": true, "name": "Ann", "age": 30}' if check.kind == "json" else check.want[0]
        assert passes(check, answer) and not passes(check, "I cannot say."), check.prompt
        assert not passes(check, "")


def small(num_checks=6):
    checks = tuple(Check(f"q{i}", "only", ("a",)) for i in range(num_checks))
    return Pack(1, ("one", "two", "three"), checks)


def test_comparison_by_hand():
    found = compare(small(), [1.0, 2.0, 3.0], [1.5, 2.5, 3.5], [True] * 4 + [False] * 2, [True] + [False] * 5)
    assert "questions" not in found.warning  # four right answers may be chance
    many = compare(small(12), [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [True] * 9 + [False] * 3, [True] * 7 + [False] * 5)
    assert many.lost == ("q7", "q8") and "2 of 9 general questions" in many.warning
    assert found.perplexity_before == pytest.approx(math.e**2) and found.perplexity_after == pytest.approx(math.e**2.5)
    ratio = found.perplexity_ratio
    assert ratio.value == ratio.low == ratio.high == pytest.approx(math.sqrt(math.e))  # every text rose alike
    assert found.lost == ("q1", "q2", "q3") and found.lost_frac.value == 0.75 and found.num_passed_before == 4
    assert "1.6 times the base's" in found.warning
    assert from_json({"model": "m", **to_json(found)}) == found


def test_small_changes_and_bases_that_know_nothing_are_quiet():
    quiet = compare(small(), [1.0, 2.0, 3.0], [1.3, 2.3, 3.3], [True] * 6, [False] * 2 + [True] * 4)
    assert quiet.warning == "" and quiet.lost == ("q0", "q1")  # 1.35 times, and two lost are few
    spread = compare(small(), [1.0, 2.0, 3.0], [3.0, 2.0, 3.1], [False] * 6, [False] * 6)
    assert spread.perplexity_ratio.low < regression.WARN_PERPLEXITY_RATIO < spread.perplexity_ratio.value
    assert spread.warning == "" and spread.lost_frac is None  # one text does not make it sure
    assert "times the base's" in compare(small(), [1e3] * 3, [2e3] * 3, [False] * 6, [False] * 6).warning


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("model") / "tiny"))


def test_text_losses_are_the_models_own(tiny):
    tokenizer, model = load_tokenizer(tiny), load_base(tiny, device=EXACT)
    texts = ["a short one", "another text, somewhat longer than the first", "x" * 400]
    found = text_losses(model, tokenizer, texts, EXACT)
    for text, ours in zip(texts, found, strict=True):
        ids = tokenizer(f"<|bos|>{text}", return_tensors="pt").input_ids[:, :256]
        assert ours == pytest.approx(float(model(input_ids=ids, labels=ids).loss), rel=1e-4)


RUN_FILE = """
name: {name}
task: {{kind: generate, metric: exact_match, bar: 0.9}}
data: {{train: rows.jsonl}}
models: shoestring-1m
decide: {{arms: [], train_anyway: true}}
train: {{learning_rate: {rate}, num_epochs: 1, batch_tokens: 512, num_threads: 1, num_evals: 1}}
"""


@pytest.mark.parametrize(("name", "rate", "told"), [("sane", 1e-4, False), ("absurd", 8e-2, True)])
def test_planted_forgetting_is_told_and_a_sane_adapter_is_quiet(tmp_path, name, rate, told):
    write_jsonl(
        tmp_path / "rows.jsonl", [{"prompt": f"one more than {i}?", "completion": str(i + 1)} for i in range(240)]
    )
    (tmp_path / "run.yaml").write_text(RUN_FILE.format(name=name, rate=rate))
    lines = []
    run = Run.from_file(tmp_path / "run.yaml", runs_dir=tmp_path / "runs")
    run.execute(log=lines.append, until="eval")
    record = read_json(run.run_folder.rung("shoestring-1m") / "regression.json")
    assert bool(record["result"]["warning"]) == told == any("general ability was forgotten" in line for line in lines)
    assert run.loaded is None and run.summary()["regressions"] == [record["result"]]
    assert "What was forgotten" in (run.folder / "report.html").read_text()
    items = [entry["item"] for entry in run.ledger.entries()]
    assert items[-1] == "rungs/shoestring-1m/regression"
    again = Run.from_file(tmp_path / "run.yaml", runs_dir=tmp_path / "runs")
    again.execute(until="eval")
    assert [entry["item"] for entry in again.ledger.entries()] == items
    (run.run_folder.rung("shoestring-1m") / "regression.json").unlink()  # killed before it was measured
    again = Run.from_file(tmp_path / "run.yaml", runs_dir=tmp_path / "runs")
    again.execute(until="eval")
    redone = read_json(run.run_folder.rung("shoestring-1m") / "regression.json")
    assert redone["result"] == record["result"]
    (run.run_folder.rung("shoestring-1m") / "regression.json").unlink()
    (tmp_path / "run.yaml").write_text(RUN_FILE.format(name=name, rate=rate) + "evaluate: {regression: false}\n")
    Run.from_file(tmp_path / "run.yaml", runs_dir=tmp_path / "runs").execute(until="eval")
    assert not (run.run_folder.rung("shoestring-1m") / "regression.json").exists()
