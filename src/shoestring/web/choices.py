"""The plan with other dials: rows, epochs, deadline, budget, traffic; quick enough to be turned by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from starlette.exceptions import HTTPException

from ..config import RunConfig, load_run_file, parse_run_file
from ..errors import ConfigError
from ..files import write_whole
from ..recipe import Run
from ..stages import spotting
from ..stages.choosing import Looked, look, weigh
from ..stages.closing import meta_of, write_run_file
from ..stages.run_text import with_values
from ..stages.told import told
from .drop import Drop
from .forms import number_of
from .kept import Kept

DEFAULT_TRAFFIC = {"requests_per_month": 100_000.0, "prompt_tokens": 300, "completion_tokens": 80, "months": 12.0}


@dataclass(frozen=True, slots=True)
class Dial:
    """One slider: the key it turns, its words, and its ends; log: equal steps multiply."""

    name: str
    words: str
    low: float
    high: float
    step: float
    log: bool = True
    none: str = ""  # what an empty field means
    help: str = ""


def dials(most_rows: int) -> list[Dial]:
    """The sliders, the rows' end by the data."""
    return [
        Dial("rows", "Training rows, at most", 20, max(21, most_rows), 1, none="all"),
        Dial("epochs", "Epochs", 0.5, 10, 0.5, log=False, none="derived from the rows"),
        Dial("deadline_h", "Deadline, hours", 0.1, 168, 0.1, none="none"),
        Dial("budget_usd", "Budget, dollars", 0.01, 10_000, 0.01, help="a hard stop"),
        Dial("requests_per_month", "Requests a month", 100, 1e8, 1, none="training alone is weighed"),
        Dial("prompt_tokens", "Tokens of a request", 1, 100_000, 1),
        Dial("completion_tokens", "Tokens of an answer", 1, 10_000, 1),
        Dial("months", "Months of serving", 1, 60, 1, log=False),
    ]


@dataclass(frozen=True, slots=True)
class Target:
    """What is planned: a run's folder or a dropped file; run_file: where its run file is, None where it is gone."""

    config: RunConfig
    base_dir: Path
    folder: Path
    run_file: Path | None
    address: str  # of its plan page

    def run(self, config: RunConfig | None = None) -> Run:
        """The run, with another config where one is given."""
        return Run(config or self.config, base_dir=self.base_dir, folder=self.folder, run_file=self.run_file)


def of_run(folder: Path) -> Target:
    """A run's plan is that of its run file; where that is gone, or is now another run's, of the folder's own copy.

    Raises: HTTPException 404 before the run has read its run file; ConfigError.
    """
    named = meta_of(folder).get("run_file")
    run_file = Path(named) if isinstance(named, str) else None
    if run_file is not None and run_file.is_file():
        config = load_run_file(run_file)
        if config.name == folder.name:
            return Target(config, run_file.parent, folder, run_file, f"/runs/{folder.name}/plan")
    if not (folder / "run.yaml").is_file():
        raise HTTPException(404, f"{folder.name} has no run file yet; start it first")
    run = Run.from_folder(folder)
    return Target(load_run_file(folder / "run.yaml"), run.base_dir, folder, None, f"/runs/{folder.name}/plan")


def of_drop(runs_dir: Path, found: Drop) -> Target:
    """A dropped file whose run file is written. Raises: HTTPException 404, ConfigError."""
    if not found.run_file.is_file():
        raise HTTPException(404, "task and bar are not chosen yet")
    config = load_run_file(found.run_file)
    return Target(config, found.folder, runs_dir / config.name, found.run_file.resolve(), f"/new/{found.id}/plan")


def given_dials(config: RunConfig) -> dict[str, float | None]:
    """The dials as the run file has them."""
    traffic = config.traffic.model_dump() if config.traffic else {**DEFAULT_TRAFFIC, "requests_per_month": None}
    return {
        "rows": config.curate.max_train_rows,
        "epochs": config.train.num_epochs,
        "deadline_h": config.deadline_h,
        "budget_usd": config.budget_usd,
        **traffic,
    }


def read_dials(form: Mapping[str, Any], config: RunConfig) -> dict[str, float | None]:
    """The dials of a form; those it lacks stand as in the run file. Raises: BadInput."""
    found = given_dials(config)
    for key in found:
        if key in form:
            value = number_of(form, key)
            found[key] = found[key] if value is None and key in ("budget_usd", *list(DEFAULT_TRAFFIC)[1:]) else value
    return found


def values_of(turned: Mapping[str, float | None]) -> dict[tuple[str, ...], Any]:
    """Keys of the run file and what the dials say of them."""

    def whole(key: str) -> int | None:
        value = turned[key]
        return None if value is None else round(value)

    traffic = {key: turned[key] if key in ("requests_per_month", "months") else whole(key) for key in DEFAULT_TRAFFIC}
    return {
        ("curate", "max_train_rows"): whole("rows"),
        ("train", "num_epochs"): turned["epochs"],
        ("deadline_h",): turned["deadline_h"],
        ("budget_usd",): turned["budget_usd"],
        ("traffic",): traffic if turned["requests_per_month"] else None,
    }


def changed(config: RunConfig, values: Mapping[tuple[str, ...], Any]) -> RunConfig:
    """The config with the values. Raises: ConfigError naming what cannot be."""
    raw = config.model_dump(mode="json", exclude_unset=True)
    for path, value in values.items():
        section = raw
        for key in path[:-1]:
            section = section.setdefault(key, {})
        if value is not None or path[-1] in section:
            section[path[-1]] = value
    return parse_run_file(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), name="")


LOOKS: Kept[Any, Looked] = Kept()


def looked_at(target: Target) -> Looked:
    """A sample of a target's data with the tokens of its rows, read again where a file changed. Raises: DataError."""
    config = target.config
    files = [target.base_dir / name for name in (*config.data.train, *config.data.eval)]
    stamps = [(stat.st_mtime_ns, stat.st_size) for file in files if file.is_file() for stat in [file.stat()]]
    signature = (target.base_dir, config.data.model_dump_json(), config.train.objective, stamps)
    return LOOKS.of(target.folder, signature, lambda: look(target.run()))


def planned(target: Target, values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """What `shoestring plan --json` says of machines, services and the bill, with these values.

    Raises: ConfigError, DataError, ModelError.
    """
    run = target.run(changed(target.config, values))
    weighed = weigh(run, looked_at=looked_at(target))
    return {**told(weighed, run.config.name), "spot": spotting.told(run, weighed, None)}


def write(target: Target, values: Mapping[tuple[str, ...], Any]) -> Target:
    """Write the values into the run file, comments kept. Raises: ConfigError, RunFolderError."""
    config = changed(target.config, values)
    different = {path: value for path, value in values.items() if _at(target.config, path) != _at(config, path)}
    if not different:
        return target
    if target.run_file is None:  # the folder's own copy, which we wrote
        run = target.run(config)
        with run.run_folder.locked():
            write_run_file(run)
        return replace(target, config=config)
    try:
        text = target.run_file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{target.run_file}: cannot be read ({error.strerror}); open the page again") from None
    write_whole(target.run_file, with_values(text, different, config, str(target.run_file)))
    return replace(target, config=config)


def _at(config: RunConfig, path: tuple[str, ...]) -> Any:
    value: Any = config
    for key in path:
        value = getattr(value, key)
    return value
