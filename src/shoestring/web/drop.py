"""A dropped file: kept under the runs folder by a name of ours, read, and what it suggests.

RUNS_DIR/.uploads/ID/ holds the file, the run file written from it, and nothing that a request names by a path.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from starlette.exceptions import HTTPException

from ..config import FieldsConfig
from ..data.codes import CODES
from ..data.detect import Detected, detected_in
from ..data.load import Loaded, load
from ..data.sources import KNOWN, is_data
from ..errors import BadInput, DataError
from ..files import cannot_write, write_whole
from ..report.data_files import Case, Text
from ..stages.closing import meta_of
from ..stages.proposing import Chosen, Proposed, propose, run_name
from .places import NAME

UPLOADS = ".uploads"
MAX_UPLOAD_BYTES = 256 << 20
MAX_UPLOADS_BYTES = 4 << 30  # of all that is kept
MAX_LOOKED_ROWS = 20_000
MAX_CASES = 20  # of a fault code
ID = re.compile(r"[0-9a-f]{12}")
HELD_OUT = "held-out-"  # begins the name of a file of held-out rows
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Drop:
    """One dropped file and its folder; held_out: a second one, of held-out rows."""

    id: str
    folder: Path
    data: Path
    held_out: Path | None

    @property
    def run_file(self) -> Path:
        """The run file written from it, if it was."""
        return self.folder / "run.yaml"


@dataclass(frozen=True, slots=True)
class Look:
    """What is in a file: the detected task, faults by code with some of their rows, the first examples."""

    detected: Detected
    num_rows: int
    num_usable: int
    is_whole: bool  # or only the beginning was read
    counts: dict[str, int]  # of faults and dropped rows, by code
    cases: dict[str, list[Case]]
    examples: tuple[Text, ...]


def keep(runs_dir: Path, name: str, content: BinaryIO, held_out: tuple[str, BinaryIO] | None = None) -> Drop:
    """Keep what was dropped, and read it. Raises: BadInput, DataError where it is no data, RunFolderError."""
    base = runs_dir / UPLOADS
    kept = sum(path.stat().st_size for path in base.rglob("*") if path.is_file()) if base.is_dir() else 0
    if kept > MAX_UPLOADS_BYTES:
        raise BadInput(
            f"{base} holds {kept / 1e9:.1f} GB, the most is {MAX_UPLOADS_BYTES / 1e9:.1f}; delete old folders in it"
        )
    files = [(safe_name(name), content)]
    files += [(HELD_OUT + safe_name(held_out[0]), held_out[1])] if held_out else []
    folder = base / secrets.token_hex(6)
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
        for file_name, source in files:
            with (folder / file_name).open("xb") as target:
                shutil.copyfileobj(source, target, BLOCK_BYTES)
        found = drop_of(runs_dir, folder.name)
        for path in (found.data, found.held_out):
            if path is not None:
                look(path)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise cannot_write(folder, error) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return found


def safe_name(given: str) -> str:
    """The last part of a client's file name in letters, digits, dots and dashes. Raises: DataError for no data file."""
    last = re.split(r"[/\\]", given)[-1]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last).lstrip(".-")[-80:].lstrip(".-")
    if not name or not is_data(name):
        raise DataError(f"{last[:80]!r} is no data file by its ending; give {KNOWN}")
    return name


def drop_of(runs_dir: Path, id: str) -> Drop:
    """A kept file by its number. Raises: HTTPException 404."""
    folder = runs_dir / UPLOADS / id
    if not ID.fullmatch(id) or not folder.is_dir() or folder.is_symlink():
        raise HTTPException(404, "there is no such dropped file; drop it again")
    files = sorted(path for path in folder.iterdir() if is_data(path.name) and not path.is_symlink())
    held_out = next((path for path in files if path.name.startswith(HELD_OUT)), None)
    data = next((path for path in files if path is not held_out), None)
    if data is None:
        raise HTTPException(404, "the dropped file is gone; drop it again")
    return Drop(id, folder, data, held_out)


def look(path: Path) -> Look:
    """Read a data file. Raises: DataError."""
    stat = path.stat()
    return _look(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=8)
def _look(path: Path, mtime_ns: int, size: int) -> Look:
    loaded = load([path.name], FieldsConfig(), "", path.parent, max_rows=MAX_LOOKED_ROWS)
    counts: dict[str, int] = {}
    cases: dict[str, list[Case]] = {}
    for case in _cases(loaded):
        counts[case.code] = counts.get(case.code, 0) + 1
        shown = cases.setdefault(case.code, [])
        if len(shown) < MAX_CASES:
            shown.append(case)
    return Look(
        detected=detected_in(loaded),
        num_rows=loaded.num_rows,
        num_usable=len(loaded.examples),
        is_whole=loaded.num_rows < MAX_LOOKED_ROWS,
        counts=dict(sorted(counts.items(), key=lambda item: (_order(item[0]), -item[1]))),
        cases=cases,
        examples=tuple(
            Text("\n".join(m.text for m in e.prompt if m.role != "system"), e.completion) for e in loaded.examples[:5]
        ),
    )


def _order(code: str) -> int:
    """What is dropped first, then what is for a person to look at, then what was mended."""
    return ("drop", "ask", "safe").index(CODES[code].repair) if code in CODES else 0


def _cases(loaded: Loaded) -> Iterable[Case]:
    dropped = {(row.source, row.line, row.code): row for row in loaded.dropped}
    for row in loaded.dropped:
        whole = row.row if isinstance(row.row, str) else _as_text(row.row)
        yield Case(row.code, row.source, row.line, row.evidence, "drop", Text(whole, None))
    for fault in loaded.faults:
        if (fault.source, fault.line, fault.code) not in dropped:
            yield Case(fault.code, fault.source, fault.line, fault.evidence, fault.repair)


def _as_text(row: object) -> str:
    return json.dumps(row, ensure_ascii=False, indent=1)


def write_run_file(runs_dir: Path, drop: Drop, chosen: Chosen) -> Proposed:
    """Write the run file of a drop.

    Raises: BadInput where the name is none or is taken, ConfigError for another choice that cannot be.
    """
    name = chosen.name or name_for(runs_dir, drop)
    if not NAME.fullmatch(name):
        raise BadInput(f"{name!r} is no name of a run; use letters, digits, dots, dashes and underscores, 64 at most")
    if (runs_dir / name).exists() and not _is_ours(runs_dir / name, drop):
        raise BadInput(f"there is a run named {name} already; give this one another name")
    proposed = propose(drop.data, drop.run_file, look(drop.data).detected, "'shoestring ui'", chosen)
    write_whole(drop.run_file, proposed.text)
    return proposed


def name_for(runs_dir: Path, drop: Drop) -> str:
    """A name for the run of a drop that no other run has."""
    name = run_name(drop.data)
    if name == drop.id:  # of its folder, for a file that is called train or the like
        name = drop.data.name.partition(".")[0][:60]
    names = (name, *(f"{name[:60]}-{number}" for number in range(2, 100)))
    return next((one for one in names if not (runs_dir / one).exists() or _is_ours(runs_dir / one, drop)), name)


def _is_ours(folder: Path, drop: Drop) -> bool:
    return meta_of(folder).get("run_file") == str(drop.run_file.resolve())
