"""gpuhunt, dstack's catalog, where the package is installed (`shoestring[gpuhunt]`); it downloads its own files.

Offer names are gpuhunt's; H100 and A100 carry no form factor there, so most of them are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ...errors import SourceError, require
from ..fetch import Web
from ..offers import Quote
from .source import GIB, Source

PROVIDERS = {"gcp": "GCP", "nebius": "Nebius", "oci": "Oracle Cloud", "verda": "Verda", "cloudrift": "CloudRift"}
FOLDER_ENV = "GPUHUNT_CATALOG_DIR"  # gpuhunt's own: a folder of CSV files instead of its bucket


def quotes(web: Web, url: str) -> Iterator[Quote]:
    """Every machine with GPUs of sellers that have no source of their own here."""
    gpuhunt = require("gpuhunt", extra="gpuhunt", purpose="the price source 'gpuhunt'")
    catalog = gpuhunt.Catalog(auto_reload=False)
    try:
        if not os.environ.get(FOLDER_ENV):
            catalog.load()
        items = catalog.query(provider=list(PROVIDERS), min_gpu_count=1)
    except (gpuhunt.GPUHuntError, OSError, KeyError, ValueError) as error:
        raise SourceError(f"gpuhunt could not load its catalog: {error}") from None
    for item in items:
        yield Quote(
            seller=PROVIDERS[item.provider],
            gpu=f"{item.gpu_name} {item.instance_name}",
            num_gpus=item.gpu_count,
            usd_per_hour=item.price,
            region=item.location,
            gpu_memory_bytes=int(item.gpu_memory * GIB) if item.gpu_memory else None,
            is_spot=item.spot,
            detail=item.instance_name,
        )


SOURCE = Source("gpuhunt", "", quotes, "gpuhunt's catalog", basis="undated catalog", extra="gpuhunt")
