"""serve/merge_check: merged weights against what was trained, over shapes of models; broken exports are refused."""

import dataclasses
import json
import re
import shutil
import warnings

import pytest
import torch

from shoestring.errors import ModelError
from shoestring.records import Device, Example, Message
from shoestring.serve import merge
from shoestring.serve.merge_check import Readings, compare
from shoestring.train.base import encode_example, load_base, load_tokenizer, quiet_loading
from tests.tiny import make_model

HALF = Device("cpu", "cpu", 2**33, 1, "bfloat16", "")
ROWS = [
    Example((Message("user", f"one more than {i}?"), Message("assistant", f"it is {i + 1}")), (1, 2), "sums", i)
    for i in range(24)
]
SHAPES = {
    f"{kind} {'tied' if is_tied else 'untied'}": dict(kind=kind, is_tied=is_tied, **more)
    for kind, more in (("llama", {}), ("qwen3", {"head_dim": 32}))
    for is_tied in (True, False)
}


# ---- the numbers, by hand -------------------------------------------------------------------


def readings(logprobs, top1, texts):
    tokens = len(logprobs)
    return Readings(logprobs, top1, torch.full((tokens, 2), 0.5).log(), torch.zeros(tokens, dtype=torch.long), texts)


def test_an_error_near_the_adapters_effect_fails():
    """By hand: the adapter moves log-probabilities by 1; a merge off by 0.01 passes, one off by 0.5 does not."""
    zeros, ones = torch.zeros(4), torch.ones(4)
    top1 = torch.tensor([1, 2, 3, 4])
    reference, bare = readings(zeros, top1, [[1, 2]]), readings(ones, top1, [])
    good = compare(reference, readings(zeros + 0.01, top1, [[1, 2]]), bare, None)
    assert good.passed and good.adapter_effect == 1.0 and good.mean_abs_logprob_diff == pytest.approx(0.01)
    assert good.kl == 0 and good.faults == ()
    assert "off by 0.5" in compare(reference, readings(zeros + 0.5, top1, [[1, 2]]), bare, None).faults[0]
    assert "greatest token" in compare(reference, readings(zeros, top1.flip(0), [[1, 2]]), bare, None).faults[0]
    assert "greedy answer" in compare(reference, readings(zeros, top1, [[9]]), bare, None).faults[0]


def test_rounding_is_the_measure():
    """Noise 0.01: off by 0.05 is more than four times that; an adapter that changed 0.02 is not above it."""
    zeros, top1 = torch.zeros(4), torch.tensor([1, 2, 3, 4])
    reference, rounded = readings(zeros, top1, [[1]]), readings(zeros + 0.01, top1, [[1]])
    off = compare(reference, readings(zeros + 0.05, top1, [[1]]), readings(zeros + 1, top1, []), rounded)
    assert off.rounding_noise == pytest.approx(0.01) and off.faults == (
        "log-probabilities are off by 0.05, over 4 times rounding (0.01)",
    )
    weak = compare(reference, reference, readings(zeros + 0.02, top1, []), rounded)
    assert not weak.passed and "cannot be told apart" in weak.faults[0]


def test_a_merge_that_did_nothing_fails_however_small_the_effect():
    zeros, top1 = torch.zeros(4), torch.tensor([1, 2, 3, 4])
    reference, bare = readings(zeros, top1, [[1]]), readings(zeros + 1e-6, top1, [[1]])
    assert not compare(reference, bare, bare, None).passed
    assert not compare(reference, reference, reference, None).passed


def test_row_means_by_hand():
    logprobs = torch.tensor([-1.0, -3.0, -5.0])
    told = Readings(logprobs, None, None, torch.tensor([0, 0, 1]), [])
    assert told.row_means() == [-2.0, -5.0]


# ---- real merges ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny model of a shape, made once."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def of(name, **more):
        key = f"{name} {sorted(more.items())}"
        if key not in made:
            made[key] = make_model(folder / str(len(made)), hidden=64, **SHAPES[name], **more)
        return str(made[key])

    return of


def adapt(model, out, method="lora", seed=1, **more):
    """An adapter of random matrices, none zero, as training leaves one."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    base = load_base(model, device=HALF, quantise=method == "qlora")
    settings = {"r": 4, "lora_alpha": 4, "target_modules": "all-linear", "init_lora_weights": False, **more}
    with quiet_loading(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of tied matrices, which are tested
        tuned = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
        for name, weight in tuned.named_parameters():
            if "modules_to_save" in name:
                weight.data += 0.05 * torch.randn_like(weight)
        tuned.save_pretrained(out)
    load_tokenizer(model).save_pretrained(out)
    (out / merge.ORIGIN).write_text(json.dumps({"model": model, "method": method}))
    return out


def merged(model, adapter, out, **more):
    return merge.merge_adapter(model, adapter, out, device=HALF, examples=ROWS, **more)


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("shape", SHAPES)
def test_merged_is_adapter_and_base(models, tmp_path, shape, method):
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    model = models(shape)
    check = merged(model, adapt(model, tmp_path / "adapter", method), tmp_path / "merged")
    assert check.passed, check
    assert 0 < check.mean_abs_logprob_diff < 4 * check.rounding_noise < check.adapter_effect
    assert check.top1_agreement_frac >= 0.95 and check.kl < 0.01
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] is (shape.endswith(" tied")) and "quantization_config" not in config
    assert (check.candidates.get("shipped") == merge.DEQUANTISED) is (method == "qlora")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


def test_of_two_merges_the_better_is_shipped_and_the_difference_told(models, tmp_path):
    """A score that prefers one of them decides; one that cannot tell them apart leaves the dequantised."""
    pytest.importorskip("bitsandbytes")
    model = models("llama tied")
    adapter = adapt(model, tmp_path / "adapter", "qlora")
    seen = []

    def better_second(merged_model, tokenizer):
        seen.append(merged_model)
        return [0.1 * len(seen) + 0.001 * i for i in range(len(ROWS))]

    check = merged(model, adapter, tmp_path / "merged", score=better_second, metric="chrf")
    told = check.candidates
    assert check.passed and told["shipped"] == merge.ORIGINAL and told["metric"] == "chrf"
    assert told["original_minus_dequantised"] == pytest.approx(0.1) and told["num_rows"] == len(ROWS)
    assert json.loads((tmp_path / "merged" / merge.ORIGIN).read_text())["base"] == "original weights"
    check = merged(model, adapter, tmp_path / "again", score=lambda *_: [0.5] * len(ROWS))
    assert check.candidates["shipped"] == merge.DEQUANTISED
    weights = [load_base(str(tmp_path / name), device=HALF).state_dict() for name in ("merged", "again")]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("more", [{"use_dora": True}, {"use_rslora": True}, {"trainable_token_indices": [3, 4]}])
def test_other_adapters_are_merged_right(models, tmp_path, more):
    model = models("qwen3 tied")
    assert merged(model, adapt(model, tmp_path / "adapter", **more), tmp_path / "merged").passed


@pytest.mark.parametrize("shape", ["llama tied", "llama untied"])
def test_a_whole_head_is_saved_as_it_was_trained(models, tmp_path, shape):
    model = models(shape)
    adapter = adapt(model, tmp_path / "adapter", modules_to_save=["lm_head"])
    check = merged(model, adapter, tmp_path / "merged")
    assert check.passed, check
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_expert_matrices_are_merged_right(tmp_path):
    model = str(
        make_model(
            tmp_path / "model", hidden=64, kind="qwen3_moe", head_dim=32, num_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=32, decoder_sparse_step=1,
        )
    )  # fmt: skip
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapter = adapt(model, tmp_path / "adapter", target_modules=["q_proj", "v_proj"], target_parameters=names)
    check = merged(model, adapter, tmp_path / "merged")
    assert check.passed, check


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"target_modules": ["lm_head", "q_proj"]}, "adapts lm_head"),
        ({"target_modules": ["embed_tokens"]}, "embed_tok"),
    ],
)
def test_lora_on_tied_ends_is_refused_by_name(models, tmp_path, more, words):
    model = models("llama tied")
    adapter = adapt(model, tmp_path / "adapter", **more)
    with pytest.raises(ModelError, match=f"{words}.*ensure_weight_tying"):
        merged(model, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_added_tokens_and_other_methods_are_refused_by_name(models, tmp_path):
    model = models("llama untied")
    adapter = adapt(model, tmp_path / "adapter")
    tokenizer = load_tokenizer(model)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(adapter)
    with pytest.raises(ModelError, match="add the tokens to the base first"):
        merged(model, adapter, tmp_path / "merged")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "peft_type": "IA3"}))
    with pytest.raises(ModelError, match="holds IA3, and LoRA alone is merged"):
        merged(model, adapter, tmp_path / "merged")


def test_what_belongs_to_the_model_travels_along(models, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(models("llama tied"), model)
    (model / "LICENSE.txt").write_text("as is")
    generation = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**generation, "repetition_penalty": 1.05}))
    merged(str(model), adapt(str(model), tmp_path / "adapter"), tmp_path / "merged")
    assert (tmp_path / "merged" / "LICENSE.txt").read_text() == "as is"
    generation = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert generation["repetition_penalty"] == 1.05
    assert load_tokenizer(str(model)).eos_token_id in generation["eos_token_id"]


# ---- broken exports -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(models, tmp_path_factory):
    """A good export of an rsLoRA adapter: model, adapter, merged folder."""
    folder = tmp_path_factory.mktemp("good")
    model = models("llama untied")
    adapter = adapt(model, folder / "adapter", use_rslora=True)
    assert merged(model, adapter, folder / "merged").passed
    return model, adapter, folder / "merged"


def nothing_merged(folder, model, adapter):
    shutil.copy(f"{model}/model.safetensors", folder / "model.safetensors")


def scale_lost(folder, model, adapter):
    other = folder.with_name("plain")
    shutil.copytree(adapter, other)
    edit(other / "adapter_config.json", use_rslora=False)
    replaced(folder, model, other)


def wrong_base(folder, model, adapter):
    replaced(folder, str(make_model(folder.with_name("other"), hidden=64, is_tied=False, seed=5)), adapter)


def quantisation_left(folder, model, adapter):
    edit(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})


def template_changed(folder, model, adapter):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|user|>", "<|human|>").replace("{{ m['role'] }}", "human"))


def stop_token_lost(folder, model, adapter):
    edit(folder / "generation_config.json", eos_token_id=None)


def tensor_dropped(folder, model, adapter):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def tokenizer_changed(folder, model, adapter):
    rules = json.loads((folder / "tokenizer.json").read_text())
    vocab = rules["model"]["vocab"]
    vocab["a"], vocab["e"] = vocab["e"], vocab["a"]
    (folder / "tokenizer.json").write_text(json.dumps(rules))


def edit(path, **more):
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def replaced(folder, model, adapter):
    tokenizer = load_tokenizer(model)
    shutil.rmtree(folder)
    merge._write_merged(model, adapter, folder, tokenizer, HALF, merge.ORIGINAL)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (nothing_merged, "and training changed them by"),
        (scale_lost, "times rounding"),
        (wrong_base, "times rounding"),
        (quantisation_left, "quantization_config"),
        (template_changed, "chat template is another"),
        (stop_token_lost, r"does not stop at <\|end\|>"),
        (tensor_dropped, r"its files lack model\.layers\.1\.mlp\.up_proj\.weight"),
        (tokenizer_changed, "tokenizer is another"),
    ],
)
def test_a_broken_export_is_refused(good, tmp_path, broken, words):
    model, adapter, folder = good
    shutil.copytree(folder, tmp_path / "merged")
    tokenizer = load_tokenizer(model)
    rows = [encode_example(tokenizer, example) for example in ROWS]
    broken(tmp_path / "merged", model, adapter)
    try:
        check = merge.check_export(
            tmp_path / "merged", model, adapter, device=HALF, rows=rows, tokenizer=tokenizer, way=merge.ORIGINAL
        )
    except ModelError as error:
        pytest.fail(f"not judged: {error}")
    assert not check.passed and any(re.search(words, fault) for fault in check.faults), check


def test_a_good_export_passes_the_same_check(good):
    model, adapter, folder = good
    tokenizer = load_tokenizer(model)
    rows = [encode_example(tokenizer, example) for example in ROWS]
    check = merge.check_export(
        folder, model, adapter, device=HALF, rows=rows, tokenizer=tokenizer, way=merge.ORIGINAL
    )  # fmt: skip
    assert check.passed and dataclasses.asdict(check)["faults"] == ()
