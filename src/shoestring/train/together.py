"""A training in several processes: in those that torchrun started, or in its own, begun anew where memory runs out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ..errors import BadInput
from ..records import no_log, no_progress
from .processes import OutOfMemory, call_together
from .world import current, is_launched, joined_from_environment

P = ParamSpec("P")
T = TypeVar("T")
HOOKS = ("should_stop", "progress", "log")  # called in this process


def in_processes(train: Callable[P, T]) -> Callable[P, T]:
    """train(*, settings, device, out_dir, ...) as each of the processes that settings ask for runs it."""

    @functools.wraps(train)
    def trained(*args: P.args, **given: P.kwargs) -> T:
        settings: Any = given["settings"]
        if is_launched():
            device: Any = given["device"]
            with joined_from_environment(device) as world:
                if not world.is_first:
                    given.update(log=no_log, progress=no_progress)
                return train(*args, **given)
        if settings.num_processes == 1 or current().size > 1:
            return train(*args, **given)
        return _in_own_processes(trained, dict(given))

    return trained


def _in_own_processes(train: Callable[..., Any], given: dict[str, Any]) -> Any:
    hooks = {name: given.pop(name) for name in HOOKS if name in given}
    log, settings, num_shrunk = hooks.get("log", no_log), given["settings"], 0
    num, device = settings.num_processes, given["device"]
    if device.kind == "mps" or (device.kind == "cuda" and num > device.num_devices):
        raise BadInput(
            f"train.num_processes = {num}, and this machine has {device.num_devices} x {device.name}; "
            f"give at most {device.num_devices}, or leave it out"
        )
    given["settings"] = replace(settings, num_threads=max(1, settings.num_threads // num))
    while True:
        try:
            return call_together(
                train,
                given,
                num=num,
                device=device,
                folder=Path(given["out_dir"]),
                hooks=hooks,
                num_shrunk=num_shrunk,
            )
        except OutOfMemory as error:
            num_shrunk += 1
            log(f"memory ran out ({error}); going on from the last checkpoint with smaller passes")
