"""Tokens of a sample of rows before anything is curated: by the model's tokenizer file, or by the look of the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..plan.lengths import START_TOKENS, TURN_TOKENS, estimate_tokens
from ..records import Estimate, Example, Message, TokenCounts

COUNTED_ERROR = Estimate(1.0, 0.97, 1.05)  # texts are counted, what the template adds is estimated
GROUPING_FAMILIES = ("llama", "smollm3", "granite")  # whose tokenizers keep up to three digits together

Lengths = tuple[TokenCounts, Estimate, str]


def quick_counts(train: Sequence[Example], held_out: Sequence[Example], folder: Path | None, family: str) -> Lengths:
    """Lengths of the rows, what the true number is to them, and how they were had."""
    file = folder / "tokenizer.json" if folder is not None else None
    if file is not None and file.is_file():
        return _counts(train, held_out, _by_tokenizer(file)), COUNTED_ERROR, "texts counted by the model's tokenizer"
    groups = family.lower().startswith(GROUPING_FAMILIES)
    spread = [0.0, 0.0, 0.0]
    known: dict[str, Estimate] = {}

    def one(text: str) -> Estimate:
        if text not in known:
            known[text] = estimate_tokens(text, groups_digits=groups)
        return known[text]

    counts = _counts(train, held_out, lambda texts: [round(one(text).value) for text in texts])
    for example in train:
        for message in example.messages:
            for i, pick in enumerate(("value", "low", "high")):
                spread[i] += getattr(one(message.text), pick) + getattr(TURN_TOKENS, pick)
        for i, pick in enumerate(("value", "low", "high")):
            spread[i] += getattr(START_TOKENS, pick)
    error = Estimate(1.0, spread[1] / spread[0], spread[2] / spread[0])
    how = f"estimated from the text, {error.low - 1:+.0%} to {error.high - 1:+.0%}: the model's tokenizer is not here"
    return counts, error, how


def _by_tokenizer(file: Path) -> Callable[[Sequence[str]], list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: [len(e.ids) for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _counts(
    train: Sequence[Example], held_out: Sequence[Example], lengths: Callable[[Sequence[str]], list[int]]
) -> TokenCounts:
    prompt, answer = _sides(train, lengths)
    eval_prompt, eval_answer = _sides(held_out, lengths)
    rejected = _turns([example.rejected for example in train], lengths) if any(e.rejected for e in train) else []
    return TokenCounts(
        prompt=tuple(prompt),
        answer=tuple(answer),
        eval_prompt=tuple(eval_prompt),
        eval_answer=tuple(eval_answer),
        rejected=tuple(rejected),
    )


def _sides(examples: Sequence[Example], lengths: Callable[[Sequence[str]], list[int]]) -> tuple[list[int], list[int]]:
    prompts = _turns([e.messages[: e.answer_span[0]] for e in examples], lengths)
    tools = lengths([e.tools for e in examples])
    answers = _turns([e.messages[slice(*e.answer_span)] for e in examples], lengths)
    start = round(START_TOKENS.value)
    return [p + t + start for p, t in zip(prompts, tools, strict=True)], answers


def _turns(groups: Sequence[Sequence[Message]], lengths: Callable[[Sequence[str]], list[int]]) -> list[int]:
    """Tokens of each group of turns, the template's around each turn included."""
    counted = iter(lengths([message.text for group in groups for message in group]))
    return [sum(next(counted) + round(TURN_TOKENS.value) for _ in group) for group in groups]
