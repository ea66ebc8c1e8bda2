"""Escaped text and tables. Everything that came from data, models or files passes through `esc`."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any, NewType

# HTML that is safe to put into the page: made here, or escaped.
Markup = NewType("Markup", str)

# Characters that no HTML file may hold: controls other than tab and newlines, and lone surrogates.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
MAX_CHARACTERS = 700


def esc(value: Any) -> Markup:
    """Text as HTML text; characters that HTML cannot hold become U+FFFD."""
    return Markup(html.escape(_FORBIDDEN.sub("\ufffd", str(value)), quote=True))


def clip(text: str, limit: int = MAX_CHARACTERS) -> str:
    """The start of a long text, with its length said."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text):,} characters)"


def join(*parts: str) -> Markup:
    """Markup put together."""
    return Markup("".join(parts))


def block(text: str) -> Markup:
    """Text of a row, line breaks kept."""
    return Markup(f'<pre dir="auto">{esc(clip(text)) or "<i>(empty)</i>"}</pre>')


def table(
    head: Sequence[str], rows: Sequence[Sequence[Markup]], *, numeric: Sequence[int] = (), wide: Sequence[int] = ()
) -> Markup:
    """A table whose rows become cards on a narrow screen.

    numeric: columns aligned right; wide: columns that take a card's whole width.
    """
    classes = [' class="n"' if i in numeric else ' class="wide"' if i in wide else "" for i in range(len(head))]
    top = "".join(f"<th{c} scope=col>{esc(h)}</th>" for h, c in zip(head, classes, strict=True))
    body = "".join(
        "<tr>"
        + "".join(
            f'<td{c} data-label="{esc(h)}"><span>{cell}</span></td>'
            for h, c, cell in zip(head, classes, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return Markup(f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>')


def section(title: str, *parts: str, lead: str = "") -> Markup:
    """A section with its heading; lead is one line of explanation, plain text."""
    intro = f'<p class="lead">{esc(lead)}</p>' if lead else ""
    return Markup(f"<section><h2>{esc(title)}</h2>{intro}{''.join(parts)}</section>")


def details(summary: Markup, *parts: str, is_open: bool = False) -> Markup:
    """A part that opens on a tap."""
    return Markup(f"<details{' open' if is_open else ''}><summary>{summary}</summary>{''.join(parts)}</details>")


def number(value: float | None, digits: int = 3) -> str:
    """A score or ratio; — where there is none."""
    return "—" if value is None else f"{value:.{digits}f}"
