"""The bytes a layer moves outside matrix products, counted over the operations PyTorch executes, against plan.speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoestring.plan.speed import (
    ADAPTER_TRAFFIC_UPCAST,
    ADAPTER_TRAFFIC_UPCAST_O,
    TRAFFIC_UPCAST,
)

HIDDEN, INTERMEDIATE, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, NUM_TOKENS = 96, 320, 8, 2, 16, 64
VIEWS = {
    "view", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "slice", "select", "detach", "alias",
    "_unsafe_view", "reshape", "split", "as_strided", "unbind", "empty", "empty_like", "new_empty_strided",
    "empty_strided", "lift_fresh",
}  # fmt: skip
PRODUCTS = {"mm", "addmm", "bmm"}


def counted_bytes(model: Any, ids: Any) -> tuple[int, int]:
    """Forward and backward, of every operation that is no product, attention, view or dequantisation."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Count(TorchDispatchMode):
        num_bytes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            library, name = str(func).split(".")[:2]
            if library == "aten" and name not in VIEWS | PRODUCTS and not name.startswith("_scaled_dot_product"):
                tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
                self.num_bytes += sum(t.numel() * t.element_size() for t in tensors)
            return out

    with torch.autocast("cpu", torch.bfloat16):
        embedded = model.get_input_embeddings()(ids)
        with Count() as forward:
            out = model.get_base_model().model(inputs_embeds=embedded).last_hidden_state
    with Count() as backward:
        out.backward(torch.ones_like(out))
    return forward.num_bytes, backward.num_bytes


def prepared(folder: Path, num_layers: int, targets: list[str]) -> Any:
    """A 4-bit Llama as Transformers and PEFT prepare it."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=num_layers,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model: Any = LlamaForCausalLM.from_pretrained(folder, quantization_config=four_bit, dtype=torch.bfloat16)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    model.enable_input_require_grads()
    return model.train()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT calls what transformers renames
@pytest.mark.parametrize("targets", [["q_proj"], ["o_proj", "down_proj"]])
def test_the_fp32_stream_over_a_4_bit_base(tmp_path: Path, targets: list[str]) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes")
    ids = torch.randint(3, 64, (1, NUM_TOKENS))
    one, two = (counted_bytes(prepared(tmp_path / str(n), n, targets), ids) for n in (1, 2))
    sizes = (HIDDEN, INTERMEDIATE, NUM_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM)
    wide = {"q_proj": (0, 2), "o_proj": (2, 0), "down_proj": (1, 0)}
    for side in (0, 1):
        layer = sum(c * s for c, s in zip(TRAFFIC_UPCAST["eager"][side], sizes, strict=True))
        for target in targets:
            each = ADAPTER_TRAFFIC_UPCAST_O if target == "o_proj" else ADAPTER_TRAFFIC_UPCAST
            layer += sum(c * sizes[place] for c, place in zip(each[side], wide[target], strict=True))
        # What does not grow with the sizes (a scalar a token of each norm) is a per cent here, nothing at real sizes.
        assert (two[side] - one[side]) / NUM_TOKENS == pytest.approx(layer, rel=0.03)
