"""Whether the embedded engine computes the model's own answer: logits on a probe against transformers and PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import ModelError
from ...evaluate.generation.forest import LOGITS_LIMIT
from ...train.base import quiet_loading
from ...train.locate import first_line
from .embedded_cache import Store, keyed_dtype
from .embedded_lean import Lean, refusal
from .embedded_lora import Adapter, Slots
from .embedded_pass import Pass, Run, hidden_above
from .embedded_plain import Plain
from .embedded_steps import Forward

PROBE_TOKENS = 24
# Weights are copied into the CPU's own order where that takes no more of the free memory.
PACKED_FRAC = 0.25


def choose(model: Any, name: str, free_bytes: int) -> tuple[Forward, str]:
    """The quickest pass that gives the model's own logits, and which it is. Raises: ModelError."""
    ids = probe_ids(model)
    theirs = own_logits(model, ids)
    weights_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    may_pack = weights_bytes <= PACKED_FRAC * free_bytes
    ways: list[tuple[str, Callable[[], Forward]]] = [("transformers' modules", lambda: Plain(model))]
    reasons = []
    reason = refusal(model)
    if reason:
        reasons.append(reason)
    else:
        ways.insert(0, ("short form", lambda: Lean(model, may_pack=may_pack)))
    limit = LOGITS_LIMIT[str(model.dtype).removeprefix("torch.")]
    for words, make in ways:
        try:
            forward = make()
            apart = relative(theirs, probe(forward, model, ids, None))
        except (ModelError, RuntimeError, AttributeError, ValueError) as error:
            reasons.append(f"{words}: {first_line(error)}")
            continue
        if apart <= limit:
            why = f" ({'; '.join(reasons)})" if reasons else ""
            return forward, f"{words}{why}, logits within {apart:.1g} of transformers'"
        reasons.append(f"{words}: logits differ by {apart:.2g} from transformers', limit {limit:g}")
    raise ModelError(
        f"{name} is not served by the embedded engine: {'; '.join(reasons)}; take --engine vllm, or llamacpp"
    )


def compare(forward: Forward, model: Any, adapter: Adapter, folder: Path) -> None:
    """The adapter's logits on a probe must be those of PEFT. Raises: ModelError."""
    from peft import PeftModel

    ids = probe_ids(model)
    with quiet_loading(), forward.theirs():
        tuned = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
        try:
            theirs = own_logits(tuned, ids)
        finally:
            tuned.unload()
    apart = relative(theirs, probe(forward, model, ids, adapter))
    limit = LOGITS_LIMIT[str(model.dtype).removeprefix("torch.")]
    if not apart <= limit:
        raise ModelError(
            f"with the adapter {adapter.name!r} logits differ by {apart:.2g} from PEFT's, limit {limit:g}; serve its "
            "merged weights instead (shoestring export)"
        )


def probe_ids(model: Any) -> list[int]:
    import torch

    generator = torch.Generator().manual_seed(0)
    num_ids = model.get_input_embeddings().weight.shape[0]
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or PROBE_TOKENS
    return torch.randint(num_ids, (min(PROBE_TOKENS, context),), generator=generator).tolist()


def own_logits(model: Any, ids: list[int]) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float()


def probe(forward: Forward, model: Any, ids: list[int], adapter: Adapter | None) -> Any:
    """Logits (N, V) after each token, the first half read as a run, the others one by one as answers are."""
    import torch

    device, dtype = model.device, keyed_dtype(model)
    with torch.inference_mode():
        store = Store(keyed_shape(model), dtype=dtype, device=device, budget_tokens=len(ids))
        store.require(1, len(ids))
        slots = Slots(forward.groups, dtype=torch.float32, device=device)
        slot = None if adapter is None else slots.place(adapter, lambda _: True)
        half = len(ids) // 2
        found = []
        for start, stop in [(0, half), *((i, i + 1) for i in range(half, len(ids)))]:
            positions = torch.arange(start, stop, device=device)
            is_run = stop - start > 1
            own = torch.zeros_like(positions)
            now = Pass(
                ids=torch.tensor(ids[start:stop], device=device),
                positions=positions,
                places=None,
                store=store,
                written=store.write_places(own, positions),
                num_single=0 if is_run else 1,
                order=None,
                num_tokens_seen=0 if is_run else stop,
                hidden=None if is_run else torch.zeros(1, 1, 1, stop, dtype=dtype, device=device),
                trunks=None,
                runs=[Run(0, start, stop, 0, hidden_above(start, stop, dtype=dtype, device=device))] if is_run else [],
                slots=slots,
                share=slots.share([slot] * (stop - start), 0 if is_run else 1),
            )
            found.append(forward.forward(now).float())
    return torch.cat(found)


def relative(theirs: Any, ours: Any) -> float:
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))


def keyed_shape(model: Any) -> tuple[int, int, int]:
    """Layers, key/value heads, head size."""
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return config.num_hidden_layers, heads, size
