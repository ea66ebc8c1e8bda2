"""What a run needs where it is launched: the command, the variables, the files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..config import RunConfig
from ..data.sources import files_of, is_curated
from ..decide.documents import document_files
from ..ladder import models_of
from ..secrets import OF_STORES, OF_TRACKERS
from ..train.locate import resolve_model

HUB_TOKEN = "HF_TOKEN"


def run_command(python: str, run_file: str, runs_dir: str) -> list[str]:
    """What is executed there, and again after each interruption: finished stages and checkpoints are gone on from."""
    return [python, "-m", "shoestring", "run", run_file, "--runs-dir", runs_dir]


def variables(config: RunConfig, options: Mapping[str, Any] | None = None) -> tuple[list[str], list[str]]:
    """Names of the environment variables the run needs, and of those it takes where they are set.

    options: section launch, whose `env` names more that are needed.
    """
    asked = [*config.decide.endpoints, *(config.judge.endpoints if config.judge else [])]
    needed = [endpoint.api_key_env for endpoint in asked if endpoint.api_key_env]
    needed += list((options or {}).get("env", ()))
    optional = [*OF_STORES.get(urlsplit(config.train.checkpoints).scheme, ())]
    for tracker in config.train.trackers:
        optional += OF_TRACKERS.get(tracker, ())
    from_hub = any(source.startswith("hf:") for source in (*config.data.train, *config.data.eval))
    if from_hub or any(not Path(resolve_model(model)).is_dir() for model in models_of(config)):
        optional.append(HUB_TOKEN)
    return list(dict.fromkeys(needed)), list(dict.fromkeys(optional))


def files(config: RunConfig, run_file: Path) -> list[Path]:
    """Run file, data files, and folders of models and adapters that the run reads; absolute.

    config: with folders in full (train.locate.with_folders). Models of the package and of the hub are not files here.
    """
    base = run_file.parent
    found = [run_file]
    read = [*files_of(config.data.train, base), *files_of(config.data.eval, base, is_held_out=True)]
    read += [
        path / "receipt.json" for name in (*config.data.train, *config.data.eval) if is_curated(path := base / name)
    ]
    read += document_files(config.data.documents, base)
    for path in config.task.beside(base).files():  # of scoring: database, schema, a metric of the user's own
        is_beside = path.is_relative_to(base.resolve())
        read.append(base / path.relative_to(base.resolve()) if is_beside else path)
    found += [Path(os.path.abspath(path)) for path in read]  # not resolved: the run file names them through links
    found += [Path(model) for model in config.models if Path(model).is_absolute()]
    if config.train.start:
        found.append(Path(config.train.start))
    if config.retrieval.embeddings:
        found.append(base / Path(config.retrieval.embeddings).expanduser())
    return list(dict.fromkeys(found))
