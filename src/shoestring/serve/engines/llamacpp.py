"""llama.cpp's llama-server as an engine: a base and adapters as GGUF, each request with a scale for every adapter.

What the server would do by itself is not relied on: adapters are on where a request does not name them, whatever
--lora-init-without-apply says (llama.cpp#28674), ids it does not know are ignored, its host-memory cache (--cache-ram)
gives a request the keys and values that another adapter wrote for the same tokens, and adapters are read at its start
alone, so a change starts a second server, which takes over once it answers. Source: tools/server of the sources in
llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import BadInput, ModelError
from ...files import sha256_file
from ...plan.decode import kv_bytes_per_token
from ...plan.shapes import shape_of
from ...records import Device
from ...train.watch import WEIGHTS
from ..adapters import Base
from ..engine import BASE, TRIAL, Ask, Capability, EngineDown, NotLoaded, Piece, Prove, Token
from ..llamacpp_home import find
from .server import LOOPBACK, Counters, Remote, ServerProcess, earlier, free_port, new_key

START_S = 300.0
KV_FRAC = 4  # of the device's memory one part in so many is for keys and values
EXACT_TOP = 1 << 20  # of the vocabulary: every token's log-probability

CAPABILITY = Capability(
    name="llamacpp",
    mixes_adapters=False,  # requests for one set of adapters run together, other sets wait (llama.cpp#10994)
    rslora=True,  # the conversion writes alpha * sqrt(rank)
    max_top_logprobs=20,
    notes=(
        "requests for different adapters are answered in turn, not in one batch",
        "presence and frequency penalties are refused: llama.cpp counts the prompt's tokens too",
    ),
)

Convert = Callable[[Path], Path]  # an adapter's folder to its GGUF file, made or found


@dataclass
class _Server:
    """One running llama-server. ids: of adapters by name; listed: of every adapter it was started with."""

    process: ServerProcess
    remote: Remote
    ids: dict[str, int]
    listed: tuple[int, ...]
    num_users: int = 0
    is_free: asyncio.Event = field(default_factory=asyncio.Event)

    def scales(self, adapter: str) -> list[dict[str, Any]]:
        """Every adapter's, for a request: 1 for the asked one, 0 for the others, named or not."""
        own = None if adapter == BASE else self.ids[adapter]
        return [{"id": number, "scale": 1.0 if number == own else 0.0} for number in self.listed]


class LlamaCppEngine:
    """llama-server behind Engine."""

    def __init__(
        self,
        base_gguf: Path,
        convert: Convert,
        stop_ids: Sequence[int],
        context_tokens: int,
        detokenise: Callable[[Sequence[int]], str],
        *,
        log_file: Path,
        max_rows: int,
        queue_len: int,
        num_threads: int,
    ) -> None:
        self.capability, self.context_tokens = CAPABILITY, context_tokens
        self.base_gguf, self.convert, self.stop_ids = base_gguf, convert, frozenset(stop_ids)
        self.detokenise, self.log_file, self.num_threads = detokenise, log_file, num_threads
        self.counters = Counters("llama.cpp", max_rows, queue_len)
        self.adapters: dict[str, tuple[Path, str]] = {}  # name to its GGUF file and the hash of what it is made of
        self.server: _Server | None = None
        self._changing = asyncio.Lock()
        self._old: dict[asyncio.Task[None], _Server] = {}  # replaced, and not yet ended by their last request
        self._num_started = 0

    async def load(self, name: str, folder: Path, prove: Prove | None = None) -> None:
        """As Engine.load. Until prove has passed, what answered by that name before goes on."""
        if prove is None:
            await self.load_all({name: folder})
            return
        async with self._changing:
            made_of = await asyncio.to_thread(sha256_file, folder / WEIGHTS)
            if self.adapters.get(name, (None, ""))[1] == made_of:
                return
            made = (await asyncio.to_thread(self.convert, folder), made_of)
            server = await self._replace({**self.adapters, name + TRIAL: made})
            try:
                await prove(name + TRIAL)
                self.adapters[name], server.ids[name] = made, server.ids[name + TRIAL]
            finally:
                del self.adapters[name + TRIAL], server.ids[name + TRIAL]

    async def load_all(self, folders: dict[str, Path]) -> None:
        """Several at once, by one start of the server; what is loaded already and is the same starts none."""
        async with self._changing:
            wanted = dict(self.adapters)
            for name, folder in folders.items():
                made_of = await asyncio.to_thread(sha256_file, folder / WEIGHTS)
                if wanted.get(name, (None, ""))[1] != made_of:
                    wanted[name] = (await asyncio.to_thread(self.convert, folder), made_of)
            if wanted != self.adapters or self.server is None:
                await self._replace(wanted)

    async def drop(self, name: str) -> None:
        """As Engine.drop: its file stays open in the server until the next load; no request can reach it."""
        async with self._changing:
            self.adapters.pop(name, None)

    async def _replace(self, wanted: dict[str, tuple[Path, str]]) -> _Server:
        fresh = await self._start(wanted)
        old, self.server, self.adapters = self.server, fresh, wanted
        if old is not None:
            task = asyncio.create_task(self._retire(old))
            self._old[task] = old
            task.add_done_callback(self._old.pop)
        return fresh

    async def _start(self, wanted: dict[str, tuple[Path, str]]) -> _Server:
        home, port, key = await asyncio.to_thread(find), free_port(), new_key()
        rows = self.counters.max_rows
        files = list(dict.fromkeys(str(path) for path, _ in wanted.values()))
        if wrong := [file for file in files if "," in file]:
            raise BadInput(f"{wrong[0]}: llama-server takes no comma in the path of an adapter; move the runs")
        command = [
            *(str(home.server), "--model", str(self.base_gguf), "--host", LOOPBACK, "--port", str(port)),
            *("--ctx-size", str(rows * self.context_tokens), "--parallel", str(rows)),
            # Prompts kept beyond the slots are found by their tokens alone, not by the adapter they were read with.
            *("--cache-ram", "0", "--no-kv-unified", "--no-webui"),
            *("--threads", str(self.num_threads), "--threads-batch", str(self.num_threads)),
            *(("--lora", ",".join(files)) if files else ()),
        ]
        self._num_started += 1
        log_file = self.log_file.with_name(f"{self.log_file.stem}-{self._num_started}{self.log_file.suffix}")
        process = await ServerProcess.start("llama-server", command, log_file, {"LLAMA_API_KEY": key})
        remote = Remote("llama-server", f"http://{LOOPBACK}:{port}", key, process)
        try:
            await process.ready(lambda: _is_up(remote), START_S)
            listed = {Path(entry["path"]): int(entry["id"]) for entry in await remote.json("GET", "/lora-adapters")}
            ids = {name: listed[path] for name, (path, _) in wanted.items()}
            return _Server(process, remote, ids, tuple(sorted(listed.values())))
        except BaseException:
            await remote.close()
            await process.stop()
            raise

    async def _retire(self, server: _Server) -> None:
        while server.num_users:
            server.is_free.clear()
            await server.is_free.wait()
        await server.remote.close()
        await server.process.stop()
        for file in (server.process.log_file, earlier(server.process.log_file)):
            file.unlink(missing_ok=True)  # it ended well, and each change starts another

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """As Engine.generate."""
        if ask.sampling.presence_penalty or ask.sampling.frequency_penalty:
            raise BadInput(
                "llama.cpp counts the tokens of the prompt under presence_penalty and frequency_penalty, others those "
                "of the answer alone; leave them at 0, or serve with another engine"
            )
        if self.server is None:
            raise EngineDown("llama-server is not running")
        if ask.adapter != BASE and ask.adapter not in self.adapters:
            raise NotLoaded(f"no adapter {ask.adapter!r} is loaded")
        with self.counters.place():
            server = self.server
            scales = server.scales(ask.adapter)  # now: its name may be another adapter's before it ends
            server.num_users += 1
            try:
                async for piece in self._pieces(ask, server, self._body(ask, scales)):
                    yield piece
            finally:
                server.num_users -= 1
                server.is_free.set()

    async def _pieces(self, ask: Ask, server: _Server, body: dict[str, Any]) -> AsyncIterator[Piece]:
        """llama-server tells only the last token of a character that several make; the others are found again."""
        num_seen, finish = 0, ""
        so_far: list[int] = list(ask.prompt_ids)
        self.counters.num_prompt_tokens += len(ask.prompt_ids)
        num_cached = 0
        stream = server.remote.events("/completion", body)
        async with contextlib.aclosing(stream):
            async for event in stream:
                self.counters.num_steps += 1
                if event.get("stop"):
                    finish = finish or {"eos": "stop", "limit": "length", "word": "stop"}.get(event["stop_type"], "")
                    if not finish:
                        raise EngineDown(f"llama-server ended an answer with {event['stop_type']!r}; see its log")
                    num_cached = int((event.get("timings") or {}).get("cache_n") or 0)
                    break
                ids = [int(i) for i in event.get("tokens", ())]
                if not ids:
                    continue
                num_decoded = int(event["tokens_predicted"]) if "tokens_predicted" in event else num_seen + 1
                tokens = [_token(ids[-1], event, ask.sampling.num_top_logprobs)]
                if num_decoded - num_seen > 1:
                    num = num_decoded - num_seen
                    tokens = await self._unsaid(ask, server, body, so_far, event["content"], tokens[0], num)
                num_seen = num_decoded
                if ids[-1] in self.stop_ids:
                    tokens, finish = tokens[:-1], "stop"
                so_far += [token.id for token in tokens]
                self.counters.num_new_tokens += len(tokens)
                if tokens:
                    yield Piece(tuple(tokens))
                if finish:
                    break  # closing the stream ends the slot, should llama-server not end there itself
        if not finish:
            server.process.check()
            raise EngineDown("llama-server broke off an answer; see its log")
        self.counters.num_cached_tokens += num_cached
        yield Piece((), finish, num_cached)

    async def _unsaid(
        self, ask: Ask, server: _Server, body: dict[str, Any], so_far: list[int], text: str, last: Token, num: int
    ) -> list[Token]:
        """The tokens of text, of which llama-server told the last alone."""
        asked = {"content": text, "add_special": False, "parse_special": False}
        ids = [int(i) for i in (await server.remote.json("POST", "/tokenize", asked))["tokens"]]
        if len(ids) != num or ids[-1] != last.id or self.detokenise(ids) != text:
            raise ModelError(
                f"llama-server answered with {text!r}, made of {num} tokens that it does not tell; ask again, or serve "
                "with another engine"
            )
        if ask.sampling.num_top_logprobs is None:
            return [*(Token(i) for i in ids[:-1]), last]
        found, before = [], list(so_far)
        for token in ids[:-1]:
            found.append(await self._scored(ask, server, body, before, token))
            before.append(token)
        return [*found, last]

    async def _scored(self, ask: Ask, server: _Server, body: dict[str, Any], before: list[int], token: int) -> Token:
        """One token's log-probability after others, by asking for the next one."""
        body = {**body, "prompt": before, "n_predict": 1, "stream": False, "n_probs": EXACT_TOP}
        for key in ("json_schema", "logit_bias"):
            body.pop(key, None)
        told = (await server.remote.json("POST", "/completion", body))["completion_probabilities"][0]
        by_id = {int(entry["id"]): entry["logprob"] for entry in told["top_logprobs"]}
        num_top = ask.sampling.num_top_logprobs or 0
        top = tuple((int(entry["id"]), entry["logprob"]) for entry in told["top_logprobs"][:num_top])
        return Token(token, by_id[token], top)

    def _body(self, ask: Ask, scales: list[dict[str, Any]]) -> dict[str, Any]:
        own = ask.sampling
        body: dict[str, Any] = {
            "prompt": list(ask.prompt_ids),
            "n_predict": own.max_new_tokens,
            "temperature": own.temperature,
            "top_p": own.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "typical_p": 1.0,
            "repeat_penalty": 1.0,
            "samplers": ["temperature", "top_p"],
            "cache_prompt": True,
            "stream": True,
            "return_tokens": True,
            "lora": scales,
        }
        if own.seed is not None:
            body["seed"] = own.seed % (1 << 32)
        if own.logit_bias:
            body["logit_bias"] = [[token, bias] for token, bias in own.logit_bias]
        if own.num_top_logprobs is not None:
            body["n_probs"] = max(1, own.num_top_logprobs)
        if own.schema is not None:
            body["json_schema"] = json.loads(own.schema)
        return body

    def stats(self) -> dict[str, float]:
        """As Engine.stats."""
        return self.counters.stats()

    async def close(self) -> None:
        """As Engine.close."""
        servers = [*self._old.values(), *([self.server] if self.server else [])]
        for task in self._old:
            task.cancel()
        self.server = None
        for server in servers:
            await server.remote.close()
            await server.process.stop()


def _token(token: int, event: dict[str, Any], num_top: int | None) -> Token:
    if num_top is None:
        return Token(token)
    told = event["completion_probabilities"][-1]
    if int(told["id"]) != token:
        raise ModelError(f"llama-server told the probability of token {told['id']} for {token}")
    top = tuple((int(entry["id"]), entry["logprob"]) for entry in told["top_logprobs"][:num_top])
    return Token(token, told["logprob"], top)


async def _is_up(remote: Remote) -> bool:
    return bool((await remote.json("GET", "/health")).get("status") == "ok")


async def start_llamacpp(
    base: Base,
    base_gguf: Path,
    adapters: dict[str, Path],
    stop_ids: Sequence[int],
    *,
    convert: Convert,
    detokenise: Callable[[Sequence[int]], str],
    device: Device,
    log_file: Path,
    max_rows: int = 8,
    queue_len: int = 64,
) -> LlamaCppEngine:
    """A llama-server with this base and these adapters (folders in PEFT's form, by name).

    Each row has a context of its own; there are as many rows as memory holds. Raises: MissingDependency, BadInput,
    EngineDown with its last words.
    """
    shape = shape_of(base.model, base.folder)
    num_tokens = device.memory_bytes // KV_FRAC // max(1, kv_bytes_per_token(shape))
    context_tokens = min(base.context_tokens or shape.context_tokens, num_tokens)
    max_rows = max(1, min(max_rows, num_tokens // context_tokens))
    engine = LlamaCppEngine(
        base_gguf,
        convert,
        stop_ids,
        context_tokens,
        detokenise,
        log_file=log_file,
        max_rows=max_rows,
        queue_len=queue_len,
        num_threads=device.num_threads,
    )
    await engine.load_all(adapters)
    return engine
