"""SkyPilot's catalog: one CSV a cloud; no key, and no dates: its rows may be months old.

Shape: github.com/skypilot-org/skypilot-catalog, catalogs/v8. Price and SpotPrice are for the whole machine.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from ..fetch import Web, number
from ..offers import Quote
from .source import GIB, MIB, Source

CLOUDS = {  # file -> seller, and the form factor of its H100 and A100 where names leave it out
    "gcp": ("GCP", ""),
    "hyperstack": ("Hyperstack", ""),
    "nebius": ("Nebius", ""),
    "verda": ("Verda", "SXM"),
}
COLUMNS = ("InstanceType", "AcceleratorName", "AcceleratorCount", "Price", "SpotPrice", "Region", "GpuInfo")
GPU_HOSTS = re.compile(r"(a2|a3|a4|g2)-")  # Google's machines that always have GPUs


def quotes(web: Web, url: str) -> Iterator[Quote]:
    """List and spot price of each machine with GPUs, cloud by cloud."""
    for cloud, (seller, form_factor) in CLOUDS.items():
        for row in web.rows(f"{url}/{cloud}/vms.csv", COLUMNS):
            yield from _quotes_of(row, seller, form_factor)


def _quotes_of(row: dict[str, str], seller: str, form_factor: str) -> Iterator[Quote]:
    machine, name = row["InstanceType"], row["AcceleratorName"]
    is_host_alone = not name and bool(GPU_HOSTS.match(machine))
    if (not name and not is_host_alone) or name.startswith("tpu"):
        return
    excludes = "the GPU" if is_host_alone else "" if machine else "the host"
    for column, is_spot in (("Price", False), ("SpotPrice", True)):
        if not row[column]:
            continue
        yield Quote(
            seller=seller,
            gpu=f"{name} {machine} {form_factor}".strip(),
            num_gpus=number(row, "AcceleratorCount") if row["AcceleratorCount"] else 1,
            usd_per_hour=number(row, column),
            region=row["Region"],
            gpu_memory_bytes=_gpu_memory_bytes(row["GpuInfo"]),
            is_spot=is_spot,
            detail=machine,
            excludes=excludes,
        )


def _gpu_memory_bytes(gpu_info: str) -> int | None:
    """GpuInfo is JSON, or a Python dict with JSON's null; some rows put gigabytes in the mebibyte field."""
    try:
        told: Any = ast.literal_eval(gpu_info.replace("null", "None"))
        size = told["Gpus"][0]["MemoryInfo"]["SizeInMiB"]
    except (ValueError, SyntaxError, KeyError, IndexError, TypeError):
        return None
    if not isinstance(size, (int, float)):
        return None
    return int(size * (GIB if size < 1024 else MIB))


SOURCE = Source(
    "skypilot",
    "https://raw.githubusercontent.com/skypilot-org/skypilot-catalog/master/catalogs/v8",
    quotes,
    "SkyPilot's catalog",
    basis="undated catalog",
)
