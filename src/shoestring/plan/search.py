"""Which learning rates a search tries, and how many tokens each gets: successive halving, as plain numbers.

Five rates on one unit of tokens, three on two, two on four: 12 units, and up to MAX_ADDED more where the best of the
first round lies at the edge of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

FACTOR, SPAN = 2.0, 2  # neighbours in the grid differ by FACTOR; SPAN of them to either side of the derived rate
HALF = 2
MAX_ADDED = 2
SEARCH_FRAC = 0.25  # of training's tokens, where the run file gives no search_tokens
MIN_UNIT_STEPS = 12  # of the first round: fewer tell nothing


def grid(derived: float) -> list[float]:
    """The rates of the first round, from the lowest."""
    return [_rate(derived, power) for power in range(-SPAN, SPAN + 1)]


def _rate(derived: float, power: int) -> float:
    return float(f"{derived * FACTOR**power:.3g}")


def alive() -> list[int]:
    """Trials in each round."""
    numbers = [2 * SPAN + 1]
    while numbers[-1] > HALF:
        numbers.append(math.ceil(numbers[-1] / HALF))
    return numbers


def rounds() -> list[int]:
    """Units of tokens that a trial has seen at the end of each round."""
    return [HALF**number for number in range(len(alive()))]


def num_units() -> int:
    """Units of a search that adds no rate: survivors go on from where they stood."""
    ends = [0, *rounds()]
    return sum(num * (ends[i + 1] - ends[i]) for i, num in enumerate(alive()))


def unit_tokens(search_tokens: int) -> float:
    """Tokens of the first round, so that with every added rate the search stays within search_tokens."""
    return search_tokens / (num_units() + MAX_ADDED)


def default_tokens(training_tokens: int, batch_tokens: int) -> tuple[int, str]:
    """Tokens of the whole search, and why: a share of training's, but no first round too short to tell."""
    least = (num_units() + MAX_ADDED) * MIN_UNIT_STEPS * batch_tokens
    wanted = round(SEARCH_FRAC * training_tokens)
    if wanted >= least:
        return wanted, f"{SEARCH_FRAC:.0%} of training's {training_tokens:,} tokens"
    tokens = min(least, training_tokens)
    share = f"{tokens / max(1, training_tokens):.0%} of training's {training_tokens:,} tokens"
    return tokens, f"{share}: a first round of fewer than {MIN_UNIT_STEPS} steps would tell nothing"


def survivors(scores: Mapping[float, float], num: int) -> list[float]:
    """The num best rates; one that diverged (infinite) never survives."""
    finite = sorted((score, rate) for rate, score in scores.items() if math.isfinite(score))
    return [rate for _, rate in finite[:num]]


def at_edge(best: float, rates: Sequence[float]) -> str:
    """highest or lowest where best is that of the rates, else ""."""
    if len(rates) < 2:
        return ""
    return "highest" if best == max(rates) else "lowest" if best == min(rates) else ""


def beyond(derived: float, scores: Mapping[float, float]) -> float | None:
    """The next rate past the edge where the best of the first round lies there and rates may still be added.

    Not past a rate that diverged.
    """
    if len(scores) >= 2 * SPAN + 1 + MAX_ADDED or not any(map(math.isfinite, scores.values())):
        return None
    best = min(scores, key=lambda rate: (scores[rate], rate))
    edge = at_edge(best, list(scores))
    if not edge:
        return None
    power = round(math.log(best / derived, FACTOR))
    return _rate(derived, power + (1 if edge == "highest" else -1))
