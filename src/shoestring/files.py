"""Files written whole or not at all: temporary name in the same folder, fsync, rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import RunFolderError


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace path by content atomically and durably.

    Raises: RunFolderError with the remedy when the disk is full or the folder is read-only.
    """
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:  # Ctrl-C leaves no litter either
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def cannot_write(path: Path, error: OSError) -> RunFolderError:
    """The OSError in words: what, why, and what to do."""
    remedy = {
        28: "the disk is full; free space and run the same command again, finished stages are kept",
        30: "the file system is read-only; choose another place with --runs-dir",
        13: "permission denied; choose another place with --runs-dir",
        122: "disk quota reached; free space and run the same command again, finished stages are kept",
    }.get(error.errno or 0, error.strerror or str(error))
    return RunFolderError(f"cannot write {path}: {remedy}")


def sync_folder(folder: Path) -> None:
    """Make renames inside folder durable (a no-op where folders cannot be opened)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write value as indented JSON, whole."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON value."""
    return json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, whole."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[Any]:
    """Read one JSON value a line."""
    with path.open(encoding="utf-8", errors="surrogatepass") as file:
        return [json.loads(line) for line in file if line.strip()]


def read_whole_lines(path: Path) -> list[Any]:
    """The JSON values of an appended file; a line that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
