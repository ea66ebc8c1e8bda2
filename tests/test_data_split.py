"""The split: alike prompts on one side, labels in proportion, the same for the same seed."""

import random
from contextlib import ExitStack

import numpy as np
import pytest

from shoestring.config import FieldsConfig
from shoestring.data.clean import Items
from shoestring.data.engine import Table
from shoestring.data.normalise import normalise
from shoestring.data.parse import Entry
from shoestring.data.rows import Settings, Work, process
from shoestring.data.split import (
    Compared,
    Forest,
    clusters_of,
    draw,
    far_rows,
    held_out_clusters,
    near_items,
    near_pairs,
    quotas,
    sample,
)
from shoestring.records import Example, Message, no_progress

WORDS = [f"w{i}" for i in range(300)]


TABLES = ExitStack()


@pytest.fixture(autouse=True)
def _tables():
    with TABLES:
        yield


def items_of(*rows):
    """Records of prompts, or of (prompt, answer)."""
    pairs = [(row, "a") if isinstance(row, str) else row for row in rows]
    entries = tuple(Entry({"prompt": p, "completion": a}, line) for line, (p, a) in enumerate(pairs, 1))
    table = TABLES.enter_context(Table())
    table.sources.append("f")
    table.append(0, False, process(Work("f", Settings(FieldsConfig(), "", "classify"), entries=entries)))
    table.close()
    return Items(table, np.arange(len(table)))


def jaccard(a, b):
    x, y = set(a.split()), set(b.split())
    return len(x & y) / len(x | y)


def test_near_pairs_by_hand():
    texts = ["a b c d e", "a b c d e f", "a b c x y", "e d c b a", "", ""]
    # 0 and 1 share 5 of 6 words, 0 and 3 all; 1 and 3 follow through 0; 2 shares 3 of 7; empty texts are alone.
    assert [pairs.tolist() for pairs in near_pairs(texts, no_progress)] == [[[0, 3]], [[0, 1]]]


def test_near_held_out_rows_are_counted():
    rows = items_of("a b c d e", "f g h i j", "a b c d e f", "e d c b a", "x y z", "b a c d e f")
    assert near_items(rows.take([0, 1]), rows.take([2, 3, 4, 5]), no_progress).tolist() == [2, 3, 5]


def test_far_rows_have_no_near_training_text():
    train = ["How do I cancel my card?", "f g h i j"]
    held_out = ["how do I cancel MY card", "how do I cancel my blue card", "g f h i j k", "where is my card", "f g h"]
    texts = [normalise(text) for text in (*train, *held_out)]
    assert far_rows(texts, 2, no_progress).tolist() == [False, False, False, True, True]
    assert far_rows(["a"], 0, no_progress).tolist() == [True] and not len(far_rows(["a"], 1, no_progress))


@pytest.mark.parametrize("length", [4, 12, 45, 55, 150])
def test_near_pairs_are_all_found_at_any_length(length):
    rng = random.Random(length)
    words = [f"w{i}" for i in range(1000)]
    texts = [rng.sample(words, length) for _ in range(60)]
    for text in texts[:60]:
        added = rng.randint(0, length // 5)
        texts.append([*text[rng.randint(0, length // 9) :], *rng.sample(words, added)])
    texts = [" ".join(text) for text in texts]
    wanted = {(i, j) for j in range(len(texts)) for i in range(j) if jaccard(texts[i], texts[j]) >= 0.8}
    found = np.concatenate(near_pairs(texts, no_progress)).tolist()
    assert len(wanted) > 25 and set(map(tuple, found)) == wanted


def test_an_instruction_before_every_row_does_not_make_rows_alike():
    said = [f"{a} {b} {c}" for a, b, c in zip(WORDS[:40], WORDS[50:90], WORDS[100:140], strict=True)]
    lead = "sort this message into one of the classes: "
    plain, led = items_of(*said), items_of(*(lead + text for text in said), "quite another text")
    assert list(Compared(led)) == [*Compared(plain), "quite another text"] == [*said, "quite another text"]
    assert clusters_of(led, no_progress)[0].tolist() == [*clusters_of(plain, no_progress)[0], 40]
    assert list(Compared(plain.take([]))) == []


def test_near_pairs_finds_what_a_full_comparison_finds():
    rng = random.Random(3)
    texts = [" ".join(rng.sample(WORDS, rng.randint(5, 20))) for _ in range(150)]
    for text in texts[:100]:
        words = text.split()
        for _ in range(2):
            changed = [w if rng.random() > 0.08 else rng.choice(WORDS) for w in words]
            texts.append(" ".join(dict.fromkeys(changed)))
    wanted = {(i, j) for i in range(len(texts)) for j in range(i) if jaccard(texts[i], texts[j]) >= 0.8}
    found = np.concatenate(near_pairs(texts, no_progress)).tolist()
    assert len(wanted) > 150
    assert all(jaccard(texts[i], texts[j]) >= 0.8 for i, j in found)
    forest = Forest(len(texts))  # rows with one word set are joined through the first of them
    for i, j in found:
        forest.join(i, j)
    assert sum(forest.root(i) == forest.root(j) for i, j in wanted) >= 0.99 * len(wanted)


def test_quotas_by_largest_remainder():
    assert quotas({"a": 50, "b": 30, "c": 20}, 10) == {"a": 5, "b": 3, "c": 2}
    assert quotas({"a": 1, "b": 1, "c": 1}, 2) == {"a": 1, "b": 1, "c": 0}
    assert sum(quotas({str(i): i for i in range(1, 78)}, 1000).values()) == 1000


def make_rows(num_labels=7, per_label=40):
    rng = random.Random(0)
    rows = []
    for label in range(num_labels):
        for _ in range(per_label):
            text = " ".join(rng.sample(WORDS, 12))
            rows.append((text, f"L{label}"))
            if rng.random() < 0.3:  # a near-duplicate: one word more
                rows.append((text + " more", f"L{label}"))
    return items_of(*rows)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clusters_stay_together_and_labels_in_proportion(seed):
    rows = make_rows()
    clusters, apart, notes = clusters_of(rows, no_progress)
    assert not notes and not len(apart.near) and len(clusters) == len(rows) > len(np.unique(clusters))
    taken = draw(rows, clusters, 60, name="eval", seed=seed, is_classify=True)
    assert 57 <= len(taken) <= 63
    assert not np.isin(np.delete(clusters, taken), clusters[taken]).any(), "clusters go whole"
    counts = np.bincount([int(rows[i].completion[1:]) for i in taken], minlength=7)
    assert counts.min() >= 60 / 7 - 2 and counts.max() <= 60 / 7 + 2
    texts = [row.user_text for row in rows]
    assert not any(jaccard(texts[i], texts[j]) >= 0.8 for i in taken for j in range(len(rows)) if j not in taken)


def test_the_draw_depends_on_seed_and_not_on_file_order():
    rows = make_rows()
    shuffled = rows.take(np.random.default_rng(9).permutation(len(rows)))

    def drawn(items, seed):
        clusters, _, _ = clusters_of(items, no_progress)
        taken = draw(items, clusters, 60, name="eval", seed=seed, is_classify=True)
        return {items[i].id for i in taken}

    assert drawn(rows, 0) == drawn(rows, 0) == drawn(shuffled, 0)
    assert drawn(rows, 0) != drawn(rows, 1)
    samples = (sample(items, 50, name="s", seed=0, is_classify=True) for items in (rows, shuffled))
    assert (
        len({frozenset(items.ids[taken].tolist()) for items, taken in zip((rows, shuffled), samples, strict=True)}) == 1
    )


def test_a_label_is_never_taken_from_training_altogether():
    texts = [f"unique text number {i} {WORDS[i]} {WORDS[i + 60]}" for i in range(60)]
    rows = items_of(*((text, "rare" if i < 2 else "common") for i, text in enumerate(texts)))
    clusters = np.arange(60)
    for seed in range(5):
        taken = draw(rows, clusters, 18, name="eval", seed=seed, is_classify=True)
        assert len(taken) == 18 and sum(i < 2 for i in taken) <= 1


def test_text_from_a_template_is_not_one_cluster():
    rows = items_of(*(f"please send the parcel number {i} to my new address in the very old town" for i in range(100)))
    clusters, _, notes = clusters_of(rows, no_progress)
    assert len(np.unique(clusters)) == 100 and "template" in notes[0]


def test_rows_left_apart_are_near_as_a_full_comparison_says():
    """Rows of one template, some with one word set in another order, held out here and there."""
    rng = random.Random(5)
    template = "please send the parcel to my new address in the old town by number {a} and {b}"
    texts = []
    for _ in range(120):
        a, b = rng.randint(0, 6), rng.randint(0, 6)
        lead = " ".join(rng.sample(WORDS, rng.choice((0, 3, 4))))
        texts.append(f"{lead} {template.format(a=a, b=b)}")
    rows = items_of(*texts)
    clusters, apart, _ = clusters_of(rows, no_progress)
    assert len(np.unique(clusters)) > 60 and len(apart.near) and len(apart.equal)
    words = [set(text.split()) for text in Compared(rows)]
    for seed in range(3):
        held_out = sorted(random.Random(seed).sample(range(120), 60))
        seen = [i for i in range(120) if i not in held_out][: 10 * (seed + 1)]
        near = [i for i in held_out if any(len(words[i] & words[j]) >= 0.8 * len(words[i] | words[j]) for j in seen)]
        assert apart.near_to(np.array(seen), np.array(held_out)).tolist() == near and 0 < len(near) < 60


def test_sample_is_exact_and_stratified():
    rows = items_of(*((f"t{i}", "ab"[i % 4 == 0]) for i in range(100)))
    chosen = sample(rows, 20, name="x", seed=0, is_classify=True)
    assert len(chosen) == 20 and sum(rows[i].completion == "b" for i in chosen) == 5
    assert sample(rows, 200, name="x", seed=0, is_classify=True).tolist() == list(range(100))


def test_held_out_rows_that_are_no_draws_of_their_own():
    def row(said, line):
        return Example((Message("user", said), Message("assistant", f"answer {line}")), (1, 2), "f", line)

    rows = [
        row("where is my parcel from monday morning", 1),
        row("cancel the subscription that I took out last year please", 2),
        row("where is my parcel from monday morning", 3),
        row("cancel the subscription that I took out last year", 4),
        row("how do I change the password of my account", 2),  # a later turn of line 2's conversation
        row("what does the large plan cost in a month", 6),
    ]
    found = held_out_clusters(rows, no_progress)
    assert found == {rows[i].id: rows[first].id for i, first in ((0, 0), (2, 0), (1, 1), (3, 1), (4, 1))}
