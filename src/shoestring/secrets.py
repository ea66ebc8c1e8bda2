"""Keys and passwords of the environment: which those are, kept out of every text, handed on without a command line.

Handed on means: through the environment of a child process, or a file that only its owner can read. What a person
reads (logs, run folders, reports, generated files) holds their names alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from .errors import BadInput, RunFolderError

# Of environment variables: OPENAI_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY, AZURE_STORAGE_SAS_TOKEN, PGPASSWORD.
SECRET_NAME = re.compile(
    r"(?i)key(_?id)?s?(_|$)|secret|token(_|$)|passw|passphrase|credential|sas(_|$)|connection_string"
)
PASSWORD_IN_ADDRESS = re.compile(r"(?<=//)[^/@\s]*:[^/@\s]*@")
FEWEST_CHARACTERS = 6  # a shorter value is no key, and masking it would garble texts
MASK = "***"
# What a store's driver reads, by the scheme of train.checkpoints: handed on together, secret or not.
OF_STORES = {
    "s3": (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"),
        *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    ),
    "az": (
        *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"),
        "AZURE_STORAGE_CONNECTION_STRING",
    ),
    "hf": ("HF_TOKEN",),
}
OF_TRACKERS = {
    "wandb": ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_ENTITY"),
    "mlflow": ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "trackio": ("HF_TOKEN",),
}


def secrets_of(environment: Mapping[str, str] | None = None, more: Iterable[str] = ()) -> dict[str, str]:
    """Secret variables that are set, by name; more: names that are secret whatever they are called."""
    environment = os.environ if environment is None else environment
    named = frozenset(more)
    return {
        name: value
        for name, value in environment.items()
        if len(value) >= FEWEST_CHARACTERS and (name in named or SECRET_NAME.search(name))
    }


def without_secrets(text: str, more: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> str:
    """Text with secret values masked, as they are and as they stand in an address or in JSON."""
    for value in sorted(secrets_of(environment, more).values(), key=len, reverse=True):
        for written in {value, quote(value, safe=""), json.dumps(value)[1:-1]}:
            text = text.replace(written, MASK)
    return PASSWORD_IN_ADDRESS.sub(f"{MASK}@", text)


def masked(lines: Iterable[str], more: Iterable[str] = ()) -> Iterator[str]:
    """Each line without secrets."""
    more = tuple(more)
    for line in lines:
        yield without_secrets(line, more)


def to_hand_on(names: Iterable[str], optional: Iterable[str] = ()) -> dict[str, str]:
    """The variables a run needs where it is launched, from this environment; optional ones where they are set.

    Raises: BadInput naming those of names that are not set.
    """
    wanted = tuple(dict.fromkeys(names))
    missing = [name for name in wanted if not os.environ.get(name)]
    if missing:
        raise BadInput(f"the run needs {', '.join(missing)}, not set here; export it, then launch again")
    return {name: os.environ[name] for name in (*wanted, *optional) if os.environ.get(name)}


def write_for_owner(path: Path, values: Mapping[str, str]) -> None:
    """Write variables as JSON into a file that only its owner can read, never readable by others in between."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(dict(values), file)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror}; it would hold the keys the run needs") from error
