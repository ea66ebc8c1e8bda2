"""The GPU table's name for what a seller calls a GPU; never a guess where the form factor is not said."""

from __future__ import annotations

import re

from ..plan.devices import gpu_table

# Other products that bear the name of a GPU of the table.
OTHERS = re.compile(
    r"\b(nvl|gb200|gb300|gh200|laptop|max ?q|mig|vgpu|rtx ?\d{4} ?(ti|super|d)|a100x|h800|a800|rtx ?4000|rtx ?5000"
    r"|l40g|a16|v100 (sxm\d )?32gb)\b"
)
SXM = re.compile(r"\b(sxm\d?|hgx|hbm3)\b")
PCIE = re.compile(r"\bpcie\b")
LARGEST_V100_BYTES = 20 * 10**9  # there is one of 32 GB, which goes by the same name
LARGEST_A100_40GB_BYTES = 50 * 10**9
FORTY_GB = re.compile(r"\b40 ?(gb?)?\b")
PLAIN = (  # the first that matches; longer names first
    (r"b300", "B300"),
    (r"b200", "B200"),
    (r"h200", "H200"),
    (r"l40s", "L40S"),
    (r"l40", "L40"),
    (r"l4", "L4"),
    (r"a10g", "A10G"),
    (r"a10", "A10"),
    (r"t4", "T4"),
    (r"v100", "V100-16GB"),
    (r"(rtx ?)?a6000", "RTXA6000"),
    (r"rtx ?6000 ?ada", "RTX6000-ADA"),
    (r"rtx ?5090", "RTX5090"),
    (r"rtx ?4090", "RTX4090"),
    (r"rtx ?3090", "RTX3090"),
)


def gpu_named(text: str, memory_bytes: int | None = None) -> str | None:
    """Row of the GPU table that text names; None for another GPU, or where H100 or A100 lack their form factor.

    text: the source's name, with the machine's beside it where that says more ("H100 p5.48xlarge SXM").
    """
    plain = re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()
    if OTHERS.search(plain):
        return None
    if re.search(r"\bh100\b", plain):
        return _form_factor(plain, "H100-SXM", "H100-PCIE")
    if re.search(r"\ba100\b", plain):
        is_forty = bool(FORTY_GB.search(plain)) or (memory_bytes is not None and memory_bytes < LARGEST_A100_40GB_BYTES)
        if is_forty:
            return _form_factor(plain, "A100-40GB", None)
        return _form_factor(plain, "A100-SXM", "A100-PCIE")
    if re.search(r"\bv100\b", plain) and memory_bytes is not None and memory_bytes > LARGEST_V100_BYTES:
        return None
    for pattern, name in PLAIN:
        if re.search(rf"\b{pattern}\b", plain):
            return name if name in gpu_table() else None
    return None


def _form_factor(plain: str, sxm: str, pcie: str | None) -> str | None:
    if SXM.search(plain):
        return sxm
    return pcie if PCIE.search(plain) else None
