"""The report's section on judges: what they can be believed, what they decided, what labels say of them."""

from __future__ import annotations

from typing import Any

from ..records import ArmScore
from ..units import usd
from .folder import RunFiles
from .text import Markup, details, esc, join, number, section, table

PROBES = {
    "right_frac": "right over wrong",
    "flip_frac": "verdict changes",
    "first_frac": "for the first",
    "longer_frac": "for the longer",
    "own_frac": "for its own",
}


def judges(run: RunFiles) -> Markup:
    """Probes of each judge, then the arms they judged; nothing where no judge was asked."""
    arms = [arm for arm in (*run.arms, *run.judged) if "judge" in arm.details]
    if run.biases is None and not arms:
        return Markup("")
    lead = (
        "Rules decide what they can; judges are asked the rest. A judge is probed on rows whose verdict is known: a "
        "row's own reference against another row's, idle words, its own wrong answers."
    )
    return section("The judge", *_probes(run.biases or {}), *_arms(arms), lead=lead)


def _probes(found: dict[str, Any]) -> list[str]:
    parts: list[str] = []
    rows = []
    for bias in found.get("biases", ()):
        rows.append(
            [
                join(f"<b>{esc(bias['judge'])}</b><br><small>{esc(bias['model'])}</small>"),
                *(_share(bias[key]) for key in PROBES),
                esc(f"{bias['num_no_verdict']} of {bias['num_asked']}"),
                esc(usd(bias["cost_usd"])),
            ]
        )
    if rows:
        head = ["judge", *PROBES.values(), "no verdict", "dollars"]
        parts.append(table(head, rows, numeric=range(1, len(head))))
    for bias in found.get("biases", ()):
        for defect in bias["named"]:
            said = f"{defect['code'].replace('_', ' ')}: {defect['evidence']}; {defect['advice']}."
            parts.append(f'<p class="note"><b>{esc(bias["judge"])}</b> {esc(said)}</p>')
        if not bias["named"] and not bias["notes"]:
            parts.append(f'<p class="note">{esc(bias["judge"])}: no bias found on {bias["num_rows"]:,} rows.</p>')
        parts += [f'<p class="note">{esc(bias["judge"])}: {esc(note)}.</p>' for note in bias["notes"]]
    return [*parts, *(f'<p class="note">{esc(note)}.</p>' for note in found.get("notes", ()))]


def _share(value: dict[str, float] | None) -> Markup:
    if value is None:
        return esc("—")
    low_high = f"{value['low']:.0%}–{value['high']:.0%}"
    return join(esc(f"{value['value']:.0%}"), "<br><small>", esc(low_high), "</small>")


def _arms(arms: list[ArmScore]) -> list[str]:
    if not arms:
        return []
    rows, notes = [], []
    for arm in arms:
        judged = arm.details["judge"]
        alone = judged["uncalibrated"]
        state = f"{judged['num_labels']} labels" if judged["is_calibrated"] else "no"
        if judged["is_calibrated"]:
            state += f"; judge alone {number(alone['value'])}"
        rows.append(
            [
                esc(arm.arm),
                join(
                    f"{esc(number(arm.score.value))}<br><small>{esc(f'{arm.score.low:.3f}–{arm.score.high:.3f}')}</small>"
                ),
                esc(state),
                esc(_checked(judged["num_checked"])),
                esc(f"{judged['num_judged']:,}"),
                esc(f"{judged['num_no_verdict']:,}"),
                esc(number(judged["judges_agree"], 2)),
                esc(usd(judged["cost_usd"])),
            ]
        )
        notes += _notes(arm, judged)
    head = ["arm", "judged score", "calibrated", "by rule", "by judge", "no verdict", "judges agree (AC1)", "dollars"]
    parts: list[str] = [table(head, rows, numeric=(1, 4, 5, 6, 7))]
    if not all(arm.details["judge"]["is_calibrated"] for arm in arms):
        parts.append(
            '<p class="note">A score that no human label has calibrated is the judge\'s own: '
            "<code>shoestring label</code> takes labels.</p>"
        )
    return [*parts, *notes, _method(arms[0].details["judge"])]


def _checked(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {code.replace('_', ' ')}" for code, count in counts.items()) or "none"


def _notes(arm: ArmScore, judged: dict[str, Any]) -> list[str]:
    """Labels, pairs and length of one arm, a line each."""
    said = []
    agreed = judged["agreement"]
    if agreed:
        said.append(
            f"judge and human agree on {agreed['observed']:.0%} of {agreed['num_rows']:,} labelled rows (AC1 "
            f"{agreed['gwet_ac1']:.2f}, kappa {agreed['cohen_kappa']:.2f})"
        )
    for name, orders in (judged.get("orders") or {}).items():
        if orders["flip_frac"]:
            first = orders["first_frac"]
            shown = f"; {first['value']:.0%} of its decisions go to the first" if first else ""
            said.append(
                f"{name} changes its verdict with the order in {orders['flip_frac']['value']:.0%} of pairs{shown}"
            )
    controlled = judged.get("length_controlled")
    if controlled:
        rate, words = controlled["rate"], judged["mean_words"]
        said.append(
            f"at equal length the win rate is {rate['value']:.3f} ({rate['low']:.3f} to {rate['high']:.3f}); answers "
            f"have {words['answer']:.0f} words, references {words['reference']:.0f}"
        )
    if judged["num_stale_labels"]:
        said.append(f"{judged['num_stale_labels']:,} labels are of earlier answers and do not count")
    return [f'<p class="note">{esc(f"{arm.arm}: {text}.")}</p>' for text in said]


def _method(judged: dict[str, Any]) -> Markup:
    rows = [
        [esc("judges"), esc("; ".join(f"{name}: {model} at {url}" for name, url, model in judged["judges"]))],
        [
            esc("asked"),
            esc(f"{judged['mode']}, prompt {judged['prompt_sha256']}, temperature {judged['temperature']:g}"),
        ],
        [esc("criteria"), esc(" ".join(judged["criteria"]) or "the answer is right")],
    ]
    return details(esc("How it was judged"), table(["what", "value"], rows, wide=(1,)))
