"""What a fine-tune is, in the words of `shoestring.predict_memory`: every word checked, none guessed."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..records import Device
from .devices import device_of
from .shapes import ModelShape, shape_from_config, shape_of, table_name
from .stacks import ATTENTION, MLP, LayerRun, Stack, stack_of

METHODS = ("full", "lora", "qlora")
QUANTISATIONS = ("none", "nf4", "nf4-dq", "int8", "gptq4", "fp8")
ATTENTIONS = ("eager", "sdpa", "flash")
PRECISIONS = ("bf16", "fp16", "fp32", "bf16-mixed", "fp16-mixed")
PARALLELISMS = ("single", "ddp", "fsdp", "zero3")
# The same under other names people use.
SYNONYMS = {
    "4bit": "nf4",
    "bnb-nf4": "nf4",
    "nf4+dq": "nf4-dq",
    "llm.int8": "int8",
    "8bit": "int8",
    "gptq": "gptq4",
    "gptq-int4": "gptq4",
    "flash-attention-2": "flash",
    "flash2": "flash",
    "fa2": "flash",
    "fa3": "flash",
    "bfloat16": "bf16",
    "bf16-true": "bf16",
    "float16": "fp16",
    "16-true": "fp16",
    "float32": "fp32",
    "32-true": "fp32",
    "fsdp2": "fsdp",
    "zero-3": "zero3",
    "deepspeed-zero3": "zero3",
}
TARGETS = (*ATTENTION, *MLP, "head")
ALL_LINEAR = frozenset((*ATTENTION, *MLP))
TARGET_NAMES = {
    "mlp": MLP,
    "attention": ATTENTION,
    "qkv": ("q", "k", "v"),
    "all-linear": (*ATTENTION, *MLP),
    "all": (*ATTENTION, *MLP),
    "lm_head": ("head",),
    "output": ("head",),
    "output_proj": ("o",),
    "proj": ("o",),
    "fc1": ("up",),
    "fc2": ("down",),
    "w1": ("gate",),
    "w2": ("down",),
    "w3": ("up",),
}


SAVED_NAMES = {
    "embed_tokens": "embedding",
    "wte": "embedding",
    "embedding": "embedding",
    "lm_head": "head",
    "head": "head",
}


@dataclass(frozen=True, slots=True)
class Optimizer:
    """Bytes of state a parameter, in multiples of the parameter's own or as given; None: two moments."""

    moment_bytes: float | None = None
    in_backward: bool = False
    is_fused: bool | None = None  # None: as the stack does by default


@dataclass(frozen=True, slots=True)
class Asked:
    """One fine-tune, its words checked and read."""

    shape: ModelShape
    method: str
    quantisation: str
    lora_rank: int
    targets: frozenset[str]
    saved: frozenset[str]  # tables trained whole beside the adapters: embedding, head
    seq_len: int
    micro_batch: int
    packing: bool
    gradient_checkpointing: bool
    attention: str
    optimizer: Optimizer
    precision: str
    stack: Stack | None  # None: Shoestring itself
    device: Device
    num_gpus: int
    parallelism: str
    grad_accum: int
    offload_activations: bool

    @property
    def num_tokens(self) -> int:
        """Tokens of a micro-batch, padding included."""
        return self.seq_len * self.micro_batch

    @property
    def width(self) -> int:
        """Bytes of an activation."""
        return 4 if self.precision == "fp32" else 2

    @property
    def weight_width(self) -> int:
        """Bytes of a trained weight: fp32 under mixed precision."""
        return 4 if self.precision == "fp32" or (self.precision.endswith("mixed") and self.method == "full") else 2

    @property
    def num_shards(self) -> int:
        """Over how many GPUs weights and states are spread."""
        return self.num_gpus if self.parallelism in ("fsdp", "zero3") else 1

    @property
    def is_step_fused(self) -> bool:
        """Whether the optimizer updates in one kernel, without temporaries."""
        given = self.optimizer.is_fused
        return given if given is not None else self.stack is None or self.stack.fused_optimizer

    @property
    def num_adapter_params(self) -> int:
        """Parameters of the adapters. Source: LoRA, arXiv 2106.09685, section 4.1."""
        shape, targets = self.shape, self.targets
        h, i = shape.hidden, shape.intermediate
        q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        wide = {"q": h + q, "k": h + kv, "v": h + kv, "o": q + h, "up": h + i, "down": i + h}
        wide["gate"] = h + i if shape.num_mlp_matrices == 3 else 0
        per_rank = shape.num_layers * sum(wide.get(t, 0) for t in targets) + (h + shape.vocab) * ("head" in targets)
        return self.lora_rank * per_rank

    @property
    def num_saved_params(self) -> int:
        """Parameters of the tables trained whole."""
        return len(self.saved) * self.shape.num_embedding_params

    @property
    def is_upcast(self) -> bool:
        """Whether what is not quantised is held in fp32."""
        return self.stack is not None and self.stack.upcasts_rest and self.quantisation in ("nf4", "nf4-dq", "int8")

    @property
    def num_trained_params(self) -> int:
        """All parameters that learn."""
        return self.shape.num_params if self.method == "full" else self.num_adapter_params + self.num_saved_params

    def trained_bytes(self, stack: Stack) -> int:
        """Bytes of what learns: whole models at their width, adapters and copies of tables at theirs."""
        if self.method == "full":
            return self.shape.num_params * self.weight_width
        tables = self.num_saved_params * (4 if self.is_upcast else self.width)
        return self.num_adapter_params * stack.adapter_bytes + tables

    def layer_run(self) -> LayerRun:
        """What the stack's coefficients depend on."""
        return LayerRun(
            shape=self.shape,
            is_full=self.method == "full",
            is_quantised=self.quantisation in ("nf4", "nf4-dq", "int8"),
            is_4bit=self.quantisation in ("nf4", "nf4-dq"),
            targets=self.targets,
            lora_rank=self.lora_rank,
            seq_len=self.seq_len,
            micro_batch=self.micro_batch,
            packing=self.packing,
            attention=self.attention,
            width=self.width,
        )


def read(
    *,
    model: str | Path | Mapping[str, Any],
    method: str,
    quantisation: str | None,
    lora_rank: int,
    lora_targets: str | Sequence[str],
    modules_to_save: str | Sequence[str],
    seq_len: int,
    micro_batch: int,
    packing: bool,
    gradient_checkpointing: bool,
    attention: str,
    optimizer: str,
    precision: str,
    stack: str,
    gpu: str,
    num_gpus: int,
    parallelism: str,
    grad_accum: int,
    offload_activations: bool,
) -> Asked:
    """Check every word of a question. Raises: BadInput, ModelError."""
    method = _one_of("method", method, METHODS)
    quantisation = _one_of("quantisation", quantisation or ("nf4" if method == "qlora" else "none"), QUANTISATIONS)
    if method == "full" and quantisation != "none":
        raise BadInput(f"method = 'full' trains every weight, quantisation = {quantisation!r} freezes them; use lora")
    if method == "qlora" and quantisation == "none":
        raise BadInput("method = 'qlora' needs a quantised base: quantisation = nf4, int8 or gptq4; else use lora")
    asked = Asked(
        shape=shape_from(model),
        method=method,
        quantisation=quantisation,
        lora_rank=_positive("lora_rank", lora_rank) if method != "full" else 0,
        targets=frozenset() if method == "full" else read_targets(lora_targets),
        saved=read_saved(modules_to_save),
        seq_len=_positive("seq_len", seq_len),
        micro_batch=_positive("micro_batch", micro_batch),
        packing=bool(packing),
        gradient_checkpointing=bool(gradient_checkpointing),
        attention=_one_of("attention", attention, ATTENTIONS),
        optimizer=read_optimizer(optimizer),
        precision=_one_of("precision", precision, PRECISIONS),
        stack=stack_of(stack),
        device=device_of(gpu),
        num_gpus=_positive("num_gpus", num_gpus),
        parallelism=_one_of("parallelism", parallelism, PARALLELISMS),
        grad_accum=_positive("grad_accum", grad_accum),
        offload_activations=bool(offload_activations),
    )
    if asked.saved and method == "full":
        raise BadInput("method = 'full' trains every table already; leave modules_to_save out")
    if asked.parallelism == "single" and asked.num_gpus > 1:
        raise BadInput(f"num_gpus = {asked.num_gpus} needs parallelism = ddp, fsdp or zero3")
    if asked.shape.num_linear_attention_layers and asked.stack is not None:
        raise BadInput(
            f"{asked.shape.name} has {asked.shape.num_linear_attention_layers} layers of linear attention or "
            "convolution, whose kept bytes are not derived for other stacks; choose a dense model"
        )
    return asked


def shape_from(model: str | Path | Mapping[str, Any]) -> ModelShape:
    """The shape of a catalogue name, a config path, or the content of a config. Raises: ModelError."""
    if isinstance(model, Mapping):
        name = str(model.get("_name_or_path") or model.get("name") or model.get("model_type") or "model")
        return shape_from_config(name, dict(model), source="the configuration given")
    path = Path(model)
    if path.suffix == ".json" or path.is_dir():
        return shape_of(path.parent.name if path.suffix == ".json" else path.name, path)
    return shape_of(table_name(str(model)) or str(model))


def read_targets(targets: str | Sequence[str]) -> frozenset[str]:
    """Adapted matrices among q, k, v, o, gate, up, down and head. Raises: BadInput."""
    names = targets.replace(";", ",").split(",") if isinstance(targets, str) else list(targets)
    found: set[str] = set()
    for given in names:
        name = str(given).strip().lower().replace("all linear", "all-linear")
        read_as = TARGET_NAMES.get(name) or (name.removesuffix("_proj"),)
        if not set(read_as) <= set(TARGETS):
            raise BadInput(f"lora_targets: {given!r} is not known; give some of {', '.join(TARGETS)} or 'all-linear'")
        found.update(read_as)
    if not found:
        raise BadInput("lora_targets is empty: nothing would be trained; give 'all-linear' or 'q,v'")
    return frozenset(found)


def read_saved(modules: str | Sequence[str]) -> frozenset[str]:
    """Tables trained whole, embedding and head, under their usual names. Raises: BadInput."""
    names = modules.replace(";", ",").split(",") if isinstance(modules, str) else list(modules)
    found = {str(n).strip().lower() for n in names if str(n).strip()}
    if not found <= set(SAVED_NAMES):
        raise BadInput(f"modules_to_save = {modules!r} is not known; give some of {', '.join(SAVED_NAMES)}")
    return frozenset(SAVED_NAMES[n] for n in found)


def read_optimizer(name: str) -> Optimizer:
    """State a parameter of an optimizer by its usual name, among them adamw_torch (operation by operation) and
    adamw_torch_fused. Raises: BadInput.
    """
    text = name.lower().replace("_", " ").replace("-", " ")
    in_backward = "bwd" in text or "in backward" in text
    is_fused = True if "fused" in text else False if "torch" in text or "foreach" in text else None
    if "paged" in text or "offload" in text:
        return Optimizer(0.0, in_backward, True)  # the state lies in host memory
    if "8bit" in text.replace(" ", "") and "adam" in text:
        return Optimizer(2 + 2 * 4 / 256, in_backward, True)  # two bytes and an fp32 scale of each 256 values
    if "adam" in text:
        return Optimizer(None, in_backward, is_fused)
    if text.strip() == "sgd":
        return Optimizer(0.0, in_backward, True)
    raise BadInput(f"optimizer = {name!r} is not known; known: adamw, adamw_torch, adamw_8bit, paged_adamw, sgd")


def _one_of(key: str, value: str, known: Sequence[str]) -> str:
    text = str(value).strip().lower().replace("_", "-")
    text = SYNONYMS.get(text, text)
    if text not in known:
        raise BadInput(f"{key} = {value!r} is not one of {', '.join(known)}")
    return text


def _positive(key: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise BadInput(f"{key} = {value!r} is not a whole number of at least 1")
    return number
