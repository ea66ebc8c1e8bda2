"""How a rung learned: loss and dev score over its steps, and what parts of the rows foretold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..units import duration
from .folder import RunFiles, RungFiles
from .svg import INSET, PLOT_PX, Series, curve_chart, framed, text_at
from .text import Markup, details, esc, number, section, table

TOP_PX = 34
MOST_NUMBERS = 20  # of a curve, in its table
NUMBERS = ("loss", "learning_rate", "dev_loss", "dev_metric", "dev_preference")


def curves(run: RunFiles, but: str | None = None) -> Markup:
    """Loss and dev score of each rung that was trained, or is being trained; but: a model that is left out."""
    charts = []
    for rung in run.rungs:
        if not rung.history or rung.model == but:
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
            f'<div class="pair">{"".join(panels)}</div>{_numbers(rung)}'
        )
    return section("Learning curves", *charts) if charts else Markup("")


def _numbers(rung: RungFiles) -> Markup:
    """The curves as a table: each evaluation, and between them some of the steps."""
    kept = thinned(rung.history)
    keys = [key for key in NUMBERS if any(key in row for row in kept)]
    rows = [[esc(f"{row['step']:g}"), *(esc(number(row.get(key), 4)) for key in keys)] for row in kept]
    head = ["step", *(key.replace("_", " ") for key in keys)]
    return details(esc("In numbers"), table(head, rows, numeric=range(len(head))))


def thinned(history: Sequence[dict[str, float]], limit: int = MOST_NUMBERS) -> list[dict[str, float]]:
    """First, last and evaluated steps, and others evenly between them up to limit."""
    every = max(1, len(history) // limit)
    last = len(history) - 1
    return [row for i, row in enumerate(history) if i % every == 0 or i == last or "dev_metric" in row]


def growth(run: RunFiles) -> Markup:
    """Scores of trainings on parts of the rows, the band predicted from them for all rows, and what was scored."""
    charts = []
    for rung in run.rungs:
        if not rung.curve:
            continue
        points = [(float(p["num_rows"]), float(p["score"])) for p in rung.curve["points"]]
        forecast = rung.curve["forecast"]
        band = forecast["measured"]
        bar = run.config.task.bar if run.config else None
        scored = rung.arm.score.value if rung.arm else None
        chart = growth_chart(points, (float(forecast["num_rows"]), band), scored, bar)
        rows = [
            [esc(f"{n:,.0f}"), esc(f"{score:.3f}"), esc("dev rows, at the end of a training")] for n, score in points
        ]
        said = f"{band['value']:.3f} ({band['low']:.3f} to {band['high']:.3f})"
        rows.append([esc(f"{forecast['num_rows']:,}"), esc(said), esc("predicted, 95\u00a0% band")])
        if scored is not None:
            rows.append([esc(f"{forecast['num_rows']:,}"), esc(f"{scored:.3f}"), esc("scored")])
        numbers = details(esc("In numbers"), table(["training rows", "score", "what"], rows, numeric=(0,)))
        charts.append(f"<h3>{esc(rung.model)}</h3>{chart}{numbers}")
    if not charts:
        return Markup("")
    lead = (
        "Trainings on parts of the rows, the band in which the score of all of them was predicted to lie, and where "
        "the rung was trained, its score."
    )
    return section("Would more rows help?", *charts, lead=lead)


def growth_chart(
    points: Sequence[tuple[float, float]],
    predicted: tuple[float, Mapping[str, float]],
    scored: float | None,
    bar: float | None,
) -> Markup:
    """Score over training rows, logarithmic; predicted: number of rows, and value, low and high there."""
    num_rows, band = predicted
    low, high = math.log(min(n for n, _ in points) / 1.5), math.log(num_rows * 1.5)

    def x(rows: float) -> float:
        return INSET + (100 - INSET) * (math.log(rows) - low) / (high - low)

    def y(score: float) -> float:
        return TOP_PX + PLOT_PX * (1 - min(1.0, max(0.0, score)))

    parts = [text_at("0", 14, "score over training rows", "start", "title")]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line x1="{INSET}%" x2="100%" y1="{y(tick):g}" y2="{y(tick):g}" class="grid"/>')
        parts.append(text_at("0", y(tick) + 4, f"{tick:g}", "start", "tick"))
    if bar is not None:
        parts.append(f'<line x1="{INSET}%" x2="100%" y1="{y(bar):g}" y2="{y(bar):g}" class="bar"/>')
        parts.append(text_at(f"{INSET}%", y(bar) - 5, f"bar {bar:g}", "start", "barname"))
    at = x(num_rows)
    ends = f'y1="{y(band["low"]):g}" y2="{y(band["high"]):g}"'
    parts.append(f'<line x1="{at:.2f}%" x2="{at:.2f}%" {ends} class="foretold"/>')
    parts.append(text_at(f"{at - 1.5:.2f}%", y(band["value"]) + 4, "predicted", "end", "tick"))
    parts += [f'<circle cx="{x(n):.2f}%" cy="{y(score):.1f}" r="4" class="point b"/>' for n, score in points]
    if scored is not None:
        parts.append(f'<circle cx="{at:.2f}%" cy="{y(scored):.1f}" r="5.5" class="point a"/>')
        parts.append(text_at(f"{at + 1.5:.2f}%", y(scored) + 4, "scored", "start" if at < 88 else "end", "value"))
    for n in dict.fromkeys([*(n for n, _ in points), num_rows]):
        parts.append(text_at(f"{x(n):.2f}%", TOP_PX + PLOT_PX + 16, f"{n:,.0f}", "middle", "tick"))
    return framed(TOP_PX + PLOT_PX + 22, "Score over training rows, and the predicted band", *parts)


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
