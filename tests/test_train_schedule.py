"""train/schedule.py: the order of a run is complete, inside its budgets, and the same every time."""

import math
import random
from collections import Counter

import pytest

from shoestring.errors import BadInput
from shoestring.train.schedule import build_schedule, padded_tokens


def test_six_rows_by_hand():
    """Two rows of 5 fit a micro-batch of 10, two micro-batches a step of 20; six rows make two steps."""
    schedule = build_schedule([5] * 6, 1, batch_tokens=20, micro_batch_tokens=10, seed=0)
    assert sorted(row for step in schedule.steps for batch in step for row in batch) == [0, 1, 2, 3, 4, 5]
    assert sorted(len(step) for step in schedule.steps) == [1, 2]
    assert all(len(batch) == 2 for step in schedule.steps for batch in step)
    assert schedule.num_tokens(len(schedule.steps)) == schedule.num_computed_tokens(len(schedule.steps)) == 30


def test_widths_are_rounded_up_inside_the_budget():
    """Rows of 5 take 8 each: three fit 24, where four would fit unrounded."""
    schedule = build_schedule([5] * 6, 1, batch_tokens=24, micro_batch_tokens=24, seed=0, round_to=8)
    assert [len(batch) for step in schedule.steps for batch in step] == [3, 3]
    assert schedule.num_computed_tokens(2) == 48
    assert schedule.num_tokens(2) == 30


@pytest.mark.parametrize("seed", range(20))
def test_every_row_num_epochs_times_and_budgets_held(seed):
    rng = random.Random(seed)
    lengths = [rng.randint(1, rng.choice([20, 200])) for _ in range(rng.randint(1, 300))]
    num_epochs = rng.choice([1, 2, 3, 0.5, 1.25, 2.9])
    batch_tokens = rng.randint(64, 2000)
    micro_batch_tokens = rng.randint(64, 3000)
    schedule = build_schedule(lengths, num_epochs, batch_tokens, micro_batch_tokens, seed)
    times = Counter(row for step in schedule.steps for batch in step for row in batch)
    whole, part = divmod(num_epochs, 1)
    assert set(times) == set(range(len(lengths))) or whole == 0
    assert all(times[row] in ({whole, whole + 1} if part else {whole}) for row in range(len(lengths)))
    assert sum(times.values()) == whole * len(lengths) + math.ceil(round(part * len(lengths), 6))
    for step in schedule.steps:
        sizes = [padded_tokens([lengths[r] for r in batch]) for batch in step]
        assert all(n <= min(micro_batch_tokens, batch_tokens) or len(b) == 1 for n, b in zip(sizes, step, strict=True))
        assert sum(sizes) <= batch_tokens or len(step) == 1
    assert schedule == build_schedule(lengths, num_epochs, batch_tokens, micro_batch_tokens, seed)


def test_padding_is_small_and_steps_are_mixed():
    rng = random.Random(1)
    lengths = [rng.randint(20, 120) for _ in range(2000)]
    schedule = build_schedule(lengths, 1, 2048, 2048, seed=3)
    num_steps = len(schedule.steps)
    assert schedule.num_tokens(num_steps) / schedule.num_computed_tokens(num_steps) > 0.9
    assert num_steps < 1.15 * sum(lengths) / 2048
    firsts = [lengths[step[0][0]] for step in schedule.steps]
    assert firsts != sorted(firsts)  # short rows do not all come first
    assert schedule.steps != build_schedule(lengths, 1, 2048, 2048, seed=4).steps


def test_a_step_of_small_micro_batches_mixes_lengths():
    lengths = [10] * 100 + [100] * 100
    schedule = build_schedule(lengths, 1, batch_tokens=2000, micro_batch_tokens=200, seed=0)
    mixed = [step for step in schedule.steps if len({lengths[b[0]] for b in step}) == 2]
    assert len(mixed) > len(schedule.steps) / 2


@pytest.mark.parametrize(("lengths", "epochs", "tokens"), [([], 1, 64), ([3], 0, 64), ([3], 1, 0)])
def test_nothing_to_train_on_is_refused(lengths, epochs, tokens):
    with pytest.raises(BadInput):
        build_schedule(lengths, epochs, tokens, 64, 0)
