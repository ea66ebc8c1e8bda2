"""The report of a run: verdict first, then scores, curves, data, predictions, failures, settings.

Reads the files of the run folder only, and renders whatever is there: a run killed half-way gets a
report that says what is not done yet.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..decide.passages import told as found_facts
from ..records import ArmScore
from ..train.preferred import told
from ..units import duration, usd
from . import parts
from .data import data
from .folder import RunFiles, RungFiles, next_step, read_run
from .judge import judges
from .ladder import ladder
from .launched import launched
from .style import STYLE
from .svg import Series, arm_chart, curve_chart
from .text import Markup, details, esc, join, number, section, table

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render_report(run_folder: Path) -> str:
    """The whole page for runs/NAME, as one HTML text."""
    run = read_run(Path(run_folder))
    name = run.config.name if run.config else run.folder.name
    body = join(
        _header(run, name),
        _verdict(run),
        _problems(run),
        _scores(run),
        judges(run),
        _curves(run),
        ladder(run),
        parts.searches(run),
        data(run),
        run.costs or "",
        parts.predicted(run),
        launched(run.folder),
        parts.forgotten(run),
        parts.failures(run),
        parts.settings(run),
        parts.environment(run),
    )
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{esc(name)}: Shoestring report</title><style>{STYLE}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n"
    )


def _header(run: RunFiles, name: str) -> Markup:
    task = run.config.task if run.config else None
    what = f"{task.kind}, scored by {task.metric.replace('_', ' ')}" if task else "run file not readable"
    when = str(run.meta.get("updated_at", ""))[:10]
    return join(
        f'<p class="over">Shoestring report{esc(f" · {when}" if when else "")} · {esc(what)}</p><h1>{esc(name)}</h1>'
    )


def _verdict(run: RunFiles) -> Markup:
    verdict = run.verdict
    arms = {arm.arm: arm for arm in run.arms}
    best = max(run.arms, key=lambda arm: arm.score.value, default=None)
    if verdict is None:
        return _unfinished(run, best)
    chosen = arms.get(str(verdict.get("arm"))) or best
    if verdict.get("met"):
        state, cls, head = "Bar met", "met", f"Use {verdict.get('arm')}"
    else:
        state, cls = "Bar not met", "unmet"
        head = "No arm met the bar"
        if best:
            head += f"; the best was {best.arm}" if best.score.value > 0 else "; none scored above 0"
    reason = str(verdict.get("reason", ""))
    follow = next_step(verdict, run.folder.resolve(), run.exported)
    return join(
        f'<div class="verdict {cls}"><p class="state">{state}</p><h2>{esc(head)}</h2>',
        f"<p>{esc(reason[:1].upper() + reason[1:])}</p>",
        _evidence((verdict.get("evidence") or {}).get("lines", ())),
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
        f"<p>This page shows what is there. <code>shoestring run {esc(shlex.quote(str(run.folder.resolve())))}</code> "
        "continues; finished stages are kept.</p>",
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


def _problems(run: RunFiles) -> Markup:
    return join(*(f'<p class="note">{esc(problem)}</p>' for problem in run.problems))


def _scores(run: RunFiles) -> Markup:
    arms = run.arms
    if not arms:
        return Markup("")
    bar = run.config.task.bar if run.config else 0.0
    chosen = (run.verdict or {}).get("arm")
    has_far = any(arm.far and arm.far.num_rows < arm.num_rows for arm in arms)
    rows = []
    for arm in arms:
        name = f"<b>{esc(arm.arm)}</b>" if arm.arm == chosen else esc(arm.arm)
        spread = f"{arm.score.low:.3f}–{arm.score.high:.3f}"
        met = "met" if arm.meets(bar) else "not met"
        rows.append(
            [
                join(name),
                esc(number(arm.score.value)),
                esc(spread),
                join(f'<span class="{"yes" if met == "met" else "no"}">{met}</span>'),
                *([_far(arm)] if has_far else []),
                esc(_tokens(arm)),
                esc(duration(arm.wall_s)),
                esc(usd(arm.cost_usd)),
                esc(f"{arm.num_rows:,}"),
            ]
        )
    far_head = ["on far rows"] if has_far else []
    head = ["arm", "score", "95\u00a0% interval", "bar", *far_head, "tokens a row", "time", "dollars", "rows"]
    lead = (
        f"{arms[0].metric.replace('_', ' ')} on held-out rows. An arm meets the bar when the lower end of its interval "
        "does; a filled dot says so. A fine-tune's time and dollars include its training."
    )
    if has_far:
        lead += " Far rows: held-out rows that no training row is near to; what to expect on quite new text."
    return section(
        "Score of each arm",
        arm_chart(arms, bar, chosen),
        table(head, rows, numeric=[i for i in range(len(head)) if i not in (0, 3)]),
        _differences(run),
        _preferences(arms),
        _retrievals(arms),
        _instructions(arms),
        _metrics(arms),
        lead=lead,
    )


def _tokens(arm: ArmScore) -> str:
    """Mean tokens of a prompt and of an answer."""
    num_in, num_out = (sum(getattr(row, f"num_{part}_tokens") for row in arm.rows) for part in ("prompt", "completion"))
    return f"{num_in / arm.num_rows:,.0f} + {num_out / arm.num_rows:,.0f}" if num_in else "—"


def _retrievals(arms: list[ArmScore]) -> Markup:
    found = [(arm.arm, arm.details["retrieval"]) for arm in arms if arm.details.get("retrieval")]
    lines = [f"{found_facts(arm, facts)}." for arm, facts in found]
    lines += [f"Recall: {found[0][1]['recall_of']}."] if found else []
    return join(*(f'<p class="note">{esc(line)}</p>' for line in lines))


def _instructions(arms: list[ArmScore]) -> Markup:
    """The candidates each model's instruction was chosen from, with their scores on training rows."""
    parts = []
    for arm in arms:
        if tried := arm.details.get("instructions"):
            rows = [[esc(c["text"]), esc(c["origin"]), esc(number(c["score"]))] for c in tried]
            head = f"{arm.arm}: the first of the highest, on {arm.details['num_rows_chosen_on']} training rows"
            parts.append(details(esc(head), table(["instruction", "from", "score"], rows, numeric=(2,), wide=(0,))))
    return join(*parts)


def _far(arm: ArmScore) -> Markup:
    if arm.far is None or arm.far.score is None:
        return esc("—")
    score = arm.far.score
    return join(
        f"{esc(number(score.value))}<br><small>{esc(f'{score.low:.3f}–{score.high:.3f}')}, {arm.far.num_rows:,} rows"
        "</small>"
    )


def _differences(run: RunFiles) -> Markup:
    rows = []
    for d in (run.verdict or {}).get("differences", ()):
        gap: dict[str, Any] = d["difference"]
        rows.append(
            [
                esc(f"{d['arm_a']} − {d['arm_b']}"),
                esc(f"{gap['value']:+.3f}"),
                esc(f"{gap['low']:+.3f} to {gap['high']:+.3f}"),
                esc(f"{d['p_value']:.2g}"),
                esc(d["method"]),
            ]
        )
    if not rows:
        return Markup("")
    head = ["difference on the same rows", "value", "95\u00a0% interval", "p", "by"]
    return details(esc(f"Paired differences ({len(rows)})"), table(head, rows, numeric=(1, 2, 3)))


def _preferences(arms: list[ArmScore]) -> Markup:
    found = [(arm.arm, arm.details["preference"]) for arm in arms if arm.details.get("preference")]
    return Markup("".join(f'<p class="note">{esc(f"{arm}: {told(pairs)}")}</p>' for arm, pairs in found))


def _metrics(arms: list[ArmScore]) -> Markup:
    names = list(dict.fromkeys(name for arm in arms for name in arm.metrics))
    if len(names) < 2:
        return Markup("")
    rows = [[esc(arm.arm), *(esc(number(arm.metrics.get(name))) for name in names)] for arm in arms]
    head = ["arm", *(name.replace("_", " ") for name in names)]
    return details(esc("Every metric"), table(head, rows, numeric=range(1, len(head))))


def _curves(run: RunFiles) -> Markup:
    charts = []
    for rung in run.rungs:
        if not rung.history:
            continue
        loss = [(row["step"], row["loss"]) for row in rung.history if "loss" in row]
        dev_loss = [(row["step"], row["dev_loss"]) for row in rung.history if "dev_loss" in row]
        metric = [(row["step"], row["dev_metric"]) for row in rung.history if "dev_metric" in row]
        series = (
            [Series("training", loss, "a"), Series("dev", dev_loss, "b", dots=True)]
            if dev_loss
            else [Series("training", loss, "a")]
        )
        mark = ("best", float(rung.train.best_step)) if rung.train and metric else None
        task = run.config.task if run.config else None
        name = task.computed_metric.replace("_", " ") if task else "metric"
        level = (f"bar {task.bar:g}", task.bar) if task and task.metric == task.computed_metric else None
        panels = [curve_chart("loss a token", series)]
        if metric:
            shown = [Series("dev", metric, "a", dots=True)]
            preferred = [(row["step"], row["dev_preference"]) for row in rung.history if "dev_preference" in row]
            shown += [Series("pairs preferred", preferred, "b", dots=True)] if preferred else []
            panels.append(curve_chart(f"dev {name}", shown, y_range=(0.0, 1.0), level=level, mark=mark))
        charts.append(
            f'<h3>{esc(rung.model)}</h3><p class="note">{esc(_story(rung))}</p>'
            f'<div class="pair">{"".join(panels)}</div>'
        )
    return section("Learning curves", *charts) if charts else Markup("")


def _story(rung: RungFiles) -> str:
    if rung.train is None:
        return f"{rung.history[-1]['step']:g} steps so far; training is not finished."
    t = rung.train
    end = "stopped early" if t.stopped_early else "ran to the end"
    speed = t.num_train_tokens / t.wall_s if t.wall_s > 0 else 0.0
    return (
        f"{t.num_steps:,} steps, {end}; best at step {t.best_step:,}. {duration(t.wall_s)}, "
        f"{speed:,.0f} training tokens a second, evaluations included."
    )
