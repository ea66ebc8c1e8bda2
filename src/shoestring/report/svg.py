"""Charts as inline SVG that keep their letter size on any screen: x in per cent of the width, y in pixels.

Curves are drawn in an inner, stretched picture whose strokes do not scale. Colours are the page's
variables, so one chart serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..records import ArmScore, Estimate
from .text import Markup, esc

ARM_ROW_PX = 46
PLOT_PX = 150
INSET = 9  # per cent of a plot's width, left, for the numbers of its axis
MAX_POINTS = 240
NUM_BINS = 28
BAR_ROW_PX, BAR_LEFT = 21, 44  # BAR_LEFT in per cent: where bars begin, names before


def framed(height_px: float, label: str, *parts: str) -> Markup:
    """A chart of this height, as wide as the page."""
    return Markup(
        f'<svg role="img" aria-label="{esc(label)}" width="100%" height="{height_px:g}" '
        f'class="chart">{"".join(parts)}</svg>'
    )


def text_at(x: str, y: float, text: str, anchor: str = "start", cls: str = "") -> str:
    """A line of text."""
    return f'<text x="{x}" y="{y:g}" text-anchor="{anchor}" class="{cls}">{esc(text)}</text>'


def _anchor(percent: float) -> str:
    return "start" if percent < 4 else "end" if percent > 96 else "middle"


def arm_chart(arms: Sequence[ArmScore], bar: float, chosen: str | None) -> Markup:
    """One row an arm: dot at the score, line over its 95 % interval; the bar as an upright stroke."""
    top, bottom = 24, 26
    height = top + ARM_ROW_PX * len(arms) + bottom
    low_edge = top + ARM_ROW_PX * len(arms)
    parts = []
    for tick in (0, 25, 50, 75, 100):
        parts.append(f'<line x1="{tick}%" x2="{tick}%" y1="{top}" y2="{low_edge}" class="grid"/>')
        parts.append(text_at(f"{tick}%", low_edge + 18, f"{tick / 100:g}", _anchor(tick), "tick"))
    parts.append(
        text_at(
            f"{bar:.2%}", top - 11, f"bar {bar:g}", "middle" if 0.08 < bar < 0.92 else _anchor(bar * 100), "barname"
        )
    )
    for index, arm in enumerate(arms):
        y = top + ARM_ROW_PX * index
        score = arm.score
        met = arm.meets(bar)
        kind = "tuned" if arm.kind == "finetune" else "base"
        state = f"{kind} {'met' if met else 'unmet'}{' chosen' if arm.arm == chosen else ''}"
        value = f"{score.value:.3f}  [{score.low:.3f}, {score.high:.3f}]"
        parts.append(text_at("0", y + 16, _short(arm.arm), "start", f"name {state}"))
        parts.append(text_at("100%", y + 16, value, "end", f"value {state}"))
        line_y = y + 30
        parts.append(f'<line x1="0" x2="100%" y1="{line_y}" y2="{line_y}" class="track"/>')
        # Only where the dots are: a line through the whole chart would cross the numbers on a phone.
        parts.append(f'<line x1="{bar:.2%}" x2="{bar:.2%}" y1="{line_y - 8}" y2="{line_y + 8}" class="bar solid"/>')
        parts.append(
            f'<line x1="{score.low:.2%}" x2="{score.high:.2%}" y1="{line_y}" y2="{line_y}" class="interval {state}"/>'
        )
        parts.append(f'<circle cx="{score.value:.2%}" cy="{line_y}" r="6" class="dot {state}"/>')
    return framed(height, f"Score of {len(arms)} arms against the bar of {bar:g}", *parts)


def score_bar(score: Estimate, bar: float) -> Markup:
    """A score's interval and dot from 0 to 1 on one line, the bar as an upright stroke; filled where it is met."""
    state = "met" if score.low >= bar else "unmet"
    parts = [
        '<line x1="0" x2="100%" y1="9" y2="9" class="track"/>',
        f'<line x1="{bar:.2%}" x2="{bar:.2%}" y1="1" y2="17" class="bar solid"/>',
        f'<line x1="{score.low:.2%}" x2="{score.high:.2%}" y1="9" y2="9" class="interval tuned"/>',
        f'<circle cx="{score.value:.2%}" cy="9" r="5" class="dot tuned {state}"/>',
    ]
    label = f"{score.value:.3f}, interval {score.low:.3f} to {score.high:.3f}, bar {bar:g}"
    return Markup(f'<span class="ratio">{framed(18, label, *parts)}</span>')


def _short(name: str, limit: int = 34) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one curve."""

    name: str
    points: Sequence[tuple[float, float]]
    cls: str  # a, b: which colour
    dots: bool = False


def thin(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most limit points: means of equal runs, so that a noisy curve keeps its shape."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / limit)
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def curve_chart(
    title: str,
    series: Sequence[Series],
    *,
    y_range: tuple[float, float] | None = None,
    level: tuple[str, float] | None = None,
    mark: tuple[str, float] | None = None,
) -> Markup:
    """Curves over steps; level: a named horizontal line; mark: a named step."""
    finite = [(x, y) for s in series for x, y in s.points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return Markup(f'<p class="none">{esc(title)}: nothing recorded.</p>')
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    x_low, x_high = min(0.0, *xs), max(xs)
    y_low, y_high = y_range or nice_range([*ys, *([level[1]] if level else [])])
    top, bottom = 34, 22
    height = top + PLOT_PX + bottom

    def at(x: float, y: float) -> tuple[float, float]:
        x_frac = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return INSET + (100 - INSET) * x_frac, top + PLOT_PX * (1 - (y - y_low) / (y_high - y_low))

    parts = [text_at("0", 14, title, "start", "title")]
    for tick in ticks(y_low, y_high):
        y_px = at(0, tick)[1]
        parts.append(f'<line x1="{INSET}%" x2="100%" y1="{y_px:.1f}" y2="{y_px:.1f}" class="grid"/>')
        parts.append(text_at("0", y_px + 4, f"{tick:g}", "start", "tick"))
    if level:
        y_px = at(0, level[1])[1]
        parts.append(f'<line x1="{INSET}%" x2="100%" y1="{y_px:.1f}" y2="{y_px:.1f}" class="bar"/>')
        is_left = mark is not None and at(mark[1], y_low)[0] > 50  # away from the mark's name
        x_text, anchor = (f"{INSET}%", "start") if is_left else ("100%", "end")
        parts.append(text_at(x_text, y_px - 5, level[0], anchor, "barname"))
    if mark:
        x = at(mark[1], y_low)[0]
        parts.append(f'<line x1="{x:.2f}%" x2="{x:.2f}%" y1="{top}" y2="{top + PLOT_PX}" class="mark"/>')
        parts.append(text_at(f"{x:.2f}%", top - 4, mark[0], _anchor(x), "tick"))
    for one in series:
        points = [at(x, y) for x, y in thin(one.points) if math.isfinite(x) and math.isfinite(y)]
        path = " ".join(f"{x:.2f},{(y - top) / PLOT_PX * 100:.2f}" for x, y in points)
        parts.append(
            f'<svg x="0" y="{top}" width="100%" height="{PLOT_PX}" viewBox="0 0 100 100" preserveAspectRatio="none" '
            f'overflow="visible"><polyline points="{path}" vector-effect="non-scaling-stroke" '
            f'class="curve {one.cls}"/></svg>'
        )
        if one.dots:
            parts += [f'<circle cx="{x:.2f}%" cy="{y:.1f}" r="3.5" class="point {one.cls}"/>' for x, y in points]
    base = top + PLOT_PX + 16
    parts.append(text_at(f"{INSET}%", base, f"step {x_low:g}", "start", "tick"))
    parts.append(text_at("100%", base, f"{x_high:g}", "end", "tick"))
    if len(series) > 1:
        keys = "".join(
            f'<tspan class="{s.cls}" dx="{10 if i else 0}">— {esc(s.name)}</tspan>' for i, s in enumerate(series)
        )
        parts.append(f'<text x="100%" y="14" text-anchor="end" class="key">{keys}</text>')
    return framed(height, title, *parts)


def nice_range(values: Sequence[float]) -> tuple[float, float]:
    """A range that holds the values, from zero where they are near it."""
    low, high = min(values), max(values)
    if low >= 0 and low < 0.6 * high:
        low = 0.0
    if high == low:
        high, low = high + 0.5, low - 0.5
    room = 0.06 * (high - low)
    return (low if low == 0.0 else low - room), high + room


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers between low and high."""
    size = 10 ** math.floor(math.log10((high - low) / about))
    step = min((size * m for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs((high - low) / s - about))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def share_bar(parts: Sequence[tuple[str, int, str]]) -> Markup:
    """One bar split into (name, count, class) parts."""
    total = sum(n for _, n, _ in parts) or 1
    drawn, left = [], 0.0
    for name, n, cls in parts:
        width = 100 * n / total
        if n:
            drawn.append(
                f'<rect x="{left:.3f}%" y="0" width="{width:.3f}%" height="22" class="share {cls}">'
                f"<title>{esc(name)}: {n:,}</title></rect>"
            )
        left += width
    return framed(22, ", ".join(f"{name} {n}" for name, n, _ in parts), *drawn)


def histogram(title: str, sides: Sequence[Sequence[int]], classes: Sequence[str]) -> Markup:
    """How many values fall into equal bins, sides stacked; the last bin holds all beyond the 99th percentile."""
    values = sorted(value for side in sides for value in side)
    if not values:
        return Markup(f'<p class="none">{esc(title)}: no rows.</p>')
    top_value = values[min(len(values) - 1, int(0.99 * len(values)))]
    size = max(1, math.ceil((top_value + 1) / NUM_BINS))
    num_bins = top_value // size + 1
    stacks = [[0] * len(sides) for _ in range(num_bins)]
    for which, side in enumerate(sides):
        for value in side:
            stacks[min(value // size, num_bins - 1)][which] += 1
    highest = max(map(sum, stacks))
    top, height_px = 34, 96
    parts = [text_at("0", 14, title, "start", "title")]
    parts.append(text_at("100%", 14, f"median {values[len(values) // 2]:,}, longest {values[-1]:,}", "end", "value"))
    for index, stack in enumerate(stacks):
        y = float(top + height_px)
        for n, cls in zip(stack, classes, strict=True):
            tall = height_px * n / highest
            y -= tall
            if n:
                parts.append(
                    f'<rect x="{100 * index / num_bins:.2f}%" y="{y:.1f}" width="{92 / num_bins:.2f}%" '
                    f'height="{max(tall, 0.8):.1f}" class="share {cls}"/>'
                )
    base = top + height_px
    parts.append(f'<line x1="0" x2="100%" y1="{base}" y2="{base}" class="grid strong"/>')
    parts.append(text_at("0", base + 16, "0", "start", "tick"))
    more = "" if values[-1] < num_bins * size else " and more"
    parts.append(text_at("100%", base + 16, f"{num_bins * size:,}{more}", "end", "tick"))
    return framed(base + 24, title, *parts)


def bars(title: str, rows: Sequence[tuple[str, Sequence[tuple[int, str]], str]]) -> Markup:
    """One bar a name, its (count, class) parts end to end, a text beside it."""
    longest = max((sum(n for n, _ in parts) for _, parts, _ in rows), default=0) or 1
    drawn = []
    for index, (name, parts, beside) in enumerate(rows):
        y, left = BAR_ROW_PX * index, float(BAR_LEFT)
        # An svg of its own cuts a long name where the bars begin, on a phone and on a wide screen.
        drawn.append(
            f'<svg x="0" y="{y}" width="{BAR_LEFT - 1}%" height="{BAR_ROW_PX}" overflow="hidden">'
            f"{text_at('0', 14, name, 'start', 'barlabel')}</svg>"
        )
        for n, cls in parts:
            width = (90 - BAR_LEFT) * n / longest
            if n:
                drawn.append(
                    f'<rect x="{left:.2f}%" y="{y + 4}" width="{width:.2f}%" height="12" class="share {cls}"/>'
                )
            left += width
        drawn.append(text_at("100%", y + 14, beside, "end", "value"))
    return framed(BAR_ROW_PX * len(rows) + 4, title, *drawn)


def ratio_bar(predicted: Estimate, actual: float | None, reach: float = 4.0) -> Markup:
    """Predicted range as a band and the actual as a dot, both as ratios to the expected value, 1/reach to reach."""
    if predicted.value <= 0:
        return Markup("")

    def x(value: float) -> float:
        ratio = max(value, 1e-12) / predicted.value
        return 50 + 50 * max(-1.0, min(1.0, math.log(ratio) / math.log(reach)))

    low, high = x(predicted.low), x(predicted.high)
    inside = actual is not None and predicted.low <= actual <= predicted.high
    parts = [
        '<line x1="0" x2="100%" y1="9" y2="9" class="track"/>',
        f'<rect x="{low:.1f}%" y="5" width="{max(high - low, 1):.1f}%" height="8" rx="4" class="band"/>',
        '<line x1="50%" x2="50%" y1="2" y2="16" class="grid strong"/>',
    ]
    if actual is not None:
        parts.append(f'<circle cx="{x(actual):.1f}%" cy="9" r="5" class="dot {"inside" if inside else "outside"}"/>')
    label = "no actual yet" if actual is None else f"actual {actual / predicted.value:.2f} times the expected value"
    return Markup(f'<span class="ratio">{framed(18, label, *parts)}</span>')
