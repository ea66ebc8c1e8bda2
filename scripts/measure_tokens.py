"""How many tokens words, digits and marks make: the coefficients of plan/lengths.py, and their error on texts left out.

    python scripts/measure_tokens.py QWEN.tiktoken LLAMA3_tokenizer.model TEKKEN.json DATA_FOLDER

The vocabularies ship in the wheels dashscope 2.0.2, llama-models 0.3.0 and mistral-common 1.13.1; tiktoken reads them.
DATA_FOLDER: public data sets (gsm8k, banking77, e2e_nlg, alpaca_noisy, dolly_filtered, advising_sql, snips_slots,
format_fixtures); our own changelog and code are the last two sets.
"""

import base64
import csv
import gzip
import json
import random
import sys
from pathlib import Path

import numpy as np
import tiktoken
from scipy.optimize import nnls

from shoestring.plan.lengths import BREAK, DIGITS, LONG_WORD, MARKS, WORD

ROOT = Path(__file__).resolve().parent.parent
NUM_ROWS = 400
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def ranks(path: str) -> dict[bytes, int]:
    lines = (line.split() for line in Path(path).read_bytes().splitlines() if line.strip())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def encodings(qwen: str, llama: str, tekken: str) -> dict[str, tiktoken.Encoding]:
    told = json.loads(Path(tekken).read_text())
    size = told["config"]["default_vocab_size"] - told["config"]["default_num_special_tokens"]
    vocabulary = {base64.b64decode(v["token_bytes"]): v["rank"] for v in told["vocab"][:size]}
    return {
        "qwen": tiktoken.Encoding("qwen", pat_str=PATTERN % r"\p{N}", mergeable_ranks=ranks(qwen), special_tokens={}),
        "llama3": tiktoken.Encoding(
            "llama3", pat_str=PATTERN % r"\p{N}{1,3}", mergeable_ranks=ranks(llama), special_tokens={}
        ),
        "tekken": tiktoken.Encoding(
            "tekken", pat_str=told["config"]["pattern"], mergeable_ranks=vocabulary, special_tokens={}
        ),
    }


def flat(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(map(flat, value.values()))
    return "\n".join(map(flat, value)) if isinstance(value, list) else str(value)


def sets(data: Path) -> dict[str, list[str]]:
    def packed(name: str) -> list[str]:
        return [flat(row) for row in json.loads(gzip.decompress((data / name).read_bytes()))]

    snips = json.loads((data / "snips_slots/train_PlayMusic_full.json").read_text(encoding="latin-1"))
    return {
        "gsm8k": [flat(json.loads(line)) for line in (data / "gsm8k/train.jsonl").read_text().splitlines()],
        "banking77": [row["text"] for row in csv.DictReader((data / "banking77/train.csv").open())],
        "e2e": [f"{row['mr']}\n{row['ref']}" for row in csv.DictReader((data / "e2e_nlg/devset.csv").open())],
        "alpaca": packed("alpaca_noisy/claude_t45.json.gz"),
        "dolly": packed("dolly_filtered/dolly_3k.json.gz"),
        "preferences": packed("format_fixtures/dpo_en_demo.json.gz"),
        "tools": packed("format_fixtures/glaive_toolcall_en_demo.json.gz"),
        "sql": [flat(row) for row in json.loads((data / "advising_sql/advising.json").read_text())],
        "snips": [json.dumps(row) for row in snips["PlayMusic"]],
        "changelog": (ROOT / "CHANGELOG.md").read_text().split("\n- "),
        "code": [path.read_text() for path in sorted((ROOT / "src").rglob("*.py"))],
    }


def features(text: str, groups_digits: bool) -> list[int]:
    words, numbers, marks = WORD.findall(text), DIGITS.findall(text), MARKS.findall(text)
    plain = [word for word in words if word.isascii()]
    return [
        len(plain),
        sum(max(0, len(word) - LONG_WORD) for word in plain),
        sum(len(word.encode()) for word in words if not word.isascii()),
        sum(-(-len(n) // 3) if groups_digits else len(n) for n in numbers),
        len(marks),
        sum(len(mark.encode()) - 1 for mark in marks),
        len(BREAK.findall(text)),
    ]


def main(qwen: str, llama: str, tekken: str, data: str) -> None:
    rng = random.Random(0)
    texts = {name: rng.sample(rows, min(NUM_ROWS, len(rows))) for name, rows in sets(Path(data)).items()}
    for name, encoding in encodings(qwen, llama, tekken).items():
        counts = {key: np.array([len(encoding.encode_ordinary(t)) for t in rows], float) for key, rows in texts.items()}
        made = {key: np.array([features(t, name == "llama3") for t in rows], float) for key, rows in texts.items()}

        def fit(keys: list[str], counts: dict = counts, made: dict = made) -> np.ndarray:  # each set weighs the same
            left = np.vstack([made[key] / counts[key].sum() for key in keys])
            right = np.concatenate([counts[key] / counts[key].sum() for key in keys])
            return nnls(left * 1000, right * 1000)[0]

        errors = {}
        for key in texts:
            found = made[key] @ fit([other for other in texts if other != key])
            errors[key] = round(float(found.sum() / counts[key].sum() - 1), 3)
        print(name, np.round(fit(list(texts)), 3).tolist(), "left out:", errors)


if __name__ == "__main__":
    main(*sys.argv[1:5])
