"""The climb of a run: learning curves before a rung is trained, a look at the dev rows before its held-out rows."""

from __future__ import annotations

import math
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..decide.curve import FRACS, FRACS_ON, Curve, Forecast, Point, forecast, least_passing
from ..evaluate.statistics import wilson
from ..ladder import Step, climb, model_of, rung_level
from ..plan.throughput import predict_time
from ..records import ArmScore, Curated, Estimate, Plan, RungPlan, TrainSettings, Verdict, summed, to_json
from ..units import SECONDS_PER_HOUR, duration
from . import bringing, inputs, rungs, searching
from .common import device, held_rows, rung_file, sample_rows, shape, token_counts
from .recorder import once
from .retrieving import rows_for

if TYPE_CHECKING:
    from ..recipe import Run

CURVE_DEV_ROWS = 256  # that score a point, at most
MIN_STEPS = 8  # of the smallest part: fewer tell nothing
WORTH_FRAC = 1 / 3  # of a rung's training, that its curve may take
GATE_LEVEL = 0.01  # one-sided: a rung that meets the bar is turned away by its dev rows with this chance at most


def climb_plan(
    run: Run, plan: Plan, baselines: Sequence[ArmScore], curated: Curated
) -> tuple[list[ArmScore], Verdict, list[Step]]:
    """Train and measure the plan's rungs, cheapest first, until one meets the bar."""
    return climb(
        [bringing.as_trained(run, rung) for rung in plan.rungs],
        baselines,
        run.config.task,
        lambda rung: run.measure(rung, curated),
        foresee=lambda rung, num_rungs: foresee(run, rung, num_rungs, curated),
        gate=lambda rung: turned_away(run, rung, baselines, curated),
    )


# ---- learning curves ----


def foresee(run: Run, rung: RungPlan, num_rungs: int, curated: Curated) -> Forecast | None:
    """What trainings on parts of the rows say of the rung; None where that is not worth it, or asked not to be."""
    name = rung_file(rung.model, "curve.json")
    fracs = FRACS_ON if run.config.ladder.curve == "on" else FRACS
    rows, settings = rows_for(run, curated, rung.model), curve_settings(rung.settings)
    takes = predicted(run, rung, curated, fracs)
    why_not = not_worth(run, rung, num_rungs, takes, fracs, len(curated.eval))
    if why_not:
        if run.config.ladder.curve != "off":
            run.log(f"Rung {rung.model}: no learning curve: {why_not}")
        return None
    num_rows, level = len(rows.all_rows("train")), 2 * rung_level(num_rungs)

    def judged(points: Sequence[Point]) -> Forecast:
        return forecast(points, num_rows, len(curated.eval), run.config.task.bar, level, seed=run.config.seed)

    def work() -> tuple[Any, Curve]:
        run.log(f"Rung {rung.model}: learning curve, predicted {duration(takes.value)}")
        curve = measure_curve(run, rung, rows, settings, fracs, judged, stops=run.config.ladder.curve == "auto")
        return {**to_json(curve), "forecast": to_json(judged(curve.points)), "line": judged(curve.points).line()}, curve

    price = rung.price_usd_per_hour / SECONDS_PER_HOUR
    curve = once(
        run,
        name,
        work,
        from_json,
        after="curate.json",
        depends_on=[*inputs.train(run, rung), fracs],
        predicted={"s": takes, "usd": takes.scaled(price)},
    )
    shutil.rmtree(run.run_folder.rung(rung.model) / "curve", ignore_errors=True)
    found = judged(curve.points)
    verb = "skipped" if found.is_hopeless else "trained"
    run.log(f"Rung {rung.model}: {verb}: {found.line()}")
    return found


def not_worth(
    run: Run, rung: RungPlan, num_rungs: int, takes: Estimate, fracs: Sequence[float], num_held_out: int
) -> str:
    """Why there is no curve of the rung, or nothing. Asked for (`on`), it only needs dev rows of the bar's metric."""
    task, asked = run.config.task, run.config.ladder.curve
    if asked == "off":
        return "ladder.curve is off"
    if task.metric != task.computed_metric or rung.settings.stop_on != "task":
        return f"dev rows are not scored by {task.metric} during training"
    if run.run_folder.record(rung_file(rung.model, "train.json")) is not None:
        return "the rung is trained already"
    if bringing.brought(run, rung) is not None:
        return "a service trained it"
    if least_passing(num_held_out, task.bar, 2 * rung_level(num_rungs)) > 1:
        return f"no score on {num_held_out} held-out rows has its interval above {task.bar:g}; hold out more"
    num_least = math.floor(rung.num_steps * fracs[0])
    if num_least < MIN_STEPS:
        return f"the smallest part would have {num_least} steps, {MIN_STEPS} are needed"
    if asked == "on":
        return ""
    if num_rungs < 2:
        return "there is one rung"
    if rung.settings.search_tokens:
        return "its learning rate is searched for first"
    if takes.value > WORTH_FRAC * rung.train_s.value:
        return f"it would take {duration(takes.value)}, training takes {duration(rung.train_s.value)}"
    return ""


def curve_settings(settings: TrainSettings) -> TrainSettings:
    """One evaluation, at the end, on more dev rows than those that stop training early; nothing uploaded."""
    return replace(settings, num_evals=1, num_dev_rows=CURVE_DEV_ROWS, search_tokens=0, checkpoints="")


def predicted(run: Run, rung: RungPlan, curated: Curated, fracs: Sequence[float]) -> Estimate:
    """Seconds of the curve: of each part its steps, loading, and answering the dev rows once."""
    counts, settings = token_counts(run, curated, rung.model), curve_settings(rung.settings)
    num, sizes = len(counts.prompt), shape(model_of(rung.model))
    num_dev = min(len(curated.dev), CURVE_DEV_ROWS)
    settled = rung.train_s.value / rung.derived_s["train"] if rung.derived_s.get("train") else 1.0
    parts = []
    for frac in fracs:
        kept = slice(0, max(1, round(num * frac)))
        part = replace(counts, prompt=counts.prompt[kept], answer=counts.answer[kept], rejected=counts.rejected[kept])
        parts.append(predict_time(sizes, settings, part, rung.device, num_dev_rows=num_dev).train_s)
    return summed(*parts).scaled(settled)


def measure_curve(
    run: Run,
    rung: RungPlan,
    rows: Curated,
    settings: TrainSettings,
    fracs: Sequence[float],
    judged: Callable[[Sequence[Point]], Forecast],
    *,
    stops: bool,
) -> Curve:
    """Train on each part, the smallest first; with stops, from the second on only until more would change nothing."""
    rungs.begin(run, rung)
    spending = rungs.Spending(run, rung)
    if run.config.ladder.curve == "on" and rung.settings.search_tokens:
        settings = curve_settings(searching.settled(run, rung, rows, spending.should_stop))
    train = list(rows.all_rows("train"))
    order = random.Random(run.config.seed).sample(range(len(train)), len(train))
    dev = sample_rows(rows.dev, CURVE_DEV_ROWS, run.config.seed)
    points: list[Point] = []
    wall_s, peak = 0.0, 0
    for frac in fracs:
        num = max(1, round(len(train) * frac))
        run.log(f"Rung {rung.model}: learning curve on {num:,} of {len(train):,} training rows")
        trained = rungs.trainer(run)(
            model=rung.model,
            train=[train[i] for i in sorted(order[:num])],
            dev=held_rows(run, rows, settings),
            out_dir=run.run_folder.rung(rung.model) / "curve" / f"{num}-rows",
            settings=settings,
            device=device(run),
            dev_metric=rungs.DevMetric(run.config.task, tuple(dev), rows.labels, settings.max_new_tokens),
            should_stop=lambda part_s, before_s=wall_s: spending.should_stop(before_s + part_s),
            progress=run.progress,
            log=run.log,
        )
        assert trained.dev_metric is not None, "there are dev rows wherever there are training rows"
        points.append(Point(num, trained.dev_metric, len(dev)))
        wall_s, peak = wall_s + trained.wall_s, max(peak, trained.peak_bytes)
        if stops and len(points) >= 2 and judged(points).is_settled:
            break
    return Curve(tuple(points), wall_s, peak)


def from_json(row: dict[str, Any]) -> Curve:
    """The curve of an earlier session."""
    return Curve(tuple(Point(**point) for point in row["points"]), row["wall_s"], row["peak_bytes"])


# ---- the gate ----


def turned_away(run: Run, rung: RungPlan, baselines: Sequence[ArmScore], curated: Curated) -> str:
    """Train the rung, and say why its dev rows already turn it away; nothing where held-out rows are to decide.

    The dev score is that of the best of several checkpoints on the same rows, so if anything it flatters the rung.
    """
    trained, task = run.train(rung, curated), run.config.task
    num_dev = min(rung.settings.num_dev_rows, len(curated.dev))
    if (
        trained.dev_metric is None
        or num_dev == 0
        or task.metric != task.computed_metric
        or trained.settings.get("stop_on", rung.settings.stop_on) != "task"
    ):
        return ""
    high = wilson(min(num_dev, math.ceil(trained.dev_metric * num_dev)), num_dev, 2 * GATE_LEVEL).high
    if high >= task.bar:
        return ""
    why = f"{trained.dev_metric:.3f} on {num_dev} dev rows, at most {high:.3f}: below the bar {task.bar:g}"
    chance = max(Counter(e.completion for e in curated.dev).values()) / len(curated.dev) if curated.labels else 0.0
    prompted = [arm for arm in baselines if arm.kind == "zero_shot" and arm.model == model_of(rung.model)]
    base = max(prompted, key=lambda arm: arm.score.low, default=None)
    if high < chance:
        why += f", and worse than always the same label ({chance:.3f}): look at the learning rate first"
    elif base and high < base.score.low:
        why += f", and worse than the model before training ({base.score.value:.3f}): look at the learning rate first"
    run.log(f"Rung {rung.model}: held-out rows not touched: {why}")
    return why
