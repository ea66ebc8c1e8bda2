"""The folder's frame: what a run opens with, exports, enters in the ledger, and says at the end."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import ConfigError
from ..files import read_json, write_json, write_whole
from ..records import ArmScore, Curated, Estimate, TrainResult, Verdict, to_json
from ..runfolder import fingerprint
from ..serve.card import write_model_card
from ..serve.merge import merge_adapter
from ..units import SECONDS_PER_HOUR
from .common import device, models_of, price, rung_file, sample_rows

if TYPE_CHECKING:
    from ..recipe import Run

PACKAGES = ("shoestring", "torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets")
MERGE_CHECK_ROWS = 64


def open_folder(run: Run) -> None:
    """Write run.yaml as resolved and meta.json."""
    head = f"# Resolved by shoestring; data paths are relative to {run.base_dir}\n"
    resolved = run.config.model_dump(mode="json")
    write_whole(run.folder / "run.yaml", head + yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    meta = {
        "base_dir": str(run.base_dir),
        "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
        "device": asdict(device(run)),
        "command": sys.argv,
    }
    write_json(run.folder / "meta.json", meta)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def base_dir_of(folder: Path) -> Path:
    """The folder that the data paths of a reopened run are relative to. Raises: ConfigError."""
    try:
        return Path(read_json(folder / "meta.json")["base_dir"])
    except (OSError, ValueError, KeyError):
        raise ConfigError(f"{folder}: meta.json is missing or damaged; give the original run file instead") from None


def export(run: Run, chosen: ArmScore, curated: Curated) -> tuple[Any, Any]:
    """Merge, compare merged with adapter, and write the model card beside both."""
    adapter_dir = run.run_folder.rung(chosen.model) / "adapter"
    merged_dir = run.folder / "export" / "merged"
    if merged_dir.exists():
        run.run_folder.set_aside(merged_dir)
    rows = sample_rows(curated.eval, MERGE_CHECK_ROWS, run.config.seed)
    trained = run.run_folder.record(rung_file(chosen.model, "train.json"))
    assert trained is not None, "an arm is chosen after its training is recorded"
    method = trained["result"]["method"]
    run.progress(f"merge {chosen.model}", 0, None)
    check = merge_adapter(chosen.model, adapter_dir, merged_dir, device=device(run), examples=rows, method=method)
    if not check.passed:
        run.log(
            f"Merged weights differ from the adapter (same first choice on {check.top1_agreement_frac:.1%} of tokens): "
            "serve the adapter instead"
        )
    for folder in (adapter_dir, merged_dir):
        write_model_card(folder, run.config, chosen, curated.counts, check)
    result = {
        "adapter_dir": str(adapter_dir.relative_to(run.folder)),
        "merged_dir": str(merged_dir.relative_to(run.folder)),
        "merge_check": to_json(check),
    }
    return result, result


def enter(run: Run, name: str, predicted: Mapping[str, Estimate], value: Any, wall_s: float, inputs_print: str) -> None:
    """Write the ledger line of a finished stage: seconds, dollars and bytes beside what was predicted.

    Once for the same inputs: a kill between this line and the stage's record must not count it twice.
    """
    item = name.removesuffix(".json")
    if any(e["item"] == item and e.get("fingerprint") == inputs_print for e in run.ledger.entries()):
        return
    usd_per_hour = price(run).usd_per_hour
    actual: dict[str, float] = {"s": wall_s}
    api_usd = 0.0
    if isinstance(value, TrainResult):
        actual = {"s": value.wall_s, "bytes": value.peak_bytes}
    if name == "decide.json":
        endpoints = {endpoint.name for endpoint in run.config.decide.endpoints}
        api_usd = sum(arm.cost_usd for arm in value if arm.model in endpoints)
    actual["usd"] = actual["s"] * usd_per_hour / SECONDS_PER_HOUR + api_usd
    run.ledger.record(
        item,
        stage=Path(name).stem,
        predicted={key: to_json(estimate) for key, estimate in predicted.items()} or None,
        actual=actual,
        price_usd_per_hour=usd_per_hour,
        fingerprint=inputs_print,
    )


def conclude(run: Run, verdict: Verdict, model: str | None) -> None:
    """Write the verdict's record; one that says the same already stays."""
    result = {**to_json(verdict), "model": model}
    if model is None:
        run.run_folder.retract("export.json")
    if run.run_folder.finished("ladder.json", fingerprint(result)) is None:
        run.run_folder.finish("ladder.json", fingerprint(result), result, 0.0)


def summary(run: Run) -> dict[str, Any]:
    """The run as one JSON-ready dict, from its records."""
    decided = run.run_folder.record("decide.json")
    arms = list(decided["result"]["arms"]) if decided else []
    reached = [stage for stage in ("curate", "decide", "plan") if run.run_folder.record(f"{stage}.json")]
    for model in models_of(run.config):
        scored = run.run_folder.record(rung_file(model, "eval.json"))
        if scored:
            arms.append(scored["result"]["arm"])
            reached.append(f"eval {model}")
    concluded = run.run_folder.record("ladder.json")
    return {
        "name": run.config.name,
        "folder": str(run.folder),
        "stage": "done" if concluded else (reached[-1] if reached else "not started"),
        "metric": run.config.task.metric,
        "bar": run.config.task.bar,
        "arms": [_arm_summary(arm) for arm in arms],
        "verdict": concluded["result"] if concluded else None,
        "spent_usd": run.ledger.spent_usd(),
        "budget_usd": run.config.budget_usd,
        "report": str(run.folder / "report.html"),
    }


def _arm_summary(arm: dict[str, Any]) -> dict[str, Any]:
    kept = ("arm", "kind", "model", "num_rows", "wall_s", "cost_usd")
    score = arm["score"]
    return {**{k: arm[k] for k in kept}, "score": score["value"], "low": score["low"], "high": score["high"]}
