"""What the list says of a run, from the small files of its folder; read again only when one of them changed."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from ..errors import BudgetStopped, Interrupted
from ..files import read_json
from ..launch.records import ENDED, Launch
from ..launch.register import LAUNCH_FILE, registered
from ..ledger import Ledger
from ..live import FILE as LIVE
from ..live import read_live
from ..records import Estimate
from ..report.rows import head_of
from ..runfolder import Holder, RunFolder
from .places import run_folders

SMALL_FILES = ("run.yaml", "meta.json", "ladder.json", "ledger.jsonl", LIVE, LAUNCH_FILE, "curate.json", "plan.json")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, ten times as quick, where PyYAML has it

# State of a run -> (sign, words). The sign repeats by shape what the colour says.
STATES = {
    "running": ("●", "running"),
    "starting": ("◌", "starting"),
    "stopping": ("◍", "stopping"),
    "away": ("◉", "running elsewhere"),
    "met": ("✔", "bar met"),
    "unmet": ("✕", "bar not met"),
    "budget": ("■", "stopped by its budget"),
    "interrupted": ("■", "stopped"),
    "killed": ("■", "stopped without a word"),
    "failed": ("!", "failed"),
    "part": ("○", "not finished"),
    "new": ("○", "not started"),
    "broken": ("!", "cannot be read"),
}
WORKING = ("running", "starting", "stopping", "away")


@dataclass(frozen=True)
class Facts:
    """What the small files say; the state is as if no process worked on the folder."""

    state: str
    why: str = ""
    arm: str | None = None
    score: Estimate | None = None
    metric: str = ""
    kind: str = ""
    bar: float | None = None
    budget_usd: float | None = None
    spent_usd: float | None = None
    price_usd_per_hour: float = 0.0
    updated_at: str = ""
    live: dict[str, Any] | None = None


@dataclass(frozen=True)
class Overview:
    """One line of the list."""

    name: str
    facts: Facts
    state: str
    why: str = ""
    holder: Holder | None = None
    launch: Launch | None = None


@dataclass
class Reader:
    """Reads overviews and keeps what it read, by the files' times and sizes."""

    runs_dir: Path
    _kept: dict[str, tuple[tuple[Any, ...], Facts]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def all(self) -> list[Overview]:
        """Every run, those that work first, then the newest."""
        folders = run_folders(self.runs_dir)
        is_launched = any((folder / LAUNCH_FILE).is_file() for folder in folders)
        launches = {launch.run_folder: launch for launch in registered()} if is_launched else {}
        found = [self._look(folder, launches.get(str(folder.resolve()))) for folder in folders]
        return sorted(found, key=lambda run: (run.state in WORKING, run.facts.updated_at, run.name), reverse=True)

    def one(self, folder: Path) -> Overview:
        """The run of one folder."""
        launches = registered() if (folder / LAUNCH_FILE).is_file() else []
        own = [launch for launch in launches if launch.run_folder == str(folder.resolve())]
        return self._look(folder, own[-1] if own else None)

    def _look(self, folder: Path, launch: Launch | None) -> Overview:
        signature = tuple(_stamp(folder / name) for name in SMALL_FILES)
        with self._lock:
            kept = self._kept.get(folder.name)
        facts = kept[1] if kept and kept[0] == signature else _read(folder)
        with self._lock:
            self._kept[folder.name] = (signature, facts)
        holder = RunFolder(folder).holder()
        if holder is not None:
            return Overview(folder.name, facts, "running", holder=holder, launch=launch)
        if launch is not None and launch.state not in ENDED:
            place = ":".join(part for part in (launch.backend, launch.target) if part)
            return Overview(folder.name, facts, "away", f"{place}: {launch.state}", launch=launch)
        return Overview(folder.name, facts, facts.state, facts.why, launch=launch)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _read(folder: Path) -> Facts:
    """The facts of a folder; what is damaged is told as the state broken."""
    if not (folder / "run.yaml").is_file():
        return Facts(
            "new", "nothing was done here yet; start it with: shoestring run RUN_FILE", updated_at=_modified(folder)
        )
    try:
        return _facts(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        # Whatever a person or a full disk did to this folder, the others must still be listed.
        why = " ".join(str(error).split())[:200] or type(error).__name__
        return Facts("broken", f"{why}; shoestring run RUN_FILE writes it anew", updated_at=_modified(folder))


def _facts(folder: Path) -> Facts:
    told = _top(folder / "run.yaml", ("task", "budget_usd"))
    task = told["task"]
    live = read_live(folder)
    concluded = RunFolder(folder).record("ladder.json")
    verdict = concluded["result"] if concluded else None
    state, why = _state(verdict, live)
    arm, score = _score(folder, verdict)
    ledger, price = Ledger(folder / "ledger.jsonl"), _price(folder)
    ended = (live or {}).get("ended") or {}
    meta = read_json(folder / "meta.json")
    return Facts(
        state,
        why,
        arm=arm,
        score=score,
        metric=str(task["metric"]).replace("_", " "),
        kind=str(task["kind"]),
        bar=float(task["bar"]),
        budget_usd=told["budget_usd"],
        spent_usd=ledger.spent_usd(live_usd_per_hour=price),
        price_usd_per_hour=price,
        updated_at=str(ended.get("at") or meta["updated_at"]),
        live=live,
    )


def _state(verdict: dict[str, Any] | None, live: dict[str, Any] | None) -> tuple[str, str]:
    """The state of a folder that no process works on, and why."""
    ended: dict[str, Any] = (live or {}).get("ended") or {}
    kind = ended.get("type")
    if kind == BudgetStopped.__name__:
        return "budget", str(ended["message"])
    if kind == Interrupted.__name__:
        return "interrupted", "it can go on from its last checkpoint"
    if kind is not None:
        return "failed", str(ended["message"]) or str(kind)
    if verdict is not None:
        return ("met" if verdict["met"] else "unmet"), str(verdict["reason"])
    if ended:
        return "part", "the stages asked for are done"
    return "killed", "its process is gone; it can go on from its last checkpoint"


def _score(folder: Path, verdict: dict[str, Any] | None) -> tuple[str | None, Estimate | None]:
    """The verdict's score; where it has none the best fine-tune's so far, by the heads of the records."""
    if verdict is not None and verdict["score"]:
        score = verdict["score"]
        return verdict["arm"], Estimate(score["value"], score["low"], score["high"])
    pattern = "rungs/*/eval.json" if any(folder.glob("rungs/*/eval.json")) else "decide/*.json"
    heads = [head for head in map(head_of, folder.glob(pattern)) if head is not None]
    best = max(heads, key=lambda head: head[2].value, default=None)
    return (best[0], best[2]) if best else (None, None)


def _price(folder: Path) -> float:
    """Dollars an hour that the plan reckons with; 0 before there is one."""
    planned = RunFolder(folder).record("plan.json")
    rungs = planned["result"]["rungs"] if planned else ()
    return max((float(rung["price_usd_per_hour"]) for rung in rungs), default=0.0)


def _top(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Some top-level keys of a run file that we wrote, without parsing the others."""
    kept, takes = [], False
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line[:1] not in (" ", "#", "-", ""):
            takes = line.partition(":")[0] in keys
        if takes:
            kept.append(line)
    found = yaml.load("\n".join(kept), LOADER)
    if not isinstance(found, dict) or not set(keys) <= found.keys():
        raise ValueError(f"{path.name} is not as this program wrote it: it lacks {' or '.join(keys)}")
    return {key: found[key] for key in keys}


def _modified(folder: Path) -> str:
    if not folder.is_dir():  # deleted while it was looked at
        return ""
    return datetime.fromtimestamp(folder.stat().st_mtime).astimezone().isoformat(timespec="seconds")
