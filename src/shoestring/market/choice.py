"""Which option to take: the Pareto list of dollars against hours and risk, and the pick with why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..config import RunConfig
from ..plan.figures import about
from ..plan.spot import pareto
from ..units import usd
from .options import Discarded, Option

SURE_FRAC = 0.9  # what is picked under a deadline meets it at least this surely
RISK_STEP = 0.02  # chances nearer than this count as equal
NO_HOURS = float("inf")


@dataclass(frozen=True, slots=True)
class Choice:
    """Options by expected dollars; best: positions of the Pareto list; pick: of the one to take, None without any."""

    options: tuple[Option, ...]
    discarded: tuple[Discarded, ...]
    best: tuple[int, ...]
    pick: int | None
    why: str

    @property
    def picked(self) -> Option | None:
        """The option to take."""
        return None if self.pick is None else self.options[self.pick]


def choose(config: RunConfig, options: Sequence[Option], discarded: Sequence[Discarded]) -> Choice:
    """Sort, find the Pareto list, pick the cheapest that has a dated price and meets a deadline surely enough."""
    ordered = sorted(options, key=lambda o: (o.usd.value, _hours(o), o.seller, o.model, o.method))
    points = [(o.usd.value, _tenths(_hours(o)), round(o.risk_frac / RISK_STEP)) for o in ordered]
    best = sorted(pareto(points))
    sure = [i for i in range(len(ordered)) if is_sure(ordered[i])]
    pick = next((i for i in sure if ordered[i].is_dated), next(iter(sure), None))
    return Choice(tuple(ordered), tuple(discarded), tuple(best), pick, _why(config, ordered, discarded, best, pick))


def is_sure(option: Option) -> bool:
    """Whether a deadline, if there is one, is met surely enough."""
    return option.finish_frac is None or option.finish_frac >= SURE_FRAC


def _tenths(hours: float) -> float:
    """Hours on a scale where equal numbers are within a tenth of each other."""
    return hours if hours in (0.0, NO_HOURS) else round(math.log(hours) / math.log(1.1))


def _hours(option: Option) -> float:
    return NO_HOURS if option.hours is None else option.hours.value


def _why(
    config: RunConfig, options: Sequence[Option], discarded: Sequence[Discarded], best: Sequence[int], pick: int | None
) -> str:
    bound = ""
    if config.deadline_h:
        bound = f" done by the deadline of {config.deadline_h:g} h with a chance of {SURE_FRAC:.0%}"
    if pick is None:
        if options:
            surest = max(options, key=lambda o: -o.risk_frac)
            return (
                f"no option is{bound}; the surest is {surest.words} with {1 - surest.risk_frac:.0%}: raise deadline_h"
            )
        return _why_nothing(discarded)
    chosen = options[pick]
    said = f"{chosen.words}: the cheapest of {len(options)} options{bound}"
    if chosen.hours is None:
        said += " (the service states no time)"
    if pick:
        first = options[0]
        reason = "its price has no date" if not first.is_dated else f"it is late with a chance of {first.risk_frac:.0%}"
        said += f"; {first.words} at {usd(first.usd.value)} was passed over: {reason}"
    faster = [options[i] for i in best if _hours(options[i]) < _hours(chosen)]
    if faster:
        fastest = min(faster, key=_hours)
        assert fastest.hours is not None
        said += f"; fastest is {fastest.words}, {about(fastest.hours.value)} for {usd(fastest.usd.value)}"
    return said


def _why_nothing(discarded: Sequence[Discarded]) -> str:
    codes = Counter(d.code for d in discarded)
    if not codes:
        return "there is nothing to choose from: no offer and no service"
    remedies = {
        "does_not_fit": "a smaller model, a shorter train.seq_len or method: qlora",
        "past_deadline": "a later deadline_h",
        "over_budget": "a larger budget_usd",
        "model_unknown": "models that are in a local folder or in 'shoestring models'",
    }
    names = [remedies[code] for code, _ in codes.most_common() if code in remedies]
    return f"no option is left of {len(discarded)}; try {' or '.join(names) or 'other models'}"
