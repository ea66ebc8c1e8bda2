"""Full fine-tuning, DoRA and rsLoRA: they learn, stop and continue to the same bits, and serve what they learned."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shoestring.config import RunConfig, parse_run_file
from shoestring.errors import BudgetStopped, ConfigError, ModelError
from shoestring.evaluate.generation import load_generator
from shoestring.files import read_json
from shoestring.plan.engines import require_honoured
from shoestring.plan.memory import activation_bytes_per_token, predict_memory
from shoestring.plan.settings import resolve_settings
from shoestring.plan.shapes import shape_from_config, shape_of
from shoestring.plan.throughput import predict_time, train_flops_per_token
from shoestring.records import Device, Message, TokenCounts
from shoestring.serve.merge import merge_adapter
from shoestring.train import full, fused, head_loss, loss
from shoestring.train.adapter import adapter_in_16_bit, build_adapter, is_whole, restore, starting_point
from shoestring.train.attention import use_attention
from shoestring.train.base import load_base, load_tokenizer, quiet_loading
from shoestring.train.gates import REFUSE
from shoestring.train.memory_policy import counting_kept, trained_copies
from shoestring.train.probe import examine
from shoestring.train.setup import set_up
from shoestring.train.tokens import encode_example
from shoestring.train.trainer import train_rung
from tests.test_train_trainer import EXACT, HALF, additions, recorded, settings
from tests.tiny import make_model

FULL = {"method": "full", "lora_rank": 0, "lora_alpha": 0.0, "learning_rate": 1e-3}
METHODS = {
    "full": FULL,
    "dora": {"dora": True},
    "rslora": {"rslora": True, "lora_alpha": 4.0},
    "qlora with dora and rslora": {"method": "qlora", "dora": True, "rslora": True, "lora_alpha": 4.0},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def rung(tiny, tmp_path):
    def run(out, device=HALF, stop=None, num_rows=80, **changes):
        return train_rung(
            model=tiny,
            train=additions(num_rows),
            dev=additions(8, 500),
            out_dir=tmp_path / out,
            settings=settings(**changes),
            device=device,
            dev_metric=lambda model, tokenizer: 0.0,
            **({"should_stop": stop} if stop else {}),
        )

    run.folder, run.model = tmp_path, tiny
    return run


def published(folder: Path, method: str) -> bytes:
    name = "model/model.safetensors" if method == "full" else "adapter/adapter_model.safetensors"
    return (folder / name).read_bytes()


def stops_at(step: int, folder: Path):
    """A should_stop that stops once, after that step."""

    def stop(wall_s: float) -> Exception | None:
        return BudgetStopped("enough") if recorded(folder)[-1] == step else None

    return stop


@pytest.mark.parametrize(
    ("name", "device"),
    [("full", EXACT), ("full", HALF), ("dora", HALF), ("rslora", EXACT), ("qlora with dora and rslora", HALF)],
)
def test_learns_and_continues_to_the_same_bits(rung, name, device):
    changes = {"num_rows": 48, "num_evals": 2, **METHODS[name]}
    whole = rung("whole", device, **changes)
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]
    with pytest.raises(BudgetStopped):
        rung("cut", device, stop=stops_at(3, rung.folder / "cut"), **changes)
    cut = rung("cut", device, **changes)
    assert published(rung.folder / "cut", whole.method) == published(rung.folder / "whole", whole.method)
    assert cut.num_steps == whole.num_steps and cut.settings["adapter_effect_logits"] > 0


# ---------------------------------------------------------------- full fine-tuning, numbers


def model_of(folder: Path, tied: bool):
    """A float32 Llama whose head is, or is not, the embedding; every weight learns."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    if not tied:
        model.config.tie_word_embeddings = False
        head = torch.nn.Linear(*reversed(model.lm_head.weight.shape), bias=True)
        torch.nn.init.normal_(head.bias)
        model.lm_head = head
    use_attention(model)
    return model.train().requires_grad_(True)


def gradients(model, value) -> dict[str, torch.Tensor]:
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def apart(one, other) -> float:
    """Largest difference of a gradient, relative to its norm."""
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).norm() / other[n].norm().clamp(min=1e-12)) for n in one)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_forest_gives_the_gradients_of_plain_rows(tiny, tied):
    """Every weight, head and embedding included, against transformers' own loss with labels, row by row."""
    model, tokenizer = model_of(tiny, tied), load_tokenizer(tiny)
    rows = [encode_example(tokenizer, e) for e in additions(6, 995)]
    theirs = 0.0
    for row in rows:
        labels = torch.tensor([[-100] * row.num_prompt_tokens + row.ids[row.num_prompt_tokens :]])
        own = model(input_ids=torch.tensor([row.ids]), labels=labels).loss
        theirs = theirs + own * (len(row.ids) - row.num_prompt_tokens)
    wanted = gradients(model, theirs)
    assert ("lm_head.weight" in wanted) is not tied
    for collate in (loss.collate, loss.collate_forest):
        batch = collate(rows, tokenizer.pad_token_id)
        for path in (loss.CHUNKED, loss.AT_LOSS_TOKENS):
            assert apart(gradients(model, loss.loss_sum(model, batch, path)), wanted) < 1e-5


def test_a_trained_head_in_chunks_weighs_each_token_by_what_comes_from_above(monkeypatch):
    monkeypatch.setattr(head_loss, "HEAD_CHUNK_BYTES", 4 * 7 * 3)  # three tokens a chunk
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(5, 7), torch.randn(8, 5, requires_grad=True)
    targets, above = torch.tensor([1, 6, -100, 0, 3, 3, -100, 2]), torch.randn(8)
    found = []
    for chunked in (True, False):
        losses = (
            head_loss.chunked_losses(hidden, head, targets, -100)
            if chunked
            else torch.nn.functional.cross_entropy(head(hidden), targets, reduction="none", ignore_index=-100)
        )
        found.append((losses, *torch.autograd.grad((losses * above).sum(), [hidden, head.weight, head.bias])))
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours, torchs)


def test_half_precision_products_give_nearly_the_gradients_of_float32(tiny):
    model, tokenizer = model_of(tiny, tied=True), load_tokenizer(tiny)
    use_attention(model, "bfloat16")
    batch = loss.collate_forest([encode_example(tokenizer, e) for e in additions(6, 995)], tokenizer.pad_token_id)
    exact = gradients(model, loss.loss_sum(model, batch, loss.CHUNKED))
    with loss.precision(HALF):
        value = loss.loss_sum(model, batch, loss.CHUNKED)
    low = gradients(model, value)
    assert all(g.dtype == torch.float32 for g in low.values()) and 0 < apart(low, exact) < 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["full", "dora"])
def test_activation_bytes_are_what_autograd_keeps(method, dtype):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    device, num_tokens, rank = Device("cpu", "cpu", 2**30, 1, dtype, ""), 512, 4

    def kept(num_layers):
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=64, intermediate_size=320, num_hidden_layers=num_layers, **sizes)
        )
        if method == "dora":
            model = model.to(getattr(torch, dtype)).requires_grad_(False)
            with quiet_loading():
                model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", use_dora=True))
        use_attention(loss.causal(model), dtype)
        ids = torch.ones(1, num_tokens, dtype=torch.long)
        copies = trained_copies(model, dtype)
        with adapter_in_16_bit(model, device), counting_kept(model, copies) as count, loss.precision(device):
            held = loss.causal(model).base_model(input_ids=ids, use_cache=False)
            num_bytes = count()
            del held
        return num_bytes

    measured = (kept(3) - kept(1)) / 2 / num_tokens
    one = {"intermediate_size": 320, "num_hidden_layers": 1, "vocab_size": 64, "max_position_embeddings": 128}
    shape = shape_from_config("one", {"model_type": "llama", **sizes, **one}, "test")
    asked = {"method": "full"} if method == "full" else {"dora": True}
    predicted = activation_bytes_per_token(shape, 0 if method == "full" else rank, device, num_tokens, **asked)
    assert predicted == pytest.approx(measured, rel=0.03)


def test_full_takes_sixteen_bytes_a_parameter_and_six_products():
    """Llama-3.2-1B by hand: 1.236 G parameters x (4 + 4 + 8) bytes, and autocast's 16-bit copies."""
    shape, h100 = shape_of("meta-llama/Llama-3.2-1B"), Device("cuda", "H100-SXM", 85899345920, 8, "bfloat16", "")
    found = predict_memory(shape, method="full", lora_rank=0, micro_batch_tokens=512, device=h100)
    held = [found.parts[name] for name in ("weights", "gradients", "optimizer", "copies", "adapter")]
    n, table = shape.num_params, shape.num_embedding_params
    assert held == [4 * n, 4 * n + 4 * table, 8 * n, 2 * (shape.num_linear_params + table), 0]
    assert found.verdict == "fits" and found.device_expected_bytes > 18 * n
    short = {"row_tokens": 1, "loss_frac": 0.0}
    full, lora = (train_flops_per_token(shape, 0, **short, method=m) for m in ("full", "lora"))
    assert full / lora == pytest.approx(1.5, rel=0.001)


def test_dora_is_planned_to_take_longer_and_more():
    shape, counts = shape_of("meta-llama/Llama-3.2-1B"), TokenCounts((80,) * 400, (20,) * 400, (80,) * 50, (20,) * 50)
    a100 = Device("cuda", "A100-80GB", 85899345920, 8, "bfloat16", "")
    lora, dora = (settings(dora=on, lora_rank=16, batch_tokens=2048, micro_batch_tokens=2048) for on in (False, True))
    times = [predict_time(shape, asked, counts, a100, num_dev_rows=20) for asked in (lora, dora)]
    assert times[1].train_s.value > times[0].train_s.value and times[1].eval_s.value > times[0].eval_s.value
    asked = {"method": "lora", "lora_rank": 16, "micro_batch_tokens": 2048, "device": a100}
    plain, more = (predict_memory(shape, **asked, dora=on) for on in (False, True))
    assert more.device_expected_bytes > plain.device_expected_bytes
    assert more.parts["adapter"] - plain.parts["adapter"] == 4 * shape.num_dora_params


# ---------------------------------------------------------------- full fine-tuning, as a rung


def test_the_whole_model_is_published_put_back_and_merged(rung, tiny):
    trained, folder = rung("rung", **FULL), rung.folder / "rung"
    assert trained.adapter_dir == "model" and not (folder / "adapter").exists()
    config, origin = read_json(folder / "model" / "config.json"), read_json(folder / "model" / "shoestring.json")
    assert config["dtype"] == "float32" and config["tie_word_embeddings"]
    assert (origin["method"], origin["words"]) == ("full", "full fine-tuning")
    facts = trained.settings
    assert facts["adapters"] == "none" and facts["base_format"] == "float32, products in bfloat16"
    assert "every_weight_is_trained" in facts["preflight"] and "there_is_an_adapter" not in facts["preflight"]
    weights = published(folder, "full")
    (folder / "model" / "model.safetensors").write_bytes(weights[:-8] + bytes(8))
    assert not is_whole(folder / "model", facts["adapter_sha256"])
    assert restore(folder, trained) and published(folder, "full") == weights
    assert is_whole(folder / "model", facts["adapter_sha256"])

    check = merge_adapter(tiny, folder / "model", folder / "merged", device=HALF, examples=additions(20, 300))
    assert check.passed and 0 < check.mean_abs_logprob_diff < 0.1 * check.adapter_effect
    assert read_json(folder / "merged" / "config.json")["dtype"] == "bfloat16"
    outputs = [
        load_generator(tiny, folder / name, method="full", device=HALF, max_new_tokens=8).generate(
            [e.request for e in additions(4, 40)]
        )
        for name in ("model", "merged")
    ]
    assert [c.text for c in outputs[0]] == [c.text for c in outputs[1]]


def test_small_updates_are_not_lost_to_sixteen_bits(rung, tiny):
    """Of a rate so small that each step is below half the last bit of a bfloat16 weight, the sum still arrives."""
    trained = rung("rung", num_rows=40, **{**FULL, "learning_rate": 1e-5})
    before = load_file(Path(tiny) / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].float()
    after = load_file(rung.folder / "rung" / "model" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    moved = (after - before).abs()
    assert 0 < float(moved.max()) < 1e-3 and float((moved > 0).float().mean()) > 0.99
    assert float((after.bfloat16() != before.bfloat16()).float().mean()) < 0.1 and trained.num_steps


def test_preferences_are_learned_by_every_weight(rung):
    pairs = [dataclasses.replace(e, rejected=(Message("assistant", "no"),)) for e in additions(40)]

    def train(out, **extra):
        return train_rung(
            model=rung.model, train=pairs, dev=pairs[:8], out_dir=rung.folder / out,
            settings=settings(**{**FULL, "objective": "dpo", "learning_rate": 1e-4, "num_evals": 2}), device=EXACT,
            dev_metric=lambda model, tokenizer: 0.0, **extra,
        )  # fmt: skip

    whole = train("whole")
    assert whole.history[0]["loss"] == pytest.approx(0.6931, abs=1e-3) and whole.final_loss < 0.65
    with pytest.raises(BudgetStopped):
        train("cut", should_stop=stops_at(2, rung.folder / "cut"))
    seen = read_json(rung.folder / "cut" / "reference.json")  # of the base, whatever was learned since
    train("cut")
    assert read_json(rung.folder / "cut" / "reference.json") == seen
    assert published(rung.folder / "cut", "full") == published(rung.folder / "whole", "full")


def freeze(ready) -> None:
    next(ready.tuned.parameters()).requires_grad_(False)


def lower(ready) -> None:
    ready.tuned.to(torch.bfloat16)


def untie(ready) -> None:
    ready.tuned.lm_head.weight = torch.nn.Parameter(ready.tuned.lm_head.weight.detach().clone())


def cut_graph(ready) -> None:
    layer = ready.tuned.model.layers[1]
    whole = layer.forward
    layer.forward = lambda hidden, *args, **kwargs: whole(hidden.detach(), *args, **kwargs)


@pytest.mark.parametrize(
    ("spoil", "gate"),
    [
        (freeze, "every_weight_is_trained"),
        (lower, "weights_learn_in_float32"),
        (untie, "every_weight_is_trained"),
        (cut_graph, "every_matrix_learns"),
        (None, None),
    ],
)
def test_gates_have_a_form_for_whole_models(tiny, spoil, gate):
    asked = settings(**FULL)
    with set_up(tiny, additions(40), additions(4, 500), asked, EXACT) as ready:
        before = {name: p.detach().clone() for name, p in ready.tuned.named_parameters()}
        if spoil:
            spoil(ready)
        wrong = [finding.gate for finding in examine(ready) if finding.level == REFUSE]
        assert wrong[:1] == ([gate] if gate else [])
        if not spoil:
            assert all(torch.equal(before[name], p) for name, p in ready.tuned.named_parameters())


def test_the_rate_of_an_adapter_is_refused_for_a_whole_model(tiny):
    with set_up(tiny, additions(40), [], settings(**{**FULL, "learning_rate": 1.3e-2}), EXACT) as ready:
        (found,) = [f for f in examine(ready) if f.level == REFUSE]
    assert found.gate == "learning_rate_is_sane" and "method: full" in found.found


def test_a_model_that_comes_quantised_is_refused(tiny, tmp_path):
    folder = tmp_path / "nf4"
    quantised = load_base(tiny, device=EXACT, quantise=True)
    quantised.save_pretrained(folder)
    load_tokenizer(tiny).save_pretrained(folder)
    with pytest.raises(ModelError, match="quantised weights"):
        full.load(str(folder), EXACT)


# ---------------------------------------------------------------- DoRA and rsLoRA


@pytest.mark.parametrize(("rank", "scale"), [(16, 2.0), (64, 1.0)])
def test_rslora_has_loras_scale_at_the_default_rank(rank, scale):
    config = RunConfig.model_validate(
        {"name": "x", "task": {"kind": "classify", "bar": 0.9}, "data": {"train": "x.csv"}}
        | {"train": {"rslora": True, **({} if rank == 16 else {"lora_rank": rank})}}
    )
    counts = TokenCounts(prompt=(20,) * 50, answer=(5,) * 50, eval_prompt=(20,), eval_answer=(5,))
    resolved = resolve_settings(config, shape_of("meta-llama/Llama-3.2-1B"), counts, HALF)
    assert resolved.lora_rank == rank and resolved.lora_alpha / rank**0.5 == pytest.approx(scale)


def test_peft_scales_as_planned_and_fused_products_follow(tiny):
    ids = torch.arange(40, 56)[None]
    for dora, reason in ((False, "as PEFT's"), (True, "DoRA")):
        tuned = build_adapter(tiny, settings(rslora=True, dora=dora, lora_alpha=4.0), EXACT)
        layer = next(fused.lora_layers(tuned))
        assert layer.scaling["default"] == pytest.approx(4 / 4**0.5)
        assert all(p.dtype == torch.float32 for p in tuned.parameters() if p.requires_grad)
        chosen, why = fused.choose_adapters(tuned, lambda t=tuned: t(input_ids=ids, labels=ids).loss, "float32")
        assert (chosen == fused.PEFT) is dora and reason in why


@pytest.mark.parametrize("name", ["dora", "rslora", "qlora with dora and rslora"])
def test_what_adapters_learned_is_merged(rung, tiny, name):
    rung("rung", num_rows=48, **METHODS[name])
    adapter = rung.folder / "rung" / "adapter"
    check = merge_adapter(tiny, adapter, rung.folder / "merged", device=HALF, examples=additions(20, 300))
    assert check.passed
    words = read_json(rung.folder / "merged" / "shoestring.json")["words"]
    assert ("DoRA" in words) is ("dora" in name) and ("rsLoRA" in words) is ("rslora" in name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: full\ntrain: {lora_rank: 8, dora: true}", "run file:5: train: dora, lora_rank is of adapters"),
        ("method: full\ntrain: {fp8: true}", "fp8 holds a frozen base"),
        ("train: {dora: true, fp8: true}", "set one of the two"),
        ("method: full\nengine: trl", "method: full is not among"),
        ("train: {dora: true, parallelism: fsdp}", "needs it whole"),
    ],
)
def test_what_does_not_go_together_is_refused(text, message):
    head = "name: x\ntask: {kind: classify, bar: 0.9}\ndata: {train: x.csv}\n"
    with pytest.raises(ConfigError, match=message):
        require_honoured(parse_run_file(head + text))


def test_after_memory_ran_out_a_whole_model_starts_from_its_base(tiny):
    tuned = full.load(tiny, EXACT)
    before = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    start_over = starting_point(tuned, tiny, EXACT)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.zero_()
    start_over()
    assert all(torch.equal(before[name], p) for name, p in tuned.named_parameters())
    assert tuned.lm_head.weight is tuned.get_input_embeddings().weight
