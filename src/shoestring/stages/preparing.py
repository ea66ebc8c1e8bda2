"""Curate and plan: from files to rows, from rows to predictions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import RunConfig
from ..data.clean import RowLimit
from ..data.curate import curate_into
from ..data.store import FILES, RECEIPT, read_curated
from ..errors import BadInput, DataError
from ..files import read_json, sha256_file
from ..ladder import models_of, rungs_of
from ..market.offers import MACHINES_AT_HAND
from ..market.serving import own_routes
from ..market.table import load as load_table
from ..plan.ladder_plan import plan_ladder
from ..plan.served import known_rates
from ..plan.shapes import ModelShape
from ..records import Curated, Estimate, Plan, plan_from_json, to_json
from ..runfolder import fingerprint
from ..train.base import load_tokenizer
from ..train.objective import count_longest, require_learnable
from ..train.tokens import tokenizer_print
from ..train.tools import tool_form
from . import probing, told
from .common import planned_for, price, shape, starts, token_counts
from .retrieving import rows_for

if TYPE_CHECKING:
    from ..recipe import Run

COUNTED_ROWS = 20_000  # of an earlier session, counted again: seconds of work


def curate(run: Run) -> tuple[Any, Curated]:
    """Load, validate, deduplicate, split; write data/. A row must be within the limits of every rung."""
    run.counts.clear()
    before, folder = outcome(run), run.folder / "data"
    summary = curate_into(folder, run.config, run.base_dir, limits=row_limits(run.config), progress=run.progress)
    if outcome(run) != before:
        run.run_folder.retract("decide.json", "decide/*.json", "plan.json", "export.json", "rungs/*/eval.json")
    result = {**summary, "receipt_sha256": sha256_file(folder / RECEIPT)}
    return result, read(run, result)


def outcome(run: Run) -> str:
    """Fingerprint of the curated rows, which is what later stages depend on: another model may leave them the same."""
    path = run.folder / "data" / "receipt.json"
    if not path.is_file():
        return ""
    receipt = read_json(path)
    return fingerprint([receipt["sha256"][part] for part in FILES[:3]], receipt["labels"])


def row_limits(config: RunConfig) -> list[RowLimit]:
    """How long a row may be, once for each tokenizer of the ladder; of rungs that share one, the least context."""
    limits: dict[str, RowLimit] = {}
    for model in models_of(config):
        tokenizer, context_tokens = load_tokenizer(model), shape(model).context_tokens
        same = limits.get(key := tokenizer_print(tokenizer))
        if same is None or context_tokens < same.context_tokens:
            form = tool_form(tokenizer)
            shows_tools = form.shows_tools and form.shows_calls
            seq_len = min(config.train.seq_len or context_tokens, context_tokens)
            lengths = partial(count_longest, tokenizer, kind=config.train.objective)
            limits[key] = RowLimit(model, lengths, context_tokens, seq_len, shows_tools)
    return list(limits.values())


def read(run: Run, result: dict[str, Any]) -> Curated:
    """The curated rows of an earlier session.

    Raises: DataError where they are not those of its record, BadInput where train.objective cannot learn from them.
    """
    curated, receipt = read_curated(run.folder / "data"), run.folder / "data" / "receipt.json"
    require_learnable([*curated.all_rows("train"), *curated.all_rows("dev")], run.config.train.objective, "training")
    if "receipt_sha256" in result and sha256_file(receipt) != result["receipt_sha256"]:
        raise DataError(
            f"{receipt}: not the receipt that curation wrote (its hash is not the one in curate.json); "
            f"delete {receipt.parent} and run again, or put the change into the source data"
        )
    return curated


def read_again(run: Run) -> Curated:
    """The curated rows as the run folder holds them. Raises: DataError."""
    record = run.run_folder.record("curate.json")
    if record is None:
        raise DataError(f"{run.folder}: the data is not curated yet; first: shoestring run {run.folder}")
    return read(run, record["result"])


def count_again(run: Run) -> None:
    """Count the rows that an earlier session planned, so that the same plan is told twice; large sets are sampled."""
    record = run.run_folder.record("curate.json")
    if record and sum(record["result"]["counts"].get(f"rows_{part}", 0) for part in ("train", "eval")) <= COUNTED_ROWS:
        curated = read_again(run)
        for rung in rungs_of(run.config):
            token_counts(run, rows_for(run, curated, rung), rung)


def plan_again(run: Run) -> Plan:
    """The plan of an earlier stage. Raises: BadInput."""
    record = run.run_folder.record("plan.json")
    if record is None:
        raise BadInput(f"{run.folder}: there is no plan yet; first: shoestring plan {run.folder}")
    return plan_from_json(record["result"])


def forget_deleted(run: Run) -> None:
    """Curate anew where data/ was deleted."""
    if not (run.folder / "data" / "receipt.json").is_file():
        run.run_folder.retract("curate.json")


def serving_usd(config: RunConfig, shapes: Mapping[str, ModelShape], folder: Path | None = None) -> dict[str, Estimate]:
    """Dollars of the run file's traffic over its months by the cheapest way to serve each rung that has one.

    folder: the run's, whose measured rates count.
    """
    if config.traffic is None:
        return {}
    traffic, offers = config.traffic, load_table(datetime.now(UTC).date()).offers
    rented = [offer for offer in offers if offer.gpu not in MACHINES_AT_HAND]
    found = {}
    for rung, sizes in shapes.items():
        measured = known_rates(folder, rung)[0] if folder else []
        routes = own_routes(sizes, sizes.num_params / 1e9, traffic, rented, measured)
        bills = [route.usd_per_month(traffic.requests_per_month).scaled(traffic.months) for route in routes]
        if bills:
            found[rung] = min(bills, key=lambda bill: bill.value)
    return found


def plan(run: Run, curated: Curated) -> tuple[Any, Plan]:
    """Count tokens under each rung's tokenizer and predict memory, time and dollars."""
    shapes, counts = {}, {}
    for rung in rungs_of(run.config):
        shapes[rung] = shape(rung)
        counts[rung] = token_counts(run, rows_for(run, curated, rung), rung)
    planned = plan_ladder(
        run.config,
        shapes,
        counts,
        planned_for(run),
        price(run),
        num_dev_rows=len(curated.dev),
        settle=lambda rung: probing.settled(run, rung),
        starts=starts(run),
        serve_usd=serving_usd(run.config, shapes, run.folder),
    )
    if run.config.traffic is not None:
        told.note(run)
    return to_json(planned), planned
