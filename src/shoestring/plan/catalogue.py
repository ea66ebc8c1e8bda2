"""The models of the project's table, as a person chooses among them: size, licence, consent, and what trains where."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BadInput
from ..records import Device
from .devices import device_of
from .memory import MemoryPrediction, predict_memory
from .shapes import ModelShape, shape_of, table

PERMISSIVE = ("apache-2.0", "mit")
PLANNED_KINDS = ("dense", "mixed")  # what shapes.shape_of counts
# What --fits asks: one row of this many tokens, a common rank; as many of them bear loss as elsewhere by default.
FIT_TOKENS, FIT_RANK = 2048, 16
SIZES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


@dataclass(frozen=True, slots=True)
class Entry:
    """One model; licence_basis says how far the licence can be trusted, empty where it was read on the card."""

    model: str
    family: str
    kind: str  # dense, mixed; moe and other are not planned
    num_params: int
    num_active_params: int
    embedding_frac: float  # of the parameters: embedding and untied head
    is_tied: bool
    num_layers: int
    num_windowed_layers: int
    num_linear_attention_layers: int
    head_dim: int
    context_tokens: int
    licence: str
    licence_basis: str
    is_permissive: bool
    gated: str  # yes, no, unknown; recalled
    source: str
    grade: str
    note: str


@dataclass(frozen=True, slots=True)
class Fit:
    """What of a model trains on a device: verdict by method; refused says why nothing is predicted."""

    lora: MemoryPrediction | None
    qlora: MemoryPrediction | None
    refused: str = ""

    @property
    def method(self) -> str:
        """The best that fits: lora, qlora, one of them with ' (tight)', or 'no'."""
        for wanted, mark in (("fits", ""), ("tight", " (tight)")):
            for name, found in (("lora", self.lora), ("qlora", self.qlora)):
                if found is not None and found.verdict == wanted:
                    return name + mark
        return "no"


def entries() -> list[Entry]:
    """All models, smallest first."""
    return sorted((_entry(row) for row in table().values()), key=lambda e: (e.num_params, e.model))


def _entry(row: dict[str, str]) -> Entry:
    num_params, is_tied = int(row["num_params"]), row["tied"] == "true"
    return Entry(
        model=row["model"],
        family=row["family"],
        kind=row["kind"],
        num_params=num_params,
        num_active_params=int(row["num_active_params"]),
        embedding_frac=round(int(row["num_embedding_params"]) * (1 if is_tied else 2) / num_params, 4),
        is_tied=is_tied,
        num_layers=int(row["num_layers"]),
        num_windowed_layers=int(row["num_windowed_layers"]),
        num_linear_attention_layers=int(row["num_linear_attention_layers"]),
        head_dim=int(row["head_dim"]),
        context_tokens=int(row["context_tokens"]),
        licence=row["licence"],
        licence_basis=row["licence_basis"],
        is_permissive=row["licence"].lower() in PERMISSIVE,
        gated=row["gated"],
        source=row["source"],
        grade=row["grade"],
        note=row["note"],
    )


def select(licence: str | None = None, max_params: str | None = None) -> list[Entry]:
    """Models of a licence ("permissive", or part of its name) and of at most so many parameters ("8B", "500M").

    Raises: BadInput for a size it cannot read, or a licence no model has.
    """
    found = entries()
    if licence is not None:
        wanted = licence.strip().lower()
        kept = [e for e in found if (e.is_permissive if wanted == "permissive" else wanted in e.licence.lower())]
        if not kept:
            known = ", ".join(sorted({e.licence for e in found}))
            raise BadInput(f"no model has a licence like {licence!r}; known: permissive, {known}")
        found = kept
    limit = None if max_params is None else read_size(max_params)
    return found if limit is None else [e for e in found if e.num_params <= limit]


def read_size(text: str) -> float:
    """Parameters of '8B', '1.5b', '500M' or '7000000000'. Raises: BadInput."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmb]?)", text.strip().lower())
    if not match:
        raise BadInput(f"--max-params {text!r} is not a size; write 8B, 1.5B or 500M")
    return float(match[1]) * SIZES[match[2]]


def fits(chosen: Sequence[Entry], gpu: str) -> dict[str, Fit]:
    """By model, what Shoestring trains on a GPU with one row of FIT_TOKENS. Raises: BadInput for an unknown GPU."""
    device = device_of(gpu)
    return {e.model: _fit(e, device) for e in chosen}


def _fit(entry: Entry, device: Device) -> Fit:
    if entry.kind not in PLANNED_KINDS:
        return Fit(None, None, "a mixture of experts" if entry.kind == "moe" else "of a kind not planned yet")
    shape = shape_of(entry.model)
    return Fit(_best(shape, "lora", device), _best(shape, "qlora", device))


def _best(shape: ModelShape, method: str, device: Device) -> MemoryPrediction:
    """The prediction without recomputed layers where that fits, else with all of them."""
    for num_recomputed in (0, shape.num_layers):
        found = predict_memory(
            shape,
            method=method,
            lora_rank=FIT_RANK,
            micro_batch_tokens=FIT_TOKENS,
            device=device,
            row_tokens=FIT_TOKENS,
            num_recomputed=num_recomputed,
        )
        if found.verdict == "fits":
            break
    return found
