"""The answer over measured arms: which is the cheapest that meets the bar, or what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..config import TaskConfig
from ..evaluate.statistics import detectable_difference, rows_to_settle
from ..records import ArmScore, Estimate, Verdict
from ..units import usd
from .evidence import NOTABLE_FRAC, Evidence, break_even_line, evidence, style

__all__ = ["RUN", "detectable_difference", "verdict"]

# Kind of an arm to kind of a verdict; in order of simplicity, which breaks ties of cost.
VERDICT_KINDS = {
    "zero_shot": "prompt",
    "instruction": "prompt",
    "few_shot": "few_shot",
    "nearest": "few_shot",
    "rag": "rag",
    "linear": "linear",
    "endpoint": "prompt",
    "finetune": "finetune",
}
# What a kind of verdict advises.
ADVICE = {"prompt": "prompt", "few_shot": "prompt", "rag": "use_rag", "linear": "use_linear", "finetune": "fine_tune"}
# Fewer optimizer steps than this are the likeliest cause of a low score.
FEW_STEPS = 100
# Advice to score more rows ends at so many times those scored.
TOO_MANY_TIMES = 20
# Stands for the run's folder in the commands of a recorded step: a folder may be moved.
RUN = "RUN"
CHECK_JUDGE = "check the judge first"
TRAIN = f"train, smallest rung first: shoestring train {RUN}"


def verdict(arms: Sequence[ArmScore], task: TaskConfig) -> Verdict:
    """The cheapest arm whose interval's lower end reaches the bar.

    Baselines come before fine-tunes: by cost a row, then by simplicity; fine-tunes in the order
    given, which is the ladder's. Each arm is held to the bar at one-sided 2.5 %; of k arms just
    below the bar, one passes wrongly with a chance of at most k times that.
    """
    if not arms:
        return Verdict(
            False,
            None,
            "none",
            task.bar,
            None,
            "no arm was measured",
            f"choose baselines in decide.arms, or {TRAIN}",
        )
    baselines = sorted((arm for arm in arms if arm.kind != "finetune"), key=_cheapness)
    finetunes = [arm for arm in arms if arm.kind == "finetune"]
    found = evidence(arms)
    told = {**found.to_json(), "lines": found.lines()}
    met = [arm for arm in [*baselines, *finetunes] if arm.meets(task.bar)]
    if met:
        return _with_judge(replace(_bar_met(met, baselines, finetunes, task), evidence=told), met[0])
    best = max(arms, key=lambda arm: (arm.score.value, arm.score.low))
    if best.score.high >= task.bar:
        advice, (reason, next_step) = "cannot_tell", _cannot_tell(best, finetunes, found, task.bar)
    else:
        advice, (reason, next_step) = _advice(finetunes, found), _below(best, finetunes, found, task.bar)
    arm = best.arm if best.score.value > 0 else None
    answer = Verdict(False, arm, "none", task.bar, best.score, reason, next_step, advice, told)
    return _with_judge(answer, best)


def _advice(finetunes: list[ArmScore], found: Evidence) -> str:
    """What the evidence asks for where nothing meets the bar: facts come with passages, a form with training."""
    if finetunes:
        return "both" if found.facts_missing and not _with_passages(finetunes) else "more_data"
    if found.facts_missing:
        return "both" if found.form_missing else "use_rag"
    is_prompt = found.instruction is not None and found.instruction.difference.low > 0 and not found.form_missing
    return "fix_prompt" if is_prompt else "fine_tune"


def _with_passages(finetunes: list[ArmScore]) -> bool:
    return any("retrieval" in arm.details for arm in finetunes)


def _with_judge(found: Verdict, arm: ArmScore) -> Verdict:
    """Where judges scored the arm and no human has checked them, that is said."""
    if arm.metric != "judge" or arm.details["judge"]["is_calibrated"]:
        return found
    why, ask = "the judge is not calibrated by human labels", f"{CHECK_JUDGE}: shoestring label {RUN}"
    return replace(found, reason=f"{found.reason}; {why}", next_step=f"{found.next_step}; {ask}")


def _bar_met(met: list[ArmScore], baselines: list[ArmScore], finetunes: list[ArmScore], task: TaskConfig) -> Verdict:
    chosen = met[0]
    cost = f"{usd(_cost_per_row_usd(chosen) * 1000)} a thousand rows"
    scored = f"{chosen.arm} scores {_shown(chosen.score)} on {chosen.num_rows} rows"
    reason = f"{scored}; its lower end meets the bar {task.bar:g}"
    if chosen.kind == "finetune":
        if baselines:
            rival = max(baselines, key=lambda arm: arm.score.value)
            reason += f"; the best baseline, {rival.arm}, scores {_shown(rival.score)}"
        smaller = finetunes[: finetunes.index(chosen)]
        reason += f"; {len(smaller)} cheaper rung{'s' if len(smaller) > 1 else ''} did not" if smaller else ""
        next_step = f"export it: shoestring export {RUN}"
    else:
        reason += f"; cheapest of {len(met)} arms that do, at {cost}" if len(met) > 1 else f", at {cost}"
        next_step = f"use {chosen.arm} as it was measured; "
        next_step += (
            "the fine-tunes are not needed to meet the bar"
            if finetunes
            else "no training is needed (to train all the same set decide.train_anyway: true)"
        )
        rivals = [line for arm in met if arm in finetunes and (line := break_even_line(arm, chosen))]
        reason += f"; {rivals[0]}" if rivals else ""
    reason += _below_on_far_rows(chosen, task.bar)
    kind = VERDICT_KINDS[style(chosen)]
    advice = "both" if chosen.kind == "finetune" and _with_passages([chosen]) else ADVICE[kind]
    return Verdict(True, chosen.arm, kind, task.bar, chosen.score, reason, next_step, advice)


def _below_on_far_rows(arm: ArmScore, bar: float) -> str:
    """What to add where the bar is met thanks to held-out rows that training rows resemble."""
    far = arm.far
    if far is None or far.score is None or far.score.high >= bar:
        return ""
    return (
        f"; but on the {far.num_rows:,} of them that no training row is near to it scores {_shown(far.score)}, below "
        "the bar: on quite new text expect that"
    )


def _cannot_tell(best: ArmScore, finetunes: list[ArmScore], found: Evidence, bar: float) -> tuple[str, str]:
    reason = (
        f"cannot tell at {best.num_rows} rows: {best.arm} scores {_shown(best.score)}, and the bar {bar:g} lies inside "
        "the interval"
    )
    needed = _rows_needed(best, bar)
    if needed is None:
        return f"{reason}, at the very score", f"no number of rows settles a tie; {_improve(best, finetunes, found)}"
    if needed > TOO_MANY_TIMES * best.num_rows:
        return f"{reason}; about {needed:,} rows would settle it", (
            f"too close to settle by scoring more rows; {_improve(best, finetunes, found)}"
        )
    keys = "curate.eval_rows or curate.max_eval_rows"
    keys += " and decide.max_rows" if best.kind not in ("linear", "finetune") else ""
    return f"{reason}; about {needed:,} rows would settle it", (
        f"score about {needed:,} held-out rows (now {best.num_rows:,}): add rows to data.eval, or raise {keys}; "
        f"or {_improve(best, finetunes, found)}"
    )


def _below(best: ArmScore, finetunes: list[ArmScore], found: Evidence, bar: float) -> tuple[str, str]:
    gap = bar - best.score.value
    if best.score.value > 0:
        scored = f"the best arm, {best.arm}, scores {_shown(best.score)} on {best.num_rows} rows"
        reason = f"{scored}, {gap:.3f} below the bar {bar:g}"
    else:
        reason = f"no arm scored above 0 on {best.num_rows} rows; the bar is {bar:g}"
    if not finetunes:
        return f"no baseline meets the bar: {reason}", _before_training(found)
    tuned = max(finetunes, key=lambda arm: arm.score.value)
    if tuned.score.value < best.score.value:
        return reason, (
            f"fine-tuning did not beat {best.arm} ({tuned.arm}: {_shown(tuned.score)}); look at the failing rows in "
            f"the report first, then {_improve(best, finetunes, found)}"
        )
    return reason, _improve(best, finetunes, found)


def _before_training(found: Evidence) -> str:
    """What to do next where only baselines were measured."""
    if found.facts_missing and found.form_missing:
        return f"passages help and the form is not there yet: set train.passages: with, then {TRAIN}"
    if found.facts_missing:
        return (
            "passages help and the form is right: raise retrieval.num_chunks, mend what the search misses (facts found "
            f"are in the arm's details), or prompt a larger model; or set train.passages: with, then {TRAIN}"
        )
    if _advice([], found) == "fix_prompt":
        return f"the wording of the instruction moves the score: write more of them in decide.instructions; or {TRAIN}"
    return TRAIN


def _improve(best: ArmScore, finetunes: list[ArmScore], found: Evidence) -> str:
    """What would raise the score, the likeliest cause first, from what the rows of the best fine-tune show."""
    tuned = max(finetunes, key=lambda arm: arm.score.value, default=None)
    arm = tuned or best
    cut_frac = arm.details.get("num_cut", 0) / arm.num_rows
    ways = [] if tuned is None else _train_longer(tuned)
    if cut_frac >= NOTABLE_FRAC:
        ways.append(f"raise task.max_new_tokens ({cut_frac:.0%} of the answers of {arm.arm} were cut)")
    if tuned is None:
        return ", ".join([*ways, "lower task.bar", f"or {_before_training(found)}"])
    if found.facts_missing and not _with_passages(finetunes):
        ways.append("train with the passages that helped prompting (train.passages: with)")
    ways += ["add training rows (twice as many is the smallest step worth trying)", "add a larger model to models"]
    return ", ".join([*ways, "or lower task.bar"])


def _train_longer(tuned: ArmScore) -> list[str]:
    """The advice to train longer, where steps were few, the dev score still rose, or answers were unusable."""
    num_steps = tuned.details.get("num_steps")
    unusable_frac = sum(row.failure is not None for row in tuned.rows) / tuned.num_rows
    if num_steps is not None and num_steps < FEW_STEPS:
        why = f"{num_steps} steps are few"
    elif tuned.details.get("is_best_at_end"):
        why = "the dev score was best at the last step"
    elif unusable_frac >= NOTABLE_FRAC:
        why = f"{unusable_frac:.0%} of its answers were unusable"
    else:
        return []
    return [f"raise train.num_epochs for {tuned.arm} ({why})"]


def _rows_needed(arm: ArmScore, bar: float) -> int | None:
    """rows_to_settle in two significant digits, rounded up; None where the score equals the bar."""
    num_rows = rows_to_settle(arm.score, arm.num_rows, bar)
    if num_rows is None:
        return None
    step = 10 ** max(0, len(str(num_rows)) - 2)
    return -(-num_rows // step) * step


def _cheapness(arm: ArmScore) -> tuple[float, int]:
    return _cost_per_row_usd(arm), list(VERDICT_KINDS).index(style(arm))


def _cost_per_row_usd(arm: ArmScore) -> float:
    return arm.cost_usd / arm.num_rows


def _shown(score: Estimate) -> str:
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
