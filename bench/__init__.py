"""Measurements: `python -m bench.NAME [--json]`; with --json exactly one object on standard output."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def machine() -> dict[str, Any]:
    """What a measurement was made on."""
    from shoestring.train.base import detect_device

    device = detect_device()
    return {
        "device": device.name,
        "kind": device.kind,
        "memory_bytes": device.memory_bytes,
        "num_cpus": os.cpu_count(),
        "num_threads": device.num_threads,
        "dtype": device.dtype,
        "system": platform.platform(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str]:
    """Versions of what was measured with."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("shoestring", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
