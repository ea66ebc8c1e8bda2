"""`shoestring synth`: predict, ask the teacher within the budget, and write rows with where they come from."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import BadInput, DataError, ShoestringError
from ..files import sha256_file, write_json, write_jsonl
from ..records import to_json
from ..units import usd
from .output import emit, say, warn
from .progress import Screen
from .tables import table, usd_span

if TYPE_CHECKING:
    from ..config import EndpointConfig, RunConfig
    from ..data.synth.asking import Teacher
    from ..data.synth.known import Known
    from ..data.synth.make import Made, Task
    from ..data.synth.predict import Prediction
    from ..data.synth.texts import Text
    from ..messages import Example

MODES = ("seeds", "documents", "task", "inputs", "distilabel")
ENGINES = ("builtin", "distilabel")
DEFAULT_ROWS = 200
DEFAULT_SAMPLES = 3
REQUESTS_PER_WORKER = 4  # requests of one call, so that workers do not wait for the slowest after each answer
DISTILABEL_CALL = 64  # requests of one pipeline: each starts a process, seconds
OURS = ("receipt.json", "answers.jsonl", ".lock")


def command(
    run_file: str, files: list[str], mode: str, num_rows: int | None, out: Path, endpoint: str | None, engine: str,
    is_dry: bool, is_json: bool,
) -> int:  # fmt: skip
    """Make the rows, or only say what they would cost."""
    from ..config import load_run_file
    from ..data.synth.known import known_rows
    from ..data.synth.make import Maker
    from ..data.synth.predict import predict
    from ..runfolder import RunFolder

    _check(mode, files, num_rows, engine, out)
    if is_dry and mode == "distilabel":
        raise BadInput("--dry-run: an import asks no teacher and costs nothing; run it without")
    config = load_run_file(run_file)
    with Screen() as screen:
        known = known_rows(config, Path(run_file).parent, mode == "seeds", screen.progress)
    task = _task(config, known)
    texts = _texts(config, files, mode)
    wanted = num_rows or (len(texts) if mode == "inputs" else DEFAULT_ROWS)
    if is_dry:
        paid = _teacher(config, endpoint, engine, out, is_dry)
        predicted = predict(Maker(task, paid), paid, wanted, mode, texts)
        return _show_prediction(predicted, paid, config.budget_usd, wanted, is_json)
    with RunFolder(out).locked():
        teacher = None if mode == "distilabel" else _teacher(config, endpoint, engine, out, is_dry)
        with Screen() as screen:
            made = _make(config, task, teacher, texts, files, mode, wanted, out, screen)
        return _finish(made, known, out, config, mode, wanted, teacher, is_json)


def _make(
    config: RunConfig, task: Task, teacher: Teacher | None, texts: list[Text], files: list[str], mode: str,
    wanted: int, out: Path, screen: Screen,
) -> Made:  # fmt: skip
    from ..data.synth.imported import read_distilabel
    from ..data.synth.make import Maker
    from ..data.synth.predict import predict
    from ..ledger import Ledger

    if teacher is None:
        maker = Maker(task, None)
        return maker.imported(read_distilabel(files, maker.shape))
    maker = Maker(task, teacher, config.budget_usd, screen.progress)
    predicted = predict(maker, teacher, wanted, mode, texts)
    span = usd_span(to_json(predicted.cost_usd))
    screen.log(f"{wanted} rows from {teacher.model} at {teacher.host}: predicted {span}")
    started, ledger = time.monotonic(), Ledger(out / "ledger.jsonl")
    try:
        return maker.answers(wanted, texts) if mode == "inputs" else maker.pairs(wanted, mode, texts)
    finally:
        ledger.record(
            f"{wanted} rows from {teacher.model}",
            stage="synth",
            predicted={"usd": predicted.cost_usd},
            # What a killed session spent stands in answers.jsonl alone, so it is entered here.
            actual={"usd": teacher.spent_usd() - ledger.spent_usd(), "s": time.monotonic() - started},
            price_usd_per_hour=None,
        )


def _check(mode: str, files: list[str], num_rows: int | None, engine: str, out: Path) -> None:
    """Refuse what cannot be meant, before anything is read."""
    if mode not in MODES:
        raise BadInput(f"--from {mode}: choose one of {', '.join(MODES)}")
    if engine not in ENGINES:
        raise BadInput(f"--engine {engine}: choose one of {', '.join(ENGINES)}")
    takes_files = mode in ("documents", "inputs", "distilabel")
    if takes_files and not files:
        raise BadInput(f"--from {mode} needs files after the run file, such as: shoestring synth run.yaml FILE")
    if files and not takes_files:
        raise BadInput(f"--from {mode} takes no files; seeds are data.train of the run file")
    missing = next((name for name in files if not Path(name).is_file()), None)
    if missing is not None:
        raise DataError(f"{missing}: no such file; files are relative to the working folder")
    if num_rows is not None and num_rows < 1:
        raise BadInput(f"--num {num_rows}: ask for at least one row")
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in OURS):
        raise BadInput(f"--out {out} holds other files; give an empty or new folder")


def _task(config: RunConfig, known: Known) -> Task:
    from ..data.synth.make import NUM_SHOTS, Task
    from ..decide.baselines import choose_shots, instruction_for

    if not known.train:
        if not config.task.instruction.strip():
            raise BadInput("task.instruction is empty and there are no seeds: say in the run file what is to be done")
        if config.task.kind == "classify" and not known.labels:
            raise BadInput("without seeds the labels are unknown; list them under synth.labels in the run file")
    can_agree = config.synth.temperature > 0
    samples = config.synth.samples or max(config.synth.agree or 1, DEFAULT_SAMPLES if can_agree else 1)
    return Task(
        kind=config.task.kind,
        instruction=instruction_for(config.task, known.train, known.labels),
        labels=known.labels,
        train=known.train,
        eval=known.eval,
        shots=tuple(choose_shots(known.train, NUM_SHOTS, config.seed)) if known.train else (),
        samples=samples,
        agree=config.synth.agree or samples // 2 + 1,
        attributes=config.synth.attributes,
        system=known.system or config.data.system,
        seed=config.seed,
        similarity=config.synth.similarity,
    )


def _texts(config: RunConfig, files: list[str], mode: str) -> list[Text]:
    from ..data.synth.texts import read_inputs, read_passages

    if mode == "inputs":
        return read_inputs(files, config.data.fields.prompt)
    return read_passages(files) if mode == "documents" else []


def _endpoint(config: RunConfig, name: str | None) -> EndpointConfig:
    """The endpoint named, else synth.teacher, else the only one of decide.endpoints."""
    teacher = config.synth.teacher
    every = [*([teacher] if teacher else []), *config.decide.endpoints]
    if name is not None:
        found = next((e for e in every if e.name == name), None)
        if found is None:
            names = ", ".join(e.name for e in every) or "none"
            raise BadInput(f"--endpoint {name}: the run file has {names} under synth.teacher and decide.endpoints")
        return found
    if teacher is None and len(every) != 1:
        raise BadInput(
            f"no teacher: the run file has no synth.teacher and {len(every)} decide.endpoints; add synth.teacher with "
            "name, base_url, model and both prices ('shoestring explain synth.teacher'), or give --endpoint NAME"
        )
    return every[0]


def _teacher(config: RunConfig, name: str | None, engine: str, out: Path, is_dry: bool) -> Teacher:
    """The endpoint with the answers already paid for; a dry run needs no key and no distilabel."""
    from ..data.synth.asking import Teacher
    from ..decide.answers import AnswerFile
    from ..decide.client import Client
    from ..decide.distilabel import Distilabel

    endpoint = _endpoint(config, name)
    client = Client(
        endpoint.model_copy(update={"api_key_env": ""}) if is_dry else endpoint,
        AnswerFile(out / "answers.jsonl"),
        max_new_tokens=config.synth.max_new_tokens,
        temperature=config.synth.temperature,
    )
    sampling, requests_per_call = client.sampling, REQUESTS_PER_WORKER * endpoint.num_parallel
    if engine == "distilabel" and not is_dry:
        sampling = Distilabel(client, Path(config.synth.distilabel_python)).sampling
        requests_per_call = DISTILABEL_CALL
    return Teacher(
        model=endpoint.model,
        host=urlsplit(endpoint.base_url).netloc,
        usd_per_million_input_tokens=endpoint.usd_per_million_input_tokens,
        usd_per_million_output_tokens=endpoint.usd_per_million_output_tokens,
        max_new_tokens=config.synth.max_new_tokens,
        requests_per_call=requests_per_call,
        sampling=sampling,
        has=client.has,
        spent_usd=client.answers.spent_usd,
    )


def _show_prediction(predicted: Prediction, teacher: Teacher, budget_usd: float, wanted: int, is_json: bool) -> int:
    requests, cost = to_json(predicted.num_requests), to_json(predicted.cost_usd)
    spent_usd = teacher.spent_usd()
    if is_json:
        emit(
            {
                "wanted": wanted,
                "teacher": teacher.model,
                "endpoint": teacher.host,
                "requests": requests,
                "cost_usd": cost,
                "budget_usd": budget_usd,
                "spent_usd": spent_usd,
                "first_prompt": to_json(predicted.first_prompt),
            }
        )
        return 0
    for message in predicted.first_prompt:
        say(f"[{message.role}]\n{message.content}\n")
    say(f"{wanted} rows from {teacher.model} at {teacher.host}")
    say(f"requests: about {requests['value']:.0f} ({requests['low']:.0f} to {requests['high']:.0f})")
    say(f"cost: {usd_span(cost)}; stops at the budget of {usd(budget_usd)}, {usd(spent_usd)} spent so far")
    return 0


# ---- results --------------------------------------------------------------------------------


def _finish(
    made: Made, known: Known, out: Path, config: RunConfig, mode: str, wanted: int, teacher: Teacher | None,
    is_json: bool,
) -> int:  # fmt: skip
    """Write the files and say what is in them; what stopped the teacher early is raised after that."""
    write_jsonl(out / "synthetic.jsonl", made.rows)
    write_jsonl(out / "rejected.jsonl", made.rejected)
    names = ["synthetic.jsonl", "rejected.jsonl"]
    if known.is_split:
        write_jsonl(out / "eval.jsonl", (_held_out(e) for e in known.eval))
        names.append("eval.jsonl")
    result = {
        "folder": str(out),
        "from": mode,
        "teacher": teacher.model if teacher else None,
        "endpoint": teacher.host if teacher else None,
        "wanted": wanted,
        "generated": len(made.rows) + len(made.rejected),
        "kept": len(made.rows),
        "rejected": len(made.rejected),
        "rejected_by_code": dict(Counter(row["code"] for row in made.rejected).most_common()),
        "cost_usd": made.cost_usd,
        "spent_usd": teacher.spent_usd() if teacher else 0.0,
        "budget_usd": config.budget_usd,
        "labels": dict(Counter(row["messages"][-1]["content"] for row in made.rows)) if known.labels else None,
        "notes": [*known.notes, *made.notes],
        "stopped_by": str(made.ended) if made.ended else None,
        "sha256": {name: sha256_file(out / name) for name in names},
    }
    write_json(out / "receipt.json", result)
    if made.ended is None and not made.rows:
        raise ShoestringError(
            f"none of {result['generated']} rows could be kept ({_reasons(result)}); see {out / 'rejected.jsonl'}"
        )
    if made.ended is not None:
        warn(f"{len(made.rows)} of {wanted} rows so far ({_reasons(result)}): {out / 'synthetic.jsonl'}")
        raise made.ended
    if is_json:
        emit(result)
    else:
        _show(result, known)
    return 0


def _held_out(example: Example) -> dict[str, Any]:
    return {key: value for key, value in to_json(example).items() if key in ("messages", "tools")}


def _reasons(result: dict[str, Any]) -> str:
    return ", ".join(f"{n} {code}" for code, n in result["rejected_by_code"].items()) or "none refused"


def _show(result: dict[str, Any], known: Known) -> None:
    folder = Path(result["folder"])
    say(f"{result['generated']:,} rows generated: {result['kept']:,} kept, {result['rejected']:,} refused")
    if result["rejected_by_code"]:
        rows = [(code, f"{n:,}") for code, n in result["rejected_by_code"].items()]
        say(table(("refused because", "rows"), rows, right=(1,)))
    if result["teacher"]:
        each = f", {usd(result['cost_usd'] / result['kept'])} a row kept" if result["kept"] else ""
        say(f"spent {usd(result['spent_usd'])} of {usd(result['budget_usd'])}{each}")
    for note in result["notes"]:
        say(f"note: {note}")
    if result["kept"] < result["wanted"]:
        say(f"note: {result['kept']} of {result['wanted']} rows; the rest was refused, see {folder / 'rejected.jsonl'}")
    say(f"rows: {folder / 'synthetic.jsonl'}")
    say("to train on them, in the run file:")
    say(f"  data.train: the files it has, and {folder / 'synthetic.jsonl'}")
    if known.is_split:
        say(f"  data.eval: {folder / 'eval.jsonl'} (the rows held out here; curation keeps them out of training)")
