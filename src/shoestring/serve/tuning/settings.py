"""What a server of fine-tuning jobs may spend and keep, and which model trains for which name: a YAML file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from ...config import parse_run_file
from ...errors import BadInput, ConfigError
from ...task import did_you_mean
from ...yaml_lines import line_of, read_mapping

OF_JOBS = ("name", "data", "models", "task", "budget_usd", "seed")  # keys of the run file that each job decides
EXAMPLE = {"name": "job", "task": {"kind": "generate", "bar": 0}, "data": {"train": ["train.jsonl"]}}


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """Limits, and what is laid over the run file of each job."""

    organisation: str = "shoestring"  # in the names of tuned models, ft:BASE:ORGANISATION:SUFFIX:ID
    budget_usd: float = 20.0  # of all jobs together; none is begun once it is spent
    job_budget_usd: float = 10.0  # of one job
    max_file_mb: int = 512  # 10^6 bytes, as the API's limit
    max_stored_mb: int = 20_000  # of all files together
    max_jobs: int = 100  # that wait or run
    models: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # asked for: what is trained
    run: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # laid over each job's run file


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9-]{1,32}", value) is not None


def _is_names(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, str) and v for k, v in value.items())


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "organisation": (_is_name, "letters, digits and hyphens, 32 at most"),
    "budget_usd": (_is_number, "dollars, 0 or more"),
    "job_budget_usd": (_is_number, "dollars, 0 or more"),
    "max_file_mb": (_is_count, "a whole number of megabytes from 1 on"),
    "max_stored_mb": (_is_count, "a whole number of megabytes from 1 on"),
    "max_jobs": (_is_count, "a whole number from 1 on"),
    "models": (_is_names, "lines NAME: MODEL, such as gpt-4o-mini: Qwen/Qwen3-4B-Instruct-2507"),
    "run": (lambda value: isinstance(value, dict), "keys of a run file"),
}


def load_settings(path: Path) -> TuningSettings:
    """Read the owner's YAML file. Raises: ConfigError naming line, value and remedy."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: the settings of the tuning API cannot be read: {error}") from error
    if not text.strip():
        return TuningSettings()
    node, raw = read_mapping(text, str(path))
    known = {f.name for f in fields(TuningSettings)}
    for key, value in raw.items():
        where = f"{path}:{line_of(node, (key,))}"
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key {key!r}{did_you_mean(key, known)}; keys: {', '.join(sorted(known))}"
            )
        is_right, wanted = CHECKS[key]
        if not is_right(value):
            raise ConfigError(f"{where}: {key} = {value!r}; give {wanted}")
    _check_overlay(raw.get("run", {}), f"{path}:{line_of(node, ('run',))}")
    return TuningSettings(**raw)


def _check_overlay(overlay: Mapping[str, Any], where: str) -> None:
    """Raises: ConfigError where the keys under run are no run file's, or belong to the jobs."""
    for key in OF_JOBS:
        if key in overlay:
            raise ConfigError(f"{where}: run.{key} is decided by each job; leave it out")
    try:
        parse_run_file(yaml.safe_dump(laid_over(EXAMPLE, overlay), sort_keys=False), "run")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings in one, section by section; what stands above wins."""
    merged = dict(below)
    for key, value in above.items():
        is_section = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = laid_over(merged[key], value) if is_section else value
    return merged
