"""AWS: the public price list of one region, and the Spot Advisor's savings and interruption bands; no key.

Shapes: docs.aws.amazon.com/awsaccountbilling (bulk price list, CSV after five lines of preamble); the advisor's JSON
behind aws.amazon.com/ec2/spot/instance-advisor. Exact spot prices need an account: ours are the list price less the
average saving of the advisor, a month's average.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..fetch import Web, need, number
from ..offers import Quote
from .source import Source

REGION = "us-east-1"
PREAMBLE_LINES = 5
BY_ADVISOR = "; the price is the list price less Spot Advisor's average saving"
ADVISOR = "https://spot-bid-advisor.s3.amazonaws.com/spot-advisor-data.json"
WANTED = {
    "TermType": ("OnDemand",),
    "Tenancy": ("Shared",),
    "Operating System": ("Linux",),
    "CapacityStatus": ("Used",),
    "Unit": ("Hrs",),
    "Currency": ("USD",),
    "Pre Installed S/W": ("", "NA"),
    "MarketOption": ("OnDemand",),
}
FAMILIES = {  # docs.aws.amazon.com/ec2/latest/instancetypes/ac.html
    "g4dn": "T4",
    "g5": "A10G",
    "g6": "L4",
    "gr6": "L4",
    "g6e": "L40S",
    "p3": "V100 16GB",
    "p4d": "A100 SXM 40GB",
    "p4de": "A100 SXM 80GB",
    "p5": "H100 SXM",
    "p5e": "H200",
    "p5en": "H200",
    "p6-b200": "B200",
    "p6-b300": "B300",
}
# Of the list's million lines, the few thousand that are worth parsing.
GPU_MACHINE = re.compile(rf'[",]({"|".join(FAMILIES)})\.')


def quotes(web: Web, url: str) -> Iterator[Quote]:
    """Each GPU machine at its list price, and at the advisor's spot price where the advisor knows it."""
    spot = _advisor(web, ADVISOR if url == SOURCE.url else f"{url.rsplit('/', 1)[0]}/spot-advisor-data.json")
    columns = (*WANTED, "Instance Type", "PricePerUnit", "GPU")
    for row in web.rows(url, columns, skip=PREAMBLE_LINES, wanted=GPU_MACHINE):
        gpu = FAMILIES.get(row["Instance Type"].split(".")[0])
        if gpu is None or any(row[name] not in values for name, values in WANTED.items()):
            continue
        yield from _quotes_of(row, gpu, spot.get(row["Instance Type"]))


def _quotes_of(row: dict[str, str], gpu: str, spot: tuple[float, str] | None) -> Iterator[Quote]:
    machine, num_gpus, usd_per_hour = row["Instance Type"], number(row, "GPU"), number(row, "PricePerUnit")
    yield Quote("AWS", gpu, num_gpus, usd_per_hour, REGION, detail=machine)
    if spot is not None:
        saving_frac, interruption = spot
        usd_per_hour *= 1 - saving_frac
        yield Quote("AWS", gpu, num_gpus, usd_per_hour, REGION, None, True, interruption, f"{machine}, by Spot Advisor")


def _advisor(web: Web, url: str) -> dict[str, tuple[float, str]]:
    """Machine -> (saving as a fraction, interruptions and the price's origin in words)."""
    answer: Any = web.json(url)
    labels = {need(band, "index"): need(band, "label", str) for band in need(answer, "ranges", list)}
    machines = need(need(need(answer, "spot_advisor", dict), REGION, dict), "Linux", dict)
    return {
        machine: (number(told, "s") / 100, f"{labels.get(need(told, 'r'), '?')} of machines a month{BY_ADVISOR}")
        for machine, told in machines.items()
    }


SOURCE = Source(
    "aws",
    f"https://pricing.us-east-1.amazonaws.com/offers/v1.0/aws/AmazonEC2/current/{REGION}/index.csv",
    quotes,
    "AWS's price list",
)
