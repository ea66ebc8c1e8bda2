"""The body of a request for a job, held against the API's schema; what we do not do is refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..gateway.errors import ApiError

KEYS = (
    *("model", "training_file", "validation_file", "suffix", "seed", "method", "hyperparameters", "integrations"),
    "metadata",
)
AUTO = "auto"
METHODS = {
    "supervised": ("n_epochs", "batch_size", "learning_rate_multiplier"),
    "dpo": ("n_epochs", "batch_size", "learning_rate_multiplier", "beta"),
}
# (lowest, highest, whole) of each; bounds of the API where it has some, of our run file where those are narrower.
BOUNDS = {
    "n_epochs": (1, 50, True),
    "batch_size": (1, 1024, True),
    "learning_rate_multiplier": (0.001, 1000, False),
    "beta": (0.0001, 2, False),
}
MAX_SUFFIX, MAX_PAIRS, MAX_KEY, MAX_VALUE = 64, 16, 64, 512
NAMED_SUFFIX = 40  # characters of a suffix that stand in the names of run and model
SHOWN = 100  # characters of a refused value
MAX_SEED = 2**31 - 1


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400 of the API."""
    return ApiError(400, message, param=param, code=code)


def whole(text: str, low: int, high: int) -> int | None:
    """The whole number that a text of plain digits writes, None where it is none from low to high."""
    is_plain = text.isascii() and text.isdigit() and len(text) <= len(str(high))
    return int(text) if is_plain and low <= int(text) <= high else None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a job that reads right; its files and its model are not looked up yet."""

    model: str
    training_file: str
    validation_file: str | None
    suffix: str
    seed: int | None
    method: str
    hyperparameters: dict[str, Any]
    metadata: dict[str, str] | None


def read_request(body: Any) -> Asked:
    """Raises: ApiError 400 naming the parameter, its value and what would be right."""
    if not isinstance(body, Mapping):
        raise refused("the body is a JSON object with model and training_file")
    for key in body:
        if key not in KEYS:
            raise refused(
                f"Unrecognized request argument supplied: {str(key)[:64]}", str(key)[:64], "unknown_parameter"
            )
    for key in ("model", "training_file"):
        if not isinstance(body.get(key), str) or not body[key]:
            raise refused(f"{key} is a required property, a string", key)
    if body.get("integrations"):
        raise refused(
            "integrations are not offered here; the server's owner sends steps to W&B and others with run: {train: "
            "{trackers: [wandb]}} in the file of --limits (tuning)",
            "integrations",
            "unsupported_parameter",
        )
    validation = body.get("validation_file")
    if validation is not None and not isinstance(validation, str):
        raise refused("validation_file is the id of a file, or null", "validation_file")
    if validation == body["training_file"]:
        raise refused("validation_file is the training_file; held-out rows are others", "validation_file")
    method, hyperparameters = _method(body)
    return Asked(
        model=body["model"],
        training_file=body["training_file"],
        validation_file=validation,
        suffix=_suffix(body.get("suffix")),
        seed=_seed(body.get("seed")),
        method=method,
        hyperparameters=hyperparameters,
        metadata=_metadata(body.get("metadata")),
    )


def _method(body: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    method, legacy = body.get("method"), body.get("hyperparameters")
    if method is None:
        return "supervised", _hyperparameters(legacy, "supervised", "hyperparameters")
    kind = method.get("type") if isinstance(method, Mapping) else None
    if kind == "reinforcement":
        raise refused(
            "method reinforcement is not offered here: it learns from a grader's scores, and this server from answers "
            "(supervised) or pairs (dpo); write answers, 'shoestring synth' helps",
            "method.type",
            "unsupported_method",
        )
    if not isinstance(kind, str) or kind not in METHODS:
        raise refused(f"method.type {_short(kind)} is none of {', '.join(METHODS)}", "method.type")
    for key in method:
        if key not in ("type", *METHODS) or (key != "type" and key != kind and method[key] is not None):
            raise refused(f"method.{key} does not belong to a job of type {kind}", f"method.{str(key)[:64]}")
    inner = method.get(kind) or {}
    if not isinstance(inner, Mapping) or set(inner) - {"hyperparameters"}:
        raise refused(f"method.{kind} is an object with hyperparameters alone", f"method.{kind}")
    if legacy:
        raise refused(
            "hyperparameters stand under method, or beside it in the old way; give them once", "hyperparameters"
        )
    return kind, _hyperparameters(inner.get("hyperparameters"), kind, f"method.{kind}.hyperparameters")


def _hyperparameters(given: Any, kind: str, param: str) -> dict[str, Any]:
    """All of the method's, "auto" where none is given."""
    if given is not None and not isinstance(given, Mapping):
        raise refused(f"{param} is an object", param)
    values = dict(given or {})
    for key, value in values.items():
        if key not in METHODS[kind]:
            raise refused(
                f"{param}.{str(key)[:64]} is no hyperparameter of {kind}; those are {', '.join(METHODS[kind])}",
                f"{param}.{str(key)[:64]}",
            )
        if value in (AUTO, None):
            continue
        low, high, is_whole = BOUNDS[key]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or (is_whole and value != int(value)):
            what = "a whole number" if is_whole else "a number"
            raise refused(
                f"{param}.{key} = {_short(value)}: give {what} from {low:g} to {high:g}, or auto", f"{param}.{key}"
            )
        values[key] = int(value) if is_whole else float(value)
    return {key: AUTO if values.get(key) is None else values[key] for key in METHODS[kind]}


def _suffix(given: Any) -> str:
    """In the form that names have: small letters, digits, hyphens."""
    if given is None:
        return ""
    if not isinstance(given, str) or len(given) > MAX_SUFFIX or not re.fullmatch(r"[A-Za-z0-9 ._-]*", given):
        raise refused(
            f"suffix {_short(given)}: give at most {MAX_SUFFIX} letters (a to z), digits, spaces, dots, hyphens and "
            "underscores",
            "suffix",
        )
    named = re.sub(r"[^a-z0-9]+", "-", given.lower()).strip("-")[:NAMED_SUFFIX].strip("-")
    if given and not named:
        raise refused(f"suffix {given!r} holds no letter and no digit, which a name is made of", "suffix")
    return named


def _short(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


def _seed(given: Any) -> int | None:
    if given is None:
        return None
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given <= MAX_SEED:
        raise refused(f"seed {_short(given)}: give a whole number from 0 to {MAX_SEED}", "seed")
    return given


def _metadata(given: Any) -> dict[str, str] | None:
    if given is None:
        return None
    is_right = (
        isinstance(given, Mapping)
        and len(given) <= MAX_PAIRS
        and all(len(str(k)) <= MAX_KEY and isinstance(v, str) and len(v) <= MAX_VALUE for k, v in given.items())
    )
    if not is_right:
        raise refused(
            f"metadata {_short(given)}: give at most {MAX_PAIRS} pairs, names of {MAX_KEY} characters at most and text "
            f"of {MAX_VALUE}",
            "metadata",
        )
    return dict(given)
