"""Tokens of a text without its tokenizer: from its words, digits and marks.

Coefficients: least squares over eleven sets of texts (maths, support tickets, SQL, JSON, chat, code) under the
tokenizers of Qwen, Llama 3 and Mistral's Tekken; of a set left out, the sum is off by 2 to 16 %
(scripts/measure_tokens.py). Bytes alone would be off by 29 %: a token is 2.8 to 4.8 of them.
"""

from __future__ import annotations

import re

from ..records import Estimate

WORD = re.compile(r"[^\W\d_]+")
DIGITS = re.compile(r"\d+")
MARKS = re.compile(r"[^\w\s]+|_+")
BREAK = re.compile(r"\s*\n\s*|[ \t]{2,}")
LONG_WORD = 6  # letters a word has for one token; more cost MORE_LETTERS each
PER_WORD, MORE_LETTERS = 1.02, 0.09
PER_BYTE_OTHER_SCRIPT = Estimate(0.35, 0.22, 0.5)  # a byte of a word that is not ASCII
PER_DIGIT, PER_DIGIT_GROUP = 1.02, 1.09  # most tokenizers split numbers into digits, Llama 3 into groups of three
PER_MARKS, MORE_MARKS = 0.96, 0.18  # a run of marks, each further byte of it
PER_BREAK = 0.77
ERROR_FRAC = 0.16  # the largest error on a set left out
TURN_TOKENS = Estimate(5.0, 4.0, 7.0)  # what a chat template puts around a turn
START_TOKENS = Estimate(4.0, 1.0, 24.0)  # in front of a conversation; high: a system prompt of the template's own


def estimate_tokens(text: str, *, groups_digits: bool = False) -> Estimate:
    """Tokens of a text, without any of a chat template."""
    low = value = high = 0.0
    num_words = num_more = other_bytes = 0
    for word in WORD.findall(text):
        if word.isascii():
            num_words += 1
            num_more += max(0, len(word) - LONG_WORD)
        else:
            other_bytes += len(word.encode("utf-8", "surrogatepass"))
    numbers = DIGITS.findall(text)
    digits = sum(-(-len(n) // 3) for n in numbers) * PER_DIGIT_GROUP if groups_digits else 0.0
    digits = digits or sum(map(len, numbers)) * PER_DIGIT
    marks = MARKS.findall(text)
    num_marks_more = sum(len(m.encode("utf-8", "surrogatepass")) - 1 for m in marks)
    value = (
        PER_WORD * num_words
        + MORE_LETTERS * num_more
        + digits
        + PER_MARKS * len(marks)
        + MORE_MARKS * num_marks_more
        + PER_BREAK * len(BREAK.findall(text))
    )
    other = PER_BYTE_OTHER_SCRIPT.scaled(other_bytes) if other_bytes else Estimate(0.0, 0.0, 0.0)
    low, high = value * (1 - ERROR_FRAC) + other.low, value * (1 + ERROR_FRAC) + other.high
    return Estimate(value + other.value, low, high)
