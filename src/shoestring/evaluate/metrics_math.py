"""Answers that are equal as mathematics (fractions, roots, sets, LaTeX), by math-verify."""

from __future__ import annotations

import threading
from decimal import InvalidOperation
from typing import Any

from ..errors import DataError, require
from .metrics import final_number

MAX_S = 5  # for reading, and for comparing, one answer; by an alarm, which only the main thread has


def math_equal(expected: str, output: str) -> tuple[bool, str | None]:
    """Whether the output's answer equals the expected one, and why it has none.

    Equal last numbers settle it where both texts are plain ones. Raises: DataError where the expected answer is none
    that can be read, MissingDependency.
    """
    if not any(sign in expected + output for sign in "\\{^/=%"):
        try:
            truth, answer = final_number(expected), final_number(output)
        except InvalidOperation:
            truth = answer = None
        if truth is not None and truth == answer:
            return True, None
    wanted = _read(expected)
    if not wanted:
        raise DataError(f"expected answer {expected[-60:]!r} holds no number or formula that math-verify reads")
    found = _read(output)
    if not found:
        return False, "no number or formula in the output"
    verify = require("math_verify", extra="math", purpose="metric math_equal").verify
    return bool(verify(wanted, found, timeout_seconds=_limit())), None


def _read(text: str) -> list[Any]:
    """The last formula of a text: what stands after the last '####', if it is there."""
    parse = require("math_verify", extra="math", purpose="metric math_equal").parse
    text = text.rpartition("####")[2].strip() or text
    found: list[Any] = parse(text, parsing_timeout=_limit())
    if not found and "\\" in text and "$" not in text:
        found = parse(f"${text}$", parsing_timeout=_limit())
    return found


def _limit() -> int | None:
    return MAX_S if threading.current_thread() is threading.main_thread() else None
