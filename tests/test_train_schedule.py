"""train/schedule.py: the order of a run is complete, inside its budgets, and the same every time."""

import math
import random
from collections import Counter

import pytest

from shoestring.errors import BadInput
from shoestring.train.forest import as_array
from shoestring.train.schedule import FOREST, PADDED, PASS_TOKENS, build_schedule, padded_tokens


def rows_of(lengths):
    """Rows that share nothing."""
    return [[as_array([1000 + i] * length)] for i, length in enumerate(lengths)]


def built(lengths, num_epochs, batch_tokens, micro_batch_tokens, seed=0, packing=PADDED, **options):
    return build_schedule(
        rows_of(lengths), num_epochs, batch_tokens, micro_batch_tokens, seed, packing=packing, **options
    )


def test_six_rows_by_hand():
    """Four rows of 5 fit a step of 20, two of them a micro-batch of 10; six rows make two steps of three."""
    schedule = built([5] * 6, 1, batch_tokens=20, micro_batch_tokens=10)
    assert sorted(row for step in schedule.steps for batch in step for row in batch) == [0, 1, 2, 3, 4, 5]
    assert [sorted(map(len, step)) for step in schedule.steps] == [[1, 2], [1, 2]]
    assert schedule.num_tokens(2) == schedule.num_computed_tokens(2) == 30


def test_widths_are_rounded_up():
    """Rows of 5 take 8 each: a pass of 24 holds three."""
    schedule = built([5] * 6, 1, batch_tokens=15, micro_batch_tokens=24, round_to=8)
    assert [len(batch) for step in schedule.steps for batch in step] == [3, 3]
    assert schedule.num_computed_tokens(2) == 48 and schedule.num_tokens(2) == 30


@pytest.mark.parametrize("packing", [PADDED, FOREST])
@pytest.mark.parametrize("seed", range(10))
def test_every_row_num_epochs_times_and_budgets_held(seed, packing):
    rng = random.Random(seed)
    lengths = [rng.randint(1, rng.choice([20, 200])) for _ in range(rng.randint(1, 300))]
    num_epochs = rng.choice([1, 2, 3, 0.5, 1.25, 2.9])
    batch_tokens = rng.randint(64, 2000)
    micro_batch_tokens = rng.randint(64, 3000)
    asked = (lengths, num_epochs, batch_tokens, micro_batch_tokens, seed, packing)
    schedule = built(*asked)
    times = Counter(row for step in schedule.steps for batch in step for row in batch)
    whole, part = divmod(num_epochs, 1)
    assert set(times) == set(range(len(lengths))) or whole == 0
    assert all(times[row] in ({whole, whole + 1} if part else {whole}) for row in range(len(lengths)))
    assert sum(times.values()) == whole * len(lengths) + math.ceil(round(part * len(lengths), 6))
    for step in schedule.steps:
        rows = [row for batch in step for row in batch]
        assert schedule.tokens_in(step) <= batch_tokens or len(rows) == 1
        sizes = [padded_tokens([lengths[r] for r in batch]) for batch in step]
        if packing == PADDED:
            assert all(n <= micro_batch_tokens or len(b) == 1 for n, b in zip(sizes, step, strict=True))
    assert schedule == built(*asked)


def test_both_packings_draw_the_same_steps():
    rng = random.Random(0)
    lengths = [rng.randint(20, 120) for _ in range(500)]
    padded, forest = (built(lengths, 2, 1000, 600, packing=packing) for packing in (PADDED, FOREST))
    drawn = [[sorted(row for batch in step for row in batch) for step in made.steps] for made in (padded, forest)]
    assert drawn[0] == drawn[1]


def test_steps_are_random_and_passes_pad_no_more_than_they_save():
    rng = random.Random(1)
    lengths = [rng.randint(20, 120) for _ in range(2000)]
    schedule = built(lengths, 1, 2048, 2048, seed=3)
    means = [schedule.tokens_in(step) / sum(map(len, step)) for step in schedule.steps]
    assert max(means) < 100 and min(means) > 40  # no step is of short or of long rows alone
    for step, computed in zip(schedule.steps, schedule.computed_tokens, strict=True):
        rows = [row for batch in step for row in batch]
        assert computed + PASS_TOKENS * len(step) <= padded_tokens([lengths[r] for r in rows]) + PASS_TOKENS
    assert schedule.steps != built(lengths, 1, 2048, 2048, seed=4).steps


@pytest.mark.parametrize(("lengths", "epochs", "tokens"), [([], 1, 64), ([3], 0, 64), ([3], 1, 0)])
def test_nothing_to_train_on_is_refused(lengths, epochs, tokens):
    with pytest.raises(BadInput):
        built(lengths, epochs, tokens, 64)
