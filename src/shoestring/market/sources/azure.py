"""Azure: the retail price API; no key.

Shape: learn.microsoft.com/rest/api/cost-management/retail-prices. retailPrice is for the whole machine; what GPUs a
machine has, its name says (series and sizes from learn.microsoft.com/azure/virtual-machines/sizes).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlencode, urlsplit

from ...errors import SourceError
from ..fetch import Web, need, number
from ..offers import Quote
from .source import Source

REGIONS = ("eastus", "westeurope")
MAX_PAGES = 50
FILTER = (
    "serviceName eq 'Virtual Machines' and priceType eq 'Consumption' and ({regions}) and "
    "(contains(armSkuName, 'Standard_NC') or contains(armSkuName, 'Standard_ND') or "
    "contains(armSkuName, 'Standard_NV'))"
)
# Series, GPU, and how many GPUs a size has: a number, or the vCPUs that go with one.
SERIES: tuple[tuple[str, str, int, int], ...] = (
    (r"NC(\d+)ads_A100_v4", "A100 PCIe 80GB", 0, 24),
    (r"ND96am\w*_A100_v4", "A100 SXM 80GB", 8, 0),
    (r"ND96as\w*_(A100_)?v4", "A100 SXM 40GB", 8, 0),
    (r"NC(\d+)ad\w*_H100_v5", "H100 NVL", 0, 40),
    (r"ND96is\w*_H100_v5", "H100 SXM", 8, 0),
    (r"ND96is\w*_H200_v5", "H200", 8, 0),
    (r"NC64as_T4_v3", "T4", 4, 0),
    (r"NC(4|8|16)as_T4_v3", "T4", 1, 0),
    (r"NC(\d+)r?s_v3", "V100 16GB", 0, 6),
    (r"NV(\d+)ad\w*_A10_v5", "A10", 0, 36),
)


def quotes(web: Web, url: str) -> Iterator[Quote]:
    """Linux machines with GPUs, pay as you go and spot."""
    regions = " or ".join(f"armRegionName eq '{region}'" for region in REGIONS)
    page = f"{url}?{urlencode({'$filter': FILTER.format(regions=regions)})}"
    for _ in range(MAX_PAGES):
        answer = web.json(page)
        for item in need(answer, "Items", list):
            yield from _quote(item)
        page = str(answer.get("NextPageLink") or "").replace(" ", "%20")
        if not page:
            return
        if urlsplit(page).hostname != urlsplit(url).hostname:  # it writes the port, :443
            raise SourceError(f"the next page is at another host: {page[:120]!r}")
    raise SourceError(f"more than {MAX_PAGES} pages; the filter no longer holds")


def _quote(item: dict[str, object]) -> Iterator[Quote]:
    sku, meter = need(item, "armSkuName", str), need(item, "meterName", str)
    if "Windows" in need(item, "productName", str) or "Low Priority" in meter or item.get("type") != "Consumption":
        return
    if need(item, "currencyCode") != "USD" or need(item, "unitOfMeasure") != "1 Hour":
        raise SourceError(f"{sku} is priced in {item['currencyCode']} per {item['unitOfMeasure']}, not USD per 1 Hour")
    gpu, num_gpus = _gpus_of(sku)
    yield Quote(
        seller="Azure",
        gpu=gpu,
        num_gpus=num_gpus,
        usd_per_hour=number(item, "retailPrice"),
        region=need(item, "armRegionName", str),
        is_spot="Spot" in meter,
        detail=sku,
    )


def _gpus_of(sku: str) -> tuple[str, float]:
    """GPU and how many a machine has; a size that shares a GPU has less than one."""
    for pattern, gpu, num_gpus, vcpus_per_gpu in SERIES:
        if match := re.fullmatch(rf"Standard_{pattern}", sku):
            return gpu, num_gpus or round(int(match[1]) / vcpus_per_gpu, 3)
    return sku, 1


SOURCE = Source("azure", "https://prices.azure.com/api/retail/prices", quotes, "Azure's retail price API")
