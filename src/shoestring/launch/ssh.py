"""On a host by SSH: files, program and libraries are brought there, a supervisor stays with the run, results come back.

~/.shoestring on the host: package-HASH (this very program), venv-HASH (its libraries, where the host's Python lacks
them, in the versions they have here), work/NAME-HASH (one a run: files/ mirrors the paths here, runs/ is the run
folder's parent, launches/ID the supervisor's folder). A second launch of a run goes on in the first one's run folder.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config import load_run_file
from ..errors import LaunchError
from ..records import Estimate, Log, no_log
from ..secrets import to_hand_on
from ..train.locate import with_folders
from . import jobs, needs, package
from .backend import Order
from .local import job_of, predicted, status_of
from .records import ENDED, Billing, Launch, Quote, Status
from .register import registered
from .ssh_files import fetch, send_files, send_run_folder
from .ssh_host import Host, Lost, Python

START_S = Estimate(90.0, 15.0, 900.0)  # program and libraries brought there, then loaded; a first time downloads torch
MIN_PYTHON = (3, 11)
BEHIND, FETCHED = "files", "fetched"
PROBE = "import json, os, sys; print(json.dumps([list(sys.version_info[:3]), os.path.expanduser('~'), sys.executable]))"
UNPACK = "import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode='r|').extractall(sys.argv[1])"


class Ssh:
    """The backend of hosts; the target is what ssh takes."""

    can_start_again = True

    def __init__(self, name: str) -> None:
        self.name = name

    def is_configured(self) -> bool:
        return any(launch.backend == self.name for launch in registered())

    def quote(self, order: Order) -> Quote:
        Host(order.target)
        given = order.options.get("usd_per_hour")
        notes = []
        if given is None:
            notes.append("the host is taken as yours, for $0 an hour; for a rented one give launch.usd_per_hour")
        work = order.work_s
        if work is None:
            notes.append("how long it takes is not known: market.device in the run file names the host's GPU for that")
        needed, optional = needs.variables(order.config, order.options)
        sent = needs.files(with_folders(order.config, order.run_file.parent), order.run_file)
        shown = [f"to {order.target}: {path}" for path in sent]
        shown += [f"handed on: {name}" for name in (*needed, *optional)]
        command = needs.run_command("PYTHON", order.run_file.name, "runs")
        return Quote(
            "hour",
            given or 0.0,
            predicted(order, given or 0.0, START_S),
            "\n".join([*shown, f"there: {shlex.join(command)}"]),
            tuple(notes),
        )

    # ---- start ----

    def start(self, launch: Launch, log: Log = no_log) -> dict[str, Any]:
        """Bring everything, then start; again after an interruption it goes on, and starts no second supervisor."""
        config = load_run_file(launch.run_file)
        needed, optional = needs.variables(config, launch.options)
        environment = to_hand_on(needed, optional)
        host = Host(launch.target)
        home, python = _probe(host, launch.options.get("python", "python3"))
        root = f"{home}/.shoestring"
        there = Python(host, python, _bring_package(host, python, root, log))
        there.python = _python_with_libraries(there, root, log)
        work = f"{root}/work/{_work_name(launch)}"
        mirror = f"{work}/{BEHIND}"
        send_files(there, launch, mirror, log)
        run_folder = f"{work}/runs/{Path(launch.run_folder).name}"
        send_run_folder(there, Path(launch.run_folder), run_folder, log)
        run_file = mirror + launch.run_file
        command = needs.run_command(there.python, run_file, f"{work}/runs")
        job = job_of(launch, command, str(Path(run_file).parent), run_folder, needed)
        folder = f"{work}/launches/{launch.id}"
        beat = there.ask("start", folder, given={"job": asdict(job), "environment": environment})
        return {"python": there.python, "package": there.package, "work": work, "pid": beat["pid"]}

    # ---- afterwards ----

    def status(self, launch: Launch) -> Status:
        there = self._there(launch)
        if there is None:
            return Status("pending", note=f"nothing is on {launch.target} yet; shoestring launch --attach goes on")
        told = there.ask("status", self._folder(launch))
        if told["state"] == "lost" and not launch.handle:
            return Status("pending", note="not started yet; shoestring launch --attach goes on with it")
        return status_of(launch, told)

    def logs(self, launch: Launch, follow: bool) -> Iterator[str]:
        brought = Path(launch.run_folder) / "launches" / launch.id
        if launch.state in ENDED and (brought / jobs.END).is_file():
            lines = jobs.logs(brought, follow=False)
        else:
            there = self._there(launch)
            if there is None:
                return
            folder, on = self._folder(launch), "1" if follow else "0"
            lines = there.host.lines(lambda offset: there.line("logs", folder, str(offset), on))
        for line in lines:
            yield line.decode("utf-8", "replace")

    def stop(self, launch: Launch) -> Status:
        try:
            there = self._there(launch)
            if there is None:
                return Status("stopped", note="nothing was started")
            return status_of(launch, there.ask("stop", self._folder(launch)))
        except Lost as error:  # asked for by a person who may know that the machine is gone
            note = f"{error}; taken as gone: make sure at its owner or seller that it does not bill"
            return Status("lost", note=note, bill=launch.bill)

    def fetch(self, launch: Launch, log: Log = no_log) -> None:
        mark = Path(launch.run_folder) / "launches" / launch.id / FETCHED
        if launch.state in ENDED and mark.is_file():
            return  # and the host may be gone by now
        there = self._there(launch)
        if there is None:
            return
        name = Path(launch.run_folder).name
        work = launch.handle.get("work") or self._work(there, launch)
        local = Path(launch.run_folder)
        moved = {f"{work}/{BEHIND}": "", f"{work}/runs/{name}": str(local), there.package: str(package.ROOT.parent)}
        fetch(there, f"{work}/runs/{name}", local, moved, log)
        fetch(there, self._folder(launch), local / "launches" / launch.id, moved, log)
        if launch.state in ENDED:
            there.host.again(there.line("touch", f"{self._folder(launch)}/{FETCHED}"))
            mark.touch()

    def billing(self) -> list[Billing]:
        mine = [launch for launch in registered() if launch.backend == self.name]
        latest = {launch.target: launch for launch in sorted(mine, key=lambda launch: bool(launch.handle))}
        found: list[Billing] = []
        silent: list[str] = []
        for target, launch in latest.items():
            try:
                there = self._there(launch)
                folders = there.ask("running") if there else []
            except Lost as error:
                # A machine that ends itself cannot be reached afterwards, and one that is off does not bill.
                if launch.price_usd_per_hour and launch.state not in ("done", "failed", "stopped"):
                    silent.append(str(error))
                continue
            known = {other.id: other for other in mine if other.target == target}
            for folder in folders:
                one = known.get(Path(folder).name)
                price, since = (one.price_usd_per_hour, one.started_at) if one else (None, None)
                end = f"shoestring launch {one.id} --stop" if one else f"ssh {target} touch {folder}/{jobs.STOP}"
                name = f"{target}:{folder}"
                found.append(Billing(self.name, name, since, price, one.id if one else None, end))
            if launch.price_usd_per_hour and not folders:
                words = "end it where it was rented"
                rented = f"{target}: the machine, without a run"
                found.append(Billing(self.name, rented, None, launch.price_usd_per_hour, launch.id, words))
        if silent:
            raise LaunchError("; ".join(silent))
        return found

    # ---- where things are there ----

    def _there(self, launch: Launch) -> Python | None:
        """The Python of a launch; None where its start did not come so far that there is one."""
        host = Host(launch.target)
        if launch.handle:
            return Python(host, launch.handle["python"], launch.handle["package"])
        home, python = _probe(host, launch.options.get("python", "python3"))
        folder = f"{home}/.shoestring/package-{package.package_print(package.package_files())}"
        there = Python(host, python, folder)
        try:
            host.again(f"test -d {shlex.quote(folder)}/shoestring")
            there.python = _python_with_libraries(there, f"{home}/.shoestring", no_log, makes=False)
        except Lost:
            raise
        except LaunchError:
            return None
        return there

    @staticmethod
    def _work(there: Python, launch: Launch) -> str:
        return f"{Path(there.package).parent}/work/{_work_name(launch)}"

    def _folder(self, launch: Launch) -> str:
        work = launch.handle.get("work")
        if work is None:
            there = self._there(launch)
            assert there is not None
            work = self._work(there, launch)
        return f"{work}/launches/{launch.id}"


def _work_name(launch: Launch) -> str:
    """One place a run folder of this machine, whoever launches it again."""
    whose = hashlib.sha256(f"{platform.node()} {launch.run_folder}".encode()).hexdigest()[:8]
    return f"{Path(launch.run_folder).name}-{whose}"


def _probe(host: Host, python: str) -> tuple[str, str]:
    """Home folder and Python of the host. Raises: LaunchError for one that is too old."""
    said = host.again(f"{shlex.quote(python)} -c {shlex.quote(PROBE)}").decode("utf-8", "replace").strip()
    try:
        version, home, executable = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError):
        raise LaunchError(f"{host.target}: {python} answered {said[:200]!r}; set launch.python to its Python") from None
    if tuple(version[:2]) < MIN_PYTHON:
        raise LaunchError(
            f"{host.target}: {python} is {'.'.join(map(str, version))}, at least {'.'.join(map(str, MIN_PYTHON))} is "
            "needed; install a newer one there and set launch.python to it"
        )
    return home, executable


def _bring_package(host: Host, python: str, root: str, log: Log) -> str:
    """This program's files in a folder there, named by their content."""
    files = package.package_files()
    folder = f"{root}/package-{package.package_print(files)}"
    place, part = shlex.quote(folder), shlex.quote(f"{folder}.partial")
    try:
        host.again(f"test -d {place}/shoestring")
    except Lost:
        raise
    except LaunchError:
        log(f"bringing shoestring to {host.target}")
        unpack = f"{shlex.quote(python)} -c {shlex.quote(UNPACK)} {part}"
        data = package.package_tar(files)
        host.again(f"rm -rf {part} && mkdir -p {part} && {unpack} && rm -rf {place} && mv {part} {place}", data)
    return folder


def _python_with_libraries(there: Python, root: str, log: Log, makes: bool = True) -> str:
    """The host's Python where it has what a run needs, else one of a virtual environment made for it."""
    pins = package.pins()
    found = there.ask("versions", given=list(pins))
    if all(name in found for name in package.CORE):
        other = [f"{name} {found[name]} (here {pins[name]})" for name in package.CORE if pins.get(name) != found[name]]
        if other:
            log(f"note: {there.host.target} has {', '.join(other)}: results may differ in the last bits")
        return there.python
    wanted = [f"{name}=={version}" for name, version in pins.items()]
    venv = f"{root}/venv-{hashlib.sha256(' '.join(wanted).encode()).hexdigest()[:12]}"
    python, mark = f"{venv}/bin/python", shlex.quote(f"{venv}/complete")
    try:
        there.host.again(f"test -f {mark}")
    except Lost:
        raise
    except LaunchError:
        if not makes:
            raise
        log(f"installing torch and the other libraries on {there.host.target}, once; this takes minutes")
        make = f"{shlex.quote(there.python)} -m venv {shlex.quote(venv)}"
        pip = shlex.join([python, "-m", "pip", "install", "--quiet", *wanted])
        there.host.again(f"{make} && {pip} && touch {mark}")
    return python
