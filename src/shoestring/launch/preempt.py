"""When a simulated spot machine is there: from kill times, or from a trace of availability.

Each span is a machine of its own: where two of them touch, the first is taken and the second comes at once.
"""

from __future__ import annotations

import math
from pathlib import Path

from ..errors import BadInput
from ..plan.spot_trace import read_trace
from ..units import SECONDS_PER_HOUR

Spans = tuple[tuple[float, float], ...]  # seconds from the start: there from, until
MOST_SPANS = 1000
EXAMPLE = "such as 60,180+30 (killed after 60 s and 180 s, there again 30 s later), or the file of a trace"


def spans_of(schedule: str, restart_delay_s: float, trace_speed: float = 1.0) -> Spans:
    """The spans of KILL[,KILL...][+DELAY] in seconds from the start, or of a trace file. Raises: BadInput."""
    if Path(schedule).is_file():
        return _of_trace(Path(schedule), trace_speed)
    kills, _, delay = schedule.partition("+")
    try:
        times = [float(part) for part in kills.split(",")]
        delay_s = float(delay) if delay else restart_delay_s
    except ValueError:
        raise BadInput(f"--preempt {schedule}: neither a file nor a schedule; give one {EXAMPLE}") from None
    if not all(map(math.isfinite, [*times, delay_s])) or delay_s < 0 or times[0] <= 0:
        raise BadInput(f"--preempt {schedule}: times and delay are positive numbers of seconds, {EXAMPLE}")
    spans, start = [], 0.0
    for time_s in times:
        if time_s <= start:
            raise BadInput(f"--preempt {schedule}: at {time_s:g} s the machine is not there yet; {EXAMPLE}")
        spans.append((start, time_s))
        start = time_s + delay_s
    return (*spans, (start, math.inf))


def _of_trace(path: Path, trace_speed: float) -> Spans:
    """The up intervals; after its end a trace begins again, as in plan.spot_simulate, for MOST_SPANS machines."""
    trace = read_trace(path)
    seconds = SECONDS_PER_HOUR / trace_speed
    laps = -(-MOST_SPANS // len(trace.up)) if trace.up else 0
    spans = [
        ((lap * trace.length_h + start) * seconds, (lap * trace.length_h + end) * seconds)
        for lap in range(laps)
        for start, end in trace.up
    ]
    if not spans:
        raise BadInput(f"--preempt {path}: there is no machine in this trace at any time; give another one")
    return tuple(spans[:MOST_SPANS])
