"""`shoestring runs`: one line a run folder; a damaged one is a line too."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import BadInput, ShoestringError
from ..files import read_json
from ..launch import register
from ..launch.records import ENDED, Launch
from ..launch.watch import Seen, look, off_frac, orphans
from ..records import to_json
from ..units import usd
from .output import emit, say
from .tables import score_text, table


def command(runs_dir: Path, is_json: bool) -> int:
    """List the folders of runs_dir, newest first."""
    if runs_dir.exists() and not runs_dir.is_dir():
        raise BadInput(f"--runs-dir {runs_dir} is a file; give the folder that holds the runs")
    folders = [p for p in runs_dir.iterdir() if p.is_dir() and not p.name.startswith(".")] if runs_dir.is_dir() else []
    listed = sorted((read_run(folder) for folder in folders), key=lambda run: run["updated_at"] or "", reverse=True)
    launched = look(launches_of(runs_dir))
    if is_json:
        emit({"runs_dir": str(runs_dir), "runs": listed, "launches": [_launch_told(seen) for seen in launched]})
    elif not listed and not launched:
        say(f"No runs in {runs_dir}. Start one: shoestring demo, or shoestring init DATA_FILE")
    else:
        heads = ("run", "stage", "verdict", "score", "predicted", "actual", "spent", "when")
        say(table(heads, [_row(run) for run in listed], right=(4, 5, 6)))
        if launched:
            say()
            _show_launches(launched)
    return 0


def launches_of(runs_dir: Path) -> list[Launch]:
    """The latest launch of each run here, and from anywhere those that have not ended."""
    here = runs_dir.resolve()
    latest = {launch.run_folder: launch for launch in register.registered() if Path(launch.run_folder).parent == here}
    going = [launch for launch in register.registered() if launch.state not in ENDED]
    found = {launch.id: launch for launch in (*latest.values(), *going)}
    return sorted(found.values(), key=lambda launch: launch.started_at, reverse=True)


def _launch_told(seen: Seen) -> dict[str, Any]:
    launch = seen.launch
    return {
        **to_json(launch),
        "cost_usd": launch.cost_usd,
        "predicted_usd": to_json(launch.predicted_usd),
        "off_frac": off_frac(launch),
        "trouble": seen.trouble or None,
    }


def _show_launches(launched: list[Seen]) -> None:
    rows = []
    for seen in launched:
        launch, off = seen.launch, off_frac(seen.launch)
        predicted = launch.predicted_usd
        place = f"{launch.backend}:{launch.target}" if launch.target else launch.backend
        rows.append(
            (
                launch.id,
                place,
                f"{launch.state}?" if seen.trouble else launch.state,
                "" if predicted is None else usd(predicted.value),
                "" if launch.cost_usd is None else usd(launch.cost_usd),
                "" if off is None else f"{off:+.0%}",
                _when(launch.started_at),
            )
        )
    say(table(("launch", "place", "state", "predicted", "actual", "off by", "when"), rows, right=(3, 4, 5)))
    for seen in launched:
        if seen.trouble:
            say(f"note: {seen.launch.id} could not be asked about: {seen.trouble}")


def orphans_command(is_json: bool) -> int:
    """What bills now at every place that is configured, known to a run folder or not."""
    found = orphans()
    if is_json:
        emit({"billing": to_json(found.billing), "not_asked": dict(found.not_asked)})
        return 0
    if found.billing:
        rows = []
        for one in found.billing:
            price = "" if one.usd_per_hour is None else usd(one.usd_per_hour)
            rows.append((one.backend, one.launch_id or "unknown", one.name, price, _when(one.since), one.stop))
        heads = ("place", "launch", "what", "an hour", "since", "to end it")
        say(table(heads, rows, right=(3,), flexible=2))
    else:
        say("Nothing of yours bills" + (" where it could be asked" if found.not_asked else ""))
    for name, why in found.not_asked.items():
        say(f"note: {name} could not be asked: {why}")
    return 0


def read_run(folder: Path) -> dict[str, Any]:
    """What the list says of one folder; 'broken' carries the reason where it cannot be read."""
    from ..recipe import Run

    told: dict[str, Any] = {"name": folder.name, "folder": str(folder), "updated_at": None, "broken": None}
    if (folder / register.LAUNCH_FILE).is_file() and not (folder / "meta.json").is_file():
        began = register.of_folder(folder)
        keys = ("metric", "bar", "spent_usd", "budget_usd", "verdict", "best", "predicted_usd", "actual_usd")
        told |= {**dict.fromkeys(keys), "stage": "not started", "updated_at": began.started_at if began else None}
        return told
    try:
        meta = read_json(folder / "meta.json")
        told["updated_at"] = str(meta["updated_at"])
        run = Run.from_folder(folder)
        summary = run.summary()
        entries = [e for e in run.ledger.entries() if (e.get("predicted") or {}).get("usd")]
        told.update(
            {key: summary[key] for key in ("stage", "metric", "bar", "spent_usd", "budget_usd")},
            verdict=summary["verdict"],
            best=max(summary["arms"], key=lambda arm: arm["score"], default=None),
            predicted_usd=sum(e["predicted"]["usd"]["expected"] for e in entries) if entries else None,
            actual_usd=sum(e["actual"].get("usd", 0.0) for e in entries) if entries else None,
        )
    except (ShoestringError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # Whatever a person or a full disk did to this folder, the others must still be listed.
        told["broken"] = " ".join(str(error).split()) or type(error).__name__
    return told


def _row(run: dict[str, Any]) -> tuple[str, ...]:
    when = _when(run["updated_at"])
    if run["broken"] is not None:
        return (run["name"], "broken", run["broken"][:80], "", "", "", "", when)
    verdict, best = run["verdict"], run["best"]
    if verdict is None:
        words, score = "" if run["stage"] == "not started" else "unfinished", None  # a baseline's is not the run's
    else:
        words = f"met by {verdict['arm']}" if verdict["met"] else "bar not met"
        score = verdict["score"] or (best and {"value": best["score"], "low": best["low"], "high": best["high"]})
    money = ["" if run[key] is None else usd(run[key]) for key in ("predicted_usd", "actual_usd", "spent_usd")]
    return (run["name"], run["stage"], words, score_text(score), *money, when)


def _when(stamp: str | None) -> str:
    """A stored UTC time in the reader's own zone."""
    try:
        return datetime.fromisoformat(stamp or "").astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return stamp or ""
