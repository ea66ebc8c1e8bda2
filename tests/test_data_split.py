"""The split: alike prompts on one side, labels in proportion, the same for the same seed."""

import random
from types import SimpleNamespace

import numpy as np
import pytest

from shoestring.data.split import (
    Forest,
    clusters_of,
    compared_texts,
    draw,
    far_rows,
    near_items,
    near_pairs,
    quotas,
    sample,
)
from shoestring.records import Example, Message, no_progress

WORDS = [f"w{i}" for i in range(300)]


def item(prompt, answer="a", line=0):
    example = Example((Message("user", prompt), Message("assistant", answer)), (1, 2), "f", line)
    return SimpleNamespace(example=example, id=example.id, row=object(), prompt_hash=prompt, index=line)


def jaccard(a, b):
    x, y = set(a.split()), set(b.split())
    return len(x & y) / len(x | y)


def test_near_pairs_by_hand():
    texts = ["a b c d e", "a b c d e f", "a b c x y", "e d c b a", "", ""]
    # 0 and 1 share 5 of 6 words, 0 and 3 all; 1 and 3 follow through 0; 2 shares 3 of 7; empty texts are alone.
    assert sorted(near_pairs(texts, no_progress)) == [(0, 1), (0, 3)]


def test_near_held_out_rows_are_counted():
    train = [item("a b c d e"), item("f g h i j")]
    texts = ["a b c d e f", "e d c b a", "x y z", "b a c d e f"]
    held_out = [item(text, line=number) for number, text in enumerate(texts, 10)]
    assert near_items(train, held_out, no_progress) == {10, 11, 13}


def test_far_rows_have_no_near_training_text():
    train = ["How do I cancel my card?", "f g h i j"]
    held_out = ["how do I cancel MY card", "how do I cancel my blue card", "g f h i j k", "where is my card", "f g h"]
    assert far_rows(train, held_out, no_progress) == [False, False, False, True, True]
    assert far_rows([], ["a"], no_progress) == [True] and far_rows(["a"], [], no_progress) == []


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
    assert len(wanted) > 25 and set(near_pairs(texts, no_progress)) == wanted


def test_an_instruction_before_every_row_does_not_make_rows_alike():
    said = [f"{a} {b} {c}" for a, b, c in zip(WORDS[:40], WORDS[50:90], WORDS[100:140], strict=True)]
    plain, led = ([item(lead + text) for text in said] for lead in ("", "sort this message into one of the classes: "))
    assert compared_texts(led) == compared_texts(plain) == said
    assert clusters_of(led, no_progress)[0] == clusters_of(plain, no_progress)[0]
    assert compared_texts([*led, item("quite another text")])[-1] == "quite another text"
    assert compared_texts([]) == []


def test_near_pairs_finds_what_a_full_comparison_finds():
    rng = random.Random(3)
    texts = [" ".join(rng.sample(WORDS, rng.randint(5, 20))) for _ in range(150)]
    for text in texts[:100]:
        words = text.split()
        for _ in range(2):
            changed = [w if rng.random() > 0.08 else rng.choice(WORDS) for w in words]
            texts.append(" ".join(dict.fromkeys(changed)))
    wanted = {(i, j) for i in range(len(texts)) for j in range(i) if jaccard(texts[i], texts[j]) >= 0.8}
    found = near_pairs(texts, no_progress)
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
            rows.append(item(text, f"L{label}"))
            if rng.random() < 0.3:  # a near-duplicate: one word more
                rows.append(item(text + " more", f"L{label}"))
    return rows


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clusters_stay_together_and_labels_in_proportion(seed):
    rows = make_rows()
    clusters, apart, notes = clusters_of(rows, no_progress)
    assert not notes and not apart.pairs and sorted(i for c in clusters for i in c) == list(range(len(rows)))
    taken = draw(rows, clusters, 60, name="eval", seed=seed, is_classify=True)
    assert 57 <= len(taken) <= 63
    assert all(len(set(cluster) & taken) in (0, len(cluster)) for cluster in clusters)
    counts = np.bincount([int(rows[i].example.completion[1:]) for i in taken], minlength=7)
    assert counts.min() >= 60 / 7 - 2 and counts.max() <= 60 / 7 + 2
    texts = [row.example.user_text for row in rows]
    assert not any(jaccard(texts[i], texts[j]) >= 0.8 for i in taken for j in range(len(rows)) if j not in taken)


def test_the_draw_depends_on_seed_and_not_on_file_order():
    rows = make_rows()
    shuffled = random.Random(9).sample(rows, len(rows))

    def drawn(items, seed):
        clusters, _, _ = clusters_of(items, no_progress)
        taken = draw(items, clusters, 60, name="eval", seed=seed, is_classify=True)
        return {items[i].example.id for i in taken}

    assert drawn(rows, 0) == drawn(rows, 0) == drawn(shuffled, 0)
    assert drawn(rows, 0) != drawn(rows, 1)
    assert [rows[i].example.id for i in sorted(sample(rows, 50, name="s", seed=0, is_classify=True))]


def test_a_label_is_never_taken_from_training_altogether():
    rows = [
        item(f"unique text number {i} {WORDS[i]} {WORDS[i + 60]}", "rare" if i < 2 else "common") for i in range(60)
    ]
    clusters = [[i] for i in range(60)]
    for seed in range(5):
        taken = draw(rows, clusters, 18, name="eval", seed=seed, is_classify=True)
        assert len(taken) == 18 and sum(i < 2 for i in taken) <= 1


def test_text_from_a_template_is_not_one_cluster():
    rows = [item(f"please send the parcel with the number {i} to my new address in the old town") for i in range(100)]
    clusters, _, notes = clusters_of(rows, no_progress)
    assert len(clusters) == 100 and "template" in notes[0]


def test_rows_left_apart_are_near_as_a_full_comparison_says():
    """Rows of one template, some with one word set in another order, held out here and there."""
    rng = random.Random(5)
    template = "please send the parcel to my new address in the old town by number {a} and {b}"
    rows = []
    for number in range(120):
        a, b = rng.randint(0, 6), rng.randint(0, 6)
        lead = " ".join(rng.sample(WORDS, rng.choice((0, 3, 4))))
        rows.append(item(f"{lead} {template.format(a=a, b=b)}", line=number))
    clusters, apart, _ = clusters_of(rows, no_progress)
    assert len(clusters) > 60 and apart.pairs and apart.first
    for seed in range(3):
        held_out = random.Random(seed).sample(range(120), 60)
        seen = [i for i in range(120) if i not in held_out][: 10 * (seed + 1)]
        words = [set(compared.split()) for compared in compared_texts(rows)]
        near = {i for i in held_out if any(len(words[i] & words[j]) >= 0.8 * len(words[i] | words[j]) for j in seen)}
        assert apart.near(seen, held_out) == near and 0 < len(near) < 60


def test_sample_is_exact_and_stratified():
    rows = [item(f"t{i}", "ab"[i % 4 == 0]) for i in range(100)]
    chosen = sample(rows, 20, name="x", seed=0, is_classify=True)
    assert len(chosen) == 20 and sum(rows[i].example.completion == "b" for i in chosen) == 5
    assert sample(rows, 200, name="x", seed=0, is_classify=True) == set(range(100))
