"""`shoestring plan --probe`: rungs timed on the present device, and plans that use what was timed."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from ..evaluate.generation import LocalGenerator
from ..evaluate.score import metric_value
from ..ledger import LAUNCH_LEDGER, Ledger
from ..plan import learned
from ..plan.engines import OURS
from ..plan.probed import Probed, probed_from_json, settle
from ..plan.throughput import GENERATE_BATCH_ROWS
from ..records import Curated, Log, Plan, Progress, RungPlan, no_progress, to_json
from ..runfolder import rung_name
from ..train.base import count_lengths, load_tokenizer
from ..train.timing import time_rung
from . import closing, inputs, preparing
from .common import dev_rows, device, held_rows
from .recorder import print_of
from .retrieving import rows_for

if TYPE_CHECKING:
    from ..recipe import Run


def record_of(model: str) -> str:
    """A probe's record; not in the rung's folder, which belongs to its training."""
    return f"probes/{rung_name(model)}.json"


def probe_print(run: Run, rung: RungPlan) -> str:
    """Fingerprint of what a probe's times depend on: inputs of training, and the machine."""
    settings = {k: v for k, v in asdict(rung.settings).items() if k != "reasons"}
    return print_of(run, record_of(rung.model), "curate.json", [inputs.train(run, rung), settings, asdict(device(run))])


def plan_probed(run: Run, progress: Progress, log: Log) -> Plan:
    """Plan, time each rung that fits, and plan anew with what was timed. Raises: as `probe`."""
    run.progress, run.log = progress, log
    with closing.opened(run):
        curated = run.curate()
        probe(run, run.plan(curated), curated)
        started_s = time.monotonic()
        result, planned = preparing.plan(run, curated)
        # Not as a stage that is done again: what was trained and concluded from the same settings stays.
        run.run_folder.finish("plan.json", run.prints["plan.json"], result, time.monotonic() - started_s)
    return planned


def probe(run: Run, plan: Plan, curated: Curated) -> list[Probed]:
    """Time every rung of the plan that fits; writes its record and nothing else.

    Raises: BadInput where the plan is for another machine, and what time_rung does.
    """
    rungs = [rung for rung in plan.rungs if rung.verdict != "does_not_fit"]
    for rung in rungs:
        if rung.device != device(run):
            raise BadInput(
                f"the run is planned for {rung.device.name} (market.device), this machine is {device(run).name}, and a "
                "probe times this machine; run it there, or take market.device out of the run file"
            )
        if rung.settings.engine != OURS:
            raise BadInput(
                f"--probe times the trainer of engine: {OURS}, and this run has engine: {rung.settings.engine}; its "
                "first training here makes later plans better, or take engine out of the run file"
            )
        if rung.settings.num_processes > 1:
            raise BadInput(
                f"--probe times one process, and this run trains in {rung.settings.num_processes}; plan it with "
                "train.num_processes: 1, or train: its first training here makes later plans better"
            )
    found = []
    for number, rung in enumerate(rungs):
        run.progress("probe", number, len(rungs))
        found.append(_timed(run, rung, curated))
    return found


def _timed(run: Run, rung: RungPlan, curated: Curated) -> Probed:
    curated = rows_for(run, curated, rung.model)
    dev, task = dev_rows(run, curated, rung.settings), run.config.task
    longest = rung.settings.max_new_tokens
    # A fresh adapter answers on and on: each row stops where its own answer does, but of each batch one never stops.
    limits = [min(longest, num_tokens) for _, num_tokens in count_lengths(load_tokenizer(rung.model), dev)]
    limits[::GENERATE_BATCH_ROWS] = [longest] * len(limits[::GENERATE_BATCH_ROWS])

    def answer(model: Any, tokenizer: Any, number: int) -> None:
        generator = LocalGenerator(model, tokenizer, max_new_tokens=longest)
        cut = number * len(limits) // 2
        turned = [*limits[cut:], *limits[:cut]]
        metric_value(task, dev, generator.generate([e.request for e in dev], no_progress, turned), curated.labels)

    timed = time_rung(
        model=rung.model,
        train=curated.all_rows("train"),
        dev=held_rows(run, curated, rung.settings),
        num_eval_rows=len(curated.eval),
        settings=rung.settings,
        device=device(run),
        answer=answer,
        usual_tokens=sum(limits) / max(1, len(limits)),
    )
    run.run_folder.finish(record_of(rung.model), probe_print(run, rung), to_json(timed), timed.wall_s)
    run.log(f"Rung {rung.model}: {timed.note}")
    return timed


def settled(run: Run, rung: RungPlan) -> RungPlan:
    """The rung as an earlier probe of the same inputs on this machine timed it, else by what earlier runs took."""
    if rung.device == device(run):
        row = run.run_folder.finished(record_of(rung.model), probe_print(run, rung))
        if row is not None:
            with contextlib.suppress(KeyError, TypeError):  # an earlier version's, which timed less
                return settle(rung, probed_from_json(row))
    return learned.apply(rung, ledger_lines(run.folder.parent))


def forget_outrun(run: Run) -> None:
    """Plan anew where earlier runs have taught more since, and no rung of this one has begun."""
    record = run.run_folder.record("plan.json")
    if record is None or list(run.folder.glob("rungs/*/inputs.json")):
        return
    if any(line.at > record["finished_at"] for line in ledger_lines(run.folder.parent)):
        run.run_folder.retract("plan.json")


def track_record(runs_dir: Path) -> learned.TrackRecord:
    """How far predictions were off on the finished runs and launches of a folder."""
    runs, launches = [], []
    for path in sorted(runs_dir.glob("*/ladder.json")):
        with contextlib.suppress(OSError, ValueError):
            runs.append(Ledger(path.with_name("ledger.jsonl")).entries())
    for path in sorted(runs_dir.glob(f"*/{LAUNCH_LEDGER}")):
        with contextlib.suppress(OSError, ValueError):
            entries = [e for e in Ledger(path).entries() if (e.get("basis") or {}).get("state") == "done"]
            ids = dict.fromkeys(entry.get("fingerprint") for entry in entries)
            launches += [[e for e in entries if e.get("fingerprint") == one] for one in ids]
    return learned.track_record(runs, launches)


def ledger_lines(runs_dir: Path) -> list[learned.Line]:
    """What can be learned from the ledgers of all runs in a folder, oldest first."""
    lines = []
    for path in sorted(runs_dir.glob("*/ledger.jsonl")):
        with contextlib.suppress(OSError, ValueError):  # another run's damaged folder must not stop this one's plan
            lines += learned.lines_of(Ledger(path).entries())
    return sorted(lines, key=lambda line: line.at)
