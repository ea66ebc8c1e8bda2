"""`shoestring runs`: one line a run folder; a damaged one is a line too."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import BadInput, ShoestringError
from ..files import read_json
from ..units import usd
from .output import emit, say
from .tables import score_text, table


def command(runs_dir: Path, is_json: bool) -> int:
    """List the folders of runs_dir, newest first."""
    if runs_dir.exists() and not runs_dir.is_dir():
        raise BadInput(f"--runs-dir {runs_dir} is a file; give the folder that holds the runs")
    folders = [p for p in runs_dir.iterdir() if p.is_dir() and not p.name.startswith(".")] if runs_dir.is_dir() else []
    listed = sorted((read_run(folder) for folder in folders), key=lambda run: run["updated_at"] or "", reverse=True)
    if is_json:
        emit({"runs_dir": str(runs_dir), "runs": listed})
    elif not listed:
        say(f"No runs in {runs_dir}. Start one: shoestring demo, or shoestring init DATA_FILE")
    else:
        heads = ("run", "stage", "verdict", "score", "predicted", "actual", "spent", "when")
        say(table(heads, [_row(run) for run in listed], right=(4, 5, 6)))
    return 0


def read_run(folder: Path) -> dict[str, Any]:
    """What the list says of one folder; 'broken' carries the reason where it cannot be read."""
    from ..recipe import Run

    told: dict[str, Any] = {"name": folder.name, "folder": str(folder), "updated_at": None, "broken": None}
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
