"""Bodies of the commands that work on one run: run, decide, plan, train, eval, export, report, curate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import OF_OBJECTIVES
from ..errors import BadInput, ConfigError
from ..records import Verdict, to_json
from ..units import count, duration, gib, usd
from .output import emit, say, warn
from .progress import Screen
from .tables import arms_table, far_table, score_text, search_table, table, time_span, usd_span

if TYPE_CHECKING:
    from ..recipe import Run

BAR_NOT_MET_CODE = 3
DATA_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".gz", ".arrow")


def open_run(target: str, runs_dir: Path) -> Run:
    """The run that target means: a run folder, the name of one in runs_dir, or a run file. Raises: ConfigError."""
    from ..recipe import Run

    path = Path(target)
    if (path / "run.yaml").is_file():
        return Run.from_folder(path)
    if not path.is_file() and (runs_dir / target / "run.yaml").is_file():
        return Run.from_folder(runs_dir / target)
    if path.is_dir():
        return Run.from_folder(path)  # says why it is none
    if path.suffix.lower() in DATA_SUFFIXES and path.is_file():
        raise ConfigError(f"{target} is a data file; first write a run file for it: shoestring init {target}")
    return Run.from_file(path, runs_dir=runs_dir)


def execute(run: Run, until: str | None) -> Verdict:
    """The run with its progress drawn on standard error."""
    with Screen() as screen:
        return run.execute(progress=screen.progress, log=screen.log, until=until)


def command(target: str, runs_dir: Path, is_json: bool, until: str | None) -> int:
    """Execute a run to its end or to a stage, and print what came out."""
    run = open_run(target, runs_dir)
    verdict = execute(run, until)
    if is_json:
        emit(stage_summary(run, until, verdict))
    else:
        show = {"curate": show_curated, "decide": show_arms, "plan": show_plan, "train": show_trained}
        show.get(until or "", show_arms)(run)
        if until == "decide":
            show_decided(verdict)
        elif until is None or until == "eval":
            show_verdict(run)
    is_final = until is None or until == "eval"
    return BAR_NOT_MET_CODE if is_final and not verdict.met else 0


def stage_summary(run: Run, until: str | None, verdict: Verdict) -> dict[str, Any]:
    """The run's summary with the result of the stage that was asked for."""
    summary = summary_of(run)
    if until == "decide":
        summary["verdict"] = to_json(verdict)
    if until == "plan":
        summary["plan"] = result_of(run, "plan.json")
    elif until == "curate":
        summary["curate"] = result_of(run, "curate.json")
    elif until == "train":
        summary["train"] = [result for _, result in trained(run)]
    return summary


def summary_of(run: Run) -> dict[str, Any]:
    """The run's summary, the verdict's next step as it can be followed now."""
    from ..report.folder import next_step

    summary = run.summary()
    if verdict := summary["verdict"]:
        summary["verdict"] = {**verdict, "next_step": next_step(verdict, run.folder, result_of(run, "export.json"))}
    return summary


def result_of(run: Run, name: str) -> Any:
    """The result of a stage's record, None if the stage is not finished."""
    record = run.run_folder.record(name)
    return record["result"] if record else None


def is_changed(run: Run) -> bool:
    """Whether the run file says something else than when it was last run."""
    from ..recipe import Run

    return (run.folder / "run.yaml").is_file() and Run.from_folder(run.folder).config != run.config


def trained(run: Run) -> list[tuple[Path, dict[str, Any]]]:
    """(rung folder, train result) of each trained rung of the run file."""
    from ..ladder import rungs_of

    folders = [run.run_folder.rung(model) for model in rungs_of(run.config)]
    records = [(folder, run.run_folder.record(f"rungs/{folder.name}/train.json")) for folder in folders]
    return [(folder, record["result"]) for folder, record in records if record]


# ---- what a person reads --------------------------------------------------------------------


def show_curated(run: Run) -> None:
    """Counts of the curate stage."""
    show_curate_result(result_of(run, "curate.json"), run.folder / "data")


def show_curate_result(result: dict[str, Any], folder: Path) -> None:
    """Rows in, kept and dropped by reason, and where they are."""
    from ..data.restore import can_come_back

    counts = result["counts"]
    kept = ", ".join(f"{counts.get(f'rows_{part}', 0):,} {part}" for part in ("train", "dev", "eval"))
    expanded = counts.get("rows_expanded", 0)
    examples = f", {counts['rows_in'] + expanded:,} examples" if expanded else ""
    what = "row" if counts["rows_in"] == 1 else "rows"
    say(f"{counts['rows_in']:,} {what} read{examples}: {kept}; {counts.get('dropped', 0):,} dropped")
    reasons = {**result["dropped_by_code"]}
    if reasons:
        rows = [(code, f"{number:,}") for code, number in sorted(reasons.items(), key=lambda item: -item[1])]
        say(table(("dropped because", "rows"), rows, right=(1,)))
    for code, number in sorted(result["faults_by_code"].items()):
        say(f"noticed: {code} in {number:,} row{'s' if number > 1 else ''}")
    for note in result.get("notes", ()):
        say(f"note: {note}")
    if any(map(can_come_back, reasons)):
        say(f"dropped rows are in {folder / 'dropped.jsonl'}; --restore CODE, LINE or SOURCE:LINE brings them back")
    say(f"rows and reasons: {folder}")


def show_arms(run: Run) -> None:
    """The table of arms."""
    from ..decide.passages import told

    summary = summary_of(run)
    verdict = summary["verdict"] or {}
    mark = "chosen" if verdict.get("met") else "best"
    say(arms_table(summary["arms"], summary["metric"], verdict.get("arm"), mark=mark))
    if far := far_table(summary["arms"]):
        say()
        say(far)
    for arm in summary["arms"]:
        if "retrieval" in arm:
            say(told(arm["arm"], arm["retrieval"]))


def show_decided(verdict: Verdict) -> None:
    """What the baselines say about training."""
    needed = "no" if verdict.met else "cannot tell yet" if verdict.advice == "cannot_tell" else "yes"
    say(f"Fine-tuning needed: {needed}. {verdict.reason}")
    show_evidence(verdict.evidence)


def show_evidence(evidence: Mapping[str, Any]) -> None:
    """What the arms say of each other, and what this many rows cannot show."""
    for line in evidence.get("lines", ()):
        say(f"Evidence: {line}")


def show_verdict(run: Run) -> None:
    """The answer, why, what it cost, and where the report is."""
    summary = summary_of(run)
    verdict = summary["verdict"]
    if verdict is None:
        return
    say()
    say(f"Verdict: {verdict['reason']}")
    show_evidence(verdict.get("evidence") or {})
    if verdict["met"]:
        say(f"Chosen: {verdict['arm']}, {summary['metric']} {score_text(verdict['score'])}, bar {verdict['bar']:g}")
    else:
        say(f"No arm met the bar of {verdict['bar']:g} on {summary['metric']}.")
    for found in summary["regressions"]:
        if found["warning"]:
            say(f"Note on {found['model']}: {found['warning']}")
    if verdict["next_step"]:
        say(f"Next: {verdict['next_step']}")
    say(f"Spent {usd(summary['spent_usd'])} of {usd(summary['budget_usd'])}. Report: {summary['report']}")


def show_plan(run: Run) -> None:
    """The ladder in order of cost, then every derived value with its reason."""
    plan = result_of(run, "plan.json")
    rows = []
    for rung in plan["rungs"]:
        rows.append(
            (
                rung["model"],
                rung["method"],
                count(rung["num_params"]),
                gib(rung["peak_bytes"]["value"]),
                rung["verdict"].replace("_", " "),
                time_span(rung["train_s"]),
                usd_span(rung["cost_usd"]),
            )
        )
    say(table(("rung", "method", "parameters", "peak", "memory", "training time", "cost"), rows, right=(2, 3)))
    for rung in plan["rungs"]:
        say()
        device = rung["device"]
        say(f"{rung['model']} on {device['name']} ({gib(rung['device_bytes'])}), {rung['price_source']}")
        say(f"  memory: {rung['reason']}")
        if rung.get("timed"):
            say(f"  time: {rung['timed']}")
        if rung.get("search_s"):
            say(f"  learning-rate search before training: {time_span(rung['search_s'])}, in the cost")
        show_settings(rung["settings"])
    for note in plan["notes"]:
        say(f"note: {note}")


def show_settings(settings: dict[str, Any]) -> None:
    """Resolved training values, each with where it came from."""
    names = [name for name in settings if name != "reasons" and is_told(name, settings)]
    values = {name: value_text(settings[name]) for name in names}
    width = max(len(name) + len(values[name]) for name in names) + 3
    for name in names:
        shown = f"{name} = {values[name]}"
        say(f"  {shown:<{width}}  {settings['reasons'].get(name, '')}".rstrip())


def value_text(value: Any) -> str:
    """A setting as it would stand in a run file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(value_text(v) for v in value) + "]"
    return "empty" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)


def is_told(name: str, settings: dict[str, Any]) -> bool:
    """Whether a setting bears on this training: not a key of another objective, nor the sum of no adapter."""
    if name in OF_OBJECTIVES:
        return settings["objective"] in OF_OBJECTIVES[name]
    return name != "start_sha256" or bool(settings[name])


def show_trained(run: Run) -> None:
    """The rungs that have been trained so far."""
    from ..train.adapter import folder_name

    results = trained(run)
    if not results:
        say("Nothing was trained: a baseline meets the bar (decide.train_anyway: true trains all the same).")
        show_verdict(run)
    for folder, result in results:
        dev = "not measured" if result["dev_metric"] is None else f"{result['dev_metric']:.3f}"
        say(
            f"{result['model']}: {result['method']}, {result['num_steps']} steps in {duration(result['wall_s'])}, "
            f"{run.config.task.computed_metric} on dev rows {dev}, peak {gib(result['peak_bytes'])}"
        )
        kept = folder_name(result["method"])  # adapter, or the model that was trained whole
        say(f"  {kept}: {folder / kept}")
        if searched := result_of(run, f"rungs/{folder.name}/search.json"):
            say(search_table(searched))


# ---- export and report ----------------------------------------------------------------------


def export_command(target: str, runs_dir: Path, is_json: bool, form: str = "", kind: str = "") -> int:
    """Export the best rung that is trained and scored, as the run folder holds it; nothing is trained.

    form: also convert to it, gguf or ollama, of the kind.
    """
    from ..recipe import Run
    from ..serve.card import merge_choice
    from ..stages.exporting import export_as, require_form

    home = require_form(form, kind) if form else None
    asked = open_run(target, runs_dir)
    if not list((asked.folder / "rungs").glob("*/eval.json")):
        verdict = result_of(asked, "ladder.json")
        if verdict and verdict["met"]:
            raise BadInput(
                f"{asked.folder}: {verdict['arm']} meets the bar without fine-tuning, so there is nothing to export; "
                "decide.train_anyway: true in the run file trains all the same"
            )
        raise BadInput(f"{asked.folder}: no rung is trained and scored yet; first: shoestring run {target}")
    run = Run.from_folder(asked.folder)
    if is_changed(asked):
        warn(f"note: {target} was changed since it was run; exporting what was trained before the change")
    with Screen() as screen:
        chosen = run.export_trained(screen.progress, screen.log)
        converted = export_as(run, chosen, form, kind, home) if home else None
    result = result_of(run, "export.json")
    if is_json:
        emit({**summary_of(run), "export": result, **({"converted": converted} if converted else {})})
    else:
        check = result["merge_check"]
        trained_dir = run.folder / result["adapter_dir"]
        say(f"{trained_dir.name + ':':8} {trained_dir}")
        say(f"merged:  {run.folder / result['merged_dir']}")
        say(
            f"merged against {trained_dir.name} on {check['num_tokens']:,} tokens: same first choice on "
            f"{check['top1_agreement_frac']:.2%}, mean difference of log-probability "
            f"{check['mean_abs_logprob_diff']:.2g} ({'passed' if check['passed'] else 'FAILED'})"
        )
        if check.get("candidates"):
            say(f"merged {merge_choice(check['candidates'])}")
        for fault in check.get("faults", ()):
            warn(f"merged weights refused: {fault}")
        if converted:
            show_converted(converted)
        if not chosen.meets(run.config.task.bar):
            warn(
                f"note: {chosen.arm} does not meet the bar of {run.config.task.bar:g} "
                f"({chosen.metric} {score_text(to_json(chosen.score))})"
            )
    return 0


def show_converted(converted: Mapping[str, Any]) -> None:
    """What was converted, how near it is to transformers, and how it is run."""
    for name, num_bytes in converted["files"].items():
        if name.endswith(".gguf"):
            say(f"{converted['tool']}:  {Path(converted['folder']) / name} ({num_bytes / 1e6:,.1f} MB)")
    for check in converted["checks"]:
        say(
            f"{check['name']} in llama.cpp against transformers at {check['num_positions']} positions: same first "
            f"choice on {check['top1_agreement_frac']:.1%}, same greedy answer on {check['greedy_match_frac']:.0%}, "
            f"mean difference of log-probability {check['mean_abs_logprob_diff']:.2g} (rounding {check['noise']:.2g})"
        )
    for note in converted["notes"]:
        warn(f"note: {note}")
    say(f"run it with: {converted['command']}")


def report_command(target: str, runs_dir: Path, is_json: bool) -> int:
    """Render the report from the files of the run folder."""
    run = open_run(target, runs_dir)
    if not run.folder.is_dir():
        raise BadInput(f"{run.folder}: no such run folder yet; first: shoestring run {target}")
    path = run.write_report()
    if is_json:
        emit(summary_of(run))
    else:
        say(str(path))
    return 0
