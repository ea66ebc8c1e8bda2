"""What is served: run folders become named models on one base, checked before an engine sees them.

A name is a run's, by a strict pattern; a client never gives a path. Adapters come and go while requests run.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import RunConfig, load_run_file
from ..errors import BadInput, ConfigError, ModelError
from ..files import read_json
from ..ladder import choose, model_of
from ..messages import Message, Prompt, split_tools, with_tools
from ..records import ArmScore, TrainResult, arm_from_json, train_from_json
from ..runfolder import RunFolder
from ..train.adapter import is_whole
from .adapters import MERGE, SERVE, Adapter, Base, Verdict, base_named, one_line, read_adapter, read_base, verdict
from .engine import Capability, Engine
from .passages import Passages, read_beside

# As run names are, with the colon of `ft:BASE:org:name:id`; no separator, no leading dot.
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:+-]{0,126}[A-Za-z0-9_+-])?")


@dataclass(frozen=True)
class Served:
    """One trained run, ready to be served by name. folder: its adapter, or its whole model under method full."""

    name: str
    run: Path
    rung: str
    folder: Path
    base: str  # as the run has it
    method: str  # lora, qlora, full
    adapter: Adapter | None  # None under full
    metric: str
    score: dict[str, float] | None  # value, low, high on the held-out rows
    meets_bar: bool | None
    system: str  # data.system: put before requests that have none, as before the run's rows
    created: int  # seconds since 1970 when training ended
    max_new_tokens: int | None
    merged: Path | None  # merged weights whose comparison passed
    passages: Passages | None = None  # of a rung trained with passages: what requests are filled from
    notes: tuple[str, ...] = field(default=())

    def prompt(self, messages: Prompt, count_tokens: Callable[[Sequence[Message]], int], room: int) -> Prompt:
        """A request's messages as the run's rows stood in training: with its system prompt, with its passages.

        room: tokens of the prompt at most; of passages as many are shown as it holds.
        """
        tools, turns = split_tools(messages)
        if self.system and not any(turn.role == "system" for turn in turns):
            messages = with_tools((Message("system", self.system), *turns), tools)
        return self.passages.fill(messages, count_tokens, room) if self.passages else messages


def check_name(name: str) -> str:
    """The name itself. Raises: BadInput where it cannot be a model's."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or ".." in name:
        raise BadInput(
            f"{str(name)[:80]!r} cannot be a model's name; letters, digits and . _ : + - between them, 128 at most"
        )
    return name


def run_named(name: str, runs_dir: Path) -> Path:
    """The run folder of that name directly in runs_dir. Raises: BadInput; a path, a link out or no run is refused."""
    folder, home = runs_dir / check_name(name), runs_dir.resolve()
    if not (folder / "run.yaml").is_file():
        raise BadInput(f"{runs_dir} holds no run named {name!r}; 'shoestring runs --runs-dir {runs_dir}' lists them")
    if folder.resolve().parent != home:
        raise BadInput(f"{name!r} lies outside {runs_dir}; runs are served from there alone")
    return folder


def find_run(given: str, runs_dir: Path) -> Path:
    """The run folder that a person means on the command line: a folder, a run file, or a name in runs_dir.

    Raises: BadInput, ConfigError.
    """
    path = Path(given)
    if (path / "run.yaml").is_file():
        return path
    if path.is_file():
        return run_named(load_run_file(path).name, runs_dir)
    if path.is_dir():
        raise BadInput(f"{path} is no run folder (it has no run.yaml); 'shoestring runs' lists them")
    if NAME.fullmatch(given):
        return run_named(given, runs_dir)
    raise BadInput(f"there is no run {given!r}; give a run's name, its folder or its run file")


def read_run(folder: Path, name: str = "") -> Served:
    """What a run offers: the rung of its verdict, or the best trained one where there is no verdict yet.

    name: by which it is served (default: the run's). Raises: BadInput, ConfigError.
    """
    run, config = RunFolder(folder), _config(folder)
    model, trained, arm = _rung(run, config)
    own = run.rung(model)
    place = folder / trained.adapter_dir
    sums = trained.settings.get("adapter_sha256", {})
    if not place.is_dir() or not is_whole(place, sums):
        raise BadInput(
            f"{place} is not as training left it (a file is missing or changed); 'shoestring run {folder}' puts it back"
        )
    passages = read_beside(place, _base_dir(folder)) if model_of(model) != model else None
    record = run.record(f"rungs/{own.name}/train.json") or {}
    return Served(
        name=check_name(name or config.name),
        run=folder,
        rung=model,
        folder=place,
        base=model_of(model),
        method=trained.method,
        adapter=None if trained.method == "full" else read_adapter(place),
        metric=config.task.metric,
        score=_score(arm),
        meets_bar=arm.meets(config.task.bar) if arm else None,
        system=config.data.system,
        created=_seconds(record.get("finished_at")),
        max_new_tokens=trained.settings.get("max_new_tokens"),
        merged=_merged(run, place),
        passages=passages,
        notes=() if arm else ("trained and not scored yet: 'shoestring run' scores it",),
    )


def _config(folder: Path) -> RunConfig:
    try:
        return load_run_file(folder / "run.yaml")
    except ConfigError as error:
        raise BadInput(f"{folder} cannot be served: {error}") from error


def _base_dir(folder: Path) -> Path:
    """What the paths of a run's file are relative to."""
    try:
        return Path(read_json(folder / "meta.json")["base_dir"])
    except (OSError, ValueError, KeyError, TypeError):
        return folder


def _rung(run: RunFolder, config: RunConfig) -> tuple[str, TrainResult, ArmScore | None]:
    """The rung to serve, its training, and its score on the held-out rows (None: not scored yet)."""
    trained: dict[str, TrainResult] = {}
    arms: dict[str, ArmScore] = {}
    for path in sorted(run.path.glob("rungs/*/train.json")):
        record = run.record(str(path.relative_to(run.path)))
        if record:
            result = train_from_json(record["result"])
            trained[result.model] = result
            scored = run.record(f"rungs/{path.parent.name}/eval.json")
            if scored:
                arms[result.model] = arm_from_json(scored["result"]["arm"])
    if not trained:
        concluded = run.record("ladder.json")
        why = concluded["result"]["reason"] if concluded else f"train first: shoestring run {run.path}"
        raise BadInput(f"{run.path} holds nothing trained, so it has no model of its own to serve ({why})")
    for name in ("ladder.json", "export.json"):
        record = run.record(name)
        model = record["result"].get("model") if record else None
        if model in trained:
            return model, trained[model], arms.get(model)
    if arms:
        model = choose(list(arms.values()), config.task.bar).model
        return model, trained[model], arms[model]
    if len(trained) > 1:
        raise BadInput(
            f"{run.path} has {len(trained)} trained rungs ({', '.join(trained)}) and none is scored; "
            f"'shoestring run {run.path}' finds the one to serve"
        )
    model, result = next(iter(trained.items()))
    return model, result, None


def _score(arm: ArmScore | None) -> dict[str, float] | None:
    return {"value": arm.score.value, "low": arm.score.low, "high": arm.score.high} if arm else None


def _seconds(moment: Any) -> int:
    try:
        return int(datetime.fromisoformat(str(moment)).timestamp())
    except ValueError:
        return 0


def _merged(run: RunFolder, place: Path) -> Path | None:
    """Merged weights of this very rung that were compared and passed."""
    record = run.record("export.json")
    if record is None:
        return None
    result = record["result"]
    check = result.get("merge_check") or {}
    folder = run.path / str(result.get("merged_dir", ""))
    is_own = (run.path / str(result.get("adapter_dir", ""))).resolve() == place.resolve()
    return folder if is_own and check.get("passed") and (folder / "config.json").is_file() else None


def one_base(runs: Sequence[Served]) -> Base:
    """The base that all runs share, by content. Raises: BadInput naming those that do not, ModelError."""
    first, *others = runs
    if whole := [r.name for r in runs if r.method == "full"]:
        if others:
            raise BadInput(
                f"{', '.join(whole)}: every weight is its own (method: full), so it shares no base; serve it alone"
            )
        return read_base(str(first.folder))
    base = read_base(first.base)
    for other in others:
        if (other.method == "qlora") != (first.method == "qlora"):
            forms = {True: "in NF4", False: "in 16 bits"}
            raise BadInput(
                f"{first.name} was trained on its base {forms[first.method == 'qlora']} and {other.name} on its base "
                f"{forms[other.method == 'qlora']}: two models; serve them apart, or merge one (shoestring export)"
            )
        if other.base != first.base and read_base(other.base).print != base.print:
            raise BadInput(
                f"{first.name} is of {first.base} and {other.name} of {other.base}: one server holds one base; serve "
                "them apart, on another port"
            )
    return base


def as_merged(run: Served) -> Served:
    """The same run by its merged weights, a whole model; only where they were compared and passed."""
    assert run.merged is not None
    why = "answers by its merged weights, which were held against the adapter"
    return replace(run, folder=run.merged, adapter=None, method="full", notes=(*run.notes, why))


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table that a server's start shows."""

    served: Served
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """As --json prints it."""
        own, adapter = self.served, self.served.adapter
        return {
            "name": own.name,
            "run": str(own.run),
            "base": own.base,
            "method": own.method,
            "rank": adapter.rank if adapter else None,
            "features": sorted(adapter.features) if adapter else [],
            "metric": own.metric,
            "score": own.score,
            "meets_bar": own.meets_bar,
            "decision": self.verdict.decision,
            "reason": self.verdict.reason,
            "notes": [*own.notes, *self.verdict.notes],
            "merged": str(own.merged) if own.merged else None,
        }


def check(runs: Sequence[Served], base: Base, engine: Capability) -> list[Line]:
    """What this engine does with each run on this base; nothing is loaded."""
    return [Line(run, _verdict(run, base, engine)) for run in runs]


def _verdict(run: Served, base: Base, engine: Capability) -> Verdict:
    if run.adapter is None:
        return Verdict(SERVE, "", ("the whole model is its own: it is served as the base",))
    return verdict(run.adapter, base, engine)


def refusal(line: Line) -> str:
    """A verdict other than SERVE in words, with the next step."""
    own, found = line.served, line.verdict
    alone = f"shoestring serve {own.run}, alone: it answers by its merged weights"
    step = alone if own.merged else f"shoestring export {own.run}"
    return f"{own.name}: {one_line(found)}" + (f"; next: {step}" if found.decision == MERGE else "")


class Registry:
    """The models of a running server: the base by its own name, and adapters that come and go by theirs."""

    def __init__(self, engine: Engine, base: Base, runs_dir: Path, *, name: str = "") -> None:
        """name: of the base, where it is served by another than its own: a run's whose every weight is new."""
        self.engine, self.base, self.runs_dir = engine, base, Path(runs_dir)
        self.base_name = name or base_named(base.model)
        self.models: dict[str, Served] = {}
        # How an adapter comes into the engine; one that is proven first is put in its place here.
        self.load: Callable[[str, Path], Awaitable[None]] = engine.load
        self._lock = asyncio.Lock()

    async def add(self, run: Served) -> Served:
        """Check a run and let it answer by its name, in place of an earlier one of that name.

        Requests on their way keep the adapter they began with; where this raises, the earlier one goes on answering.
        Raises: BadInput with the verdict, ModelError.
        """
        if run.name == self.base_name:
            raise BadInput(f"{run.name!r} is the base's own name; give the run another")
        found = await asyncio.to_thread(_verdict, run, self.base, self.engine.capability)
        if run.adapter is None:
            found = Verdict("refuse", "every weight is its own (method: full), so it shares no base; serve it alone")
        if found.decision != SERVE:
            raise BadInput(refusal(Line(run, found)))
        most = self.engine.capability.max_adapters
        async with self._lock:
            if most is not None and run.name not in self.models and len(self.models) >= most:
                raise BadInput(
                    f"{run.name}: {self.engine.capability.name} holds {most} adapters here, and {most} are loaded; "
                    "drop one first"
                )
            try:
                await self.load(run.name, run.folder)
            except ModelError as error:
                if run.name not in self.models:
                    raise
                raise ModelError(f"{error}. The {run.name} that was loaded before goes on answering") from error
            self.models[run.name] = run
        return run

    async def add_folder(self, folder: Path, as_name: str = "") -> Served:
        """Load the run in a folder of ours, which no client names. Raises: BadInput, ModelError."""
        return await self.add(await asyncio.to_thread(read_run, folder, as_name))

    async def add_named(self, name: str, as_name: str = "") -> Served:
        """Load or reload the run of that name in runs_dir. Raises: BadInput, ModelError."""
        return await self.add_folder(run_named(name, self.runs_dir), as_name)

    async def drop(self, name: str) -> None:
        """No longer answer by that name; requests on their way end first. Raises: BadInput."""
        async with self._lock:
            if name not in self.models:
                raise BadInput(f"no adapter {check_name(name)!r} is loaded; loaded are: {self.names() or 'none'}")
            del self.models[name]
            await self.engine.drop(name)

    def names(self) -> str:
        """The adapters, for a sentence."""
        return ", ".join(sorted(self.models))

    def listing(self) -> list[Mapping[str, Any]]:
        """As GET /v1/models lists them: the base, then adapters with the base as parent."""
        entries: list[Mapping[str, Any]] = [
            {
                "id": self.base_name,
                "object": "model",
                "created": 0,
                "owned_by": "shoestring",
                "parent": None,
                "engine": self.engine.capability.name,
                "server_version": __version__,
            }
        ]
        for name, run in sorted(self.models.items()):
            entries.append(
                {
                    "id": name,
                    "object": "model",
                    "created": run.created,
                    "owned_by": "shoestring",
                    "parent": self.base_name,
                }
            )
        return entries
