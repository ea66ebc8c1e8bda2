"""Files of clients on disk: a folder each, named by us, with the bytes and what is known of them.

A client's own name for a file is a word in its record and never part of a path.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import string
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import RunFolderError
from ...files import read_json, sync_folder, write_json
from ..gateway.errors import ApiError
from ..gateway.keys import private_folder

ALPHABET = string.ascii_letters + string.digits
ID_CHARACTERS = 24
CONTENT, RECORD = "content", "file.json"
MAX_LINE_BYTES = 4_000_000  # one row; a million tokens or more
SHOWN_FAULTS = 5
MEGABYTE = 1_000_000
TRAIN, RESULTS = "fine-tune", "fine-tune-results"


def new_id(prefix: str) -> str:
    """A random id; 24 letters and digits cannot be guessed."""
    return prefix + "".join(secrets.choice(ALPHABET) for _ in range(ID_CHARACTERS))


def is_id(prefix: str, text: str) -> bool:
    """Whether text is an id that we could have made: all that ever comes near a path."""
    return re.fullmatch(re.escape(prefix) + f"[A-Za-z0-9]{{{ID_CHARACTERS}}}", text) is not None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What is known of a file. owner: the name of the key that brought it."""

    id: str
    owner: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    sha256: str
    expires_at: int | None = None

    def body(self) -> dict[str, Any]:
        """The API's file object."""
        told = asdict(self)
        del told["owner"], told["sha256"]
        return {**told, "object": "file", "status": "processed", "status_details": None}


class LineCheck:
    """Bytes of an upload, as they come, held against JSON Lines: an object on every line."""

    def __init__(self) -> None:
        self.number, self.rest, self.num_rows = 0, b"", 0
        self.faults: list[str] = []
        self.num_faults = 0

    def feed(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n") if b"\n" in data else [self.rest + data]
        for line in lines:
            self._line(line)
        if len(self.rest) > MAX_LINE_BYTES:
            raise ApiError(
                400,
                f"line {self.number + 1} is longer than {MAX_LINE_BYTES:,} bytes; write one example a line",
                param="file",
                code="invalid_file_format",
            )

    def _line(self, line: bytes) -> None:
        self.number += 1
        text = line.removeprefix(b"\xef\xbb\xbf") if self.number == 1 else line
        if not text.strip():
            return
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            self._fault(f"{error}" if isinstance(error, ValueError) else "lists or objects nested too deep")
            return
        if isinstance(row, dict):
            self.num_rows += 1
        else:
            self._fault(f"a JSON {type(row).__name__}, and no object")

    def _fault(self, what: str) -> None:
        self.num_faults += 1
        if len(self.faults) < SHOWN_FAULTS:
            self.faults.append(f"line {self.number}: {what}")

    def end(self, filename: str) -> None:
        """After the last byte. Raises: ApiError 400 naming the lines."""
        if self.rest:
            self._line(self.rest)
        more = f", and {self.num_faults - len(self.faults)} more" if self.num_faults > len(self.faults) else ""
        if self.faults or not self.num_rows:
            what = "; ".join(self.faults) + more if self.faults else "it holds no row"
            raise ApiError(
                400,
                f"Invalid file format. {filename!r} is not in the JSONL format, a JSON object on every line: {what}",
                param="file",
                code="invalid_file_format",
            )


class Incoming:
    """An upload on its way: bytes go to a hidden folder, which becomes the file's once all is there and right."""

    def __init__(self, files: Files) -> None:
        self.files, self.id = files, new_id("file-")
        self.folder = files.folder / f".{self.id}.partial"
        self.digest, self.num_bytes, self.lines = hashlib.sha256(), 0, LineCheck()
        try:
            self.folder.mkdir(mode=0o700)
            descriptor = os.open(self.folder / CONTENT, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ApiError(503, f"The file cannot be stored: {error.strerror}", code="storage_unavailable") from error
        self.out: BinaryIO = os.fdopen(descriptor, "wb")

    def write(self, data: bytes) -> None:
        """Raises: ApiError 413 past a limit, 400 for a line that is no row, 503 where the disk refuses."""
        self.num_bytes += len(data)
        if self.num_bytes > self.files.max_file_bytes:
            limit_mb = self.files.max_file_bytes // MEGABYTE
            raise ApiError(
                413,
                f"The file is larger than {limit_mb} MB, the limit of this server (max_file_mb); split it or ask its "
                "owner",
                param="file",
                code="file_too_large",
            )
        self.digest.update(data)
        self.lines.feed(data)
        try:
            self.out.write(data)
        except OSError as error:
            raise ApiError(503, f"The file cannot be stored: {error.strerror}", code="storage_unavailable") from error

    def finish(self, owner: str, filename: str, purpose: str, expires_at: int | None) -> StoredFile:
        """Raises: ApiError 400 where a line is no row, 507-like 413 where all files together pass the limit."""
        self.lines.end(filename)
        self.files.require_room(self.num_bytes)
        record = StoredFile(
            self.id, owner, self.num_bytes, int(time.time()), filename, purpose, self.digest.hexdigest(), expires_at
        )
        self.out.flush()
        os.fsync(self.out.fileno())
        self.out.close()
        self.files.keep(self.folder, record)
        return record

    def drop(self) -> None:
        """Leave nothing of it; after finish there is nothing to drop."""
        self.out.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Files:
    """The files of all keys, newest last; every call first lets go of those that expired."""

    def __init__(self, folder: Path, *, max_file_mb: int, max_stored_mb: int) -> None:
        self.folder = folder
        self.max_file_bytes, self.max_stored_bytes = max_file_mb * MEGABYTE, max_stored_mb * MEGABYTE
        private_folder(folder)
        for left in folder.glob(".*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        self.known = {record.id: record for record in sorted(self._read(), key=lambda r: (r.created_at, r.id))}

    def _read(self) -> list[StoredFile]:
        found = []
        for path in self.folder.glob(f"file-*/{RECORD}"):
            try:
                found.append(StoredFile(**read_json(path)))
            except (OSError, ValueError, TypeError) as error:
                raise RunFolderError(f"{path}: damaged ({error}); move its folder away to go on without it") from error
        return found

    def _expire(self) -> None:
        now = time.time()
        for record in [r for r in self.known.values() if r.expires_at is not None and r.expires_at <= now]:
            self.delete(record.id)

    def of(self, sees: Callable[[str], bool]) -> list[StoredFile]:
        """Files whose owner passes, oldest first."""
        self._expire()
        return [record for record in self.known.values() if sees(record.owner)]

    def get(self, file_id: str, sees: Callable[[str], bool], param: str | None = None) -> StoredFile:
        """Raises: ApiError 404 for no such file, or one of another key."""
        self._expire()
        record = self.known.get(file_id)
        if record is None or not sees(record.owner):
            raise ApiError(404, f"No such File object: {file_id[:64]}", param=param or "id", code="file_not_found")
        return record

    def content(self, file_id: str) -> Path:
        """Where the bytes of a known file are."""
        assert is_id("file-", file_id), "ids are checked where they are looked up"
        return self.folder / file_id / CONTENT

    def require_room(self, num_bytes: int) -> None:
        """Raises: ApiError 413 where so many bytes more pass the limit of all files."""
        stored = sum(record.bytes for record in self.known.values())
        if stored + num_bytes > self.max_stored_bytes:
            raise ApiError(
                413,
                f"This server keeps {self.max_stored_bytes // MEGABYTE} MB of files at most (max_stored_mb) and has "
                f"{stored // MEGABYTE} MB; delete some, or ask its owner",
                param="file",
                code="storage_full",
            )

    def keep(self, folder: Path, record: StoredFile) -> None:
        """Make a hidden folder with the content the file's own; one that is there gives way."""
        write_json(folder / RECORD, asdict(record))
        (folder / RECORD).chmod(0o600)
        target = self.folder / record.id
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)
        sync_folder(self.folder)
        self.known[record.id] = record

    def put(self, file_id: str, owner: str, filename: str, purpose: str, content: bytes) -> StoredFile:
        """A file of our own, such as the results of a job; putting it again replaces it."""
        assert is_id("file-", file_id), file_id
        folder = self.folder / f".{file_id}.partial"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        (folder / CONTENT).write_bytes(content)
        (folder / CONTENT).chmod(0o600)
        digest = hashlib.sha256(content).hexdigest()
        record = StoredFile(file_id, owner, len(content), int(time.time()), filename, purpose, digest)
        self.keep(folder, record)
        return record

    def delete(self, file_id: str) -> None:
        """Forget a known file; jobs that use it have their own link to the bytes."""
        gone = self.folder / f".{file_id}.partial"
        (self.folder / file_id).rename(gone)
        del self.known[file_id]
        shutil.rmtree(gone, ignore_errors=True)
