"""What earlier runs on this machine took, put into the next prediction: a Kalman filter over log(actual / predicted).

For each kind of work (training, evaluation) on one device the true log ratio is taken to drift slowly; every ledger
line observes it with noise (Kalman 1960; with one state this is the conjugate update of a normal mean with known
variance). Another model than the one planned is a noisier witness. A line far from what was expected counts as if it
lay at CLIP standard deviations (Masreliez & Martin 1977), so that one disturbed run moves little.

Nothing is kept beside the ledgers: the state is computed from them each time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..records import Estimate, RungPlan, summed
from ..units import SECONDS_PER_HOUR

STAGES = {"train": "trainings", "eval": "evaluations"}
PRIOR_SD = math.log(3.0) / 2  # of the log ratio before anything is known: within three times or a third
DRIFT_SD = 0.05  # between one line and the next: drivers, other work on the machine
SAME_MODEL_SD, OTHER_MODEL_SD = 0.10, 0.25  # of one line
CLIP = 2.0
MAX_LINES = 50  # newest that are looked at
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Line:
    """A ledger line that can be learned from: what the unlearned prediction was, and what it took."""

    stage: str
    model: str
    machine: str  # machine_of
    at: str
    predicted_s: float
    actual_s: float

    @property
    def log_ratio(self) -> float:
        return math.log(self.actual_s / self.predicted_s)


@dataclass(frozen=True, slots=True)
class Learned:
    """The ratio of actual to predicted seconds: of a next run (with its own noise), and the lines behind it."""

    stage: str
    ratio: Estimate
    lines: tuple[Line, ...]

    @property
    def note(self) -> str:
        """your last 5 trainings on this machine took 0.93 [0.81, 1.07] of what was predicted: applied."""
        num = min(SHOWN, len(self.lines))
        took = statistics.median(line.actual_s / line.predicted_s for line in self.lines[-num:])
        what = f"last {num} {STAGES[self.stage]}" if num > 1 else f"last {STAGES[self.stage][:-1]}"
        return (
            f"your {what} on this machine took {took:.2f} of predicted; "
            f"applied: {self.ratio.value:.2f} [{self.ratio.low:.2f}, {self.ratio.high:.2f}]"
        )


def machine_of(rung: RungPlan) -> str:
    """What runs alike: device, precision, threads, and whose trainer."""
    device = rung.device
    return f"{device.kind} {device.name} {device.dtype} x{rung.settings.num_threads}, {rung.settings.engine}"


def basis_of(rung: RungPlan, stage: str, share: float = 1.0) -> dict[str, Any]:
    """What a ledger line keeps so that later plans can learn from it: the seconds before anything learned or probed.

    share: of the planned work that was done, where it stopped early.
    """
    expected = rung.derived_s.get(stage)
    if expected is None:
        return {}
    return {"model": rung.model, "machine": machine_of(rung), "predicted_s": expected * share}


def lines_of(entries: Iterable[Mapping[str, Any]]) -> list[Line]:
    """The lines that can be learned from; others, and damaged ones, are passed over."""
    found = []
    for entry in entries:
        basis, stage = entry.get("basis"), entry.get("stage")
        actual_s = (entry.get("actual") or {}).get("s")
        if not isinstance(basis, dict) or stage not in STAGES or not isinstance(actual_s, (int, float)):
            continue
        predicted_s = basis.get("predicted_s")
        if isinstance(predicted_s, (int, float)) and predicted_s > 0 and actual_s > 0 and math.isfinite(actual_s):
            model, machine, at = str(basis.get("model")), str(basis.get("machine")), str(entry.get("at"))
            found.append(Line(stage, model, machine, at, predicted_s, actual_s))
    return found


def learn(lines: Sequence[Line], stage: str, model: str, machine: str) -> Learned | None:
    """The filter over this machine's newest lines of a stage, oldest first, for a run of model; None without any."""
    own = [line for line in lines if line.stage == stage and line.machine == machine][-MAX_LINES:]
    if not own:
        return None
    mean, variance = 0.0, PRIOR_SD**2
    for line in own:
        variance += DRIFT_SD**2
        noise = (SAME_MODEL_SD if line.model == model else OTHER_MODEL_SD) ** 2
        limit = CLIP * math.sqrt(variance + noise)
        surprise = max(-limit, min(limit, line.log_ratio - mean))
        gain = variance / (variance + noise)
        mean, variance = mean + gain * surprise, (1 - gain) * variance
    spread = 2 * math.sqrt(variance + SAME_MODEL_SD**2)
    return Learned(stage, Estimate(*(math.exp(mean + s * spread) for s in (0, -1, 1))), tuple(own))


def apply(rung: RungPlan, lines: Sequence[Line]) -> RungPlan:
    """The rung's seconds and dollars times what was learned; what was never run here stays as derived."""
    train, evaluation = (learn(lines, stage, rung.model, machine_of(rung)) for stage in STAGES)
    if train is None and evaluation is None:
        return rung
    train_s, search_s = _times(rung.train_s, train), rung.search_s and _times(rung.search_s, train)
    eval_s = _times(rung.eval_s, evaluation)
    seconds = summed(search_s, train_s, eval_s)
    return replace(
        rung,
        train_s=train_s,
        eval_s=eval_s,
        search_s=search_s,
        cost_usd=seconds.scaled(rung.price_usd_per_hour / SECONDS_PER_HOUR),
        timed="; ".join(learned.note for learned in (train, evaluation) if learned is not None),
    )


def _times(seconds: Estimate, learned: Learned | None) -> Estimate:
    if learned is None:
        return seconds
    ratio = learned.ratio
    return Estimate(seconds.value * ratio.value, seconds.value * ratio.low, seconds.value * ratio.high)


# ---- how good predictions were --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrackRecord:
    """(actual - predicted) / predicted of whole runs by their seconds, and of launches by their bills."""

    runs: tuple[float, ...]
    launches: tuple[float, ...]

    @property
    def words(self) -> str:
        """On 4 finished runs here predicted times were off by 12 % (median), ...; empty without any."""
        parts = [
            f"on {len(offs)} finished {what[len(offs) > 1]} here predicted {of} were off by "
            f"{statistics.median(map(abs, offs)):.0%} (median; {min(offs):+.0%} to {max(offs):+.0%})"
            for offs, what, of in (
                (self.runs, ("run", "runs"), "times"),
                (self.launches, ("launch", "launches"), "bills"),
            )
            if offs
        ]
        said = "; ".join(parts)
        return said[:1].upper() + said[1:]


def track_record(
    runs: Iterable[Sequence[Mapping[str, Any]]], launches: Iterable[Sequence[Mapping[str, Any]]]
) -> TrackRecord:
    """Of the ledger entries of each finished run, and of each finished launch."""
    by_time = (off_frac(entries, "s") for entries in runs)
    by_bill = (off_frac(entries, "usd") for entries in launches)
    return TrackRecord(*(tuple(off for off in offs if off is not None) for offs in (by_time, by_bill)))


def off_frac(entries: Iterable[Mapping[str, Any]], quantity: str) -> float | None:
    """Of the entries that have both, how far the sum of actual ones is off; None without any."""
    pairs = []
    for entry in entries:
        spread, actual = (entry.get("predicted") or {}).get(quantity), (entry.get("actual") or {}).get(quantity)
        if isinstance(spread, dict) and isinstance(actual, (int, float)):
            pairs.append((spread.get("expected") or 0.0, actual))
    predicted = sum(expected for expected, _ in pairs)
    return sum(actual for _, actual in pairs) / predicted - 1 if predicted > 0 else None
