"""Greedy generation: the same tokens as model.generate, in order, whatever the batch."""

from __future__ import annotations

import inspect
import random
from pathlib import Path

import pytest
import torch
from tiny import make_model

from shoestring.errors import DoesNotFit, ModelError
from shoestring.evaluate.generation import (
    LocalGenerator,
    forest,
    load_generator,
    local,
    make_generate,
    padded,
)
from shoestring.evaluate.generation.attention import NotOverAForest
from shoestring.records import Device, Example, Message
from shoestring.train.base import encode_prompt, load_base, load_tokenizer, quiet_loading

CPU = Device("cpu", "test", 8 << 30, 1, "float32", "exact comparison")
SYSTEM = Message("system", "Answer with one word, please.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def generator(folder: Path) -> LocalGenerator:
    return load_generator(str(folder), device=CPU, max_new_tokens=24)


def prompts_of(num: int, *, system: bool = True) -> list[tuple[Message, ...]]:
    rng = random.Random(0)
    texts = ["".join(rng.choice("abcdef ") for _ in range(rng.randint(1, 60))) for _ in range(num)]
    return [((SYSTEM,) if system else ()) + (Message("user", text),) for text in texts]


def reference(generator: LocalGenerator, prompt: tuple[Message, ...]) -> list[int]:
    """New tokens by transformers' own greedy generation, one prompt at a time."""
    ids = torch.tensor([encode_prompt(generator.tokenizer, prompt)])
    out = generator.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=generator.max_new_tokens,
        eos_token_id=generator.stop_ids,
        pad_token_id=generator.tokenizer.pad_token_id,
    )
    return out[0, ids.shape[1] :].tolist()


def refuse(*args: object, **named: object) -> None:
    raise NotOverAForest("asked to be padded")


@pytest.mark.parametrize("route", ["prefix forest", "padded batches: asked to be padded"])
@pytest.mark.parametrize("system", [True, False])  # with and without a prefix worth sharing
def test_equals_greedy_generate_of_transformers(
    generator: LocalGenerator, system: bool, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if route != "prefix forest":
        monkeypatch.setattr(local, "ForestDecoder", refuse)
    monkeypatch.setattr(forest, "MIN_SHARED_TOKENS", 100)
    # A second stop that rows reach at many different steps: they are dropped on the way.
    prompts = prompts_of(12, system=system)
    endless = [reference(generator, p) for p in prompts]
    tokens = sorted({t for row in endless for t in row})
    steps = {t: {row.index(t) for row in endless if t in row} for t in tokens}
    generator.stop_ids = [*generator.stop_ids, max(tokens, key=lambda t: len(steps[t]))]
    expected = [reference(generator, p) for p in prompts]
    assert len({len(row) for row in expected}) > 2

    completions = generator.generate(prompts)

    assert generator.route == route
    decoded = [generator.tokenizer.decode(row, skip_special_tokens=True) for row in expected]
    assert [c.text for c in completions] == decoded
    assert [c.num_completion_tokens for c in completions] == [len(row) for row in expected]
    assert [c.stopped for c in completions] == [row[-1] in generator.stop_ids for row in expected]
    assert [c.num_prompt_tokens for c in completions] == [generator.count_tokens(p) for p in prompts]


def test_a_row_does_not_depend_on_its_batch(generator: LocalGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(7)
    together = [c.text for c in generator.generate(prompts)]
    assert [generator.generate([p])[0].text for p in prompts] == together
    assert [c.text for c in generator.generate(prompts[::-1])][::-1] == together
    monkeypatch.setattr(local, "MAX_ROWS", {"cpu": 3})
    assert [c.text for c in generator.generate(prompts)] == together
    monkeypatch.setattr(forest, "MIN_SHARED_TOKENS", 10)
    assert [c.text for c in generator.generate(prompts)] == together
    monkeypatch.setattr(local, "BATCH_BYTES", 200 * local._bytes_per_token(generator.model))
    assert [c.text for c in generator.generate(prompts)] == together
    monkeypatch.setattr(local, "ForestDecoder", refuse)
    assert [c.text for c in generator.generate(prompts)] == together
    monkeypatch.setattr(padded, "MIN_PREFIX_TOKENS", 10**6)
    assert [c.text for c in generator.generate(prompts)] == together


def levels(num: int) -> list[tuple[Message, ...]]:
    """Prompts with common beginnings on three levels: all, by the half, by the quarter; some with none."""
    shots = [(Message("user", word * 6), Message("assistant", word)) for word in ("cab", "fed", "bee", "fad")]
    made = []
    for i, prompt in enumerate(prompts_of(num)):
        made.append((prompt[0], *shots[i % 2], *shots[2 + i // 2 % 2], *prompt[1:]) if i % 5 else prompt[1:])
    return made


def test_common_beginnings_are_computed_once_on_every_level(
    generator: LocalGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = levels(20)
    expected = [reference(generator, p) for p in prompts]
    tokens = sorted({t for row in expected for t in row})
    steps = {t: {row.index(t) for row in expected if t in row} for t in tokens}
    generator.stop_ids = [*generator.stop_ids, max(tokens, key=lambda t: len(steps[t]))]
    expected = [reference(generator, p) for p in prompts]
    read: list[int] = []
    hook = generator.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    monkeypatch.setattr(forest, "MIN_SHARED_TOKENS", 20)
    texts = [generator.tokenizer.decode(row, skip_special_tokens=True) for row in expected]
    assert [c.text for c in generator.generate(prompts)] == texts
    ids = [encode_prompt(generator.tokenizer, p) for p in prompts]
    beginnings = {tuple(row[:n]) for row in ids for n in range(1, len(row) + 1)}
    own_pass = min(map(len, ids))  # of the check, and the passes of one token
    assert sum(n for n in read if n > 1) <= 1.1 * len(beginnings) + own_pass < 0.7 * sum(map(len, ids))

    # Few places: prompts that wait come in as rows end, and what a run holds is read once all the same.
    read.clear()
    monkeypatch.setattr(local, "MAX_ROWS", {"cpu": 4})
    answers = generator.generate(prompts)
    hook.remove()
    assert [c.text for c in answers] == texts and generator.route == "prefix forest"
    assert [c.num_completion_tokens for c in answers] == list(map(len, expected))
    assert sum(n for n in read if n > 1) < 0.8 * sum(map(len, ids))
    num_steps = sum(n == 1 for n in read)
    assert num_steps < sum(sorted(map(len, expected), reverse=True)[::4]), (
        "as many as if each batch waited for its last"
    )
    assert sum(c.latency_s for c in answers) > 0 and all(c.latency_s > 0 for c in answers)


def test_each_answer_is_told_once_as_it_is_there(generator: LocalGenerator) -> None:
    prompts = prompts_of(6)
    told: list[tuple[object, str]] = []
    answers = generator.generate([*prompts, *prompts], on_answer=lambda prompt, c: told.append((prompt, c.text)))
    assert dict(told) == {p: c.text for p, c in zip([*prompts, *prompts], answers, strict=True)} and len(told) == 6


def test_a_forest_that_gives_other_logits_is_not_used(
    generator: LocalGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(5)
    expected = [c.text for c in generator.generate(prompts)]
    monkeypatch.setattr(forest, "LOGITS_LIMIT", {"float32": 1e-12})
    assert [c.text for c in generator.generate(prompts)] == expected
    assert generator.route.startswith("padded batches: logits differ by")
    assert generator.model.config._attn_implementation == "sdpa"


def test_equal_prompts_are_run_once_and_progress_counts_rows(generator: LocalGenerator) -> None:
    prompts = prompts_of(3)
    seen: list[tuple[int, int | None]] = []
    rows_run: list[int] = []
    hook = generator.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows_run.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    completions = generator.generate(prompts * 5, lambda label, done, total: seen.append((done, total)))
    hook.remove()
    assert max(rows_run) == 3
    assert [c.text for c in completions[:3]] * 5 == [c.text for c in completions]
    assert seen[0] == (0, 15) and seen[-1] == (15, 15)
    assert generator.generate([]) == []


def test_a_prompt_that_leaves_no_room_is_refused_by_number(folder: Path, generator: LocalGenerator) -> None:
    long = (Message("user", "x" * 300),)
    with pytest.raises(
        ModelError, match=r"prompt 2 \('xxx.*\) has \d+ tokens; .* 256, which leaves none for the answer"
    ):
        generator.generate([*prompts_of(1), long])
    with pytest.raises(ModelError, match="max_new_tokens 256 leaves no room"):
        load_generator(str(folder), device=CPU, max_new_tokens=256)


def test_a_long_prompt_shortens_its_own_answer_alone(generator: LocalGenerator) -> None:
    room = generator.context_tokens - 4  # a prompt that leaves four tokens
    long = next(
        prompt
        for prompt in ((Message("user", "x" * n),) for n in range(200, 260))
        if len(encode_prompt(generator.tokenizer, prompt)) == room
    )
    generator.stop_ids = [10**6]
    cut, beside = generator.generate([long, *prompts_of(1)])
    assert (cut.num_completion_tokens, cut.stopped) == (4, False)
    assert beside.num_completion_tokens == 24


def test_an_answer_cut_at_the_limit_says_so(generator: LocalGenerator) -> None:
    generator.stop_ids = [10**6]
    (completion,) = generator.generate(prompts_of(1))
    assert not completion.stopped and completion.num_completion_tokens == 24


def test_running_out_of_memory_halves_the_batch(generator: LocalGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(9)
    expected = [c.text for c in generator.generate(prompts)]
    limit = 2
    forward = generator.model.forward

    def short_of_memory(**inputs):
        ids = inputs["input_ids"]
        if (len(ids) if ids.shape[1] == 1 else ids.shape[1] / 130) > limit:
            raise torch.OutOfMemoryError("allocation of 1 GiB failed")
        return forward(**inputs)

    short_of_memory.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(generator.model, "forward", short_of_memory)
    assert [c.text for c in generator.generate(prompts)] == expected
    limit = 0
    with pytest.raises(DoesNotFit, match=r"out of memory on one prompt of \d+ tokens"):
        generator.generate(prompts)


def test_damaged_weights_are_named(generator: LocalGenerator) -> None:
    with torch.no_grad():
        generator.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="logits that are not finite"):
        generator.generate(prompts_of(2))


def test_layers_that_are_not_plain_attention(folder: Path) -> None:
    """Sliding windows and convolutions count by place, so nothing may pad between prefix and rest."""
    from transformers import Lfm2Config, Lfm2ForCausalLM, MistralConfig, MistralForCausalLM

    tokenizer = load_tokenizer(str(folder))
    named = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.2}
    shape = {"vocab_size": len(tokenizer), **sizes, **heads, **named}
    torch.manual_seed(0)
    models = [
        MistralForCausalLM(MistralConfig(**shape, sliding_window=12, head_dim=16)),
        Lfm2ForCausalLM(Lfm2Config(**shape, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)),
    ]
    for model in models:
        other = LocalGenerator(model.eval(), tokenizer, max_new_tokens=24)
        prompts = prompts_of(5)
        flat = [t for p in prompts for t in reference(other, p)]
        other.stop_ids = [*other.stop_ids, max(set(flat), key=flat.count)]
        expected = [tokenizer.decode(reference(other, p), skip_special_tokens=True) for p in prompts]
        assert [c.text for c in other.generate(prompts)] == expected, type(model).__name__


def test_an_adapter_is_used_unmerged_and_training_mode_is_kept(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(
        r=4, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    with quiet_loading():
        tuned = get_peft_model(load_base(str(folder), device=CPU), config)
    tuned.save_pretrained(tmp_path / "adapter")
    loaded = load_generator(str(folder), tmp_path / "adapter", device=CPU, max_new_tokens=16)
    bare = load_generator(str(folder), device=CPU, max_new_tokens=16)
    prompts = prompts_of(6)
    texts = [c.text for c in loaded.generate(prompts)]
    assert texts == [loaded.tokenizer.decode(reference(loaded, p), skip_special_tokens=True) for p in prompts]
    assert texts != [c.text for c in bare.generate(prompts)]

    tuned.train()
    assert [
        c.text for c in make_generate(tuned, loaded.tokenizer, max_new_tokens=16)(prompts, lambda *a: None)
    ] == texts
    assert tuned.training

    loaded.close()
    with pytest.raises(ModelError, match="cannot be put on"):
        load_generator(str(folder), tmp_path / "nothing", device=CPU, max_new_tokens=16)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_embedded_model_answers_and_stops(dtype: str) -> None:
    from shoestring.embedded import family

    device = Device("cpu", "test", 8 << 30, 1, dtype, "as asked")
    embedded = load_generator(next(iter(family())), device=device, max_new_tokens=32)
    prompts = [(Message("user", f"Repeat the word: {word}"),) for word in ("apple", "river", "stone")]
    completions = embedded.generate(prompts)
    assert embedded.tokenizer.eos_token_id in embedded.stop_ids
    assert sum(c.stopped for c in completions) >= 1
    assert all("<|" not in c.text for c in completions)


@pytest.mark.parametrize("scenario", ["shared_prompt", "few_shot", "uneven"])
def test_the_bench_gets_the_tokens_of_a_plain_loop(scenario: str) -> None:
    from bench import eval_speed

    found = eval_speed.measure(scenario, eval_speed.load("shoestring-1m"), 12, 1)
    assert found["rows_unlike_loop"] == {"ours": 0, "batched": 0} and found["ratio"] > 0


@pytest.mark.parametrize("as_forest", [True, False])
def test_label_probabilities_are_those_of_each_answer_read_alone(
    folder: Path, as_forest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoestring.evaluate.generation import labels

    generator = load_generator(str(folder), device=CPU, max_new_tokens=4)
    rows = [Example((*prompt, Message("assistant", "x")), (2, 3)) for prompt in prompts_of(5)]
    names = ["card", "cash", "card stolen"]
    if not as_forest:
        monkeypatch.setattr(labels, "LIMIT", {"float32": -1.0})
    found = labels.label_log_probs(generator.model, generator.tokenizer, rows, names)
    assert generator.model.config._attn_implementation == "sdpa"
    for row, of_row in zip(rows, found, strict=True):
        for name, log_prob in zip(names, of_row, strict=True):
            prompt = encode_prompt(generator.tokenizer, row.prompt)
            ids = [*prompt, *generator.tokenizer(name, add_special_tokens=False).input_ids]
            ids.append(generator.tokenizer.eos_token_id)
            logits = generator.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            alone = sum(float(logits[i - 1, ids[i]]) for i in range(len(prompt), len(ids)))
            assert log_prob == pytest.approx(alone, abs=1e-3)


@pytest.mark.parametrize("name", ["Qwen3", "Gemma", "Phi3", "Granite", "GPTNeoX"])
def test_families_with_plain_attention_answer_over_the_forest(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms on heads, one scale or another, rotations of part of a head: all go through the same attention."""
    import transformers

    monkeypatch.setattr(forest, "MIN_SHARED_TOKENS", 60)
    tokenizer = load_tokenizer(str(folder))
    named = {key: getattr(tokenizer, key) for key in ("pad_token_id", "eos_token_id", "bos_token_id")}
    own = {"Granite": {"attention_multiplier": 0.2, "logits_scaling": 2.0}, "Qwen3": {"head_dim": 16}}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, **named, **own.get(name, {}),
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    other = LocalGenerator(model, tokenizer, max_new_tokens=8)
    prompts = prompts_of(6)
    expected = [tokenizer.decode(reference(other, p), skip_special_tokens=True) for p in prompts]
    assert [c.text for c in other.generate(prompts)] == expected
    assert other.route == "prefix forest"


def test_what_plain_attention_cannot_answer_is_named() -> None:
    import torch

    from shoestring.train.attention import beyond_plain

    query, value, layout = torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16), object()
    assert beyond_plain(query, value, layout, {"dropout": 0.0, "softcap": None}) == ""
    assert beyond_plain(query, value, layout, {"softcap": 30.0, "sliding_window": 8}) == (
        "attention asks for softcap, sliding_window"
    )
    assert "do not hand down" in beyond_plain(query, value, None, {})
    assert beyond_plain(query, value[..., :8], layout, {}) == "heads have 16 numbers in queries and 8 in values"
