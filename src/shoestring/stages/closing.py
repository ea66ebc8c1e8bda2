"""The folder's frame: what a run opens with, exports, enters in the ledger, and says at the end."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..data.sources import is_curated
from ..decide.curve import Curve
from ..errors import BadInput, ConfigError
from ..evaluate.paired import MARGIN, not_much_worse, paired_difference
from ..files import read_json, write_json, write_whole
from ..ladder import Step, choose, rungs_of
from ..live import Live
from ..plan.learned import basis_of
from ..records import ArmScore, Curated, Estimate, TrainResult, Verdict, arm_from_json, plan_from_json, to_json
from ..runfolder import fingerprint, rung_name
from ..serve.card import merge_choice, write_model_card
from ..serve.merge import merge_adapter
from ..train.adapter import folder_name
from ..train.search import SearchResult
from ..units import SECONDS_PER_HOUR
from ..versions import package_versions
from .bringing import is_brought
from .common import device, price, rung_file, sample_rows
from .judging import recalibrate
from .merging import row_scores
from .retrieving import rows_for, write_beside
from .tools import require_tools

if TYPE_CHECKING:
    from ..recipe import Run

MERGE_CHECK_ROWS = 64


@contextlib.contextmanager
def opened(run: Run, until: str | None = "export") -> Iterator[None]:
    """Hold the folder: run.yaml as resolved and meta.json at the start, the report at the end however it ends.

    until: the last stage asked for. Raises: BadInput where something that it needs is not there.
    """
    require_tools(run, until)
    with run.run_folder.locked():
        live = Live(run.folder, run.progress, run.log)
        run.progress, run.log = live.progress, live.log
        try:
            write_run_file(run, {"versions": package_versions(), "device": asdict(device(run))})
            recalibrate(run)
            yield
        except BaseException as error:
            live.end(error)
            with contextlib.suppress(Exception):  # what stopped the run is what the user must hear of
                run.write_report()
            raise
        run.write_report()
        live.end(None)


def write_run_file(run: Run, more: Mapping[str, Any] | None = None) -> None:
    """run.yaml as resolved, and meta.json with more of the environment."""
    head = f"# Resolved by shoestring; data paths are relative to {run.base_dir}\n"
    resolved = run.config.model_dump(mode="json")
    write_whole(run.folder / "run.yaml", head + yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    meta = {
        "folder": str(run.folder.resolve()),
        "run_file": str(run.run_file) if run.run_file else meta_of(run.folder).get("run_file"),
        "base_dir": str(run.base_dir),
        "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
        "command": sys.argv,
        **(more or {}),
    }
    write_json(run.folder / "meta.json", meta)


def meta_of(folder: Path) -> dict[str, Any]:
    """meta.json, empty where it is missing or damaged."""
    try:
        meta = read_json(folder / "meta.json")
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) else {}


def refuse_other_run_file(name: str, folder: Path, run_file: Path) -> None:
    """Raises: ConfigError where the folder holds the run of another run file with the same name.

    A run file that is gone, says the same, or never came past curation claims nothing; nor does a folder that was
    copied or moved since.
    """
    if not (folder / "curate.json").is_file():
        return
    meta = meta_of(folder)
    earlier = Path(meta.get("run_file") or folder)
    if meta.get("folder") != str(folder.resolve()) or not earlier.is_file():
        return
    if earlier.read_bytes() != run_file.read_bytes():
        raise ConfigError(
            f"{folder} holds the run of {earlier}, and {run_file} has the same name, {name!r}: "
            "give one of them another name, or keep this run elsewhere with --runs-dir"
        )


def base_dir_of(folder: Path) -> Path:
    """The folder that the data paths of a reopened run are relative to. Raises: ConfigError."""
    if not (folder / "run.yaml").is_file():
        if is_curated(folder):
            raise ConfigError(
                f"{folder} holds curated data and is no run folder; to train on it write a run file with data: "
                f"{{train: {folder}, eval: {folder}}}; to curate again: shoestring curate FILES --out {folder}"
            )
        raise ConfigError(f"{folder} is not a run folder (it has no run.yaml); 'shoestring runs' lists them")
    base_dir = meta_of(folder).get("base_dir")
    if base_dir is None:
        raise ConfigError(f"{folder}: meta.json is missing or damaged; give the original run file instead")
    return Path(base_dir)


def trained_and_scored(run: Run) -> list[ArmScore]:
    """Arms of the rungs that are trained and scored, in the ladder's order; their fingerprints become the run's.

    Raises: BadInput where there is none.
    """
    arms = []
    for model in planned_models(run):
        scored = run.run_folder.record(rung_file(model, "eval.json"))
        if scored:
            run.prints[rung_file(model, "eval.json")] = scored["fingerprint"]
            arms.append(arm_from_json(scored["result"]["arm"]))
    if not arms:
        raise BadInput(f"{run.folder}: no rung is trained and scored yet; first: shoestring run {run.folder}")
    return arms


def planned_models(run: Run) -> list[str]:
    """The run file's rungs: in the plan's order of cost those it holds, then the others."""
    models, plan = rungs_of(run.config), run.run_folder.record("plan.json")
    planned = [rung["model"] for rung in plan["result"]["rungs"]] if plan else []
    return sorted(models, key=lambda model: planned.index(model) if model in planned else len(planned))


def export(run: Run, chosen: ArmScore, curated: Curated) -> tuple[Any, Any]:
    """Merge, compare merged with what was trained, and write the model card beside both."""
    merged_dir = run.folder / "export" / "merged"
    if merged_dir.exists():
        run.run_folder.set_aside(merged_dir)
    rows = sample_rows(rows_for(run, curated, chosen.model).eval, MERGE_CHECK_ROWS, run.config.seed)
    trained = run.run_folder.record(rung_file(chosen.model, "train.json"))
    assert trained is not None, "an arm is chosen after its training is recorded"
    method = trained["result"]["method"]
    adapter_dir = run.run_folder.rung(chosen.model) / folder_name(method)
    run.progress(f"merge {chosen.model}", 0, None)
    score = row_scores(run, chosen.model, rows, curated) if method == "qlora" else None
    check = merge_adapter(
        chosen.model, adapter_dir, merged_dir, device=device(run), examples=rows, method=method, score=score,
        metric=score.metric if score else "",
    )  # fmt: skip
    if not check.passed:
        run.log(f"Merged weights are refused ({'; '.join(check.faults)}): serve the {adapter_dir.name} instead")
    if check.candidates:
        run.log(f"Merged {merge_choice(check.candidates)}")
    for folder in (adapter_dir, merged_dir):
        write_beside(run, chosen.model, folder)
        write_model_card(folder, run.config, chosen, curated.counts, check)
    result = {
        "adapter_dir": str(adapter_dir.relative_to(run.folder)),
        "merged_dir": str(merged_dir.relative_to(run.folder)),
        "merge_check": to_json(check),
        "file_bytes": {
            str(path.relative_to(run.folder)): path.stat().st_size
            for folder in (adapter_dir, merged_dir)
            for path in sorted(folder.iterdir())
        },
    }
    return result, result


def forget_incomplete(run: Run) -> None:
    """Export anew where a file of the export is missing or cut short; a model card may be edited."""
    record = run.run_folder.record("export.json")
    for name, num_bytes in (record["result"].get("file_bytes", {}) if record else {}).items():
        path = run.folder / name
        if not path.is_file() or (path.stat().st_size != num_bytes and path.name != "README.md"):
            run.log(f"{path}: missing or cut short, so this is exported again")
            run.run_folder.retract("export.json")
            return


def enter(run: Run, name: str, predicted: Mapping[str, Estimate], value: Any, wall_s: float, inputs_print: str) -> None:
    """Write the ledger line of a finished stage: seconds, dollars and bytes beside what was predicted.

    Answers of endpoints have lines of their own.
    A kill between this line and the stage's record must not count it twice: the newest line is then this one.
    """
    item = name.removesuffix(".json")
    if any(e["item"] == item and e.get("fingerprint") == inputs_print for e in run.ledger.entries()[-1:]):
        return
    usd_per_hour = price(run).usd_per_hour
    actual: dict[str, float] = {"s": wall_s}
    if is_brought(value):  # its bill is the launch's, and its hours are no machine's of ours
        predicted = {}
    if isinstance(value, (TrainResult, SearchResult, Curve)):
        actual = {"s": value.wall_s, "bytes": value.peak_bytes}
    if isinstance(value, ArmScore):  # answers that a session made which was cut short
        actual["s"] += value.details.get("unpaid_s", 0.0)
    actual["usd"] = actual["s"] * usd_per_hour / SECONDS_PER_HOUR
    run.ledger.record(
        item,
        stage="decide" if name.startswith("decide/") else Path(name).stem,
        predicted={key: to_json(estimate) for key, estimate in predicted.items()} or None,
        actual=actual,
        price_usd_per_hour=usd_per_hour,
        fingerprint=inputs_print,
        basis=None if is_brought(value) else _basis(run, name, value),
    )


def _basis(run: Run, name: str, value: Any) -> dict[str, Any]:
    """What later plans learn from a rung's training or evaluation by: its prediction before anything learned."""
    parts, planned = Path(name).parts, run.run_folder.record("plan.json")
    for rung in plan_from_json(planned["result"]).rungs if planned and parts[0] == "rungs" else ():
        if rung_name(rung.model) == parts[1]:
            stopped_early = isinstance(value, TrainResult) and value.stopped_early
            share = value.num_steps / max(1, rung.num_steps) if stopped_early else 1.0
            return basis_of(rung, Path(name).stem, share)
    return {}


def conclude(
    run: Run,
    verdict: Verdict,
    tuned: Sequence[ArmScore] = (),
    baselines: Sequence[ArmScore] = (),
    steps: Sequence[Step] = (),
) -> Verdict:
    """Write the verdict's record: the climb's steps, each fine-tune paired with each baseline; the same again stays."""
    model = choose(tuned, verdict.bar).model if tuned else None
    if model is None:
        run.run_folder.retract("export.json")
    scored = [run.prints[rung_file(arm.model, "eval.json")] for arm in tuned]
    inputs_print = fingerprint(to_json(verdict), model, scored, run.prints.get("decide.json"), to_json(steps))
    if run.run_folder.finished("ladder.json", inputs_print) is None:
        differences = [paired_difference(a, b, seed=run.config.seed) for a in tuned for b in baselines]
        told = {"model": model, "differences": to_json(differences), "steps": to_json(steps)}
        result = {**to_json(verdict), **told, "no_worse": _no_worse(tuned)}
        run.run_folder.finish("ladder.json", inputs_print, result, 0.0)
    return verdict


def _no_worse(tuned: Sequence[ArmScore]) -> dict[str, str]:
    """Of rungs that scored below the best, those shown to be less than MARGIN worse; by rung, and why."""
    best = max(tuned, key=lambda arm: arm.score.value, default=None)
    return {
        arm.model: f"less than {MARGIN:g} below {best.model}, shown at one-sided 5 %"
        for arm in tuned
        if best and arm is not best and not_much_worse(arm, best)
    }


def summary(run: Run) -> dict[str, Any]:
    """The run as one JSON-ready dict, from its records; rungs that the run file no longer names are left out."""
    decided, planned = run.run_folder.record("decide.json"), run.run_folder.record("plan.json")
    arms = list(decided["result"]["arms"]) if decided else []
    reached = [stage for stage in ("curate", "decide", "plan") if run.run_folder.record(f"{stage}.json")]
    for model in planned_models(run):
        if (run.run_folder.rung(model) / "steps.jsonl").is_file():
            reached.append(f"train {model}")
        scored = run.run_folder.record(rung_file(model, "eval.json"))
        if scored:
            arms.append(scored["result"]["arm"])
            reached.append(f"eval {model}")
    searched, forgotten = (
        [run.run_folder.record(rung_file(model, name)) for model in planned_models(run)]
        for name in ("search.json", "regression.json")
    )
    concluded = run.run_folder.record("ladder.json")
    prices = [rung["price_usd_per_hour"] for rung in planned["result"]["rungs"]] if planned else []
    return {
        "name": run.config.name,
        "folder": str(run.folder),
        "stage": "done" if concluded else (reached[-1] if reached else "not started"),
        "metric": run.config.task.metric,
        "bar": run.config.task.bar,
        "arms": [_arm_summary(arm) for arm in arms],
        "searches": [record["result"] for record in searched if record],
        "regressions": [record["result"] for record in forgotten if record],
        "verdict": concluded["result"] if concluded else None,
        "spent_usd": run.ledger.spent_usd(live_usd_per_hour=max(prices, default=0.0)),
        "budget_usd": run.config.budget_usd,
        "report": str(run.folder / "report.html"),
    }


def _arm_summary(arm: dict[str, Any]) -> dict[str, Any]:
    kept = ("arm", "kind", "model", "num_rows", "wall_s", "cost_usd")
    far = arm.get("far")
    if far is not None:
        far = {"num_rows": far["num_rows"], **_flat(far["score"])}
    tokens = {k: sum(row[k] for row in arm["rows"]) for k in ("num_prompt_tokens", "num_completion_tokens")}
    more = {"retrieval": arm["details"]["retrieval"]} if "retrieval" in arm["details"] else {}
    if "judge" in arm["details"]:
        judged = ("is_calibrated", "num_labels", "num_judged", "num_no_verdict", "cost_usd")
        more["judge"] = {key: arm["details"]["judge"][key] for key in judged}
    return {**{k: arm[k] for k in kept}, **_flat(arm["score"]), "far": far, **tokens, **more}


def _flat(score: dict[str, float] | None) -> dict[str, float | None]:
    score = score or {}
    return {"score": score.get("value"), "low": score.get("low"), "high": score.get("high")}
