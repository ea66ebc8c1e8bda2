"""Whose model a name means: a judge favours the answers of its own family."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..plan.shapes import table

# Family and how it shows in a name; short words stand alone, so that `o1` is not found in `pro1`.
SIGNS = {
    "qwen": r"qwen|qwq",
    "llama": r"llama|vicuna|alpaca",
    "gpt": r"gpt|davinci|(?<![a-z0-9])o[134](?![a-z0-9])",
    "claude": r"claude|(?<![a-z])(?:opus|sonnet|haiku)(?![a-z])",
    "gemini": r"gemini|gemma|(?<![a-z])palm(?![a-z])",
    "mistral": r"mi[sx]tral|ministral|codestral|magistral|devstral|pixtral|zephyr",
    "deepseek": r"deepseek",
    "phi": r"(?<![a-z])phi(?![a-z])",
    "command": r"(?<![a-z])(?:command|cohere|aya)(?![a-z])",
    "granite": r"granite",
    "smollm": r"smollm",
    "olmo": r"olmo|tulu",
    "falcon": r"falcon",
    "glm": r"(?<![a-z])(?:chat)?glm(?![a-z])",
    "kimi": r"kimi|moonshot",
    "grok": r"grok",
    "nova": r"(?<![a-z])nova(?![a-z])",
    "yi": r"(?<![a-z])yi(?![a-z])",
    "internlm": r"internlm",
    "nemotron": r"nemotron|minitron",
    "exaone": r"exaone",
    "minimax": r"minimax",
    "lfm": r"(?<![a-z])lfm",
    "stablelm": r"stablelm",
    "shoestring": r"shoestring",
}
PATTERNS = {family: re.compile(sign) for family, sign in SIGNS.items()}


def families_of(model: str) -> frozenset[str]:
    """Families that a model's name, or its row of the model table, names; several for one distilled from another."""
    row = next((row for name, row in table().items() if name.casefold() == model.casefold()), None)
    named = f"{model} {row['family']}".casefold() if row else model.casefold()
    return frozenset(family for family, pattern in PATTERNS.items() if pattern.search(named))


def shared(judge: str, models: Iterable[str]) -> list[tuple[str, str]]:
    """(model, family) of each model that is of the judge's family."""
    own = families_of(judge)
    return [(model, family) for model in models for family in sorted(own & families_of(model))]
