"""What each training stack keeps in memory: coefficients read from its code, none fitted to a measurement.

A layer's kept bytes a token follow Korthikanti et al. 2022 (arXiv 2205.05198, section 4), done again for each stack:
an operation keeps for backward what its derivative needs and no more. A frozen matrix keeps no input; an
adapter keeps its own. LoRA: arXiv 2106.09685, section 4.1. NF4 and double quantisation: QLoRA, arXiv 2305.14314,
section 3. tests/test_predict.py compares with the bytes autograd keeps where the stack is installed.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ..errors import BadInput
from .memory import NF4_BYTES_PER_PARAM
from .shapes import ModelShape, architecture_of

NF4_SINGLE_BYTES = (4 + 32 / 64) / 8  # fp32 scale of 64 values, not quantised itself: bitsandbytes' default
GPTQ4_BYTES = (4 + (16 + 4) / 128) / 8  # fp16 scale and 4-bit zero of 128 values
ATTENTION, MLP = ("q", "k", "v", "o"), ("gate", "up", "down")


@dataclass(frozen=True, slots=True)
class Stack:
    """One way of training; bytes are of a 16-bit computation unless said otherwise."""

    name: str
    also_named: tuple[str, ...]
    basis: str  # what the coefficients were read from
    adapter_bytes: int  # a parameter of the adapter; its gradient and moments have the same
    nf4_bytes: float = NF4_SINGLE_BYTES
    upcasts_rest: bool = False  # what is not quantised, and with it the residual stream, is fp32
    quantises_head: bool = False
    unties_head: bool = False  # keeps a head of its own where the model ties it to the embedding
    copies_inputs: bool = False  # every adapter keeps a copy of its input
    dropout: bool = False  # inputs of adapters pass a dropout: its result and a byte of mask
    num_mlp_kept: int = 3  # tensors of MLP width: into the activation, out of it, and beside it
    repeats_kv: str = "never"  # keys and values repeated to all heads before attention: never, padded rows, always
    fused_qkv_view: bool = False  # where all heads have their own, v holds the whole of q, k, v
    pads_qv: bool = False  # an adapter on q and v without k is padded with zeros, and what is padded is kept
    has_lean_norm: bool = False  # keeps its 16-bit input and recomputes, compiled or by hand
    recomputes_product: bool = False  # the input of down is made again from gate and up
    shards_tables: bool = False  # embedding and head are sharded on their own, gathered only where used
    norm_trained_bytes: int = 2  # kept of a norm whose weight is trained
    offloads_checkpoints: bool = False
    keeps_frozen_inputs: bool = False  # of 4-bit matrices, in this step and until the next has made its own
    trains_embedding_copy: bool = False  # quantised: a second embedding table and a gradient of it
    # Of logits, a token and entry of the vocabulary: kept through backward, and on top when it begins.
    logits_kept: float = 0.0
    holds_logits: bool = True  # until the step ends; else only until the loss has its gradient
    logits_more: float = 0.0
    logits_full_more: float | None = None  # the same where all weights are trained
    loss_chunk_tokens: int = 0  # of a row; their logits exist some more times
    loss_chunk_bytes: float = 0.0
    num_head_gradients: int = 0  # of a trained head, in flight while a loss in chunks is differentiated
    has_fused_loss: bool = False  # logits only of some tokens at a time, and a gradient of the hidden states
    fused_optimizer: bool = True  # else a temporary of a parameter's size each


STACKS = (
    Stack(
        "stock-hf",
        ("hf", "huggingface", "transformers", "peft", "hf-peft", "stock", "trl"),
        "transformers 4.45 to 5.24, PEFT 0.19, bitsandbytes 0.43 and later, Trainer with bf16: logits in 16 bit, "
        "converted to fp32 (4), log-softmax (4), its gradient and that of the loss (4 + 4)",
        adapter_bytes=4,
        upcasts_rest=True,
        copies_inputs=True,
        repeats_kv="padded",
        logits_kept=4,
        logits_more=12,
    ),
    Stack(
        "trl-chunked",
        ("liger", "trl-liger", "chunked", "hf-liger", "axolotl"),
        "stock-hf with Liger 0.8: fused linear cross entropy, RMSNorm and SwiGLU; TRL's chunked loss is near it",
        adapter_bytes=4,
        upcasts_rest=True,
        copies_inputs=True,
        repeats_kv="padded",
        has_lean_norm=True,
        num_mlp_kept=2,
        num_head_gradients=1,
        has_fused_loss=True,
    ),
    Stack(
        "torchtune",
        ("torchtune-like", "compiled"),
        "torchtune 0.6, compile and chunked loss: 16-bit logits of all chunks, the loss compiled",
        adapter_bytes=2,
        nf4_bytes=NF4_BYTES_PER_PARAM,
        num_mlp_kept=2,
        repeats_kv="always",
        has_lean_norm=True,
        shards_tables=True,
        holds_logits=False,
        logits_kept=2,
        logits_more=2 / 8,
        num_head_gradients=2,
    ),
    Stack(
        "torchtune-compile",
        (),
        "torchtune 0.4 with compile and the whole logits: in fp32 (4), their log-softmax (4), two gradients (4 + 4)",
        adapter_bytes=2,
        nf4_bytes=NF4_BYTES_PER_PARAM,
        num_mlp_kept=2,
        repeats_kv="always",
        has_lean_norm=True,
        shards_tables=True,
        holds_logits=False,
        logits_kept=4,
        logits_more=8,
    ),
    Stack(
        "torchtune-eager",
        (),
        "torchtune 0.4 without compile, whole logits",
        adapter_bytes=2,
        nf4_bytes=NF4_BYTES_PER_PARAM,
        repeats_kv="always",
        shards_tables=True,
        holds_logits=False,
        logits_kept=4,
        logits_more=8,
    ),
    Stack(
        "unsloth",
        (),
        "Unsloth 2025: hand-written kernels that keep gate and up alone, cut cross entropy, checkpoints on the host",
        adapter_bytes=4,
        nf4_bytes=NF4_BYTES_PER_PARAM,
        num_mlp_kept=2,
        has_lean_norm=True,
        recomputes_product=True,
        offloads_checkpoints=True,
        num_head_gradients=1,
        has_fused_loss=True,
    ),
    Stack(
        "litgpt",
        ("lightning", "lit-gpt"),
        "litgpt 0.5 with Fabric, which converts the logits to fp32; bitsandbytes 0.42, whose 4-bit product keeps its "
        "input on the graph until the next step has made its own",
        adapter_bytes=2,
        quantises_head=True,
        unties_head=True,
        dropout=True,
        repeats_kv="always",
        fused_qkv_view=True,
        pads_qv=True,
        norm_trained_bytes=4,
        keeps_frozen_inputs=True,
        trains_embedding_copy=True,
        logits_kept=4,
        logits_more=4,
        logits_full_more=8,
        loss_chunk_tokens=128,
        loss_chunk_bytes=10,
        fused_optimizer=False,
    ),
)


def stack_of(name: str) -> Stack | None:
    """The profile of a name; None for Shoestring itself, which plan.memory predicts. Raises: BadInput."""
    wanted = name.lower().replace("_", "-").replace(" ", "-")
    if wanted == "shoestring":
        return None
    for stack in STACKS:
        if wanted in (stack.name, *stack.also_named):
            return stack
    known = ["shoestring", *(s.name for s in STACKS)]
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    raise BadInput(
        f"stack = {name!r} is not profiled{f' (near: {near[0]})' if near else ''}; known: {', '.join(known)}"
    )


@dataclass(frozen=True, slots=True)
class LayerRun:
    """What decides the bytes a layer keeps."""

    shape: ModelShape
    is_full: bool
    is_quantised: bool
    is_4bit: bool
    targets: frozenset[str]
    lora_rank: int
    seq_len: int
    micro_batch: int
    packing: bool
    attention: str  # eager, sdpa, flash
    width: int  # bytes of an activation: 2 or 4


def stream_width(stack: Stack, run: LayerRun) -> int:
    """Bytes of an entry of the residual stream."""
    return 4 if stack.upcasts_rest and run.is_quantised and run.is_4bit else run.width


def layer_bytes(stack: Stack, run: LayerRun) -> float:
    """Bytes a layer keeps for backward a token, without recomputation."""
    return (
        _norm_bytes(stack, run)
        + _attention_bytes(stack, run)
        + _mlp_bytes(stack, run)
        + (_trained_input_bytes(stack, run) if run.is_full else _adapter_input_bytes(stack, run))
        + _frozen_input_bytes(stack, run)
    )


def _norm_bytes(stack: Stack, run: LayerRun) -> float:
    """RMSNorm keeps its input in fp32, LayerNorm and a compiled norm as it is."""
    layout = architecture_of(run.shape.model_type)
    plain = layout.is_layer_norm or stack.has_lean_norm
    each = (run.width if layout.is_layer_norm else stream_width(stack, run)) if plain else 4
    if run.is_full and not plain:
        each += stack.norm_trained_bytes
    per_head = run.shape.num_heads + run.shape.num_kv_heads if layout.qk_norm else 0
    return each * (layout.norms * run.shape.hidden + per_head * run.shape.head_dim)


def _attention_bytes(stack: Stack, run: LayerRun) -> float:
    shape, width = run.shape, run.width
    q_dim, kv_dim = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    repeats = stack.repeats_kv == "always" or (stack.repeats_kv == "padded" and not run.packing)
    repeats = run.attention == "eager" or (repeats and run.attention != "flash")
    kept = width * (2 * q_dim + 2 * (q_dim if repeats else kv_dim))
    if stack.fused_qkv_view and q_dim == kv_dim:
        kept += 2 * width * q_dim
    capped = architecture_of(shape.model_type).soft_capped and run.attention != "flash"
    if run.attention == "eager" or capped:
        # fp32 softmax and its copy for the product; a cap keeps the result of its tanh as well.
        seen = min(run.seq_len, shape.window_tokens) if shape.num_windowed_layers == shape.num_layers else run.seq_len
        return kept + (4 + width + (width if capped else 0)) * shape.num_heads * seen
    return kept + 4 * shape.num_heads  # one log-sum-exp a head


def _mlp_bytes(stack: Stack, run: LayerRun) -> float:
    is_gated = run.shape.num_mlp_matrices == 3
    return stream_width(stack, run) * run.shape.intermediate * (stack.num_mlp_kept if is_gated else 1)


def _trained_input_bytes(stack: Stack, run: LayerRun) -> float:
    """Inputs of q, k and v, of gate and up, and of down; that of o is attention's own output."""
    layout = architecture_of(run.shape.model_type)
    num_inputs = min(layout.norms, 2)
    return run.width * (num_inputs * run.shape.hidden + run.shape.intermediate)


def _adapter_input_bytes(stack: Stack, run: LayerRun) -> float:
    shape, targets = run.shape, run.targets
    q_dim, kv_dim = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    copy = run.width + (1 if stack.dropout else 0)
    in_qkv = len(targets & {"q", "k", "v"})
    in_mlp = len(targets & ({"gate", "up"} if shape.num_mlp_matrices == 3 else {"up"}))
    if stack.copies_inputs:
        wide = in_qkv + in_mlp
    elif stack.dropout:  # q, k and v share one adapter input
        wide = min(in_qkv, 1) + in_mlp
    else:
        wide = min(in_qkv, 1) + min(in_mlp, 1)
    keeps_product = "down" in targets and not stack.recomputes_product
    kept = copy * (wide * shape.hidden + keeps_product * shape.intermediate)
    if "o" in targets and (stack.copies_inputs or stack.dropout):
        kept += copy * q_dim
    if stack.pads_qv and in_qkv and not {"q", "k", "v"} <= targets:
        kept += run.width * sum(q_dim if t == "q" else kv_dim for t in targets & {"q", "k", "v"})
    return kept + run.width * run.lora_rank * len(targets & {*ATTENTION, *MLP})


def _frozen_input_bytes(stack: Stack, run: LayerRun) -> float:
    """Of this step the inputs of q, k, v, of gate and up, and of down; of the step before that of o as well.

    The step before is not the one with the longest row: of n rows of evenly spread lengths the longest is expected
    at n / (n + 1) of the range.
    """
    if not (run.is_4bit and stack.keeps_frozen_inputs):
        return 0
    shape = run.shape
    each = min(architecture_of(shape.model_type).norms, 2) * shape.hidden + shape.intermediate
    before = 1.0 if run.packing else run.micro_batch / (run.micro_batch + 1)
    return run.width * (each + before * (each + shape.num_heads * shape.head_dim))
