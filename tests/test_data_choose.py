"""Choosing for a token budget: within the budget, the same every time, and spread further than chance."""

import math
import random
from collections import Counter

import pytest

from shoestring.data.choose import _entropy_frac, _even_shares, choose
from shoestring.errors import BadInput
from shoestring.records import Example, Message

TOPICS = [["card", "pin", "atm"], ["late", "parcel", "courier"], ["refund", "money", "bank"], ["app", "login", "crash"]]


def row(text, label, line):
    return Example((Message("user", text), Message("assistant", label)), (1, 2), "a.jsonl", line)


def pool(num_rows, seed=0, weights=(90, 6, 3, 1)):
    """Rows of four topics, most of them of the first."""
    rng = random.Random(seed)
    rows = []
    for i in range(num_rows):
        topic = rng.choices(range(4), weights)[0]
        words = [rng.choice(TOPICS[topic]) for _ in range(rng.randint(2, 12))] + [f"x{rng.randint(0, 40)}"]
        rows.append(row(" ".join(words), f"topic{topic}", i + 1))
    return rows, [len(r.user_text.split()) + 2 for r in rows]


ROWS, TOKENS = pool(2000)


@pytest.mark.parametrize("kind", ["classify", "generate"])
@pytest.mark.parametrize("budget", [5, 100, 2000, 9000, 10**9])
def test_each_choice_keeps_to_the_budget_and_fills_it(kind, budget):
    choice = choose(ROWS, TOKENS, budget, kind=kind, seed=0)
    for one in (choice.coverage, choice.random, choice.longest):
        assert list(one.indices) == sorted(set(one.indices))
        assert one.num_tokens == sum(TOKENS[i] for i in one.indices) <= budget
        left_out = set(range(len(ROWS))) - set(one.indices)
        spare = budget - one.num_tokens
        assert all(TOKENS[i] > spare for i in left_out), "no further row would fit"
    if budget == 10**9:
        assert len(choice.coverage.indices) == len(ROWS) and choice.coverage.nearest_similarity == 1.0


def test_the_same_for_a_seed_and_another_for_another():
    first = choose(ROWS, TOKENS, 2000, kind="classify", seed=3)
    assert choose(ROWS, TOKENS, 2000, kind="classify", seed=3) == first
    other = choose(ROWS, TOKENS, 2000, kind="classify", seed=4)
    assert other.coverage.indices != first.coverage.indices and other.random.indices != first.random.indices


def test_labels_get_even_shares_of_tokens():
    choice = choose(ROWS, TOKENS, 1200, kind="classify", seed=0)
    tokens = Counter()
    for i in choice.coverage.indices:
        tokens[ROWS[i].completion] += TOKENS[i]
    everything = Counter()
    for example, n in zip(ROWS, TOKENS, strict=True):
        everything[example.completion] += n
    assert all(tokens[label] >= min(everything[label], 300) - 15 for label in everything), tokens
    assert choice.coverage.label_entropy_frac > choice.random.label_entropy_frac + 0.2
    assert choose(ROWS, TOKENS, 1200, kind="generate", seed=0).coverage.label_entropy_frac is None


def test_coverage_stands_for_the_rest_better_than_chance():
    for seed in range(3):
        choice = choose(ROWS, TOKENS, 2000, kind="generate", seed=seed)
        assert choice.coverage.nearest_similarity > choice.random.nearest_similarity
        assert choice.random.nearest_similarity > choice.longest.nearest_similarity - 0.05


def test_longest_takes_the_longest():
    choice = choose(ROWS, TOKENS, 300, kind="generate", seed=0)
    assert min(TOKENS[i] for i in choice.longest.indices) >= 14 and max(TOKENS) == 15


def test_measures_by_hand():
    rows = [row("red apple", "a", 1), row("red apple", "a", 2), row("blue whale", "b", 3)]
    choice = choose(rows, [2, 2, 2], 4, kind="classify", seed=0)
    assert {rows[i].completion for i in choice.coverage.indices} == {"a", "b"}
    assert choice.coverage.nearest_similarity == pytest.approx(1.0, abs=1e-5)  # the other red apple
    assert choice.coverage.vocabulary_frac == 1.0 and choice.coverage.label_entropy_frac == pytest.approx(1.0)
    assert _even_shares([100, 5, 40], 90) == [45, 5, 40]
    assert _even_shares([10, 10], 5) == [3, 2] or _even_shares([10, 10], 5) == [2, 3]
    assert _entropy_frac(["a", "a", "b", "b"], 2) == pytest.approx(1.0)
    assert _entropy_frac(["a", "a", "a", "b"], 2) == pytest.approx(-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))


def test_summary_holds_no_rows():
    summary = choose(ROWS, TOKENS, 500, kind="classify", seed=0).summary()
    assert set(summary) == {"budget_tokens", "coverage", "random", "longest"}
    assert set(summary["random"]) == {
        "num_rows", "num_tokens", "nearest_similarity", "vocabulary_frac", "label_entropy_frac"
    }  # fmt: skip


def test_odd_pools():
    same = [row("the same text", "a", i) for i in range(200)]
    assert len(choose(same, [3] * 200, 150, kind="generate", seed=0).coverage.indices) == 50
    empty = [row("", "a", i) for i in range(200)]
    assert len(choose(empty, [3] * 200, 150, kind="classify", seed=0).coverage.indices) == 50
    assert choose([row("one", "a", 1)], [3], 3, kind="classify", seed=0).coverage.indices == (0,)


def test_a_budget_below_the_shortest_row_is_refused():
    with pytest.raises(BadInput, match="budget of 3 tokens holds no row: the shortest row has 5"):
        choose(ROWS, TOKENS, 3, kind="generate", seed=0)
    with pytest.raises(BadInput, match="there are no rows"):
        choose([], [], 3, kind="generate", seed=0)


def test_of_many_rows_left_out_some_are_measured(monkeypatch):
    whole = choose(ROWS, TOKENS, 2000, kind="generate", seed=0)
    monkeypatch.setattr("shoestring.data.choose.MEASURED_ROWS", 400)
    some = choose(ROWS, TOKENS, 2000, kind="generate", seed=0)
    for one, other in zip((whole.coverage, whole.random), (some.coverage, some.random), strict=True):
        assert one.indices == other.indices
        assert 0 < abs(one.nearest_similarity - other.nearest_similarity) < 0.02
