"""Tables as plain text that fits the terminal; bold only where there is one."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

from ..units import duration, usd

GAP = "  "
MIN_FLEXIBLE_WIDTH = 12
WIDTH_OFF_TERMINAL = 200  # a file or a pipe has no width; only absurd lines are cut


def width_of(text: str) -> int:
    """Terminal columns of a line: wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def clip(text: str, width: int) -> str:
    """text in at most width columns, its middle replaced by an ellipsis (names differ at both ends)."""
    if width_of(text) <= width:
        return text
    head, tail = width // 2, (width - 1) // 2
    while width_of(text[:head]) + width_of(text[len(text) - tail :]) + 1 > width and head:
        head, tail = head - 1, max(tail - 1, 0)
    return text[:head] + "…" + (text[-tail:] if tail else "")


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    marked: int | None = None,
    flexible: int = 0,
    width: int | None = None,
) -> str:
    """Columns under heads; the flexible one gives way when the terminal is narrow.

    right: columns set flush right. marked: a row to emphasise on a terminal.
    """
    is_terminal = sys.stdout.isatty()
    if width is None:
        width = shutil.get_terminal_size().columns if is_terminal else WIDTH_OFF_TERMINAL
    widths = [max(width_of(line[i]) for line in (heads, *rows)) for i in range(len(heads))]
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - width
    if excess > 0:
        widths[flexible] = max(min(widths[flexible], MIN_FLEXIBLE_WIDTH), widths[flexible] - excess)
    lines = []
    for number, cells in enumerate((heads, *rows)):
        parts = []
        for i, cell in enumerate(cells):
            shown = clip(cell, widths[i])
            pad = " " * (widths[i] - width_of(shown))
            parts.append(pad + shown if i in right else shown + pad)
        line = GAP.join(parts).rstrip()
        is_strong = number == 0 or (marked is not None and number == marked + 1)
        lines.append(f"\x1b[1m{line}\x1b[0m" if is_strong and is_terminal and not os.environ.get("NO_COLOR") else line)
    return "\n".join(lines)


def score_text(score: dict[str, float] | None) -> str:
    """0.812 [0.774, 0.846], or a dash."""
    if score is None:
        return "-"
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def seconds_text(seconds: float) -> str:
    """Seconds with one decimal below 100."""
    return f"{seconds:.1f}" if seconds < 100 else f"{seconds:,.0f}"


def tokens_text(num_prompt: int, num_completion: int, num_rows: int) -> str:
    """Mean tokens of a prompt and of an answer: 212 + 14; a dash where no language model was asked."""
    return f"{num_prompt / num_rows:,.0f} + {num_completion / num_rows:,.0f}" if num_prompt else "-"


def arms_table(
    arms: Sequence[dict[str, Any]], metric: str, chosen: str | None, *, mark: str = "chosen", width: int | None = None
) -> str:
    """Arm, score with interval, tokens, seconds, dollars: the table a run ends with. arms as in Run.summary()."""
    rows = []
    marked = None
    for number, arm in enumerate(arms):
        is_chosen = arm["arm"] == chosen
        marked = number if is_chosen else marked
        score = {"value": arm["score"], "low": arm["low"], "high": arm["high"]}
        rows.append(
            (
                arm["arm"],
                score_text(score),
                tokens_text(arm["num_prompt_tokens"], arm["num_completion_tokens"], arm["num_rows"]),
                seconds_text(arm["wall_s"]),
                usd(arm["cost_usd"]),
                f"<- {mark}" if is_chosen else "",
            )
        )
    heads = ("arm", f"{metric} (95 % interval)", "tokens a row", "seconds", "dollars", "")
    return table(heads, rows, right=(2, 3, 4), marked=marked, width=width)


def far_table(arms: Sequence[dict[str, Any]], *, width: int | None = None) -> str:
    """The scores on held-out rows far from training rows; empty where no held-out row is near to one."""
    if not any(arm["far"] and arm["far"]["num_rows"] < arm["num_rows"] for arm in arms):
        return ""
    rows = []
    for arm in arms:
        far = arm["far"]
        if far is None:
            rows.append((arm["arm"], "-", "not known"))
            continue
        score = None if far["score"] is None else {"value": far["score"], "low": far["low"], "high": far["high"]}
        rows.append((arm["arm"], score_text(score), f"{far['num_rows']:,} of {arm['num_rows']:,}"))
    return table(("far from training rows only", "score (95 % interval)", "rows"), rows, right=(2,), width=width)


def span(estimate: dict[str, float], show: Any) -> str:
    """'3 min (2 min to 5 min)' for an estimate with low and high."""
    value, low, high = (show(estimate[key]) for key in ("value", "low", "high"))
    return value if value == low == high else f"{value} ({low} to {high})"


def time_span(estimate: dict[str, float]) -> str:
    """An estimate in seconds."""
    return span(estimate, duration)


def usd_span(estimate: dict[str, float]) -> str:
    """An estimate in dollars."""
    return span(estimate, usd)


def search_table(searched: dict[str, Any]) -> str:
    """Rates tried, and what stopped each: of a search's record."""
    rows = [
        (
            f"{trial['learning_rate']:.3g}",
            f"{trial['num_tokens']:,}",
            "-" if trial["dev_loss"] is None else f"{trial['dev_loss']:.4f}",
            trial["stopped"],
        )
        for trial in searched["trials"]
    ]
    shown = table(("learning rate", "tokens", "dev loss", "stopped"), rows, right=(0, 1, 2))
    return f"{shown}\nnote: {searched['note']}" if searched["note"] else shown
