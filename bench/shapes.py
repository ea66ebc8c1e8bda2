"""Randomly initialised Llamas of the sizes the measurements need, with the embedded tokenizer, in a cache folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    # 104M parameters.
    "random-100m": dict(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=16, num_attention_heads=12, num_key_value_heads=4,
        head_dim=64, vocab_size=4096, tie_word_embeddings=True,
    ),
    # One small body under the output head of Qwen and under a small one: the difference is what the loss takes.
    "random-wide-vocabulary": dict(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        head_dim=64, vocab_size=151_936, tie_word_embeddings=True,
    ),
    "random-narrow-vocabulary": dict(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        head_dim=64, vocab_size=4096, tie_word_embeddings=True,
    ),
    # The shape of meta-llama/Llama-3.1-8B.
    "random-llama-3.1-8b": dict(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, vocab_size=128_256, tie_word_embeddings=False, max_position_embeddings=131_072,
        rope_theta=500_000.0,
    ),
    # For runs that only show that everything works.
    "random-toy": dict(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, vocab_size=4096, tie_word_embeddings=True,
    ),
}  # fmt: skip


def model_folder(name: str) -> str:
    """The folder of a model in SHAPES, written on first use; any other name is returned as it is."""
    if name not in SHAPES:
        return name
    target = cache() / name
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
        try:
            write(name, partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return str(target)


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "shoestring" / "bench"


def write(name: str, folder: Path) -> None:
    """Weights of standard deviation 0.02 in bfloat16, from one seed, on the accelerator where there is one."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from shoestring.train.base import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("shoestring-3m"))
    shape = {"max_position_embeddings": 4096, "rope_theta": 10_000.0, **SHAPES[name]}
    theta = shape.pop("rope_theta")
    config = LlamaConfig(
        **shape, rope_parameters={"rope_theta": theta, "rope_type": "default"}, dtype="bfloat16",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
