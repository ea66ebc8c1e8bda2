"""Section `tuning` of the file of --limits: what jobs may spend and keep, and which model trains for which name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import Field, field_validator

from ...config import parse_run_file
from ...errors import ConfigError
from ...sections import Section

OF_JOBS = ("name", "data", "models", "task", "budget_usd", "seed")  # keys of the run file that each job decides
EXAMPLE = {"name": "job", "task": {"kind": "generate", "bar": 0}, "data": {"train": ["train.jsonl"]}}


class TuningSettings(Section):
    """Limits of jobs, and what is laid over the run file of each."""

    organisation: str = Field(default="shoestring", pattern=r"^[A-Za-z0-9-]{1,32}$")
    """Stands in the names of tuned models, ft:BASE:ORGANISATION:SUFFIX:ID."""
    budget_usd: float = Field(default=20.0, ge=0)
    """Of all jobs together, by their ledgers; none is begun once it is spent."""
    job_budget_usd: float = Field(default=10.0, ge=0)
    """Of one job: its run's budget_usd."""
    max_file_mb: int = Field(default=512, ge=1)
    """Largest file, in megabytes (10^6 bytes)."""
    max_stored_mb: int = Field(default=20_000, ge=1)
    """All files together."""
    max_jobs: int = Field(default=100, ge=1)
    """Jobs that wait or run."""
    models: dict[str, str] = Field(default={})
    """Names that clients ask for, and the model that is trained for each."""
    run: dict[str, Any] = Field(default={})
    """Keys of a run file, laid over that of each job."""

    @field_validator("run")
    @classmethod
    def _is_of_a_run_file(cls, run: dict[str, Any]) -> dict[str, Any]:
        for key in OF_JOBS:
            if key in run:
                raise ValueError(f"run.{key} is decided by each job; leave it out")
        try:
            parse_run_file(yaml.safe_dump(laid_over(EXAMPLE, run), sort_keys=False), "run")
        except ConfigError as error:  # its line is one of the text that was made here
            raise ValueError(re.sub(r"^run:\d+: ", "", str(error), flags=re.MULTILINE)) from error
        return run


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings in one, section by section; what stands above wins."""
    merged = dict(below)
    for key, value in above.items():
        is_section = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = laid_over(merged[key], value) if is_section else value
    return merged
