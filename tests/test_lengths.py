"""Tokens without a tokenizer, and a quick look at data."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest

from shoestring.config import FieldsConfig
from shoestring.data.sample import sample
from shoestring.embedded import embedded_path
from shoestring.errors import DataError
from shoestring.plan import lengths
from shoestring.plan.lengths import estimate_tokens
from shoestring.train.quick_counts import quick_counts


def test_a_text_by_hand() -> None:
    text = "The international flight 4512, cancelled."
    # 4 words, of which two have 7 and 3 letters more than six; 4 digits; a comma and a full stop.
    by_hand = 4 * lengths.PER_WORD + 10 * lengths.MORE_LETTERS + 4 * lengths.PER_DIGIT + 2 * lengths.PER_MARKS
    assert estimate_tokens(text).value == pytest.approx(by_hand)
    in_groups = by_hand - 4 * lengths.PER_DIGIT + 2 * lengths.PER_DIGIT_GROUP
    assert estimate_tokens(text, groups_digits=True).value == pytest.approx(in_groups)
    assert estimate_tokens("").value == 0


def test_other_scripts_are_less_sure() -> None:
    greek, english = estimate_tokens("Καλημέρα κόσμε"), estimate_tokens("Good morning world")
    assert greek.high / greek.value > english.high / english.value > 1


def test_the_estimate_is_near_what_a_tokenizer_counts(tmp_path: Path) -> None:
    """Of the embedded model, whose vocabulary is small: it needs more tokens, and the estimate must not be above it."""
    rows = [{"prompt": f"Where is order {n} of the red tent?", "completion": "On its way."} for n in range(50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = sample(["a.jsonl"], tmp_path, FieldsConfig())
    counted, error, how = quick_counts(seen.examples, (), embedded_path("shoestring-1m"), "llama")
    guessed, spread, doubt = quick_counts(seen.examples, (), None, "qwen3")
    assert "counted by the model's tokenizer" in how and "tokenizer is not here" in doubt
    assert error.high < spread.high
    assert 0.5 < sum(guessed.lengths) / sum(counted.lengths) < 1.3


def rows_of(num: int) -> str:
    return "".join(json.dumps({"prompt": f"question {n}", "completion": str(n)}) + "\n" for n in range(num))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_every_line_is_counted_and_the_sample_is_spread(tmp_path: Path, name: str) -> None:
    text = rows_of(5000) + "\n\n"
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    seen = sample([name], tmp_path, FieldsConfig(), max_rows=100)
    assert (seen.num_rows, seen.is_count_exact) == (5000, True)
    assert 100 <= len(seen.examples) <= 200 and seen.num_examples == pytest.approx(5000, rel=0.01)
    numbers = [int(example.completion) for example in seen.examples]
    assert numbers[0] < 100 and numbers[-1] > 4900
    gaps = {b - a for a, b in itertools.pairwise(numbers)}
    assert len(gaps) == 1


def test_a_small_file_is_read_whole_and_a_last_line_without_its_end_counts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(rows_of(7).rstrip("\n"))
    seen = sample(["a.jsonl"], tmp_path, FieldsConfig())
    assert (seen.num_rows, len(seen.examples), seen.how) == (7, 7, "all 7 rows read")


def test_other_formats_are_read_from_their_beginning(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"how is number {n},yes\n" for n in range(9000)))
    seen = sample(["a.csv"], tmp_path, FieldsConfig())
    assert not seen.is_count_exact and seen.num_rows == pytest.approx(9000, rel=0.6)
    (tmp_path / "few.csv").write_text("text,label\nhow are you,yes\nwho is it,no\n")
    assert sample(["few.csv"], tmp_path, FieldsConfig()).num_rows == 2


def test_rows_without_an_answer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n' * 5)
    with pytest.raises(DataError):
        sample(["a.jsonl"], tmp_path, FieldsConfig())
    with pytest.raises(DataError, match="no such file"):
        sample(["b.jsonl"], tmp_path, FieldsConfig())
