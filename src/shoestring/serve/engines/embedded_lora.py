"""Adapters of one batch side by side: two products a layer, whatever the number of adapters.

The adapters in use lie in slots of one tensor, the rows of a pass in the order of their slots, so that all slots are
multiplied in one batched product. Layers on one input (q, k, v; gate, up) are one group with one A. PEFT's way over a
mixed batch is two products and three copies for each adapter of each layer.

Shapes: N tokens of a pass, I input size, O output size of a group, Q that of a block, R rank of one adapter in a group
(of all its layers together), S slots, M blocks, P rows of the slot that has most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ModelError
from ...files import read_json

WEIGHTS = "adapter_model.safetensors"
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

    @property
    def num_blocks(self) -> int:
        """How many B lie side by side: as many as layers where all have one size, else one with zeros between."""
        return len(self.sizes) if len(set(self.sizes)) == 1 else 1


@dataclass(slots=True, eq=False)
class Adapter:
    """A (R, I), B (O, R) with its scale inside, of each layer by its name; kept in host memory."""

    name: str
    matrices: dict[str, tuple[Any, Any]]

    @property
    def num_bytes(self) -> int:
        return sum(m.numel() * m.element_size() for pair in self.matrices.values() for m in pair)

    def rank_in(self, group: Linears) -> int:
        """The largest in a layer of the group."""
        return max((len(self.matrices[name][0]) for name in group.names if name in self.matrices), default=0)


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
        # Copied, for what is read lies in the mapped file, which would stay in memory as a whole.
        matrices[layer] = (pair["A"].float().clone(), pair["B"].float() * _scale(config, layer, rank))
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

    Tokens first to last are those with one token a row and an adapter, in the order of their slots; where they are not
    P of each slot, places (S P,) are theirs by slot, filled up with any, and back (last - first,) where each stands
    there. spans: (slot, first, last) of later tokens, multiplied by their own slot alone.
    """

    spans: list[tuple[int, int, int]]
    first: int = 0
    last: int = 0
    places: Any = None
    back: Any = None


class Slots:
    """The adapters in use, on the model's device; an adapter that no row uses gives its slot away."""

    def __init__(self, groups: Sequence[Linears], *, dtype: Any, device: Any) -> None:
        self.groups = {group.key: group for group in groups}
        self.dtype, self.device = dtype, device
        self.held: list[Adapter | None] = []
        self.ranks: dict[str, int] = dict.fromkeys(self.groups, 0)  # of one layer
        self.a: dict[str, Any] = {}  # (S, I, R)
        self.b: dict[str, Any] = {}  # (S M, R / M, Q)
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
        if any(needed[key] > self.ranks[key] for key in needed) or not self._has(slot):
            self.ranks = {key: max(rank, needed[key]) for key, rank in self.ranks.items()}
            self._rebuild()
        else:
            self._fill(slot, adapter)
        return slot

    def find(self, adapter: Adapter | None) -> int:
        """Where an adapter's rows come in a pass: the base first, what has no slot last."""
        if adapter is None:
            return -1
        return next((slot for slot, held in enumerate(self.held) if held is adapter), len(self.held))

    def forget(self, adapter: Adapter) -> None:
        """Empty the adapter's slot; no row uses it any more."""
        self.held = [None if held is adapter else held for held in self.held]

    def _has(self, slot: int) -> bool:
        return all(not rank or (key in self.a and len(self.a[key]) > slot) for key, rank in self.ranks.items())

    def _rebuild(self) -> None:
        import torch

        num = len(self.held)
        for key, group in self.groups.items():
            if not self.ranks[key]:
                continue
            width, blocks = self.ranks[key] * len(group.names), group.num_blocks
            shapes = (num, group.num_inputs, width), (num * blocks, width // blocks, group.num_outputs // blocks)
            self.a[key], self.b[key] = (torch.zeros(shape, dtype=self.dtype, device=self.device) for shape in shapes)
        for slot, adapter in enumerate(self.held):
            if adapter is not None:
                self._fill(slot, adapter)

    def _fill(self, slot: int, adapter: Adapter) -> None:
        for key, group in self.groups.items():
            rank, blocks = self.ranks[key], group.num_blocks
            if not rank:
                continue
            a_IR, b_MRQ = self.a[key][slot], self.b[key][slot * blocks : (slot + 1) * blocks]
            a_IR.zero_()
            b_MRQ.zero_()
            column = 0
            for number, (name, size) in enumerate(zip(group.names, group.sizes, strict=True)):
                if name in adapter.matrices:
                    a, b = adapter.matrices[name]
                    at = number * rank
                    a_IR[:, at : at + len(a)] = a.t()
                    if blocks > 1:
                        b_MRQ[number, : len(a)] = b.t()
                    else:
                        b_MRQ[0, at : at + len(a), column : column + size] = b.t()
                column += size

    def share(self, slots: Sequence[int | None], num_single: int) -> Share | None:
        """How tokens with these slots (None: of the base) are computed together; None where no adapter is.

        The first num_single have one token a row and come in the order of `slot_order`; then runs of many tokens.
        """
        import torch

        single = [slot for slot in slots[:num_single] if slot is not None]
        share = Share(_spans(slots, num_single), num_single - len(single), num_single)
        present = set(single)
        if len(present) <= 1:
            if single:
                share.spans.insert(0, (single[0], share.first, share.last))
            share.first = share.last
            return share if share.spans else None
        num, side = len(self.held), max(map(single.count, present))
        if len(single) < num * side:
            starts = {slot: single.index(slot) for slot in present}
            back = [slot * side + n - starts[slot] for n, slot in enumerate(single)]
            places = [share.first] * (num * side)
            for n, place in enumerate(back, share.first):
                places[place] = n
            share.places, share.back = (torch.tensor(found, device=self.device) for found in (places, back))
        return share

    def add(self, key: str, x_NI: Any, y_NO: Any, share: Share) -> None:
        """Add the adapters' part of a group's output, in place."""
        if not self.ranks[key]:
            return
        a_SIR, b = self.a[key], self.b[key]
        blocks = self.groups[key].num_blocks
        x_NI = x_NI.to(self.dtype)
        for slot, start, stop in share.spans:
            own = y_NO[start:stop]
            h_NR = x_NI[start:stop] @ a_SIR[slot]
            if blocks == 1:
                own.add_(h_NR @ b[slot])
            else:
                h_MNR = h_NR.view(len(own), blocks, -1).transpose(0, 1)
                more_MNQ = h_MNR @ b[slot * blocks : (slot + 1) * blocks]
                own.view(len(own), blocks, -1).add_(more_MNQ.transpose(0, 1))
        if share.first == share.last:
            return
        own_NO, num = y_NO[share.first : share.last], len(a_SIR)
        picked = x_NI[share.first : share.last] if share.places is None else x_NI.index_select(0, share.places)
        h_SPR = picked.view(num, -1, x_NI.shape[1]).bmm(a_SIR)
        if blocks == 1 and share.back is None and y_NO.dtype == self.dtype:
            own_NO.view(num, -1, y_NO.shape[1]).baddbmm_(h_SPR, b)
            return
        if blocks == 1:
            more_SPO = h_SPR.bmm(b)
        else:
            side = h_SPR.shape[1]
            h_SMPR = h_SPR.view(num, side, blocks, -1).transpose(1, 2)
            more_SMPQ = h_SMPR.reshape(num * blocks, side, -1).bmm(b).view(num, blocks, side, -1)
            if share.back is None:
                own_NO.view(num, side, blocks, -1).add_(more_SMPQ.transpose(1, 2))
                return
            more_SPO = more_SMPQ.transpose(1, 2)
        more_NO = more_SPO.reshape(-1, y_NO.shape[1])
        own_NO.add_(more_NO if share.back is None else more_NO.index_select(0, share.back))


def slot_order(slot: int | None) -> int:
    """Rows of one pass come in this order."""
    return -1 if slot is None else slot


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
