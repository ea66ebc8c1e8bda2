"""What needs no judge: answers that are certainly right or certainly wrong, found by rules and never sent."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ...records import Completion, Example
from ..metrics import parse_json

MIN_COPIED_CHARACTERS = 20  # a shorter prompt may well be its own answer
_SPACES = re.compile(r"\s+")
_FENCE = re.compile(r"^```(?:json)?\s*|\s*```$")


@dataclass(frozen=True, slots=True)
class Senses:
    """What the checks know of text, as functions: the language of a text, and the words by which it refuses."""

    language: Callable[[str], str | None]
    refusal: Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Checked:
    """A row that a rule has decided: whether its answer passes, by which rule, and on what evidence."""

    passed: bool
    code: str  # same_as_reference, empty, refusal, wrong_language, invalid_json, copied_prompt, too_short, too_long
    evidence: str


def check(
    example: Example,
    completion: Completion,
    senses: Senses,
    *,
    min_words: int | None = None,
    max_words: int | None = None,
) -> Checked | None:
    """The rule that decides the row, or None where a judge has to.

    What the reference itself does (refuse, copy the prompt, answer in another language) is never held against an
    answer. Limits of length are the run file's own.
    """
    text, expected = completion.text.strip(), example.completion.strip()
    if not text:
        return Checked(False, "empty", "the answer is empty")
    if is_reference(expected) and _normal(text) == _normal(expected):
        return Checked(True, "same_as_reference", "the answer equals the reference")
    if (said := senses.refusal(text)) and not senses.refusal(expected):
        return Checked(False, "refusal", f"it says {said!r}")
    asked, answered = senses.language(expected), senses.language(text)
    if asked and answered and asked != answered:
        return Checked(False, "wrong_language", f"the reference is in {asked}, the answer in {answered}")
    if _is_json(expected) and not _is_json(text):
        return Checked(False, "invalid_json", "the reference is JSON, and the answer is none")
    prompt = _normal(example.user_text)
    if len(prompt) >= MIN_COPIED_CHARACTERS and _normal(text) == prompt:
        return Checked(False, "copied_prompt", "the answer repeats the prompt")
    num_words = len(text.split())
    if min_words is not None and num_words < min_words:
        return Checked(False, "too_short", f"{num_words} words; judge.min_words is {min_words}")
    if max_words is not None and num_words > max_words:
        return Checked(False, "too_long", f"{num_words} words; judge.max_words is {max_words}")
    return None


def is_reference(text: str) -> bool:
    """Whether an expected answer says anything: a dash stands where an imported row has none."""
    return any(c.isalnum() for c in text)


def _normal(text: str) -> str:
    return _SPACES.sub(" ", text).strip().casefold()


def _is_json(text: str) -> bool:
    """Whether the whole text is one JSON object or list, a code fence around it allowed."""
    bare = _FENCE.sub("", text.strip()).strip()
    if bare[:1] not in ("{", "["):
        return False
    return parse_json(bare, dict if bare[0] == "{" else list) is not None and bare[-1] in "}]"
