"""The report's section on money: the options worth choosing among, and the bill over the months, with its plot."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..plan.figures import (
    about,
    age_text,
    bill_in_words,
    count_text,
    discount_text,
    hours_text,
    price_text,
    risk_text,
    usd_text,
    where_text,
)
from ..units import gib, usd
from .svg import framed, text_at, ticks
from .text import Markup, details, esc, section, table

BILL_PX, OPTIONS_PX, TOP_PX, BOTTOM_PX = 280, 190, 30, 44
LEFT, RIGHT = 12.0, 99.0  # per cent of the width, for the plot
LINE_PX, NUMBER_PX, NARROWEST_PX = 17, 44, 300  # of a number beside its axis; of the plot on a phone
OWN_COLOURS, API_COLOURS = ("l0", "l1", "l2"), ("l3", "l4", "l5")
MOST_OUT = 200  # rows of what is out


@dataclass(frozen=True, slots=True)
class Line:
    """One curve of the plot: (requests a month, dollars)."""

    name: str
    cls: str
    points: Sequence[tuple[float, float]]


def costs(answer: Mapping[str, Any]) -> Markup:
    """The section of choice.json. Raises: KeyError, TypeError where it is not as this version writes it."""
    picked = answer["pick"] is not None
    parts = [_options(answer), option_chart(answer["options"]), _spot(answer.get("spot")), _out(answer)]
    if answer["total"]:
        parts += [_bill(answer["total"])]
    notes = "".join(f'<p class="note">{esc(note)}</p>' for note in answer["notes"])
    said = f"Take {answer['why']}." if picked else f"{str(answer['why'])[:1].upper()}{str(answer['why'])[1:]}."
    return section("Where to train, and the bill", *parts, notes, lead=f"{said} Prices as of {answer['today']}.")


def _options(answer: Mapping[str, Any]) -> Markup:
    listed = [o for o in answer["options"] if o["is_listed"]]
    if not listed:
        return Markup("")
    several = len({o["model"] for o in listed}) > 1
    risk = next((o["risk"]["unit"] for o in listed if o["risk"]["value"] is not None), "late")
    rows = []
    for o in listed:
        trains = f"{o['method']}, {o['precision']}"
        where = esc(where_text(o))
        peak = o.get("peak_bytes")
        rows.append(
            [
                Markup(f"<b>{where} · take this</b>" if o["is_pick"] else where),
                esc(usd_text(o["usd"])),
                esc(hours_text(o["hours"])),
                esc(risk_text(o["risk"])),
                esc(f"{o['model']}: {trains}" if several else trains),
                esc(f"{gib(peak['high'])} of {gib(o['device_bytes']['value'])}" if peak else "—"),
                esc(f"{price_text(o['price'])}, {age_text(o['price'])}"),
            ]
        )
    head = [
        "where",
        "dollars",
        "time",
        "late" if "late" in risk else "interrupted",
        "trains",
        "memory",
        "price and its age",
    ]
    return table(head, rows, numeric=(3,))


def _out(answer: Mapping[str, Any]) -> Markup:
    out = answer["discarded"]
    if not out["rows"]:
        return Markup("")
    counts = ", ".join(f"{f['value']} {code.replace('_', ' ')}" for code, f in out["by_reason"].items())
    rows = [
        [
            esc(one["code"].replace("_", " ")),
            esc(
                " ".join(p for p in (one.get("gpu", ""), "spot" if one["is_spot"] else "", one.get("seller", "")) if p)
            ),
            esc(f"{one['model']} {one.get('method', '')}".strip()),
            esc(one["reason"]),
        ]
        for one in out["rows"][:MOST_OUT]
    ]
    summary = esc(f"{out['num']['value']} options are out: {counts}")
    return details(summary, table(["out because", "where", "what", "reason"], rows, wide=(3,)))


def _spot(spot: Mapping[str, Any] | None) -> Markup:
    """Spot machines as they were simulated: how long training takes where they are taken away, and what it costs."""
    if not spot or not spot["options"]:
        return Markup("")
    is_due = any("done_by_deadline" in one for one in spot["options"])
    rows = []
    for one in spot["options"]:
        finish, policy = one["finish_h"], one.get("policy")
        row = [
            esc(one["words"]),
            esc(discount_text(one.get("discount_frac"))),
            *(esc(_ended(finish.get(key, finish["value"]))) for key in ("value", "high")),
            esc("—" if one["usd"]["value"] is None else usd_text(one["usd"])),
        ]
        if is_due:
            row.append(esc(f"{one['done_by_deadline']['value']:.0%}"))
            row.append(esc(f"{usd_text(policy['usd'])}, late {risk_text(policy['late'])}" if policy else "—"))
        rows.append(row)
    head = ["spot machine", "discount", "half done in", "nine in ten in", "dollars"]
    head += ["done in time", "switching to on demand in time"] if is_due else []
    known = "".join(
        f'<p class="note">{esc(one["words"])}: {esc(one["prior"]["source"])}</p>' for one in spot["hazards"]
    )
    said = f"Spot machines may be taken away: {spot['simulated']['value']:,} trainings each, simulated"
    return details(esc(said), table(head, rows), known, is_open=True)


def _ended(hours: float | None) -> str:
    return "never" if hours is None else about(hours)


def _bill(total: Mapping[str, Any]) -> Markup:
    traffic = total["traffic"]
    asked, months = traffic["requests_per_month"]["value"], traffic["months"]["value"]
    heading = f"{months:g} months at {asked:,.0f} requests a month"
    once = "; ".join(f"{p['part']} {usd(p['usd']['value'])}" for p in total["once"] if p["usd"]["value"])
    evens = {e["against"]: e["requests_per_month"] for e in total["break_even"]}
    rows = [
        [esc(r["name"]), esc("fine-tuned"), esc(usd_text(r["usd"])), esc(usd_text(r["usd_per_month"])), esc("—")]
        for r in total["own"]
        if r["is_listed"]
    ]
    rows += [
        [esc(r["name"]), esc("prompted"), esc(usd_text(r["usd"])), esc(usd_text(r["usd_per_month"])), esc(even)]
        for r in total["apis"]
        for even in [count_text(evens[r["name"]])]
    ]
    lines = [
        Line(
            curve["name"],
            cls,
            [(p["requests_per_month"]["value"], p["usd"]["value"]) for p in curve["points"]],
        )
        for curve, cls in _coloured(total["curves"])
    ]
    paid = f"Paid once: {usd_text(total['once_usd'])} ({once})."
    return Markup(
        f"<h3>{esc(heading)}</h3><p>{esc(bill_in_words(total))}</p><p>{esc(paid)}</p>"
        f"{bill_chart(lines, asked, f'Dollars over {months:g} months')}"
        f"{table(['answers from', 'model', 'total', 'a month', 'training pays from, a month'], rows)}"
        '<p class="note">Dollars alone: which of them answers better is measured by decide and run.</p>'
    )


def _coloured(curves: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str]]:
    colours = {False: iter(OWN_COLOURS), True: iter(API_COLOURS)}
    found = ((curve, next(colours[curve["kind"] == "api"], None)) for curve in curves)
    return [(curve, cls) for curve, cls in found if cls is not None]


def bill_chart(lines: Sequence[Line], asked: float, title: str) -> Markup:
    """Total dollars over requests a month, both on logarithmic axes; the traffic asked for as an upright stroke."""
    points = [(x, y) for line in lines for x, y in line.points if x > 0 and y > 0]
    if not points:
        return Markup("")
    plane = Plane(_ends([x for x, _ in points]), _ends([y for _, y in points], whole=True), BILL_PX)
    parts = plane.frame(title, "requests a month")
    x = plane.x(asked)
    parts.append(f'<line x1="{x:.2f}%" x2="{x:.2f}%" y1="{TOP_PX}" y2="{plane.base_px}" class="mark"/>')
    parts.append(text_at(f"{x:.2f}%", TOP_PX - 5, "your traffic", "middle", "tick"))
    for line in lines:
        drawn = [(plane.x(px), plane.y(py)) for px, py in line.points if px > 0 and py > 0]
        path = " ".join(f"{px:.2f},{(py - TOP_PX) / BILL_PX * 100:.2f}" for px, py in drawn)
        parts.append(
            f'<svg x="0" y="{TOP_PX}" width="100%" height="{BILL_PX}" viewBox="0 0 100 100" preserveAspectRatio="none" '
            f'overflow="visible"><polyline points="{path}" vector-effect="non-scaling-stroke" '
            f'class="curve {line.cls}"/></svg>'
        )
    key = "".join(f'<span><i class="swatch {line.cls}"></i>{esc(line.name)}</span>' for line in lines)
    return Markup(f'{framed(plane.base_px + BOTTOM_PX, title, *parts)}<div class="key">{key}</div>')


def option_chart(options: Sequence[Mapping[str, Any]]) -> Markup:
    """Every option as a dot, dollars over hours, both logarithmic; the Pareto list and the pick stand out."""
    placed = [o for o in options if o["hours"]["value"] and o["usd"]["value"]]
    if len(placed) < 2:
        return Markup("")
    hours, dollars = (_padded(_ends([o[key]["value"] for o in placed])) for key in ("hours", "usd"))
    plane = Plane(hours, dollars, OPTIONS_PX)
    parts = plane.frame("Dollars over hours, each option a dot", "hours from order to result")
    for o in sorted(placed, key=lambda o: (o["is_pick"], o["is_pareto"])):
        x, y = plane.x(o["hours"]["value"]), plane.y(o["usd"]["value"])
        cls, radius = ("pick", 7) if o["is_pick"] else ("best", 5) if o["is_pareto"] else ("other", 2.5)
        parts.append(f'<circle cx="{x:.2f}%" cy="{y:.1f}" r="{radius}" class="option {cls}"/>')
    return framed(plane.base_px + BOTTOM_PX, "Dollars over hours of every option", *parts)


@dataclass(frozen=True, slots=True)
class Plane:
    """A plot of dollars over something, both axes logarithmic; their ends are given as powers of ten."""

    x_ends: tuple[float, float]
    y_ends: tuple[float, float]
    height_px: int

    @property
    def base_px(self) -> int:
        """Where the lower axis lies."""
        return TOP_PX + self.height_px

    def x(self, value: float) -> float:
        """Per cent of the width."""
        return LEFT + (RIGHT - LEFT) * (math.log10(value) - self.x_ends[0]) / (self.x_ends[1] - self.x_ends[0])

    def y(self, dollars: float) -> float:
        """Pixels from the top."""
        share = (math.log10(max(dollars, 1e-9)) - self.y_ends[0]) / (self.y_ends[1] - self.y_ends[0])
        return TOP_PX + self.height_px * (1 - share)

    def frame(self, title: str, x_name: str) -> list[str]:
        """Title, grid and numbers."""
        parts = [text_at("0", 14, title, "start", "title")]
        for value in log_ticks(*self.y_ends, LINE_PX / self.height_px):
            y = self.y(value)
            parts.append(f'<line x1="{LEFT}%" x2="{RIGHT}%" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
            parts.append(text_at("0", y + 4, short(value, "$"), "start", "tick"))
        for value in log_ticks(*self.x_ends, NUMBER_PX / NARROWEST_PX):
            x = self.x(value)
            parts.append(f'<line x1="{x:.2f}%" x2="{x:.2f}%" y1="{TOP_PX}" y2="{self.base_px}" class="grid"/>')
            parts.append(text_at(f"{x:.2f}%", self.base_px + 16, short(value), "end" if x > 96 else "middle", "tick"))
        return [*parts, text_at(f"{RIGHT}%", self.base_px + 34, x_name, "end", "tick")]


def _ends(values: Sequence[float], whole: bool = False) -> tuple[float, float]:
    """Powers of ten that hold the values, to whole decades where asked."""
    low, high = math.log10(min(values)), math.log10(max(values))
    if whole:
        low, high = math.floor(low), math.ceil(high)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _padded(ends: tuple[float, float]) -> tuple[float, float]:
    """A little more at both ends, so that no dot lies on the frame."""
    pad = 0.04 * (ends[1] - ends[0])
    return ends[0] - pad, ends[1] + pad


def log_ticks(low: float, high: float, apart: float) -> list[float]:
    """Values to name between two powers of ten, no two nearer than this share of the axis.

    1, 2 and 5 of each decade, else each decade, else every second one and so on; round numbers on a short axis.
    """
    decades = range(math.floor(low), math.ceil(high) + 1)
    for every, digits in [(1, (1, 2, 5)), *((n, (1,)) for n in range(1, len(decades) + 1))]:
        powers = [math.log10(m) + power for power in decades if power % every == 0 for m in digits]
        powers = [power for power in powers if low - 1e-9 <= power <= high + 1e-9]
        if all(b - a >= apart * (high - low) for a, b in itertools.pairwise(powers)):
            break
    if len(powers) < 2:
        return ticks(10**low, 10**high, 3)
    return [float(f"{10**power:.3g}") for power in powers]


def short(value: float, unit: str = "") -> str:
    """A round number in few signs, never as a power: 20k, 0.00005."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{unit}{value / size:g}{letter}"
    return unit + (f"{value:g}" if value >= 1e-4 else f"{value:.12f}".rstrip("0"))


def sources(answer: Mapping[str, Any]) -> Markup:
    """Where each price of the listed options comes from, and how old it is."""
    rows = [
        [
            esc(where_text(o)),
            esc(price_text(o["price"])),
            esc(o["price"]["observed_at"] or "undated"),
            esc(age_text(o["price"])),
            esc(o["price"]["source"]),
        ]
        for o in answer["options"]
        if o["is_listed"]
    ]
    if not rows:
        return Markup("")
    return details(
        esc(f"Where each price comes from ({len(rows)})"),
        table(["where", "price", "seen on", "age", "source"], rows, numeric=(1, 3), wide=(4,)),
    )
