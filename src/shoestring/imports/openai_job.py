"""A fine-tuning job of OpenAI's: its record, events and files, through the official SDK with the user's key.

The key is read from OPENAI_API_KEY and goes nowhere but into the requests. Source: openai 3.57.0,
types/fine_tuning/fine_tuning_job.py; the SDK tries a request again by itself, after growing waits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import BadInput, DataError, EndpointError, require
from ..files import read_json, write_json, write_whole
from ..records import Log, no_log
from ..secrets import without_secrets

KEY = "OPENAI_API_KEY"
JOB_ID = re.compile(r"ft(job)?-[A-Za-z0-9]+")
ENDED = ("succeeded", "failed", "cancelled")
OTHER_WAY = "or give the files you have: --job-file job.json --train train.jsonl"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job:
    """What a finished job was. Hyperparameters are None where the record has none or says auto."""

    id: str
    model: str  # without its date: gpt-4o-mini
    snapshot: str  # as the record has it
    continued_from: str  # the fine-tune it went on from, empty for a base model
    status: str
    method: str  # supervised, dpo
    suffix: str
    seed: int | None
    num_epochs: float | None
    batch_rows: int | None
    rate_multiplier: float | None
    dpo_beta: float | None
    trained_tokens: int | None  # billed ones, all epochs
    training_file: str
    validation_file: str
    fine_tuned_model: str


def read_job(record: Any, name: str) -> Job:
    """The job of a `fine_tuning.job` record. Raises: BadInput naming what is missing, running, or cannot be carried."""
    if not isinstance(record, Mapping) or not isinstance(record.get("model"), str) or "status" not in record:
        raise BadInput(
            f"{name}: this is no fine_tuning.job record (it needs id, model, status and training_file); save what "
            "GET /v1/fine_tuning/jobs/ftjob-... answers"
        )
    status, job_id = str(record["status"]), str(record.get("id") or name)
    if status not in ENDED:
        raise BadInput(
            f"{job_id} is {status}: its result and its billed tokens are not known yet; import it when it has ended, "
            "or cancel it first"
        )
    method = record.get("method") or {}
    kind = method.get("type") or "supervised"
    if kind == "reinforcement":
        raise BadInput(
            f"{job_id} was trained by reinforcement: its rows hold no answers, a grader scored what the model said; "
            "Shoestring learns from answers (sft) or pairs (dpo), so write answers, with 'shoestring synth' for one"
        )
    if kind not in ("supervised", "dpo"):
        raise BadInput(f"{job_id}: method {kind!r} is not known; supervised and dpo can be imported")
    given = (method.get(kind) or {}).get("hyperparameters") or record.get("hyperparameters") or {}
    snapshot = record["model"]
    base = snapshot.split(":")[1] if snapshot.startswith("ft:") and snapshot.count(":") >= 1 else snapshot
    tuned = str(record.get("fine_tuned_model") or "")
    parts = tuned.split(":")  # ft:MODEL:ORGANISATION:SUFFIX:ID
    return Job(
        id=job_id,
        model=dateless(base),
        snapshot=snapshot,
        continued_from=snapshot if base != snapshot else "",
        status=status,
        method=kind,
        suffix=str(record.get("user_provided_suffix") or (parts[3] if len(parts) > 4 else "")),
        seed=record.get("seed"),
        num_epochs=_number(given.get("n_epochs")),
        batch_rows=None if (rows := _number(given.get("batch_size"))) is None else int(rows),
        rate_multiplier=_number(given.get("learning_rate_multiplier")),
        dpo_beta=_number(given.get("beta")),
        trained_tokens=record.get("trained_tokens"),
        training_file=str(record.get("training_file") or ""),
        validation_file=str(record.get("validation_file") or ""),
        fine_tuned_model=tuned,
    )


def dateless(name: str) -> str:
    """A model's name without the date of its snapshot."""
    return re.sub(r"-\d{4}-\d{2}-\d{2}$|-\d{4}$", "", name)


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else None


def read_job_file(path: Path) -> Any:
    """The JSON of a job that was saved. Raises: BadInput."""
    try:
        return read_json(path)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; give the job's record as JSON, or --job ftjob-...") from None
    except (ValueError, OSError) as error:
        raise BadInput(f"{path} is not the JSON of a job: {error}") from error


def fetch(job_id: str, folder: Path, log: Log = no_log) -> tuple[Any, Path, Path | None]:
    """The job's record, its training file and its validation file, brought to folder; its files there are kept.

    Raises: BadInput for a wrong id, no key, a job of others, a deleted file; EndpointError where none answers.
    """
    if not JOB_ID.fullmatch(job_id):
        raise BadInput(f"--job {job_id}: a job's id begins with ftjob-, as on the dashboard; {OTHER_WAY}")
    with _client() as client:
        return _fetched(client, job_id, folder, log)


def _fetched(client: Any, job_id: str, folder: Path, log: Log) -> tuple[Any, Path, Path | None]:
    record = _json(
        _ask(lambda: client.fine_tuning.jobs.retrieve(job_id), f"job {job_id}", _no_such_job(job_id)), job_id
    )
    job = read_job(record, job_id)
    earlier = _earlier(folder / "job.json")
    if earlier is None:
        write_json(folder / "job.json", record)
    events = _ask(lambda: list(client.fine_tuning.jobs.list_events(job_id, limit=100)), f"events of {job_id}", "")
    write_json(folder / "events.json", [_json(event, job_id) for event in events])
    paths: list[Path | None] = []
    for what, key, file_id in (
        ("train", "training_file", job.training_file),
        ("validation", "validation_file", job.validation_file),
    ):
        target = folder / f"{what}.jsonl"
        is_of_other = earlier is not None and earlier.get(key) != file_id
        if file_id and (is_of_other or not target.is_file()):
            log(f"{file_id} to {target}")
            write_whole(target, _content(client, file_id, what))
        paths.append(target if file_id else None)
    if paths[0] is None:
        raise BadInput(f"{job_id}: its record names no training_file; {OTHER_WAY}")
    write_json(folder / "job.json", record)  # after its files: until then those there are of the earlier job
    return record, paths[0], paths[1]


def _earlier(path: Path) -> Mapping[str, Any] | None:
    """The record of the job that was brought to this folder before; None where none was."""
    try:
        record = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, Mapping) else {}


def _client() -> Any:
    if not os.environ.get(KEY):
        raise BadInput(f"{KEY} is not set: export a key of the organisation that ran the job, {OTHER_WAY}")
    return require("openai", extra="openai", purpose="import openai --job").OpenAI()


def _no_such_job(job_id: str) -> str:
    return (
        f"OpenAI knows no job {job_id} for this key: the id is wrong, or the job is of another organisation or project "
        "(OPENAI_ORG_ID, OPENAI_PROJECT_ID, or a key of theirs)"
    )


def _content(client: Any, file_id: str, what: str) -> bytes:
    gone = f"{file_id} is no longer there (deleted or expired); give your own copy: --job-file job.json --{what} FILE"
    content: bytes = _ask(lambda: client.files.content(file_id).content, f"file {file_id}", gone)
    if content.lstrip()[:1] == b"<":
        raise EndpointError(_web_page(f"file {file_id}"))
    if not content.strip():
        raise DataError(f"{file_id}: the file is empty; give your own copy: --job-file job.json --{what} FILE")
    return content


def _ask(call: Callable[[], T], what: str, not_found: str) -> T:
    """call(), its failures in our words."""
    import openai

    try:
        return call()
    except openai.AuthenticationError as error:
        raise BadInput(f"{what}: the key in {KEY} is not accepted (401); export a valid one, {OTHER_WAY}") from error
    except openai.PermissionDeniedError as error:
        raise BadInput(f"{what}: the key in {KEY} may not read it (403): {_said(error)}") from error
    except openai.NotFoundError as error:
        raise BadInput(not_found or f"{what}: not found (404)") from error
    except openai.APIStatusError as error:
        raise EndpointError(f"{what}: OpenAI answered {error.status_code}: {_said(error)}; try again later") from error
    except openai.APIConnectionError as error:
        address = os.environ.get("OPENAI_BASE_URL", "api.openai.com")
        raise EndpointError(f"{what}: {without_secrets(address)} cannot be reached: {_said(error)}") from error
    except (openai.OpenAIError, ValueError) as error:
        raise EndpointError(f"{what}: {_said(error)}") from error


def _said(error: BaseException) -> str:
    return without_secrets(" ".join(str(error).split()))[:300]


def _json(answer: Any, what: str) -> Any:
    """The answer as plain JSON; the SDK hands out text where a page came instead. Raises: EndpointError."""
    if not hasattr(answer, "model_dump"):
        raise EndpointError(_web_page(what))
    return answer.model_dump(mode="json", exclude_unset=True)


def _web_page(what: str) -> str:
    return f"{what}: a web page came instead of the API's answer; is OPENAI_BASE_URL right, or a proxy in between?"
