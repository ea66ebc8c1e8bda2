"""`shoestring export RUN --to skyserve`: what a run needs to be served on other machines, and the service."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..embedded import family
from ..errors import BadInput, ModelError
from ..files import write_whole
from ..launch.needs import HUB_TOKEN
from ..launch.skypilot import CLOUDS, HOME
from ..launch.skyserve import places_of, policy_of, service_yaml, up_command
from ..launch.wheel import build_wheel
from ..market.offers import MACHINES_AT_HAND
from ..market.serving import Route, own_routes
from ..market.table import load as load_table
from ..market.terms import value
from ..plan.devices import device_of
from ..plan.served import known_rates, rates_for
from ..runfolder import rung_name
from ..serve.adapters import SERVE
from ..serve.opening import preflight
from ..serve.registry import Served, read_run, refusal
from ..train.locate import resolve_model
from .common import replacing, shape

if TYPE_CHECKING:
    from ..recipe import Run

FOLDER = "skyserve"
YAML = "service.yaml"
COPIED = ("run.yaml", "meta.json", "ladder.json", "export.json")  # of a run folder, where they are there
OF_RUNG = ("train.json", "eval.json")


def hand_over_service(run: Run) -> dict[str, Any]:
    """Write export/skyserve/: service.yaml, the wheel, the run as serving reads it.

    Raises: BadInput without traffic, without a trained rung, or where SkyPilot rents out no machine that serves it.
    """
    traffic = run.config.traffic
    if traffic is None:
        raise BadInput(
            f"{run.folder}: how many machines it takes follows from the run file's traffic, and there is none; add "
            "traffic: {requests_per_month: 300000, prompt_tokens: 400, completion_tokens: 50} with your numbers"
        )
    served = read_run(run.folder)
    notes = _checked(served)
    sizes = shape(served.base)
    offers = [o for o in load_table(datetime.now(UTC).date()).offers if o.seller in CLOUDS]
    rates, more = known_rates(run.folder, served.base)
    notes += more
    routes = own_routes(sizes, sizes.num_params / 1e9, traffic, offers, rates)
    wanted = run.config.market.device
    if wanted and wanted.lower() not in MACHINES_AT_HAND:
        only = device_of(wanted).name
        routes = [r for r in routes if r.gpu == only]
    route, places = _cheapest(routes, offers, traffic.requests_per_month)
    assert route.capacity is not None
    if not route.capacity.measured:
        notes.append(
            f"rates on {route.gpu} are predicted; after 'shoestring bench serve URL --save {run.folder} --device "
            f"{route.gpu}' this command takes measured ones"
        )
    measured = rates_for(rates, route.gpu)
    lost = value("lora_loss_frac").value if measured is None else 1 - measured.kept_frac
    policy = policy_of(traffic, route.capacity.requests_per_s.value, 1 - lost)
    folder = run.folder / "export" / FOLDER
    path, whole = folder / YAML, folder.resolve()
    with replacing(run, folder) as partial:
        wheel = build_wheel(partial, has_weights=served.base in family())
        copy = _copied(served, partial / "run")
        if read_run(copy).rung != served.rung:
            raise BadInput(
                f"the copy of {run.folder} does not serve {served.rung} as it does; export again once the run is done"
            )
        mounts = {f"{HOME}/{wheel.name}": str(whole / wheel.name), f"{HOME}/runs/{served.name}": str(whole / copy.name)}
        base, keys = Path(resolve_model(served.base)), []
        if served.base in family():
            pass  # in the wheel
        elif base.is_dir():
            mounts[str(base.resolve())] = str(base.resolve())
        elif os.environ.get(HUB_TOKEN):
            keys.append(HUB_TOKEN)
        text = service_yaml(
            served.name,
            route,
            places,
            policy,
            wheel=wheel.name,
            mounts=mounts,
            start_s=_start_s(sizes.num_params),
            more_keys=keys,
        )
        write_whole(partial / YAML, text)
    return {
        "service": str(path),
        "gpu": route.gpu,
        "clouds": [place.cloud for place in places],
        "is_on_spot": "use_spot: true" in text,
        "target_qps_per_replica": policy.qps,
        "rates": route.capacity.measured or "predicted",
        "min_replicas": policy.min_replicas,
        "max_replicas": policy.max_replicas,
        "command": up_command(served.name, str(path), keys),
        "notes": notes,
    }


def _checked(served: Served) -> list[str]:
    """Notes. Raises: BadInput where the engine refuses the run."""
    try:
        _, lines = preflight([served], "embedded")
    except ModelError as error:
        return [f"not checked here against its base ({error}); the server checks it at its start"]
    refused = [refusal(line) for line in lines if line.verdict.decision != SERVE]
    if refused:
        raise BadInput("\n".join(refused))
    return []


def _cheapest(routes: list[Route], offers: list[Any], requests: float) -> tuple[Route, list[Any]]:
    """The GPU by the hour that SkyPilot rents out singly and that costs least for this traffic."""
    by_hours = sorted((r for r in routes if r.kind == "hours"), key=lambda r: r.month_usd(requests, "value"))
    for route in by_hours:
        places = places_of(route.gpu, offers)
        if places:
            return route, places
    raise BadInput("no GPU that SkyPilot can order holds this model; 'shoestring plan' says what does")


def _start_s(num_params: int) -> float:
    """Seconds until a replica answers, at the slow end: boot, installation, weights, loading."""
    weights_s = 2 * num_params / value("download_bytes_per_s").low
    return value("boot_s").high + value("install_s").high + weights_s + value("cold_start_s").high


def _copied(served: Served, target: Path) -> Path:
    """The run folder without data, checkpoints and other rungs."""
    rung = Path("rungs") / rung_name(served.rung)
    for name in (*COPIED, *(str(rung / name) for name in OF_RUNG)):
        if (served.run / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(served.run / name, target / name)
    shutil.copytree(served.folder, target / served.folder.relative_to(served.run))
    return target
