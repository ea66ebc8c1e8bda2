"""Convert the published banking77 and snips files into the small data files under examples/.

    python scripts/prepare_examples.py SOURCE_FOLDER [examples]

SOURCE_FOLDER holds banking77/{train,test}.csv (github.com/PolyAI-LDN/task-specific-datasets) and
snips_slots/{train_*_full,validate_*}.json (github.com/sonos/nlu-benchmark). Same input, same bytes out.
"""

import argparse
import gzip
import hashlib
import io
import json
from pathlib import Path

SNIPS_TRAIN_ROWS = 13_784  # all; fewer would be chosen by hash


def write_gzip(path: Path, content: bytes) -> None:
    """Compress without name and time, so that the bytes depend on the content alone."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=9, mtime=0) as file:
        file.write(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    print(f"{path}: {len(buffer.getvalue()):,} bytes")


def read_text(path: Path) -> str:
    """UTF-8; in one published file (train_PlayMusic_full.json) single lines are Latin-1 instead."""
    lines = []
    num_latin1 = 0
    for line in path.read_bytes().split(b"\n"):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            num_latin1 += 1
            lines.append(line.decode("latin-1"))
    if num_latin1:
        print(f"{path.name}: {num_latin1} lines are not UTF-8, read as Latin-1")
    return "\n".join(lines)


def snips_rows(path: Path) -> list[dict[str, str]]:
    """Utterances of one intent and their records: intent first, then slots in order; repeated slots as a list."""
    ((intent, items),) = json.loads(read_text(path)).items()
    rows = []
    for item in items:
        text = "".join(part["text"] for part in item["data"])
        record: dict[str, str | list[str]] = {"intent": intent}
        for part in item["data"]:
            if "entity" not in part:
                continue
            value = " ".join(part["text"].split())
            before = record.get(part["entity"])
            if before is None:
                record[part["entity"]] = value
            elif isinstance(before, list):
                before.append(value)
            else:
                record[part["entity"]] = [before, value]
        rows.append({"prompt": " ".join(text.split()), "completion": json.dumps(record, ensure_ascii=False)})
    return rows


def write_snips(source: Path, target: Path) -> None:
    for split, pattern in (("train", "train_*_full.json"), ("validate", "validate_*.json")):
        rows = [row for path in sorted(source.glob(pattern)) for row in snips_rows(path)]
        # Intents mixed, by hash, so that the head of the file is a sample of it.
        rows.sort(key=lambda row: hashlib.sha256((row["prompt"] + row["completion"]).encode()).digest())
        if split == "train":
            rows = rows[:SNIPS_TRAIN_ROWS]
        print(f"snips {split}: {len(rows)} rows")
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_gzip(target / f"{split}.jsonl.gz", content.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, nargs="?", default=Path(__file__).parents[1] / "examples")
    arguments = parser.parse_args()
    for name in ("train.csv", "test.csv"):  # byte for byte as published, CRLF line ends included
        write_gzip(arguments.target / "banking77" / f"{name}.gz", (arguments.source / "banking77" / name).read_bytes())
    write_snips(arguments.source / "snips_slots", arguments.target / "snips")


if __name__ == "__main__":
    main()
