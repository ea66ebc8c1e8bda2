"""The files of curation: what was kept, what was dropped and why, and a receipt that adds up."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import read_json, read_jsonl, sha256_file, write_json, write_jsonl
from ..records import Curated, DroppedRow, Example, Fault, example_from_json, to_json

FILES = ("train.jsonl", "dev.jsonl", "eval.jsonl", "dropped.jsonl", "faults.jsonl")


def write_curated(curated: Curated, folder: Path) -> None:
    """Write train, dev, eval, dropped, faults and, last, receipt.json with their hashes.

    Raises: RunFolderError.
    """
    parts: tuple[tuple[Any, ...], ...] = (curated.train, curated.dev, curated.eval, curated.dropped, curated.faults)
    for name, rows in zip(FILES, parts, strict=True):
        write_jsonl(folder / name, (to_json(row) for row in rows))
    hashes = {name: sha256_file(folder / name) for name in FILES}
    write_json(folder / "receipt.json", {**summary(curated), "sha256": hashes})


def summary(curated: Curated) -> dict[str, Any]:
    """Counts and reasons, JSON-ready: the receipt, a run's curate record, and what `--json` prints."""
    return {
        "counts": curated.counts,
        "labels": to_json(curated.labels),
        "notes": list(curated.notes),
        "dropped_by_code": dict(Counter(row.code for row in curated.dropped).most_common()),
        "faults_by_code": dict(Counter(fault.code for fault in curated.faults).most_common()),
    }


def read_curated(folder: Path) -> Curated:
    """The inverse of write_curated.

    Raises: DataError when a file is missing, or no longer what the receipt says.
    """
    try:
        receipt = read_json(folder / "receipt.json")
        for name in FILES:
            if sha256_file(folder / name) != receipt["sha256"][name]:
                raise DataError(
                    f"{folder / name}: changed since it was curated (its hash is not the receipt's); "
                    f"delete {folder} and run again, or put the change into the source data"
                )
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: missing; delete {folder} and run curation again") from error

    def examples(name: str) -> tuple[Example, ...]:
        return tuple(example_from_json(row) for row in read_jsonl(folder / name))

    return Curated(
        train=examples("train.jsonl"),
        dev=examples("dev.jsonl"),
        eval=examples("eval.jsonl"),
        dropped=tuple(DroppedRow(**row) for row in read_jsonl(folder / "dropped.jsonl")),
        faults=tuple(Fault(**row) for row in read_jsonl(folder / "faults.jsonl")),
        counts=receipt["counts"],
        labels=None if receipt["labels"] is None else tuple(receipt["labels"]),
        notes=tuple(receipt["notes"]),
    )
