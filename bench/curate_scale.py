"""Ingest, full validation and exact deduplication of many short rows: speed and peak memory.

    python -m bench.curate_scale [--rows 1000000 5000000] [--workers 2] [--whole] [--alone] [--json]

Rows are generated: 8 to 18 words and a label that goes with the first, JSON lines; a tenth repeat an earlier row in
other case, one in 200 has a fault (broken JSON, empty answer, repeated key, Latin-1, missing field), one in 200
contradicts another. Measured in a process of its own, imports included: read, every check of a row, exact repeats and
contradictions, and the files written (train, dropped, faults, receipt). peak_bytes is the high-water mark of that
process plus that of its workers, although those have ended when the later stages begin.
--whole measures all of `shoestring curate` as well: near-duplicates and near-contradictions, suspect rows, the split,
and the choice of BUDGET_TOKENS.

Beside it, as a floor for the work: pandas reading the same file and dropping equal rows, which checks nothing. It takes
more than 1 GB a million rows; --alone leaves it out.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import machine, versions

SYLLABLES = ["ba", "ce", "di", "fo", "gu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "wu"]
ENDINGS = ["lan", "mer", "sin", "ton", "dar", "vik", "pol", "ron", "nes", "tal"]
WORDS = [a + b for a in SYLLABLES for b in ENDINGS]
GB = 1e9
BUDGET_TOKENS = 200_000


def generate(path: Path, num_rows: int) -> None:
    """The rows; the same for the same number."""
    rng = random.Random(0)
    earlier: list[dict[str, str]] = []
    with path.open("wb") as file:
        for number in range(num_rows):
            row = {"prompt": " ".join(rng.choices(WORDS, k=rng.randint(8, 18))) + f" {number}?", "completion": ""}
            row["completion"] = f"label_{WORDS.index(row['prompt'].split()[0]) % 77}"
            chance = rng.random()
            line = ""
            if chance < 0.1 and earlier:
                old = rng.choice(earlier)
                row = {"prompt": old["prompt"].upper(), "completion": old["completion"]}
            elif chance < 0.105 and earlier:
                row = {"prompt": rng.choice(earlier)["prompt"], "completion": f"label_{rng.randrange(77)}"}
            elif chance < 0.106:
                row["completion"] = " "
            elif chance < 0.107:
                line = json.dumps(row)[:-3]
            elif chance < 0.108:
                line = f'{{"prompt": "{row["prompt"]}", "completion": "x", "completion": "{row["completion"]}"}}'
            elif chance < 0.109:
                row["prompt"] = "café " + row["prompt"]
            elif chance < 0.11:
                del row["completion"]
            if len(earlier) < 10_000:
                earlier.append(row) if "completion" in row else None
            elif rng.random() < 0.01 and "completion" in row:
                earlier[rng.randrange(10_000)] = row
            charset = "latin-1" if "é" in row["prompt"] else "utf-8"
            file.write((line or json.dumps(row, ensure_ascii=False)).encode(charset) + b"\n")


def ours(path: Path, out: Path, num_workers: int) -> dict[str, Any]:
    """Ingest, validate, deduplicate, write."""
    import numpy as np

    from shoestring.config import FieldsConfig
    from shoestring.data.clean import Outcome, resolve_repeats
    from shoestring.data.curate import DROPPED, TRAIN, Decided, write_decided
    from shoestring.data.engine import Table, engine_named
    from shoestring.data.load import scan
    from shoestring.data.rows import Settings
    from shoestring.data.store import Writer
    from shoestring.records import no_progress

    with Writer(out) as writer, Table(out) as table, engine_named("local", num_workers) as engine:
        settings = Settings(FieldsConfig(), "", "classify")
        seen = scan([str(path)], Path(), settings, table, engine, no_progress)
        table.close()
        outcome = Outcome(table, seen.faults, seen.notes)
        resolve_repeats("classify", True, "majority", outcome, no_progress)
        sides = np.where(table.code == 0, TRAIN, DROPPED).astype(np.int8)
        decided = Decided(table, sides, outcome.faults, outcome.notes, None, {})
        write_decided(decided, writer, no_progress)
        writer.commit(decided.summary())
        counts = decided.counts()
    assert counts["rows_in"] == counts["rows_train"] + counts["dropped"]
    return {"counts": counts, "dropped_by_code": decided.summary()["dropped_by_code"]}


def whole(path: Path, out: Path, num_workers: int) -> dict[str, Any]:
    """Everything `shoestring curate FILE` does, and a token budget."""
    from shoestring.config import RunConfig
    from shoestring.data.curate import curate_into

    config = RunConfig.model_validate(
        {
            "name": "scale",
            "task": {"kind": "classify", "bar": 0.0},
            "data": {"train": [str(path)]},
            "curate": {"max_train_tokens": BUDGET_TOKENS},
        }
    )
    summary = curate_into(out, config, Path(), num_workers=num_workers)
    return {"counts": summary["counts"], "dropped_by_code": summary["dropped_by_code"]}


def pandas(path: Path, out: Path, num_workers: int) -> dict[str, Any]:
    """Read and drop equal rows; lines pandas cannot read are left out beforehand, outside the clock."""
    import pandas as pd

    frame = pd.read_json(path, lines=True).drop_duplicates()
    frame.to_json(out / "train.jsonl", orient="records", lines=True)
    return {"counts": {"rows_train": len(frame)}}


WAYS = {"ours": ours, "whole": whole, "pandas": pandas}


def measured(way: str, path: Path, num_rows: int, num_workers: int) -> dict[str, Any]:
    """Run a way in a process of its own."""
    with tempfile.TemporaryDirectory(dir=path.parent) as out:
        command = [sys.executable, "-m", "bench.curate_scale", "--way", way, "--file", str(path), "--out", out]
        began = time.perf_counter()
        done = subprocess.run([*command, "--workers", str(num_workers)], check=True, stdout=subprocess.PIPE)
        wall_s = time.perf_counter() - began
    result: dict[str, Any] = json.loads(done.stdout)
    per_million = result["peak_bytes"] / GB / (num_rows / 1e6)
    return {
        **result, "wall_s": round(wall_s, 2), "rows_per_s": round(num_rows / wall_s),
        "rows_per_cpu_s": round(num_rows / result["cpu_s"]), "peak_gb_per_million_rows": round(per_million, 3),
    }  # fmt: skip


def inside(way: str, path: Path, out: Path, num_workers: int) -> None:
    """The measured process."""
    result = WAYS[way](path, out, num_workers)
    own, workers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    num_children = num_workers if workers.ru_maxrss else 0
    result["peak_bytes"] = 1024 * (own.ru_maxrss + num_children * workers.ru_maxrss)
    result["cpu_s"] = round(own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime, 2)
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the generated files go (default: the system's)")
    parser.add_argument("--json", action="store_true")
    for hidden in ("--way", "--file", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way:
        inside(asked.way, Path(asked.file), Path(asked.out), asked.workers)
        return
    sizes: dict[str, Any] = {}
    for num_rows in asked.rows:
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            path = Path(folder) / "rows.jsonl"
            generate(path, num_rows)
            found = {"ours": measured("ours", path, num_rows, asked.workers), "bytes": path.stat().st_size}
            if asked.whole:
                found["whole"] = measured("whole", path, num_rows, asked.workers)
            if not asked.alone:
                readable(path)
                found["pandas"] = measured("pandas", path, num_rows, asked.workers)
                found["ratio"] = round(found["ours"]["rows_per_s"] / found["pandas"]["rows_per_s"], 2)
            sizes[str(num_rows)] = found
            if not asked.json:
                for way in ("ours", "whole", "pandas"):
                    if way in found:
                        one = found[way]
                        print(
                            f"{num_rows:>9,} rows  {way:6} {one['rows_per_s']:>8,} rows/s "
                            f"({one['rows_per_cpu_s']:,} a CPU second), "
                            f"peak {one['peak_gb_per_million_rows']:.3f} GB a million rows",
                            flush=True,
                        )
    if asked.json:
        what = "rows read, validated, exactly deduplicated and written, a second; peak memory"
        result = {"what": what, "versions": versions(), "machine": machine(), "workers": asked.workers, "sizes": sizes}
        print(json.dumps(result))


def readable(path: Path) -> None:
    """Rewrite the file without what pandas stops at."""
    kept = path.with_suffix(".readable")
    with path.open("rb") as source, kept.open("wb") as target:
        for line in source:
            try:
                json.loads(line)
                target.write(line)
            except ValueError:
                continue
    kept.replace(path)


if __name__ == "__main__":
    main()
