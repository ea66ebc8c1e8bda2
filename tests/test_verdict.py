"""The verdict's evidence, by hand, and the planted tasks of the bench."""

from __future__ import annotations

import pytest

from bench.verdicts import RIGHT, measure
from shoestring.config import TaskConfig
from shoestring.decide.evidence import break_even_rows, evidence
from shoestring.decide.verdict import verdict
from shoestring.evaluate.statistics import wilson
from shoestring.records import ArmScore, RowScore

TASK = TaskConfig(kind="extract", metric="exact_record", bar=0.9)


def arm(name: str, kind: str, right: int, *, unusable: int = 0, cost_usd: float = 0.0, **details: object) -> ArmScore:
    """An arm right on the first rows of 100, unusable on the last."""
    rows = tuple(
        RowScore(str(i), "", "", "", float(i < right), 1, 1, 0.0, 0.0, "is no JSON" if i >= 100 - unusable else None)
        for i in range(100)
    )
    score = wilson(right, 100)
    return ArmScore(name, kind, "m", "exact_record", score, 100, 1.0, cost_usd, {}, "wilson", rows, dict(details))


def test_passages_that_add_show_facts_missing_and_unusable_answers_a_form() -> None:
    zero, shots = arm("zero", "zero_shot", 10), arm("few", "few_shot", 12)
    rag = arm("rag", "rag", 55)
    found = evidence([zero, shots, rag])
    assert found.passages is not None and found.passages.difference.value == pytest.approx(0.45)
    assert found.facts_missing and not found.form_missing
    assert verdict([zero, shots, rag], TASK).advice == "use_rag"
    lines = verdict([zero, shots, rag], TASK).evidence["lines"]
    assert any(line.startswith("passages of the documents add 0.450 (") and "rag over zero" in line for line in lines)
    assert any("examples in the prompt add nothing that can be told apart from chance" in line for line in lines)
    formless = arm("rag", "rag", 55, unusable=30)
    got = verdict([zero, shots, formless], TASK)
    assert got.advice == "both" and "train.passages: with" in got.next_step
    assert "30% of the answers of rag were unusable" in got.evidence["lines"]


def test_examples_that_add_ask_for_training_and_an_instruction_for_wording() -> None:
    zero = arm("zero", "zero_shot", 10)
    assert verdict([zero, arm("few", "few_shot", 40)], TASK).advice == "fine_tune"
    assert verdict([zero, arm("best instruction", "instruction", 40)], TASK).advice == "fix_prompt"
    assert verdict([zero], TASK).advice == "fine_tune"


def test_of_an_endpoint_the_style_counts() -> None:
    bare = arm("zero e", "endpoint", 20, style="zero_shot")
    rag = arm("rag e", "endpoint", 97, style="rag")
    got = verdict([bare, rag], TASK)
    assert (got.kind, got.advice) == ("rag", "use_rag")


def test_a_fine_tune_below_the_bar_needs_data_or_the_passages_that_helped_prompting() -> None:
    zero, tuned = arm("zero", "zero_shot", 10), arm("lora", "finetune", 60)
    assert verdict([zero, tuned], TASK).advice == "more_data"
    rag = arm("rag", "rag", 50)
    got = verdict([zero, rag, tuned], TASK)
    assert got.advice == "both" and "train.passages: with" in got.next_step
    passages = arm("lora+documents", "finetune", 97, retrieval={"mean_chunks": 2})
    got = verdict([zero, rag, tuned, passages], TASK)
    assert got.met and got.advice == "both"
    assert any(line.startswith("passages in training and prompts add 0.370") for line in got.evidence["lines"])


def test_a_bar_inside_the_interval_cannot_be_told_from_either_side() -> None:
    for right in (88, 92):
        assert verdict([arm("zero", "zero_shot", right)], TASK).advice == "cannot_tell"


def test_break_even_by_hand() -> None:
    # 3 dollars for 90 s of training and 10 s of 100 answers: 2.70 to train, 0.003 an answer; the other costs 0.03.
    tuned = arm("lora", "finetune", 99, cost_usd=3.0, train_s=90.0, eval_s=10.0)
    other = arm("big", "endpoint", 98, cost_usd=3.0, style="zero_shot")
    assert break_even_rows(tuned, other) == pytest.approx(2.7 / (0.03 - 0.003))
    cheap = arm("small", "endpoint", 98, cost_usd=0.2, style="zero_shot")
    assert break_even_rows(tuned, cheap) is None
    assert "is cheaper from 100 requests on" in verdict([other, tuned], TASK).reason
    assert "never cheaper" in verdict([cheap, tuned], TASK).reason


@pytest.mark.parametrize("case", sorted(RIGHT))
def test_a_planted_task_gets_its_verdict(case: str) -> None:
    found = measure(case, 7)
    assert found["said"] == found["expected"], found
