"""Checkpoints in a second place: a folder or any fsspec URL (s3://, gs://, az://, hf://, memory://).

Whole ones only: the marker with the sums of all files is written last, and what is fetched is held against it.
Credentials are the driver's business (environment, its own files); none stands in a run file, and none is shown.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from ..errors import BadInput, RunFolderError, ShoestringError, require
from ..files import read_whole_lines, sync_file, write_jsonl, write_whole
from ..records import Log
from ..secrets import without_secrets
from . import checkpoint
from .adapter import is_whole
from .watch import replace_folder, weights_of

DRIVERS = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "gcs": ("gcsfs", "gs"),
    "az": ("adlfs", "az"),
    "abfs": ("adlfs", "az"),
}
RETRY_WAITS_S = (1.0, 4.0, 16.0)
STEPS = "steps.jsonl.gz"
T = TypeVar("T")


def told(error: BaseException) -> str:
    """An error in one line that may stand in a log."""
    first = (str(error).strip().splitlines() or [""])[0]
    return without_secrets(f"{type(error).__name__}: {first[:300]}" if first else type(error).__name__)


class Store:
    """The folder of one training in that place."""

    def __init__(self, url: str) -> None:
        """Raises: MissingDependency with the pip line, BadInput for an address that no driver takes."""
        import fsspec

        protocol = urlsplit(url).scheme if "://" in url else "file"
        module, extra = DRIVERS.get(protocol, ("", ""))
        if module:
            require(module, extra=extra, purpose=f"train.checkpoints = {url}")
        try:
            # Listings are asked for anew each time: another machine may have written.
            options = {} if protocol in ("file", "memory", "hf") else {"use_listings_cache": False}
            self.fs, self.root = fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            raise BadInput(
                f"train.checkpoints = {without_secrets(url)}: {told(error)}; give a folder or an address that fsspec "
                "has a driver for, such as s3://BUCKET/FOLDER"
            ) from error
        self.url, self.is_local = url, protocol == "file"
        self.cancelled = threading.Event()

    def under(self, *parts: str) -> Store:
        """The store of a folder below this one."""
        below = object.__new__(Store)
        below.__dict__ = {**self.__dict__, "root": "/".join([self.root.rstrip("/"), *parts])}
        below.url = "/".join([self.url.rstrip("/"), *parts])
        return below

    def prove(self) -> None:
        """Write, read and remove a small file. Raises: BadInput with the driver's words."""
        path = f"{self.root}/.shoestring-{os.getpid()}"

        def write_and_read() -> bool:
            self._write(path, b"written before training")
            same = bool(self.fs.cat_file(path) == b"written before training")
            self.fs.rm_file(path)
            return same

        try:
            same = write_and_read() if self.is_local else self.again(write_and_read)
        except Exception as error:  # each driver has its own
            cause = error.__cause__ if isinstance(error, RunFolderError) and error.__cause__ else error
            raise BadInput(
                f"train.checkpoints = {self.url} cannot be written: {told(cause)}; put that right (address, rights, "
                "credentials in the driver's environment variables), or leave train.checkpoints out"
            ) from error
        if not same:
            raise BadInput(f"train.checkpoints = {self.url} does not give back what was written; choose another place")

    def again(self, work: Callable[[], T]) -> T:
        """work(), tried again after growing waits; raises what the last try raised."""
        for wait_s in RETRY_WAITS_S:
            try:
                return work()
            except Exception:  # each driver has its own, and most faults of a network pass
                if self.cancelled.wait(wait_s):
                    raise
        return work()

    def put(self, folder: Path, name: str) -> None:
        """Copy a folder there, marker last; one of that name no longer counts meanwhile."""
        target = f"{self.root}/{name}"
        self.again(lambda: self.remove(name))
        for path in checkpoint.files_in(folder):
            to = f"{target}/{path.relative_to(folder).as_posix()}"
            self.again(partial(self._put_file, path, to))
        marker = json.dumps(checkpoint.marker_of(folder)).encode()
        self.again(partial(self._write, f"{target}/{checkpoint.MARKER}", marker))

    def _put_file(self, source: Path, target: str) -> None:
        if self.is_local:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            sync_file(Path(target))
        else:
            self.fs.put_file(str(source), target)

    def _write(self, path: str, content: bytes) -> None:
        if self.is_local:
            write_whole(Path(path), content)
        else:
            self.fs.pipe_file(path, content)

    def read(self, name: str) -> bytes:
        """A file there."""
        return self.again(lambda: bytes(self.fs.cat_file(f"{self.root}/{name}")))

    def names(self, folder: str) -> list[str]:
        """Whole folders there, by step, newest first."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(f"{self.root}/{folder}", detail=False)
        except FileNotFoundError:
            return []
        names = [path.rstrip("/").rpartition("/")[2] for path in found]
        steps = {name: checkpoint.step_of(Path(name)) for name in names}
        by_step = sorted((name for name in names if steps[name] >= 0), key=lambda name: -steps[name])
        return [n for n in by_step if self.fs.exists(f"{self.root}/{folder}/{n}/{checkpoint.MARKER}")]

    def fetch(self, name: str, target: Path) -> bool:
        """Bring a folder here; False where it is not as its marker says, and then nothing is left of it."""
        half = target.with_name(f".{target.name}.partial")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        marker = self.read(f"{name}/{checkpoint.MARKER}")
        (half / checkpoint.MARKER).write_bytes(marker)
        try:
            for part in json.loads(marker)["files"]:
                if Path(part).name != part:  # ours are flat: a name that leads elsewhere is not ours
                    raise ValueError(part)
                self.again(partial(self.fs.get_file, f"{self.root}/{name}/{part}", str(half / part)))
        except (ValueError, KeyError, TypeError, FileNotFoundError):
            shutil.rmtree(half)
            return False
        if not checkpoint.is_intact(half):
            shutil.rmtree(half)
            return False
        replace_folder(half, target)
        return True

    def remove(self, name: str) -> None:
        """The marker goes first: what is cut short leaves nothing that looks whole."""
        target = f"{self.root}/{name}"
        self.fs.invalidate_cache()
        if self.fs.exists(f"{target}/{checkpoint.MARKER}"):
            self.fs.rm_file(f"{target}/{checkpoint.MARKER}")
        if self.fs.exists(target):
            self.fs.rm(target, recursive=True)


def fetch_newer(store: Store, out_dir: Path, than: Path | None, log: Log) -> Path | None:
    """The newest whole checkpoint there that is newer than one here, brought here with its best adapter and steps.

    Damaged ones are removed, and named in the log. Raises: RunFolderError where the place cannot be read.
    """
    try:
        for name in store.again(lambda: store.names("checkpoints")):
            target = out_dir / "checkpoints" / name
            if checkpoint.step_of(target) <= (checkpoint.step_of(than) if than else -1):
                return None
            if _fetch_one(store, out_dir, target):
                log(f"training continues from {store.url}/checkpoints/{name}")
                return target
            log(f"{store.url}/checkpoints/{name}: damaged, so removed")
            shutil.rmtree(target, ignore_errors=True)
            store.remove(f"checkpoints/{name}")
    except ShoestringError:
        raise
    except Exception as error:  # each driver has its own
        raise RunFolderError(
            f"train.checkpoints = {store.url} cannot be read: {told(error)}; run the same command again when it can, "
            "or leave train.checkpoints out to continue from what is here"
        ) from error
    return None


def _fetch_one(store: Store, out_dir: Path, target: Path) -> bool:
    if not store.fetch(f"checkpoints/{target.name}", target):
        return False
    state = checkpoint.read_state(target)
    if state["best_step"]:
        best = out_dir / "best" / f"step-{state['best_step']}"
        sums = {weights_of(target): state["best_sha256"]}
        if not is_whole(best, sums):
            try:
                is_there = store.fetch(f"best/{best.name}", best)
            except FileNotFoundError:
                return False
            if not is_there or not is_whole(best, sums):
                return False
    path = out_dir / "steps.jsonl"
    here = [row for row in read_whole_lines(path) if isinstance(row, dict)] if path.is_file() else []
    last = max((row["step"] for row in here), default=0)
    lines = gzip.decompress((target / STEPS).read_bytes()).decode().splitlines()
    write_jsonl(path, [*here, *(row for row in map(json.loads, lines) if row["step"] > last)])
    return True
