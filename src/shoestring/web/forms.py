"""Fields of a form, each refused with its value and the limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import BadInput

MAX_CHARACTERS = 200


def text_of(form: Mapping[str, Any], key: str) -> str:
    """A short line of text; empty where the field is not there. Raises: BadInput."""
    value = form.get(key, "")
    if not isinstance(value, str):
        raise BadInput(f"{key} is a file; give text")
    if len(value) > MAX_CHARACTERS:
        raise BadInput(f"{key} has {len(value):,} characters, the most is {MAX_CHARACTERS}")
    return value.strip()


def number_of(
    form: Mapping[str, Any], key: str, *, at_least: float | None = None, at_most: float | None = None
) -> float | None:
    """A number; None where the field is empty. Raises: BadInput."""
    text = text_of(form, key)
    if not text:
        return None
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadInput(f"{key} = {text!r} is no number")
    if at_least is not None and value < at_least:
        raise BadInput(f"{key} = {value:g}, the least is {at_least:g}")
    if at_most is not None and value > at_most:
        raise BadInput(f"{key} = {value:g}, the most is {at_most:g}")
    return value
