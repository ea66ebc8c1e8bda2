"""Everything that training a rung needs, built once: for the trainer, and for the checks before it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..records import Device, Example, TrainSettings
from . import loss, preflight
from .adapter import adapter_in_16_bit, bare
from .base import load_tokenizer
from .objective import Objective
from .packing import Packing, choose_packing
from .preference import objective
from .routes import Routes, build_routes
from .tokens import Encoded


@dataclass(frozen=True)
class SetUp:
    """A rung about to be trained."""

    model: str
    settings: TrainSettings
    device: Device
    tokenizer: Any
    train: Sequence[Example]
    learned: Objective
    held_out: Objective
    routes: Routes
    packing: Packing

    @property
    def tuned(self) -> Any:
        """The base with its adapter, or the model that is trained whole."""
        return self.routes.tuned

    @property
    def path(self) -> str:
        """Of the loss."""
        return self.routes.loss_path

    @property
    def probed_paths(self) -> list[Encoded]:
        """Paths of a few rows cut short, on which questions about the model are asked."""
        return _probed_paths(self.learned)

    @property
    def budget(self) -> dict[str, Any]:
        """How passes over rows without gradient are cut, as objectives take it."""
        return {"batch_tokens": self.settings.micro_batch_tokens, "path": self.path}

    @property
    def facts(self) -> dict[str, Any]:
        """Which routes are on, for the record."""
        return {
            **self.routes.facts,
            "packing": self.packing.kind,
            "packing_reason": self.packing.reason,
            "sharing_factor": self.packing.sharing_factor,
            "attention": self.packing.attention(self.routes.rows_attention, self.device),
        }

    @contextlib.contextmanager
    def scoring(self) -> Iterator[None]:
        """The model in evaluation mode, in the precision of training."""
        with preflight.evaluation_mode(self.tuned), loss.precision(self.device):
            yield

    def at_reference(self) -> contextlib.AbstractContextManager[Any]:
        """Around a pass before the first step: the model that preferences are measured from.

        The bare base under a fresh adapter, the adapter training goes on from as it is.
        """
        return contextlib.nullcontext() if self.settings.start else bare(self.tuned)


@contextlib.contextmanager
def set_up(
    model: str, train: Sequence[Example], dev: Sequence[Example], settings: TrainSettings, device: Device
) -> Iterator[SetUp]:
    """Tokenise and check the rows, load the base, with a fresh adapter or to be trained whole, choose path and packing.

    Raises: TrainingError, BadInput, ModelError.
    """
    tokenizer = load_tokenizer(model)
    learned = objective(tokenizer, train, settings, "training")
    held_out = objective(tokenizer, dev, settings, "dev", like=learned)
    routes = build_routes(model, settings, device, _probed_paths(learned), tokenizer.pad_token_id)
    with adapter_in_16_bit(routes.tuned, device):
        with preflight.evaluation_mode(routes.tuned), loss.precision(device):
            packing = choose_packing(learned, train, settings, routes.tuned, routes.loss_path, device)
        yield SetUp(model, settings, device, tokenizer, train, learned, held_out, routes, packing)


def _probed_paths(learned: Objective) -> list[Encoded]:
    return [path for item in learned.probed().items for path in item]
