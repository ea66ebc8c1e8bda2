"""A served run on several machines: the YAML of a SkyServe service, which starts, watches and replaces replicas.

SkyPilot is an external program; nothing is started here. Source: SkyPilot 0.14.1, its service schema and
serve_utils.validate_service_task: all machines on spot or none, with on-demand fallback; no job_recovery; one port.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config import TrafficConfig
from ..market.offers import Offer
from ..market.serving import Route
from ..market.terms import value
from ..units import SECONDS_PER_HOUR
from .rented import PRICE_ROOM, PYTHON, as_yaml, setup_lines
from .skypilot import CLOUDS, DISK_GB, GPUS, HOME, NO_SPOT

PORT = 8000
NO_PORTS = {"verda"}  # OPEN_PORTS is among its unsupported features
KEYS = ("SHOESTRING_API_KEY", "SHOESTRING_ADMIN_KEY")
PROBE_TIMEOUT_S = 15
FEWEST_DELAY_S = 1200  # SkyServe's own default


@dataclass(frozen=True, slots=True)
class Policy:
    """How many replicas: each takes qps requests a second at the target load."""

    qps: float
    min_replicas: int
    max_replicas: int


@dataclass(frozen=True, slots=True)
class Place:
    """A cloud that rents out the GPU. usd_per_hour: on demand. has_spot: as a cloud; where it has none, on demand."""

    cloud: str
    usd_per_hour: float
    has_spot: bool


def policy_of(traffic: TrafficConfig, requests_per_s: float, kept_frac: float) -> Policy:
    """Replicas for the mean load at least, for the busiest hour at most; one more than that minimum, so that it grows.

    requests_per_s: of one machine with every client busy; kept_frac: what adapters leave of it.
    """
    mean = traffic.requests_per_month * traffic.num_adapters / value("hours_per_month").value / SECONDS_PER_HOUR
    qps = requests_per_s * kept_frac * value("util_target_frac").value
    fewest = max(1, math.ceil(mean / qps - 1e-9))
    most = max(fewest + 1, math.ceil(mean * value("peak_over_mean").value / qps - 1e-9))
    return Policy(qps, fewest, most)


def places_of(gpu: str, offers: Sequence[Offer]) -> list[Place]:
    """SkyPilot's clouds that rent out the GPU singly and open a port on it, the cheapest first."""
    found: dict[str, float] = {}
    for offer in offers:
        cloud = CLOUDS.get(offer.seller)
        if cloud is None or cloud in NO_PORTS or offer.gpu != gpu or offer.num_gpus != 1 or offer.is_spot:
            continue
        found[cloud] = min(found.get(cloud, math.inf), offer.usd_per_gpu_hour)
    places = [Place(cloud, price, cloud not in NO_SPOT) for cloud, price in found.items()]
    return sorted(places, key=lambda place: place.usd_per_hour)


def service_yaml(
    name: str,
    route: Route,
    places: Sequence[Place],
    policy: Policy,
    *,
    wheel: str,
    mounts: dict[str, str],
    start_s: float,
    more_keys: Sequence[str] = (),
) -> str:
    """The service. Where a place has spot machines, replicas beyond the first are on spot, on demand meanwhile."""
    on_spot = [place for place in places if place.has_spot]
    taken = on_spot or list(places)
    each = [_resource(route.gpu, place, is_spot=bool(on_spot)) for place in taken]
    replicas: dict[str, Any] = {
        "min_replicas": policy.min_replicas,
        "max_replicas": policy.max_replicas,
        "target_qps_per_replica": float(f"{policy.qps:.4g}"),
    }
    if on_spot:
        replicas |= {"base_ondemand_fallback_replicas": 1, "dynamic_ondemand_fallback": True}
    serve = f"{PYTHON} -m shoestring serve {name} --runs-dir runs --host 0.0.0.0 --port {PORT}"
    return as_yaml(
        {
            "name": f"shoestring-{name}",
            "service": {
                "readiness_probe": {
                    "path": "/health",
                    "initial_delay_seconds": max(FEWEST_DELAY_S, math.ceil(start_s)),
                    "timeout_seconds": PROBE_TIMEOUT_S,
                },
                "replica_policy": replicas,
                "load_balancing_policy": "least_load",
            },
            "resources": each[0] if len(each) == 1 else {"any_of": each},
            "file_mounts": mounts,
            "setup": "\n".join(["set -e", f"cd {HOME}", *setup_lines(wheel)]) + "\n",
            "run": f"cd {HOME}\n{serve}\n",
            "secrets": dict.fromkeys([*KEYS, *more_keys]),
        }
    )


def _resource(gpu: str, place: Place, *, is_spot: bool) -> dict[str, Any]:
    name = GPUS.get(place.cloud, {}).get(gpu) or GPUS[""].get(gpu, gpu)
    return {
        "infra": place.cloud,
        "accelerators": {name: 1},
        "use_spot": is_spot,
        "max_hourly_cost": round(place.usd_per_hour * PRICE_ROOM, 4),  # of the on-demand fallback too
        "disk_size": DISK_GB,
        "ports": PORT,
    }


def up_command(name: str, path: str, more_keys: Sequence[str] = ()) -> str:
    """What a person runs; keys go by their names, `sky` reads the values from its environment."""
    secrets = " ".join(f"--secret {key}" for key in [*KEYS, *more_keys])
    return f"sky serve up -n shoestring-{name} {secrets} {path}"
