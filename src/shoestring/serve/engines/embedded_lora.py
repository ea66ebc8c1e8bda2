"""Adapters of one batch side by side: two products a layer, whatever the number of adapters.

The A of the adapters in use stand one below the other, so h = x A^T is one product for all rows; what a row has of
other adapters is set to zero, and h B adds each row's own. Layers on one input (q, k, v; gate, up) are one group.
PEFT's way over a mixed batch is two products and three copies for each adapter of each layer.

Shapes: N tokens of a pass, I input size, O output size of a group, R rank of one adapter in a group (of all its
layers together), S slots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ModelError
from ...files import read_json

WEIGHTS = "adapter_model.safetensors"
# Slots side by side up to which zeros are cheaper to multiply than rows to be sorted by adapter.
MIXED_SLOTS = 8
# Parts of PEFT's LoRA that are not computed here, by the name in adapter_config.json.
UNKNOWN_PARTS = {
    "use_dora": "DoRA",
    "modules_to_save": "modules_to_save",
    "trainable_token_indices": "trained tokens",
    "lora_bias": "LoRA biases",
    "alora_invocation_tokens": "aLoRA",
    "arrow_config": "Arrow",
    "layer_replication": "layer replication",
    "megatron_config": "Megatron layers",
    "target_parameters": "LoRA on parameters",
}
NEXT_STEP = "serve its merged weights instead (shoestring export)"


@dataclass(frozen=True, slots=True)
class Linears:
    """Linear layers on one input, as one: their names in the model and output sizes."""

    key: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    num_inputs: int

    @property
    def num_outputs(self) -> int:
        return sum(self.sizes)


@dataclass(slots=True, eq=False)
class Adapter:
    """A (R, I), B (O, R) with its scale inside, of each layer by its name; kept in host memory."""

    name: str
    matrices: dict[str, tuple[Any, Any]]

    @property
    def num_bytes(self) -> int:
        return sum(m.numel() * m.element_size() for pair in self.matrices.values() for m in pair)

    def rank_in(self, group: Linears) -> int:
        return sum(self.matrices[name][0].shape[0] for name in group.names if name in self.matrices)


def read_adapter(name: str, folder: Path, groups: Sequence[Linears]) -> Adapter:
    """The adapter in folder, in PEFT's form, for a model of these layers.

    Raises: ModelError for what is damaged, for another model, or not computed here.
    """
    import torch
    from peft import LoraConfig, PeftConfig
    from safetensors.torch import load_file

    try:
        config = PeftConfig.from_pretrained(str(folder))
        weights = load_file(str(folder / WEIGHTS))
        written = read_json(folder / "adapter_config.json")
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the adapter {name!r} in {folder} cannot be read: {reason}; train this rung again") from error
    if not isinstance(config, LoraConfig):
        raise ModelError(f"{name!r} is a {config.peft_type} adapter, only LoRA is served; {NEXT_STEP}")
    unknown = [words for key, words in UNKNOWN_PARTS.items() if written.get(key)]
    if unknown or config.bias != "none":
        raise ModelError(
            f"the adapter {name!r} has {', '.join(unknown) or 'trained biases'}, which the embedded engine does not "
            f"compute; {NEXT_STEP}"
        )
    sizes = {
        layer: (size, group.num_inputs)
        for group in groups
        for layer, size in zip(group.names, group.sizes, strict=True)
    }
    pairs: dict[str, dict[str, Any]] = {}
    for key, weight in weights.items():
        layer, _, part = key.removeprefix("base_model.model.").rpartition(".lora_")
        if part not in ("A.weight", "B.weight") or layer not in sizes:
            raise ModelError(
                f"the adapter {name!r} changes {key!r}, which the embedded engine does not compute for this model; "
                f"{NEXT_STEP}"
            )
        pairs.setdefault(layer, {})[part[0]] = weight
    matrices = {}
    for layer, pair in pairs.items():
        num_outputs, num_inputs = sizes[layer]
        rank = len(pair["A"]) if "A" in pair else 0
        if len(pair) != 2 or pair["A"].shape != (rank, num_inputs) or pair["B"].shape != (num_outputs, rank):
            shapes = {part: tuple(weight.shape) for part, weight in pair.items()}
            raise ModelError(
                f"the adapter {name!r} has matrices {shapes} for {layer}, which is {num_outputs} x {num_inputs} here: "
                "it was trained on another model"
            )
        if not all(bool(torch.isfinite(weight).all()) for weight in pair.values()):
            raise ModelError(
                f"the adapter {name!r} holds numbers that are not finite in {layer}; train this rung again"
            )
        matrices[layer] = (pair["A"].float(), pair["B"].float() * _scale(config, layer, rank))
    if not matrices:
        raise ModelError(f"the adapter {name!r} in {folder} holds no LoRA matrix; train this rung again")
    return Adapter(name, matrices)


def _scale(config: Any, layer: str, rank: int) -> float:
    """PEFT's scaling of a layer; patterns are matched as PEFT does."""
    from peft.utils.other import get_pattern_key

    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), layer), config.lora_alpha)
    return float(alpha / (rank**0.5 if config.use_rslora else rank))


@dataclass(slots=True)
class Share:
    """Of one pass, how its tokens are divided among slots.

    The first num_single tokens share their products (masks, by width of a slot: (N, S R) of ones and zeros), or are
    sorted by slot: (S, P) places of the slots' tokens, filled up with N, and (N,) where each stands there. spans:
    (slot, first, last) of later tokens, multiplied by their own slot alone.
    """

    num_slots: int = 0
    num_single: int = 0
    slots_N: Any = None
    only: int | None = None  # all tokens are of this slot
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    masks: dict[int, Any] = field(default_factory=dict)
    sorted: tuple[Any, Any] | None = None


class Slots:
    """The adapters in use, on the model's device; an adapter that no row uses gives its slot away."""

    def __init__(self, groups: Sequence[Linears], *, dtype: Any, device: Any) -> None:
        self.groups = {group.key: group for group in groups}
        self.dtype, self.device = dtype, device
        self.held: list[Adapter | None] = []
        self.widths: dict[str, int] = dict.fromkeys(self.groups, 0)
        self.a: dict[str, Any] = {}  # (S R, I)
        self.b: dict[str, Any] = {}  # (S R, O)
        self.used: list[int] = []
        self.clock = 0

    def place(self, adapter: Adapter, busy: Callable[[Adapter], bool]) -> int:
        """The adapter's slot; busy: whether rows under way use an adapter."""
        self.clock += 1
        for slot, held in enumerate(self.held):
            if held is adapter:
                self.used[slot] = self.clock
                return slot
        idle = [slot for slot, held in enumerate(self.held) if held is None or not busy(held)]
        slot = min(idle, key=lambda s: self.used[s], default=len(self.held))
        if slot == len(self.held):
            self.held.append(None)
            self.used.append(0)
        self.held[slot], self.used[slot] = adapter, self.clock
        needed = {key: adapter.rank_in(group) for key, group in self.groups.items()}
        if any(needed[key] > self.widths[key] for key in needed) or not self._has(slot):
            self.widths = {key: max(width, needed[key]) for key, width in self.widths.items()}
            self._rebuild()
        else:
            self._fill(slot, adapter)
        return slot

    def forget(self, adapter: Adapter) -> None:
        """Empty the adapter's slot; no row uses it any more."""
        self.held = [None if held is adapter else held for held in self.held]

    def _has(self, slot: int) -> bool:
        return all(
            not width or (key in self.a and len(self.a[key]) >= (slot + 1) * width)
            for key, width in self.widths.items()
        )

    def _rebuild(self) -> None:
        import torch

        for key, group in self.groups.items():
            rows = len(self.held) * self.widths[key]
            if rows:
                self.a[key] = torch.zeros(rows, group.num_inputs, dtype=self.dtype, device=self.device)
                self.b[key] = torch.zeros(rows, group.num_outputs, dtype=self.dtype, device=self.device)
        for slot, adapter in enumerate(self.held):
            if adapter is not None:
                self._fill(slot, adapter)

    def _fill(self, slot: int, adapter: Adapter) -> None:
        for key, group in self.groups.items():
            width = self.widths[key]
            if not width:
                continue
            a_RI, b_RO = (held[key][slot * width : (slot + 1) * width] for held in (self.a, self.b))
            a_RI.zero_()
            b_RO.zero_()
            at = column = 0
            for name, size in zip(group.names, group.sizes, strict=True):
                if name in adapter.matrices:
                    a, b = adapter.matrices[name]
                    a_RI[at : at + len(a)] = a
                    b_RO[at : at + len(a), column : column + size] = b.t()
                    at += len(a)
                column += size

    def share(self, slots: Sequence[int | None], num_single: int) -> Share | None:
        """How tokens with these slots (None: of the base) are computed together; None where no adapter is.

        num_single: the first tokens, each of a row of its own; after them come runs of many tokens.
        """
        import torch

        present = {slot for slot in slots if slot is not None}
        if not present:
            return None
        if len(present) == 1 and None not in slots:
            return Share(only=next(iter(present)))
        single = slots[:num_single]
        share = Share(num_single=num_single, spans=_spans(slots, num_single))
        present = {slot for slot in single if slot is not None}
        if present:
            slots_N = torch.tensor([-1 if slot is None else slot for slot in single], device=self.device)
            share.num_slots, share.slots_N = max(present) + 1, slots_N
            if len(present) > MIXED_SLOTS:
                share.sorted = self._sorted(single)
        return share

    def _sorted(self, slots: Sequence[int | None]) -> tuple[Any, Any]:
        import torch

        places: list[list[int]] = [[] for _ in self.held]
        where = [0] * len(slots)
        for n, slot in enumerate(slots):
            if slot is not None:
                where[n] = len(places[slot])
                places[slot].append(n)
        side = max(map(len, places))
        filled = [own + [len(slots)] * (side - len(own)) for own in places]
        # Tokens of the base look at a row of zeros, the last.
        back = [
            len(self.held) * side if slot is None else slot * side + at for slot, at in zip(slots, where, strict=True)
        ]
        return torch.tensor(filled, device=self.device), torch.tensor(back, device=self.device)

    def add(self, key: str, x_NI: Any, y_NO: Any, share: Share) -> None:
        """Add the adapters' part of a group's output, in place."""
        width = self.widths[key]
        if not width:
            return
        a_RI, b_RO = self.a[key], self.b[key]
        x_NI = x_NI.to(self.dtype)
        if share.only is not None:
            own = slice(share.only * width, (share.only + 1) * width)
            _add(y_NO, x_NI @ a_RI[own].t(), b_RO[own])
            return
        for slot, start, stop in share.spans:
            own = slice(slot * width, (slot + 1) * width)
            _add(y_NO[start:stop], x_NI[start:stop] @ a_RI[own].t(), b_RO[own])
        if not share.num_slots:
            return
        if len(y_NO) > share.num_single:
            x_NI, y_NO = x_NI[: share.num_single], y_NO[: share.num_single]
        if share.sorted is not None:
            y_NO += self._by_slot(x_NI, a_RI, b_RO, *share.sorted)
            return
        mask = share.masks.get(width)
        if mask is None:
            mask = share.masks[width] = self._mask(share, width)
        rows = share.num_slots * width
        _add(y_NO, (x_NI @ a_RI[:rows].t()).mul_(mask), b_RO[:rows])

    def _mask(self, share: Share, width: int) -> Any:
        import torch

        own = torch.arange(share.num_slots, device=self.device).repeat_interleave(width)
        return (own[None] == share.slots_N[:, None]).to(self.dtype)

    def _by_slot(self, x_NI: Any, a_RI: Any, b_RO: Any, places_SP: Any, back_N: Any) -> Any:
        import torch

        num = len(self.held)
        filled = torch.nn.functional.pad(x_NI, (0, 0, 0, 1))
        h_SPR = filled[places_SP] @ a_RI.view(num, -1, a_RI.shape[1]).transpose(1, 2)
        y_SPO = h_SPR @ b_RO.view(num, -1, b_RO.shape[1])
        return torch.nn.functional.pad(y_SPO.flatten(0, 1), (0, 0, 0, 1))[back_N]


def _add(y_NO: Any, h_NR: Any, b_RO: Any) -> None:
    if y_NO.dtype == h_NR.dtype:
        y_NO.addmm_(h_NR, b_RO)
    else:
        y_NO += h_NR @ b_RO


def _spans(slots: Sequence[int | None], start: int) -> list[tuple[int, int, int]]:
    """(slot, first, last) of neighbours of one slot from start on, those of the base left out."""
    spans: list[tuple[int, int, int]] = []
    for n, slot in enumerate(slots[start:], start):
        if slot is None:
            continue
        if spans and spans[-1][0] == slot and spans[-1][2] == n:
            spans[-1] = (slot, spans[-1][1], n + 1)
        else:
            spans.append((slot, n, n + 1))
    return spans


def grouped(found: Mapping[str, tuple[int, int]], together: Sequence[tuple[str, ...]]) -> list[Linears]:
    """Linear layers (name to outputs, inputs) as groups: those named together, and the others alone."""
    groups, taken = [], set()
    for names in together:
        groups.append(Linears(names[0], names, tuple(found[n][0] for n in names), found[names[0]][1]))
        taken |= set(names)
    groups += [Linears(name, (name,), (size[0],), size[1]) for name, size in found.items() if name not in taken]
    return groups
