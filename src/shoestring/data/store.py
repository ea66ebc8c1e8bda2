"""The files of curation: what was kept, what was dropped and why, and a receipt that adds up."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..errors import BadInput, DataError
from ..files import cannot_write, read_json, read_jsonl, sha256_file, sync_folder, write_json
from ..records import Curated, DroppedRow, Example, Fault, example_from_json, example_to_json, to_json

FILES = ("train.jsonl", "dev.jsonl", "eval.jsonl", "dropped.jsonl", "faults.jsonl")
SIDES = ("train", "dev", "eval")
RECEIPT = "receipt.json"
REVIEW = "review.csv"
MEASURES = ("languages", "choice", "near_eval_ids")  # parts of the receipt that not every data set has
WRITE_BYTES = 1 << 20
PART = ".part"  # of a file that is being written
TEMPORARY = (f".{REVIEW}.", f".{RECEIPT}.")


class Writer:
    """The files of a folder written line by line under other names; all appear at `commit`, the receipt last.

    Killed before that, the folder is as it was but for files ending in PART, which the next writer replaces; killed
    during it, the receipt is missing, and the same command starts over.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[str, IO[bytes]] = {}
        self._pending = {name: bytearray() for name in FILES}
        self._hashes = {name: hashlib.sha256() for name in FILES}

    def __enter__(self) -> Writer:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".*.tmp"):  # a kill between writing a file and putting it in place
                if left.name.startswith(TEMPORARY):
                    left.unlink()
            for name in FILES:
                self._files[name] = (self.folder / f"{name}{PART}").open("wb")
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        return self

    def line(self, name: str, text: str | bytes) -> None:
        """Append a line to one of FILES."""
        pending = self._pending[name]
        pending += text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        pending += b"\n"
        if len(pending) >= WRITE_BYTES:
            self._write(name)

    def _write(self, name: str) -> None:
        pending = self._pending[name]
        self._hashes[name].update(pending)
        try:
            self._files[name].write(pending)
        except OSError as error:
            raise cannot_write(self.folder / name, error) from error
        pending.clear()

    def commit(self, summary: dict[str, Any]) -> None:
        """Put the files in place and write the receipt."""
        for name in FILES:
            self._write(name)
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
            (self.folder / RECEIPT).unlink(missing_ok=True)
            for name in FILES:
                os.replace(self.folder / f"{name}{PART}", self.folder / name)
            sync_folder(self.folder)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        hashes = {name: digest.hexdigest() for name, digest in self._hashes.items()}
        write_json(self.folder / RECEIPT, {**summary, "sha256": hashes})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for name, file in self._files.items():
            with contextlib.suppress(OSError):
                file.close()
                (self.folder / f"{name}{PART}").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()  # if nothing came of it and it is empty


def is_ours(folder: Path) -> bool:
    """Whether a folder holds what curation wrote, whole or interrupted, or nothing."""
    if (folder / RECEIPT).is_file():
        return True
    beginnings = (REVIEW, *TEMPORARY)
    return all(path.name.removesuffix(PART) in FILES or path.name.startswith(beginnings) for path in folder.iterdir())


def refuse_changed(folder: Path) -> None:
    """Files that curation wrote and somebody changed since are not written over. Raises: BadInput."""
    try:
        hashes = read_json(folder / RECEIPT)["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in FILES:
        path = folder / name
        if path.is_file() and sha256_file(path) != hashes.get(name):
            raise BadInput(
                f"{path}: changed since it was curated, and curating again would write over it; make the change in the "
                f"source data or in {REVIEW}, and move {path} elsewhere (or delete it)"
            )


def dropped_line(
    row: str, source: str, line: int, code: str, evidence: str, partner_line: int | None, example_id: str
) -> str:
    """A line of dropped.jsonl; row is the source row as JSON text."""
    rest: dict[str, Any] = {"source": source, "line": line, "code": code, "evidence": evidence}
    rest["partner_line"] = partner_line
    rest["id"] = example_id
    return f'{{"row": {row}, {json.dumps(rest, ensure_ascii=False)[1:]}'


def write_curated(curated: Curated, folder: Path) -> None:
    """Write train, dev, eval, dropped, faults and, last, receipt.json with their hashes.

    Raises: RunFolderError.
    """
    with Writer(folder) as writer:
        for name in SIDES:
            for example in curated.all_rows(name):
                writer.line(f"{name}.jsonl", json.dumps(example_to_json(example), ensure_ascii=False))
        for d in curated.dropped:
            row = json.dumps(d.row, ensure_ascii=False)
            writer.line("dropped.jsonl", dropped_line(row, d.source, d.line, d.code, d.evidence, d.partner_line, d.id))
        for fault in curated.faults:
            writer.line("faults.jsonl", fault_line(fault))
        writer.commit(summary(curated))


def fault_line(fault: Fault) -> str:
    """A line of faults.jsonl."""
    return json.dumps(to_json(fault), ensure_ascii=False)


def summary(curated: Curated) -> dict[str, Any]:
    """Counts and reasons, JSON-ready: the receipt, a run's curate record, and what `--json` prints."""
    dropped = Counter(row.code for row in curated.dropped)
    return summary_of(curated.counts, curated.labels, curated.notes, dropped, curated.faults, curated.measures)


def summary_of(
    counts: dict[str, int], labels: tuple[str, ...] | None, notes: Any, dropped: Counter[str], faults: Any,
    measures: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """As summary, from its parts. counts: rows_in + rows_expanded = rows kept + dropped."""
    return {
        "counts": counts,
        "labels": to_json(labels),
        "notes": list(notes),
        "dropped_by_code": dict(dropped.most_common()),
        "faults_by_code": dict(Counter(fault.code for fault in faults).most_common()),
        **measures,
    }


def read_curated(folder: Path) -> Curated:
    """The inverse of write_curated.

    Raises: DataError when a file is missing, or no longer what the receipt says.
    """
    try:
        receipt = read_json(folder / RECEIPT)
        for name in FILES:
            if sha256_file(folder / name) != receipt["sha256"][name]:
                raise DataError(
                    f"{folder / name}: changed since it was curated (its hash is not the receipt's); "
                    f"delete {folder} and run again, or put the change into the source data"
                )
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: missing; delete {folder} and run curation again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / RECEIPT}: damaged ({error}); delete {folder} and run curation again") from error
    rows = [[example_from_json(row) for row in read_jsonl(folder / f"{side}.jsonl")] for side in SIDES]
    (train, dev, held_out), undesired = marked_apart(rows)
    return Curated(
        train=train,
        dev=dev,
        eval=held_out,
        dropped=tuple(DroppedRow(**row) for row in read_jsonl(folder / "dropped.jsonl")),
        faults=tuple(Fault(**row) for row in read_jsonl(folder / "faults.jsonl")),
        counts=receipt["counts"],
        labels=None if receipt["labels"] is None else tuple(receipt["labels"]),
        notes=tuple(receipt["notes"]),
        measures={name: receipt[name] for name in MEASURES if name in receipt},
        undesired=undesired,
    )


def marked_apart(
    rows: Sequence[Sequence[Example]],
) -> tuple[list[tuple[Example, ...]], dict[str, tuple[Example, ...]]]:
    """The rows of each side without those whose answers are undesired, and these by side, where there are any."""
    wanted = [tuple(e for e in some if e.desired is not False) for some in rows]
    marked = {side: tuple(e for e in some if e.desired is False) for side, some in zip(SIDES, rows, strict=True)}
    return wanted, marked if any(marked.values()) else {}
