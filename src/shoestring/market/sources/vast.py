"""Vast.ai: a marketplace of single machines; asked without a key.

Shape: docs.vast.ai/api-reference/search/search-offers. gpu_ram is MiB of one GPU; dph_total (storage included) and
min_bid are dollars an hour for all GPUs of the offer.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..fetch import Web, need, number
from ..offers import Quote
from .source import MIB, Source

QUERY = {
    "type": "on-demand",
    "verified": {"eq": True},
    "rentable": {"eq": True},
    "rented": {"eq": False},
    "order": [["dph_total", "asc"]],
    "limit": 2000,
}


def quotes(web: Web, url: str) -> Iterator[Quote]:
    """Each machine twice: at its price, and at the lowest bid for it, which a higher bid ends."""
    for offer in need(web.json(url, QUERY), "offers", list):
        for name, is_spot in (("dph_total", False), ("min_bid", True)):
            if need(offer, name) is None:
                continue
            yield Quote(
                seller="Vast.ai",
                gpu=need(offer, "gpu_name", str),
                num_gpus=number(offer, "num_gpus"),
                usd_per_hour=number(offer, name),
                region=str(offer.get("geolocation") or ""),
                gpu_memory_bytes=int(number(offer, "gpu_ram") * MIB),
                is_spot=is_spot,
                interruption="at any moment, when outbid",
                detail=f"offer {offer.get('id')}",
            )


SOURCE = Source("vast", "https://console.vast.ai/api/v0/bundles/", quotes, "Vast.ai's marketplace")
