"""From run folders to a registry that answers: one base, an engine, every adapter checked, loaded and proven.

Engines: embedded (in this process), vllm (its own environment, a container, or a URL), llamacpp (llama-server).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInput, ModelError
from ..messages import Message
from ..records import Device, Log, no_log
from ..train.base import encode_prompt, load_tokenizer, stop_token_ids
from .adapters import MERGE, SERVE, Base, read_base
from .engine import Capability, Engine
from .engines import parity
from .engines.llamacpp import CAPABILITY as LLAMACPP
from .engines.llamacpp import LlamaCppEngine, start_llamacpp
from .engines.vllm import CAPABILITY as VLLM
from .engines.vllm import VllmEngine, reach_vllm, start_vllm
from .gguf import base_folder, require_kind, write_adapter, write_model
from .gguf_kept import adapter_file, tidy
from .llamacpp_home import converter
from .registry import Line, Registry, Served, as_merged, check, one_base, refusal

ENGINES = ("auto", "embedded", "vllm", "llamacpp")
# What the parity check asks; of a chat, so that adapters of chats answer as they were trained to.
ASKED = ("What can you do for me?", "My order 4711 has not arrived, and I want my money back.")
STATE = ".serving"  # of a runs folder: the server's own
UPGRADE = "vLLM before 0.33 does so on CPUs (vllm#48421): install vLLM 0.33 or newer, or serve with --engine embedded"


def engine_named(engine: str, url: str = "") -> str:
    """The engine meant by a name; auto is the one in this process, and vLLM where an address is given.

    Raises: BadInput.
    """
    if engine not in ENGINES:
        raise BadInput(f"there is no engine {engine!r}; choose one of {', '.join(ENGINES)}")
    if url and engine not in ("auto", "vllm"):
        raise BadInput(f"--engine-url is of vllm, and {engine} was asked for; leave one out")
    if engine == "auto":
        return "vllm" if url else "embedded"
    return engine


def capability_of(engine: str, runs: Sequence[Served]) -> Capability:
    """What an engine will be able to do, before it is started for these runs."""
    if engine == "vllm":
        return VLLM
    if engine == "llamacpp":
        return LLAMACPP
    on_nf4 = any(run.method == "qlora" for run in runs)
    return Capability("embedded", mixes_adapters=True, patterns=True, quantised_base=on_nf4)


def preflight(runs: Sequence[Served], engine: str, url: str = "") -> tuple[Base, list[Line]]:
    """The base these runs share, and what the engine does with each; nothing is loaded.

    Raises: BadInput, ModelError.
    """
    base = one_base(runs)
    return base, check(runs, base, capability_of(engine_named(engine, url), runs))


def by_merged_weights(runs: Sequence[Served], engine: str, url: str = "") -> list[Served]:
    """The runs as they are; a single one that must be merged first, and is, as that whole model, by its own name.

    Raises: BadInput, ModelError.
    """
    if len(runs) == 1 and runs[0].merged is not None:
        _, lines = preflight(runs, engine, url)
        if lines[0].verdict.decision == MERGE:
            return [as_merged(runs[0])]
    return list(runs)


async def open_registry(
    runs: Sequence[Served],
    *,
    runs_dir: Path,
    device: Device,
    model: str = "",
    engine: str = "auto",
    url: str = "",
    url_key: str = "",
    max_rows: int | None = None,
    queue_len: int | None = None,
    log: Log = no_log,
) -> Registry:
    """The models of a server, ready to answer. model: the base, where there is no run.

    Raises: BadInput with every verdict that is not "serve", ModelError, EngineDown, MissingDependency.
    """
    kind = engine_named(engine, url)
    if runs:
        base, lines = preflight(runs, kind, url)
        if refused := [refusal(line) for line in lines if line.verdict.decision != SERVE]:
            raise BadInput("\n".join(refused))
    else:
        base = read_base(model)
    whole = next((run for run in runs if run.adapter is None), None)
    adapters = {run.name: run for run in runs if run.adapter is not None}
    method = next((run.method for run in adapters.values()), "lora")
    limits: dict[str, Any] = {k: v for k, v in (("max_rows", max_rows), ("queue_len", queue_len)) if v is not None}
    opened: Engine
    if kind == "embedded":
        from .engines.embedded import open_embedded

        opened = await open_embedded(base.model, device=device, method=method, **limits)
    else:
        stop_ids = stop_ids_of(base)
        if kind == "llamacpp":
            opened = await _open_llamacpp(base, adapters, stop_ids, device, Path(runs_dir), limits, log)
        elif url:
            opened = await reach_vllm(url, base, stop_ids, key=url_key, **limits)
        else:
            log("vLLM starts; that takes half a minute on a CPU, and minutes with compilation")
            read = [run.adapter for run in adapters.values() if run.adapter is not None]
            opened = await start_vllm(
                base, read, stop_ids, device=device, log_file=Path(runs_dir) / STATE / "vllm.log", log=log, **limits
            )
    try:
        registry = Registry(opened, base, runs_dir, name=whole.name if whole else "")
        for run in adapters.values():
            await registry.add(run)
        if isinstance(opened, (VllmEngine, LlamaCppEngine)):
            if registry.models:
                found = await prove(opened, base, {name: run.folder for name, run in registry.models.items()})
                log(told(found, len(registry.models)))
            registry.load = functools.partial(_load_proven, opened, base)
    except BaseException:
        await opened.close()
        raise
    return registry


def stop_ids_of(base: Base) -> list[int]:
    """Ids that end an answer, as the evaluation stops at: the template's, the tokenizer's, the model's own."""
    from transformers import GenerationConfig

    class OwnEnds:
        generation_config: Any = None

    with contextlib.suppress(OSError):  # the model has none of its own
        OwnEnds.generation_config = GenerationConfig.from_pretrained(str(base.folder))
    return stop_token_ids(load_tokenizer(base.model), OwnEnds)


def probe_prompts(model: str) -> list[list[int]]:
    """What the parity check asks, in token ids."""
    tokenizer = load_tokenizer(model)
    return [encode_prompt(tokenizer, (Message("user", text),)) for text in ASKED]


async def prove(engine: VllmEngine | LlamaCppEngine, base: Base, adapters: Mapping[str, Path]) -> parity.Parity:
    """Hold answers of the base and these loaded adapters, in one batch, against each alone.

    adapters: at least one, by name. Raises: ModelError with the fix.
    """
    extra: list[str] = []
    if isinstance(engine, VllmEngine) and engine.process is not None:
        extra = await engine.fill_slots(next(iter(adapters.values())))
    try:
        return await parity.check(
            engine,
            [*adapters, *extra],
            await asyncio.to_thread(probe_prompts, base.model),
            sorted(engine.stop_ids),
            at_once=engine.counters.max_rows,
        )
    except ModelError as error:
        raise ModelError(f"{error}. {UPGRADE}" if isinstance(engine, VllmEngine) else str(error)) from error
    finally:
        for name in extra:
            await engine.drop(name)


async def _load_proven(engine: VllmEngine | LlamaCppEngine, base: Base, name: str, folder: Path) -> None:
    """Load an adapter while serving; it answers by its name once it has passed."""

    async def passes(trial: str) -> None:
        await prove(engine, base, {trial: folder})

    await engine.load(name, folder, passes)


def told(found: parity.Parity, num_adapters: int) -> str:
    """What the check has shown, for the log."""
    return (
        f"Checked: {found.num_requests} requests for the base and {num_adapters} adapters answered in one batch as "
        f"alone (log-probabilities within {found.largest:.2g}; adapters change them by {found.effect:.2g} or more)"
    )


async def _open_llamacpp(
    base: Base,
    adapters: dict[str, Served],
    stop_ids: list[int],
    device: Device,
    runs_dir: Path,
    limits: dict[str, Any],
    log: Log,
) -> LlamaCppEngine:
    """A llama-server over GGUF files that are made once, in the server's state, and found again by content."""
    home, state = converter(), runs_dir / STATE
    made = state / "gguf" / base.print.weights[:16]
    kind = "f32" if device.dtype == "float32" else "bf16"
    require_kind(kind)
    whole = made / f"base-{base.print.tokenizer[:8]}-{kind}.gguf"
    work = made / "base"
    if not whole.is_file():
        log(f"The base is written as GGUF ({kind}), once")
        with _fresh(work):
            await asyncio.to_thread(lambda: write_model(base_folder(base.model, work), whole, kind, home))

    await asyncio.to_thread(tidy, made.parent, made, runs_dir, [run.folder for run in adapters.values()], log)

    def convert(folder: Path) -> Path:
        out = adapter_file(made, folder)
        if not out.is_file():
            write_adapter(folder, base.folder, out, home)
        return out

    tokenizer = load_tokenizer(base.model)
    return await start_llamacpp(
        base,
        whole,
        {name: run.folder for name, run in adapters.items()},
        stop_ids,
        convert=convert,
        detokenise=lambda ids: str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)),
        device=device,
        log_file=state / "llama-server.log",
        **limits,
    )


@contextlib.contextmanager
def _fresh(folder: Path) -> Iterator[None]:
    """A folder that does not stay."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
