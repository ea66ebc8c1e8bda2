"""The arm without a language model on records: what is chosen, what is copied, what it says it cannot do."""

from __future__ import annotations

import json
import random

import pytest

from shoestring.config import TaskConfig
from shoestring.decide.extraction import flat, learn
from shoestring.decide.linear import linear_arm
from shoestring.errors import DataError
from shoestring.records import Example, Message

EXTRACT = TaskConfig(kind="extract", bar=0.8)
KINDS = (("refund", "I want my money back"), ("delay", "my parcel is late"), ("cancel", "stop it"))
CITIES = ("Rome", "New York", "Oslo", "Lima", "Cairo", "Quito")


def row(text: str, answer: str) -> Example:
    return Example((Message("user", text), Message("assistant", answer)), (1, 2))


def orders(num: int, seed: int) -> list[Example]:
    """An order of a kind, with a number, a date, sometimes a city; and a name of its own each time."""
    draw = random.Random(seed)
    rows = []
    for _ in range(num):
        kind, text = draw.choice(KINDS)
        number, amount = f"A{draw.randrange(1000, 9999)}", draw.randrange(5, 900)
        day = f"2026-{draw.randrange(1, 13):02}-{draw.randrange(1, 29):02}"
        record = {"kind": kind, "order": {"id": number}, "amount": amount, "day": day, "name": f"N{draw.random()}"}
        text = f"Hello, {text}: order {number} of {day}, paid {amount} dollars"
        if draw.random() < 0.5:
            record["city"] = draw.choice(CITIES)
            text += f", sent to {record['city']}"
        rows.append(row(text, json.dumps(record)))
    return rows


def test_leaves_by_dotted_key() -> None:
    assert flat('{"a": 1, "b": {"c": "x", "d": null}}') == {"a": 1, "b.c": "x", "b.d": None}
    assert flat('{"a": [1]}') is None and flat("[1]") is None and flat("no") is None


def test_fields_are_chosen_copied_or_left_out_in_words() -> None:
    learned = learn(orders(200, seed=0))
    assert learned.told["kind"] == "chosen: one of 3 values"
    assert learned.told["city"] == "chosen: one of 6 values"
    assert learned.copied["order.id"].find("order B7777 of 2026-01-02") == "B7777"
    assert learned.copied["day"].find("order B7777 of 2026-01-02") == "2026-01-02"
    assert learned.copied["amount"].find("order B7777 of 2026-01-02, paid 31 dollars") == 31
    assert learned.copied["amount"].find("no number") is None
    assert learned.told["name"].startswith("left out: 200 different values")
    assert not learned.present


def test_the_arm_fills_records_and_is_scored_like_any_other() -> None:
    arm = linear_arm(orders(200, seed=0), orders(60, seed=1), EXTRACT, None, 0, price_usd_per_hour=1.0)
    got = [json.loads(r.output) for r in arm.rows]
    wanted = [json.loads(r.expected) for r in arm.rows]
    for key in ("kind", "order", "amount", "day"):
        assert sum(g.get(key) == w[key] for g, w in zip(got, wanted, strict=True)) >= 59, key
    assert sum(g.get("city") == w.get("city") for g, w in zip(got, wanted, strict=True)) >= 54
    assert not any("name" in g for g in got)
    assert arm.kind == "linear" and arm.cost_usd > 0 and set(arm.details["fields"]) >= {"kind", "order.id"}
    again = linear_arm(orders(200, seed=0), orders(60, seed=1), EXTRACT, None, 0)
    assert [r.output for r in again.rows] == [r.output for r in arm.rows]


def test_known_values_are_found_in_the_text_the_longest_first() -> None:
    draw = random.Random(0)
    ends = ("Bay", "Hill", "Mill", "Ford", "Park", "End")
    places = [f"{a} {b}" for a in ("North", "South", "Old", "New", "Upper") for b in ends]
    places += [f"{p} Station" for p in places] + ["Bay", "Hill"]
    rows = [row(f"ride {i} to {p} now", json.dumps({"to": p})) for i in range(4) for p in places]
    learned = learn(rows)
    assert learned.told["to"] == "copied: the longest known value in the text (100% of the training rows)"
    assert learned.copied["to"].find("from there to old mill station") == "old mill station"
    assert learned.copied["to"].find("nowhere") is None
    rare = [row(f"ride {i} to {p}", json.dumps({"to": f"{p} {draw.random()}"})) for i in range(2) for p in places]
    with pytest.raises(DataError, match="no field of the training answers"):
        learn(rare)


def test_records_it_cannot_learn_are_refused() -> None:
    nested = [row(f"x {i}", json.dumps({"items": [{"n": i}]})) for i in range(30)]
    with pytest.raises(DataError, match="30 of 30 training answers are no flat records"):
        linear_arm(nested, nested, EXTRACT, None)
    with pytest.raises(DataError, match="'sql'"):
        linear_arm(nested, nested, TaskConfig(kind="sql", bar=0.5), None)
