"""Gates on which weights learn and what they are held in; each says what is wrong with a Probe, or what was seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .probe import Probe


def only_adapters(probe: Probe) -> tuple[str, str]:
    own = probe.trainable()
    others = [name for name in own if "lora_" not in name]
    frozen = [n for n, p in probe.ready.tuned.named_parameters() if "lora_" in n and not p.requires_grad]
    if not own or not any("lora_" in name for name in own):
        return "no adapter matrix is trainable", ""
    if others:
        return f"{len(others)} weights of the base are trainable, first {others[0]}", ""
    if frozen:
        return f"{len(frozen)} adapter matrices are frozen, first {frozen[0]}", ""
    return "", f"{len(own)} adapter matrices, {sum(p.numel() for p in own.values()):,} parameters"


def every_weight(probe: Probe) -> tuple[str, str]:
    tuned, own = probe.ready.tuned, probe.trainable()
    frozen = [name for name, _ in tuned.named_parameters() if name not in own]
    if frozen:
        return f"{len(frozen)} weights are frozen, first {frozen[0]}", ""
    tied = getattr(tuned.config.get_text_config(), "tie_word_embeddings", False)
    head = tuned.get_output_embeddings()
    if tied and head is not None and head.weight is not tuned.get_input_embeddings().weight:
        return "the output head is tied to the embeddings, and is another weight here", ""
    return "", f"{len(own)} weights, {sum(p.numel() for p in own.values()):,} parameters" + (
        ", head and embeddings one of them" if tied else ""
    )


def in_float32(probe: Probe) -> tuple[str, str]:
    import torch

    low = [name for name, p in probe.trainable().items() if p.dtype != torch.float32]
    if low:
        return f"{len(low)} weights learn in 16 bits, where small updates round to nothing, first {low[0]}", ""
    return "", f"weights learn in float32, products are in {probe.ready.device.dtype}"


def base_as_loaded(probe: Probe) -> tuple[str, str]:
    import torch

    wide = [
        name
        for name, p in probe.ready.tuned.named_parameters()
        if not p.requires_grad and p.dtype == torch.float32 and p.dim() > 1
    ]
    if probe.ready.device.dtype != "float32" and wide:
        return f"{len(wide)} frozen matrices are held in float32, first {wide[0]}", ""
    return "", f"the frozen base is held in {probe.ready.device.dtype}" + (
        " and NF4" if probe.ready.settings.method == "qlora" else ""
    )
