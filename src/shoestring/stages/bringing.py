"""What a service trained on this run's rows, put in the place of the rung's own training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from ..files import read_json, sha256_file, write_json
from ..launch.managed.fetching import RECORD, results
from ..launch.managed.flow import data_print
from ..records import ArmScore, RungPlan, TrainResult
from ..train.brought import take

if TYPE_CHECKING:
    from ..recipe import Run

NEEDED = frozenset(
    (
        "vendor",
        "base",
        "kind",
        "data_print",
        "files",
        "usd",
        "job_id",
        "launch_id",
        "tuned_model",
        "wanted",
        "sdk",
        "num_tokens",
    )
)


def brought(run: Run, rung: RungPlan) -> Path | None:
    """The newest adapter that a service trained from this rung's model on the rows as they are.

    Raises: BadInput for a damaged record.
    """
    for folder in results(run.folder):
        record = record_of(folder)
        is_ours = record["base"] == rung.model and record["kind"] == "adapter"
        if is_ours and record["data_print"] == data_print(run.folder):
            return folder
    return None


def record_of(folder: Path) -> dict[str, Any]:
    """What is known of a result that was brought. Raises: BadInput for a damaged record."""
    try:
        record = read_json(folder / RECORD)
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or not NEEDED.issubset(record) or not isinstance(record["files"], dict):
        raise BadInput(
            f"{folder / RECORD} is damaged; delete {folder}, and bring it again with shoestring launch ID --attach "
            f"(the id stands in {folder.parent / 'job.json'})"
        )
    return record


def as_trained(run: Run, rung: RungPlan) -> RungPlan:
    """The rung, also where its training does not fit here: it only has to answer."""
    if rung.verdict != "does_not_fit" or brought(run, rung) is None:
        return rung
    return replace(rung, verdict="fits", reason=f"a service trained it; training here: {rung.reason}")


def take_brought(run: Run, rung: RungPlan, folder: Path, train_print: str) -> TrainResult:
    """Publish it as the rung's adapter. Raises: BadInput where it is damaged or fits another base."""
    record = record_of(folder)
    damaged = [name for name, sha256 in record["files"].items() if _sha256(folder / "adapter" / name) != sha256]
    if damaged:
        raise BadInput(
            f"{folder / 'adapter'}: {', '.join(damaged)} missing or not as it was brought; delete {folder.parent}, and "
            f"bring it again with shoestring launch {record['launch_id']} --attach"
        )
    target = run.run_folder.rung(rung.model)
    if not (target / "inputs.json").exists():
        write_json(target / "inputs.json", {"fingerprint": train_print, "num_entries": len(run.ledger.entries())})
    settings: dict[str, Any] = take(folder / "adapter", target / "adapter", rung.model, rung.device.dtype)
    run.log(f"Rung {rung.model}: the adapter that {record['vendor']} trained (job {record['job_id']}) is taken")
    by = {key: record[key] for key in ("vendor", "job_id", "launch_id", "tuned_model", "usd", "wanted", "sdk")}
    return TrainResult(
        model=rung.model,
        method="lora",
        adapter_dir=f"rungs/{target.name}/adapter",
        num_steps=0,
        stopped_early=False,
        best_step=0,
        dev_metric=None,
        wall_s=0.0,
        peak_bytes=0,
        num_train_tokens=record["num_tokens"] or 0,
        num_loss_tokens=0,
        num_computed_tokens=0,
        final_loss=0.0,
        history=(),
        settings={**settings, "trained_by": by},
    )


def is_brought(value: Any) -> bool:
    """Whether a training was a service's: nothing about this machine is learned from it."""
    return isinstance(value, TrainResult) and "trained_by" in value.settings


def with_bill(arm: ArmScore, trained: TrainResult) -> ArmScore:
    """The arm with what the service took for its training, where it said so."""
    usd = trained.settings.get("trained_by", {}).get("usd")
    return arm if usd is None else replace(arm, cost_usd=arm.cost_usd + usd)


def _sha256(path: Path) -> str:
    return sha256_file(path) if path.is_file() else ""
