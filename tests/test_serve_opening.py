"""From run folders to a registry that answers."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from served_runs import CPU, make_run

from shoestring.errors import BadInput, ModelError
from shoestring.messages import Example, Message
from shoestring.runfolder import RunFolder
from shoestring.serve.engine import BASE, Ask, Sampling
from shoestring.serve.engines.vllm_settings import VARIABLE
from shoestring.serve.gguf_kept import adapter_file, tidy
from shoestring.serve.opening import by_merged_weights, engine_named, open_registry, preflight, probe_prompts
from shoestring.serve.registry import Registry, read_run
from shoestring.train.base import load_tokenizer

STAND_IN = Path(__file__).with_name("stand_in_vllm.py")
MODEL = "shoestring-1m"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder, "tickets", seed=1)
    make_run(folder, "orders", seed=2, use_rslora=True)
    make_run(folder, "dora", seed=3, use_dora=True)
    return folder


async def greedy(registry: Registry, adapter: str, prompt: list[int], num: int = 12) -> list[int]:
    pieces = [p async for p in registry.engine.generate(Ask("a", adapter, tuple(prompt), Sampling(num)))]
    return [token.id for piece in pieces for token in piece.tokens]


def by_peft(run: Path | None, prompt: list[int], num: int = 12) -> list[int]:
    """The same by transformers and PEFT."""
    from shoestring.evaluate.generation import decode_greedy
    from shoestring.evaluate.generation.local import load_generator

    adapter = next(run.glob("rungs/*/adapter")) if run else None
    own = load_generator(MODEL, adapter, device=CPU, max_new_tokens=num)
    answers = decode_greedy(
        own.model, [prompt], stop_ids=own.stop_ids, pad_id=own.tokenizer.pad_token_id, max_new_tokens=num
    )
    return [token for token in answers[0][0] if token not in own.stop_ids]


def test_engines_by_name() -> None:
    assert engine_named("auto") == "embedded" and engine_named("auto", "http://x") == "vllm"
    with pytest.raises(BadInput, match="no engine 'tgi'"):
        engine_named("tgi")
    with pytest.raises(BadInput, match="--engine-url is of vllm"):
        engine_named("llamacpp", "http://x")


def test_what_an_engine_may_not_have_is_refused_before_any_is_loaded(runs: Path) -> None:
    own = [read_run(runs / name) for name in ("tickets", "dora")]
    _, lines = preflight(own, "vllm")
    assert [line.verdict.decision for line in lines] == ["serve", "merge first"]
    with pytest.raises(BadInput, match="dora: merge first: embedded does not serve DoRA"):
        asyncio.run(open_registry(own, runs_dir=runs, device=CPU))


def test_a_run_that_must_be_merged_first_answers_by_its_merged_weights(runs: Path, tmp_path: Path) -> None:
    from shoestring.serve.merge import merge_adapter

    folder = tmp_path / "dora"
    shutil.copytree(runs / "dora", folder)
    place = next(folder.glob("rungs/*/adapter"))
    row = Example((Message("user", "Where is it?"), Message("assistant", "Here.")), (1, 2), source="a", line=1)
    merge_adapter(MODEL, place, folder / "export" / "merged", device=CPU, examples=[row])
    told = {
        "adapter_dir": str(place.relative_to(folder)),
        "merged_dir": "export/merged",
        "merge_check": {"passed": True},
    }
    RunFolder(folder).finish("export.json", "0" * 16, told, 1.0)
    own = by_merged_weights([read_run(folder)], "embedded")
    assert own[0].adapter is None and "merged weights" in own[0].notes[-1]
    tickets = read_run(runs / "tickets")
    assert by_merged_weights([tickets], "embedded") == [tickets], "this one needs none"

    async def work() -> None:
        registry = await open_registry(own, runs_dir=tmp_path, device=CPU)
        try:
            assert registry.base_name == "dora" and not registry.models
            prompt = probe_prompts(MODEL)[0]
            assert await greedy(registry, BASE, prompt) == by_peft(runs / "dora", prompt)
        finally:
            await registry.engine.close()

    asyncio.run(work())


def test_the_embedded_engine_answers_as_peft(runs: Path) -> None:
    async def work() -> None:
        registry = await open_registry([read_run(runs / n) for n in ("tickets", "orders")], runs_dir=runs, device=CPU)
        try:
            prompt = probe_prompts(MODEL)[0]
            assert registry.base_name == MODEL and set(registry.models) == {"tickets", "orders"}
            for name, run in ((BASE, None), ("tickets", runs / "tickets"), ("orders", runs / "orders")):
                assert await greedy(registry, name, prompt) == by_peft(run, prompt), name
        finally:
            await registry.engine.close()

    asyncio.run(work())


def test_vllm_is_proven_or_refused_with_the_fix(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{sys.executable} {STAND_IN}")
    own, said = [read_run(runs / "tickets")], []
    monkeypatch.setenv("STAND_IN_FAULT", "last_slot")
    with pytest.raises(ModelError, match=r"install vLLM 0\.33 or newer, or serve with --engine embedded"):
        asyncio.run(open_registry(own, runs_dir=runs, device=CPU, engine="vllm"))
    monkeypatch.setenv("STAND_IN_FAULT", "")

    async def work() -> None:
        registry = await open_registry(own, runs_dir=runs, device=CPU, engine="vllm", log=said.append)
        try:
            assert registry.listing()[1]["id"] == "tickets"
            assert list(registry.engine.names) == ["tickets"], "what filled the slots is gone"  # type: ignore[attr-defined]
        finally:
            await registry.engine.close()

    asyncio.run(work())
    assert "answered in one batch as alone" in said[-1]


def test_an_adapter_that_shows_the_fault_while_serving_is_taken_back(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"{sys.executable} {STAND_IN}")
    monkeypatch.setenv("STAND_IN_FAULT", "last_slot")

    async def work() -> None:
        registry = await open_registry([], model=MODEL, runs_dir=runs, device=CPU, engine="vllm")
        try:
            with pytest.raises(ModelError, match="answers the base otherwise"):
                await registry.add_named("tickets")
            assert not registry.models and not len(registry.engine.names)  # type: ignore[attr-defined]
        finally:
            await registry.engine.close()

    asyncio.run(work())


def test_the_adapter_before_goes_on_where_its_reload_shows_the_fault(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"{sys.executable} {STAND_IN}")
    monkeypatch.setenv("STAND_IN_FAULT", "last_slot:2")
    shutil.copytree(runs / "tickets", tmp_path / "tickets")

    async def work() -> None:
        own = [read_run(tmp_path / "tickets")]
        registry = await open_registry(own, runs_dir=tmp_path, device=CPU, engine="vllm")
        names = registry.engine.names  # type: ignore[attr-defined]
        try:
            before, inner = await greedy(registry, "tickets", [9]), names.get("tickets")
            with pytest.raises(ModelError, match=r"otherwise .* The tickets that was loaded before goes on answering"):
                await registry.add_named("tickets")
            assert list(names) == ["tickets"] == list(registry.models) and names.get("tickets") == inner
            assert await greedy(registry, "tickets", [9]) == before
        finally:
            await registry.engine.close()

    asyncio.run(work())


async def refuses(trial: str) -> None:
    raise ModelError(f"{trial} answers otherwise")


async def characters_of_several_tokens(registry: Registry, prompt: list[int]) -> None:
    """llama-server tells the last token of such a character alone."""
    text = "日本 \N{SLIGHTLY SMILING FACE}"
    sampling = Sampling(40, schema=json.dumps({"enum": [text]}), num_top_logprobs=1)
    pieces = [p async for p in registry.engine.generate(Ask("a", "tickets", tuple(prompt), sampling))]
    tokens = [token for piece in pieces for token in piece.tokens]
    assert json.loads(load_tokenizer(MODEL).decode([token.id for token in tokens])) == text
    assert len(tokens) > 2 * len(text), "bytes"
    assert all(token.logprob is not None and token.logprob <= 0 for token in tokens)


def test_gguf_files_go_with_what_they_are_of(runs: Path, tmp_path: Path) -> None:
    for name in ("tickets", "orders"):
        shutil.copytree(runs / name, tmp_path / "runs" / name)
    kept = tmp_path / "runs" / ".serving" / "gguf"
    made, other = kept / "ours", kept / "theirs"
    made.mkdir(parents=True)
    other.mkdir()
    served, waiting = (read_run(tmp_path / "runs" / name).folder for name in ("tickets", "orders"))
    gone, fresh = (f"{digit * 16}-{digit * 8}.gguf" for digit in "ab")
    stay = [adapter_file(made, served), adapter_file(made, waiting), made / fresh, made / "base-1-f32.gguf"]
    go = [made / gone, other / gone, made / f".{gone}.partial", kept.parent / "llama-server-3.log"]
    for file in (*stay, *go, other / "base-2-bf16.gguf"):
        file.write_text("GGUF")
        if file.name != fresh:
            os.utime(file, (1, 1))
    said: list[str] = []
    tidy(kept, made, tmp_path / "runs", [served], said.append)
    assert all(file.exists() for file in stay) and not any(file.exists() for file in go)
    assert stay[0].stat().st_mtime > 1, "marked as used"
    assert said[0].startswith("Removed 2 GGUF files") and "other bases take" in said[1] and len(said) == 2


HAS_LLAMACPP = bool(os.environ.get("SHOESTRING_LLAMACPP")) or (Path(sys.prefix) / "llamacpp").is_dir()


@pytest.mark.skipif(not HAS_LLAMACPP, reason="llama.cpp is not built (scripts/build_llamacpp.py)")
def test_llamacpp_answers_as_peft_and_takes_adapters_while_it_serves(runs: Path, tmp_path: Path) -> None:
    for name in ("tickets", "orders"):
        shutil.copytree(runs / name, tmp_path / name)

    async def work() -> None:
        registry = await open_registry(
            [read_run(tmp_path / "tickets")], runs_dir=tmp_path, device=CPU, engine="llamacpp"
        )
        try:
            prompts = probe_prompts(MODEL)
            started = registry.engine.server.process.process.pid  # type: ignore[attr-defined]
            running = asyncio.create_task(greedy(registry, "tickets", prompts[0], 60))
            await registry.add_named("orders")
            assert registry.engine.server.process.process.pid != started, "another server took over"  # type: ignore[attr-defined]
            assert await running == by_peft(tmp_path / "tickets", prompts[0], 60), "and the old one finished"
            asked = [(name, prompt) for prompt in prompts for name in (BASE, "tickets", "orders")]
            found = await asyncio.gather(*(greedy(registry, *each) for each in asked))
            for (name, prompt), ids in zip(asked, found, strict=True):
                assert ids == by_peft(tmp_path / name if name else None, prompt), name
            await characters_of_several_tokens(registry, prompts[0])
            other = read_run(tmp_path / "orders").folder
            with pytest.raises(ModelError, match="answers otherwise"):
                await registry.engine.load("tickets", other, refuses)  # type: ignore[call-arg]
            assert await greedy(registry, "tickets", prompts[0]) == by_peft(tmp_path / "tickets", prompts[0])
            await registry.load("tickets", other)
            assert await greedy(registry, "tickets", prompts[0]) == by_peft(tmp_path / "orders", prompts[0])
            assert await greedy(registry, BASE, prompts[0]) == by_peft(None, prompts[0])
            await asyncio.gather(*registry.engine._old)  # type: ignore[attr-defined]
            assert len(list((tmp_path / ".serving").glob("llama-server-*.log*"))) == 1, "of the one that runs"
        finally:
            await registry.engine.close()

    asyncio.run(work())
