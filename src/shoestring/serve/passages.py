"""Passages for requests to a model that was trained with them: the same search, the same words around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..decide.passages import BORDER, HEAD, fitted
from ..decide.retrieval import Retriever
from ..errors import BadInput
from ..files import read_json, read_jsonl
from ..messages import Message, Prompt
from ..train.device import detect_device
from ..train.sentences import load_encoder

RETRIEVAL, PASSAGES = "retrieval.json", "passages.jsonl"  # written beside the adapter by export


@dataclass(frozen=True)
class Passages:
    """Every passage of a run's documents, ready to be searched for a request."""

    texts: tuple[str, ...]
    retriever: Retriever
    num_chunks: int

    def fill(self, prompt: Prompt, count_tokens: Callable[[Sequence[Message]], int], room: int) -> Prompt:
        """The prompt with the passages for its last user turn, as many as leave it within room tokens."""
        asked = "\n".join(turn.content for turn in prompt if turn.role == "user")  # as in training
        places = self.retriever.search([asked], self.num_chunks)[0]
        return fitted([prompt], [[self.texts[i] for i in places]], count_tokens, [room])[0][0]


def read_beside(folder: Path, base_dir: Path) -> Passages:
    """The passages that export laid beside an adapter. base_dir: what the run file's paths are relative to.

    Raises: BadInput where they are not there, or were shown in other words than this version's; MissingDependency.
    """
    if not (folder / RETRIEVAL).is_file() or not (folder / PASSAGES).is_file():
        raise BadInput(
            f"{folder} was trained with passages of data.documents in its prompts, and they are not beside it; "
            f"write them with: shoestring export {folder.parent.parent.parent}"
        )
    facts = read_json(folder / RETRIEVAL)
    if (facts.get("head"), facts.get("border")) != (HEAD, BORDER):
        raise BadInput(
            f"{folder} was trained with passages in other words ({facts.get('head')!r}) than this version puts around "
            f"them ({HEAD!r}); train it again"
        )
    texts = tuple(row["text"] for row in read_jsonl(folder / PASSAGES))
    encode = None
    if facts.get("embeddings"):
        encode = load_encoder((base_dir / Path(facts["embeddings"]).expanduser()).resolve(), detect_device())
    return Passages(texts, Retriever(texts, encode), int(facts["num_chunks"]))
