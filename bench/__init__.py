"""Measurements: `python -m bench.NAME [--json]`; with --json exactly one object on standard output."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from shoestring.versions import package_versions as versions

__all__ = ["EXAMPLES", "machine", "versions"]
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
