"""Near-duplicates found and counterfactuals kept: Shoestring against rensa, datasketch, semhash and datatrove.

    python -m bench.dedup [--rows 100000] [--peers /path/to/venv/bin/python] [--json]

Corpus: real prompts with their answers (banking77, Snips, WikiSQL, Advising, E2E, Alpaca, Dolly, GSM8K), at most
MAX_WORDS words each. PLANTED_FRAC of the rows are edited copies that mean the same, with the same answer, and as many
are counterfactuals (another number, another name, a negation) with another row's answer. All methods get the same
shuffled rows, each in a process of its own, one after the other; the time is that of the method, without imports and
reading the file. Peak memory is that of the process, the rows included.

recall: of the edits, how many are found, that is the edit or its source is removed. counterfactuals merged: of those,
how many are lost in the same sense. Real rows repeat, so removing exact repeats alone scores some: the background.
paired counts a counterfactual only if it was removed in favour of its source or the reverse (ours alone says which).
Ours with answers sees what curation sees; ours by prompts alone is told that all answers are equal, as the others are.

Two edit sets. bench/edits.py is by the author of the guard. bench/edits_blind.py was written by another author from
the list of edit kinds in the issue alone, without sight of the guard, its word lists or this file; the guard's author
has imported it and not read it, and saw recall by edit kind, never its rows.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import gzip
import importlib
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path("/work/shared/data")
MAX_WORDS = 60
PLANTED_FRAC = 0.03
WELL_FOUND, WELL_MERGED = 95, 5  # percent; kinds of edits and counterfactuals in between are named
SETS = {"own": "bench.edits", "blind": "bench.edits_blind"}
PEERS = ["rensa words 0.7", "datasketch words 0.7", "semhash 0.9", "datatrove 14x8 2-grams"]
OURS = ["exact prompts", "exact prompts and answers", "shoestring", "shoestring, prompts alone"]


# ---------------------------------------------------------------- corpus


def _json(path: str) -> Any:
    raw = (DATA / path).read_bytes()
    opened = {".gz": gzip.decompress, ".bz2": bz2.decompress}.get(Path(path).suffix, bytes)(raw)
    try:
        return json.loads(opened)
    except UnicodeDecodeError:
        return json.loads(opened.decode("latin-1"))


def real_rows() -> dict[str, list[tuple[str, str]]]:
    """(prompt, answer) rows by data set."""
    rows: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in ("train", "test"):
        with (DATA / f"banking77/{name}.csv").open(newline="", encoding="utf-8") as file:
            rows["banking77"] += [(r["text"].strip(), r["category"]) for r in csv.DictReader(file)]
    for path in sorted((DATA / "snips_slots").glob("*.json")):
        for intent, examples in _json(f"snips_slots/{path.name}").items():
            for example in examples:
                slots = {p["entity"]: p["text"].strip() for p in example["data"] if "entity" in p}
                text = "".join(p["text"] for p in example["data"]).strip()
                rows["snips"].append((text, json.dumps({"intent": intent, "slots": slots})))
    for entry in _json("wikisql/wikisql.json.bz2"):
        rows["wikisql"] += [(s["original"].strip(), entry["sql-original"][0]) for s in entry["sentences"]]
    for entry in _json("advising_sql/advising.json"):
        for sentence in entry["sentences"]:
            text, sql = sentence["text"], entry["sql"][0]
            for name, value in sentence["variables"].items():
                text, sql = text.replace(name, value), sql.replace(name, value)
            rows["advising"].append((text.strip(), sql))
    for name in ("devset", "testset_w_refs"):
        with (DATA / f"e2e_nlg/{name}.csv").open(newline="", encoding="utf-8") as file:
            rows["e2e"] += [(r["ref"].strip(), r["mr"]) for r in csv.DictReader(file)]
    for name, path in (("alpaca", "alpaca_noisy/random_9k.json.gz"), ("dolly", "dolly_filtered/dolly_3k.json.gz")):
        rows[name] = [("\n".join(filter(None, [r["instruction"], r["input"]])), r["output"]) for r in _json(path)]
    for name in ("train", "test"):
        lines = (DATA / f"gsm8k/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows["gsm8k"] += [(r["question"], r["answer"]) for r in map(json.loads, lines)]
    return {k: [(p, a) for p, a in v if p and len(p.split()) <= MAX_WORDS] for k, v in rows.items()}


def applied(edit: Callable[[str, random.Random], str | None], prompt: str, rng: random.Random) -> str | None:
    """The edited prompt; None where the edit does not apply."""
    try:
        return edit(prompt, rng)
    except IndexError:  # the blind set is not corrected by us: an edit with nothing to choose from does not apply
        return None


def corpus(num_rows: int, edit_set: str, seed: int) -> dict[str, Any]:
    """Shuffled rows with plants. pairs: [planted row, its source row, kind, is_edit]."""
    module = importlib.import_module(SETS[edit_set])
    rng = random.Random(seed)
    num_planted = round(PLANTED_FRAC * num_rows)
    by_set = real_rows()
    others = [(name, *row) for name, rows in by_set.items() if name != "wikisql" for row in rows]
    wikisql = [("wikisql", *row) for row in by_set["wikisql"]]
    wanted = num_rows - 2 * num_planted
    frac = min(1.0, num_rows / 100_000)  # a smaller corpus has the same mixture
    real = rng.sample(others, round(frac * len(others)))
    real += rng.sample(wikisql, min(len(wikisql), wanted - len(real)))
    answers = {name: [a for n, _, a in real if n == name] for name in by_set}
    planted: list[tuple[str, str, int, str, bool]] = []
    order = rng.sample(range(len(real)), len(real))
    used: set[int] = set()  # a row is the source of one plant at most
    for edits, is_edit in ((module.EDITS, True), (module.COUNTERFACTUALS, False)):
        left = {kind: iter(order) for kind in edits}  # a kind that applies nowhere else is planted less often
        num_wanted = len(planted) + num_planted
        while left and len(planted) < num_wanted:
            for kind, sources in list(left.items())[: num_wanted - len(planted)]:
                for source in sources:
                    name, prompt, answer = real[source]
                    new = None if source in used else applied(edits[kind], prompt, rng)
                    if new is None or new.strip() == prompt:
                        continue
                    while not is_edit and answer == real[source][2]:
                        answer = rng.choice(answers[name])
                    used.add(source)
                    planted.append((new, answer, source, kind, is_edit))
                    break
                else:
                    del left[kind]
    rows = [(p, a) for _, p, a in real] + [(p, a) for p, a, *_ in planted]
    shuffled = rng.sample(range(len(rows)), len(rows))
    place = {row: at for at, row in enumerate(shuffled)}
    pairs = [
        (place[len(real) + i], place[source], kind, is_edit) for i, (_, _, source, kind, is_edit) in enumerate(planted)
    ]
    return {"prompts": [rows[i][0] for i in shuffled], "answers": [rows[i][1] for i in shuffled], "pairs": pairs}


# ---------------------------------------------------------------- methods: removed rows, and the row each went for


def exact(keys: list[Any]) -> dict[int, int]:
    first: dict[Any, int] = {}
    return {i: first[k] for i, k in enumerate(keys) if first.setdefault(k, i) != i}


def run_ours(method: str, prompts: list[str], answers: list[str]) -> Callable[[], dict[int, int]]:
    from shoestring.data.near import near_rows
    from shoestring.data.normalise import normalise, normalise_prompt
    from shoestring.records import no_progress

    if method == "exact prompts":
        return lambda: exact([normalise_prompt(p) for p in prompts])
    if method == "exact prompts and answers":
        return lambda: exact([(normalise_prompt(p), normalise(a)) for p, a in zip(prompts, answers, strict=True)])
    known = answers if method == "shoestring" else [""] * len(prompts)
    return lambda: {
        p.second: p.first for p in near_rows(prompts, known, kind="generate", progress=no_progress).duplicates
    }


def run_rensa(prompts: list[str]) -> dict[int, int]:
    from rensa import RMinHash, RMinHashDeduplicator

    found = RMinHashDeduplicator(threshold=0.7, num_perm=128, use_lsh=True, num_bands=32)
    removed = {}
    for i, text in enumerate(prompts):
        minhash = RMinHash(num_perm=128, seed=42)
        minhash.update(re.findall(r"\w+", text.lower()))
        if not found.add(str(i), minhash):
            removed[i] = -1
    return removed


def run_datasketch(prompts: list[str]) -> dict[int, int]:
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(threshold=0.7, num_perm=128)
    removed = {}
    tokens = ([w.encode() for w in re.findall(r"\w+", text.lower())] for text in prompts)
    for i, minhash in enumerate(MinHash.generator(tokens, num_perm=128, seed=1)):
        if lsh.query(minhash):
            removed[i] = -1
        else:
            lsh.insert(i, minhash)
    return removed


def run_semhash(prompts: list[str]) -> Callable[[], dict[int, int]]:
    """Over random vectors of a vocabulary trained here: no model hub can be reached."""
    import numpy as np
    from model2vec import StaticModel
    from semhash import SemHash
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]"]
    tokenizer.train_from_iterator(prompts, trainers.WordPieceTrainer(vocab_size=30_000, special_tokens=special))
    vectors = np.random.default_rng(0).standard_normal((tokenizer.get_vocab_size(), 256)).astype(np.float32)
    model = StaticModel(vectors, tokenizer)

    def run() -> dict[int, int]:
        records = [{"text": text, "id": str(i)} for i, text in enumerate(prompts)]
        semhash = SemHash.from_records(records=records, columns=["text"], model=model)
        kept = {int(r["id"]) for r in semhash.self_deduplicate(threshold=0.9).selected}
        return {i: -1 for i in range(len(prompts)) if i not in kept}

    return run


def run_datatrove(prompts: list[str]) -> dict[int, int]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=2)
    with tempfile.TemporaryDirectory() as place:
        for part in range(2):
            (Path(place) / "in").mkdir(exist_ok=True)
            with (Path(place) / f"in/{part}.jsonl").open("w") as file:
                for i in range(part, len(prompts), 2):
                    print(json.dumps({"text": prompts[i], "id": str(i)}), file=file)
        read = JsonlReader(f"{place}/in")
        stages: list[tuple[list[Any], int]] = [
            ([read, MinhashDedupSignature(f"{place}/signatures", config=config)], 2),
            ([MinhashDedupBuckets(f"{place}/signatures", f"{place}/buckets", config=config)], 14),
            ([MinhashDedupCluster(f"{place}/buckets", f"{place}/remove", config=config)], 1),
            ([read, MinhashDedupFilter(f"{place}/remove"), JsonlWriter(f"{place}/out", compression=None)], 2),
        ]
        for steps, tasks in stages:
            LocalPipelineExecutor(
                steps, tasks=tasks, workers=min(2, tasks), skip_completed=False, start_method="fork"
            ).run()
        kept = {
            int(json.loads(line)["id"])
            for path in Path(place, "out").glob("*.jsonl")
            for line in path.open(encoding="utf-8")
        }
    return {i: -1 for i in range(len(prompts)) if i not in kept}


def worker(method: str, path: Path) -> None:
    """One method over one corpus; the result stands beside the corpus."""
    data = json.loads(path.read_text(encoding="utf-8"))
    prompts, answers = data["prompts"], data["answers"]
    name = method.split()[0]
    if method in OURS:
        run = run_ours(method, prompts, answers)
    elif name == "semhash":
        run = run_semhash(prompts)
    else:
        plain = {"rensa": run_rensa, "datasketch": run_datasketch, "datatrove": run_datatrove}[name]
        importlib.import_module(name)
        run = lambda: plain(prompts)  # noqa: E731
    began, before = time.perf_counter(), os.times()
    removed = run()
    wall_s, cpu_s = time.perf_counter() - began, sum(os.times()[:4]) - sum(before[:4])
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # rusage would count the process that started us
    own_kb = int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]
    peak_kb = max(own_kb, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    from importlib.metadata import PackageNotFoundError, version

    try:
        used = version("shoestring" if method in OURS else name)
    except PackageNotFoundError:
        used = "source"
    result = {"removed": sorted(removed.items()), "wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": peak_kb / 1024}
    path.with_suffix(".result").write_text(json.dumps({**result, "version": used}))


# ---------------------------------------------------------------- scores


def scores(data: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    removed = dict(result.pop("removed"))
    num_rows = len(data["prompts"])
    hits: dict[tuple[bool, str], list[bool]] = defaultdict(list)
    paired = []
    touched: set[int] = set()
    for planted, source, kind, is_edit in data["pairs"]:
        touched |= {planted, source}
        hits[is_edit, kind].append(planted in removed or source in removed)
        if not is_edit:
            paired.append(removed.get(planted) == source or removed.get(source) == planted)
    by_kind = {kind: 100 * sum(found) / len(found) for (_, kind), found in hits.items()}

    def percent(is_edit: bool) -> float:
        found = [hit for (kept, _), of_kind in hits.items() if kept == is_edit for hit in of_kind]
        return 100 * sum(found) / len(found)

    return {
        **result,
        "rows_per_s": num_rows / result["wall_s"],
        "rows_per_cpu_s": num_rows / max(result["cpu_s"], 1e-9),
        "recall_percent": percent(True),
        "merged_percent": percent(False),
        "paired_percent": None if -1 in removed.values() else 100 * sum(paired) / len(paired),
        "others_removed_percent": 100 * len(removed.keys() - touched) / (num_rows - len(touched)),
        "by_kind_percent": by_kind,
    }


def measure(num_rows: int, seed: int, edit_sets: list[str], peers: str | None) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for edit_set in edit_sets:
        data = corpus(num_rows, edit_set, seed)
        results[edit_set] = {}
        with tempfile.TemporaryDirectory(prefix="shoestring-dedup-") as place:
            path = Path(place) / "corpus.json"
            path.write_text(json.dumps(data), encoding="utf-8")
            for method in OURS + (PEERS if peers else []):
                python = sys.executable if method in OURS else peers or ""
                command = [python, "-m", "bench.dedup", "--worker", method, "--corpus", str(path)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                answer = path.with_suffix(".result")
                if done.returncode or not answer.exists():
                    results[edit_set][method] = {"missing": done.stderr.strip().splitlines()[-1:]}
                    continue
                results[edit_set][method] = scores(data, json.loads(answer.read_text()))
                answer.unlink()
    return {"measured": f"near-duplicates among {num_rows} rows, seed {seed}", "methods": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--edits", choices=[*SETS, "both"], default="both")
    parser.add_argument("--peers", help="Python of an environment that has rensa, datasketch, semhash and datatrove")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.corpus)
        return
    edit_sets = list(SETS) if options.edits == "both" else [options.edits]
    from bench import machine, versions

    result = measure(options.rows, options.seed, edit_sets, options.peers)
    result |= {"versions": versions(), "machine": machine()}
    if options.json:
        print(json.dumps(result))
        return
    print(result["measured"])
    for edit_set, methods in result["methods"].items():
        columns = "".join(f"{name:>8}" for name in ("recall", "merged", "paired", "others"))
        print(f"\n{edit_set + ' edits':28}{'rows/s':>9}{'peak MB':>9}{columns}")
        for method, row in methods.items():
            if "missing" in row:
                print(f"{method:28}not run: {row['missing']}")
                continue
            paired = "-" if row["paired_percent"] is None else f"{row['paired_percent']:.2f}"
            print(
                f"{method:28}{row['rows_per_s']:>9.0f}{row['peak_mb']:>9.0f}{row['recall_percent']:>8.1f}"
                f"{row['merged_percent']:>8.1f}{paired:>8}{row['others_removed_percent']:>8.1f}"
            )
        by_kind = methods["shoestring"].get("by_kind_percent", {})
        odd = [f"{kind} {value:.0f}" for kind, value in by_kind.items() if WELL_MERGED < value < WELL_FOUND]
        print(f"shoestring below {WELL_FOUND} % found or above {WELL_MERGED} % merged: {', '.join(odd) or 'no kind'}")


if __name__ == "__main__":
    main()
