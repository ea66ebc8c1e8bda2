"""What a page says where the records of a run are not as this version writes them."""

from __future__ import annotations

import logging
from pathlib import Path

from jinja2 import UndefinedError
from starlette.requests import Request

from ..files import read_json
from .kept import RECORDS
from .places import NAME
from .site import site_of

LOG = logging.getLogger("uvicorn.error")
# What reading a record of another shape raises.
SHAPE_FAULTS = (
    UndefinedError, KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError,
)  # fmt: skip


def run_shown(request: Request) -> Path | None:
    """The folder of the run that an address is of."""
    name = str(request.path_params.get("name", ""))
    if not NAME.fullmatch(name) or not request.url.path.startswith("/runs/"):
        return None
    folder = site_of(request).runs_dir / name
    return folder if folder.is_dir() else None


def told_of(folder: Path, error: Exception) -> str:
    """The records that cannot be read, else what was met in one that can; the terminal is told where."""
    LOG.error("a record of %s cannot be shown", folder, exc_info=error)
    unread = [found for found in map(_fault, _records(folder)) if found]
    what = "; ".join(unread[:4]) or f"one of its records holds what this version does not write ({_words(error)})"
    again = f"shoestring run {folder} makes a record anew that is moved away"
    where = "The terminal of shoestring ui says where."
    return f"{folder.name} cannot be shown here: {what}. Next: move it away; {again}. {where}"


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _records(folder: Path) -> list[Path]:
    return sorted({path for pattern in (*RECORDS, "data/*.json*", "run.yaml") for path in folder.glob(pattern)})


def _fault(path: Path) -> str:
    """What is wrong with a record as a whole; empty where that is nothing."""
    if path.is_dir():
        return f"{path} is a folder in place of a file"
    if path.suffix != ".json":
        return ""
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        return f"{path} cannot be read ({' '.join(str(error).split())[:120]})"
    return "" if isinstance(value, dict) else f"{path} is no record but a {type(value).__name__}"
