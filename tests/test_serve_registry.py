"""What is served: which adapters an engine may have, on which base, under which name."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from served_runs import make_adapter, make_run
from tiny import make_model

from shoestring.decide.passages import BORDER, HEAD
from shoestring.errors import BadInput
from shoestring.files import read_json, write_json, write_jsonl
from shoestring.messages import Message
from shoestring.serve.adapters import MERGE, REFUSE, SERVE, read_adapter, read_base, verdict
from shoestring.serve.engine import Ask, Capability, Piece
from shoestring.serve.registry import Registry, check, check_name, find_run, one_base, read_run, refusal, run_named
from shoestring.train.prints import base_print, behaviour_print

PLAIN = Capability("plain", mixes_adapters=True, max_rank=8)
ALL = Capability(
    "all",
    mixes_adapters=True,
    dora=True,
    modules_to_save=True,
    tied_embeddings=True,
    bias=True,
    trainable_tokens=True,
    patterns=True,
)


class Recorder:
    """An engine that notes what it is told to load and drop, and answers nothing."""

    context_tokens = 64

    def __init__(self, capability: Capability = PLAIN) -> None:
        self.capability, self.loaded = capability, {}

    async def load(self, name: str, folder: Path) -> None:
        self.loaded[name] = folder

    async def drop(self, name: str) -> None:
        del self.loaded[name]

    def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        raise NotImplementedError

    def stats(self) -> dict[str, float]:
        return {}

    async def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one base and one of a tiny model of its own."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder, "tickets", seed=1, system="Be brief.")
    make_run(folder, "orders", seed=2, value=None)
    return folder


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of equal shapes, and an adapter of the first."""
    folder = tmp_path_factory.mktemp("twins")
    first = make_model(folder / "first")
    second = folder / "second"
    shutil.copytree(first, second)
    from safetensors.torch import load_file, save_file

    weights = load_file(second / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.5
    save_file(weights, second / "model.safetensors", metadata={"format": "pt"})
    return first, second


def test_a_run_says_what_it_offers(runs: Path) -> None:
    own = read_run(runs / "tickets")
    assert (own.name, own.base, own.method) == ("tickets", "shoestring-1m", "lora")
    assert own.adapter is not None and (own.adapter.rank, own.adapter.alpha) == (4, 8)
    assert "q_proj" in own.adapter.targets and not own.adapter.features
    assert own.score == {"value": 0.9, "low": 0.8, "high": 1.0} and own.meets_bar
    assert own.adapter.base == base_print("shoestring-1m"), "recorded at training"
    unscored = read_run(runs / "orders", "orders:v2")
    assert unscored.name == "orders:v2" and unscored.score is None and "not scored" in unscored.notes[0]


def test_the_runs_system_prompt_stands_before_requests_without_one(runs: Path) -> None:
    own = read_run(runs / "tickets")
    asked = (Message("user", "a"),)
    assert own.prompt(asked, len, 99) == (Message("system", "Be brief."), *asked)
    told = (Message("system", "Be long."), *asked)
    assert own.prompt(told, len, 99) == told


def test_a_run_trained_with_passages_finds_them_for_each_request(runs: Path, tmp_path: Path) -> None:
    folder = make_run(tmp_path, "manual", rung="shoestring-1m+documents")
    with pytest.raises(BadInput, match="write them with: shoestring export"):
        read_run(folder)
    beside = next(folder.glob("rungs/*/adapter"))
    texts = ("The red lamp blinks when the filter is full.", "Bring it back within thirty days.", "Water at noon.")
    facts = {"head": HEAD, "border": BORDER, "num_chunks": 2, "chunk_tokens": 16, "by": "bm25", "embeddings": ""}
    write_json(beside / "retrieval.json", facts)
    write_jsonl(beside / "passages.jsonl", [{"text": t, "source": "a.md", "number": n} for n, t in enumerate(texts, 1)])
    own = read_run(folder)
    assert (own.rung, own.base) == ("shoestring-1m+documents", "shoestring-1m")
    asked = (Message("user", "Why does the lamp blink?"),)

    def num_characters(messages: Sequence[Message]) -> int:
        return sum(len(m.content) for m in messages)

    (filled,) = own.prompt(asked, num_characters, 1000)
    assert filled.content == f"{HEAD}\n\n[1] {texts[0]}{BORDER}Why does the lamp blink?"
    assert own.prompt(asked, num_characters, 50) == asked, "no room for one"
    write_json(beside / "retrieval.json", {**facts, "head": "Passages:"})
    with pytest.raises(BadInput, match="in other words"):
        read_run(folder)


def test_a_run_whose_every_weight_is_new_is_served_alone(runs: Path, tmp_path: Path) -> None:
    import dataclasses

    own = dataclasses.replace(read_run(runs / "tickets"), name="whole", method="full", adapter=None)
    with pytest.raises(BadInput, match="whole: every weight is its own"):
        one_base([read_run(runs / "orders"), own])
    with pytest.raises(BadInput, match="serve it alone"):
        asyncio.run(Registry(Recorder(), read_base("shoestring-1m"), runs).add(own))


def test_a_run_that_is_damaged_or_untrained_is_refused(runs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tickets"
    shutil.copytree(runs / "tickets", copy)
    weights = next(copy.glob("rungs/*/adapter/adapter_model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BadInput, match="not as training left it"):
        read_run(copy)
    for record in copy.glob("rungs/*/train.json"):
        record.unlink()
    with pytest.raises(BadInput, match="holds nothing trained"):
        read_run(copy)


def test_runs_of_one_base_share_it(runs: Path, tmp_path: Path) -> None:
    both = [read_run(runs / "tickets"), read_run(runs / "orders")]
    base = one_base(both)
    assert base.model == "shoestring-1m" and base.is_tied and base.context_tokens == 1024
    assert [line.verdict.decision for line in check(both, base, PLAIN)] == [SERVE, SERVE]
    assert json.dumps([line.to_json() for line in check(both, base, PLAIN)])
    other = read_run(make_run(tmp_path, "other", str(make_model(tmp_path / "tiny"))))
    with pytest.raises(BadInput, match="one server holds one base"):
        one_base([both[0], other])


def test_an_adapter_of_another_model_of_equal_shapes_is_refused(twins: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = twins
    run = read_run(make_run(tmp_path, "first", str(first)))
    base = read_base(str(second))
    assert run.adapter is not None
    found = verdict(run.adapter, base, ALL)
    assert found.decision == REFUSE and "trained on other weights" in found.reason
    assert verdict(run.adapter, read_base(str(first)), ALL).decision == SERVE


def test_an_adapter_without_recorded_hashes_is_compared_by_its_named_base(
    twins: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = twins
    folder = make_adapter(tmp_path / "bare", str(first), seed=1)
    adapter = read_adapter(folder)
    assert adapter.base is None and adapter.base_name == str(first)
    assert verdict(adapter, read_base(str(second)), ALL).decision == REFUSE
    config = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", {**config, "base_model_name_or_path": "gone/away"})
    found = verdict(read_adapter(folder), read_base(str(second)), ALL)
    assert found.decision == SERVE and "sizes of its matrices alone" in found.notes[0], "said, not hidden"


def test_another_tokenizer_is_refused(twins: tuple[Path, Path], tmp_path: Path) -> None:
    first, _ = twins
    run = read_run(make_run(tmp_path, "first", str(first)))
    changed = tmp_path / "changed"
    shutil.copytree(first, changed)
    template = changed / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|bos|>", ""))
    assert run.adapter is not None
    found = verdict(run.adapter, read_base(str(changed)), ALL)
    assert found.decision == REFUSE and "another tokenizer or chat template" in found.reason


def test_an_adapter_of_other_shapes_is_refused_by_the_matrix(twins: tuple[Path, Path], tmp_path: Path) -> None:
    wide = make_model(tmp_path / "wide", hidden=64)
    folder = make_adapter(tmp_path / "bare", str(wide), seed=1)
    config = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", {**config, "base_model_name_or_path": ""})
    found = verdict(read_adapter(folder), read_base(str(twins[0])), ALL)
    assert found.decision == REFUSE and "(64, the base has 32)" in found.reason


@pytest.mark.parametrize(
    ("lora", "feature"),
    [
        ({"use_dora": True}, "dora"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "tied_embeddings"),
        ({"trainable_token_indices": [1, 2]}, "trainable_tokens"),
        ({"rank_pattern": {"q_proj": 2}}, "patterns"),
    ],
)
def test_features_beyond_an_engine_are_merged_first(
    twins: tuple[Path, Path], tmp_path: Path, lora: dict[str, object], feature: str
) -> None:
    adapter = read_adapter(make_adapter(tmp_path, str(twins[0]), seed=1, **lora))
    base = read_base(str(twins[0]))
    found = verdict(adapter, base, PLAIN)
    assert found.decision == MERGE and "plain does not serve" in found.reason, feature
    assert verdict(adapter, base, ALL).decision == SERVE


def test_biases_that_the_base_has_no_place_for_cannot_be_merged(twins: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = read_adapter(make_adapter(tmp_path, str(twins[0]), seed=1, lora_bias=True))
    base = read_base(str(twins[0]))
    found = verdict(adapter, base, PLAIN)
    assert found.decision == REFUSE and "lora_bias" in found.reason
    assert verdict(adapter, base, ALL).decision == SERVE


def test_rank_and_rslora_are_held_to_the_engine(twins: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = read_adapter(make_adapter(tmp_path, str(twins[0]), seed=1, r=16, use_rslora=True))
    base = read_base(str(twins[0]))
    assert verdict(adapter, base, PLAIN).reason == "rank 16 is above plain's 8"
    no_scale = Capability("old", mixes_adapters=False, rslora=False)
    assert "rsLoRA's scale" in verdict(adapter, base, no_scale).reason


def test_an_adapter_trained_on_nf4_is_another_model_on_a_16_bit_base(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "tickets", tmp_path / "tickets")
    origin = next((tmp_path / "tickets").glob("rungs/*/adapter/shoestring.json"))
    write_json(origin, {**read_json(origin), "method": "qlora"})
    adapter, base = read_adapter(origin.parent), read_base("shoestring-1m")
    found = verdict(adapter, base, ALL)
    assert found.decision == MERGE and "another model" in found.reason
    nf4 = Capability("nf4", mixes_adapters=True, quantised_base=True)
    assert verdict(adapter, base, nf4).decision == SERVE
    plain = read_run(runs / "tickets").adapter
    assert plain is not None and verdict(plain, base, nf4).decision == REFUSE


def test_hashes_do_not_depend_on_shards_but_on_every_weight(twins: tuple[Path, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    first, second = twins
    sharded = tmp_path / "sharded"
    shutil.copytree(first, sharded)
    weights = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, own in parts.items():
        save_file({name: weights[name] for name in own}, sharded / file)
    index = {name: file for file, own in parts.items() for name in own}
    write_json(sharded / "model.safetensors.index.json", {"weight_map": index})
    assert base_print(str(sharded)) == base_print(str(first)) != base_print(str(second))


def test_a_big_base_is_hashed_once(twins: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoestring.train import prints

    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prints, "BIG_BYTES", 1)
    model = tmp_path / "model"
    shutil.copytree(twins[0], model)
    prints._weights_print.cache_clear()
    found = base_print(str(model))
    file = tmp_path / "cache" / "bases.json"
    key, kept = next(iter(read_json(file).items()))
    assert kept == found.weights
    write_json(file, {key: "from the cache"})
    prints._weights_print.cache_clear()
    assert base_print(str(model)).weights == "from the cache"
    os.utime(model / "model.safetensors", (1, 1))  # another time: hashed again
    assert base_print(str(model)).weights == found.weights


def test_behaviour_of_equal_tokenizers_is_equal(twins: tuple[Path, Path]) -> None:
    from shoestring.train.base import load_tokenizer

    a, b = load_tokenizer(str(twins[0])), load_tokenizer(str(twins[1]))
    assert behaviour_print(a) == behaviour_print(b) != behaviour_print(load_tokenizer("shoestring-1m"))


def test_names_cannot_leave_the_folder_of_runs(runs: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    parts = ["..", "/", "\\", "%2e", "a", ".", "\0", "~", "\n", "tickets", "-", "\u2025", " ", "*", "$HOME"]
    names = ["".join(rng.choices(parts, k=rng.randint(1, 6))) for _ in range(500)]
    names += ["", "../tickets", "/etc", "tickets/", "./tickets", "tickets/../orders", "a" * 300, "tickets\n"]
    for name in set(names) - {"tickets"}:
        with pytest.raises(BadInput):
            run_named(name, runs)
    assert run_named("tickets", runs) == runs / "tickets"
    (tmp_path / "out").symlink_to(runs / "tickets")
    with pytest.raises(BadInput, match="lies outside"):
        run_named("out", tmp_path)
    assert check_name("ft:shoestring-1m:org:tickets:Ab12") and find_run(str(runs / "tickets"), runs)


def test_adapters_come_and_go(runs: Path) -> None:
    async def work() -> None:
        engine = Recorder()
        registry = Registry(engine, read_base("shoestring-1m"), runs)
        await registry.add_named("tickets")
        await registry.add_named("orders", "ft:shoestring-1m:me:orders:1")
        assert set(engine.loaded) == {"tickets", "ft:shoestring-1m:me:orders:1"}
        assert [m["id"] for m in registry.listing()] == ["shoestring-1m", "ft:shoestring-1m:me:orders:1", "tickets"]
        assert registry.listing()[2]["parent"] == "shoestring-1m"
        await registry.add_named("tickets")  # a reload
        await registry.drop("tickets")
        with pytest.raises(BadInput, match="no adapter 'tickets' is loaded"):
            await registry.drop("tickets")
        with pytest.raises(BadInput, match="the base's own name"):
            await registry.add_named("orders", "shoestring-1m")
        small = Registry(Recorder(Capability("one", True, max_adapters=1)), registry.base, runs)
        await small.add_named("tickets")
        with pytest.raises(BadInput, match="holds 1 adapters here"):
            await small.add_named("orders")

    asyncio.run(work())


def test_a_refusal_names_the_next_step(runs: Path, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, "dora", use_dora=True))
    line = check([run], read_base("shoestring-1m"), PLAIN)[0]
    assert line.verdict.decision == MERGE
    assert refusal(line).endswith(f"next: shoestring export {run.run}")
