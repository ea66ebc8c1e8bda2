"""Parameter counts: by hand, against built models, against published totals, against the shipped weights."""

import importlib.util
import json
from pathlib import Path

import pytest

from shoestring.errors import ModelError
from shoestring.plan.shapes import MODELS_CSV, shape_from_config, shape_of, table

TINY = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "intermediate_size": 10,
    "vocab_size": 20,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def test_count_by_hand():
    shape = shape_from_config("tiny", TINY, "test")
    # q 8x8, k and v 8x4 each, o 8x8; gate, up, down 8x10 each
    assert shape.num_linear_params == 64 + 32 + 32 + 64 + 3 * 80 == 432
    # two norms and the final one of 8; one table of 20 x 8
    assert shape.num_params == 432 + 3 * 8 + 160
    # in + out of each matrix: q 16, k 12, v 12, o 16, gate 18, up 18, down 18
    assert shape.num_lora_params_per_rank == 16 + 12 + 12 + 16 + 18 * 3
    assert shape.num_adapter_params(16) == 16 * 110
    untied = shape_from_config("tiny", {**TINY, "tie_word_embeddings": False}, "test")
    assert untied.num_params == shape.num_params + 160


@pytest.mark.parametrize(
    ("config_class", "extra"),
    [
        ("LlamaConfig", {}),
        ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("MistralConfig", {"head_dim": 32}),
        ("Qwen2Config", {}),
        ("Qwen3Config", {"attention_bias": True}),
        ("GemmaConfig", {}),
        ("Gemma2Config", {}),
        ("Gemma3TextConfig", {}),
        ("GraniteConfig", {}),
        ("Olmo2Config", {}),
        ("SmolLM3Config", {}),
        ("PhiConfig", {}),
        ("Phi3Config", {}),
        ("GPTNeoXConfig", {}),
        ("FalconConfig", {}),
        ("Olmo3Config", {}),
        ("SeedOssConfig", {}),
        ("Glm4Config", {}),
        ("Ernie4_5Config", {}),
        ("ArceeConfig", {}),
    ],
)
def test_counts_equal_built_models(config_class, extra):
    import torch
    import transformers

    config = getattr(transformers, config_class)(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=120,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **extra,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    linear = [
        m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n not in ("lm_head", "embed_out")
    ]
    written = {
        **config.to_diff_dict(),
        "model_type": config.model_type,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    shape = shape_from_config("built", written, "test")
    assert shape.num_params == sum(p.numel() for p in model.parameters())
    assert shape.num_linear_params == sum(m.weight.numel() for m in linear)
    assert shape.num_lora_params_per_rank == sum(sum(m.weight.shape) for m in linear)


EMBEDDED = sorted((Path(__file__).parents[1] / "src/shoestring/embedded").glob("shoestring-*/config.json"))


@pytest.mark.parametrize("config", EMBEDDED, ids=[c.parent.name for c in EMBEDDED])
def test_counts_equal_the_embedded_weights(config):
    from safetensors import safe_open

    with safe_open(config.parent / "model.safetensors", "numpy") as file:
        num_params = 0
        for key in file.keys():  # noqa: SIM118  safe_open is not a mapping
            size = 1
            for n in file.get_slice(key).get_shape():
                size *= n
            num_params += size
    shape = shape_of(config.parent.name, config.parent)
    assert shape.num_params == num_params
    assert shape.source == str(config)


# config.json of published models, the keys that matter.
PUBLISHED = {
    "meta-llama/Llama-3.1-8B": {"model_type": "llama", "tie_word_embeddings": False},
    "Qwen/Qwen2.5-0.5B": {"model_type": "qwen2", "tie_word_embeddings": True},
    "Qwen/Qwen3-0.6B": {"model_type": "qwen3", "tie_word_embeddings": True},
    "Qwen/Qwen3-8B": {"model_type": "qwen3", "tie_word_embeddings": False},
    "google/gemma-3-1b-it": {"model_type": "gemma3_text"},
    "mistralai/Mistral-7B-v0.3": {"model_type": "mistral", "tie_word_embeddings": False},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_formula_gives_the_published_total(name):
    row = shape_of(name)
    config = {
        **PUBLISHED[name],
        "hidden_size": row.hidden,
        "num_hidden_layers": row.num_layers,
        "num_attention_heads": row.num_heads,
        "num_key_value_heads": row.num_kv_heads,
        "head_dim": row.head_dim,
        "intermediate_size": row.intermediate,
        "vocab_size": row.vocab,
        "max_position_embeddings": row.context_tokens,
    }
    counted = shape_from_config(name, config, "test")
    assert counted.num_params == row.num_params
    assert (counted.num_linear_params, counted.num_lora_params_per_rank) == (
        row.num_linear_params,
        row.num_lora_params_per_rank,
    )


def test_llama_8b_lora_is_the_known_figure():
    # 2.62 M parameters a rank (shared/design/peers/trainers.md section 4)
    assert shape_of("meta-llama/Llama-3.1-8B").num_lora_params_per_rank == pytest.approx(2.62e6, rel=0.001)


def test_every_table_row_holds_together():
    assert MODELS_CSV.exists()
    for name, row in table().items():
        assert row["source"] and row["grade"] in "ABC" and row["licence"], name
        assert row["licence_basis"], f"{name}: a licence without a basis"
        if row["kind"] in ("moe", "other"):
            with pytest.raises(ModelError, match="dense models only"):
                shape_of(name)
            continue
        shape = shape_of(name)
        assert shape.num_embedding_params == shape.vocab * shape.hidden, name
        tables = 1 if shape.tied else 2
        rest = shape.num_params - shape.num_linear_params - tables * shape.num_embedding_params
        assert 0 <= rest < 0.001 * shape.num_params, name
        assert 0 < shape.num_lora_params_per_rank * 16 < 0.2 * shape.num_params, name
        assert shape.context_tokens >= 2048, name


def test_refusals_name_the_model_and_the_next_step(tmp_path):
    with pytest.raises(ModelError, match=r"'Qwen3-0.6' .*near: Qwen/Qwen3-0.6B"):
        shape_of("Qwen3-0.6")
    with pytest.raises(ModelError, match="mixture of experts"):
        shape_of("Qwen/Qwen3-30B-A3B")
    with pytest.raises(ModelError, match="mixture of 8 experts"):
        shape_from_config("m", {**TINY, "model_type": "mixtral", "num_local_experts": 8}, "config.json")
    with pytest.raises(ModelError, match=r"hidden_size = '8'"):
        shape_from_config("m", {**TINY, "hidden_size": "8"}, "config.json")
    with pytest.raises(ModelError, match=r"config\.json: not there"):
        shape_of("m", tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not a readable JSON"):
        shape_of("m", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert shape_of(str(tmp_path)).num_params == 616


def test_shapes_need_no_heavy_import():
    assert importlib.util.find_spec("shoestring.plan.shapes")
    source = (Path(__file__).parents[1] / "src/shoestring/plan/shapes.py").read_text()
    assert "import torch" not in source and "import transformers" not in source
