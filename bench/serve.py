"""How fast the embedded engine answers many clients over many adapters, beside three other ways on the same machine.

    python -m bench.serve [--model shoestring-3m|random-100m] [--http] [--json]

8 clients over 4 adapters (random LoRA, rank 16, every linear layer), one request at a time each: 300 shared tokens, 20
of its own, 48 new ones, greedy, end tokens ignored. The others: transformers + PEFT `generate`, one request at a time
with set_adapter (sequential), `generate` over a batch of 8 with adapter_names (generate_batch), and llama-server where
it is found (bf16 weights, 8 slots, explicit scales for every adapter, prompt cache on; its rounds and the engine's by
turns). All in one thread; on Linux in an otherwise idle core: `chrt -r 1 taskset -c 1 python -m bench.serve`.

ratio_vs_*: new tokens a second of the engine over theirs, medians of the rounds, answers not streamed. first_token_s,
per_token_s: percentiles over clients of the engine, streamed. single_stream: one client, one adapter. largest_gap: of
the engine's greedy tokens, how far the logit lies below the largest in transformers + PEFT, over the latter (0: the
same token, or an exact tie). adapters: bytes of 32 more adapters, what the process grew by, and by how much more as all
of them answered at once. --http: through the gateway besides.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import json
import os
import random
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import machine, versions
from bench.clock import memory_bytes
from shoestring.errors import ShoestringError
from shoestring.records import Device

NUM_CLIENTS, NUM_ADAPTERS, NUM_MORE_ADAPTERS = 8, 4, 32
SHARED_TOKENS, OWN_TOKENS, NEW_TOKENS = 300, 20, 48
RANK, STD_OF_B = 16, 0.02
FIRST_ID = 6  # special tokens come first in the family's vocabulary
PERCENTILES = (50, 90, 99)
START_S = 120


class Work:
    """The model, its adapters and the prompts of all rounds."""

    def __init__(self, model: str, folder: Path, *, num_adapters: int, new_tokens: int, dtype: str) -> None:
        self.folder, self.new_tokens = folder, new_tokens
        self.device = Device("cpu", "bench", 8 << 30, 1, dtype, "one thread")
        self.model = str(random_llama(folder / "base")) if model == "random-100m" else model
        self.adapters = make_adapters(self, num_adapters)
        rng = random.Random(0)
        self.num_ids = 4096
        self.shared = [rng.randrange(FIRST_ID, self.num_ids) for _ in range(SHARED_TOKENS)]
        self.rng = rng

    def prompts(self, num: int) -> list[list[int]]:
        """Prompts that have the shared tokens first and others each time."""
        return [
            self.shared + [self.rng.randrange(FIRST_ID, self.num_ids) for _ in range(OWN_TOKENS)] for _ in range(num)
        ]

    def names(self) -> list[str]:
        """The adapter of each client."""
        return [self.adapters[client % NUM_ADAPTERS].name for client in range(NUM_CLIENTS)]


def random_llama(folder: Path) -> Path:
    """A Llama of 88 M parameters with shoestring-3m's tokenizer, random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from shoestring.train.base import load_tokenizer

    tokenizer = load_tokenizer("shoestring-3m")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12,
        intermediate_size=2048, max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapters(work: Work, num: int) -> list[Path]:
    """LoRA over every linear layer, with B at random, so that each answers otherwise."""
    import torch
    from peft import LoraConfig, get_peft_model

    from shoestring.train.base import load_base, quiet_loading

    base = load_base(work.model, device=Device("cpu", "bench", 8 << 30, 1, "float32", ""))
    folders = []
    for number in range(num):
        torch.manual_seed(number)
        with quiet_loading():
            tuned = get_peft_model(
                base, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
            )
            for name, parameter in tuned.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=STD_OF_B)
            folders.append(work.folder / f"tuned-{number}")
            tuned.save_pretrained(folders[-1])
            base = tuned.unload()
    return folders


# ---- the engine ----


async def measure_engine(work: Work, rounds: int, num_more: int, other: Callable[[], float] | None) -> dict[str, Any]:
    """Throughput, percentiles and single stream; the answers, for comparison; memory of more adapters.

    other: measured after each round of ours.
    """
    from shoestring.serve.engines.embedded import open_embedded

    engine = await open_embedded(work.model, device=work.device, max_rows=NUM_CLIENTS)
    try:
        for folder in work.adapters[:NUM_ADAPTERS]:
            await engine.load(folder.name, folder)
        engine.loop.stop_ids = frozenset()
        names = work.names()
        warm = work.prompts(NUM_CLIENTS)
        kept = await asyncio.gather(*(timed(engine, names[i], warm[i], work.new_tokens) for i in range(NUM_CLIENTS)))
        rates, others, answers = [], [], []
        for number in range(2 * rounds):
            is_streamed = number % 2 == 1
            prompts = [work.prompts(2) for _ in range(NUM_CLIENTS)]

            async def client(number: int, own: list[list[int]], is_streamed: bool) -> list[dict[str, Any]]:
                return [await timed(engine, names[number], prompt, work.new_tokens, is_streamed) for prompt in own]

            began = time.perf_counter()
            done = await asyncio.gather(*(client(i, own, is_streamed) for i, own in enumerate(prompts)))
            if is_streamed:
                answers += [answer for own in done for answer in own]
                continue
            rates.append(2 * NUM_CLIENTS * work.new_tokens / (time.perf_counter() - began))
            if other is not None:
                others.append(await asyncio.to_thread(other))
        single = [await timed(engine, names[0], prompt, work.new_tokens) for prompt in work.prompts(3)]
        return {
            "tokens_per_s": statistics.median(rates),
            "others": others,
            "first_token_s": percentiles([a["first_s"] for a in answers]),
            "per_token_s": percentiles([gap for a in answers for gap in a["gaps_s"]]),
            "single_stream_tokens_per_s": statistics.median(work.new_tokens / a["wall_s"] for a in single),
            "cached_frac": engine.stats()["num_cached_tokens"] / engine.stats()["num_prompt_tokens"],
            "route": engine.route,
            "answers": [(names[i], warm[i], kept[i]["tokens"]) for i in range(NUM_CLIENTS)],
            "adapters": await memory_of_adapters(engine, work, num_more),
        }
    finally:
        await engine.close()


async def timed(
    engine: Any, adapter: str, prompt: Sequence[int], new_tokens: int, is_streamed: bool = True
) -> dict[str, Any]:
    """One request."""
    from shoestring.serve.engine import Ask, Sampling

    began = last = time.perf_counter()
    tokens: list[int] = []
    first_s, gaps_s = 0.0, []
    async for piece in engine.generate(Ask("bench", adapter, tuple(prompt), Sampling(new_tokens), is_streamed)):
        now = time.perf_counter()
        if tokens:
            gaps_s.append(now - last)
        else:
            first_s = now - began
        tokens += [token.id for token in piece.tokens]
        last = now
    return {"tokens": tokens, "first_s": first_s, "gaps_s": gaps_s, "wall_s": last - began}


async def memory_of_adapters(engine: Any, work: Work, num: int) -> dict[str, Any] | None:
    """What the process grows by with so many adapters more, and then as all answer at once (slots, prompts kept)."""
    if not num:
        return None
    folders = work.adapters[NUM_ADAPTERS : NUM_ADAPTERS + num]
    settle()
    before, held = memory_bytes("VmRSS"), engine.stats()["adapter_bytes"]
    for folder in folders:
        await engine.load(folder.name, folder)
    settle()
    loaded, added = memory_bytes("VmRSS"), engine.stats()["adapter_bytes"] - held
    prompt = work.prompts(1)[0][:32]
    await asyncio.gather(*(timed(engine, folder.name, prompt, 4) for folder in folders))
    settle()
    after = memory_bytes("VmRSS")
    if before is None or loaded is None or after is None:
        return {"num": len(folders), "bytes": added, "grown_bytes": None, "grown_answering_bytes": None}
    return {
        "num": len(folders), "bytes": added, "grown_bytes": loaded - before, "grown_answering_bytes": after - loaded,
    }  # fmt: skip


def settle() -> None:
    """Give back what the allocator keeps."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"p{p}": cuts[p - 1] for p in PERCENTILES}


# ---- transformers + PEFT ----


def measure_peft(work: Work, rounds: int, answers: Sequence[tuple[str, list[int], list[int]]]) -> dict[str, Any]:
    """generate, one request at a time and over mixed batches, and how far the engine's tokens lie from its logits."""
    import torch
    from peft import PeftModel

    from shoestring.train.base import load_base, quiet_loading

    base = load_base(work.model, device=work.device)
    with quiet_loading():
        tuned = PeftModel.from_pretrained(base, str(work.adapters[0]), adapter_name=work.adapters[0].name)
        for folder in work.adapters[1:NUM_ADAPTERS]:
            tuned.load_adapter(str(folder), adapter_name=folder.name)
    tuned.eval()
    names = work.names()
    options = {
        "do_sample": False, "max_new_tokens": work.new_tokens, "min_new_tokens": work.new_tokens, "pad_token_id": 0,
    }  # fmt: skip

    def generate(prompts: list[list[int]], **more: Any) -> Any:
        ids = torch.tensor(prompts)
        return tuned.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options, **more)

    def one_by_one(prompts: list[list[int]]) -> None:
        for name, prompt in zip(names, prompts, strict=True):
            tuned.set_adapter(name)
            generate([prompt])

    def batch(prompts: list[list[int]]) -> None:
        generate(prompts, adapter_names=names)

    found: dict[str, Any] = {}
    with quiet_loading(), torch.inference_mode():
        for key, way in (("sequential", one_by_one), ("generate_batch", batch)):
            way(work.prompts(NUM_CLIENTS))
            rates = []
            for _ in range(rounds):
                prompts = work.prompts(NUM_CLIENTS)
                began = time.perf_counter()
                way(prompts)
                rates.append(NUM_CLIENTS * work.new_tokens / (time.perf_counter() - began))
            found[key] = statistics.median(rates)
        tuned.set_adapter(names[0])
        began = time.perf_counter()
        generate(work.prompts(1))
        found["single_stream"] = work.new_tokens / (time.perf_counter() - began)
        found["largest_gap"] = max(gap(tuned, *answer) for answer in answers)
    return found


def gap(tuned: Any, name: str, prompt: list[int], tokens: list[int]) -> float:
    """How far below the largest logit, over it, the tokens lie at most in the model's own pass."""
    import torch

    tuned.set_adapter(name)
    logits = tuned(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    largest = logits.max(-1).values
    return float(((largest - chosen) / largest.abs()).max())


# ---- llama-server ----


class LlamaServer:
    """The same load on llama-server with one thread. Raises: ShoestringError where it is not there."""

    def __init__(self, work: Work, stack: contextlib.ExitStack) -> None:
        from shoestring.serve.gguf import base_folder, write_adapter, write_model
        from shoestring.serve.llamacpp_home import converter

        home = converter()
        source = base_folder(work.model, work.folder / "gguf-base")
        write_model(source, work.folder / "base.gguf", "bf16", home)
        self.work, self.names = work, [folder.name for folder in work.adapters[:NUM_ADAPTERS]]
        for name in self.names:
            write_adapter(work.folder / name, source, work.folder / f"{name}.gguf", home)
        command = [str(home.server), "-m", str(work.folder / "base.gguf"), "-t", "1", "-tb", "1"]
        command += ["-np", str(NUM_CLIENTS), "-c", str(NUM_CLIENTS * 512), "--host", "127.0.0.1", "--no-webui"]
        command += ["--lora", ",".join(str(work.folder / f"{name}.gguf") for name in self.names)]
        self.url = stack.enter_context(serving(command))
        self.pool = stack.enter_context(ThreadPoolExecutor(NUM_CLIENTS))
        self.round()

    def ask(self, client: int, prompts: list[list[int]]) -> None:
        """One client's requests, one after the other."""
        own = self.work.names()[client]
        scales = [{"id": i, "scale": float(name == own)} for i, name in enumerate(self.names)]
        for prompt in prompts:
            body = {"prompt": prompt, "n_predict": self.work.new_tokens, "temperature": 0, "cache_prompt": True}
            told = post(f"{self.url}/completion", {**body, "ignore_eos": True, "lora": scales, "id_slot": client})
            if told["tokens_predicted"] != self.work.new_tokens:
                raise ShoestringError(f"llama-server gave {told['tokens_predicted']} of {self.work.new_tokens} tokens")

    def round(self) -> float:
        """Tokens a second of all clients."""
        prompts = [self.work.prompts(2) for _ in range(NUM_CLIENTS)]
        began = time.perf_counter()
        list(self.pool.map(self.ask, range(NUM_CLIENTS), prompts))
        return NUM_CLIENTS * 2 * self.work.new_tokens / (time.perf_counter() - began)

    def single(self) -> float:
        """Tokens a second of one client alone."""
        began = time.perf_counter()
        self.ask(0, self.work.prompts(3))
        return 3 * self.work.new_tokens / (time.perf_counter() - began)


def measure_http(work: Work, rounds: int) -> dict[str, Any]:
    """The same load through the gateway, in this process: /v1/completions with token ids, not streamed."""
    from shoestring.serve.engines.embedded import open_embedded
    from tests.served import running
    from tests.served_runs import make_run

    runs_dir = work.folder / "runs"
    names = [folder.name for folder in work.adapters[:NUM_ADAPTERS]]
    for name in names:
        make_run(runs_dir, name, work.model, made=work.folder / name)

    async def open_engine() -> Any:
        engine = await open_embedded(work.model, device=work.device, max_rows=NUM_CLIENTS)
        engine.loop.stop_ids = frozenset()
        return engine

    with running(runs_dir, work.model, open_engine, tuple(names)) as server, ThreadPoolExecutor(NUM_CLIENTS) as pool:

        def ask(client: int, prompts: list[list[int]]) -> None:
            for prompt in prompts:
                body = {"model": names[client % NUM_ADAPTERS], "prompt": prompt, "max_tokens": work.new_tokens}
                told = post(f"{server.base_url}/completions", body, server.key)
                if told["usage"]["completion_tokens"] != work.new_tokens:
                    raise ShoestringError(f"the gateway gave {told['usage']}, not {work.new_tokens} tokens")

        rates = []
        for number in range(rounds + 1):
            prompts = [work.prompts(2) for _ in range(NUM_CLIENTS)]
            began = time.perf_counter()
            list(pool.map(ask, range(NUM_CLIENTS), prompts))
            if number:
                rates.append(NUM_CLIENTS * 2 * work.new_tokens / (time.perf_counter() - began))
    return {"tokens_per_s": statistics.median(rates)}


@contextlib.contextmanager
def serving(command: list[str]) -> Iterator[str]:
    """A llama-server until the end of the block; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=1):
                    break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ShoestringError(f"llama-server does not answer: {error}; exit {process.poll()}") from error
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def post(url: str, body: dict[str, Any], key: str = "") -> dict[str, Any]:
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as told:
        return dict(json.load(told))


# ---- all of it ----


def run(
    model: str, *, rounds: int, new_tokens: int, num_more: int, dtype: str, with_llama: bool, with_http: bool
) -> dict[str, Any]:
    """One comparison; ratios are None where the other is not there."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Work(model, Path(folder), num_adapters=NUM_ADAPTERS + num_more, new_tokens=new_tokens, dtype=dtype)
        llama: dict[str, Any] = {"reason": "not asked for"}
        with contextlib.ExitStack() as stack:
            server = None
            if with_llama:
                try:
                    server = LlamaServer(work, stack)
                except ShoestringError as error:
                    llama = {"reason": str(error)}
            engine = asyncio.run(measure_engine(work, rounds, num_more, server.round if server else None))
            others = engine.pop("others")
            if server is not None:
                llama = {"tokens_per_s": statistics.median(others), "single_stream": server.single()}
        theirs = measure_peft(work, rounds, engine.pop("answers"))
        ours, other = engine["tokens_per_s"], llama.get("tokens_per_s")
        return {
            "model": model,
            "dtype": dtype,
            "num_clients": NUM_CLIENTS,
            "num_adapters": NUM_ADAPTERS,
            "new_tokens": new_tokens,
            "ratio_vs_sequential": ours / theirs["sequential"],
            "ratio_vs_generate_batch": ours / theirs["generate_batch"],
            "ratio_vs_llama_server": None if other is None else ours / other,
            "engine": engine,
            "peft_tokens_per_s": theirs,
            "llama_server": llama,
            "http": measure_http(work, rounds) if with_http else None,
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shoestring-3m", help="of the embedded family, a folder, or random-100m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    parser.add_argument("--dtype", default="", help="default: what this CPU multiplies in hardware")
    parser.add_argument("--http", action="store_true", help="through the gateway besides")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = run(
        given.model, rounds=given.rounds, new_tokens=given.new_tokens, num_more=NUM_MORE_ADAPTERS,
        dtype=given.dtype or machine()["dtype"], with_llama=True, with_http=given.http,
    )  # fmt: skip
    found |= {"machine": machine(), "versions": versions(), "affinity": sorted(os.sched_getaffinity(0))}
    if given.json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        print(f"{key}: {json.dumps(value)}")


if __name__ == "__main__":
    main()
