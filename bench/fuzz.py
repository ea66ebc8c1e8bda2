"""Feed curation with damaged files: no crash, no hang, no row lost.

    python -m bench.fuzz [--cases 10000] [--json]

Small files of every format are damaged at random (bytes flipped, cut, doubled, spliced, swapped line ends, wrong
encodings, wrong names) and curated, each within LIMIT_S seconds. A case passes if the file is refused with a message
(BadInput) or if rows in = rows kept + rows set aside, in the counts and in the files written.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import io
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from bench import machine, versions
from shoestring.data.folder import curate
from shoestring.errors import BadInput

LIMIT_S = 20
TOKENS = (b'"', b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r\n", b"\\", b"\\ud83d", b"\0", b"\xff", b"\xef\xbb\xbf",
          b"NaN", b"1e999", b"null", b"true", b"[" * 3000, b'""', b"\t", b"\x1f", "é".encode("latin-1"), b"\x1f\x8b",
          b'{"a":', b"}{", b"'", b";", b"9" * 5000)  # fmt: skip


@functools.cache
def seeds() -> list[tuple[str, bytes]]:
    """Well-formed files of every format and shape."""
    pairs = [{"prompt": f"question {i} of café", "completion": f"answer {i}"} for i in range(8)]
    alpaca = [{"instruction": f"do {i}", "input": "x" * (i % 3), "output": f"done {i}"} for i in range(6)]
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"a": 1}'}}
    talks: list[dict[str, Any]] = [
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": f"u{i}"},
                      {"role": "assistant", "content": "a"}, {"role": "user", "content": "v"},
                      {"role": "assistant", "content": None, "tool_calls": [call]},
                      {"role": "tool", "tool_call_id": "1", "content": "4"}, {"role": "assistant", "content": "b"}],
         "tools": [{"type": "function", "function": {"name": "find"}}]} for i in range(4)
    ]  # fmt: skip
    shared = [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": f"a{i}"}]} for i in range(4)]
    prefer = [{"prompt": f"p{i}", "chosen": "good", "rejected": "bad"} for i in range(4)]
    kto = [{"prompt": f"p{i}", "completion": "text", "label": i % 2 == 0} for i in range(4)]
    openai = [{"input": {"messages": [{"role": "user", "content": "u"}]},
               "preferred_output": [{"role": "assistant", "content": "a"}],
               "non_preferred_output": [{"role": "assistant", "content": "b"}]}]  # fmt: skip
    found: list[tuple[str, bytes]] = []
    for rows in (pairs, alpaca, talks, shared, prefer, kto, openai, [*pairs, *alpaca, *talks]):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        found += [
            ("a.jsonl", lines),
            ("a.json", json.dumps(rows, indent=1).encode()),
            ("a.jsonl.gz", gzip.compress(lines)),
        ]
    table = b"text,label\n" + b"".join(b'"row, %d",l%d\n' % (i, i % 2) for i in range(8))
    found += [("a.csv", table), ("a.tsv", table.replace(b",", b"\t")), ("a.txt", b"one line\nanother line\n\nmore\n")]
    found += [("a.json", json.dumps({"data": pairs}).encode()), ("a.jsonl", table), ("a.csv", found[0][1])]
    try:
        import pyarrow
        import pyarrow.parquet

        columns = pyarrow.Table.from_pylist(pairs)
        for name in ("a.parquet", "a.arrow", "a.jsonl.zst"):
            buffer = io.BytesIO()
            if name == "a.parquet":
                pyarrow.parquet.write_table(columns, buffer)
            elif name == "a.arrow":
                with pyarrow.ipc.new_file(buffer, columns.schema) as writer:
                    writer.write_table(columns)
            else:
                buffer.write(pyarrow.compress(found[0][1], "zstd", asbytes=True))
            found.append((name, buffer.getvalue()))
    except ImportError:
        pass
    return found


def mutated(case: int, files: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """The damaged file of a case number."""
    rng = random.Random(case)
    name, data = rng.choice(files)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        match rng.randrange(9):
            case 0:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case 1:
                data = data[:at]
            case 2:
                data = data[:at] + data[to:]
            case 3:
                data = data[:to] + data[at:to] * rng.choice((1, 3)) + data[to:]
            case 4 | 5:
                data = data[:at] + rng.choice(TOKENS) + data[at:]
            case 6:
                other = rng.choice(files)[1]
                data = data[:at] + other[rng.randrange(len(other)) :]
            case 7:
                wanted = rng.choice(("utf-16", "utf-32", "latin-1", "utf-16-le", "cp1252"))
                data = data.decode("utf-8", "replace").encode(wanted, "replace")
            case 8:
                data = rng.choice((data.replace(b"\n", b"\r\n"), data.replace(b"\n", b"\r"), data.replace(b'"', b"'")))
        data = data[:200_000]
    if rng.random() < 0.05:
        name = rng.choice(files)[0]
    return name, data


def one_case(folder: Path, name: str, data: bytes) -> str | None:
    """Curate the file; what went wrong, None if nothing did."""
    path, out = folder / name, folder / "out"
    path.write_bytes(data)

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT_S)
    try:
        counts = curate(path, out, kind="generate")["counts"]
    except BadInput as error:
        return None if str(error) else "refused without a word"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        path.unlink()
    kept = counts["rows_train"] + counts["rows_dev"] + counts["rows_eval"]
    if counts["rows_in"] + counts["rows_expanded"] != kept + counts["dropped"]:
        return f"rows do not add up: {counts}"
    written = sum(
        len((out / f"{part}.jsonl").read_bytes().splitlines()) for part in ("train", "dev", "eval", "dropped")
    )
    return None if written == kept + counts["dropped"] else f"{written} lines written for {counts}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    os.fsync = lambda _: None  # power failures are not what this is about
    failed: list[dict[str, Any]] = []
    slowest_s = 0.0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for case in range(asked.cases):
            name, data = mutated(case, seeds())
            started = time.monotonic()
            problem = one_case(Path(folder), name, data)
            slowest_s = max(slowest_s, time.monotonic() - started)
            if problem:
                failed.append({"case": case, "name": name, "problem": problem})
    result = {
        "what": "damaged files curated: refused with a message, or rows in = rows kept + rows set aside",
        "versions": versions(), "machine": machine(), "cases": asked.cases, "failed": failed,
        "slowest_s": round(slowest_s, 2), "wall_s": round(time.monotonic() - began, 1),
    }  # fmt: skip
    if asked.json:
        print(json.dumps(result))
    else:
        print(
            f"{asked.cases} damaged files, {len(failed)} failed, slowest {slowest_s:.2f} s, {result['wall_s']} s in all"
        )
        for one in failed[:20]:
            print(one)


if __name__ == "__main__":
    main()
