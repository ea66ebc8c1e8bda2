"""RunPod: secure and community cloud, list and spot; asked without a key.

Shape: the GraphQL type GpuType. Prices are dollars an hour for one GPU, memoryInGb is of one GPU; a price of zero or
none in a cloud means that the GPU is not offered there. minimumBidPrice is the lowest spot price of either cloud.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import SourceError
from ..fetch import Web, need
from ..offers import Quote
from .source import GIB, Source

QUERY = """query GpuTypes { gpuTypes { id displayName memoryInGb securePrice communityPrice secureSpotPrice
communitySpotPrice lowestPrice(input: {gpuCount: 1}) { minimumBidPrice stockStatus } } }"""
CLOUDS = (
    ("RunPod community", "communityPrice", "communitySpotPrice"),
    ("RunPod secure", "securePrice", "secureSpotPrice"),
)


def quotes(web: Web, url: str) -> Iterator[Quote]:
    """List and spot price of each GPU in each cloud that offers it."""
    answer = web.json(url, {"query": QUERY})
    if isinstance(answer, dict) and answer.get("errors"):
        raise SourceError(f"{url} refused the query: {str(answer['errors'])[:200]}")
    for gpu in need(need(answer, "data", dict), "gpuTypes", list):
        bid = (need(gpu, "lowestPrice", (dict, type(None))) or {}).get("minimumBidPrice")
        for seller, list_field, spot_field in CLOUDS:
            listed = need(gpu, list_field)
            if not listed:
                continue
            yield _quote(gpu, seller, listed, is_spot=False)
            spot = gpu.get(spot_field, bid)
            if spot is not None:
                yield _quote(gpu, seller, spot, is_spot=True)
                bid = None  # the lowest bid is one cloud's, and community is the cheaper


def _quote(gpu: dict[str, object], seller: str, usd_per_hour: object, *, is_spot: bool) -> Quote:
    if not isinstance(usd_per_hour, (int, float)):
        raise SourceError(f"a price of {gpu.get('id')} is {usd_per_hour!r}; the interface has changed")
    name = f"{need(gpu, 'id', str)} {need(gpu, 'displayName', str)}"
    return Quote(
        seller=seller,
        gpu=name,
        num_gpus=1,
        usd_per_hour=float(usd_per_hour),
        gpu_memory_bytes=int(need(gpu, "memoryInGb", (int, float)) * GIB),
        is_spot=is_spot,
        interruption="at any moment, without notice",
    )


SOURCE = Source("runpod", "https://api.runpod.io/graphql", quotes, "RunPod's API")
