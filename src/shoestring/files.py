"""Files written whole or not at all: temporary name in the same folder, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import RunFolderError, ShoestringError


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
    again = "run the same command again, finished stages are kept"
    remedy = {
        errno.ENOSPC: f"the disk is full; free space and {again}",
        errno.EROFS: "the file system is read-only; choose another place with --runs-dir",
        errno.EACCES: "permission denied; choose another place with --runs-dir",
        errno.EPERM: "operation not permitted; lift the protection (chattr -i) or choose another place with --runs-dir",
        errno.EDQUOT: f"disk quota reached; free space and {again}",
    }.get(error.errno or 0, f"{error.strerror or error}; once that is put right, {again}")
    return RunFolderError(f"cannot write {path}: {remedy}")


NOT_WRITABLE = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Libraries write under folder; what they raise when they cannot is told as in `write_whole`.

    torch, safetensors and tokenizers raise three kinds of exception for one full disk, torch one that only says
    that its stream is not where it should be.
    Raises: RunFolderError; anything else passes.
    """
    try:
        yield
    except ShoestringError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
            raise cannot_write(folder, error) from error
        text = str(error)
        stream_broke = "inline_container" in text or "PytorchStreamWriter" in text
        if "os error 28" in text or "No space left" in text or (stream_broke and _free_bytes(folder) < 1 << 20):
            raise cannot_write(folder, OSError(errno.ENOSPC, text)) from error
        if stream_broke:
            raise cannot_write(folder, OSError(text.splitlines()[0])) from error
        raise


def _free_bytes(folder: Path) -> int:
    """Free space where folder is, or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def sync_file(path: Path) -> None:
    """Make a file durable, with the mode the umask asks for: safetensors gives its files 0600."""
    path.chmod(0o666 & ~_umask())
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    """Read one JSON value. Raises: OSError, ValueError."""
    return parse_json(path.read_text(encoding="utf-8", errors="surrogatepass"))


def parse_json(text: str | bytes) -> Any:
    """The JSON value of a text. Raises: ValueError, also where it is nested so deeply that Python gives up."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, whole."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[Any]:
    """Read one JSON value a line."""
    with path.open(encoding="utf-8", errors="surrogatepass") as file:
        return [parse_json(line) for line in file if line.strip()]


def read_whole_lines(path: Path) -> list[Any]:
    """The JSON values of an appended file; a line that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError):
            rows.append(parse_json(line))
    return rows


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
