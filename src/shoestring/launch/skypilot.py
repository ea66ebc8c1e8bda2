"""Clouds through SkyPilot: a managed job on the plan's machines, recovered on another one when it is taken.

SkyPilot is an external program (`sky`) in an environment of its own: it brings a web server, database drivers and a
solver. The job's machine keeps the run folder in a bucket (launch.aboard), since it is gone when the job ends.
Sources: SkyPilot 0.14.1, its task schema, `sky jobs ... --help` and the records of `sky jobs queue -o json`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import BadInput, LaunchError
from ..files import write_whole
from ..records import Log, no_log
from ..secrets import to_hand_on
from ..units import SECONDS_PER_HOUR
from . import needs
from .backend import Order
from .external import Program
from .records import Billing, Launch, Quote, Status
from .rented import (
    Candidate,
    as_yaml,
    bring,
    bucket_of,
    candidates,
    command_line,
    laid_out,
    left_at,
    limit_of,
    notes_on,
    order_of,
    rented_hours,
    send_ahead,
    setup_lines,
    trains_embedded,
    with_place,
)
from .wheel import build_wheel, wheel_name

CLOUDS = {
    "AWS": "aws", "Azure": "azure", "GCP": "gcp", "Lambda": "lambda", "RunPod": "runpod", "RunPod secure": "runpod",
    "Vast.ai": "vast", "Nebius": "nebius", "Verda": "verda", "DigitalOcean": "do",
}  # fmt: skip
NO_SPOT = {"lambda", "do"}
# As SkyPilot's catalogs call them; others go by our own name. By cloud first.
GPUS: dict[str, dict[str, str]] = {
    "": {
        "H100-SXM": "H100", "H100-PCIE": "H100", "A100-SXM": "A100-80GB", "A100-PCIE": "A100-80GB", "A100-40GB": "A100",
        "V100-16GB": "V100", "RTX6000-ADA": "RTX6000-Ada",
    },
    "runpod": {"H100-SXM": "H100-SXM", "A100-SXM": "A100-80GB-SXM"},
}  # fmt: skip
PREFIX = "shoestring-"
CONTROLLER = "sky-jobs-controller"
NO_CONTROLLER = "No in-progress managed jobs"  # ClusterNotUpError of `sky jobs queue`
HOME, PLACE = "~/shoestring", "/shoestring-place"
DISK_GB = 256
IDLE_MINUTES = 5
SKY = Program(
    "sky",
    "skypilot_python",
    "python3 -m venv sky && sky/bin/pip install 'skypilot[aws]==0.14.1', and launch.skypilot_python: sky/bin/python",
)
STATES = {
    "PENDING": "pending", "SUBMITTED": "pending", "STARTING": "pending", "RUNNING": "running",
    "WINDING_DOWN": "running", "RECOVERING": "interrupted", "CANCELLING": "stopped", "CANCELLED": "stopped",
    "SUCCEEDED": "done",
}  # fmt: skip
JOB_ID = re.compile(r"(?:Job submitted, ID|Managed Job ID|job ID)\D{0,12}(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Task:
    """A SkyPilot task, key by key as its YAML has them."""

    name: str
    resources: dict[str, Any]
    file_mounts: dict[str, Any]
    setup: str
    run: str
    envs: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, None] = field(default_factory=dict)  # names; `sky` takes the values from its own environment

    def to_yaml(self) -> str:
        """The task as `sky jobs launch` reads it; parts that are empty are left out."""
        return as_yaml({key: getattr(self, key) for key in self.__dataclass_fields__})


class SkyPilot:
    """The backend `skypilot`, `skypilot:CLOUD` or `skypilot:CLOUD/REGION`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def is_configured(self) -> bool:
        return SKY.options_seen(self.name) is not None

    # ---- before the start -------------------------------------------------------------------

    def quote(self, order: Order) -> Quote:
        """Raises: BadInput without a bucket, or where SkyPilot rents out none of the plan's machines."""
        bucket, found = bucket_of(order.options, "skypilot"), machines(order)
        task = task_of(order, f"{PREFIX}{order.config.name}-ID", f"{bucket}/ID", found, None)
        notes = notes_on(found, order, "SkyPilot")
        notes.append("SkyPilot's jobs controller is a machine of its own, billed until it stops by itself; not counted")
        if SKY.found(order.options) is None:
            notes.append(f"SkyPilot is not installed here, which a launch needs: {SKY.install}")
        shown = f"{task.to_yaml()}# {' '.join(['sky', *submission('FILE.yaml', task)])}\n"
        return Quote("hour", found[0].usd_per_hour, (rented_hours(found[0]),), shown=shown, notes=tuple(notes))

    def start(self, launch: Launch, log: Log = no_log) -> dict[str, Any]:
        """Submit the managed job. Raises: LaunchError with SkyPilot's words."""
        SKY.path(launch.options)
        order = order_of(launch)
        place, name = f"{bucket_of(launch.options, 'skypilot')}/{launch.id}", f"{PREFIX}{launch.id}"
        found = machines(order)
        task = task_of(order, name, place, found, launch.limit_s)
        to_hand_on(task.secrets)
        send_ahead(Path(launch.run_folder), place, log)
        path = Path(launch.run_folder) / "launch" / f"{name}.yaml"
        build_wheel(path.parent, has_weights=trains_embedded(order.config))
        write_whole(path, task.to_yaml())
        log(f"{path}: given to SkyPilot")
        told = SKY.run(launch.options, submission(str(path), task))
        match = JOB_ID.search(told)
        job = int(match[1]) if match else None
        sellers = {one.option["seller"] if one.is_spot else "" for one in found}
        spot = {"spot_seller": sellers.pop()} if len(sellers) == 1 else {}  # of several it is not told which one it was
        return {"name": name, "job_id": job, "yaml": str(path), "place": place, **spot}

    # ---- afterwards -------------------------------------------------------------------------

    def status(self, launch: Launch) -> Status:
        """From the queue of managed jobs, and what the machine wrote to the bucket. Raises: LaunchError."""
        job = self._job(launch)
        place = f"{bucket_of(launch.options, self.name)}/{launch.id}"
        if job is None:
            return left_at(launch, place, f"SkyPilot has no managed job {PREFIX}{launch.id}")
        state = STATES.get(job["status"], "failed" if str(job["status"]).startswith("FAILED") else "running")
        since = _when(job.get("last_recovered_at") or job.get("start_at") or job.get("submitted_at"))
        where = job.get("infra") or job.get("region") or ""
        note = " ".join(str(part) for part in (where, job.get("failure_reason") or job.get("details")) if part)
        seller, recoveries = launch.handle.get("spot_seller", ""), int(job.get("recovery_count") or 0)
        said = Status(state, since, note, spot_seller=seller, num_interruptions=recoveries)
        return with_place(launch, place, said, job.get("job_duration"))

    def logs(self, launch: Launch, follow: bool) -> Iterator[str]:
        job = self._job(launch)
        if job is None:
            raise LaunchError(f"SkyPilot has no managed job {PREFIX}{launch.id}, so there is no log of it")
        how = "--follow" if follow else "--no-follow"
        yield from SKY.lines(launch.options, ["jobs", "logs", str(job["job_id"]), how])

    def stop(self, launch: Launch) -> Status:
        """Cancel the job; SkyPilot ends its machine. Ending it twice is no error."""
        job = self._job(launch)
        if job is not None and STATES.get(job["status"]) in ("pending", "running", "interrupted"):
            SKY.run(launch.options, ["jobs", "cancel", "--yes", str(job["job_id"])])
        return self.status(launch)

    def fetch(self, launch: Launch, log: Log = no_log) -> None:
        bring(launch, f"{bucket_of(launch.options, self.name)}/{launch.id}", log)

    def billing(self) -> list[Billing]:
        """Our managed jobs that are not finished, our clusters, and the jobs controller while it runs."""
        options = SKY.options_seen(self.name)
        if options is None:
            return []
        found = []
        for job in _queue(options, "--skip-finished"):
            name = str(job.get("job_name") or "")
            if name.startswith(PREFIX):
                since = _when(job.get("submitted_at"))
                stop = f"sky jobs cancel -y {job['job_id']}"
                found.append(Billing(self.name, name, since, None, name.removeprefix(PREFIX), stop))
        clusters = [c for c in SKY.json(options, ["status", "-o", "json"]) or [] if c.get("status") != "STOPPED"]
        ours = [c for c in clusters if str(c.get("name") or "").startswith((PREFIX, CONTROLLER))]
        costs = {c["name"]: c for c in SKY.json(options, ["cost-report", "-o", "json"]) or []} if ours else {}
        for cluster in ours:
            name, since = cluster["name"], _when(cluster.get("launched_at"))
            launch_id = name.removeprefix(PREFIX) if name.startswith(PREFIX) else None
            rate = _usd_per_hour(costs.get(name, {}))
            found.append(Billing(self.name, name, since, rate, launch_id, f"sky down -y {name}"))
        return found

    def _job(self, launch: Launch) -> dict[str, Any] | None:
        """The job of a launch, by its number or, where that is not known, its name."""
        name, number = f"{PREFIX}{launch.id}", launch.handle.get("job_id")
        for job in _queue(launch.options, "--all"):
            if job.get("job_name") == name and number in (None, job.get("job_id")):
                return job
        return None


def _queue(options: Mapping[str, Any], which: str) -> list[dict[str, Any]]:
    """Managed jobs; none where no jobs controller is up, which SkyPilot says as a failure."""
    try:
        return list(SKY.json(options, ["jobs", "queue", which, "-o", "json"]) or [])
    except LaunchError as error:
        if NO_CONTROLLER in str(error):
            return []
        raise


# ---- the task ------------------------------------------------------------------------------


def machines(order: Order) -> list[Candidate]:
    """The plan's machines that SkyPilot can order, of the cloud and region that --on names. Raises: BadInput."""
    cloud, _, region = order.target.partition("/")
    known = sorted(set(CLOUDS.values()))
    if cloud and cloud not in known:
        raise BadInput(
            f"--on skypilot:{order.target}: no cloud we know of SkyPilot's; choose one of {', '.join(known)}"
        )
    found = candidates(order, CLOUDS, cloud=cloud, region=region, no_spot=NO_SPOT)
    if not found:
        where = f" on {order.target}" if cloud else ""
        raise BadInput(
            f"of the machines that plan found within {order.budget_usd:g} USD, SkyPilot can order none{where}; "
            "'shoestring plan RUN --all' lists them: raise budget_usd, or name another place with --on"
        )
    return found


def resources(found: Sequence[Candidate]) -> dict[str, Any]:
    """The machines in the plan's order, for SkyPilot's own knows neither speed nor interruptions."""
    each = [_resource(one) for one in found]
    return each[0] if len(each) == 1 else {"ordered": each}


def _resource(one: Candidate) -> dict[str, Any]:
    gpu = GPUS.get(one.place, {}).get(one.gpu) or GPUS[""].get(one.gpu, one.gpu)
    return {
        "infra": f"{one.place}/{one.region}" if one.region else one.place,
        "accelerators": {gpu: one.num_gpus},
        "use_spot": one.is_spot,
        "max_hourly_cost": round(one.most_usd_per_hour, 4),
        "disk_size": DISK_GB,
        "autostop": {"idle_minutes": IDLE_MINUTES, "down": True},
        "job_recovery": {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": 0},
    }


def task_of(order: Order, name: str, place: str, found: Sequence[Candidate], limit_s: float | None) -> Task:
    """The task of an order. place: address below the bucket. Raises: BadInput where files cannot be laid out."""
    there, copied = laid_out(order.config, order.run_file)
    needed, optional = needs.variables(order.config, order.options)
    wheel = order.run_folder / "launch" / wheel_name()
    limit = limit_of(found, order.budget_usd, limit_s)
    mounts: dict[str, Any] = {_below_home(remote): local for remote, local in copied.items()}
    scheme, _, path = place.partition("://")
    bucket, _, folder = path.partition("/")  # SkyPilot mounts whole buckets
    mounts |= {f"{HOME}/{wheel.name}": str(wheel), PLACE: {"source": f"{scheme}://{bucket}", "mode": "MOUNT"}}
    return Task(
        name=name,
        resources=resources(found),
        file_mounts=mounts,
        setup="\n".join(["set -e", f"cd {HOME}", *setup_lines(wheel.name)]) + "\n",
        run=f"cd {HOME}\n{command_line(order.config, there, f'{PLACE}/{folder}', limit)}\n",
        secrets=dict.fromkeys([*needed, *(name for name in optional if os.environ.get(name))]),
    )


def _below_home(remote: str) -> str:
    return remote if remote.startswith("/") else f"{HOME}/{remote}"


def submission(path: str, task: Task) -> list[str]:
    """Arguments of `sky`; secrets go by their names alone, `sky` reads the values from its environment."""
    secrets = [word for name in task.secrets for word in ("--secret", name)]
    return ["jobs", "launch", "--yes", "--detach-run", *secrets, path]


def _usd_per_hour(cost: Mapping[str, Any]) -> float | None:
    """Of a cluster in `sky cost-report`: what it cost over the seconds it was up."""
    seconds, usd = cost.get("duration"), cost.get("total_cost")
    return usd / seconds * SECONDS_PER_HOUR if seconds and usd is not None else None


def _when(seconds: float | None) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else None
