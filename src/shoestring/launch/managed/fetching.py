"""What the service made, brought here: whole, by its checksums, and where the service only serves it, how to ask it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ...config import RunConfig
from ...errors import LaunchError
from ...files import sha256_file, sync_folder, write_json
from ...market import managed as market
from ...records import Log, Progress, no_log, no_progress
from ...runfolder import RunFolder, rung_name
from ..records import Launch
from .client import Client
from .dialect import Seen
from .journal import FOLDER, Journal, now
from .vendors import Vendor
from .wanted import base_of, choices

RESULT, RECORD = "result", "managed.json"  # RUN/managed/JOB/result: what was brought, and from where
ARTIFACTS = {"adapter": "adapter", "merged": "model"}
MARKS = {"adapter": "adapter_config.json", "model": "config.json"}


def results(run_folder: Path) -> list[Path]:
    """Folders of what was brought whole, the newest first."""
    found = (Path(run_folder) / FOLDER).glob(f"*/{RESULT}/{RECORD}")
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def fetch(
    launch: Launch,
    config: RunConfig,
    vendor: Vendor,
    client: Client,
    journal: Journal,
    seen: Seen,
    log: Log = no_log,
    progress: Progress = no_progress,
) -> None:
    """Bring the result; again after an interruption, only what is missing. Raises: LaunchError."""
    folder = journal.folder / RESULT
    record: dict[str, Any] = {
        "vendor": vendor.name,
        "base": base_of(config),
        "usd": seen.usd,
        "job_id": seen.id,
        "launch_id": launch.id,
        "tuned_model": seen.tuned_model,
        "wanted": journal["wanted"],
        "data_print": journal["data_print"],
        "sdk": journal["sdk"],
        "num_tokens": seen.num_tokens,
    }
    if journal.get("fetched") and (folder / RECORD).is_file():
        log(f"{vendor.name}: job {seen.id} is here already, in {folder}")
        return
    asked = choices(launch.options).get("artifact") or "adapter"
    is_full = journal["wanted"]["method"] == "full"
    kind = "model" if is_full else ARTIFACTS[asked]
    files: dict[str, str] = {}
    if vendor.hands_out_weights:
        artifact = "model_output_path" if is_full else asked
        download = journal.folder / "download"
        brought = client.ask("download", progress, job_id=seen.id, artifact=artifact, folder=str(download))
        if brought:
            files = _placed(vendor, download / "unpacked", folder / kind, kind)
            shutil.rmtree(download, ignore_errors=True)
            record["downloaded"] = brought
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, {**record, "kind": kind if files else "served", "files": files, "fetched_at": now()})
    journal.write(fetched=now())
    if files:
        log(f"{vendor.name}: {len(files)} files of job {seen.id} are in {folder / kind}")
        log(f"to score it: {_how_to_score(launch, base_of(config), folder / kind, kind)}")
    if seen.tuned_model:
        served = " only serves it" if not files else " can serve it too"
        log(f"{vendor.name}{served}; to score it as an endpoint, put into the run file:\n{endpoint_yaml(vendor, seen)}")


def _how_to_score(launch: Launch, base: str, result: Path, kind: str) -> str:
    if kind != "adapter":
        return f"name {result} in models:"
    run = RunFolder(Path(launch.run_folder))
    command = f"shoestring run {launch.run_file}, where {base} is at hand"
    if run.record(f"rungs/{rung_name(base)}/train.json") is None:
        return command
    return f"move {run.rung(base)} away, which holds an earlier training of {base}; then {command}"


def _placed(vendor: Vendor, unpacked: Path, target: Path, kind: str) -> dict[str, str]:
    """Move the folder that holds the weights to target; SHA-256 by name. Raises: LaunchError."""
    roots = sorted(unpacked.rglob(MARKS[kind]), key=lambda path: len(path.parts))
    weights = [p for root in roots[:1] for p in root.parent.glob("*.safetensors")]
    if not weights:
        names = ", ".join(sorted(str(p.relative_to(unpacked)) for p in unpacked.rglob("*") if p.is_file())[:8])
        raise LaunchError(
            f"{vendor.name}: what was downloaded is no {kind} in the format of PEFT and transformers "
            f"({MARKS[kind]} and *.safetensors); it holds: {names or 'nothing'}. It is kept in {unpacked}"
        )
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    roots[0].parent.rename(target)
    sync_folder(target.parent)
    return {path.name: sha256_file(path) for path in sorted(target.iterdir()) if path.is_file()}


def endpoint_yaml(vendor: Vendor, seen: Seen, base_url: str = "") -> str:
    """Lines of the run file that make the tuned model an endpoint to be scored."""
    prices, note = (0.0, 0.0), "  # put the service's price here: it is not known to Shoestring"
    name = seen.tuned_model.rpartition("/")[2][:40]
    for rate in market.rates():
        known = (rate.usd_per_million_input_tokens, rate.usd_per_million_output_tokens)
        if rate.provider == vendor.market and rate.model and rate.model.lower() in seen.tuned_model.lower():
            if known[0] is not None and known[1] is not None:
                prices, note = (known[0], known[1]), f"  # {rate.source}, {rate.as_of.isoformat()}"
            break
    lines = [
        "decide:",
        "  endpoints:",
        f"    - name: {name}",
        f"      base_url: {base_url or vendor.chat_url or vendor.base_url}",
        f"      model: {seen.tuned_model}",
        f"      api_key_env: {vendor.key_env}",
        f"      usd_per_million_input_tokens: {prices[0]:g}{note}",
        f"      usd_per_million_output_tokens: {prices[1]:g}{note}",
    ]
    terms = market.TERMS.get(vendor.market)
    if terms and terms.serving == "hours":
        lines.append(
            f"# {vendor.name} answers for it from a machine billed by the hour only: start one there, and end it"
        )
    return "\n".join(lines)
