"""Machines a run can be planned for: the present one, or a row of the dated GPU table."""

from __future__ import annotations

import csv
import difflib
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInput
from ..records import Device
from ..units import BYTES_PER_GB

GPUS_CSV = Path(__file__).with_name("gpus.csv")
TERA = 1e12


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """Published figures of one GPU; memory in bytes (the vendor's GB are 1e9, so the last 2-7 % is not promised)."""

    device: str
    also_named: str  # as the driver reports it
    memory_bytes: int
    mem_bw_bytes_per_s: float
    dtype: str  # bfloat16, or float16 where the card has no bf16 tensor cores
    peak_flops_per_s: float  # of 16-bit matmul with fp32 accumulation
    measured_flops_per_s: float | None  # best plain matmul measured, where somebody has
    power_limited_flops_per_s: float | None  # what its power allows, at a sister card's FLOPs a watt
    link_bytes_per_s: float  # one way to the other GPUs of a machine: NVLink, or PCIe x16
    unverified: str
    source: str


@functools.cache
def gpu_table() -> dict[str, GpuSpec]:
    """Rows of gpus.csv by device name."""
    specs = {}
    with GPUS_CSV.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            specs[row["device"]] = GpuSpec(
                device=row["device"],
                also_named=row["also_named"],
                memory_bytes=round(float(row["memory_gb"]) * BYTES_PER_GB),
                mem_bw_bytes_per_s=float(row["mem_bw_gb_s"]) * BYTES_PER_GB,
                dtype="bfloat16" if row["bf16_tflops"] else "float16",
                peak_flops_per_s=float(row["bf16_tflops"] or row["fp16_tflops"]) * TERA,
                measured_flops_per_s=_tera(row["measured_matmul_tflops"]),
                power_limited_flops_per_s=_tera(row["power_limited_tflops"]),
                link_bytes_per_s=float(row["link_gb_s"]) * BYTES_PER_GB,
                unverified=row["unverified"],
                source=row["source"],
            )
    return specs


def gpu_spec(device_name: str) -> GpuSpec | None:
    """The table's row of a device, by table name or by the driver's name; None if it has none."""
    name = device_name.lower().removeprefix("nvidia ")
    for spec in gpu_table().values():
        if name and name in (spec.device.lower(), spec.also_named.lower().removeprefix("nvidia ")):
            return spec
    return None


def _tera(cell: str) -> float | None:
    return float(cell) * TERA if cell else None


# Names in use for rows of the table; of a card with several forms, the one that is rented most.
ALIASES = {
    "a100": "A100-SXM",
    "a100-80gb": "A100-SXM",
    "a100-sxm-80gb": "A100-SXM",
    "a100-80gb-sxm": "A100-SXM",
    "a100-80gb-pcie": "A100-PCIE",
    "a100-40gb-sxm": "A100-40GB",
    "h100": "H100-SXM",
    "h100-80gb": "H100-SXM",
    "h200-sxm": "H200",
    "b200-sxm": "B200",
    "b300-sxm": "B300",
    "rtx-6000-ada": "RTX6000-ADA",
    "v100": "V100-16GB",
    "v100-16gb-sxm": "V100-16GB",
}


def device_of(name: str) -> Device:
    """A GPU by the name people use for it (RTX 4090, A100-80GB), or by its memory alone ("24 GB").

    Raises: BadInput listing near rows.
    """
    plain = "-".join(name.lower().replace("nvidia", "").replace("geforce", "").replace("tesla", "").split())
    size = re.fullmatch(r"(?:any-)?(\d+)-?(gi?b)", plain)
    if size:
        bytes_each = 2**30 if size[2] == "gib" else BYTES_PER_GB
        return Device("cuda", name, int(size[1]) * bytes_each, 1, "bfloat16", "any card of this size")
    wanted = ALIASES.get(plain, plain).lower().replace("-", "")
    for spec in gpu_table().values():
        if wanted == spec.device.lower().replace("-", ""):
            return Device("cuda", spec.device, spec.memory_bytes, 1, spec.dtype, "by the GPU table")
    near = difflib.get_close_matches(plain.upper(), gpu_table(), n=3, cutoff=0.4)
    raise BadInput(
        f"gpu = {name!r} is not in the GPU table; near rows: {', '.join(near or gpu_table())}; or give '24 GB'"
    )


def planned_device(name: str | None, present: Device) -> Device:
    """The device a run is planned for: the present one unless name is a row of the table.

    Raises: BadInput listing near rows.
    """
    if name is None or name.lower() in (present.name.lower(), present.kind):
        return present
    spec = gpu_spec(name)
    if spec is None:
        near = difflib.get_close_matches(name.upper(), gpu_table(), n=3, cutoff=0.4)
        rows = ", ".join(near or gpu_table())
        raise BadInput(
            f"market.device = {name!r} is not in the GPU table; near rows: {rows}; "
            "or leave market.device out to plan for this machine"
        )
    if spec is gpu_spec(present.name):
        return present
    reason = f"{spec.device} computes in {spec.dtype}, by the GPU table"
    return Device(
        kind="cuda",
        name=spec.device,
        memory_bytes=spec.memory_bytes,
        num_threads=present.num_threads,
        dtype=spec.dtype,
        dtype_reason=reason,
    )
