"""Planted contradictions found, and harmless rows left alone, on real data sets of five kinds of task.

    python -m bench.contradictions [--sets NAME ...] [--rows 20000] [--planted 400] [--edits own blind] [--json]

Into the rows of a set (at most --rows, drawn by seed) go, each beside another source row,

contradictions: the source's prompt as it is, or in other case and punctuation, with a typing error, or with politeness
    around it, a quarter each, and an answer that excludes the source's: another label, one value of a record replaced
    by another that this slot takes in the set, one literal of a query replaced, another final number;
controls, half of each sort: equivalent answers (a record in another order of keys, a query in other case, white space
    and semicolon, other working to the same number) to the same or an edited prompt; and counterfactuals, near prompts
    in which a number or a name is another (where those are rare: a negation is inserted) with another answer.

All goes through `ss.curate` with curate.contradictions = keep, so every pair is reported; its two line numbers are read
back from faults.jsonl. A pair is right if it names a planted contradiction and its source, or a row that asks the same
as the source by the run on the unplanted set (same prompt, repeat, or paired there). recall: planted contradictions in
a right pair. precision: right pairs among the reported. What contradicts in the set as it is, is not held against us:
pairs that the run on the unplanted set reports are left out and counted as `already_there`. All others are false, also
where chance made them true: a prompt with another number may be that of a row with another answer.

Edits: bench/edits.py, written by the author of the guard, and bench/edits_blind.py, by another hand and not to be read,
so --examples shows rows with the former alone. A toy size: --sets snips --rows 500 --planted 40 --edits own.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import gzip
import importlib
import json
import random
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import EXAMPLES, machine, versions
from bench.dedup import DATA, SETS, applied
from shoestring.config import CurateConfig, TaskKind
from shoestring.data.folder import curate
from shoestring.data.normalise import normalise_prompt
from shoestring.data.wrong.flat import record_in

# Kinds of prompt, and how the names of their edits begin in bench/edits.py and bench/edits_blind.py.
PROMPTS = {"same prompt": (), "case, punctuation": ("case", "punct"), "typo": ("typo",), "politeness": ("polite",)}
COUNTERFACTUALS = {"number": ("number",), "name": ("name",), "negation": ("negation_not", "negation inserted")}
REPORTED = {
    "contradiction": re.compile(r"rows with this prompt\); line (\d+) answers"),
    "near_contradiction": re.compile(r"line (\d+) asks the same"),
}
LITERAL = re.compile(r'"[^"]*"|\b\d+(?:\.\d+)?\b')
OUTSIDE_QUOTES = re.compile(r'("[^"]*")')

Row = tuple[str, str]
Pair = frozenset[int]


@dataclass(frozen=True, slots=True)
class Plant:
    """A planted row, what it was made of, and whether it contradicts its source."""

    row: Row
    source: int
    what: str
    is_wrong: bool


# ---------------------------------------------------------------- sets


def banking77() -> list[Row]:
    with gzip.open(EXAMPLES / "banking77/train.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return [(row["text"].strip(), row["category"]) for row in csv.DictReader(file)]


def snips() -> list[Row]:
    with gzip.open(EXAMPLES / "snips/train.jsonl.gz", "rt", encoding="utf-8") as file:
        return [(row["prompt"], row["completion"]) for row in map(json.loads, file)]


def wikisql() -> list[Row]:
    entries = json.loads(bz2.decompress((DATA / "wikisql/wikisql.json.bz2").read_bytes()))
    return [(s["original"].strip(), e["sql-original"][0]) for e in entries for s in e["sentences"]]


def e2e() -> list[Row]:
    with (DATA / "e2e_nlg/test-fixed.csv").open(encoding="utf-8", newline="") as file:
        return [(row["ref"], json.dumps(record_in(row["mr"]))) for row in csv.DictReader(file)]


def gsm8k() -> list[Row]:
    lines = (DATA / "gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["question"], row["answer"]) for row in map(json.loads, lines)]


KINDS: dict[str, TaskKind] = {
    "banking77": "classify", "snips": "extract", "wikisql": "sql", "e2e": "extract", "gsm8k": "math",
}  # fmt: skip
READERS: dict[str, Callable[[], list[Row]]] = {
    "banking77": banking77, "snips": snips, "wikisql": wikisql, "e2e": e2e, "gsm8k": gsm8k,
}  # fmt: skip


# ---------------------------------------------------------------- answers


class Answers:
    """Answers that exclude or equal a given one, by kind of task; `taken` are those of the set."""

    def __init__(self, kind: str, taken: list[str], rng: random.Random):
        self.kind, self.taken, self.rng = kind, taken, rng
        self.values: defaultdict[str | bool, list[Any]] = defaultdict(list)
        for answer in taken if kind == "extract" else ():
            for name, value in json.loads(answer).items():
                self.values[name].append(value)
        for text in LITERAL.findall(" ".join(taken)) if kind == "sql" else ():
            self.values[text[:1] == '"'].append(text)

    def another(self, answer: str, of: list[Any]) -> Any:
        """One of a list that does not read like the answer."""
        while True:
            other = self.rng.choice(of)
            if _plain(other) != _plain(answer):
                return other

    def excluding(self, answer: str) -> str:
        """An answer that cannot be right if the given one is."""
        rng = self.rng
        if self.kind == "extract":
            record = json.loads(answer)
            names = [name for name in record if len({_plain(value) for value in self.values[name]}) > 1]
            name = rng.choice(names)
            return json.dumps({**record, name: self.another(record[name], self.values[name])})
        if self.kind == "sql" and (found := list(LITERAL.finditer(answer))):
            at = rng.choice(found)
            other = self.another(at[0], self.values[at[0][0] == '"'])
            return f"{answer[: at.start()]}{other}{answer[at.end() :]}"
        if self.kind == "math":
            working, _, number = answer.rpartition("#### ")
            return f"{working}#### {int(number.replace(',', '')) + rng.choice((-1, 1, 2, 10))}"
        return str(self.another(answer, self.taken))

    def equal_to(self, answer: str) -> str:
        """The same said otherwise."""
        rng = self.rng
        if self.kind == "extract":
            items = list(json.loads(answer).items())
            return json.dumps(dict(rng.sample(items, len(items))), indent=rng.choice((None, 1)))
        if self.kind == "sql":
            parts = OUTSIDE_QUOTES.split(answer.rstrip("; "))
            text = "".join(part if part[:1] == '"' else part.lower().replace(" ", "  ") for part in parts)
            return text + rng.choice(("", ";", " ;"))
        if self.kind == "math":
            return f"Worked out step by step, this is the answer.\n#### {answer.rpartition('#### ')[2]}"
        return answer + rng.choice(("", " ", "\n"))


def _plain(value: Any) -> str:
    return "".join(filter(str.isalnum, str(value).casefold()))


# ---------------------------------------------------------------- planting


def planted(rows: list[Row], kind: str, edit_set: str, num: int, seed: int) -> list[Plant]:
    """`num` contradictions and as many controls, no two of one source."""
    module = importlib.import_module(SETS[edit_set])
    rng = random.Random(seed)
    answers = Answers(kind, [answer for _, answer in rows], rng)
    prompts = Counter(normalise_prompt(prompt) for prompt, _ in rows)
    free = [i for i in rng.sample(range(len(rows)), len(rows)) if prompts[normalise_prompt(rows[i][0])] == 1]
    edits = {
        what: [edit for name, edit in of_all.items() if name.startswith(beginnings)]
        for kinds, of_all in ((PROMPTS, module.EDITS), (COUNTERFACTUALS, module.COUNTERFACTUALS))
        for what, beginnings in kinds.items()
    }
    plants: list[Plant] = []

    def plant(what: str, wanted: int, answer: Callable[[str], str], note: str, is_wrong: bool) -> int:
        """How many of the wanted could be planted; sources are used up."""
        done, passed = 0, []
        while done < wanted and free:
            source = free.pop()
            prompt, given = rows[source]
            new = applied(rng.choice(edits[what]), prompt, rng) if edits[what] else prompt
            if new is None or (edits[what] and new.strip() == prompt):
                passed.append(source)
                continue
            plants.append(Plant((new, answer(given)), source, f"{note}: {what}", is_wrong))
            done += 1
        free.extend(passed)
        return done

    left = num // 2
    for at, what in enumerate(COUNTERFACTUALS):  # first, since they do not apply to every row
        wanted = left // (len(COUNTERFACTUALS) - 1 - at) if at < len(COUNTERFACTUALS) - 1 else left
        left -= plant(what, wanted, answers.excluding, "counterfactual", False)
    for at, what in enumerate(PROMPTS):
        share = num * (at + 1) // len(PROMPTS) - num * at // len(PROMPTS)
        plant(what, share, answers.excluding, "contradiction", True)
    for at, what in enumerate(("same prompt", *PROMPTS)):
        share = num // 2 * (at + 1) // 5 - num // 2 * at // 5
        plant(what, share, answers.equal_to, "equivalent", False)
    return plants


# ---------------------------------------------------------------- measuring


def curated(rows: list[Row], kind: TaskKind) -> tuple[dict[Pair, str], dict[int, int]]:
    """Reported pairs of row numbers with their code, and the row that each repeat went for."""
    with tempfile.TemporaryDirectory(prefix="shoestring-contradictions-") as place:
        path, out = Path(place) / "rows.jsonl", Path(place) / "out"
        path.write_text("".join(json.dumps({"prompt": p, "completion": a}) + "\n" for p, a in rows), encoding="utf-8")
        curate(path, out, kind=kind, rules=CurateConfig(contradictions="keep"))
        pairs: dict[Pair, str] = {}
        for line in (out / "faults.jsonl").read_text(encoding="utf-8").splitlines():
            fault = json.loads(line)
            if fault["code"] in REPORTED:
                other = REPORTED[fault["code"]].search(fault["evidence"])
                assert other, f"no line number in {fault['evidence']}"
                pairs.setdefault(frozenset((fault["line"] - 1, int(other[1]) - 1)), fault["code"])
        repeats = {}
        for line in (out / "dropped.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["code"] in ("exact_duplicate", "near_duplicate"):
                repeats[row["line"] - 1] = row["partner_line"] - 1
    return pairs, repeats


class Alike:
    """Rows that ask the same: those of one prompt, and those the unplanted run links."""

    def __init__(self, rows: list[Row], pairs: dict[Pair, str], repeats: dict[int, int]):
        self.linked: defaultdict[int, set[int]] = defaultdict(set)
        for i, j in (*map(sorted, pairs), *repeats.items()):
            self.linked[i].add(j)
            self.linked[j].add(i)
        by_prompt: defaultdict[str, list[int]] = defaultdict(list)
        for i, (prompt, _) in enumerate(rows):
            by_prompt[normalise_prompt(prompt)].append(i)
        for members in by_prompt.values():
            for i in members[1:]:
                self.linked[members[0]].add(i)
                self.linked[i].add(members[0])

    def of(self, row: int) -> set[int]:
        """Every row linked to one, itself included."""
        found, open_ones = {row}, [row]
        while open_ones:
            new = self.linked[open_ones.pop()] - found
            found |= new
            open_ones += new
        return found


def measure_set(name: str, edit_set: str, num_rows: int, num_planted: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    rows = READERS[name]()
    rows = rng.sample(rows, min(num_rows, len(rows)))
    kind = KINDS[name]
    pairs_before, repeats_before = curated(rows, kind)
    plants = planted(rows, kind, edit_set, num_planted, seed)
    both = [*rows, *(plant.row for plant in plants)]
    order = rng.sample(range(len(both)), len(both))
    started = time.monotonic()
    found, _ = curated([both[i] for i in order], kind)
    wall_s = time.monotonic() - started
    pairs = {frozenset(order[i] for i in pair): code for pair, code in found.items()}
    alike = Alike(rows, pairs_before, repeats_before)
    right: set[Pair] = set()
    hits: defaultdict[str, list[bool]] = defaultdict(list)
    for number, plant in enumerate(plants, len(rows)):
        mine = {pair for pair in pairs if number in pair and pair - {number} <= alike.of(plant.source)}
        hits[plant.what].append(bool(mine))
        if plant.is_wrong:
            right |= mine
    false = [pair for pair in pairs if pair not in right and pair not in pairs_before]
    num_wrong = sum(plant.is_wrong for plant in plants)
    num_found = sum(any(number in pair for pair in right) for number in range(len(rows), len(both)))
    return {
        "kind": kind,
        "rows": len(rows),
        "planted": num_wrong,
        "controls": len(plants) - num_wrong,
        "already_there": len(pairs_before),
        "recall": num_found / num_wrong,
        "precision": len(right) / max(len(right) + len(false), 1),
        "pairs_right": len(right),
        "pairs_false": len(false),
        "false_of_controls": sum(any(i >= len(rows) for i in pair) for pair in false),
        "reported_by_what": {what: sum(of_kind) / len(of_kind) for what, of_kind in sorted(hits.items())},
        "wall_s": wall_s,
        "examples": {
            "missed": _shown(
                both, (
                    (number, plant.source) for number, plant in enumerate(plants, len(rows))
                    if plant.is_wrong and not any(number in pair for pair in right)
                ),
            ),
            "false": _shown(both, map(sorted, false)),
        },
    }  # fmt: skip


def _shown(rows: list[Row], pairs: Any, most: int = 12) -> list[list[Row]]:
    return [[rows[i] for i in pair] for pair in list(pairs)[:most]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=[*KINDS], default=[*KINDS])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--planted", type=int, default=400)
    parser.add_argument("--edits", nargs="+", choices=[*SETS], default=[*SETS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", action="store_true", help="show missed and false pairs (own edits)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result: dict[str, Any] = {"measured": "planted contradictions, recall and precision of the reported pairs"}
    result["seed"] = options.seed
    result["sets"] = {
        edit_set: {
            name: measure_set(name, edit_set, options.rows, options.planted, options.seed) for name in options.sets
        }
        for edit_set in options.edits
    }
    for edit_set, measured in result["sets"].items():
        for row in measured.values():
            if not options.examples or edit_set != "own":
                del row["examples"]
    result |= {"versions": versions(), "machine": machine()}
    if options.json:
        print(json.dumps(result))
        return
    for edit_set, measured in result["sets"].items():
        for name, row in measured.items():
            print(f"{edit_set} edits, {name}: {json.dumps(row, indent=2, ensure_ascii=False)}")


if __name__ == "__main__":
    main()
