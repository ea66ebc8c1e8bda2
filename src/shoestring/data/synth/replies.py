"""What a teacher wrote, read: examples out of a reply, and an answer without the wrapping chat models add."""

from __future__ import annotations

import json
import re
from typing import Any

from ..decode import shorten
from ..parse import is_cut_off
from ..safety import refusal

THOUGHT = re.compile(r"\s*<think>.*?(?:</think>|\Z)\s*", re.DOTALL)
FENCED = re.compile(r"\s*```[\w-]*\n(.*?)\n?```\s*", re.DOTALL)
Problem = tuple[str, str]


def bare(text: str) -> str:
    """An answer without a leading thought and without a code fence around all of it."""
    text = THOUGHT.sub("", text, count=1) if text.lstrip().startswith("<think>") else text
    fenced = FENCED.fullmatch(text)
    return (fenced.group(1) if fenced else text).strip()


def read_items(reply: str, is_whole: bool) -> list[dict[str, Any] | Problem]:
    """Each example of a reply as {"input", "answer"}, or the code and evidence of why it is none.

    is_whole: False where the reply was cut at the token limit. A reply without any example is one problem.
    """
    text = bare(reply)
    decoder = json.JSONDecoder()
    found: list[dict[str, Any] | Problem] = []
    position = 0
    while (start := text.find("{", position)) >= 0:
        try:
            value, position = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            if not is_whole and is_cut_off(text[start:]):
                found.append(("truncated_reply", f"the token limit cut it: …{text[-80:]}"))
                break
            found.append(("unreadable_reply", f"{str(error).split(':')[0]}: {shorten(text[start:], 200)}"))
            again = re.compile(r"\}\s*,?\s*\{").search(text, start + 1)
            if again is None:
                break
            position = again.end() - 1
            continue
        found += _items_of(value)
    if not found and (said := refusal(text)):
        found.append(("refusal", f"the reply says {said!r}"))
    if not found:
        code = "unreadable_reply" if is_whole else "truncated_reply"
        found.append((code, f"no example in the reply: {shorten(text, 200) or 'it is empty'}"))
    return found


def _items_of(value: dict[str, Any]) -> list[dict[str, Any] | Problem]:
    """The object itself, or those in the one list it wraps."""
    if "input" not in value:
        lists = [v for v in value.values() if isinstance(v, list) and v and all(isinstance(i, dict) for i in v)]
        if len(lists) == 1:
            return [item for inner in lists[0] for item in _items_of(inner)]
    missing = [key for key in ("input", "answer") if value.get(key) is None]
    if missing:
        return [("unreadable_reply", f"an object without {' and '.join(missing)}: {shorten(json.dumps(value), 200)}")]
    return [value]
