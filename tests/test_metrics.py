"""Metrics: examples to check by hand, invariants, and what each task kind tolerates."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from shoestring.config import METRICS_BY_KIND, TaskConfig
from shoestring.errors import DataError
from shoestring.evaluate.calibration import calibration
from shoestring.evaluate.metrics import (
    aggregate,
    chrf,
    final_number,
    label_codes,
    macro_f1,
    matching_leaves,
    num_leaves,
    parse_json,
    rouge_l,
    score_output,
    sql_normal_form,
)
from shoestring.evaluate.score import metric_value, score_arm, with_far
from shoestring.evaluate.statistics import wilson
from shoestring.records import ArmScore, Completion, Example, FarScore, Message, arm_from_json, to_json


def example(prompt: str, answer: str, line: int = 1) -> Example:
    return Example((Message("user", prompt), Message("assistant", answer)), (1, 2), "rows.jsonl", line)


def said(text: str, stopped: bool = True) -> Completion:
    return Completion(text, 10, 5, 0.1, stopped=stopped)


# Classification


def test_macro_f1_by_hand() -> None:
    # a: 1 hit of 2 expected, 1 predicted: F1 = 2/3. b: 1 hit of 1 expected, 2 predicted: F1 = 2/3.
    assert macro_f1(*label_codes(["a", "a", "b"], ["a", "b", "b"])) == pytest.approx(2 / 3)
    # c never expected: it is no label of its own, but its rows are lost to a.
    assert macro_f1(*label_codes(["a", "a", "b"], ["a", "c", "b"])) == pytest.approx((2 / 3 + 1) / 2)


def test_a_label_outside_the_set_is_invalid_and_wrong() -> None:
    labels = frozenset({"card", "cash"})
    assert score_output("classify", "card", " card\n", labels).values == {"accuracy": 1.0}
    assert score_output("classify", "card", "cash", labels).failure is None
    wrong = score_output("classify", "card", "Card", labels)
    assert wrong.values == {"accuracy": 0.0} and wrong.failure == "invalid label 'Card'"


# Extraction


def test_leaves_by_hand() -> None:
    expected = {"name": "Ann", "order": {"qty": 2, "tags": ["x", "y"]}}
    output = {"name": "Ann", "order": {"qty": 3, "tags": ["y", "z"]}, "extra": None}
    assert (num_leaves(expected), num_leaves(output), matching_leaves(expected, output)) == (4, 5, 2)
    scored = score_output("extract", json.dumps(expected), json.dumps(output), frozenset())
    assert scored.values == {"leaf_f1": pytest.approx(4 / 9), "exact_record": 0.0}


@pytest.mark.parametrize(
    ("expected", "output", "matching"),
    [
        ({"a": 1}, {"a": 1.0}, 1),
        ({"a": 1}, {"a": True}, 0),
        ({"a": 1}, {"a": "1"}, 0),
        ({"a": "X"}, {"a": "x"}, 0),
        ({"a": []}, {"a": []}, 1),
        ({"a": []}, {}, 0),
        ({"a": {}}, {"a": []}, 0),
        ({"a": ["x", "x"]}, {"a": ["x"]}, 1),
        ({"a": ["x"]}, {"a": "x"}, 0),
        # Objects in a list are aligned, not compared by place.
        ({"a": [{"n": 1, "p": 2}, {"n": 3, "p": 4}]}, {"a": [{"n": 3, "p": 5}, {"n": 1, "p": 2}]}, 3),
    ],
)
def test_leaves_agree(expected: dict, output: dict, matching: int) -> None:
    assert matching_leaves(expected, output) == matching


def test_leaf_f1_is_one_only_for_equal_records_whatever_the_order() -> None:
    rng = random.Random(0)
    for _ in range(200):
        items = [{"n": rng.randint(0, 2), "t": [rng.randint(0, 2) for _ in range(rng.randint(0, 3))]} for _ in range(4)]
        shuffled = [dict(reversed(list(i.items()))) | {"t": rng.sample(i["t"], len(i["t"]))} for i in items]
        rng.shuffle(shuffled)
        same = score_output("extract", json.dumps({"a": items}), json.dumps({"a": shuffled}), frozenset())
        assert same.values == {"leaf_f1": 1.0, "exact_record": 1.0}
        shuffled[0]["n"] = 9
        other = score_output("extract", json.dumps({"a": items}), json.dumps({"a": shuffled}), frozenset())
        assert 0 < other.values["leaf_f1"] < 1 and other.values["exact_record"] == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Here you are:\n```json\n{"a": {"b": "}"}}\n```\nAnything else?', {"a": {"b": "}"}}),
        ('use {braces} like {"a": 1}', {"a": 1}),
        ('{"a": 1} {"b": 2}', {"a": 1}),
        ('{"a": {"b": 1}, "c": ', None),  # cut off: the closed part inside is not the record
        ('{"a": NaN}', None),
        ("[1, 2]", None),
        ('"text"', None),
        ("", None),
        ("{" * 5000, None),
        ('{"a":' * 5000, None),
    ],
)
def test_parse_json_takes_the_first_balanced_object(text: str, value: object) -> None:
    assert parse_json(text) == value


def test_extraction_of_lists_and_of_nonsense() -> None:
    assert score_output("extract", '[{"a": 1}]', 'Sure: [{"a": 1}]', frozenset()).values["exact_record"] == 1
    failed = score_output("extract", '{"a": 1, "b": 2}', "I cannot", frozenset())
    assert failed.values["leaf_f1"] == 0 and failed.failure == "no JSON object in the output"
    with pytest.raises(DataError, match="not a JSON object"):
        score_output("extract", "plain", "{}", frozenset())


def test_micro_and_mean_leaf_f1_differ_as_they_should() -> None:
    expected = ['{"a": 1}', '{"a": 1, "b": 2, "c": 3}']
    outputs = ['{"a": 1}', '{"a": 1, "b": 0, "c": 0}']
    scored = [score_output("extract", e, o, frozenset()) for e, o in zip(expected, outputs, strict=True)]
    metrics = aggregate("extract", scored, expected, outputs)
    assert metrics["leaf_f1"] == pytest.approx((1 + 1 / 3) / 2)
    assert metrics["leaf_f1_micro"] == pytest.approx(2 * 2 / 8)
    assert metrics["json_valid_frac"] == 1.0


# Text


def test_chrf_by_hand() -> None:
    # "ab" against "abc": order 1 precision 1, recall 2/3; order 2 precision 1, recall 1/2.
    precision, recall = 1.0, (2 / 3 + 1 / 2) / 2
    assert chrf("ab", "abc") == pytest.approx(5 * precision * recall / (4 * precision + recall))
    assert chrf("a b", "ab") == 1.0
    assert chrf("", "abc") == chrf("xyz", "abc") == 0.0


def test_chrf_equals_sacrebleu() -> None:
    # sacrebleu 2.6, sentence_score / 100.
    output, expected = "The cat sat on the mat.", "A cat is sitting on the mat."
    assert chrf(output, expected) == pytest.approx(0.40659005, abs=1e-6)


def test_rouge_l_by_hand() -> None:
    # Common subsequence "the cat on the mat": 5 of 6 and 6 words.
    assert rouge_l("The cat sat on the mat.", "the cat is on the mat") == pytest.approx(10 / 12)
    assert rouge_l("", "a") == 0.0
    assert rouge_l("猫坐垫", "猫在垫") == pytest.approx(2 / 3)
    assert rouge_l("?!", "?!") == 1.0


def test_rouge_l_equals_the_plain_recurrence() -> None:
    rng = random.Random(1)
    for _ in range(100):
        a, b = ([rng.choice("abcd") for _ in range(rng.randint(1, 90))] for _ in range(2))
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(2 * table[-1][-1] / (len(a) + len(b)))


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("SELECT  a\nFROM t WHERE x='It''s A' ;", "select a from t where x = 'It''s A'", True),
        ("select count( * ) from t", "SELECT COUNT(*) FROM t;", True),
        ("select a from t where x='A'", "select a from t where x='a'", False),
        ('select "A" from t', 'select "a" from t', False),
        ("select 1.5", "select 1 . 5", False),
        ("select a b from t", "select ab from t", False),
    ],
)
def test_sql_normal_form(a: str, b: str, same: bool) -> None:
    assert (sql_normal_form(a) == sql_normal_form(b)) is same


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 + 4 = 7 apples.", "7"),
        ("so 10-3 leaves\n#### 7\nthat is 2 more", "7"),
        ("#### $1,234.50", "1234.5"),
        ("It costs -$5", "-5"),
        ("x = -3", "-3"),
        ("7-3", "3"),
        ("1,2,3", "3"),
        ("is 18.", "18"),
        ("= .5", "0.5"),
        ("12 in all ####", "12"),
        ("none", None),
    ],
)
def test_final_number(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


def test_math_rows() -> None:
    assert score_output("math", "3*6=18\n#### 18", "The answer is 18.00", frozenset()).values["final_number"] == 1
    assert score_output("math", "#### 18", "no idea", frozenset()).failure == "no number in the output"
    with pytest.raises(DataError, match="holds no number"):
        score_output("math", "eighteen", "18", frozenset())


# Scores of an arm


ANSWERS = {
    "classify": "a",
    "extract": '{"a": 1}',
    "generate": "so it is",
    "sql": "select 1",
    "math": "#### 4",
    "chat": "hi",
}


# These want a database, tools or slots, or are given by a judge: test_metrics_more.py, test_judge.py.
ELSEWHERE = ("execution_match", "call_exact", "call_f1", "slot_match", "judge")


@pytest.mark.parametrize(
    ("kind", "metric"), [(k, m) for k, ms in METRICS_BY_KIND.items() for m in ms if m not in ELSEWHERE]
)
def test_every_metric_of_every_kind_gives_one_for_truth_and_less_for_nonsense(kind: str, metric: str) -> None:
    task = TaskConfig(kind=kind, metric=metric, bar=0.5)
    examples = [example(f"q{i}", ANSWERS[kind], i) for i in range(6)]
    truth = [said(ANSWERS[kind])] * 6
    mixed = [*truth[:5], said("nonsense!")]
    arms = [
        score_arm(
            arm="x", kind="zero_shot", model="m", task=task, examples=examples, completions=c, labels=("a",), wall_s=1
        )
        for c in (truth, mixed)
    ]
    assert arms[0].score.value == 1.0 and arms[0].score.low < 1.0 and arms[0].score.high == 1.0
    assert 0 < arms[1].score.value < 1.0
    for arm, completions in zip(arms, (truth, mixed), strict=True):
        assert arm.metrics[metric] == pytest.approx(arm.score.value)
        assert metric_value(task, examples, completions, ("a",)) == pytest.approx(arm.score.value)
        assert arm.score.low <= arm.score.value <= arm.score.high


def test_an_arm_counts_costs_cuts_and_failures() -> None:
    task = TaskConfig(kind="classify", bar=0.5)
    examples = [example("q", "a"), example("r", "b", 2)]
    completions = [Completion("a", 1, 1, 0.1, cost_usd=0.25), Completion("long", 1, 8, 0.1, stopped=False)]
    arm = score_arm(
        arm="x", kind="endpoint", model="m", task=task, examples=examples, completions=completions,
        labels=("a", "b"), wall_s=36.0, price_usd_per_hour=10.0, details={"num_shots": 2},
    )  # fmt: skip
    assert arm.cost_usd == pytest.approx(0.25 + 0.1)
    assert arm.details == {"num_cut": 1, "num_failures": 1, "num_shots": 2}
    assert [row.failure for row in arm.rows] == [None, "cut at 8 tokens; invalid label 'long'"]
    assert arm.interval == "wilson" and arm.metrics["invalid_label_frac"] == 0.5


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_score_on_far_rows_is_that_of_those_rows_alone(metric: str) -> None:
    task = TaskConfig(kind="classify", metric=metric, bar=0.5)
    rows = [Example((Message("user", f"q{i}"), Message("assistant", "ab"[i % 2])), (1, 2)) for i in range(20)]
    texts = [row.completion if i < 12 else "c" for i, row in enumerate(rows)]

    def scored(some: range) -> ArmScore:
        completions = [Completion(texts[i], 1, 1, 0.0) for i in some]
        examples = [rows[i] for i in some]
        return score_arm(arm="a", kind="linear", model="m", task=task, examples=examples, completions=completions,
                         labels=("a", "b"), wall_s=1.0)  # fmt: skip

    arm = scored(range(20))
    got = with_far(arm, {rows[i].id for i in range(10)})
    assert got.far == FarScore(10, scored(range(10, 20)).score)
    if metric == "accuracy":
        assert got.far == FarScore(10, wilson(2, 10))
    assert with_far(arm, set()).far == FarScore(20, arm.score)
    assert with_far(arm, {row.id for row in rows}).far == FarScore(0, None)
    assert with_far(arm, None).far is None
    for one in (got, arm, with_far(arm, {row.id for row in rows})):
        assert arm_from_json(json.loads(json.dumps(to_json(one)))) == one
    old = to_json(arm)
    del old["far"]
    assert arm_from_json(old) == arm, "a record of an earlier version"


def test_a_wrong_expected_answer_is_named_by_its_place() -> None:
    task = TaskConfig(kind="extract", bar=0.5)
    with pytest.raises(DataError, match=r"rows\.jsonl:7: .*not a JSON object"):
        metric_value(task, [example("q", "plain", 7)], [said("{}")], None)
    with pytest.raises(DataError, match="no held-out rows"):
        metric_value(task, [], [], None)


# Against others' implementations


def test_chrf_and_rouge_l_are_those_of_sacrebleu_and_rouge_score() -> None:
    """Their values, recorded; rouge-score knows ASCII words alone, so other texts have none."""
    said = json.loads(Path(__file__).with_name("text_metric_oracle.json").read_text(encoding="utf-8"))
    assert len(said["rows"]) == 40
    for row in said["rows"]:
        assert chrf(row["output"], row["expected"]) == pytest.approx(row["chrf"], abs=1e-8), row
        if row["rouge_l"] is not None:
            assert rouge_l(row["output"], row["expected"]) == pytest.approx(row["rouge_l"], abs=1e-8), row


def test_macro_f1_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    rng = random.Random(0)
    for _ in range(50):
        expected = [rng.choice("abcd") for _ in range(30)]
        outputs = [e if rng.random() < 0.6 else rng.choice("abcdxy") for e in expected]
        theirs = f1_score(expected, outputs, labels=sorted(set(expected)), average="macro", zero_division=0)
        assert macro_f1(*label_codes(expected, outputs)) == pytest.approx(theirs)


def test_calibration_by_hand() -> None:
    # Two rows at 0.8 of which one is right, two at 0.6 of which both are.
    probs = np.log([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.6, 0.4]])
    found = calibration(probs, np.array([0, 1, 0, 0]))
    assert found["ece"] == pytest.approx(0.5 * 0.3 + 0.5 * 0.4)
    assert found["brier"] == pytest.approx((2 * 0.04 + 2 * 0.64 + 4 * 0.16) / 4)
    assert found["label_accuracy"] == 0.75 and [b["rows"] for b in found["bins"]] == [2, 2]
    # Sure and right is calibrated; what does not sum to one is made to.
    assert calibration(np.array([[-1.0, -900.0]]), np.array([0]))["brier"] == pytest.approx(0.0)
