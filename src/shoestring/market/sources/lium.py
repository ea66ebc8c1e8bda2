"""Lium: a marketplace; its public feed of rentable nodes; no key.

Shape: docs.lium.io/developers/public-nodes-feed: only id and rent_url are never null, fields are only ever added.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..fetch import Web, need, number
from ..offers import Quote
from .source import GIB, Source

NEEDED = ("gpu_model", "gpu_count", "available_gpu_count", "price_per_gpu_hour", "gpu_memory_gb")


def quotes(web: Web, url: str) -> Iterator[Quote]:
    """Each node at its smallest order; nodes with a null among NEEDED, or too few free GPUs, are left out."""
    for node in need(web.json(url), "nodes", list):
        if any(need(node, name) is None for name in NEEDED):
            continue
        num_gpus = number(node, "gpu_count")
        smallest = number(node, "min_rentable_gpu_count") if node.get("min_rentable_gpu_count") else num_gpus
        if number(node, "available_gpu_count") < smallest:
            continue
        yield Quote(
            seller="Lium",
            gpu=need(node, "gpu_model", str),
            num_gpus=smallest,
            usd_per_hour=number(node, "price_per_gpu_hour") * smallest,
            region="-".join(str(part) for part in (node.get("country_code"), node.get("region")) if part),
            gpu_memory_bytes=int(number(node, "gpu_memory_gb") * GIB),
            is_spot=node.get("tier") == "spot",
            detail=f"node {node.get('id')}",
        )


SOURCE = Source("lium", "https://lium.io/api/public/v1/nodes", quotes, "Lium's public feed")
