"""The climb: what each rung was predicted to score, what it scored, and what was done with it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

from ..records import ArmScore
from ..units import usd
from .folder import RunFiles
from .svg import INSET, framed, text_at
from .text import Markup, details, esc, join, section, table

TOP_PX, PLOT_PX = 20, 210

WORDS = {
    "skipped": "not trained",
    "rejected": "turned away",
    "missed": "missed the bar",
    "passed": "passed",
}


def ladder(run: RunFiles) -> Markup:
    """A row a rung that the climb came to; nothing where there was neither a curve nor a rung turned away."""
    steps = (run.verdict or {}).get("steps") or []
    curves = {rung.model: rung.curve for rung in run.rungs if rung.curve}
    no_worse = (run.verdict or {}).get("no_worse") or {}
    if not curves and not no_worse and all(step["did"] in ("missed", "passed") for step in steps):
        return Markup("")
    arms = {rung.model: rung.arm for rung in run.rungs}
    done = {step["model"]: step for step in steps}
    rows = []
    for model in dict.fromkeys([*done, *curves]):
        curve, arm, step = curves.get(model), arms.get(model), done.get(model)
        band = curve["forecast"]["measured"] if curve else None
        outcome = WORDS.get(step["did"], step["did"]) + f": {step['why']}" if step else "not decided yet"
        if model in no_worse:
            outcome += f"; {no_worse[model]}"
        rows.append(
            [
                esc(model),
                esc(", ".join(f"{p['score']:.3f} on {p['num_rows']:,}" for p in curve["points"]) if curve else "–"),
                esc(f"{band['value']:.3f} ({band['low']:.3f} to {band['high']:.3f})" if band else "–"),
                esc(f"{arm.score.value:.3f}" if arm else "–"),
                esc(outcome),
            ]
        )
    head = ["rung", "dev scores of parts of the rows", "predicted (95\u00a0% band)", "scored", "what was done"]
    note = (
        "Parts of the training rows are trained on first, where that is cheap beside training on all; a rung whose "
        "predicted score gives it hardly a chance is not trained."
    )
    return section("The climb", table(head, rows, wide=(4,)), lead=note)


def price_chart(run: RunFiles) -> Markup:
    """Score of each arm over what it cost, training included; the Pareto line, and the bar as a line."""
    arms = run.arms
    if len(arms) < 2 or not any(arm.cost_usd > 0 for arm in arms):
        return Markup("")
    bar = run.config.task.bar if run.config else None
    line = {arm.arm for arm in pareto(arms)}
    order = sorted(arms, key=lambda arm: (arm.cost_usd, arm.arm))
    rows = [
        [
            esc(number),
            esc(arm.arm),
            esc(usd(arm.cost_usd)),
            esc(f"{arm.score.value:.3f}  ({arm.score.low:.3f} to {arm.score.high:.3f})"),
            esc("yes" if arm.arm in line else "no: one that costs less scores as high"),
        ]
        for number, arm in enumerate(order, 1)
    ]
    head = ["", "arm", "dollars", "score (95\u00a0% interval)", "on the line"]
    lead = (
        "What each arm cost to train and to score, and what it scored; up and to the left is better. The line joins "
        "the arms that no cheaper one equals."
    )
    names = join(*(f"<span>{number} {esc(arm.arm)}</span>" for number, arm in enumerate(order, 1)))
    key = join('<div class="key">', names, "</div>")
    numbers = details(esc("In numbers"), table(head, rows, numeric=(2,)))
    return section("Score against dollars", _scatter(order, line, bar), key, numbers, lead=lead)


def pareto(arms: Sequence[ArmScore]) -> list[ArmScore]:
    """The arms that score above every cheaper one, cheapest first."""
    best: list[ArmScore] = []
    for arm in sorted(arms, key=lambda arm: (arm.cost_usd, -arm.score.value)):
        if not best or arm.score.value > best[-1].score.value:
            best.append(arm)
    return best


def _scatter(order: Sequence[ArmScore], line: Collection[str], bar: float | None) -> Markup:
    paid = [arm.cost_usd for arm in order if arm.cost_usd > 0]
    low, high = min(paid) / 2, max(paid) * 2

    def x(arm: ArmScore) -> float:
        frac = math.log(max(arm.cost_usd, low) / low) / math.log(high / low)
        return INSET + (98 - INSET) * frac

    def y(score: float) -> float:
        return TOP_PX + PLOT_PX * (1 - min(1.0, max(0.0, score)))

    base = TOP_PX + PLOT_PX
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line x1="{INSET}%" x2="100%" y1="{y(tick):g}" y2="{y(tick):g}" class="grid"/>')
        parts.append(text_at("0", y(tick) + 4, f"{tick:g}", "start", "tick"))
    if bar is not None:
        parts.append(f'<line x1="{INSET}%" x2="100%" y1="{y(bar):g}" y2="{y(bar):g}" class="bar"/>')
        parts.append(text_at("100%", y(bar) - 5, f"bar {bar:g}", "end", "barname"))
    steps = [arm for arm in order if arm.arm in line]
    for left, right in pairwise(steps):  # a step: the cheaper one until the dearer one is paid for
        level = y(left.score.value)
        parts.append(f'<line x1="{x(left):.2f}%" x2="{x(right):.2f}%" y1="{level:g}" y2="{level:g}" class="pareto"/>')
        parts.append(
            f'<line x1="{x(right):.2f}%" x2="{x(right):.2f}%" y1="{level:g}" y2="{y(right.score.value):g}" '
            'class="pareto"/>'
        )
    for number, arm in enumerate(order, 1):
        at, state = (
            x(arm),
            f"{'tuned' if arm.kind == 'finetune' else 'base'} {'met' if arm.meets(bar or 0) else 'unmet'}",
        )
        parts.append(
            f'<line x1="{at:.2f}%" x2="{at:.2f}%" y1="{y(arm.score.low):g}" y2="{y(arm.score.high):g}" '
            f'class="interval {state}"/><circle cx="{at:.2f}%" cy="{y(arm.score.value):g}" r="6" class="dot {state}">'
            f"<title>{esc(arm.arm)}</title></circle>"
        )
        parts.append(text_at(f"{at + 1:.2f}%", y(arm.score.value) - 8, str(number), "start", "value"))
    for end, anchor in ((low, "start"), (high, "end")):
        parts.append(text_at(f"{INSET if end == low else 100}%", base + 18, usd(end), anchor, "tick"))
    label = "Score over dollars: " + "; ".join(f"{n} {arm.arm}" for n, arm in enumerate(order, 1))
    return framed(base + 26, label, *parts)
