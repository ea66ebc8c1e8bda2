"""How often to save: what a checkpoint costs against the work that an interruption would lose."""

from __future__ import annotations

import math

from ..units import SECONDS_PER_HOUR


def daly_interval_s(cost_s: float, interruptions_per_hour: float) -> float:
    """Seconds of work between two checkpoints that lose least to checkpoints and interruptions together.

    cost_s: what a checkpoint takes from training. Young's sqrt(2 c M), M the mean seconds between interruptions,
    with Daly's higher-order terms, which matter where c is not small against M; infinite without interruptions.
    Source: Young, CACM 17(9), 1974; Daly, Future Generation Computer Systems 22(3), 2006, equation 37.
    """
    if interruptions_per_hour <= 0:
        return math.inf
    mean_s = SECONDS_PER_HOUR / interruptions_per_hour
    ratio = cost_s / (2 * mean_s)
    if ratio >= 1:
        return mean_s
    return math.sqrt(2 * cost_s * mean_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost_s


def lost_frac(interval_s: float, cost_s: float, interruptions_per_hour: float) -> float:
    """Expected share of the time that goes to checkpoints and to work done again, restarts apart.

    Source: Daly 2006, equation 20, without the restart term.
    """
    if interruptions_per_hour <= 0:
        return cost_s / (interval_s + cost_s)
    mean_s = SECONDS_PER_HOUR / interruptions_per_hour
    return 1 - interval_s / (mean_s * math.expm1((interval_s + cost_s) / mean_s))
