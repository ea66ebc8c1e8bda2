"""Exact sizes of a model: from a local config.json, or from the project's own dated table.

Counted for dense decoders: per layer q, k, v, o, the MLP matrices, norms and biases; embedding,
output head unless tied, final norm. Anything else (experts, convolutions, vision towers) is refused
by name in a config.json; the table holds measured totals for a few of those.
"""

from __future__ import annotations

import csv
import difflib
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError

MODELS_CSV = Path(__file__).with_name("models.csv")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one model; num_linear_params and LoRA cover every linear layer except the output head."""

    name: str
    family: str
    model_type: str  # as in config.json: llama, qwen3, ...
    kind: str  # dense: counted exactly; mixed: total known, adapter size approximate
    num_params: int
    num_embedding_params: int  # one table
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate: int
    num_mlp_matrices: int  # 3 gated, 2 not
    vocab: int
    context_tokens: int
    tied: bool  # output head is the embedding table
    num_linear_params: int
    num_lora_params_per_rank: int
    licence: str
    source: str
    grade: str  # A: counted exactly or published; B, C: see the table
    note: str = ""
    gated: str = "unknown"  # yes, no, unknown: whether the hub asks for consent first (recalled)
    num_windowed_layers: int = 0
    window_tokens: int = 0
    num_linear_attention_layers: int = 0  # or convolutions: no key and value of every token

    def num_adapter_params(self, lora_rank: int) -> int:
        """Parameters of a LoRA of this rank on every linear layer except the output head."""
        return lora_rank * self.num_lora_params_per_rank

    @property
    def num_dora_params(self) -> int:
        """Lengths that DoRA learns, one for each output of a linear layer. Source: arXiv 2402.09353, section 4.1."""
        q_dim, kv_dim = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return self.num_layers * (
            q_dim + 2 * kv_dim + 2 * self.hidden + (self.num_mlp_matrices - 1) * self.intermediate
        )


# What a config class leaves unsaid. norms: vectors of length hidden a layer; qk_norm: "head" one
# vector of head_dim each for q and k, "all" one over all heads; bias: projections that always have one.
# Source: modelling code of transformers 5.24.0; counts tested against built models.
@dataclass(frozen=True)
class Architecture:
    """What the sizes in a configuration leave unsaid about one family."""

    norms: int = 2
    qk_norm: str = ""
    bias: str = ""  # "": by attention_bias; "qkv": always on q, k and v; "all": on every layer, "head": and the head
    tied: bool = False
    head_dim: int | None = None  # None: hidden / heads
    num_mlp_matrices: int = 3
    is_layer_norm: bool = False  # LayerNorm instead of RMSNorm
    soft_capped: bool = False  # scores pass a tanh, which no fused attention kernel of torch knows
    fused_qkv: bool = False  # one matrix, and so one adapter
    fused_gate_up: bool = False
    renamed: tuple[tuple[str, str], ...] = ()  # usual key, its name in this family


_ARCHITECTURES = {
    "llama": Architecture(),
    "mistral": Architecture(),
    "qwen": Architecture(bias="qkv", renamed=(("max_position_embeddings", "seq_length"),)),
    "qwen2": Architecture(bias="qkv"),
    "qwen3": Architecture(qk_norm="head", head_dim=128),
    "phi": Architecture(norms=1, num_mlp_matrices=2, is_layer_norm=True, bias="head"),
    "phi3": Architecture(fused_qkv=True, fused_gate_up=True),
    "gemma": Architecture(tied=True, head_dim=256),
    "gemma2": Architecture(norms=4, tied=True, head_dim=256, soft_capped=True),
    "gemma3_text": Architecture(norms=4, qk_norm="head", tied=True, head_dim=256),
    "granite": Architecture(),
    "olmo2": Architecture(qk_norm="all"),
    "olmo3": Architecture(qk_norm="all"),
    "smollm3": Architecture(tied=True),
    "seed_oss": Architecture(bias="qkv", head_dim=128),
    "glm4": Architecture(norms=4, bias="qkv", head_dim=128, fused_gate_up=True),
    "ernie4_5": Architecture(tied=True, head_dim=128),
    "arcee": Architecture(num_mlp_matrices=2),
    "gpt_neox": Architecture(num_mlp_matrices=2, is_layer_norm=True, bias="all", fused_qkv=True),
    "falcon": Architecture(
        norms=1,
        num_mlp_matrices=2,
        is_layer_norm=True,
        tied=True,
        fused_qkv=True,
        renamed=(("intermediate_size", "ffn_hidden_size"),),
    ),
}
_TUNES = {"instruct", "chat", "it", "hf", "base", "bnb", "4bit", "8bit", "unsloth", "gptq", "awq", "int4", "int8", "pt"}
# Whole models whose text part is one of these.
_TEXT_PARTS = {"gemma3": "gemma3_text"}


def architecture_of(model_type: str) -> Architecture:
    """The family's layout; of an unknown one, Llama's."""
    return _ARCHITECTURES.get(_TEXT_PARTS.get(model_type, model_type)) or Architecture()


def lora_params_per_rank(
    model_type: str, hidden: int, num_layers: int, q_dim: int, kv_dim: int, intermediate: int, num_mlp_matrices: int
) -> int:
    """Each adapted matrix (out, in) adds rank x (out + in). Source: LoRA, arXiv 2106.09685, section 4.1."""
    layout = architecture_of(model_type)
    attention = 2 * (hidden + q_dim) + 2 * (hidden + kv_dim) - (2 * hidden if layout.fused_qkv else 0)
    mlp = num_mlp_matrices * (hidden + intermediate) - (hidden if layout.fused_gate_up else 0)
    return num_layers * (attention + mlp)


def shape_of(model: str, path: Path | None = None) -> ModelShape:
    """Shape from path (a config.json or its folder) where given, or where model is a folder, else from the table.

    Raises: ModelError for an unknown name, an unreadable config, or an architecture not counted.
    """
    if path is None and Path(model).is_dir():
        path = Path(model)
    if path is not None:
        file = path / "config.json" if path.is_dir() else path
        return shape_from_config(model, _read_config(file), source=str(file))
    row = _row(model)
    if row is None:
        raise ModelError(
            f"{model!r} is neither a local folder nor in the model table{near_rows(model)}; "
            "give a folder that holds config.json and weights, or a name of the table plan/models.csv"
        )
    return _shape_from_row(row)


def in_table(model: str) -> bool:
    """Whether the table has a row for this model, of whatever kind."""
    return _row(model) is not None


def _row(model: str) -> dict[str, str] | None:
    rows = table()
    return rows.get(model) or {name.lower(): row for name, row in rows.items()}.get(model.lower())


def table_name(name: str) -> str | None:
    """The table's model of this name; None if there is none.

    Whole, without its owner, as also_named says, or of a tune or packing of it (Instruct, chat, bnb-4bit): those have
    its sizes.
    """
    wanted = name.lower()
    rows = {
        model: (model.lower(), model.split("/")[-1].lower(), *row["also_named"].lower().split("|"))
        for model, row in table().items()
    }
    for read in (str.lower, _bare):
        for model, names in rows.items():
            if read(wanted) in {read(n) for n in names if n}:
                return model
    return None


def _bare(name: str) -> str:
    """A name without its owner, its maker, and the words for tunes and packings."""
    words = name.lower().split("/")[-1].removeprefix("meta-").split("-")
    return "-".join(word for word in words if word not in _TUNES)


def near_rows(model: str) -> str:
    """The table's names near this one, compared whole and without the owner, in brackets; empty if there is none."""
    short = {name.split("/")[-1].lower(): name for name in table()}
    whole = {name.lower(): name for name in table()}
    close = [short[n] for n in difflib.get_close_matches(model.split("/")[-1].lower(), short, n=3, cutoff=0.5)]
    close += [whole[n] for n in difflib.get_close_matches(model.lower(), whole, n=2, cutoff=0.6)]
    unique = list(dict.fromkeys(close))[:3]
    return f" (near: {', '.join(unique)})" if unique else ""


@functools.cache
def table() -> dict[str, dict[str, str]]:
    """Rows of models.csv by model name."""
    with MODELS_CSV.open(encoding="utf-8", newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def _shape_from_row(row: dict[str, str]) -> ModelShape:
    if row["kind"] not in ("dense", "mixed"):
        what = "a mixture of experts" if row["kind"] == "moe" else "built with per-layer embeddings"
        raise ModelError(
            f"{row['model']} is {what} ({row['note']}); this version plans dense models only: "
            f"choose a dense model, such as Qwen/Qwen3-4B"
        )
    ints = {
        k: int(row[k])
        for k in (
            "num_params",
            "num_embedding_params",
            "num_layers",
            "hidden",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate",
            "num_mlp_matrices",
            "vocab",
            "context_tokens",
        )
    }
    tied = row["tied"] == "true"
    q_dim, kv_dim = ints["num_heads"] * ints["head_dim"], ints["num_kv_heads"] * ints["head_dim"]
    counted = (
        ints["num_layers"] * ints["hidden"] * (2 * q_dim + 2 * kv_dim + ints["num_mlp_matrices"] * ints["intermediate"])
    )
    linear, per_rank = (
        counted,
        lora_params_per_rank(
            row["model_type"],
            ints["hidden"],
            ints["num_layers"],
            q_dim,
            kv_dim,
            ints["intermediate"],
            ints["num_mlp_matrices"],
        ),
    )
    note = row["note"]
    if row["kind"] == "mixed":
        # The published total holds layers the formula does not know; scale the adapter with them.
        linear = ints["num_params"] - ints["num_embedding_params"] * (1 if tied else 2)
        per_rank = round(per_rank * linear / counted)
        note = f"adapter size approximate: {note}"
    return ModelShape(
        name=row["model"],
        family=row["family"],
        model_type=row["model_type"],
        kind=row["kind"],
        tied=tied,
        num_linear_params=linear,
        num_lora_params_per_rank=per_rank,
        licence=_licence(row),
        source=row["source"],
        grade=row["grade"],
        note=note,
        gated=row["gated"],
        num_windowed_layers=int(row["num_windowed_layers"]),
        window_tokens=int(row["window_tokens"] or 0),
        num_linear_attention_layers=int(row["num_linear_attention_layers"]),
        **ints,
    )


def _licence(row: dict[str, str]) -> str:
    basis = row["licence_basis"]
    return f"{row['licence']} ({basis})" if basis else row["licence"]


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{file}: not there; a model folder holds config.json, tokenizer and weights") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{file}: not a readable JSON file ({error}); download the model again") from None
    if not isinstance(config, dict):
        raise ModelError(f"{file}: a model configuration is a JSON object, this is {type(config).__name__}")
    return config


def shape_from_config(name: str, config: dict[str, Any], source: str) -> ModelShape:
    """Count a dense decoder from its configuration. Raises: ModelError."""
    model_type = str(config.get("model_type", ""))
    if model_type in _TEXT_PARTS and isinstance(config.get("text_config"), dict):
        model_type, config = _TEXT_PARTS[model_type], config["text_config"]
    architecture = _ARCHITECTURES.get(model_type)
    if architecture is None:
        experts = config.get("num_local_experts") or config.get("num_experts")
        what = f"a mixture of {experts} experts" if experts else "not a dense decoder this version can count"
        raise ModelError(
            f"{source}: model_type {model_type!r} is {what}; "
            f"known: {', '.join(_ARCHITECTURES)}; choose a model of one of these"
        )

    renamed = dict(architecture.renamed)

    def size(key: str, default: int | None = None) -> int:
        value = config.get(renamed.get(key, key))
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(
                f"{source}: {key} = {config.get(key)!r} is not a positive number; the file is damaged "
                "or of a kind this version does not read"
            )
        return value

    hidden, layers, heads = size("hidden_size"), size("num_hidden_layers"), size("num_attention_heads")
    kv_heads, vocab = size("num_key_value_heads", heads), size("vocab_size")
    if model_type == "gpt_neox":
        kv_heads = heads
    if model_type == "falcon":
        kv_heads = (
            kv_heads if config.get("new_decoder_architecture") else 1 if config.get("multi_query", True) else heads
        )
    # Qwen's first configuration counts gate and up together; Falcon's may leave the width out.
    intermediate = size("intermediate_size", 4 * hidden if model_type == "falcon" else None)
    intermediate //= 2 if model_type == "qwen" else 1
    head_dim = size("head_dim", architecture.head_dim or hidden // heads)
    tied = bool(config.get("tie_word_embeddings", architecture.tied))
    q_dim, kv_dim, num_mlp = heads * head_dim, kv_heads * head_dim, architecture.num_mlp_matrices
    linear = layers * hidden * (2 * q_dim + 2 * kv_dim + num_mlp * intermediate)
    small = (layers * architecture.norms + 1) * hidden * (2 if architecture.is_layer_norm else 1)
    if architecture.qk_norm:
        small += layers * (2 * head_dim if architecture.qk_norm == "head" else q_dim + kv_dim)
    has_all = architecture.bias in ("all", "head")
    if architecture.bias or config.get("attention_bias"):
        small += layers * (q_dim + 2 * kv_dim + (0 if architecture.bias == "qkv" else hidden))
    if has_all or config.get("mlp_bias"):
        small += layers * ((num_mlp - 1) * intermediate + hidden)
    small += vocab if architecture.bias == "head" else 0
    embedding = vocab * hidden
    return ModelShape(
        name=name,
        family=model_type,
        model_type=model_type,
        kind="dense",
        num_params=linear + small + embedding * (1 if tied else 2),
        num_embedding_params=embedding,
        hidden=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        num_mlp_matrices=num_mlp,
        vocab=vocab,
        context_tokens=size("max_position_embeddings", 2048 if model_type == "falcon" else None),
        tied=tied,
        num_linear_params=linear,
        num_lora_params_per_rank=lora_params_per_rank(model_type, hidden, layers, q_dim, kv_dim, intermediate, num_mlp),
        licence="see the model's card",
        source=source,
        grade="A",
    )
