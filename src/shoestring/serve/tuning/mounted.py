"""The fine-tuning API on a gateway: what jobs tune is loaded beside the base that is served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import BadInput, ModelError
from .names import Served
from .routes import body_limits, routes
from .service import Tuning
from .settings import TuningSettings

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
            except (BadInput, ModelError) as error:
                return str(error)
            return ""

        async def drop(name: str) -> None:
            if name in served.models:
                await served.drop(name)

        tuning = Tuning(runs_dir, settings, Served(registry.base_name, registry.base.model), load, drop)
    gateway.body_limits = {**gateway.body_limits, **body_limits(tuning)}
    gateway.why_not_served = tuning.why_not_served
    return routes(tuning), tuning.lifespan
