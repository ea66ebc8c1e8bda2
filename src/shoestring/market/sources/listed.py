"""Sellers whose list prices stand on web pages: the daily feed of gpurentalprices.com (CC BY 4.0); no key.

Shape: gpurentalprices.com/data, `offers[]` with provider, gpu, vram_gb, usd_hr (of one GPU), kind, min_gpus,
fetched_at. Serverless and reserved rates are other products and left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import SourceError
from ..fetch import Web, need, number
from ..offers import Quote
from .source import GIB, Source

URL = "https://gpurentalprices.com/api/latest.json"
CREDIT = "gpurentalprices.com (CC BY 4.0)"
KINDS = ("on-demand", "secure", "community", "marketplace", "spot")
# Sellers without a source of their own. HGX: all their H100 and A100 machines are SXM, which the feed leaves out.
SELLERS = {
    "crusoe": ("Crusoe", ""),
    "datacrunch": ("Verda", ""),
    "daytona": ("Daytona", ""),
    "digitalocean": ("DigitalOcean", ""),
    "gcp": ("GCP", ""),
    "hyperstack": ("Hyperstack", ""),
    "jarvislabs": ("JarvisLabs", ""),
    "nebius": ("Nebius", "HGX"),
    "ovh": ("OVHcloud", ""),
    "scaleway": ("Scaleway", ""),
    "tensordock": ("TensorDock", ""),
}
GPU_ALONE = ("daytona", "gcp")  # their pages price the GPU, the host is billed beside it


def quotes_of(web: Web, url: str, sellers: dict[str, tuple[str, str]]) -> Iterator[Quote]:
    """The feed's rows of some sellers; a seller whose page could not be read lately is left out by the feed."""
    answer = web.json(url)
    found = False
    for row in need(answer, "offers", list):
        provider, kind = need(row, "provider", str), need(row, "kind", str)
        if provider not in sellers or kind not in KINDS:
            continue
        found = True
        seller, form_factor = sellers[provider]
        num_gpus = number(row, "min_gpus") if "min_gpus" in row else 1
        yield Quote(
            seller=seller,
            gpu=f"{need(row, 'gpu', str)} {form_factor}".strip(),
            num_gpus=num_gpus,
            usd_per_hour=number(row, "usd_hr") * num_gpus,
            region=str(row.get("region") or ""),
            gpu_memory_bytes=int(number(row, "vram_gb") * GIB),
            is_spot=kind == "spot",
            detail=str(row.get("instance") or ""),
            excludes="the host, which is billed beside it" if provider in GPU_ALONE else "",
        )
    if not found:
        raise SourceError(f"{url} holds no offer of {', '.join(sorted(sellers))}")


def quotes(web: Web, url: str) -> Iterator[Quote]:
    """Sellers without a source of their own."""
    return quotes_of(web, url, SELLERS)


SOURCE = Source("listed", URL, quotes, CREDIT, basis="third-party copy")
