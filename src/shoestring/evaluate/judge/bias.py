"""What a judge can be believed: probes whose right verdict is known without a human, and what they name.

A row's own reference against another row's; a reference against itself with idle words after it; another row's
reference against the judge's own answer to that other row, which is as wrong; everything in both orders, or twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...config import JudgeConfig
from ...records import Estimate, Example, Progress, to_json
from ..statistics import wilson
from .panel import ask
from .prompts import pair_question, rubric_question
from .scoring import criteria_of, in_both_orders, orders_of, pair_votes, rubric_score
from .verdicts import LOSS, TIE, WIN, Judge, Question, Said

MIN_ROWS = 8  # fewer cannot tell anything from chance
FLIP_FRAC = 0.15  # of pairs whose verdict changes with the order, or with nothing at all
FLIP_LOW_FRAC = 0.1  # and surely above this
WEAK_FRAC = 0.8  # of probes that a judge to be believed gets right
UNREADABLE_FRAC, REFUSED_FRAC = 0.05, 0.02
SLOW_FRAC = 0.5  # of the time-out, taken by the slowest twentieth of the requests
P_NAMED = 0.01  # a bias is named below this chance of it without one
P_CHANCE = 0.05
PADDING = (
    "This has been set out with care, so that everything that was asked for is dealt with in full and nothing is left "
    "open. In summary, the above covers the whole of the request from beginning to end. "
)

BY_POSITION = "both orders are asked, so what position decides is a tie; choose another judge, or mode: rubric"
ADVICE = {
    "no_better_than_chance": "choose another judge, or say in judge.criteria what makes an answer right",
    "weak": "choose a stronger judge, or calibrate this one by labels",
    "prefers_first": BY_POSITION,
    "prefers_second": BY_POSITION,
    "inconsistent": "choose another judge, or, where it is not 0, set judge.temperature to 0",
    "prefers_longer": "set judge.max_words, choose another judge, or by mode: pairwise see the rate at equal length",
    "prefers_own": "choose a judge of another family than the models that are judged",
    "says_yes": "its pass rate means nothing; choose another judge",
    "says_no": "its pass rate means nothing; choose another judge",
    "unreadable": "choose a judge that keeps to a form; rows without a verdict count as failed",
    "refuses": "the judge will not read this material; choose another",
    "rate_limited": "lower num_parallel of its endpoint, or raise the account's limit",
    "slow": "raise timeout_s of its endpoint, or lower num_parallel",
    "drops_connections": "look at its server or the network; what was answered is kept",
}


@dataclass(frozen=True, slots=True)
class Named:
    """A defect, what shows it, and what to do."""

    code: str
    evidence: str
    advice: str


@dataclass(frozen=True, slots=True)
class Bias:
    """What the probes say of one judge."""

    judge: str
    model: str
    num_rows: int
    right_frac: Estimate | None  # right answer over a wrong one; a tie counts as half
    flip_frac: Estimate | None
    first_frac: Estimate | None  # of decided pairs, won by the answer shown first
    longer_frac: Estimate | None  # of idle words decided by, won by the longer (rubric: that let a wrong answer pass)
    own_frac: Estimate | None  # of wrong answers decided by their writer, in favour of the judge's own
    num_asked: int
    num_asked_again: int
    num_no_verdict: int
    num_refused: int
    slowest_s: float  # 95th percentile of the requests
    troubles: dict[str, int]  # requests sent again, by what went wrong
    cost_usd: float
    named: tuple[Named, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is known of a judge's connection: its time-out, and how often what went wrong."""

    timeout_s: float
    troubles: Callable[[], dict[str, int]]


@dataclass(slots=True)
class _Counts:
    """For and against, by probe; ties decide nothing."""

    right: list[float] = field(default_factory=list)
    longer: list[int] = field(default_factory=list)  # +1 for the longer, -1 against, 0 neither
    own: list[int] = field(default_factory=list)
    own_no_longer: list[int] = field(default_factory=list)  # of own answers no longer than the other wrong one
    same: list[bool] = field(default_factory=list)
    orders: list[list[str | None]] = field(default_factory=list)
    passed: list[float] = field(default_factory=list)  # rubric: scores of right and of wrong answers
    failed: list[float] = field(default_factory=list)

    def add_own(self, sign: int, is_no_longer: bool) -> None:
        """+1 where the judge's own wrong answer stands and another's falls."""
        self.own.append(sign)
        self.own_no_longer += [sign] if is_no_longer else []


def probe(
    config: JudgeConfig,
    judge: Judge,
    endpoint: Endpoint,
    rows: Sequence[Example],
    refusal: Callable[[str], str | None],
    progress: Progress,
) -> Bias:
    """Ask one judge the probes of these held-out rows. Raises: EndpointError, BudgetStopped."""
    pairs = [(row, other) for row, other in _with_other(rows)]
    own = [c.text.strip() for c in judge.generate([other.request for _, other in pairs], progress)] if pairs else []
    counts = _Counts()
    said = (_rubric if config.mode == "rubric" else _pairs)(config, judge, pairs, own, refusal, progress, counts)
    return _bias(config, judge, endpoint, len(pairs), said, counts)


def _with_other(rows: Sequence[Example]) -> list[tuple[Example, Example]]:
    """Each row with the next one whose reference says something else."""
    pairs = []
    for i, row in enumerate(rows):
        others = (rows[(i + step) % len(rows)] for step in range(1, len(rows)))
        other = next((o for o in others if o.completion.strip() != row.completion.strip()), None)
        if other is not None:
            pairs.append((row, other))
    return pairs


def padded(text: str) -> str:
    """The text followed by words that say nothing, at least as many again."""
    times = 1 + len(text) // len(PADDING)
    return f"{text.rstrip()}\n\n{(PADDING * times).strip()}"


def _pairs(
    config: JudgeConfig,
    judge: Judge,
    pairs: Sequence[tuple[Example, Example]],
    own: Sequence[str],
    refusal: Callable[[str], str | None],
    progress: Progress,
    counts: _Counts,
) -> list[Said]:
    criteria = criteria_of(config)
    questions: list[Question] = []
    for (row, other), mine in zip(pairs, own, strict=True):
        right, wrong = row.completion, other.completion
        for one, two in ((right, wrong), (padded(right), right), (mine or wrong, right)):
            questions.append(pair_question(row.request, one, two, None, criteria))
            questions.append(pair_question(row.request, two, one, None, criteria))
    said = ask(judge, questions, refusal, progress)
    for k, ((row, other), mine) in enumerate(zip(pairs, own, strict=True)):
        votes = [pair_votes(said[6 * k + 2 * j].value, said[6 * k + 2 * j + 1].value) for j in range(3)]
        counts.orders += votes
        right_wins, longer_wins, own_wins = (in_both_orders(*v) for v in votes)
        if right_wins is not None:
            counts.right.append({WIN: 1.0, TIE: 0.5, LOSS: 0.0}[right_wins])
        if longer_wins is not None:
            counts.longer.append({WIN: 1, TIE: 0, LOSS: -1}[longer_wins])
        if own_wins is not None and right_wins is not None and mine and mine != row.completion.strip():
            counts.add_own((own_wins == WIN) - (right_wins == LOSS), len(mine) <= len(other.completion))
    return said


def _rubric(
    config: JudgeConfig,
    judge: Judge,
    pairs: Sequence[tuple[Example, Example]],
    own: Sequence[str],
    refusal: Callable[[str], str | None],
    progress: Progress,
    counts: _Counts,
) -> list[Said]:
    criteria = criteria_of(config)
    questions: list[Question] = []
    for (row, other), mine in zip(pairs, own, strict=True):
        reference = row.completion if config.use_reference else None
        wrong = other.completion
        # The last is the second again, but for a blank line: only the marks differ.
        for answer in (row.completion, wrong, padded(wrong), mine or wrong, f"{wrong}\n"):
            questions.append(rubric_question(row.request, answer, reference, criteria))
    said = ask(judge, questions, refusal, progress)
    for k, ((row, other), mine) in enumerate(zip(pairs, own, strict=True)):
        scores = [None if s.value is None else rubric_score(config, s.value) for s in said[5 * k : 5 * k + 5]]
        passed, failed, longer, owned, again = scores
        if failed is None:
            continue
        if passed is not None:
            counts.right.append(0.5 if passed == failed else float(passed > failed))
            counts.passed.append(passed)
            counts.failed.append(failed)
        if longer is not None:
            counts.longer.append((longer > failed) - (longer < failed))
        if owned is not None and mine and mine != row.completion.strip():
            counts.add_own((owned > failed) - (owned < failed), len(mine) <= len(other.completion))
        if again is not None:
            counts.same.append(failed == again)
    return said


def _bias(
    config: JudgeConfig, judge: Judge, endpoint: Endpoint, num_rows: int, said: Sequence[Said], counts: _Counts
) -> Bias:
    orders = orders_of(counts.orders)
    flips = orders["flip_frac"] and Estimate(**orders["flip_frac"])
    if config.mode == "rubric" and counts.same:
        flips = wilson(sum(not same for same in counts.same), len(counts.same))
    bias = Bias(
        judge=judge.name,
        model=judge.model,
        num_rows=num_rows,
        right_frac=_share([2 * points - 1 for points in counts.right], all_rows=True),
        flip_frac=flips,
        first_frac=orders["first_frac"] and Estimate(**orders["first_frac"]),
        longer_frac=_share(counts.longer),
        own_frac=_share(counts.own),
        num_asked=len(said),
        num_asked_again=sum(bool(s.first_fault) for s in said),
        num_no_verdict=sum(s.value is None for s in said),
        num_refused=sum(s.has_refused for s in said),
        slowest_s=_percentile([s.latency_s for s in said], 0.95),
        troubles=endpoint.troubles(),
        cost_usd=sum(s.cost_usd for s in said),
    )
    notes = []
    named = _replies(bias, endpoint)
    if num_rows < MIN_ROWS:
        notes.append(
            f"{num_rows} rows with different references are too few to probe a judge; {MIN_ROWS} are the least"
        )
    else:
        named = [*_verdicts(config, bias, counts), *named]
    return replace(bias, named=tuple(Named(code, said, ADVICE[code]) for code, said in named), notes=tuple(notes))


def _verdicts(config: JudgeConfig, bias: Bias, counts: _Counts) -> list[tuple[str, str]]:
    """Defects of judgement, by sign tests on the probes."""
    found = []
    wins, losses = sum(p == 1 for p in counts.right), sum(p == 0 for p in counts.right)
    right = bias.right_frac.value if bias.right_frac else 0.0
    if counts.right:
        num_open = len(counts.right) - wins - losses
        shown = f"right on {wins}, wrong on {losses}, undecided on {num_open} of {len(counts.right)}"
        if sign_test(wins, losses) >= P_CHANCE or losses > wins:
            found.append(("no_better_than_chance", f"the right answer against a wrong one: {shown}"))
        elif right < WEAK_FRAC:
            found.append(("weak", f"the right answer against a wrong one: {shown}"))
    first = sum(one == WIN and other == LOSS for one, other in counts.orders)
    second = sum(one == LOSS and other == WIN for one, other in counts.orders)
    flip = bias.flip_frac.value if bias.flip_frac and bias.flip_frac.low > FLIP_LOW_FRAC else 0.0
    by_position = sign_test(first, second) < P_NAMED and flip > FLIP_FRAC
    if by_position:
        place = "first" if first > second else "second"
        found.append(
            (f"prefers_{place}", f"{max(first, second)} of {len(counts.orders)} pairs go to the one shown {place}")
        )
    elif flip > FLIP_FRAC:
        what = "pairs change with the order" if config.mode == "pairwise" else "verdicts change when asked again"
        found.append(("inconsistent", f"{flip:.0%} of the {what}, towards neither side"))
    if config.mode == "rubric" and counts.passed:
        mean_right, mean_wrong = (sum(v) / len(v) for v in (counts.passed, counts.failed))
        if min(mean_right, mean_wrong) > 0.9:
            found.append(("says_yes", f"it passes {mean_right:.0%} of right and {mean_wrong:.0%} of wrong answers"))
        elif max(mean_right, mean_wrong) < 0.1:
            found.append(("says_no", f"it passes {mean_right:.0%} of right and {mean_wrong:.0%} of wrong answers"))
    longer, shorter = counts.longer.count(1), counts.longer.count(-1)
    if longer > shorter and sign_test(longer, shorter) < P_NAMED:
        what = (
            "a reference loses to itself with idle words"
            if config.mode == "pairwise"
            else "idle words pass what failed"
        )
        found.append(("prefers_longer", f"{what} in {longer} of {len(counts.longer)} rows, the reverse in {shorter}"))
    # Where the longer answer wins, only own answers that are no longer can tell the writer from the length.
    signs = counts.own_no_longer if any(code == "prefers_longer" for code, _ in found) else counts.own
    own, others = signs.count(1), signs.count(-1)
    if own > others and sign_test(own, others) < P_NAMED:
        shown = f"its own wrong answer stands where another's falls in {own} of {len(signs)} rows"
        found.append(("prefers_own", f"{shown}, the reverse in {others}"))
    return found


def _replies(bias: Bias, endpoint: Endpoint) -> list[tuple[str, str]]:
    """Defects of the replies and of the connection."""
    found = []
    asked = max(1, bias.num_asked)
    refusals, unread = bias.num_refused, bias.num_asked_again - bias.num_refused
    if refusals / asked > REFUSED_FRAC:
        found.append(("refuses", f"{refusals} of {asked} requests"))
    if unread / asked > UNREADABLE_FRAC:
        found.append(
            ("unreadable", f"{unread} of {asked} first replies; {bias.num_no_verdict} had no verdict in the end")
        )
    waits = bias.troubles
    if waits.get("429"):
        found.append(("rate_limited", f"HTTP 429 on {waits['429']} requests, sent again"))
    if waits.get("timeout") or bias.slowest_s > SLOW_FRAC * endpoint.timeout_s:
        found.append(
            ("slow", f"a twentieth took {bias.slowest_s:.1f} s or more, {waits.get('timeout', 0)} passed timeout_s "
             f"({endpoint.timeout_s:g} s)")
        )  # fmt: skip
    if waits.get("connection"):
        found.append(("drops_connections", f"{waits['connection']} requests broke off and were sent again"))
    return found


def sign_test(one: int, other: int) -> float:
    """Two-sided exact chance of so uneven a count, were both sides alike."""
    num, most = one + other, max(one, other)
    if num == 0:
        return 1.0
    return min(1.0, 2 * sum(math.comb(num, k) for k in range(most, num + 1)) / 2**num)


def _share(signs: Sequence[float], *, all_rows: bool = False) -> Estimate | None:
    """Share in favour among the decided; with all_rows undecided ones count as half. None where there is none."""
    counted = list(signs) if all_rows else [s for s in signs if s]
    if not counted:
        return None
    share = sum((s + 1) / 2 for s in counted) / len(counted)
    spread = wilson(round(share * len(counted)), len(counted))
    return Estimate(share, min(share, spread.low), max(share, spread.high))


def _percentile(values: Sequence[float], frac: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(frac * len(ordered)))] if ordered else 0.0


def to_record(found: Sequence[Bias]) -> list[dict[str, Any]]:
    """JSON-ready."""
    return [to_json(bias) for bias in found]
