"""Rates a served model reached, as `shoestring bench serve --save` measured them: RUN/serving.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import RunFolderError
from ..files import read_json, write_json
from ..records import Estimate
from .devices import gpu_spec

FILE = "serving.json"


@dataclass(frozen=True, slots=True)
class ServedRates:
    """One server under a full load. Rates are of the base alone; lora_loss_frac is what adapters take of them.

    prefill: prompt tokens a second while prompts are read, the cached ones included; decode: new tokens a second of all
    requests together. Estimates: median, lowest and highest of the rounds. None: could not be told, with the reason.
    """

    model: str  # as the server names the base
    engine: str
    engine_version: str
    device: str  # row of the GPU table, or the processor
    measured_at: str  # ISO time
    clients: int
    prompt_tokens: float
    completion_tokens: float
    cached_frac: float
    requests_per_s: Estimate
    prefill_tokens_per_s: Estimate | None
    decode_tokens_per_s: Estimate | None
    alone_s: Estimate  # a whole answer with nothing else to do
    lora_loss_frac: Estimate | None
    num_adapters: int
    reason: str = ""

    def seconds_per_request(self, prompt_tokens: float, completion_tokens: float, pick: str = "value") -> float | None:
        """Of the device's time under a full load; low: the fewest. None where the rates could not be told apart."""
        if self.prefill_tokens_per_s is None or self.decode_tokens_per_s is None:
            return None
        fast = {"low": "high", "high": "low"}.get(pick, pick)
        return prompt_tokens / float(getattr(self.prefill_tokens_per_s, fast)) + completion_tokens / float(
            getattr(self.decode_tokens_per_s, fast)
        )

    @property
    def kept_frac(self) -> float:
        """What is left of the rates with adapters; 1 where none were measured."""
        return 1.0 if self.lora_loss is None else 1.0 - self.lora_loss.value

    @property
    def lora_loss(self) -> Estimate | None:
        """lora_loss_frac to reckon with: at least 0, since adapters only add work and less is noise between rounds."""
        told = self.lora_loss_frac
        return told and Estimate(*(max(0.0, part) for part in (told.value, told.low, told.high)))

    @property
    def words(self) -> str:
        """vllm 0.33.0 on L4, measured 2026-11-28."""
        return f"{self.engine} {self.engine_version} on {self.device}, measured {self.measured_at[:10]}"


def rates_in(folder: Path) -> list[ServedRates]:
    """What serving.json of a run folder holds; none without one. Raises: RunFolderError for a damaged one."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        return [_from_json(row) for row in read_json(path)["rates"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove it and measure again: shoestring bench serve"
        ) from None


def known_rates(folder: Path, model: str) -> tuple[list[ServedRates], list[str]]:
    """(rates, notes): all of a run's own file, and of runs beside it those of the same model.

    A damaged file is passed over, and the note says so.
    """
    found, notes = [], []
    for path in sorted({folder / FILE, *folder.parent.glob(f"*/{FILE}")}):
        try:
            rates = rates_in(path.parent)
        except RunFolderError as error:
            notes.append(str(error))
            continue
        is_own = path.parent == folder
        found += [r for r in rates if is_own or r.model.split("/")[-1] == model.split("/")[-1]]
    return found, notes


def save(folder: Path, rates: ServedRates) -> Path:
    """Add to serving.json, in the place of an earlier measurement of the same model, engine and device."""
    kept = [old for old in rates_in(folder) if _key(old) != _key(rates)]
    path = folder / FILE
    write_json(path, {"rates": [asdict(one) for one in (*kept, rates)]})
    return path


def rates_for(found: Iterable[ServedRates], gpu: str) -> ServedRates | None:
    """The newest on a GPU by its row's name."""
    return max((r for r in found if row_of(r.device) == gpu), key=lambda r: r.measured_at, default=None)


def row_of(device: str) -> str:
    """The GPU table's name of a device, or its own."""
    spec = gpu_spec(device)
    return spec.device if spec else device


def _key(rates: ServedRates) -> tuple[str, str, str]:
    return rates.model, rates.engine, row_of(rates.device)


def _from_json(row: Mapping[str, Any]) -> ServedRates:
    estimates = ("requests_per_s", "prefill_tokens_per_s", "decode_tokens_per_s", "alone_s", "lora_loss_frac")
    values: dict[str, Any] = {k: Estimate(**row[k]) if k in estimates and row[k] is not None else row[k] for k in row}
    return ServedRates(**values)
