"""serve/gguf: what a GGUF adapter's scale must be, what is refused, and (where llama.cpp is built) what comes out."""

import dataclasses
import json

import pytest

from shoestring.errors import MissingDependency, ModelError
from shoestring.records import Device, Example, Message
from shoestring.serve import gguf, gguf_check
from shoestring.serve.llamacpp_home import converter
from shoestring.train.base import load_base, load_tokenizer, quiet_loading

MODEL = "shoestring-1m"
CPU = Device("cpu", "cpu", 2**33, 1, "bfloat16", "")
ROWS = [
    Example(
        (Message("user", f"Ticket {i}: the printer is {word}"), Message("assistant", f"{word} {i}")), (1, 2), "s", i
    )
    for i, word in enumerate(["on fire", "out of paper", "too loud", "lost"])
]
CHECK = gguf_check.GgufCheck("tickets", "f16", 5, 5, 20, 0.002, 1.0, 1.0, 0.01, 0.5, False, "")


def test_rslora_needs_another_alpha():
    """By hand: PEFT scales by 8 / sqrt(16) = 2, llama.cpp by alpha / 16, so alpha must be 32."""
    assert gguf.gguf_alpha({"lora_alpha": 8, "r": 16, "use_rslora": True}) == 32
    assert gguf.gguf_alpha({"lora_alpha": 8, "r": 16, "use_rslora": False}) == 8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "it is DoRA"),
        ({"modules_to_save": ["lm_head"]}, r"whole modules \(lm_head\)"),
        ({"trainable_token_indices": [3]}, "trained tokens"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"peft_type": "IA3"}, "it is IA3"),
        ({"rank_pattern": {"q_proj": 4}}, "ranks or alphas of their own"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "expert parameters"),
        ({"target_modules": ["model.embed_tokens", "q_proj"]}, "that ties them"),
        ({"target_modules": ["lm_head"]}, "that ties them"),
    ],
)
def test_what_a_gguf_adapter_cannot_hold_is_refused_by_name(settings, words):
    plain = {"peft_type": "LORA", "target_modules": ["q_proj"], "bias": "none"}
    gguf.refuse_adapter(plain, {"tie_word_embeddings": True}, "tickets")
    with pytest.raises(ModelError, match=rf"tickets cannot be a GGUF adapter: .*{words}.*Merge it"):
        gguf.refuse_adapter({**plain, **settings}, {"tie_word_embeddings": True}, "tickets")


def test_lora_on_an_untied_head_is_no_reason():
    gguf.refuse_adapter({"target_modules": ["lm_head"]}, {"tie_word_embeddings": False}, "tickets")


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}


def test_rules_of_a_tokenizer_have_a_name_in_llamacpp_or_none():
    with_regex = {"type": "ByteLevel", "use_regex": True}
    plain = {"type": "ByteLevel", "use_regex": False}
    digits = {"type": "Digits", "individual_digits": True}

    def named(*parts, **more):
        return gguf.pre_tokenizer({"type": "Sequence", "pretokenizers": list(parts)}, **more)

    assert gguf.pre_tokenizer(with_regex) == named(with_regex) == named(split("\n"), with_regex) == "gpt-2"
    assert named(digits, with_regex) == "smollm"
    assert named(split(gguf._LLAMA3), plain, ignore_merges=True) == "llama-bpe"
    assert named(split(gguf._LLAMA3), plain) == "dbrx"
    assert named(split(gguf._QWEN2), plain) == "qwen2"
    assert named(split("[a-z]+"), plain) == named(split("[a-z]+"), with_regex) == named(plain) == ""
    assert named({"type": "Metaspace"}) == ""


def test_the_verdict_names_what_failed():
    judge = gguf_check.judge
    assert judge(CHECK).passed and judge(CHECK).reason == ""
    assert "1 of 5 texts" in judge(dataclasses.replace(CHECK, num_texts_same_ids=4)).reason
    assert "over 3 times rounding" in judge(dataclasses.replace(CHECK, mean_abs_logprob_diff=0.04)).reason
    lost = judge(dataclasses.replace(CHECK, effect=0.02, mean_abs_logprob_diff=0.02))
    assert not lost.passed and "training changed them by 0.02" in lost.reason
    rough = dataclasses.replace(CHECK, kind="q4_k_m", mean_abs_logprob_diff=0.2, top1_agreement_frac=0.9)
    assert judge(rough).passed and not judge(dataclasses.replace(rough, effect=0.3)).passed
    with pytest.raises(ModelError, match=r"tickets as GGUF \(f16\) is refused: the first choice"):
        gguf_check.require(judge(dataclasses.replace(CHECK, top1_agreement_frac=0.5)))


def test_the_difference_by_hand():
    """Two positions; the likeliest token is off by 0.1 at one, and at the other the first choice is another."""
    import torch

    reference = gguf_check.Said(torch.tensor([[0.9, 0.1] + [1e-9] * 4, [0.2, 0.8] + [1e-9] * 4]).log(), [])
    logs = reference.logprobs_PV.tolist()
    said = [{0: logs[0][0] - 0.1, 1: logs[0][1], 2: -20.0}, {0: logs[1][0], 1: logs[1][1], 2: -20.0}]
    gap, top1 = gguf_check.difference(reference, said)
    assert gap == pytest.approx(0.9 * 0.1 / 2, abs=1e-4) and top1 == 0.5


# ---- with llama.cpp -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home():
    try:
        return converter()
    except MissingDependency as error:
        pytest.skip(f"llama.cpp is not built: {error}")


@pytest.fixture(scope="module")
def base(home, tmp_path_factory):
    """The base's folder as it is converted, and beside it what came out."""
    folder = gguf.base_folder(MODEL, tmp_path_factory.mktemp("base") / "base")
    assert gguf.write_model(folder, folder.with_suffix(".gguf"), "f16", home) == "smollm by rules"
    return folder


def adapter(folder, seed, **more):
    """Random matrices, none zero: an adapter that changes every answer."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    base = load_base(MODEL, device=dataclasses.replace(CPU, dtype="float32"))
    config = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", init_lora_weights=False, **more)
    with quiet_loading():
        get_peft_model(base, config).save_pretrained(folder)
    return folder


def test_base_and_two_adapters_are_what_transformers_says(home, base, tmp_path):
    with gguf_check.serving(home, base.with_suffix(".gguf")) as server:
        assert not server.starts_itself(load_tokenizer(MODEL).bos_token_id), "as the tokenizer, which adds none"
    made = {}
    for name, more in (("plain", {}), ("rslora", {"use_rslora": True})):
        folder, file = adapter(tmp_path / name, 1, **more), tmp_path / f"{name}.gguf"
        gguf.write_adapter(folder, base, file, home)
        made[name] = (folder, file)
    checks = gguf_check.check_adapters(
        base.with_suffix(".gguf"), "f16", MODEL, made, home, device=CPU, examples=ROWS
    )  # fmt: skip
    assert [check.name for check in checks] == ["base.gguf", "plain", "rslora"]
    assert all(check.passed and check.greedy_match_frac == 1 for check in checks), checks
    assert checks[1].effect != pytest.approx(checks[2].effect, rel=0.1)
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


def test_the_scale_that_is_lost_without_care_is_caught(home, base, tmp_path):
    """Converted as the script would by itself, rsLoRA acts at half its strength (r 4), and the check says so."""
    folder = adapter(tmp_path / "rslora", 1, use_rslora=True)
    settings = json.loads((folder / "adapter_config.json").read_text())
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "adapter_model.safetensors").symlink_to(folder / "adapter_model.safetensors")
    (plain / "adapter_config.json").write_text(json.dumps({**settings, "use_rslora": False}))
    gguf.write_adapter(plain, base, tmp_path / "lost.gguf", home)
    made = {"lost": (folder, tmp_path / "lost.gguf")}
    check = gguf_check.check_adapters(
        base.with_suffix(".gguf"), "f16", MODEL, made, home, device=CPU, examples=ROWS
    )[1]  # fmt: skip
    assert not check.passed and "training changed them" in check.reason


def test_a_tokenizer_llamacpp_has_no_rules_for_is_refused(home, tmp_path):
    base = gguf.base_folder(MODEL, tmp_path / "base")
    path = base / "tokenizer.json"
    rules = json.loads(path.read_text())
    rules["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "[aeiou]"
    path.write_text(json.dumps(rules))
    with pytest.raises(ModelError, match="does not know this tokenizer"):
        gguf.write_model(base, tmp_path / "base.gguf", "f16", home)
    assert load_tokenizer(MODEL) is not None and not (tmp_path / "base.gguf").exists()
