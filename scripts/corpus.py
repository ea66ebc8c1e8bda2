"""Build the pretraining corpus of the embedded model family from Debian packages.

    python scripts/corpus.py --out /tmp/embedded_corpus --shards 8

Three things land in --out: `tokenizer/` (byte-level BPE, chat template), `heldout_*.npy` and
`shard_NNN_{256,1024}.npy`: uint16 rows of token ids, ready to train on. A row holds whole
generated tasks (scripts/tasks.py) and is filled up with natural text, so that a task is never cut
off from the text it refers to. A shard depends only on its number and the code, so more can be
made while a trainer is running.

Shapes: N rows, T tokens of a row.
"""

import argparse
import gzip
import html.parser
import random
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import tasks

VOCAB_SIZE = 4096
CONTEXT_TOKENS = 1024
SPECIAL_TOKENS = ["<|pad|>", "<|bos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
BOS, END = SPECIAL_TOKENS[1], SPECIAL_TOKENS[5]
# The template the tasks are generated in; rendering then completing equals rendering the whole.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
TEXT_FRAC = 0.37
COPY_FIRST_SHARDS = 1  # these are half repetition, and come before the others
COPY_FIRST_TEXT_FRAC = 0.2
SHARD_TOKENS = 4_000_000
LONG_FRAC = 1 / 8  # of a shard's tokens, in rows of CONTEXT_TOKENS
SHORT_ROW_TOKENS = 256
CHUNK_CHARS = 1400
GCIDE_CHARS = 9_000_000  # its 1913 English should not drown the rest

# package -> a path it must have installed
PACKAGES = {
    "python3.11-doc": "/usr/share/doc/python3.11/html/tutorial",
    "debian-handbook": "/usr/share/doc/debian-handbook/html/en-US",
    "debian-reference-en": "/usr/share/debian-reference/ch01.en.html",
    "developers-reference": "/usr/share/developers-reference/pkgs.html",
    "debian-policy": "/usr/share/doc/debian-policy/policy.txt.gz",
    "wordnet-base": "/usr/share/wordnet/data.noun",
    "dict-gcide": "/usr/share/dictd/gcide.dict.dz",
    "miscfiles": "/usr/share/misc/cities.dat.gz",
    "wamerican": "/usr/share/dict/american-english",
}
HTML_FOLDERS = [
    "/usr/share/doc/python3.11/html",
    "/usr/share/doc/debian-handbook/html/en-US",
    "/usr/share/debian-reference",
    "/usr/share/developers-reference",
    "/usr/share/doc/debian-policy",
]
SKIPPED_PAGES = re.compile(
    r"genindex|changelog|search|_static|py-modindex|virtual-package|/c-api/|contents|policy\.html$|developers-reference\.html$|/apa\.|menu-policy-1"
)


def check_packages() -> None:
    """Stop with the apt line to type when a source is not installed."""
    missing = [name for name, path in PACKAGES.items() if not Path(path).exists()]
    if missing:
        sys.exit(f"missing corpus sources; run: apt-get install -y {' '.join(missing)}")


class ProseExtractor(html.parser.HTMLParser):
    """Paragraphs, list items and headings of a page; code, tables and navigation are left out."""

    SKIP = {"script", "style", "nav", "table", "pre", "head", "footer", "dt"}
    BLOCK = {"p", "li", "dd", "h1", "h2", "h3", "h4", "div", "section", "br"}

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.depth = 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag in self.SKIP:
            self.depth += 1
        elif tag in self.BLOCK:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SKIP:
            self.depth = max(0, self.depth - 1)
        elif tag in self.BLOCK:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.depth:
            self.parts.append(data.replace("\n", " "))


def clean(text: str) -> str:
    """ASCII quotes and dashes, single spaces, no pilcrows."""
    for old, new in (
        ("\u2019", "'"),
        ("\u2018", "'"),
        ("\u201c", '"'),
        ("\u201d", '"'),
        ("\u2014", " - "),
        ("\u2013", "-"),
        ("\u00b6", ""),
        ("\u00a0", " "),
        ("\u200b", ""),
    ):
        text = text.replace(old, new)
    return re.sub(r"[ \t]+", " ", text).strip()


def chunks(paragraphs: list[str]) -> list[str]:
    """Join paragraphs into documents of about CHUNK_CHARS characters."""
    docs, current = [], ""
    for paragraph in paragraphs:
        if current and len(current) + len(paragraph) > CHUNK_CHARS:
            docs.append(current)
            current = ""
        current += ("\n" if current else "") + paragraph
    return docs + ([current] if current else [])


def html_docs() -> list[str]:
    """Documents of prose from the manuals."""
    docs = []
    for folder in HTML_FOLDERS:
        for page in sorted(Path(folder).rglob("*.html")):
            if SKIPPED_PAGES.search(str(page)) or page.is_symlink():
                continue
            extractor = ProseExtractor()
            extractor.feed(page.read_text(errors="replace"))
            lines = (clean(line) for line in "".join(extractor.parts).split("\n"))
            docs += chunks([line for line in lines if len(line) > 25 and line.isascii()])
    return docs


def gcide_docs(rng: random.Random) -> list[str]:
    """A random part of the Collaborative International Dictionary, markup removed."""
    raw = gzip.open("/usr/share/dictd/gcide.dict.dz").read().decode(errors="replace")
    entries = re.split(r"\n(?=\S)", raw)
    rng.shuffle(entries)
    docs, size = [], 0
    kept: list[str] = []
    for entry in entries:
        text = re.sub(r"\[[^\]]*\]|\\[^\\]*\\|[{}]|\([A-Z][a-z]*\.\)", "", entry)
        text = clean(re.sub(r"\s+", " ", text)).replace(" ,", ",").replace(" .", ".")
        if not 80 < len(text) < 1200 or not text.isascii():
            continue
        kept.append(text)
        size += len(text)
        if size > GCIDE_CHARS:
            break
    for start in range(0, len(kept), 5):
        docs.append("\n".join(kept[start : start + 5]))
    return docs


def wordnet_docs(rng: random.Random, lexicon: tasks.Lexicon) -> list[str]:
    """Glosses and example sentences as short dictionary pages, three wordings."""
    lines = []
    for synset in lexicon.synsets:
        word = rng.choice(synset.lemmas)
        article = "an" if word[0] in "aeiou" else "a"
        if synset.pos == "noun" and synset.hypernym and rng.random() < 0.3:
            line = f"{article.capitalize()} {word} is a kind of {synset.hypernym}: {synset.gloss}."
        else:
            line = rng.choice((f"{word} ({synset.pos}): {synset.gloss}.", f"{word}: {synset.gloss}."))
        if len(synset.lemmas) > 1 and rng.random() < 0.4:
            line += " Also: " + ", ".join(lemma for lemma in synset.lemmas if lemma != word) + "."
        for example in synset.examples:
            line += f" {example[0].upper()}{example[1:]}."
        lines.append(line)
    docs = []
    # Neighbouring synsets share a topic; keep small groups together.
    for start in range(0, len(lines), 4):
        docs.append("\n".join(lines[start : start + 4]))
    return docs


def build_tokenizer(text_docs: list[str], task_docs: list[str], out: Path):
    """Train the shared BPE; digits and newlines are always tokens of their own.

    Newlines never merge, so "<|assistant|>\\n" ends on a token boundary whatever follows it.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    strip = re.compile(r"<\|\w+\|>")
    bpe.train_from_iterator((strip.sub("", doc) for doc in text_docs + task_docs), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=END,
        pad_token=SPECIAL_TOKENS[0],
        additional_special_tokens=SPECIAL_TOKENS[2:5],
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out)
    return fast


def encode(tokenizer, docs: list[str]) -> list[np.ndarray]:
    """Token ids of each document; special tokens are spelled out in the text."""
    return [
        np.array(e.ids, dtype=np.uint16)
        for e in tokenizer.backend_tokenizer.encode_batch_fast(docs, add_special_tokens=False)
    ]


def pack_rows(
    task_ids: list[np.ndarray], text_T: np.ndarray, cursor: int, num_text_rows: int, row_tokens: int
) -> tuple[np.ndarray, int]:
    """Rows of whole tasks topped up with text, plus num_text_rows of text only.

    Returns the (N, row_tokens) rows and the text cursor after them.
    """
    rows = []

    def take(count: int) -> np.ndarray:
        nonlocal cursor
        if cursor + count > len(text_T):
            cursor = 0
        cursor += count
        return text_T[cursor - count : cursor]

    current: list[np.ndarray] = []
    free = row_tokens
    for ids_T in task_ids:
        if len(ids_T) > row_tokens:
            continue
        if len(ids_T) > free:
            # The text goes last: it may be cut, a task may not.
            rows.append(np.concatenate([*current, take(free)]))
            current, free = [], row_tokens
        current.append(ids_T)
        free -= len(ids_T)
    rows += [take(row_tokens).copy() for _ in range(num_text_rows)]
    return np.stack(rows), cursor


def build_shard(number: int, tokenizer, text_T: np.ndarray, lexicon: tasks.Lexicon, out: Path) -> None:
    """Write shard_NNN_256.npy and shard_NNN_1024.npy."""
    rng = random.Random(1000 + number)
    cursor = int(number * SHARD_TOKENS * TEXT_FRAC) % len(text_T)
    copy_first = number < COPY_FIRST_SHARDS
    text_frac = COPY_FIRST_TEXT_FRAC if copy_first else TEXT_FRAC
    sizes = []
    for row_tokens, frac in ((SHORT_ROW_TOKENS, 1 - LONG_FRAC), (CONTEXT_TOKENS, LONG_FRAC)):
        wanted = SHARD_TOKENS * frac * (1 - text_frac)
        ids: list[np.ndarray] = []
        total = 0
        while total < wanted:
            batch = encode(
                tokenizer,
                [
                    tasks.sample_task(rng, lexicon, long=row_tokens > SHORT_ROW_TOKENS, copy_first=copy_first)
                    for _ in range(4000)
                ],
            )
            batch = [ids_T for ids_T in batch if len(ids_T) <= row_tokens]
            ids += batch
            total += sum(map(len, batch))
        rows_NT, _ = pack_rows(ids, text_T, cursor, 0, row_tokens)
        num_missing = max(0, int((SHARD_TOKENS * frac - rows_NT.size) / row_tokens))
        rows_NT, cursor = pack_rows(ids, text_T, cursor, num_missing, row_tokens)
        np.random.default_rng(number).shuffle(rows_NT)
        sizes.append(rows_NT.size)
        partial = out / f".partial_{number}_{row_tokens}.npy"
        np.save(partial, rows_NT)
        partial.rename(out / f"shard_{number:03d}_{row_tokens}.npy")
    print(f"shard {number}: {sizes[0]:,} + {sizes[1]:,} tokens", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=8, help="how many, SHARD_TOKENS each")
    parser.add_argument("--first-shard", type=int, default=0)
    args = parser.parse_args()
    check_packages()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    lexicon = tasks.Lexicon()

    text_path, tokenizer_path = args.out / "text.npy", args.out / "tokenizer"
    if not text_path.exists():
        manuals, gcide, wordnet = html_docs(), gcide_docs(rng), wordnet_docs(rng, lexicon)
        for name, docs in (("manuals", manuals), ("gcide", gcide), ("wordnet", wordnet)):
            print(f"{name}: {len(docs):,} documents, {sum(map(len, docs)):,} characters", flush=True)
        docs = manuals + gcide + wordnet
        rng.shuffle(docs)
        task_docs = [tasks.sample_task(rng, lexicon) for _ in range(15_000)]
        tokenizer = build_tokenizer(rng.sample(docs, min(len(docs), 14_000)), task_docs, tokenizer_path)
        heldout = [tasks.sample_task(random.Random(99_000 + i), lexicon) for i in range(800)]
        for name, held in (("text", [f"{BOS}{doc}{END}" for doc in docs[:150]]), ("tasks", heldout)):
            stream_T = np.concatenate(encode(tokenizer, held))
            num_rows = len(stream_T) // SHORT_ROW_TOKENS
            np.save(
                args.out / f"heldout_{name}.npy",
                stream_T[: num_rows * SHORT_ROW_TOKENS].reshape(num_rows, SHORT_ROW_TOKENS),
            )
        text_T = np.concatenate(encode(tokenizer, [f"{BOS}{doc}{END}" for doc in docs[150:]]))
        np.save(text_path, text_T)
        print(f"text: {len(text_T):,} tokens", flush=True)
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_path)
    text_T = np.load(text_path)
    for number in range(args.first_shard, args.first_shard + args.shards):
        build_shard(number, tokenizer, text_T, lexicon, args.out)


if __name__ == "__main__":
    main()
