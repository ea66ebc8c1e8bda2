"""train/forest.py and what runs on it: rows that share beginnings train exactly as the same rows apart."""

import json
import random

import numpy as np
import pytest
import torch

from shoestring.errors import BadInput, BudgetStopped
from shoestring.records import Device, Example, Message, TrainSettings
from shoestring.train import forest as forests
from shoestring.train import loss, packing, tree_attention
from shoestring.train.adapter import build_adapter
from shoestring.train.attention import NAME, block_mask, use_attention
from shoestring.train.base import load_tokenizer
from shoestring.train.forest import as_array, packed_tokens, plant
from shoestring.train.objective import Objective
from shoestring.train.preference import Dpo, objective
from shoestring.train.schedule import build_schedule, conversations
from shoestring.train.tokens import Encoded
from shoestring.train.trainer import train_rung
from shoestring.train.tree_attention import cut
from tests.tiny import make_model, make_tokenizer

EXACT = Device("cpu", "cpu", 2**33, 1, "float32", "so that sums can be compared")
VOCAB = 64


def settings(**changes) -> TrainSettings:
    values = {
        "method": "lora", "lora_rank": 4, "lora_alpha": 8, "learning_rate": 1e-2, "num_epochs": 1, "batch_tokens": 2048,
        "micro_batch_tokens": 1024, "seq_len": 256, "warmup_frac": 0.1, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "num_evals": 1, "patience": 2, "num_threads": 1, "seed": 0, "max_new_tokens": 8, "reasons": {},
    }  # fmt: skip
    return TrainSettings(**{**values, **changes})


def random_paths(rng: random.Random, num: int, longest: int = 60, vocab: int = VOCAB) -> list[Encoded]:
    """Rows that branch from each other at random depths, some equal, some beginnings of others."""
    rows: list[list[int]] = []
    for _ in range(num):
        kept = rng.choice(rows)[: rng.randint(1, longest)] if rows and rng.random() < 0.75 else []
        new = [rng.randrange(1, vocab) for _ in range(rng.randint(0 if len(kept) > 1 else 2, longest // 2))]
        rows.append([*kept, *new][:longest])
    return [Encoded(ids, rng.randrange(0, len(ids))) for ids in rows]


# ---------------------------------------------------------------- layout


def test_four_rows_by_hand():
    """Shared 1 2 3, below it 4 5 (two rows) and 6; one row of its own."""
    rows = [as_array(ids) for ids in ([1, 2, 3, 4, 5, 7], [1, 2, 3, 6], [9, 9], [1, 2, 3, 4, 5, 8])]
    forest = plant(rows, pad_id=0, min_saved=1, round_to=4)
    assert forest.ids.tolist() == [1, 2, 3, 4, 5, 7, 8, 6, 9, 9, 0, 0]
    assert forest.positions.tolist() == [0, 1, 2, 3, 4, 5, 5, 3, 0, 1, 0, 1]
    assert forest.subtree_ends.tolist() == [8, 8, 8, 7, 7, 6, 7, 8, 10, 10, 12, 12]
    assert [place.tolist() for place in forest.places] == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 7], [8, 9], [0, 1, 2, 3, 4, 6]]
    assert packed_tokens(rows, min_saved=1) == forests.ROUND_LENGTH


@pytest.mark.parametrize("seed", range(20))
def test_every_row_stands_in_the_forest_whole(seed):
    rng = random.Random(seed)
    rows = [as_array(row.ids) for row in random_paths(rng, rng.randint(1, 20), vocab=4)]
    forest = plant(rows, 0, min_saved=rng.choice([1, 5, 30, 1000]))
    for row, place in zip(rows, forest.places, strict=True):
        assert (forest.ids[place] == row).all() and (forest.positions[place] == np.arange(len(row))).all()
        # Each token of the row sees exactly the row's earlier tokens.
        seen = (np.arange(len(forest.ids)) <= place[-1]) & (place[-1] < forest.subtree_ends)
        assert np.flatnonzero(seen).tolist() == place.tolist()
    assert len(forest.ids) <= sum(map(len, rows)) + forests.ROUND_LENGTH


def test_beginnings_too_short_to_be_worth_it_are_not_shared():
    rows = [as_array([*range(1, 31), last]) for last in (40, 41)]
    assert packed_tokens(rows, min_saved=31) == 64 == packed_tokens(rows, min_saved=30)
    assert len(forests.segments(rows, 31)[0]) == 2 and len(forests.segments(rows, 30)[0]) == 3


# ---------------------------------------------------------------- attention


def reference(query, key, value, forest, scale):
    places = torch.arange(len(forest.ids))
    ends = torch.from_numpy(forest.subtree_ends)
    mask = (places[None, :] <= places[:, None]) & (places[:, None] < ends[None, :])
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask[None, None], scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2)


@pytest.mark.parametrize("seed", range(12))
def test_blocks_are_masked_attention(seed, monkeypatch):
    rng = random.Random(seed)
    monkeypatch.setattr(tree_attention, "TILE", rng.choice([8, 32, 128]))
    monkeypatch.setattr(tree_attention, "BATCH_TOKENS", rng.choice([32, 2048]))
    rows = [as_array(row.ids) for row in random_paths(rng, rng.randint(1, 12))]
    forest = plant(rows, 0, min_saved=rng.choice([1, 10, 48]))
    torch.manual_seed(seed)
    kv_heads = rng.choice([1, 2, 4])
    shapes = [(1, heads, len(forest.ids), 8) for heads in (4, kv_heads, kv_heads)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    outputs = []
    for out in (tree_attention.tree_attention(*inputs, cut(forest), 0.3), reference(*inputs, forest, 0.3)):
        torch.manual_seed(1)
        outputs.append((out, *torch.autograd.grad((out * torch.randn_like(out)).sum(), inputs)))
    for ours, theirs in zip(*outputs, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_block_mask_of_cuda_is_the_same_attention():
    """FlexAttention without a gradient, all that a CPU runs of it."""
    from torch.nn.attention.flex_attention import flex_attention

    rows = [as_array(row.ids) for row in random_paths(random.Random(3), 8)]
    forest = plant(rows, 0, min_saved=1, round_to=128)
    query, key, value = (torch.randn(1, 2, len(forest.ids), 16) for _ in range(3))
    mask = block_mask(torch.from_numpy(forest.subtree_ends))
    flex = flex_attention(query, key, value, block_mask=mask, scale=0.25).transpose(1, 2)
    torch.testing.assert_close(flex, reference(query, key, value, forest, 0.25), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- whole models


def make(folder, kind: str) -> str:
    """A random model of three architectures, two layers each; Gemma's window is longer than any row here."""
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

    size = {
        "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
        "initializer_range": 0.2, "tie_word_embeddings": True, "pad_token_id": 0,
    }  # fmt: skip
    window = {"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"]}
    config = {"llama": LlamaConfig, "qwen3": Qwen3Config, "gemma3": Gemma3TextConfig}[kind](
        **size, **(window if kind == "gemma3" else {})
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def architectures(tmp_path_factory):
    return {kind: make(tmp_path_factory.mktemp(kind), kind) for kind in ("llama", "qwen3", "gemma3")}


def adapted(model: str, method: str):
    tuned = build_adapter(model, settings(method=method), EXACT)
    torch.manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide half of the gradients
            torch.nn.init.normal_(parameter, std=0.2)
    assert use_attention(tuned.get_base_model()) == "sdpa"
    return tuned


def gradients(tuned, learned: Objective, batches, path: str):
    tuned.zero_grad()
    total = 0.0
    for batch in batches:
        summed = learned.loss_sum(tuned, batch, path)
        summed.backward()
        total += float(summed.detach())
    return total, torch.cat([p.grad.flatten().clone() for p in tuned.parameters() if p.requires_grad])


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_gradients_on_a_forest_are_those_of_the_rows_apart(architectures, kind, method, monkeypatch):
    """Over random trees, supervised and preference: relative error at most 1e-5 in float32."""
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(loss, "plant", lambda paths, pad_id: plant(paths, pad_id, min_saved=1))
    tuned = adapted(architectures[kind], method)
    for seed in range(6):
        rng = random.Random(seed)
        monkeypatch.setattr(tree_attention, "TILE", rng.choice([8, 128]))
        paths = random_paths(rng, 2 * rng.randint(1, 8))
        supervised = Objective([(path,) for path in paths], 0)
        pairs = Dpo(list(zip(paths[::2], paths[1::2], strict=True)), 0, beta=0.3)
        with tuned.disable_adapter():
            pairs.prepare(tuned, batch_tokens=256, path=loss.CHUNKED)
        for learned in (supervised, pairs):
            rows = range(len(learned.items))
            packed, ours = gradients(tuned, learned, [learned.batch(rows, loss.collate_forest)], loss.CHUNKED)
            apart, theirs = gradients(tuned, learned, [learned.batch([row]) for row in rows], loss.AT_LOSS_TOKENS)
            assert packed == pytest.approx(apart, rel=1e-5)
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_the_reference_of_a_preference_is_the_bare_base(architectures):
    """Rafailov et al., equation 7, from log-probabilities computed a second way."""
    tuned = adapted(architectures["llama"], "lora")
    paths = random_paths(random.Random(5), 6)
    paths = [Encoded(path.ids, max(1, path.num_prompt_tokens)) for path in paths]
    pairs = Dpo(list(zip(paths[::2], paths[1::2], strict=True)), 0, beta=0.3)
    with tuned.disable_adapter():
        pairs.prepare(tuned, batch_tokens=64, path=loss.CHUNKED)

    def log_prob(path: Encoded) -> float:
        logits = tuned(input_ids=torch.tensor([path.ids])).logits[0, :-1].log_softmax(-1)
        return float(logits.gather(1, torch.tensor(path.ids[1:])[:, None])[path.num_prompt_tokens - 1 :].sum())

    with torch.no_grad():
        now = [log_prob(path) for path in paths]
        with tuned.disable_adapter():
            before = [log_prob(path) for path in paths]
    margins = [0.3 * ((now[i] - before[i]) - (now[i + 1] - before[i + 1])) for i in range(0, 6, 2)]
    expected = -sum(float(torch.nn.functional.logsigmoid(torch.tensor(m))) for m in margins) / 3
    assert pairs.measure(tuned, batch_tokens=64)[0] == pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------- choosing


def test_steps_are_an_ordinary_shuffle_and_micro_batches_hold_the_budget():
    rng = random.Random(0)
    system = list(range(1, 101))
    rows = [[as_array([*system, *(rng.randrange(200) for _ in range(rng.randint(5, 40)))])] for _ in range(200)]
    lengths = [len(row[0]) for row in rows]
    schedule = build_schedule(rows, 2, batch_tokens=4000, micro_batch_tokens=600, seed=0, packing=packing.FOREST)
    assert sorted(row for step in schedule.steps for batch in step for row in batch) == sorted([*range(200)] * 2)
    for step, computed in zip(schedule.steps, schedule.computed_tokens, strict=True):
        assert schedule.tokens_in(step) <= 4000
        sizes = [packed_tokens([rows[row][0] for row in batch]) for batch in step]
        assert sum(sizes) == computed and max(sizes) <= 640  # the budget, rounded up
    assert schedule.num_tokens(len(schedule.steps)) == 2 * sum(lengths)
    assert schedule.num_tokens(2) > 3 * schedule.num_computed_tokens(2)
    # The first step's rows are no nearer to each other in the file than chance has it.
    assert np.std([row for batch in schedule.steps[0] for row in batch]) > 30


def test_answers_of_one_conversation_are_drawn_together():
    units = conversations([("a", 1), ("b", 1), ("a", 1), ("a", 2)])
    assert units == [[0, 2], [1], [3]]
    rows = [[as_array(range(1, 60 + i))] for i in range(4)]
    steps = build_schedule(rows, 1, 130, 130, 0, packing=packing.FOREST, units=units).steps
    assert any({0, 2} <= {row for batch in step for row in batch} for step in steps)


def chosen(tuned, rows, device=EXACT, **changes) -> packing.Packing:
    examples = [
        Example((Message("user", str(i)), Message("assistant", "b")), (1, 2), "f", i + 1) for i in range(len(rows))
    ]
    learned = Objective([(row,) for row in rows], 0)
    return packing.choose_packing(learned, examples, settings(**changes), tuned, loss.CHUNKED, device)


def shared_rows(num: int, shared: int = 100) -> list[Encoded]:
    rng = random.Random(0)
    system = [rng.randrange(1, VOCAB) for _ in range(shared)]
    return [Encoded([*system, *(rng.randrange(1, VOCAB) for _ in range(20))], shared + 10) for _ in range(num)]


def test_a_forest_is_chosen_where_rows_share_and_the_model_can(architectures):
    tuned = adapted(architectures["llama"], "lora")
    found = chosen(tuned, shared_rows(16))
    assert found.kind == packing.FOREST and found.sharing_factor > 3
    apart = chosen(tuned, shared_rows(16, shared=2))
    assert apart.kind == packing.PADDED and "1.25x on it is worth it" in apart.reason
    assert chosen(adapted(architectures["gemma3"], "lora"), shared_rows(16)).kind == packing.FOREST


def test_models_that_cannot_take_a_forest_are_served_padded_rows_and_a_reason(architectures):
    tuned = adapted(architectures["gemma3"], "lora")
    found = chosen(tuned, shared_rows(16, shared=110))
    assert found.kind == packing.PADDED and found.line == found.reason
    assert "but its layers include sliding_attention of 128 tokens under rows of 130" in found.reason
    tuned = adapted(architectures["llama"], "lora")
    base = tuned.get_base_model()
    base.config.layer_types = ["linear_attention", "full_attention"]
    assert "its layers include linear_attention" in chosen(tuned, shared_rows(16)).reason
    base.config.layer_types = None
    base.set_attn_implementation("sdpa")
    assert "its attention is sdpa" in chosen(tuned, shared_rows(16)).reason
    base.config._attn_implementation = NAME  # in name alone: the layers below do not know the forest
    for module in base.modules():
        if hasattr(module, "config"):
            module.config = type(base.config)(**{**base.config.to_dict(), "attn_implementation": "eager"})
    base.config._attn_implementation = NAME
    refused = chosen(tuned, shared_rows(16))
    assert refused.kind == packing.PADDED and "fewer tokens were possible, but its" in refused.reason


# ---------------------------------------------------------------- a whole rung


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("model") / "tiny"))


def questions(num: int, system: str = "", pairs: bool = False, start: str = "one more than ") -> list[Example]:
    head = (Message("system", system),) if system else ()
    return [
        Example(
            (
                *head,
                Message("user", f"{start}{i} plus one is which number, counting on?"),
                Message("assistant", str(i + 1)),
            ),
            (len(head) + 1, len(head) + 2),
            "sums",
            i + 1,
            rejected=(Message("assistant", str(i)),) if pairs else (),
        )
        for i in range(num)
    ]


@pytest.mark.parametrize(
    ("examples", "changes", "packed", "attention", "route"),
    [
        (questions(40, "Add one. " * 12), {}, packing.FOREST, "dense blocks of the prefix forest", "sft"),
        (questions(40, start=""), {}, packing.PADDED, "matrix products", "sft"),
        (
            questions(40, "Add. " * 9, pairs=True),
            {"objective": "dpo", "learning_rate": 2e-3},
            packing.FOREST,
            "dense blocks",
            "dpo",
        ),
        (questions(24, "Add one. " * 12), {"method": "qlora"}, packing.FOREST, "dense blocks", "sft"),
    ],
)
def test_the_record_says_what_was_really_on(tiny, tmp_path, examples, changes, packed, attention, route):
    if changes.get("method") == "qlora":
        pytest.importorskip("bitsandbytes")
    result = train_rung(
        model=tiny, train=examples, dev=examples[:4], out_dir=tmp_path / "rung", settings=settings(**changes),
        device=Device("cpu", "cpu", 2**33, 1, "bfloat16", ""), dev_metric=lambda model, tokenizer: 0.0,
    )  # fmt: skip
    said = json.loads(json.dumps(result.settings))
    assert (said["packing"], said["objective"], said["loss_path"]) == (packed, route, loss.CHUNKED)
    assert said["attention"].startswith(attention) and said["packing_reason"]
    assert said["kernels"] == "torch's" and "CUDA" in said["kernels_reason"] and said["adapters"] == "fused"
    assert said["base_format"].startswith("nf4" if changes.get("method") == "qlora" else "bfloat16")
    assert result.num_train_tokens / result.num_computed_tokens == pytest.approx(said["sharing_factor"])
    assert (said["sharing_factor"] > 1.25) == (packed == packing.FOREST)
    assert result.history[0]["dev_loss" if "dev_loss" in result.history[0] else "loss"] > 0


def test_preference_training_continues_to_the_same_bytes_and_keeps_its_reference(tiny, tmp_path):
    examples = questions(40, pairs=True)

    def run(out, stop=None):
        return train_rung(
            model=tiny, train=examples, dev=examples[:4], out_dir=tmp_path / out, dev_metric=lambda m, t: 0.0,
            settings=settings(objective="dpo", learning_rate=2e-3, num_epochs=2, batch_tokens=400), device=EXACT,
            **({"should_stop": stop} if stop else {}),
        )  # fmt: skip

    calls = []
    whole = run("whole")
    with pytest.raises(BudgetStopped):
        run("parts", lambda wall_s: BudgetStopped("spent") if calls.append(1) or len(calls) == 2 else None)
    kept = tmp_path / "parts" / "reference.json"
    written = kept.stat().st_mtime_ns
    run("parts")
    assert kept.stat().st_mtime_ns == written
    both = [(tmp_path / out / "adapter" / "adapter_model.safetensors").read_bytes() for out in ("whole", "parts")]
    assert both[0] == both[1]
    assert whole.history[0]["loss"] == pytest.approx(np.log(2), rel=1e-3)  # no adapter yet, no preference


def test_both_packings_learn_the_same(tiny, tmp_path, monkeypatch):
    """Same rows in the same number of steps; the losses of the last ones agree."""
    examples = questions(64, "Add one. " * 10)
    found = {}
    for kind, least in ((packing.FOREST, 1.25), (packing.PADDED, 1e9)):
        monkeypatch.setattr(packing, "MIN_GAIN", least)
        result = train_rung(
            model=tiny, train=examples, dev=[], out_dir=tmp_path / kind, device=EXACT,
            settings=settings(num_epochs=6, batch_tokens=1000), dev_metric=lambda model, tokenizer: 0.0,
        )  # fmt: skip
        assert result.settings["packing"] == kind
        found[kind] = [point["loss"] for point in result.history]
    means = {kind: (np.mean(losses[:4]), np.mean(losses[-10:])) for kind, losses in found.items()}
    assert means[packing.FOREST] == pytest.approx(means[packing.PADDED], rel=0.1)


def test_a_pair_without_its_other_side_is_named(tiny):
    rows = questions(3, pairs=True)[:2] + questions(3)[2:]
    with pytest.raises(BadInput, match=r"1 of 3 training rows, which have no rejected answer, first sums:3"):
        objective(load_tokenizer(tiny), rows, settings(objective="dpo"), "training")
