"""The verdict of a run, or how far it is: first on the report and on the page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ..records import ArmScore
from ..units import duration, usd
from .folder import RunFiles, RungFiles, next_step
from .text import Markup, esc, join, number


def verdict(run: RunFiles) -> Markup:
    """What to use and why; before there is a verdict what is done and what comes."""
    said = run.verdict
    arms = {arm.arm: arm for arm in run.arms}
    best = max(run.arms, key=lambda arm: arm.score.value, default=None)
    if said is None:
        return _unfinished(run, best)
    chosen = arms.get(str(said.get("arm"))) or best
    if said.get("met"):
        state, cls, head = "Bar met", "met", f"Use {said.get('arm')}"
    else:
        state, cls = "Bar not met", "unmet"
        head = "No arm met the bar"
        if best:
            head += f"; the best was {best.arm}" if best.score.value > 0 else "; none scored above 0"
    reason = str(said.get("reason", ""))
    follow = next_step(said, run.folder.resolve(), run.exported)
    return join(
        f'<div class="verdict {cls}"><p class="state">{state}</p><h2>{esc(head)}</h2>',
        f"<p>{esc(reason[:1].upper() + reason[1:])}</p>",
        _evidence((said.get("evidence") or {}).get("lines", ())),
        _figures(run, chosen),
        f'<p class="next"><b>Next:</b> {esc(follow)}</p>' if follow else "",
        "</div>",
    )


def _evidence(lines: Sequence[str]) -> Markup:
    """What the arms say of each other, a line each."""
    told = join(*(f"<li>{esc(line[:1].upper() + line[1:])}</li>" for line in lines))
    return join("<ul>", told, "</ul>") if lines else join()


def _unfinished(run: RunFiles, best: ArmScore | None) -> Markup:
    stages = [("curate", run.curated is not None), ("decide", run.decided is not None), ("plan", run.plan is not None)]
    rungs = [r for r in run.plan.rungs if r.verdict != "does_not_fit"] if run.plan else []
    by_model = {r.model: r for r in run.rungs}
    for rung in rungs:
        files = by_model.get(rung.model, RungFiles(rung.model))
        steps = (
            f" ({files.history[-1]['step']:g} of about {rung.num_steps:,} steps)"
            if files.history and not files.train
            else ""
        )
        stages.append((f"train {rung.model}{steps}", files.train is not None))
        stages.append((f"evaluate {rung.model}", files.arm is not None))
    stages.append(("verdict", False))
    items = "".join(f'<li class="{"done" if done else "todo"}">{esc(name)}</li>' for name, done in stages)
    first = next(name for name, done in stages if not done)
    return join(
        '<div class="verdict"><p class="state">Not finished</p>'
        f"<h2>No verdict yet; next comes: {esc(first)}</h2>"
        "<p>This page shows what is there. Where nothing works on it any more, "
        f"<code>shoestring run {esc(shlex.quote(str(run.folder.resolve())))}</code> goes on; "
        "finished stages are kept.</p>",
        f'<ol class="stages">{items}</ol>',
        f'<p class="note">Best so far: {esc(best.arm)}.</p>' if best and best.score.value > 0 else "",
        _figures(run, best),
        "</div>",
    )


def _figures(run: RunFiles, arm: ArmScore | None) -> Markup:
    figures: list[tuple[str, str, str]] = []
    if arm:
        low_high = f"95\u00a0%: {arm.score.low:.3f}–{arm.score.high:.3f}"
        figures.append((arm.metric.replace("_", " "), number(arm.score.value), low_high))
    if run.config:
        figures.append(("bar", f"{run.config.task.bar:g}", "for the lower end"))
    if run.ledger:
        budget = f"of a budget of {usd(run.config.budget_usd)}" if run.config else ""
        figures.append(("spent", usd(run.spent_usd), budget))
        figures.append(("time", duration(run.spent_s), "all stages"))
    if arm:
        figures.append(("held-out rows", f"{arm.num_rows:,}", f"{arm.interval.capitalize()} interval"))
    cells = "".join(f"<div><dt>{esc(n)}</dt><dd>{esc(v)}<small>{esc(s)}</small></dd></div>" for n, v, s in figures)
    return join(f'<dl class="figures">{cells}</dl>') if figures else Markup("")
