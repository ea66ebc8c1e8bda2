"""What a job is to each service, and what its answers say: plain functions on plain JSON, by the API's own names."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ...errors import BadInput, LaunchError
from .vendors import Vendor

NANO = 1e-9  # Together states prices in billionths of a dollar (its SDK's finetune_price_to_dollars)
TAG_START = "shoestring-"


@dataclass(frozen=True, slots=True)
class Wanted:
    """The training that is asked for, in the field's words; None: left to the service."""

    model: str  # as the service calls it
    objective: str
    method: str
    num_epochs: int
    learning_rate: float | None
    lora_rank: int | None
    lora_alpha: float | None
    seq_len: int | None
    warmup_frac: float | None
    weight_decay: float | None
    seed: int
    dpo_beta: float | None = None
    num_evals: int = 0  # on the dev rows, where the service counts them


@dataclass(frozen=True, slots=True)
class Seen:
    """A job as last seen. usd, num_tokens: as the service states them; None until it does."""

    id: str
    state: str  # pending, running, done, failed, stopped: of launch.records.STATES
    said: str  # the service's own word
    reason: str = ""  # of a failure
    usd: float | None = None
    num_tokens: int | None = None
    tuned_model: str = ""  # the name it answers to
    done_frac: float | None = None
    created_at: str | None = None
    ended_at: str | None = None  # of one that has ended, where it is stated
    tag: str = ""


STATES = {
    "together": {
        "pending": "pending",
        "queued": "pending",
        "running": "running",
        "compressing": "running",
        "uploading": "running",
        "cancel_requested": "running",
        "cancelled": "stopped",
        "error": "failed",
        "user_error": "failed",
        "completed": "done",
    },
    "openai": {
        "validating_files": "pending",
        "queued": "pending",
        "running": "running",
        "paused": "running",
        "succeeded": "done",
        "failed": "failed",
        "cancelled": "stopped",
    },
    "fireworks": {
        "JOB_STATE_CREATING": "pending",
        "JOB_STATE_PENDING": "pending",
        "JOB_STATE_VALIDATING": "pending",
        "JOB_STATE_CREATING_INPUT_DATASET": "pending",
        "JOB_STATE_RE_QUEUEING": "pending",
        "JOB_STATE_RUNNING": "running",
        "JOB_STATE_WRITING_RESULTS": "running",
        "JOB_STATE_IDLE": "running",
        "JOB_STATE_PAUSED": "running",
        "JOB_STATE_CANCELLING": "running",
        "JOB_STATE_COMPLETED": "done",
        "JOB_STATE_EARLY_STOPPED": "done",
        "JOB_STATE_FAILED": "failed",
        "JOB_STATE_EXPIRED": "failed",
        "JOB_STATE_CANCELLED": "stopped",
        "JOB_STATE_DELETING": "stopped",
        "JOB_STATE_DELETING_CLEANING_UP": "stopped",
    },
}


# ---- the request ----------------------------------------------------------------------------


def request_of(vendor: Vendor, wanted: Wanted, tag: str, training: str, validation: str | None) -> dict[str, Any]:
    """Arguments of the SDK's create. Raises: BadInput for what the service does not train."""
    for name, value, known in (
        ("train.objective", wanted.objective, vendor.objectives),
        ("method", wanted.method, vendor.methods),
    ):
        if value not in known:
            raise BadInput(
                f"{name} {value}: {vendor.name} is asked for {' or '.join(known)} here; change it, or train elsewhere"
            )
    if vendor.sdk == "together":
        return _together(wanted, tag, training, validation)
    if vendor.sdk == "fireworks":
        return _fireworks(wanted, tag, training, validation)
    return _openai(vendor, wanted, tag, training, validation)


def _there(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _together(wanted: Wanted, tag: str, training: str, validation: str | None) -> dict[str, Any]:
    is_lora = wanted.method == "lora"
    return _there(
        model=wanted.model,
        training_file=training,
        validation_file=validation,
        n_epochs=wanted.num_epochs,
        n_evals=wanted.num_evals if validation else None,
        learning_rate=wanted.learning_rate,
        max_seq_length=wanted.seq_len,
        warmup_ratio=wanted.warmup_frac,
        weight_decay=wanted.weight_decay,
        lora=is_lora,
        lora_r=wanted.lora_rank if is_lora else None,
        lora_alpha=wanted.lora_alpha if is_lora else None,
        random_seed=wanted.seed,
        suffix=tag,
        training_method=wanted.objective,
        train_on_inputs="auto" if wanted.objective == "sft" else None,
        dpo_beta=wanted.dpo_beta if wanted.objective == "dpo" else None,
    )


def estimate_request(request: dict[str, Any]) -> dict[str, Any]:
    """Together's price estimate for a request of _together."""
    method: dict[str, Any] = {"method": request["training_method"]}
    if method["method"] == "sft":
        method["train_on_inputs"] = "auto"
    else:
        method |= {
            "dpo_beta": request.get("dpo_beta", 0),
            "dpo_normalize_logratios_by_length": False,
            "dpo_reference_free": False,
            "rpo_alpha": 0,
            "simpo_gamma": 0,
        }
    kind: dict[str, Any] = {"type": "Full"}
    if request["lora"]:
        kind = {"type": "Lora", **_there(lora_r=request.get("lora_r"), lora_alpha=request.get("lora_alpha"))}
        kind["lora_trainable_modules"] = "all-linear"
    return _there(
        training_file=request["training_file"],
        validation_file=request.get("validation_file"),
        model=request["model"],
        n_epochs=request["n_epochs"],
        n_evals=request.get("n_evals"),
        training_method=method,
        training_type=kind if "lora_r" in kind or kind["type"] == "Full" else None,
    )


def _fireworks(wanted: Wanted, tag: str, training: str, validation: str | None) -> dict[str, Any]:
    return _there(
        supervised_fine_tuning_job_id=tag,
        display_name=tag,
        output_model=tag,
        dataset=training,
        evaluation_dataset=validation,
        base_model=wanted.model,
        epochs=wanted.num_epochs,
        learning_rate=wanted.learning_rate,
        lora_rank=wanted.lora_rank,
        max_context_length=wanted.seq_len,
        optimizer_weight_decay=wanted.weight_decay,
    )


def _openai(vendor: Vendor, wanted: Wanted, tag: str, training: str, validation: str | None) -> dict[str, Any]:
    common = _there(
        model=wanted.model, training_file=training, validation_file=validation, suffix=tag, seed=wanted.seed
    )
    if vendor.name == "openai":  # the rate is theirs: only a multiplier of it can be given
        if wanted.objective == "dpo":
            inner = {"dpo": {"hyperparameters": _there(n_epochs=wanted.num_epochs, beta=wanted.dpo_beta)}}
            method = {"type": "dpo", **inner}
        else:
            method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": wanted.num_epochs}}}
        return {**common, "method": method, "metadata": {"shoestring": tag}}
    is_lora = wanted.method == "lora"
    return {
        **common,
        "hyperparameters": _there(
            n_epochs=wanted.num_epochs,
            learning_rate=wanted.learning_rate,
            lora=is_lora,
            lora_r=wanted.lora_rank if is_lora else None,
            lora_alpha=wanted.lora_alpha if is_lora else None,
            context_length=wanted.seq_len,
            warmup_ratio=wanted.warmup_frac,
            weight_decay=wanted.weight_decay,
            packing=True,
        ),
    }


def left_out(vendor: Vendor, wanted: Wanted) -> list[str]:
    """What the service decides by itself though the run has a value for it."""
    names: tuple[str, ...] = ()
    if vendor.name == "openai":
        names = ("learning_rate", "lora_rank", "lora_alpha", "seq_len", "warmup_frac", "weight_decay")
    elif vendor.sdk == "fireworks":
        names = ("lora_alpha", "warmup_frac", "seed")
    return [name for name in names if getattr(wanted, name) is not None]


# ---- the answers ----------------------------------------------------------------------------


def job_id_of(vendor: Vendor, raw: dict[str, Any]) -> str:
    """Raises: LaunchError where the answer names no job."""
    job_id = str(raw.get("name" if vendor.sdk == "fireworks" else "id") or "").rpartition("/")[2]
    if not job_id:
        raise LaunchError(f"{vendor.name}: the answer names no job: {str(raw)[:200]}; see the service's own page")
    return job_id


def seen(vendor: Vendor, raw: dict[str, Any], usd_per_million_tokens: float | None) -> Seen:
    """A job's answer, read. usd_per_million_tokens: for services that state tokens and no price.

    Raises: LaunchError for a state that is none of those documented.
    """
    said = str(raw.get("state" if vendor.sdk == "fireworks" else "status") or "")
    state = STATES[vendor.sdk].get(said)
    if state is None:
        raise LaunchError(
            f"{vendor.name}: job {job_id_of(vendor, raw)} is in state {said!r}, which its documentation does not have; "
            "look at it on the service's own page"
        )
    read = {"together": _seen_together, "openai": _seen_openai, "fireworks": _seen_fireworks}[vendor.sdk]
    facts = read(raw)
    if facts.get("usd") is None and facts.get("num_tokens") is not None and usd_per_million_tokens is not None:
        facts["usd"] = facts["num_tokens"] * usd_per_million_tokens / 1e6
    return Seen(job_id_of(vendor, raw), state, said, **facts)


def _seen_together(raw: dict[str, Any]) -> dict[str, Any]:
    total = raw.get("total_price")
    is_billed = raw.get("status") in ("completed", "cancelled", "error")
    reason = ""
    if raw.get("status") in ("error", "user_error"):
        events = [event for event in raw.get("events") or [] if isinstance(event, dict)]
        told = [e.get("message", "") for e in events if "error" in str(e.get("type", "")).lower()]
        reason = told[-1] if told else ""
    return {
        "reason": reason,
        "usd": None if total is None or not is_billed else total * NANO,
        "num_tokens": raw.get("token_count"),
        "tuned_model": raw.get("model_output_name") or "",
        "done_frac": _frac(raw.get("steps_completed"), raw.get("total_steps")),
        "created_at": raw.get("created_at"),
        "ended_at": raw.get("updated_at"),
        "tag": raw.get("suffix") or "",
    }


def _seen_openai(raw: dict[str, Any]) -> dict[str, Any]:
    error = raw.get("error") or {}
    reason = error.get("message") or ""
    if reason and error.get("param"):
        reason = f"{reason} ({error['param']})"
    return {
        "reason": reason,
        "num_tokens": raw.get("trained_tokens"),
        "tuned_model": raw.get("fine_tuned_model") or "",
        "done_frac": _frac(raw.get("trained_steps"), raw.get("total_steps")),
        "created_at": _at(raw.get("created_at")),
        "ended_at": _at(raw.get("finished_at")),
        "tag": (raw.get("metadata") or {}).get("shoestring") or raw.get("suffix") or "",
    }


def _seen_fireworks(raw: dict[str, Any]) -> dict[str, Any]:
    cost, progress, status = (raw.get(name) or {} for name in ("estimatedCost", "jobProgress", "status"))
    usd = None
    if cost.get("currencyCode") == "USD" and (cost.get("units") is not None or cost.get("nanos") is not None):
        usd = int(cost.get("units") or 0) + int(cost.get("nanos") or 0) * NANO
    percent = progress.get("percent")
    return {
        "reason": (status.get("message") or "") if status.get("code") not in (None, "OK") else "",
        "usd": usd,
        "num_tokens": progress.get("inputTokens"),
        "tuned_model": raw.get("outputModel") or "",
        "done_frac": None if percent is None else percent / 100,
        "created_at": raw.get("createTime"),
        "ended_at": raw.get("completedTime") or raw.get("updateTime"),
        "tag": (raw.get("name") or "").rpartition("/")[2],
    }


def _at(seconds: float | None) -> str | None:
    """Unix time as ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else None


def _frac(done: Any, total: Any) -> float | None:
    return min(1.0, done / total) if isinstance(done, int) and isinstance(total, int) and total > 0 else None


def file_id_of(vendor: Vendor, raw: dict[str, Any]) -> str:
    """The name of an uploaded file in a request. Raises: LaunchError."""
    file_id = str(raw.get("name" if vendor.sdk == "fireworks" else "id") or "")
    if not file_id:
        raise LaunchError(f"{vendor.name}: the answer names no file: {str(raw)[:200]}; see the service's own page")
    return file_id


def file_state(vendor: Vendor, raw: dict[str, Any]) -> tuple[str, str]:
    """ready, waiting or refused, and why."""
    if vendor.sdk == "together":
        said, report = raw.get("processing_status"), raw.get("validation_report") or {}
        if said in ("FAILED", "INVALID_FORMAT") or report.get("valid") is False:
            return "refused", report.get("error") or str(said)
        return ("waiting" if said in ("PENDING", "QUEUED", "RUNNING") else "ready"), ""
    if vendor.sdk == "fireworks":
        status = raw.get("status") or {}
        if status.get("code") not in (None, "OK"):
            return "refused", status.get("message") or str(status.get("code"))
        return ("ready" if raw.get("state") == "READY" else "waiting"), ""
    if raw.get("status") == "error":
        return "refused", raw.get("status_details") or "error"
    return "ready", ""


def event_lines(raw: list[dict[str, Any]]) -> list[str]:
    """Events as lines, oldest first."""

    def at(event: dict[str, Any]) -> str:
        created = event.get("created_at")
        return (_at(created) or "") if isinstance(created, (int, float)) else str(created or "")

    return [f"{at(e)} {e.get('message', '')}".strip() for e in sorted(raw, key=at)]
