"""The learning rate of a rung, searched where the run file asks for it: a record and a ledger line of its own."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from ..plan.dev_rows import MAX_DEV_ROWS
from ..plan.parallel import FSDP
from ..records import Curated, Estimate, RungPlan, TrainSettings, to_json
from ..train.processes import call_together
from ..train.search import SearchResult, search_learning_rate
from ..train.world import is_launched
from ..units import SECONDS_PER_HOUR, duration
from . import inputs
from .common import device, rung_file, sample_rows
from .recorder import once

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..recipe import Run


def settled(
    run: Run, rung: RungPlan, curated: Curated, should_stop: Callable[[float], Exception | None]
) -> TrainSettings:
    """The rung's settings with the rate that a search found; as they are where none is asked for.

    Raises: BudgetStopped, and what search_learning_rate does.
    """
    if not rung.settings.search_tokens:
        return rung.settings
    name, folder = rung_file(rung.model, "search.json"), run.run_folder.rung(rung.model) / "search"

    def work() -> tuple[Any, SearchResult]:
        if rung.search_s is not None:
            run.log(f"Rung {rung.model}: learning-rate search, predicted {duration(rung.search_s.value)}")
        found = _in_one_process(
            rung.settings,
            {
                "model": rung.model,
                "train": curated.all_rows("train"),
                "dev": sample_rows(curated.all_rows("dev"), MAX_DEV_ROWS, run.config.seed),
                "out_dir": folder,
                "settings": rung.settings,
                "device": device(run),
            },
            {"should_stop": should_stop, "progress": run.progress, "log": run.log},
        )
        return to_json(found), found

    found = once(
        run, name, work, from_json, after="curate.json", depends_on=inputs.train(run, rung), predicted=predicted(rung)
    )
    for weights in folder.glob("*.pt"):
        weights.unlink()
    run.log(f"Rung {rung.model}: {line(to_json(found))}")
    reasons = {**rung.settings.reasons, "learning_rate": line(to_json(found))}
    return dataclasses.replace(rung.settings, learning_rate=found.learning_rate, reasons=reasons)


def _in_one_process(settings: TrainSettings, given: dict[str, Any], hooks: dict[str, Any]) -> SearchResult:
    """The search here, or, where several processes will train, in one that leaves its GPU to them. Raises: BadInput."""
    if is_launched() or settings.parallelism == FSDP:
        raise BadInput(
            "train.learning_rate: search tries rates in one process, and this training has "
            f"{'been started by torchrun' if is_launched() else 'its base in shards (fsdp)'}; search with a smaller "
            "model or on one GPU, then give the rate found as train.learning_rate"
        )
    if settings.num_processes == 1:
        return search_learning_rate(**given, **hooks)
    alone: SearchResult = call_together(
        search_learning_rate, given, num=1, device=given["device"], folder=given["out_dir"], hooks=hooks
    )
    return alone


def from_json(row: dict[str, Any]) -> SearchResult:
    """The inverse of to_json."""
    return SearchResult(**{**row, "trials": tuple(row["trials"])})


def predicted(rung: RungPlan) -> dict[str, Estimate]:
    """What the search is predicted to take, as the ledger puts it beside the actual."""
    if rung.search_s is None:
        return {}
    per_s = rung.price_usd_per_hour / SECONDS_PER_HOUR
    return {"usd": rung.search_s.scaled(per_s), "s": rung.search_s, "bytes": rung.peak_bytes}


def line(found: dict[str, Any]) -> str:
    """What came out, in one line."""
    said = (
        f"learning rate {found['learning_rate']:.3g} is the best of {len(found['trials'])} tried "
        f"(derived: {found['derived']:.3g}), in {found['tokens_frac']:.0%} of training's tokens"
    )
    return f"{said}; {found['note']}" if found["note"] else said
