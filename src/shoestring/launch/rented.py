"""What launchers of rented machines share: machines of the plan, files there, installation, the command, the bill."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ..config import RunConfig, load_run_file
from ..embedded import family
from ..errors import BadInput, LaunchError, ShoestringError
from ..files import read_json, write_json
from ..ladder import models_of
from ..market.terms import value
from ..records import Estimate, Log
from ..secrets import without_secrets
from ..train.locate import with_folders
from ..units import SECONDS_PER_HOUR
from . import needs
from .aboard import DONE_CODES, Copies, Place, State
from .backend import Order
from .records import Expense, Launch, Status

MOST_CANDIDATES = 3
SCHEMES = ("s3://", "gs://", "az://")
PRICE_ROOM = 1.25  # a machine dearer than the quoted price by more than this is not taken
PYTHON = "venv/bin/python"
STOPPED_CODES = (4, 5)  # of `shoestring run`: the budget, interrupted


@dataclass(frozen=True, slots=True)
class Candidate:
    """A machine of the plan, as the launcher can order it."""

    place: str  # the cloud by the launcher's name
    region: str  # empty: any
    gpu: str  # row of the GPU table
    num_gpus: int
    is_spot: bool
    usd_per_hour: float  # of the machine
    option: Mapping[str, Any]  # of choice.json

    @property
    def most_usd_per_hour(self) -> float:
        """Above this it is not taken."""
        return self.usd_per_hour * PRICE_ROOM


def candidates(
    order: Order, clouds: Mapping[str, str], *, cloud: str = "", region: str = "", no_spot: Collection[str] = ()
) -> list[Candidate]:
    """Machines for rent in the plan's order, its pick first; at most MOST_CANDIDATES, all for the model of the first.

    clouds: sellers of the price table to the launcher's names; others cannot be ordered and are passed over.
    """
    options = sorted([*([order.offer] if order.offer else []), *order.offers], key=lambda option: not option["is_pick"])
    found: dict[tuple[Any, ...], Candidate] = {}
    model = ""
    for option in options:
        place = clouds.get(option["seller"], "") if option["kind"] == "rented" else ""
        is_out = not place or (cloud and place != cloud) or (option["is_spot"] and place in no_spot)
        if is_out or option["usd"]["value"] > order.budget_usd or (model and option["model"] != model):
            continue
        model = option["model"]
        num = int(option["num_gpus"]["value"])
        one = Candidate(
            place=place,
            region=region or ("" if cloud else option["region"] or ""),
            gpu=option["gpu"],
            num_gpus=num,
            is_spot=option["is_spot"],
            usd_per_hour=option["price"]["value"] * num,
            option=option,
        )
        found.setdefault((one.place, one.gpu, one.num_gpus, one.is_spot), one)
    return list(found.values())[:MOST_CANDIDATES]


def notes_on(found: Sequence[Candidate], order: Order, name: str) -> list[str]:
    """What a person should know of the choice."""
    best, notes = found[0], []
    pick = order.offer
    if pick is not None and best.option != pick:
        notes.append(f"plan would take {pick['words']}, which {name} cannot order; {best.option['words']} instead")
    others = [one.option["words"] for one in found[1:]]
    if others:
        notes.append(f"where there is none: {'; then '.join(others)}")
    notes.append(
        f"ended after {limit_of(found, order.budget_usd, None) / SECONDS_PER_HOUR:.1f} billed hours: the budget at the "
        f"dearest price a machine is taken for ({PRICE_ROOM:g} x the quoted one)"
    )
    return [*notes, *best.option["notes"]]


def limit_of(found: Sequence[Candidate], budget_usd: float, limit_s: float | None) -> int:
    """Billed seconds after which the machine ends the run: the budget at the dearest price it may be taken for."""
    of_budget = budget_usd / max(one.most_usd_per_hour for one in found) * SECONDS_PER_HOUR
    return int(min(of_budget, limit_s if limit_s is not None else of_budget))


def rented_hours(best: Candidate) -> Expense:
    """The predicted expense of the machine."""
    return Expense("rented hours", _estimate(best.option["usd"]), predicted_s=_seconds(best.option["billed_hours"]))


def _estimate(figure: Mapping[str, Any]) -> Estimate:
    return Estimate(*(figure.get(key, figure["value"]) for key in ("value", "low", "high")))


def _seconds(figure: Mapping[str, Any]) -> Estimate | None:
    return None if figure["value"] is None else _estimate(figure).scaled(SECONDS_PER_HOUR)


def bill(launch: Launch, spent_s: float | None) -> tuple[Expense, ...]:
    """Seconds so far at the quoted price."""
    predicted = launch.predicted[0] if launch.predicted else Expense("rented hours")
    usd = None
    if spent_s is not None and launch.price_usd_per_hour is not None:
        usd = spent_s / SECONDS_PER_HOUR * launch.price_usd_per_hour
    return (Expense(predicted.item, predicted.predicted_usd, usd, predicted.predicted_s, spent_s),)


def send_ahead(run_folder: Path, place: str, log: Log) -> None:
    """What a run has here already goes to the place, and the machine goes on from it.

    Raises: MissingDependency where the place's driver is missing, LaunchError where it cannot be written.
    """
    there = Place(place)
    if not any(run_folder.glob("*/receipt.json")):  # nothing was done here
        return
    try:
        num = Copies(there, run_folder).send()
    except ShoestringError:
        raise
    except Exception as error:  # each driver has its own
        told = without_secrets(f"{type(error).__name__}: {error}")
        raise LaunchError(
            f"{place} cannot be written: {told}; does the bucket exist, are its keys set here?"
        ) from error
    log(f"{num} files of {run_folder} to {place}: the machine goes on from what is done")


def bring(launch: Launch, place: str, log: Log) -> None:
    """Bring what a launch's machine kept at its place, each state once: later work in the run folder stays.

    Raises: LaunchError.
    """
    run_folder, there = Path(launch.run_folder), Place(place)
    mark = run_folder / "launch" / f"{launch.id}.brought.json"
    seen = None
    with contextlib.suppress(OSError, ValueError):  # none, or damaged: it is brought again
        seen = read_json(mark)
    if seen is not None and seen == {"round": there.state().round}:
        log(f"what {place} holds was brought already; to bring it again, over what is here, remove {mark}")
        return
    copies = Copies(there, run_folder)
    num = copies.bring()
    if copies.state.round:
        write_json(mark, {"round": copies.state.round})
    log(f"{num} files from {place}")


def with_place(launch: Launch, place: str, status: Status, spent_s: float | None) -> Status:
    """What the launcher says, with seconds and exit code as the machine wrote them to the place, if it did."""
    note, code, state = status.note, None, status.state
    try:
        kept = Place(place).state()
    except (LaunchError, BadInput) as error:  # what the launcher says stands all the same
        kept, note = State(), f"{note}; {error}"
    if kept.outcome is not None:
        code, note = kept.outcome["exit_code"], f"{note}; {kept.outcome['why']}"
        state = "stopped" if state == "failed" and code in STOPPED_CODES else state
    bill_so_far = bill(launch, kept.billed_s if kept.round else spent_s)
    return replace(status, state=state, note=without_secrets(note.strip("; ")), exit_code=code, bill=bill_so_far)


def left_at(launch: Launch, place: str, note: str) -> Status:
    """A launch that the launcher knows no more: how it ended, if its machine wrote that to the place; else lost."""
    status = with_place(launch, place, Status("lost", None, note), None)
    if status.exit_code is None:
        return status
    state = "done" if status.exit_code in DONE_CODES else "stopped" if status.exit_code in STOPPED_CODES else "failed"
    return replace(status, state=state)


def order_of(launch: Launch) -> Order:
    """The order a launch was made of, from its run file and its plan. Raises: ConfigError, BadInput without a plan."""
    run_file, run_folder = Path(launch.run_file), Path(launch.run_folder)
    config = with_folders(load_run_file(run_file), run_file.parent)
    plan = run_folder / "choice.json"
    if not plan.is_file():
        raise BadInput(f"{plan} is not there; first: shoestring plan {run_file}")
    told = read_json(plan)
    rented = [option for option in told["options"] if option["kind"] == "rented"]
    pick = next((option for option in rented if option["is_pick"]), rented[0] if rented else None)
    return Order(
        config=config,
        run_file=run_file,
        run_folder=run_folder,
        target=launch.target,
        budget_usd=launch.budget_usd,
        deadline_h=launch.deadline_h,
        work_s=None,
        offer=pick,
        offers=rented,
        options=launch.options,
    )


class _Dumper(yaml.SafeDumper):
    """Scripts as blocks that a person can read."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def as_yaml(parts: Mapping[str, Any]) -> str:
    """The keys in their order; parts that are empty are left out."""
    kept = {key: value for key, value in parts.items() if value}
    return yaml.dump(kept, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


# ---- files, installation, command -----------------------------------------------------------


def laid_out(config: RunConfig, run_file: Path) -> tuple[str, dict[str, str]]:
    """Where the run file lies there, and what is copied: place there to file or folder here.

    What the run file names relative to itself lies so there too, below work/; absolute paths stay as they are.
    Raises: BadInput for a path that begins with ~, which means another folder there.
    """
    given = load_run_file(run_file)
    named = [*given.data.train, *given.data.eval, *given.data.documents, *given.models, given.train.start]
    named += [given.task.database, given.task.record_schema, given.task.metric, given.retrieval.embeddings]
    if any(name.startswith("~") for name in named):
        name = next(name for name in named if name.startswith("~"))
        raise BadInput(f"{run_file}: {name} begins with ~, another folder on a rented machine; make it relative")
    fixed = [Path(name) for name in named if name.startswith("/")]
    files = needs.files(config, run_file)
    stay = [path for path in files if any(path == f or path.is_relative_to(f) for f in fixed)]
    move = [path for path in files if path not in stay]
    common = Path(os.path.commonpath([str(path.parent) for path in move]))
    copied = {f"work/{path.relative_to(common).as_posix()}": str(path) for path in move}
    copied |= {str(path): str(path) for path in stay}
    return f"work/{run_file.relative_to(common).as_posix()}", copied


def trains_embedded(config: RunConfig) -> bool:
    """Whether a rung is a demonstration model, whose weights are in the package."""
    return any(model in family() for model in models_of(config))


def setup_lines(wheel: str, scheme: str = "") -> list[str]:
    """Install Shoestring from its wheel, with a Python of its own; scheme: of the bucket it writes to itself."""
    extras = ",".join(["all", *([scheme] if scheme else [])])
    return [
        "python3 -m pip install -q uv || python3 -m pip install -q --break-system-packages uv",
        f"test -x {PYTHON} || python3 -m uv venv -q --python 3.12 venv",
        f"python3 -m uv pip install -q --python {PYTHON} './{wheel}[{extras}]'",
    ]


def command_line(config: RunConfig, there: str, place: str, limit_s: int) -> str:
    """What the machine runs: the recipe, with its run folder kept at the place."""
    boot_s = value("boot_s").value + value("install_s").value
    words = [
        *(PYTHON, "-m", "shoestring.launch.aboard", "--place", place, "--run-folder", f"runs/{config.name}"),
        *("--limit-s", str(limit_s), "--boot-s", f"{boot_s:.0f}", "--"),
        *needs.run_command(PYTHON, there, "runs"),
    ]
    return shlex.join(words)


def bucket_of(options: Mapping[str, Any], name: str) -> str:
    """The address under which run folders are kept. Raises: BadInput without one, or where the launcher mounts none."""
    bucket = str(options.get("bucket") or "").rstrip("/")
    taken = tuple(
        scheme for scheme in SCHEMES if name != "skypilot" or scheme != "az://"
    )  # it mounts s3 and gs by these
    if not bucket.startswith(taken):
        what = f"launch.bucket = {bucket or 'empty'}"
        raise BadInput(
            f"{what}: {name} needs a bucket where the run folder is kept, since the machine is gone when the job ends; "
            f"add to the run file: launch: {{bucket: s3://BUCKET/FOLDER}} (of {', '.join(taken)})"
        )
    return bucket
