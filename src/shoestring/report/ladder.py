"""The climb: what each rung was predicted to score, what it scored, and what was done with it."""

from __future__ import annotations

from .folder import RunFiles
from .text import Markup, esc, section, table

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
