"""vLLM as an engine: a server in its own environment, a container, or at a URL; never imported here.

Token ids go to /v1/completions and come back (return_token_ids), so template, text and stop strings stay the
gateway's. Each load gives an adapter a name of its own in vLLM: under the same name its prefix cache would go on
answering from the keys and values of the adapter before. Source: vllm 0.32.0, entrypoints/openai and config/lora.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import BadInput, ModelError
from ...records import Device, Log, no_log
from ..adapters import Adapter, Base
from ..engine import TRIAL, Ask, Busy, Capability, EngineDown, Piece, Prove, Token
from .embedded_sampling import BLANKS
from .names import Names
from .server import LOOPBACK, Counters, Remote, ServerProcess, free_port, new_key
from .vllm_settings import RANKS, settings_for, start_command

START_S = 900.0  # compilation and graph capture of a large model
NO_TOP_K, NO_MIN_P, NO_PENALTY = 0, 0.0, 1.0
TOKEN_ID = "token_id:"
# How llguidance writes JSON: blanks around commas and colons alone, and no more than in the embedded engine, or a model
# may write nothing else until its limit. Its whitespace_pattern bounds nothing in 1.7, which vLLM 0.32 holds.
BOUNDED = {
    "whitespace_flexible": False,
    "item_separator": f"{BLANKS},{BLANKS}",
    "key_separator": f"{BLANKS}:{BLANKS}",
}

CAPABILITY = Capability(
    name="vllm",
    mixes_adapters=True,
    max_rank=RANKS[-1],
    rslora=True,
    tied_embeddings=True,
    max_top_logprobs=20,
    notes=(
        "log-probabilities of answers held to a schema are of the constrained distribution",
        "JSON held to a schema has blanks around commas and colons alone, not inside brackets",
    ),
)


class VllmEngine:
    """One vLLM server. Stop tokens are the template's, as in the evaluation."""

    def __init__(
        self,
        remote: Remote,
        base_name: str,
        stop_ids: Sequence[int],
        context_tokens: int,
        counters: Counters,
        *,
        max_rank: int,
        process: ServerProcess | None = None,
        num_slots: int = 1,
        fixed: frozenset[str] = frozenset(),
    ) -> None:
        """fixed: adapters that a server elsewhere holds under their own names; no other can be loaded there."""
        self.remote, self.base_name, self.stop_ids = remote, base_name, list(stop_ids)
        self.context_tokens, self.counters, self.process = context_tokens, counters, process
        self.capability = replace(CAPABILITY, max_rank=max_rank)
        self.num_slots, self.fixed = num_slots, fixed
        self.names = Names()
        self.forgetting: set[asyncio.Task[None]] = set()

    async def load(self, name: str, folder: Path, prove: Prove | None = None) -> None:
        """As Engine.load. Until prove has passed, what answered by that name before goes on."""
        if self.process is None and name not in self.fixed:
            held = ", ".join(sorted(self.fixed)) or "none"
            raise BadInput(
                f"the vLLM server at {self.remote.client.base_url} holds no adapter {name!r} (it holds: {held}); "
                f"start it with --lora-modules {name}=FOLDER, the folder as that machine sees it"
            )
        inner = name
        if self.process is not None:
            inner = self.names.fresh(name)
            await self._load(inner, folder)
        if prove is not None:
            self.names.put(name + TRIAL, inner)
            try:
                await prove(name + TRIAL)
            except BaseException:
                if self.process is not None:
                    self._forget_later(inner)
                raise
            finally:
                self.names.take(name + TRIAL)
        if old := self.names.put(name, inner):
            self._forget_later(old)

    async def _load(self, inner: str, folder: Path) -> None:
        body = {"lora_name": inner, "lora_path": str(folder.resolve())}
        await self.remote.json("POST", "/v1/load_lora_adapter", body)

    async def drop(self, name: str) -> None:
        """As Engine.drop."""
        if (old := self.names.take(name)) and self.process is not None:
            self._forget_later(old)

    def _forget_later(self, inner: str) -> None:
        """Unload it once the requests on their way have ended; nobody waits for them."""
        task = asyncio.create_task(self._forget(inner))
        self.forgetting.add(task)
        task.add_done_callback(self.forgetting.discard)

    async def _forget(self, inner: str) -> None:
        await self.names.unused(inner)
        with contextlib.suppress(BadInput, Busy, EngineDown):  # gone already, or it stays until the server ends
            await self.remote.json("POST", "/v1/unload_lora_adapter", {"lora_name": inner})

    async def fill_slots(self, folder: Path) -> list[str]:
        """Load one adapter under passing names until every slot can be taken at once; the names, for the parity check.

        vLLM 0.32's fault on CPUs is in the last slot, so a free one would hide it until a later load.
        """
        extra = [self.names.fresh("parity") for _ in range(self.num_slots - len(self.names))]
        for inner in extra:
            await self._load(inner, folder)
            self.names.put(inner, inner)
        return extra

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """As Engine.generate."""
        with self.counters.place(), self.names.using(ask.adapter, self.base_name) as model:
            stream = self.remote.events("/v1/completions", self._body(ask, model))
            async with contextlib.aclosing(stream):
                async for piece in self._pieces(ask, stream):
                    yield piece

    async def _pieces(self, ask: Ask, stream: AsyncGenerator[dict[str, Any]]) -> AsyncIterator[Piece]:
        finish, num_cached = "", 0
        self.counters.num_prompt_tokens += len(ask.prompt_ids)
        async for event in stream:
            self.counters.num_steps += 1
            if event.get("usage"):
                details = event["usage"].get("prompt_tokens_details") or {}
                num_cached = int(details.get("cached_tokens") or 0)
            for choice in event.get("choices", ()):
                tokens = _tokens(choice, ask.sampling.num_top_logprobs)
                reason = choice.get("finish_reason")
                if reason not in (None, "stop", "length"):
                    raise ModelError(f"vLLM ended an answer with {reason!r}; see its log")
                if reason == "stop" and tokens and tokens[-1].id in self.stop_ids:
                    tokens = tokens[:-1]
                finish = reason or finish
                self.counters.num_new_tokens += len(tokens)
                if tokens:
                    yield Piece(tuple(tokens))
        if not finish:
            raise EngineDown("vLLM broke off an answer without a reason; see its log")
        self.counters.num_cached_tokens += num_cached
        yield Piece((), finish, num_cached)

    def _body(self, ask: Ask, model: str) -> dict[str, Any]:
        own = ask.sampling
        body: dict[str, Any] = {
            "model": model,
            "prompt": list(ask.prompt_ids),
            "max_tokens": own.max_new_tokens,
            "temperature": own.temperature,
            "top_p": own.top_p,
            "top_k": NO_TOP_K,
            "min_p": NO_MIN_P,
            "repetition_penalty": NO_PENALTY,
            "presence_penalty": own.presence_penalty,
            "frequency_penalty": own.frequency_penalty,
            "stop_token_ids": self.stop_ids,
            "skip_special_tokens": False,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        if not ask.is_streamed:
            body["stream_interval"] = max(1, own.max_new_tokens)
        if own.seed is not None:
            body["seed"] = own.seed
        if own.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in own.logit_bias}
        if own.num_top_logprobs is not None:
            body |= {"logprobs": own.num_top_logprobs, "return_tokens_as_token_ids": True}
        if own.schema is not None:
            wanted = json.loads(own.schema) or {"type": "object"}
            body["structured_outputs"] = {"json": {**wanted, "x-guidance": BOUNDED}}
        return body

    def stats(self) -> dict[str, float]:
        """As Engine.stats."""
        return self.counters.stats()

    async def close(self) -> None:
        """As Engine.close."""
        for task in self.forgetting:
            task.cancel()
        await self.remote.close()
        if self.process is not None:
            await self.process.stop()


def _tokens(choice: Mapping[str, Any], num_top: int | None) -> list[Token]:
    ids = choice.get("token_ids")
    if ids is None:
        raise ModelError("vLLM sent no token ids; return_token_ids needs vLLM 0.10.2 or newer")
    if num_top is None or not ids:
        return [Token(int(i)) for i in ids]
    told = choice["logprobs"]
    tokens = []
    for i, logprob, top in zip(ids, told["token_logprobs"], told["top_logprobs"], strict=True):
        best = sorted((top or {}).items(), key=lambda pair: -pair[1])[:num_top]
        tokens.append(Token(int(i), logprob, tuple((int(t.removeprefix(TOKEN_ID)), p) for t, p in best)))
    return tokens


async def start_vllm(
    base: Base,
    adapters: Sequence[Adapter],
    stop_ids: Sequence[int],
    *,
    device: Device,
    log_file: Path,
    max_rows: int = 16,
    queue_len: int = 64,
    log: Log = no_log,
) -> VllmEngine:
    """Start a server for this base, ready to load these adapters.

    Raises: MissingDependency, BadInput, DoesNotFit, EngineDown with its last words.
    """
    settings = settings_for(base, adapters, device, max_rows=max_rows)
    for reason in settings.reasons:
        log(f"vLLM: {reason}")
    port, key, name = free_port(), new_key(), "base"
    command = [
        *start_command(),
        *(str(base.folder), "--served-model-name", name, "--host", LOOPBACK, "--port", str(port)),
        *settings.arguments(),
        "--enable-prompt-tokens-details",
    ]
    environment = {"VLLM_API_KEY": key, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1"}
    if settings.kv_cache_gib is not None:
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(settings.kv_cache_gib)
    process = await ServerProcess.start("vLLM", command, log_file, environment)
    remote = Remote("vLLM", f"http://{LOOPBACK}:{port}", key, process)
    try:
        await process.ready(lambda: _is_up(remote), START_S)
    except BaseException:
        await remote.close()
        await process.stop()
        raise
    return VllmEngine(
        remote,
        name,
        stop_ids,
        settings.max_model_len,
        Counters("vLLM", max_rows, queue_len),
        max_rank=settings.max_lora_rank,
        process=process,
        num_slots=settings.max_loras,
    )


async def _is_up(remote: Remote) -> bool:
    await remote.json("GET", "/health")
    return True


async def reach_vllm(
    url: str, base: Base, stop_ids: Sequence[int], *, key: str = "", max_rows: int = 256, queue_len: int = 256
) -> VllmEngine:
    """A vLLM server that runs elsewhere, with the adapters it was started with.

    What base it holds cannot be read from there: it goes by the shape of its list, and the parity check.
    Raises: EngineDown, ModelError, BadInput where its context is shorter than the base's or it lists no base.
    """
    remote = Remote("vLLM", url.removesuffix("/").removesuffix("/v1"), key)
    try:
        listed = (await remote.json("GET", "/v1/models"))["data"]
        bases = [entry for entry in listed if not entry.get("parent")]
        if not bases:
            raise BadInput(f"{url} lists no base model; is it a vLLM server?")
    except (KeyError, TypeError, AttributeError) as error:
        await remote.close()
        raise BadInput(f"{url} does not list models as vLLM does: {error!r}") from error
    except BaseException:
        await remote.close()
        raise
    own = bases[0]
    return VllmEngine(
        remote,
        str(own["id"]),
        stop_ids,
        int(own.get("max_model_len") or base.context_tokens or 1),
        Counters("vLLM", max_rows, queue_len),
        max_rank=RANKS[-1],
        fixed=frozenset(str(entry["id"]) for entry in listed if entry.get("parent")),
    )
