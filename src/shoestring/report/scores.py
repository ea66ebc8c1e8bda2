"""The arms of a run and their scores, on the report and on the page."""

from __future__ import annotations

from typing import Any

from ..decide.passages import told as found_facts
from ..records import ArmScore
from ..train.preferred import told
from ..units import duration, usd
from .folder import RunFiles
from .svg import arm_chart
from .text import Markup, details, esc, join, number, section, table


def scores(run: RunFiles) -> Markup:
    """Every arm beside the bar: chart, table, paired differences, further metrics."""
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
                esc(_tokens(run, arm)),
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


def _tokens(run: RunFiles, arm: ArmScore) -> str:
    """Mean tokens of a prompt and of an answer."""
    if arm.arm in run.rows:
        num_in, num_out = run.rows[arm.arm].mean_tokens
    else:
        num_in, num_out = (
            sum(getattr(row, f"num_{part}_tokens") for row in arm.rows) / max(1, arm.num_rows)
            for part in ("prompt", "completion")
        )
    return f"{num_in:,.0f} + {num_out:,.0f}" if num_in else "—"


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
