"""Clouds through dstack: a task on the plan's machines, resubmitted when one is taken, its run folder kept in a bucket.

dstack is an external program in an environment of its own, with a server of yours. Its machines mount no bucket: they
write to the bucket's address by fsspec, with the keys that the task names (`env` holds names; values are taken from the
environment of `dstack apply`). Sources: dstack 0.22.5, TaskConfiguration, `dstack apply --help`, `dstack ps --json`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import BadInput, LaunchError
from ..files import write_whole
from ..records import Log, no_log
from ..secrets import OF_STORES, to_hand_on
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

DSTACK = Program(
    "dstack",
    "dstack_python",
    "python3 -m venv env && env/bin/pip install 'dstack[all]==0.22.5', and launch.dstack_python: env/bin/python",
)
BACKENDS = {
    "AWS": "aws", "Azure": "azure", "GCP": "gcp", "Lambda": "lambda", "RunPod": "runpod", "RunPod secure": "runpod",
    "RunPod community": "runpod", "Vast.ai": "vastai", "Nebius": "nebius", "Verda": "verda", "Crusoe": "crusoe",
    "DigitalOcean": "digitalocean", "JarvisLabs": "jarvislabs", "Lium": "lium", "TensorDock": "tensordock",
}  # fmt: skip
# gpuhunt's names, and the memory that tells two of one name apart.
GPUS: dict[str, tuple[str, str]] = {
    "H100-SXM": ("H100", "80GB"), "H100-PCIE": ("H100", "80GB"), "A100-SXM": ("A100", "80GB"),
    "A100-PCIE": ("A100", "80GB"), "A100-40GB": ("A100", "40GB"), "V100-16GB": ("V100", "16GB"),
    "RTXA6000": ("A6000", ""), "RTX6000-ADA": ("RTX6000Ada", ""),
}  # fmt: skip
STATES = {
    "pending": "interrupted", "submitted": "pending", "provisioning": "pending", "running": "running",
    "terminating": "stopped", "terminated": "stopped", "failed": "failed", "done": "done",
}  # fmt: skip
PREFIX, TAG = "ss-", "shoestring"
MOST_NAME = 41
DISK, PYTHON_VERSION, RETRY_FOR = "256GB", "3.12", "1d"
FILES_LIMIT_BYTES = 2 * 2**20  # SERVER_CODE_UPLOAD_LIMIT of a dstack server, of each file mapping


@dataclass(frozen=True, slots=True)
class Task:
    """A dstack task, key by key as its YAML has them."""

    name: str
    commands: list[str]
    resources: dict[str, Any]
    backends: list[str]
    spot_policy: str
    max_price: float
    max_duration: str
    files: list[str]
    env: list[str]  # names
    regions: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    retry: dict[str, Any] = field(
        default_factory=lambda: {"on_events": ["no-capacity", "interruption"], "duration": RETRY_FOR}
    )
    python: str = PYTHON_VERSION
    idle_duration: str = "5m"

    def to_yaml(self) -> str:
        """The configuration as `dstack apply -f` reads it; parts that are empty are left out."""
        return as_yaml({"type": "task", **{key: getattr(self, key) for key in self.__dataclass_fields__}})


def run_name(launch_id: str) -> str:
    """dstack allows 41 lower case letters, digits and hyphens; an id's end, which has its time, tells it apart."""
    return f"{PREFIX}{launch_id[-(MOST_NAME - len(PREFIX)) :].lstrip('-')}"


class Dstack:
    """The backend `dstack` or `dstack:BACKEND` or `dstack:BACKEND/REGION`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def is_configured(self) -> bool:
        return DSTACK.options_seen(self.name) is not None

    def quote(self, order: Order) -> Quote:
        """Raises: BadInput without a bucket, or where dstack rents out none of the plan's machines."""
        bucket, found = bucket_of(order.options, self.name), machines(order)
        task = task_of(order, "ID", f"{bucket}/ID", found, None)
        notes = [*notes_on(found, order, "dstack"), *_sizes(order)]
        if DSTACK.found(order.options) is None:
            notes.append(f"dstack is not installed here, which a launch needs: {DSTACK.install}")
        shown = f"{task.to_yaml()}# dstack {' '.join(submission('FILE.yaml'))}\n"
        return Quote("hour", found[0].usd_per_hour, (rented_hours(found[0]),), shown=shown, notes=tuple(notes))

    def start(self, launch: Launch, log: Log = no_log) -> dict[str, Any]:
        """Submit the task. Raises: LaunchError with dstack's words."""
        DSTACK.path(launch.options)
        order = order_of(launch)
        place = f"{bucket_of(launch.options, self.name)}/{launch.id}"
        task = task_of(order, launch.id, place, machines(order), launch.limit_s)
        to_hand_on(task.env)
        send_ahead(Path(launch.run_folder), place, log)
        path = Path(launch.run_folder) / "launch" / f"{task.name}.dstack.yml"
        build_wheel(path.parent, has_weights=trains_embedded(order.config))
        write_whole(path, task.to_yaml())
        log(f"{path}: given to dstack")
        DSTACK.run(launch.options, submission(str(path)))
        return {"name": task.name, "yaml": str(path), "place": place}

    def status(self, launch: Launch) -> Status:
        """From the server's runs, and what the machine wrote to the bucket. Raises: LaunchError."""
        run = self._run(launch)
        place = f"{bucket_of(launch.options, self.name)}/{launch.id}"
        if run is None:
            return left_at(launch, place, f"dstack has no run {run_name(launch.id)}")
        state = STATES.get(run["status"], "running")
        note = run.get("error") or run.get("status_message") or run.get("termination_reason") or ""
        status = with_place(launch, place, Status(state, run.get("submitted_at"), note), None)
        (counted,) = status.bill
        if state == "interrupted" and counted.actual_s is None:  # waits for its first machine
            status = replace(status, state="pending")
        if not run.get("cost"):
            return status
        # dstack says what a run cost at its own prices; the machine says its seconds
        return replace(status, bill=(replace(counted, actual_usd=run["cost"]),))

    def logs(self, launch: Launch, follow: bool) -> Iterator[str]:
        if self._run(launch) is None:
            raise LaunchError(f"dstack has no run {run_name(launch.id)}, so there is no log of it")
        name = run_name(launch.id)
        words = ["attach", "--logs", name] if follow else ["logs", name]
        yield from DSTACK.lines(launch.options, words)

    def stop(self, launch: Launch) -> Status:
        """Stop the run; dstack ends its machine once it was idle. Ending it twice is no error."""
        run = self._run(launch)
        if run is not None and run["status"] not in ("terminating", "terminated", "failed", "done"):
            DSTACK.run(launch.options, ["stop", "--yes", run_name(launch.id)])
        return self.status(launch)

    def fetch(self, launch: Launch, log: Log = no_log) -> None:
        bring(launch, f"{bucket_of(launch.options, self.name)}/{launch.id}", log)

    def billing(self) -> list[Billing]:
        """Our runs that are not finished, known by their tag."""
        found = []
        options = DSTACK.options_seen(self.name)
        for run in _runs(options) if options is not None else []:
            launch_id = (_configuration(run).get("tags") or {}).get(TAG)
            if launch_id and run["status"] not in ("terminated", "failed", "done"):
                name = _configuration(run)["name"]
                found.append(
                    Billing(self.name, name, run.get("submitted_at"), None, launch_id, f"dstack stop -y {name}")
                )
        return found

    def _run(self, launch: Launch) -> dict[str, Any] | None:
        return next((r for r in _runs(launch.options) if _configuration(r).get("name") == run_name(launch.id)), None)


def _runs(options: Any) -> list[dict[str, Any]]:
    told = DSTACK.json(options, ["ps", "--all", "--json"]) or {}
    return list(told.get("runs", []))


def _configuration(run: dict[str, Any]) -> dict[str, Any]:
    found = (run.get("run_spec") or {}).get("configuration") or {}
    return dict(found)


# ---- the task ------------------------------------------------------------------------------


def machines(order: Order) -> list[Candidate]:
    """The plan's machines that dstack can order, of the backend and region that --on names. Raises: BadInput."""
    cloud, _, region = order.target.partition("/")
    known = sorted(set(BACKENDS.values()))
    if cloud and cloud not in known:
        raise BadInput(f"--on dstack:{order.target}: no backend of dstack's we know; choose one of {', '.join(known)}")
    found = candidates(order, BACKENDS, cloud=cloud, region=region)
    if not found:
        where = f" on {order.target}" if cloud else ""
        raise BadInput(
            f"of the machines that plan found within {order.budget_usd:g} USD, dstack can order none{where}; "
            "'shoestring plan RUN --all' lists them: raise budget_usd, or name another place with --on"
        )
    return _alike(found)


def _alike(found: Sequence[Candidate]) -> list[Candidate]:
    """The first, and others of its number of GPUs and memory: dstack takes what is cheapest of one specification."""
    first = found[0]
    memory = GPUS.get(first.gpu, ("", ""))[1]
    return [c for c in found if c.num_gpus == first.num_gpus and GPUS.get(c.gpu, ("", ""))[1] == memory]


def task_of(order: Order, launch_id: str, place: str, found: Sequence[Candidate], limit_s: float | None) -> Task:
    """The task of an order. place: address below the bucket. Raises: BadInput where files cannot be laid out."""
    there, copied = laid_out(order.config, order.run_file)
    needed, optional = needs.variables(order.config, order.options)
    names = [*needed, *(n for n in (*optional, *OF_STORES.get(urlsplit(place).scheme, ())) if os.environ.get(n))]
    wheel = order.run_folder / "launch" / wheel_name()
    limit = limit_of(found, order.budget_usd, limit_s)
    spots = {one.is_spot for one in found}
    memory = GPUS.get(found[0].gpu, ("", ""))[1]
    gpu: dict[str, Any] = {
        "name": list(dict.fromkeys(GPUS.get(one.gpu, (one.gpu, ""))[0] for one in found)),
        "count": found[0].num_gpus,
        **({"memory": memory} if memory else {}),
    }
    return Task(
        name=run_name(launch_id) if launch_id != "ID" else "ss-id",
        commands=[*setup_lines(wheel.name, urlsplit(place).scheme), command_line(order.config, there, place, limit)],
        resources={"gpu": gpu, "disk": DISK},
        backends=list(dict.fromkeys(one.place for one in found)),
        regions=list(dict.fromkeys(one.region for one in found if one.region)) if all(c.region for c in found) else [],
        spot_policy="auto" if len(spots) == 2 else "spot" if spots == {True} else "on-demand",
        max_price=round(max(one.most_usd_per_hour for one in found), 4),
        max_duration=f"{limit}s",
        files=[*(f"{local}:{remote}" for remote, local in copied.items()), f"{wheel}:{wheel.name}"],
        env=list(dict.fromkeys(names)),
        tags={TAG: re.sub(r"[^a-z0-9-]", "-", launch_id.lower())},
    )


def _sizes(order: Order) -> list[str]:
    """What a dstack server as it is set up by default would refuse to take."""
    large = ["the wheel with the demonstration models"] if trains_embedded(order.config) else []
    for local in laid_out(order.config, order.run_file)[1].values():
        path = Path(local)
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        if sum(p.stat().st_size for p in files) > FILES_LIMIT_BYTES:
            large.append(path.name)
    if not large:
        return []
    what = ", ".join(large)
    return [f"a dstack server takes 2 MB a file unless it has DSTACK_SERVER_CODE_UPLOAD_LIMIT=0; larger are: {what}"]


def submission(path: str) -> list[str]:
    """Arguments of `dstack`."""
    return ["apply", "-f", path, "--yes", "--detach"]
