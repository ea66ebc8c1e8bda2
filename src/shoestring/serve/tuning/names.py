"""Which model trains for the name a client gave: the owner's map, what is served here, or the counterpart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...embedded import family
from ...errors import ModelError
from ...imports.counterparts import SIZE_CLASS, counterpart, scores
from ...imports.openai_job import dateless
from ...train.locate import folder_at_hand
from ..gateway.errors import ApiError
from ..gateway.tuning_settings import TuningSettings

TUNED = "ft:"


@dataclass(frozen=True, slots=True)
class Served:
    """The base that the gateway serves: its name to clients, as a run file names it, and whether it is held in NF4."""

    name: str
    model: str
    on_nf4: bool = False


@dataclass(frozen=True, slots=True)
class Trained:
    """What a job trains. name: to clients; model: in the run file; start: run folder that training goes on from."""

    name: str
    model: str
    why: str
    start: str = ""


def trained_for(asked: str, settings: TuningSettings, served: Served | None) -> Trained:
    """The model of a new job, no tuned one. Raises: ApiError 404."""
    bare = dateless(asked)
    mapped = settings.models.get(asked) or settings.models.get(bare)
    if mapped:
        is_served = served is not None and mapped in (served.name, served.model)
        name, model = (served.name, served.model) if is_served and served else (shown(mapped), mapped)
        return Trained(name, model, f"{asked} is trained as {name}: the map of this server says so")
    if served and asked in (served.name, served.model):
        return Trained(served.name, served.model, f"{served.name} is the base served here")
    if asked in family() or _is_at_hand(asked):
        return Trained(shown(asked), asked, f"{asked} is on this machine")
    if bare not in closed_names():
        known = ", ".join(dict.fromkeys([*([served.name] if served else []), *settings.models, *family()]))
        raise ApiError(
            404,
            f"The model {asked[:200]!r} cannot be tuned here: it is neither in this server's map nor on its machine. "
            f"Models: {known}, and OpenAI's names; the server's owner adds others under models in the file of --limits",
            param="model",
            code="model_not_found",
        )
    if served:
        return Trained(served.name, served.model, f"{asked} is trained as {served.name}, the base served here")
    chosen = counterpart(bare)
    return Trained(shown(chosen.model), chosen.model, f"{asked} is trained as {chosen.model}: {chosen.reason}")


def _is_at_hand(asked: str) -> bool:
    """Whether a hub name is in this machine's cache; folders are the owner's to name, in the map."""
    if asked.count("/") != 1 or ".." in asked or asked.startswith((".", "/", "~")):
        return False
    try:
        found = folder_at_hand(asked)
    except ModelError:
        return False
    return found is not None and f"models--{asked.replace('/', '--')}" in found.parts


def shown(model: str) -> str:
    """A model's name where it stands in another: without owner or folder, and without the marks that divide names."""
    return model.rstrip("/").split("/")[-1].replace(":", "-") or "model"


def closed_names() -> set[str]:
    """Names of models that others serve, whose open counterparts we know."""
    return {name for name in scores() if "/" not in name} | set(SIZE_CLASS)


def map_lines(settings: TuningSettings, served: Served | None) -> Iterable[tuple[str, str, str]]:
    """(name asked for, model trained, why) of every name that is known."""
    for name in [*settings.models, *sorted(closed_names() - set(settings.models)), *family()]:
        found = trained_for(name, settings, served)
        yield name, found.model, found.why
