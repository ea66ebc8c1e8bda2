"""`shoestring import openai`: the job and its files, the run file, and what both ways cost."""

from __future__ import annotations

import shlex
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, DataError, ModelError
from ..files import write_whole
from ..task import STARTING_BARS
from ..units import usd
from .output import emit, say, warn, written_to_out
from .progress import Screen
from .tables import table

if TYPE_CHECKING:
    from ..imports.openai_job import Job
    from ..imports.openai_tuning import Checked, Paid

RUN_FILE = "run.yaml"


def command(
    job_id: str | None, job_file: Path | None, train: Path | None, validation: Path | None, models: list[str],
    out: Path | None, force: bool, is_json: bool,
) -> int:  # fmt: skip
    """Fetch or read, check, write, and compare."""
    from ..imports import openai_tuning
    from ..imports.openai_job import read_job, read_job_file

    _require_one_way(job_id, job_file, train, validation)
    record = read_job_file(job_file) if job_file is not None else None
    folder = out or Path("imported") / (
        openai_tuning.run_name(read_job(record, str(job_file))) if record else str(job_id)
    )
    _refuse_other(folder, force)
    today = datetime.now(UTC).date()
    with Screen() as screen, written_to_out():
        job, files = _files(job_id, record, job_file, train, validation, folder, screen)
        checked = openai_tuning.check(job, files["train"], files.get("validation"), screen.progress)
        chosen = openai_tuning.chosen_for(job)
        wanted = models or [chosen.model]
        closing = openai_tuning.closing(today)
        bar = STARTING_BARS[checked.kind]
        text = openai_tuning.run_file_text(job, checked, chosen, wanted, bar, closing, files, folder)
        write_whole(folder / RUN_FILE, text)
        predicted = _predicted(folder / RUN_FILE)
    paid = openai_tuning.paid(job)
    answer: dict[str, Any] = {
        "run_file": str(folder / RUN_FILE),
        "job": {"id": job.id, "model": job.snapshot, "method": job.method, "status": job.status},
        "kind": checked.kind,
        "objective": checked.objective,
        "rows": openai_tuning.counts(checked),
        "left_out": openai_tuning.faults(checked),
        "hyperparameters": [
            {"theirs": c.theirs, "value": c.value, "key": c.key or None, "ours": c.ours, "reason": c.reason}
            for c in openai_tuning.carried(job, checked)
        ],
        "models": wanted,
        "chosen": {
            "model": chosen.model,
            "licence": chosen.licence,
            "reason": chosen.reason,
            "scores": {b: {"there": theirs, "here": own} for b, (theirs, own) in chosen.compared.items()},
            "sources": list(chosen.sources),
        },
        "paid": {"usd": paid.usd, "trained_tokens": paid.num_tokens, "source": paid.source},
        "predicted": predicted,
        "closing": closing,
    }
    if is_json:
        emit(answer)
    else:
        _show(answer, job, checked, paid)
    return 0


def _require_one_way(job_id: str | None, job_file: Path | None, train: Path | None, validation: Path | None) -> None:
    if (job_id is None) == (job_file is None):
        raise BadInput("give --job ftjob-... to fetch it, or --job-file job.json with --train FILE; one of the two")
    if job_file is not None and train is None:
        raise BadInput(f"--job-file {job_file}: its rows are in another file; give it with --train FILE")
    if job_id is not None and (train or validation):
        raise BadInput("--job brings the files itself; --train and --validation go with --job-file")
    for path in (train, validation):
        if path is not None and not path.is_file():
            raise DataError(f"{path}: no such file; files are relative to the working folder")


def _refuse_other(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--out {folder} is a file; give a folder")
    if (folder / RUN_FILE).exists() and not force:
        raise BadInput(f"{folder / RUN_FILE} exists; choose another folder with --out DIR, or replace it with --force")


def _files(
    job_id: str | None, record: Any, job_file: Path | None, train: Path | None, validation: Path | None,
    folder: Path, screen: Screen,
) -> tuple[Job, dict[str, Path]]:  # fmt: skip
    """The job, and its files in the folder."""
    from ..imports.openai_job import fetch, read_job

    if job_id is not None:
        record, fetched, held_out = fetch(job_id, folder, screen.log)
        files = {"train": fetched, **({"validation": held_out} if held_out else {})}
        return read_job(record, job_id), files
    job = read_job(record, str(job_file))
    files = {}
    for name, path in (("train", train), ("validation", validation)):
        if path is not None:
            files[name] = folder / f"{name}{_endings(path)}"
            folder.mkdir(parents=True, exist_ok=True)
            if path.resolve() != files[name].resolve():
                shutil.copyfile(path, files[name])
    return job, files


def _endings(path: Path) -> str:
    return "".join(path.suffixes[-2:]) if path.suffix in (".gz", ".zst") else path.suffix or ".jsonl"


def _predicted(run_file: Path) -> dict[str, Any]:
    """What plan picks for the run file: dollars with their range, where, by what; why not, where there is none."""
    from ..recipe import Run
    from ..stages.choosing import weigh
    from ..stages.told import told

    run = Run.from_file(run_file, runs_dir=run_file.parent / "runs")
    try:
        answer = told(weigh(run), run.config.name)
    except (DataError, ModelError, BadInput) as error:
        return {"usd": None, "reason": str(error)}
    pick = answer["pick"]
    if pick is None:
        return {"usd": None, "reason": answer["why"]}
    return {"usd": pick["usd"], "hours": pick["hours"], "words": pick["words"], "price": pick["price"]}


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _show(answer: dict[str, Any], job: Job, checked: Checked, paid: Paid) -> None:
    from ..plan.figures import usd_text

    say(f"{job.id}: {job.snapshot}, {job.method}, {job.status}; {answer['closing']}")
    rows = answer["rows"]
    say(f"{rows['rows']:,} training rows give {rows['examples']:,} examples: {checked.kind} ({checked.evidence})")
    for fault in answer["left_out"]:
        where = ", ".join(fault["lines"])
        warn(f"note: {fault['num_rows']:,} rows left out, {fault['code']} ({where}): {fault['evidence']}")
    say()
    told = [(c["theirs"], _plain(c["value"]), c["key"] or "-", c["reason"]) for c in answer["hyperparameters"]]
    if told:
        say(table(("there", "value", "here", "why"), told, flexible=3))
        say()
    chosen = answer["chosen"]
    say(f"{chosen['model']} ({chosen['licence'].split(' (')[0]}): {chosen['reason']}")
    if chosen["scores"]:
        compared = [(b, f"{s['there']:g}", f"{s['here']:g}") for b, s in chosen["scores"].items()]
        say(table(("published score", "there", "here"), compared, right=(1, 2)))
    if answer["models"] != [chosen["model"]]:
        say(f"models as you asked: {', '.join(answer['models'])}")
    say()
    spent = f"{paid.num_tokens:,} trained tokens" if paid.num_tokens is not None else "tokens not known"
    price = f" x {usd(paid.usd_per_million)} a million" if paid.usd_per_million is not None else ""
    say(f"paid there: {'not known' if paid.usd is None else usd(paid.usd)} ({spent}{price}; {paid.source})")
    predicted = answer["predicted"]
    if predicted["usd"] is None:
        say(f"here: no prediction: {predicted['reason']}")
    else:
        say(f"here: {usd_text(predicted['usd'])} predicted, {predicted['words']}")
    path = shlex.quote(answer["run_file"])
    say(f"\nWrote {answer['run_file']}: read it, set the bar, then  shoestring plan {path}  and  shoestring run {path}")
