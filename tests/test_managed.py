"""Managed services: a bill a reader can recompute, the rules that move it, and what is not known said so."""

from __future__ import annotations

from datetime import date

import pytest

from shoestring.errors import BadInput
from shoestring.market.managed import BASES, TERMS, quote, rate_of, rates, size_in_name

DAY = date(2026, 11, 28)


def test_a_bill_by_hand() -> None:
    """docs.ori.co's own example: 5M tokens, 3 epochs, 1M validation tokens, at 0.46 a million: 7.36 dollars."""
    bill = quote(
        "ori", "Llama-3.1-8B", 5_000_000, num_epochs=3, num_validation_tokens=1_000_000, num_evals=1, today=DAY
    )
    assert bill.num_billed_tokens == 16_000_000
    assert bill.train_usd == pytest.approx(7.36) and bill.total_usd == pytest.approx(7.36)
    assert bill.source == "docs.ori.co/fine-tuning/billing" and bill.age_days == 4


def test_unpacked_rows_are_billed_at_full_length_at_together() -> None:
    """docs.together.ai's example: 8 x 1000 rows of 8192 tokens, 10 evaluations of 1M tokens: 75.5M tokens."""
    bill = quote(
        "together", "Llama-3-8B", 2_000_000, num_rows=8_000, max_seq_len=8192, is_packed=False,
        num_validation_tokens=1_000_000, num_evals=10, usd_per_million_train_tokens=0.48, today=DAY,
    )  # fmt: skip
    assert bill.num_billed_tokens == 65_536_000 + 10_000_000
    assert bill.train_usd == pytest.approx(75.536 * 0.48)
    assert "unpacked rows are billed at full length: 8,000 x 8,192 tokens an epoch" in bill.rules
    packed = quote("together", "Llama-3-8B", 2_000_000, usd_per_million_train_tokens=0.48, today=DAY)
    assert packed.num_billed_tokens == 2_000_000 and packed.basis == "given"
    with pytest.raises(BadInput, match="give num_rows and max_seq_len"):
        quote("together", "Llama-3-8B", 2_000_000, is_packed=False)
    with pytest.raises(BadInput, match="do not fit into 10 rows of 100"):
        quote("together", "Llama-3-8B", 2_000_000, is_packed=False, num_rows=10, max_seq_len=100)


def test_a_rate_nobody_states_is_none_with_its_reason() -> None:
    for provider in ("together", "nebius", "vertex", "bedrock", "azure", "predibase"):
        bill = quote(provider, "Llama-3.1-8B", 3_000_000, today=DAY)
        assert bill.train_usd is None and bill.total_usd is None and bill.num_billed_tokens == 3_000_000
        assert any(words.startswith("training price: ") for words in bill.unknown), bill


def test_size_bands() -> None:
    assert quote("fireworks", "Qwen3-8B", 10**6, today=DAY).train_usd == pytest.approx(0.50)
    assert quote("fireworks", "llama-3.3-70b", 10**6, today=DAY).train_usd == pytest.approx(3.00)
    assert quote("fireworks", "mystery", 10**6, params_b=16, today=DAY).train_usd == pytest.approx(0.50)
    with pytest.raises(BadInput, match="give params_b, in billions"):
        quote("fireworks", "mystery", 10**6)
    with pytest.raises(BadInput, match="no rate of fireworks for 405B parameters; it goes up to 80B"):
        quote("fireworks", "Llama-3.1-405B", 10**6)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Qwen/Qwen3-8B", 8),
        ("Qwen3.6-35B-A3B", 35),
        ("Llama-3.2-1B-Instruct", 1),
        ("Qwen3.5-0.8B", 0.8),
        ("gpt-4o", None),
    ],
)
def test_size_in_a_name(name: str, size: float | None) -> None:
    assert size_in_name(name) == size


def test_serving_by_the_token_and_by_the_hour() -> None:
    tinker = quote(
        "tinker", "Qwen/Qwen3-8B", 10**6, served_input_tokens=10**7, served_output_tokens=10**6, today=DAY
    )  # fmt: skip
    assert tinker.serving_usd == pytest.approx(1.95 + 0.60) and tinker.total_usd == pytest.approx(0.44 + 2.55)
    hosted = quote("fireworks", "Qwen3-8B", 10**6, hosting_hours=730, today=DAY)
    assert hosted.serving_usd == pytest.approx(5840.0)  # a month on one H100: hosting decides, not training
    assert any("give hosting_hours" in words for words in quote(
        "fireworks", "Qwen3-8B", 10**6, served_input_tokens=1, today=DAY).unknown)  # fmt: skip


def test_a_rate_that_is_known_in_part() -> None:
    bill = quote("tinker", "Qwen3.8-27B", 10**6, served_output_tokens=10**6, today=DAY)
    assert bill.train_usd is None and bill.serving_usd == pytest.approx(5.595) and bill.total_usd is None


def test_openai_closes_by_dates() -> None:
    def words(day: date) -> tuple[bool, str]:
        bill = quote("openai", "gpt-4o-mini", 10**6, today=day)
        return bill.is_open, " ".join(bill.rules)

    assert words(date(2026, 5, 6))[0]
    is_open, said = words(DAY)
    assert not is_open and "no jobs of new customers since 2026-05-07" in said and "2027-01-06" in said
    assert "ended fine-tuning on 2027-01-06" in words(date(2027, 1, 6))[1]


def test_an_old_rate_says_so() -> None:
    bill = quote("tinker", "Qwen3-4B-Instruct-2507", 10**6, today=DAY)
    undated = quote("ori", "Qwen3-8B", 10**6, today=DAY)
    assert any("page without a date" in rule for rule in undated.rules)
    assert bill.age_days == 327 and any("327 days old, check it" in rule for rule in bill.rules)


@pytest.mark.parametrize(
    ("arguments", "more", "words"),
    [
        (("togetherai", "Qwen3-8B", 1), {}, r"no managed service 'togetherai'; there are: together"),
        (("tinker", "Qwen9-1B", 1), {}, r"no rate of tinker for 'Qwen9-1B'; there are: Qwen3-8B"),
        (("tinker", "Qwen3-8B", 1), {"method": "full"}, "tinker does not train by 'full'; choose lora"),
        (("ori", "Qwen3-8B", -1), {}, "num_tokens = -1: give a number of 0 or more"),
        (("ori", "Qwen3-8B", 0), {}, "nothing to train on"),
        (("ori", "Qwen3-8B", 1), {"num_epochs": float("nan")}, "num_epochs = nan"),
        (("ori", "Qwen3-8B", 1), {"usd_per_million_train_tokens": -0.5}, "usd_per_million_train_tokens = -0.5"),
        (("ori", "Qwen3-14B", 1), {}, "it goes up to 10B"),
    ],
)
def test_bad_input(arguments: tuple[str, str, int], more: dict[str, float], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        quote(*arguments, **more)  # type: ignore[arg-type]


def test_every_row() -> None:
    assert {rate.provider for rate in rates()} == set(TERMS)
    seen = set()
    for rate in rates():
        assert rate.source and rate.basis in BASES, rate
        assert date(2026, 1, 1) <= rate.as_of <= date(2026, 11, 24), rate
        prices = [
            rate.usd_per_million_train_tokens,
            rate.usd_per_million_input_tokens,
            rate.usd_per_million_output_tokens,
        ]
        assert all(price is None or 0.01 <= price <= 100 for price in prices), rate
        assert (rate.basis == "not found") == (not any(prices)), rate
        assert rate.usd_per_million_output_tokens is None or (
            rate.usd_per_million_output_tokens > (rate.usd_per_million_input_tokens or 0)
        )
        assert rate.over_params_b < rate.max_params_b, rate
        key = (rate.provider, rate.model, rate.over_params_b)
        assert key not in seen, key
        seen.add(key)
    for terms in TERMS.values():
        assert terms.source and terms.serving in ("tokens", "hours", "both")


def test_rate_of_takes_the_name_before_the_size() -> None:
    assert rate_of("prime-intellect", "Qwen/Qwen3.5-4B").usd_per_million_train_tokens == 0.30
