"""The embedded engine: what it answers is what transformers and PEFT answer, however requests are mixed."""

from __future__ import annotations

import asyncio
import json
import warnings
import weakref
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model, make_tokenizer

from shoestring.errors import BadInput, ModelError
from shoestring.records import Device
from shoestring.serve.engine import BASE, Ask, Busy, EngineDown, NotLoaded, Piece, Sampling
from shoestring.serve.engines import embedded, embedded_cache, embedded_steps
from shoestring.serve.engines.embedded import open_embedded
from shoestring.serve.engines.embedded_cache import PrefixTree, Store
from shoestring.serve.engines.embedded_trunk import TrunkStore, attention_with_logs, find_cut, merged

CPU = Device("cpu", "cpu", 1 << 34, 1, "float32", "a test")
ADAPTERS = {
    "one": {},
    "two": {"r": 4},
    "roots": {"use_rslora": True, "r": 9},
    "few": {"target_modules": ["q_proj", "down_proj"]},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and adapters of several kinds that change what it says."""
    folder = tmp_path_factory.mktemp("served")
    make_model(folder / "base")
    for number, (name, more) in enumerate(ADAPTERS.items()):
        make_adapter(folder / "base", folder / name, number, **more)
    return folder


def make_adapter(model: Path, folder: Path, seed: int, **more: Any) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model

    from shoestring.train.base import load_base, quiet_loading

    torch.manual_seed(seed)
    options = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **more}
    with quiet_loading(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        tuned = get_peft_model(load_base(str(model), device=CPU), LoraConfig(**options))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers`")
        tuned.save_pretrained(folder)
    return folder


def theirs(
    home: Path, adapter: str, prompts: Sequence[Sequence[int]], num_new: int, quantise: bool = False
) -> list[list[int]]:
    """Greedy tokens of transformers with PEFT's adapter."""
    import torch
    from peft import PeftModel

    from shoestring.train.base import load_base, quiet_loading

    model = load_base(str(home / "base"), device=CPU, quantise=quantise)
    with quiet_loading():
        tuned = PeftModel.from_pretrained(model, str(home / adapter)) if adapter else model
    answers = []
    for prompt in prompts:
        made = tuned.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False, max_new_tokens=num_new, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        answers.append(made[0, len(prompt) :].tolist())
    return answers


async def opened(home: Path, adapters: Sequence[str] = ("one", "two"), **more: Any) -> Any:
    engine = await open_embedded(str(home / "base"), device=CPU, **more)
    engine.loop.stop_ids = frozenset()  # answers of random weights shall be long
    for name in adapters:
        await engine.load(name, home / name)
    return engine


async def answer(engine: Any, adapter: str, prompt: Sequence[int], num_new: int = 16, **more: Any) -> list[Piece]:
    ask = Ask("a", adapter, tuple(prompt), Sampling(num_new, **more), is_streamed=True)
    return [piece async for piece in engine.generate(ask)]


def ids_of(pieces: Sequence[Piece]) -> list[int]:
    return [token.id for piece in pieces for token in piece.tokens]


def prompts_of(*texts: str) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


PROMPTS = prompts_of(
    "once upon a time there was",
    "once upon a time",
    "once upon a hill the wolf",
    "x",
    "quite another text, longer than the others are",
)


def test_mixed_requests_are_answered_as_by_peft(home: Path) -> None:
    """Five prompts by the base and four adapters at once, in 3 places: each as alone in transformers."""

    async def all_at_once() -> dict[tuple[str, int], list[Piece]]:
        engine = await opened(home, tuple(ADAPTERS), max_rows=3)
        try:
            keys = [(adapter, i) for i in range(len(PROMPTS)) for adapter in (BASE, *ADAPTERS)]
            done = await asyncio.gather(*(answer(engine, a, PROMPTS[i], 12 + i) for a, i in keys))
            return dict(zip(keys, done, strict=True))
        finally:
            await engine.close()

    found = asyncio.run(all_at_once())
    for adapter in (BASE, *ADAPTERS):
        wanted = theirs(home, adapter, PROMPTS, 12 + len(PROMPTS) - 1)
        for i, tokens in enumerate(wanted):
            pieces = found[adapter, i]
            assert ids_of(pieces) == tokens[: 12 + i], (adapter, i)
            assert [piece.finish for piece in pieces] == [""] * (len(pieces) - 1) + ["length"]
    answers = {tuple(ids_of(found[adapter, 0])) for adapter in (BASE, *ADAPTERS)}
    assert len(answers) == len(ADAPTERS) + 1, "the adapters change the answer"


def run_on(home: Path, work: Callable[[Any], Awaitable[Any]], **more: Any) -> Any:
    """What work returns of an engine with the adapters, which is closed afterwards."""

    async def main() -> Any:
        engine = await opened(home, **more)
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(main())


def logits_after(home: Path, adapter: str, ids: Sequence[int]) -> Any:
    import torch
    from peft import PeftModel

    from shoestring.train.base import load_base, quiet_loading

    model = load_base(str(home / "base"), device=CPU)
    with quiet_loading(), torch.no_grad():
        tuned = PeftModel.from_pretrained(model, str(home / adapter)) if adapter else model
        return tuned(input_ids=torch.tensor([list(ids)])).logits[0, -1]


# ---- how tokens are chosen ------------------------------------------------------------------


def test_log_probabilities_are_the_models(home: Path) -> None:
    [piece] = run_on(home, lambda engine: answer(engine, "one", PROMPTS[0], 1, num_top_logprobs=3))
    logs = logits_after(home, "one", PROMPTS[0]).log_softmax(-1)
    values, ids = logs.topk(3)
    assert piece.tokens[0].id == ids[0]
    assert [i for i, _ in piece.tokens[0].top] == ids.tolist()
    assert [value for _, value in piece.tokens[0].top] == pytest.approx(values.tolist(), abs=1e-4)
    assert piece.tokens[0].logprob == pytest.approx(float(values[0]), abs=1e-4)


def test_bias_and_penalties_move_the_choice(home: Path) -> None:
    """A bias of 100 forces a token; with a frequency penalty of 2 a forced pair takes turns."""

    async def work(engine: Any) -> list[list[int]]:
        pair = ((65, 100.0), (66, 99.0))
        return [
            ids_of(await answer(engine, BASE, PROMPTS[0], 3, logit_bias=((65, 100.0),))),
            ids_of(
                await answer(engine, BASE, PROMPTS[0], 4, logit_bias=((65, 100.0), (66, 100.0)), presence_penalty=90)
            ),
            ids_of(await answer(engine, BASE, PROMPTS[0], 4, logit_bias=pair, frequency_penalty=1000)),
        ]

    forced, both, turns = run_on(home, work)
    assert forced == [65, 65, 65]
    assert set(both[:2]) == {65, 66}
    assert set(turns[:2]) == {65, 66} and len(set(turns)) == 4


def test_a_seed_gives_the_same_answer_in_any_company(home: Path) -> None:
    async def work(engine: Any) -> list[list[int]]:
        drawn = {"temperature": 1.5, "top_p": 0.9}
        first = await answer(engine, "two", PROMPTS[0], seed=7, **drawn)
        others = [answer(engine, "one", PROMPTS[1], seed=i, **drawn) for i in range(3)]
        second, *rest = await asyncio.gather(answer(engine, "two", PROMPTS[0], seed=7, **drawn), *others)
        return [ids_of(pieces) for pieces in (first, second, *rest)]

    first, second, *rest = run_on(home, work)
    assert first == second
    assert len({tuple(ids) for ids in rest}) == 3


def test_draws_follow_the_probabilities_and_top_p_cuts_them(home: Path) -> None:
    """400 first tokens at temperature 1 lie within 5 standard errors of the likeliest one's probability."""

    async def work(engine: Any) -> tuple[list[int], list[int]]:
        async def first(seed: int, top_p: float) -> int:
            return ids_of(await answer(engine, "one", PROMPTS[0], 1, temperature=1.0, top_p=top_p, seed=seed))[0]

        free = await asyncio.gather(*(first(seed, 1.0) for seed in range(200)))
        free += await asyncio.gather(*(first(seed, 1.0) for seed in range(200, 400)))
        return free, await asyncio.gather(*(first(seed, 0.4) for seed in range(100)))

    free, cut = run_on(home, work)
    odds, ids = logits_after(home, "one", PROMPTS[0]).softmax(-1).sort(descending=True)
    p = float(odds[0])
    assert abs(free.count(int(ids[0])) / 400 - p) < 5 * (p * (1 - p) / 400) ** 0.5
    kept = int((odds.cumsum(-1) - odds < 0.4).sum())
    assert set(cut) <= set(ids[:kept].tolist()) < set(free)


SCHEMA = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "kind": {"enum": ["bug", "wish"]},
        "many": {"type": "integer", "minimum": 10, "maximum": 99},
    },
    "required": ["ok", "kind", "many"],
    "additionalProperties": False,
}


def test_answers_keep_to_a_schema(home: Path) -> None:
    """Random weights, drawn at temperature 1.5, beside a free answer: each a whole object of the schema."""

    async def work(engine: Any) -> list[list[Piece]]:
        asked = [
            answer(engine, "one", PROMPTS[0], 200, schema=json.dumps(SCHEMA), temperature=1.5, seed=seed)
            for seed in range(4)
        ]
        return await asyncio.gather(*asked, answer(engine, BASE, PROMPTS[0], 8))

    *found, free = run_on(home, work)
    tokenizer = make_tokenizer()
    for pieces in found:
        assert pieces[-1].finish == "stop" and not pieces[-1].has_end_token
        told = json.loads(tokenizer.decode(ids_of(pieces)))
        assert list(told) == ["ok", "kind", "many"] and type(told["ok"]) is bool
        assert told["kind"] in ("bug", "wish") and 10 <= told["many"] <= 99
    assert ids_of(free) == theirs(home, BASE, [PROMPTS[0]], 8)[0]


def test_a_schema_that_cannot_be_kept_to_is_refused(home: Path) -> None:
    async def work(engine: Any) -> None:
        with pytest.raises(BadInput, match="JSON schema cannot be kept to"):
            await answer(engine, BASE, PROMPTS[0], schema='{"type": "no such"}')
        assert len(ids_of(await answer(engine, BASE, PROMPTS[0], 3))) == 3

    run_on(home, work)


# ---- requests come and go -------------------------------------------------------------------


def test_prompts_read_before_are_not_read_again(home: Path) -> None:
    """The second request finds all but its last token; another adapter, whose keys differ, finds none."""

    async def work(engine: Any) -> None:
        first = await answer(engine, "one", PROMPTS[0], 4)
        second = await answer(engine, "one", PROMPTS[0], 4)
        longer = await answer(engine, "one", [*PROMPTS[0], *ids_of(first), 7], 4)
        other = await answer(engine, "two", PROMPTS[0], 4)
        known = [pieces[-1].num_cached_tokens for pieces in (first, second, longer, other)]
        # Of the answer's last token no keys were computed.
        assert known == [0, len(PROMPTS[0]) - 1, len(PROMPTS[0]) + 3, 0]
        assert ids_of(first) == ids_of(second)
        assert [pieces[0].num_cached_tokens for pieces in (first, second, longer, other)] == known
        assert engine.stats()["num_cached_tokens"] == sum(known)
        await engine.drop("one")
        await answer(engine, BASE, PROMPTS[3], 1)
        kept = len(PROMPTS[0]) + 3 + len(PROMPTS[3])
        assert engine.stats()["num_kept_tokens"] == kept

    run_on(home, work)


def test_equal_prompts_that_come_together_are_read_once(home: Path) -> None:
    prompt = list(range(40, 140))

    async def work(engine: Any) -> tuple[list[list[int]], float]:
        found = await asyncio.gather(*(answer(engine, "one", [*prompt, i], 6) for i in range(1, 5)))
        return [ids_of(pieces) for pieces in found], engine.stats()["num_cached_tokens"]

    found, cached = run_on(home, work)
    assert cached == 3 * len(prompt)
    assert found == theirs(home, "one", [[*prompt, i] for i in range(1, 5)], 6)


def test_a_long_prompt_is_read_beside_answers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven tokens a pass: the answer under way gains a token in each."""
    monkeypatch.setattr(embedded_steps, "READ_BESIDE_TOKENS", 7)
    prompt = list(range(20, 120))

    async def work(engine: Any) -> tuple[list[Piece], list[Piece], int]:
        early = asyncio.create_task(answer(engine, "one", PROMPTS[0], 40))
        while engine.stats()["num_new_tokens"] < 2:
            await asyncio.sleep(0)
        before = engine.stats()["num_steps"]
        late = await answer(engine, "two", prompt, 1)
        return await early, late, engine.stats()["num_steps"] - before

    early, late, steps = run_on(home, work)
    assert steps >= len(prompt) // 7
    assert [ids_of(early), ids_of(late)] == [
        theirs(home, "one", [PROMPTS[0]], 40)[0],
        theirs(home, "two", [prompt], 1)[0],
    ]


def test_what_rows_begin_with_is_attended_to_once(home: Path) -> None:
    """Two adapters, three rows each over 150 shared tokens: cut after them, and the answers stay the same."""
    shared = [(7 * i) % 90 + 33 for i in range(150)]
    prompts = [[*shared, *text] for text in PROMPTS[:3]]

    async def work(engine: Any) -> tuple[dict[Any, list[int]], list[tuple[int, int]]]:
        await asyncio.gather(*(answer(engine, a, shared, 1) for a in ("one", "two")))
        store = engine.loop.passes.trunk_store  # emptied as soon as nobody asks
        cut, seen = store.trunks, []

        def looked_at(*given: Any) -> Any:
            trunks = cut(*given)
            seen.append((store.num_tokens, len(store.keys)))
            return trunks

        store.trunks = looked_at
        keys = [(a, i) for i in range(3) for a in ("one", "two")]
        found = await asyncio.gather(*(answer(engine, a, prompts[i], 30) for a, i in keys))
        return dict(zip(keys, map(ids_of, found), strict=True)), seen

    found, seen = run_on(home, work)
    assert seen[-1] == (150 + len("once upon a "), 2)
    for adapter in ("one", "two"):
        assert [found[adapter, i] for i in range(3)] == theirs(home, adapter, prompts, 30)


def test_where_rows_are_cut() -> None:
    """Three rows of x share 400 tokens, one of y stands alone: cut at 400, x read once (800 saved)."""
    shared = tuple(range(400))
    rows = [("x", (*shared, 1)), ("y", (*shared, 1)), ("x", (*shared, 2)), ("x", (*shared, 1, 5))]
    cut = find_cut([a for a, _ in rows], [ids for _, ids in rows], [450] * 4)
    assert cut is not None and cut.num_tokens == 400
    assert sorted(map(sorted, cut.groups)) == [[0, 2, 3], [1]]
    assert find_cut(["x", "y"], [shared, shared], [450] * 2) is None, "adapters share nothing"


def test_the_queue_is_bounded_and_a_cancelled_request_gives_its_place(home: Path) -> None:
    async def work(engine: Any) -> None:
        long = Ask("long", BASE, tuple(PROMPTS[0]), Sampling(200), is_streamed=True)
        running = engine.generate(long)
        await anext(running)
        waiting = [asyncio.create_task(answer(engine, BASE, PROMPTS[1], 3)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="2 may wait") as busy:
            await answer(engine, BASE, PROMPTS[0], 3)
        assert busy.value.retry_after_s > 0
        await running.aclose()
        assert [len(ids_of(pieces)) for pieces in await asyncio.gather(*waiting)] == [3, 3]
        assert engine.stats()["num_new_tokens"] < 200

    run_on(home, work, max_rows=1, queue_len=2)


def test_memory_that_runs_out_sends_the_youngest_back(home: Path) -> None:
    """Three requests begin in room for 3 x 128 tokens and reach 150: fewer at a time, the same answers."""
    prompts = [list(range(40 + i, 70 + i)) for i in range(3)]

    async def work(engine: Any) -> tuple[list[list[int]], float]:
        engine.loop.store.budget_tokens = 512
        found = await asyncio.gather(*(answer(engine, "one", prompt, 120) for prompt in prompts))
        return [ids_of(pieces) for pieces in found], engine.stats()["num_preempted"]

    found, preempted = run_on(home, work)
    assert found == theirs(home, "one", prompts, 120)
    assert preempted > 0


def test_requests_keep_the_adapter_they_began_with(home: Path) -> None:
    async def work(engine: Any) -> list[list[int]]:
        began = engine.generate(Ask("a", "one", tuple(PROMPTS[0]), Sampling(30), is_streamed=True))
        pieces = [await anext(began)]
        await engine.load("one", home / "two")
        later = await answer(engine, "one", PROMPTS[0], 10)
        pieces += [piece async for piece in began]
        await engine.drop("one")
        with pytest.raises(ModelError, match="no adapter 'one' is loaded; loaded: two"):
            await answer(engine, "one", PROMPTS[0])
        return [ids_of(pieces), ids_of(later)]

    began, later = run_on(home, work)
    assert began == theirs(home, "one", [PROMPTS[0]], 30)[0]
    assert later == theirs(home, "two", [PROMPTS[0]], 10)[0]


def test_an_adapter_dropped_while_a_grammar_is_made_is_not_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(engine: Any) -> None:
        loop, make = asyncio.get_running_loop(), embedded.make_choice

        def late(*given: Any) -> Any:
            asyncio.run_coroutine_threadsafe(engine.drop("one"), loop).result()
            return make(*given)

        monkeypatch.setattr(embedded, "make_choice", late)
        with pytest.raises(NotLoaded):
            await answer(engine, "one", PROMPTS[0], schema="{}")
        await engine.loop.run_between(lambda: None)
        assert not engine.loop.tree.roots and not any(engine.loop.slots.held)

    run_on(home, work)


def test_idle_nothing_of_the_last_pass_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_cache, "IDLE_BYTES", 0)

    async def work(engine: Any) -> None:
        under_way = engine.generate(Ask("a", "one", tuple(PROMPTS[0]), Sampling(8), is_streamed=True))
        pieces = [await anext(under_way)]
        held = weakref.ref(engine.loop.store.held)
        pieces += [piece async for piece in under_way]
        while engine.loop.store.held.numel():
            await asyncio.sleep(0)
        assert held() is None and engine.loop.passes.asked == []
        assert ids_of(await answer(engine, "one", PROMPTS[0], 8)) == ids_of(pieces)

    run_on(home, work)


def test_a_token_without_an_embedding_is_refused(home: Path) -> None:
    async def work(engine: Any) -> None:
        with pytest.raises(BadInput, match=f"token {engine.num_ids}, and .* below {engine.num_ids}"):
            await answer(engine, BASE, [1, engine.num_ids])
        assert await answer(engine, BASE, PROMPTS[0], 2)

    run_on(home, work)


def test_closing_ends_what_is_under_way(home: Path) -> None:
    async def work(engine: Any) -> None:
        tasks = [asyncio.create_task(answer(engine, BASE, PROMPTS[0], 200)) for _ in range(3)]
        while not engine.stats()["num_running"]:
            await asyncio.sleep(0)
        await engine.close()
        for task in tasks:
            with pytest.raises(EngineDown, match="has been closed"):
                await task
        with pytest.raises(EngineDown, match="start the server again"):
            await answer(engine, BASE, PROMPTS[0])

    run_on(home, work, max_rows=1)


# ---- what is refused ------------------------------------------------------------------------


def test_damage_reaches_its_own_requests_alone(home: Path) -> None:
    """An adapter's numbers turn bad in memory: its request fails by name, the next in its place and others do not."""

    async def work(engine: Any) -> None:
        a, b = engine.adapters["few"].matrices.popitem()[1]
        engine.adapters["few"].matrices["model.layers.1.self_attn.q_proj"] = (
            a[:, :32],
            b.new_full((32, len(a)), float("nan")),
        )
        bad, good = await asyncio.gather(
            answer(engine, "few", PROMPTS[0], 5), answer(engine, "one", PROMPTS[1], 5), return_exceptions=True
        )
        assert isinstance(bad, ModelError) and "the adapter 'few' is damaged" in str(bad)
        again = await asyncio.gather(*(answer(engine, "two", prompt, 5) for prompt in PROMPTS[:3]))
        assert ids_of(good) == theirs(home, "one", [PROMPTS[1]], 5)[0]
        assert [ids_of(pieces) for pieces in again] == theirs(home, "two", PROMPTS[:3], 5)

    run_on(home, work, adapters=("one", "two", "few"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"use_dora": True}, "has DoRA, which the embedded engine does not compute; serve its merged weights"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save"),
        ({"target_modules": ["embed_tokens"]}, "changes 'base_model.model.model.embed_tokens."),
        ({"bias": "lora_only"}, "has trained biases"),
    ],
)
def test_adapters_that_are_not_computed_are_refused(
    home: Path, tmp_path: Path, more: dict[str, Any], words: str
) -> None:
    from shoestring.serve.engines.embedded_lora import grouped, read_adapter

    make_adapter(home / "base", tmp_path / "odd", 1, **more)
    with pytest.raises(ModelError) as refused:
        read_adapter("odd", tmp_path / "odd", grouped({"model.layers.0.self_attn.q_proj": (32, 32)}, []))
    assert words in str(refused.value)


def test_an_adapter_of_another_model_or_of_bad_numbers_is_refused(home: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "other", hidden=48)
    make_adapter(tmp_path / "other", tmp_path / "wide", 1)
    damaged = make_adapter(home / "base", tmp_path / "damaged", 1)
    from safetensors.torch import load_file, save_file

    weights = load_file(damaged / "adapter_model.safetensors")
    weights[sorted(weights)[0]][0, 0] = float("inf")
    save_file(weights, damaged / "adapter_model.safetensors")

    async def work(engine: Any) -> None:
        with pytest.raises(ModelError, match="it was trained on another model"):
            await engine.load("wide", tmp_path / "wide")
        with pytest.raises(ModelError, match="holds numbers that are not finite"):
            await engine.load("damaged", damaged)
        with pytest.raises(ModelError, match="cannot be read"):
            await engine.load("none", tmp_path)
        with pytest.raises(ModelError, match=r"the prompt has 256 tokens; .* reads 256"):
            await answer(engine, BASE, [1] * 256)

    run_on(home, work)


# ---- other models ---------------------------------------------------------------------------


def other_models() -> dict[str, Any]:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Qwen3Config, Qwen3ForCausalLM

    shape = {
        "vocab_size": 262, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "max_position_embeddings": 256, "initializer_range": 0.3, "pad_token_id": 256, "eos_token_id": 258,
    }  # fmt: skip
    return {
        "grouped heads, norms of heads": Qwen3ForCausalLM(Qwen3Config(**shape, num_key_value_heads=2, head_dim=12)),
        "transformers' modules": GPTNeoXForCausalLM(GPTNeoXConfig(**shape)),
    }


@pytest.mark.parametrize("name", ["grouped heads, norms of heads", "transformers' modules", "NF4"])
def test_other_models(name: str, tmp_path: Path) -> None:
    import torch

    if name == "NF4":
        make_model(tmp_path / "base", hidden=64)
    else:
        torch.manual_seed(0)
        other_models()[name].save_pretrained(tmp_path / "base")
        make_tokenizer().save_pretrained(tmp_path / "base")
    make_adapter(tmp_path / "base", tmp_path / "one", 1)
    method = "qlora" if name == "NF4" else "lora"

    async def main() -> tuple[str, list[list[int]]]:
        engine = await open_embedded(str(tmp_path / "base"), device=CPU, method=method)
        try:
            engine.loop.stop_ids = frozenset()
            await engine.load("one", tmp_path / "one")
            asked = [answer(engine, adapter, prompt, 8) for adapter in ("one", BASE) for prompt in PROMPTS[:3]]
            return engine.route, [ids_of(pieces) for pieces in await asyncio.gather(*asked)]
        finally:
            await engine.close()

    route, found = asyncio.run(main())
    assert route.startswith("short form" if name.startswith("grouped") else "transformers' modules")
    assert found == [
        tokens for adapter in ("one", BASE) for tokens in theirs(tmp_path, adapter, PROMPTS[:3], 8, method == "qlora")
    ]


# ---- what is kept ---------------------------------------------------------------------------


def test_the_tree_keeps_what_was_used_last() -> None:
    """Budget 8: abcd, abxy share ab (6 tokens); pqr makes 9, so the oldest leaf, cd, goes."""
    import torch

    store = Store((1, 1, 1), dtype=torch.float32, device="cpu", budget_tokens=64)
    store.require(1, 8)
    tree = PrefixTree(8)

    def add(text: str) -> None:
        for at, letter in enumerate(text):
            store.held[0, 0, :, at] = ord(letter)
        tree.add("x", text.encode(), store, 0)

    def known(text: str, adapter: str = "x") -> str:
        found = tree.find(adapter, text.encode())
        return "".join(chr(int(v)) for node, num in found for v in tree.read(node, num).flatten()[::2])

    add("abcd")
    add("abxy")
    assert tree.num_tokens == 6 and known("abcde") == "abcd" and known("abcd", "y") == ""
    assert known("abxz") == "abx"
    add("pqr")
    assert tree.num_tokens == 7 and known("abcd") == "ab" and known("abxy") == "abxy" and known("pqr") == "pqr"
    add("longer than the budget")
    tree.forget("x")
    assert tree.num_tokens == 0 and known("abxy") == ""


@pytest.mark.parametrize("route", ["short form", "transformers' modules"])
def test_in_16_bits_tokens_are_peft_up_to_ties(route: str, home: Path, tmp_path: Path) -> None:
    """Packed weights, float32 between products: each token's logit is at most a last bit below PEFT's largest."""
    import torch
    from peft import PeftModel

    from shoestring.train.base import load_base, quiet_loading

    if route != "short form":
        torch.manual_seed(0)
        other_models()[route].save_pretrained(tmp_path / "base")
        make_tokenizer().save_pretrained(tmp_path / "base")
        make_adapter(tmp_path / "base", tmp_path / "one", 1)
        home = tmp_path
    device = replace(CPU, dtype="bfloat16")

    async def main() -> list[list[int]]:
        engine = await open_embedded(str(home / "base"), device=device)
        try:
            assert engine.route.startswith(route)
            engine.loop.stop_ids = frozenset()
            await engine.load("one", home / "one")
            found = await asyncio.gather(*(answer(engine, "one", prompt, 12) for prompt in PROMPTS))
            return [ids_of(pieces) for pieces in found]
        finally:
            await engine.close()

    found = asyncio.run(main())
    with quiet_loading(), torch.no_grad():
        tuned = PeftModel.from_pretrained(load_base(str(home / "base"), device=device), str(home / "one"))
        for prompt, tokens in zip(PROMPTS, found, strict=True):
            logits = tuned(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()
            chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
            assert float((logits.max(-1).values - chosen).max()) <= 0.02 * float(logits.abs().max())


@pytest.mark.parametrize(("heads", "order"), [(1, "aabb"), (1, "abab"), (2, "abba"), (1, "aaab")])
def test_attention_in_two_parts_is_that_of_the_whole(heads: int, order: str) -> None:
    """Rows of two beginnings of 200 tokens, 10 own: cut at 200, against attention over all 210 at once."""
    import torch

    torch.manual_seed(0)
    store = Store((1, 3, 8), dtype=torch.float32, device="cpu", budget_tokens=4096)
    store.require(4, 210)
    store.held.normal_()
    ids = [tuple(range(200)) if kind == "a" else tuple(range(1, 201)) for kind in order]
    for row, kind in enumerate(order):
        store.held[:, row, :, :200] = store.held[:, order.index(kind), :, :200]
    cut = find_cut([None] * 4, ids, [210] * 4)
    assert cut is not None and cut.num_tokens == 200
    trunks = TrunkStore(store).trunks(cut, [None] * 4, ids, heads)
    assert (trunks.places is None) == (order == "aabb")
    query = torch.randn(4, 3, heads, 8)
    keys, values = store.layers[0][:, :3, :210], store.layers[0][:, 3:, :210]
    whole = torch.nn.functional.scaled_dot_product_attention(query, keys, values, scale=0.3)
    own, logs = attention_with_logs(query, keys[:, :, 200:], values[:, :, 200:], None, 0.3)
    found = merged(own, logs[..., None], *trunks.attend(0, query, 0.3))
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
