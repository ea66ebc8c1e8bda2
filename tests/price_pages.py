"""Pages of price sources as recorded (shortened), and a loopback server that serves them, or spoils them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from tests.loopback import LoopbackServer, QuietHandler

VAST = {
    "offers": [
        {
            "id": 12345678, "gpu_name": "RTX 4090", "num_gpus": 2, "gpu_ram": 24564, "gpu_total_ram": 49128,
            "dph_base": 0.70, "dph_total": 0.72, "min_bid": 0.30, "storage_cost": 0.15, "geolocation": "Quebec, CA",
        },
        {
            "id": 12345679, "gpu_name": "H100 SXM", "num_gpus": 8, "gpu_ram": 81559, "gpu_total_ram": 652472,
            "dph_base": 19.2, "dph_total": 19.36, "min_bid": 0.0, "storage_cost": 0.2, "geolocation": None,
        },
        {
            "id": 12345680, "gpu_name": "RTX 3060", "num_gpus": 1, "gpu_ram": 12288, "gpu_total_ram": 12288,
            "dph_base": 0.05, "dph_total": 0.06, "min_bid": 0.03, "storage_cost": 0.2, "geolocation": "Ohio, US",
        },
    ]
}  # fmt: skip
RUNPOD = {
    "data": {
        "gpuTypes": [
            {
                "id": "NVIDIA H100 80GB HBM3", "displayName": "H100 SXM", "memoryInGb": 80,
                "securePrice": 3.99, "communityPrice": 2.69, "secureSpotPrice": 2.0, "communitySpotPrice": 1.5,
                "lowestPrice": {"minimumBidPrice": 1.5, "stockStatus": "Low"},
            },
            {
                "id": "NVIDIA L4", "displayName": "L4", "memoryInGb": 24, "securePrice": 0.43, "communityPrice": 0,
                "secureSpotPrice": 0, "communitySpotPrice": 0,
                "lowestPrice": {"minimumBidPrice": None, "stockStatus": None},
            },
            {
                "id": "AMD Instinct MI300X OAM", "displayName": "MI300X", "memoryInGb": 192, "securePrice": 2.49,
                "communityPrice": None, "secureSpotPrice": None, "communitySpotPrice": None,
                "lowestPrice": {"minimumBidPrice": None, "stockStatus": None},
            },
        ]
    }
}  # fmt: skip


def azure_item(sku: str, price: float, meter: str, product: str = "NCads A100 v4 Series Linux") -> dict[str, Any]:
    """One item of Azure's price list."""
    return {
        "currencyCode": "USD", "tierMinimumUnits": 0, "retailPrice": price, "unitPrice": price,
        "armRegionName": "eastus", "location": "US East", "effectiveStartDate": "2022-06-01T00:00:00Z",
        "meterName": meter, "productName": product, "skuName": sku, "serviceName": "Virtual Machines",
        "unitOfMeasure": "1 Hour", "type": "Consumption", "isPrimaryMeterRegion": True, "armSkuName": sku,
    }  # fmt: skip


AZURE = [
    azure_item("Standard_NC24ads_A100_v4", 3.673, "NC24ads_A100_v4"),
    azure_item("Standard_NC48ads_A100_v4", 7.346, "NC48ads_A100_v4"),
    azure_item("Standard_NC48ads_A100_v4", 1.357541, "NC48ads_A100_v4 Spot"),
    azure_item("Standard_NC24ads_A100_v4", 4.777, "NC24ads_A100_v4", "NCads A100 v4 Series Windows"),
    azure_item("Standard_ND96isr_H100_v5", 98.32, "ND96isrH100v5", "Virtual Machines NDsr H100 v5 Series"),
    azure_item("Standard_NV6ads_A10_v5", 0.454, "NV6ads A10 v5", "Virtual Machines NVadsA10v5 Series"),
    azure_item("Standard_NC40ads_H100_v5", 6.98, "NC40adsH100v5", "Virtual Machines NCadsH100v5 Series"),
]
AWS_HEAD = (
    "SKU,TermType,Unit,PricePerUnit,Currency,Instance Type,Tenancy,Operating System,CapacityStatus,"
    "Pre Installed S/W,MarketOption,GPU,Region Code"
)
AWS = "\n".join(
    [
        '"FormatVersion","v1.0"', '"Disclaimer","..."', '"Publication Date","2026-11-20T00:00:00Z"',
        '"Version","20261120000000"', '"OfferCode","AmazonEC2"',
        AWS_HEAD,
        "A,OnDemand,Hrs,55.04,USD,p5.48xlarge,Shared,Linux,Used,NA,OnDemand,8,us-east-1",
        "B,OnDemand,Hrs,61.00,USD,p5.48xlarge,Dedicated,Linux,Used,NA,OnDemand,8,us-east-1",
        "C,Reserved,Hrs,30.00,USD,p5.48xlarge,Shared,Linux,Used,NA,OnDemand,8,us-east-1",
        "D,OnDemand,Hrs,0.805,USD,g6.xlarge,Shared,Linux,Used,NA,OnDemand,1,us-east-1",
        "E,OnDemand,Hrs,0.096,USD,m5.large,Shared,Linux,Used,NA,OnDemand,,us-east-1",
    ]
)  # fmt: skip
ADVISOR = {
    "ranges": [
        {"index": 0, "label": "<5%", "dots": 0, "max": 5},
        {"index": 3, "label": "15-20%", "dots": 3},
    ],
    "spot_advisor": {"us-east-1": {"Linux": {"p5.48xlarge": {"s": 57, "r": 0}, "g6.xlarge": {"s": 90, "r": 3}}}},
}
LAMBDA = {
    "data": {
        "gpu_8x_h100_sxm5": {
            "instance_type": {
                "name": "gpu_8x_h100_sxm5", "description": "8x H100 (80 GB SXM5)",
                "gpu_description": "H100 (80 GB SXM5)", "price_cents_per_hour": 3192,
                "specs": {"vcpus": 208, "memory_gib": 1800, "storage_gib": 22000, "gpus": 8},
            },
            "regions_with_capacity_available": [{"name": "us-west-1", "description": "California, USA"}],
        },
        "gpu_1x_a10": {
            "instance_type": {
                "name": "gpu_1x_a10", "description": "1x A10 (24 GB PCIe)", "gpu_description": "A10 (24 GB PCIe)",
                "price_cents_per_hour": 129, "specs": {"vcpus": 30, "memory_gib": 200, "storage_gib": 1400, "gpus": 1},
            },
            "regions_with_capacity_available": [],
        },
    }
}  # fmt: skip


def listed_row(provider: str, gpu: str, vram_gb: int, usd_hr: float, kind: str = "on-demand", **more: Any) -> Any:
    """One offer of the daily feed."""
    return {
        "provider": provider, "gpu": gpu, "vram_gb": vram_gb, "usd_hr": usd_hr, "kind": kind,
        "source_url": f"https://{provider}.example", "fetched_at": "2026-10-08T08:47:03.098Z", **more,
    }  # fmt: skip


LISTED = {
    "date": "2026-10-08",
    "generated_at": "2026-10-08T08:47:13.797Z",
    "offers": [
        listed_row("coreweave", "h100", 80, 6.155, min_gpus=8),
        listed_row("coreweave", "gh200", 96, 6.5, min_gpus=1),
        listed_row("coreweave", "l40s", 48, 2.25, min_gpus=8),
        listed_row("together", "h100", 80, 3.99),
        listed_row("nebius", "h100", 80, 4.5),
        listed_row("hyperstack", "h200", 141, 3.99),
        listed_row("hyperstack", "h200", 141, 2.79, "reserved"),
        listed_row("hyperstack", "h100", 80, 2.5),
        listed_row("gcp", "l4", 24, 0.56),
        listed_row("fireworks", "h100", 80, 8, "serverless"),
    ],
    "providers": {"coreweave": {"ok": True, "stale": False}},
}
LIUM = {
    "generated_at": "2026-09-10T07:37:02.247559Z",
    "count": 3,
    "nodes": [
        {
            "id": "ebdf", "gpu_model": "RTX 5090", "gpu_count": 8, "available_gpu_count": 8, "price_per_gpu_hour": 0.5,
            "min_rentable_gpu_count": 8, "gpu_memory_gb": 32, "tier": "secure", "country_code": "JP", "region": "13",
        },
        {
            "id": "f092", "gpu_model": "H200", "gpu_count": 8, "available_gpu_count": 5, "price_per_gpu_hour": 3.99,
            "min_rentable_gpu_count": 1, "gpu_memory_gb": 140, "tier": "secure", "country_code": "US", "region": None,
        },
        {
            "id": "a1b2", "gpu_model": "RTX 4090", "gpu_count": 4, "available_gpu_count": 4, "price_per_gpu_hour": 0.19,
            "min_rentable_gpu_count": 4, "gpu_memory_gb": 24, "tier": "spot", "country_code": "US", "region": "VA",
        },
        {
            "id": "c3d4", "gpu_model": None, "gpu_count": 4, "available_gpu_count": 4, "price_per_gpu_hour": 0.19,
            "min_rentable_gpu_count": 4, "gpu_memory_gb": None, "tier": "spot", "country_code": "US", "region": "VA",
        },
    ],
}  # fmt: skip
CATALOG_HEAD = "InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,GpuInfo,Region,Price,SpotPrice\n"


def catalog(*rows: str) -> str:
    """A vms.csv of SkyPilot's catalog."""
    return CATALOG_HEAD + "".join(f"{row}\n" for row in rows)


def gpu_info(name: str, num_gpus: int, size_mib: int) -> str:
    """GpuInfo as the catalog writes it."""
    memory = f"{{'SizeInMiB': {size_mib}}}"
    return (
        f"\"{{'Gpus': [{{'Name': '{name}', 'Manufacturer': null, 'Count': {num_gpus}, 'MemoryInfo': {memory}}}], "
        f"'TotalGpuMemoryInMiB': {num_gpus * size_mib}}}\""
    )


SKYPILOT = {
    "gcp": catalog(
        "a2-highgpu-1g,12.0,85.0,,,,us-central1,0.73948,0.36975",
        ",,,A100,1.0,,us-central1,2.93,1.47",
        ",,,tpu-v6e-16,1,tpu-v6e-16,us-central1,43.2,8.7",
        "n1-highmem-8,8.0,52.0,,,,us-central1,0.47,0.1",
    ),
    "nebius": catalog(
        "cpu-d3_4vcpu-16gb,4,16,,0,,eu-north1,0.0992,",
        f"gpu-h100-sxm_8gpu-128vcpu-1600gb,128,1600,H100,8,{gpu_info('H100', 8, 81920)},eu-north1,23.60,10.00",
    ),
    "hyperstack": catalog(f"n3-H100x1,28,180,H100-80G-PCIe,1,{gpu_info('H100-80G-PCIe', 1, 80)},CANADA-1,1.9,0.00"),
    "verda": catalog(
        f"2B200.60V,60,368,B200,2.0,{gpu_info('B200', 2, 184320)},FIN-03,,3.423",
        f"1A100.22V,22,120,A100-80GB,1.0,{gpu_info('A100-80GB', 1, 81920)},FIN-01,1.29,1.29",
    ),
}

# What the server does to a page: status, body.
Spoil = Callable[[bytes], tuple[int, bytes]]


class PriceServer(LoopbackServer):
    """Serves every source's page below its own path. spoil: path part -> what becomes of that page."""

    def __init__(self) -> None:
        self.spoil: dict[str, Spoil] = {}
        self.delay_s: dict[str, float] = {}
        self.drip_s: dict[str, float] = {}  # between the bytes of a page
        self.cut: set[str] = set()  # pages that break off in the middle
        self.seen: list[tuple[str, str, Any]] = []
        self.authorization: dict[str, str] = {}
        self.date = ""
        server = self

        class Handler(QuietHandler):
            protocol_version = "HTTP/1.0"

            def date_time_string(self, timestamp: float | None = None) -> str:
                return server.date or super().date_time_string(timestamp)

            def do_GET(self) -> None:
                server.handle(self, None)

            def do_POST(self) -> None:
                server.handle(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        self.serve(Handler)
        self.url = self.url.removesuffix("/v1")
        self.urls = {
            "vast": f"{self.url}/vast", "runpod": f"{self.url}/runpod", "azure": f"{self.url}/azure",
            "aws": f"{self.url}/aws/index.csv", "lambda": f"{self.url}/lambda", "coreweave": f"{self.url}/listed",
            "together": f"{self.url}/listed", "listed": f"{self.url}/listed", "lium": f"{self.url}/lium",
            "skypilot": f"{self.url}/skypilot",
        }  # fmt: skip

    def handle(self, handler: QuietHandler, body: Any) -> None:
        """Answer one request."""
        path = handler.path
        self.seen.append((handler.command, path, body))
        name = path.split("/")[1].split("?")[0]
        self.authorization[name] = handler.headers.get("Authorization", "")
        time.sleep(self.delay_s.get(name, 0))
        status, data = self.spoil.get(name, lambda page: (200, page))(self.page(path))
        length = {"Content-Length": str(len(data))}
        if name in self.drip_s:
            handler.answer(status, length, b"")
            for byte in data:
                time.sleep(self.drip_s[name])
                try:
                    handler.wfile.write(bytes([byte]))
                except OSError:
                    return  # the client gave up
            return
        handler.answer(status, length, data[: len(data) // 2] if name in self.cut else data)

    def page(self, path: str) -> bytes:
        """The recorded page of a path."""
        if path.startswith("/azure"):
            half = AZURE[:4] if "page=2" not in path else AZURE[4:]
            more = f"{self.url}/azure?page=2" if "page=2" not in path else None
            return json.dumps({"Items": half, "NextPageLink": more, "Count": len(half)}).encode()
        if path.startswith("/skypilot/"):
            return SKYPILOT[path.split("/")[2]].encode()
        if path == "/aws/index.csv":
            return AWS.encode()
        pages = {"vast": VAST, "runpod": RUNPOD, "lambda": LAMBDA, "listed": LISTED, "lium": LIUM, "aws": ADVISOR}
        return json.dumps(pages[path.split("/")[1]]).encode()
