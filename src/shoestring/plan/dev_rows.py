"""How often, and on how many dev rows, training is looked at: answering them must stay a small share of its time.

Decided before anything runs, from the packaged priors alone: what this machine turned out to take must not change which
adapter is kept.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import TrainConfig
from ..records import Device, TokenCounts, TrainSettings
from .shapes import ModelShape
from .throughput import generate_s, predict_time

MAX_DEV_ROWS = 128  # more would cost more than they tell
MAX_SHARE = 0.25  # of the seconds of the optimizer steps
MIN_EVALS, MIN_ROWS = 2, 32


def held_to_share(
    settings: TrainSettings, given: TrainConfig, shape: ModelShape, counts: TokenCounts, device: Device, num_rows: int
) -> TrainSettings:
    """The settings with num_evals, then num_dev_rows, lowered until evaluations take MAX_SHARE, or can be no fewer.

    num_rows: dev rows that there are, or that the run file asks for. What the run file gives is left alone.
    """
    num_rows = min(num_rows, given.num_dev_rows or MAX_DEV_ROWS)
    time = predict_time(shape, settings, counts, device, num_dev_rows=num_rows)
    steps_s = time.num_train_tokens / time.tokens_per_s.value

    def share(num_evals: int, rows: int) -> float:
        prompts, answers = counts.prompt[:rows], counts.answer[:rows]
        return (
            num_evals
            * generate_s(shape, prompts, answers, device, settings.num_threads, dora=settings.dora).value
            / steps_s
        )

    evals, rows = settings.num_evals, num_rows
    whole = share(evals, rows)
    while share(evals, rows) > MAX_SHARE and evals > MIN_EVALS and "num_evals" not in given.model_fields_set:
        evals -= 1
    while share(evals, rows) > MAX_SHARE and rows > MIN_ROWS and given.num_dev_rows is None:
        rows = max(MIN_ROWS, rows // 2)
    reasons = dict(settings.reasons)
    taken = f"answering takes about {share(evals, rows):.0%} of the steps' time"
    why = f"{taken}; {settings.num_evals} times {num_rows} rows would take {whole:.0%}"
    if evals < settings.num_evals:
        reasons["num_evals"] = why
    if given.num_dev_rows is None:
        reasons["num_dev_rows"] = why if rows < num_rows else f"all there are, at most {MAX_DEV_ROWS}; {taken}"
    return replace(settings, num_evals=evals, num_dev_rows=rows, reasons=reasons)
