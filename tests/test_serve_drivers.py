"""Servers in processes of their own behind Engine: what they are started with, asked, and refused for."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from served_runs import make_adapter

from shoestring.errors import BadInput, DoesNotFit, MissingDependency, ModelError
from shoestring.plan.shapes import shape_of
from shoestring.records import Device
from shoestring.serve.adapters import Adapter, Base, read_adapter, read_base
from shoestring.serve.engine import BASE, Ask, Busy, EngineDown, NotLoaded, Piece, Sampling, Token
from shoestring.serve.engines import parity, vllm, vllm_settings
from shoestring.serve.engines.names import Names
from shoestring.serve.engines.server import ServerProcess, bound_log, earlier

CPU = Device("cpu", "cpu", 16 << 30, 1, "float32", "for tests")
STAND_IN = Path(__file__).with_name("stand_in_vllm.py")
STOP = 5


@pytest.fixture(scope="module")
def base() -> Base:
    return read_base("shoestring-1m")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    folder = tmp_path_factory.mktemp("adapters")
    return [read_adapter(make_adapter(folder / name, "shoestring-1m", seed)) for seed, name in enumerate("ab")]


# ---- vLLM: what it is started with ----------------------------------------------------------


def test_settings_follow_the_adapters_and_the_machine(base: Base, adapters: list[Adapter]) -> None:
    own = vllm_settings.settings_for(base, adapters, CPU, max_rows=16)
    assert own.max_lora_rank == 8, "rank 4 in vLLM's list"
    assert (own.max_loras, own.max_cpu_loras) == (2, 18)
    # 16 rows of 1,024 tokens of 3 layers x 2 heads x 64 numbers, keys and values, 4 bytes: 50 MB, so the least, 1 GiB.
    assert own.kv_cache_gib == 1
    words = own.arguments()
    assert words[words.index("--generation-config") + 1] == "vllm", "the model's own top_k must not come in"
    assert vllm_settings.settings_for(base, adapters * 20, CPU, max_rows=4).max_loras == 4, "no more than rows"


def test_slots_are_held_to_a_tenth_of_the_memory(base: Base, adapters: list[Adapter]) -> None:
    slot = 2 * shape_of(base.model, base.folder).num_adapter_params(8)
    small = Device("cpu", "cpu", 50 * slot, 1, "float32", "for tests")
    assert vllm_settings.settings_for(base, adapters * 20, small, max_rows=16).max_loras == 5


def test_on_a_gpu_the_context_is_what_memory_leaves(base: Base, adapters: list[Adapter]) -> None:
    shape = shape_of(base.model, base.folder)
    # 90 % of the memory, less 16-bit weights, two slots of rank 8, and 2 GB; a token takes 3 x 2 x 64 x 2 x 2 bytes.
    taken = 2 * shape.num_params + 2 * 2 * shape.num_adapter_params(8) + 2e9
    card = Device("cuda", "card", math.ceil((taken + 700 * 1536 + 800) / 0.9), 1, "bfloat16", "for tests")
    own = vllm_settings.settings_for(base, adapters, card, max_rows=16)
    assert own.max_model_len == 700 and own.kv_cache_gib is None and "1024 do not fit" in own.reasons[0]
    with pytest.raises(DoesNotFit, match="tokens are left"):
        vllm_settings.settings_for(base, adapters, dataclasses.replace(card, memory_bytes=2 << 30), max_rows=16)


def test_the_command_is_of_an_environment_a_program_or_several_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv(vllm_settings.VARIABLE, str(tmp_path))
    assert vllm_settings.start_command() == [str(program), "serve"]
    monkeypatch.setenv(vllm_settings.VARIABLE, str(program))
    assert vllm_settings.start_command() == [str(program), "serve"]
    monkeypatch.setenv(vllm_settings.VARIABLE, f"{sys.executable} -m vllm serve")
    assert vllm_settings.start_command()[1:] == ["-m", "vllm", "serve"]
    monkeypatch.setenv(vllm_settings.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(MissingDependency, match="neither an environment"):
        vllm_settings.start_command()
    monkeypatch.delenv(vllm_settings.VARIABLE)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependency, match="python -m venv DIR"):
        vllm_settings.start_command()


# ---- vLLM: asked over HTTP, as recorded ------------------------------------------------------

Work = Callable[[vllm.VllmEngine], Awaitable[None]]


def with_engine(
    work: Work, base: Base, adapters: list[Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str = ""
) -> None:
    """Run work on an engine over the stand-in, which must be gone afterwards."""
    monkeypatch.setenv(vllm_settings.VARIABLE, f"{sys.executable} {STAND_IN}")
    monkeypatch.setenv("STAND_IN_FAULT", fault)

    async def run() -> None:
        log = tmp_path / ".serving" / "vllm.log"
        engine = await vllm.start_vllm(base, adapters, [STOP], device=CPU, log_file=log, max_rows=4, queue_len=2)
        assert engine.process is not None
        try:
            await work(engine)
        finally:
            await engine.close()
        assert engine.process.process.returncode is not None
        assert log.stat().st_mode & 0o077 == 0, "the log is its owner's alone"

    asyncio.run(run())


async def answer(engine: vllm.VllmEngine, adapter: str, prompt: list[int], sampling: Sampling) -> list[Piece]:
    return [piece async for piece in engine.generate(Ask("a", adapter, tuple(prompt), sampling))]


def test_tokens_come_back_without_the_end_token(
    base: Base, adapters: list[Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(engine: vllm.VllmEngine) -> None:
        await engine.load("tickets", adapters[0].folder)
        pieces = await answer(engine, BASE, [9, 2], Sampling(8))
        assert [t.id for p in pieces for t in p.tokens] == [100, 101] and pieces[-1].finish == "stop"
        assert pieces[-1].num_cached_tokens == 3
        pieces = await answer(engine, "tickets", [9], Sampling(2, num_top_logprobs=1))
        assert [t for p in pieces for t in p.tokens] == [
            Token(200, -0.1, ((200, -0.1),)),
            Token(201, -0.1, ((201, -0.1),)),
        ]
        assert pieces[-1].finish == "length"
        assert engine.stats()["num_prompt_tokens"] == 3 and engine.stats()["num_running"] == 0
        with pytest.raises(ModelError, match="no adapter 'other' is loaded"):
            await answer(engine, "other", [9], Sampling(2))
        with pytest.raises(BadInput, match="maximum context length is 64"):
            await answer(engine, BASE, [9] * 70, Sampling(2))
        with pytest.raises(ModelError, match="No adapter found"):
            await engine.load("orders", tmp_path)

    with_engine(work, base, adapters, tmp_path, monkeypatch)


def test_a_reload_is_a_new_adapter_and_requests_keep_theirs(
    base: Base, adapters: list[Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(engine: vllm.VllmEngine) -> None:
        await engine.load("tickets", adapters[0].folder)
        running = engine.generate(Ask("a", "tickets", (50,), Sampling(20)))
        first = await anext(running)
        assert first.tokens[0].id == 200
        reload = asyncio.create_task(engine.load("tickets", adapters[1].folder))
        while engine.names.get("tickets") == "tickets@1":
            await asyncio.sleep(0)
        new = await answer(engine, "tickets", [9], Sampling(1))
        assert new[0].tokens[0].id == 300, "the new one answers at once"
        rest = [piece async for piece in running]
        assert [t.id for p in rest for t in p.tokens] == list(range(201, 220)), "this one keeps the old to its end"
        await reload
        await engine.drop("tickets")
        with pytest.raises(ModelError, match="no adapter"):
            await answer(engine, "tickets", [9], Sampling(1))

    with_engine(work, base, adapters, tmp_path, monkeypatch)


def test_the_queue_is_bounded(
    base: Base, adapters: list[Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(engine: vllm.VllmEngine) -> None:
        tries = [asyncio.create_task(answer(engine, BASE, [9], Sampling(10))) for _ in range(8)]
        done = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(isinstance(one, Busy) for one in done) == 2, "4 rows and 2 that wait"
        assert engine.stats()["num_running"] == 0

    with_engine(work, base, adapters, tmp_path, monkeypatch)


def test_a_server_that_dies_says_its_last_words(
    base: Base, adapters: list[Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(engine: vllm.VllmEngine) -> None:
        with pytest.raises(EngineDown):
            await answer(engine, BASE, [9], Sampling(2))
        assert engine.process is not None
        await engine.process.process.wait()
        with pytest.raises(EngineDown, match=r"status 1; its last words:\n(.*\n)*.*EngineCore died: out of memory"):
            await answer(engine, BASE, [9], Sampling(2))

    with_engine(work, base, adapters, tmp_path, monkeypatch, "dies")


def test_a_server_that_cannot_start_says_why(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vllm_settings.VARIABLE, f"{sys.executable} -c \"print('no_GPU_found');exit(3)\"")
    with pytest.raises(EngineDown, match="status 3; its last words:\n  no_GPU_found"):
        asyncio.run(vllm.start_vllm(base, [], [STOP], device=CPU, log_file=tmp_path / "log"))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the child on Linux alone")
def test_the_server_ends_when_this_process_is_killed(base: Base, tmp_path: Path) -> None:
    script = f"""
import asyncio
from pathlib import Path
from test_serve_drivers import CPU, STOP
from shoestring.serve.adapters import read_base
from shoestring.serve.engines.vllm import start_vllm
async def run():
    log = Path({str(tmp_path / "log")!r})
    engine = await start_vllm(read_base("shoestring-1m"), [], [STOP], device=CPU, log_file=log)
    print(engine.process.process.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(run())
"""

    async def run() -> None:
        environment = {
            **os.environ,
            vllm_settings.VARIABLE: f"{sys.executable} {STAND_IN}",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, env=environment
        )
        assert child.stdout is not None
        server = int(await child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()
        for _ in range(600):
            if not Path(f"/proc/{server}").exists() or "State:\tZ" in Path(f"/proc/{server}/status").read_text():
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the server goes on")

    asyncio.run(run())


def test_adapters_of_a_server_elsewhere_are_those_it_was_started_with(
    base: Base, adapters: list[Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(engine: vllm.VllmEngine) -> None:
        await engine._load("tickets", adapters[0].folder)
        port = engine.remote.client.base_url.port
        key = engine.remote.client.headers["authorization"].removeprefix("Bearer ")
        far = await vllm.reach_vllm(f"http://127.0.0.1:{port}/v1", base, [STOP], key=key)
        try:
            assert (far.base_name, far.context_tokens, far.fixed) == ("base", 64, {"tickets"})
            await far.load("tickets", tmp_path)
            assert (await answer(far, "tickets", [9], Sampling(1)))[0].tokens[0].id == 200
            with pytest.raises(BadInput, match="--lora-modules orders=FOLDER"):
                await far.load("orders", tmp_path)
            with pytest.raises(ModelError, match="give its key in SHOESTRING_ENGINE_KEY"):
                await vllm.reach_vllm(f"http://127.0.0.1:{port}", base, [STOP], key="wrong")
        finally:
            await far.close()

    with_engine(work, base, adapters, tmp_path, monkeypatch)


def test_a_server_elsewhere_that_does_not_answer(base: Base) -> None:
    with pytest.raises(EngineDown, match="does not answer"):
        asyncio.run(vllm.reach_vllm("http://127.0.0.1:9", base, [STOP]))


# ---- a server's log ----


def test_a_log_is_cut_while_the_server_goes_on_writing(tmp_path: Path) -> None:
    log, go = tmp_path / "own" / "log", tmp_path / "go"
    script = (
        "import pathlib, time\nprint('one' * 5, flush=True)\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\nprint('two', flush=True)"
    )

    async def run() -> None:
        process = await ServerProcess.start("own", [sys.executable, "-c", script], log, {})
        try:
            while not log.stat().st_size:
                await asyncio.sleep(0.01)
            bound_log(log, 100)
            assert log.read_text() == "one" * 5 + "\n", "within the bound"
            bound_log(log, 4)
            assert log.read_text() == "" and earlier(log).read_text() == "one\n"
            assert earlier(log).stat().st_mode & 0o077 == 0
            go.touch()
            await process.process.wait()
            assert log.read_bytes() == b"two\n", "it goes on at the start"
            assert process.last_words() == "  one\n  two"
        finally:
            await process.stop()

    asyncio.run(run())


# ---- parity ---------------------------------------------------------------------------------


def test_the_fault_of_vllm_on_a_cpu_is_caught(
    base: Base, adapters: list[Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(engine: vllm.VllmEngine) -> None:
        for name, adapter in zip(("tickets", "orders"), adapters, strict=True):
            await engine.load(name, adapter.folder)
        with pytest.raises(ModelError, match="answers the base otherwise in a batch with other adapters than alone"):
            await parity.check(engine, ["tickets", "orders"], [[9], [8]], [STOP], at_once=6)

    with_engine(work, base, adapters, tmp_path, monkeypatch, "last_slot")


def test_a_server_that_mixes_rightly_passes(
    base: Base, adapters: list[Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(engine: vllm.VllmEngine) -> None:
        await engine.load("tickets", adapters[0].folder)
        extra = await engine.fill_slots(adapters[0].folder)
        assert len(extra) == engine.num_slots - 1 == 1, "the last slot is taken too"
        found = await parity.check(engine, ["tickets", *extra], [[9], [8]], [STOP], at_once=6)
        assert found.largest == 0 and found.effect > 0 and found.num_requests == 6 + 2 * 6, (
            "alone, and each adapter with the base at both ends"
        )
        for name in extra:
            await engine.drop(name)

    with_engine(work, base, adapters, tmp_path, monkeypatch)


def test_differences_by_hand() -> None:
    a = [Token(1, -0.5, ((1, -0.5), (2, -1.0))), Token(3, -0.2)]
    assert parity.difference(a, [Token(1, -0.75), Token(3, -0.2)]) == 0.25
    # At the first token that differs, the other's list says what it thinks of ours.
    assert parity.difference(a, [Token(2, -0.6, ((2, -0.6), (1, -0.9))), Token(9, -9.0)]) == pytest.approx(0.4)
    assert parity.difference(a, [Token(2, -0.1, ((2, -0.1), (4, -2.5)))]) == 2.0, "not listed: at least so far"


# ---- names ----------------------------------------------------------------------------------


def test_an_inner_name_is_freed_when_its_last_request_ends() -> None:
    async def run() -> None:
        names = Names()
        names.put("a", names.fresh("a"))
        with names.using("a", "base") as inner:
            assert inner == "a@1" and names.put("a", names.fresh("a")) == "a@1"
            waiting = asyncio.create_task(names.unused("a@1"))
            await asyncio.sleep(0)
            assert not waiting.done()
        await waiting
        assert names.get("a") == "a@2" and names.take("a") == "a@2" and not names.take("a")
        with pytest.raises(NotLoaded, match="'a'"):  # dropped between a request's arrival and its first step
            names.get("a")
        with names.using(BASE, "base") as inner:
            assert inner == "base"

    asyncio.run(run())
