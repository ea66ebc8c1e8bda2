"""Rows side by side, what differs marked; secrets and personal data are masked."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from ..data.safety import redact
from .data_files import Case, Text, partner_place
from .text import Markup, esc, join

MAX_SHOWN = 600  # characters of a prompt or answer
CONTEXT = 200  # characters before the first difference of long texts
MAX_PIECES = 400
PIECE = re.compile(r"\w+|\s+|[^\w\s]")
LINE_END, SEEN_LINE_END = "\n", "↵\n"  # a line end that differs has to be seen


def case_card(case: Case) -> Markup:
    """A row beside its partner or repaired form, what differs marked."""
    name = Path(case.source).name or case.source
    here = f"{name}:{case.line}" if case.line else name
    is_repair = case.repair == "safe"
    why = f'<p class="why">{esc(redact(_why(case)))}</p>'
    if case.row is None:
        return Markup(f'<div class="row"><p class="at">{esc(here)}</p>{why}</div>')
    if case.partner is None:
        return Markup(f'<div class="row">{why}{_side(here, *_plain(case.row))}</div>')
    if is_repair:
        sides = (_side(f"{here}, as it came", *_plain(case.row)), _side("as it is kept", *_plain(case.partner)))
    else:
        left, right = _compared(case.row, case.partner)
        title = f"{here}, dropped" if case.repair == "drop" else here
        source, line = partner_place(case)
        beside = f"line {line}" if source == case.source else f"{Path(source).name}:{line}"
        sides = (_side(title, *left), _side(beside, *right))
    return Markup(f'<div class="row">{why}<div class="two">{"".join(sides)}</div></div>')


def labelled(title: str, text: Text) -> Markup:
    """A row under a title, secrets and personal data masked."""
    return _side(title, *_plain(text))


def _why(case: Case) -> str:
    """The evidence, without the prompt where that stands below it."""
    said, _, quoted = case.evidence.partition(": ")
    is_below = case.row and quoted and _one_line(case.row.prompt).startswith(_one_line(quoted).removesuffix("…"))
    return said if is_below else case.evidence


def _one_line(text: str) -> str:
    return " ".join(text.removeprefix("[user] ").split())


def _side(title: str, prompt: Markup, answer: Markup | None) -> Markup:
    second = "" if answer is None else f'<pre dir="auto" class="answer">{answer or "<i>(empty)</i>"}</pre>'
    first = f'<pre dir="auto">{prompt or "<i>(empty)</i>"}</pre>'
    return Markup(f'<div><p class="at">{esc(title)}</p>{first}{second}</div>')


def _plain(text: Text) -> tuple[Markup, Markup | None]:
    return cut(redact(text.prompt)), None if text.answer is None else cut(redact(text.answer))


def cut(text: str) -> Markup:
    """The beginning of a text, with its length said."""
    return esc(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} … ({len(text):,} characters)")


def _compared(a: Text, b: Text) -> tuple[tuple[Markup, Markup | None], tuple[Markup, Markup | None]]:
    """Both rows with what differs marked."""
    if a.answer is None or b.answer is None:
        return _plain(a), _plain(b)
    prompts = marked(redact(a.prompt), redact(b.prompt))
    answers = marked(redact(a.answer), redact(b.answer))
    return (prompts[0], answers[0]), (prompts[1], answers[1])


def marked(a: str, b: str) -> tuple[Markup, Markup]:
    """Two texts with the pieces that differ marked; of long ones the part where they begin to differ."""
    start = 0
    if max(len(a), len(b)) > MAX_SHOWN:
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        start = max(0, same - CONTEXT) if a != b else 0
    head = "… " if start else ""
    left, right = (PIECE.findall(text[start : start + MAX_SHOWN])[:MAX_PIECES] for text in (a, b))
    shown: tuple[list[str], list[str]] = ([], [])
    matcher = difflib.SequenceMatcher(a=left, b=right, autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        for side, pieces in ((shown[0], left[i:j]), (shown[1], right[k:m])):
            text = "".join(pieces)
            if tag != "equal" and text:
                seen = text.replace(" ", "␣") if text.isspace() else text
                side.append(f"<mark>{esc(seen.replace(LINE_END, SEEN_LINE_END))}</mark>")
            else:
                side.append(esc(text))
    ends = (" …" if len(text) > start + MAX_SHOWN else "" for text in (a, b))
    first, second = (join(head, *side, end) for side, end in zip(shown, ends, strict=True))
    return first, second
