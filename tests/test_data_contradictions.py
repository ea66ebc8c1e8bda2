"""Contradictions planted into real rows are reported with their source, and harmless rows beside them are not."""

import json
import random

import pytest

from bench.contradictions import Answers, Plant, measure_set, planted, snips
from shoestring.data.normalise import meaning_key

ROWS = [
    (f"what is the fee of card {i}", json.dumps({"intent": "fee", "card": f"c{i}", "kind": "x"})) for i in range(60)
]


def test_on_real_rows_of_the_examples() -> None:
    measured = measure_set("banking77", "own", num_rows=600, num_planted=40, seed=0)
    assert (measured["planted"], measured["controls"]) == (40, 40)
    assert measured["recall"] >= 0.85 and measured["precision"] >= 0.95
    assert measured["reported_by_what"]["contradiction: same prompt"] == 1.0
    assert not any(share for what, share in measured["reported_by_what"].items() if "contradiction" not in what)


@pytest.mark.parametrize(
    ("kind", "answer", "others"),
    [
        ("classify", "fee", ["fee", "card"]),
        ("extract", '{"intent": "fee", "card": "c1"}', [answer for _, answer in ROWS]),
        ("sql", "SELECT col1 FROM table WHERE col2 = 12", ["SELECT col1 FROM table WHERE col2 = 13"]),
        ("math", "2+2 = <<2+2=4>>4\n#### 4", []),
    ],
)
def test_answers_exclude_or_equal_the_given_one(kind: str, answer: str, others: list[str]) -> None:
    answers = Answers(kind, [answer, *others], random.Random(0))
    for _ in range(20):
        excluding, equal = answers.excluding(answer), answers.equal_to(answer)
        assert meaning_key(excluding, kind) != meaning_key(answer, kind)
        assert meaning_key(equal, kind).split() == meaning_key(answer, kind).split()


def test_no_two_plants_share_a_source() -> None:
    plants: list[Plant] = planted(snips()[:400], "extract", "own", 40, seed=1)
    assert len({plant.source for plant in plants}) == len(plants) == 80
    assert sum(plant.is_wrong for plant in plants) == 40
