"""When two texts count as the same: the keys that duplicates and contradictions are found by."""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from typing import Any

from ..messages import Example, tools_key

# NFKC would turn 5² into 52; a power is not a digit.
SUPERSCRIPTS = str.maketrans({c: f"^{d}" for c, d in zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True)})
# Sentence punctuation that carries no value: not the point of 3.5, the colon of 10:30, the quote of 5'.
PUNCTUATION = re.compile(r"[.,;:?…]+(?!\d)|(?<!\d)[!'\"‘’“”«»`´]+")
FINAL_NUMBER = re.compile(r"####\s*([-+]?[\d.,]+)")


def normalise(text: str) -> str:
    """NFKC, case folded, white space collapsed."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(SUPERSCRIPTS))
    return " ".join(text.casefold().split())


def normalise_prompt(text: str) -> str:
    """As normalise, and without sentence punctuation; text of punctuation alone stays as it is."""
    whole = normalise(text)
    return " ".join(PUNCTUATION.sub("", whole).split()) or whole


def prompt_key(example: Example) -> str:
    """Equal for prompts that ask the same: every message of the prompt, roles included, and the tools declared.

    Plain text, which asks nothing, is known by itself.
    """
    said = said_key(example)
    return f"{said}\x1d{tools_key(example.tools)}" if example.tools else said


def said_key(example: Example) -> str:
    """As prompt_key, whatever tools are declared."""
    prompt = example.prompt
    if len(prompt) == 1:
        return normalise_prompt(prompt[0].content or example.completion)
    return "\x1e".join(f"{m.role}\x1f{normalise_prompt(m.text)}" for m in prompt)


def tools_mark(tools: str) -> str:
    """A number that stands for declared tools in compared text; the guard takes other tools for a difference."""
    return f"\ntools {zlib.crc32(tools_key(tools).encode())}" if tools else ""


def answer_key(text: str, kind: str) -> str:
    """Equal for answers that agree: labels by strip alone, JSON by value, SQL without its last semicolon."""
    if kind == "classify":
        return text.strip()
    if kind == "extract":
        try:
            return json.dumps(_folded(json.loads(text)), sort_keys=True, ensure_ascii=False)
        except (ValueError, RecursionError):
            return normalise(text)
    folded = normalise(text)
    return folded.rstrip("; ") if kind == "sql" else folded


def meaning_key(text: str, kind: str) -> str:
    """Equal for answers that do not contradict: of a math answer only its final number counts."""
    if kind == "math":
        numbers = FINAL_NUMBER.findall(text)
        if numbers:
            return str(numbers[-1]).replace(",", "").rstrip(".")
    return answer_key(text, kind)


def _folded(value: Any) -> Any:
    if isinstance(value, str):
        return normalise(value)
    if isinstance(value, dict):
        return {k: _folded(v) for k, v in value.items()}
    return [_folded(v) for v in value] if isinstance(value, list) else value
