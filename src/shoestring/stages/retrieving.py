"""The documents of a run: passages, what is found for rows, and the rows of rungs that learn with passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..decide.documents import Passage, document_files, read_passages
from ..decide.passages import BORDER, HEAD, HOW, example_with, fitted, recall
from ..decide.retrieval import Encode, Retriever
from ..errors import ModelError
from ..files import sha256_file, write_json, write_jsonl
from ..ladder import model_of, models_of
from ..plan.settings import answer_limit
from ..records import Curated, Example, Message, to_json
from ..runfolder import fingerprint
from ..train.base import count_lengths, encode_prompt, load_tokenizer
from ..train.locate import model_print
from ..train.sentences import load_encoder
from ..train.tokens import tokenizer_print
from .common import device, shape, token_counts

if TYPE_CHECKING:
    from ..recipe import Run

RETRIEVAL, PASSAGES = "retrieval.json", "passages.jsonl"  # beside an adapter that was trained with passages


@dataclass(frozen=True)
class Library:
    """Every passage of data.documents, ready to be searched."""

    passages: tuple[Passage, ...]
    retriever: Retriever

    def find(self, questions: Sequence[str], num: int) -> list[list[int]]:
        """Places of the best passages for each question."""
        return self.retriever.search(questions, num)

    def texts(self, places: Sequence[int]) -> list[str]:
        """The passages at these places."""
        return [self.passages[i].text for i in places]


def documents_print(run: Run) -> Any:
    """What passages, and which are found, depend on: files by content, the cut, the encoder; None without documents."""
    config = run.config
    if not config.data.documents:
        return None
    files = document_files(config.data.documents, run.base_dir)
    cut_by = _tokenizer_print(model_print(models_of(config)[0]), models_of(config)[0])
    return [[[p.name, _content(p)] for p in files], config.retrieval.model_dump(), cut_by, encoder_print(run)]


def _content(path: Path) -> str:
    facts = path.stat()
    return _sha256(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_file(path)


@lru_cache(maxsize=4)
def _tokenizer_print(printed: str, model: str) -> str:
    return tokenizer_print(load_tokenizer(model))


def encoder_print(run: Run) -> str:
    """The sentence model by content, empty without one."""
    return model_print(str(_encoder_folder(run))) if run.config.retrieval.embeddings else ""


def _encoder_folder(run: Run) -> Path:
    return (run.base_dir / Path(run.config.retrieval.embeddings).expanduser()).resolve()


def encoder(run: Run) -> Encode | None:
    """The sentence model of retrieval.embeddings, None without one. Raises: ModelError."""
    return load_encoder(_encoder_folder(run), device(run)) if run.config.retrieval.embeddings else None


def library(run: Run) -> Library:
    """The run's passages; read and indexed once a session. Raises: DataError, MissingDependency."""
    return _library(_Held(run, fingerprint(documents_print(run))))


class _Held:
    """A run, compared by what its documents are."""

    def __init__(self, run: Run, documents: str) -> None:
        self.run, self.documents = run, documents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.documents == self.documents

    def __hash__(self) -> int:
        return hash(self.documents)


@lru_cache(maxsize=1)
def _library(held: _Held) -> Library:
    run = held.run
    tokenizer = load_tokenizer(models_of(run.config)[0])
    files = document_files(run.config.data.documents, run.base_dir)
    run.progress("reading documents", 0, None)
    passages = read_passages(
        files,
        run.config.retrieval.chunk_tokens,
        lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
    )
    return Library(tuple(passages), Retriever([p.text for p in passages], encoder(run)))


@dataclass(frozen=True)
class Filled:
    """A rung's rows with passages in their prompts, and what was found for the held-out ones."""

    curated: Curated
    facts: dict[str, Any]


def rows_for(run: Run, curated: Curated, rung: str) -> Curated:
    """The rows as a rung learns and answers them: with passages in their prompts where it is one that does.

    The same passages are found for training, dev and held-out rows, from data.documents alone. As many are shown as
    leave room for the row's answer, and for any that may be generated. Raises: ModelError where not one fits any row.
    """
    return curated if model_of(rung) == rung else _filled(run, curated, rung).curated


def facts_for(run: Run, curated: Curated, rung: str) -> dict[str, Any] | None:
    """found_facts of a rung's held-out rows, None of a rung without passages."""
    return None if model_of(rung) == rung else _filled(run, curated, rung).facts


_kept: dict[str, Filled] = {}  # of the rung at work alone: each of its stages asks


def _filled(run: Run, curated: Curated, rung: str) -> Filled:
    config, receipt = run.config, sha256_file(run.folder / "data" / "receipt.json")
    key = fingerprint(rung, documents_print(run), receipt, config.train.seq_len, config.task.model_dump())
    if key not in _kept:
        _kept.clear()
        _kept[key] = _fill(run, curated, model_of(rung))
    return _kept[key]


def _fill(run: Run, curated: Curated, model: str) -> Filled:
    held, tokenizer, context_tokens = library(run), load_tokenizer(model), shape(model).context_tokens
    answers, retrieval = token_counts(run, curated, model).answer, run.config.retrieval
    limit, _ = answer_limit(run.config.task, answers, context_tokens, model)
    most = min(run.config.train.seq_len or context_tokens, context_tokens)

    def fill(rows: Sequence[Example]) -> tuple[tuple[Example, ...], list[list[int]], list[int]]:
        found = held.find([e.user_text for e in rows], retrieval.num_chunks)
        texts = [held.texts(places) for places in found]
        count = partial(_num_tokens, tokenizer)
        rooms = [most - max(limit, answer) for _, answer in count_lengths(tokenizer, rows)]
        _, nums = fitted([e.request for e in rows], texts, count, rooms)
        filled = tuple(example_with(e, own[:num]) for e, own, num in zip(rows, texts, nums, strict=True))
        return filled, found, nums

    run.progress(f"passages for {model}", 0, None)
    (train, _, num_train), (dev, _, _), (held_out, found, nums) = map(fill, (curated.train, curated.dev, curated.eval))
    if not max([*num_train, *nums], default=0):
        raise ModelError(
            f"train.passages: not one passage fits the {context_tokens} tokens of {model} beside a prompt and "
            f"an answer; lower retrieval.chunk_tokens (now {retrieval.chunk_tokens}), or set train.passages: without"
        )
    undesired = {side: fill(rows)[0] for side, rows in curated.undesired.items()}
    rows = replace(curated, train=train, dev=dev, eval=held_out, undesired=undesired)
    return Filled(rows, found_facts(run, curated.eval, found, nums))


def _num_tokens(tokenizer: Any, prompt: Sequence[Message]) -> int:
    return len(encode_prompt(tokenizer, prompt))


def found_facts(run: Run, rows: Sequence[Example], found: Sequence[Sequence[int]], nums: Sequence[int]) -> Any:
    """What a RAG arm's record says of its retrieval: settings, passages a row, and recall with how it is counted."""
    held, retrieval = library(run), run.config.retrieval
    texts = [passage.text for passage in held.passages]
    return {
        "num_passages": len(texts),
        "chunk_tokens": retrieval.chunk_tokens,
        "num_chunks": retrieval.num_chunks,
        "by": "BM25 and embeddings, fused by rank" if retrieval.embeddings else "BM25",
        "mean_chunks": sum(nums) / max(1, len(nums)),
        "recall": to_json(recall(rows, run.config.task.kind, texts, found, nums)),
        "recall_of": HOW,
    }


def write_beside(run: Run, rung: str, folder: Path) -> None:
    """What serving needs to ask an adapter as it was trained: retrieval.json, and every passage."""
    if model_of(rung) == rung:
        return
    held, retrieval = library(run), run.config.retrieval
    write_json(
        folder / RETRIEVAL,
        {
            "head": HEAD,
            "border": BORDER,
            "num_chunks": retrieval.num_chunks,
            "chunk_tokens": retrieval.chunk_tokens,
            "by": "bm25+embeddings" if retrieval.embeddings else "bm25",
            "embeddings": retrieval.embeddings,
            "documents": documents_print(run)[0],
        },
    )
    write_jsonl(folder / PASSAGES, (to_json(passage) for passage in held.passages))
