"""The whole bill over the months: curate, judge, train, evaluate, serve; against prompting a larger model.

Below the break-even volume the larger model costs less, above it the fine-tuned one. Nothing here says which answers
better: that is measured (`shoestring decide`, `shoestring run`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..config import RunConfig, TrafficConfig
from ..records import Estimate, summed
from ..units import SECONDS_PER_HOUR
from .options import Option
from .serving import PER_MILLION, Route
from .terms import value
from .work import Rows

ZERO = Estimate(0.0, 0.0, 0.0)
GRID = tuple(10 ** (i / 4) for i in range(41))  # requests a month where a break-even is looked for, 1 to 1e10
CURVE_DECADES = (-2, 2)  # the plot goes from a hundredth to a hundred times the traffic
POINTS_PER_DECADE = 3
# Of a request to a judge: tokens of the instruction and the usual criteria, and of a reply; probes a row, at most.
JUDGE_FRAME_TOKENS, JUDGE_REPLY_TOKENS, PROBES_PER_ROW = 220, 40, 7


@dataclass(frozen=True, slots=True)
class Part:
    """One part of what is paid once."""

    name: str  # curate, baselines, judge, train, evaluate
    usd: Estimate
    source: str


@dataclass(frozen=True, slots=True)
class Way:
    """A model trained somewhere and served somewhere, or (without parts) a larger one that is prompted."""

    route: Route
    once: tuple[Part, ...] = ()  # paid before the first request
    trained: str = ""

    @property
    def once_usd(self) -> Estimate:
        """Dollars paid once."""
        return summed(*(part.usd for part in self.once))


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Requests a month from which training costs less than an API; None: at no volume looked at."""

    api: str
    requests_per_month: Estimate | None
    reason: str


@dataclass(frozen=True, slots=True)
class Total:
    """The bill for the run file's traffic. own and apis: ways, the cheapest for this traffic first."""

    traffic: TrafficConfig
    own: tuple[Way, ...]
    apis: tuple[Way, ...]
    break_evens: tuple[BreakEven, ...]
    volumes: tuple[float, ...]  # requests a month of the plot

    def usd(self, way: Way, requests: float) -> Estimate:
        """Dollars over the months at so many requests each."""
        return summed(way.once_usd, way.route.usd_per_month(requests).scaled(self.traffic.months))


def once_parts(config: RunConfig, option: Option, rows: Rows, num_rows: int) -> list[Part]:
    """What is paid before the first request; evaluation is in the machine's hours, and split off by its share."""
    rate = value("curate_rows_per_s")
    hourly = value("own_machine_usd_per_h")
    curate = Estimate(
        *(
            num_rows / getattr(rate, slow) / SECONDS_PER_HOUR * getattr(hourly, pick)
            for pick, slow in (("value", "value"), ("low", "high"), ("high", "low"))
        )
    )
    parts = [Part("curate", curate, "rows at the measured rate, electricity of the machine at hand")]
    asked = min(config.decide.max_rows, rows.num_eval)
    prompt = sum(rows.counts.eval_prompt) / max(1, len(rows.counts.eval_prompt))
    answer = sum(rows.counts.eval_answer) / max(1, len(rows.counts.eval_answer))
    usd_of_endpoints = sum(
        asked * (prompt * e.usd_per_million_input_tokens + answer * e.usd_per_million_output_tokens) / PER_MILLION
        for e in config.decide.endpoints
    )
    parts.append(
        Part(
            "baselines", rows.error.scaled(usd_of_endpoints), f"{len(config.decide.endpoints)} endpoints, {asked} rows"
        )
    )
    parts.append(judge_part(config, rows, asked, prompt, answer))
    if option.work is None:
        return [*parts, Part("train", option.usd, option.source), Part("evaluate", ZERO, "not stated by the service")]
    share = option.work.eval_s.value / max(1e-9, option.work.train_s.value + option.work.eval_s.value)
    where = "on the same machine, start and download with training"
    return [
        *parts,
        Part("train", option.usd.scaled(1 - share), option.source),
        Part("evaluate", option.usd.scaled(share), where),
    ]


def judge_part(config: RunConfig, rows: Rows, asked: int, prompt_tokens: float, answer_tokens: float) -> Part:
    """What judging the rows of the baselines and of one rung costs, with the probes; how many rules decide is open."""
    judge = config.judge
    if judge is None or config.task.metric != "judge":
        return Part("judge", ZERO, f"none: {config.task.metric} is computed")
    decide = config.decide
    applies = {
        "linear": False,
        "rag": bool(config.data.documents),
        "instruction": bool(decide.instructions) or decide.written_instructions > 0,
    }
    arms = sum(applies.get(kind, True) for kind in decide.arms)
    num_judged = asked * arms * (len(config.models) + len(decide.endpoints)) + rows.num_eval
    times = 2 if judge.mode == "pairwise" else 1
    of_a_row = PROBES_PER_ROW + (times * len(judge.endpoints) if len(judge.endpoints) > 1 else 0)
    num_requests = times * num_judged + of_a_row * min(judge.probe_rows, rows.num_eval)
    shown = JUDGE_FRAME_TOKENS + prompt_tokens + 2 * answer_tokens  # the answer, and the reference
    usd = sum(
        num_requests
        * (shown * e.usd_per_million_input_tokens + JUDGE_REPLY_TOKENS * e.usd_per_million_output_tokens)
        / PER_MILLION
        for e in judge.endpoints
    )
    spread = Estimate(usd, usd / 2, 1.5 * usd)
    cost = Estimate(*(getattr(spread, k) * getattr(rows.error, k) for k in ("value", "low", "high")))
    return Part("judge", cost, f"{len(judge.endpoints)} judges, about {num_requests:,} requests each")


def total_of(
    config: RunConfig,
    options: Sequence[Option],
    rows: Rows,
    num_rows: int,
    routes: Sequence[Route],
    apis: Sequence[Route],
) -> Total | None:
    """The bill of a run with traffic; None where no route can serve the model.

    options: ways to train one model. The first stands for those on machines; an adapter trained at a service is
    served there by the token.
    """
    traffic = config.traffic
    assert traffic is not None
    managed = {o.seller: o for o in options if o.kind == "managed"}
    ours = next((o for o in options if o.kind != "managed"), None)
    own = []
    for route in routes:
        option = managed.get(route.seller) if route.kind == "tokens" else ours
        if option is not None:
            own.append(Way(route, tuple(once_parts(config, option, rows, num_rows)), option.words))
    if not own:
        return None
    bill = Total(traffic, (), (), (), ())
    asked = traffic.requests_per_month
    own.sort(key=lambda way: bill.usd(way, asked).value)
    prompted = sorted((Way(route) for route in apis), key=lambda way: bill.usd(way, asked).value)
    low, high = CURVE_DECADES
    steps = range(low * POINTS_PER_DECADE, high * POINTS_PER_DECADE + 1)
    useful = [own[i] for i in sorted({_cheapest_at(own, volume, traffic.months) for volume in GRID})]
    return Total(
        traffic=traffic,
        own=tuple(own),
        apis=tuple(prompted),
        break_evens=tuple(break_even(useful, way.route, traffic.months) for way in prompted),
        volumes=tuple(asked * 10 ** (i / POINTS_PER_DECADE) for i in steps),
    )


def _cheapest_at(ways: Sequence[Way], requests: float, months: float) -> int:
    def usd(i: int) -> float:
        return ways[i].once_usd.value + months * ways[i].route.month_usd(requests, "value")

    return min(range(len(ways)), key=usd)


def break_even(ways: Sequence[Way], api: Route, months: float) -> BreakEven:
    """Where the API's bill first passes that of training, at each volume by the cheapest of the ways.

    low: cheap training and serving against the dear end of the API; high: the reverse.
    """

    def crossing(pick: str, other: str) -> float | None:
        once = [getattr(way.once_usd, pick) for way in ways]

        def gap(requests: float) -> float:
            ours = min(o + months * w.route.month_usd(requests, pick) for o, w in zip(once, ways, strict=True))
            return float(ours - months * api.month_usd(requests, other))

        return first_crossing(gap)

    expected, low, high = crossing("value", "value"), crossing("low", "high"), crossing("high", "low")
    if expected is None:
        each = api.month_usd(1.0, "value")
        return BreakEven(api.name, None, f"a request costs {each:.6f} USD there, less than serving one ourselves")
    reason = "from here training and serving cost less"
    if high is None:
        reason += "; at the high end of their costs they never do"
    return BreakEven(api.name, Estimate(expected, low or expected, high or math.inf), reason)


def first_crossing(gap: Callable[[float], float]) -> float | None:
    """The least volume from which gap stays below 0, by bisection between powers of 10^(1/4); None if it never does."""
    if gap(GRID[-1]) >= 0:
        return None
    above = next((i for i in range(len(GRID) - 1, -1, -1) if gap(GRID[i]) >= 0), None)
    if above is None:
        return GRID[0]
    low, high = GRID[above], GRID[above + 1]
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if gap(middle) >= 0 else (low, middle)
    return high
