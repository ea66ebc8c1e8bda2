"""The fine-tuning API on a gateway: what jobs tune is loaded beside the base that is served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ShoestringError
from ..gateway.tuning_settings import TuningSettings
from .names import Served
from .routes import body_limits, routes
from .service import Tuning

if TYPE_CHECKING:
    from starlette.routing import Route

    from ..gateway.app import Gateway, Lifespan


def mounted(gateway: Gateway, runs_dir: Path, settings: TuningSettings) -> tuple[list[Route], Lifespan]:
    """Routes and lifespan for make_app; the gateway learns why a tuned model does not answer here.

    Raises: BadInput where another server carries out the jobs of runs_dir; RunFolderError.
    """
    registry = gateway.registry
    if registry is None:
        tuning = Tuning(runs_dir, settings)
    else:
        served = registry

        async def load(run_folder: Path, name: str) -> str:
            try:
                await served.add_named(run_folder.name, name)
            except ShoestringError as error:  # refused, or the engine is full or down
                return str(error)
            return ""

        async def drop(name: str) -> None:
            if name in served.models:
                await served.drop(name)

        tuning = Tuning(runs_dir, settings, served_base(gateway), load, drop)
    gateway.body_limits = {**gateway.body_limits, **body_limits(tuning)}
    gateway.why_not_served = tuning.why_not_served
    return routes(tuning), tuning.lifespan


def served_base(gateway: Gateway) -> Served | None:
    """The base that jobs tune where nothing else is asked for; None where none is served."""
    registry = gateway.registry
    if registry is None:
        return None
    return Served(registry.base_name, registry.base.model, registry.engine.capability.quantised_base)
