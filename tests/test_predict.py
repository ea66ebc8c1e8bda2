"""Predictions by keyword: figures a reader can check, what autograd keeps, invariants, refusals, published runs."""

from __future__ import annotations

import json

import pytest

import shoestring as ss
from bench import plan_accuracy
from shoestring.errors import BadInput, ModelError
from shoestring.plan.devices import device_of
from shoestring.plan.memory import predict_memory as own_memory
from shoestring.plan.question import read_optimizer, read_targets
from shoestring.plan.shapes import shape_from_config, shape_of
from shoestring.plan.stacks import ATTENTION, MLP, STACKS, LayerRun, layer_bytes, stack_of

GIB = 2**30
LLAMA_1B = {"model": "Llama-3.2-1B", "seq_len": 512, "gpu": "A10G"}


def predict(**changes):
    return ss.predict_memory(**{**LLAMA_1B, **changes})


def test_litgpt_lora_on_llama_2_7b_by_hand():
    # github.com/Lightning-AI/litgpt config_hub/finetune/README.md: 19.77 GB allocated
    predicted = predict(model="Llama-2-7B", micro_batch=2, lora_rank=32, lora_targets="q,v", stack="litgpt",
                        gradient_checkpointing=False)  # fmt: skip
    h, i, tokens, layers, vocab = 4096, 11008, 1024, 32, 32000
    norms = 2 * 4 * h
    attention = 2 * (h + h) + 2 * (3 * h) + 4 * 32  # q, output, k, and v inside all of q, k, v; a log-sum-exp a head
    adapter = 3 * h + 2 * (2 * h) + 2 * 32 * 2  # dropped-out input and its mask, padded output, two of rank 32
    kept = layers * tokens * (norms + attention + adapter + 2 * 3 * i + 2 * h)
    assert predicted.parts["activations"] == pytest.approx(kept, rel=1e-6)
    assert predicted.parts["weights"] == 2 * 6738415616
    assert predicted.parts["logits"] == 8 * tokens * vocab + 128 * 2 * vocab * 10
    assert predicted.parts["adapter"] == 2 * 32 * layers * 2 * (h + h)
    assert predicted.allocated_expected_bytes == pytest.approx(19.77e9, rel=0.01)


def test_parts_are_the_expected_bytes():
    for stack in STACKS:
        for method in ("full", "lora", "qlora"):
            predicted = predict(stack=stack.name, method=method)
            tensors = sum(v for k, v in predicted.parts.items() if k != "runtime")
            assert tensors == pytest.approx(predicted.allocated_expected_bytes, abs=len(predicted.parts))
            low, high = predicted.allocated_low_bytes, predicted.allocated_high_bytes
            assert low < predicted.allocated_expected_bytes < high
            assert predicted.device_low_bytes < predicted.device_expected_bytes < predicted.device_high_bytes
            assert stack.name in predicted.reason and stack.basis


def test_what_must_grow_grows():
    base = predict().allocated_expected_bytes
    assert predict(seq_len=1024).allocated_expected_bytes > base
    assert predict(micro_batch=2).allocated_expected_bytes == predict(seq_len=1024).allocated_expected_bytes
    assert predict(lora_rank=64).allocated_expected_bytes > base
    assert predict(gradient_checkpointing=False).allocated_expected_bytes > base
    assert predict(stack="trl-chunked").allocated_expected_bytes < base
    long = {"seq_len": 8192, "gpu": "24 GB"}
    assert predict(attention="eager", **long).verdict == "does_not_fit"
    assert predict(stack="unsloth", method="qlora", **long).verdict == "fits"
    one = predict(method="full", gpu="H100")
    four = predict(method="full", gpu="H100", num_gpus=4, parallelism="fsdp")
    assert four.parts["optimizer"] * 4 == one.parts["optimizer"]


def test_mixed_precision_holds_weights_in_both_widths():
    asked = {"model": "Llama-2-7B", "method": "full", "gpu": "H100", "seq_len": 4096, "gradient_checkpointing": False}
    plain, mixed = predict(**asked), predict(precision="bf16-mixed", **asked)
    num_params, num_matrices = 6738415616, 6476005376 + 32000 * 4096
    assert (plain.parts["weights"], plain.parts["optimizer"]) == (2 * num_params, 4 * num_params)
    assert (mixed.parts["weights"], mixed.parts["optimizer"]) == (4 * num_params, 8 * num_params)
    assert mixed.parts["activations"] - plain.parts["activations"] == 2 * num_matrices


def test_tables_trained_whole_by_hand():
    asked = {"model": "Llama-2-7B", "gpu": "A100", "optimizer": "adamw_torch"}
    plain, saved = predict(**asked), predict(modules_to_save="embed_tokens,lm_head", **asked)
    tables = 2 * 32000 * 4096
    assert saved.parts["adapter"] - plain.parts["adapter"] == 2 * tables
    assert saved.parts["gradients"] - plain.parts["gradients"] == 2 * tables
    assert predict(modules_to_save=["lm_head"], **asked).parts["adapter"] - plain.parts["adapter"] == tables
    assert speed(modules_to_save="lm_head").tokens_per_s_per_gpu < speed().tokens_per_s_per_gpu


def test_shoestring_is_the_run_planners_own_formula():
    whole, recomputed = (predict(stack="shoestring", gradient_checkpointing=g) for g in (False, True))
    asked = {"method": "lora", "lora_rank": 16, "micro_batch_tokens": 512, "row_tokens": 512, "loss_frac": 1.0}
    own = own_memory(shape_of("meta-llama/Llama-3.2-1B"), device=device_of("A10G"), **asked)
    assert whole == own and recomputed.allocated_expected_bytes < whole.allocated_expected_bytes
    asked |= {"method": "full", "lora_rank": 0}
    own = own_memory(shape_of("meta-llama/Llama-3.2-1B"), device=device_of("A10G"), **asked)
    assert predict(stack="shoestring", method="full", gradient_checkpointing=False) == own
    with pytest.raises(BadInput, match="optimizer than AdamW"):
        predict(stack="shoestring", method="full", optimizer="adamw_8bit")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("attention", "packing"), [("sdpa", True), ("sdpa", False), ("eager", False)])
def test_stock_hf_keeps_what_autograd_keeps(attention, packing):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    num_rows, num_tokens, rank = 2, 96, 4
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}

    def kept(num_layers):
        config = LlamaConfig(vocab_size=64, intermediate_size=320, num_hidden_layers=num_layers, pad_token_id=0,
                             attn_implementation=attention, **sizes)  # fmt: skip
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear"))
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        seen = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            is_mask = tensor.dim() == 4 and tensor.shape[1] == 1
            if storage.data_ptr() not in own and not is_mask:
                seen[storage.data_ptr()] = storage
            return tensor

        mask_BT = torch.ones(num_rows, num_tokens, dtype=torch.long)
        mask_BT[0, :8] = int(packing)
        with (
            torch.autocast("cpu", torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        ):
            model.get_base_model().model(input_ids=torch.ones_like(mask_BT), attention_mask=mask_BT, use_cache=False)
        return sum(s.nbytes() for s in seen.values())

    measured = (kept(3) - kept(1)) / 2 / (num_rows * num_tokens)
    one_layer = {"intermediate_size": 320, "num_hidden_layers": 1, "vocab_size": 64, "max_position_embeddings": 128}
    shape = shape_from_config("one", {"model_type": "llama", "tie_word_embeddings": True, **sizes, **one_layer}, "test")
    run = LayerRun(shape, False, False, False, frozenset((*ATTENTION, *MLP)), rank, num_tokens, num_rows, packing,
                   attention, 2)  # fmt: skip
    assert layer_bytes(stack_of("stock-hf"), run) == pytest.approx(measured, rel=0.04)


def speed(**changes):
    return ss.predict_throughput(**{**LLAMA_1B, "gpu": "A100-80GB", **changes})


def test_matmul_time_by_hand():
    # torchtune README: 9,174 tokens a second, one A100, compiled, loss in chunks
    asked = {"model": "Llama-3.2-3B", "method": "full", "seq_len": 4096, "micro_batch": 2, "packing": True,
             "gradient_checkpointing": False, "stack": "torchtune"}  # fmt: skip
    predicted = speed(**asked)
    linear = 28 * (2 * 3072 * 3072 + 2 * 3072 * 1024 + 3 * 3072 * 8192)
    flops = 8192 * 6 * (linear + 128256 * 3072)
    assert predicted.parts_s["matmul"] == pytest.approx(flops / (0.85 * 271.2e12))
    assert predicted.parts_s["attention"] == pytest.approx(8192 * 7 * 4096 * 3072 * 28 / (0.55 * 312e12))
    assert predicted.parts_s["step"] == pytest.approx(3212749824 * 14 / (0.7 * 2039e9))
    assert predicted.tokens_per_s_per_gpu == pytest.approx(9174, rel=0.05)


def test_speed_goes_where_it_must():
    base = speed(seq_len=2048)
    assert base.tokens_per_s_per_gpu_low < base.tokens_per_s_per_gpu < base.tokens_per_s_per_gpu_high
    assert speed(seq_len=2048, gradient_checkpointing=False).tokens_per_s_per_gpu > base.tokens_per_s_per_gpu
    assert speed(seq_len=2048, method="qlora").tokens_per_s_per_gpu < base.tokens_per_s_per_gpu
    assert speed(seq_len=2048, gpu="L4").tokens_per_s_per_gpu < base.tokens_per_s_per_gpu / 2
    assert speed(seq_len=2048, stack="unsloth").tokens_per_s_per_gpu > base.tokens_per_s_per_gpu
    assert "launching kernels" in speed(seq_len=128).reason
    four = speed(seq_len=2048, num_gpus=4, parallelism="ddp")
    assert four.tokens_per_s_total == 4 * four.tokens_per_s_per_gpu
    full = {"seq_len": 512, "method": "full"}
    assert speed(grad_accum=8, **full).tokens_per_s_per_gpu > speed(**full).tokens_per_s_per_gpu
    own = speed(stack="shoestring", gradient_checkpointing=False)
    assert speed(stack="shoestring").tokens_per_s_per_gpu < own.tokens_per_s_per_gpu
    assert own.tokens_per_s_per_gpu_low < own.tokens_per_s_per_gpu < own.tokens_per_s_per_gpu_high
    for changes, words in (({"gpu": "24 GB"}, "not a speed"), ({"precision": "fp32"}, "fp32 is not predicted")):
        with pytest.raises(BadInput, match=words):
            speed(**changes)


def test_words_are_read_as_people_write_them(tmp_path):
    assert read_targets("q;v;o;mlp") == {"q", "v", "o", "gate", "up", "down"}
    assert read_targets(["q_proj", "lm_head"]) == {"q", "head"}
    assert read_optimizer("PagedAdamW8bit + optimizer_in_bwd").in_backward
    assert read_optimizer("adamw_torch").is_fused is False and read_optimizer("AdamW (fused)").is_fused
    assert predict(method="full", gpu="80 GB", optimizer="adamw_torch").phase == "optimizer_step"
    assert read_optimizer("adamw_8bit").moment_bytes == pytest.approx(2.03, abs=0.01)
    assert stack_of("HF").name == "stock-hf" and stack_of("shoestring") is None
    for gpu in ("RTX 4090", "rtx4090", "NVIDIA GeForce RTX 4090"):
        assert predict(gpu=gpu).reason == predict(gpu="RTX4090").reason
    assert predict(attention="flash_attention_2", quantisation="4bit", precision="bfloat16", method="qlora").parts == (
        predict(attention="flash", method="qlora").parts
    )
    config = {"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
              "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192, "vocab_size": 128256,
              "max_position_embeddings": 131072, "tie_word_embeddings": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    by_name = predict().parts
    assert predict(model=config).parts == predict(model=str(tmp_path / "config.json")).parts == by_name
    assert predict(model=tmp_path).parts == predict(model="meta-llama/Llama-3.2-1B").parts == by_name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stack": "megatron"}, "stack = 'megatron' is not profiled; known: shoestring, stock-hf"),
        ({"gpu": "H300"}, r"gpu = 'H300' is not in the GPU table; near rows: H200"),
        ({"method": "dora"}, "method = 'dora' is not one of full, lora, qlora"),
        ({"method": "qlora", "quantisation": "none"}, "needs a quantised base"),
        ({"method": "full", "quantisation": "nf4"}, "trains every weight"),
        ({"lora_targets": "q,gates"}, "'gates' is not known"),
        ({"lora_targets": []}, "nothing would be trained"),
        ({"optimizer": "adafactor"}, "optimizer = 'adafactor' is not known"),
        ({"modules_to_save": "norm"}, "modules_to_save = 'norm' is not known"),
        ({"modules_to_save": "lm_head", "method": "full"}, "trains every table already"),
        ({"seq_len": 0}, "seq_len = 0 is not a whole number"),
        ({"num_gpus": 4}, "num_gpus = 4 needs parallelism"),
        ({"model": "Qwen/Qwen3.5-4B"}, "linear attention"),
    ],
)
def test_what_is_not_predicted_is_refused_by_name(changes, words):
    with pytest.raises(BadInput, match=words):
        predict(**changes)


def test_unknown_models_name_near_ones():
    with pytest.raises(ModelError, match=r"near: .*Llama-3\.2-1B"):
        predict(model="Llama-3.2-1")
    with pytest.raises(ModelError, match="mixture of experts"):
        predict(model="Qwen/Qwen3-30B-A3B")


@pytest.mark.skipif(not plan_accuracy.RUNS.exists(), reason="the file of measured runs is not here")
def test_published_runs():
    told = plan_accuracy.measure()
    assert told["memory"]["allocated"]["litgpt-hub"]["within_frac"] >= 0.85
    assert told["memory"]["allocated"]["torchtune"]["within_frac"] >= 0.8
    assert told["memory"]["reserved"]["peft-metamath"]["within_frac"] >= 0.85
    assert told["memory"]["oom"] == {"num_rows": 12, "false_fits": []}
    assert told["speed"]["torchtune"]["within_frac"] >= 0.85
    assert told["speed"]["qwen-readme"]["within_frac"] >= 0.85
    assert told["speed"]["peft-metamath"]["within_frac"] >= 0.85
