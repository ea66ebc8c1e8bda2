"""Price sources, one file each: what is asked, and how the answer reads."""

from __future__ import annotations

from . import aws, azure, coreweave, gpuhunt, lambda_cloud, listed, lium, runpod, skypilot, together, vast
from .source import Source

SOURCES: dict[str, Source] = {
    module.SOURCE.name: module.SOURCE
    for module in (vast, runpod, lium, azure, aws, lambda_cloud, coreweave, together, listed, skypilot, gpuhunt)
}
