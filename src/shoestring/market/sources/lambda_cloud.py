"""Lambda: its cloud API, which wants a key; no spot.

Shape: docs.lambda.ai/api/cloud, GET instance-types. price_cents_per_hour is for the whole machine.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..fetch import Web, need, number
from ..offers import Quote
from .source import Source


def quotes(web: Web, url: str) -> Iterator[Quote]:
    """Each machine with GPUs in each region with capacity; one that is sold out once, at its list price."""
    for entry in need(web.json(url), "data", dict).values():
        machine = need(entry, "instance_type", dict)
        num_gpus = number(need(machine, "specs", dict), "gpus")
        if not num_gpus:
            continue
        name = need(machine, "name", str)
        regions = [need(region, "name", str) for region in need(entry, "regions_with_capacity_available", list)]
        for region in regions or [""]:
            yield Quote(
                seller="Lambda",
                gpu=f"{need(machine, 'gpu_description', str)} {name}",
                num_gpus=num_gpus,
                usd_per_hour=number(machine, "price_cents_per_hour") / 100,
                region=region,
                detail=name if regions else f"{name}, sold out",
            )


SOURCE = Source(
    "lambda", "https://cloud.lambda.ai/api/v1/instance-types", quotes, "Lambda's API", key_env="LAMBDA_API_KEY"
)
