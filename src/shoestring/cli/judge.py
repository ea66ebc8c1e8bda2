"""`shoestring judge`: what each judge can be believed, and what it says of the run's answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from ..records import to_json
from ..units import usd
from .output import emit, say
from .progress import Screen
from .running import open_run
from .tables import score_text, table

if TYPE_CHECKING:
    from ..records import ArmScore


def command(target: str, arm_names: Sequence[str], runs_dir: Path, is_json: bool) -> int:
    """Curate where that is not done, probe, judge what is recorded, and print both."""
    from ..stages.judging import biases, config_of, judge_arms, recalibrate, recorded_arms, refuse_own_family
    from ..stages.preparing import read_again

    run = open_run(target, runs_dir)
    config = config_of(run)
    refuse_own_family(run, config)
    with Screen() as screen:
        run.execute(progress=screen.progress, log=screen.log, until="curate")
        known = {arm.arm for arm in recorded_arms(run, read_again(run))}
        unknown = [name for name in arm_names if name not in known]
        if unknown:
            raise BadInput(f"--arm {unknown[0]!r}: the run has {', '.join(map(repr, sorted(known))) or 'none yet'}")
        with run.run_folder.locked():
            curated = read_again(run)
            found = biases(run, curated)
            arms, refused = recalibrate(run), ""
            if run.config.task.metric != "judge":
                try:
                    arms = judge_arms(run, curated, lambda arm: not arm_names or arm.arm in arm_names)
                except BadInput as error:  # a judge that is of no use: its probes are what was asked for
                    arms, refused = [], str(error)
        run.write_report()
    arms = [arm for arm in arms if not arm_names or arm.arm in arm_names]
    if is_json:
        told = {"folder": str(run.folder), **found, "arms": [_summary(arm) for arm in arms], "refused": refused}
        emit({**told, "spent_usd": run.ledger.spent_usd(), "report": str(run.folder / "report.html")})
        return 0
    show_biases(found)
    if arms:
        say()
        show_arms(arms)
    elif refused:
        say(f"\nNothing was judged: {refused}")
    elif not known:
        say(f"\nNo arm has answered yet: shoestring run {target}")
    say(f"\nReport: {run.folder / 'report.html'}")
    return 0


def _summary(arm: ArmScore) -> dict[str, Any]:
    """An arm for a program: the score and what it comes from, without the rows."""
    judged = {key: value for key, value in arm.details["judge"].items() if key != "rows"}
    score = {"score": arm.score.value, "low": arm.score.low, "high": arm.score.high}
    return {"arm": arm.arm, "num_rows": arm.num_rows, **score, "interval": arm.interval, **judged}


def show_biases(found: dict[str, Any]) -> None:
    """The probes, a line a judge, and what they name."""
    from ..stages.judging import told

    rows = [
        (
            bias["judge"],
            *(share(bias[key]) for key in ("right_frac", "flip_frac", "first_frac", "longer_frac", "own_frac")),
            f"{bias['num_no_verdict']} of {bias['num_asked']}",
            usd(bias["cost_usd"]),
        )
        for bias in found["biases"]
    ]
    heads = ("judge", "right", "changes", "for first", "for longer", "for its own", "no verdict", "cost")
    if rows:
        say(table(heads, rows, right=range(1, len(heads))))
    for line in told(found):
        say(line)


def share(value: dict[str, float] | None) -> str:
    """A rate in per cent, or a dash where nothing tells it."""
    return "-" if value is None else f"{value['value']:.0%}"


def show_arms(arms: Sequence[ArmScore]) -> None:
    """Judged scores, who decided, and whether humans have checked."""
    from .label import told as labels_told

    rows = []
    for arm in arms:
        judged = arm.details["judge"]
        controlled = judged.get("length_controlled")
        rows.append(
            (
                arm.arm,
                score_text(to_json(arm.score)),
                f"{judged['num_labels']} labels" if judged["is_calibrated"] else "no",
                f"{sum(judged['num_checked'].values())}",
                f"{judged['num_judged']}",
                f"{judged['num_no_verdict']}",
                "-" if judged["judges_agree"] is None else f"{judged['judges_agree']:.2f}",
                "-" if controlled is None else f"{controlled['rate']['value']:.3f}",
                usd(judged["cost_usd"]),
            )
        )
    heads = (
        "arm", "judged score", "calibrated", "by rule", "by judge", "no verdict", "judges agree", "at equal length",
        "cost",
    )  # fmt: skip
    say(table(heads, rows, right=range(3, len(heads))))
    for arm in arms:
        if arm.details["judge"]["num_labels"]:
            say(labels_told(arm.arm, arm, arm.details["judge"]))
