"""The machine: accelerator, memory as far as it may be used, and the precision its hardware has."""

from __future__ import annotations

import itertools
import os
import platform
import re
import sys
from pathlib import Path

from ..records import Device
from .world import current

CLEAR_REFS = Path("/proc/self/clear_refs")


def _memory_limit_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Smallest memory limit of this process's control groups (v2, then v1), None where unlimited or unreadable."""
    candidates = [root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            inside = line.split(":", 2)[2].lstrip("/")
            candidates += [root / inside / "memory.max", root / "memory" / inside / "memory.limit_in_bytes"]
    except (OSError, IndexError):
        pass
    limits = []
    for path in candidates:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits, default=None)


def _host_memory_bytes() -> int:
    import psutil  # type: ignore[import-untyped]  # comes with accelerate

    total = int(psutil.virtual_memory().total)
    return min(total, _memory_limit_bytes() or total)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"


def _cpu_bfloat16() -> tuple[bool, str]:
    """Whether this CPU multiplies bfloat16 in hardware, and what says so."""
    import torch

    for probe, name in (("_is_amx_tile_supported", "AMX"), ("_is_avx512_bf16_supported", "AVX512-BF16")):
        test = getattr(torch.cpu, probe, None)
        if test is not None and test():
            return True, f"the CPU multiplies bfloat16 in hardware ({name})"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        flags = ""
    if re.search(r"^Features\s*:.*\bbf16\b", flags, re.MULTILINE):  # ARM
        return True, "the CPU multiplies bfloat16 in hardware (ARM bf16)"
    return False, "the CPU has no bfloat16 arithmetic, so weights are held in float32"


def _num_alike(name: str) -> int:
    """GPUs of this name, from the first on, that can train together; one where torch has no NCCL (Windows)."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_nccl_available()):
        return 1
    names = map(torch.cuda.get_device_name, range(torch.cuda.device_count()))
    return len(list(itertools.takewhile(lambda other: other.removeprefix("NVIDIA ") == name, names)))


def detect_device(num_threads: int | None = None) -> Device:
    """The accelerator training would use here, else the CPU, with the precision its hardware has."""
    import torch

    threads = num_threads or torch.get_num_threads()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        name = properties.name.removeprefix("NVIDIA ")
        if properties.major >= 8:
            dtype, reason = "bfloat16", f"{name} (compute {properties.major}.{properties.minor}) has bfloat16"
        else:
            dtype, reason = (
                "float16",
                f"{name} (compute {properties.major}.{properties.minor}) has float16 but no bfloat16",
            )
        return Device("cuda", name, int(properties.total_memory), threads, dtype, reason, _num_alike(name))
    if torch.backends.mps.is_available():
        name = _cpu_name()
        limit = getattr(torch.mps, "recommended_max_memory", None)
        memory = int(limit()) if limit else _host_memory_bytes()
        return Device("mps", name, memory, threads, "float32", "MPS kernels are complete in float32 only")
    fast, reason = _cpu_bfloat16()
    return Device("cpu", _cpu_name(), _host_memory_bytes(), threads, "bfloat16" if fast else "float32", reason)


def present_device(num_threads: int | None = None) -> Device:
    """detect_device without PyTorch's seconds of import where no driver of an accelerator is installed."""
    if sys.platform != "linux" or Path("/proc/driver/nvidia").exists() or Path("/dev/kfd").exists():
        return detect_device(num_threads)
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return detect_device(num_threads)
    fast = re.search(r"\b(amx_bf16|avx512_bf16|bf16)\b", flags) is not None
    reason = "by the flags of /proc/cpuinfo"
    threads = num_threads or len(os.sched_getaffinity(0))
    return Device("cpu", _cpu_name(), _host_memory_bytes(), threads, "bfloat16" if fast else "float32", reason)


def reset_peak(device: Device) -> str:
    """Begin to measure the peak anew; returns what `peak_bytes` gives from here on, in words."""
    if device.kind == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return "tensors on the accelerator"
    try:
        CLEAR_REFS.write_text("5")  # Linux: the high-water mark becomes the present resident size, proc(5)
    except OSError:
        return "resident size of the process, work before training included"
    return "resident size of the process"


def peak_bytes(device: Device) -> int:
    """CUDA: most memory allocated by tensors. CPU and MPS: largest resident size of this process."""
    if device.kind == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    try:
        mark = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        mark = None
    if mark:
        return int(mark[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Resident size of this process now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def free_bytes(device: Device) -> int:
    """CUDA: free on the card and cached by the allocator. CPU, MPS: available to this process, its limits respected.

    Of several processes that train together the least, so that all choose alike.
    """
    return min(current().of_all(_free_here_bytes(device)))


def _free_here_bytes(device: Device) -> int:
    if device.kind == "cuda":
        import torch

        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0] + cached)
    import psutil

    size = current().size  # processes that share the host's memory
    available = int(psutil.virtual_memory().available) // size
    return max(0, min(available, device.memory_bytes // size - resident_bytes()))
