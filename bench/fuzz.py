"""Feed curation with damaged files: no crash, no hang, no row lost.

    python -m bench.fuzz [--cases 10000] [--json]

Small files of every format are damaged at random (bytes flipped, cut, doubled, spliced, swapped line ends, wrong
encodings, wrong names) and curated as a random kind of task under random rules (redaction, budgets, contradictions,
held-out files), each within LIMIT_S CPU seconds. LARGE_FRAC of the files have enough rows for what is judged on many:
the split, suspect rows of labels, records and arithmetic, and the choice within a token budget. Where there is a
review.csv, every other case is curated again with decisions in it, damaged too. A case passes if the file is refused
with a message (BadInput) or if rows in = rows kept + rows set aside, in the counts and in the files written.
"""

from __future__ import annotations

import argparse
import csv
import functools
import gzip
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from bench import machine, versions
from shoestring.config import CurateConfig
from shoestring.data.folder import curate
from shoestring.errors import BadInput

LIMIT_S = 20  # of CPU time; ten times as many by the clock
LARGE_FRAC = 0.05
LARGE_ROWS = 160
KINDS = ("classify", "extract", "generate", "math", "sql", "chat")
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


@functools.cache
def large_seeds() -> list[tuple[str, bytes]]:
    """Well-formed files of LARGE_ROWS rows: labels, records, sums, and questions with more than one answer."""
    rng = random.Random(0)
    words = [a + b for a in ("ba", "ko", "mi", "su", "te") for b in ("lan", "mer", "sin", "ton", "vik")]
    foods, areas = ["Italian", "Indian", "French"], ["riverside", "city centre"]
    labels, records, sums, questions = [], [], [], []
    for i in range(LARGE_ROWS):
        said = " ".join(rng.sample(words, 6))
        label, food, area, a, b = rng.randrange(3), rng.choice(foods), rng.choice(areas), *rng.choices(range(99), k=2)
        labels.append({"text": f"{said} about {words[label]}", "label": f"l{label if i % 9 else 0}"})
        told = f"The {words[i % 25]} place serves {food} food near the {area}."
        record = json.dumps({"food": food if i % 9 else foods[0], "area": area})
        records.append({"prompt": told, "completion": record} if i % 2 else {"prompt": record, "completion": told})
        sums.append(
            {"question": f"{said}: {a} and {b}?", "answer": f"{a} + {b} = {a + b + (i % 9 == 0)}\n#### {a + b}"}
        )
        questions.append({"prompt": f"who is {said if i % 5 else 'it'}?", "completion": rng.choice(words)})
    found = []
    for rows in (labels, records[::2] * 2, records[1::2] * 2, sums, questions):
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        found += [("a.jsonl", lines), ("a.json", json.dumps(rows).encode())]
    return found


def mutated(case: int) -> tuple[str, bytes]:
    """The damaged file of a case number."""
    rng = random.Random(case)
    files = large_seeds() if rng.random() < LARGE_FRAC else seeds()
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


def rules_of(case: int) -> dict[str, Any]:
    """How the file of a case is curated: kind of task, rules and seed."""
    rng = random.Random(-1 - case)
    rules = CurateConfig(
        drop_duplicates=rng.random() < 0.9,
        contradictions=rng.choice(("majority", "drop", "keep")),
        redact=rng.random() < 0.3,
        max_train_tokens=rng.choice((None, None, 10, 1000)),
        eval_rows=rng.choice((None, None, 20)),
        max_eval_rows=rng.choice((None, None, 20)),
        max_train_rows=rng.choice((None, None, 5)),
    )
    kind = rng.choice((None, *KINDS))
    return {"kind": kind, "rules": rules, "seed": case, "is_held_out": rng.random() < 0.1}


def one_case(folder: Path, case: int) -> str | None:
    """Curate the file; what went wrong, None if nothing did."""
    name, data = mutated(case)
    path, out = folder / name, folder / "out"
    path.write_bytes(data)
    asked = rules_of(case)
    other = folder / "held_out.jsonl"
    other.write_bytes(large_seeds()[0][1])
    held_out = [other] if asked.pop("is_held_out") else []
    try:
        problem = tried(lambda: curate(path, out, held_out=held_out, **asked), out)
        if problem or not (out / "review.csv").exists() or case % 2:
            return problem
        decide(out / "review.csv", random.Random(case))
        return tried(lambda: curate(path, out, held_out=held_out, **asked), out)
    finally:
        path.unlink()
        shutil.rmtree(out, ignore_errors=True)


def decide(path: Path, rng: random.Random) -> None:
    """Enter decisions; in every other file a few bytes are damaged as well."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["decision"] = rng.choice(("keep", "drop", "fix", ""))
        row["corrected_answer"] = "another answer" if row["decision"] == "fix" else ""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["id", "decision"])
    writer.writeheader()
    writer.writerows(rows)
    data = bytearray(text.getvalue().encode("utf-8", "replace"))
    for _ in range(rng.choice((0, 3))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)


def tried(run: Callable[[], dict[str, Any]], out: Path) -> str | None:
    """What went wrong with a curation, None if nothing did."""

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {LIMIT_S} s")

    for limited in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(limited, late)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    signal.alarm(10 * LIMIT_S)
    try:
        counts = run()["counts"]
    except BadInput as error:
        return None if str(error) else "refused without a word"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
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
            started = time.process_time()
            problem = one_case(Path(folder), case)
            slowest_s = max(slowest_s, time.process_time() - started)
            if problem:
                failed.append({"case": case, "name": mutated(case)[0], "problem": problem})
                print(failed[-1], file=sys.stderr, flush=True)
    result = {
        "what": "damaged files curated: refused with a message, or rows in = rows kept + rows set aside",
        "versions": versions(), "machine": machine(), "cases": asked.cases, "failed": failed,
        "slowest_cpu_s": round(slowest_s, 2), "cpu_s": round(time.process_time(), 1),
        "wall_s": round(time.monotonic() - began, 1),
    }  # fmt: skip
    if asked.json:
        print(json.dumps(result))
    else:
        print(
            f"{asked.cases} damaged files, {len(failed)} failed, slowest {slowest_s:.2f} CPU s, "
            f"{result['cpu_s']} in all"
        )
        for one in failed[:20]:
            print(one)


if __name__ == "__main__":
    main()
