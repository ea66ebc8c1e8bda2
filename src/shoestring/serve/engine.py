"""What the gateway asks of an engine, and what an engine says it can do.

The gateway owns the contract with clients: it renders prompts with the template that training and evaluation used,
turns tokens into text, cuts at stop strings and reads tool calls. An engine takes token ids and gives token ids,
whatever it is (a model in this process, a vLLM server, a llama-server), so one set of contract tests holds for all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..errors import ModelError, ShoestringError

BASE = ""  # the name of the base without an adapter, among an engine's adapters
TRIAL = "@trial"  # ends the name of an adapter that is not proven yet; no model's own name may hold it

Prove = Callable[[str], Awaitable[None]]  # asks a loaded adapter by its name; what it raises keeps it from being served


class Busy(ShoestringError):
    """The engine's queue is full, or an adapter finds no slot; the client may come again after retry_after_s."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotLoaded(ModelError):
    """No adapter of that name, or no more: it may be dropped between a request's arrival and its first step."""


class EngineDown(ShoestringError):
    """The engine does not answer, or has ended."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy, as in the evaluation."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0  # above 0
    seed: int | None = None  # the same seed and request give the same answer on one engine
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    num_top_logprobs: int | None = None  # None: no log-probabilities; 0: of the chosen token alone
    schema: str | None = None  # JSON schema, as text, that the answer keeps to; "{}" is any JSON object


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer wanted. prompt_ids: T token ids, template and special tokens included."""

    id: str
    adapter: str  # as loaded, or BASE
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    is_streamed: bool = False  # else an engine may hold tokens back until the end


@dataclass(frozen=True, slots=True)
class Token:
    """One new token; log-probabilities (natural) under the distribution before temperature and constraint."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """New tokens of one answer. finish: "" while more come; "stop" (an end token, not among the tokens) or "length".

    has_end_token: False where "stop" came without one, since nothing may follow what the schema has.
    """

    tokens: tuple[Token, ...]
    finish: str = ""
    num_cached_tokens: int = 0  # of the prompt, read before; told with the last piece at the latest
    has_end_token: bool = True


@dataclass(frozen=True, slots=True)
class Capability:
    """What one engine can do; a request or an adapter beyond it is refused by name, never changed silently."""

    name: str  # embedded, vllm, llamacpp
    mixes_adapters: bool  # requests for different adapters run in one batch
    max_rank: int | None = None  # None: any
    max_adapters: int | None = None  # registered at once; None: what memory holds
    rslora: bool = True
    dora: bool = False
    modules_to_save: bool = False
    tied_embeddings: bool = False  # LoRA on embed_tokens or lm_head of a base whose head is tied
    bias: bool = False  # adapters that carry biases of the base's layers
    trainable_tokens: bool = False  # adapters that carry rows of the embedding
    patterns: bool = False  # adapters with a rank or a scale of its own in some layers
    quantised_base: bool = False  # it holds the base in NF4, as under method: qlora
    schema: bool = True
    seed: bool = True
    max_top_logprobs: int = 20
    notes: tuple[str, ...] = field(default=())


class Engine(Protocol):
    """A loaded base that answers. Methods are called from the gateway's event loop; none may block it."""

    capability: Capability
    context_tokens: int

    async def load(self, name: str, folder: Path) -> None:
        """Make the adapter in folder (PEFT's form) answer by name; replaces one of that name for later requests.

        Requests on their way keep the adapter they began with. Raises: BadInput, ModelError.
        """

    async def drop(self, name: str) -> None:
        """Forget an adapter once requests on their way have ended."""

    def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """The answer, piece by piece; closing the iterator cancels it at the next token.

        Raises: Busy, EngineDown, NotLoaded, ModelError.
        """

    def stats(self) -> dict[str, float]:
        """Counters and gauges for /metrics: num_running, num_waiting, num_prompt_tokens, num_cached_tokens,
        num_new_tokens, num_steps, and what else the engine knows."""

    async def close(self) -> None:
        """End; requests on their way raise EngineDown."""
