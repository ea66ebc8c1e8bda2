"""The demonstration set: curation finds exactly the rows that were planted."""

import json
import random
import re

import pytest

from shoestring.config import RunConfig
from shoestring.data.curate import curate
from shoestring.data.detect import detect
from shoestring.demo.tickets import ISSUES, NUM_TICKETS, PLANTED, sample_ticket, write_tickets


@pytest.mark.parametrize("seed", [0, 7])
def test_curation_finds_what_the_truth_says_and_nothing_else(tmp_path, seed):
    truth = write_tickets(tmp_path, seed)
    assert truth == json.loads((tmp_path / "truth.json").read_text())
    run = {"name": "t", "task": {"kind": "extract", "bar": 0.5}, "data": {"train": "train.jsonl"}, "seed": seed}
    result = curate(RunConfig.model_validate(run), tmp_path)
    planted = {(row["line"], row.get("partner_line"), code) for code, rows in truth["dropped"].items() for row in rows}
    found = {(d.line, d.partner_line, d.code) for d in result.dropped}
    assert found == planted
    assert [f.line for f in result.faults if f.code == "not_utf8"] == truth["repaired"]
    assert result.counts["rows_in"] == truth["rows"]
    assert len(result.train) + len(result.dev) + len(result.eval) == truth["rows_kept"] >= NUM_TICKETS


def test_every_kind_of_broken_row_is_planted(tmp_path):
    truth = write_tickets(tmp_path)
    assert len(truth["dropped"]["exact_duplicate"]) == PLANTED["exact_duplicate"] + PLANTED["outvoted"]
    assert len(truth["dropped"]["contradiction"]) == 2 * PLANTED["contradiction"] + PLANTED["outvoted"]
    assert len(truth["repaired"]) == PLANTED["not_utf8"]
    for code in (
        "empty_answer",
        "placeholder_answer",
        "truncated_answer",
        "answer_not_json",
        "invalid_json",
        "missing_field",
    ):
        assert len(truth["dropped"][code]) == PLANTED[code]


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_tickets(tmp_path / folder, seed)
    files = [(tmp_path / f / "train.jsonl").read_bytes() for f in "abc"]
    assert files[0] == files[1] != files[2]


def test_every_value_of_a_record_stands_in_its_ticket():
    rng = random.Random(0)
    for _ in range(500):
        ticket = sample_ticket(rng)
        record = json.loads(ticket.completion)
        assert list(record) == ["name", "order", "product", "issue", "amount", "urgent", "refund"]
        for key in ("name", "order", "product"):
            assert record[key] in ticket.prompt
        amounts = re.findall(r"\$(\d+)", ticket.prompt)
        assert (str(record["amount"]) in amounts) if amounts else record["amount"] is None
        assert record["issue"] in ISSUES
        assert len(ticket.prompt.split()) <= 75


def test_of_two_orders_the_one_of_the_product_is_meant():
    """Told apart by the product alone: the order meant comes first as often as second."""
    rng = random.Random(1)
    is_first = []
    for _ in range(1000):
        ticket = sample_ticket(rng)
        orders = re.findall(r"\b[A-Z]\d{4}\b", ticket.prompt)
        if len(orders) == 2:
            is_first.append(orders[0] == ticket.record["order"])
        else:
            assert orders == [ticket.record["order"]]
    assert len(is_first) > 500 and 0.4 < sum(is_first) / len(is_first) < 0.6


def test_issues_can_be_told_apart():
    sentences = [s for group in ISSUES.values() for s in group]
    assert len(sentences) == len(set(sentences)) and all("{p}" in s for s in sentences)


def test_it_looks_like_extraction(tmp_path):
    write_tickets(tmp_path)
    found = detect(tmp_path / "train.jsonl")
    assert found.kind == "extract" and found.metric == "leaf_f1" and found.num_faults > 0
