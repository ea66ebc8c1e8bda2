"""What a run folder holds so far. A file that is missing or damaged is said, never guessed."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..config import RunConfig, load_run_file
from ..decide.verdict import CHECK_JUDGE, RUN
from ..errors import BadInput
from ..evaluate import regression
from ..files import parse_json, read_json
from ..ladder import rungs_of
from ..ledger import Ledger
from ..records import (
    ArmScore,
    Message,
    Plan,
    TrainResult,
    arm_from_json,
    example_from_json,
    plan_from_json,
    train_from_json,
)
from ..runfolder import rung_name
from ..units import SECONDS_PER_HOUR
from .costs import costs
from .rows import ArmRows, skim
from .text import Markup

T = TypeVar("T")


@dataclass
class RungFiles:
    """One rung's records; history is of the finished training, or of the steps so far."""

    model: str
    train: TrainResult | None = None
    arm: ArmScore | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    searched: dict[str, Any] | None = None  # of the learning-rate search
    curve: dict[str, Any] | None = None  # of trainings on parts of the rows
    regression: dict[str, Any] | None = None  # of general texts and questions, before and after


@dataclass
class RunFiles:
    """Everything the report shows."""

    folder: Path
    config: RunConfig | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    curated: dict[str, Any] | None = None
    decided: dict[str, Any] | None = None
    baselines: list[ArmScore] = field(default_factory=list)
    plan: Plan | None = None
    rungs: list[RungFiles] = field(default_factory=list)
    verdict: dict[str, Any] | None = None
    exported: dict[str, Any] | None = None
    ledger: list[dict[str, Any]] = field(default_factory=list)
    live_s: dict[str, float] = field(default_factory=dict)  # of trainings that the ledger does not hold yet
    prompts: dict[str, list[Message]] = field(default_factory=dict)  # of held-out rows, by id
    problems: list[str] = field(default_factory=list)
    costs: Markup | None = None  # the section of choice.json
    biases: dict[str, Any] | None = None  # of the judges
    judged: list[ArmScore] = field(default_factory=list)  # by judges, beside the run's own metric
    rows: dict[str, ArmRows] = field(default_factory=dict)  # by arm, where they were not read into the arms

    @property
    def arms(self) -> list[ArmScore]:
        """Baselines, then fine-tunes in the order of the ladder."""
        return [*self.baselines, *(r.arm for r in self.rungs if r.arm)]

    @property
    def price_usd_per_hour(self) -> float:
        """What the plan reckons with."""
        return max((rung.price_usd_per_hour for rung in self.plan.rungs), default=0.0) if self.plan else 0.0

    @property
    def spent_usd(self) -> float:
        """What the ledger holds, and trainings under way."""
        entered_usd = sum(e["actual"].get("usd", 0.0) for e in self.ledger)
        return entered_usd + sum(self.live_s.values()) * self.price_usd_per_hour / SECONDS_PER_HOUR

    @property
    def spent_s(self) -> float:
        """Seconds of every stage, and of trainings under way."""
        return sum(e["actual"].get("s", 0.0) for e in self.ledger) + sum(self.live_s.values())


def read_run(folder: Path, with_rows: bool = True) -> RunFiles:
    """Read every record of the folder; without rows those of the arms stay unparsed, and prompts are not read."""
    run = RunFiles(folder)
    try:
        run.config = load_run_file(folder / "run.yaml")
    except BadInput as error:
        run.problems.append(str(error))
    run.meta = _json(run, "meta.json") or {}
    run.curated = _result(run, "curate.json", dict)
    run.decided = (_result if with_rows else _skimmed)(run, "decide.json", dict)
    run.baselines = _baselines(run, with_rows)
    run.plan = _result(run, "plan.json", plan_from_json)
    run.biases = _result(run, "judge.json", dict)
    run.judged = _result(run, "judged.json", lambda r: [arm_from_json(a) for a in r["arms"]]) or []
    run.verdict = _result(run, "ladder.json", dict)
    run.exported = _result(run, "export.json", dict)
    if chosen := _json(run, "choice.json"):
        try:
            run.costs = costs(chosen)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            run.problems.append(f"choice.json: not as this version writes it ({type(error).__name__}: {error})")
    ledger = Ledger(folder / "ledger.jsonl")
    run.ledger = ledger.entries()
    try:
        run.live_s = ledger.live_s()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        run.problems.append(f"rungs: what a training under way took cannot be read ({error}); not counted")
    for line in ledger.torn_lines():
        run.problems.append(f"ledger.jsonl, line {line}: cut by an interruption, not counted")
    run.rungs = _rungs(run, with_rows)
    if with_rows:
        run.prompts = _prompts(folder / "data" / "eval.jsonl")
    return run


def _baselines(run: RunFiles, with_rows: bool) -> list[ArmScore]:
    """The arms of decide.json; while that stage works, those measured so far."""
    read = _result if with_rows else _skimmed
    if (run.folder / "decide.json").exists():
        arms = (run.decided or {}).get("arms", ())
        return _parsed(run, "decide.json", lambda: [arm_from_json(arm) for arm in arms]) or []
    names = sorted((run.folder / "decide").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    found = [
        read(run, f"decide/{path.name}", lambda r: arm_from_json(r["arm"]) if r["arm"] else None) for path in names
    ]
    return [arm for arm in found if arm is not None]


def _skimmed(run: RunFiles, name: str, read: Callable[[Any], T]) -> T | None:
    """As _result, of a record with arms: without their rows, which go to run.rows."""
    try:
        record, rows = skim(run.folder / name)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        run.problems.append(f"{name}: cannot be read ({error}); left out")
        return None

    def taken() -> T:
        arms = _arms_of(record["result"])
        for arm, its_rows in zip(arms, rows if len(rows) == len(arms) else map(_taken, arms), strict=True):
            run.rows[str(arm["arm"])] = its_rows
        return read(record["result"])

    return _parsed(run, name, taken)


def _arms_of(result: Any) -> list[dict[str, Any]]:
    return [arm for arm in result.get("arms", [result.get("arm")]) if arm]


def _taken(arm: dict[str, Any]) -> ArmRows:
    """The rows out of an arm that were read with it."""
    rows, arm["rows"] = arm["rows"], []
    return ArmRows.of(rows)


def next_step(verdict: Mapping[str, Any], folder: Path, exported: Mapping[str, Any] | None) -> str:
    """What to do after a recorded verdict: commands with the run's folder, and where it exists the export itself.

    exported: the result of the export record.
    """
    run = shlex.quote(str(folder))
    in_folder = str(verdict.get("next_step") or "").replace(RUN, run)
    rung = f"rungs/{rung_name(str(verdict.get('model')))}"
    adapter_dir = str((exported or {}).get("adapter_dir"))
    what = adapter_dir.removeprefix(f"{rung}/")  # adapter, or the model that was trained whole
    if exported and verdict.get("kind") == "finetune" and what != adapter_dir:
        passed = (exported.get("merge_check") or {}).get("passed")
        merged = f"merged weights in {folder / exported['merged_dir']}"
        told = f"serve it: shoestring serve {run}; the {what} is in {folder / adapter_dir}, {merged}" + (
            "" if passed else f" (they differ from the {what}: serve the {what})"
        )
        return told + (f"; {CHECK_JUDGE}{in_folder.partition(CHECK_JUDGE)[2]}" if CHECK_JUDGE in in_folder else "")
    return in_folder


def _json(run: RunFiles, name: str) -> Any | None:
    try:
        value = read_json(run.folder / name)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        run.problems.append(f"{name}: cannot be read ({error}); left out")
        return None
    if not isinstance(value, dict):
        run.problems.append(f"{name}: not a record; left out")
        return None
    return value


def _result(run: RunFiles, name: str, read: Callable[[Any], T]) -> T | None:
    """The result of a stage record, or None with the reason among the problems."""
    record = _json(run, name)
    return None if record is None else _parsed(run, name, lambda: read(record["result"]))


def _parsed(run: RunFiles, name: str, read: Callable[[], T]) -> T | None:
    """What read() gives, or None with the reason among the problems."""
    try:
        return read()
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        run.problems.append(f"{name}: not as this version writes it ({type(error).__name__}: {error}); left out")
        return None


def _rungs(run: RunFiles, with_rows: bool) -> list[RungFiles]:
    """The run file's rungs, those of the plan in its order; any rung folder where the run file cannot be read."""
    base = run.folder / "rungs"
    folders = sorted(p.name for p in base.iterdir() if p.is_dir()) if base.is_dir() else []
    models = {rung_name(model): model for model in rungs_of(run.config)} if run.config else dict.fromkeys(folders, "")
    planned = [rung_name(rung.model) for rung in run.plan.rungs] if run.plan else []
    rungs = []
    for name in sorted(models, key=lambda name: planned.index(name) if name in planned else len(planned)):
        train = _result(run, f"rungs/{name}/train.json", train_from_json)
        rung = RungFiles(train.model if train else models[name] or name, train)
        if (base / name / "eval.json").exists():
            read = _result if with_rows else _skimmed
            rung.arm = read(run, f"rungs/{name}/eval.json", lambda r: arm_from_json(r["arm"]))
        rung.regression = _result(run, f"rungs/{name}/regression.json", _regression)
        rung.searched = _result(run, f"rungs/{name}/search.json", dict)
        rung.curve = _result(run, f"rungs/{name}/curve.json", dict)
        rung.history = list(train.history) if train else _steps(base / name / "steps.jsonl")
        rungs.append(rung)
    return rungs


def _regression(row: dict[str, Any]) -> dict[str, Any]:
    """The row, which holds what is shown of it."""
    regression.from_json(row)
    return row


def _steps(path: Path) -> list[dict[str, float]]:
    """Whole lines of steps.jsonl that carry a step; a resumed step replaces the earlier one."""
    if not path.exists():
        return []
    by_step: dict[float, dict[str, float]] = {}
    for line in path.read_bytes().split(b"\n"):
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), (int, float)):
            by_step[row["step"]] = {**by_step.get(row["step"], {}), **row}
    return [by_step[step] for step in sorted(by_step)]


def _prompts(path: Path) -> dict[str, list[Message]]:
    """The messages before the answer of each held-out row; a damaged line is left out."""
    prompts = {}
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            row = parse_json(line)
            prompts[str(row["id"])] = list(example_from_json(row).request)
        except (ValueError, KeyError, TypeError, IndexError):
            continue
    return prompts
